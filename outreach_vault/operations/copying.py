"""
Copy a vault from its file to an empty database on a server, which a team of hosts then shares.

On the server all of it is one transaction. However a run ends before its last step, nothing is
there, and the same command does it anew; nobody ever reads half a vault. To go on where a run was
interrupted would save a minute, and mix two moments of the file.

The rows are copied as they are stored: what was sealed for its place is in the same place, under
the same key of the same key store. The file is only read.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..database import Database, Location, is_url, locate
from ..errors import SchemaError, StorageError, WrongArgument, brief
from ..keys import home, states
from ..keys.keyset import KeySet
from ..keys.stores import KeyStore
from ..schema import facts, migrator
from ..schema.shapes import as_text
from ..schema.steps import SHARED
from ..values.opening import fault
from ..values.rows import TABLE, TABLES, Row, Rows
from ..vault import Vault

if TYPE_CHECKING:
    from ..schema.models import Column

BATCH: Final = 500
NAMED_AT_MOST: Final = 1000  # rows of one kind; memory must not grow with the rows
_SHOWN: Final = 20  # in an error
_VITAL: Final = (facts.TABLE, states.TABLE)  # no vault without each of their rows
_OWN_FACTS: Final = MappingProxyType({facts.TABLE: 0})  # where it lives, each notes for itself
_KINDS: Final = MappingProxyType(
    {str: "text", int: "an integer", float: "a real number", bytes: "bytes that are not text"}
)

Progress = Callable[[int, int], None]
_Ids = dict[str, set[object]]


class Named(NamedTuple):
    """A row of a table, and what is wrong with it."""

    table: str
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Copied:
    """
    What was copied.

    Attributes:
        source, target: the two databases, as names for people.
        already: an earlier run had copied all of it; this one only looked.
        rows: how many rows each table has.
        values: how many values are `ok`, `foreign` and `unreadable`; each was opened in the copy.
        unreadable_rows: values, previous values and access tokens that do not open there.
        left_out: rows that PostgreSQL would refuse; `left_out_count` counts them all.
        left_behind: tables, and `table.column`, that are no part of this version's schema.
    """

    source: str
    target: str
    vault_id: str
    already: bool
    rows: dict[str, int]
    values: dict[str, int]
    unreadable_rows: tuple[Named, ...]
    left_out: tuple[Named, ...]
    left_out_count: int
    left_behind: tuple[str, ...]


def copy(
    database: str | os.PathLike[str] | None,
    target: str,
    *,
    key_store: KeyStore | None = None,
    skip_broken: bool = False,
    progress: Progress | None = None,
) -> Copied:
    """
    Copy all of this version's tables from a file to an empty database on a server.

    Args:
        database, key_store: as for `Vault.open`.
        target: the server's URL.
        skip_broken: leave out rows that PostgreSQL would refuse, and name them.
        progress: called with (rows copied, rows in all).
    Raises:
        WrongArgument: not from a file to a server.
        SchemaError: the target is not empty, or PostgreSQL would refuse rows; it names them.
        KeyUnavailable: the active key cannot be read, or was replaced.
        StorageError: one of the two cannot be read or written.
        In each case nothing was copied. If the answer to the last step was lost
        (`OutcomeUnknown`), run it again: it says whether all is there.
    """
    if not is_url(target):  # not repeated: it may be a secret in the wrong place
        raise WrongArgument("what to copy to is not a URL of PostgreSQL (postgresql://...)")
    to, target = locate(target), ""  # no frame of an error keeps a password of it
    with Vault.open(database, key_store=key_store, read_only=True) as vault:

        def work() -> Copied:
            active = vault.keys.states.active_id()
            vault.keys.require_not_superseded(active)
            vault.keys.cipher(active)
            to.require_locks()
            return _copy(vault, to, skip_broken, progress)

        # The file's turn: a rotation meanwhile could destroy keys that the copy needs.
        source = vault.database
        return source.operators_turn(lambda: source.at_one_moment(work))


def _copy(vault: Vault, to: Location, skip_broken: bool, progress: Progress | None) -> Copied:
    there = _rows_there(to, vault.keys.vault_id)
    survey = _survey(vault.database)
    if survey.broken and not (skip_broken and survey.vital_whole):
        raise _refused(vault.database, survey)
    if there is None:
        values, unreadable = to.create(lambda new: _fill(new, vault, survey, progress))
    elif there | _OWN_FACTS == survey.rows | _OWN_FACTS:
        with Vault.open(to, key_store=vault.keys.store, read_only=True) as copied:
            values, unreadable = _opened(copied.database, copied.keys)
    else:
        raise SchemaError(
            f"{to}: this vault is there already, with other rows than in the file; nothing was"
            " changed",
            hint="it has been used since it was copied: use it, or name an empty database",
        )
    return Copied(
        source=vault.database.name,
        target=str(to),
        vault_id=vault.keys.vault_id,
        already=there is not None,
        rows=survey.rows,
        values=values,
        unreadable_rows=unreadable,
        left_out=tuple(survey.broken),
        left_out_count=survey.refused,
        left_behind=_left_behind(vault.database),
    )


def _rows_there(to: Location, vault_id: str) -> dict[str, int] | None:
    """How many rows the tables of this vault's copy have; None if nothing is there."""
    if not to.exists():
        return None
    target = to.open(read_only=True)
    try:
        tables = target.tables()
        if not _columns().keys() <= tables or facts.facts(target).get("vault_id") != vault_id:
            more = f" and {len(tables) - 1} more" if len(tables) > 1 else ""
            raise SchemaError(
                f"{to}: it is not empty: it has the table {brief(min(tables))}{more};"
                " nothing was changed",
                hint="name an empty database, or an empty schema: ?options=-csearch_path%3DNAME",
            )
        return _counts(target)
    finally:
        target.close_all()


