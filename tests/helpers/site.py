"""A vault with its keys in a folder of their own, as the tests and other programs see it."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from cryptography.fernet import Fernet

from helpers import rotation_peers
from helpers.postgres import Postgres, psycopg, translated
from helpers.rotation_peers import Values
from outreach_vault import KeyDirectory, Vault
from outreach_vault.database import open_database
from outreach_vault.keys.stores import KeyStore
from outreach_vault.operations.init import init
from outreach_vault.operations.recovery import backup

COMMAND = [sys.executable, "-m", "outreach_vault"]
Row = dict[str, Any]
Figures = Callable[[str, int], None]


# Of a test: a server of PostgreSQL; None is SQLite.
Engine = Postgres | None


class Site(NamedTuple):
    """
    A database and the keys that belong to it.

    Attributes:
        database: what the package is given, a path or the URL of a database on a server.
    """

    database: Any
    keys: Path

    @classmethod
    def of(cls, folder: Path, engine: Engine = None) -> Site:
        """The names that a vault of these tests has in its folder, or for it on a server."""
        if engine is None:
            return cls(folder / "samsara.db", folder / "keys")
        name = f"vault_{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
        return cls(engine.url(name), folder / "keys")

    @property
    def folder(self) -> Path:
        return self.keys.parent if is_url(self.database) else self.database.parent

    @property
    def engine(self) -> Engine:
        return server_of(self.database)

    def open(self, key_store: KeyStore | None = None) -> Vault:
        return Vault.open(self.database, key_store=key_store or KeyDirectory(self.keys))

    def copy(self, folder: Path) -> Site:
        """A copy of all that is in its folder, and on a server of its database."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        if self.engine is None:
            return Site(folder / self.database.name, folder / self.keys.name)
        made = Site(Site.of(folder, self.engine).database, folder / self.keys.name)
        self.engine.create(name_of(made.database), name_of(self.database))
        return made

    def remove(self) -> None:
        """The end of a test does that too; for one that makes many."""
        if self.engine:
            self.engine.drop(name_of(self.database))
        shutil.rmtree(self.folder)

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
        found = records(self.database, "SELECT * FROM provider_credentials")
        return {row["id"]: row for row in found}

    def states(self) -> dict[str, str]:
        return dict(sql(self.database, "SELECT id, state FROM vault_keys"))

    def active(self) -> str:
        (active,) = [key_id for key_id, state in self.states().items() if state == "active"]
        return active

    def fernet(self, key_id: str) -> Fernet:
        """The key from its file, without the package: the emergency exit."""
        (file,) = self.keys.glob(f"*.{key_id}.key")
        return Fernet(file.read_text())

    def change(self, sql: str, *params: object) -> None:
        """What another program does."""
        with another(self.database) as connection:
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
        require_sound(self.database)

    def require_one_key(self) -> None:
        """No row is on another key than the active one, and no key is left between two states."""
        assert {row["key_id"] for row in self.rows().values()} <= {self.active()}
        assert "pending" not in self.states().values()


Rotated = tuple[Site, Values, str, str]


def new_site(folder: Path, engine: Engine = None) -> Site:
    """A new vault without values, in a folder that must not be there yet."""
    folder.mkdir()
    made = prepared(folder, engine)
    init(made.database, key_store=KeyDirectory(made.keys))
    return made


def prepared(folder: Path, engine: Engine = None) -> Site:
    """Where a vault can be made: what must be there already is, an empty database on a server."""
    made = Site.of(folder, engine)
    if engine:
        engine.create(name_of(made.database))
    return made


def kept(site: Site, path: Path) -> Path:
    """A backup; of a database on a server, by the command that the vault names for it."""
    with site.open() as vault:
        if (command := vault.database.backup_command(path)) is None:
            return backup(vault, path).path
    assert site.engine
    program, *arguments = shlex.split(command)
    subprocess.run([site.engine.programs / program, *arguments], check=True)
    return path


