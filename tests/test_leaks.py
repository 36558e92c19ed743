"""
Nothing that is written, printed, logged or raised holds a value, a passphrase or a key, whatever
the command or the call.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import dataclasses
import fcntl
import hmac
import http.server
import inspect
import io
import json
import logging
import os
import pickle
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from helpers import V4
from helpers.commands import leaves
from helpers.faults import each_stop
from helpers.forms import forms
from helpers.postgres import APP, Postgres
from helpers.rows import trigger
from helpers.site import (
    Engine,
    Figures,
    Site,
    another,
    is_url,
    name_of,
    new_site,
    operators_lock,
    prepared,
    restored,
    sql,
    tables_of,
)
from keyring.errors import KeyringLocked as BackendLocked

import outreach_vault
from outreach_vault import KeyDirectory, OSKeyring, Secret, Vault, cipher, errors
from outreach_vault.command import cli
from outreach_vault.database import locate, open_database
from outreach_vault.database.sqlite.database import SQLiteDatabase as Database
from outreach_vault.keys import passphrase
from outreach_vault.keys.stores import KeyStore, os_keyring
from outreach_vault.operations import init as init_module
from outreach_vault.operations import launch, login, rotation, staging
from outreach_vault.operations.doctor import examine
from outreach_vault.operations.init import init
from outreach_vault.operations.recovery import backup, export_keys, import_keys
from outreach_vault.operations.status import status
from outreach_vault.schema import migrator
from outreach_vault.values.rows import place_of

pytestmark = pytest.mark.sweep(4)

P = "default-project"
APP_VALUE = base64.b64encode(b"v11" + bytes(range(48))).decode()  # the desktop app's own shape
CORES = {name: secrets.token_hex(16) for name in ("value", "passphrase", "wrong passphrase")}
# What surrounds the core has another spelling in JSON, in repr and in a shell; the core has one in
# all of them.
TEXT = {name: f" {core} \"é\\\U0001f511' " for name, core in CORES.items()}
VALUE, PASSPHRASE, WRONG = TEXT.values()
TOKEN = VALUE.encode("ascii", "ignore").decode()  # as a provider may give one
SMALL = {"iterations": 1, "lanes": 1, "memory_kib": 8}
IN_MEMORY = (
    "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
)  # where there is such a folder: nothing here is about power cuts
linux = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="this system does not show processes in /proc"
)
Hidden = dict[str, set[bytes]]
Seen = Iterable[tuple[str, bytes]]


# --- what is looked for, and where


def hidden_in(*folders: Path) -> Hidden:
    """The canaries, and every key of the folders' key files."""
    hidden = {name: forms(core.encode()) for name, core in CORES.items()}
    for path in {path for folder in folders for path in folder.rglob("*.key")}:
        text = path.read_bytes()
        with contextlib.suppress(ValueError):
            raw = base64.urlsafe_b64decode(text)
            if len(raw) == 32:
                hidden[f"key {path.name}"] = forms(text.rstrip(b"=")) | forms(raw)
    return hidden


def leaks(hidden: Hidden, seen: Seen) -> list[str]:
    return [
        f"{what} is in {where}"
        for where, data in seen
        for what, spellings in hidden.items()
        if any(form in data for form in spellings)
    ]


def files_of(folder: Path, but: str = "given") -> Iterator[tuple[str, bytes]]:
    """
    Every file, and its name; keys are looked for outside the key directory alone, where nobody else
    may read.
    """
    for path in folder.rglob("*"):
        if path.is_file() and but not in path.relative_to(folder).parts:
            yield f"{path.relative_to(folder)}", path.name.encode() + b"\n" + path.read_bytes()


def rows_of(site: Site) -> Iterator[tuple[str, bytes]]:
    """Every row of a database on a server, as text. SQLite's are in a file."""
    if site.engine and name_of(site.database) in site.engine.databases:
        each = [f"SELECT {table}::text FROM {table}" for table in tables_of(site.database)]
        for (row,) in sql(site.database, " UNION ALL ".join(each) or "SELECT ''"):
            yield "the database", row.encode()


def require_clean(hidden: Hidden, folder: Path, site: Site) -> None:
    """No file in the folder has what is hidden, and no row of the vault, wherever that is."""
    assert leaks(hidden, rows_of(site)) == []
    canaries = {name: spellings for name, spellings in hidden.items() if name in CORES}
    for where, data in files_of(folder):
        in_key_directory = "keys" in Path(where).parts
        assert leaks(canaries if in_key_directory else hidden, [(where, data)]) == []
        assert not in_key_directory or (folder / where).stat().st_mode & 0o077 == 0


def chain(error: BaseException | None) -> list[BaseException]:
    """The error, its causes and what they came after, suppressed ones too."""
    found, waiting = list[BaseException](), [error]
    while waiting:
        link = waiting.pop()
        if link is not None and link not in found:
            found.append(link)
            waiting += [link.__cause__, link.__context__]
    return found


def shown_by(error: BaseException) -> Iterator[tuple[str, bytes]]:
    """
    What a log, a crash reporter or another process may get to see of an error: its texts, facts,
    locals of our frames, pickle.
    """
    for link in chain(error):
        name = type(link).__name__
        facts = [link.args, vars(link), getattr(link, "__notes__", ()), str(link), repr(link)]
        facts += [getattr(link, attribute, None) for attribute in ("object", "doc", "hint")]
        yield f"the facts of {name}", repr(facts).encode(errors="replace")
        yield (
            f"the traceback of {name}",
            "".join(traceback.format_exception(link)).encode(errors="replace"),
        )
        for frame, _ in traceback.walk_tb(
            link.__traceback__
        ):  # as capture_locals does; which also asks objects that are half made
            if Path(outreach_vault.__file__).parent in Path(frame.f_code.co_filename).parents:
                yield (
                    f"the names in {frame.f_code.co_name} ({name})",
                    repr(frame.f_locals).encode(errors="replace"),
                )
        with contextlib.suppress(TypeError, AttributeError, pickle.PicklingError):
            yield f"the pickle of {name}", pickle.dumps(link)


def logged(records: Iterable[logging.LogRecord]) -> Iterator[tuple[str, bytes]]:
    for record in records:
        yield (
            f"the log of {record.name}",
            f"{record.getMessage()} {record.args!r} {record.exc_text}".encode(errors="replace"),
        )


def test_the_search_finds_each_spelling_of_what_is_hidden(tmp_path: Path) -> None:
    """Else everything here would pass for nothing."""
    site = new_site(tmp_path / "site")
    (file,) = site.keys.glob("*.key")
    hidden, key = hidden_in(tmp_path), file.read_text()
    for what, text in {**TEXT, f"key {file.name}": key}.items():
        for before in ("", "x", "xy", "xyz"):
            data = f"{before}{text}after".encode()
            spellings = [
                data,
                base64.b64encode(data),
                base64.urlsafe_b64encode(data),
                data.hex().encode(),
                data.decode().encode("utf-16"),
            ]
            spellings += [
                json.dumps(data.decode()).encode(),
                repr(data).encode(),
                b"..." + pickle.dumps(data),
            ]
            for spelling in spellings:
                assert leaks(hidden, [("here", spelling)]) == [f"{what} is in here"]
    for raw in (base64.urlsafe_b64decode(key), base64.b64encode(base64.urlsafe_b64decode(key))):
        assert leaks(hidden, [("here", raw)]) == [f"key {file.name} is in here"]
    assert leaks(hidden, [("here", b"nothing")]) == []


# --- a vault to do it in


class Stage(NamedTuple):
    """
    A copy of a vault that has everything: two keys, values under both scopes, exports, an older
    copy. `given` is the user's own.
    """

    root: Path
    site: Site
    older: Site

    @property
    def engine(self) -> Engine:
        return self.site.engine

    @property
    def nowhere(self) -> Any:
        """Where no database is."""
        return Site.of(self.root / "nowhere", self.engine).database

    @property
    def given(self) -> Path:
        return self.root / "given"

    def where(self) -> list[str]:
        """A URL has a password here, so the environment says it."""
        database = [] if is_url(self.site.database) else ["--db", str(self.site.database)]
        return [*database, "--key-dir", str(self.site.keys)]

    def retired(self) -> str:
        return next(key_id for key_id, state in self.site.states().items() if state == "retired")


@pytest.fixture(scope="module", autouse=True)
def small_stretching() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passphrase, "_ARGON2ID", SMALL)
        yield


@pytest.fixture(scope="module")
def template(
    engine: Engine, small_stretching: None, tmp_path_factory: pytest.TempPathFactory
) -> Stage:
    root = tmp_path_factory.mktemp("template")
    return furnish(root, new_site(root / "site", engine))


def furnish(root: Path, site: Site) -> Stage:
    other = new_site(root / "other")
    (root / "given").mkdir()
    for name, text in TEXT.items():
        (root / "given" / name).write_text(text + "\n")
    (root / "given" / "rows.json").write_text(ROWS)
    (root / "given" / "connections.json").write_text(CONNECTIONS)
    (root / "given" / "not text").write_bytes(VALUE.encode() + b"\xff")
    with site.open() as opened:
        opened.set("smtp", "password", VALUE)
        opened.set("smtp", "password", VALUE)  # which makes a previous value
        opened.set("smtp", "password", VALUE, P, label="main")
        opened.set("twilio", "auth_token", VALUE)
        opened.set("smtp", "host", "127.0.0.1")
        opened.set("smtp", "user", VALUE)
        opened.set("smtp", "port", "1")  # where nobody listens
    older = restored(site, root / "older")
    with site.open() as opened:
        rotation.rotate(opened)
        export_keys(opened, root / "keys.export", Secret(PASSPHRASE))
    with other.open() as opened:
        export_keys(opened, root / "other.export", Secret(PASSPHRASE))
    (root / "cut.export").write_bytes((root / "keys.export").read_bytes()[:-40])
    (root / "text.export").write_text("é no export")
    return Stage(root, site, older)


