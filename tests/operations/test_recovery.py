"""
What outlives the machine: an export of the keys and a backup of the database, and what they come
back to. K8, D5.

An export is opened here by a reader of its own, which knows the published format and nothing of the
package.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import re
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from traceback import walk_tb
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from helpers import rotation_peers
from helpers.commands import QUICK, Done, Terminal, failed, problems, process, run
from helpers.effort import some
from helpers.faults import each_stop
from helpers.rotation_peers import Values, fill
from helpers.secret_service import SecretService
from helpers.shape import NOBODY, in_child
from helpers.site import (
    Figures,
    Site,
    another,
    entries,
    everything,
    kept,
    marks,
    new_site,
    operators_lock,
    restored,
    sql,
    writing,
)

from outreach_vault import KeyDirectory, KeyringLocked, KeyStoreUnavailable, Secret, Vault, WrongKey
from outreach_vault.cipher import generate_key
from outreach_vault.database.sqlite.database import SQLiteDatabase as Database
from outreach_vault.errors import (
    BadKeyFile,
    KeyExists,
    KeyMissing,
    KeySuperseded,
    KeyUnavailable,
    OperationRunning,
    VaultError,
)
from outreach_vault.keys.passphrase import open_under_passphrase, seal_under_passphrase
from outreach_vault.keys.stores import KeyStore
from outreach_vault.keys.stores.os_keyring import OSKeyring
from outreach_vault.operations import recovery, rotation
from outreach_vault.operations.init import init
from outreach_vault.operations.recovery import backup, export_keys, import_keys

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="terminals, forked children, modes"),
    pytest.mark.sweep(3),
]

PASSPHRASE = Secret("correct horse battery staple")
LINE = b"correct horse battery staple\n"
FILES = pytest.mark.sqlite("a backup, which is a file")


def read_by_another(path: Path, passphrase: str = PASSPHRASE.reveal()) -> Any:
    """What is in an export, by the published format alone."""
    found = json.loads(path.read_text())
    assert (
        found.keys() == {"kind", "argon2id", "token"} and found["kind"] == "outreach-vault keys 1"
    )
    costs = found["argon2id"]
    stretch = Argon2id(
        salt=base64.b64decode(costs["salt"]),
        length=32,
        iterations=costs["iterations"],
        lanes=costs["lanes"],
        memory_cost=costs["memory_kib"],
    )
    return json.loads(
        Fernet(base64.urlsafe_b64encode(stretch.derive(passphrase.encode()))).decrypt(
            found["token"]
        )
    )


def rotate(site: Site, **options: Any) -> rotation.Report:
    with site.open() as vault:
        return rotation.rotate(vault, **options)


def export(site: Site, name: str = "keys.export") -> Path:
    """An export in the vault's own folder, which goes where a copy of the folder goes."""
    with site.open() as vault:
        return export_keys(vault, site.folder / name, PASSPHRASE).path


@pytest.fixture(scope="module")
def third_key(empty: Site, tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Values]:
    site = empty.copy(tmp_path_factory.mktemp("third") / "site")
    with site.open() as vault:
        values = fill(vault, 5)
        first = vault.keys.states.active_id()
        rotation.rotate(vault)
        rotation.rotate(vault)
        rotation.destroy(vault, first)
    return site, values


@pytest.fixture
def filled(third_key: tuple[Site, Values], tmp_path: Path) -> tuple[Site, Values]:
    """
    Five values in two scopes, under the third key; the second is retired, the first destroyed.
    """
    return third_key[0].copy(tmp_path / "site"), dict(third_key[1])


# Export, and back


@pytest.mark.stretched
def test_an_export_is_read_by_its_published_format_alone(filled: tuple[Site, Values]) -> None:
    site, values = filled
    path = export(site)
    text, found = path.read_text(), read_by_another(path)
    assert {**json.loads(text)["argon2id"], "salt": None} == {
        "iterations": 3,
        "lanes": 4,
        "memory_kib": 65536,
        "salt": None,
    }
    rows = {
        row[0]: row[1:]
        for row in sql(
            site.database, "SELECT id, state, check_value, created_at, activated_at FROM vault_keys"
        )
    }
    assert [(found["vault_id"],)] == sql(
        site.database, "SELECT value FROM vault_meta WHERE key = 'vault_id'"
    )
    assert sorted(key["state"] for key in found["keys"]) == ["active", "retired"] and len(rows) == 3
    for key in found["keys"]:
        assert (key["state"], key["check_value"], key["created_at"], key["activated_at"]) == rows[
            key["id"]
        ]
        assert (
            Fernet(key["key"]).decrypt(key["check_value"])
            == f"outreach-vault {found['vault_id']} {key['id']}".encode()
        )
        assert key["key"] == entries(site)[f"{found['vault_id']}.{key['id']}.key"]
    hidden = [PASSPHRASE.reveal(), *(key["key"] for key in found["keys"]), *values.values()]
    assert not [word for word in hidden if word in text]
    assert {
        key["id"]: key["exported_at"]
        for key in run(site, "keys", "list", "--json").data
        if key["state"] != "destroyed"
    } == {key["id"]: found["made_at"] for key in found["keys"]}


def test_an_export_comes_back_into_a_key_directory_with_states_and_marks(
    filled: tuple[Site, Values], tmp_path: Path
) -> None:
    site, values = filled
    path, new = export(site), restored(site, tmp_path / "new")
    states = site.states()
    with new.open() as vault:
        done = import_keys(vault, path, PASSPHRASE)
    assert (
        sorted(done.added) == sorted(key for key, state in states.items() if state != "destroyed")
        and done.there == done.destroyed == ()
    )
    new.require_intact(values)
    assert new.states() == states
    destroyed = next(key for key, state in states.items() if state == "destroyed")
    assert {n: t for n, t in entries(site).items() if destroyed not in n} == entries(new)
    assert {oct(file.stat().st_mode & 0o777) for file in new.keys.iterdir()} == {"0o600"}


@pytest.mark.usefixtures("quick")
def test_an_export_comes_back_into_another_secret_service(
    secret_service: SecretService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path / "app.db", tmp_path / "never")
    init(site.database, key_store=OSKeyring())
    with site.open(OSKeyring()) as vault:
        values = fill(vault, 3)
        old, new = vault.keys.states.active_id(), rotation.rotate(vault).new_key
        assert new
        export_keys(vault, tmp_path / "keys.export", PASSPHRASE)
        services = {
            key_id: f"outreach-vault/{vault.keys.vault_id}/{key_id}" for key_id in (old, new)
        }
    kept = {
        key_id: secret_service.lookup(service, "fernet-key") for key_id, service in services.items()
    }
    assert (
        all(kept.values())
        and {key["id"]: key["key"] for key in read_by_another(tmp_path / "keys.export")["keys"]}
        == kept
    )
    with SecretService() as other:
        for name, value in other.env.items():
            monkeypatch.setenv(name, value)
        with site.open(OSKeyring()) as vault:
            assert {*import_keys(vault, tmp_path / "keys.export", PASSPHRASE).added} == {old, new}
            for (project, provider, kind), value in values.items():
                assert vault.get(provider, kind, project).reveal() == value
        assert {
            key_id: other.lookup(service, "fernet-key") for key_id, service in services.items()
        } == kept
        assert [other.lookup(services[key_id], "successor") for key_id in (old, new)] == [new, None]
    assert not site.keys.exists()


