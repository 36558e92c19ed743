"""
Damage for tests: as much of SQLite's file format as is needed to harm one entry of one b-tree.

All of it works on the bytes of a database file, whole in memory. They must be those of a file that
was checkpointed and closed, with no `-wal` beside it: what the log holds is not in them, and a log
that is found beside the harmed file would put the pages of before over the harm.

The format is https://www.sqlite.org/fileformat2.html: sections 1.3 (header), 1.6 (pages) and 2.1
(records).
"""

from __future__ import annotations

import contextlib
import functools
import random
import sqlite3
from pathlib import Path
from typing import Final, NamedTuple

HEADER: Final = 100
OURS: Final = ("provider_credentials", "vault_keys")
INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE = 2, 5, 10, 13
_WIDTHS: Final = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 8, 8: 0, 9: 0}  # of a serial type


class Tree(NamedTuple):
    """A table or an index: its b-tree begins at page *root*."""

    name: str
    table: str
    root: int
    is_index: bool


def closed_bytes(path: Path) -> bytes:
    """The bytes of a database that no connection has open and whose log holds nothing."""
    log = path.with_name(f"{path.name}-wal")
    assert not log.exists() or not log.stat().st_size, f"{path} was not closed: its log holds pages"
    return path.read_bytes()


@functools.lru_cache(maxsize=8)
def trees(data: bytes, tables: tuple[str, ...] = OURS) -> tuple[Tree, ...]:
    """
    The b-trees of these tables and their indexes, also those that SQLite made for a PRIMARY KEY.

    From *data* while it is whole: SQLite itself says where they begin.
    """
    # A database in memory has no log, and SQLite refuses one whose header says that it has.
    image = data[:18] + b"\1\1" + data[20:]
    marks = ", ".join("?" * len(tables))
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(image)
        rows = connection.execute(
            "SELECT name, tbl_name, rootpage, type = 'index' FROM sqlite_master"
            f" WHERE tbl_name IN ({marks}) AND type IN ('table', 'index') ORDER BY name",
            tables,
        ).fetchall()
    return tuple(Tree(name, table, root, bool(is_index)) for name, table, root, is_index in rows)


class Image:
    """
    The bytes of a database (checkpointed and closed), harmed in place; `bytes(image)` gives them.

    Pages are numbered from 1, as SQLite does it, and the entries of a page from 0.
    """

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        size = int.from_bytes(data[16:18], "big")
        self.page_size = 65536 if size == 1 else size

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    @property
    def pages(self) -> int:
        return len(self.data) // self.page_size

    def begin(self, page: int) -> int:
        return (page - 1) * self.page_size

    def kind(self, page: int) -> int:
        return self.data[self._head(page)]

    def count(self, page: int) -> int:
        """How many entries the page has."""
        return self._number(self._head(page) + 3)

    def pages_of(self, root: int) -> list[int]:
        """Each page of the b-tree at *root*, but those of overflow, in the order of its keys."""
        if self.kind(root) in (LEAF_INDEX, LEAF_TABLE):
            return [root]
        children = [self._number(self._cell(root, i), 4) for i in range(self.count(root))]
        children.append(self._number(self._head(root) + 8, 4))
        return [root, *(page for child in children for page in self.pages_of(child))]

    def leaves(self, root: int) -> list[int]:
        return [page for page in self.pages_of(root) if self.kind(page) in (LEAF_INDEX, LEAF_TABLE)]

    def rowid(self, page: int, entry: int) -> int:
        """The row that an entry of a leaf leads to, or is."""
        at = self._cell(page, entry)
        if self.kind(page) == LEAF_TABLE:
            _, at = self._varint(at)
            number, _ = self._varint(at)
            return number - (1 << 64) if number >> 63 else number
        kind, at, _ = self._last_column(page, entry)
        if kind in (8, 9):
            return kind - 8
        return int.from_bytes(self.data[at : at + _WIDTHS[kind]], "big", signed=True)

    def swap(self, page: int, first: int, second: int) -> None:
        """
        Swap two of the page's cell pointers: the entries stay whole, and are in a wrong order.

        On a leaf of a table this puts two rowids out of order.
        """
        one, other = self._pointer(page, first), self._pointer(page, second)
        data = self.data
        data[one : one + 2], data[other : other + 2] = data[other : other + 2], data[one : one + 2]

    def plant(self, page: int, entry: int, rowid: int) -> bool:
        """
        Let an entry of an index's leaf lead to another row; False where the number needs more room.

        What the entry says of the row's columns stays as it was.
        """
        kind, at, kind_at = self._last_column(page, entry)
        width = _WIDTHS[kind]
        if not width:
            if rowid not in (0, 1) or kind not in (8, 9):
                return False
            self.data[kind_at] = 8 + rowid
            return True
        if not -(1 << (8 * width - 1)) <= rowid < 1 << (8 * width - 1):
            return False
        self.data[at : at + width] = rowid.to_bytes(width, "big", signed=True)
        return True

    def drop(self, page: int, entry: int) -> None:
        """Take an entry out of the cell pointers, and one off the page's count of cells."""
        after, end = self._pointer(page, entry + 1), self._pointer(page, self.count(page))
        self.data[after - 2 : end - 2] = self.data[after:end]
        head = self._head(page)
        self.data[head + 3 : head + 5] = (self.count(page) - 1).to_bytes(2, "big")

    def _head(self, page: int) -> int:
        return self.begin(page) + (HEADER if page == 1 else 0)

    def _number(self, at: int, width: int = 2) -> int:
        return int.from_bytes(self.data[at : at + width], "big")

    def _pointer(self, page: int, entry: int) -> int:
        is_interior = self.kind(page) in (INTERIOR_INDEX, INTERIOR_TABLE)
        return self._head(page) + (12 if is_interior else 8) + 2 * entry

    def _cell(self, page: int, entry: int) -> int:
        return self.begin(page) + self._number(self._pointer(page, entry))

    def _varint(self, at: int) -> tuple[int, int]:
        """The number at *at*, and where what follows it begins."""
        number = 0
        for used in range(8):
            byte = self.data[at + used]
            number = number << 7 | byte & 0x7F
            if byte < 0x80:
                return number, at + used + 1
        return number << 8 | self.data[at + 8], at + 9

    def _last_column(self, page: int, entry: int) -> tuple[int, int, int]:
        """The serial type of an index entry's rowid, and where the rowid and the type are."""
        assert self.kind(page) == LEAF_INDEX
        _, record = self._varint(self._cell(page, entry))
        size, at = self._varint(record)
        body, kind, kind_at = record + size, 0, at
        value = body
        while at < body:
            value += self._width(kind)
            kind_at = at
            kind, at = self._varint(at)
        return kind, value, kind_at

    @staticmethod
    def _width(kind: int) -> int:
        return _WIDTHS[kind] if kind < 12 else (kind - 12) // 2