@pytest.fixture
def stage(template: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        root = Path(folder) / "root"
        shutil.copytree(template.root, root)
        site = template.site.copy(root / "site")
        for name, variable in (("home", "HOME"), ("tmp", "TMPDIR")):
            (root / name).mkdir()
            monkeypatch.setenv(variable, str(root / name))
        monkeypatch.setattr(tempfile, "tempdir", None)
        if site.engine:
            monkeypatch.setenv("OUTREACH_VAULT_DB", site.database)
        yield Stage(root, site, template.older)


class Hearing:
    """What every logger that there is has said since, and every server."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self.clear()

    def clear(self) -> None:
        self._caplog.clear()
        logs = [server.folder / "log" for server in Postgres.running]
        self._heard = {log: log.stat().st_size for log in logs}

    def said(self) -> Iterator[tuple[str, bytes]]:
        yield from logged(self._caplog.records)
        for log, heard in self._heard.items():
            with log.open("rb") as file:
                file.seek(heard)
                yield "the server's log", file.read()


@pytest.fixture
def hearing(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hearing]:
    """
    Every logger that there is, at DEBUG; and every statement of the vault's with its values, as
    SQLite or the server runs it.
    """
    connect, statements = Database._connect, logging.getLogger("statements")

    def traced(self: Database) -> Any:
        connection = connect(self)
        connection.set_trace_callback(statements.debug)
        return connection

    monkeypatch.setattr(Database, "_connect", traced)
    for name in (None, *logging.root.manager.loggerDict):
        caplog.set_level(logging.DEBUG, logger=name)
    for server in Postgres.running:
        server.sql("postgres", "ALTER ROLE ALL SET log_statement = 'all'")
    yield Hearing(caplog)
    for server in Postgres.running:
        server.sql("postgres", "ALTER ROLE ALL RESET log_statement")


@pytest.mark.sweep(1)
def test_the_search_looks_at_what_is_stored_and_at_every_statement(
    stage: Stage, hearing: Hearing
) -> None:
    """A label is stored as it is."""
    with stage.site.open() as opened:
        opened.set("smtp", "password", "another", label=VALUE)
    hidden = hidden_in(stage.root)
    assert "value is in" in str(leaks(hidden, hearing.said()))
    with pytest.raises(AssertionError, match="value is in"):
        require_clean(hidden, stage.root, stage.site)


# --- the command


class Call(NamedTuple):
    command: str
    arguments: Callable[[Stage], list[str]] = lambda stage: []
    stdin: str = ""
    ends: int = 0  # where no fault was arranged
    on_a_server: int | None = None  # if it ends otherwise there


NEW = "new file"
# Both quotes and a backslash are escaped, for python-dotenv alone.
_ESCAPED = VALUE.replace("\\", "\\\\").replace('"', '\\"')
DOTENV = f'SMTP_PASSWORD="{_ESCAPED}"\nTWILIO_PHONE_NUMBER=+15550100000\n'
ROWS = json.dumps([
    {"provider": "smtp", "credential_type": "password", "project_id": P, "value": VALUE},
    {"provider": "acme", "credential_type": "key", "project_id": None, "value": VALUE},
])  # fmt: skip
CONNECTIONS = json.dumps({
    VALUE: {"conn_type": VALUE, "password": VALUE},
    "mail": {"conn_type": "smtp", "host": VALUE, "port": VALUE, "extra": VALUE},
    "calls": {"conn_type": "twilio", "login": VALUE, "extra": {VALUE: VALUE, "user": [VALUE]}},
})  # fmt: skip
PASSPHRASE_FILE = "--passphrase-file"
NOBODY = "http://127.0.0.1:1"  # where nobody listens
_CLIENT = ["smtp", "--client-id", "an-id", "--from-env", "GIVEN", "--token-url", f"{NOBODY}/token"]
CALLS: dict[str, Call] = {
    "init": Call("init"),
    "migrate": Call("migrate"),
    "migrate, planned": Call("migrate", lambda stage: ["--plan"]),
    "copy-to": Call(
        "copy-to",
        lambda stage: ["postgresql://127.0.0.1:1/nobody", "--json"],
        ends=15,
        on_a_server=2,  # a file alone is copied
    ),
    "set": Call("set", lambda stage: ["smtp", "password", "--label", "other"], VALUE),
    "set for a project, from a file": Call(
        "set",
        lambda stage: [
            "new",
            "field",
            "--new",
            "--project",
            P,
            "--from-file",
            str(stage.given / "value"),
        ],
    ),
    "set from the environment": Call(
        "set", lambda stage: ["smtp", "password", "--from-env", "GIVEN"]
    ),
    "get": Call("get", lambda stage: ["smtp", "password", "--project", P]),
    "get as JSON": Call("get", lambda stage: ["smtp", "password", "--json"]),
    "providers": Call("providers"),
    "fields of one as JSON": Call("providers", lambda stage: ["smtp", "--json"]),
    "check": Call("check", lambda stage: ["smtp"], ends=17),
    "check as JSON": Call("check", lambda stage: ["smtp", "--project", P, "--json"], ends=16),
    "login with a code": Call(
        "login", lambda stage: [*_CLIENT, "--device", "--device-url", f"{NOBODY}/device"], ends=17
    ),
    "login in a browser": Call(
        "login",
        lambda stage: [
            *(*_CLIENT, "--user", "somebody", "--wait", "0.1"),
            *("--authorization-url", f"{NOBODY}/auth"),
        ],
        ends=16,
    ),
    "projects": Call("projects"),
    "projects as JSON": Call("projects", lambda stage: ["--json"]),
    "a new project": Call("projects add", lambda stage: ["Another"]),
    "completion": Call("completion", lambda stage: ["bash"]),
    "run": Call("run", lambda stage: ["--provider", "smtp", "--", "true"]),
    "run, all of a project": Call("run", lambda stage: ["--project", P, "--", "true"], ends=16),
    "which": Call("which", lambda stage: ["smtp", "--project", P]),
    "which as JSON": Call("which", lambda stage: ["smtp", "password", "--json"]),
    "list": Call("list"),
    "list as JSON": Call("list", lambda stage: ["--json"]),
    "accounts": Call("accounts"),
    "accounts as JSON": Call("accounts", lambda stage: ["--json", "--project", P]),
    "list of one provider": Call("list", lambda stage: ["smtp"]),
    "label": Call("label", lambda stage: ["smtp", "password", "another"]),
    "copy": Call("copy", lambda stage: ["twilio", "--from-global", "--to", P]),
    "move": Call("move", lambda stage: ["smtp", "--from", P, "--to-global", "--replace"]),
    "delete an account": Call("delete", lambda stage: ["smtp", "--project", P, "--yes"]),
    "delete": Call("delete", lambda stage: ["smtp", "password", "--yes"]),
    "history": Call("history", lambda stage: ["smtp", "password"]),
    "history as JSON": Call("history", lambda stage: ["smtp", "password", "--json"]),
    "history forgotten": Call("history", lambda stage: ["smtp", "password", "--forget", "--yes"]),
    "undo": Call("undo", lambda stage: ["smtp", "password", "--yes"]),
    "limits of the history": Call("config history"),
    "no history": Call("config history", lambda stage: ["0", "--yes"]),
    "due": Call("due"),
    "due as JSON": Call("due", lambda stage: ["--json"]),
    "import": Call("import", lambda stage: ["-", "--yes", "--replace"], DOTENV),
    "import, planned, as JSON": Call(
        "import", lambda stage: [str(stage.given / "rows.json"), "--dry-run", "--new", "--json"]
    ),
    "import, of which nothing fits": Call(
        "import", lambda stage: [str(stage.given / "connections.json"), "--yes"], ends=2
    ),
    "export": Call("export", lambda stage: ["--format", "json"]),
    "export to a file": Call(
        "export",
        lambda stage: [str(stage.given / NEW), "--format", "dotenv", "--provider", "smtp"],
    ),
    "export to a file of JSON": Call(
        "export", lambda stage: [str(stage.given / NEW), "--format", "json"]
    ),
    "rotate": Call("rotate"),
    "rotate, rehearsed": Call("rotate", lambda stage: ["--dry-run", "--json"]),
    "rotate, the old key destroyed": Call(
        "rotate", lambda stage: ["--destroy-old", "--yes", "--json"]
    ),
    "rotate, staged": Call("rotate", lambda stage: ["--stage", "--json"]),
    "rotate, not staged": Call("rotate", lambda stage: ["--unstage"], ends=12),
    "roles": Call("roles", lambda stage: ["--sql"], ends=2, on_a_server=0),  # a file has none
    "status": Call("status"),
    "status as JSON": Call("status", lambda stage: ["--json"]),
    "doctor": Call("doctor", ends=16),  # the account here is in two scopes
    "doctor, deep, as JSON": Call("doctor", lambda stage: ["--deep", "--json"], ends=16),
    "backup": Call("backup", lambda stage: [str(stage.root / NEW)], on_a_server=16),
    "keys list": Call("keys list"),
    "keys list as JSON": Call("keys list", lambda stage: ["--json"]),
    "keys export": Call("keys export", lambda stage: [str(stage.root / NEW)], PASSPHRASE),
    "keys export, from a file": Call(
        "keys export",
        lambda stage: [str(stage.root / NEW), PASSPHRASE_FILE, str(stage.given / "passphrase")],
    ),
    "keys export, weak": Call("keys export", lambda stage: [str(stage.root / NEW), "--weak"], "x"),
    "keys import": Call("keys import", lambda stage: [str(stage.root / "keys.export")], PASSPHRASE),
    "keys acknowledge": Call("keys acknowledge", lambda stage: ["--host", "a-host"]),
    "keys hosts": Call("keys hosts"),
    "keys hosts as JSON": Call("keys hosts", lambda stage: ["--json"]),
    "keys hosts, one removed": Call(
        "keys hosts", lambda stage: ["--remove", "a-host", "--yes"], ends=10
    ),
    "keys destroy": Call("keys destroy", lambda stage: [stage.retired(), "--yes"]),
}
# Of the faults, the mistakes and the errors below, why not on a server.
OF_A_FILE = {
    "the released app's file": "the desktop app's own file",
    "garbled rows": "bytes and numbers in a column of text",
    "garbled keys": "bytes in a column of text",
    "a database as a file of keys": "its file",
    "NotADatabase": "its file",
}


def cases(names: Iterable[str]) -> list[Any]:
    marks = {name: pytest.mark.sqlite(why) for name, why in OF_A_FILE.items()}
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]


Fault = Callable[[Stage, pytest.MonkeyPatch, contextlib.ExitStack], object]


def damaged(stage: Stage) -> None:
    stage.site.change(
        "UPDATE provider_credentials SET encrypted_value = substr(encrypted_value, 1, 60) || "
        "'AAAA' || substr(encrypted_value, 65)"
    )


def locked(stage: Stage, monkeypatch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    """No other program can write; all can read."""
    connections = f"outreach_vault.database.{'postgres' if stage.engine else 'sqlite'}.connections"
    for name in ("BUSY_SECONDS", "PATIENT_SECONDS"):
        monkeypatch.setattr(f"{connections}.{name}", 0.02)
    other = stack.enter_context(another(stage.site.database))
    other.begin()
    if stage.engine:
        monkeypatch.setattr(f"{connections}._OF_OPERATORS", "SET lock_timeout = '20ms'")
        tables = ", ".join(tables_of(stage.site.database))
        other.execute(f"LOCK TABLE {tables} IN EXCLUSIVE MODE")


def taken(stage: Stage, monkeypatch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    monkeypatch.setattr(init_module, "_PATIENCE", 0.02)
    stack.enter_context(operators_lock(stage.site.database))


def full(stage: Stage, monkeypatch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
    if stage.engine:
        for table in tables_of(stage.site.database):
            changes = f"BEFORE INSERT OR UPDATE ON {table}"
            trigger(stage.site.database, changes, "RAISE disk_full")
        return
    connect = Database._connect

    def limited(self: Database) -> Any:
        connection = connect(self)
        if self.path == stage.site.database:
            connection.execute(
                f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}"
            )
        return connection

    monkeypatch.setattr(Database, "_connect", limited)


def interrupted(stage: Stage) -> None:
    def interrupt(*_: int) -> None:
        raise InterruptedError

    with (
        stage.site.open() as opened,
        pytest.MonkeyPatch.context() as patch,
        contextlib.suppress(InterruptedError),
    ):
        patch.setattr(rotation, "BATCH", 1)
        rotation.rotate(opened, progress=interrupt)


def wrong_keys(stage: Stage, text: str) -> None:
    for path in stage.site.keys.glob("*.key"):
        path.write_text(text)


def bug(owner: object, name: str, error: type[Exception]) -> Fault:
    """
    A bug inside, whose message is the very thing; that message is not the package's own.

    Args:
        owner: None is the class of the database.
    """

    def arrange(stage: Stage, monkeypatch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
        def buggy(*arguments: Any, **_: Any) -> None:
            raise error(VALUE, PASSPHRASE, getattr(arguments[0], "_text", None))

        monkeypatch.setattr(owner or kind_of(stage.site), name, buggy)

    return arrange


def kind_of(site: Site) -> type:
    opened = open_database(site.database)
    opened.close_all()
    return type(opened)


def no_database(stage: Stage) -> None:
    if stage.engine:
        stage.engine.drop(name_of(stage.site.database))
    else:
        stage.site.database.unlink()


def no_place_for_a_vault(stage: Stage) -> None:
    if stage.engine:
        sql(stage.site.database, "DROP SCHEMA public CASCADE")
    else:
        stage.site.database.write_text("notes\n" * 999)


def older_copy(stage: Stage) -> None:
    if stage.engine:
        stage.engine.create(name_of(stage.site.database), name_of(stage.older.database))
    else:
        shutil.copyfile(stage.older.database, stage.site.database)


FAULTS: dict[str, Fault] = {
    "nothing": lambda stage, monkeypatch, stack: None,
    "no database": lambda stage, monkeypatch, stack: no_database(stage),
    "not a database": lambda stage, monkeypatch, stack: no_place_for_a_vault(stage),
    "the released app's file": lambda stage, monkeypatch, stack: shutil.copyfile(
        V4, stage.site.database
    ),
    "an older copy": lambda stage, monkeypatch, stack: older_copy(stage),
    "damaged rows": lambda stage, monkeypatch, stack: damaged(stage),
    "foreign rows": lambda stage, monkeypatch, stack: stage.site.change(
        "UPDATE provider_credentials SET encrypted_value = ?", APP_VALUE
    ),
    "garbled rows": lambda stage, monkeypatch, stack: stage.site.change(
        "UPDATE provider_credentials SET label = x'ff', updated_at = 5"
    ),
    "garbled keys": lambda stage, monkeypatch, stack: stage.site.change(
        "UPDATE vault_keys SET created_at = x'ff'"
    ),
    "no key store": lambda stage, monkeypatch, stack: shutil.rmtree(stage.site.keys),
    "a key store that others can read": lambda stage, monkeypatch, stack: stage.site.keys.chmod(
        0o755
    ),
    "no keys": lambda stage, monkeypatch, stack: [
        path.unlink() for path in stage.site.keys.glob("*.key")
    ],
    "another key": lambda stage, monkeypatch, stack: wrong_keys(
        stage, next((stage.root / "other" / "keys").glob("*.key")).read_text()
    ),
    "a cut key": lambda stage, monkeypatch, stack: wrong_keys(
        stage, next((stage.root / "other" / "keys").glob("*.key")).read_text()[:-1]
    ),
    "an interrupted rotation": lambda stage, monkeypatch, stack: interrupted(stage),
    "a locked database": locked,
    "another operator": taken,
    "a full disk": full,
    "something at the new file's path": lambda stage, monkeypatch, stack: (
        stage.root / NEW
    ).write_text("there"),
    "no folder for the new file": lambda stage, monkeypatch, stack: (stage.root / NEW).mkdir(),
    "a bug in every query": bug(None, "fetch", RuntimeError),
    "a bug in every write": bug(None, "change", ValueError),
    "a bug where the text is in hand": bug(Secret, "reveal", ValueError),
    "a bug in the key directory": bug(KeyDirectory, "_read", OSError),
}


class Done(NamedTuple):
    status: int
    out: bytes
    err: bytes
    errors: list[BaseException]


@pytest.fixture
def run(
    stage: Stage, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """The command in this process, and what got as far as to its last line of defence."""
    raised: list[BaseException] = []
    main = cli.cli.main

    def recording(*arguments: Any, **options: Any) -> Any:
        try:
            return main(*arguments, **options)
        except BaseException as error:
            raised.append(error)
            raise

    def run(*arguments: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setenv("GIVEN", VALUE)
        raised.clear()
        found = cli.run([*stage.where(), *arguments])
        out, err = capsysbinary.readouterr()
        return Done(found, out, err, list(raised))

    monkeypatch.setattr(cli.cli, "main", recording)
    # It would be the end of the tests.
    monkeypatch.setattr(os, "execve", lambda program, arguments, environment: None)
    monkeypatch.setattr(
        "outreach_vault.operations.launch.signal.signal", lambda number, handler: None
    )
    return run


def test_every_command_is_among_the_calls() -> None:
    assert {call.command for call in CALLS.values()} == set(leaves(cli.cli))


@pytest.mark.sweep(13)  # prime to the number of faults: each of them, and each call
@pytest.mark.parametrize("fault", cases(FAULTS))
@pytest.mark.parametrize("name", CALLS)
def test_no_command_shows_or_writes_what_it_hides(
    stage: Stage,
    run: Callable[..., Done],
    hearing: Hearing,
    name: str,
    fault: str,
    figures: Figures,
) -> None:
    call, hidden = CALLS[name], hidden_in(stage.root)
    arguments = [*call.command.split(), *call.arguments(stage)]
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as monkeypatch:
        FAULTS[fault](stage, monkeypatch, stack)
        done = run(*arguments, stdin=call.stdin.encode())
    hidden |= hidden_in(stage.root)
    if (call.command == "get" or name == "export") and done.status == 0:
        assert leaks(hidden, [("standard output", done.out)]) == ["value is in standard output"]
    else:
        assert leaks(hidden, [("standard output", done.out)]) == []
    assert leaks(hidden, [("standard error", done.err), *hearing.said()]) == []
    if "bug" not in fault:
        assert [leak for error in done.errors for leak in leaks(hidden, shown_by(error))] == []
    else:  # the message is the test's own; what our frames have in hand is not
        own = [
            seen
            for error in done.errors
            for seen in shown_by(error)
            if seen[0].startswith("the names in")
        ]
        assert leaks(hidden, own) == []
    require_clean(hidden, stage.root, stage.site)
    assert (done.status == 1) <= ("bug" in fault), done.err
    if fault == "nothing":
        other = call.on_a_server if stage.engine else None
        assert done.status == (call.ends if other is None else other), done.err
    figures("commands with a success or a failure arranged, nothing hidden shown or written", 1)


@pytest.mark.parametrize("fault", cases(fault for fault in FAULTS if fault != "nothing"))
def test_each_fault_is_met_by_some_command(
    stage: Stage, run: Callable[..., Done], fault: str
) -> None:
    """
    Else it could be arranged in a way that changes nothing, and every command would pass it in
    silence.
    """
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as monkeypatch:
        FAULTS[fault](stage, monkeypatch, stack)
        given = [
            ([*call.command.split(), *call.arguments(stage)], call.stdin.encode())
            for call in CALLS.values()
            if "destroy" not in call.command and not call.ends
        ]
        done = [run(*arguments, stdin=stdin) for arguments, stdin in given]
    marks = {
        "garbled rows": "\ufffd",
        "garbled keys": "\ufffd",
        "an interrupted rotation": "interrupted",
    }
    assert any(answer.status for answer in done) or marks[fault] in repr(
        b"".join(answer.out + answer.err for answer in done).decode()
    )


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, call in CALLS.items()
        if call.command not in ("init", "keys destroy", "providers", "completion")
    ],
)
def test_every_command_fails_without_a_database(
    stage: Stage, run: Callable[..., Done], name: str
) -> None:
    arguments = [*CALLS[name].command.split(), *CALLS[name].arguments(stage)]
    no_database(stage)
    assert run(*arguments, stdin=CALLS[name].stdin.encode()).status == 14


MISTAKES: dict[str, tuple[Callable[[Stage], list[str]], bytes]] = {
    "the value as an argument": (lambda stage: ["set", "smtp", "password", VALUE], b""),
    "the value as an option": (lambda stage: ["set", "smtp", "password", "--value", VALUE], b""),
    "the value as an option with =": (
        lambda stage: ["set", "smtp", "password", f"--value={VALUE}"],
        b"",
    ),
    "the value after a dash": (lambda stage: ["set", "smtp", "password", f"-{VALUE}"], b""),
    "a value for nobody": (
        lambda stage: ["set", "smtp", "password", "--project", "nobody"],
        VALUE.encode(),
    ),
    "a value for a name that is none": (
        lambda stage: ["set", "smtp\x1b", "password"],
        VALUE.encode(),
    ),
    "a value for empty text": (
        lambda stage: ["set", "smtp", "password", "--project", ""],
        VALUE.encode(),
    ),
    "too long a value": (lambda stage: ["set", "smtp", "password"], VALUE.encode() * 9999),
    "a value that is not UTF-8": (
        lambda stage: ["set", "smtp", "password"],
        VALUE.encode() + b"\xff",
    ),
    "a file that is not UTF-8": (
        lambda stage: ["set", "smtp", "password", "--from-file", str(stage.given / "not text")],
        b"",
    ),
    "two sources": (
        lambda stage: [
            "set",
            "a",
            "b",
            "--from-env",
            "GIVEN",
            "--from-file",
            str(stage.given / "value"),
        ],
        b"",
    ),
    "a label that is no text": (
        lambda stage: ["set", "smtp", "password", "--label", "\udcff"],
        VALUE.encode(),
    ),
    "another field": (lambda stage: ["get", "smtp", "nothing"], b""),
    "another project": (lambda stage: ["get", "smtp", "password", "--project", "nobody"], b""),
    "the passphrase as an argument of export": (
        lambda stage: ["keys", "export", str(stage.root / NEW), PASSPHRASE],
        b"",
    ),
    "the passphrase as an argument of import": (
        lambda stage: ["keys", "import", str(stage.root / "keys.export"), PASSPHRASE],
        b"",
    ),
    "the passphrase as an option": (
        lambda stage: ["keys", "export", str(stage.root / NEW), f"--passphrase={PASSPHRASE}"],
        b"",
    ),
    "a passphrase that is not UTF-8": (
        lambda stage: ["keys", "export", str(stage.root / NEW)],
        PASSPHRASE.encode() + b"\xff\n",
    ),
    "the wrong passphrase": (
        lambda stage: ["keys", "import", str(stage.root / "keys.export")],
        WRONG.encode(),
    ),
    "the wrong passphrase, for an export that is there": (
        lambda stage: ["keys", "export", str(stage.root / "keys.export")],
        WRONG.encode(),
    ),
    "keys of another vault": (
        lambda stage: ["keys", "import", str(stage.root / "other.export")],
        PASSPHRASE.encode(),
    ),
    "a cut file of keys": (
        lambda stage: ["keys", "import", str(stage.root / "cut.export")],
        PASSPHRASE.encode(),
    ),
    "a file of keys that is no such file": (
        lambda stage: ["keys", "import", str(stage.root / "text.export")],
        PASSPHRASE.encode(),
    ),
    "a database as a file of keys": (
        lambda stage: ["keys", "import", str(stage.site.database)],
        PASSPHRASE.encode(),
    ),
    "no file of keys": (
        lambda stage: ["keys", "import", str(stage.root / "nothing")],
        PASSPHRASE.encode(),
    ),
    "said: a dotenv file that breaks off": (
        lambda stage: ["import", "-", "--yes", "--format", "dotenv"],
        f"SMTP_HOST='{VALUE}\n{VALUE}={VALUE}\n".encode(),
    ),
    "said: JSON that breaks off": (
        lambda stage: ["import", "-", "--yes", "--format", "json"],
        ROWS[:-2].encode(),
    ),
    "said: YAML that is none": (
        lambda stage: ["import", "-", "--yes", "--format", "airflow-yaml"],
        f"a: [{VALUE}\n- {VALUE}: {VALUE}".encode(),
    ),
    "said: a connection that is none": (
        lambda stage: ["import", "-", "--yes", "--format", "airflow-env"],
        f"a=smtp://[{VALUE}\n{VALUE}=smtp://a:b@c:{VALUE}\n".encode(),
    ),
    "an import of no known format": (
        lambda stage: ["import", "-", "--yes"],
        VALUE.encode(),
    ),
    "an import that is not UTF-8": (
        lambda stage: ["import", str(stage.given / "not text"), "--yes"],
        b"",
    ),
    "the value as an argument of import": (lambda stage: ["import", VALUE], b""),
    "the value as an option of import": (
        lambda stage: ["import", "-", "--project", CORES["value"]],
        b"SMTP_HOST=a",
    ),
    "an export over a file": (
        lambda stage: ["export", str(stage.given / "value"), "--format", "json"],
        b"",
    ),
    "the active key": (lambda stage: ["keys", "destroy", stage.site.active(), "--yes"], b""),
    "no such key": (lambda stage: ["keys", "destroy", "nothing", "--yes"], b""),
}


@pytest.mark.parametrize("mistake", cases(MISTAKES))
def test_no_mistake_is_answered_with_what_was_to_be_hidden(
    stage: Stage, run: Callable[..., Done], hearing: Hearing, mistake: str
) -> None:
    make, stdin = MISTAKES[mistake]
    hidden = hidden_in(stage.root)
    done = run(*make(stage), stdin=stdin)
    assert done.status not in (0, 1), done.err
    said = [("standard output", done.out), ("standard error", done.err), *hearing.said()]
    assert leaks(hidden, said) == []
    require_clean(hidden, stage.root, stage.site)


# A usage error is about what the user typed, and no traceback is made of it: there the words of an
# argument may stay. What does not fit in a file is said, and no error is raised.
TYPED = {
    name
    for name in MISTAKES
    if any(word in name for word in ("argument", "option", "dash", "said: "))
}


@pytest.mark.parametrize("mistake", cases(name for name in MISTAKES if name not in TYPED))
def test_no_error_about_a_mistake_holds_what_was_to_be_hidden(
    stage: Stage, run: Callable[..., Done], mistake: str
) -> None:
    make, stdin = MISTAKES[mistake]
    hidden = hidden_in(stage.root)
    done = run(*make(stage), stdin=stdin)
    assert done.errors
    assert [leak for error in done.errors for leak in leaks(hidden, shown_by(error))] == []


# --- real processes

DRIVER = """
import io, json, logging, os, sys
logging.basicConfig(level=logging.DEBUG)
for name in ("peewee", "keyring", "asyncio"):
    logging.getLogger(name).setLevel(logging.DEBUG)
from outreach_vault.database.sqlite.database import SQLiteDatabase as Database
connect = Database._connect
def traced(self):
    connection = connect(self)
    # With their values, as SQLite runs them.
    connection.set_trace_callback(logging.getLogger("statements").debug)
    return connection
Database._connect = traced
started = []
names = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system",
         "os.spawn", "os.startfile")
