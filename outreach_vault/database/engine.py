"""What the vault needs of a database. Each kind has an engine, which keeps its own SQL."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from re import Pattern
from typing import Any, ClassVar, NamedTuple, TypeVar

from ..errors import NotADatabase, WrongArgument

T = TypeVar("T")


class Concern(NamedTuple):
    """
    Something about the database itself that an operator may want to know.

    Attributes:
        level, kind, message, hint: as `doctor.Finding`.
    """

    level: str
    kind: str
    message: str
    hint: str | None = None


class Cleaned(NamedTuple):
    """
    What `Database.clean` did.

    Attributes:
        log_truncated: no replaced value is left in the log; None if only the server knows.
        scrubbed: nor in free space.
        problem: why it was not scrubbed, unless the caller asked for that.
    """

    log_truncated: bool | None
    scrubbed: bool
    problem: str | None = None


class Location(ABC):
    """
    Where a database is, or will be; nothing is opened yet.

    As text it is a name for people, without a password.
    """

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def exists(self) -> bool:
        """Whether anything is there, a database or not."""

    @abstractmethod
    def open(self, *, read_only: bool = False) -> Database:
        """As `open_database`."""

    @abstractmethod
    def create(self, fill: Callable[[Database], T]) -> T:
        """
        Make a new database, complete or not at all. *fill* puts everything in.

        Returns:
            What *fill* returns.
        Raises:
            StorageError: something is there, or nothing can be written.
        """

    @abstractmethod
    def require_locks(self) -> None:
        """
        Raise what `Database.operators_turn` would raise, before anything is made.

        Another process's turn is no fault.
        """

    def make_folder(self) -> Path | None:
        """
        Make the folder of the desktop app's own file, for its owner alone, if that file is meant
        and there is no such folder.

        Returns:
            The folder; None if it was there, or another database is meant.
        Raises:
            StorageError: it cannot be made.
        """
        return None

    def exposed(self) -> list[Concern]:
        """Who else can read or write the database. Ask before it is opened."""
        return []


class Database(ABC):
    """
    One database. Threads share it, but no two use one connection at once; nor does a forked child.

    SQL must work in SQLite from 3.37 and PostgreSQL from 15, with `?` or `:name` for parameters.
    Every method turns the database's errors into `VaultError`.

    Attributes:
        name: what to call it in a message; without a password.
        kind: "SQLite" or "PostgreSQL".
        unchecked: how a program can delete a row that others name.
        strangers: what to do where another program's tables are.
        closed: `close_all` was called.
    """

    name: str
    kind: ClassVar[str]
    unchecked: ClassVar[str]
    strangers: ClassVar[str]
    closed: bool

    # Statements

    @abstractmethod
    def fetch(
        self, sql: str, params: Sequence[object] | Mapping[str, object] = ()
    ) -> list[tuple[Any, ...]]:
        """All rows of one statement."""

    @abstractmethod
    def each(self, sql: str, *, exactly: bool = False) -> Iterator[tuple[Any, ...]]:
        """
        The rows of one statement, one after another and all from one moment.

        Args:
            exactly: text that is not UTF-8 comes as bytes; else its faulty bytes are replaced.
        """

    @abstractmethod
    def change(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run one statement. Returns how many rows it changed."""

    @abstractmethod
    def change_each(self, sql: str, params: Iterable[Sequence[object]]) -> int:
        """Run one statement with each of *params*. Returns how many rows changed in all."""

    def swap(
        self, table: str, new: Sequence[str], old: Sequence[str], rows: Sequence[Sequence[object]]
    ) -> int:
        """
        For each of *rows* set the columns *new* where the columns *old* still have these values.

        Args:
            rows: for each the values of *new*, then those of *old*; none is NULL.
        Returns:
            How many rows changed in all.
        """
        become, are = (" = ?, ".join(new), " = ? AND ".join(old))
        return self.change_each(f"UPDATE {table} SET {become} = ? WHERE {are} = ?", rows)

    # For a copy from one engine to another

    def at_one_moment(self, operation: Callable[[], T]) -> T:
        """
        Run *operation*: all that it reads is from one moment. Others write on meanwhile.

        Raises:
            WrongArgument: the server's own tools make its copies.
        """
        raise WrongArgument(
            f"{self.name}: only a vault in a file is copied to a server",
            hint="pg_dump and pg_restore copy one that is on a server",
        )

    def fill(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """
        Put rows into an empty table, as they are: none of the schema's triggers runs. Inside a
        write transaction.

        Raises:
            StorageError: the table does not take a row.
            WrongArgument: this engine takes no copies.
        """
        raise WrongArgument(f"{self.name}: a vault is copied to a server only")

    # What damaged indexes cannot lead astray

    @abstractmethod
    def whole(self, table: str) -> str:
        """For FROM, UPDATE and DELETE: the table's own rows, never by way of an index."""

    @abstractmethod
    def row_key(self, table: str) -> str:
        """The column that tells the rows of *table* apart, whatever another tool left in them."""

    @abstractmethod
    def first_of(self, first: str, second: str) -> str:
        """
        A statement for one row: of *first*, else of *second* (SQL). They have the same columns; the
        second of these is NULL in *second* alone.
        """

    @abstractmethod
    def read_again(
        self,
        table: str,
        columns: str,
        searches: Sequence[tuple[str, str]],
        *,
        to_change: bool = False,
    ) -> str:
        """
        A statement for the rows that the searches find, each read again by its key.

        Args:
            searches: for each a condition, and the mark for its rows (SQL).
            to_change: for one search in a write transaction: nobody else changes these rows until
                it ends.
        Returns:
            SQL that gives *columns*, the mark, the key. A key without a row gives NULLs.
        """

    @abstractmethod
    def exactly(self, table: str, column: str, value: str) -> str:
        """A condition: *table* has a row whose *column* is *value* (SQL), byte for byte."""

    @abstractmethod
    def pages(self, table: str, columns: str, size: int) -> Iterator[list[tuple[Any, ...]]]:
        """All rows in the order of the table, *size* at a time: *columns*, and the key."""

    @abstractmethod
    def astray(self, table: str) -> NotADatabase:
        """The error for an index that leads to the wrong row."""

    # Transactions and turns

    @abstractmethod
    def write(self, operation: Callable[[], T], *, alone: bool = False) -> T:
        """
        Run *operation* in one write transaction; inside another one, as a part of that. It may be
        undone and run again.

        Args:
            alone: no other write transaction is open meanwhile. Two that are open at once see
                nothing of each other.

        It takes a function because a `with` block may never end: a signal's handler can raise just
        as `__exit__` begins. The transaction would stay open, and later writes would be
        acknowledged as parts of it and lost with it.
        """

    @abstractmethod
    def in_transaction(self) -> bool:
        """Whether this thread has a transaction open."""

    @abstractmethod
    def patiently(self, operation: Callable[[], T]) -> T:
        """Run *operation*; meanwhile this thread waits longer for each lock."""

    @abstractmethod
    def operators_turn(self, operation: Callable[[], T], *, patience: float = 0.0) -> T:
        """
        Run *operation* patiently, while no other process changes the keys or the schema.

        Args:
            patience: how many seconds to wait for other processes.
        Raises:
            OperationRunning: another process changes them.
        """

    @abstractmethod
    def require_in_place(self) -> None:
        """Raise unless it is still the database that was opened."""

    @abstractmethod
    def require_writable(self) -> None:
        """Raise what a write would raise, but write nothing."""

    @abstractmethod
    def clock(self) -> datetime:
        """The time on the clock that all who share the database go by."""

    # Schema

    @abstractmethod
    def define(
        self, sql: str, params: Sequence[object] = (), *, on_postgres: str | None = None
    ) -> None:
        """Run a statement of a step; as `Schema.execute`."""

    @abstractmethod
    def schema_version(self) -> int:
        """How many of the app's steps were applied."""

    @abstractmethod
    def set_schema_version(self, number: int) -> None:
        """Inside a write transaction this commits and rolls back with it."""

    @abstractmethod
    def belongs_to_another_program(self) -> bool:
        """Whether the database itself says so."""

    @abstractmethod
    def tables(self) -> set[str]:
        """The names of its tables, without views."""

    @abstractmethod
    def columns(self) -> dict[str, list[str]]:
        """The columns of each of `tables`, in order, by table."""

    @abstractmethod
    def definitions(self) -> dict[str, str]:
        """The SQL of each index and trigger, by name."""

    @abstractmethod
    def broken_references(self) -> list[tuple[Any, ...]]:
        """Rows whose foreign key has no parent: table, key of the row, parent table, key number."""

    # Upkeep

    @abstractmethod
    def prepare(self) -> None:
        """Set what each database of this schema has beside its tables."""

    @abstractmethod
    def keep_copy(self) -> Path | None:
        """
        Make a verified copy before the schema is changed.

        Returns:
            Where it is; None if the server's own tools make copies.
        """

    @abstractmethod
    def home(self) -> str:
        """What tells this database from a copy of it, for as long as it stays in its place."""

    @abstractmethod
    def copied_from(self, home: str, is_same: Callable[[Database], bool]) -> str | None:
        """
        The database that has this *home*, as a name for people, if this one is a copy of it and it
        may be in use; None if it is this one, or nobody can use it.

        Args:
            is_same: whether another database has the same vault.
        """

    @abstractmethod
    def clean(self, scrub: bool | None) -> Cleaned:
        """
        Remove replaced and deleted data from the log, and from free space, where other programs'
        writes may have put copies.

        Args:
            scrub: rewrite everything, while other writers wait. By default only if it is short and
                safe.
        """

    def backup_command(self, target: Path) -> str | None:
        """The server's own command for a copy at *target*, if `backup` makes none."""
        return None

    @abstractmethod
    def backup(self, target: Path, look: Callable[[Database], T]) -> T:
        """
        Make a consistent copy at *target*, for its owner alone, read back and checked.

        Args:
            look: gets the copy.
        Returns:
            What *look* returns.
        Raises:
            StorageError: the copy cannot be made, or *target* exists; nothing is left behind.
        """

    @abstractmethod
    def concerns(self, *tables: str, deep: bool) -> Iterator[Concern]:
        """
        What is wrong with the database itself: damage, settings, what others have put on *tables*.

        Args:
            deep: check the whole file, which takes seconds for a million rows.
        """

    def grants(self, adapters: str, operators: str) -> list[str]:
        """
        SQL that gives these two roles of the server what they need, line by line.

        Raises:
            WrongArgument: the database has no roles.
        """
        raise WrongArgument(
            f"{self.name}: a file has no roles", hint="its mode decides who can use it: chmod 600"
        )

    @abstractmethod
    def replaced(self, pattern: Pattern[bytes]) -> tuple[str, set[bytes]]:
        """Where replaced or deleted data may be left, and each match of *pattern* there."""

    @abstractmethod
    def connection(self, in_transaction: Callable[[], bool] | None = None) -> Any:
        """This thread's own connection, for Peewee. *in_transaction*: whether that is in one."""

    @abstractmethod
    def close_all(self) -> None:
        """Close all threads' connections. A thread at work gets an error. Safe to call twice."""
