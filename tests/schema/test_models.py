"""
The models tell of the database exactly what is in it, and write exactly what the desktop app would.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import peewee
import pytest
from helpers import SAMPLES
from helpers.faults import forked
from helpers.postgres import psycopg
from helpers.shape import common, files_in, rows_of, shape, shape_of, shape_on_server
from helpers.site import Connection, Site, another, refusals, require_sound, sql

from outreach_vault import (
    DatabaseBusy,
    DatabaseReadOnly,
    ProjectNotFound,
    StorageError,
    Vault,
    VaultError,
    models,
)
from outreach_vault.database import Database as AnyDatabase
from outreach_vault.database import open_database
from outreach_vault.database.sqlite.connections import IN_MEMORY
from outreach_vault.database.sqlite.database import SQLiteDatabase as Database
from outreach_vault.models import (
    OWN_MODELS,
    SHARED_MODELS,
    BoundDatabase,
    Cv,
    OutreachTemplate,
    Project,
    ProviderCredential,
)
from outreach_vault.schema import migrator
from outreach_vault.schema.models import bind

ALL = SHARED_MODELS + OWN_MODELS
OUTREACH = (
    "messages", "call_records", "transcripts", "outreach_templates", "outreach_sequences",
    "provider_credentials", "ats_mappings",
)  # fmt: skip
MOMENT = "2026-02-06T09:30:00.250Z"
EVENT = (
    "INSERT INTO usage_events (project_id, event_type, total_tokens, llm_mode, created_at)"
    " VALUES ('default-project', 'parse', ?, 'cloud', ?)"
)


@pytest.fixture
def new(place: Site) -> Site:
    """The tables, and no vault."""
    migrator.create(place.database)
    return place


@pytest.fixture
def database(new: Site) -> Iterator[AnyDatabase]:
    opened = open_database(new.database)
    bind(opened)
    yield opened
    opened.close_all()


@pytest.fixture
def tables_of_models() -> Iterator[Database]:
    scratch = Database(IN_MEMORY, str(IN_MEMORY))
    bound = BoundDatabase(scratch)
    with bound.bind_ctx(ALL):
        bound.create_tables(ALL, safe=False)
    yield scratch
    scratch.close_all()


@pytest.fixture(autouse=True)
def unbound() -> Iterator[None]:
    """Binding is for the whole process; here it ends with the test."""
    yield
    for model in ALL:
        model._meta.set_database(None)


def stored(database: AnyDatabase, model: type[peewee.Model], column: str) -> object:
    """What the only row but the default project's holds, as the database sees it."""
    name = model._meta.table_name
    ((found,),) = database.fetch(f"SELECT {column} FROM {name} WHERE id != 'default-project'")
    return found


