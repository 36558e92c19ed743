"""
The database file: finding it, opening it, transactions, backups. The only module that issues PRAGMAs.

Every connection: foreign_keys on (Python's default is off, and project deletes would leave orphans),
synchronous FULL (with NORMAL, a power cut brought rows back under the old key after a finished
rotation; measured), secure_delete on (replaced tokens would stay in free pages), trusted_schema off,
a busy timeout of five seconds, which is the desktop app's own. The journal mode is the file's: WAL.

This is the standard library's sqlite3 and not Peewee: through that, constant SQL costs a fifth more, and
its import alone takes as long as Python, sqlite3 and Fernet together (measured). `models.bind` puts Peewee
on these same connections, for those who want queries built.

The file is never opened by anything but SQLite: closing a second descriptor of it would drop the
locks that SQLite holds on it in this process (sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from .errors import (
    DatabaseBusy,
    DatabaseFull,
    DatabaseNotFound,
    DatabaseReadOnly,
    NotADatabase,
    ProjectNotFound,
    SchemaMismatch,
    StorageError,
    VaultError,
)
from .files import new_file, os_error

SHARED: Final = 5  # the schema that this version works in: the app's number, which the shared steps lead to,
OWN: Final = 2  # and the number of the vault's own steps
BUSY_SECONDS: Final = 5.0
PRAGMAS: Final = (("foreign_keys", 1), ("synchronous", 2), ("secure_delete", 1), ("trusted_schema", 0))


def app_path() -> Path:
    """The desktop app's own file, in its place on this system."""
    if sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support"
    elif sys.platform == "win32":
        folder = Path(os.environ["APPDATA"])
    else:
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return folder / "Samsara" / "samsara.db"


def locate(path: str | os.PathLike[str] | None) -> Path:
    """
    The absolute path that is meant: *path*, else OUTREACH_VAULT_DB, else `app_path()`.

    Raises:
        ValueError: the choice is empty text. Taking that for the app's file would be a silent fallback.
    """
    chosen = os.environ.get("OUTREACH_VAULT_DB") if path is None else path
    if chosen is None:
        return app_path()
    if not os.fspath(chosen):
        raise ValueError("the database is named by empty text (--db, OUTREACH_VAULT_DB); give its path, or unset it")
    return Path(chosen).expanduser().absolute()


def open_database(path: str | os.PathLike[str] | None, *, read_only: bool = False) -> Database:
    """
    The existing database file at *path*, found as `locate` says. It is never created here.

    Args:
        read_only: let SQLite refuse every write, and leave each byte as it is, also at closing.
    Raises:
        DatabaseNotFound, NotADatabase, StorageError: as the file is.
    """
    file = locate(path)
    _require_content(file)
    if not read_only:
        return Database(file)
    # The last to close a file moves its log into it, unless it may not write. Where there is no log, mode=ro
    # would leave an empty one behind (both measured).
    mode = "ro" if log_path(file).exists() else "rw"
    return Database(file, f"{file.as_uri()}?mode={mode}", more_pragmas=(("query_only", 1),))


def log_path(path: Path) -> Path:
    """SQLite's write-ahead log of the database at *path*: beside the file itself, where that is a link."""
    file = path.resolve()
    return file.with_name(file.name + "-wal")


def scratch_database() -> Database:
    """A new database in memory, for this thread alone."""
    return Database(Path(":memory:"), ":memory:")


class _Connection(sqlite3.Connection):
    """sqlite3's own class takes no weak reference; the reference must be weak, or ended threads would pile up."""


class _Undo(Exception):
    """Raised to end a transaction that is to leave nothing."""


_WHOLE: Final = ("BEGIN IMMEDIATE", "COMMIT", ("ROLLBACK",))
_PART: Final = ("SAVEPOINT vault", "RELEASE vault", ("ROLLBACK TO vault", "RELEASE vault"))