sys.addaudithook(lambda name, arguments: started.append(name) if name in names else None)
from outreach_vault.command import cli
for arguments, stdin, quiet in json.load(sys.stdin):
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()))
    sys.stdout = open(os.devnull, "w") if quiet else sys.__stdout__
    command = arguments[arguments.index("--key-dir") + 2]
    print(command, cli.run(arguments), file=sys.__stdout__, flush=True)
print("started", started, file=sys.__stdout__)
"""


def test_a_process_that_logs_everything_shows_nothing_and_starts_no_other(
    stage: Stage, hearing: Hearing
) -> None:
    hidden = hidden_in(stage.root)
    calls = [
        (
            [*stage.where(), *call.command.split(), *call.arguments(stage)],
            call.stdin,
            call.command == "get" or name == "export",
        )
        for name, call in CALLS.items()
        if name not in ("delete", "keys destroy", "keys export, from a file", "history forgotten")
        and call.command != "run"  # which would be the end of it
    ]
    environment = {**os.environ, "GIVEN": VALUE}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(calls).encode(),
        capture_output=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout.endswith(b"started []\n"), done.stdout[-300:]
    assert b"get 0" in done.stdout and b"rotate 0" in done.stdout and b"keys 0" in done.stdout
    hidden |= hidden_in(stage.root)
    seen = [("standard output", done.stdout), ("the log", done.stderr), *hearing.said()]
    # It was listening.
    assert any(b"INSERT INTO provider_credentials" in data for _, data in seen)
    assert leaks(hidden, seen) == []
    require_clean(hidden, stage.root, stage.site)


def may_dump() -> None:
    """In a child before it begins: as large a core dump as is allowed."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