def test_models_are_bound_to_no_database_at_import() -> None:
    code = (
        "from outreach_vault.models import *; print([m for m in SHARED_MODELS + OWN_MODELS if "
        "m._meta.database is not None])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_every_model_of_the_module_is_listed_once() -> None:
    defined = [
        value
        for value in vars(models).values()
        if isinstance(value, type) and value.__module__.startswith("outreach_vault.")
    ]
    assert sorted(ALL, key=str) == sorted(
        (found for found in defined if issubclass(found, peewee.Model)), key=str
    )


def test_tables_of_the_models_and_of_the_migrations_are_the_same(
    new: Site, tables_of_models: Database, tmp_path: Path
) -> None:
    """But for triggers, which a model cannot have, and indexes, which are the migrations' alone."""
    path = new.database
    if new.engine:
        migrator.create(path := tmp_path / "new.db")
        assert shape_on_server(new.database) == common(shape_of(path))
    migrated, modelled = shape_of(path), shape(tables_of_models.connection())
    assert [trigger["name"] for trigger in migrated.pop("triggers")] == ["update_daily_usage"]
    assert modelled.pop("triggers") == []
    for found in (migrated, modelled):
        for table in found["tables"].values():
            table["indexes"] = [i for i in table["indexes"] if i["origin"] != "create index"]
    assert modelled == migrated


@pytest.mark.parametrize(
    ("moments", "days"),
    [
        (("2026-02-06T23:30:00.000Z", "2026-02-06T00:00:00.000Z"), {"2026-02-06": (7, 2)}),
        (("2026-02-06T23:30:00-02:00",), {"2026-02-07": (3, 1)}),
        (("2026-02-06T00:30:00+01:00", "2026-02-05 23:59"), {"2026-02-05": (7, 2)}),
        (("2026-02-06", "2026-02-06T12:00:00Z"), {"2026-02-06": (7, 2)}),
    ],
)
def test_each_event_is_counted_on_its_day_in_utc(
    new: Site, moments: tuple[str, ...], days: dict[str, tuple[int, int]]
) -> None:
    for tokens, moment in zip((3, 4), moments, strict=False):
        sql(new.database, EVENT, tokens, moment)
    counted = "SELECT date, total_tokens, request_count FROM usage_daily"
    assert {day: (tokens, count) for day, tokens, count in sql(new.database, counted)} == days


@pytest.mark.parametrize("moment", ["no time", "", "yesterday", "infinity", "2026-13-01"])
def test_an_event_at_no_time_is_refused_and_leaves_nothing(new: Site, moment: str) -> None:
    with pytest.raises((*refusals(), *([psycopg.DataError] if new.engine else []))):
        sql(new.database, EVENT, 3, moment)
    for table in ("usage_events", "usage_daily"):
        assert sql(new.database, f"SELECT count(*) FROM {table}") == [(0,)]


def test_a_key_has_one_of_four_states(new: Site) -> None:
    insert = (
        f"INSERT INTO vault_keys (id, state, check_value, created_at) VALUES (?, ?, '', '{MOMENT}')"
    )
    states = ("pending", "active", "retired", "destroyed", "pending", "retired")
    for number, state in enumerate(states):
        sql(new.database, insert, f"{state} {number}", state)
    with pytest.raises(refusals(), match=r"(?i)check"):
        sql(new.database, insert, "one", "lost")
    with pytest.raises(refusals(), match=r"(?i)unique"):
        sql(new.database, insert, "a second active one", "active")


def fill(connection: Connection) -> None:
    """A project `p` with a CV `c` and one row in each outreach table, by SQL alone."""
    times = ("created_at", "updated_at", "calculated_at")
    needed = {"id": "1", "project_id": "p", "cv_id": "c", "call_id": "1"}
    connection.execute(
        "INSERT INTO projects (id, name, created_at, updated_at) VALUES ('p', 'P', ?, ?)",
        (MOMENT, MOMENT),
    )
    for table in ("cvs", *OUTREACH):
        (model,) = (each for each in ALL if each._meta.table_name == table)
        row = {
            field.column_name: 0
            if isinstance(field, (peewee.FloatField, peewee.IntegerField))
            else MOMENT
            if field.column_name in times
            else needed.get(field.column_name, "[]")
            for field in model._meta.sorted_fields
            if not field.null or field.column_name in needed
        }
        row |= {"id": "c"} if table == "cvs" else {}
        connection.execute(
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
            list(row.values()),
        )


def counts(connection: Connection) -> dict[str, int]:
    return {
        table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        for table in OUTREACH
    }


@contextlib.contextmanager
def with_references(site: Site) -> Iterator[Connection]:
    with another(site.database) as connection:
        if site.engine is None:
            connection.execute("PRAGMA foreign_keys = ON")
        yield connection


def test_deleting_a_project_in_sql_takes_its_outreach_rows_along(new: Site) -> None:
    with with_references(new) as connection:
        fill(connection)
        assert counts(connection) == dict.fromkeys(OUTREACH, 1)
        connection.execute("DELETE FROM projects WHERE id = 'default-project'")
        assert counts(connection) == dict.fromkeys(OUTREACH, 1)
        connection.execute("DELETE FROM projects WHERE id = 'p'")
        assert counts(connection) == dict.fromkeys(OUTREACH, 0)
        assert connection.execute("SELECT id FROM cvs").fetchall() == [("c",)], (
            "the app declares no foreign key there"
        )


def test_deleting_a_cv_in_sql_leaves_messages_and_calls_without_one_and_ends_its_sequences(
    new: Site,
) -> None:
    with with_references(new) as connection:
        fill(connection)
        connection.execute("DELETE FROM cvs")
        assert counts(connection) == dict.fromkeys(OUTREACH, 1) | {"outreach_sequences": 0}
        assert connection.execute(
            "SELECT m.cv_id, c.cv_id FROM messages m, call_records c"
        ).fetchall() == [(None, None)]


def test_deleting_through_a_model_leaves_the_cascade_to_the_database(
    database: AnyDatabase,
) -> None:
    connection = Connection(database.connection())
    fill(connection)
    assert Project.delete_by_id("p") == 1
    assert counts(connection) == dict.fromkeys(OUTREACH, 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ([], "[]"),
        ({}, "{}"),
        ("", '""'),
        (False, "false"),
        ({"a": 1, "b": [True, None, "x"]}, '{"a":1,"b":[true,null,"x"]}'),
        ({"name": "José – 山田", "sign": "✓ 🎉"}, '{"name":"José – 山田","sign":"✓ 🎉"}'),
        (
            [{"start": 0.0, "end": 2.4}, {"start": 2.4, "end": 5.0}],
            '[{"start":0,"end":2.4},{"start":2.4,"end":5}]',
        ),
        ((1e3, -0.0, 0.25, 2.0**53 - 1, 1e21), "[1000,0,0.25,9007199254740991,1e+21]"),
        ('a "quoted"\\\n\t\x00/<>\u2028', '"a \\"quoted\\"\\\\\\n\\t\\u0000/<>\u2028"'),
    ],
)
def test_json_is_stored_as_the_app_writes_it_and_comes_back(
    value: object, text: str | None, database: AnyDatabase
) -> None:
    row = OutreachTemplate.create(
        project="default-project", name="n", type="sms", body="b", variables_json=value
    )
    assert stored(database, OutreachTemplate, "variables_json") == text
    again = OutreachTemplate.get_by_id(row.id).variables_json
    assert again == (list(value) if isinstance(value, tuple) else value)
    OutreachTemplate.update(variables_json=["other"]).execute()
    OutreachTemplate.update(variables_json=value).execute()
    assert stored(database, OutreachTemplate, "variables_json") == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"deep": [float("-inf")]}])
