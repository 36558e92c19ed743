"""What two hosts, or one host and its server's faults, can do to each other's work."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import peewee
import psycopg
import pytest
from helpers.oidc import AuthorizationServer
from helpers.postgres import PgBouncer, Postgres
from helpers.site import Engine, Site, name_of, new_site
from psycopg._preparing import PrepareManager

from outreach_vault import (
    DatabaseReadOnly,
    DatabaseUnreachable,
    StorageError,
    UnusablePath,
    Vault,
)
from outreach_vault.database import locate
from outreach_vault.database.postgres import connections
from outreach_vault.models import Project
from outreach_vault.operations import history, rotation
from outreach_vault.providers.oauth import Granted
from outreach_vault.schema.models import BoundDatabase
from outreach_vault.values import access
from outreach_vault.values.history import History, Limits

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
    yield made
    made.remove()


def token(vault: Vault) -> str:
    return vault.get("twilio", "auth_token").reveal()


# Connections that a thread keeps for Peewee


@pytest.fixture
def lose(server: Postgres) -> Callable[[BoundDatabase], None]:
    """The server ends the session that Peewee uses."""

    def end(bound: BoundDatabase) -> None:
        ((pid,),) = bound.execute_sql("SELECT pg_backend_pid()").fetchall()
        server.sql("postgres", "SELECT pg_terminate_backend(?, 10000)", pid)

    return end


def test_the_rest_of_a_lost_transaction_is_not_stored_alone(
    site: Site, vault: Vault, lose: Callable[[BoundDatabase], None]
) -> None:
    """An adapter may catch the error, and go on."""
    bound = vault.bind_models()
    rest: list[Callable[[], object]] = [
        lambda: vault.set("smtp", "user", "in the middle"),
        lambda: Project.update(name="changed").execute(),
        lambda: vault.set("smtp", "password", "after it"),
    ]
    with pytest.raises(peewee.InterfaceError, match="commit"), bound.atomic():
        vault.set("smtp", "host", "before it")
        lose(bound)
        for change in rest:
            with pytest.raises((DatabaseUnreachable, peewee.OperationalError)):
                change()
    with site.open() as other:
        assert [entry.credential_type for entry in other.list()] == ["auth_token"]
    assert Project.get().name != "changed"
    vault.set("smtp", "host", "again")
    assert vault.get("smtp", "host").reveal() == "again"


def test_who_loses_a_transaction_gets_the_vaults_error(
    vault: Vault, lose: Callable[[BoundDatabase], None]
) -> None:
    bound = vault.bind_models()
    with pytest.raises(DatabaseUnreachable, match="nothing was stored"), bound.atomic():
        lose(bound)
        vault.set("smtp", "host", "x")


def test_a_thread_that_has_used_peewee_goes_on_after_a_loss(
    vault: Vault, lose: Callable[[BoundDatabase], None]
) -> None:
    bound = vault.bind_models()
    for go_on in (
        lambda: token(vault),
        lambda: vault.set("smtp", "host", "x"),
        lambda: Project.get(),
    ):
        Project.get()
        lose(bound)
        try:
            go_on()
        except peewee.OperationalError:  # Peewee tries nothing again
            go_on()
        assert token(vault) == "the global one"


@pytest.mark.parametrize("in_transaction", [False, True])
def test_a_thread_whose_signal_cut_off_peewees_query_goes_on(
    vault: Vault, in_transaction: bool
) -> None:
    """Such as a job's time limit."""

    class TooLong(Exception):
        pass

    def too_long(*_: object) -> None:
        raise TooLong

    bound, before = vault.bind_models(), signal.signal(signal.SIGALRM, too_long)

    def query() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        bound.execute_sql("SELECT pg_sleep(60)")

    try:
        with pytest.raises(TooLong):
            bound.atomic()(query)() if in_transaction else query()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert token(vault) == "the global one"
    assert Project.get().id == P


# Keys


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_that_sees_no_new_key_stores_nothing(
    site: Site, vault: Vault, level: str
) -> None:
    """It would seal under the key that was the active one when it began, and may be destroyed."""
    vault.set("smtp", "host", "its key is at hand")
    bound = vault.bind_models()
    with bound.atomic(level):
        Project.get()  # from now on it sees this moment
        with site.open() as operator:
            assert rotation.rotate(operator, destroy_old=True).complete
        with pytest.raises(StorageError, match=f"{level.lower()} .* nothing was stored"):
            vault.set("smtp", "host", "lost")
        assert token(vault) == "the global one"
    site.require_one_key()


# The history


def test_no_value_is_kept_by_limits_that_another_host_has_just_lowered(
    site: Site, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.set("smtp", "host", "x")
    inside, go, limits = threading.Event(), threading.Event(), History.limits

    def slowly(self: History) -> Limits:
        found = limits(self)
        inside.set()
        go.wait(10)
        return found

    with ThreadPoolExecutor(2) as threads, site.open() as other:
        monkeypatch.setattr(History, "limits", slowly)
        storing = threads.submit(vault.set, "smtp", "host", "y")
        inside.wait(10)
        limiting = threads.submit(history.limit, other, Limits(0, 30))
        threading.Timer(0.5, go.set).start()
        storing.result(20)
        limiting.result(20)
    assert not vault.rows.history.of(vault.rows.one("smtp", "host", None).place)


# Errors


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:se/cret@127.0.0.1/db",
        "postgresql://user:12/cret@127.0.0.1/db",
        "postgresql://user:se@cret@127.0.0.1/db",
        "postgresql://user:cret/@127.0.0.1:1/db",
    ],
)
def test_a_password_that_is_not_written_as_a_url_wants_it_is_not_shown(url: str) -> None:
    with pytest.raises(UnusablePath, match=r"cannot be told apart|not a URL") as caught:
        locate(url).open()
    assert "cret" not in f"{caught.value} {caught.value.hint}"


