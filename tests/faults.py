"""
Faults for tests: a vault with its keys in a folder of its own, and children that end dead at a
numbered step.

A step is whatever changes something that outlives the process: a statement or a commit of SQLite, a
call of the key store, a change of a file or a folder. A stop at a step comes before its act, so it
is also the stop after the act before. What was only read is no step: a stop there is the same as
one at the next change.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import inspect
import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import rotation_peers
from cryptography.fernet import Fernet
from rotation_peers import Values

from outreach_vault import KeyDirectory, Vault
from outreach_vault.database.sqlite.connections import PRAGMAS, _Connection
from outreach_vault.keys.stores import KeyStore
from outreach_vault.vault import init

STOPPED = 9
READS = ("SELECT", "PRAGMA foreign_key_check")
# Settings of one connection, which end with it.
SETTINGS = (
    "PRAGMA query_only = ",
    "PRAGMA busy_timeout = ",
    *(f"PRAGMA {each[:-1]}" for each in PRAGMAS),
)
FILE_CHANGES = frozenset(
    {"os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}
)
CREATES_OR_WRITES = os.O_CREAT | os.O_WRONLY | os.O_RDWR
Row = dict[str, Any]
Figures = Callable[[str, int], None]


class Site(NamedTuple):
    """A database and the keys that belong to it."""

    database: Path
    keys: Path

    def open(self, key_store: KeyStore | None = None) -> Vault:
        return Vault.open(self.database, key_store=key_store or KeyDirectory(self.keys))

    def copy(self, folder: Path) -> Site:
        shutil.copytree(self.database.parent, folder)
        return Site(folder / self.database.name, folder / self.keys.name)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        where = ("--db", str(self.database), "--key-dir", str(self.keys))
        return subprocess.run(
            [sys.executable, "-m", "outreach_vault", *where, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )

    def peer(self, role: str, *arguments: str) -> subprocess.Popen[str]:
        script = [
            sys.executable,
            rotation_peers.__file__,
            role,
            str(self.database),
            str(self.keys),
            *arguments,
        ]
        return subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def rows(self) -> dict[str, Row]:
        """Every row as it is stored, by id; read past the package."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            connection.row_factory = sqlite3.Row
            return {
                row["id"]: dict(row)
                for row in connection.execute("SELECT * FROM provider_credentials")
            }

    def states(self) -> dict[str, str]:
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            return dict(connection.execute("SELECT id, state FROM vault_keys"))

    def active(self) -> str:
        (active,) = [key_id for key_id, state in self.states().items() if state == "active"]
        return active

    def fernet(self, key_id: str) -> Fernet:
        """The key from its file, without the package: the emergency exit."""
        (file,) = self.keys.glob(f"*.{key_id}.key")
        return Fernet(file.read_text())

    def change(self, sql: str, *params: object) -> None:
        """What another program does."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection, connection:
            assert connection.execute(sql, params).rowcount

    def require_intact(self, expected: Values) -> None:
        """Every value opens in a vault that was opened just now, and there are no others."""
        with self.open() as vault:
            found = {
                (e.project_id, e.provider, e.credential_type): vault.get(
                    e.provider, e.credential_type, e.project_id, fallback=False
                ).reveal()
                for e in vault.list()
            }
            assert found == expected
            assert vault.database.fetch("PRAGMA integrity_check") == [("ok",)]

    def require_one_key(self) -> None:
        """No row is on another key than the active one, and no key is left between two states."""
        assert {row["key_id"] for row in self.rows().values()} <= {self.active()}
        assert "pending" not in self.states().values()


def new_site(folder: Path) -> Site:
    """A new vault without values, in a folder that must not be there yet."""
    folder.mkdir()
    made = Site(folder / "app.db", folder / "keys")
    init(made.database, key_store=KeyDirectory(made.keys))
    return made


@contextlib.contextmanager
def writing(site: Site, log: Path, places: int) -> Iterator[subprocess.Popen[str]]:
    """
    Beside what is done inside, a process makes changes, and notes them in *log*; it must end well.
    """
    with site.peer("write", str(log), str(places)) as writer:
        assert writer.stdin
        try:
            yield writer
            writer.stdin.close()
            assert writer.wait(20) == 0
        finally:
            writer.kill()


@contextlib.contextmanager
def standing_still(writer: subprocess.Popen[str]) -> Iterator[None]:
    assert writer.stdin and writer.stdout
    print(file=writer.stdin, flush=True)
    assert writer.stdout.readline() == "still\n"
    yield
    print(file=writer.stdin, flush=True)


@contextlib.contextmanager
def operators_lock(database: Path) -> Iterator[None]:
    """What keeps other commands from changing the keys or the schema, taken past the package."""
    beside = database.resolve().with_name(f"{database.resolve().name}.vault-lock")
    with open(os.open(beside, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def forked(action: Callable[[], object]) -> int:
    """The pid of a child that does *action*, and ends with 0 if it came to its end."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class NumberedStore(KeyDirectory):
    """A key directory; each call about a key is two events, one before and one after it."""

    event: Callable[[], None]