def test_what_json_cannot_say_is_refused(value: object, database: AnyDatabase) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        OutreachTemplate.create(
            project="default-project", name="n", type="sms", body="b", variables_json=value
        )
    assert database.fetch("SELECT count(*) FROM outreach_templates") == [(0,)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime(2026, 2, 6, 9, 30, 0, 250000, tzinfo=UTC), MOMENT),
        (datetime(2026, 2, 6, 9, 30, 0, 250999, tzinfo=UTC), MOMENT),
        (datetime(2026, 2, 6, 9, 30, tzinfo=UTC), "2026-02-06T09:30:00.000Z"),
        (datetime(2026, 2, 6, 0, 30, 0, 250000, tzinfo=timezone(timedelta(hours=-9))), MOMENT),
        (
            datetime(2026, 2, 6, 15, 0, 0, 250000, tzinfo=timezone(timedelta(hours=5, minutes=30))),
            MOMENT,
        ),
        (MOMENT, MOMENT),
        (None, None),
    ],
)
def test_times_are_stored_as_the_app_writes_them_and_come_back_aware(
    value: Any, text: str | None, database: AnyDatabase
) -> None:
    row = Cv.create(
        file_path="",
        file_name="",
        contact_json={},
        contact_confidence=0,
        parse_confidence=0,
        processing_started_at=value,
    )
    assert stored(database, Cv, "processing_started_at") == text
    again = Cv.get_by_id(row.id).processing_started_at
    assert again == (None if text is None else datetime.fromisoformat(text))
    assert again is None or again.tzinfo is not None
    assert Cv.select().where(Cv.processing_started_at == value).count() == 1


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 2, 6, 9, 30),
        date(2026, 2, 6),
        1770370200,
        "",
        "2026-02-06T09:30:00.250000Z",
        "2026-02-06T09:30:00Z",
        "2026-02-06T09:30:00.250+00:00",
        "2026-02-06 09:30:00.250Z",
        "2026-02-06T09:30:00.250Z\n",
        "2026-02-06T09:30:00.250",
    ],
)
def test_times_in_another_shape_would_sort_wrongly_and_are_refused(
    value: Any, database: AnyDatabase
) -> None:
    with pytest.raises(ValueError, match=r"time zone|not a datetime, nor text like"):
        Project.create(name="P", created_at=value)
    assert database.fetch("SELECT id FROM projects") == [("default-project",)]


@pytest.mark.parametrize(
    ("value", "number"), [(True, 1), (False, 0), (1, 1), (0, 0), (2, 1), (None, None)]
)
def test_flags_are_stored_as_0_and_1_and_come_back_as_bool(
    value: bool | None, number: int | None, database: AnyDatabase
) -> None:
    row = Project.create(name="P", is_archived=value)
    found = stored(database, Project, "is_archived")
    assert found == number and type(found) is type(number)
    assert Project.get_by_id(row.id).is_archived is (None if number is None else bool(number))