@pytest.fixture
def ordinary_folder() -> Iterator[Path]:
    """
    A folder of an ordinary user: root is not bound by modes, so that a chmod that came too late
    would not be noticed there.
    """
    with tempfile.TemporaryDirectory(prefix="ov", dir="/tmp") as name:
        if os.geteuid() == 0:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("mask", [0, 0o777])
def test_an_export_and_a_backup_are_their_owner_s_alone_under_any_umask(
    ordinary_folder: Path, mask: int
) -> None:
    site = Site(ordinary_folder / "app.db", ordinary_folder / "keys")

    def work() -> str:
        init(site.database, key_store=KeyDirectory(site.keys))
        os.umask(mask)
        with site.open() as vault:
            vault.set("smtp", "user", "v")
            export_keys(vault, ordinary_folder / "keys.export", PASSPHRASE)
            backup(vault, ordinary_folder / "backup.db")
            shutil.rmtree(site.keys)
            import_keys(vault, ordinary_folder / "keys.export", PASSPHRASE)
        with Vault.open(ordinary_folder / "backup.db", key_store=KeyDirectory(site.keys)) as vault:
            return vault.get("smtp", "user").reveal()

    assert in_child(work, ordinary=True) == (0, "v")
    made = [ordinary_folder / "keys.export", ordinary_folder / "backup.db", *site.keys.iterdir()]
    assert [oct(file.stat().st_mode & 0o7777) for file in made] == ["0o600"] * 3
    assert oct(site.keys.stat().st_mode & 0o7777) == "0o700"
    assert not list(ordinary_folder.glob(".*"))


def test_a_file_in_the_making_is_private_from_its_first_byte(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = [], os.fsync

    def look(descriptor: int) -> None:
        seen.append(oct(os.fstat(descriptor).st_mode & 0o777))
        real(descriptor)

    before = os.umask(0)
    try:
        monkeypatch.setattr(os, "fsync", look)
        export(site)
    finally:
        os.umask(before)
    # The file is on disk, under no name but its own folder's, and then its name is.
    assert seen[0] == "0o600"


def _a_link_to_nowhere(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "put", [Path.mkdir, Path.touch, lambda path: path.write_text("another's"), _a_link_to_nowhere]
)
@pytest.mark.parametrize("make", ["keys export", pytest.param("backup", marks=FILES)])
def test_nothing_is_ever_overwritten(
    site: Site, tmp_path: Path, put: Callable[[Path], object], make: str
) -> None:
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "there"
    put(target)
    before = everything(site)
    there = target.lstat()
    failed(run(site, *make.split(), str(target), stdin=LINE), 15, str(target), "is there already")
    after = target.lstat()
    assert (after.st_mode, after.st_size, after.st_mtime_ns, after.st_ino) == (
        there.st_mode,
        there.st_size,
        there.st_mtime_ns,
        there.st_ino,
    )
    assert list((tmp_path / "out").iterdir()) == [target] and everything(site) == before


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("make", ["keys export", pytest.param("backup", marks=FILES)])
def test_a_file_in_no_folder_is_an_error_and_nothing_is_noted(
    site: Site, tmp_path: Path, make: str
) -> None:
    before = everything(site)
    failed(
        run(site, *make.split(), str(tmp_path / "none" / "file"), stdin=LINE),
        15,
        str(tmp_path / "none"),
    )
    assert everything(site) == before


@pytest.mark.usefixtures("quick")
def test_an_export_to_its_own_file_again_is_fine_and_anything_else_is_refused(site: Site) -> None:
    path = export(site)
    data = path.read_bytes()
    assert run(site, "keys", "export", str(path), stdin=LINE).status == 0
    failed(
        run(site, "keys", "export", str(path), stdin=b"another passphrase\n"),
        15,
        "is there already",
    )
    rotate(site)
    failed(run(site, "keys", "export", str(path), stdin=LINE), 15, "is there already")
    assert path.read_bytes() == data


@pytest.mark.usefixtures("quick")
def test_every_export_has_a_salt_and_a_token_of_its_own(site: Site) -> None:
    made = [json.loads(export(site, f"{number}.export").read_text()) for number in range(8)]
    assert (
        len({each["argon2id"]["salt"] for each in made})
        == len({each["token"] for each in made})
        == 8
    )
    assert {len(base64.b64decode(each["argon2id"]["salt"])) for each in made} == {16}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "harm", [Path.unlink, lambda file: file.write_text(generate_key().reveal())]
)
def test_an_export_leaves_out_a_retired_key_that_is_lost_and_says_so(
    filled: tuple[Site, Values], harm: Callable[[Path], object]
) -> None:
    site, _ = filled
    lost = next(key for key, state in site.states().items() if state == "retired")
    harm(next(site.keys.glob(f"*.{lost}.key")))
    path = site.folder / "keys.export"
    done = run(site, "keys", "export", str(path), stdin=LINE)
    assert (
        done.status == 16 and "1 key" in done.out and "left out: " in done.err and lost in done.err
    )
    assert [key["id"] for key in read_by_another(path)["keys"]] == [site.active()]
    assert {
        key["id"] for key in run(site, "keys", "list", "--json").data if key["exported_at"]
    } == {site.active()}


@pytest.mark.usefixtures("quick")
def test_no_export_is_made_of_an_entry_that_was_replaced_in_a_vault_that_is_open(
    site: Site,
) -> None:
    """
    What was fetched before is still in memory and right; the entry that would go into the file is
    not.
    """
    with site.open() as vault:
        vault.set("smtp", "user", "v")
        next(site.keys.glob("*.key")).write_text(generate_key().reveal())
        with pytest.raises(WrongKey):
            export_keys(vault, site.folder / "keys.export", PASSPHRASE)


class LockedStore(KeyDirectory):
    def read(self, vault_id: str, key_id: str) -> Secret:
        raise KeyringLocked("the keyring is locked")

    def holds(self, vault_id: str, key_id: str) -> bool:
        raise KeyringLocked("the keyring is locked")


class LockedOnceStore(KeyDirectory):
    """Locked when it is asked for any key but one."""

    open_key = ""

    def read(self, vault_id: str, key_id: str) -> Secret:
        if key_id != self.open_key:
            raise KeyringLocked("the keyring is locked")
        return super().read(vault_id, key_id)


