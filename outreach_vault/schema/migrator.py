"""
Find, plan and apply the steps in `migrations/`.

The database is shared: `user_version` is the desktop app's, and is raised only by doing exactly the
app's step; the vault's additions are counted in `vault_meta`. The app has no transactions around its
steps, so a file may hold half of one. Here a step is one transaction that takes the write lock first,
rereads the version under it, and writes the version before it commits.

Numbers are not trusted alone. Before a file is touched, the pending steps are rehearsed on an empty
database with the same tables; what would be missing afterwards is the reason for a refusal.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..cipher import Place
from ..database.sqlite import BUSY_SECONDS, OWN, SHARED, UNINDEXED, Database, open_database, scratch_database
from ..errors import DuplicateCredentials, NotADatabase, SchemaError, SchemaMismatch, SchemaOutdated, StorageError, VaultError, brief
from ..files import new_file
from .shapes import new_id, now


class Schema:
    """
    What a step may do to the tables.

    Attributes:
        now: the time of this step, in the app's shape.
        new_id: an id for a row that the step makes.
    """

    def __init__(self, database: Database, *, keep_first: bool = False) -> None:
        self._database = database
        self._keep_first = keep_first
        self.now = now()
        self.new_id = new_id()

    def execute(self, sql: str, params: tuple[object, ...] = ()) -> None:
        """Run one statement (`executescript` would commit the open transaction)."""
        self._database.change(sql, params)

    def add_column(self, table: str, name: str, definition: str) -> None:
        """Add the column unless it is there: SQLite has no IF NOT EXISTS for it."""
        if name not in self._database.columns().get(table, ()):
            self.execute(f"ALTER TABLE {table} ADD COLUMN {name} {definition}")

    def one_row_for_each(self, table: str, place: str) -> None:
        """
        Make sure that no two rows have the same *place*, an SQL list of expressions.

        Raises:
            DuplicateCredentials: some have, and the operator has not said to keep the first.
        """
        if self._keep_first:
            number = self._database.row_number(table)
            first = f"SELECT min({number}) FROM {table} {UNINDEXED} GROUP BY {place}"
            self.execute(f"DELETE FROM {table} {UNINDEXED} WHERE {number} NOT IN ({first})")
        _refuse_duplicates(self._database)


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
            database.change("INSERT OR REPLACE INTO vault_meta (key, value) VALUES ('version', ?)", (str(self.number - SHARED),))


@dataclass(frozen=True)
class Migration:
    """What was done: the steps applied, and where the file's copy from before is (None where there was no need)."""

    steps: tuple[Step, ...]
    backup: Path | None


def steps() -> list[Step]:
    """
    All steps, in order.

    Raises:
        StorageError: not all of them can be found. Python's own search passes over a folder that cannot be read, and
            without steps a new database would be an empty one.
    """
    package = importlib.import_module("outreach_vault.migrations")
    found = []
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        found.append(Step(int(info.name[:4]), info.name, module.TITLE, module.upgrade))
    found.sort(key=lambda step: step.number)
    if [step.number for step in found] != list(range(1, SHARED + OWN + 1)):
        raise StorageError(
            f"{package.__name__}: the steps of the schema cannot be found", hint="look whether the installation is whole and can be read"
        )
    return found


def own_version(database: Database) -> int:
    """How many of the vault's own steps the file has had; 0 where there are none of its tables."""
    if "vault_meta" not in database.columns():
        return 0
    found = database.fetch("SELECT value FROM vault_meta WHERE key = 'version'")
    try:
        return int(found[0][0]) if found else 0
    except (ValueError, TypeError, OverflowError):  # a table that was made anew may hold NULL or infinity
        raise SchemaMismatch(f"{database.path}: its vault_meta holds no number as its version", hint="restore a backup") from None


def plan(database: Database, *, keep_first: bool = False) -> list[Step]:
    """
    The steps that the file needs; an empty list where it is up to date. Read-only.

    Raises:
        SchemaError: the file cannot be brought there, with the reason.
    """
    if database.belongs_to_another_program() or (database.schema_version() == 0 and "app_meta" not in database.columns()):
        raise NotADatabase(f"{database.path}: a database of another program", hint="look whether the path is right; it was left as it is")
    if own_version(database) > OWN:
        raise SchemaMismatch(
            f"{database.path}: the vault's tables were made by a newer version of outreach_vault", hint="upgrade outreach_vault"
        )
    pending = [step for step in steps() if not step.is_done(database)]
    if missing := missing_after(pending, database):
        raise SchemaMismatch(
            f"{database.path}: user_version is {database.schema_version()}, but its tables are not those of that schema;"
            f" missing: {', '.join(missing)}",
            hint="restore a backup, or look whether another program changed the file; it was left as it is",
            missing=tuple(missing),
        )
    if pending and not keep_first:
        _refuse_duplicates(database)
    return pending


def require_current(database: Database) -> None:
    """
    Raise unless the file has the schema that this version works in.

    Raises:
        SchemaOutdated: it can be brought there with 'vault migrate'.
        SchemaError: it cannot.
    """
    if pending := plan(database, keep_first=True):
        raise SchemaOutdated(
            f"{database.path}: {len(pending)} schema step(s) are missing, the first is {pending[0].name}",
            hint="run 'vault init', which makes a backup first",
        )


