"""A vault on a real PostgreSQL server: its faults, its connections, its roles, and a pooler."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import failed, run
from helpers.postgres import APP, PASSWORD, PgBouncer, Postgres
from helpers.site import Engine, Site, name_of, new_site

from outreach_vault import (
    DatabaseBusy,
    DatabaseFull,
    DatabaseNotFound,
    DatabaseRefused,
    DatabaseUnreachable,
    KeyDirectory,
    NotADatabase,
    OperationRunning,
    OutcomeUnknown,
    StorageError,
    Vault,
    VaultError,
)
from outreach_vault.database import open_database
from outreach_vault.database.postgres import connections
from outreach_vault.errors import WrongArgument
from outreach_vault.operations import rotation
from outreach_vault.operations.doctor import examine

pytestmark = pytest.mark.server("a server's own")
P = "default-project"

if sys.platform != "linux":
    pytest.skip("the servers are Linux's", allow_module_level=True)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Postgres:
    assert engine
    return engine


@pytest.fixture(scope="module")
def template(server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A vault with a few values; for copies only."""
    made = new_site(tmp_path_factory.mktemp("templates") / "server", server)
    with made.open() as vault:
        vault.set("twilio", "auth_token", "the global one")
        vault.set("twilio", "auth_token", "its own", P)
    yield made
    made.remove()


@pytest.fixture
def own_server(server: Postgres, tmp_path: Path) -> Iterator[Site]:
    """A vault on a server that this test alone uses."""
    with Postgres(server.version) as alone:
        yield new_site(tmp_path / "own", alone)


def token(vault: Vault, project_id: str | None = None) -> str:
    return vault.get("twilio", "auth_token", project_id).reveal()


def backend(vault: Vault) -> int:
    return int(vault.database.fetch("SELECT pg_backend_pid()")[0][0])


def end(server: Postgres, *pids: int) -> None:
    """The server ends these sessions, and they are gone."""
    for pid in pids:
        server.sql("postgres", "SELECT pg_terminate_backend(?, 10000)", pid)


# Faults


def refusal(url: str, kind: type[VaultError], site: Site, *words: str) -> None:
    """The library's error, and the command's with its exit status; neither shows the password."""
    with pytest.raises(kind) as caught:
        Vault.open(url, key_store=None)
    assert type(caught.value) is kind and caught.value.hint
    for word in words:
        assert word in str(caught.value)
    with pytest.MonkeyPatch.context() as patch:  # as an option a password would show
        patch.setenv("OUTREACH_VAULT_DB", url)
        done = run(Site(None, site.keys), "list")
    failed(done, 15 if issubclass(kind, StorageError) else 14, *words)
    assert PASSWORD not in done.err and "not-it" not in done.err


def test_where_nothing_answers(site: Site) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        url = f"postgresql://{APP}:not-it@127.0.0.1:{port}/x"
        refusal(url, DatabaseUnreachable, site, f"postgresql://{APP}@127.0.0.1:{port}/x")


def test_what_takes_a_connection_and_says_nothing(site: Site) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://{APP}@127.0.0.1:{silent.getsockname()[1]}/x?connect_timeout=2"
        refusal(url, DatabaseUnreachable, site, "timeout")


def test_a_wrong_password(server: Postgres, site: Site) -> None:
    refusal(server.tcp_url("postgres", password="not-it"), DatabaseRefused, site, "password")


def test_no_such_database(server: Postgres, site: Site) -> None:
    refusal(server.tcp_url("nowhere"), DatabaseNotFound, site, "no such database")


def test_a_server_without_tls(server: Postgres, site: Site) -> None:
    url = f"{server.tcp_url('postgres')}?sslmode=require"
    refusal(url, DatabaseUnreachable, site, "SSL")


def test_a_certificate_of_another_host(server: Postgres, site: Site, tmp_path: Path) -> None:
    """The wheel's server has no TLS, so PgBouncer speaks it."""
    with PgBouncer(server) as bouncer:
        certificate, key = bouncer.folder / "server.crt", bouncer.folder / "server.key"
        bouncer.run(
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=elsewhere", "-out", certificate, "-keyout", key,
        )  # fmt: skip
        bouncer.settings |= {"client_tls_sslmode": "require", "listen_addr": "127.0.0.1"}
        bouncer.settings |= {"client_tls_cert_file": certificate, "client_tls_key_file": key}
        bouncer.end(bouncer.ending)
        bouncer.start()
        (trusted := tmp_path / "trusted.pem").write_bytes(certificate.read_bytes())
        url = f"postgresql://{APP}@127.0.0.1:{bouncer.port}/{name_of(site.database)}"
        known = f"{url}?sslrootcert={trusted}&sslmode=verify"
        Vault.open(f"{known}-ca").close()
        refusal(f"{known}-full", DatabaseUnreachable, site, "certificate")