@pytest.mark.usefixtures("quick")
def test_no_export_is_made_without_the_active_key_or_from_a_locked_store(
    filled: tuple[Site, Values], tmp_path: Path
) -> None:
    site, _ = filled
    target, locked = tmp_path / "keys.export", LockedOnceStore(site.keys)
    locked.open_key = site.active()
    before = everything(site)
    for store in (LockedStore(site.keys), locked):
        with site.open(store) as vault, pytest.raises(KeyringLocked):
            export_keys(vault, target, PASSPHRASE)
    assert everything(site) == before
    file = next(site.keys.glob(f"*.{site.active()}.key"))
    file.unlink()
    failed(run(site, "keys", "export", str(target), stdin=LINE), 12, site.active())
    assert not target.exists() and all(
        row[0] is None for row in sql(site.database, "SELECT exported_at FROM vault_keys")
    )


@pytest.mark.usefixtures("quick")
def test_export_and_import_wait_for_no_other_operator(site: Site) -> None:
    path = export(site)
    before = everything(site)
    with site.open() as vault, operators_lock(site.database):
        for use in (export_keys, import_keys):
            with pytest.raises(OperationRunning):
                use(vault, path, PASSPHRASE)
    assert everything(site) == before


# Files that are no good


@pytest.fixture
def lost(filled: tuple[Site, Values], quick: None) -> tuple[Site, Path]:
    """A vault whose keys are in an export alone."""
    site, _ = filled
    path = export(site)
    shutil.rmtree(site.keys)
    return site, path


def refused(lost: tuple[Site, Path], contents: Iterator[bytes]) -> int:
    """
    How many files there were, each of which was refused as bad, and after none of which a
    transaction or a key was left.
    """
    site, path = lost
    count = 0
    changes = (
        "SELECT pg_snapshot_xmax(pg_current_snapshot())" if site.engine else "PRAGMA data_version"
    )
    with site.open() as vault, another(site.database) as watcher:
        version = watcher.execute(changes).fetchone()
        for count, content in enumerate(contents, start=1):  # noqa: B007
            path.write_bytes(content)
            with pytest.raises(BadKeyFile) as caught:
                import_keys(vault, path, PASSPHRASE)
            assert str(path) in str(caught.value) and caught.value.hint
            assert caught.value.__cause__ is None and not site.keys.exists()
        assert watcher.execute(changes).fetchone() == version
    return count


def test_an_export_with_any_byte_changed_is_refused(
    lost: tuple[Site, Path], figures: Figures
) -> None:
    good, chance = lost[1].read_bytes(), random.Random(11)
    flipped = (
        good[:at] + bytes([good[at] ^ 1 << chance.randrange(8)]) + good[at + 1 :]
        for at in some(range(len(good)), 150)
    )
    figures(
        "exports with one bit changed, in each byte, refused with nothing written",
        refused(lost, flipped),
    )


def test_an_export_with_its_salt_spelled_otherwise_is_refused(lost: tuple[Site, Path]) -> None:
    """
    16 bytes leave four bits of the last letter unused: the same salt in fifteen other spellings.
    """
    good = json.loads(lost[1].read_text())
    costs = good["argon2id"]
    salt = base64.b64decode(costs["salt"])
    spelled = [
        costs["salt"][:-3] + letter + "=="
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    ]
    others = [each for each in spelled if base64.b64decode(each) == salt and each != costs["salt"]]
    files = (
        (json.dumps(good | {"argon2id": costs | {"salt": each}}, indent=1) + "\n").encode()
        for each in others
    )
    assert refused(lost, files) == 15


def test_an_export_cut_at_any_length_is_refused(lost: tuple[Site, Path], figures: Figures) -> None:
    good = lost[1].read_bytes()
    sizes = some(range(len(good.rstrip())), 150)  # the last line end may be missing
    cut = (good[:size] for size in sizes)
    figures("exports cut at each length, refused with nothing written", refused(lost, cut))


def _written(kind: str = recovery.KIND) -> str:
    """A short file of that kind, as `seal_under_passphrase` writes it."""
    return seal_under_passphrase(PASSPHRASE, Secret("content"), kind)


def _opens(text: str) -> bool:
    try:
        return open_under_passphrase(PASSPHRASE, text, recovery.KIND) == Secret("content")
    except BadKeyFile:
        return False


@pytest.mark.usefixtures("quick")
def test_a_file_under_a_passphrase_with_one_character_changed_added_or_removed_is_refused(
    figures: Figures,
) -> None:
    good, tried = _written(), 0
    assert _opens(good)
    for at, there in some(list(enumerate(good)), 40):
        others = [
            good[:at] + c + good[at:] for c in string.printable.rstrip()
        ]  # all but white space, before it
        if not there.isspace():
            others += [
                good[:at] + c + good[at + 1 :]
                for c in ("", *string.printable, "\0", "\x85", "\xa0", "\u2028", "é")
                if c != there
            ]
        assert not [other for other in others if other != good and _opens(other)]
        tried += len(others)
    figures(
        "files under a passphrase with one character changed, added or removed, each refused", tried
    )


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("space", [" ", "\t", "\n", "\r\n"])
def test_white_space_between_the_parts_of_an_encrypted_export_means_nothing_and_is_refused_within(
    space: str,
) -> None:
    good = _written()
    within = {
        at
        for part in re.finditer(r'"[^"]*"|[0-9]+', good)
        for at in range(part.start() + 1, part.end())
    }
    assert {
        at for at in range(len(good) + 1) if not _opens(good[:at] + space + good[at:])
    } == within
    assert _opens("".join(good.split()).replace("outreach-vaultkeys1", recovery.KIND))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "change",
    [
        lambda found: found | {"more": 1},
        lambda found: found | {"argon2id": found["argon2id"] | {"more": 1}},
        lambda found: dict(reversed(found.items())),
        lambda found: found | {"argon2id": dict(reversed(found["argon2id"].items()))},
        lambda found: found | {"kind": "outreach-vaultkeys 1"},
        lambda found: found | {"kind": "outreach-vault  keys 1"},
    ],
)
def test_a_file_under_a_passphrase_with_fields_added_or_reordered_is_refused(
    change: Callable[[dict[str, Any]], Any],
) -> None:
    found = json.loads(_written())
    assert _opens(json.dumps(found)) and not _opens(json.dumps(change(found), indent=1) + "\n")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["kind", "argon2id", "token", "salt", "lanes"])
def test_a_file_under_a_passphrase_with_a_field_twice_is_refused(name: str) -> None:
    good = _written()
    found = json.loads(good)
    part = json.dumps({name: (found | found["argon2id"])[name]}, indent=1)[3:-2]
    assert good.count(f'"{name}"') == 1
    assert not _opens(good.replace(f'"{name}"', f'{part}, "{name}"')) and not _opens(
        good.replace(f'"{name}"', f'"{name}": 0, "{name}"')
    )


