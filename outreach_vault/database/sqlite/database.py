"""A database in one SQLite file: its rows, its schema, its upkeep."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from re import Pattern
from typing import Any, Final, TypeVar

from ...errors import NotADatabase, StorageError, VaultError, brief
from ...files import new_file, real
from ..engine import Cleaned, Concern, Database
from .connections import IN_MEMORY
from .errors import FAULTS
from .files import address, free_bytes, log_path, matches_in, require_content
from .tables import Tables

T = TypeVar("T")

SCRUB_AT_MOST: Final = 100_000_000  # bytes; beyond, writers wait for over a second (measured)
_CHECKPOINT_SECONDS: Final = 0.5  # how long one attempt to cut the log waits,
_CHECKPOINT_PAUSES: Final = (0.0, 0.5, 1.0, 2.0)  # and how long others may write before each
_TO_WAL: Final = "sqlite3 FILE 'PRAGMA journal_mode = WAL'"  # for an operator
_TABLES: Final = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
_TOKEN_AT_MOST: Final = 1024


def scratch() -> SQLiteDatabase:
    """A new, empty database, for this thread alone, gone when it is closed."""
    return SQLiteDatabase(IN_MEMORY, str(IN_MEMORY))


def open_file(path: Path, *, read_only: bool) -> SQLiteDatabase:
    """The existing file at *path*; raises as `open_database`."""
    require_content(path)
    if not read_only:
        return SQLiteDatabase(path)
    # The last to close a file moves its log into it, unless that connection is mode=ro. Without a
    # log, mode=ro would leave an empty one behind (both measured).
    mode = "ro" if os.path.exists(log_path(path)) else "rw"  # noqa: PTH110  # Path.exists may raise
    return SQLiteDatabase(path, address(path, mode), query_only=True)


def create_file(path: Path, fill: Callable[[Database], T]) -> T:
    """Make a new file; as `create_database`."""

    def make(part: Path) -> T:
        database = SQLiteDatabase(part)
        try:
            database.prepare()
            made = fill(database)
            database.truncate_log()
            return made
        finally:
            database.close_all()

    return new_file(path, make)


class SQLiteDatabase(Tables):
    """Made by `open_file`, `create_file` and `scratch`."""

    # Schema

    def define(
        self, sql: str, params: Sequence[object] = (), *, on_postgres: str | None = None
    ) -> None:
        self.change(sql, params)

    def schema_version(self) -> int:
        return int(self.fetch("PRAGMA user_version")[0][0])

    def set_schema_version(self, number: int) -> None:
        self.change(f"PRAGMA user_version = {number:d}")

    def belongs_to_another_program(self) -> bool:
        """Whether the file has an application_id; the desktop app's file has none."""
        return bool(self.fetch("PRAGMA application_id")[0][0])

    def tables(self) -> set[str]:
        """Without virtual tables, which belong to some program's module."""
        return {name for (name,) in self.fetch(_TABLES)}

    def columns(self) -> dict[str, list[str]]:
        both = f"FROM ({_TABLES}) t, pragma_table_info(t.name) c"
        shape: dict[str, list[str]] = {}
        for table, column in self.fetch(f"SELECT t.name, c.name {both} ORDER BY t.name, c.cid"):
            shape.setdefault(table, []).append(column)
        return shape

    def definitions(self) -> dict[str, str]:
        wanted = "type IN ('index', 'trigger') AND sql IS NOT NULL"
        sql = f"SELECT name, sql FROM sqlite_master WHERE {wanted} ORDER BY name"
        return dict(self.fetch(sql))

    def broken_references(self) -> list[tuple[Any, ...]]:
        return self.fetch("PRAGMA foreign_key_check")

    # Upkeep

    def prepare(self) -> None:
        """WAL mode, which the file keeps; the desktop app sets it at every start."""
        self.fetch("PRAGMA journal_mode = WAL")

    def keep_copy(self) -> Path:
        stamp = f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S.%f}"[:-3] + "Z"
        name = f"{self.path.name}.schema-{self.schema_version()}.{stamp}.backup"
        self.backup(copy := self.path.with_name(name), lambda _: None)
        return copy

    def home(self) -> str:
        return str(real(self.path))

    def copied_from(self, home: str, is_same: Callable[[Database], bool]) -> str | None:
        path = Path(home)
        try:
            if path.samefile(self.path):
                return None
            other = open_file(path, read_only=True)
        except (OSError, ValueError, VaultError):
            return None  # moved away, or not readable: nobody uses it here
        try:
            return home if is_same(other) else None
        except VaultError:
            return None
        finally:
            other.close_all()

    def clean(self, scrub: bool | None) -> Cleaned:
        problem = None
        if scrub is None and (size := self.size()) > SCRUB_AT_MOST:
            megabytes = size // 1024 // 1024
            problem = f"it has {megabytes} MB, and other programs would wait while it is rewritten"
        elif scrub is None and (index := self._held_by_row_number()):
            problem = f"the full-text index {index} uses row numbers, and would have to be rebuilt"
        elif scrub is not False and free_bytes(self.path.parent) < 2 * self.size():
            problem = "there is too little room beside the file to rewrite it"
        elif scrub is not False:
            try:
                whole = self.scrub()
                return Cleaned(log_truncated=whole, scrubbed=whole)
            except StorageError as error:
                problem = str(error)
        return Cleaned(self.truncate_log(), scrubbed=False, problem=problem)

    def truncate_log(self) -> bool:
        """
        Move the write-ahead log into the database and cut it to nothing.

        SQLite holds the write lock while it waits for readers here. Other programs give up after 5
        s, so it waits for half a second, several times.

        Returns:
            False if a reader's open transaction prevented it: SQLite does not raise for that.
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
        Rewrite the whole file, so that nothing replaced or deleted is left in it, and cut its log.

        Other writers wait meanwhile. It needs room for a copy of the file in SQLite's temporary
        folder (SQLITE_TMPDIR, else /var/tmp) and for another beside the file.

        Returns:
            As `truncate_log`.
        """
        self.change("VACUUM")
        return self.truncate_log()

    def size(self) -> int:
        """Of the database in bytes, without its log."""
        sql = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        return int(self.fetch(sql)[0][0])

    def _held_by_row_number(self) -> str | None:
        """
        A full-text index of another table's text. `scrub` may renumber that table's rows, and the
        index then finds the wrong ones.
        """
        like = "CREATE VIRTUAL TABLE%USING%fts%content%=%"
        found = self.fetch("SELECT name FROM sqlite_master WHERE sql LIKE ?", (like,))
        return str(found[0][0]) if found else None

    def backup(self, target: Path, look: Callable[[Database], T]) -> T:
        def make(part: Path) -> T:
            self._copy_into(part)
            copy = SQLiteDatabase(part)
            try:
                return look(copy)
            finally:
                copy.close_all()

        return new_file(target, make, like=self.path)

    def _copy_into(self, empty: Path) -> None:
        try:
            with contextlib.closing(sqlite3.connect(address(empty, "rw"), uri=True)) as copy:
                self.connection().backup(copy)
                found = [row[0] for row in copy.execute("PRAGMA quick_check")]
        except FAULTS as error:
            raise self._explain(error) from error
        if found != ["ok"]:
            raise NotADatabase(
                f"{self.path}: its copy does not pass SQLite's quick_check: {found[0]}",
                hint="the file is damaged; restore a backup",
            )

    def concerns(self, *tables: str, deep: bool) -> Iterator[Concern]:
        for line in self.damage(*tables, deep=deep):
            advice = "stop the programs that use the file, and restore a backup"
            found = f"SQLite finds: {' '.join(line.split())}"
            yield Concern("problem", "damaged file", found, advice)
        if (mode := str(self.fetch("PRAGMA journal_mode")[0][0])) != "wal":
            found = f"the file is in journal mode {mode}, not WAL: programs block each other"
            advice = (
                f"stop the programs that use the file, and run: {_TO_WAL}; find what changed it"
            )
            yield Concern("problem", "journal mode", found, advice)
        for what, name, table in self._planted(tables):
            level, kind, does = "problem", "planted trigger", "undo or copy what is stored"
            if what == "view":
                level, kind, does = "notice", "view", "show what is stored, still sealed"
            found = f"the {what} {brief(name)} on {table} is not part of this schema: it can {does}"
            drop = f'DROP {what.upper()} "{brief(name)}"'
            advice = f"find the program that made it; with any tool for SQLite: {drop}"
            yield Concern(level, kind, found, advice)

    def damage(self, *tables: str, deep: bool = False) -> list[str]:
        """What SQLite finds wrong with the file, and in these tables with their indexes."""
        found = self._check("quick_check", *(f"integrity_check('{table}')" for table in tables))
        if deep and not found:  # the thorough check stops at what the quick one finds
            found = self._check("integrity_check")
        return found

    def _check(self, *checks: str) -> list[str]:
        found = [str(row[0]) for check in checks for row in self.fetch(f"PRAGMA {check}")]
        return list(dict.fromkeys(line for line in found if line != "ok"))

    def _planted(self, tables: Sequence[str]) -> list[tuple[str, str, str]]:
        """Triggers on these tables and views that read them: what, name, table. We make none."""
        found = self.fetch("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name")
        return [
            (str(what), str(name), table)
            for what, name, on, sql in found
            for table in tables
            if (what == "trigger" and str(on).lower() == table)
            or (what == "view" and table != "projects" and table in str(sql).lower())
        ]

    def replaced(self, pattern: Pattern[bytes]) -> tuple[str, set[bytes]]:
        log = log_path(self.path)
        return log.name, matches_in(log, pattern, _TOKEN_AT_MOST)
