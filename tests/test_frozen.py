"""
Vaults of every released format open for ever, also without the package; and what is no token of
ours says what it is.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.fernet import Fernet
from helpers import FROZEN, make_vault
from helpers.site import Figures, Site, new_site

from outreach_vault import (
    DamagedValue,
    ForeignValue,
    KeyDirectory,
    KeyMissing,
    Secret,
    Vault,
    VaultError,
)
from outreach_vault.operations.doctor import examine
from outreach_vault.operations.recovery import import_keys
from outreach_vault.operations.rotation import rotate
from outreach_vault.schema import migrator

VAULTS = sorted(path for path in FROZEN.iterdir() if path.is_dir())
Places = dict[tuple[str | None, str, str], Any]


class Frozen(NamedTuple):
    """A copy of a frozen vault, and what it must open to."""

    site: Site
    expected: dict[str, Any]

    def values(self, what: str = "value") -> Places:
        return {
            (row["project_id"], row["provider"], row["credential_type"]): row[what]
            for row in self.expected["values"]
        }

    def foreign(self) -> list[tuple[str | None, str, str]]:
        return [
            (row["project_id"], row["provider"], row["credential_type"])
            for row in self.expected["foreign"]
        ]

    def require_every_value(self, site: Site | None = None) -> None:
        with (site or self.site).open() as vault:
            for (project, provider, field), value in self.values().items():
                assert vault.get(provider, field, project, fallback=False).reveal() == value
            for project, provider, field in self.foreign():
                with pytest.raises(ForeignValue):
                    vault.get(provider, field, project, fallback=False)


@pytest.fixture(params=VAULTS, ids=[path.name for path in VAULTS])
def frozen(request: pytest.FixtureRequest, tmp_path: Path) -> Frozen:
    folder = tmp_path / "frozen"
    shutil.copytree(request.param, folder)
    for path in (folder, *folder.rglob("*")):  # git keeps no modes
        path.chmod(0o700 if path.is_dir() else 0o600)
    migrator.migrate(folder / "vault.db")  # a later version may have steps to apply first
    return Frozen(
        Site(folder / "vault.db", folder / "keys"),
        json.loads((folder / "expected.json").read_text("ascii")),
    )


def test_there_is_a_frozen_vault_and_it_is_the_whole_of_what_the_script_says() -> None:
    assert "1" in [path.name for path in VAULTS]
    expected = json.loads((VAULTS[0] / "expected.json").read_text("ascii"))
    written = {
        (row["project_id"], row["provider"], row["credential_type"]): row["value"]
        for row in expected["values"]
    }
    assert written == {
        (project, provider, field): value
        for project, provider, field, value, _ in make_vault.VALUES
    }
    assert sum(path.stat().st_size for path in VAULTS[0].rglob("*.db")) < 400_000
    assert not list(VAULTS[0].rglob("*-wal")) and not list(VAULTS[0].rglob("*-shm"))


def test_the_script_never_makes_a_frozen_vault_again(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("as it is")
    done = subprocess.run(
        [sys.executable, make_vault.__file__, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 1 and "never made again" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_every_value_of_a_frozen_vault_opens(frozen: Frozen, figures: Figures) -> None:
    before = frozen.site.database.read_bytes()
    frozen.require_every_value()
    assert frozen.site.database.read_bytes() == before
    assert len(set(frozen.values("key").values())) >= 2  # it was frozen in the middle of a rotation
    figures("values of frozen vaults, each opened", len(frozen.values()))


def test_list_doctor_and_keys_of_a_frozen_vault_say_what_it_is(frozen: Frozen) -> None:
    with frozen.site.open() as vault:
        listed = {
            (e.project_id, e.provider, e.credential_type): (e.state, e.label) for e in vault.list()
        }
        keys = {record.id: record.state for record in vault.keys.states.records()}
        successors = {
            key_id: vault.keys.store.successor(vault.keys.vault_id, key_id) for key_id in keys
        }
        needed = vault.rows.count_by_key()
    assert listed == {
        place: ("ok", label) for place, label in frozen.values("label").items()
    } | dict.fromkeys(frozen.foreign(), ("foreign", None))
    assert keys == {key["id"]: key["state"] for key in frozen.expected["keys"]}
    assert successors == {key["id"]: key["successor"] for key in frozen.expected["keys"]}
    assert {key_id: needed[key_id] for key_id in needed if key_id} == {
        key_id: list(frozen.values("key").values()).count(key_id)
        for key_id in set(frozen.values("key").values())
    }
    found = examine(frozen.site.database, key_store=KeyDirectory(frozen.site.keys), deep=True)
    assert found.values == {
        "ok": len(frozen.values()),
        "foreign": len(frozen.foreign()),
        "unreadable": 0,
    }
    # The fields of a frozen vault are there for their characters, and make no account that could
    # send.
    accounts = {"mixed account", "incomplete account"}
    assert {
        finding.kind for finding in found.findings if finding.level == "problem"
    } - accounts == {"interrupted rotation"}


def test_the_interrupted_rotation_of_a_frozen_vault_is_finished(frozen: Frozen) -> None:
    active = frozen.site.active()
    with frozen.site.open() as vault:
        report = rotate(vault)
    assert (
        report.resumed
        and report.complete
        and report.new_key == active
        and report.foreign == len(frozen.foreign())
    )
    assert report.rotated == sum(key != active for key in frozen.values("key").values()) > 0
    assert {
        row["key_id"] for row in frozen.site.rows().values() if row["provider"] != "of the app"
    } == {active}
    frozen.require_every_value()
    found = examine(
        frozen.site.database, key_store=KeyDirectory(frozen.site.keys), deep=True
    ).findings
    assert {finding.kind for finding in found if finding.level == "problem"} <= {
        "mixed account",
        "incomplete account",
    }


def test_the_exported_keys_of_a_frozen_vault_open_it_from_an_empty_key_store(
    frozen: Frozen,
) -> None:
    elsewhere = Site(frozen.site.database, frozen.site.keys.with_name("elsewhere"))
    with elsewhere.open() as vault:
        assert {entry.state for entry in vault.list()} == {"key missing", "foreign"}
        done = import_keys(
            vault,
            frozen.site.database.with_name("keys.export"),
            Secret(frozen.expected["passphrase"]),
        )
    assert set(done.added) == {
        key["id"] for key in frozen.expected["keys"] if key["state"] in ("active", "retired")
    }
    for name in {path.name for path in frozen.site.keys.glob("*.key")}:
        assert (elsewhere.keys / name).read_bytes() == (frozen.site.keys / name).read_bytes()
    frozen.require_every_value(elsewhere)


def test_every_value_of_a_frozen_vault_opens_without_the_package(frozen: Frozen) -> None:
    """The emergency exit that the manual describes: SQLite, Fernet and JSON."""
    found: Places = {}
    with contextlib.closing(
        sqlite3.connect(f"{frozen.site.database.as_uri()}?mode=ro", uri=True)
    ) as connection:
        for token, key_id in connection.execute(
            "SELECT encrypted_value, key_id FROM provider_credentials"
        ).fetchall():
            if token.startswith("gAAAA"):
                content = json.loads(frozen.site.fernet(key_id).decrypt(token))
                found[content["project_id"], content["provider"], content["credential_type"]] = (
                    content["value"]
                )
    assert found == frozen.values()


# --- what is stored and is no token of this vault at this place


class Row(NamedTuple):
    """Where the malformed value is put, and the good token that it is made of."""

    token: str
    key: str
    elsewhere: str
    of_another_vault: str

    def changed(self, change: Callable[[bytearray], object]) -> str:
        raw = bytearray(base64.urlsafe_b64decode(self.token))
        change(raw)
        return base64.urlsafe_b64encode(raw).decode()

    def sealed(self, content: str | bytes, at: int = 1_700_000_000) -> str:
        data = content.encode() if isinstance(content, str) else content
        return Fernet(self.key).encrypt_at_time(data, at).decode()

    def other_alphabet(self) -> str:
        """
        The token of a moment and an IV that need both of the characters in which the alphabets
        differ.
        """
        token = next(t for t in iter(lambda: self.sealed(CONTENT), None) if "-" in t and "_" in t)
        return token.replace("-", "+").replace("_", "/")

    def other_spelling(self) -> str:
        """
        The same bytes: the last character before the padding has bits that no decoder looks at.
        """
        padded = next(
            t
            for n in range(1, 60)
            if (t := self.sealed(CONTENT.replace("content", "c" * n))).endswith("=")
        )
        body = padded.rstrip("=")
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        twin = body[:-1] + alphabet[alphabet.index(body[-1]) ^ 1] + padded[len(body) :]
        assert (
            base64.b64decode(twin, altchars="-_") == base64.b64decode(padded, altchars="-_")
            and twin != padded
        )
        return twin


P = "default-project"
HERE = {"project_id": P, "provider": "smtp", "credential_type": "password"}
CONTENT = json.dumps({"v": 1, **HERE, "value": "content"}, separators=(",", ":"))
FOREIGN = (ForeignValue, "was not sealed by this vault")
NOT_WHOLE = (DamagedValue, "not a whole token")
REFUSED = (DamagedValue, "its key refuses the stored token")
NO_VALUE = (DamagedValue, "its format is unknown to this version")
ELSEWHERE = (DamagedValue, "sealed for another place")


def without(name: str) -> str:
    return json.dumps({key: value for key, value in json.loads(CONTENT).items() if key != name})


def but(**changes: Any) -> str:
    return json.dumps(json.loads(CONTENT) | changes)


MALFORMED: dict[str, tuple[Callable[[Row], Any], tuple[type[VaultError], str]]] = {
    "empty": (lambda row: "", (ForeignValue, "the stored value is empty")),
    "white space": (lambda row: " \t\n", FOREIGN),
    "the app's own value": (lambda row: make_vault.APP_VALUE, FOREIGN),
    "plain text": (lambda row: "a password, as another tool may leave it", FOREIGN),
    "a token's beginning alone": (lambda row: "gAAAAA", NOT_WHOLE),
    "a token's first four characters": (lambda row: row.token[:4], FOREIGN),
    "cut by a character": (lambda row: row.token[:-1], NOT_WHOLE),
    "cut by four characters": (lambda row: row.token[:-4], NOT_WHOLE),
    "cut by a block": (
        lambda row: row.changed(lambda raw: raw.__delitem__(slice(-16, None))),
        REFUSED,
    ),
    "cut at the front": (lambda row: row.token[4:], FOREIGN),
    "a block more": (lambda row: row.changed(lambda raw: raw.extend(bytes(16))), REFUSED),
    "no ciphertext": (
        lambda row: row.changed(lambda raw: raw.__delitem__(slice(25, -32))),
        NOT_WHOLE,
    ),
    "a space before": (lambda row: " " + row.token, FOREIGN),
    "a byte order mark before": (lambda row: "\ufeff" + row.token, FOREIGN),
    "a space after": (lambda row: row.token + " ", NOT_WHOLE),
    "a line end after": (lambda row: row.token + "\n", NOT_WHOLE),
    "a NUL after": (lambda row: row.token + "\0", NOT_WHOLE),
    "junk after": (lambda row: row.token + "AAAA", NOT_WHOLE),
    "twice": (lambda row: row.token * 2, NOT_WHOLE),
    "a line end within": (lambda row: row.token[:64] + "\n" + row.token[64:], NOT_WHOLE),
    "the standard alphabet": (lambda row: row.other_alphabet(), NOT_WHOLE),
    "another spelling of its bytes": (lambda row: row.other_spelling(), NOT_WHOLE),
    "lower case": (lambda row: row.token.lower(), FOREIGN),
    "not ASCII": (lambda row: row.token[:40] + "é" + row.token[41:], NOT_WHOLE),
    "version byte 0x81": (lambda row: row.changed(lambda raw: raw.__setitem__(0, 0x81)), FOREIGN),
    "another time": (lambda row: row.changed(lambda raw: raw.__setitem__(8, raw[8] ^ 1)), REFUSED),
    "another IV": (lambda row: row.changed(lambda raw: raw.__setitem__(9, raw[9] ^ 1)), REFUSED),
    "another HMAC": (
        lambda row: row.changed(lambda raw: raw.__setitem__(-1, raw[-1] ^ 1)),
        REFUSED,
    ),
    "bytes": (lambda row: row.token.encode(), FOREIGN),
    "an empty BLOB": (lambda row: b"", (ForeignValue, "the stored value is empty")),
    "a token of another vault": (lambda row: row.of_another_vault, REFUSED),
    "a token of another place": (lambda row: row.elsewhere, ELSEWHERE),
    "content that is not JSON": (lambda row: row.sealed("content"), NO_VALUE),
    "content that is not UTF-8": (lambda row: row.sealed(CONTENT.encode() + b"\xff"), NO_VALUE),
    "content that ends early": (lambda row: row.sealed(CONTENT[:-1]), NO_VALUE),
    "content nested without end": (lambda row: row.sealed("[" * 100_000), NO_VALUE),
    "empty content": (lambda row: row.sealed(""), NO_VALUE),
    "a list": (lambda row: row.sealed(f"[{CONTENT}]"), NO_VALUE),
    "a later format": (lambda row: row.sealed(but(v=2)), NO_VALUE),
    "a format that is text": (lambda row: row.sealed(but(v="1")), NO_VALUE),
    "no format": (lambda row: row.sealed(without("v")), NO_VALUE),
    "no value": (lambda row: row.sealed(without("value")), NO_VALUE),
    "a value that is a number": (lambda row: row.sealed(but(value=1)), NO_VALUE),
    "no provider": (lambda row: row.sealed(without("provider")), NOT_WHOLE),
    "no field": (lambda row: row.sealed(without("credential_type")), NOT_WHOLE),
    "no project": (lambda row: row.sealed(without("project_id")), NOT_WHOLE),
    "the global scope": (lambda row: row.sealed(but(project_id=None)), ELSEWHERE),
    "a provider that is a list": (lambda row: row.sealed(but(provider=["smtp"])), ELSEWHERE),
}
# Of the row and not of the token; and that the row itself would open otherwise.
KEY_IDS: dict[str, tuple[object, tuple[type[VaultError], str]]] = {
    "no key id": (None, FOREIGN),
    "an unknown key id": ("11111111-2222-4333-8444-555555555555", (KeyMissing, "lists no key")),
    "a key id that is a path": ("../../etc/passwd", (KeyMissing, "lists no key")),
    "a key id that is bytes": (b"\xff", FOREIGN),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Vault, Row]]:
    """A vault whose global value of the same field would be the wrong answer."""
    folder = tmp_path_factory.mktemp("malformed")
    site, other = new_site(folder / "one"), new_site(folder / "other")
    with other.open() as stranger:
        stranger.set("smtp", "password", "content", P)
    with site.open() as vault:
        vault.set("smtp", "password", "of all")
        vault.set("smtp", "user", "content", P)
        row_id = vault.set("smtp", "password", "content", P)
        rows = site.rows()
        (elsewhere,) = [
            row["encrypted_value"] for row in rows.values() if row["credential_type"] == "user"
        ]
        (of_another,) = [row["encrypted_value"] for row in other.rows().values()]
        (key,) = site.keys.glob("*.key")
        yield (
            site,
            vault,
            Row(rows[row_id]["encrypted_value"], key.read_text(), elsewhere, of_another),
        )


def refused(
    site: Site, vault: Vault, outcome: tuple[type[VaultError], str], token: Any, **columns: Any
) -> None:
    columns = {"encrypted_value": token, "key_id": site.active()} | columns
    assignments = ", ".join(f"{name} = ?" for name in columns)
    site.change(
        f"UPDATE provider_credentials SET {assignments} WHERE project_id IS NOT NULL AND "
        "credential_type = 'password'",
        *columns.values(),
    )
    error, words = outcome
    for fallback in (True, False):
        with pytest.raises(VaultError) as caught:
            vault.get("smtp", "password", P, fallback=fallback)
        assert type(caught.value) is error and words in str(caught.value), caught.value
        assert "smtp/password (project default-project)" in str(caught.value) and caught.value.hint
        assert "content" not in str(caught.value)


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_token_is_named_for_what_it_is_and_never_opened(
    shared: tuple[Site, Vault, Row], what: str, figures: Figures
) -> None:
    site, vault, row = shared
    make, outcome = MALFORMED[what]
    refused(site, vault, outcome, make(row))
    figures("malformed tokens, each with its own error", 1)


@pytest.mark.parametrize("what", KEY_IDS)
def test_a_row_with_another_key_id_is_refused(shared: tuple[Site, Vault, Row], what: str) -> None:
    site, vault, row = shared
    refused(site, vault, KEY_IDS[what][1], row.token, key_id=KEY_IDS[what][0])


def test_what_the_malformed_tokens_are_made_of_opens(shared: tuple[Site, Vault, Row]) -> None:
    """Else each could be refused for a reason that all of them share."""
    site, vault, row = shared
    where = "WHERE project_id IS NOT NULL AND credential_type = 'password'"
    for token in (row.token, row.sealed(CONTENT), row.sealed(CONTENT, at=0)):
        site.change(
            f"UPDATE provider_credentials SET encrypted_value = ?, key_id = ? {where}",
            token,
            site.active(),
        )
        assert vault.get("smtp", "password", P).reveal() == "content"