SPACED: dict[str, Callable[[bytes], bytes]] = {
    "line ends of Windows": lambda good: good.replace(b"\n", b"\r\n"),
    "no last line end": lambda good: good.rstrip(),
    "one line": lambda good: json.dumps(json.loads(good)).encode(),
    "no white space": lambda good: json.dumps(json.loads(good), separators=(",", ":")).encode(),
    "indented otherwise": lambda good: json.dumps(json.loads(good), indent=4).encode(),
    "a byte order mark": lambda good: b"\xef\xbb\xbf" + good,
    "both": lambda good: b"\xef\xbb\xbf" + good.replace(b"\n", b"\r\n"),
    "empty lines around": lambda good: b"\n \t" + good + b"\r\n\n",
}


@pytest.mark.parametrize("change", SPACED)
def test_an_export_whose_white_space_an_editor_changed_still_opens(
    lost: tuple[Site, Path], change: str
) -> None:
    site, path = lost
    path.write_bytes(SPACED[change](path.read_bytes()))
    with site.open() as vault:
        assert len(import_keys(vault, path, PASSPHRASE).added) == 2


def _others(good: bytes) -> Iterator[bytes]:
    whole = json.loads(good)
    yield from (
        good + junk
        for junk in (b"x", b"\0", b"\x0c", b"\x1a", b"\xc2\xa0", b"\xef\xbb\xbf", b"{}", good)
    )
    yield from (junk + good for junk in (b"\xef\xbb\xbf\xef\xbb\xbf", b"\xfe\xff", b"x"))
    yield good.decode().encode("utf-16")
    yield from (
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b"7",
        b"[" * 100_000,
        b"\xff\xfe",
        b"\0" * 1000,
        b"SQLite format 3\0",
        b" " * 17_000_000,
    )
    yield good.replace(b'"token"', b'"\\u0074oken"')  # the same, in another spelling
    values: list[object] = [None, 7, "text", [], {}, "é"]
    for name in ("kind", "argon2id", "token"):
        for value in values:
            yield (json.dumps(whole | {name: value}, indent=1) + "\n").encode()
        yield (
            json.dumps({other: value for other, value in whole.items() if other != name}, indent=1)
            + "\n"
        ).encode()
    for changed in (
        {"kind": "outreach-vault keys 2"},
        *({"token": whole["token"] + junk} for junk in ("\n", "=", "!", " ")),
    ):
        yield (json.dumps(whole | changed, indent=1) + "\n").encode()


def test_what_is_no_export_is_refused(lost: tuple[Site, Path], figures: Figures) -> None:
    figures(
        "other files in place of an export, refused with nothing written",
        refused(lost, _others(lost[1].read_bytes())),
    )


