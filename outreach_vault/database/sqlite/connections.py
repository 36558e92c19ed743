"""
Connections, statements and transactions. No other folder issues PRAGMAs.

Every connection has:
- foreign_keys on: with Python's default, off, deleting a project would leave orphans;
- synchronous FULL: with NORMAL, a power cut after a rotation brought back rows under the old key;
- secure_delete on: otherwise replaced tokens stay in free pages;
- trusted_schema off;
- a busy timeout of 5 s, as in the desktop app; an operator's command waits longer (`patiently`).
The journal mode, WAL, belongs to the file.

This is sqlite3, not Peewee: Peewee makes constant SQL 20% slower, and importing it takes as long as
Python, sqlite3 and Fernet together (measured). `models.bind` puts Peewee on these same connections,
for those who want a query builder.

Only SQLite opens the file: closing a second descriptor of it would drop the locks that SQLite holds
on it in this process (sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn, TypeVar

from ...errors import DatabaseReadOnly, VaultError
from ...files import alone, os_error
from ..engine import Database
from .errors import FAULTS, explain, moved
from .files import address

T = TypeVar("T")

BUSY_SECONDS: Final = 5.0
PATIENT_SECONDS: Final = 60.0  # eight busy writers kept an operator's command out for 5 s
PRAGMAS: Final = ("foreign_keys = 1", "synchronous = 2", "secure_delete = 1", "trusted_schema = 0")
IN_MEMORY: Final = Path(":memory:")


class _Connection(sqlite3.Connection):
    """Takes weak references, unlike its base: connections of ended threads must not pile up."""


class _Undo(Exception):
    """Ends a transaction that should change nothing."""


_WHOLE: Final = ("BEGIN IMMEDIATE", "COMMIT", ("ROLLBACK",))
_PART: Final = ("SAVEPOINT vault", "RELEASE vault", ("ROLLBACK TO vault", "RELEASE vault"))


class Connections(Database):
    """
    A file and its connections, one for each thread and each forked child.

    Args:
        path: the file; it must exist.
        uri: what SQLite opens, if not just the file.
        query_only: refuse every write.
    Raises:
        NotADatabase, StorageError: the file cannot be used.
    """

    kind: ClassVar = "SQLite"
    unchecked: ClassVar = "without SQLite's foreign_keys setting"
    strangers: ClassVar = "check the path; the file was left as it is"

    def __init__(self, path: Path, uri: str | None = None, *, query_only: bool = False) -> None:
        self.path, self.name = path, str(path)
        self.closed = False
        self._uri = uri or address(path, "rw")
        self._pragmas = (*PRAGMAS, "query_only = 1") if query_only else PRAGMAS
        self._file: os.stat_result | None = None  # the one that was opened
        self._row_keys: dict[str, str] = {}
        self._this_thread = threading.local()
        self._connections: weakref.WeakSet[_Connection] = weakref.WeakSet()
        _OPEN.add(self)
        try:
            self.fetch("SELECT count(*) FROM sqlite_master")
        except VaultError:
            self.close_all()
            raise

    def connection(self, in_transaction: object = None) -> _Connection:
        """This thread's connection, opened on first use. It begins no transaction by itself."""
        try:
            return self._this_thread.connection  # type: ignore[no-any-return]
        except AttributeError:
            return self._connect()

    def _connect(self) -> _Connection:
        if self.closed:
            raise sqlite3.ProgrammingError("this database was closed")
        if self._file is None and self.path != IN_MEMORY:
            with contextlib.suppress(OSError):  # SQLite fails next, and says more
                self._file = self.path.stat()
        connection = sqlite3.connect(
            self._uri,
            uri=True,
            timeout=self._patience(),
            isolation_level=None,
            factory=_Connection,
            check_same_thread=False,  # for close_all() alone
        )
        self._connections.add(connection)
        for pragma in self._pragmas:
            connection.execute(f"PRAGMA {pragma}")
        self._this_thread.connection = connection
        return connection

    def _patience(self) -> float:
        """How many seconds this thread waits for a lock."""
        return getattr(self._this_thread, "patience", BUSY_SECONDS)

    def patiently(self, operation: Callable[[], T]) -> T:
        """
        Run *operation*; meanwhile this thread waits `PATIENT_SECONDS` for each lock.

        It takes no lock itself, so nobody waits for a waiting thread. See `write` for why it takes
        a function.
        """
        before = self._patience()
        try:
            self._this_thread.patience = PATIENT_SECONDS
            self.fetch(f"PRAGMA busy_timeout = {PATIENT_SECONDS * 1000:.0f}")
            return operation()
        finally:
            self._this_thread.patience = before
            # A read-only connection may have been replaced. No `suppress`: see `_transaction`.
            try:  # noqa: SIM105
                self._this_thread.connection.execute(f"PRAGMA busy_timeout = {before * 1000:.0f}")
            except (AttributeError, sqlite3.Error):
                pass  # no connection, or it was closed

    def operators_turn(self, operation: Callable[[], T], *, patience: float = 0.0) -> T:
        return alone(self.path, lambda: self.patiently(operation), patience=patience)

    def close_all(self) -> None:
        self.closed = True  # first, so that no thread opens the file again
        for connection in list(self._connections):
            connection.close()

    def leave_to_parent(self) -> None:
        """In a forked child: drop the parent's connections. Closing them would drop its locks."""
        _LEFT_TO_PARENT.extend(self._connections)
        self._connections = weakref.WeakSet()
        self._this_thread = threading.local()

    def fetch(
        self, sql: str, params: Sequence[object] | Mapping[str, object] = ()
    ) -> list[tuple[Any, ...]]:
        try:
            return self.connection().execute(sql, params).fetchall()
        except FAULTS as error:
            if "Could not decode to UTF-8" in str(error) and self.connection().text_factory is str:
                # One row with another tool's bytes must not break a list. Not always: str is
                # faster.
                self.connection().text_factory = _lenient_text
                return self.fetch(sql, params)
            raise self._explain(error) from error

    def each(self, sql: str, *, exactly: bool = False) -> Iterator[tuple[Any, ...]]:
        """Where text is not UTF-8, the bytes that are not become U+FFFD, unless *exactly*."""
        try:
            connection = self.connection()
            connection.text_factory = _exact_text if exactly else _lenient_text
            # `yield from` would let the cursor end it, whose close() may raise.
            for row in connection.execute(sql):  # noqa: UP028
                yield row
        except FAULTS as error:
            raise self._explain(error) from error

    def change(self, sql: str, params: Sequence[object] = ()) -> int:
        try:
            return self.connection().execute(sql, params).rowcount
        except FAULTS as error:
            raise self._explain(error) from error

    def change_each(self, sql: str, params: Iterable[Sequence[object]]) -> int:
        try:
            return self.connection().executemany(sql, params).rowcount
        except FAULTS as error:
            raise self._explain(error) from error

    def at_one_moment(self, operation: Callable[[], T]) -> T:
        try:
            connection = self.connection()
            try:
                connection.execute("BEGIN")
                return operation()
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def write(self, operation: Callable[[], T], *, alone: bool = False) -> T:
        """
        Run *operation* in one write transaction that takes the write lock before it reads anything:
        it is always alone.

        After a plain BEGIN, a read and another connection's write, the first write fails at once in
        WAL mode (SQLITE_BUSY_SNAPSHOT), and the timeout does not help (measured).
        """
        try:
            return self._transaction(operation)
        except DatabaseReadOnly:
            connection = getattr(self._this_thread, "connection", None)
            if connection is not None and not connection.in_transaction:
                connection.close()  # it would stay read-only once the file is not
                del self._this_thread.connection
            raise

    def in_transaction(self) -> bool:
        return self.connection().in_transaction

    def clock(self) -> datetime:
        """This machine's, as it is the only one."""
        return datetime.now(UTC)

    def _transaction(self, operation: Callable[[], T]) -> T:
        """Inside an adapter's own transaction: a part of it, which is undone alone."""
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
                if connection.in_transaction:  # a full disk ends it by itself
                    try:  # `suppress` is a function: the next signal may raise as it begins
                        for statement in rollback:
                            connection.execute(statement)
                    except sqlite3.OperationalError:
                        pass  # the savepoint was just released
                raise
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def require_in_place(self) -> None:
        """
        Raise unless the file is still the one that was opened: a write would go to a file that was
        moved away or deleted.

        SQLite notices only without a log (-wal). If somebody restores a backup while a command
        waits for an answer, what it then stores would be lost, and the keys that it needs.
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
            raise moved(self.path)

    def require_writable(self) -> None:
        """BEGIN IMMEDIATE alone would succeed on a read-only file."""

        def rewrite() -> NoReturn:
            self.set_schema_version(self.schema_version())
            raise _Undo

        with contextlib.suppress(_Undo):
            self.write(rewrite)

    def _explain(self, error: Exception) -> VaultError:
        if self.closed:
            return VaultError(
                f"{self.path}: this vault was closed",
                hint="open it again; close() closes it for all threads",
            )
        connection = getattr(self._this_thread, "connection", None)
        in_transaction = connection is not None and connection.in_transaction
        return explain(self.path, error, in_transaction=in_transaction, waited=self._patience())


def _lenient_text(data: bytes) -> str:
    return data.decode(errors="replace")


def _exact_text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


# Connections must not cross a fork: the child drops them without closing, and opens its own.
_OPEN: Final[weakref.WeakSet[Connections]] = weakref.WeakSet()
_LEFT_TO_PARENT: Final[list[_Connection]] = []


def _after_fork() -> None:
    for database in list(_OPEN):
        database.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
