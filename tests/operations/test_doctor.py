"""
`vault doctor`: each fault is named, a healthy vault has none, no byte changes, and nothing secret
is shown.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import select
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import SAMPLES
from helpers.effort import effort
from helpers.postgres import psycopg
from helpers.rotation_peers import fill
from helpers.rows import unchecked
from helpers.secret_service import SecretService
from helpers.shape import plain
from helpers.site import Engine, Figures, Site, another, dump, new_site

from outreach_vault import (
    DatabaseReadOnly,
    IncompleteAccount,
    KeyDirectory,
    MixedAccount,
    Secret,
    Vault,
)
from outreach_vault.cipher import generate_key
from outreach_vault.command import cli
from outreach_vault.database import locate
from outreach_vault.keys.states import KeyRecord
from outreach_vault.keys.stores.os_keyring import KEYRING_SECONDS, OSKeyring
from outreach_vault.operations import doctor
from outreach_vault.operations.doctor import Examination, Finding, examine
from outreach_vault.operations.history import limit
from outreach_vault.operations.init import init
from outreach_vault.operations.rotation import destroy, rotate
from outreach_vault.schema.shapes import Place, new_id, now, to_iso
from outreach_vault.values.history import Limits
from outreach_vault.values.sealing import seal

pytestmark = pytest.mark.sweep(6)

P = "default-project"
CANARY = secrets.token_hex(16)  # in every value that is stored here
APP_VALUE = base64.b64encode(
    b"v11" + CANARY.encode() + bytes(16)
).decode()  # the desktop app's own shape
ROWS = {
    "mail": None,
    "imap": P,
    "crm": None,
}  # each provider of the healthy vault has a password here
# A program that holds the file open: with what it wrote still in the log, until its standard input
# ends.
HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in ["SELECT count(*) FROM sqlite_master", *sys.argv[2:]]:
    connection.execute(statement).fetchall()
print("open", flush=True)
sys.stdin.read()
"""
# Rotates until its standard input ends.
ROTATOR = """
import sys, select
from outreach_vault import KeyDirectory, Vault
from outreach_vault.operations.rotation import rotate
with Vault.open(sys.argv[1], key_store=KeyDirectory(sys.argv[2])) as vault:
    while not select.select([sys.stdin], [], [], 0)[0]:
        rotate(vault)
        print("rotated", flush=True)
"""


NO_ACCOUNTS = {"mixed account", "incomplete account"}  # which the fields that `fill` stores are


class Seen(NamedTuple):
    """What one look printed, as text and as JSON; the same was found both times."""

    status: int
    text: str
    data: Any

    @property
    def kinds(self) -> set[str]:
        return {finding["kind"] for finding in self.data["findings"]}

    def of(self, kind: str) -> list[Any]:
        return [finding for finding in self.data["findings"] if finding["kind"] == kind]

    def only(self, kind: str) -> Any:
        (found,) = self.of(kind)
        return found


Look = Callable[..., Seen]