@contextlib.contextmanager
def waiting(
    stage: Stage, command: list[str], *arguments: str, given: str
) -> Iterator[subprocess.Popen[bytes]]:
    """The command when it has read what is there of its standard input, and waits for the rest."""
    started = subprocess.Popen(
        [*command, *stage.where(), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=stage.root / "tmp",
        preexec_fn=may_dump,
    )
    with started:
        assert started.stdin
        started.stdin.write(given.encode())
        started.stdin.flush()
        deadline = time.monotonic() + 20
        while fcntl.ioctl(started.stdin, termios.FIONREAD, bytes(4)) != bytes(4):
            assert started.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        yield started
        if started.poll() is None:
            started.kill()


READING = {
    "import": ((lambda stage: ["import", "-", "--yes"]), DOTENV),
    "set": ((lambda stage: ["set", "smtp", "password"]), VALUE),
    "keys export": ((lambda stage: ["keys", "export", str(stage.root / NEW)]), PASSPHRASE),
    "keys import": (
        (lambda stage: ["keys", "import", str(stage.root / "keys.export")]),
        PASSPHRASE,
    ),
}
COMMAND = [sys.executable, "-m", "outreach_vault"]
WAITS = "import sys\nsys.stdin.read()"


def of_processes() -> Iterator[tuple[str, bytes]]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            yield f"the command line of {process.name}", (process / "cmdline").read_bytes()


def children_of(pid: int) -> list[str]:
    return [
        child
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


@linux
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGABRT, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", READING)
def test_a_command_that_has_read_a_secret_shows_it_to_nobody_and_leaves_no_trace(
    stage: Stage, name: str, end: signal.Signals
) -> None:
    arguments, given = READING[name]
    hidden = hidden_in(stage.root)
    with waiting(stage, COMMAND, *arguments(stage), given=given) as started:
        seen = [
            *of_processes(),
            ("its environment", Path(f"/proc/{started.pid}/environ").read_bytes()),
        ]
        assert any(b"outreach_vault" in data for _, data in seen) and leaks(hidden, seen) == []
        limits = Path(f"/proc/{started.pid}/limits").read_text()
        assert next(
            line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core")
        ) == ["0", "0"]
        with contextlib.suppress(FileNotFoundError):  # not every kernel lists them
            assert children_of(started.pid) == []
        started.send_signal(end)
        out, err = (
            started.stdout.read() if started.stdout else b"",
            started.stderr.read() if started.stderr else b"",
        )
        _, ended = os.waitpid(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(ended)
    assert started.returncode == (3 if end == signal.SIGINT else -end)
    assert not os.WCOREDUMP(ended)
    assert leaks(hidden, [("standard output", out), ("standard error", err)]) == []
    assert list((stage.root / "tmp").iterdir()) == [] and not (stage.root / NEW).exists()
    require_clean(hidden, stage.root, stage.site)


@linux
def test_the_core_dump_that_the_command_forbids_would_be_made_of_another_process(
    stage: Stage,
) -> None:
    """Else the test above would show nothing on this machine."""
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("this machine allows no core dump to anybody")
    with waiting(stage, [sys.executable, "-c", WAITS], given=VALUE) as started:
        started.send_signal(signal.SIGABRT)
        _, ended = os.waitpid(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(ended)
    if not os.WCOREDUMP(ended):
        pytest.skip("this machine's kernel makes no core dump")
    cores = list((stage.root / "tmp").glob("core*"))
    assert not cores or CORES["value"].encode() in cores[0].read_bytes()


ADAPTER = """
import subprocess, sys
from outreach_vault import KeyDirectory, Vault
with Vault.open(sys.argv[1], key_store=KeyDirectory(sys.argv[2])) as vault:
    found = vault.get("smtp", "password")
    assert len(found.reveal()) > 20
    show = (
        "import pathlib, sys; p = pathlib.Path('/proc/self'); files = repr([f.resolve() for f in "
        "(p / 'fd').iterdir()]); "
    )
    show += (
        "told = (p / 'environ').read_bytes() + (p / 'cmdline').read_bytes(); "
        "sys.stdout.buffer.write(told + files.encode())"
    )
    shown = subprocess.run([sys.executable, "-c", show], stdout=subprocess.PIPE, check=True)
    sys.stdout.buffer.write(shown.stdout)
"""


@linux
def test_the_children_of_an_adapter_get_nothing_with_their_environment(stage: Stage) -> None:
    hidden = hidden_in(stage.root)
    done = subprocess.run(
        [sys.executable, "-c", ADAPTER, *stage.site], capture_output=True, timeout=60, check=True
    )
    assert b"HOME=" in done.stdout
    assert leaks(hidden, [("a child", done.stdout), ("standard error", done.stderr)]) == []


def test_a_process_that_ends_at_any_step_leaves_nothing_readable(
    stage: Stage, figures: Figures
) -> None:
    site = new_site(stage.root / "stopped", stage.engine)
    with site.open() as opened:
        opened.set("smtp", "user", VALUE)

    def everything(site: Site, store: KeyStore) -> None:
        with site.open(store) as opened:
            opened.set("smtp", "password", VALUE)
            rotation.rotate(opened)
            made = export_keys(opened, site.folder / "keys.export", Secret(PASSPHRASE))
            backup(opened, site.folder / "backup.db")
            opened.set("smtp", "password", VALUE + VALUE)
            rotation.destroy(opened, made.keys[0])
            store.delete(opened.keys.vault_id, made.keys[1])
            import_keys(opened, made.path, Secret(PASSPHRASE))

    hidden: Hidden = {}
    for stopped in each_stop(
        site,
        everything,
        figures,
        "stops at a numbered step, nothing readable left in any file",
        every=6,
    ):
        hidden |= hidden_in(stopped.folder)
        require_clean(hidden, stopped.folder, stopped)
        assert [
            *(stage.root / "tmp").iterdir(),
            *(stage.root / "home").iterdir(),
        ] == []  # a key in there would be one that no key file has yet
    assert len(hidden) > len(CORES)


# --- accounts with OAuth2

Answers = Callable[[bytes], tuple[int, dict[str, Any] | bytes]]
# A token is ASCII; the client's secret and the refresh token may be any text.
LIVE = CORES["value"]


def gives(asked: bytes) -> tuple[int, dict[str, Any]]:
    return 200, {"access_token": LIVE, "refresh_token": TOKEN, "token_type": "Bearer"}


def _refuses(status: int, code: str) -> Answers:
    """With all that was asked, as one server in the world may do."""
    return lambda asked: (status, {"error": code, "error_description": f"not {asked.decode()}"})


ENDPOINTS: dict[str, tuple[str | None, Answers]] = {
    "gives": (None, gives),
    "needs a login": ("NeedsLogin", _refuses(400, "invalid_grant")),
    "refuses the client": ("ClientRefused", _refuses(401, "invalid_client")),
    "is down": ("ProviderUnreachable", lambda asked: (503, asked)),
    "gives no token": ("NoTokenGiven", lambda asked: (200, {"refresh_token": VALUE, "x": LIVE})),
    "is no such server": ("NoTokenGiven", lambda asked: (200, b"<html>" + asked)),
    "gives what cannot be stored": (
        "NoTokenGiven",
        lambda asked: (200, {"access_token": LIVE * 9999, "token_type": "Bearer"}),
    ),
}


class Endpoint(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answers: Answers) -> None:
        self.asked = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            server: Endpoint

            def do_POST(self) -> None:
                self.server.asked += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                header = self.headers["Authorization"].encode()
                status, answer = answers(body + b" " + header)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status, f"said {header.decode()}")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@contextlib.contextmanager
def granted(stage: Stage, answers: Answers) -> Iterator[Endpoint]:
    """The global mail account has a grant of this token endpoint, and no server to send from."""
    with Endpoint(answers) as endpoint:
        threading.Thread(target=endpoint.serve_forever, args=(0.01,), daemon=True).start()
        with stage.site.open() as opened:
            url = f"http://127.0.0.1:{endpoint.server_address[1]}/token"
            grant = {"oauth_client_id": "an id", "oauth_token_url": url}
            secret = {"oauth_client_secret": VALUE, "oauth_refresh_token": VALUE}
            opened.set_fields("smtp", grant | secret)
        try:
            yield endpoint
        finally:
            endpoint.shutdown()


OF_GRANTS = (
    *("check", "run", "which", "which as JSON", "list", "list as JSON", "accounts", "due"),
    *("status", "status as JSON", "doctor", "doctor, deep, as JSON", "rotate", "history"),
    *("rotate, rehearsed", "backup", "delete an account", "move", "undo", "export to a file"),
)


@pytest.mark.parametrize("answer", ENDPOINTS)
@pytest.mark.parametrize("name", OF_GRANTS)
def test_no_command_shows_or_writes_what_an_account_with_oauth2_hides(
    stage: Stage,
    run: Callable[..., Done],
    hearing: Hearing,
    name: str,
    answer: str,
) -> None:
    call, hidden = CALLS[name], hidden_in(stage.root)
    fault, answers = ENDPOINTS[answer]
    with granted(stage, answers) as endpoint:
        with stage.site.open() as opened, contextlib.suppress(errors.TokenUnavailable):
            opened.access_token("smtp")
        done = run(*call.command.split(), *call.arguments(stage), stdin=call.stdin.encode())
        assert endpoint.asked >= (2 if name == "check" else 1)
    hidden |= hidden_in(stage.root)
    said = [("standard output", done.out), ("standard error", done.err), *hearing.said()]
    assert leaks(hidden, said) == []
    assert [leak for error in done.errors for leak in leaks(hidden, shown_by(error))] == []
    require_clean(hidden, stage.root, stage.site)
    assert done.status != 1, done.err
    if name == "run":
        assert (done.status == 0) == (fault is None)


# --- the library


def _granted_token(stage: Stage, answers: Answers) -> tuple[object, ...]:
    with granted(stage, answers), stage.site.open() as opened:
        token = opened.access_token("smtp")
        opened.set("smtp", "user", "office@example.com")
        account = opened.bundle("smtp")
        return token, account, [account.sasl(each, token) for each in ("XOAUTH2", "OAUTHBEARER")]


def login_that_is_refused(stage: Stage) -> None:
    device = {"device_code": TOKEN, "user_code": "AB", "verification_uri": "https://a.b"}

    def answers(asked: bytes) -> tuple[int, dict[str, Any] | bytes]:
        refused = _refuses(400, "access_denied")(asked)
        return refused if b"grant_type" in asked else (200, device | {"interval": 1})

    with granted(stage, answers), stage.site.open() as opened:
        url = opened.get("smtp", "oauth_token_url").reveal()
        given = login.Given({}, url=url, device=True, secret=Secret(VALUE))
        planned = login.plan(opened, "smtp", None, given).answered({})
        login.login(opened, planned, show_page=print, show_device=print)


def without_oauthlib(stage: Stage) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "oauthlib.oauth2", None)
        _granted_token(stage, gives)


def calls_of_every_method(stage: Stage) -> dict[str, list[Callable[[Vault], object]]]:
    """One or more that succeed, then one or more that fail, for each public method."""
    return {
        "open": [lambda v: stage.site.open().close(), lambda v: Vault.open(stage.nowhere)],
        "get": [
            lambda v: v.get("smtp", "password", P),
            lambda v: v.get("smtp", "x"),
            lambda v: v.get("smtp", "password", "nobody"),
        ],
        "bundle": [
            lambda v: v.bundle("smtp"),
            lambda v: v.bundle("smtp", P),
            lambda v: v.bundle("twilio"),
            lambda v: v.bundle("x", "nobody"),
        ],
        "access_token": [
            lambda v: _granted_token(stage, gives),
            *(
                lambda v, answers=answers: _granted_token(stage, answers)
                for fault, answers in ENDPOINTS.values()
                if fault
            ),
            lambda v: v.access_token("twilio"),
        ],
        "has": [lambda v: v.has("smtp", "password"), lambda v: v.has("smtp", "password", "nobody")],
        "set": [
            lambda v: v.set("smtp", "password", VALUE),
            lambda v: v.set("smtp", "password", Secret(VALUE), P),
            lambda v: v.set("smtp", "password", VALUE, "nobody"),
            lambda v: v.set("smtp", "password", Secret(VALUE), "nobody"),
            lambda v: v.set("smtp\0", "password", VALUE),
            lambda v: v.set("smtp", "", Secret(VALUE)),
            lambda v: v.set("smtp", "password", VALUE, ""),
            lambda v: v.set("smtp", b"password", VALUE),  # type: ignore[arg-type]
            lambda v: v.set("smtp", "password", VALUE.encode()),  # type: ignore[arg-type]
            lambda v: v.set("smtp", "password", [VALUE]),  # type: ignore[arg-type]
            lambda v: v.set("smtp", "password", VALUE + "\ud800"),
            lambda v: v.set("smtp", "password", VALUE * 9999),
            lambda v: v.set("smtp", "password", VALUE, label="\ud800"),
        ],
        "set_fields": [
            lambda v: v.set_fields("smtp", {"password": VALUE, "user": Secret(VALUE)}),
            lambda v: v.set_fields("smtp", {"password": VALUE, "": VALUE}),
            lambda v: v.set_fields("smtp", {"password": VALUE, "user": VALUE * 9999}),
            lambda v: v.set_fields("smtp", {"password": VALUE}, "nobody"),
        ],
        "store": [
            lambda v: v.store([(place_of("smtp", "password", P), Secret(VALUE))]),
            lambda v: v.store([(place_of("smtp", "password", "nobody"), Secret(VALUE))]),
        ],
        "delete": [
            lambda v: v.delete("smtp", "password"),
            lambda v: v.delete("smtp", "password", "nobody"),
        ],
        "list": [lambda v: v.list(), lambda v: v.list(P), lambda v: v.list("nobody")],
        "which": [
            lambda v: v.which("smtp"),
            lambda v: v.which("smtp", "password", P),
            lambda v: v.which("nothing"),
        ],
        "bind_models": [lambda v: v.bind_models()],
        "close": [lambda v: v.close(), lambda v: v.get("smtp", "password")],
    }


def test_no_method_of_the_vault_shows_or_writes_what_it_hides(
    stage: Stage, hearing: Hearing, figures: Figures
) -> None:
    hidden, calls = hidden_in(stage.root), calls_of_every_method(stage)
    assert set(calls) == {
        name for name, _ in inspect.getmembers(Vault, callable) if not name.startswith("_")
    }
    found, failures = list[tuple[str, bytes]](), 0
    with stage.site.open() as opened:
        for name, several in calls.items():
            for call in several:
                try:
                    answer = call(opened)
                    found += [(f"the answer of {name}", f"{answer!r} {answer}".encode())]
                except Exception as error:
                    failures += 1
                    found += [(f"{name}: {where}", data) for where, data in shown_by(error)]
        assert failures >= 16
    # It was listening.
    assert any(b"UPDATE provider_credentials" in data for _, data in hearing.said())
    assert leaks(hidden, [*found, *hearing.said()]) == []
    require_clean(hidden, stage.root, stage.site)
    figures(
        "calls of the vault's methods, nothing hidden shown or written",
        sum(map(len, calls.values())),
    )


class Backend:
    """A keyring's backend that has a fault."""

    def __init__(self, fault: Callable[[], object]) -> None:
        self.fault = fault

    def get_password(self, service: str, account: str) -> Any:
        return self.fault()

    def set_password(self, service: str, account: str, key: str) -> None:
        self.fault()


def raising(error: Exception) -> Callable[[], object]:
    def fault() -> object:
        raise error

    return fault


def with_backend(
    stage: Stage, call: Callable[[Vault], object], fault: Callable[[], object], seconds: float = 5
) -> None:
    store = OSKeyring(seconds=seconds)
    store._backend = Backend(fault)  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch, stage.site.open(store) as opened:
        patch.setitem(os_keyring._APPROVED, f"{__name__}.Backend", "a keyring with a fault")  # type: ignore[misc]
        call(opened)


def refused_keyring(stage: Stage) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
        with stage.site.open(OSKeyring()) as opened:
            opened.set("smtp", "password", VALUE)


def in_vault(
    stage: Stage, call: Callable[[Vault], object], *statements: str, **options: Any
) -> None:
    for statement in statements:
        stage.site.change(statement)
    with Vault.open(
        stage.site.database, key_store=KeyDirectory(stage.site.keys), **options
    ) as opened:
        call(opened)


def store_value(opened: Vault) -> None:
    opened.set("smtp", "password", VALUE)


def read_value(opened: Vault) -> None:
    opened.get("smtp", "password")


def in_older_copy(stage: Stage) -> None:
    older_copy(stage)
    in_vault(stage, store_value)


def at_schema(stage: Stage, number: int, said: int | None = None) -> Any:
    """A database with the first *number* steps, which calls its schema *said*."""

    def fill(made: Any) -> None:
        for step in migrator.steps()[:number]:
            migrator.apply(made, step)
        made.set_schema_version(said or number)

    (folder := stage.root / "unfit").mkdir()
    where = prepared(folder, stage.engine).database
    locate(where).create(fill)
    return where


def twice_at_one_place(stage: Stage) -> None:
    where = at_schema(stage, 5)
    for name in ("first", "second"):
        sql(
            where,
            "INSERT INTO provider_credentials VALUES (?, NULL, 'smtp', 'user', 'v', NULL, '', '')",
            name,
        )
    migrator.migrate(where)


def while_locked(stage: Stage) -> None:
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        locked(stage, patch, stack)
        in_vault(stage, store_value)


def while_full(stage: Stage) -> None:
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        full(stage, patch, stack)
        in_vault(
            stage, lambda opened: [opened.set("smtp", f"field {n}", VALUE * 999) for n in range(9)]
        )


def of_a_copy(stage: Stage) -> None:
    in_vault(stage, lambda opened: init(stage.site.database, key_store=opened.keys.store))
    copied = restored(stage.site, stage.root / "copy")
    with Site(copied.database, stage.site.keys).open() as opened:
        rotation.rotate(opened)


def while_taken(stage: Stage) -> None:
    with operators_lock(stage.site.database):
        in_vault(stage, rotation.rotate)


def closed(stage: Stage) -> None:
    opened = stage.site.open()
    opened.close()
    store_value(opened)


def write_again(opened: Vault) -> None:
    key_id = opened.keys.states.active_id()
    opened.keys.store.write(
        opened.keys.vault_id, key_id, opened.keys.store.read(opened.keys.vault_id, key_id)
    )


def import_of(stage: Stage, name: str, passphrase: str) -> None:
    in_vault(stage, lambda opened: import_keys(opened, stage.root / name, Secret(passphrase)))


PROVOKED: dict[str, Callable[[Stage], object]] = {
    "UnusablePath": lambda stage: Vault.open("~no-such-user/samsara.db"),
    "VaultError": closed,
    "CredentialNotFound": lambda stage: in_vault(
        stage, lambda opened: opened.get("smtp", "nothing")
    ),
    "IncompleteAccount": lambda stage: in_vault(stage, lambda opened: opened.bundle("twilio")),
    "MixedAccount": lambda stage: in_vault(stage, lambda opened: opened.bundle("smtp", P)),
    "UnusableValue": lambda stage: in_vault(
        stage, lambda opened: (opened.set("smtp", "port", VALUE), opened.bundle("smtp").port)
    ),
    **{
        fault: lambda stage, answers=answers: _granted_token(stage, answers)
        for fault, answers in ENDPOINTS.values()
        if fault
    },
    "LibraryMissing": without_oauthlib,
    "LoginFailed": login_that_is_refused,
    "ProjectNotFound": lambda stage: in_vault(
        stage, lambda opened: opened.set("smtp", "password", VALUE, "nobody")
    ),
    "DamagedValue": lambda stage: in_vault(
        stage,
        read_value,
        "UPDATE provider_credentials SET encrypted_value = encrypted_value || ' '",
    ),
    "ForeignValue": lambda stage: in_vault(
        stage, read_value, "UPDATE provider_credentials SET encrypted_value = ''"
    ),
    "KeyUnavailable": lambda stage: in_vault(
        stage, lambda opened: opened.keys.promote(opened.keys.states.active_id())
    ),
    "KeyMissing": lambda stage: in_vault(
        stage, read_value, "UPDATE provider_credentials SET key_id = 'nothing'"
    ),
    "WrongKey": lambda stage: (
        wrong_keys(stage, next((stage.root / "other").rglob("*.key")).read_text()),
        in_vault(stage, store_value),
    ),
    "KeyExists": lambda stage: in_vault(stage, write_again),
    "KeySuperseded": in_older_copy,
    "BadKeyFile": lambda stage: import_of(stage, "keys.export", WRONG),
    "KeyStoreUnavailable": lambda stage: (
        stage.site.keys.chmod(0o755),
        in_vault(stage, store_value),
    ),
    "KeyringRefused": refused_keyring,
    "KeyringLocked": lambda stage: with_backend(
        stage, store_value, raising(BackendLocked("locked"))
    ),
    "KeyringTimedOut": lambda stage: with_backend(
        stage, store_value, lambda: time.sleep(0.3), seconds=0.05
    ),
    "KeyInUse": lambda stage: in_vault(
        stage, lambda opened: rotation.destroy(opened, opened.keys.states.active_id())
    ),
    "DatabaseNotFound": lambda stage: Vault.open(
        stage.nowhere, key_store=KeyDirectory(stage.site.keys)
    ),
    "NotADatabase": lambda stage: Vault.open(
        stage.root / "text.export", key_store=KeyDirectory(stage.site.keys)
    ),
    "SchemaOutdated": lambda stage: Vault.open(
        at_schema(stage, 4), key_store=KeyDirectory(stage.site.keys)
    ),
    "SchemaMismatch": lambda stage: Vault.open(
        at_schema(stage, 4, said=10), key_store=KeyDirectory(stage.site.keys)
    ),
    "DuplicateCredentials": twice_at_one_place,
    "StorageError": lambda stage: in_vault(
        stage, lambda opened: export_keys(opened, stage.root / "text.export", Secret(PASSPHRASE))
    ),
    "DatabaseBusy": while_locked,
    "OperationRunning": while_taken,
    "DatabaseFull": while_full,
    "DatabaseReadOnly": lambda stage: in_vault(stage, store_value, read_only=True),
    "SharedKeys": of_a_copy,
    "KeyNotAcknowledged": lambda stage: in_vault(
        stage, lambda opened: (staging.stage(opened), rotation.rotate(opened))
    ),
    "HostNotFound": lambda stage: in_vault(
        stage, lambda opened: staging.remove(opened, "no-such-host")
    ),
    "CannotStart": lambda stage: in_vault(
        stage, lambda opened: launch.launch(["no-such-program"], launch.environment(opened, None))
    ),
}
FAMILIES = {  # each is a name for several causes, and nothing is raised as just that
    "NotFound": "one of credentials, of projects or of hosts",
    "UnreadableValue": "a damaged or a foreign one",
    "TokenUnavailable": "what the provider said is one of its kinds",
    "SchemaError": "what fits is one of its kinds",
}
# More ways to an error that was provoked above, each with secrets in hand.
ALSO: dict[str, tuple[str, Callable[[Stage], object]]] = {
    "an export of another vault": (
        "BadKeyFile",
        lambda stage: import_of(stage, "other.export", PASSPHRASE),
    ),
    "a cut export": ("BadKeyFile", lambda stage: import_of(stage, "cut.export", PASSPHRASE)),
    "a file that is no export": (
        "BadKeyFile",
        lambda stage: import_of(stage, "text.export", PASSPHRASE),
    ),
    "an export whose key is not the listed one": (
        "WrongKey",
        lambda stage: in_vault(
            stage,
            lambda opened: import_keys(opened, stage.root / "keys.export", Secret(PASSPHRASE)),
            "UPDATE vault_keys SET check_value = (SELECT max(check_value) FROM vault_keys)",
        ),
    ),
    "an export, and another entry in the key store": (
        "KeyExists",
        lambda stage: (
            wrong_keys(stage, next((stage.root / "other").rglob("*.key")).read_text()),
            import_of(stage, "keys.export", PASSPHRASE),
        ),
    ),
    "an export, and no folder for the keys": (
        "KeyStoreUnavailable",
        lambda stage: (stage.site.keys.chmod(0o755), import_of(stage, "keys.export", PASSPHRASE)),
    ),
    "an export without the active key": (
        "KeyMissing",
        lambda stage: (
            [path.unlink() for path in stage.site.keys.glob("*.key")],
            in_vault(
                stage, lambda opened: export_keys(opened, stage.root / NEW, Secret(PASSPHRASE))
            ),
        ),
    ),
    "a moved token": (
        "DamagedValue",
        lambda stage: in_vault(
            stage,
            lambda opened: opened.get("moved", "password"),
            "UPDATE provider_credentials SET provider = 'moved' WHERE project_id IS NULL AND "
            "provider = 'smtp'",
        ),
    ),
    "a new key, and a keyring that fails": (
        "KeyStoreUnavailable",
        lambda stage: with_backend(
            stage,
            lambda opened: opened.keys.create(),
            raising(RuntimeError("no answer")),
            seconds=0.2,
        ),
    ),
}


def test_every_error_class_is_provoked_or_is_the_name_of_a_family() -> None:
    family = {
        name
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, errors.VaultError)
    }
    by_servers = {name.partition(":")[0] for name in BY_SERVERS}
    assert {*PROVOKED, *by_servers, *FAMILIES} == family and not set(PROVOKED) & set(FAMILIES)


@pytest.mark.parametrize("name", cases([*PROVOKED, *ALSO]))
def test_no_error_holds_what_was_to_be_hidden(
    stage: Stage, hearing: Hearing, name: str, figures: Figures
) -> None:
    expected, provoke = ALSO[name] if name in ALSO else (name, PROVOKED[name])
    hidden = hidden_in(stage.root)
    with pytest.raises(errors.VaultError) as caught:
        provoke(stage)
    assert type(caught.value).__name__ == expected, caught.value
    assert any(where.startswith("the names in") for where, _ in shown_by(caught.value))
    hidden |= hidden_in(stage.root)
    assert leaks(hidden, [*shown_by(caught.value), *hearing.said()]) == []
    require_clean(hidden, stage.root, stage.site)
    figures("provoked errors, nothing hidden in their chains, facts and frames", 1)


# --- the password of a database on a server

URL_PASSWORD = f"{secrets.token_hex(16)}é\"' "
ROLE = "with_a_password"


@pytest.fixture(scope="module")
def role(postgres_18: Postgres) -> Postgres:
    """A server with a role that has the password."""
    postgres_18.sql("postgres", f"CREATE ROLE {ROLE} LOGIN PASSWORD {literal(URL_PASSWORD)}")
    return postgres_18


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def url_of(server: Postgres, name: str, *, end: str = "", port: int | None = None) -> str:
    url = server.tcp_url(name, ROLE, URL_PASSWORD) + end
    return url if port is None else url.replace(f":{server.port}/", f":{port}/")


@pytest.fixture
def served(
    role: Postgres, small_stretching: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Stage:
    """As `stage`, on a server, by a URL with the password."""
    root, name = tmp_path / "root", f"leaks_{tmp_path.name}"[:60]
    role.create(name)
    role.sql(name, f'ALTER DATABASE "{name}" OWNER TO {ROLE}')
    role.sql(name, f"ALTER SCHEMA public OWNER TO {ROLE}")
    site = Site(url_of(role, name), root / "site" / "keys")
    (root / "site").mkdir(parents=True)
    init(site.database, key_store=KeyDirectory(site.keys))
    made = furnish(root, site)
    monkeypatch.setenv("OUTREACH_VAULT_DB", site.database)
    return made


PASSWORD_FORMS = {"password": forms(URL_PASSWORD[:32].encode())}


@pytest.mark.peer
def test_no_command_shows_the_password_of_a_url(
    served: Stage, hearing: Hearing, capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "execve", lambda program, arguments, environment: None)
    monkeypatch.setattr(
        "outreach_vault.operations.launch.signal.signal", lambda number, handler: None
    )
    monkeypatch.setenv("GIVEN", VALUE)
    statuses = list[int]()
    server = served.site.engine
    assert server
    wrong = served.site.database.replace(f"{ROLE}:", f"{APP}:")
    nowhere = url_of(server, "nowhere")
    for url in (served.site.database, wrong, nowhere, url_of(server, "any", port=1)):
        for name, call in CALLS.items():
            if "destroy" in name or (url != served.site.database and call.command == "completion"):
                continue
            arguments = [*served.where(), *call.command.split(), *call.arguments(served)]
            monkeypatch.setenv("OUTREACH_VAULT_DB", url)
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(call.stdin.encode())))
            statuses.append(cli.run(arguments))
            out, err = capsysbinary.readouterr()
            said = [("standard output", out), ("standard error", err)]
            assert leaks(PASSWORD_FORMS, [*said, *hearing.said()]) == [], name
            assert statuses[-1] != 1, (name, err)
            hearing.clear()
    assert statuses.count(0) > 30 and statuses.count(14) > 30 and statuses.count(15) > 60
    require_no_file_has(PASSWORD_FORMS, served.root)
    assert leaks(PASSWORD_FORMS, rows_of(served.site)) == []


