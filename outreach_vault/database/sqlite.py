"""
The database file: finding it, opening it, transactions, backups. The only module that issues PRAGMAs.

Every connection: foreign_keys on (Python's default is off, and project deletes would leave orphans),
synchronous FULL (with NORMAL, a power cut brought rows back under the old key after a finished
rotation; measured), secure_delete on (replaced tokens would stay in free pages), trusted_schema off,
a busy timeout of five seconds, which is the desktop app's own; an operator's command waits for longer (`patiently`). The
journal mode is the file's: WAL.

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
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import quote

from ..errors import (
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
from ..files import absolute, alone, new_file, os_error, real

SHARED: Final = 5  # the schema that this version works in: the app's number, which the shared steps lead to,
OWN: Final = 3  # and the number of the vault's own steps
BUSY_SECONDS: Final = 5.0
PATIENT_SECONDS: Final = 60.0  # for an operator's command, which eight writers without a pause kept out for five (measured)
_CHECKPOINT_SECONDS: Final = 0.5  # for how long one try to cut the log waits,
_CHECKPOINT_PAUSES: Final = (0.0, 0.5, 1.0, 2.0)  # and for how long others may write before each
TO_WAL: Final = "sqlite3 FILE 'PRAGMA journal_mode = WAL'"  # what an operator does
PRAGMAS: Final = (("foreign_keys", 1), ("synchronous", 2), ("secure_delete", 1), ("trusted_schema", 0))
# Behind a table's name: what is read is the table's own row. An index may be damaged, and SQLite takes a column that an
# index holds from there, also when it goes on to the table (measured).
UNINDEXED: Final = "NOT INDEXED"
_LONGEST: Final = 512 - len("-journal")  # of a path, in SQLite's own way to the files of Unix
_ROW_NUMBERS: Final = ("_rowid_", "rowid", "oid")  # SQLite's names for it; a column may bear one of them
# What a statement can raise: the schema's text, which errors quote, need be no UTF-8, and a damaged size asks for any memory.
_FAULTS: Final = (sqlite3.Error, UnicodeDecodeError, MemoryError)

T = TypeVar("T")
_IN_MEMORY: Final = Path(":memory:")
_NAMED: Final = "the database (--db, OUTREACH_VAULT_DB)"


def app_path() -> Path:
    """
    The desktop app's own file, in its place on this system.

    Raises:
        UnusablePath: there is no home folder.
    """
    if sys.platform == "darwin":
        folder = "~/Library/Application Support"
    elif sys.platform == "win32":
        folder = os.environ.get("APPDATA") or "~/AppData/Roaming"
    else:
        named = os.environ.get("XDG_CONFIG_HOME", "")
        folder = named if os.path.isabs(named) else "~/.config"  # noqa: PTH117  # the specification: a relative one is ignored
    return absolute(folder, f"{_NAMED} is not named, and the desktop app's own") / "Samsara" / "samsara.db"


def locate(path: str | os.PathLike[str] | None) -> Path:
    """
    The absolute path that is meant: *path*, else OUTREACH_VAULT_DB, else `app_path()`.

    Raises:
        UnusablePath: it names no place. Empty text, taken for the app's file, would be a silent fallback.
    """
    chosen = os.environ.get("OUTREACH_VAULT_DB") if path is None else path
    return app_path() if chosen is None else absolute(chosen, _NAMED)


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
    mode = "ro" if os.path.exists(log_path(file)) else "rw"  # noqa: PTH110  # Path's own may raise
    return Database(file, _address(file, mode), more_pragmas=(("query_only", 1),))


def _address(file: Path, mode: str) -> str:
    """What SQLite opens, as a URI. From Python 3.14 on, `Path.as_uri` loads urllib.request, with 60 modules more."""
    path = quote(os.fsencode(file.absolute().as_posix()), safe="/:")  # a drive's colon
    return f"file://{'' if path.startswith('/') else '/'}{path}?mode={mode}"


def log_path(path: Path) -> Path:
    """SQLite's write-ahead log of the database at *path*: beside the file itself, where that is a link."""
    file = real(path)
    return file.with_name(file.name + "-wal")