@pytest.fixture(scope="module")
def template(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """
    A vault that nothing is wrong with: three values, an active key, a retired and a destroyed one,
    all exported.
    """
    made = new_site(tmp_path_factory.mktemp("healthy") / "site", engine)
    with made.open() as vault:
        for provider, project_id in ROWS.items():
            vault.set(provider, "password", f"{CANARY} of {provider}", project_id, label="a label")
        first = vault.keys.states.active_id()
        rotate(vault)
        destroy(vault, first)
        rotate(vault)
    made.change("UPDATE vault_keys SET exported_at = ?", now())
    return made


@pytest.fixture
def look(site: Site, capsysbinary: pytest.CaptureFixture[bytes]) -> Look:
    """
    The command as text and as JSON. No look may change a file or show a secret, whatever was
    planted before it.
    """

    def run(*flags: str, on: Site = site, where: Sequence[str] | None = None) -> Seen:
        before, hidden = files_of(on), secrets_in(on)
        places = ["--db", str(on.database), "--key-dir", str(on.keys)] if where is None else where
        status = cli.run([*places, "doctor", *flags])
        text, errors = capsysbinary.readouterr()
        assert cli.run([*places, "doctor", "--json", *flags]) == status
        out, more_errors = capsysbinary.readouterr()
        assert files_of(on) == before
        for shown in (text, out, errors, more_errors):
            assert not [secret for secret in hidden if secret in shown]
            assert all(byte >= 0x20 or byte == 0x0A for byte in shown) and b"\x7f" not in shown
            assert not any(0x80 <= ord(character) < 0xA0 for character in shown.decode())
        if status not in (0, 16):
            assert (text, out) == (b"", b"") and errors == more_errors
            return Seen(status, errors.decode(), None)
        data = json.loads(out)
        assert (errors, more_errors) == (b"", b"")
        assert status == (16 if data["problems"] else 0)
        levels = [finding["level"] for finding in data["findings"]]
        assert levels == sorted(levels, reverse=True)  # problems first
        said = text.decode().splitlines()
        kinds, causes = Counter(each["kind"] for each in data["findings"]), data["causes"]
        messages = {each["message"] for each in data["findings"]}
        for finding in data["findings"]:
            what = finding["cause"] or finding["message"]
            joined = causes.get(what, 0) > bool(finding["cause"])
            if joined or finding["cause"] in messages:  # one line for all of them
                start = f"{finding['level']}: {shown_as(what)}"
                (at,) = [n for n, line in enumerate(said) if line.startswith(start)]
                assert f"{causes[what]} " in said[at]
                continue
            at = said.index(f"{finding['level']}: {shown_as(finding['message'])}")
            assert (
                finding["hint"] is None
                or said[at + 1] == f"  next: {shown_as(finding['hint'])}"
                or (finding["kind"] in NO_ACCOUNTS and kinds[finding["kind"]] > 1)
            )
        return Seen(status, text.decode(), data)

    return run


def shown_as(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def files_of(site: Site) -> dict[str, tuple[int, bytes]]:
    """
    Mode and bytes of everything in the folder; and the rows that are on a server.

    Beside a log SQLite needs its shared memory to read, and makes that where it is not there: it
    holds no data, so it is left out.
    """
    folder = site.folder
    log = not site.engine and Path(f"{site.database}-wal").exists()
    rows = {"its database": (0, repr(dump(site.database)).encode())} if site.engine else {}
    return rows | {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
        if not (log and path.name.endswith("-shm"))
    }


def secrets_in(site: Site) -> set[bytes]:
    """Every value, a part of every token that no other text has, and every key."""
    found = {CANARY.encode(), base64.b64encode(CANARY.encode())[4:20], APP_VALUE.encode()}
    found |= (
        {file.read_bytes() for file in site.keys.glob("*.key")} if site.keys.is_dir() else set()
    )
    faults = sqlite3.DatabaseError if site.engine is None else psycopg.errors.UndefinedTable
    with contextlib.suppress(faults), reader(site) as run:
        tokens = run("SELECT encrypted_value FROM provider_credentials")
        checks = run("SELECT check_value FROM vault_keys")
        found |= {as_bytes(text)[20:60] for (text,) in [*tokens, *checks] if len(text) > 60}
    return {secret for secret in found if len(secret) > 8}


def as_bytes(text: Any) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


@contextlib.contextmanager
def reader(site: Site) -> Iterator[Callable[[str], Any]]:
    """Of a copy: a look at the file itself would move its log into it."""
    if site.engine:
        with another(site.database) as server:
            yield server.execute
        return
    path = site.database
    copy = path.parent.parent / "reader.db"
    for suffix in ("", "-wal"):
        Path(f"{copy}{suffix}").unlink(missing_ok=True)
        if Path(f"{path}{suffix}").is_file():
            shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
    with plain(copy) as connection:
        connection.text_factory = bytes
        yield connection.execute


@contextlib.contextmanager
def held_open(path: Path, *statements: str) -> Iterator[None]:
    """Another program has the file open, and has run these."""
    command = [sys.executable, "-I", "-c", HOLDER, str(path), *statements]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"open\n"
        yield
        assert holder.stdin is not None
        holder.stdin.close()


def sql(site: Site, *statements: str) -> None:
    with another(site.database) as connection:
        for statement in statements:
            connection.execute(statement)


def row_of(site: Site, provider: str) -> dict[str, Any]:
    (row,) = [row for row in site.rows().values() if row["provider"] == provider]
    return row


def key_in(site: Site, state: str) -> str:
    (key_id,) = [key_id for key_id, found in site.states().items() if found == state]
    return key_id


def key_file(site: Site, key_id: str) -> Path:
    (file,) = site.keys.glob(f"*.{key_id}.key")
    return file


def put(site: Site, provider: str, **columns: object) -> dict[str, Any]:
    """Change the row of *provider* past the vault, and give it as it is then."""
    for column, value in columns.items():
        statement = f"UPDATE provider_credentials SET {column} = ? WHERE provider = ?"
        unchecked(site.database, statement, value, provider)
    return row_of(site, columns.get("provider", provider))  # type: ignore[arg-type]


def insert(
    site: Site,
    place: tuple[object, object, object],
    value: object,
    key_id: str | None = None,
    label: object = None,
) -> str:
    row_id = new_id()
    unchecked(
        site.database,
        "INSERT INTO provider_credentials (id, project_id, provider, credential_type,"
        " encrypted_value, label, key_id, created_at, updated_at) VALUES"
        " (?, ?, ?, ?, ?, ?, ?, '2026-02-06T09:30:00.250Z', '2026-02-06T09:30:00.250Z')",
        row_id, *place, value, label, key_id,
    )  # fmt: skip
    return row_id


def sealed(site: Site, place: Place, at: int) -> str:
    with site.open() as vault:
        return seal(
            vault.keys.cipher(vault.keys.states.active_id()),
            place,
            Secret(f"{CANARY} sealed"),
            at=at,
        )


def flipped(token: str) -> str:
    raw = bytearray(base64.urlsafe_b64decode(token))
    raw[40] ^= 1
    return base64.urlsafe_b64encode(raw).decode()


class Planted(NamedTuple):
    """
    What a planted fault must show as.

    Attributes:
        words: in its message, and the last one in its hint. about: of the fields that name a key or
        a row, those that are set. also: other kinds that come with it. times: so many findings.
        deep: --deep alone finds it.
    """

    level: str
    kind: str
    words: tuple[str, ...]
    about: dict[str, str | None] = {}
    also: frozenset[str] = frozenset()
    times: int = 1
    deep: bool = False


def about(row: dict[str, Any], key_id: str | None = None) -> dict[str, Any]:
    names = {
        "project_id": row["project_id"],
        "provider": row["provider"],
        "credential_type": row["credential_type"],
        "row_id": row["id"],
    }
    return names | {"key_id": key_id}


def damaged_page(site: Site) -> Planted:
    with plain(site.database) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'idx_cvs_status'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with site.database.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    return Planted("problem", "damaged file", ("SQLite finds: ", "restore a backup"))


def wrong_free_list(site: Site) -> Planted:
    with site.database.open("r+b") as file:
        file.seek(36)  # of the file's header: the number of free pages
        file.write((7).to_bytes(4, "big"))
    return Planted("problem", "damaged file", ("SQLite finds: ", "restore a backup"))


def index_out_of_step(site: Site) -> Planted:
    """
    Its entry leads to a row that is elsewhere now. Both still have one each: where they do not,
    later SQLites' quick_check says so.
    """
    site.change("INSERT INTO ats_mappings VALUES ('a', ?, '', '', '', '')", P)
    at = "FROM sqlite_master WHERE name = 'idx_ats_mappings_project'"
    with plain(site.database) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        entry = connection.execute(f"SELECT * {at}").fetchone()
        connection.execute(f"DELETE {at}")
    site.change("UPDATE ats_mappings SET _rowid_ = _rowid_ + 1")
    with plain(site.database) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", entry)
    return Planted(
        "problem", "damaged file", ("idx_ats_mappings_project", "restore a backup"), deep=True
    )


def unchecked_by(site: Site) -> str:
    return "--disable-triggers" if site.engine else "foreign_keys"


def value_of_a_project_that_is_gone(site: Site) -> Planted:
    put(site, "imap", project_id="gone")
    # Moved there it would not open either.
    put(site, "imap", encrypted_value=APP_VALUE, key_id=None)
    return Planted(
        "problem",
        "broken reference",
        ("1 row(s) of provider_credentials", "of projects", unchecked_by(site)),
        also=frozenset({"foreign value"}),
    )


def mapping_of_a_project_that_is_gone(site: Site) -> Planted:
    for row_id in ("a", "b"):
        unchecked(
            site.database, "INSERT INTO ats_mappings VALUES (?, 'gone', '', '', '', '')", row_id
        )
    return Planted(
        "notice",
        "broken reference",
        ("2 row(s) of ats_mappings", "of projects", unchecked_by(site)),
    )


def missing(name: str, statement: str) -> Callable[[Site], Planted]:
    def plant(site: Site) -> Planted:
        table = " ON usage_events" if site.engine and "TRIGGER" in statement else ""
        sql(site, statement + table)
        return Planted("problem", "schema", (f" {name} is missing", "restore a backup"))

    return plant


def mode_of(name: str, mode: int, level: str, hint: str) -> Callable[[Site], Planted]:
    def plant(site: Site) -> Planted:
        file = site.database.with_name(site.database.name + name)
        file.touch()
        file.chmod(mode)
        return Planted(level, "open file", (f"{file}: mode {mode:04o}", f"{hint} '{file}'"))

    return plant


def open_folder(site: Site) -> Planted:
    folder = site.database.parent
    folder.chmod(0o777)
    return Planted("problem", "open folder", (f"{folder}: mode 0777", f"chmod go-w '{folder}'"))


def rollback_journal(site: Site) -> Planted:
    sql(site, "PRAGMA journal_mode = DELETE")
    return Planted("problem", "journal mode", ("journal mode delete", "PRAGMA journal_mode = WAL"))


def interrupted_command(site: Site) -> Planted:
    left = site.database.with_name(f".{site.database.name}.x1y2z3")
    left.mkdir()
    return Planted("notice", "left over", (str(left), "remove it"))


def key_is(state: str, change: Callable[[Path], object], *words: str) -> Callable[[Site], Planted]:
    def plant(site: Site) -> Planted:
        key_id = key_in(site, state)
        change(key_file(site, key_id))
        also = frozenset({"unreadable value"} if state == "active" else ())
        return Planted("problem", "key", (key_id, *words), {"key_id": key_id}, also)

    return plant


def replace_by_another(file: Path) -> None:
    file.write_text(generate_key().reveal())


def cut(file: Path) -> None:
    file.write_text(file.read_text()[:-1])


def pending_key(site: Site) -> Planted:
    with site.open() as vault:
        key_id = vault.keys.create()
    return Planted(
        "problem",
        "interrupted rotation",
        (f"key {key_id} (pending)", "'vault rotate'"),
        {"key_id": key_id},
    )


def unfinished_rotation(site: Site) -> Planted:
    site.change("INSERT INTO vault_meta VALUES ('unfinished_rotation', ?)", site.active())
    return Planted(
        "problem", "interrupted rotation", ("a rotation was interrupted", "'vault rotate'")
    )


def no_active_key(site: Site) -> Planted:
    site.change("UPDATE vault_keys SET state = 'retired' WHERE state = 'active'")
    return Planted("problem", "key", ("no active key", "restore a backup"))


def superseded_key(site: Site) -> Planted:
    old, new = key_in(site, "retired"), site.active()
    site.change("UPDATE vault_keys SET state = 'retired' WHERE id = ?", new)
    site.change("UPDATE vault_keys SET state = 'active' WHERE id = ?", old)
    return Planted(
        "problem",
        "superseded key",
        (old, f"key {new} replaced it", "--after-restore"),
        {"key_id": old},
    )


def destroyed_key_that_came_back(site: Site) -> Planted:
    key_id = key_in(site, "destroyed")
    shutil.copy2(
        key_file(site, site.active()),
        str(key_file(site, site.active())).replace(site.active(), key_id),
    )
    return Planted(
        "notice",
        "left over",
        (f"key {key_id} (destroyed)", f"'vault keys destroy {key_id}'"),
        {"key_id": key_id},
    )


def never_exported(site: Site) -> Planted:
    site.change("UPDATE vault_keys SET exported_at = NULL WHERE state = 'active'")
    return Planted(
        "notice",
        "never exported",
        (site.active(), "'vault keys export FILE'"),
        {"key_id": site.active()},
    )


def duplicates(site: Site) -> Planted:
    sql(site, "DROP INDEX vault_credentials_global")
    row = row_of(site, "crm")
    second = insert(site, (None, "crm", "password"), row["encrypted_value"], row["key_id"])
    kind = "PostgreSQL" if site.engine else "SQLite"
    return Planted(
        "problem", "duplicates",
        ("crm/password (global)", f"{row['id']}, {second}", f"by id, with any tool for {kind}"),
        {"provider": "crm", "credential_type": "password"}, frozenset({"schema"}),
    )  # fmt: skip


def foreign(value: object, word: str) -> Callable[[Site], Planted]:
    def plant(site: Site) -> Planted:
        row = put(site, "imap", encrypted_value=value)  # the app leaves the id of our key behind
        words = (f"imap/password (project {P})", row["id"], word, "'vault set'")
        return Planted("notice", "foreign value", words, about(row, row["key_id"]))

    return plant


def unreadable(
    change: Callable[[dict[str, Any]], dict[str, object]], word: str, hint: str, *, deep: bool
) -> Callable[[Site], Planted]:
    def plant(site: Site) -> Planted:
        row = put(site, "imap", **change(row_of(site, "imap")))
        words = (f"imap/password (project {P})", row["id"], word, hint)
        return Planted("problem", "unreadable value", words, about(row, row["key_id"]), deep=deep)

    return plant


def value_under_a_destroyed_key(site: Site) -> Planted:
    row = put(site, "crm", key_id=key_in(site, "destroyed"))
    return Planted(
        "problem",
        "unreadable value",
        (row["id"], "was destroyed at", "'vault set'"),
        about(row, row["key_id"]),
    )


def relabelled_key(site: Site) -> Planted:
    retired = key_in(site, "retired")
    return unreadable(
        lambda _: {"key_id": retired}, "its key id was changed", "'vault set'", deep=True
    )(site)


def swapped_rows(site: Site) -> Planted:
    smtp, crm = row_of(site, "mail"), row_of(site, "crm")
    put(site, "mail", encrypted_value=crm["encrypted_value"])
    put(site, "crm", encrypted_value=smtp["encrypted_value"])
    return Planted(
        "problem",
        "unreadable value",
        ("sealed for another place", "'vault set'"),
        {"key_id": site.active()},
        times=2,
        deep=True,
    )


def shadowed_value(site: Site) -> Planted:
    with site.open() as vault:
        vault.set("mail", "password", CANARY, P)
    (row,) = [
        row for row in site.rows().values() if (row["provider"], row["project_id"]) == ("mail", P)
    ]
    return Planted(
        "notice",
        "shadowed value",
        (f"mail/password (project {P})", "not the global one", ""),
        about(row),
    )


def old_key(site: Site) -> Planted:
    site.change(
        "UPDATE vault_keys SET activated_at = ? WHERE state = 'active'",
        to_iso(datetime.now(UTC) - timedelta(days=365)),
    )
    return Planted(
        "notice",
        "old key",
        (site.active(), "365 days", "'vault rotate'"),
        {"key_id": site.active()},
    )


def old_value(site: Site) -> Planted:
    token = sealed(site, Place(None, "crm", "password"), int(time.time()) - 365 * 86400)
    row = put(site, "crm", encrypted_value=token, updated_at=now())
    return Planted(
        "notice",
        "old value",
        ("crm/password", row["id"], "365 days", "'vault set'"),
        about(row, row["key_id"]),
    )


FAULTS: dict[str, Callable[[Site], Planted]] = {
    "wrong free list": wrong_free_list,
    "damaged page": damaged_page,
    "index out of step": index_out_of_step,
    "value without its project": value_of_a_project_that_is_gone,
    "other row without its project": mapping_of_a_project_that_is_gone,
    "missing table": missing("app_meta", "DROP TABLE app_meta"),
    "missing column": missing("cvs.contact_json", "ALTER TABLE cvs DROP COLUMN contact_json"),
    "missing index": missing("idx_messages_cv", "DROP INDEX idx_messages_cv"),
    "missing trigger": missing("update_daily_usage", "DROP TRIGGER update_daily_usage"),
    "file that others read": mode_of("", 0o640, "notice", "chmod go="),
    "file that others write": mode_of("", 0o666, "problem", "chmod go="),
    "lock that others write": mode_of(".vault-lock", 0o666, "problem", "chmod go="),
    "backup that others read": mode_of(".schema-4.x.backup", 0o644, "notice", "chmod go="),
    "folder that others write": open_folder,
    "interrupted command": interrupted_command,
    "no WAL": rollback_journal,
    "active key missing": key_is("active", Path.unlink, "has no key", "'vault keys import "),
    "retired key missing": key_is("retired", Path.unlink, "has no key", "'vault keys import "),
    "active key replaced": key_is(
        "active", replace_by_another, "is another key", "put the right key back",
    ),
    "retired key replaced": key_is(
        "retired", replace_by_another, "is another key", "put the right key back",
    ),
    "active key cut": key_is("active", cut, "is not a key", "put the right key back"),
    "retired key cut": key_is("retired", cut, "is not a key", "put the right key back"),
    "pending key": pending_key,
    "unfinished rotation": unfinished_rotation,
    "no active key": no_active_key,
    "superseded key": superseded_key,
    "destroyed key in the key store": destroyed_key_that_came_back,
    "key never exported": never_exported,
    "duplicates": duplicates,
    "the app's value": foreign(APP_VALUE, "the desktop app's own"),
    "empty value": foreign("", "is empty"),
    "another tool's bytes": foreign(b"\x00\xff\x1b" + CANARY.encode(), "another tool's"),
    "another tool's number": foreign(12, "another tool's"),
    "cut token": unreadable(
        lambda row: {"encrypted_value": row["encrypted_value"][:-4]},
        "not a whole token", "'vault set'", deep=False,
    ),
    "unlisted key": unreadable(
        lambda _: {"key_id": new_id()}, "lists no key", "the row's key id was changed", deep=False,
    ),
    "destroyed key": value_under_a_destroyed_key,
    "flipped bit": unreadable(
        lambda row: {"encrypted_value": flipped(row["encrypted_value"])},
        "refuses", "'vault set'", deep=True,
    ),
    "relabelled key": relabelled_key,
    "swapped rows": swapped_rows,
    "shadowed value": shadowed_value,
    "old key": old_key,
    "old value": old_value,
}  # fmt: skip
FILES = pytest.mark.sqlite("its files, and who can get at them")
TYPES = pytest.mark.sqlite("bytes and numbers in a column of text")
NOT_ON_A_SERVER = {
    "wrong free list": FILES,
    "damaged page": FILES,
    "index out of step": FILES,
    "file that others read": FILES,
    "file that others write": FILES,
    "lock that others write": FILES,
    "backup that others read": FILES,
    "folder that others write": FILES,
    "interrupted command": FILES,
    "no WAL": FILES,
    "another tool's bytes": TYPES,
    "another tool's number": TYPES,
}
DEPTHS = pytest.mark.parametrize("flags", [(), ("--deep",)], ids=["shallow", "deep"])


@DEPTHS
def test_a_healthy_vault_has_no_finding_and_its_counts_are_right(
    site: Site, look: Look, flags: tuple[str, ...]
) -> None:
    seen = look(*flags)
    assert (seen.status, seen.data["findings"], seen.data["more"], seen.data["problems"]) == (
        0,
        [],
        {},
        0,
    )
    assert seen.data["values"] == {"ok": 3, "foreign": 0, "unreadable": 0}
    assert {key["id"]: (key["state"], key["values"]) for key in seen.data["keys"]} == {
        key_id: (state, 3 if state == "active" else 0) for key_id, state in site.states().items()
    }
    assert [key["state"] for key in seen.data["keys"]] == ["destroyed", "retired", "active"]
    assert "2, and 1 destroyed" in seen.text and "3 ok, 0 foreign, 0 unreadable" in seen.text
    assert ("each was opened" in seen.text) == bool(flags) == seen.data["deep"]
    assert seen.text.endswith("\nno problems\n")


@DEPTHS
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=NOT_ON_A_SERVER.get(name, ())) for name in FAULTS]
)
def test_each_fault_is_named_with_its_level_its_place_and_the_next_step(
    site: Site, look: Look, figures: Figures, name: str, flags: tuple[str, ...]
) -> None:
    planted = FAULTS[name](site)
    seen = look(*flags)
    if planted.deep and not flags:
        assert planted.kind not in seen.kinds
        return
    assert seen.kinds == {planted.kind} | planted.also
    found = seen.of(planted.kind)
    assert len(found) == planted.times
    *words, hint = planted.words
    for finding in found:
        assert finding["level"] == planted.level
        assert [word for word in words if word not in finding["message"]] == []
        assert hint in (finding["hint"] or "")
    if planted.times == 1:
        nobody = dict.fromkeys(("key_id", "project_id", "provider", "credential_type", "row_id"))
        assert {key: found[0][key] for key in nobody} == nobody | planted.about
    assert seen.data["problems"] == sum(
        finding["level"] == "problem" for finding in seen.data["findings"]
    )
    figures("faults planted and named by doctor", 1)


