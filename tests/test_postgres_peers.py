"""The servers that the tests start do what those tests take for granted."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import TESTS
from helpers.effort import THOROUGH
from helpers.faults import stopped_at
from helpers.postgres import (
    APP,
    INSTALLS,
    PASSWORD,
    SUPERUSER,
    PgBouncer,
    Postgres,
    Standby,
    install,
    lives,
    ordinary,
    readable,
)
from helpers.rows import put, stored
from helpers.site import Engine, Site, another, dump, entries, prepared, refusals, sql

psycopg = pytest.importorskip("psycopg", reason="no psycopg on this machine (make peers)")
pytestmark = pytest.mark.peer


@pytest.fixture(scope="module", params=INSTALLS if THOROUGH else [18])
def own(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server that no other test uses."""
    with Postgres(request.param) as server:
        yield server


def test_a_server_is_of_its_version_and_runs_as_an_ordinary_user(own: Postgres) -> None:
    own.create("some")
    with psycopg.connect(own.url("some")) as connection:
        assert connection.info.server_version // 10_000 == own.version
        assert connection.execute("SELECT current_user, usesuper FROM pg_user WHERE usename ="
                                  " current_user").fetchall() == [(APP, False)]  # fmt: skip
        for process in (connection.info.backend_pid, postmaster(own.data)):
            user = Path(f"/proc/{process}").stat().st_uid
            assert user == ordinary().get("user", os.getuid()) != 0


def postmaster(data: Path) -> int:
    return int((data / "postmaster.pid").read_text().split()[0])


def test_over_tcp_a_password_is_needed(own: Postgres) -> None:
    own.create("tcp")
    for user in (APP, SUPERUSER):
        with psycopg.connect(own.tcp_url("tcp", user)) as connection:
            assert connection.info.host == "127.0.0.1"
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(own.tcp_url("tcp", user, PASSWORD + "!"))


@pytest.mark.parametrize("in_use", [False, True])
def test_a_copy_of_a_database_has_what_was_committed(own: Postgres, in_use: bool) -> None:
    own.create("first")
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(psycopg.connect(own.url("first")))
        connection.execute("CREATE TABLE kept AS SELECT 'it''s 100%' AS text")
        connection.commit()
        connection.execute("DELETE FROM kept")
        if not in_use:
            connection.close()
        own.create("second", "first")
    assert own.sql("second", "SELECT text FROM kept WHERE text = ?", "it's 100%")
    assert own.sql("second", "SELECT tableowner FROM pg_tables WHERE tablename = 'kept'") == [
        (APP,)
    ]
    assert any(b"it's 100%" in data for data in own.files("second").values())
    own.create("second")
    assert own.sql("second", "SELECT 1 FROM pg_tables WHERE tablename = 'kept'") == []
    own.drop("second")
    assert {"first"} <= own.databases and "second" not in own.databases