def test_a_name_too_long_for_an_index_is_no_fault_of_the_network(vault: Vault) -> None:
    with pytest.raises(StorageError, match="index row size") as caught:
        vault.set("smtp", os.urandom(4000).hex(), "x")
    assert type(caught.value) is StorageError
    assert "shorter" in str(caught.value.hint)


# The pool


def test_no_writer_stays_with_a_server_that_takes_no_changes_any_more(vault: Vault) -> None:
    """A new connection finds the one that does (target_session_attrs)."""
    stale = "SELECT set_config('default_transaction_read_only', 'on', false)"
    vault.database.fetch(stale)  # in the pool's connection
    with pytest.raises(DatabaseReadOnly):
        vault.set("smtp", "host", "x")
    vault.set("smtp", "host", "x")


def test_behind_a_pooler_a_long_read_leaves_no_setting(server: Postgres, site: Site) -> None:
    name = name_of(site.database)
    server.sql(name, f"ALTER DATABASE {name} SET statement_timeout = '20s'")
    with (
        PgBouncer(server, pool=1) as bouncer,
        site._replace(database=bouncer.url(name)).open() as v,
    ):
        assert len(list(v.rows.each())) == 1
        shown = "SELECT current_setting('statement_timeout')"
        assert v.database.fetch(shown) == [("20s",)]


class Interrupt(BaseException):
    """What a signal's handler raises."""


def test_a_signal_at_any_line_leaves_no_transaction_and_binds_no_thread(
    server: Postgres, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "WAIT_SECONDS", 0.5)
    name, left, before = name_of(site.database), 0, sys.gettrace()

    def at_each_line(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                raise Interrupt
        return at_each_line

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        return at_each_line if frame.f_code.co_filename == connections.__file__ else None

    def interrupted(lines: int) -> bool:
        nonlocal left
        left = lines
        sys.settrace(trace)
        try:
            vault.set("smtp", "host", f"value {lines}")
        except Interrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    open_ones = "SELECT pid FROM pg_stat_activity WHERE datname = ? AND xact_start IS NOT NULL"
    with site.open() as vault:
        vault.set("smtp", "host", "its key is at hand")
        lines = 1
        while interrupted(lines):
            assert not vault.database.in_transaction()
            assert vault.database._mine() is None
            until = time.monotonic() + 5
            while server.sql("postgres", open_ones, name):  # a session that was closed is ending
                assert time.monotonic() < until
            lines += 1
        assert lines > 50
        assert vault.get("smtp", "host").reveal() == f"value {lines}"


@pytest.mark.parametrize("inside", ["the start of a pipeline", "the count of what to prepare"])
def test_a_signal_inside_psycopg_costs_its_connection_no_later_call(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    """Of its moments, those that it does not put right; see test_signals.py for all."""
    began, counted = psycopg.Pipeline.__enter__, PrepareManager.validate

    def begins(pipeline: psycopg.Pipeline) -> None:
        began(pipeline)
        raise Interrupt

    def counts(manager: PrepareManager, key: tuple[bytes, Any], *rest: Any) -> None:
        if key[0].startswith(b"BEGIN"):
            raise Interrupt
        counted(manager, key, *rest)

    with monkeypatch.context() as patch:
        if inside == "the start of a pipeline":
            for number in range(5):  # the next one forgets a value
                vault.set("smtp", "host", str(number))
            patch.setattr(psycopg.Pipeline, "__enter__", begins)
        else:
            patch.setattr(PrepareManager, "validate", counts)
        with pytest.raises((Interrupt, AssertionError)):  # psycopg's own, of what it did not expect
            vault.set("smtp", "host", "x")
    for number in range(7):
        vault.set("smtp", "host", str(number))
    assert vault.get("smtp", "host").reveal() == "6"


# Access tokens


def test_a_failover_during_a_refresh_does_not_cost_the_refresh_token(
    tmp_path: Path, authorization_server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider has replaced it, and takes the earlier one no more."""
    monkeypatch.setattr(connections, "WAIT_SECONDS", 0.5)  # it is away for longer
    with Postgres(18) as alone, new_site(tmp_path / "own", alone).open() as vault:
        grant = authorization_server.grant("native")
        vault.set_fields(
            "smtp",
            {
                "host": "localhost",
                "user": grant.account,
                "oauth_client_id": grant.client.id,
                "oauth_refresh_token": grant.refresh_token,
                "oauth_token_url": authorization_server.token_url,
            },
        )
        ask = access.Access._ask

        def asked(*args: Any) -> Granted:
            answer = ask(*args)
            alone.stop(at_once=True)
            threading.Timer(2, alone.start).start()
            return answer

        monkeypatch.setattr(access.Access, "_ask", asked)
        assert authorization_server.is_live(vault.access_token("smtp").reveal(), grant.account)
        refresh_token = vault.get("smtp", "oauth_refresh_token").reveal()
        assert refresh_token != grant.refresh_token
        assert authorization_server.token(refresh_token)["live"]