@FILES
@pytest.mark.parametrize("name", ["samsara[1].db", "a**.db", "[!a].db", "?.db", "a {b}.db"])
def test_a_file_whose_name_looks_like_a_pattern_hides_nothing_that_is_beside_it(
    template: Site, tmp_path: Path, look: Look, name: str
) -> None:
    made = template.copy(tmp_path / "named")
    site = Site(made.database.rename(made.database.with_name(name)), made.keys)
    backup, left = (
        site.database.with_name(f"{name}.evening"),
        site.database.with_name(f".{name}.left"),
    )
    for file in (backup, left):
        file.touch(0o600)
    backup.chmod(0o666)
    seen = look(on=site)
    assert (
        str(backup) in seen.only("open file")["message"]
        and str(left) in seen.only("left over")["message"]
    )


@FILES
@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(5, "a fault of the disk")])
def test_a_folder_that_cannot_be_listed_ends_no_examination(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    listdir = os.listdir

    def refuse(folder: str) -> list[str]:
        if Path(folder) == site.database.parent:
            raise error
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    assert examine(site.database, key_store=KeyDirectory(site.keys)).findings == ()


WHOLE = ("host", "user", "password")
OTHER = "another-project"
Stored = dict[
    str | None, tuple[str, ...]
]  # for each project, or None, the fields of smtp that are its own


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ({None: WHOLE}, []),
        ({P: WHOLE}, []),
        ({None: ("from_email",)}, []),
        ({None: ("from_email",), P: WHOLE}, []),
        ({None: WHOLE, P: ("from_email",)}, []),
        ({None: (*WHOLE, "port"), P: WHOLE}, []),
        ({None: WHOLE[:2]}, [("incomplete", None)]),
        ({None: ("port",)}, [("incomplete", None)]),
        ({None: ("unlisted",)}, [("incomplete", None)]),
        ({P: WHOLE[:2]}, [("incomplete", P)]),
        ({P: ("from_email",)}, [("incomplete", P)]),
        ({None: ("from_email",), P: WHOLE[:2]}, [("incomplete", P)]),
        ({None: WHOLE, P: ("password",)}, [("mixed", P)]),
        ({None: WHOLE, P: ("unlisted",)}, [("mixed", P)]),
        ({None: WHOLE[:2], P: ("password",)}, [("incomplete", None), ("mixed", P)]),
        ({None: WHOLE, P: ("password",), OTHER: WHOLE}, [("mixed", P)]),
        ({None: WHOLE, OTHER: ("password",), P: ("from_email",)}, [("mixed", OTHER)]),
    ],
)
def test_an_account_that_no_bundle_gives_out_is_a_problem(
    site: Site, look: Look, stored: Stored, found: list[tuple[str, str | None]]
) -> None:
    sql(
        site,
        f"INSERT INTO projects (id, name, created_at, updated_at) VALUES ('{OTHER}', 'x', "
        f"'{now()}', '{now()}')",
    )
    with site.open() as vault:
        for project, names in stored.items():
            for field in names:
                vault.set("smtp", field, f"{CANARY} 25" if field != "port" else "25", project)
    seen = look()
    accounts = [finding for finding in seen.data["findings"] if finding["kind"].endswith("account")]
    assert sorted([(f["kind"], f["project_id"] or "") for f in accounts]) == [
        (f"{kind} account", project or "") for kind, project in found
    ]
    assert all(
        f["level"] == "problem" and f["provider"] == "smtp" and "vault set smtp" in f["hint"]
        for f in accounts
    )
    assert (seen.status == 16) == bool(found)
    with site.open() as vault:  # what a bundle does is what was said
        for project in (None, P, OTHER):
            if ("incomplete", project) in found or ("mixed", project) in found:
                with pytest.raises((IncompleteAccount, MixedAccount)):
                    vault.bundle("smtp", project)
            elif set(WHOLE) <= set(stored.get(project, ())):
                vault.bundle("smtp", project)


