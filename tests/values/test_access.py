"""
The access token of an account with OAuth2: one refresh for all processes, by a real authorisation
server whose refresh tokens are for one use, and that ends the whole grant when one comes twice.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from helpers import token_peers
from helpers.effort import effort
from helpers.faults import forked, stopped_at
from helpers.oidc import AuthorizationServer, Grant
from helpers.providers_api import Answer, Api, as_json
from helpers.rows import unchecked, undone
from helpers.site import Figures, Site, another, dump

from outreach_vault import (
    AccessToken,
    ClientRefused,
    IncompleteAccount,
    KeyMissing,
    LibraryMissing,
    NeedsLogin,
    NoTokenGiven,
    ProjectNotFound,
    ProviderUnreachable,
    Secret,
    StorageError,
    TokenUnavailable,
    Vault,
)
from outreach_vault.errors import WrongArgument
from outreach_vault.operations import accounts, history, rotation, transfer
from outreach_vault.values import access, tokens

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from smtp_server import _make_certificates

P = "default-project"


@pytest.fixture
def server(authorization_server: AuthorizationServer) -> AuthorizationServer:
    return authorization_server


def fields(server: AuthorizationServer, grant: Grant) -> dict[str, str]:
    found = {
        "host": "localhost",
        "user": grant.account,
        "oauth_client_id": grant.client.id,
        "oauth_refresh_token": grant.refresh_token,
        "oauth_token_url": server.token_url,
    }
    if grant.client.secret:
        found["oauth_client_secret"] = grant.client.secret
    return found


def log_in(
    vault: Vault,
    server: AuthorizationServer,
    project_id: str | None = None,
    client: str = "native",
    **more: Any,
) -> Grant:
    """What `vault login` does, without the login."""
    grant = server.grant(client, **more)
    vault.set_fields("smtp", fields(server, grant), project_id)
    return grant


def stored(vault: Vault, project_id: str | None = None) -> str:
    return vault.get("smtp", "oauth_refresh_token", project_id, fallback=False).reveal()


def refreshes(server: AuthorizationServer) -> int:
    return int(server.counters()["requests"].get("refresh_token", 0))


# One process


@pytest.mark.parametrize("client", ["native", "basic"])
def test_a_token_is_got_once_and_kept_with_what_the_provider_said_of_it(
    site: Site, vault: Vault, server: AuthorizationServer, client: str
) -> None:
    grant, before = log_in(vault, server, client=client), datetime.now(UTC)
    token = vault.access_token("smtp", P)
    assert server.is_live(token.reveal(), grant.account)
    assert isinstance(token, AccessToken) and isinstance(token, Secret)
    assert (token.project_id, token.scope, token.granted_scope) == (None, "global", "smtp")
    assert timedelta(minutes=59) < token.expires_at - before <= timedelta(hours=1, seconds=1)
    assert token.reveal() not in repr(token)
    with site.open() as other:
        for project_id in (None, P):
            again = other.access_token("smtp", project_id)
            assert again == token and again.expires_at == token.expires_at.replace(
                microsecond=token.expires_at.microsecond // 1000 * 1000
            )
            assert (again.granted_scope, again.project_id) == ("smtp", None)
    assert refreshes(server) == 1
    assert stored(vault) != grant.refresh_token  # for one use: the provider replaced it
    assert server.token(stored(vault))["live"]
    assert token.reveal() not in repr(dump(site.database))


def test_the_token_is_of_the_account_that_a_bundle_would_be(
    vault: Vault, server: AuthorizationServer
) -> None:
    general = log_in(vault, server)
    own = log_in(vault, server, P, account="grace@example.com")
    assert server.is_live(vault.access_token("smtp").reveal(), general.account)
    token = vault.access_token("smtp", P)
    assert server.is_live(token.reveal(), own.account)
    assert (token.project_id, token.scope) == (P, "project")
    vault.delete("smtp", "oauth_refresh_token", P)
    with pytest.raises(IncompleteAccount, match="missing oauth_refresh_token"):
        vault.access_token("smtp", P)  # never the global one's


def test_the_grant_of_a_client_has_no_refresh_token(
    vault: Vault, server: AuthorizationServer
) -> None:
    client = server.client("service")
    vault.set_fields(
        "smtp",
        {
            "oauth_client_id": client.id,
            "oauth_client_secret": client.secret or "",
            "oauth_token_url": server.token_url,
            "oauth_scope": "smtp",
        },
    )
    token = vault.access_token("smtp")
    assert server.is_live(token.reveal()) and token.granted_scope == "smtp"
    assert vault.access_token("smtp") == token
    assert server.counters()["requests"] == {"client_credentials": 1}


def test_a_refused_token_is_replaced_once_for_all_who_had_it(
    vault: Vault, server: AuthorizationServer
) -> None:
    log_in(vault, server)
    first = vault.access_token("smtp")
    second = vault.access_token("smtp", refused=first)
    assert second != first
    assert vault.access_token("smtp", refused=first) == second  # somebody was quicker
    assert vault.access_token("smtp") == second
    assert refreshes(server) == 2


def after(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """As it will be then."""
    then = lambda self: datetime.now(UTC) + timedelta(seconds=seconds)  # noqa: E731
    monkeypatch.setattr(tokens.Tokens, "now", then)


@pytest.mark.parametrize(("life", "left"), [(3600, 60), (121, 60), (100, 50)])
def test_the_token_lasts_for_a_minute_at_least_or_for_half_of_a_short_life(
    vault: Vault,
    server: AuthorizationServer,
    monkeypatch: pytest.MonkeyPatch,
    life: int,
    left: int,
) -> None:
    server.lifetime(access=life)
    log_in(vault, server)
    first = vault.access_token("smtp")
    began = first.expires_at - timedelta(seconds=life)
    vault.database.change("UPDATE vault_grants SET expires_at = 'what is told beside it'")
    passed = (datetime.now(UTC) - began).total_seconds()
    after(monkeypatch, life - left - passed - 20)
    assert vault.access_token("smtp") == first
    after(monkeypatch, life - left - passed + 0.1)
    assert vault.access_token("smtp") != first
    assert refreshes(server) == 2


# Many processes


class Peers:
    """Processes that ask all the time, from one moment on."""

    def __init__(self, site: Site, count: int, http: float = 10.0, lease: float = 30.0) -> None:
        script = [sys.executable, token_peers.__file__, str(site.database), str(site.keys)]
        self.processes = [
            subprocess.Popen(
                [*script, str(http), str(lease)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(count)
        ]
        for process in self.processes:
            assert process.stdout and process.stdout.readline() == "ready\n"

    def start(self) -> None:
        for process in self.processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()

    def end(self) -> list[dict[str, Any]]:
        """What each said; one that was killed says nothing."""
        said = [process.communicate()[0] for process in self.processes]
        return [json.loads(each) for each in said if each]


def require_each_once(
    site: Site, server: AuthorizationServer, found: list[dict[str, Any]]
) -> tuple[int, int]:
    """Every token that was given out came from a refresh of its own, and none was in vain."""
    counters = server.counters()
    assert [each["failures"] for each in found if each["failures"]] == []
    assert (counters["reuses"], counters["revoked_families"], counters["errors"]) == (0, 0, {})
    got = {token for each in found for token in each["tokens"]}
    with site.open() as vault:
        turn = vault.rows.tokens.turn(None, "smtp")
    done = counters["successes"]["refresh_token"]
    assert turn and turn.generation == done
    assert len(got) <= done
    return sum(each["calls"] for each in found), len(got)


def test_ten_processes_refresh_each_expiry_once(
    site: Site, server: AuthorizationServer, figures: Figures
) -> None:
    server.lifetime(access=2)
    with site.open() as vault:
        log_in(vault, server)
    peers = Peers(site, effort(10, 4))
    peers.start()
    time.sleep(effort(60, 4))
    calls, got = require_each_once(site, server, peers.end())
    assert got == server.counters()["successes"]["refresh_token"] > 1
    figures("access tokens of 2 s, each refreshed once by one of ten processes, no reuse", got)
    figures("calls of those processes, none failed", calls)


FAULTS: dict[str, dict[str, Any]] = {
    "late": {"kind": "delay", "seconds": 0.5},
    "later than its time limit, and then as if it had not been asked": {"kind": "hang"},
    "500": {"kind": "status", "status": 500},
    "429": {"kind": "status", "status": 429},
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_provider_that_fails_at_times_fails_no_call(
    site: Site, server: AuthorizationServer, figures: Figures, fault: str
) -> None:
    """The token is renewed before it ends, and meanwhile still given out."""
    server.lifetime(access=10)  # renewed in the last five seconds
    peers = Peers(site, effort(10, 3), http=1.0, lease=4.0)
    with site.open() as vault:
        log_in(vault, server)
        vault.access_token("smtp")
    peers.start()
    for _ in range(effort(5, 1)):
        server.fault(times=1, **FAULTS[fault])
        time.sleep(8)
    calls, got = require_each_once(site, server, peers.end())
    assert got >= 2 and server.counters()["faults"]
    figures("calls beside a provider that is late, silent or broken, none failed", calls)


def test_a_provider_that_is_down_is_asked_by_one_process_and_the_others_share_its_answer(
    site: Site, server: AuthorizationServer
) -> None:
    with site.open() as vault:
        log_in(vault, server)
    server.fault("hang", None)
    peers = Peers(site, 4, http=0.8, lease=20.0)
    began = time.monotonic()
    peers.start()
    time.sleep(1.5)
    found = peers.end()
    assert all(set(each["tokens"]) == set() for each in found)
    failures = [failure for each in found for failure in each["failures"]]
    assert len(failures) >= 4 and all("ProviderUnreachable" in each for each in failures)
    assert refreshes(server) <= (time.monotonic() - began) / 0.8 + 1
    assert len(failures) >= 1.5 * refreshes(server)
    server.mend()
    with site.open() as vault:
        assert server.is_live(vault.access_token("smtp").reveal())
    assert server.counters()["reuses"] == 0


# A process that stops


def test_killed_at_any_step_of_a_refresh_the_next_process_gets_a_token(
    empty: Site, tmp_path: Path, server: AuthorizationServer, figures: Figures
) -> None:
    """
    But for a kill between the provider's answer and its storing: what it replaced is lost then, and
    the provider takes the refresh token that is left for a thief's. The account needs a new login;
    nothing was deleted.
    """
    lost = tried = 0
    for step in itertools.count(1, effort(1, 2)):
        site = empty.copy(tmp_path / f"step-{step}")
        with site.open() as vault:
            grant = log_in(vault, server)
        before = server.counters()["successes"].get("refresh_token", 0)

        def refresh(store: Any, site: Site = site) -> None:
            with site.open(store) as vault:
                vault.access_token("smtp", http_seconds=1, lease_seconds=2)

        if not stopped_at(step, refresh, site.keys):
            break
        answered = server.counters()["successes"].get("refresh_token", 0) > before
        with site.open() as vault:
            if answered and stored(vault) == grant.refresh_token:
                lost += 1
                with pytest.raises(NeedsLogin, match="needs a new login"):
                    vault.access_token("smtp")
                assert stored(vault) == grant.refresh_token
                again = log_in(vault, server)
                assert server.is_live(vault.access_token("smtp").reveal(), again.account)
            else:
                assert server.is_live(
                    vault.access_token("smtp", http_seconds=1, lease_seconds=2).reveal()
                )
        tried += 1
    assert tried > effort(12, 6) and 0 < lost < tried / 2
    figures("kills at a numbered step of a refresh, a token or a clear error after each", tried)


def suspended_in(site: Site, moment: Callable[[pytest.MonkeyPatch], None], **limits: float) -> int:
    """The pid of a child that asks for the token, and is suspended at a moment of the refresh."""

    def child() -> None:
        with pytest.MonkeyPatch.context() as patch, site.open() as vault:
            moment(patch)
            with contextlib.suppress(TokenUnavailable):
                vault.access_token("smtp", **limits)

    pid = forked(child)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    return pid


def wake(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def stop_before_it_asks(patch: pytest.MonkeyPatch) -> None:
    real = access.request

    def request(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)
        return real(*args, **options)

    patch.setattr(access, "request", request)


def stop_when_it_was_answered(patch: pytest.MonkeyPatch) -> None:
    real = access.request

    def request(*args: Any, **options: Any) -> Any:
        granted = real(*args, **options)
        os.kill(os.getpid(), signal.SIGSTOP)
        return granted

    patch.setattr(access, "request", request)


def test_suspended_before_it_asks_for_longer_than_its_lease_it_asks_no_more(
    site: Site, server: AuthorizationServer
) -> None:
    """Another has used the refresh token meanwhile: a second use would end the grant."""
    with site.open() as vault:
        log_in(vault, server)
        pid = suspended_in(site, stop_before_it_asks, http_seconds=0.4, lease_seconds=0.9)
        token = vault.access_token("smtp")
        before = dump(site.database)
        wake(pid)
        assert dump(site.database) == before
        assert refreshes(server) == 1 and server.counters()["reuses"] == 0
        assert server.is_live(token.reveal()) and vault.access_token("smtp") == token


def test_suspended_with_an_answer_for_longer_than_its_lease_it_stores_nothing(
    site: Site, server: AuthorizationServer
) -> None:
    with site.open() as vault:
        grant = log_in(vault, server)
        pid = suspended_in(site, stop_when_it_was_answered, http_seconds=1, lease_seconds=2.1)
        with pytest.raises(NeedsLogin):  # the provider cannot tell the two from a theft
            vault.access_token("smtp")
        before = dump(site.database)
        wake(pid)
        assert dump(site.database) == before and stored(vault) == grant.refresh_token


def test_suspended_with_an_answer_that_nobody_missed_it_saves_the_account(
    site: Site, server: AuthorizationServer
) -> None:
    """The lease has run out, but it is nobody else's: to store nothing would lose the grant."""
    with site.open() as vault:
        grant = log_in(vault, server)
        pid = suspended_in(site, stop_when_it_was_answered, http_seconds=1, lease_seconds=2.1)
        time.sleep(2.2)
        wake(pid)
        assert stored(vault) != grant.refresh_token
        assert server.is_live(vault.access_token("smtp").reveal())
    assert refreshes(server) == 1 and server.counters()["reuses"] == 0