def test_defaults_are_the_database_s_and_in_the_app_s_shapes(
    database: AnyDatabase, new: Site
) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)  # what is stored is cut to milliseconds
    row = Project.create(name="Zürich")
    (found,) = database.fetch(
        "SELECT id, client_name, is_archived, is_pinned, pin_order, created_at FROM projects "
        "WHERE name = 'Zürich'"
    )
    assert found[0] == row.id
    assert found[1:5] == (None, 0, 0, 0)
    some, moment = "[0-9a-f]", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    uuid4 = f"{some}{{8}}-{some}{{4}}-4{some}{{3}}-[89ab]{some}{{3}}-{some}{{12}}"
    shaped = "SELECT id, created_at, updated_at FROM projects WHERE name = 'Zürich'"
    (texts,) = sql(new.database, shaped)
    assert all(map(re.fullmatch, (uuid4, moment, moment), texts))
    assert before <= datetime.fromisoformat(found[5]) <= datetime.now(UTC)
    assert Project.create(name="Other").id != row.id


@pytest.mark.samples
def test_every_row_of_the_sample_is_read_and_written_back_as_it_was(tmp_path: Path) -> None:
    sample, copy = tmp_path / "sample.db", tmp_path / "copy.db"
    shutil.copyfile(SAMPLES / "samsara-v5.db", sample)
    migrator.migrate(sample)
    migrator.create(copy)
    source, target = Database(sample), Database(copy)
    target.change("DROP TRIGGER update_daily_usage")  # it would write rows of its own
    for table in ("projects", "vault_meta"):
        target.change(f"DELETE FROM {table}")
    for model in ALL:
        with BoundDatabase(source).bind_ctx([model]):
            rows = list(model.select().order_by(peewee.SQL("rowid")))
        assert rows or model in OWN_MODELS
        with BoundDatabase(target).bind_ctx([model]):
            for row in rows:
                row.save(force_insert=True)
    source.close_all()
    target.close_all()
    assert rows_of(copy) == rows_of(sample)
    assert "copy.db-wal" not in files_in(tmp_path)


# Bound to an open vault


class Undone(Exception):
    pass


@pytest.mark.parametrize("lock", [(), ("IMMEDIATE",)])
@pytest.mark.parametrize("kept", [True, False])
def test_what_the_vault_stores_inside_atomic_is_kept_or_undone_with_it(
    vault: Vault, site: Site, kept: bool, lock: tuple[str, ...]
) -> None:
    vault.set("smtp", "user", "before")
    vault.set("smtp", "host", "before")
    before = site.rows()
    with contextlib.suppress(Undone), vault.bind_models().atomic(*lock):
        Project.create(id="p", name="P")
        row_id = vault.set("smtp", "user", "of p", "p")
        vault.set("smtp", "user", "after")
        assert vault.delete("smtp", "host")
        assert (
            vault.get("smtp", "user", "p").reveal() == "of p"
            and ProviderCredential.get_by_id(row_id).project_id == "p"
        )
        assert site.rows() == before, "nobody else sees half of it"
        if not kept:
            raise Undone
    assert Project.select().where(Project.id == "p").count() == kept
    if kept:
        assert (
            vault.get("smtp", "user", "p").reveal() == "of p"
            and vault.get("smtp", "user").reveal() == "after"
        )
        assert [row["credential_type"] for row in site.rows().values()] == ["user", "user"]
    else:
        assert site.rows() == before and vault.get("smtp", "user").reveal() == "before"
    assert not vault.database.in_transaction()


@pytest.mark.sqlite("a transaction that has read cannot write once another wrote")
@pytest.mark.parametrize("theirs", ["COMMIT", "SELECT 'the lock is kept'"])
def test_a_transaction_that_has_read_is_told_at_once_that_it_cannot_write_and_how_it_could(
    vault: Vault, site: Site, theirs: str
) -> None:
    vault.set("smtp", "user", "before")
    with (
        contextlib.closing(sqlite3.connect(site.database, isolation_level=None)) as other,
        vault.bind_models().atomic(),
    ):
        assert vault.get("smtp", "user").reveal() == "before"
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE projects SET name = 'theirs'")
        other.execute(theirs)
        with pytest.raises(DatabaseBusy, match="wrote after this transaction had read") as caught:
            vault.set("smtp", "user", "after")
        assert "seconds" not in str(caught.value) and "atomic('IMMEDIATE')" in (
            caught.value.hint or ""
        )
    assert vault.get("smtp", "user").reveal() == "before"
    vault.set("smtp", "user", "after")
    assert vault.get("smtp", "user").reveal() == "after"


