"""
New files, files of every age, half-finished, broken and foreign ones: brought to this version's
schema, or left as they are.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers import SAMPLES, TESTS, V4, make_v4
from helpers.effort import THOROUGH, effort
from helpers.faults import READS, SETTINGS, file_of
from helpers.shape import (
    Shape,
    columns_of,
    expected,
    files_in,
    in_child,
    plain,
    rows_of,
    shape,
    shape_of,
    user_version,
    with_additions,
)
from helpers.site import Figures, operators_lock

from outreach_vault.database import open_database
from outreach_vault.database.sqlite import connections as database_module
from outreach_vault.database.sqlite.connections import _Connection
from outreach_vault.database.sqlite.database import SQLiteDatabase as Database
from outreach_vault.errors import (
    DatabaseBusy,
    DatabaseNotFound,
    DuplicateCredentials,
    NotADatabase,
    OperationRunning,
    SchemaError,
    SchemaMismatch,
    SchemaOutdated,
    StorageError,
)
from outreach_vault.schema import migrator
from outreach_vault.schema.models import OWN_MODELS

pytestmark = [pytest.mark.sweep(3), pytest.mark.sqlite("files of every age of the desktop app's")]

V5 = expected(V4.with_name("v5.schema.json"))
COMPLETE = with_additions(V5)
STEPS = migrator.steps()
OWN = len(STEPS) - 5
MOMENT = "2026-02-06T09:30:00.250Z"
CV = (
    "id",
    "file_path",
    "file_name",
    "created_at",
    "updated_at",
    "contact_json",
    "contact_confidence",
    "parse_confidence",
)


@pytest.fixture
def v4(tmp_path: Path) -> Path:
    """What a user of the released app brings."""
    path = tmp_path / "samsara.db"
    shutil.copyfile(V4, path)
    return path


@pytest.fixture
def v5(v4: Path) -> Path:
    raise_to(v4, 5)
    return v4


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own are for their owner alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    folder.chmod(0o777)
    shutil.rmtree(folder)


@contextmanager
def opened(path: Path) -> Iterator[Database]:
    database = Database(path)
    try:
        yield database
    finally:
        database.close_all()


def raise_to(path: Path, number: int) -> None:
    with opened(path) as database:
        for step in STEPS[:number]:
            migrator.apply(database, step)


def backups_of(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.backup"))


def sql(path: Path, *statements: str) -> None:
    with plain(path) as connection:
        for statement in statements:
            connection.execute(statement)


def credential(row_id: str, scope: str | None, kind: str = "auth_token") -> str:
    project = "NULL" if scope is None else f"'{scope}'"
    names = "(id, project_id, provider, credential_type, encrypted_value, created_at, updated_at)"
    return (
        f"INSERT INTO provider_credentials {names} VALUES ('{row_id}', {project}, 'twilio', "
        f"'{kind}', 'djEx', '{MOMENT}', '{MOMENT}')"
    )


class Cut(Exception):
    """The app was killed here."""


class App:
    """
    What a step asks for, done as the app does it: without a transaction, and killed after some
    statements.
    """

    now, new_id = MOMENT, "new"

    def __init__(self, connection: sqlite3.Connection, limit: int = 1000) -> None:
        self.connection, self.limit, self.done = connection, limit, 0

    def execute(
        self, statement: str, params: tuple[object, ...] = (), *, on_postgres: str | None = None
    ) -> None:
        if self.done == self.limit:
            raise Cut
        self.done += 1
        self.connection.execute(statement, params)

    def add_column(self, table: str, name: str, definition: str) -> None:
        self.execute(f"ALTER TABLE {table} ADD COLUMN {name} {definition}")


def leave_half_done(path: Path, version: int, statements: int) -> None:
    """
    A file of *version*, with so many statements of the next step, and a CV without a project
    wherever there can be one.
    """
    with plain(path) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for step in STEPS[:version]:
            step.upgrade(App(connection))  # type: ignore[arg-type]
        connection.execute(f"PRAGMA user_version = {version}")
        with suppress(Cut):
            STEPS[version].upgrade(App(connection, statements))  # type: ignore[arg-type]
        if "cvs" in shape(connection)["tables"]:
            connection.execute(
                f"INSERT INTO cvs ({', '.join(CV)}) VALUES ('c', '/é.pdf', 'é.pdf', '{MOMENT}', "
                f"'{MOMENT}', '{{}}', 0.5, 1)"
            )


def halves() -> Iterator[tuple[int, int]]:
    with sqlite3.connect(":memory:") as connection:
        for version, step in enumerate(STEPS[:5]):
            app = App(connection)
            step.upgrade(app)  # type: ignore[arg-type]
            yield from ((version, cut) for cut in range(0 if version else 1, app.done + 1))
    connection.close()


@cache
def shapes() -> dict[tuple[int, int], Shape]:
    """
    What a file looks like at every (user_version, version of the vault's additions), from the app's
    version 0 on.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.db"
        leave_half_done(path, 0, 6)
        found = {(0, 0): shape_of(path)}
        for number in range(1, len(STEPS) + 1):
            raise_to(path, number)
            found[min(number, 5), max(0, number - 5)] = shape_of(path)
    return found


def versions(path: Path) -> tuple[int, int]:
    with opened(path) as database:
        return database.schema_version(), migrator.own_version(database)


# new files


def test_a_new_database_has_the_app_s_schema_5_and_the_vault_s_additions_only(
    tmp_path: Path,
) -> None:
    done = migrator.create(tmp_path / "new.db")
    assert shape_of(tmp_path / "new.db") == COMPLETE
    assert versions(tmp_path / "new.db") == (5, OWN)
    assert list(done.steps) == STEPS
    assert done.backup is None
    assert list(files_in(tmp_path)) == ["new.db"]
    with plain(tmp_path / "new.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        (project,) = connection.execute("SELECT * FROM projects").fetchall()
        assert (*project[:5], *project[7:]) == (
            "default-project",
            "Default Project",
            None,
            "Auto-created for existing CVs and JDs",
            0,
            0,
            0,
        )
        assert [
            row[0] for row in connection.execute("SELECT key FROM vault_meta ORDER BY key")
        ] == ["vault_id", "version"]


def test_two_new_databases_are_two_vaults(tmp_path: Path) -> None:
    ids = set()
    for name in "ab":
        migrator.create(tmp_path / name)
        with plain(tmp_path / name) as connection:
            ids |= set(connection.execute("SELECT value FROM vault_meta WHERE key = 'vault_id'"))
    assert len(ids) == 2


@pytest.mark.parametrize("ours", [True, False])
def test_the_trigger_of_a_new_database_counts_usage_by_day(ours: bool, tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    migrator.create(path)
    names = "(project_id, event_type, total_tokens, llm_mode, created_at)"
    inserts = [
        f"INSERT INTO usage_events {names} VALUES ('default-project', 'e', {n}, 'local', "
        f"'{MOMENT}')"
        for n in (5, 7)
    ]
    if ours:  # trusted_schema is off there
        with opened(path) as database:
            for insert in inserts:
                database.change(insert)
    else:
        sql(path, *inserts)
    with plain(path) as connection:
        daily = connection.execute(
            "SELECT project_id, date, total_tokens, request_count FROM usage_daily"
        ).fetchall()
    assert daily == [("default-project", "2026-02-06", 12, 2)]


@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
def test_every_file_is_its_owner_s_alone_under_any_umask(mask: int, open_folder: Path) -> None:
    shutil.copyfile(V4, open_folder / "old.db")
    (open_folder / "old.db").chmod(0o666)

    def work() -> None:
        os.umask(mask)
        migrator.create(open_folder / "new.db")
        migrator.migrate(open_folder / "old.db")

    assert in_child(work, ordinary=True) == (0, "None")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in open_folder.iterdir()}
    assert modes.pop("old.db") == 0o666
    assert len(modes) == 3
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("planted", ["a file", "a link to nothing", "a link to a file", "a folder"])
def test_create_refuses_and_leaves_what_is_there_already(planted: str, tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "new.db", tmp_path / "elsewhere"
    if planted == "a link to a file":
        elsewhere.write_text("theirs")
    if planted.startswith("a link"):
        path.symlink_to(elsewhere)
    elif planted == "a file":
        path.write_text("theirs")
    else:
        path.mkdir()
    before = files_in(tmp_path)
    with pytest.raises(StorageError, match=rf"{path}: something is there already"):
        migrator.create(path)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("there", [True, False])
def test_migrate_refuses_to_follow_a_link_planted_where_its_lock_goes(
    there: bool, v4: Path
) -> None:
    elsewhere = v4.with_name("elsewhere")
    if there:
        elsewhere.write_text("theirs")
    v4.with_name("samsara.db.vault-lock").symlink_to(elsewhere)
    before = files_in(v4.parent)
    with pytest.raises(StorageError, match="vault-lock"):
        migrator.migrate(v4)
    assert files_in(v4.parent) == before


# files of every age


def test_the_shipped_v4_file_is_what_its_script_makes(tmp_path: Path) -> None:
    shutil.copyfile(V4, tmp_path / "shipped.db")
    make_v4.make(tmp_path / "made.db")
    assert shape_of(tmp_path / "made.db") == shape_of(tmp_path / "shipped.db") == shapes()[4, 0]
    assert rows_of(tmp_path / "made.db") == rows_of(tmp_path / "shipped.db")
    assert user_version(tmp_path / "made.db") == user_version(tmp_path / "shipped.db") == 4


def test_migrate_keeps_every_row_of_a_v4_file(v4: Path) -> None:
    before, sealed = rows_of(v4), columns_of(shape_of(v4))
    done = migrator.migrate(v4)
    assert list(done.steps) == STEPS[4:]
    assert shape_of(v4) == COMPLETE
    assert versions(v4) == (5, OWN)
    assert rows_of(v4, sealed) == before


@pytest.mark.parametrize(("version", "statements"), list(halves()))
def test_migrate_completes_what_the_app_left_after_any_statement(
    version: int, statements: int, tmp_path: Path
) -> None:
    path = tmp_path / "half.db"
    leave_half_done(path, version, statements)
    columns = {"cvs": list(CV)} if "cvs" in shape_of(path)["tables"] else {}
    rows = rows_of(path, columns)
    migrator.migrate(path)
    assert shape_of(path) == COMPLETE
    assert versions(path) == (5, OWN)
    assert rows_of(path, columns) == rows
    with plain(path) as connection:
        assert connection.execute("SELECT id FROM projects").fetchall() == [("default-project",)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        # Only the app's first step puts those without a project into one; later ones are so on
        # purpose.
        assert connection.execute("SELECT project_id FROM cvs").fetchall() == (
            [(None if version else "default-project",)] if columns else []
        )


@pytest.mark.parametrize("number", [5, 6, 10, 11])
def test_migrate_adds_its_own_and_leaves_the_app_s_number_alone(number: int, v5: Path) -> None:
    sql(
        v5,
        f"PRAGMA user_version = {number}",
        "ALTER TABLE cvs ADD COLUMN outreach_status TEXT",
        "CREATE TABLE dnc_registry (id TEXT)",
    )
    assert list(migrator.migrate(v5).steps) == STEPS[5:]
    assert versions(v5) == (number, OWN)


@pytest.mark.samples
@pytest.mark.parametrize("number", [4, 5, 10])
def test_samples_of_the_app_are_made_ready_with_every_row_as_it_was(
    number: int, tmp_path: Path
) -> None:
    path, facts = tmp_path / "sample.db", SAMPLES / f"samsara-v{number}.schema.json"
    shutil.copyfile(facts.with_name(f"samsara-v{number}.db"), path)
    known = expected(facts)
    assert shape_of(path) == known, (
        "this checks the test's own means: the sample's description was made by others"
    )
    columns = columns_of(known)
    migrator.migrate(path)
    assert shape_of(path) == with_additions(known if number > 4 else V5)
    assert versions(path) == (max(5, number), OWN)
    assert rows_of(path, columns) == written_rows(facts)


def written_rows(facts: Path) -> dict[str, str]:
    return {
        table: known["rows_sha256"]
        for table, known in json.loads(facts.read_text("utf-8"))["tables"].items()
    }


def test_a_second_migrate_changes_no_byte_and_makes_no_backup(v4: Path) -> None:
    migrator.migrate(v4)
    before = files_in(v4.parent)
    assert migrator.migrate(v4) == migrator.Migration((), None)
    assert files_in(v4.parent) == before


def test_opening_waits_as_long_as_the_app_does_and_creates_nothing(v4: Path) -> None:
    with opened(v4) as database:
        assert database.fetch("PRAGMA busy_timeout") == [(5000,)]
    before = files_in(v4.parent)
    with pytest.raises(StorageError):
        Database(v4.with_name("missing.db"))
    assert files_in(v4.parent) == before


def test_looking_and_opening_change_no_byte(v4: Path) -> None:
    before = files_in(v4.parent)
    database = open_database(v4)
    try:
        assert migrator.plan(database) == STEPS[4:]
        with pytest.raises(SchemaOutdated, match=rf"{1 + OWN} schema step.*0005_outreach"):
            migrator.require_current(database)
    finally:
        database.close_all()
    assert files_in(v4.parent) == before
    migrator.migrate(v4)
    with opened(v4) as database:
        migrator.require_current(database)


# refused files


def mislabelled(path: Path) -> None:
    sql(path, "PRAGMA user_version = 10")


def without_a_column(path: Path) -> None:
    sql(path, "DROP INDEX idx_cvs_status", "ALTER TABLE cvs DROP COLUMN status")


def newer(path: Path) -> None:
    migrator.migrate(path)
    for made in (*backups_of(path), path.with_name(f"{path.name}.vault-lock")):
        made.unlink()
    sql(path, "UPDATE vault_meta SET value = '99' WHERE key = 'version'")


def without_tables(path: Path) -> None:
    path.unlink()
    sql(path, "CREATE TABLE t (a)", "DROP TABLE t")


def of_another(path: Path, *more: str) -> None:
    path.unlink()
    sql(
        path,
        "CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT)",
        "INSERT INTO books (title) VALUES ('B')",
        *more,
    )


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


REFUSED: dict[str, tuple[Callable[[Path], Any], type[SchemaError], str]] = {
    "missing": (Path.unlink, DatabaseNotFound, "there is no database"),
    "a folder": (folder_instead, NotADatabase, "not a file"),
    "0 bytes": (lambda path: path.write_bytes(b""), NotADatabase, "the file is empty"),
    "not SQLite": (
        lambda path: path.write_text("id,name\n" * 4000),
        NotADatabase,
        "file is not a database",
    ),
    "cut in half": (cut_in_half, NotADatabase, "malformed"),
    "SQLite without tables": (without_tables, NotADatabase, "a database of another program"),
    "another program's": (of_another, NotADatabase, "a database of another program"),
    "with an application_id": (
        lambda path: sql(path, "PRAGMA application_id = 7"),
        NotADatabase,
        "a database of another program",
    ),
    "another program's version 5": (
        lambda path: of_another(path, "PRAGMA user_version = 5"),
        SchemaMismatch,
        "the number of its schema is 5, .*messages",
    ),
    "labelled 10": (
        mislabelled,
        SchemaMismatch,
        "the number of its schema is 10, but .*; missing: ats_mappings, call_records, messages, ",
    ),
    "4 without a column": (
        without_a_column,
        SchemaMismatch,
        "the number of its schema is 4, but .*; missing: cvs.status$",
    ),
    "newer additions": (newer, SchemaMismatch, "made by a newer version of outreach_vault"),
    "unreadable additions": (
        lambda path: sql(
            path,
            "CREATE TABLE vault_meta (key TEXT PRIMARY KEY, value TEXT)",
            "INSERT INTO vault_meta VALUES ('version', 'x')",
        ),
        SchemaMismatch,
        "is not a number",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_is_not_ours_to_change_is_refused_by_name_and_left_as_it_is(
    kind: str, v4: Path, figures: Figures
) -> None:
    spoil, error, said = REFUSED[kind]
    spoil(v4)
    before = files_in(v4.parent)
    for keep_first in (False, True):
        with pytest.raises(error, match=rf"^{v4}: .*{said}") as caught:
            migrator.migrate(v4, keep_first=keep_first)
        assert type(caught.value) is error
        assert caught.value.hint
    assert files_in(v4.parent) == before
    figures("faulty database files, each refused and left as it was", 1)


def test_a_mislabelled_file_is_refused_with_the_list_of_what_is_missing(v4: Path) -> None:
    mislabelled(v4)
    with pytest.raises(SchemaMismatch) as caught:
        migrator.migrate(v4)
    assert list(caught.value.missing) == sorted(
        set(COMPLETE["tables"])
        - set(shape_of(v4)["tables"])
        - {model._meta.table_name for model in OWN_MODELS}
    )


def test_a_damaged_file_is_refused_before_anything_is_changed(v4: Path) -> None:
    with plain(v4) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'idx_cvs_status'"
        ).fetchone()
    content = bytearray(v4.read_bytes())
    content[(page - 1) * 4096 : page * 4096] = b"\xa5" * 4096
    v4.write_bytes(content)
    with pytest.raises(NotADatabase, match=rf"{v4}: its copy does not pass"):
        migrator.migrate(v4)
    assert v4.read_bytes() == content
    assert set(files_in(v4.parent)) == {"samsara.db", "samsara.db.vault-lock"}


# duplicates


def half_of_step_5(path: Path) -> None:
    with plain(path) as connection:
        STEPS[4].upgrade(App(connection))  # type: ignore[arg-type]


def with_duplicates(path: Path, number: int) -> None:
    """
    The first by rowid is neither the first by id nor by time; other scopes and types have one row
    each.
    """
    if number == 5:
        raise_to(path, 5)
    else:
        half_of_step_5(path)
    rows = [
        ("z", None),
        ("p2", make_v4.ZURICH),
        ("a", None),
        ("p1", make_v4.ZURICH),
        ("m", None),
        ("alone", make_v4.TOKYO),
    ]
    sql(path, *(credential(*row) for row in rows), credential("sid", None, "account_sid"))
    assert user_version(path) == number


@pytest.mark.parametrize("number", [4, 5])
def test_duplicates_are_listed_and_nothing_is_changed(number: int, v4: Path) -> None:
    with_duplicates(v4, number)
    before = files_in(v4.parent)
    listed = (
        rf"twilio/auth_token \(global\): z, a, m; twilio/auth_token \(project {make_v4.ZURICH}\): "
        r"p2, p1$"
    )
    with pytest.raises(DuplicateCredentials, match=rf"^{v4}: .*{listed}") as caught:
        migrator.migrate(v4)
    assert caught.value.rows == (("z", "a", "m"), ("p2", "p1"))
    assert files_in(v4.parent) == before


@pytest.mark.parametrize("number", [4, 5])
def test_keep_first_keeps_the_row_that_the_app_reads(number: int, v4: Path) -> None:
    with_duplicates(v4, number)
    migrator.migrate(v4, keep_first=True)
    with plain(v4) as connection:
        assert [
            row[0]
            for row in connection.execute("SELECT id FROM provider_credentials ORDER BY rowid")
        ] == ["z", "p2", "alone", "sid"]
    assert shape_of(v4) == COMPLETE
    (backup,) = backups_of(v4)
    with plain(backup) as connection:
        assert connection.execute("SELECT count(*) FROM provider_credentials").fetchone() == (7,)


def test_duplicates_written_after_the_plan_stop_the_step_that_forbids_them(v4: Path) -> None:
    with_duplicates(v4, 5)
    with opened(v4) as database:
        for step in STEPS[5:7]:
            migrator.apply(database, step)
        before = shape_of(v4), rows_of(v4)
        with pytest.raises(DuplicateCredentials):
            migrator.apply(database, STEPS[7])
    assert (shape_of(v4), rows_of(v4)) == before


@pytest.mark.parametrize("keep_first", [False, True])
def test_a_row_with_empty_text_for_its_project_is_no_global_one_and_both_stay(
    v5: Path, keep_first: bool
) -> None:
    sql(v5, "PRAGMA foreign_keys = OFF", credential("empty", ""), credential("global", None))
    migrator.migrate(v5, keep_first=keep_first)
    with contextlib.closing(sqlite3.connect(v5)) as connection:
        rows = connection.execute(
            "SELECT id, project_id FROM provider_credentials WHERE id IN ('empty', 'global') "
            "ORDER BY id"
        )
        assert rows.fetchall() == [("empty", ""), ("global", None)]


@pytest.mark.parametrize("doubled", [credential("2", None), credential("2", make_v4.ZURICH)])
def test_a_migrated_file_takes_one_row_for_each_place(doubled: str, v4: Path) -> None:
    migrator.migrate(v4)
    sql(v4, credential("1", None), credential("3", make_v4.ZURICH), credential("4", make_v4.TOKYO))
    with pytest.raises(
        sqlite3.IntegrityError, match="UNIQUE constraint failed: provider_credentials"
    ):
        sql(v4, doubled)


# other processes


@contextmanager
def another_process(code: str, path: Path) -> Iterator[None]:
    """A second process that has done *code* and keeps what it holds until the end."""
    whole = f"import sqlite3, fcntl, sys\n{code}\nprint('ready', flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", whole, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        process.communicate("")
    assert process.returncode == 0


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_file_that_stays_locked_is_said_to_be_busy_and_is_not_changed(
    journal: str, v4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("BUSY_SECONDS", "PATIENT_SECONDS"):
        monkeypatch.setattr(database_module, limit, 0.1)  # how long is not what is tested
    sql(v4, f"PRAGMA journal_mode = {journal}")
    content = v4.read_bytes()
    lock = (
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "connection.execute('BEGIN EXCLUSIVE')"
    )
    with another_process(lock, v4):
        with pytest.raises(
            DatabaseBusy,
            match=rf"^{v4}: another program kept the database locked for more than 0.1 seconds",
        ):
            migrator.migrate(v4)
        assert v4.read_bytes() == content
    assert (shape_of(v4), user_version(v4)) == (shapes()[4, 0], 4)
    assert len(migrator.migrate(v4).steps) == 1 + OWN


@pytest.mark.parametrize(
    "what", ["SELECT count(*) FROM cvs", "INSERT INTO app_meta VALUES ('theirs', 'v'); COMMIT"]
)
def test_a_file_that_another_process_holds_open_is_migrated_beside_it(what: str, v4: Path) -> None:
    """
    One that reads in an open transaction, which keeps its picture; one that has written into the
    log and holds the file open.
    """
    sql(v4, "PRAGMA journal_mode = wal")
    columns = columns_of(shape_of(v4))
    statements = ["BEGIN", *what.split("; ")]
    hold = (
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\nfor one in "
        f"{statements!r}: connection.execute(one).fetchall()"
    )
    with another_process(hold, v4):
        rows = rows_of(v4)
        done = migrator.migrate(v4)
        assert (shape_of(v4), versions(v4), rows_of(v4, columns)) == (COMPLETE, (5, OWN), rows)
    assert (shape_of(v4), versions(v4), rows_of(v4, columns)) == (COMPLETE, (5, OWN), rows)
    assert done.backup is not None and rows_of(done.backup) == rows


def test_a_second_operator_is_told_of_the_first(v4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrator, "PATIENCE", 0.1)
    before = v4.read_bytes()
    lock = "file = open(sys.argv[1] + '.vault-lock', 'w'); fcntl.flock(file, fcntl.LOCK_EX)"
    with (
        another_process(lock, v4),
        pytest.raises(OperationRunning, match=f"{v4}: another vault command"),
    ):
        migrator.migrate(v4)
    assert v4.read_bytes() == before
    assert not backups_of(v4)


def test_processes_that_migrate_at_once_do_each_step_once(v4: Path) -> None:
    before, columns = rows_of(v4), columns_of(shape_of(v4))
    code = "input(); print(*[s.number for s in migrator.migrate(Path(sys.argv[1])).steps])"
    command = [
        sys.executable,
        "-c",
        f"import sys; from pathlib import Path; from outreach_vault.schema import migrator; {code}",
        v4,
    ]
    both = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in "ab"
    ]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(" ".join(out for out, _ in said).split(), key=int) == [
        str(step.number) for step in STEPS[4:]
    ]
    assert shape_of(v4) == COMPLETE
    assert rows_of(v4, columns) == before


def test_a_step_that_another_did_after_the_plan_is_not_done_again(v4: Path) -> None:
    with opened(v4) as first, opened(v4) as second:
        pending = migrator.plan(second)
        assert [migrator.apply(first, step) for step in pending] == [True] * (1 + OWN)
        assert [migrator.apply(second, step) for step in pending] == [False] * (1 + OWN)


# faults


def test_a_step_that_breaks_a_reference_is_undone_and_old_breaks_are_tolerated(v4: Path) -> None:
    orphan = (
        f"INSERT INTO cv_jd_matches (cv_id, jd_id, match_score, calculated_at) VALUES ('{{}}', "
        f"'gone', 1, '{MOMENT}')"
    )
    sql(v4, "PRAGMA foreign_keys = OFF", orphan.format("old"))
    before = shape_of(v4), rows_of(v4)

    def upgrade(schema: migrator.Schema) -> None:
        schema.execute("CREATE TABLE made_by_the_step (id)")
        schema.execute("PRAGMA defer_foreign_keys = ON")
        schema.execute(orphan.format("new"))

    step = migrator.Step(5, "0005_wrong", "Wrong.", upgrade)
    with (
        opened(v4) as database,
        pytest.raises(
            SchemaError, match=r"0005_wrong would leave 2 broken reference\(s\); it was undone"
        ),
    ):
        migrator.apply(database, step)
    assert (shape_of(v4), rows_of(v4), user_version(v4)) == (*before, 4)
    migrator.migrate(v4)
    with plain(v4) as connection:
        assert connection.execute(
            "SELECT cv_id FROM cv_jd_matches WHERE jd_id = 'gone'"
        ).fetchall() == [("old",)]


READ_ONLY = {
    "file, wal": ("wal", 0o444, 0o777, "DatabaseReadOnly"),
    "file, no wal": ("delete", 0o444, 0o777, "DatabaseReadOnly"),
    "folder, wal": ("wal", 0o666, 0o555, "DatabaseReadOnly"),
    "folder, no wal": ("delete", 0o666, 0o555, "DatabaseReadOnly"),
    "unreadable": ("wal", 0, 0o777, "StorageError"),
}


@pytest.mark.parametrize("kind", READ_ONLY)
def test_a_read_only_file_or_folder_is_said_to_be_so_and_works_when_mended(
    kind: str, open_folder: Path
) -> None:
    journal, file_mode, folder_mode, error = READ_ONLY[kind]
    path = open_folder / "samsara.db"
    shutil.copyfile(V4, path)
    sql(path, f"PRAGMA journal_mode = {journal}")
    content = path.read_bytes()
    path.chmod(file_mode)
    open_folder.chmod(folder_mode)

    def work() -> list[str]:
        return [step.name for step in migrator.migrate(path).steps]

    status, said = in_child(work, ordinary=True)
    assert (status, said.split(" ")[:2]) == (
        0,
        [f"{error}:", f"{path}{'.vault-lock' if kind == 'folder, no wal' else ''}:"],
    )
    assert (
        "no permission to read it" in said
        if kind == "unreadable"
        else "no permission to read it" not in said
    )
    assert list(open_folder.glob("*.backup")) == []  # or each try would leave one
    path.chmod(0o666)
    assert path.read_bytes() == content
    open_folder.chmod(0o777)
    for beside in open_folder.glob("samsara.db-*"):
        beside.chmod(0o666)  # SQLite gave them the database's mode
    assert in_child(work, ordinary=True) == (
        0,
        str([step.name for step in STEPS[4:]]),
    )
    assert shape_of(path) == COMPLETE


def check_after_a_fault(path: Path, columns: dict[str, list[str]], rows: dict[str, str]) -> None:
    """Old or new, never between."""
    number = user_version(path)
    with plain(path) as connection:
        tables = shape(connection)["tables"]
        own = (
            connection.execute("SELECT value FROM vault_meta WHERE key = 'version'").fetchone()
            if "vault_meta" in tables
            else None
        )
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert shape_of(path) == shapes()[number, int(own[0]) if own else 0]
    assert rows_of(path, columns) == rows


@pytest.mark.parametrize("more", [-50_000, 0, 4096, 30_000, 60_000])
def test_a_file_that_may_not_grow_is_left_whole_and_the_same_process_goes_on_when_it_may(
    more: int, v4: Path
) -> None:
    rows, columns, limit = rows_of(v4), columns_of(shape_of(v4)), v4.stat().st_size + more
    shapes()  # here: it makes files of its own, which the limit would stop

    def work() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(StorageError, match="disk I/O error"):
            migrator.migrate(v4)
        check_after_a_fault(v4, columns, rows)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        migrator.migrate(v4)
        return limit

    assert in_child(work) == (0, str(limit))
    assert shape_of(v4) == COMPLETE
    assert rows_of(v4, columns) == rows


FULL_DISK = """
import shutil, subprocess, sys
from pathlib import Path
from outreach_vault.schema import migrator
from outreach_vault.errors import DatabaseFull
sys.path[:0] = sys.argv[2:]
from helpers.shape import columns_of, rows_of, shape_of
from test_migrator import COMPLETE, V4, check_after_a_fault
path = Path(sys.argv[1]) / "samsara.db"
shutil.copyfile(V4, path)
columns = columns_of(shape_of(path))
rows = rows_of(path)
try:
    migrator.migrate(path)
except DatabaseFull as error:
    assert str(error) == f"{path}: the disk or a quota on it is full", error
    print("full", len(list(path.parent.glob("*.backup"))))
check_after_a_fault(path, columns, rows)
subprocess.run(["mount", "-o", "remount,size=8m", sys.argv[1]], check=True)
migrator.migrate(path)
assert shape_of(path) == COMPLETE
assert rows_of(path, columns) == rows
"""


@pytest.mark.parametrize(("kilobytes", "backups"), [(160, 0), (288, 1)])
def test_a_full_disk_is_said_to_be_full_and_nothing_is_half_done(
    kilobytes: int, backups: int, tmp_path: Path
) -> None:
    alone = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o "size=$0" none "$1" && shift && exec "$@"',
    ]
    disk = [*alone, f"{kilobytes}k", str(tmp_path)]
    if (
        not shutil.which("unshare")
        or subprocess.run([*disk, "true"], capture_output=True).returncode
    ):
        pytest.skip("this machine lets nobody mount a small disk of their own")
    sources = (str(TESTS), str(Path(__file__).parent))
    command = [*disk, sys.executable, "-c", FULL_DISK, str(tmp_path), *sources]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"full {backups}\n"), done.stderr


def die_at(path: Path, moment: int) -> tuple[int, str]:
    """
    Migrate in a child that ends, as if killed, before its Nth statement or commit on the file.
    """
    moments = itertools.count(1)

    def dying(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(self: Any, *args: Any, **options: Any) -> Any:
            file = self.path if owner is Database else Path(file_of(self))
            # A kill there is one before the next write.
            reads = bool(args) and args[0].startswith(READS + SETTINGS)
            if file == path and not reads and next(moments) == moment:
                os._exit(9)
            return original(self, *args, **options)

        setattr(owner, name, wrapped)

    def work() -> int:
        for owner, name in (
            (_Connection, "execute"),
            (_Connection, "executemany"),
            (Database, "close_all"),
        ):
            dying(owner, name)
        migrator.migrate(path)
        return next(moments)

    return in_child(work)


def test_killed_at_any_statement_a_file_is_old_or_new_and_the_next_run_finishes(
    tmp_path: Path, figures: Figures
) -> None:
    source = tmp_path / "v0.db"
    leave_half_done(source, 0, 6)
    rows, columns = rows_of(source), columns_of(shape_of(source))
    seen, tried, stride = set(), 0, effort(1, 9)
    for moment in itertools.count(1, stride):
        path = tmp_path / str(moment) / "v.db"
        path.parent.mkdir()
        shutil.copyfile(source, path)
        status, said = die_at(path, moment)
        check_after_a_fault(path, columns, rows)
        seen.add(versions(path))
        migrator.migrate(path)
        assert shape_of(path) == COMPLETE
        assert rows_of(path, columns) == rows
        if status == 0:
            break
        assert status == 9
        tried += 1
    assert moment - stride < int(said) <= moment
    missed = set(shapes()) - seen
    assert not seen - set(shapes()) and (not missed or not THOROUGH), (
        "every step was met by a kill before it and after it"
    )
    figures("kills of a migration at a statement, old or new after each", tried)


# backups


def test_the_backup_is_the_file_as_it_was_with_what_is_only_in_its_log(v4: Path) -> None:
    with plain(v4) as app:  # keeps the file open, so that its last row stays in the write-ahead log
        app.execute(
            "INSERT INTO projects (id, name, created_at, updated_at) VALUES ('late', 'Späť', "
            f"'{MOMENT}', '{MOMENT}')"
        )
        before = rows_of(v4)
        done = migrator.migrate(v4)
    assert [done.backup] == backups_of(v4)
    assert done.backup is not None
    assert done.backup.name.startswith("samsara.db.schema-4.2")
    assert stat.S_IMODE(done.backup.stat().st_mode) == 0o600
    assert (shape_of(done.backup), rows_of(done.backup), user_version(done.backup)) == (
        shapes()[4, 0],
        before,
        4,
    )
    shutil.copyfile(done.backup, v4)
    assert len(migrator.migrate(v4).steps) == 1 + OWN, (
        "the backup is a database like the one it was made of"
    )


def test_the_backup_is_there_before_anything_is_changed(
    v4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = []

    def stop(database: Database, *args: object, **options: object) -> bool:
        met.append((len(backups_of(v4)), database.schema_version(), v4.read_bytes()))
        raise KeyboardInterrupt

    before = v4.read_bytes()
    monkeypatch.setattr(migrator, "apply", stop)
    with pytest.raises(KeyboardInterrupt):
        migrator.migrate(v4)
    assert met == [(1, 4, before)]


def test_a_lock_ends_with_the_process_that_had_it(v4: Path) -> None:
    def work() -> None:
        with operators_lock(v4):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work)[0] == -signal.SIGKILL
    assert len(migrator.migrate(v4).steps) == 1 + OWN
