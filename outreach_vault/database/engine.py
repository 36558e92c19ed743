"""What the vault needs of a database. An engine for each kind gives it, and keeps its own words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from re import Pattern
from typing import Any, NamedTuple, TypeVar

from ..errors import NotADatabase

T = TypeVar("T")


class Concern(NamedTuple):
    """
    Something about the database itself that an operator may want to know.

    Attributes:
        level: `problem` or `notice`.
        kind: what it is, in one or two words.
        message: what, where, and the likely cause. hint: what to do next, or None.
    """

    level: str
    kind: str
    message: str
    hint: str | None = None


class Cleaned(NamedTuple):
    """
    What `Database.clean` has done.

    Attributes:
        log_truncated: nothing that was replaced is left in the log.
        scrubbed: nor in free space.
        problem: why it was not scrubbed, where that is not what was asked for.
    """

    log_truncated: bool
    scrubbed: bool
    problem: str | None = None


class Database(ABC):
    """
    One database. Threads share it, and each has a connection of its own; so has a forked child.

    SQL is what SQLite from 3.37 and PostgreSQL from 15 both take, with `?` or `:name` for parameters.
    Every method raises `VaultError` for what the database says.

    Attributes:
        path: its file.
        closed: `close_all` was called.
    """

    path: Path
    closed: bool

    # Statements

    @abstractmethod
    def fetch(
        self, sql: str, params: Sequence[object] | Mapping[str, object] = ()
    ) -> list[tuple[Any, ...]]:
        """All rows that one statement gives."""

    @abstractmethod
    def each(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """The rows that one statement gives, one after the other and all from one moment."""

    @abstractmethod
    def change(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run one statement; how many rows it changed."""

    @abstractmethod
    def change_each(self, sql: str, params: Iterable[Sequence[object]]) -> int:
        """Run one statement with each of *params*; how many rows all of them changed."""

    # What damaged indexes cannot lead astray

    @abstractmethod
    def whole(self, table: str) -> str:
        """For FROM, UPDATE and DELETE: the table's own rows, and none by way of an index."""

    @abstractmethod
    def row_key(self, table: str) -> str:
        """The column that tells the rows of *table* apart, whatever another tool left in them."""

    @abstractmethod
    def read_again(self, table: str, columns: str, searches: Sequence[tuple[str, str]]) -> str:
        """
        A statement for the rows that the searches lead to, each read again by its key.

        Args:
            searches: for each a condition, and what its rows are marked with (SQL).
        Returns:
            SQL that gives *columns*, the mark, the key. A key that no row has gives NULLs.
        """

    @abstractmethod
    def exactly(self, table: str, column: str, value: str) -> str:
        """A condition: *table* has a row whose *column* is *value* (SQL) to the last byte."""

    @abstractmethod
    def pages(self, table: str, columns: str, size: int) -> Iterator[list[tuple[Any, ...]]]:
        """All rows in the order of the table, *size* at a time: *columns*, and the key."""

    def astray(self, table: str) -> NotADatabase:
        """The error for an index that leads to another row than the one that was asked for."""
        return NotADatabase(
            f"{self.path}: an index of {table} leads to another row than the one that was asked for; nothing was changed",
            hint="stop the programs that use the file, copy it, and run: sqlite3 FILE 'REINDEX'; or restore a backup",
        )

    # Transactions and turns

    @abstractmethod
    def write(self, operation: Callable[[], T]) -> T:
        """
        What *operation* gives, in one write transaction; inside another, in a part of that.

        It takes a function since a `with` block can be left without its end: a signal's handler may
        raise as `__exit__` begins. The transaction would stay open, and each later write be
        acknowledged as a part of it and lost with it.
        """

    @abstractmethod
    def patiently(self, operation: Callable[[], T]) -> T:
        """What *operation* gives; meanwhile this thread waits for longer for each lock."""

    @abstractmethod
    def operators_turn(self, operation: Callable[[], T], *, patience: float = 0.0) -> T:
        """
        What *operation* gives, patiently, while no other process changes the keys or the schema.

        Args:
            patience: for how many seconds to wait for that.
        Raises:
            OperationRunning: another process does.
        """

    @abstractmethod
    def require_in_place(self) -> None:
        """Raise unless it is still the database that was opened."""

    @abstractmethod
    def require_writable(self) -> None:
        """Raise what a write would raise, and write nothing."""

    # Schema

    @abstractmethod
    def schema_version(self) -> int:
        """How many of the app's steps were applied."""

    @abstractmethod
    def set_schema_version(self, number: int) -> None:
        """Inside a write transaction this commits and rolls back with it."""

    @abstractmethod
    def belongs_to_another_program(self) -> bool:
        """Whether it says so itself."""

    @abstractmethod
    def tables(self) -> set[str]:
        """The names of its tables. A view is none."""

    @abstractmethod
    def columns(self) -> dict[str, list[str]]:
        """The columns of each of `tables`, in order, by table."""

    @abstractmethod
    def definitions(self) -> dict[str, str]:
        """The SQL of each index and trigger, by name."""

    @abstractmethod
    def scratch(self) -> Database:
        """A new, empty database of this kind, for this thread alone and for as long as it is open."""

    @abstractmethod
    def broken_references(self) -> list[tuple[Any, ...]]:
        """Rows whose foreign key points at nothing: table, key of the row, parent, number of the key."""

    # Upkeep

    @abstractmethod
    def prepare(self) -> None:
        """What each file of this schema has beside its tables."""

    @abstractmethod
    def clean(self, scrub: bool | None) -> Cleaned:
        """
        Leave nothing that was replaced or deleted in the log, nor in free space, where other
        programs' writes may have put copies.

        Args:
            scrub: write everything anew, which keeps other writers waiting. By default only where
                that is short and safe.
        """

    @abstractmethod
    def backup(self, target: Path, look: Callable[[Database], T]) -> T:
        """
        Make a consistent copy at *target*, its owner's alone, read back and checked.

        Args:
            look: what it gives of the copy is given back.
        Raises:
            StorageError: the copy cannot be made, or *target* exists; nothing is left behind.
        """

    @abstractmethod
    def concerns(self, *tables: str, deep: bool) -> Iterator[Concern]:
        """
        What is wrong with the database itself: damage, settings, what others have put on *tables*.

        Args:
            deep: check all of it, which takes seconds for a million rows.
        """

    @abstractmethod
    def replaced(self, pattern: Pattern[bytes]) -> tuple[str, set[bytes]]:
        """Where what was replaced or deleted may be left, and each match of *pattern* there."""

    @abstractmethod
    def connection(self) -> Any:
        """This thread's own connection, for Peewee."""

    @abstractmethod
    def close_all(self) -> None:
        """
        Close the connections of all threads. A thread that is still at work gets an error. Closing
        twice does nothing.
        """