def test_an_inner_atomic_undoes_what_the_vault_stored_inside_it_alone(
    vault: Vault, site: Site
) -> None:
    bound = vault.bind_models()
    with bound.atomic():
        vault.set("smtp", "user", "outer")
        with contextlib.suppress(Undone), bound.atomic():
            vault.set("smtp", "user", "inner")
            vault.set("smtp", "password", "inner")
            raise Undone
        assert vault.get("smtp", "user").reveal() == "outer"
        vault.set("smtp", "host", "outer")
    with site.open() as other:
        assert {
            entry.credential_type: other.get("smtp", entry.credential_type).reveal()
            for entry in other.list()
        } == {
            "user": "outer",
            "host": "outer",
        }


def fails(site: Site, how: str, fault: str) -> None:
    """Another program's trigger refuses to change a password."""
    body = f"BEGIN SELECT RAISE({how}, '{fault}'); END"
    when = "WHEN (new.credential_type = 'password')"
    if site.engine:
        raising = f"RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''{fault}''; END'"
        sql(site.database, f"CREATE FUNCTION fault() {raising}")
        body = "EXECUTE FUNCTION fault()"
        when = f"FOR EACH ROW {when}"
    sql(site.database, f"CREATE TRIGGER fault BEFORE UPDATE ON provider_credentials {when} {body}")


def test_a_call_of_the_vault_that_fails_inside_atomic_undoes_only_itself(
    vault: Vault, site: Site
) -> None:
    vault.set_fields("smtp", {"user": "before", "password": "before"})
    fails(site, "ABORT", "a fault")
    with vault.bind_models().atomic():
        Project.create(id="p", name="P")
        vault.set("smtp", "user", "of p", "p")
        with pytest.raises(VaultError, match="a fault"):
            vault.set_fields("smtp", {"user": "half", "password": "half"})
        assert vault.get("smtp", "user").reveal() == "before"
        with pytest.raises(ProjectNotFound):
            vault.set_fields("smtp", {"user": "lost", "password": "lost"}, "nobody")
        with pytest.raises(ProjectNotFound):
            vault.delete("smtp", "user", "nobody")
        vault.set("smtp", "host", "of p", "p")
    assert not vault.database.in_transaction()
    with site.open() as other:
        found = {
            (entry.project_id, entry.credential_type): other.get(
                "smtp", entry.credential_type, entry.project_id
            )
            for entry in other.list()
        }
        assert {place: credential.reveal() for place, credential in found.items()} == {
            (None, "user"): "before",
            (None, "password"): "before",
            ("p", "user"): "of p",
            ("p", "host"): "of p",
        }


@pytest.mark.sqlite("a trigger that ends the whole transaction")
def test_a_fault_that_ends_the_whole_transaction_is_named_and_leaves_the_vault_usable(
    vault: Vault, site: Site
) -> None:
    vault.set_fields("smtp", {"user": "before", "password": "before"})
    before = site.rows()
    fails(site, "ROLLBACK", "the whole")
    with (
        pytest.raises((VaultError, peewee.PeeweeException)) as caught,
        vault.bind_models().atomic(),
    ):
        vault.set("smtp", "host", "lost")
        with pytest.raises(VaultError, match="the whole"):
            vault.set("smtp", "password", "lost")
        raise VaultError("out of it")
    assert caught.value and site.rows() == before
    vault.set("smtp", "user", "after")
    assert Project.select().count() == 1 and not vault.database.in_transaction()
    with site.open() as other:
        assert other.get("smtp", "user").reveal() == "after"