def _two_events(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(store: NumberedStore, *args: Any, **options: Any) -> Any:
        store.event()
        found = method(store, *args, **options)
        store.event()
        return found

    return call


def _about_a_key(name: str, method: object) -> bool:
    if name.startswith("_") or not inspect.isfunction(method):
        return False
    return list(inspect.signature(method).parameters)[1:3] == ["vault_id", "key_id"]


# By their arguments and not by a list of names: a call that is added to the key directory is
# numbered at once.
STORE_CALLS = tuple(
    sorted(name for name, method in vars(KeyDirectory).items() if _about_a_key(name, method))
)
assert {"read", "write", "delete"} <= set(STORE_CALLS)
for _name in STORE_CALLS:
    setattr(NumberedStore, _name, _two_events(getattr(KeyDirectory, _name)))


def file_changes(folder: Path, event: Callable[[], None]) -> Callable[[str, tuple[Any, ...]], None]:
    """
    An audit hook: *event* before each change of a file or folder in *folder*, made by Python.

    SQLite opens and writes its files itself and is not seen here; its statements are numbered
    instead. A hook cannot be taken out of a process again, so it belongs into a child.
    """
    inside = (str(folder), str(folder) + os.sep)

    def within(path: object) -> bool:
        if not isinstance(
            path, (str, bytes, os.PathLike)
        ):  # a descriptor: what it is of was opened before
            return False
        name = os.path.abspath(os.fsdecode(path))
        return (name == inside[0] or name.startswith(inside[1])) and not name.endswith(".pyc")

    def hook(name: str, args: tuple[Any, ...]) -> None:
        if name == "open":
            path, mode, flags = args
            if (flags & CREATES_OR_WRITES or set(mode or "") & set("wax+")) and within(path):
                event()
        elif name in FILE_CHANGES and any(map(within, args[:2])):
            event()

    return hook


def file_of(connection: sqlite3.Connection) -> str:
    """The path of a connection's database; empty for one in memory."""
    ((_, _, path), *_) = sqlite3.Connection.execute(connection, "PRAGMA database_list")
    return str(path)


def stopped_at(step: int, action: Callable[[KeyStore], object], keys: Path) -> bool:
    """
    Do *action* in a child that ends dead at its event number *step*; False where it has not so
    many.
    """
    events = itertools.count(1)

    def event() -> None:
        if next(events) == step:
            os._exit(STOPPED)

    def changes_nothing(connection: _Connection, sql: str) -> bool:
        """A stop at the next event is the same."""
        return sql.lstrip().startswith(READS + SETTINGS) or not file_of(connection)

    def execute(connection: _Connection, sql: str, *params: Any) -> sqlite3.Cursor:
        if changes_nothing(connection, sql):
            return sqlite3.Connection.execute(connection, sql, *params)
        event()
        done = sqlite3.Connection.execute(connection, sql, *params)
        if sql == "COMMIT":
            event()
        return done

    def executemany(connection: _Connection, sql: str, rows: Iterable[Any]) -> sqlite3.Cursor:
        def numbered() -> Iterator[Any]:
            for row in rows:
                event()
                yield row

        return sqlite3.Connection.executemany(
            connection, sql, rows if changes_nothing(connection, sql) else numbered()
        )

    def child() -> None:
        # The child ends with them.
        _Connection.execute = execute  # type: ignore[method-assign,assignment]
        _Connection.executemany = executemany  # type: ignore[method-assign,assignment]
        sys.addaudithook(file_changes(keys.parent, event))
        store = NumberedStore(keys)
        store.event = event
        action(store)

    _, status = os.waitpid(forked(child), 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, STOPPED)
    return code == STOPPED


def each_stop(
    template: Site,
    action: Callable[[Site, KeyStore], object],
    figures: Figures | None = None,
    name: str = "stops at a numbered step",
) -> Iterator[Site]:
    """
    A copy of *template* for each numbered step of *action*, in which it was stopped there.

    Their number goes to *figures* under *name* when the last has been looked at, so none is counted
    that failed.
    """
    for step in itertools.count(1):
        site = template.copy(
            template.database.parent.with_name(f"{template.database.parent.name}-step-{step}")
        )
        if not stopped_at(step, lambda store, site=site: action(site, store), site.keys):  # type: ignore[misc]
            assert step > 8
            if figures:
                figures(name, step - 1)
            return
        yield site
        shutil.rmtree(site.database.parent)


def bytes_of(path: Path) -> bytes:
    """
    From another process: closing a file of SQLite's here would drop the locks that it holds on it.
    """
    return (
        subprocess.run(["cat", str(path)], stdout=subprocess.PIPE, check=True).stdout
        if path.exists()
        else b""
    )
