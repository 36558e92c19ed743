"""
Rows of a table, in statements of SQLite's that a damaged index cannot lead astray.

SQLite reads a column from an index that has it, even when it goes on to the table (measured).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from ...errors import NotADatabase, SchemaMismatch
from .connections import Connections
from .errors import damaged

_ROW_NUMBERS: Final = ("_rowid_", "rowid", "oid")  # SQLite's names, which a column may have too
_LEAST, _LAST = -(1 << 63), (1 << 63) - 1  # row numbers; another tool may have chosen any


class Tables(Connections):
    """What the engine asks of a table's rows."""

    def whole(self, table: str) -> str:
        return f"{table} NOT INDEXED"

    def row_key(self, table: str) -> str:
        """
        SQLite's row number, whose name is looked up once. VACUUM renumbers rows.

        If a column gets that name later, the rows read are not the ones asked for: an error.

        Raises:
            SchemaMismatch: columns of the table have all three names.
        """
        if (known := self._row_keys.get(table)) is not None:
            return known
        found = self.fetch("SELECT name FROM pragma_table_xinfo(?)", (table,))
        columns = {str(name).lower() for (name,) in found}
        for name in _ROW_NUMBERS:
            if name not in columns:
                return self._row_keys.setdefault(table, name)
        names = ", ".join(_ROW_NUMBERS)
        raise SchemaMismatch(
            f"{self.path}: columns of {table} are named {names}, so its rows cannot be told apart",
            hint="find the program that added them, and rename one",
        )

    def first_of(self, first: str, second: str) -> str:
        """SQLite does not look for the second if the first is there."""
        return f"{first} UNION ALL {second} LIMIT 1"

    def read_again(
        self,
        table: str,
        columns: str,
        searches: Sequence[tuple[str, str]],
        *,
        to_change: bool = False,
    ) -> str:
        """A write transaction is alone, so *to_change* changes nothing."""
        return _read_again(table, self.row_key(table), columns, tuple(searches))

    def astray(self, table: str) -> NotADatabase:
        return NotADatabase(
            f"{self.path}: an index of {table} leads to the wrong row; nothing was changed",
            hint="stop the programs that use the file, copy it, and run: sqlite3 FILE 'REINDEX';"
            " or restore a backup",
        )

    def exactly(self, table: str, column: str, value: str) -> str:
        """Even if the column's own comparison ignores case, or the like."""
        return (
            f"EXISTS (SELECT 1 FROM (SELECT _rowid_ AS n FROM {table} WHERE {column} = {value})"
            f" LEFT JOIN {table} ON {table}._rowid_ = n"
            f" WHERE CAST({table}.{column} AS BLOB) = CAST({value} AS BLOB))"
        )

    def pages(self, table: str, columns: str, size: int) -> Iterator[list[tuple[Any, ...]]]:
        """In the order of the table: updates cost half as much as in random order."""
        key, least = self.row_key(table), _LEAST
        some = f"WHERE {key} >= ? ORDER BY {key} LIMIT {size}"
        sql = f"SELECT {columns}, {key} FROM {self.whole(table)} {some}"
        while rows := self.fetch(sql, (least,)):
            last = rows[-1][-1]
            if rows[0][-1] < least or any(b[-1] <= a[-1] for a, b in pairwise(rows)):
                raise damaged(self.path, f"the rows of {table} are out of order")
            yield rows
            if last == _LAST:
                return
            least = last + 1


@functools.cache  # a dozen in all
def _read_again(table: str, key: str, columns: str, searches: tuple[tuple[str, str], ...]) -> str:
    keys = " UNION ALL ".join(
        f"SELECT {key} AS found_key, {mark} AS found_mark FROM {table} WHERE {where}"
        for where, mark in searches
    )
    again = f"LEFT JOIN {table} ON {table}.{key} = found_key"
    return f"SELECT {columns}, found_mark, found_key FROM ({keys}) {again}"