def _fill(
    new: Database, vault: Vault, survey: _Survey, progress: Progress | None
) -> tuple[dict[str, int], tuple[Named, ...]]:
    """Inside the transaction that makes the database: what raises here leaves nothing."""
    migrator.fill(new)
    for table in reversed(_columns()):  # what the steps put there
        new.change(f"DELETE FROM {table}")
    total, seen = sum(survey.rows.values()), 0

    def rows(table: str, columns: list[Column], ids: _Ids) -> Iterator[tuple[Any, ...]]:
        nonlocal seen
        for row, reason in _judged(vault.database, table, columns, ids):
            if reason is None:
                yield row
                seen += 1
                if progress and (seen % BATCH == 0 or seen == total):
                    progress(seen, total)

    ids: _Ids = {}
    for table, columns in _columns().items():
        new.fill(table, [column.name for column in columns], rows(table, columns, ids))
    if wrong := [table for table, count in _counts(new).items() if count != survey.rows[table]]:
        raise StorageError(
            f"{new.name}: {', '.join(wrong)}: the server did not keep each row; nothing was copied",
            hint="find out what the server does with these tables, and try again",
        )
    new.set_schema_version(SHARED)
    keys = KeySet(new, vault.keys.store, vault.keys.vault_id)
    home.record(new, keys)
    return _opened(new, keys)


class _Survey(NamedTuple):
    """
    What is in the file.

    Attributes:
        rows: how many rows of each table PostgreSQL takes.
        broken: rows that it would refuse, the first of *refused*.
        vital_whole: none of these is of a table that must be copied whole.
    """

    rows: dict[str, int]
    broken: list[Named]
    refused: int
    vital_whole: bool


def _survey(source: Database) -> _Survey:
    rows, broken, refused = dict[str, int](), list[Named](), Counter[str]()
    ids: _Ids = {}
    for table, columns in _columns().items():
        rows[table] = 0
        for row, reason in _judged(source, table, columns, ids):
            if reason is None:
                rows[table] += 1
                continue
            refused[table] += 1
            if refused.total() <= NAMED_AT_MOST:
                broken.append(Named(table, _named(columns, row), reason))
    return _Survey(rows, broken, refused.total(), not any(map(refused.get, _VITAL)))