def test_a_database_that_is_not_in_utf8(server: Postgres, site: Site) -> None:
    create = "CREATE DATABASE old_one ENCODING SQL_ASCII LOCALE 'C' TEMPLATE template0"
    server.sql("postgres", create)
    try:
        refusal(server.url("old_one"), NotADatabase, site, "SQL_ASCII")
    finally:
        server.drop("old_one")


def test_a_schema_that_is_not_there(site: Site) -> None:
    url = f"{site.database}&options=-csearch_path%3Dnowhere"
    refusal(url, NotADatabase, site, "search path", "nowhere")


def test_a_database_without_a_vault(server: Postgres, site: Site) -> None:
    server.create("not_yet")
    refusal(server.url("not_yet"), DatabaseNotFound, site, "no vault")


def test_tables_of_another_program(server: Postgres, site: Site) -> None:
    server.create("theirs")
    server.sql("theirs", f"SET ROLE {APP}; CREATE SCHEMA s; CREATE TABLE s.mine (x int)")
    url = f"{server.url('theirs')}&options=-csearch_path%3Ds"
    refusal(url, NotADatabase, site, "another program")
    failed(run(Site(url, site.keys), "init"), 14, "another program", "a schema of its own")
    failed(run(Site(server.url("theirs"), site.keys), "list"), 14, "no vault")


def test_a_role_that_may_not_read(server: Postgres, site: Site) -> None:
    server.sql("postgres", "CREATE ROLE stranger LOGIN")
    try:
        url = site.database.replace(f"//{APP}@", "//stranger@")
        refusal(url, DatabaseRefused, site, "permission denied")
    finally:
        server.sql("postgres", "DROP ROLE stranger")


@pytest.mark.peer
def test_too_many_connections(own_server: Site) -> None:
    server = own_server.engine
    assert server
    server.settings |= {"max_connections": 6, "superuser_reserved_connections": 0}
    server.settings |= {"reserved_connections": 0}
    server.restart()
    with contextlib.ExitStack() as held:
        for _ in range(6):
            held.enter_context(server.connect())
        refusal(own_server.database, DatabaseBusy, own_server, "no connection left")


def test_a_full_disk(own_server: Site) -> None:
    server = own_server.engine
    assert server
    small = server.folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=1777", "none", str(small)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        server.run("mkdir", small / "space")
        name = name_of(own_server.database)
        server.sql("postgres", f"CREATE TABLESPACE small LOCATION '{small / 'space'}'")
        server.sql(name, "ALTER TABLE provider_credentials SET TABLESPACE small")
        with own_server.open() as vault:
            with pytest.raises(DatabaseFull, match="full"):
                for number in range(100):
                    vault.set("smtp", f"field-{number}", os.urandom(8000).hex())
            stored = len(vault.list())
            assert stored == number
            server.sql(name, "ALTER TABLE provider_credentials SET TABLESPACE pg_default")
            vault.set("smtp", "password", "again")
    finally:
        server.stop()
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.peer
def test_a_read_is_tried_again_where_the_server_was_restarted_meanwhile(own_server: Site) -> None:
    assert own_server.engine
    with own_server.open() as vault:
        vault.set("twilio", "auth_token", "x")
        own_server.engine.restart()
        assert token(vault) == "x"
        own_server.engine.kill()
        own_server.engine.start()
        vault.set("twilio", "auth_token", "y")  # the pool has had the read's connection replaced
        assert token(vault) == "y"


def test_a_read_in_a_transaction_is_not_tried_again(server: Postgres, vault: Vault) -> None:
    def read() -> None:
        end(server, backend(vault))
        token(vault)

    with pytest.raises(DatabaseUnreachable, match="nothing was stored"):
        vault.database.write(read)
    assert token(vault) == "the global one"