def random_damage(data: bytes, seed: int) -> bytes:
    """
    Damage to a whole file (checkpointed and closed), which *seed* alone decides.

    Mostly it is on the pages of our tables and of their indexes, and there half of the time where
    the page's order is kept: in its header, in its cell pointers. The file's header is mostly left
    alone, so that the file opens.
    """
    choice, image = random.Random(seed), Image(data)
    ours = [page for tree in trees(data) for page in image.pages_of(tree.root)]
    everywhere = list(range(1, image.pages + 1))
    spared = choice.random() < 0.9
    for _ in range(choice.choice((1, 1, 1, 2, 3))):
        pages = ours if choice.random() < 0.75 else everywhere
        _harm(image, choice, choice.choice(pages), choice.choice(pages))
    return data[:HEADER] + bytes(image)[HEADER:] if spared else bytes(image)


def _harm(image: Image, choice: random.Random, page: int, other: int) -> None:
    size, data, kind = image.page_size, image.data, choice.random()
    begin, there = image.begin(page), image.begin(other)
    if kind < 0.62:
        span = size if choice.random() < 0.5 else 8 + 2 * 24
        for _ in range(choice.randint(1, 8)):
            at = begin + choice.randrange(span)
            data[at] = choice.choice(
                (
                    choice.randrange(256),
                    data[at] ^ 1 << choice.randrange(8),
                    (data[at] + 1) % 256,
                    0,
                    255,
                )
            )
    elif kind < 0.77:
        at, length = begin + choice.randrange(size), choice.randint(2, 64)
        length = min(length, begin + size - at)
        data[at : at + length] = choice.choice((choice.randbytes(length), bytes(length)))
    elif kind < 0.86:
        one, two = bytes(data[begin : begin + size]), bytes(data[there : there + size])
        data[begin : begin + size], data[there : there + size] = two, one
    elif kind < 0.92:
        data[begin : begin + size] = bytes(size)
    else:  # two or eight bytes, which a sum of their own would find and SQLite keeps none
        at = begin + 8
        first, second = (at + 2 * choice.randrange(16) for _ in range(2))
        one, two = bytes(data[first : first + 2]), bytes(data[second : second + 2])
        data[first : first + 2], data[second : second + 2] = two, one
