"""A vault is copied from its file to a real server: all of it, at one moment, or nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from helpers.commands import Terminal, failed, problems, run
from helpers.faults import each_stop
from helpers.postgres import Postgres
from helpers.rotation_peers import Values, fill
from helpers.rows import flipped, put, stored
from helpers.site import (
    Figures,
    Row,
    Site,
    another,
    bytes_of,
    is_url,
    name_of,
    new_site,
    operators_lock,
    records,
    sql,
    tables_of,
)  # fmt: skip

from outreach_vault import (
    DatabaseUnreachable,
    KeyDirectory,
    KeyMissing,
    KeySuperseded,
    OperationRunning,
    SchemaError,
    SharedKeys,
    StorageError,
    Vault,
)  # fmt: skip
from outreach_vault.database.postgres.database import PostgresDatabase
from outreach_vault.errors import WrongArgument
from outreach_vault.keys.stores import KeyStore
from outreach_vault.operations import copying, rotation
from outreach_vault.schema import migrator
from outreach_vault.schema.models import columns

if sys.platform != "linux":
    pytest.skip("the servers are Linux's", allow_module_level=True)

P = "default-project"
T = "2026-02-06T09:30:00.250Z"
AWKWARD = "\\N \\t\\. \t\r\n\x01\x7f\ufeff\ufffe \U0001f511 é '\"%s?:name"
LARGEST = (1 << 63) - 1
NAMES = list(columns())
MESSAGE = (
    "INSERT INTO messages (id, project_id, cv_id, type, direction, status, to_address, body,"
    " created_at) VALUES (?, ?, ?, 'email', 'out', 'sent', 'a@example.com', ?, ?)"
)
EVENT = (
    "INSERT INTO usage_events (project_id, event_type, total_tokens, llm_mode, created_at)"
    " VALUES (?, 'parse', 7, 'cloud', ?)"
)
CV = (
    "INSERT INTO cvs (id, file_path, file_name, created_at, updated_at, contact_json,"
    f" contact_confidence, parse_confidence, project_id) VALUES (?, ?, 'f', '{T}', '{T}', '{{}}',"
    " 9e999, 1e-300, 'a project that is gone')"
)
JD = (
    "INSERT INTO job_descriptions (id, title, raw_text, created_at, updated_at, experience_min)"
    f" VALUES (?, 't', '', '{T}', '{T}', {LARGEST})"
)
MATCH = f"INSERT INTO cv_jd_matches VALUES (?, ?, {-LARGEST - 1}, NULL, '[]', '', '{T}')"
CALL = (
    "INSERT INTO call_records (id, project_id, type, status, phone_number, screening_confidence,"
    f" created_at) VALUES (?, '{P}', 't', 's', '', 99.9, '{T}')"
)
TRANSCRIPT = f"INSERT INTO transcripts VALUES (?, ?, '{P}', 'text', NULL, NULL, '{T}')"
Filled = tuple[Site, Values]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """A file with rows in each table, and values under two keys; for copies only."""
    site = new_site(tmp_path_factory.mktemp("templates") / "file")
    with site.open() as vault:
        values = fill(vault, 6)
        rotation.rotate(vault)
        vault.set("smtp", "password", values[P, "smtp", "field-0"], P)
        values[P, "smtp", "password"] = values[P, "smtp", "field-0"]
        for text in ("the first", "the second"):  # which makes a previous value
            vault.set("smtp", "password", text)
        values[None, "smtp", "password"] = "the second"
    with another(site.database) as app:
        app.execute("INSERT INTO app_meta VALUES ('initialized_at', ?)", (T,))
        app.execute("INSERT INTO app_meta VALUES ('nothing', NULL)")
        app.execute(CV, ("cv", AWKWARD))
        app.execute(JD, ("jd",))
        app.execute(MATCH, ("cv", "jd"))
        app.execute(MESSAGE, ("m", P, "cv", AWKWARD, T))
        app.execute(CALL, ("call",))
        app.execute(TRANSCRIPT, ("transcript", "call"))
        app.execute(
            f"INSERT INTO outreach_templates VALUES ('t', '{P}', 'n', 't', '', '', '[]', 1,"
            f" '{T}', '{T}')"
        )
        app.execute(
            f"INSERT INTO outreach_sequences VALUES ('s', '{P}', 'cv', 's', 2, '[]', NULL, NULL,"
            f" '{T}')"
        )
        app.execute(f"INSERT INTO ats_mappings VALUES ('a', '{P}', 'v', '{{}}', '{T}', '{T}')")
        for moment in (T, "2026-02-07T01:00:00+02:00"):
            app.execute(EVENT, (P, moment))
        app.execute("UPDATE usage_daily SET total_tokens = 1000, id = 50")  # not what events add to
        app.execute("UPDATE usage_events SET id = id + 40")
        app.execute("INSERT INTO vault_due SELECT id, '2027-01-31' FROM provider_credentials")
        app.execute(
            "INSERT INTO vault_tokens SELECT id, project_id, provider, credential_type,"
            " encrypted_value, key_id, label, created_at, updated_at FROM provider_credentials"
            " WHERE credential_type = 'password'"
        )
        app.execute(
            "INSERT INTO vault_hosts SELECT 'a host', id, ? FROM vault_keys WHERE state = 'active'",
            (T,),
        )
        app.execute(
            "INSERT INTO vault_grants VALUES ('g', NULL, 'smtp', 1, 2, NULL, NULL, NULL, 'login',"
            " 'said', ?)", (T,),
        )  # fmt: skip
    assert all(sql(site.database, f"SELECT 1 FROM {name}") for name in NAMES)
    return site, values


@pytest.fixture
def file(template: Filled, tmp_path: Path) -> Site:
    site, _ = template
    return site.copy(tmp_path / "file")


@pytest.fixture
def values(template: Filled) -> Values:
    return template[1]


@pytest.fixture
def server(postgres_18: Postgres) -> Postgres:
    return postgres_18


@pytest.fixture
def target(server: Postgres) -> str:
    server.create("copied")
    return server.url("copied")


def copy(site: Site, target: str, **options: Any) -> copying.Copied:
    store = options.pop("key_store", None) or KeyDirectory(site.keys)
    return copying.copy(str(site.database), target, key_store=store, **options)


def contents(database: Any) -> dict[str, list[Row]]:
    """All rows but those that say where a database is."""
    facts = "WHERE key NOT IN ('home', 'home_keys', 'schema')"
    return {
        name: sorted(
            records(database, f"SELECT * FROM {name} {facts if name == 'vault_meta' else ''}"),
            key=repr,
        )
        for name in NAMES
    }


def is_empty(target: str) -> bool:
    return tables_of(target) == []


def test_every_row_and_value_is_there_and_the_file_is_as_it_was(
    file: Site, target: str, values: Values, figures: Figures
) -> None:
    before, rows = bytes_of(file.database), contents(file.database)
    done = run(file, "copy-to", target, "--json")
    assert done.status == 0 and done.data["already"] is False, done.err
    assert bytes_of(file.database) == before
    assert contents(target) == rows
    count = {name: len(found) for name, found in rows.items()}
    assert {**done.data["rows"], "vault_meta": 0} == {**count, "vault_meta": 0}
    assert done.data["values"] == {"ok": len(values), "foreign": 0, "unreadable": 0}
    assert (done.data["source"], is_url(done.data["target"])) == (str(file.database), True)
    ((home,),) = sql(target, "SELECT value FROM vault_meta WHERE key = 'home'")
    assert home.startswith("postgresql:")  # its own, not the file's
    copied = Site(target, file.keys)
    copied.require_intact(values)
    found = problems(run(copied, "doctor", "--deep", "--json"))
    assert [each["kind"] for each in found] in ([], ["unsafe server"])  # the server's, not ours
    figures("rows copied to a server, each as it was", sum(count.values()))


def test_what_a_log_of_the_file_has_is_copied_and_stays_in_it(file: Site, target: str) -> None:
    """As a program that was killed leaves it: whoever closes the file next might empty its log."""
    left, log = file.copy(file.folder.with_name("left")), f"{file.database.name}-wal"
    with another(file.database) as app:
        app.execute(MESSAGE, ("new", P, None, "in the log", T))
        rows = contents(file.database)
        for name in (file.database.name, log):
            (left.folder / name).write_bytes(bytes_of(file.folder / name))
    before = bytes_of(left.database), bytes_of(left.folder / log)
    copy(left, target)
    assert (bytes_of(left.database), bytes_of(left.folder / log)) == before and before[1]
    assert contents(target) == rows


def test_the_app_s_totals_and_numbers_go_on_from_the_file_s(file: Site, target: str) -> None:
    copy(file, target)
    assert sql(target, "SELECT id, total_tokens, request_count FROM usage_daily") == [(50, 1000, 2)]
    sql(target, EVENT, P, T)
    sql(target, EVENT, P, "2026-02-08T00:00:00.000Z")
    highest = sql(file.database, "SELECT max(id) FROM usage_events")[0][0]
    assert sql(target, "SELECT max(id), count(*) FROM usage_events") == [(highest + 2, 4)]
    days = "SELECT date, total_tokens, request_count FROM usage_daily ORDER BY 1"
    assert sql(target, days) == [("2026-02-06", 1007, 3), ("2026-02-08", 7, 1)]


def test_the_copy_has_the_schema_of_a_new_one(file: Site, target: str, server: Postgres) -> None:
    sql(file.database, "PRAGMA user_version = 10")
    copy(file, target)
    server.create("new")
    migrator.create(server.url("new"))
    shape = (
        "SELECT table_name, column_name, data_type, is_nullable, collation_name, column_default"
        " FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"
    )
    triggers = "SELECT tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal"
    number = "SELECT value FROM vault_meta WHERE key = 'schema'"
    for question in (shape, triggers, number):
        assert sql(target, question) == sql(server.url("new"), question) != []


def test_it_is_the_file_at_one_moment(file: Site, target: str, server: Postgres) -> None:
    with another(file.database) as app:
        for number in range(2 * copying.BATCH):
            app.execute(MESSAGE, (f"m {number:04}", P, None, "", T))
    before, met = contents(file.database), list[int]()

    def meanwhile(seen: int, total: int) -> None:
        met.append(seen)
        sql(file.database, "UPDATE provider_credentials SET label = 'another'")
        sql(file.database, "DELETE FROM projects")
        sql(file.database, MESSAGE, f"new {seen}", P, None, "", T)

    assert copy(file, target, progress=meanwhile).rows["messages"] == 2 * copying.BATCH + 1
    assert len(met) > 2 and contents(target) == before != contents(file.database)


def test_nobody_reads_half_a_copy(file: Site, target: str) -> None:
    met = list[SchemaError]()

    def read(seen: int, total: int) -> None:
        assert is_empty(target)
        with pytest.raises(SchemaError) as refused:
            Vault.open(target, key_store=KeyDirectory(file.keys))
        met.append(refused.value)

    copy(file, target, progress=read)
    assert met
    Site(target, file.keys).open().close()


@pytest.mark.parametrize("count", [1, pytest.param(10_000, marks=pytest.mark.thorough)])
def test_a_file_of_any_size_is_copied_in_steps_that_are_told(
    file: Site, target: str, count: int
) -> None:
    with another(file.database) as app:
        app.begin()
        for number in range(count):
            app.execute(MESSAGE, (f"m {number}", P, None, AWKWARD, T))
        app.execute("COMMIT")
    told = list[tuple[int, int]]()
    done = copy(file, target, progress=lambda *step: told.append(step))
    assert done.rows["messages"] == count + 1 and contents(target) == contents(file.database)
    total = sum(done.rows.values())
    assert told == [(n, total) for n in [*range(copying.BATCH, total, copying.BATCH), total]]


# --- interrupted


def test_stopped_at_each_step_nothing_or_all_is_there_and_the_next_run_ends_it(
    template: Filled, server: Postgres, values: Values, figures: Figures
) -> None:
    site, _ = template
    server.create("copied")
    target, met = server.url("copied"), set[bool]()

    def action(site: Site, store: KeyStore) -> None:
        copy(site, target, key_store=store)

    for stopped in each_stop(site, action, figures, "stops of a copy to a server", every=25):
        is_whole = not is_empty(target)
        assert not is_whole or contents(target) == contents(stopped.database)
        done = copy(stopped, target)
        assert done.already is is_whole
        assert contents(target) == contents(stopped.database)
        Site(target, stopped.keys).require_intact(values)
        server.create("copied")
        met.add(is_whole)
    assert False in met
    server.create("copied")


def kill(server: Postgres) -> None:
    server.kill()


def cut_off(server: Postgres) -> None:
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'copied'"
    server.sql("postgres", ended)


def interrupt(server: Postgres) -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("fault", "error"),
    [(kill, DatabaseUnreachable), (cut_off, DatabaseUnreachable), (interrupt, KeyboardInterrupt)],
)
def test_interrupted_in_the_middle_it_leaves_nothing_and_the_same_call_ends_it(
    file: Site, fault: Callable[[Postgres], None], error: type[BaseException]
) -> None:
    with another(file.database) as app:
        for number in range(2 * copying.BATCH):
            app.execute(MESSAGE, (f"m {number}", P, None, "", T))
    before = bytes_of(file.database)
    with Postgres(18) as server:
        server.create("copied")
        target = server.url("copied")
        with pytest.raises(error):
            copy(file, target, progress=lambda seen, total: fault(server))
        if fault is kill:
            server.start()
        assert is_empty(target)
        copy(file, target)
        assert contents(target) == contents(file.database)
        server.drop("copied")
    assert bytes_of(file.database) == before


def test_at_a_terminal_it_shows_how_far_it_is(file: Site, target: str) -> None:
    with Terminal(file, "copy-to", target) as terminal:
        assert terminal.end() == 0
        assert b"copying" in terminal.seen and b"100%" in terminal.seen


def test_what_was_copied_already_is_looked_at_and_said(
    file: Site, target: str, values: Values
) -> None:
    first, again = run(file, "copy-to", target), run(file, "copy-to", target)
    assert (first.status, again.status) == (0, 0)
    assert again.out == first.out.replace("copied to", "was copied already to")
    assert contents(target) == contents(file.database)


# --- refused


def clear(file: Site, target: str) -> None:
    sql(target, "CREATE TABLE theirs (id TEXT)")


def other_vault(file: Site, target: str) -> None:
    other = new_site(file.folder.with_name("other"))
    copy(other, target)


def used(file: Site, target: str) -> None:
    copy(file, target)
    with Site(target, file.keys).open() as vault:
        vault.set("smtp", "host", "new")


@pytest.mark.parametrize("there", [clear, other_vault, used])
def test_a_target_that_is_not_empty_is_refused_and_left_as_it_is(
    file: Site, target: str, there: Callable[[Site, str], None]
) -> None:
    there(file, target)
    before = {name: sql(target, f"SELECT * FROM {name} ORDER BY 1") for name in tables_of(target)}
    words = "with other rows" if there is used else "it is not empty"
    failed(run(file, "copy-to", target), 14, words, "nothing was changed", "name an empty")
    after = {name: sql(target, f"SELECT * FROM {name} ORDER BY 1") for name in tables_of(target)}
    assert after == before


AS_TEXT = MESSAGE.replace("?, ?)", "CAST(? AS TEXT), ?)")
SCORED = f"INSERT INTO cv_jd_matches VALUES ('cv', ?, ?, NULL, NULL, NULL, '{T}')"
OF_NOBODY = (
    "INSERT INTO provider_credentials (id, project_id, provider, credential_type, encrypted_value,"
    f" created_at, updated_at) VALUES (?, 'gone', 'smtp', 'host', 'theirs', '{T}', '{T}')"
)
BYTES = "body is bytes that are not text, not text"
# What another program writes, and what is said of it.
BROKEN: tuple[tuple[str, tuple[object, ...], tuple[str, str, str]], ...] = (
    (CALL.replace("99.9", "'most'"), ("a call",), (
        "call_records", "a call", "screening_confidence is text, not a real number")),
    (MATCH, ("gone", "jd"), ("cv_jd_matches", "gone, jd", "cv_id names no row of cvs")),
    (SCORED, ("2", "high"), ("cv_jd_matches", "cv, 2", "match_score is text, not an integer")),
    (SCORED, ("3", 1.5), (
        "cv_jd_matches", "cv, 3", "match_score is a real number, not an integer")),
    (MESSAGE, ("1", "gone", None, "", T), (
        "messages", "1", "project_id names no row of projects")),
    (MESSAGE, ("2", P, "gone", "", T), ("messages", "2", "cv_id names no row of cvs")),
    (MESSAGE, ("3", P, None, b"\x00\xff", T), ("messages", "3", BYTES)),
    (AS_TEXT, ("4", P, None, b"\xff", T), ("messages", "4", BYTES)),
    (AS_TEXT, ("half a surrogate pair", P, None, b"\xed\xa0\x80", T), (
        "messages", "half a surrogate pair", BYTES)),
    (MESSAGE, ("6", P, None, "a\0b", T), ("messages", "6", "body has a NUL character")),
    (MESSAGE, (None, P, None, "", T), ("messages", "NULL", "id is NULL")),
    (OF_NOBODY, ("a value",), (
        "provider_credentials", "a value", "project_id names no row of projects")),
)  # fmt: skip


def test_rows_that_postgresql_would_refuse_are_named_and_left_out_only_if_asked(
    file: Site, target: str, figures: Figures
) -> None:
    for number in (2, 3):
        sql(file.database, JD, str(number))
    whole = contents(file.database)
    with another(file.database) as app:
        app.execute("PRAGMA foreign_keys = 0")
        for statement, params, _ in BROKEN:
            app.execute(statement, params)
    before, listed = bytes_of(file.database), sorted(said for _, _, said in BROKEN)
    refused = run(file, "copy-to", target)
    failed(refused, 14, f"would refuse {len(BROKEN)} row(s)", "nothing was copied", "--skip-broken")
    for table, row_id, reason in listed:
        assert f"{table} {row_id}: {reason}" in refused.err
    assert is_empty(target)
    done = run(file, "copy-to", target, "--skip-broken", "--json")
    assert done.status == 0, done.err
    assert sorted(tuple(row.values()) for row in done.data["left_out"]) == listed
    assert done.data["left_out_count"] == len(BROKEN)
    assert contents(target) == whole and bytes_of(file.database) == before
    assert run(file, "copy-to", target, "--skip-broken", "--json").data["already"] is True
    figures("kinds of rows that PostgreSQL would refuse", len(BROKEN))


def test_what_names_a_row_that_is_left_out_is_left_out_too(file: Site, target: str) -> None:
    sql(file.database, CALL.replace("99.9", "'most'"), "a call")
    sql(file.database, TRANSCRIPT, "its transcript", "a call")
    done = copy(file, target, skip_broken=True)
    assert [(row.table, row.id) for row in done.left_out] == [
        ("call_records", "a call"),
        ("transcripts", "its transcript"),
    ]


def test_the_list_of_such_rows_has_an_end(
    file: Site, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "NAMED_AT_MOST", 25)
    for number in range(30):
        sql(file.database, CALL, f"\0{number}")
    failed(run(file, "copy-to", target), 14, "would refuse 30 row(s)", "and 10 more")
    done = run(file, "copy-to", target, "--skip-broken")
    assert done.status == 0 and done.err.count("left out: call_records") == 25
    assert "left out: 5 more rows" in done.err


@pytest.mark.parametrize(
    "change",
    ["UPDATE vault_keys SET exported_at = x'ff'", "INSERT INTO vault_meta VALUES ('x', x'00')"],
)
def test_no_key_or_fact_is_ever_left_out(file: Site, target: str, change: str) -> None:
    sql(file.database, change)
    for options in ([], ["--skip-broken"]):
        done = run(file, "copy-to", target, *options)
        failed(done, 14, "nothing was copied")
        assert "--skip-broken" not in done.err and is_empty(target)


def test_what_only_postgresql_finds_leaves_nothing(file: Site, target: str) -> None:
    """Another program rebuilt a table without its key."""
    with another(file.database) as app:
        app.execute("ALTER TABLE ats_mappings RENAME TO old")
        app.execute("CREATE TABLE ats_mappings AS SELECT * FROM old UNION ALL SELECT * FROM old")
        app.execute("DROP TABLE old")
    with mock.patch.object(migrator, "fill", wraps=migrator.fill) as tried:
        failed(run(file, "copy-to", target), 15, "ats_mappings: duplicate key")
    assert tried.call_count == 1
    assert is_empty(target)


def test_what_later_versions_of_the_app_added_is_said_to_stay_behind(
    file: Site, target: str
) -> None:
    with another(file.database) as app:
        app.execute("ALTER TABLE messages ADD COLUMN cost_cents INTEGER")
        app.execute("CREATE TABLE dnc_registry (id TEXT PRIMARY KEY)")
        app.execute("ANALYZE")
        app.execute("PRAGMA user_version = 6")
    done = run(file, "copy-to", target, "--json")
    assert sorted(done.data["left_behind"]) == ["dnc_registry", "messages.cost_cents"]
    assert "dnc_registry" in done.err and "dnc_registry" not in tables_of(target)


def test_a_value_that_does_not_open_is_copied_and_named(file: Site, target: str) -> None:
    ids = {row["credential_type"]: row_id for row_id, row in file.rows().items()}
    damaged = flipped(stored(file.database, ids["field-1"]))
    put(file.database, ids["field-1"], encrypted_value=damaged)
    put(file.database, ids["field-2"], encrypted_value="djEx", key_id=None)
    done = run(file, "copy-to", target)
    assert done.status == 16 and "not readable: smtp/field-1" in done.err, done
    assert "1 foreign, 1 unreadable" in done.out
    assert contents(target) == contents(file.database)


@pytest.mark.parametrize("cause", ["no key", "a key that was replaced"])
def test_a_vault_that_could_store_nothing_is_not_copied(
    file: Site, target: str, cause: str
) -> None:
    if cause == "no key":
        (file.keys / f"{next(iter(file.keys.glob(f'*.{file.active()}.key'))).name}").unlink()
    else:
        with file.open() as vault:
            vault.keys.store.mark_superseded(vault.keys.vault_id, file.active(), "another")
    with pytest.raises(KeyMissing if cause == "no key" else KeySuperseded):
        copy(file, target)
    assert is_empty(target)


def test_no_rotation_of_the_file_runs_meanwhile(file: Site, target: str) -> None:
    with operators_lock(file.database), pytest.raises(OperationRunning):
        copy(file, target)
    assert is_empty(target)
    met = list[int]()

    def rotate(seen: int, total: int) -> None:
        with file.open() as vault, pytest.raises(OperationRunning):
            rotation.rotate(vault)
        met.append(seen)

    copy(file, target, progress=rotate)
    assert met


def test_rows_that_the_server_does_not_keep_are_noticed(
    file: Site, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PostgresDatabase.fill

    def less(self: PostgresDatabase, table: str, columns: Any, rows: Iterator[Any]) -> None:
        real(self, table, columns, list(rows)[1:] if table == "messages" else rows)

    monkeypatch.setattr(PostgresDatabase, "fill", less)
    with pytest.raises(StorageError, match="messages: the server did not keep each row"):
        copy(file, target)
    assert is_empty(target)


# --- afterwards


def test_a_rotation_of_the_copy_ends_the_use_of_the_file(
    file: Site, target: str, values: Values
) -> None:
    copied = Site(target, file.keys)
    sql(file.database, "DELETE FROM vault_hosts")  # it has no copy of the keys
    done = run(file, "copy-to", target)
    assert "let nobody store or rotate anything there" in done.err and "rotate'" in done.err
    assert run(copied, "rotate").status == 0
    copied.require_intact(values)
    file.require_intact(values)
    with file.open() as vault:
        with pytest.raises(KeySuperseded):
            vault.set("smtp", "host", "new")
        with pytest.raises((KeySuperseded, SharedKeys)):
            rotation.rotate(vault)


def test_a_rotation_of_the_file_strands_no_value_of_the_copy(
    file: Site, target: str, values: Values
) -> None:
    sql(file.database, "DELETE FROM vault_hosts")
    copied = Site(target, file.keys)
    copy(file, target)
    with file.open() as vault:
        rotation.rotate(vault)
    copied.require_intact(values)
    with copied.open() as vault:
        with pytest.raises(KeySuperseded):
            vault.set("smtp", "host", "new")
        rotation.rotate(vault, after_restore=True)
        vault.set("smtp", "host", "new")
    copied.require_intact({**values, (None, "smtp", "host"): "new"})


def test_a_rotation_that_was_interrupted_is_finished_in_the_copy(
    file: Site, target: str, values: Values
) -> None:
    sql(file.database, "DELETE FROM vault_hosts")
    with file.open() as vault:
        vault.keys.begin_rotation(after_restore=False)
    copy(file, target)
    copied = Site(target, file.keys)
    with copied.open() as vault:
        assert rotation.rotate(vault).resumed
    copied.require_one_key()
    copied.require_intact(values)


# --- how it is called


def test_a_password_comes_from_a_file_and_not_from_the_command_line(
    file: Site, target: str, server: Postgres, tmp_path: Path
) -> None:
    url = server.tcp_url(name_of(target))
    secret = url.partition(":")[2].partition(":")[2].partition("@")[0]
    (given := tmp_path / "url").write_text(f"{url}\n")
    at = f"127.0.0.1:{server.port}"
    for wrong in (
        url,
        f"postgresql://app:{secret}@ho\u2100st/",
        f"postgresql://{at}/copied?user=app&password={secret}",
    ):
        done = run(file, "copy-to", wrong)
        failed(done, 2, "every user can read the command line", "--url-file", "PGPASSFILE")
        assert secret not in done.err
    done = run(file, "copy-to", "--url-file", str(given), "--json")
    assert done.status == 0 and secret not in done.out + done.err, done.err
    assert contents(target) == contents(file.database)


@pytest.mark.parametrize("url", ["postgresql://[x", "postgresql:\n", "", "a secret"])
def test_what_is_no_url_is_refused_and_not_repeated(file: Site, url: str) -> None:
    done = run(file, "copy-to", url)
    failed(done, 2)
    assert not url or url not in done.err


@pytest.mark.parametrize("arguments", [[], ["postgresql://x/y", "--url-file", "z"]])
def test_it_takes_one_url(file: Site, arguments: list[str]) -> None:
    failed(run(file, "copy-to", *arguments), 2, "give the server's URL, or --url-file")


def test_only_a_file_is_copied_and_only_to_a_server(file: Site, target: str) -> None:
    failed(run(file, "copy-to", str(file.folder / "other.db")), 2, "not a URL of PostgreSQL")
    copy(file, target)
    with pytest.raises(WrongArgument, match="only a vault in a file"):
        copy(Site(target, file.keys), target)


def test_parents_come_before_the_rows_that_name_them() -> None:
    met = set[str]()
    for table, found in columns().items():
        assert {column.parent for column in found} - {None, table} <= met
        met.add(table)
    assert met == set(NAMES)