@pytest.mark.parametrize("project", ["", "a\tb"])
def test_an_account_of_a_project_that_nothing_can_name_does_not_end_the_doctor(
    site: Site, look: Look, project: str
) -> None:
    with site.open() as vault:
        row_id = vault.set("smtp", "host", CANARY, P)
    change = "UPDATE provider_credentials SET project_id = ? WHERE id = ?"
    unchecked(site.database, change, project, row_id)
    kinds = look().kinds
    assert "broken reference" in kinds and "incomplete account" not in kinds


def test_a_value_that_cannot_be_what_its_field_means_is_found_when_it_is_opened(
    site: Site, look: Look
) -> None:
    with site.open() as vault:
        for field in WHOLE:
            vault.set("smtp", field, CANARY)
        row_id = vault.set("smtp", "port", f"{CANARY} is no port")
    assert look().status == 0
    seen = look("--deep")
    found = seen.only("unusable value")
    assert (found["level"], found["row_id"], seen.status) == (
        "problem",
        row_id,
        16,
    ) and "vault set smtp port" in found["hint"]
    assert seen.data["values"] == {"ok": 7, "foreign": 0, "unreadable": 0}


@pytest.mark.parametrize(
    "fault", [cut, replace_by_another, Path.unlink], ids=["cut", "replaced", "missing"]
)
def test_each_value_under_a_lost_key_is_named_and_no_other(
    site: Site, look: Look, fault: Callable[[Path], object]
) -> None:
    row = row_of(site, "mail")
    with site.open() as vault:
        rotate(vault)
    put(site, "mail", encrypted_value=row["encrypted_value"], key_id=row["key_id"])
    fault(key_file(site, row["key_id"]))
    seen = look()
    assert seen.only("unreadable value")["row_id"] == row["id"]
    assert seen.data["values"] == {"ok": 2, "foreign": 0, "unreadable": 1}
    assert {key["id"]: key["values"] for key in seen.data["keys"] if key["values"]} == {
        row["key_id"]: 1,
        site.active(): 2,
    }