def require_no_file_has(hidden: Hidden, folder: Path) -> None:
    assert [leak for each in files_of(folder, but="") for leak in leaks(hidden, [each])] == []


def _lost_at_the_commit(served: Stage) -> None:
    ends = "RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    ends += " PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
    sql(served.site.database, f"CREATE FUNCTION ends() {ends}")
    made = "CREATE CONSTRAINT TRIGGER ends AFTER UPDATE ON provider_credentials DEFERRABLE"
    sql(served.site.database, f"{made} INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ends()")
    in_vault(served, store_value)


def _refused_rights(served: Stage) -> None:
    with served.site.open() as opened:
        assert served.site.engine
        name = name_of(served.site.database)
        served.site.engine.sql(name, f"ALTER TABLE provider_credentials OWNER TO {APP}")
        store_value(opened)


def _lost(served: Stage) -> None:
    with served.site.open() as opened:

        def lose() -> None:
            ((pid,),) = opened.database.fetch("SELECT pg_backend_pid()")
            assert served.site.engine
            served.site.engine.sql("postgres", "SELECT pg_terminate_backend(?, 10000)", pid)
            store_value(opened)

        opened.database.write(lose)


def _busy(served: Stage) -> None:
    url = f"{served.site.database}?options=-clock_timeout%3D20ms"
    with another(served.site.database) as other, Site(url, served.site.keys).open() as opened:
        other.begin()
        other.execute("LOCK TABLE provider_credentials")
        store_value(opened)


