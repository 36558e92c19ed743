"""
Connections, statements and transactions.

A pool has the connections; a call takes one, and a transaction keeps it to its end. A thread that
has the operators' turn, or uses Peewee, has one of its own, outside the pool.

Each is in autocommit: a look-up is one statement, and one message to the server and back. Limits
that neither the server nor the URL sets are set here: for a statement 30 s, for a lock 5 s; an
operator's command waits for a lock for 60 s, and has no other limit.

Behind a transaction pooler (PgBouncer) a connection is another one at each transaction: nothing may
be left in it, neither settings nor prepared statements nor locks. It is told by the number of the
process that serves it, which the pooler makes up.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, ClassVar, Final, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from ...errors import (
    DatabaseBusy,
    DatabaseReadOnly,
    NotADatabase,
    OperationRunning,
    StorageError,
    VaultError,
    brief,
)
from ..engine import Database
from .errors import AGAIN, FAULTS, explain, read_only, unknown
from .pool import Connection, Pool
from .sql import translated

T = TypeVar("T")

BUSY_SECONDS: Final = 5.0
PATIENT_SECONDS: Final = 60.0
STATEMENT_SECONDS: Final = 30.0
IN_POOL: Final = 16  # at most; a connection is a process of the server's
WAIT_SECONDS: Final = 10.0  # for one of the pool's, while others have them or the server restarts
_TRIES: Final = 5  # of a transaction that met another
_ISOLATION: Final = "current_setting('transaction_isolation')"
_LOCKS: Final = 0x6F757472  # "outr": the first half of our advisory locks' numbers
_IDLE: Final = TransactionStatus.IDLE
_WRITERS, _OPERATORS = (f"{_LOCKS + n}, hashtext(current_schema())" for n in (0, 1))
# Where the server or the URL has set none.
_LIMIT: Final = (
    "SELECT set_config(name, value, false) FROM (VALUES (%s, %s), (%s, %s)) AS wanted (name, value)"
    " WHERE current_setting(name) = '0'"
)
_OWN: Final = (
    "SET default_transaction_isolation = 'read committed'",
    "SET default_transaction_read_only = {}",
)
# So that the server, too, notices within a minute that a host is gone.
_OF_OPERATORS: Final = (
    f"SET lock_timeout = '{PATIENT_SECONDS:g}s'; SET statement_timeout = 0;"
    " SET idle_session_timeout = 0; SET tcp_keepalives_idle = 30;"
    " SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"
)
_HOLDER: Final = f"""
    SELECT a.pid, a.application_name, host(a.client_addr), a.backend_start
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.classid = {_LOCKS + 1}
    AND l.objid = (hashtext(current_schema())::bigint & 4294967295)::oid
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"""

logging.getLogger("psycopg").addHandler(logging.NullHandler())  # its errors are raised here


class Connections(Database):
    """
    A database on a server.

    Args:
        name: what to call it, without a password.
        options: for `psycopg.connect`.
    Attributes:
        pooled: a transaction pooler lies in between.
    Raises:
        NotADatabase: it is not in UTF-8, or has no schema.
        DatabaseRefused, DatabaseNotFound, DatabaseUnreachable, DatabaseBusy: as they say.
    """

    kind: ClassVar = "PostgreSQL"
    unchecked: ClassVar = "with its triggers off (pg_restore --disable-triggers)"
    strangers: ClassVar = (
        "check the URL, or give the vault a schema of its own: CREATE SCHEMA NAME, and"
        " ?options=-csearch_path%3DNAME"
    )

    def __init__(self, name: str, options: dict[str, str], *, read_only: bool = False) -> None:
        self.name, self.closed = name, False
        self._options, self._read_only = options, read_only
        self._this_thread = threading.local()
        self._own: weakref.WeakSet[Connection] = weakref.WeakSet()  # outside the pool
        self._pool = Pool(self._connect, IN_POOL, WAIT_SECONDS)
        first = self._connect()
        try:
            self.pooled = _behind_pooler(first)
            schema = first.execute("SELECT current_schema()").fetchone()
        except FAULTS as error:
            raise self._explain(error, first) from error
        finally:
            first.close()
        if schema == (None,):
            raise NotADatabase(
                f"{self.name}: the search path names no schema that is there and open to this user",
                hint="make it with CREATE SCHEMA, or name another:"
                " ?options=-csearch_path%3DNAME; 'vault roles --sql' prints what a role needs",
            )
        _OPEN.add(self)

    # Connections

    def _connect(self) -> Connection:
        """A new connection, outside the pool."""
        connection, ready = None, False
        try:
            connection = psycopg.connect(**self._options, **self._ours())  # type: ignore[arg-type]
            self._prepare(connection)
            ready = True
            return connection
        except FAULTS as error:
            # psycopg's own has the password on it, and so have its frames.
            fault, cause = self._explain(error), type(error)(str(error))
        finally:
            if connection and not ready:
                connection.close()
        raise fault from cause

    def _ours(self) -> dict[str, Any]:
        """A name by which people find this process, unless they chose one."""
        if "application_name" in self._options or os.environ.get("PGAPPNAME"):
            return {"autocommit": True}
        name = f"outreach_vault {socket.gethostname()} {os.getpid()}"
        return {"autocommit": True, "application_name": name}

    def _prepare(self, connection: Connection) -> None:
        """Check a new connection, and set its limits."""
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise NotADatabase(
                f"{self.name}: the database has the encoding {encoding}, not UTF8",
                hint="make another with: createdb -E UTF8 -T template0 NAME",
            )
        connection.add_notice_handler(self._warned)
        if _behind_pooler(connection):
            connection.prepare_threshold = None
            return
        seconds = (f"{each:g}s" for each in (BUSY_SECONDS, STATEMENT_SECONDS))
        names = ("lock_timeout", "statement_timeout")
        connection.execute(_LIMIT, list(chain.from_iterable(zip(names, seconds, strict=True))))
        _together(connection, "; ".join(_OWN).format("on" if self._read_only else "off"))

    def _warned(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._this_thread.warning = notice.message_primary

    def _take(self) -> Connection:
        """This thread's connection, else one of the pool's. Give it back."""
        if self.closed:
            raise self._closed()
        if mine := self._mine():
            return mine
        if found := self._pool.take():
            return found
        raise DatabaseBusy(
            f"{self.name}: all {IN_POOL} connections of this process are in use",
            hint="try again; end transactions sooner, or use fewer threads",
        )

    def _give(self, connection: Connection) -> None:
        if connection is not self._held() and connection not in self._own:
            _undo(connection)
            self._pool.give(connection)

    def _held(self) -> Connection | None:
        """The connection of this thread's transaction or turn."""
        return getattr(self._this_thread, "connection", None)

    def _mine(self) -> Connection | None:
        """
        The connection that this thread keeps, in a transaction, a turn, or for Peewee.

        Peewee's is dropped if it was lost, or cut off in the middle of a call. But in a transaction
        of Peewee's only after that has ended: on another connection the rest of it would be stored
        alone.
        """
        mine = self._this_thread
        if held := self._held():
            return held
        kept: Connection | None = getattr(mine, "peewees", None)
        in_transaction = getattr(mine, "in_transaction", bool)
        if kept and (kept.closed or _is_cut_off(kept)) and not in_transaction():
            kept.close()
            kept = mine.peewees = None
        return kept

    def _keeping(self, connection: Connection, operation: Callable[[], T]) -> T:
        """Run *operation*; meanwhile this thread uses this connection alone."""
        before = self._held()
        try:
            self._this_thread.connection = connection
            return operation()
        finally:
            self._this_thread.connection = before

    def connection(self, in_transaction: Callable[[], bool] | None = None) -> Any:
        """A connection that this thread keeps from now on, for Peewee; another if it was lost."""
        if in_transaction:
            self._this_thread.in_transaction = in_transaction
        if (mine := self._mine()) is None:
            if self.closed:
                raise psycopg.InterfaceError("this database was closed")
            mine = self._this_thread.peewees = self._connect()
            self._own.add(mine)
        return mine

    def require_direct(self) -> None:
        """Raise behind a pooler: a lock that outlasts a transaction would be another client's."""
        if self.pooled:
            raise StorageError(
                f"{self.name}: this leads through a pooler, which keeps no locks between"
                " transactions; an operator's command needs them",
                hint="name the server itself (--db, OUTREACH_VAULT_DB); adapters may use a pooler",
            )

    def close_all(self) -> None:
        self.closed = True  # first, so that no thread connects again
        self._pool.close()
        for connection in list(self._own):
            connection.close()

    def leave_to_parent(self) -> None:
        """In a forked child: the sockets are the parent's. To close them would end its sessions."""
        _LEFT_TO_PARENT.extend([self._pool, *self._own, self._held()])
        self._pool = Pool(self._connect, IN_POOL, WAIT_SECONDS)
        self._own, self._this_thread = weakref.WeakSet(), threading.local()

    # Statements

    def fetch(
        self, sql: str, params: Sequence[object] | Mapping[str, object] = ()
    ) -> list[tuple[Any, ...]]:
        """Outside a transaction it is tried once more if the connection was lost."""
        statement, again = translated(sql), not self.in_transaction()
        while True:
            connection = self._take()
            try:
                return connection.execute(statement, params).fetchall()
            except FAULTS as error:
                if not (again and connection.closed):
                    raise self._explain(error, connection) from error
                again = False
            finally:
                self._give(connection)
            self._pool.check()

    def each(self, sql: str, *, exactly: bool = False) -> Iterator[tuple[Any, ...]]:
        """
        On a connection of its own: a caller may never come to the end. The server has only UTF-8.
        """
        connection = self._connect()
        try:
            # It takes as long as its caller does. LOCAL: a pooler lends the connection to others.
            _together(connection, "BEGIN; SET LOCAL statement_timeout = 0")
            # `yield from` would let the cursor end it, whose close() may raise.
            for row in connection.cursor().stream(translated(sql)):  # noqa: UP028
                yield row
        except FAULTS as error:
            raise self._explain(error, connection) from error
        finally:
            connection.close()

    def change(self, sql: str, params: Sequence[object] = ()) -> int:
        return self._change(lambda cursor: cursor.execute(translated(sql), params))

    def change_each(self, sql: str, params: Iterable[Sequence[object]]) -> int:
        return self._change(lambda cursor: cursor.executemany(translated(sql), list(params)))

    def _change(self, run: Callable[[psycopg.Cursor[tuple[Any, ...]]], object]) -> int:
        connection = self._take()
        try:
            with connection.cursor() as cursor:
                run(cursor)
                return max(cursor.rowcount, 0)
        except FAULTS as error:
            raise self._explain(error, connection) from error
        finally:
            # A signal's handler raised as `executemany` began or ended its pipeline. In it, an
            # answer may never come.
            if connection.info.pipeline_status:
                connection.close()
            self._give(connection)

    # Transactions and turns

    def write(self, operation: Callable[[], T], *, alone: bool = False) -> T:
        """
        Writers share a lock, and whoever is *alone* has it to itself. It is no row's, so that a
        role that may not change a key can wait for one that does. Other writers wait behind whoever
        waits to be alone: so that is for a second at a time.

        What another transaction undid is run again: a place that both filled, a deadlock. A part of
        a transaction cannot end a deadlock, as it keeps the locks of the rest.
        """
        deadline, tries = time.monotonic() + self._patience(), 0
        run, again = (self._part, AGAIN[:1]) if self.in_transaction() else (self._whole, AGAIN)
        while True:
            tries += 1
            try:
                return run(operation, alone)
            except VaultError as error:
                waits = alone and isinstance(error.__cause__, psycopg.errors.LockNotAvailable)
                undone = isinstance(error.__cause__, again) and tries < _TRIES
                if not (undone or (waits and time.monotonic() < deadline)):
                    raise
            time.sleep(random.uniform(0, 0.05))  # noqa: S311  # not both at once again

    def in_transaction(self) -> bool:
        mine = self._mine()
        return mine is not None and mine.info.transaction_status != _IDLE

    def _whole(self, operation: Callable[[], T], alone: bool) -> T:
        if self._read_only:
            raise read_only(self.name)
        begin = ["BEGIN ISOLATION LEVEL READ COMMITTED", _lock(alone)]
        limit = f"SET LOCAL lock_timeout = '{self._patience():g}s'"
        if alone:
            begin.insert(1, "SET LOCAL lock_timeout = '1s'")
            begin.append(limit)
        elif self.pooled or self._patience() != BUSY_SECONDS:
            begin.insert(1, limit)
        before = self._held()
        connection, sent = self._begun("; ".join(begin)), False
        try:
            answer = self._keeping(connection, operation)
            self._this_thread.warning, sent = None, True
            done = connection.execute("COMMIT").statusmessage
            if done != "COMMIT":  # the server undoes a failed one without an error
                raise StorageError(
                    f"{self.name}: a statement had failed before, so nothing was stored",
                    hint="look at the error before this one",
                )
            if self._this_thread.warning:  # it gave up to wait for a standby
                raise unknown(self.name, self._this_thread.warning)
            return answer
        except DatabaseReadOnly:
            connection.close()  # of a server that was the primary: a new one finds the present one
            self._pool.check()
            raise
        except FAULTS as error:
            if sent and connection.closed:
                raise unknown(self.name, error) from error
            raise self._explain(error, connection) from error
        finally:
            self._this_thread.connection = before  # once more: a signal may have come before it
            _undo(connection)
            self._give(connection)

    def _begun(self, begin: str) -> Connection:
        """A connection with a new transaction. One that was lost before it is replaced."""
        again = self._held() is None  # without its turn, an operator's command stores nothing
        while True:
            connection = self._take()
            try:
                _together(connection, begin)
                return connection
            except BaseException as error:
                _undo(connection)
                self._give(connection)
                if isinstance(error, FAULTS) and not (again and connection.closed):
                    raise self._explain(error, connection) from error
                if not isinstance(error, FAULTS):
                    raise
            again = False
            self._pool.check()

    def _part(self, operation: Callable[[], T], alone: bool) -> T:
        """Inside an adapter's own transaction: a part of it, which is undone alone."""
        connection = self._take()
        try:
            started = _together(connection, f"SAVEPOINT vault; {_lock(alone)}, {_ISOLATION}")
            started.nextset()
            if (found := started.fetchone()) and found[1] != "read committed":
                raise StorageError(
                    f"{self.name}: a transaction that is {found[1]} sees no key that was made"
                    " since it began; nothing was stored",
                    hint="begin it with ISOLATION LEVEL READ COMMITTED, as atomic() does by itself",
                )
            answer = operation()
            connection.execute("RELEASE vault")
            return answer
        except BaseException as error:
            if not connection.closed:
                try:  # noqa: SIM105  # a function: the next signal may raise as it begins
                    _together(connection, "ROLLBACK TO vault; RELEASE vault")
                except psycopg.Error:
                    pass  # the savepoint was just released
            if isinstance(error, FAULTS):
                raise self._explain(error, connection) from error
            raise

    def _patience(self) -> float:
        """How many seconds this thread waits for a lock."""
        return getattr(self._this_thread, "patience", BUSY_SECONDS)

    def patiently(self, operation: Callable[[], T]) -> T:
        before = self._patience()
        try:
            self._this_thread.patience = PATIENT_SECONDS
            return operation()
        finally:
            self._this_thread.patience = before

    def operators_turn(self, operation: Callable[[], T], *, patience: float = 0.0) -> T:
        """
        A lock of the session, on a connection of its own, which all statements of the turn use: if
        it is lost, so is the turn, and no statement can come after.
        """
        self.require_direct()
        connection, deadline = self._connect(), time.monotonic() + patience
        self._own.add(connection)
        try:
            _together(connection, _OF_OPERATORS)
            while connection.execute(f"SELECT pg_try_advisory_lock({_OPERATORS})").fetchone() != (
                True,
            ):
                if time.monotonic() >= deadline:
                    raise self._taken(connection)
                time.sleep(0.05)
            return self._keeping(connection, lambda: self.patiently(operation))
        except FAULTS as error:
            raise self._explain(error, connection) from error
        finally:
            connection.close()

    def _taken(self, connection: Connection) -> OperationRunning:
        message = f"{self.name}: another vault command is changing its keys or schema"
        hint = "let it finish, then run this again"
        for pid, program, address, since in connection.execute(_HOLDER):
            at = f" at {address}" if address else ""
            message += f": {brief(program or 'a program')}{at}, since {since:%Y-%m-%d %H:%M:%S %Z}"
            hint += f"; if that host is gone: SELECT pg_terminate_backend({pid})"
        return OperationRunning(message, hint=hint)

    def require_in_place(self) -> None:
        """A server has its database open; nobody can move that away."""

    def require_writable(self) -> None:
        if self._read_only or self.fetch("SELECT current_setting('transaction_read_only')") != [
            ("off",)
        ]:
            raise read_only(self.name)

    def clock(self) -> datetime:
        """The server's."""
        (seconds,) = self.fetch("SELECT extract(epoch FROM clock_timestamp())")[0]
        return datetime.fromtimestamp(float(seconds), UTC)

    def _closed(self) -> VaultError:
        return VaultError(
            f"{self.name}: this vault was closed",
            hint="open it again; close() closes it for all threads",
        )

    def _explain(self, error: BaseException, connection: Connection | None = None) -> VaultError:
        then = ""
        if self.closed:
            return self._closed()
        lost = connection is not None and connection.closed
        if lost and connection is self._mine():  # its transaction went with it
            then = "nothing was stored"
        return explain(self.name, error, lost=lost, then=then)


