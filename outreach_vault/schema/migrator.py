"""
Find, plan and apply the steps in `migrations/`.

The database is shared. `user_version` is the desktop app's, and only the app's own step raises it;
`vault_meta` counts the vault's additions. The app runs its steps without transactions, so a file
may hold half of one. Here a step is one transaction: it takes the write lock, rereads the version,
and writes the new version before it commits.

A number alone is not trusted. Before a file is touched, the pending steps are rehearsed on an empty
database with the same tables. If anything would be missing afterwards, the file is refused.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..database import Database, Location, locate, scratch
from ..errors import (
    DuplicateCredentials,
    NotADatabase,
    SchemaError,
    SchemaMismatch,
    SchemaOutdated,
    VaultError,
    brief,
)
from . import facts
from .shapes import Place, new_id, now
from .steps import SHARED, own_steps, step_names

PATIENCE: Final = 5.0  # seconds to wait for another process that changes the schema
CREDENTIALS: Final = "provider_credentials"


class Schema:
    """
    What a step may do to the tables.

    Attributes:
        now: the time of this step, in the app's format.
        new_id: an id for a row that the step makes.
    """

    def __init__(self, database: Database, *, keep_first: bool = False) -> None:
        self._database = database
        self._keep_first = keep_first
        self.now = now()
        self.new_id = new_id()

    def execute(
        self, sql: str, params: tuple[object, ...] = (), *, on_postgres: str | None = None
    ) -> None:
        """
        Run one statement (`executescript` would commit the open transaction).

        Args:
            sql: in SQLite's words; PostgreSQL's engine knows the types and keys of tables in them.
            on_postgres: what PostgreSQL runs instead.
        """
        self._database.define(sql, params, on_postgres=on_postgres)

    def add_column(self, table: str, name: str, definition: str) -> None:
        """Add the column unless it exists: SQLite has no IF NOT EXISTS for columns."""
        if name not in self._database.columns().get(table, ()):
            self.execute(f"ALTER TABLE {table} ADD COLUMN {name} {definition}")

    def one_row_for_each(self, table: str, place: str) -> None:
        """
        Make sure that no two rows have the same *place*, a list of columns.

        Raises:
            DuplicateCredentials: some have, and the operator did not choose to keep the first.
        """
        if self._keep_first:
            key, rows = self._database.row_key(table), self._database.whole(table)
            first = f"SELECT min({key}) FROM {rows} GROUP BY {place}"
            self.execute(f"DELETE FROM {rows} WHERE {key} NOT IN ({first})")
        _refuse_repeated(self._database, table)


@dataclass(frozen=True)
class Step:
    """One file of `migrations/`."""

    number: int
    name: str
    title: str
    upgrade: Callable[[Schema], None]

    def is_done(self, database: Database) -> bool:
        if self.number <= SHARED:
            return database.schema_version() >= self.number
        return own_version(database) >= self.number - SHARED

    def record(self, database: Database) -> None:
        if self.number <= SHARED:
            database.set_schema_version(self.number)
        else:
            facts.note(database, version=str(self.number - SHARED))


@dataclass(frozen=True)
class Migration:
    """What was done: the steps applied, and the backup made before them (None if not needed)."""

    steps: tuple[Step, ...]
    backup: Path | None


def steps() -> list[Step]:
    """
    All steps, in order.

    Raises:
        StorageError: as `step_names`.
    """
    found = []
    for name in step_names():
        module = importlib.import_module(f"outreach_vault.migrations.{name}")
        found.append(Step(int(name[:4]), name, module.TITLE, module.upgrade))
    return found


def own_version(database: Database) -> int:
    """How many of the vault's own steps the file has had; 0 if it lacks the vault's tables."""
    if facts.TABLE not in database.columns():
        return 0
    try:
        return int(facts.facts(database).get("version", "0"))
    except ValueError:  # a table that another tool rebuilt may hold NULL or infinity
        fault = f"{database.name}: the version in its vault_meta is not a number"
        raise SchemaMismatch(fault, hint="restore a backup") from None


def plan(database: Database, *, keep_first: bool = False) -> list[Step]:
    """
    The steps that the file needs; empty if it is up to date. Read-only.

    Raises:
        SchemaError: why the file cannot be migrated.
    """
    if database.belongs_to_another_program() or (
        database.schema_version() == 0 and "app_meta" not in database.columns()
    ):
        fault = f"{database.name}: a database of another program"
        raise NotADatabase(fault, hint=database.strangers)
    if own_version(database) > own_steps():
        raise SchemaMismatch(
            f"{database.name}: the vault's tables were made by a newer version of outreach_vault",
            hint="upgrade outreach_vault",
        )
    pending = [step for step in steps() if not step.is_done(database)]
    if missing := missing_after(pending, database):
        raise SchemaMismatch(
            f"{database.name}: the number of its schema is {database.schema_version()}, but its"
            f" tables do not match that schema; missing: {', '.join(missing)}",
            hint="restore a backup, or check whether another program changed it;"
            " it was left as it is",
            missing=tuple(missing),
        )
    if pending and not keep_first:
        _refuse_repeated(database, CREDENTIALS)
    return pending


def require_current(database: Database) -> None:
    """
    Raise unless the file has this version's schema.

    Raises:
        SchemaOutdated: 'vault migrate' can update it. SchemaError: it cannot.
    """
    if pending := plan(database, keep_first=True):
        theirs = database.backup_command(Path("FILE"))
        first = f", but back it up first: {theirs}" if theirs else ", which makes a backup first"
        count, name = len(pending), pending[0].name
        raise SchemaOutdated(
            f"{database.name}: {count} schema step(s) are missing, the first is {name}",
            hint=f"run 'vault init'{first}",
        )


def migrate(
    database: str | os.PathLike[str] | Location | None, *, keep_first: bool = False
) -> Migration:
    """
    Bring an existing database to this version's schema, after a verified backup of a file.

    A kill at any moment leaves each step done or not begun; run it again for the rest.

    Args:
        keep_first: of rows with one scope, provider and credential_type, keep the first, which the
            app reads.
    Raises:
        SchemaError: the file cannot be migrated; nothing was changed.
        StorageError: locked, full or read-only; the failing step left nothing.
        OperationRunning: another vault command is at work.
    """
    database = locate(database)
    opened = database.open()
    try:
        if not plan(opened, keep_first=keep_first):
            return Migration((), None)

        def bring() -> Migration:
            pending = plan(opened, keep_first=keep_first)
            if not pending:  # another process was faster
                return Migration((), None)
            opened.require_writable()  # else each failed try would leave a backup
            backup = opened.keep_copy()
            opened.prepare()
            done = [step for step in pending if apply(opened, step, keep_first=keep_first)]
            return Migration(tuple(done), backup)

        return opened.operators_turn(bring, patience=PATIENCE)
    finally:
        opened.close_all()


def create(database: str | os.PathLike[str] | Location | None) -> Migration:
    """
    Make a new, complete database, which the desktop app can open and use.

    Raises:
        StorageError: something is there, or nothing can be written. The database appears complete
            or not at all.
    """
    database = locate(database)  # no frame of an error keeps a URL's password
    return database.create(fill)


def fill(database: Database) -> Migration:
    """Apply all steps to a new, empty database."""
    return Migration(tuple(step for step in steps() if apply(database, step)), None)


def apply(database: Database, step: Step, *, keep_first: bool = False) -> bool:
    """Do one step in one transaction; False if another process did it first."""

    def one_step() -> bool:
        if step.is_done(database):
            return False
        before = Counter(database.broken_references())  # a file may come with some
        step.upgrade(Schema(database, keep_first=keep_first))
        if added := (Counter(database.broken_references()) - before).total():
            fault = f"step {step.name} would leave {added} broken reference(s); it was undone"
            raise SchemaError(f"{database.name}: {fault}")
        step.record(database)
        return True

    return database.write(one_step)


def missing_after(pending: list[Step], database: Database) -> list[str]:
    """The tables and columns that the file would still lack after *pending*. Read-only."""
    from .models import OWN_MODELS, SHARED_MODELS

    metas = [model._meta for model in SHARED_MODELS + OWN_MODELS]
    wanted = {meta.table_name: list(meta.columns) for meta in metas}
    rehearsal = scratch()
    try:
        for table, columns in database.columns().items():
            if table in wanted:
                listed = ", ".join('"' + column.replace('"', '""') + '"' for column in columns)
                rehearsal.change(f"CREATE TABLE {table} ({listed})")
        for step in pending:
            _rehearse(step, rehearsal)
        found = rehearsal.columns()
    finally:
        rehearsal.close_all()
    lacking = [table for table in wanted if table not in found]
    for table in wanted.keys() & found:
        lacking += [f"{table}.{column}" for column in wanted[table] if column not in found[table]]
    return sorted(lacking)


def missing_indexes(database: Database) -> dict[str, str]:
    """This version's indexes and triggers that the file lacks, as name and SQL. Read-only."""
    rehearsal = scratch()
    try:
        for step in steps():
            step.upgrade(Schema(rehearsal))
        wanted = rehearsal.definitions()
    finally:
        rehearsal.close_all()
    there = database.definitions()
    return {name: text for name, text in wanted.items() if name not in there}


