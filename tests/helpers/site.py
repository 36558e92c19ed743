"""A vault with its keys in a folder of their own, as the tests and other programs see it."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.fernet import Fernet

from helpers import rotation_peers
from helpers.rotation_peers import Values
from outreach_vault import KeyDirectory, Vault
from outreach_vault.keys.stores import KeyStore
from outreach_vault.operations.init import init

COMMAND = [sys.executable, "-m", "outreach_vault"]
Row = dict[str, Any]
Figures = Callable[[str, int], None]


class Site(NamedTuple):
    """A database and the keys that belong to it."""

    database: Path
    keys: Path

    @classmethod
    def of(cls, folder: Path) -> Site:
        """The names that a vault of these tests has in its folder."""
        return cls(folder / "samsara.db", folder / "keys")

    @property
    def folder(self) -> Path:
        return self.database.parent

    def open(self, key_store: KeyStore | None = None) -> Vault:
        return Vault.open(self.database, key_store=key_store or KeyDirectory(self.keys))

    def copy(self, folder: Path) -> Site:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Site(folder / self.database.name, folder / self.keys.name)

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


Rotated = tuple[Site, Values, str, str]


def new_site(folder: Path) -> Site:
    """A new vault without values, in a folder that must not be there yet."""
    folder.mkdir()
    made = Site.of(folder)
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


def sql(path: Path, statement: str, *params: object) -> list[Any]:
    """What another program does: its own connection."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement, params).fetchall()


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


def dump(path: Path, without: tuple[str, ...] = ()) -> dict[str, list[Row]]:
    """Every row of every table, with its number, less some columns."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        tables = [
            row[0]
            for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        return {
            table: [
                {name: row[name] for name in row.keys() if name not in without}  # noqa: SIM118  # a Row iterates over values
                for row in connection.execute(f"SELECT rowid AS number, * FROM {table}")
            ]
            for table in tables
        }