def test_a_key_file_that_others_may_read_takes_no_other_key_down(site: Site, look: Look) -> None:
    key_file(site, key_in(site, "retired")).chmod(0o644)
    seen = look("--deep")
    assert seen.status == 16
    assert seen.data["values"] == {"ok": 3, "foreign": 0, "unreadable": 0}


@FILES
def test_what_only_looks_like_a_fault_is_none(site: Site, look: Look) -> None:
    site.database.parent.chmod(0o1777)  # as in /tmp: nobody can replace another's file
    (site.database.parent / "other.db").touch(0o666)
    (site.database.parent / ".other.db.x1y2z3").mkdir()
    insert(site, ("", "imap", "password"), APP_VALUE)  # no project's and not global either
    assert look().kinds == {"foreign value", "broken reference"}


@pytest.mark.parametrize("days", [364, 365])
def test_age_is_worth_a_notice_from_the_365th_day_on(site: Site, look: Look, days: int) -> None:
    moment = datetime.now(UTC) - timedelta(days=days, minutes=1)
    site.change("UPDATE vault_keys SET activated_at = ? WHERE state = 'active'", to_iso(moment))
    put(
        site,
        "crm",
        encrypted_value=sealed(site, Place(None, "crm", "password"), int(moment.timestamp())),
    )
    put(site, "mail", updated_at="2001-01-01T00:00:00.000Z")  # only a column
    assert look().kinds == ({"old key", "old value"} if days == 365 else set())