def _rehearse(step: Step, rehearsal: Database) -> None:
    try:
        step.upgrade(Schema(rehearsal))
    except VaultError:
        return  # a column that it builds on is missing: the comparison will name it


def repeated(database: Database, table: str) -> dict[Place, list[Any]]:
    """
    The places that several rows of *table* share, with the rows' ids in the app's order.

    Read-only.
    """
    rows, at = database.whole(table), ", ".join(Place._fields)
    each_same = (f"(t.{c} = d.{c} OR t.{c} IS NULL AND d.{c} IS NULL)" for c in Place._fields)
    same = " AND ".join(each_same)
    places = dict[Place, list[Any]]()
    for *place, row_id in database.fetch(
        "SELECT t.project_id, t.provider, t.credential_type, t.id"
        f" FROM (SELECT {at}, id, {database.row_key(table)} AS n FROM {rows}) t"
        f" JOIN (SELECT {at} FROM {rows} GROUP BY {at} HAVING count(*) > 1) d ON {same}"
        " ORDER BY t.n"
    ):
        places.setdefault(Place(*place), []).append(row_id)
    return places


def _refuse_repeated(database: Database, table: str) -> None:
    if table not in database.columns():
        return
    if found := repeated(database, table):
        listed = "; ".join(f"{place}: {', '.join(map(brief, ids))}" for place, ids in found.items())
        raise DuplicateCredentials(
            f"{database.name}: several rows for one scope, provider and credential_type; nothing"
            f" was changed: {listed}",
            hint="decide which is right; 'vault migrate --keep-first' keeps the first of each,"
            " which the app reads",
            rows=tuple(tuple(ids) for ids in found.values()),
        )