def restored(site: Site, folder: Path, database: Path | None = None) -> Site:
    """A new machine: a copy of the database alone, or what was kept of it."""
    folder.mkdir(mode=0o700)
    if site.engine is None:
        shutil.copyfile(database or site.database, folder / site.database.name)
        return Site(folder / site.database.name, folder / "keys")
    if database:
        new = prepared(folder, site.engine)
        program = site.engine.programs / "pg_restore"
        subprocess.run([program, f"--dbname={new.database}", database], check=True)
        return new
    new = Site.of(folder, site.engine)
    site.engine.create(name_of(new.database), name_of(site.database))
    return new


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
def operators_lock(database: Any) -> Iterator[None]:
    """
    What keeps other commands from changing the keys or the schema; for a file, taken past the
    package.
    """
    if is_url(database):
        with contextlib.closing(_Turn(database)):
            yield
        return
    beside = database.resolve().with_name(f"{database.resolve().name}.vault-lock")
    with open(os.open(beside, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


class _Turn:
    """Another program's turn with a database on a server."""

    def __init__(self, url: str) -> None:
        self._database, self._end = open_database(url), threading.Event()
        taken = threading.Event()

        def turn() -> None:
            taken.set()
            self._end.wait()

        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(self._database.operators_turn, turn)
        while not taken.wait(0.01):
            if self._done.done():
                self.close()

    def close(self) -> None:
        self._end.set()
        self._pool.shutdown()
        self._database.close_all()
        self._done.result()


@contextlib.contextmanager
def nothing_left_open() -> Iterator[None]:
    """
    What is done inside closes what it opens, and does not leave it to the collector: a connection
    is in a cycle.
    """
    gc.disable()
    try:
        before = len(os.listdir("/dev/fd"))
        yield
        assert len(os.listdir("/dev/fd")) == before
    finally:
        gc.enable()


def bytes_of(path: Path) -> bytes:
    """
    From another process: closing a file of SQLite's here would drop the locks that it holds on it.
    """
    return (
        subprocess.run(["cat", str(path)], stdout=subprocess.PIPE, check=True).stdout
        if path.exists()
        else b""
    )


def server_of(database: object) -> Engine:
    """The server of a URL; None for what SQLite opens."""
    return Postgres.of(database) if is_url(database) else None


def is_url(database: object) -> bool:
    return isinstance(database, str) and database.startswith("postgresql://")


def name_of(url: str) -> str:
    """Of the database, on its server."""
    return unquote(urlsplit(url).path[1:])


class Connection(NamedTuple):
    """
    What another program has. Parameters are `?`; each statement is a transaction of its own unless
    it is between BEGIN and COMMIT.
    """

    real: Any

    def execute(self, statement: str, params: Sequence[object] = ()) -> Any:
        """A cursor, of sqlite3 or of psycopg."""
        if isinstance(self.real, sqlite3.Connection):
            return self.real.execute(statement, params)
        return self.real.execute(translated(statement) if params else statement, params or None)

    def begin(self) -> None:
        """A transaction; in SQLite no other can write until it ends."""
        sqlite = isinstance(self.real, sqlite3.Connection)
        self.execute("BEGIN IMMEDIATE" if sqlite else "BEGIN")


@contextlib.contextmanager
def another(database: Any, **options: Any) -> Iterator[Connection]:
    """
    The connection of another program.

    Args:
        options: of sqlite3 or of psycopg.
    """
    with contextlib.closing(
        psycopg.connect(database, autocommit=True, **options)
        if is_url(database)
        else sqlite3.connect(database, isolation_level=None, **options)
    ) as connection:
        yield Connection(connection)


def sql(database: Any, statement: str, *params: object) -> list[Any]:
    """What another program does: its own connection."""
    with another(database) as connection:
        done = connection.execute(statement, params)
        return done.fetchall() if done.description else []


def records(database: Any, statement: str, *params: object) -> list[Row]:
    """The same, by the columns' names."""
    with another(database) as connection:
        done = connection.execute(statement, params)
        if not done.description:
            return []
        names = [column[0] for column in done.description]
        return [dict(zip(names, row, strict=True)) for row in done]


def tables_of(database: Any) -> list[str]:
    found = sql(
        database,
        "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1"
        if is_url(database)
        else "SELECT name FROM sqlite_master WHERE type = 'table'",
    )
    return [name for (name,) in found]


def is_made(database: Any) -> bool:
    """Whether anything is in the place for a vault."""
    return bool(tables_of(database)) if is_url(database) else bool(database.exists())


def require_sound(database: Any) -> None:
    """Nothing in the database is damaged. A server's tests damage none."""
    if not is_url(database):
        assert sql(database, "PRAGMA integrity_check") == [("ok",)]


def refusals() -> tuple[type[Exception], ...]:
    """What another program's write gets that the schema does not allow."""
    server = () if psycopg is None else (psycopg.IntegrityError, psycopg.errors.RaiseException)
    return (sqlite3.IntegrityError, *server)


def entries(site: Site) -> dict[str, str]:
    """Each file of the key directory."""
    return (
        {file.name: file.read_text() for file in site.keys.iterdir() if file.is_file()}
        if site.keys.exists()
        else {}
    )


def everything(site: Site) -> list[Any]:
    """All that the vault keeps: its rows and its files."""
    return [
        sql(site.database, f"SELECT * FROM {table} ORDER BY 1")
        for table in ("vault_keys", "vault_meta", "provider_credentials")
    ] + [entries(site)]


def marks(site: Site) -> dict[str, str]:
    """For each key that has one, the key that the key directory calls its successor."""
    return {
        name.split(".")[1]: text
        for name, text in entries(site).items()
        if name.endswith(".successor")
    }


def dump(database: Any, without: tuple[str, ...] = ()) -> dict[str, list[Row]]:
    """Every row of every table, less some columns; in SQLite with its number."""
    number = "" if is_url(database) else "rowid AS number, "

    def rows(table: str) -> list[Row]:
        found = records(database, f"SELECT {number}* FROM {table}")
        less = [{name: row[name] for name in row if name not in without} for row in found]
        return sorted(less, key=repr)  # a server moves a row that is changed

    return {table: rows(table) for table in tables_of(database)}