def _named(columns: list[Column], row: tuple[Any, ...]) -> str:
    keys = (value for column, value in zip(columns, row, strict=True) if column.in_key)
    return ", ".join("NULL" if key is None else brief(as_text(key)) for key in keys)


def _judged(
    source: Database, table: str, columns: list[Column], ids: _Ids
) -> Iterator[tuple[tuple[Any, ...], str | None]]:
    """
    Each row, and why PostgreSQL would refuse it: SQLite takes any type in any column, and rows that
    name no other if a program switched foreign keys off.

    Args:
        ids: gets the keys that other rows may name; a row that is left out has none of them.
    """
    kept = ids.setdefault(table, set())
    is_named = any(each.parent == table for others in _columns().values() for each in others)
    names = ", ".join(column.name for column in columns)
    for row in source.each(f"SELECT {names} FROM {source.whole(table)}", exactly=True):
        problems = (_problem(each, value, ids) for each, value in zip(columns, row, strict=True))
        reason = next(filter(None, problems), None)
        if reason is None and is_named:
            kept.add(row[0])
        yield row, reason


def _problem(column: Column, value: Any, ids: _Ids) -> str | None:
    if value is None:
        return f"{column.name} is NULL" if column.required else None
    if (kind := type(value)) is not column.kind:
        if kind is int and column.kind is float and value == float(value):
            return None
        return f"{column.name} is {_KINDS[kind]}, not {_KINDS[column.kind]}"
    if kind is str and "\0" in value:
        return f"{column.name} has a NUL character"
    if column.parent and value not in ids[column.parent]:
        return f"{column.name} names no row of {column.parent}"
    return None


def _refused(source: Database, survey: _Survey) -> SchemaError:
    listed = "; ".join(f"{row.table} {row.id}: {row.reason}" for row in survey.broken[:_SHOWN])
    more = f"; and {survey.refused - _SHOWN} more" if survey.refused > _SHOWN else ""
    skip = "; or leave them out: --skip-broken" if survey.vital_whole else ""
    return SchemaError(
        f"{source.name}: PostgreSQL would refuse {survey.refused} row(s), so nothing was copied:"
        f" {listed}{more}",
        hint=f"mend or delete them with any tool for {source.kind}{skip}",
    )


def _opened(database: Database, keys: KeySet) -> tuple[dict[str, int], tuple[Named, ...]]:
    """Open each value; the counts by state, and those that do not open."""
    rows, values = Rows(database), Counter[str](ok=0, foreign=0, unreadable=0)
    unreadable, problem = list[Named](), functools.cache(keys.unavailable)
    for table in TABLES:
        for batch in rows.pages(BATCH, table):
            for stored in (Row._make(row[:-1]) for row in batch):
                error = fault(keys, stored, problem)
                foreign = stored.sealing_key is None
                state = "ok" if error is None else "foreign" if foreign else "unreadable"
                values[state] += table == TABLE
                if state == "unreadable" and len(unreadable) < NAMED_AT_MOST:
                    unreadable.append(Named(table, str(stored.id), str(error)))
    return dict(values), tuple(unreadable)


def _counts(database: Database) -> dict[str, int]:
    counted = ((table, database.fetch(f"SELECT count(*) FROM {table}")) for table in _columns())
    return {table: int(count) for table, [(count,)] in counted}


def _left_behind(source: Database) -> tuple[str, ...]:
    wanted = {table: {each.name for each in columns} for table, columns in _columns().items()}
    found = list[str]()
    for table, names in source.columns().items():
        if table in wanted:
            found += [f"{table}.{name}" for name in names if name not in wanted[table]]
        elif not table.startswith("sqlite_"):  # its own numbers and statistics
            found.append(table)
    return tuple(found)


@functools.cache
def _columns() -> dict[str, list[Column]]:
    from ..schema import models  # here: nothing else of this needs Peewee

    return models.columns()