def test_models_of_another_thread_use_that_threads_connection(vault: Vault, site: Site) -> None:
    bound = vault.bind_models()
    Project.create(id="ours", name="P")
    ours = bound.connection()
    assert ours is vault.database.connection()

    def theirs() -> bool:
        Project.create(id="theirs", name="P")
        vault.set("smtp", "user", "of theirs", "theirs")
        return bound.connection() is vault.database.connection() and bound.connection() is not ours

    with ThreadPoolExecutor(1) as pool, bound.atomic():
        # A reader in a transaction of its own, while another thread writes: a file's sees all at
        # one moment, a server's what has been committed.
        assert Project.select().count() == 2
        assert pool.submit(theirs).result()
        seen = 0 if site.engine is None else 1
        assert Project.select().count() == 2 + seen and len(vault.list()) == seen
    assert bound.connection() is ours and Project.select().count() == 3 and len(vault.list()) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_models_in_a_forked_child_use_the_childs_connection(vault: Vault, site: Site) -> None:
    bound = vault.bind_models()
    Project.create(id="of the parent", name="P")
    ours = bound.connection()

    def child() -> None:
        assert Project.select().count() == 2
        assert bound.connection() is not ours, (
            "one connection in two processes corrupts the file, or what the server is told"
        )
        assert bound.connection() is vault.database.connection()
        with bound.atomic():
            Project.create(id="of the child", name="P")
            vault.set("smtp", "user", "v", "of the child")

    assert os.waitpid(forked(child), 0)[1] == 0
    assert bound.connection() is ours is vault.database.connection()
    assert vault.get("smtp", "user", Project.get_by_id("of the child").id).reveal() == "v"
    require_sound(site.database)


def test_models_follow_the_vault_to_a_connection_that_it_opened_anew(
    vault: Vault, site: Site
) -> None:
    bound = vault.bind_models()
    Project.create(id="first", name="P")
    before = bound.connection()
    if site.engine:
        site.engine.sql(
            "postgres", "SELECT pg_terminate_backend(?, 10000)", before.info.backend_pid
        )
    else:
        vault.database.fetch("PRAGMA query_only = 1")
    # What had not begun is begun anew on a server.
    with contextlib.nullcontext() if site.engine else pytest.raises(DatabaseReadOnly):
        vault.set("smtp", "user", "v")
    Project.create(id="second", name="P")
    assert bound.connection() is vault.database.connection() is not before
    with bound.atomic():
        vault.set("smtp", "user", "v", "second")
    assert vault.get("smtp", "user", "second").reveal() == "v"


def test_closing_what_is_bound_leaves_the_vault_open(vault: Vault) -> None:
    bound = vault.bind_models()
    Project.create(id="p", name="P")
    connection = vault.database.connection()
    assert bound.close() and not bound.close()
    vault.set("smtp", "user", "v", "p")
    with bound:  # which closes at its end, too
        Project.create(id="q", name="Q")
    with bound.connection_context():
        assert Project.select().count() == 3
    assert vault.get("smtp", "user", "p").reveal() == "v" and Project.select().count() == 3
    assert vault.database.connection() is connection


def test_after_the_vault_was_closed_a_model_fails_and_no_file_is_opened_or_made(site: Site) -> None:
    calls: list[Callable[[], object]] = [
        lambda: Project.select().count(),
        lambda: Project.create(name="P"),
        lambda: bound.atomic().__enter__(),
        lambda: bound.execute_sql("SELECT 1").fetchall(),
    ]
    with ThreadPoolExecutor(1) as knows_it, ThreadPoolExecutor(1) as does_not:
        with site.open() as vault:
            bound = vault.bind_models()
            assert Project.select().count() == knows_it.submit(Project.select().count).result() == 1
        if site.engine is None:
            site.database.rename(site.database.with_name("moved.db"))
        left = sorted(path.name for path in site.folder.iterdir())
        for call in calls:
            for where in (
                call,
                lambda call=call: knows_it.submit(call).result(),
                lambda call=call: does_not.submit(call).result(),
            ):
                with pytest.raises(peewee.PeeweeException, match=r"closed"):
                    where()
        bound.close()
        for call in calls:
            with pytest.raises(peewee.PeeweeException, match=r"closed"):
                call()
        with pytest.raises(VaultError, match="closed"):
            vault.list()
        assert sorted(path.name for path in site.folder.iterdir()) == left


def test_a_database_that_is_not_there_is_not_made_by_binding(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        BoundDatabase(Database(tmp_path / "none.db"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stored", ["yesterday", "", 5, 1.5, b"2026"])
def test_a_stored_time_that_is_none_is_a_value_error(stored: object) -> None:
    with pytest.raises(ValueError):
        Project.created_at.python_value(stored)


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_a_time_that_utc_has_not_is_a_value_error(moment: str) -> None:
    with pytest.raises(ValueError, match="years 1 to 9999"):
        Project.created_at.db_value(datetime.fromisoformat(moment))