def migrate(path: Path, *, keep_first: bool = False) -> Migration:
    """
    Bring an existing file to this version's schema, after a verified copy of it.

    Killed at any moment, each step is done or not begun; run again, the rest follows.

    Args:
        keep_first: of rows for one scope, provider and credential_type keep the first, which the app reads.
    Raises:
        SchemaError: the file cannot be brought there; nothing was changed.
        StorageError: locked, full or read-only; the step that met it left nothing.
        OperationRunning: another vault command is at it.
    """
    database = open_database(path)
    try:
        if not plan(database, keep_first=keep_first):
            return Migration((), None)

        def bring() -> Migration:
            pending = plan(database, keep_first=keep_first)
            if not pending:  # another process was faster
                return Migration((), None)
            database.require_writable()  # or each try on a locked or read-only file would leave a backup
            backup = database.backup(_backup_path(database))
            database.use_wal()
            return Migration(tuple(step for step in pending if apply(database, step, keep_first=keep_first)), backup)

        return database.operators_turn(bring, patience=BUSY_SECONDS)
    finally:
        database.close_all()


def create(path: Path) -> Migration:
    """
    Make a new, complete database, which the desktop app can open and continue with.

    Raises:
        StorageError: something is at *path*, or its folder cannot be written. The file appears complete or not at all.
    """

    def fill(part: Path) -> Migration:
        database = Database(part)
        try:
            database.use_wal()
            done = tuple(step for step in steps() if apply(database, step))
            database.truncate_log()
        finally:
            database.close_all()
        return Migration(done, None)

    return new_file(path, fill)


def apply(database: Database, step: Step, *, keep_first: bool = False) -> bool:
    """Do one step in one transaction; False where another process did it first."""

    def one_step() -> bool:
        if step.is_done(database):
            return False
        before = Counter(database.broken_references())  # files come with some
        step.upgrade(Schema(database, keep_first=keep_first))
        if added := Counter(database.broken_references()) - before:
            raise SchemaError(f"{database.path}: step {step.name} would leave {added.total()} broken reference(s); it was undone")
        step.record(database)
        return True

    return database.write(one_step)


def missing_after(pending: list[Step], database: Database) -> list[str]:
    """The tables and columns of this version's schema that the file would still lack after the steps. Read-only."""
    from .models import OWN_MODELS, SHARED_MODELS

    wanted = {model._meta.table_name: list(model._meta.columns) for model in SHARED_MODELS + OWN_MODELS}
    scratch = scratch_database()
    try:
        for table, columns in database.columns().items():
            if table in wanted:
                listed = ", ".join('"' + column.replace('"', '""') + '"' for column in columns)
                scratch.change(f"CREATE TABLE {table} ({listed})")
        for step in pending:
            _rehearse(step, scratch)
        found = scratch.columns()
    finally:
        scratch.close_all()
    lacking = [table for table in wanted if table not in found]
    lacking += [f"{table}.{column}" for table in wanted if table in found for column in wanted[table] if column not in found[table]]
    return sorted(lacking)


def missing_indexes(database: Database) -> dict[str, str]:
    """The indexes and triggers of this version's schema that the file lacks: name and SQL. Read-only."""
    sql = "SELECT name, sql FROM sqlite_master WHERE type IN ('index', 'trigger') AND sql IS NOT NULL ORDER BY name"
    scratch = scratch_database()
    try:
        for step in steps():
            step.upgrade(Schema(scratch))
        wanted = dict(scratch.fetch(sql))
    finally:
        scratch.close_all()
    there = dict(database.fetch(sql))
    return {name: text for name, text in wanted.items() if name not in there}


def planted(database: Database) -> list[tuple[str, str, str]]:
    """Triggers on the tables that the vault relies on, and views that read them, which no step has made: what, name, table. Read-only."""
    tables = ("provider_credentials", "vault_keys", "vault_meta", "projects")
    return [
        (str(what), str(name), table)
        for what, name, on, sql in database.fetch("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name")
        for table in tables
        if (what == "trigger" and str(on).lower() == table) or (what == "view" and table != "projects" and table in str(sql).lower())
    ]


def _rehearse(step: Step, scratch: Database) -> None:
    try:
        step.upgrade(Schema(scratch))
    except VaultError:
        return  # a column that it builds on is not there: the comparison names it


def duplicates(database: Database) -> dict[Place, list[str]]:
    """The places that several rows have, each with their ids, the one that the app reads first. Read-only."""
    number, places = database.row_number("provider_credentials"), dict[Place, list[str]]()
    at = "project_id, provider, credential_type"
    for project_id, provider, kind, row_id in database.fetch(
        f"SELECT t.project_id, t.provider, t.credential_type, t.id FROM provider_credentials t {UNINDEXED} JOIN"
        f" (SELECT {at} FROM provider_credentials {UNINDEXED} GROUP BY {at} HAVING count(*) > 1) d"
        " ON t.project_id IS d.project_id AND t.provider = d.provider AND t.credential_type = d.credential_type"
        f" ORDER BY t.{number}"
    ):
        places.setdefault(Place(project_id, provider, kind), []).append(row_id)
    return places


def _refuse_duplicates(database: Database) -> None:
    if "provider_credentials" not in database.columns():
        return
    if found := duplicates(database):
        listed = "; ".join(f"{place}: {', '.join(map(brief, ids))}" for place, ids in found.items())
        raise DuplicateCredentials(
            f"{database.path}: several rows for one scope, provider and credential_type; nothing was changed: {listed}",
            hint="look which is right; 'vault migrate --keep-first' keeps the first of each, which the app reads",
            rows=tuple(tuple(ids) for ids in found.values()),
        )


def _backup_path(database: Database) -> Path:
    stamp = now().replace(":", "-")
    return database.path.with_name(f"{database.path.name}.schema-{database.schema_version()}.{stamp}.backup")
