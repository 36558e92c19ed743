"""
A login, by a real authorisation server: what is stored when it succeeds, and that nothing is when
it does not, whatever comes to the loopback meanwhile.
"""

from __future__ import annotations

import http.client
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from helpers.faults import each_stop
from helpers.oidc import AuthorizationServer
from helpers.site import Figures, Site, dump

from outreach_vault import (
    ClientRefused,
    ForeignValue,
    LibraryMissing,
    LoginFailed,
    NoTokenGiven,
    ProviderUnreachable,
    Secret,
    StorageError,
    Vault,
)
from outreach_vault.errors import VaultError, WrongArgument
from outreach_vault.keys.stores import KeyStore
from outreach_vault.operations import login as work
from outreach_vault.operations import rotation
from outreach_vault.operations.login import Done, Given, Plan, login, plan
from outreach_vault.operations.loopback import Loopback, require_callback
from outreach_vault.providers import catalogue
from outreach_vault.providers.grants import PRESETS, is_endpoint, preset_of
from outreach_vault.providers.oauth import Device, Granted
from outreach_vault.schema.shapes import Place
from outreach_vault.values.rows import Rows

P = "default-project"
MICROSOFT, GOOGLE = PRESETS
OFFLINE = "smtp offline_access"
ACCOUNT = {
    "host": "mail.example.com",
    "user": "ada@example.com",
    "oauth_client_id": "native",
    "oauth_scope": OFFLINE,
}


@pytest.fixture
def server(authorization_server: AuthorizationServer) -> AuthorizationServer:
    return authorization_server


def nobody(*_: object) -> None:
    raise AssertionError("the user was asked")


def given(server: AuthorizationServer | None = None, **more: Any) -> Given:
    """What an operator says the first time, of the account of the client *id*."""
    url = server and (server.device_url if more.get("device") else server.authorization_url)
    fields = ACCOUNT | {"oauth_client_id": more.pop("id", "native")}
    if server:
        fields["oauth_token_url"] = server.token_url
    said = {name: Secret(text) for name, text in fields.items()}
    return Given(said, **{"url": url, "secret": Secret("")} | more)


def by_page(
    vault: Vault,
    server: AuthorizationServer,
    user: Callable[[str], object] | None = None,
    project_id: str | None = None,
    seconds: float = 30,
    **more: Any,
) -> Done:
    planned = plan(vault, "smtp", project_id, given(server, **more))
    return login(
        vault,
        planned,
        show_page=lambda url, port: (user or server.walk)(url),
        show_device=nobody,
        seconds=seconds,
    )


def by_device(
    vault: Vault,
    server: AuthorizationServer,
    user: Callable[[Device], object],
    seconds: float | None = None,
    **more: Any,
) -> Done:
    planned = plan(vault, "smtp", None, given(server, device=True, **more))
    return login(vault, planned, show_page=nobody, show_device=user, seconds=seconds)


def stored(vault: Vault, project_id: str | None = None) -> dict[str, str]:
    return {
        entry.credential_type: vault.get("smtp", entry.credential_type, project_id).reveal()
        for entry in vault.list(project_id)
        if entry.provider == "smtp"
    }