def _together(connection: Connection, statements: str) -> psycopg.Cursor[tuple[Any, ...]]:
    """
    Several statements in one message. They cannot be prepared, which psycopg only notices if no
    signal's handler raises as the answer comes; else each later try would fail.
    """
    return connection.execute(statements, prepare=False)


def _lock(alone: bool) -> str:
    """The writers' lock, for the rest of the transaction."""
    return f"SELECT pg_advisory_xact_lock{'' if alone else '_shared'}({_WRITERS})"


def _is_cut_off(connection: Connection) -> bool:
    """A signal's handler raised while the server was at work: nothing can be sent any more."""
    return connection.info.transaction_status == TransactionStatus.ACTIVE


def _undo(connection: Connection) -> None:
    """End what is open; a connection in the middle of a call cannot be used again."""
    if connection.closed or connection.info.transaction_status == _IDLE:
        return
    try:
        connection.execute("ROLLBACK")
    except psycopg.Error:
        connection.close()


def _behind_pooler(connection: Connection) -> bool:
    """It makes up the number of the process that serves the connection."""
    return connection.execute("SELECT pg_backend_pid()").fetchone() != (
        connection.info.backend_pid,
    )


# Connections must not cross a fork: the child drops them without closing, and opens its own.
_OPEN: Final[weakref.WeakSet[Connections]] = weakref.WeakSet()
_LEFT_TO_PARENT: Final[list[object]] = []


def _after_fork() -> None:
    for database in list(_OPEN):
        database.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