def _at(served: Stage, url: str) -> None:
    Site(url, served.site.keys).open()


def _server_of(served: Stage) -> Postgres:
    assert served.site.engine
    return served.site.engine


BY_SERVERS: dict[str, Callable[[Stage], object]] = {
    "DatabaseRefused": lambda s: _at(s, s.site.database.replace(f"{ROLE}:", f"{APP}:")),
    "DatabaseRefused: a right": _refused_rights,
    "DatabaseUnreachable": lambda s: _at(s, url_of(_server_of(s), "any", port=1)),
    "DatabaseUnreachable: lost": _lost,
    "DatabaseUnreachable: init": lambda s: init(
        url_of(_server_of(s), "any", port=1), key_store=KeyDirectory(s.site.keys)
    ),
    "DatabaseUnreachable: doctor": lambda s: examine(url_of(_server_of(s), "any", port=1)),
    "DatabaseUnreachable: migrate": lambda s: migrator.migrate(
        url_of(_server_of(s), "any", port=1)
    ),
    "DatabaseNotFound: a server's": lambda s: _at(s, url_of(_server_of(s), "nowhere")),
    "OutcomeUnknown": _lost_at_the_commit,
    "DatabaseBusy: a server's": _busy,
    "DatabaseReadOnly: a server's": lambda s: in_vault(s, store_value, read_only=True),
    "OperationRunning: a server's": while_taken,
    "NotADatabase: no schema": lambda s: _at(
        s, f"{s.site.database}?options=-csearch_path%3Dmissing"
    ),
    "UnusablePath: no URL": lambda s: _at(s, s.site.database.replace("127.0.0.1", "[::1")),
    "UnusablePath: no option": lambda s: _at(s, f"{s.site.database}?{URL_PASSWORD[:32]}=1"),
    "UnusablePath: a line end": lambda s: _at(s, f"{s.site.database}\n"),
    "VaultError: closed": closed,
}