def fetch(url: str, method: str = "GET", seconds: float = 20) -> tuple[int, Mapping[str, str], str]:
    """One request, and no redirect followed."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=seconds)
    connection.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def asked(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


# It succeeds


@pytest.mark.parametrize("client", ["native", "basic"])
def test_after_a_login_in_a_browser_the_account_gives_tokens(
    vault: Vault, server: AuthorizationServer, client: str
) -> None:
    known = server.client(client)
    done = by_page(vault, server, id=client, secret=Secret(known.secret or ""))
    found = stored(vault)
    assert server.token(found.pop("oauth_refresh_token"))["account"] == "ada@example.com"
    assert found.pop("oauth_client_secret", None) == known.secret
    assert found == ACCOUNT | {"oauth_client_id": client, "oauth_token_url": server.token_url}
    assert set(done.stored) == set(stored(vault)) and not done.removed
    assert server.is_live(vault.access_token("smtp").reveal(), "ada@example.com")


def test_the_page_gets_a_challenge_and_a_loopback_of_this_login_alone(
    vault: Vault, server: AuthorizationServer
) -> None:
    seen = list[dict[str, str]]()
    for _ in range(2):
        by_page(vault, server, lambda url: (seen.append(asked(url)), server.walk(url)))
    for found in seen:
        assert found["code_challenge_method"] == "S256" and len(found["code_challenge"]) == 43
        assert len(found["state"]) == 43 and found["login_hint"] == "ada@example.com"
        assert found["redirect_uri"].startswith("http://127.0.0.1:")
    for name in ("state", "code_challenge", "redirect_uri"):
        assert seen[0][name] != seen[1][name]


@pytest.mark.parametrize("client", ["device", "basic"])
def test_after_a_login_with_a_code_the_account_gives_tokens(
    vault: Vault, server: AuthorizationServer, client: str
) -> None:
    def user(device: Device) -> None:
        assert device.url == f"{server.url}/device" and device.seconds == 600
        server.approve_device(device.user_code)

    secret = Secret(server.client(client).secret or "")
    by_device(vault, server, user, id=client, secret=secret)
    assert server.is_live(vault.access_token("smtp").reveal(), "ada@example.com")


def test_a_device_asks_more_slowly_when_told_to_and_waits_for_a_server_that_is_away(
    vault: Vault, server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses, rest = list[float](), time.sleep
    code = list[str]()

    def sleep(seconds: float) -> None:  # a fifth: the server finds the second question too early
        pauses.append(seconds)
        assert len(pauses) < 9
        if len(pauses) == 3:
            server.fault("status", status=503)
        if len(pauses) == 4:
            server.approve_device(code[0])
        rest(seconds / 5)

    monkeypatch.setattr(work.time, "sleep", sleep)
    by_device(vault, server, lambda device: code.append(device.user_code), id="device")
    assert pauses == [1, 1, 6, 12]
    assert server.counters()["errors"] == {"authorization_pending": 1, "slow_down": 1}


def test_a_project_gets_an_account_of_its_own(vault: Vault, server: AuthorizationServer) -> None:
    vault.set_fields("smtp", {"host": ACCOUNT["host"], "port": "465", "user": "u"})
    vault.set("smtp", "password", "everybody's")
    before = stored(vault)
    assert by_page(vault, server, project_id=P).removed == ()
    assert stored(vault) == before
    bundle = vault.bundle("smtp", P)
    assert (bundle["host"].reveal(), bundle["host"].scope) == ("mail.example.com", "project")
    assert "password" not in bundle and "port" not in bundle
    assert server.is_live(vault.access_token("smtp", P).reveal())


def test_the_account_before_leaves_nothing_that_would_be_used_with_the_new_one(
    vault: Vault, server: AuthorizationServer
) -> None:
    vault.set_fields("smtp", {"password": "old", "oauth_client_secret": "of another client"})
    vault.set("smtp", "from_email", "office@example.com")
    done = by_page(vault, server)
    assert set(done.removed) == {"password", "oauth_client_secret"}
    assert not {"password", "oauth_client_secret"} & set(stored(vault))
    assert stored(vault)["from_email"] == "office@example.com"
    vault.database.write(lambda: vault.rows.undo(Place(None, "smtp", "password")))
    assert stored(vault)["password"] == "old"


def test_the_next_login_needs_nothing_and_writes_the_refresh_token_alone(
    site: Site, vault: Vault, server: AuthorizationServer
) -> None:
    secret = server.client("basic").secret or ""
    by_page(vault, server, id="basic", secret=Secret(secret))
    vault.set("smtp", "oauth_client_secret", secret, due=date(2027, 1, 31))
    before = {row["credential_type"]: row for row in site.rows().values()}
    planned = plan(vault, "smtp", None, Given({}, url=server.authorization_url))
    assert not planned.lacking and not planned.asks_secret
    done = login(vault, planned, show_page=lambda url, port: server.walk(url), show_device=nobody)
    assert done == Done(("oauth_refresh_token",), ())
    after = {row["credential_type"]: row for row in site.rows().values()}
    assert [name for name in after if after[name] != before[name]] == ["oauth_refresh_token"]
    assert list(vault.rows.due.days().values()) == ["2027-01-31"]


def test_another_application_does_not_get_the_secret_of_the_one_before(
    vault: Vault, server: AuthorizationServer
) -> None:
    by_page(vault, server, id="basic", secret=Secret(server.client("basic").secret or ""))
    planned = plan(vault, "smtp", None, given(server, secret=None))
    assert planned.asks_secret and "oauth_client_secret" not in planned.values
    assert "oauth_client_secret" in plan(vault, "smtp", None, Given({}, url="https://a/b")).values


def test_a_rotation_meanwhile_is_no_change_of_the_account(
    vault: Vault, site: Site, server: AuthorizationServer
) -> None:
    by_page(vault, server)

    def user(url: str) -> None:
        with site.open() as other:
            rotation.rotate(other)
        server.walk(url)

    assert by_page(vault, server, user).stored == ("oauth_refresh_token",)
    assert server.is_live(vault.access_token("smtp").reveal())


# It does not: nothing is stored


@pytest.fixture
def untouched(site: Site, vault: Vault) -> Any:
    """An account with a password, of which nothing may have changed at the end."""
    vault.set_fields("smtp", {"host": "old.example.com", "user": "u", "password": "old"})
    before = dump(site.database)
    yield
    assert dump(site.database) == before


def tampered(url: str, **more: str) -> str:
    parts = urlsplit(url)
    return parts._replace(query=urlencode(asked(url) | more)).geturl()


class Case(NamedTuple):
    """
    A login that fails.

    Attributes:
        words: in the error.
        before: what happens first. user: what is done with the page.
    """

    error: type[VaultError]
    words: str
    before: Callable[[AuthorizationServer, pytest.MonkeyPatch], object] = lambda server, patch: None
    user: Callable[[AuthorizationServer, str], object] = lambda server, url: server.walk(url)
    more: Mapping[str, Any] = {}


def stray(server: AuthorizationServer, url: str) -> None:
    """Somebody else's answers: right in all but the state."""
    back = server.walk(url, deliver=False)
    for wrong in (tampered(back, state="x" * 43), back.replace("state=", "estate=")):
        assert fetch(wrong)[0] == 400