def test_a_write_whose_connection_is_lost_before_its_end_is_said_not_to_be_stored(
    server: Postgres, vault: Vault
) -> None:
    def write() -> None:
        vault.set("twilio", "auth_token", "new")
        end(server, backend(vault))
        vault.set("twilio", "auth_token", "newer")

    with pytest.raises(DatabaseUnreachable, match="nothing was stored"):
        vault.database.write(write)
    assert token(vault) == "the global one"


def test_a_write_whose_connection_is_lost_at_its_commit_is_said_to_be_unknown(
    server: Postgres, site: Site, vault: Vault
) -> None:
    """A trigger that runs at the commit, and in which the session is ended."""
    name = name_of(site.database)
    server.sql(
        name,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$",
    )
    server.sql(
        name,
        "CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON provider_credentials"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    sleeping = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = ?"
    with ThreadPoolExecutor(1) as thread:
        storing = thread.submit(vault.set, "twilio", "auth_token", "new")
        while not (found := server.sql("postgres", sleeping, name)):
            time.sleep(0.01)
        end(server, found[0][0])
        with pytest.raises(OutcomeUnknown) as caught:
            storing.result()
    assert "not known" in str(caught.value) and caught.value.hint
    assert token(vault) == "the global one"  # as it happens


def test_a_commit_that_the_server_turns_into_an_undoing_is_an_error(vault: Vault) -> None:
    def swallowed() -> None:
        vault.set("twilio", "auth_token", "new")
        with contextlib.suppress(VaultError):
            vault.database.fetch("SELECT no_such_column")

    with pytest.raises(StorageError, match="nothing was stored"):
        vault.database.write(swallowed)
    assert token(vault) == "the global one"


def test_a_lock_is_waited_for_and_then_said(
    server: Postgres, site: Site, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BUSY_SECONDS", 0.2)
    name = name_of(site.database)
    with site.open() as impatient, server.connect(name) as other, other.transaction():
        other.execute("SELECT 1 FROM provider_credentials FOR UPDATE")
        with pytest.raises(DatabaseBusy, match="waited for a lock"):
            impatient.set("twilio", "auth_token", "new")
        assert token(impatient) == "the global one"
    vault.set("twilio", "auth_token", "new")


def test_two_that_lock_in_opposite_orders_both_succeed(vault: Vault) -> None:
    """PostgreSQL undoes one of them, which is run again."""
    met, tries = threading.Barrier(2), []

    def change(first: str | None, second: str | None) -> None:
        met_once = False

        def both() -> None:
            nonlocal met_once
            tries.append(first)
            vault.set("twilio", "auth_token", f"by {first}", first)
            if not met_once:
                met_once = True
                met.wait(10)
            vault.set("twilio", "auth_token", f"by {first}", second)

        vault.database.write(both)

    with ThreadPoolExecutor(2) as threads:
        for each in [threads.submit(change, None, P), threads.submit(change, P, None)]:
            each.result(30)
    assert len(tries) > 2 and token(vault) == token(vault, P)


def test_who_fills_a_place_that_another_fills_just_then_replaces_its_value(vault: Vault) -> None:
    met, numbers = threading.Barrier(8), range(8)

    def store(number: int) -> None:
        met.wait(10)
        vault.set("smtp", "password", f"number {number}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(store, numbers))
    assert vault.get("smtp", "password").reveal() in {f"number {number}" for number in numbers}
    assert len(vault.list()) == 3
    assert len(vault.rows.history.of(vault.rows.one("smtp", "password", None).place)) == 3


# Keys and writers


def test_no_writer_seals_under_a_key_that_was_retired_meanwhile(site: Site, vault: Vault) -> None:
    """A rotation makes its key the active one only when those who read the old one have ended."""
    inside, go = threading.Event(), threading.Event()

    def slowly() -> None:
        vault.keys.states.active_id()
        inside.set()
        go.wait(10)
        vault.set("smtp", "password", "x")

    vault.keys.prove_active()
    with ThreadPoolExecutor(2) as threads, site.open() as operator:
        writing = threads.submit(vault.database.write, slowly)
        inside.wait(10)
        rotating = threads.submit(rotation.rotate, operator)
        time.sleep(0.3)
        assert not rotating.done()
        assert sorted(site.states().values()) in (["active"], ["active", "pending"])
        go.set()
        writing.result(10)
        report = rotating.result(30)
    assert report.complete and vault.get("smtp", "password").reveal() == "x"
    site.require_one_key()


def test_what_an_undo_takes_back_meanwhile_is_rotated_too(
    site: Site, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read the old token, and puts it back when the rotation has passed its place."""
    place = vault.rows.one("twilio", "auth_token", None).place
    vault.delete("twilio", "auth_token")
    inside, go, history = threading.Event(), threading.Event(), type(vault.rows.history)
    remove = history.remove

    def slowly(self: Any, ids: Any) -> None:
        inside.set()
        go.wait(10)
        remove(self, ids)

    with ThreadPoolExecutor(1) as threads, site.open() as operator:
        undoing = []

        def progress(seen: int, total: int) -> None:
            """The values are under the new key, the history is not."""
            if not undoing:
                monkeypatch.setattr(history, "remove", slowly)
                undo = functools.partial(vault.rows.undo, place)
                undoing.append(threads.submit(vault.database.write, undo))
                inside.wait(10)
                threading.Timer(1, go.set).start()

        assert rotation.rotate(operator, progress=progress, destroy_old=True).complete
        undoing[0].result(30)
    site.require_one_key()
    with site.open() as fresh:
        assert token(fresh) == "the global one"


def test_who_has_the_turn_is_said_with_how_to_end_it(site: Site, server: Postgres) -> None:
    with site.peer("hold") as holder:
        try:
            assert holder.stdout and holder.stdin
            assert holder.stdout.readline() == "rotating\n"
            with site.open() as vault, pytest.raises(OperationRunning) as caught:
                rotation.rotate(vault)
            assert f"outreach_vault {socket.gethostname()} {holder.pid}" in str(caught.value)
            hint = str(caught.value.hint)
            pid = int(hint.partition("pg_terminate_backend(")[2].partition(")")[0])
            end(server, pid)
            holder.stdin.write("\n")
            holder.stdin.close()
            assert holder.wait(30) != 0  # without its turn it goes on with nothing
        finally:
            holder.kill()
    with site.open() as vault:
        assert rotation.rotate(vault).complete


def test_a_killed_host_leaves_no_lock(site: Site) -> None:
    with site.peer("hold") as holder:
        assert holder.stdout and holder.stdout.readline() == "rotating\n"
        holder.kill()
    with site.open() as vault:
        assert vault.database.operators_turn(lambda: True, patience=10)
        assert rotation.rotate(vault).complete


def test_who_waits_to_be_alone_lets_others_write_meanwhile(site: Site, vault: Vault) -> None:
    """A transaction of an adapter's own is open for a while, and a rotation waits for its end."""
    vault.keys.prove_active()
    with ThreadPoolExecutor(1) as threads, site.open() as operator, site.open() as adapter:
        adapter.keys.prove_active()
        with vault.bind_models().atomic():
            vault.set("smtp", "password", "stored at the end")
            rotating = threads.submit(rotation.rotate, operator)
            until = time.monotonic() + 3
            while time.monotonic() < until:
                adapter.set("smtp", "user", "in between")
            assert not rotating.done()
        assert rotating.result(30).complete
    site.require_one_key()


def test_two_projects_of_one_name_are_not_made_at_once(site: Site) -> None:
    met = threading.Barrier(4)

    def add(_: int) -> str | None:
        with site.open() as vault:
            met.wait(10)
            with contextlib.suppress(WrongArgument):
                return vault.projects.add("Spring campaign")
        return None

    with ThreadPoolExecutor(4) as threads:
        assert len(list(filter(None, threads.map(add, range(4))))) == 1


# Connections


def test_a_child_never_uses_the_parents_socket(site: Site, vault: Vault) -> None:
    parents, (reads, writes) = backend(vault), os.pipe()
    if (child := os.fork()) == 0:
        status = 1
        try:
            own = backend(vault)
            vault.set("smtp", "password", "the child's")
            os.write(writes, str(own).encode())
            vault.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    os.close(writes)
    with open(reads) as told:
        assert int(told.read()) != parents
    assert backend(vault) == parents
    assert vault.get("smtp", "password").reveal() == "the child's"


def test_more_threads_than_connections(site: Site, vault: Vault) -> None:
    vault.keys.prove_active()
    met = threading.Barrier(3 * connections.IN_POOL)

    def work(number: int) -> None:
        met.wait(30)
        for _ in range(5):
            assert token(vault, P) == "its own"
        vault.set("smtp", f"field-{number}", f"value {number}")
        assert vault.get("smtp", f"field-{number}").reveal() == f"value {number}"

    with ThreadPoolExecutor(met.parties) as threads:
        list(threads.map(work, range(met.parties)))
    name = name_of(site.database)
    assert site.engine
    used = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = ? AND application_name LIKE 'out%'"
    )
    assert site.engine.sql("postgres", used, name)[0][0] <= connections.IN_POOL


def test_asyncio_by_way_of_threads(vault: Vault) -> None:
    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(token, vault, P) for _ in range(20)))

    assert set(asyncio.run(all_of_them())) == {"its own"}


def test_an_interrupted_call_leaves_no_transaction(
    server: Postgres, site: Site, vault: Vault
) -> None:
    class Interrupt(BaseException):
        pass

    def stopped() -> None:
        vault.set("twilio", "auth_token", "new")
        raise Interrupt

    with pytest.raises(Interrupt):
        vault.database.write(stopped)
    assert token(vault) == "the global one"
    name = name_of(site.database)
    open_ones = "SELECT count(*) FROM pg_stat_activity WHERE datname = ? AND xact_start IS NOT NULL"
    assert server.sql("postgres", open_ones, name) == [(0,)]


def test_limits_are_set_unless_the_url_sets_them(site: Site) -> None:
    shown = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
    with site.open() as vault:
        assert vault.database.fetch(shown) == [("5s", "30s")]
    other = Site(f"{site.database}&options=-cstatement_timeout%3D7s", site.keys)
    with other.open() as vault:
        assert vault.database.fetch(shown) == [("5s", "7s")]


def test_a_closed_vault_says_so(site: Site) -> None:
    vault = site.open()
    token(vault)
    vault.close()
    vault.close()
    with pytest.raises(VaultError, match="closed"):
        token(vault)


# Look-ups


def test_the_order_of_the_two_searches_is_not_left_to_the_server(vault: Vault) -> None:
    """UNION ALL promises none."""
    asked = {"project_id": P, "provider": "twilio", "credential_type": "auth_token"}
    plan = vault.database.fetch(f"EXPLAIN {vault.rows._one}", asked)
    assert any("Sort Key" in line for (line,) in plan), plan


def test_the_projects_own_value_wins_whatever_the_plan(site: Site, vault: Vault) -> None:
    """Merged, hashed or appended in another order."""
    for setting in ("enable_indexscan", "enable_bitmapscan", "enable_seqscan", "enable_sort"):
        vault.database.connection().execute(f"SET {setting} = off")
        assert token(vault, P) == "its own"
        assert vault.rows.fields("twilio", P)["auth_token"].project_id == P


# Roles


@pytest.fixture
def roles(server: Postgres, site: Site) -> Iterator[Callable[[str], Site]]:
    """The site as each of the two roles sees it."""
    name = name_of(site.database)
    names = {"adapters": f"{name}_a", "operators": f"{name} o"}
    for role in names.values():
        server.sql("postgres", f'CREATE ROLE "{role}" LOGIN')
    done = run(site, "roles", "--sql", *(f"--{kind}={name}" for kind, name in names.items()))
    assert done.status == 0, done.err
    for statement in done.out.split(";\n"):
        server.sql(name, statement)

    def seen_by(role: str) -> Site:
        user = names[role].replace(" ", "%20")
        return Site(site.database.replace(f"//{APP}@", f"//{user}@"), site.keys)

    yield seen_by
    for role in names.values():
        server.sql(name, f'DROP OWNED BY "{role}"')
        server.sql(name, f'DROP ROLE "{role}"')


def test_an_adapters_role_reads_writes_its_records_and_nothing_else(
    roles: Callable[[str], Site],
) -> None:
    from outreach_vault.models import Message, UsageDaily, UsageEvent

    with roles("adapters").open() as vault:
        assert token(vault, P) == "its own" and vault.has("twilio", "auth_token")
        with vault.bind_models().atomic():
            UsageEvent.create(
                project=P, event_type="cv_extraction", llm_mode="cloud", total_tokens=7
            )
            Message.create(
                project=P, type="email", direction="outbound", status="failed",
                to_address="x@example.com", body="x",
            )  # fmt: skip
        assert UsageDaily.get().total_tokens == 7
        for refused in (
            lambda: vault.set("twilio", "auth_token", "another"),
            lambda: vault.delete("twilio", "auth_token"),
            lambda: vault.projects.add("another"),
            lambda: rotation.rotate(vault),
        ):
            with pytest.raises(DatabaseRefused, match="permission denied"):
                refused()
        assert token(vault) == "the global one"


def test_an_operators_role_may_do_all(roles: Callable[[str], Site]) -> None:
    operators = roles("operators")
    with operators.open() as vault:
        vault.set("twilio", "auth_token", "another")
        assert rotation.rotate(vault, scrub=True).scrubbed
    done = run(operators, "migrate")
    assert done.status == 0, done.err
    assert not [
        each
        for each in examine(operators.database, deep=True, key_store=None).findings
        if each.kind in ("superuser", "damaged file", "schema")
    ]


def test_what_hides_rows_is_a_problem(server: Postgres, site: Site) -> None:
    """Row-level security fails open: a hidden row of a project looks like none."""
    name = name_of(site.database)
    server.sql(name, "ALTER TABLE provider_credentials ENABLE ROW LEVEL SECURITY")
    server.sql(name, "CREATE VIEW shown AS SELECT * FROM provider_credentials")
    server.sql(name, "CREATE RULE kept AS ON DELETE TO provider_credentials DO INSTEAD NOTHING")
    found = examine(site.database, key_store=None).findings
    kinds = {each.kind for each in found}
    assert {"hidden rows", "view", "planted rule"} <= kinds


@pytest.mark.peer
def test_where_old_tokens_are_kept_and_what_is_not_safe_is_said(own_server: Site) -> None:
    server = own_server.engine
    assert server

    def found() -> set[tuple[str, str]]:
        kinds = ("kept log", "unsafe server", "superuser")
        seen = examine(own_server.database, key_store=KeyDirectory(own_server.keys)).findings
        return {(each.kind, each.message.partition(":")[0]) for each in seen if each.kind in kinds}

    assert found() == set()
    server.settings |= {"archive_mode": "on", "archive_command": "true"}
    server.settings |= {"full_page_writes": "off", "synchronous_commit": "off"}
    server.restart()
    server.sql("postgres", "SELECT pg_create_physical_replication_slot('unused', true)")
    assert found() == {
        ("kept log", "the server archives its log (WAL)"),
        ("kept log", "the replication slot unused keeps the log (WAL), with old tokens"),
        ("unsafe server", "fsync or full_page_writes is off"),
        ("unsafe server", "synchronous_commit is off"),
    }


# A pooler


@pytest.fixture
def pooled(server: Postgres, site: Site) -> Iterator[Site]:
    with PgBouncer(server, pool=2) as bouncer:
        name = name_of(site.database)
        yield Site(bouncer.url(name), site.keys)


def test_behind_a_pooler_the_adapters_calls_work(pooled: Site) -> None:
    def work(number: int) -> None:
        with pooled.open() as vault:
            for count in range(12):  # more than what psycopg prepares a statement after
                assert token(vault, P) == "its own"
                vault.set("smtp", f"field-{number}", f"value {count}")
                assert vault.get("smtp", f"field-{number}").reveal() == f"value {count}"
            with vault.bind_models().atomic():
                vault.set_fields("smtp", {f"a-{number}": "1", f"b-{number}": "2"})
            assert vault.delete("smtp", f"a-{number}")

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))


def test_behind_a_pooler_nothing_is_left_in_a_connection(pooled: Site) -> None:
    database = open_database(pooled.database)
    shown = "SELECT current_setting('lock_timeout'), (SELECT count(*) FROM pg_prepared_statements)"
    for _ in range(12):
        assert database.fetch(shown) == [("0", 0)]
    database.close_all()


@pytest.mark.parametrize("command", ["rotate", "init"])
def test_behind_a_pooler_operators_are_sent_to_the_server_itself(
    command: str, pooled: Site
) -> None:
    before = pooled.states()
    failed(run(pooled, command), 15, "pooler", "name the server itself")
    assert pooled.states() == before