def scratch_database() -> Database:
    """A new database in memory, for this thread alone."""
    return Database(_IN_MEMORY, str(_IN_MEMORY))


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
        self._address = address or _address(path, "rw")
        self._pragmas = PRAGMAS + more_pragmas
        self._row_numbers: dict[str, str] = {}
        self._file: os.stat_result | None = None  # the one that was opened
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
        if self._file is None and self.path != _IN_MEMORY:
            with contextlib.suppress(OSError):  # what is wrong with it SQLite finds next
                self._file = self.path.stat()
        connection = sqlite3.connect(
            self._address,
            uri=True,
            timeout=self._patience(),
            isolation_level=None,
            factory=_Connection,
            check_same_thread=False,  # close_all() closes those of other threads; nothing else crosses
        )
        self._connections.add(connection)
        for name, value in self._pragmas:
            connection.execute(f"PRAGMA {name} = {value}")
        self._this_thread.connection = connection
        return connection

    def _patience(self) -> float:
        """For how many seconds this thread waits for a lock."""
        return getattr(self._this_thread, "patience", BUSY_SECONDS)

    def patiently(self, operation: Callable[[], T]) -> T:
        """
        What *operation* gives; meanwhile this thread's connection waits `PATIENT_SECONDS` for each lock.

        It takes no lock itself, so that nobody waits for who is waiting here. A function for the reason that `write` says.
        """
        before = self._patience()
        try:
            self._this_thread.patience = PATIENT_SECONDS
            self.fetch(f"PRAGMA busy_timeout = {PATIENT_SECONDS * 1000:.0f}")
            return operation()
        finally:
            self._this_thread.patience = before
            # The connection that there is now: one that had been read-only was opened anew. No function, as above.
            try:  # noqa: SIM105
                self._this_thread.connection.execute(f"PRAGMA busy_timeout = {before * 1000:.0f}")
            except (AttributeError, sqlite3.Error):
                pass  # there is none, or it was closed

    def operators_turn(self, operation: Callable[[], T], *, patience: float = 0.0) -> T:
        """What an operator's command does to the keys or the schema: as `files.alone` and `patiently` say."""
        return alone(self.path, lambda: self.patiently(operation), patience=patience)

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

    def fetch(self, sql: str, params: Sequence[object] | Mapping[str, object] = ()) -> list[tuple[Any, ...]]:
        """All rows that one statement gives."""
        try:
            return self.connection().execute(sql, params).fetchall()
        except _FAULTS as error:
            if "Could not decode to UTF-8" in str(error) and self.connection().text_factory is str:
                # Another tool's bytes in one row must not break a list; only then, since str itself is faster.
                self.connection().text_factory = _lenient_text
                return self.fetch(sql, params)
            raise self.explain(error) from error

    def each(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """The rows that one statement gives, one after the other and all from one moment; text that is no UTF-8 reads as far as it is."""
        try:
            connection = self.connection()
            connection.text_factory = _lenient_text
            yield from connection.execute(sql)
        except _FAULTS as error:
            raise self.explain(error) from error

    def change(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run one statement; how many rows it changed."""
        try:
            return self.connection().execute(sql, params).rowcount
        except _FAULTS as error:
            raise self.explain(error) from error

    def change_each(self, sql: str, params: Iterable[Sequence[object]]) -> int:
        """Run one statement with each of *params*; how many rows all of them changed."""
        try:
            return self.connection().executemany(sql, params).rowcount
        except _FAULTS as error:
            raise self.explain(error) from error

    def write(self, operation: Callable[[], T]) -> T:
        """
        What *operation* gives, in one write transaction that takes the write lock before anything is read.

        A plain BEGIN that reads and then writes fails at once in WAL mode when another wrote between
        (SQLITE_BUSY_SNAPSHOT), and the timeout does not help (measured).

        It takes a function since a `with` block can be left without its end: a signal's handler may raise as
        `__exit__` begins. The transaction would stay open, and each later write be acknowledged as a part of it
        and lost with it. Here nothing lies between what is raised and the rollback.
        """
        try:
            return self._transaction(operation)
        except DatabaseReadOnly:
            if hasattr(self._this_thread, "connection") and not self._this_thread.connection.in_transaction:
                self._this_thread.connection.close()  # opened for reading alone, it would stay so when the cause is mended
                del self._this_thread.connection
            raise

    def _transaction(self, operation: Callable[[], T]) -> T:
        """Inside a transaction (an adapter's own) a part of that, which is undone alone."""
        try:
            connection = self.connection()
            begin, commit, rollback = _PART if connection.in_transaction else _WHOLE
            self.require_in_place()
            try:
                connection.execute(begin)
                answer = operation()
                connection.execute(commit)
                return answer
            except BaseException:
                if connection.in_transaction:  # a full disk has ended it already
                    try:  # `suppress` is a function, and as it begins the next signal may raise
                        for statement in rollback:
                            connection.execute(statement)
                    except sqlite3.OperationalError:
                        pass  # a part that was released just before is none any more
                raise
        except sqlite3.Error as error:
            raise self.explain(error) from error

    def require_in_place(self) -> None:
        """
        Raise unless the file is still the one that was opened: a write would go to what was moved away or deleted.

        SQLite notices it only where there is no log (-wal). A backup that is put in place while a command waits for an
        answer would lose what is stored then, and the keys that it needs.
        """
        if self._file is None:
            return
        try:
            same = os.path.samestat(self._file, self.path.stat())
        except FileNotFoundError:
            same = False
        except OSError as error:
            raise os_error(self.path, error) from error
        if not same:
            raise self._moved()

    def _moved(self) -> StorageError:
        return StorageError(
            f"{self.path}: the file was moved, removed or replaced while it is open here",
            hint="look where it is, and open the vault anew",
        )

    def require_writable(self) -> None:
        """Raise what a write would raise, and write nothing. BEGIN IMMEDIATE alone succeeds on a read-only file (measured)."""

        def rewrite() -> NoReturn:
            self.set_schema_version(self.schema_version())
            raise _Undo

        with contextlib.suppress(_Undo):
            self.write(rewrite)

    def explain(self, error: Exception) -> VaultError:
        """The vault's own error for what SQLite said, with the true cause."""
        if self.closed:
            return VaultError(f"{self.path}: this vault was closed", hint="open it again; close() closes it for all threads")
        cause = _sqlite_cause(error)
        name = getattr(cause, "sqlite_errorname", "")
        connection = getattr(self._this_thread, "connection", None)
        if name.startswith("SQLITE_BUSY") and connection and connection.in_transaction:  # it has read, and then SQLite does not wait
            return DatabaseBusy(
                f"{self.path}: another program has the database locked, or wrote after this transaction had read",
                hint="undo the transaction and try again; one that begins with the lock, atomic('IMMEDIATE'), waits for it",
            )
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
            return DatabaseBusy(
                f"{self.path}: another program kept the database locked for more than {self._patience():g} seconds",
                hint="try again; if it stays so, look for a program that holds a transaction open, or was suspended",
            )
        nearly_full = name.startswith("SQLITE_IOERR") and _free_bytes(self.path.parent) < 65536
        if name.startswith("SQLITE_FULL") or nearly_full:  # the shared-memory file's growth fails as an I/O error
            return DatabaseFull(f"{self.path}: the disk or a quota on it is full", hint="make room and try again; nothing is half-done")
        if name == "SQLITE_READONLY_DBMOVED":
            return self._moved()
        if name.startswith("SQLITE_READONLY"):
            return _read_only(self.path)
        if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            return NotADatabase(f"{self.path}: {cause}", hint="it was left as it is; restore a backup, or look whether the path is right")
        if isinstance(cause, (UnicodeDecodeError, MemoryError)):
            if isinstance(cause, MemoryError):
                return NotADatabase(
                    f"{self.path}: a size in it that memory does not hold: the file is damaged, or this process has too little memory",
                    hint="give it more memory; if that does not help, 'vault doctor' says what is left, and a backup is to be restored",
                )
            return self.damaged("text of its schema that is no UTF-8")
        if name.startswith("SQLITE_CANTOPEN"):
            return _cannot_open(self.path)
        if name == "SQLITE_CONSTRAINT_FOREIGNKEY":
            return ProjectNotFound(f"{self.path}: the row names a project that is not there")
        if "no such table" in str(cause) or "no such column" in str(cause):
            return SchemaMismatch(f"{self.path}: {cause}", hint="run 'vault migrate --plan' to see what the file lacks")
        if isinstance(cause, sqlite3.OperationalError):
            return StorageError(f"{self.path}: {cause}", hint="mend the cause and try again; nothing is half-done")
        return VaultError(f"{self.path}: {cause}")

    def damaged(self, what: str) -> NotADatabase:
        """The error for what can only be where the file was damaged."""
        return NotADatabase(f"{self.path}: the file is damaged: {what}", hint="'vault doctor' says what is left; restore a backup")

    def astray(self, table: str) -> NotADatabase:
        """The error for an index that leads to another row than the one that was asked for."""
        return NotADatabase(
            f"{self.path}: an index of {table} leads to another row than the one that was asked for; nothing was changed",
            hint="stop the programs that use the file, copy it, and run: sqlite3 FILE 'REINDEX'; or restore a backup",
        )

    def row_number(self, table: str) -> str:
        """
        The name by which SQLite's own number of a row of *table* can be had. VACUUM gives rows other numbers.

        It is looked up once. A column that gets the name later makes rows unlike what was asked for, which is an error.

        Raises:
            SchemaMismatch: columns of the table bear all three names.
        """
        if table in self._row_numbers:
            return self._row_numbers[table]
        columns = {str(name).lower() for (name,) in self.fetch("SELECT name FROM pragma_table_xinfo(?)", (table,))}
        for name in _ROW_NUMBERS:
            if name not in columns:
                return self._row_numbers.setdefault(table, name)
        raise SchemaMismatch(
            f"{self.path}: columns of {table} are named {', '.join(_ROW_NUMBERS)}, so its rows cannot be told apart",
            hint="look which program added them, and rename one",
        )

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

    def damage(self, *tables: str, thoroughly: bool = False) -> list[str]:
        """
        What SQLite finds wrong with the file (quick_check), and in these tables with their indexes; an empty list where nothing.

        Args:
            thoroughly: with the indexes of all tables (integrity_check): seconds for a million rows.
        """
        checks = ["integrity_check"] if thoroughly else ["quick_check", *(f"integrity_check('{table}')" for table in tables)]
        found = [str(row[0]) for check in checks for row in self.fetch(f"PRAGMA {check}")]
        return list(dict.fromkeys(line for line in found if line != "ok"))

    def journal_mode(self) -> str:
        """`wal`, or what another program has made of the file."""
        return str(self.fetch("PRAGMA journal_mode")[0][0])

    def use_wal(self) -> None:
        """Put the file in WAL mode, which it keeps; the desktop app does the same at every start."""
        self.fetch("PRAGMA journal_mode = WAL")

    def truncate_log(self) -> bool:
        """
        Move the write-ahead log into the database and cut it to nothing.

        SQLite keeps the write lock while it waits for readers here. Waiting for five seconds made other programs' writes
        fail (measured), which wait no longer than that; so it waits for a part of one, and several times.

        Returns:
            False where a reader's open transaction prevented it: SQLite does not raise for that.
        """
        for pause in _CHECKPOINT_PAUSES:
            time.sleep(pause)
            try:
                self.fetch(f"PRAGMA busy_timeout = {_CHECKPOINT_SECONDS * 1000:.0f}")
                if not self.fetch("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]:
                    return True
            finally:
                self.fetch(f"PRAGMA busy_timeout = {self._patience() * 1000:.0f}")
        return False

    def scrub(self) -> bool:
        """
        Write the whole file anew, so that nothing that was replaced or deleted is left in it, and cut its log.

        It keeps other writers waiting, and needs room for the file once more in SQLite's folder for temporary files
        (SQLITE_TMPDIR, else /var/tmp) and once more beside the file.

        Returns:
            As `truncate_log`.
        """
        self.change("VACUUM")
        return self.truncate_log()

    def held_by_row_number(self) -> str | None:
        """A full-text index of another table's text: `scrub` may give that table's rows other numbers, and it finds them no more."""
        found = self.fetch("SELECT name FROM sqlite_master WHERE sql LIKE 'CREATE VIRTUAL TABLE%USING%fts%content%=%'")
        return str(found[0][0]) if found else None

    def size(self) -> int:
        """Of the database in bytes, without its log."""
        [(size,)] = self.fetch("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        return int(size)

    def free_bytes(self) -> int:
        """How much room there is beside the file."""
        return _free_bytes(self.path.parent)

    def tables(self) -> set[str]:
        """The names of the tables that are in the file: a view, or a table of some program's module, is none."""
        found = self.fetch("SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0")
        return {name for (name,) in found}

    def columns(self) -> dict[str, list[str]]:
        """The columns of each of `tables`, in order, by table."""
        shape: dict[str, list[str]] = {}
        sql = (
            "SELECT t.name, c.name FROM (SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0) t,"
            " pragma_table_info(t.name) c ORDER BY t.name, c.cid"
        )
        for table, column in self.fetch(sql):
            shape.setdefault(table, []).append(column)
        return shape

    def backup(self, target: Path) -> Path:
        """
        A consistent copy of the live database at *target*, its owner's alone, read back and checked.

        Raises:
            StorageError: the copy cannot be made, or *target* exists; nothing is left behind.
        """
        new_file(target, self.copy_into, like=self.path)
        return target

    def copy_into(self, empty: Path) -> None:
        """`backup`, into a file that is there and empty."""
        try:
            with contextlib.closing(sqlite3.connect(_address(empty, "rw"), uri=True)) as copy:
                self.connection().backup(copy)
                found = [row[0] for row in copy.execute("PRAGMA quick_check")]
        except _FAULTS as error:
            raise self.explain(error) from error
        if found != ["ok"]:
            raise NotADatabase(
                f"{self.path}: its copy does not pass SQLite's quick_check: {found[0]}", hint="the file is damaged; restore a backup"
            )


def _require_content(path: Path) -> None:
    """Refuse what SQLite would take for an empty database, or create; it also deletes the log of a 0-byte file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise DatabaseNotFound(
            f"{path}: there is no database", hint="look whether the path is right (--db, OUTREACH_VAULT_DB); 'vault init' creates one"
        ) from None
    except OSError as error:
        raise os_error(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise NotADatabase(f"{path}: not a file", hint="give the path of the database itself")
    if found.st_size == 0:
        raise NotADatabase(
            f"{path}: the file is empty", hint="restore a backup; or remove the empty file, and 'vault init' creates a database"
        )


def _free_bytes(folder: Path) -> int:
    """How much room there is; no end of it, where the system does not say."""
    import shutil  # here: a look-up does not need it

    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return sys.maxsize


def _lenient_text(data: bytes) -> str:
    return data.decode(errors="replace")


def _sqlite_cause(error: BaseException) -> BaseException:
    """The first fault in the chain: what undoing it raised says less."""
    cause, link = error, error.__cause__ or error.__context__
    while link is not None:
        if isinstance(link, _FAULTS):
            cause = link
        link = link.__cause__ or link.__context__
    return cause


def _cannot_open(path: Path) -> StorageError:
    """SQLite has one word for all of these."""
    try:
        path.stat()
        os.close(os.open(os.devnull, os.O_RDONLY))  # never the file itself: closing it would drop SQLite's locks
    except OSError as error:
        return os_error(path, error)
    if len(os.fsencode(real(path))) > _LONGEST:
        return StorageError(f"{path}: SQLite takes no path of more than {_LONGEST} bytes", hint="give a shorter path")
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