def used_before(server: AuthorizationServer, patch: pytest.MonkeyPatch) -> None:
    """Somebody was faster with the code, and even has the verifier."""
    request = work.request
    patch.setattr(work, "request", lambda *a, **k: (request(*a, **k), request(*a, **k))[1])


def too_long(server: AuthorizationServer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("outreach_vault.values.sealing.MAX_VALUE_BYTES", 8)


def walk_to_the_last(server: AuthorizationServer, url: str) -> None:
    server.walk(url)
    server.close()


PAGES: dict[str, Case] = {
    "the user says no": Case(
        LoginFailed, "refused.*access_denied", lambda server, _: server.set(refuse=True)
    ),
    "a wrong state": Case(LoginFailed, "; 2 of another login", user=stray, more={"seconds": 0.3}),
    "nobody logs in": Case(
        LoginFailed, "0.2 seconds$", user=lambda server, url: None, more={"seconds": 0.2}
    ),
    "a code that was used": Case(LoginFailed, "invalid_grant", used_before),
    "a wrong secret": Case(
        ClientRefused, "invalid_client", more={"id": "basic", "secret": Secret("no")}
    ),
    "no refresh token": Case(
        LoginFailed, "no refresh token", lambda server, _: server.fault("no_refresh")
    ),
    "no token": Case(NoTokenGiven, "without a token", lambda server, _: server.fault("no_token")),
    "an error of the server's": Case(
        ProviderUnreachable, "503", lambda server, _: server.fault("status", status=503)
    ),
    "a redirect": Case(ProviderUnreachable, "redirect", lambda server, _: server.fault("redirect")),
    "a server that is gone": Case(ProviderUnreachable, "Connection", user=walk_to_the_last),
    "a token that is too long": Case(NoTokenGiven, "too long", too_long),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_login_in_a_browser_that_fails_stores_nothing(
    untouched: None,
    vault: Vault,
    server: AuthorizationServer,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    case = PAGES[name]
    case.before(server, monkeypatch)
    with pytest.raises(case.error, match=case.words):
        by_page(vault, server, lambda url: case.user(server, url), **case.more)


def deny(server: AuthorizationServer, device: Device) -> None:
    server.deny_device(device.user_code)


def go_away(server: AuthorizationServer, device: Device) -> None:
    server.close()


def say_expired(server: AuthorizationServer, device: Device) -> None:
    server.fault("error", error="expired_token")


DEVICES: dict[str, Case] = {
    "the user says no": Case(LoginFailed, "refused.*access_denied", user=deny),
    "nobody logs in": Case(
        LoginFailed, "in time", user=lambda server, device: None, more={"seconds": 0.2}
    ),
    "the code is over": Case(LoginFailed, "in time", user=say_expired),
    "an unknown client": Case(ClientRefused, "invalid_client", user=nobody, more={"id": "nobody"}),
    "a client that may not": Case(ClientRefused, "client", user=nobody, more={"id": "service"}),
    "no code": Case(
        NoTokenGiven,
        "without a code",
        lambda server, _: server.fault("html", path="/device/auth"),
        nobody,
    ),
    "no server": Case(ProviderUnreachable, "Connection", lambda server, _: server.close(), nobody),
    "a server that is gone": Case(ProviderUnreachable, "Connection", user=go_away),
}


@pytest.mark.parametrize("name", DEVICES)
def test_a_login_with_a_code_that_fails_stores_nothing(
    untouched: None,
    vault: Vault,
    server: AuthorizationServer,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    case, rest = DEVICES[name], time.sleep
    monkeypatch.setattr(work.time, "sleep", lambda seconds: rest(min(seconds, 0.2)))
    case.before(server, monkeypatch)
    with pytest.raises(case.error, match=case.words):
        by_device(
            vault,
            server,
            lambda device: case.user(server, device),  # type: ignore[arg-type]
            **{"id": "device"} | case.more,
        )


@pytest.mark.parametrize(("project_id", "shown"), [(None, "smtp'"), (P, f"smtp --project {P}'")])
def test_an_account_that_somebody_changed_meanwhile_is_left_as_it_is_then(
    site: Site, vault: Vault, server: AuthorizationServer, project_id: str | None, shown: str
) -> None:
    vault.set_fields("smtp", {"host": "old.example.com", "password": "old"}, project_id)
    seen = list[Any]()

    def user(url: str) -> None:
        with site.open() as other:
            other.set("smtp", "password", "new", project_id)
        seen.append(dump(site.database))
        server.walk(url)

    with pytest.raises(LoginFailed, match="changed the account") as caught:
        by_page(vault, server, user, project_id=project_id)
    assert f"'vault which {shown}" in str(caught.value.hint)
    assert [dump(site.database)] == seen


def test_a_fault_at_any_value_changes_nothing(
    untouched: None, vault: Vault, server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Rows.put

    def faulty(self: Rows, place: Place, *rest: Any) -> Any:
        if place.credential_type == "oauth_refresh_token":
            raise StorageError("arranged")
        return put(self, place, *rest)

    monkeypatch.setattr(Rows, "put", faulty)
    with pytest.raises(StorageError, match="arranged"):
        by_page(vault, server)


def test_stopped_at_any_step_the_account_is_the_old_one_or_the_new(
    site: Site, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed: the rest of the login, which stores nothing, is left out."""
    came = Granted(Secret("a token"), 3600, Secret("refresh"), None)
    monkeypatch.setattr(work, "_by_page", lambda *_: came)
    with site.open() as vault:
        vault.set_fields("smtp", {"host": "old", "user": "u", "password": "old"})
        old = stored(vault)
    asked_for = {"oauth_client_id": Secret("id")}

    def change(site: Site, store: KeyStore) -> None:
        with site.open(store) as vault:
            ready = plan(vault, "smtp", None, Given(asked_for, GOOGLE, secret=Secret("s")))
            login(vault, ready, show_page=nobody, show_device=nobody)

    found, counted = list[dict[str, str]](), "stops of a login's storing, the old or the new"
    for stopped in each_stop(site, change, figures, counted):
        with stopped.open() as vault:
            found.append(stored(vault))
    new = found[-1]
    assert new["host"] == "smtp.gmail.com" and new["oauth_refresh_token"] == "refresh"
    assert "password" not in new and old in found
    assert [each for each in found if each not in (old, new)] == []


# The loopback


def test_the_loopback_takes_the_one_answer_and_the_address_of_its_page_has_no_code(
    vault: Vault, server: AuthorizationServer
) -> None:
    shown = list[tuple[int, Mapping[str, str], str]]()

    def user(url: str) -> None:
        back = server.walk(url, deliver=False)
        base = back.partition("/callback")[0]
        doubled = f"{back}&state={asked(back)['state']}"
        strangers = [f"{base}/", f"{base}/done", f"{base}/callback/", base]
        shown.extend(fetch(each) for each in strangers)
        assert {status for status, _, _ in shown} == {404}
        for wrong in (f"{base}/callback", doubled, tampered(back, code="").replace("code=&", "")):
            shown.append(fetch(wrong))
            assert shown[-1][0] == 400, wrong
        shown.append(fetch(back, "POST"))
        assert shown[-1][0] == 501
        shown.append(fetch(back))
        assert (shown[-1][0], shown[-1][1]["Location"]) == (303, "/done")
        shown.append(fetch(back))  # it came already
        assert shown[-1][0] == 400
        shown.append(fetch(f"{base}/done"))
        assert shown[-1][0] == 200 and "close this window" in shown[-1][2]
        for _, headers, body in shown:
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Cache-Control"] == "no-store"
            texts = f"{headers}{body}"
            assert not [v for v in asked(back).values() if v in texts and v != server.url]

    by_page(vault, server, user)
    assert server.counters()["requests"]["authorization_code"] == 1


def test_the_loopback_answers_a_browser_that_holds_a_silent_connection() -> None:
    with Loopback("http://127.0.0.1/callback", Secret("s")) as loopback:
        silent = http.client.HTTPConnection("127.0.0.1", loopback.port, timeout=20)
        silent.connect()
        assert fetch(f"{loopback.url}?state=s&code=c", seconds=5)[0] == 303
        answer = loopback.wait(5)
        assert answer and answer.code == Secret("c")
        silent.close()


def test_a_client_that_goes_away_in_the_middle_is_no_traceback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Loopback("http://127.0.0.1/callback", Secret("s")) as loopback:
        client = socket.create_connection(("127.0.0.1", loopback.port))
        client.send(b"GET /callback?code=c&state=")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        time.sleep(0.1)
        assert fetch(f"{loopback.url}?state=s&code=c")[0] == 303
    assert capfd.readouterr() == ("", "")


def test_nobody_listens_after_the_login(vault: Vault, server: AuthorizationServer) -> None:
    ports = list[int]()
    planned = plan(vault, "smtp", None, given(server))
    with pytest.raises(LoginFailed):
        login(
            vault,
            planned,
            show_page=lambda url, port: ports.append(port),
            show_device=nobody,
            seconds=0.05,
        )
    with pytest.raises(ConnectionRefusedError):
        fetch(f"http://127.0.0.1:{ports[0]}/callback")


def test_the_loopback_is_where_the_application_is_registered() -> None:
    with Loopback("http://localhost", Secret("s")) as loopback:
        assert loopback.url == f"http://localhost:{loopback.port}"
        taken = f"http://127.0.0.1:{loopback.port}/cb"
        assert fetch(f"{loopback.url}/?state=s&code=c")[0] == 303
        with pytest.raises(WrongArgument, match=f"port {loopback.port} cannot"):
            Loopback(taken, Secret("s"))
    with Loopback(taken, Secret("s")) as loopback:
        assert loopback.url == taken


@pytest.mark.parametrize(
    "callback",
    [
        "https://127.0.0.1/callback",
        "http://example.com/callback",
        "http://127.0.0.1.example.com/callback",
        "http://user@127.0.0.1/callback",
        "http://0.0.0.0/callback",
        "http://127.0.0.1/callback?a=b",
        "http://127.0.0.1/callback#a",
        "http://127.0.0.1:99999/callback",
        "http://[x/callback",
        "http://127.0.0.1/call back",
        "http://127.0.0.1/r\u00fcckruf",
        "http://127.0.0.1/done",
        "127.0.0.1",
        "",
    ],
)
def test_an_answer_comes_to_this_machine_alone(callback: str) -> None:
    with pytest.raises(WrongArgument, match="--callback"):
        require_callback(callback)


# What is known before


def planned(
    vault: Vault, provider: str = "smtp", project_id: str | None = None, **more: Any
) -> Plan:
    return plan(vault, provider, project_id, Given(more.pop("fields", {}), **more))


def test_a_preset_gives_all_but_the_user_and_the_application(vault: Vault) -> None:
    found = planned(vault, preset=MICROSOFT)
    tenant = "https://login.microsoftonline.com/organizations/oauth2/v2.0"
    assert {name: value.reveal() for name, value in found.values.items()} == {
        "host": "smtp.office365.com",
        "port": "587",
        "oauth_token_url": f"{tenant}/token",
        "oauth_scope": "https://outlook.office.com/SMTP.Send offline_access",
    }
    assert [field.name for field in found.lacking] == ["user", "oauth_client_id"]
    assert (found.url, found.callback) == (f"{tenant}/authorize", "http://localhost")
    assert planned(vault, preset=MICROSOFT, device=True).url == f"{tenant}/devicecode"
    found = planned(vault, preset=GOOGLE)
    assert found.extra == (("access_type", "offline"), ("prompt", "consent"))
    assert found.callback == "http://127.0.0.1"


def test_a_preset_takes_the_place_of_what_is_stored_but_not_of_what_is_given(vault: Vault) -> None:
    vault.set_fields("smtp", {"host": "old.example.com", "port": "25", "user": "u"})
    mine = {"oauth_scope": Secret("mine")}
    values = planned(vault, preset=GOOGLE, fields=mine).values
    assert [values[name].reveal() for name in ("host", "port", "user", "oauth_scope")] == [
        "smtp.gmail.com",
        "587",
        "u",
        "mine",
    ]


def test_the_service_of_a_stored_account_is_known_by_its_token_url(vault: Vault) -> None:
    first = planned(vault, preset=MICROSOFT, tenant="example.com")
    host = {"host": "relay.example.com"}
    vault.set_fields("smtp", {**{n: v.reveal() for n, v in first.values.items()}, **host})
    again = planned(vault)
    assert again.url == "https://login.microsoftonline.com/example.com/oauth2/v2.0/authorize"
    assert again.callback == "http://localhost"
    assert again.values["host"].reveal() == "relay.example.com"
    assert planned(vault, preset=MICROSOFT).url == again.url  # the tenant is the stored one
    moved = planned(vault, tenant="example.org")
    assert moved.values["host"].reveal() == "relay.example.com"
    assert moved.values["oauth_token_url"].reveal() == again.url.replace(
        "example.com", "example.org"
    ).replace("authorize", "token")


def test_an_account_that_goes_to_another_service_needs_an_application_there(vault: Vault) -> None:
    first = planned(vault, preset=MICROSOFT)
    there = {name: value.reveal() for name, value in first.values.items()}
    more = {"user": "u", "oauth_client_id": "at-microsoft", "oauth_client_secret": "s"}
    vault.set_fields("smtp", there | more)
    moved = planned(vault, preset=GOOGLE)
    assert [field.name for field in moved.lacking] == ["oauth_client_id"] and moved.asks_secret
    assert "oauth_client_secret" not in moved.values
    named = planned(vault, preset=GOOGLE, fields={"oauth_client_id": Secret("at-microsoft")})
    assert named.asks_secret and "oauth_client_secret" not in named.values
    for stays in (planned(vault, preset=MICROSOFT), planned(vault, preset=MICROSOFT, tenant="a")):
        assert stays.values["oauth_client_id"].reveal() == "at-microsoft"
        assert stays.values["oauth_client_secret"].reveal() == "s"


def test_what_the_app_cleared_is_not_known_and_what_it_sealed_itself_is_an_error(
    site: Site, vault: Vault
) -> None:
    vault.set_fields("smtp", {"host": "h", "user": "u", "oauth_scope": "s"})
    change = "UPDATE provider_credentials SET encrypted_value = ? WHERE credential_type = ?"
    site.change(change, "", "oauth_scope")
    fields = {"oauth_token_url": Secret("https://a/t")}
    assert "oauth_scope" not in planned(vault, fields=fields, url="https://a/b").values
    site.change(change, "djExAAAA", "host")
    with pytest.raises(ForeignValue, match="smtp/host"):
        planned(vault, fields=fields, url="https://a/b")
    found = planned(vault, fields={**fields, "host": Secret("new")}, url="https://a/b")
    assert "host" in found.values and "host" not in found.kept


def test_what_a_preset_says_is_said_by_its_service() -> None:
    for preset in PRESETS:
        urls = [preset.token_url, preset.authorization_url, preset.device_url]
        assert all(is_endpoint(url.replace("{tenant}", "a.b")) for url in urls if url)
        assert preset.sources and all(url.startswith("https://") for url in preset.sources)
        assert bool(preset.device_url) != bool(preset.no_device)
        require_callback(preset.callback)
        url = preset.token_url.replace("{tenant}", "a-b.c")
        assert preset_of("smtp", url) == (preset, "a-b.c" if preset.tenant else "")
        assert preset_of("smtp", f"{url}/") is None and preset_of("twilio", url) is None


def test_each_provider_of_the_catalogue_that_has_a_login_page_can_be_logged_in_to(
    vault: Vault,
) -> None:
    found = [known for known in catalogue() if known.grant and known.grant.authorization_url]
    assert len(found) > 2
    for known in found:
        assert known.grant
        url = {known.grant.token_url: Secret("https://a/t")}
        fields = {} if is_endpoint(known.grant.token_url) else url
        planned_one = planned(vault, known.name, fields=fields)
        assert planned_one.url == known.grant.authorization_url
        assert known.grant.client_id in [field.name for field in planned_one.lacking]
        assert not any(field.secret for field in planned_one.lacking)


OPERATORS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "gives out tokens"),
    "no page": ({"fields": {"oauth_token_url": Secret("https://a/t")}}, "--authorization-url URL"),
    "no place for devices": (
        {"fields": {"oauth_token_url": Secret("https://a/t")}, "device": True},
        "--device-url URL",
    ),
    "Google and a device": ({"preset": GOOGLE, "device": True}, "no device log in for mail"),
    "a tenant at Google": ({"preset": GOOGLE, "tenant": "a"}, "--tenant"),
    "a tenant alone": ({"tenant": "a"}, "--tenant"),
    "a tenant that is a path": ({"preset": MICROSOFT, "tenant": "a/b"}, "--tenant"),
    "a page in the clear": ({"preset": MICROSOFT, "url": "http://example.com/a"}, "https://"),
    "a token URL in the clear": (
        {"fields": {"oauth_token_url": Secret("http://example.com/t")}},
        "oauth_token_url: it must be",
    ),
    "a token URL that is none": (
        {"fields": {"oauth_token_url": Secret("https://[x/t")}},
        "oauth_token_url: it must be",
    ),
    "a port that is none": (
        {"fields": {"oauth_token_url": Secret("https://a/t")}, "url": "https://a:65536/auth"},
        "--authorization-url: must be",
    ),
    "a preset for another provider": (
        {"preset": GOOGLE, "provider": "jobadder"},
        "smtp accounts|no user logs in",
    ),
    "an answer for elsewhere": ({"preset": GOOGLE, "callback": "http://a/"}, "--callback"),
    "a provider without a login": ({"provider": "twilio"}, "no user logs in"),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_what_is_missing_or_of_no_use_is_said_before_anybody_logs_in(
    vault: Vault, name: str
) -> None:
    more, words = OPERATORS[name]
    with pytest.raises(WrongArgument, match=words):
        planned(vault, **more)


def test_an_account_of_the_application_itself_needs_no_login(vault: Vault) -> None:
    own = {
        "oauth_client_id": "service",
        "oauth_client_secret": "s",
        "oauth_token_url": "https://a/t",
    }
    for project_id, shown in ((None, "oauth_client_secret'"), (P, f"secret --project {P}'")):
        vault.set_fields("smtp", {"host": "h", "user": "u", **own}, project_id)
        with pytest.raises(WrongArgument, match="logs in by itself") as caught:
            planned(vault, project_id=project_id, url="https://a/b")
        assert shown in str(caught.value.hint)
    assert planned(vault, url="https://a/b", fields={"oauth_client_id": Secret("service")})


def test_a_database_that_cannot_be_written_is_found_before_anybody_logs_in(
    site: Site, vault: Vault, server: AuthorizationServer
) -> None:
    reader = Vault.open(site.database, key_store=vault.keys.store, read_only=True)
    with reader, pytest.raises(StorageError):
        by_page(reader, server, nobody)


def test_without_the_library_the_error_names_the_extra(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "oauthlib.oauth2", None)
    with pytest.raises(LibraryMissing, match="oauthlib") as caught:
        planned(vault, preset=MICROSOFT)
    assert caught.value.hint == "pip install 'outreach_vault[oauth]'"


def test_what_a_store_does_first_is_done_only_where_it_stores(site: Site) -> None:
    done = list[bool]()
    with site.open() as fresh:  # the key is not proved yet: the transaction begins twice
        at = Place(None, "smtp", "host")
        fresh.store(
            [(at, Secret("h"))], before=lambda: done.append(fresh.keys._sealing is not None)
        )
    assert done == [True]