def test_an_export_ends_the_notice_that_a_key_was_never_exported(
    site: Site, look: Look, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    site.change("UPDATE vault_keys SET exported_at = NULL")
    assert {finding["key_id"] for finding in look().of("never exported")} == {
        site.active(),
        key_in(site, "retired"),
    }
    (tmp_path / "passphrase").write_text("correct horse\n")
    where = [
        "--db",
        str(site.database),
        "--key-dir",
        str(site.keys),
        "keys",
        "export",
        str(tmp_path / "keys.export"),
    ]
    assert cli.run([*where, "--passphrase-file", str(tmp_path / "passphrase")]) == 0
    capsysbinary.readouterr()
    assert look().data["findings"] == []


@pytest.mark.parametrize(
    ("break_it", "word"),
    [
        (shutil.rmtree, "there is no such folder"),
        (lambda folder: folder.chmod(0o755), "lets other users in"),
    ],
)
def test_a_key_directory_that_cannot_be_used_is_one_finding(
    site: Site, look: Look, break_it: Callable[[Path], object], word: str
) -> None:
    break_it(site.keys)
    for flags in ((), ("--deep",)):
        seen = look(*flags)
        finding = seen.only("key store")
        assert finding["level"] == "problem" and word in finding["message"] and finding["hint"]
        assert seen.kinds == {"key store", "unreadable value"} and seen.status == 16
        assert {value["provider"] for value in seen.of("unreadable value")} == set(ROWS)


class Counting(OSKeyring):
    """Counts how often the keyring is asked."""

    calls = 0

    def _call(self, operation: Callable[[Any], Any]) -> Any:
        self.calls += 1
        return super()._call(operation)


@pytest.mark.parametrize(
    ("fault", "word", "hint"),
    [
        (lambda service: service.restart("wrong"), "it is locked", "unlock it"),
        (
            SecretService.kill,
            "no keyring of this system can be reached",
            "start the system's keyring",
        ),
        (
            SecretService.kill_bus,
            "no keyring of this system can be reached",
            "start the system's keyring",
        ),
    ],
    ids=["locked", "daemon killed", "bus killed"],
)
def test_a_keyring_that_does_not_answer_is_asked_once_and_is_one_finding(
    secret_service: SecretService,
    tmp_path: Path,
    look: Look,
    fault: Callable[[SecretService], object],
    word: str,
    hint: str,
) -> None:
    made = Site(tmp_path / "own" / "app.db", tmp_path / "own" / "keys")
    made.database.parent.mkdir()
    init(made.database, key_store=OSKeyring())
    with Vault.open(made.database, key_store=OSKeyring()) as vault:
        fill(vault, 20)
        rotate(vault)
        rotate(vault)
    assert look("--deep", on=made, where=["--db", str(made.database)]).kinds <= {
        "never exported",
        *NO_ACCOUNTS,
    }
    fault(secret_service)
    keyring, begin = Counting(), time.monotonic()
    found = examine(made.database, key_store=keyring, deep=True)
    assert keyring.calls == 1 and time.monotonic() - begin < KEYRING_SECONDS / 2
    (finding,) = [finding for finding in found.findings if finding.kind == "key store"]
    assert word in finding.message and hint in (finding.hint or "") and finding.level == "problem"
    assert found.values == {"ok": 0, "foreign": 0, "unreadable": 20}
    assert look("--deep", on=made, where=["--db", str(made.database)]).status == 16


@FILES
def test_a_live_log_of_another_program_is_read_and_left_alone(site: Site, look: Look) -> None:
    with held_open(
        site.database,
        "UPDATE provider_credentials SET encrypted_value = '' WHERE provider = 'imap'",
    ):
        assert Path(f"{site.database}-wal").stat().st_size
        for flags in ((), ("--deep",)):
            assert look(*flags).only("foreign value")["provider"] == "imap"


def hot(site: Site, folder: Path, *statements: str) -> Site:
    """What a killed program leaves: the file, and beside it a log that holds what these changed."""
    folder.mkdir()
    shutil.copytree(site.keys, folder / "keys")
    with held_open(site.database, *statements):
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{site.database}{suffix}", folder / f"app.db{suffix}")
            (folder / f"app.db{suffix}").chmod(0o600)
    return Site(folder / "app.db", folder / "keys")


@FILES
@DEPTHS
def test_a_log_that_a_killed_program_left_is_read_and_stays(
    site: Site, look: Look, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    left = hot(
        site,
        tmp_path / "left",
        "UPDATE provider_credentials SET encrypted_value = '' WHERE provider = 'imap'",
    )
    seen = look(*flags, on=left)  # compares the bytes of both
    assert seen.only("foreign value")["provider"] == "imap"
    assert {path.name for path in left.database.parent.iterdir()} <= {
        "app.db",
        "app.db-wal",
        "app.db-shm",
        "keys",
    }
    assert Path(f"{left.database}-wal").stat().st_size


@FILES
def test_a_log_beside_the_file_that_a_link_names_stays(
    site: Site, look: Look, tmp_path: Path
) -> None:
    left = hot(
        site,
        tmp_path / "left",
        "UPDATE provider_credentials SET encrypted_value = '' WHERE provider = 'imap'",
    )
    left.database.chmod(0o666)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "app.db").symlink_to(left.database)
    before = files_of(left)
    seen = look(
        "--deep",
        on=left,
        where=["--db", str(tmp_path / "linked" / "app.db"), "--key-dir", str(left.keys)],
    )
    assert seen.only("foreign value")["provider"] == "imap"
    assert seen.of("open file") and files_of(left) == before


@DEPTHS
def test_a_vault_full_of_faults_is_left_as_it_is(
    site: Site, look: Look, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    apart = (
        "shadowed value",
        "duplicates",
        "unfinished rotation",
        "missing index",
        "file that others write",
        "interrupted command",
    )
    faults = (
        "pending key",
        "old value",
        *apart,
        "folder that others write",
        "flipped bit",
        "superseded key",
        "active key cut",
    )
    for name in faults:
        if not (site.engine and name in NOT_ON_A_SERVER):
            FAULTS[name](site)
    clean = look(*flags)
    assert len(clean.kinds) > (6 if site.engine else 8)
    if site.engine:
        return
    left = hot(site, tmp_path / "left", "UPDATE provider_credentials SET label = 'x'")
    assert look(*flags, on=left).kinds == clean.kinds - {
        "open file",
        "open folder",
        "left over",
    }  # what is not in the file itself


@pytest.mark.parametrize("with_a_log", [False, pytest.param(True, marks=FILES)])
def test_the_database_refuses_to_write_through_a_vault_that_was_opened_to_read(
    site: Site, tmp_path: Path, with_a_log: bool
) -> None:
    on = (
        hot(site, tmp_path / "left", "UPDATE provider_credentials SET label = 'x'")
        if with_a_log
        else site
    )
    before = files_of(on)
    with Vault.open(on.database, key_store=KeyDirectory(on.keys), read_only=True) as vault:
        for change in (
            lambda: vault.set("mail", "password", CANARY),
            lambda: vault.delete("mail", "password"),
            lambda: vault.keys.create(),
            lambda: vault.database.change("UPDATE vault_meta SET value = '9'"),
            lambda: vault.database.change("CREATE TABLE x (y TEXT)"),
            lambda: vault.database.set_schema_version(9),
        ):
            with pytest.raises(DatabaseReadOnly):
                change()
        assert vault.get("mail", "password").reveal() == f"{CANARY} of mail"
    assert files_of(on) == before


@FILES
def test_replaced_tokens_in_the_log_are_counted(site: Site, look: Look) -> None:
    with held_open(site.database):
        replace_four(site)
        seen = look()
        finding = seen.only("old tokens in the log")
        assert finding["message"].startswith("4 token(s)")
        assert f"{site.database.name}-wal" in finding["message"]
        assert (finding["level"], seen.status) == ("notice", 0) and "'vault rotate'" in finding[
            "hint"
        ]
    assert look().data["findings"] == []  # the last to close the file has moved the log into it


@FILES
def test_after_a_rotation_no_replaced_token_is_in_the_log(site: Site, look: Look) -> None:
    with held_open(site.database):
        replace_four(site)
        with site.open() as vault:
            rotate(vault)
        assert look().kinds == {"never exported"}


@FILES
def test_what_proves_a_key_is_not_taken_for_a_replaced_token(site: Site, look: Look) -> None:
    with held_open(site.database, "UPDATE vault_keys SET exported_at = 'now'"):  # as an export does
        assert look().data["findings"] == []


def replace_four(site: Site) -> None:
    """Four values that are no previous ones either."""
    with site.open() as vault:
        limit(vault, Limits(values=0))
        for number in range(
            4
        ):  # what the first replaces was never in this log, and the last is the value
            vault.set("mail", "password", f"{CANARY} {number}")
        vault.set("gone", "password", CANARY)
        vault.delete("gone", "password")


def test_of_one_kind_a_few_are_named_and_all_are_counted(
    site: Site, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "NAMED_AT_MOST", 5)
    token = row_of(site, "crm")["encrypted_value"]
    for number in range(8):
        insert(site, (None, "cut", str(number)), token[:-4], site.active())
        insert(site, (None, "app", str(number)), APP_VALUE)
    seen = look()
    assert (len(seen.of("unreadable value")), len(seen.of("foreign value"))) == (5, 5)
    assert (seen.data["problems"], seen.data["more"]) == (
        8,
        {"unreadable value": 3, "foreign value": 3},
    )
    assert "and 3 more of: unreadable value\n" in seen.text and seen.text.endswith("\n8 problems\n")


@FILES
def test_more_counts_a_kind_that_has_both_levels_together(
    site: Site, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "NAMED_AT_MOST", 2)
    for number in range(6):
        mode_of(f".{number}.backup", 0o666 if number % 2 else 0o644, "", "")(site)
    seen = look()
    assert len(seen.of("open file")) + seen.data["more"]["open file"] == 6


STRANGE = {
    "bytes": b"\x00\xff\x1b[31m",
    "escape": "a\x1b]0;owned\x07\x1b[2J",
    "line ends": "a\r\nproblem: b\x9b\x7f\u2028\u202e",
    "number": 7,
}
STRANGERS = pytest.mark.parametrize(
    "strange",
    [
        pytest.param(strange, id=name, marks=() if isinstance(strange, str) else TYPES)
        for name, strange in STRANGE.items()
    ],
)


@DEPTHS
@STRANGERS
@pytest.mark.parametrize(
    "column", ["project_id", "provider", "credential_type", "label", "id", "key_id"]
)
@pytest.mark.parametrize("kind", ["foreign", "sealed"])
def test_a_strange_name_breaks_no_output(
    site: Site, look: Look, column: str, strange: object, kind: str, flags: tuple[str, ...]
) -> None:
    if kind == "foreign":
        put(site, "imap", encrypted_value=APP_VALUE)
    row_id = row_of(site, "imap")["id"]
    change = f"UPDATE provider_credentials SET {column} = ? WHERE id = ?"
    unchecked(site.database, change, strange, row_id)
    seen = look(*flags)
    nameless = column == "key_id" and isinstance(strange, bytes)
    expected = "foreign value" if kind == "foreign" or nameless else "unreadable value"
    if kind == "sealed" and nameless and flags:  # the deep look tries the keys
        expected = "key not named"
    # A changed place shows when it is opened.
    by_name_only = column in ("label", "id") or (column != "key_id" and not flags)
    assert (kind == "sealed" and by_name_only) or seen.of(expected), seen.data


@DEPTHS
@STRANGERS
@pytest.mark.parametrize(("kind", "beside"), [("duplicates", True), ("shadowed value", False)])
def test_strange_names_of_two_rows_break_no_output(
    site: Site, look: Look, strange: object, kind: str, beside: bool, flags: tuple[str, ...]
) -> None:
    for scope in ("global", "project"):
        sql(site, f"DROP INDEX vault_credentials_{scope}")
    for project_id in (strange, strange if beside else None):
        insert(site, (project_id, strange, strange), APP_VALUE, label=strange)
    assert look(*flags).kinds == {kind, "schema", "foreign value", "broken reference"}


@TYPES
def test_text_that_is_not_utf_8_breaks_no_output(site: Site, look: Look) -> None:
    strange = "CAST(x'61ff1b9b62' AS TEXT)"
    columns = ", ".join(
        f"{column} = {strange}"
        for column in ("provider", "credential_type", "label", "project_id", "encrypted_value")
    )
    site.change(f"UPDATE provider_credentials SET {columns} WHERE provider = 'crm'")
    site.change(f"UPDATE vault_keys SET exported_at = {strange}")
    assert look("--deep").only("foreign value")["provider"] == "a\ufffd\x1b\ufffdb"


@TYPES
@pytest.mark.parametrize("column", ["created_at", "id"])
def test_bytes_in_the_list_of_keys_break_no_output(site: Site, look: Look, column: str) -> None:
    site.change(f"UPDATE vault_keys SET {column} = x'00ff1b' WHERE state = 'retired'")
    found = look()
    assert found.status == 16 if column == "id" else found.status in (0, 16)
    assert ("id that is not text" in str(found.data)) == (column == "id")


def test_json_has_the_published_names_and_no_other(site: Site, look: Look) -> None:
    for name in (
        "shadowed value",
        "duplicates",
        "cut token",
        "pending key",
        *(() if site.engine else ("file that others read",)),
    ):
        FAULTS[name](site)
    data = look("--deep").data
    assert list(data) == [
        "database",
        "vault_id",
        "key_store",
        "deep",
        "values",
        "keys",
        "problems",
        "findings",
        "more",
        "causes",
    ]
    assert list(data) == [field.name for field in fields(Examination)]
    assert list(data["values"]) == ["ok", "foreign", "unreadable"]
    key = [
        "id",
        "state",
        "created_at",
        "activated_at",
        "retired_at",
        "destroyed_at",
        "exported_at",
        "emptied_at",
        "replaced_by",
        "staged_by",
        "staged_at",
        "values",
    ]
    finding = [
        "level",
        "kind",
        "message",
        "hint",
        "key_id",
        "project_id",
        "provider",
        "credential_type",
        "row_id",
        "cause",
    ]
    assert (
        {tuple(found) for found in data["keys"]} == {tuple(key)} == {(*KeyRecord._fields, "values")}
    )
    assert {tuple(found) for found in data["findings"]} == {tuple(finding)} == {Finding._fields}
    assert (data["database"], data["key_store"]) == (
        str(locate(site.database)),
        f"key directory {site.keys}",
    )


@FILES
@pytest.mark.parametrize("content", [None, b"", b"no database at all" * 100])
def test_a_file_that_is_no_vault_ends_with_14(
    site: Site, look: Look, content: bytes | None
) -> None:
    site.database.unlink()
    if content is not None:
        site.database.write_bytes(content)
    seen = look()
    assert seen.status == 14 and "vault: error: " in seen.text and "vault: hint: " in seen.text


def test_a_table_that_the_vault_reads_and_lacks_ends_with_14(site: Site, look: Look) -> None:
    sql(site, "DROP TABLE vault_keys")
    seen = look()
    assert seen.status == 14 and "vault_keys" in seen.text


@pytest.mark.samples
@pytest.mark.parametrize("name", ["samsara-v5", "samsara-v10"])
def test_the_apps_own_databases_have_nothing_worse_than_foreign_values(
    tmp_path: Path, look: Look, name: str
) -> None:
    made = Site(tmp_path / "own" / f"{name}.db", tmp_path / "own" / "keys")
    made.database.parent.mkdir()
    for suffix in ("", "-wal"):
        shutil.copyfile(SAMPLES / f"{name}.db{suffix}", f"{made.database}{suffix}")
    init(made.database, key_store=KeyDirectory(made.keys))
    seen = look("--deep", on=made)
    assert seen.data["values"]["foreign"] > 0 and seen.kinds >= {"foreign value", "never exported"}
    assert {
        finding["kind"] for finding in seen.data["findings"] if finding["level"] == "problem"
    } <= NO_ACCOUNTS


def test_in_the_middle_of_a_rotation_that_alone_is_a_problem(site: Site, look: Look) -> None:
    with site.peer("hold") as rotation:
        assert rotation.stdout is not None and rotation.stdin is not None
        assert rotation.stdout.readline() == "rotating\n"
        seen = look("--deep")
        assert {
            finding["kind"] for finding in seen.data["findings"] if finding["level"] == "problem"
        } == {"interrupted rotation"}
        assert seen.data["values"] == {"ok": 3, "foreign": 0, "unreadable": 0}
        rotation.stdin.close()
    assert look("--deep").kinds == {"never exported"}


def test_beside_a_rotation_at_most_the_unfinished_rotation_is_found(site: Site) -> None:
    count = effort(600, 200)
    with site.open() as vault:
        fill(vault, count)
    command = [sys.executable, "-c", ROTATOR, str(site.database), str(site.keys)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as rotator:
        assert rotator.stdin is not None and rotator.stdout is not None
        rotator.stdout.readline()
        kinds, looks, rotated = set[tuple[str, str]](), 0, 0
        while looks < effort(10, 6) or rotated < effort(
            4, 2
        ):  # and not for so many seconds, in which a busy machine rotates too little
            assert rotator.poll() is None
            found = examine(site.database, key_store=KeyDirectory(site.keys), deep=True)
            kinds |= {(finding.level, finding.kind) for finding in found.findings}
            assert found.values == {"ok": count + 3, "foreign": 0, "unreadable": 0}, found.findings
            looks += 1
            if select.select([rotator.stdout], [], [], 0)[0]:
                rotated += rotator.stdout.read(4096).count(b"\n")
        rotator.stdin.close()
    assert {kind for level, kind in kinds if level == "problem"} <= {
        "interrupted rotation",
        *NO_ACCOUNTS,
    }


@pytest.mark.parametrize("column", ["provider", "credential_type", "project_id", "id", "key_id"])
def test_a_name_of_a_megabyte_is_shortened_in_messages_and_whole_in_json(
    site: Site, look: Look, column: str
) -> None:
    size = 100_000 if site.engine else 1_000_000  # an entry of its indexes has 2,704 bytes, packed
    long = "n" * size
    if column == "project_id":
        sql(
            site,
            f"INSERT INTO projects (id, name, created_at, updated_at) VALUES ('{long}', 'x', "
            f"'{now()}', '{now()}')",
        )
    site.change(
        f"UPDATE provider_credentials SET encrypted_value = 'gAAAAAbroken', {column} = ? WHERE "
        "provider = 'crm'",
        long,
    )
    seen = look("--deep")
    assert len(seen.text) < 5000 and f"({size} characters)" in seen.text
    named = {"id": "row_id"}.get(column, column)
    if column != "key_id":
        assert long in {finding[named] for finding in seen.data["findings"]}


@pytest.mark.parametrize("column", ["provider", "credential_type", "id", "label"])
def test_a_table_is_not_padded_to_a_megabyte(
    site: Site, capsysbinary: pytest.CaptureFixture[bytes], column: str
) -> None:
    with site.open() as vault:
        fill(vault, 300)
    size = 100_000 if site.engine else 1_000_000
    site.change(f"UPDATE provider_credentials SET {column} = ? WHERE provider = 'crm'", "n" * size)
    where = ["--db", str(site.database), "--key-dir", str(site.keys)]
    assert cli.run([*where, "list", "--long"]) == 0
    shown = capsysbinary.readouterr().out
    assert len(shown) < 200_000 and f"({size} characters)".encode() in shown
    assert cli.run([*where, "list", "--json"]) == 0
    assert b"n" * size in capsysbinary.readouterr().out