def test_no_more_of_a_file_is_read_than_an_export_may_have(
    lost: tuple[Site, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = lost[1].read_bytes()
    monkeypatch.setattr(recovery, "_MAX_BYTES", len(good) - 1)
    assert refused(lost, iter([good])) == 1
    monkeypatch.setattr(recovery, "_MAX_BYTES", len(good))
    with lost[0].open() as vault:
        assert len(import_keys(vault, lost[1], PASSPHRASE).added) == 2


def _costs(good: bytes) -> Iterator[bytes]:
    whole = json.loads(good)
    bad = {
        "memory_kib": (1024 * 1024 + 1, 1 << 40, 0, -1, True, "8", 8.0, None, 1),
        "iterations": (17, 0, -1, True, "1", None),
        "lanes": (17, 0, -1, True, None),
        "salt": (
            "",
            "AAAA",
            base64.b64encode(bytes(15)).decode(),
            base64.b64encode(bytes(17)).decode(),
            "*" * 24,
            7,
            None,
        ),
    }
    for name, values in bad.items():
        for value in values:
            yield (
                json.dumps(whole | {"argon2id": whole["argon2id"] | {name: value}}, indent=1) + "\n"
            ).encode()
        without = {other: value for other, value in whole["argon2id"].items() if other != name}
        yield (json.dumps(whole | {"argon2id": without}, indent=1) + "\n").encode()


def test_an_export_that_asks_for_more_than_it_may_is_refused_untried(
    lost: tuple[Site, Path], figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryptography.hazmat.primitives.kdf.argon2.Argon2id", _never(Argon2id))
    figures(
        "exports with parameters out of bounds, refused untried",
        refused(lost, _costs(lost[1].read_bytes())),
    )


def _never(real: Callable[..., Any]) -> Callable[..., Any]:
    class Untried:
        """Takes the parameters that the library takes, and derives nothing."""

        def __init__(self, **parameters: Any) -> None:
            real(**parameters)

        def derive(self, text: bytes) -> bytes:
            raise AssertionError("tried")

    return Untried


def _without_memory(**parameters: Any) -> None:
    raise MemoryError("Not enough memory to derive key.")


def _unsupported(**parameters: Any) -> None:
    raise UnsupportedAlgorithm("This version of OpenSSL does not support argon2id")


class DerivesNothing:
    def __init__(self, **parameters: Any) -> None:
        pass

    def derive(self, text: bytes) -> bytes:
        raise MemoryError


@pytest.mark.stretched
@pytest.mark.parametrize(
    ("module", "words"),
    [
        (SimpleNamespace(Argon2id=_without_memory), "needs 64 MiB"),
        (SimpleNamespace(Argon2id=DerivesNothing), "needs 64 MiB"),
        (SimpleNamespace(Argon2id=_unsupported), "OpenSSL 3.2 or later"),
        (None, "OpenSSL 3.2 or later"),
    ],
)
def test_a_machine_that_cannot_stretch_a_passphrase_says_what_it_lacks(
    site: Site, monkeypatch: pytest.MonkeyPatch, module: object, words: str
) -> None:
    path = export(site)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.kdf.argon2", module)
    for command in (("keys", "import", str(path)), ("keys", "export", f"{path}.2")):
        done = run(site, *command, stdin=LINE)
        assert done.status == 12 and words in done.err and PASSPHRASE.reveal() not in done.err
    assert not Path(f"{path}.2").exists()
    with site.open() as vault, pytest.raises(KeyUnavailable, match=words) as caught:
        import_keys(vault, path, PASSPHRASE)
    frames = [frame.f_locals for frame, _ in walk_tb(caught.value.__traceback__)][
        1:
    ]  # but for this one
    assert caught.value.hint and PASSPHRASE.reveal() not in repr(frames)


SHORT_OF_MEMORY = """
import resource, sys
from outreach_vault import Secret
from outreach_vault.keys.passphrase import seal_under_passphrase
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 32 * 1024 * 1024,) * 2)
try:
    seal_under_passphrase(Secret("passphrase"), Secret("content"), "kind")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="how large a process is")
def test_real_want_of_memory_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, check=True
    )
    assert (
        done.stdout.startswith("KeyUnavailable there is too little memory")
        and "needs 64 MiB" in done.stdout
    )


@pytest.mark.parametrize(
    ("harm", "status", "word"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), 12, "cut or changed"),
        (lambda path: path.write_bytes(b""), 12, "cut or changed"),
        (Path.unlink, 15, "No such file"),
        (lambda path: (path.unlink(), path.mkdir()), 15, "directory"),
        (lambda path: (path.unlink(), path.symlink_to(path)), 15, "symbolic links"),
    ],
)
def test_the_command_says_what_is_wrong_with_a_file(
    lost: tuple[Site, Path], harm: Callable[[Path], object], status: int, word: str
) -> None:
    site, path = lost
    harm(path)
    before = everything(site)
    failed(run(site, "keys", "import", str(path), stdin=LINE), status, str(path), word, "hint: ")
    assert everything(site) == before


def test_a_wrong_passphrase_is_named_as_such_and_not_repeated(lost: tuple[Site, Path]) -> None:
    site, path = lost
    before = everything(site)
    for wrong in (
        b"correct horse battery stapl\n",
        b" correct horse battery staple\n",
        b"Correct horse battery staple\n",
        b"x" * 5000,
    ):
        done = run(site, "keys", "import", str(path), stdin=wrong)
        failed(done, 12, "the passphrase is not the one")
        assert wrong.decode().strip() not in done.err
    assert everything(site) == before


def test_an_export_that_may_not_be_read_is_an_error(ordinary_folder: Path, quick: None) -> None:
    site = Site(ordinary_folder / "app.db", ordinary_folder / "keys")

    def work() -> None:
        init(site.database, key_store=KeyDirectory(site.keys))
        path = export(site)
        path.chmod(0)
        with site.open() as vault:
            import_keys(vault, path, PASSPHRASE)

    status, said = in_child(work, ordinary=True)
    assert status == 0 and said.startswith("DatabaseReadOnly") and "Permission denied" in said


# Exports that do not belong to the database, or to what the key store has


@pytest.mark.usefixtures("quick")
def test_another_vault_s_export_is_refused_with_both_ids(site: Site, tmp_path: Path) -> None:
    other = new_site(tmp_path / "other", site.engine)
    path, before = export(other), everything(site)
    ids = [
        sql(each.database, "SELECT value FROM vault_meta WHERE key = 'vault_id'")[0][0]
        for each in (site, other)
    ]
    failed(run(site, "keys", "import", str(path), stdin=LINE), 12, *ids)
    assert everything(site) == before


def _other_check_value(site: Site, key_id: str) -> None:
    site.change(
        "UPDATE vault_keys SET check_value = ? WHERE id = ?",
        Fernet(generate_key().reveal()).encrypt(b"x").decode(),
        key_id,
    )


def _other_entry(site: Site, key_id: str) -> None:
    with site.open() as vault:
        vault.keys.store.write(vault.keys.vault_id, key_id, generate_key())


@pytest.mark.parametrize("state", ["active", "retired"])
@pytest.mark.parametrize(
    ("harm", "error", "status"), [(_other_check_value, WrongKey, 12), (_other_entry, KeyExists, 12)]
)
def test_import_writes_nothing_where_one_key_is_another_s(
    lost: tuple[Site, Path],
    harm: Callable[[Site, str], None],
    error: type[VaultError],
    status: int,
    state: str,
) -> None:
    site, path = lost
    key_id = next(key for key, found in site.states().items() if found == state)
    harm(site, key_id)
    before = everything(site)
    with site.open() as vault, pytest.raises(error) as caught:
        import_keys(vault, path, PASSPHRASE)
    assert type(caught.value) is error and key_id in str(caught.value)
    failed(
        run(site, "keys", "import", str(path), stdin=LINE), status, key_id, "nothing was changed"
    )
    assert everything(site) == before


def test_import_takes_no_key_that_its_own_check_value_refuses(lost: tuple[Site, Path]) -> None:
    """
    Made by somebody who knows the passphrase: the wrong key behind a good id, which the database
    does not know yet.
    """
    site, path = lost
    content, whole = read_by_another(path), json.loads(path.read_text())
    content["keys"][0]["key"] = generate_key().reveal()
    stretch = Argon2id(
        salt=base64.b64decode(whole["argon2id"]["salt"]),
        length=32,
        iterations=1,
        lanes=1,
        memory_cost=QUICK["memory_kib"],
    )
    sealed = Fernet(base64.urlsafe_b64encode(stretch.derive(PASSPHRASE.reveal().encode()))).encrypt(
        json.dumps(content).encode()
    )
    path.write_text(json.dumps(whole | {"token": sealed.decode()}, indent=1) + "\n")
    site.change("DELETE FROM vault_keys")
    before = everything(site)
    with site.open() as vault, pytest.raises(WrongKey, match=content["keys"][0]["id"]):
        import_keys(vault, path, PASSPHRASE)
    assert everything(site) == before


@pytest.mark.usefixtures("quick")
def test_import_into_a_store_that_cannot_be_asked_writes_nothing(
    filled: tuple[Site, Values],
) -> None:
    site, _ = filled
    path = export(site)
    before = everything(site)
    with site.open(LockedStore(site.keys)) as vault, pytest.raises(KeyringLocked):
        import_keys(vault, path, PASSPHRASE)
    assert everything(site) == before
    site.keys.chmod(0o755)
    failed(run(site, "keys", "import", str(path), stdin=LINE), 12, "lets other users in")
    assert everything(site) == before


class ForgetfulStore(KeyDirectory):
    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        self.path.mkdir(mode=0o700, exist_ok=True)


class AlteringStore(KeyDirectory):
    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        super().write(vault_id, key_id, generate_key())


@pytest.mark.parametrize(
    ("store", "error"), [(ForgetfulStore, KeyMissing), (AlteringStore, WrongKey)]
)
def test_import_into_a_store_that_does_not_keep_a_key_is_an_error(
    lost: tuple[Site, Path], store: type[KeyDirectory], error: type[VaultError]
) -> None:
    site, path = lost
    with site.open(store(site.keys)) as vault, pytest.raises(error):
        import_keys(vault, path, PASSPHRASE)


# What import does with what is there


@pytest.mark.usefixtures("quick")
def test_import_a_second_time_changes_nothing(filled: tuple[Site, Values]) -> None:
    site, values = filled
    path = export(site)
    site.change("UPDATE vault_keys SET exported_at = '9999'")  # a later one
    before = everything(site)
    for _ in range(2):
        done = run(site, "keys", "import", str(path), stdin=LINE)
        assert done.status == 0 and "0 keys put" in done.out and "2 were there already" in done.out
    assert everything(site) == before
    next(site.keys.glob(f"*.{site.active()}.key")).unlink()
    assert "1 key put" in run(site, "keys", "import", str(path), stdin=LINE).out
    assert everything(site) == before
    site.require_intact(values)


@pytest.mark.usefixtures("quick")
def test_a_destroyed_key_stays_destroyed(filled: tuple[Site, Values]) -> None:
    site, values = filled
    path = export(site)
    retired = next(key for key, state in site.states().items() if state == "retired")
    with site.open() as vault:
        rotation.destroy(vault, retired)
    before = everything(site)
    done = run(site, "keys", "import", str(path), stdin=LINE)
    assert (
        done.status == 0
        and f"key {retired} was destroyed in this vault and stays destroyed" in done.err
    )
    assert everything(site) == before and not list(site.keys.glob(f"*.{retired}.key"))
    site.require_intact(values)


@pytest.mark.parametrize("removed", ["active", "retired", "both"])
def test_a_key_that_the_database_no_longer_lists_is_listed_as_it_was(
    lost: tuple[Site, Path], removed: str
) -> None:
    site, path = lost
    times = (
        "SELECT id, created_at, activated_at, retired_at, replaced_by FROM vault_keys ORDER BY 1"
    )
    states, before = site.states(), sorted(sql(site.database, times))
    site.change(
        "DELETE FROM vault_keys WHERE state = ? OR ? = 'both' AND state <> 'destroyed'",
        removed,
        removed,
    )
    assert run(site, "keys", "import", str(path), stdin=LINE).status == 0
    assert site.states() == states and sorted(sql(site.database, times)) == before
    empty = "SELECT count(*) FROM vault_keys WHERE state = 'retired' AND emptied_at IS NOT NULL"
    assert sql(site.database, empty) == [(removed == "active",)]  # values here may need it
    with site.open() as vault:
        assert vault.get("smtp", "field-1").reveal() == "value 1 "
        vault.set("smtp", "field-1", "w")
    assert problems(run(site, "doctor", "--deep", "--json")) == []


@pytest.mark.usefixtures("quick")
def test_an_export_without_an_active_key_names_no_successor(site: Site) -> None:
    site.change("UPDATE vault_keys SET state = 'retired'")
    path = export(site)
    with site.open() as vault:
        assert len(import_keys(vault, path, PASSPHRASE).there) == 1
    assert marks(site) == {}


@pytest.mark.usefixtures("quick")
def test_a_key_that_was_active_elsewhere_is_listed_as_retired_where_one_is_active(
    site: Site, tmp_path: Path
) -> None:
    older = restored(site, tmp_path / "older")
    old, new = site.active(), rotate(site).new_key
    assert new
    with older.open() as vault:
        import_keys(vault, export(site), PASSPHRASE)
    assert older.states() == {old: "active", new: "retired"}
    assert sql(older.database, "SELECT retired_at IS NULL FROM vault_keys WHERE id = ?", new) == [
        (0,)
    ]


@pytest.mark.parametrize(
    ("made", "given"),
    [("\u00e9", "e\u0301"), ("e\u0301", "\u00e9"), ("\u00c5\u212b", "A\u030a\u00c5")],
)
@pytest.mark.usefixtures("quick")
def test_two_spellings_of_one_passphrase_are_one(site: Site, made: str, given: str) -> None:
    path = str(site.folder / "keys.export")
    assert run(site, "keys", "export", path, stdin=f"a pass phrase {made}\n".encode()).status == 0
    assert run(site, "keys", "import", path, stdin=f"a pass phrase {given}\n".encode()).status == 0
    failed(run(site, "keys", "import", path, stdin=b"a pass phrase e\n"), 12)


# Where the passphrase comes from


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "line",
    [b"a pass phrase", b"a pass phrase\n", b"a pass phrase\r\n", b"a pass phrase\nsecond line\n"],
)
@pytest.mark.parametrize("way", ["stdin", "file"])
def test_the_passphrase_is_the_first_line_without_its_end(
    site: Site, line: bytes, way: str
) -> None:
    path, file = site.folder / "keys.export", site.folder / "passphrase"
    file.write_bytes(line)
    source = ["--passphrase-file", str(file)] if way == "file" else []
    given = line if way == "stdin" else b"not this\n"
    done = run(site, "keys", "export", str(path), *source, stdin=given)
    assert done.status == 0 and "a pass phrase" not in done.out + done.err
    assert read_by_another(path, "a pass phrase")["keys"]
    assert run(site, "keys", "import", str(path), *source, stdin=given).status == 0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("line", [b"", b"\n", b"\r\n", b"\nsecond line\n", b"\xff\xfe\n"])
@pytest.mark.parametrize("way", ["stdin", "file"])
def test_an_empty_passphrase_is_a_usage_error(site: Site, line: bytes, way: str) -> None:
    path, file = site.folder / "keys.export", site.folder / "passphrase"
    file.write_bytes(line)
    source = ["--passphrase-file", str(file)] if way == "file" else []
    failed(
        run(site, "keys", "export", str(path), *source, stdin=line if way == "stdin" else LINE), 2
    )
    assert not path.exists()
    failed(run(site, "keys", "export", str(path), "--passphrase-file", str(path), stdin=LINE), 2)


def test_a_passphrase_from_a_closed_standard_input_is_a_usage_error(site: Site) -> None:
    path = site.folder / "keys.export"
    failed(
        process(site, "keys", "export", str(path), preexec_fn=lambda: os.close(0)),
        2,
        "standard input is closed",
    )
    assert not path.exists()


def test_a_passphrase_at_a_terminal_is_hidden_asked_twice_and_again_when_the_two_differ(
    site: Site,
) -> None:
    path = site.folder / "keys.export"
    turns = ["one", "another", "at last é", "at last é"]
    with Terminal(site, "keys", "export", str(path), piped=False) as terminal:
        seen = b""
        for prompt, typed in zip(itertools.cycle((b"passphrase: ", b"confirmation: ")), turns):
            terminal.read_until(prompt)
            assert not path.exists()
            seen, terminal.seen = seen + terminal.seen, b""
            terminal.type(f"{typed} 4d1f\n".encode())
        assert terminal.end() == 0
        assert b"do not match" in seen and b"4d1f" not in seen + terminal.seen
    assert read_by_another(path, "at last é 4d1f")["keys"]
    shutil.rmtree(site.keys)
    with Terminal(site, "keys", "import", str(path), piped=False) as terminal:
        terminal.read_until(b"passphrase: ")
        terminal.type("at last é 4d1f\n".encode())
        assert (
            terminal.end() == 0
            and b"1 key put into the key directory" in terminal.seen
            and b"4d1f" not in terminal.seen
        )
    assert len(entries(site)) == 1


@pytest.mark.parametrize("command", ["export", "import"])
def test_leaving_the_prompt_for_a_passphrase_writes_nothing_and_exits_3(
    site: Site, tmp_path: Path, command: str
) -> None:
    before = everything(site)
    with Terminal(site, "keys", command, str(tmp_path / "keys.export")) as terminal:
        terminal.read_until(b"passphrase: ")
        terminal.type(b"\x04")
        assert terminal.end() == 3
    assert everything(site) == before and not (tmp_path / "keys.export").exists()


# Backups


@FILES
def test_a_backup_taken_beside_a_writer_is_one_moment_of_it(
    site: Site, tmp_path: Path, figures: Figures
) -> None:
    places, log, taken, beside = 60, tmp_path / "log", list[tuple[Path, int, int]](), 0
    with site.open() as vault:
        values = fill(vault, places, size=500)
        with writing(site, log, places) as writer:
            while beside < 12 and writer.poll() is None:
                first = _acknowledged(log)
                copy = backup(vault, tmp_path / f"backup-{len(taken)}.db").path
                taken.append((copy, first, _acknowledged(log)))
                beside += taken[-1][2] > first
                if len(taken) % 5 == 0:
                    rotation.rotate(vault)
    for copy, first, last in taken:
        with Site(copy, site.keys).open() as vault:
            found = {
                (e.project_id, e.provider, e.credential_type): _value(vault, e)
                for e in vault.list()
            }
            assert vault.database.damage(deep=True) == []
        assert found in [
            rotation_peers.replay(values, range(1, number + 1), places)
            for number in range(first, last + 2)
        ]
    assert not list(tmp_path.glob(".backup*"))
    figures("backups taken beside a writer, each one moment of it", beside)


def _value(vault: Vault, entry: Any) -> str:
    return vault.get(
        entry.provider, entry.credential_type, entry.project_id, fallback=False
    ).reveal()


def _acknowledged(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


@FILES
def test_a_backup_names_the_keys_that_it_needs_and_not_those_of_later(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.open() as vault:
        values = fill(vault, 4)
    old, copy_into = site.active(), Database._copy_into

    def overtaken(database: Database, empty: Path) -> None:
        copy_into(database, empty)
        rotate(site)

    with monkeypatch.context() as patch, site.open() as vault:
        patch.setattr(Database, "_copy_into", overtaken)
        made = backup(vault, tmp_path / "backup.db")
    assert site.active() != old
    assert [(record.id, record.state, count) for record, count in made.keys] == [(old, "active", 4)]
    Site(made.path, site.keys).require_intact(values)


@FILES
def test_a_backup_from_the_middle_of_a_rotation_needs_two_keys_and_says_so(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 2)
    with site.open() as vault:
        values = fill(vault, 6)
    old, said = site.active(), list[Done]()

    def progress(seen: int, total: int) -> None:
        if not said:
            said.append(run(site, "backup", str(tmp_path / "backup.db")))

    new = rotate(site, progress=progress).new_key
    assert said[0].status == 0
    assert (
        f"needs key {old} (retired) for 4 values" in said[0].out
        and f"needs key {new} (active) for 2 values" in said[0].out
    )
    assert (
        f"no file of exported keys holds {old}, {new}; 'vault keys export FILE' makes one"
        in said[0].err
    )
    copy = restored(site, tmp_path / "new", tmp_path / "backup.db")
    with copy.open() as vault:
        import_keys(vault, export(site), PASSPHRASE)
    copy.require_intact(values)
    assert rotate(copy).resumed
    copy.require_intact(values)
    copy.require_one_key()


@FILES
@pytest.mark.usefixtures("quick")
def test_a_backup_as_json_has_exactly_the_published_names(site: Site, tmp_path: Path) -> None:
    with site.open() as vault:
        fill(vault, 3)
    done = run(site, "backup", str(tmp_path / "backup.db"), "--json")
    assert done.data.keys() == {"path", "command", "keys"} and done.data["command"] is None
    assert done.data["path"] == str(tmp_path / "backup.db")
    (key,) = done.data["keys"]
    assert key.keys() == {
        "id", "state", "created_at", "activated_at", "retired_at", "destroyed_at", "exported_at",
        "emptied_at", "replaced_by", "staged_by", "staged_at", "values",
    }  # fmt: skip
    assert (key["id"], key["state"], key["values"], key["exported_at"]) == (
        site.active(),
        "active",
        3,
        None,
    )
    assert "no file of exported keys holds" in done.err
    export(site)
    again = run(site, "backup", str(tmp_path / "again.db"), "--json")
    assert again.err == "" and again.data["keys"][0]["exported_at"]


# The drill, by processes alone


def new_home(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine on which nothing was done yet."""
    (tmp_path / "home").mkdir()
    kept = {
        name: os.environ[name]
        for name in ("PATH", "LANG", "LC_ALL", "PYTHONPATH")
        if name in os.environ
    }
    return kept | {"HOME": str(tmp_path / "home")}


def drill(site: Site, tmp_path: Path, environment: dict[str, str], *, keyring: bool) -> None:
    """
    Keep a backup, an export and a passphrase, lose the machine, and have every value again on a new
    one.
    """
    with site.open() as vault:
        values = fill(vault, 6)
    assert process(site, "rotate").status == 0
    if site.engine:
        kept(site, tmp_path / "kept.db")
    else:
        assert process(site, "backup", str(tmp_path / "kept.db")).status == 0
    arguments = "keys", "export", str(tmp_path / "kept.keys")
    assert process(site, *arguments, input=LINE).status == 0
    with site.open() as vault:
        vault.set("smtp", "field-1", "after the backup")
    shutil.rmtree(site.folder)
    new = restored(site, tmp_path / "new", tmp_path / "kept.db")

    def again(*arguments: str, stdin: bytes = b"") -> Done:
        return process(new, *arguments, input=stdin, keyring=keyring, env=environment)

    failed(again("get", "smtp", "field-1"), 12)
    done = again("keys", "import", str(tmp_path / "kept.keys"), stdin=LINE)
    assert done.status == 0 and "2 keys put into the" in done.out
    for (project, provider, kind), value in sorted(values.items(), key=str)[-3:]:
        found = again(
            "get", provider, kind, "--no-fallback", *(["--project", project] if project else [])
        )
        assert (found.status, found.out) == (0, value + "\n")
    examined = again("doctor", "--deep", "--json")
    assert problems(examined) == [] and examined.data["values"] == {
        "ok": 6,
        "foreign": 0,
        "unreadable": 0,
    }
    assert not {"never exported", "superseded key"} & {
        finding["kind"] for finding in examined.data["findings"]
    }
    assert again("set", "smtp", "field-1", "--no-check", stdin=b"on the new machine\n").status == 0
    assert again("rotate").status == 0
    assert again("get", "smtp", "field-1").out == "on the new machine\n"
    values[None, "smtp", "field-1"] = "on the new machine"
    with new.open(OSKeyring() if keyring else None) as vault:
        for (project, provider, kind), value in values.items():
            assert vault.get(provider, kind, project, fallback=False).reveal() == value


@pytest.mark.thorough
def test_backup_export_and_passphrase_are_enough_on_a_new_machine(
    site: Site, tmp_path: Path
) -> None:
    drill(site, tmp_path, new_home(tmp_path), keyring=False)


@pytest.mark.thorough
def test_backup_export_and_passphrase_are_enough_on_a_new_machine_with_a_keyring(
    site: Site, tmp_path: Path, secret_service: SecretService
) -> None:
    drill(site, tmp_path, new_home(tmp_path) | secret_service.env, keyring=True)
    assert not (tmp_path / "new" / "keys").exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("exported", ["old", "new", "both"])
@pytest.mark.parametrize("database", ["old", "new"])
def test_a_backup_opens_with_its_own_key_or_names_the_one_that_is_missing(
    site: Site, tmp_path: Path, database: str, exported: str
) -> None:
    with site.open() as vault:
        values = fill(vault, 3)
    kept(site, tmp_path / "old.db")
    exports, ids = {"old": export(site, "old.keys")}, {"old": site.active()}
    ids["new"] = str(rotate(site).new_key)
    kept(site, tmp_path / "new.db")
    exports["both"] = export(site, "both.keys")
    next(site.keys.glob(f"*.{ids['old']}.key")).unlink()
    exports["new"] = export(site, "new.keys")
    new = restored(site, tmp_path / "new", tmp_path / f"{database}.db")
    assert run(new, "keys", "import", str(exports[exported]), stdin=LINE).status == 0
    if exported in (database, "both"):
        new.require_intact(values)
        return
    for field, project in (("field-0", "default-project"), ("field-1", None)):
        with new.open() as vault, pytest.raises(KeyMissing) as caught:
            vault.get("smtp", field, project)
        assert (
            caught.value.key_id == ids[database]
            and ids[database] in str(caught.value)
            and "keys import" in (caught.value.hint or "")
        )
    examined = run(new, "doctor", "--json")
    assert {f["key_id"] for f in problems(examined)} == {ids[database]}


# An older database beside newer keys


@pytest.fixture
def older(site: Site, tmp_path: Path, quick: None) -> tuple[Site, Values, str, str]:
    """
    A backup from before a rotation, on a new machine with the keys from after it: its values, and
    the ids of the two keys.
    """
    with site.open() as vault:
        values = fill(vault, 4)
    kept(site, tmp_path / "old.db")
    old, new = site.active(), str(rotate(site).new_key)
    there = restored(site, tmp_path / "new", tmp_path / "old.db")
    with there.open() as vault:
        import_keys(vault, export(site), PASSPHRASE)
    return there, values, old, new


def test_an_older_database_is_read_and_not_written_until_the_operator_has_decided(
    older: tuple[Site, Values, str, str],
) -> None:
    site, values, old, new = older
    before = everything(site)
    for arguments in (
        ("set", "smtp", "field-1", "--no-check"),
        ("rotate",),
        ("rotate", "--destroy-old", "--yes"),
    ):
        failed(run(site, *arguments, stdin=b"w"), 12, old, new, "rotate --after-restore")
    for use in (lambda vault: vault.set("smtp", "field-1", "w"), rotation.rotate):
        with site.open() as vault, pytest.raises(KeySuperseded) as caught:
            use(vault)
        assert caught.value.key_id == old and new in str(caught.value)
    assert everything(site) == before
    site.require_intact(values)
    examined = run(site, "doctor", "--json")
    assert [f["kind"] for f in problems(examined)] == ["superseded key"]


def test_an_older_database_goes_on_under_a_new_key_after_restore(
    older: tuple[Site, Values, str, str],
) -> None:
    site, values, old, new = older
    done = run(site, "rotate", "--after-restore", "--json")
    assert done.status == 0 and done.data["rotated"] == 4 and done.data["old_key"] == old
    newest = site.active()
    assert newest not in (old, new) and site.states() == {
        old: "retired",
        new: "retired",
        newest: "active",
    }
    assert marks(site) == {old: new, new: newest}
    assert run(site, "set", "smtp", "field-1", "--no-check", stdin=b"w").status == 0
    site.require_intact(values | {(None, "smtp", "field-1"): "w"})
    site.require_one_key()
    assert (
        run(site, "rotate", "--after-restore").status == 0
        and problems(run(site, "doctor", "--deep", "--json")) == []
    )


# Stopped at each step


@pytest.mark.usefixtures("quick")
def test_export_stopped_at_each_step_is_finished_by_the_next(
    filled: tuple[Site, Values], figures: Figures
) -> None:
    site, values = filled

    def make(site: Site, store: KeyStore) -> None:
        with site.open(store) as vault:
            export_keys(vault, site.folder / "keys.export", PASSPHRASE)

    left = set[tuple[bool, bool]]()
    for stopped in each_stop(
        site, make, figures, "stops of an export at a numbered step, finished by the next"
    ):
        stopped.require_intact(values)
        path, keys = stopped.folder / "keys.export", entries(stopped)
        left.add((path.exists(), _is_noted(stopped)))
        export(stopped)
        assert entries(stopped) == keys == entries(site) and stopped.states() == site.states()
        held = {key["id"] for key in read_by_another(path)["keys"]}
        assert held == {key_id for key_id, state in site.states().items() if state != "destroyed"}
        assert {
            key_id
            for (key_id,) in sql(
                stopped.database, "SELECT id FROM vault_keys WHERE exported_at IS NOT NULL"
            )
        } == held
        assert {
            oct(file.stat().st_mode & 0o777) for file in stopped.folder.rglob("keys.export")
        } == {"0o600"}
    assert left == {(False, False), (True, False), (True, True)}


def _is_noted(site: Site) -> bool:
    return bool(sql(site.database, "SELECT 1 FROM vault_keys WHERE exported_at IS NOT NULL"))


@pytest.mark.parametrize("listed", [False, True])
def test_import_stopped_at_each_step_is_finished_by_the_next(
    lost: tuple[Site, Path], figures: Figures, listed: bool
) -> None:
    site, path = lost
    expected, active = site.states(), site.active()
    destroyed = next(key_id for key_id, state in expected.items() if state == "destroyed")
    if not listed:
        site.change("DELETE FROM vault_keys WHERE state <> 'destroyed'")
    held = {key["id"]: key["key"] for key in read_by_another(path)["keys"]}

    def take(site: Site, store: KeyStore) -> None:
        with site.open(store) as vault:
            import_keys(vault, site.folder / path.name, PASSPHRASE)

    opened = set[bool]()
    name = "stops of an import at a numbered step, finished by the next"
    for stopped in each_stop(site, take, figures, name, every=2):
        # No entry that nobody would find again.
        assert {name.split(".")[1] for name in entries(stopped)} <= set(stopped.states())
        with stopped.open() as vault:
            try:
                assert vault.get("smtp", "field-1").reveal() == "value 1 "
                opened.add(True)
            except (KeyMissing, KeyStoreUnavailable) as error:
                assert error.key_id in (active, None)
                opened.add(False)
        take(stopped, KeyDirectory(stopped.keys))
        stopped.require_intact(
            {
                (None if n % 3 else "default-project", "smtp", f"field-{n}"): f"value {n} "
                for n in range(5)
            }
        )
        assert stopped.states() == expected and destroyed not in "".join(entries(stopped))
        assert {
            name.split(".")[1]: text
            for name, text in entries(stopped).items()
            if name.endswith(".key")
        } == held
        assert marks(stopped) == {next(key_id for key_id in held if key_id != active): active}
    assert opened == {True, False}