def test_whoever_takes_over_waits_until_the_lease_has_run_out(
    site: Site, server: AuthorizationServer
) -> None:
    with site.open() as vault:
        log_in(vault, server)
        pid = suspended_in(site, stop_before_it_asks, http_seconds=0.4, lease_seconds=1.5)
        took = vault.rows.tokens.turn(None, "smtp")
        assert took and vault.rows.tokens.is_taken(took) and took.until
        vault.access_token("smtp")
        assert vault.rows.tokens.moment() >= took.until
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_lease_far_in_the_future_is_that_of_a_wrong_clock(
    vault: Vault, server: AuthorizationServer
) -> None:
    log_in(vault, server)
    vault.access_token("smtp")
    vault.database.change(
        "UPDATE vault_grants SET owner = 'x', until = ?",
        (vault.rows.tokens.moment(access.LEASE_AT_MOST + 60),),
    )
    old = vault.access_token("smtp")
    assert vault.access_token("smtp", refused=old) != old


@pytest.mark.parametrize("forward", [True, False])
def test_a_token_that_was_got_by_a_wrong_clock_is_had_anew_by_a_right_one(
    account: Vault, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, forward: bool
) -> None:
    endpoint.answers += [as_json(200, {"access_token": each, "expires_in": 900}) for each in "ab"]
    with monkeypatch.context() as patch:
        after(patch, (365 if forward else -365) * 86400)
        account.access_token("smtp")
    assert account.access_token("smtp").reveal() == "b"


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_host_whose_clock_is_wrong_goes_by_the_databases(
    account: Vault, endpoint: Endpoint, site: Site, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Else it would ask the provider for a new token at each look."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(hours=hours)

    endpoint.answers += [as_json(200, {"access_token": each, "expires_in": 900}) for each in "ab"]
    given = account.access_token("smtp")
    with site.open() as vault, monkeypatch.context() as patch:
        clock, asked = vault.database.clock, list[datetime]()
        patch.setattr(vault.database, "clock", lambda: asked.append(clock()) or asked[-1])
        patch.setattr(tokens, "datetime", Wrong)
        assert {vault.access_token("smtp").reveal() for _ in range(20)} == {"a"}
        assert len(asked) == 1, "each look costs a message to the server"
        assert vault.access_token("smtp", refused=given).reveal() == "b"
    assert account.access_token("smtp").reveal() == "b"  # for all others it lasts, too


GARBAGE: dict[str, Any] = {
    "generation": ["x", b"\xff", 2**63 - 1, -1, 0.5],
    "attempt": ["x", b"\xff", 2**63 - 1, -1, 0.5],
    "owner": [b"\xff", 5],
    "until": ["x", b"\xff", 5],
    "expires_at": ["x", b"\xff", 5],
    "fault": ["client", "login", "x"],
    "said": [b"\xff", 5, None],
    "tried_at": ["x", b"\xff", 5, None, "9999-12-31T23:59:59.999Z"],
}


@pytest.mark.sqlite("garbage in a column that has a type and a rule")
@pytest.mark.parametrize("column", GARBAGE)
def test_whatever_is_in_vault_grants_the_account_gets_tokens_and_is_changed(
    account: Vault, endpoint: Endpoint, column: str
) -> None:
    account.database.fetch("PRAGMA ignore_check_constraints = ON")
    for found in GARBAGE[column]:
        endpoint.answers += [as_json(200, {"access_token": "t", "expires_in": 3600})] * 2
        account.access_token("smtp")
        account.database.change("DELETE FROM vault_tokens")
        damage = {"fault": "client", "said": "no", "tried_at": "x"} | {column: found}
        sets = ", ".join(f"{name} = ?" for name in damage)
        account.database.change(f"UPDATE vault_grants SET {sets}", [*damage.values()])
        accounts.accounts(account)
        try:
            account.access_token("smtp")
        except NeedsLogin:
            assert found == "login"
        account.database.change(f"UPDATE vault_grants SET {column} = ?", [found])
        account.set("smtp", "oauth_scope", "other")
        endpoint.answers.clear()


# What others do meanwhile


def during_a_refresh(
    vault: Vault, server: AuthorizationServer, act: Callable[[], object], **asked: Any
) -> AccessToken:
    """The token, got while the provider was slow and *act* was done."""
    server.fault("delay", seconds=0.7)
    got: list[Any] = []

    def ask() -> None:
        try:
            got.append(vault.access_token("smtp", **asked))
        except Exception as error:  # for the test
            got.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    before = refreshes(server)
    while refreshes(server) == before:
        time.sleep(0.01)
    act()
    asker.join()
    (found,) = got
    if isinstance(found, Exception):
        raise found
    assert isinstance(found, AccessToken)
    return found


def test_a_login_during_a_refresh_is_not_overwritten_by_it(
    vault: Vault, server: AuthorizationServer
) -> None:
    log_in(vault, server)
    new: list[Grant] = []
    token = during_a_refresh(
        vault,
        server,
        lambda: new.append(log_in(vault, server, account="grace@example.com")),
    )
    assert server.is_live(token.reveal(), "grace@example.com")
    assert server.is_live(vault.access_token("smtp").reveal(), "grace@example.com")
    assert server.token(stored(vault))["account"] == "grace@example.com"


def test_an_account_that_a_project_gets_meanwhile_is_refreshed_under_its_own_lease(
    vault: Vault, server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(vault, server)
    real = access.Access._take

    def take(*args: Any) -> Any:
        monkeypatch.setattr(access.Access, "_take", real)
        held = real(*args)
        log_in(vault, server, P, account="grace@example.com")
        return held

    monkeypatch.setattr(access.Access, "_take", take)
    token = vault.access_token("smtp", P)
    assert token.project_id == P and server.is_live(token.reveal(), "grace@example.com")
    general, own = (vault.rows.tokens.turn(scope, "smtp") for scope in (None, P))
    assert (
        general and own and (vault.rows.tokens.is_taken(general), general.generation) == (False, 0)
    )
    assert (vault.rows.tokens.is_taken(own), own.generation) == (False, 1)


@pytest.mark.parametrize("field", ["from_email", "host", "oauth_scope"])
def test_a_change_of_the_account_during_a_refresh_does_not_cost_its_refresh_token(
    site: Site, vault: Vault, server: AuthorizationServer, field: str
) -> None:
    log_in(vault, server)
    with site.open() as other:
        token = during_a_refresh(vault, server, lambda: other.set("smtp", field, "smtp"))
    assert server.is_live(token.reveal()) and server.token(stored(vault))["live"]
    assert server.counters()["reuses"] == 0


@pytest.mark.parametrize("moment", ["_take", "_store"])
@pytest.mark.parametrize("cascades", [True, False])
def test_a_project_that_was_deleted_during_a_refresh_is_named_as_the_cause(
    site: Site,
    vault: Vault,
    server: AuthorizationServer,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    cascades: bool,
) -> None:
    log_in(vault, server, project_id=P)
    real = getattr(access.Access, moment)

    def deleted_first(*given: Any) -> Any:
        if cascades:
            with another(site.database) as other:
                if site.engine is None:
                    other.execute("PRAGMA foreign_keys = ON")
                other.execute("DELETE FROM projects")
        else:
            unchecked(site.database, "DELETE FROM projects")
        return real(*given)

    monkeypatch.setattr(access.Access, moment, deleted_first)
    with pytest.raises(ProjectNotFound):
        vault.access_token("smtp", P)


@pytest.mark.parametrize("table", ["vault_grants", "provider_credentials"])
def test_where_a_trigger_undoes_what_is_stored_the_provider_is_not_asked_for_ever(
    site: Site, account: Vault, endpoint: Endpoint, table: str
) -> None:
    given = {"access_token": "a", "expires_in": 3600}
    endpoint.answers += [as_json(200, given | {"refresh_token": f"r{n}"}) for n in range(9)]
    account.access_token("smtp")
    with (
        undone(site.database, f"UPDATE ON {table}"),
        pytest.raises(StorageError, match=rf"{table}|oauth_refresh_token"),
    ):
        account.access_token("smtp", refused=account.access_token("smtp"))
    assert len(endpoint.asked) <= 2


def test_another_programs_change_during_a_refresh_is_not_overwritten_by_it(
    site: Site, vault: Vault, server: AuthorizationServer
) -> None:
    log_in(vault, server)
    theirs = "UPDATE provider_credentials SET encrypted_value = 'theirs', updated_at = 'now'"
    where = " WHERE credential_type = 'oauth_refresh_token'"
    with pytest.raises(Exception, match="not sealed by this vault"):
        during_a_refresh(vault, server, lambda: site.change(theirs + where))
    values = [row["encrypted_value"] for row in site.rows().values()]
    assert "theirs" in values
    assert vault.database.fetch("SELECT count(*) FROM vault_tokens") == [(0,)]


def test_a_rotation_during_a_refresh_puts_what_came_under_the_new_key(
    site: Site, vault: Vault, server: AuthorizationServer
) -> None:
    log_in(vault, server)
    old = site.active()
    with site.open() as other:
        token = during_a_refresh(vault, server, lambda: rotation.rotate(other))
        assert site.active() != old
        assert {row.key_id for row in other.rows.each(tokens.TABLE)} == {site.active()}
        assert other.access_token("smtp") == token
        rotation.destroy(other, old)
    with site.open() as fresh:
        assert fresh.access_token("smtp") == token and server.token(stored(fresh))["live"]
    site.require_one_key()
    assert refreshes(server) == 1


def test_a_rotation_takes_the_token_along(
    site: Site, vault: Vault, server: AuthorizationServer
) -> None:
    log_in(vault, server)
    token = vault.access_token("smtp")
    report = rotation.rotate(vault, destroy_old=True)
    assert report.complete and report.destroyed_key
    with site.open() as fresh:
        assert fresh.access_token("smtp") == token
    assert refreshes(server) == 1


def test_a_token_that_nothing_opens_is_had_anew_and_removed_by_a_rotation(
    site: Site, vault: Vault, server: AuthorizationServer
) -> None:
    log_in(vault, server)
    first = vault.access_token("smtp")
    site.change("UPDATE vault_tokens SET encrypted_value = substr(encrypted_value, 1, 90)")
    report = rotation.rotate(vault)
    assert (report.removed, report.complete) == (1, True)
    second = vault.access_token("smtp")
    assert second != first and server.is_live(second.reveal())


def test_a_token_that_was_moved_to_another_account_is_not_given_out(
    site: Site, vault: Vault, server: AuthorizationServer
) -> None:
    general = log_in(vault, server)
    log_in(vault, server, P, account="grace@example.com")
    vault.access_token("smtp")
    site.change("UPDATE vault_tokens SET project_id = ?", P)
    assert server.is_live(vault.access_token("smtp", P).reveal(), "grace@example.com")
    assert server.is_live(vault.access_token("smtp").reveal(), general.account)


def test_an_account_that_another_program_changed_does_not_get_the_earlier_ones_token(
    site: Site, vault: Vault, server: AuthorizationServer
) -> None:
    """The vault hears of no change; but the token is sealed with what it was given for."""

    def client() -> dict[str, Any]:
        (row,) = [r for r in site.rows().values() if r["credential_type"] == "oauth_client_id"]
        return row

    vault.set("smtp", "oauth_client_id", "another")
    another = client()
    log_in(vault, server)
    token = vault.access_token("smtp")
    site.change(
        "UPDATE provider_credentials SET encrypted_value = ? WHERE id = ?",
        another["encrypted_value"],
        client()["id"],
    )
    with pytest.raises(ClientRefused):
        vault.access_token("smtp")
    assert server.is_live(token.reveal())


@pytest.mark.parametrize("change", ["set", "delete and set", "undo", "another field"])
def test_a_changed_account_has_no_token_left(
    vault: Vault, server: AuthorizationServer, change: str
) -> None:
    first, second = log_in(vault, server), server.grant(account="grace@example.com")
    vault.access_token("smtp")
    if change == "undo":
        vault.set("smtp", "oauth_refresh_token", second.refresh_token)
        vault.access_token("smtp")
        history.undo(vault, "smtp", "oauth_refresh_token")
    elif change == "another field":
        vault.set("smtp", "user", "grace@example.com")
    else:
        if change == "delete and set":
            vault.delete("smtp", "oauth_refresh_token")
            assert vault.database.fetch("SELECT count(*) FROM vault_tokens") == [(0,)]
        vault.set("smtp", "oauth_refresh_token", second.refresh_token)
    assert vault.database.fetch("SELECT count(*) FROM vault_tokens") == [(0,)]
    if change.endswith("set"):
        token = vault.access_token("smtp")
        assert server.is_live(token.reveal(), second.account) and first.account != second.account


# What goes wrong


def test_a_refresh_token_that_is_taken_no_more_needs_a_new_login_and_is_not_tried_again(
    site: Site, vault: Vault, server: AuthorizationServer
) -> None:
    grant = log_in(vault, server, P)
    server.revoke(grant.refresh_token)
    before = site.rows()
    for _ in "ab":
        with pytest.raises(NeedsLogin) as caught:
            vault.access_token("smtp", P)
        assert f"smtp (project {P}): the account needs a new login" in str(caught.value)
        assert "400 invalid_grant" in str(caught.value)
        assert f"'vault login smtp --project {P}'" in str(caught.value.hint)
        assert grant.refresh_token not in str(caught.value) + str(caught.value.hint)
    assert site.rows() == before and refreshes(server) == 1
    with pytest.raises(NeedsLogin):
        vault.access_token("smtp", P, insist=True)
    assert refreshes(server) == 2
    again = log_in(vault, server, P)
    assert server.is_live(vault.access_token("smtp", P).reveal(), again.account)


def test_a_refused_client_is_asked_again_after_a_minute_or_when_told_to(
    vault: Vault, server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = log_in(vault, server, client="basic")
    vault.set("smtp", "oauth_client_secret", "not-the-secret-of-it")
    for _ in "ab":
        with pytest.raises(ClientRefused, match="invalid_client") as caught:
            vault.access_token("smtp")
        assert "not-the-secret-of-it" not in str(caught.value)
    assert refreshes(server) == 1
    with pytest.raises(ClientRefused):
        vault.access_token("smtp", insist=True)
    monkeypatch.setattr(access, "_REST_SECONDS", 0)
    with pytest.raises(ClientRefused):
        vault.access_token("smtp")
    assert refreshes(server) == 3
    vault.set("smtp", "oauth_client_secret", str(grant.client.secret))
    assert server.is_live(vault.access_token("smtp").reveal())


def test_an_application_that_logs_in_by_itself_is_refused_and_asks_nobody_to_log_in(
    account: Vault, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer.delete(account, "smtp", None, ["oauth_refresh_token"])
    endpoint.answers += [
        as_json(400, {"error": "invalid_grant"}),
        as_json(200, {"access_token": "t"}),
    ]
    with pytest.raises(ClientRefused, match="invalid_grant"):
        account.access_token("smtp")
    monkeypatch.setattr(access, "_REST_SECONDS", 0)
    assert account.access_token("smtp").reveal() == "t"


ODD: dict[str, tuple[dict[str, Any], type[TokenUnavailable]]] = {
    "a page": ({"kind": "html"}, NoTokenGiven),
    "no token": ({"kind": "no_token"}, NoTokenGiven),
    "no end": ({"kind": "huge"}, NoTokenGiven),
    "500": ({"kind": "status", "status": 500}, ProviderUnreachable),
    "408": ({"kind": "status", "status": 408}, ProviderUnreachable),
    "silence": ({"kind": "hang"}, ProviderUnreachable),
    "busy": ({"kind": "error", "error": "temporarily_unavailable"}, ProviderUnreachable),
    "a scope": ({"kind": "error", "error": "invalid_scope"}, ClientRefused),
    "interaction": ({"kind": "error", "error": "interaction_required"}, NeedsLogin),
}


@pytest.mark.parametrize("answer", ODD)
def test_an_answer_without_a_token_is_an_error_of_its_own_and_changes_nothing(
    site: Site, vault: Vault, server: AuthorizationServer, answer: str
) -> None:
    fault, kind = ODD[answer]
    grant = log_in(vault, server)
    before = site.rows()
    server.fault(times=1, **fault)
    with pytest.raises(kind) as caught:
        vault.access_token("smtp", http_seconds=0.5)
    assert type(caught.value) is kind and caught.value.hint
    assert grant.refresh_token not in str(caught.value)
    assert site.rows() == before
    assert server.is_live(vault.access_token("smtp", insist=True).reveal())


def test_a_redirect_is_not_followed(vault: Vault, server: AuthorizationServer) -> None:
    grant = log_in(vault, server)
    with AuthorizationServer() as elsewhere:
        server.fault("redirect", to=elsewhere.token_url)
        with pytest.raises(ProviderUnreachable, match="redirect"):
            vault.access_token("smtp")
        assert elsewhere.counters()["requests"] == {}
    assert stored(vault) == grant.refresh_token


@pytest.mark.parametrize(
    "url",
    [
        "http://provider.example/token",
        "https://a@127.0.0.1/token",
        "ftp://127.0.0.1/",
        "x",
        "https://[x/token",
        "https://127.0.0.1:65536/token",
        "https://127.0.0.1:0/token",
    ],
)
def test_nothing_is_sent_to_a_url_that_may_be_overheard(
    vault: Vault, server: AuthorizationServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(vault, server)
    vault.set("smtp", "oauth_token_url", url)
    monkeypatch.setattr("socket.create_connection", pytest.fail)
    with pytest.raises(NoTokenGiven, match="neither https nor on this machine") as caught:
        vault.access_token("smtp")
    assert "check the token URL" in str(caught.value.hint)


def test_the_old_token_is_given_out_while_it_lasts_when_there_is_no_new_one(
    vault: Vault, server: AuthorizationServer
) -> None:
    server.lifetime(access=4)
    log_in(vault, server)
    token = vault.access_token("smtp")
    server.fault("status", None, status=503)
    while token.expires_at - datetime.now(UTC) > timedelta(seconds=2):
        time.sleep(0.05)
    assert vault.access_token("smtp") == token and server.counters()["faults"] == {"status": 1}
    while datetime.now(UTC) < token.expires_at:
        time.sleep(0.05)
    with pytest.raises(ProviderUnreachable, match="503"):
        vault.access_token("smtp")
    with pytest.raises(ProviderUnreachable):
        vault.access_token("smtp", refused=token)


def test_no_token_is_asked_for_that_could_not_be_stored(
    site: Site, vault: Vault, server: AuthorizationServer
) -> None:
    """The provider would replace the refresh token, and the new one be lost."""
    log_in(vault, server)
    with site.open() as other:
        rotation.rotate(other)
    (key,) = site.keys.glob(f"*.{site.active()}.key")
    hidden = key.rename(site.folder / "away")
    vault.keys._silent = None
    with site.open() as reader, pytest.raises(KeyMissing):
        reader.access_token("smtp")
    assert refreshes(server) == 0
    hidden.rename(key)
    with site.open() as reader:
        assert server.is_live(reader.access_token("smtp").reveal())


def test_a_read_only_vault_gives_the_token_at_hand_and_gets_none(
    site: Site, vault: Vault, server: AuthorizationServer
) -> None:
    log_in(vault, server)
    from outreach_vault import DatabaseReadOnly, KeyDirectory

    with Vault.open(site.database, key_store=KeyDirectory(site.keys), read_only=True) as reader:
        with pytest.raises(DatabaseReadOnly):
            reader.access_token("smtp")
        token = vault.access_token("smtp")
        assert reader.access_token("smtp") == token
    assert refreshes(server) == 1


def test_no_transaction_is_open_while_the_provider_is_asked(
    site: Site, vault: Vault, server: AuthorizationServer
) -> None:
    log_in(vault, server)
    with pytest.raises(StorageError, match="a transaction is open"):
        vault.database.write(lambda: vault.access_token("smtp"))
    assert refreshes(server) == 0

    def write() -> None:
        with site.open() as other:
            other.set("twilio", "auth_token", "t" * 32)

    during_a_refresh(vault, server, write)


def test_without_the_extra_only_a_new_token_is_missing(
    vault: Vault, server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(vault, server)
    token = vault.access_token("smtp")
    for name in [name for name in sys.modules if name.split(".")[0] == "oauthlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert vault.access_token("smtp") == token
    with pytest.raises(LibraryMissing, match="oauthlib") as caught:
        vault.access_token("smtp", refused=token)
    assert "outreach_vault[oauth]" in str(caught.value.hint)
    turn = vault.rows.tokens.turn(None, "smtp")
    assert turn and not vault.rows.tokens.is_taken(turn) and refreshes(server) == 1
    assert vault.bundle("smtp").oauth


@pytest.mark.parametrize(
    ("provider", "values", "words"),
    [
        ("smtp", {"host": "h", "user": "u", "password": "p"}, "with its password, not with OAuth2"),
        ("smtp", {"host": "h", "oauth_client_id": "c"}, "missing oauth_token_url, oauth_refresh"),
        ("twilio", {"account_sid": "A"}, "knows of no OAuth2"),
        ("smtp", {}, "missing host"),
    ],
)
def test_an_account_without_a_grant_has_no_token(
    vault: Vault, provider: str, values: dict[str, str], words: str
) -> None:
    vault.set_fields(provider, values)
    with pytest.raises(IncompleteAccount, match=words):
        vault.access_token(provider)


@pytest.mark.parametrize("limits", [(10, 10), (10, 19), (0, 5), (5, 601), (-1, 5)])
def test_time_limits_that_could_not_keep_their_promise_are_refused(
    vault: Vault, limits: tuple[float, float]
) -> None:
    with pytest.raises(WrongArgument, match="lease_seconds must be twice"):
        vault.access_token("smtp", http_seconds=limits[0], lease_seconds=limits[1])


# Answers that no certified server gives


class Endpoint(Api):
    """Gives what it is told to."""

    def own_answer(self, path: str, headers: Any, body: bytes) -> Any:
        return None, {"form": body.decode()}, as_json(400, {"error": "invalid_grant"})


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as api:
        yield api


@pytest.fixture
def account(vault: Vault, endpoint: Endpoint) -> Vault:
    vault.set_fields(
        "smtp",
        {
            "oauth_client_id": "a-client",
            "oauth_client_secret": "the secret of it",
            "oauth_refresh_token": "first",
            "oauth_token_url": f"http://127.0.0.1:{endpoint.port}/token",
        },
    )
    return vault


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        ({"access_token": "t", "expires_in": "120"}, 120),
        ({"access_token": "t", "expires_in": 120.7}, 120),
        ({"access_token": "t"}, 600),
        ({"access_token": "t", "expires_in": None}, 600),
        ({"access_token": "t", "expires_in": -5}, 600),
        ({"access_token": "t", "expires_in": "soon"}, 600),
        ({"access_token": "t", "expires_in": ["3600"]}, 600),
        ({"access_token": "t", "expires_in": float("inf")}, 600),
        ({"access_token": "t", "expires_in": "3599.0"}, 3599),
        ({"access_token": "t", "expires_in": 10**12}, 10 * 365 * 86400),
    ],
)
def test_how_long_a_token_lasts_that_was_told_oddly_or_not_at_all(
    account: Vault, endpoint: Endpoint, answer: dict[str, Any], seconds: int
) -> None:
    endpoint.answers.append(as_json(200, answer))
    before = datetime.now(UTC)
    token = account.access_token("smtp")
    assert abs((token.expires_at - before).total_seconds() - seconds) < 20
    assert stored(account) == "first"


@pytest.mark.parametrize(
    "answer",
    [
        as_json(200, ["access_token"]),
        as_json(200, {"access_token": ["t"]}),
        as_json(200, {"access_token": ""}),
        as_json(200, {"access_token": "t" * 66000}),
        as_json(200, {"access_token": "t\r\nX-Other: header"}),
        as_json(200, {"access_token": "t\ud800"}),
        as_json(200, {"access_token": "t", "refresh_token": "t\ud800"}),
        as_json(200, {"access_token": "t", "refresh_token": "\x00"}),
        as_json(404, {"message": "no such page"}),
        Answer(200, b"[" * 60000),
        Answer(200, b'{"access_token":' * 4000),
        Answer(200, b"access_token=t&expires_in=3600"),
        Answer(200, b"\xff\xfe"),
    ],
)
def test_an_answer_that_is_none_of_the_standard_is_no_token(
    site: Site, account: Vault, endpoint: Endpoint, answer: Answer
) -> None:
    before = site.rows()
    endpoint.answers.append(answer)
    with pytest.raises(NoTokenGiven):
        account.access_token("smtp")
    assert site.rows() == before


def test_an_answer_that_is_no_http_is_none(account: Vault, endpoint: Endpoint) -> None:
    negative = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}"
    endpoint.answers.append(Answer(200, negative, raw=True))
    with pytest.raises(ProviderUnreachable, match="not an answer of HTTP"):
        account.access_token("smtp")


def test_tokens_go_to_the_host_that_its_certificate_names(
    account: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cafile, chain = _make_certificates(tmp_path)
    serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    serving.load_cert_chain(chain)
    trusting.load_verify_locations(cafile)
    real = socket.create_connection
    monkeypatch.setattr(  # as with a name server that lies
        socket, "create_connection", lambda to, *more: real(("127.0.0.1", to[1]), *more)
    )
    with Endpoint(serving) as secure:
        secure.answers.append(as_json(200, {"access_token": "t"}))
        for host, context in (("localhost", None), ("mail.example", trusting)):
            account.set("smtp", "oauth_token_url", f"https://{host}:{secure.port}/token")
            with pytest.raises(ProviderUnreachable, match="certificate verify failed"):
                account.access_token("smtp", context=context)
        assert secure.asked == []
        account.set("smtp", "oauth_token_url", f"https://localhost:{secure.port}/token")
        assert account.access_token("smtp", context=trusting).reveal() == "t"


def test_an_error_that_repeats_what_it_was_sent_is_masked(
    account: Vault, endpoint: Endpoint
) -> None:
    said = "no such token first of a client with the secret of it"
    endpoint.answers.append(as_json(401, {"error": "invalid_client", "error_description": said}))
    with pytest.raises(ClientRefused) as caught:
        account.access_token("smtp")
    assert "the secret of it" not in str(caught.value) and "first" not in str(caught.value)
    assert account.database.fetch(
        "SELECT count(*) FROM vault_grants WHERE said LIKE '%first%'"
    ) == [(0,)]


def test_the_previous_refresh_token_is_kept_until_the_next_success_and_tried(
    account: Vault, endpoint: Endpoint
) -> None:
    """As after a restored database, or with a provider that had not counted its last answer."""
    given = {"access_token": "a", "expires_in": 3600}
    endpoint.answers += [
        as_json(200, given | {"refresh_token": "second"}),
        as_json(400, {"error": "invalid_grant"}),
        as_json(200, given | {"access_token": "b"}),
        as_json(400, {"error": "invalid_grant"}),
    ]
    first = account.access_token("smtp")
    assert stored(account) == "second"
    second = account.access_token("smtp", refused=first)
    assert second.reveal() == "b" and stored(account) == "first"
    with pytest.raises(NeedsLogin):
        account.access_token("smtp", refused=second)
    forms = [asked.fields["form"] for asked in endpoint.asked]
    assert [form.partition("refresh_token=")[2].split("&")[0] for form in forms] == [
        "first",
        "second",
        "first",
        "first",
        "second",
    ]