def test_a_killed_server_is_gone_with_all_its_processes_and_comes_back(own: Postgres) -> None:
    own.create("kept")
    with psycopg.connect(own.url("kept"), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 5 AS number")
        backend = connection.info.backend_pid
        own.kill()
        assert not lives(backend)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(own.url("kept"))
    own.start()
    assert own.sql("kept", "SELECT number FROM kept") == [(5,)]
    own.settings["max_connections"] = 17
    own.restart()
    assert own.sql("kept", "SHOW max_connections") == [("17",)]
    assert own.sql("kept", "SHOW fsync") == [("on",)]


def test_a_standby_follows_and_takes_over(own: Postgres) -> None:
    own.create("kept")
    own.sql("kept", "CREATE TABLE followed (number integer)")
    with Standby(own) as standby:
        own.sql("kept", "INSERT INTO followed VALUES (5)")
        standby.catch_up()
        assert standby.sql("kept", "SELECT number FROM followed") == [(5,)]
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            standby.sql("kept", "INSERT INTO followed VALUES (6)")
        own.kill()
        standby.promote()
        standby.sql("kept", "INSERT INTO followed VALUES (6)")
    own.start()
    assert own.sql("kept", "SELECT number FROM followed") == [(5,)]


def test_pgbouncer_lends_a_connection_for_one_transaction(own: Postgres) -> None:
    own.create("pooled")
    with PgBouncer(own, pool=1, query_wait_timeout=1) as bouncer:
        url = bouncer.url("pooled")
        with psycopg.connect(url) as one, psycopg.connect(url) as other:
            asked = "SELECT pg_backend_pid()"
            backend = one.execute(asked).fetchone()
            with pytest.raises(psycopg.OperationalError, match="query_wait_timeout"):
                other.execute(asked)
            one.commit()
            with psycopg.connect(url) as third:
                assert third.execute(asked).fetchone() == backend


def test_a_server_ends_with_whoever_started_it(own: Postgres) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from helpers.postgres import Postgres\n"
        "with Postgres(int(sys.argv[2])) as server:\n"
        "    print(server.folder, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(TESTS), str(own.version)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        folder = Path(process.stdout.readline().strip())
        server = postmaster(folder / "data")
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 60
    while lives(server):
        assert time.monotonic() < until
        time.sleep(0.05)
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone starts the servers as another user")
def test_an_install_where_only_root_gets_is_copied(own: Postgres, tmp_path: Path) -> None:
    found = install(own.version)
    assert found
    shutil.copytree(found, tmp_path / "closed" / "install", copy_function=os.link)
    (tmp_path / "closed").chmod(0o700)
    copy = readable(tmp_path / "closed" / "install")
    said = subprocess.run(
        [copy / "bin" / "postgres", "--version"], capture_output=True, cwd="/", **ordinary()
    )
    assert said.stdout.decode().split()[2].startswith(f"{own.version}.")


# What the tests of a vault go through.


def test_the_helpers_that_go_past_the_package_read_and_write_a_server_as_they_do_a_file(
    own: Postgres, tmp_path: Path
) -> None:
    def site(engine: Engine) -> Site:
        (folder := tmp_path / f"of {engine is None}").mkdir()
        made = prepared(folder, engine)
        made.keys.mkdir()
        (made.keys / "a").write_text("a key")
        columns = "id TEXT PRIMARY KEY, encrypted_value TEXT, key_id TEXT"
        for statement in (
            f"CREATE TABLE provider_credentials ({columns})",
            "CREATE TABLE vault_keys (id TEXT, state TEXT CHECK (state <> 'wrong'))",
            "INSERT INTO vault_keys VALUES ('k', 'active')",
            "INSERT INTO provider_credentials VALUES ('1', 'a', 'k'), ('2', 'b?%s', 'k')",
        ):
            assert sql(made.database, statement) == []
        return made

    for made in (site(own), site(None)):
        copy = made.copy(tmp_path / "copy")
        assert copy.engine is made.engine and copy.database != made.database
        assert entries(copy) == {"a": "a key"} and copy.active() == "k"
        before = dump(made.database)
        assert stored(made.database, "2") == "b?%s"
        put(made.database, "2", encrypted_value="c")
        made.change("UPDATE provider_credentials SET key_id = ? WHERE id = '2'", "l")
        assert made.rows()["2"] == {"id": "2", "encrypted_value": "c", "key_id": "l"}
        changed = ("encrypted_value", "key_id")
        assert dump(made.database) != before == dump(copy.database)
        assert dump(made.database, changed) == dump(copy.database, changed)
        with pytest.raises(refusals()):
            sql(made.database, "UPDATE vault_keys SET state = ?", "wrong")
        with another(copy.database) as connection:
            connection.begin()
            connection.execute("DELETE FROM vault_keys")
            assert copy.states() == {"k": "active"}
            connection.execute("COMMIT")
        assert copy.states() == {} and made.states() == {"k": "active"}
        made.copy(copy.folder)
        assert copy.states() == {"k": "active"}
        copy.remove()
        assert not copy.folder.exists()


def test_the_steps_of_a_server_are_its_changes_and_both_sides_of_a_commit(
    own: Postgres, tmp_path: Path
) -> None:
    made = prepared(tmp_path, own)
    sql(made.database, "CREATE TABLE counted (number integer)")

    def action(_: object) -> None:
        with psycopg.connect(made.database, autocommit=True) as connection:
            connection.execute("INSERT INTO counted VALUES (1)")
            assert connection.execute("SELECT count(*) FROM counted").fetchone() == (1,)
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany("INSERT INTO counted VALUES (%s)", [(2,), (3,)])

    seen = []
    for step in itertools.count(1):
        sql(made.database, "DELETE FROM counted")
        going = stopped_at(step, action, made.keys)
        seen += sql(made.database, "SELECT count(*) FROM counted")
        if not going:
            break
    # The row; two more, and COMMIT, seen by psycopg's transaction and by the connection; the end
    assert [count for (count,) in seen][:4] == [0, 1, 1, 1] and set(seen[4:]) <= {(1,), (3,)}
    assert seen[-2:] == [(3,), (3,)]
