"""
Connections, statements and transactions. The only folder that issues PRAGMAs.

Every connection: foreign_keys on (Python's default is off, and project deletes would leave orphans),
synchronous FULL (with NORMAL, a power cut brought rows back under the old key after a finished
rotation; measured), secure_delete on (replaced tokens would stay in free pages), trusted_schema off,
a busy timeout of five seconds, which is the desktop app's own; an operator's command waits for longer
(`patiently`). The journal mode is the file's: WAL.

This is the standard library's sqlite3 and not Peewee: through that, constant SQL costs a fifth more,
and its import alone takes as long as Python, sqlite3 and Fernet together (measured). `models.bind`
puts Peewee on these same connections, for those who want queries built.

The file is never opened by anything but SQLite: closing a second descriptor of it would drop the
locks that SQLite holds on it in this process (sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from ...errors import DatabaseReadOnly, VaultError
from ...files import alone, os_error
from ..engine import Database
from .errors import FAULTS, explain, moved
from .files import address

T = TypeVar("T")

BUSY_SECONDS: Final = 5.0
# For an operator's command, which eight writers without a pause kept out for five (measured).
PATIENT_SECONDS: Final = 60.0
PRAGMAS: Final = (
    ("foreign_keys", 1),
    ("synchronous", 2),
    ("secure_delete", 1),
    ("trusted_schema", 0),
)
IN_MEMORY: Final = Path(":memory:")


class _Connection(sqlite3.Connection):
    """
    sqlite3's own class takes no weak reference. It must be weak, or ended threads would pile up.
    """


class _Undo(Exception):
    """Raised to end a transaction that is to leave nothing."""


_WHOLE: Final = ("BEGIN IMMEDIATE", "COMMIT", ("ROLLBACK",))
_PART: Final = ("SAVEPOINT vault", "RELEASE vault", ("ROLLBACK TO vault", "RELEASE vault"))


class Connections(Database):
    """
    A file and its connections; every thread has one of its own, and so has a forked child.

    Args:
        path: the file; it must be there.
        uri: what SQLite opens, if that is not the file.
        more_pragmas: settings of each connection beside `PRAGMAS`.
    Raises:
        NotADatabase, StorageError: as the file is.
    """

    def __init__(
        self, path: Path, uri: str | None = None, *, more_pragmas: tuple[tuple[str, int], ...] = ()
    ) -> None:
        self.path = path
        self.closed = False
        self._uri = uri or address(path, "rw")
        self._pragmas = PRAGMAS + more_pragmas
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

    def connection(self) -> _Connection:
        """This thread's connection, opened when it is first asked for. It begins no transaction by itself."""
        try:
            return self._this_thread.connection  # type: ignore[no-any-return]
        except AttributeError:
            return self._connect()

    def _connect(self) -> _Connection:
        if self.closed:
            raise sqlite3.ProgrammingError("this database was closed")
        if self._file is None and self.path != IN_MEMORY:
            with contextlib.suppress(OSError):  # what is wrong with it SQLite finds next
                self._file = self.path.stat()
        connection = sqlite3.connect(
            self._uri,
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

    def fetch(
        self, sql: str, params: Sequence[object] | Mapping[str, object] = ()
    ) -> list[tuple[Any, ...]]:
        """All rows that one statement gives."""
        try:
            return self.connection().execute(sql, params).fetchall()
        except FAULTS as error:
            if "Could not decode to UTF-8" in str(error) and self.connection().text_factory is str:
                # Another tool's bytes in one row must not break a list; only then, since str itself is faster.
                self.connection().text_factory = _lenient_text
                return self.fetch(sql, params)
            raise self._explain(error) from error

    def each(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """The rows that one statement gives, one after the other and all from one moment; text that is no UTF-8 reads as far as it is."""
        try:
            connection = self.connection()
            connection.text_factory = _lenient_text
            # `yield from` would hand the end to the cursor, whose close() may raise.
            for row in connection.execute(sql):  # noqa: UP028
                yield row
        except FAULTS as error:
            raise self._explain(error) from error

    def change(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run one statement; how many rows it changed."""
        try:
            return self.connection().execute(sql, params).rowcount
        except FAULTS as error:
            raise self._explain(error) from error

    def change_each(self, sql: str, params: Iterable[Sequence[object]]) -> int:
        """Run one statement with each of *params*; how many rows all of them changed."""
        try:
            return self.connection().executemany(sql, params).rowcount
        except FAULTS as error:
            raise self._explain(error) from error

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
            if (
                hasattr(self._this_thread, "connection")
                and not self._this_thread.connection.in_transaction
            ):
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
            raise self._explain(error) from error

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
            raise moved(self.path)

    def require_writable(self) -> None:
        """Raise what a write would raise, and write nothing. BEGIN IMMEDIATE alone succeeds on a read-only file (measured)."""

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


# Connections must not cross a fork: the child drops them unclosed, and opens its own.
_OPEN: Final[weakref.WeakSet[Connections]] = weakref.WeakSet()
_LEFT_TO_PARENT: Final[list[_Connection]] = []


def _after_fork() -> None:
    for database in list(_OPEN):
        database.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