@pytest.mark.peer
@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", BY_SERVERS)
def test_no_error_holds_the_password_of_a_url(served: Stage, hearing: Hearing, name: str) -> None:
    with pytest.raises(errors.VaultError) as caught:
        BY_SERVERS[name](served)
    assert type(caught.value).__name__ == name.partition(":")[0], caught.value
    said = [*shown_by(caught.value), *hearing.said()]
    assert leaks(PASSWORD_FORMS, said) == []
    hidden = hidden_in(served.root)
    assert leaks(hidden, said) == []


SPREADS: dict[str, Callable[[Any], object]] = {
    "repr": repr,
    "str": str,
    "format": format,
    "f-string": lambda thing: f"{thing!r:>200} {thing}",
    "json": json.dumps,
    "json of its repr": lambda thing: json.dumps(thing, default=repr),
    "vars": lambda thing: vars(thing),
    "asdict": lambda thing: dataclasses.asdict(thing),
    "astuple": lambda thing: dataclasses.astuple(thing),
    "_asdict": lambda thing: thing._asdict(),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "list": list,
    "public names": lambda thing: {
        name: repr(getattr(thing, name, None)) for name in dir(thing) if name[0] != "_"
    },
    **{
        f"pickle {protocol}": lambda thing, protocol=protocol: pickle.dumps(thing, protocol)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


def test_no_object_of_ours_gives_away_what_it_hides(stage: Stage, figures: Figures) -> None:
    hidden, found, refused = hidden_in(stage.root), list[tuple[str, bytes]](), dict[str, set[str]]()
    with stage.site.open() as opened:
        key_id = opened.keys.states.active_id()
        credential = opened.get("smtp", "password")
        things = [
            *_granted_token(stage, gives),
            credential,
            credential.secret,
            opened.list()[0],
            opened.list(),
            opened.keys.cipher(key_id),
            opened.keys,
            opened,
            opened.keys.store,
            locate(f"postgresql://app:{quote(PASSPHRASE)}@localhost/app"),
        ]
        things += [
            status(opened),
            rotation.rehearse(opened),
            opened.keys.states.records(),
            opened.database,
            rotation.rotate(opened),
        ]
        things += [
            backup(opened, stage.root / "b.db"),
            export_keys(opened, stage.root / "e", Secret(PASSPHRASE)),
        ]
        things += [
            import_keys(opened, stage.root / "e", Secret(PASSPHRASE)),
            examine(stage.site.database, key_store=opened.keys.store, deep=True),
        ]
        things += [opened.keys.store.read(opened.keys.vault_id, key_id), cipher.generate_key()]
        for thing in things:
            name = type(thing).__name__
            for way, spread in SPREADS.items():
                try:
                    answer = spread(thing)
                except Exception as error:
                    refused.setdefault(name, set()).add(way)
                    found += [
                        (f"{way} of {name}: {where}", data) for where, data in shown_by(error)
                    ]
                else:
                    found.append(
                        (
                            f"{way} of {name}",
                            answer
                            if isinstance(answer, bytes)
                            else f"{answer!r} {answer}".encode(),
                        )
                    )
    hidden |= hidden_in(stage.root)
    assert leaks(hidden, found) == []
    for name in ("Credential", "Secret", "Cipher", "KeySet", "Vault"):
        assert {
            "json",
            "deepcopy",
            *(way for way in SPREADS if way.startswith("pickle")),
        } <= refused[name]
    assert (
        refused["Secret"] >= {"format", "copy", "vars", "asdict", "list"}
        and {"copy", "vars"} <= refused["Cipher"]
    )
    figures("ways to spread an object, nothing hidden in what came", len(things) * len(SPREADS))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [("same", "same", True), ("same", "sane", False), ("a", "longer", False), ("é", "e", False)],
)
def test_secrets_are_compared_in_constant_time(
    monkeypatch: pytest.MonkeyPatch, one: str, other: str, equal: bool
) -> None:
    compared, digest = list[tuple[bytes, bytes]](), hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return digest(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    assert (Secret(one) == Secret(other)) is equal and (Secret(one) != Secret(other)) is not equal
    assert compared == [(one.encode(), other.encode())] * 2  # the whole of both, whatever they are