class Database:
    """
    A database; every thread has a connection of its own, and so has a forked child.

    Made by `open_database` and `scratch_database`.

    Args:
        path: the file; it must be there.
        address: what SQLite opens, if that is not the file.
        more_pragmas: settings of each connection beside `PRAGMAS`.
    Raises:
        NotADatabase, StorageError: as the file is.
    """

    def __init__(self, path: Path, address: str | None = None, *, more_pragmas: tuple[tuple[str, int], ...] = ()) -> None:
        self.path = path
        self.closed = False
        self._address = address or f"{path.as_uri()}?mode=rw"
        self._pragmas = PRAGMAS + more_pragmas
        self._this_thread = threading.local()
        self._connections: weakref.WeakSet[_Connection] = weakref.WeakSet()
        _OPEN.add(self)
        try:
            self.fetch("SELECT count(*) FROM sqlite_master")
        except VaultError:
            self.close_all()
            raise

    def connection(self) -> _Connection:
        """This thread's connection, opened when it is first asked for. It begins no transaction by itself."""
        try:
            return self._this_thread.connection  # type: ignore[no-any-return]
        except AttributeError:
            return self._connect()

    def _connect(self) -> _Connection:
        if self.closed:
            raise sqlite3.ProgrammingError("this database was closed")
        connection = sqlite3.connect(
            self._address,
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            factory=_Connection,
            check_same_thread=False,  # close_all() closes those of other threads; nothing else crosses
        )
        self._connections.add(connection)
        for name, value in self._pragmas:
            connection.execute(f"PRAGMA {name} = {value}")
        self._this_thread.connection = connection
        return connection

    def close_all(self) -> None:
        """Close the connections of all threads; a thread that is still at work gets an error. Closing twice does nothing."""
        self.closed = True  # so that no thread opens the file anew
        for connection in list(self._connections):
            connection.close()

    def leave_to_parent(self) -> None:
        """In a forked child: drop the parent's connections without closing them, which would disturb its locks."""
        _LEFT_TO_PARENT.extend(self._connections)
        self._connections = weakref.WeakSet()
        self._this_thread = threading.local()

    def fetch(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows that one statement gives."""
        try:
            return self.connection().execute(sql, params).fetchall()
        except sqlite3.Error as error:
            if "Could not decode to UTF-8" in str(error) and self.connection().text_factory is str:
                # Another tool's bytes in one row must not break a list; only then, since str itself is faster.
                self.connection().text_factory = _lenient_text
                return self.fetch(sql, params)
            raise self.explain(error) from error

    def change(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run one statement; how many rows it changed."""
        try:
            return self.connection().execute(sql, params).rowcount
        except sqlite3.Error as error:
            raise self.explain(error) from error

    def change_each(self, sql: str, params: Iterable[Sequence[object]]) -> int:
        """Run one statement with each of *params*; how many rows all of them changed."""
        try:
            return self.connection().executemany(sql, params).rowcount
        except sqlite3.Error as error:
            raise self.explain(error) from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """
        One write transaction that takes the write lock before anything is read.

        A plain BEGIN that reads and then writes fails at once in WAL mode when another wrote between
        (SQLITE_BUSY_SNAPSHOT), and the timeout does not help (measured).
        """
        try:
            with self.translated(), self._transaction():
                yield
        except DatabaseReadOnly:
            if hasattr(self._this_thread, "connection") and not self._in_transaction():
                self._this_thread.connection.close()  # opened for reading alone, it would stay so when the cause is mended
                del self._this_thread.connection
            raise

    def _in_transaction(self) -> bool:
        connection = getattr(self._this_thread, "connection", None)
        return connection is not None and connection.in_transaction

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Inside a transaction (an adapter's own) a part of that, which is undone alone."""
        connection = self.connection()
        begin, commit, rollback = _PART if connection.in_transaction else _WHOLE
        connection.execute(begin)
        try:
            yield
            connection.execute(commit)
        except BaseException:
            if connection.in_transaction:  # a full disk has ended it already
                for statement in rollback:
                    connection.execute(statement)
            raise

    def require_writable(self) -> None:
        """Raise what a write would raise, and write nothing. BEGIN IMMEDIATE alone succeeds on a read-only file (measured)."""
        with contextlib.suppress(_Undo), self.writing():
            self.set_schema_version(self.schema_version())
            raise _Undo

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Let no error of sqlite3 out."""
        try:
            yield
        except sqlite3.Error as error:
            raise self.explain(error) from error

    def explain(self, error: Exception) -> VaultError:
        """The vault's own error for what SQLite said, with the true cause."""
        if self.closed:
            return VaultError(f"{self.path}: this vault was closed", hint="open it again; close() closes it for all threads")
        cause = _sqlite_cause(error)
        name = getattr(cause, "sqlite_errorname", "")
        if name.startswith("SQLITE_BUSY") and self._in_transaction():  # it has read already, and then SQLite does not wait
            return DatabaseBusy(
                f"{self.path}: another program has the database locked, or wrote after this transaction had read",
                hint="undo the transaction and try again; one that begins with the lock, atomic('IMMEDIATE'), waits for it",
            )
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
            return DatabaseBusy(
                f"{self.path}: another program kept the database locked for more than {BUSY_SECONDS:g} seconds",
                hint="try again; if it stays so, look for a program that holds a transaction open, or was suspended",
            )
        nearly_full = name.startswith("SQLITE_IOERR") and _free_bytes(self.path.parent) < 65536
        if name.startswith("SQLITE_FULL") or nearly_full:  # the shared-memory file's growth fails as an I/O error
            return DatabaseFull(f"{self.path}: the disk or a quota on it is full", hint="make room and try again; nothing is half-done")
        if name.startswith("SQLITE_READONLY"):
            return _read_only(self.path)
        if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            return NotADatabase(f"{self.path}: {cause}", hint="it was left as it is; restore a backup, or look whether the path is right")
        if name.startswith("SQLITE_CANTOPEN"):
            return _cannot_open(self.path)
        if name == "SQLITE_CONSTRAINT_FOREIGNKEY":
            return ProjectNotFound(f"{self.path}: the row names a project that is not there")
        if "no such table" in str(cause) or "no such column" in str(cause):
            return SchemaMismatch(f"{self.path}: {cause}", hint="run 'vault migrate --plan' to see what the file lacks")
        if isinstance(cause, sqlite3.OperationalError):
            return StorageError(f"{self.path}: {cause}", hint="mend the cause and try again; nothing is half-done")
        return VaultError(f"{self.path}: {cause}")

    # PRAGMAs that a caller needs by name

    def schema_version(self) -> int:
        """user_version: the desktop app's schema number."""
        return int(self.fetch("PRAGMA user_version")[0][0])

    def set_schema_version(self, number: int) -> None:
        """Inside a write transaction this commits and rolls back with it."""
        self.change(f"PRAGMA user_version = {number:d}")

    def belongs_to_another_program(self) -> bool:
        """Whether the file bears an application_id; the desktop app's bears none."""
        return bool(self.fetch("PRAGMA application_id")[0][0])

    def broken_references(self) -> list[tuple[Any, ...]]:
        """Rows whose foreign key points at nothing: (table, rowid, parent, number of the key)."""
        return self.fetch("PRAGMA foreign_key_check")

    def damage(self, *, thoroughly: bool = False) -> list[str]:
        """What SQLite's quick_check (or, thoroughly, integrity_check) finds wrong with the file; an empty list where nothing."""
        found = [str(row[0]) for row in self.fetch(f"PRAGMA {'integrity_check' if thoroughly else 'quick_check'}")]
        return [] if found == ["ok"] else found

    def use_wal(self) -> None:
        """Put the file in WAL mode, which it keeps; the desktop app does the same at every start."""
        self.fetch("PRAGMA journal_mode = WAL")

    def truncate_log(self) -> bool:
        """
        Move the write-ahead log into the database and cut it to nothing.

        Returns:
            False where a reader's open transaction prevented it: SQLite does not raise for that.
        """
        return not self.fetch("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]

    def columns(self) -> dict[str, list[str]]:
        """The columns of every table, in order, by table."""
        shape: dict[str, list[str]] = {}
        sql = "SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.type = 'table' ORDER BY t.name, c.cid"
        for table, column in self.fetch(sql):
            shape.setdefault(table, []).append(column)
        return shape

    def backup(self, target: str | os.PathLike[str]) -> Path:
        """
        A consistent copy of the live database at *target*, mode 0600, read back and checked.

        Raises:
            StorageError: the copy cannot be made, or *target* exists; nothing is left behind.
        """
        with new_file(Path(target)) as part:
            self.copy_into(part)
        return Path(target)

    def copy_into(self, empty: Path) -> None:
        """`backup`, into a file that is there and empty."""
        with self.translated():
            with contextlib.closing(sqlite3.connect(f"{empty.as_uri()}?mode=rw", uri=True)) as copy:
                self.connection().backup(copy)
                found = [row[0] for row in copy.execute("PRAGMA quick_check")]
            if found != ["ok"]:
                raise NotADatabase(
                    f"{self.path}: its copy does not pass SQLite's quick_check: {found[0]}", hint="the file is damaged; restore a backup"
                )


def _require_content(path: Path) -> None:
    """Refuse what SQLite would take for an empty database, or create; it also deletes the log of a 0-byte file."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DatabaseNotFound(
            f"{path}: there is no database", hint="look whether the path is right (--db, OUTREACH_VAULT_DB); 'vault init' creates one"
        ) from None
    except OSError as error:
        raise os_error(path, error) from error
    if not path.is_file():
        raise NotADatabase(f"{path}: not a file", hint="give the path of the database itself")
    if size == 0:
        raise NotADatabase(
            f"{path}: the file is empty", hint="restore a backup; or remove the empty file, and 'vault init' creates a database"
        )


def _free_bytes(folder: Path) -> int:
    import shutil  # here: a look-up does not need it

    return shutil.disk_usage(folder).free


def _lenient_text(data: bytes) -> str:
    return data.decode(errors="replace")


def _sqlite_cause(error: BaseException) -> BaseException:
    """The first error of SQLite's in the chain: what undoing it raised says less."""
    cause, link = error, error.__cause__ or error.__context__
    while link is not None:
        if isinstance(link, sqlite3.Error):
            cause = link
        link = link.__cause__ or link.__context__
    return cause


def _cannot_open(path: Path) -> StorageError:
    if not os.access(path, os.R_OK):
        return StorageError(f"{path}: no permission to read it", hint="run as the user whose file it is")
    if not os.access(path.parent, os.W_OK):
        return _read_only(path)
    return StorageError(
        f"{path}: SQLite cannot open it, or its log beside it", hint="look at the permissions of the file and of its folder"
    )


def _read_only(path: Path) -> DatabaseReadOnly:
    return DatabaseReadOnly(
        f"{path}: the file or its folder is read-only", hint="run as the user whose file it is; SQLite writes a log beside it even to read"
    )


# Connections must not cross a fork: the child drops them unclosed, and opens its own.
_OPEN: Final[weakref.WeakSet[Database]] = weakref.WeakSet()
_LEFT_TO_PARENT: Final[list[_Connection]] = []


def _after_fork() -> None:
    for database in list(_OPEN):
        database.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
