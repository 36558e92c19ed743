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
import sqlite3
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
from helpers.faults import STOPPED, forked, stopped_at
from helpers.oidc import AuthorizationServer, Grant
from helpers.providers_api import Answer, Api, as_json
from helpers.site import Figures, Site

from outreach_vault import (
    AccessToken,
    ClientRefused,
    IncompleteAccount,
    KeyMissing,
    LibraryMissing,
    MixedAccount,
    NeedsLogin,
    NoTokenGiven,
    ProviderUnreachable,
    Secret,
    StorageError,
    TokenUnavailable,
    Vault,
)
from outreach_vault.errors import WrongArgument
from outreach_vault.operations import history, rotation
from outreach_vault.values import access, tokens

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


def everything(site: Site) -> list[str]:
    with contextlib.closing(sqlite3.connect(site.database)) as connection:
        return list(connection.iterdump())


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
    assert not [line for line in everything(site) if token.reveal() in line]


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
    with pytest.raises(MixedAccount):  # its client is left
        vault.access_token("smtp", P)


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


def test_the_token_lasts_for_a_minute_at_least(vault: Vault, server: AuthorizationServer) -> None:
    server.lifetime(access=124)
    log_in(vault, server)
    first = vault.access_token("smtp")
    server.lifetime(access=3600)
    ends = tokens._in(61)
    vault.database.change("UPDATE vault_grants SET expires_at = ?", (ends,))
    assert vault.access_token("smtp") == first  # what is told beside it does not count
    kept = access.LASTS_SECONDS
    with pytest.MonkeyPatch.context() as later:
        later.setattr(access, "LASTS_SECONDS", kept * 2)  # as after a minute
        server.lifetime(access=3600)
        assert vault.access_token("smtp") == first  # but half of such a life is enough
    server.lifetime(access=3600)
    second = vault.access_token("smtp", refused=first)
    with pytest.MonkeyPatch.context() as later:
        later.setattr(access, "LASTS_SECONDS", 3601)
        assert vault.access_token("smtp") == second
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
    assert turn and turn.generation - 1 == done  # log_in made the first
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
