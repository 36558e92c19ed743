"""
The real peers of the tests of OAuth accounts do what those tests take for granted: the
authorisation server with each of its switches, and the SMTP server that takes its tokens.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import http.server
import json
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from helpers import TESTS
from helpers.oauth_smtp import Attempt, OAuthSmtpServer
from helpers.oidc import Answer, AuthorizationServer, Client

VERIFIER = "v" * 64
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode()
CALLBACK = "http://127.0.0.1:5/callback"
USER = "ada@example.com"


@pytest.fixture
def server(authorization_server: AuthorizationServer) -> AuthorizationServer:
    return authorization_server


def login_url(
    server: AuthorizationServer, client: Client, callback: str = CALLBACK, **more: str
) -> str:
    asked = {
        "client_id": client.id,
        "response_type": "code",
        "redirect_uri": callback,
        "scope": "smtp",
        "state": "a state",
        "code_challenge": CHALLENGE.rstrip("="),
        "code_challenge_method": "S256",
    }
    return f"{server.authorization_url}?{urlencode(asked | more)}"


def told(address: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}


def exchange(
    server: AuthorizationServer, client: Client, code: str, verifier: str = VERIFIER
) -> Answer:
    return server.ask(
        client,
        grant_type="authorization_code",
        code=code,
        redirect_uri=CALLBACK,
        code_verifier=verifier,
    )


def invalid_grant(answer: Answer) -> bool:
    return (answer.status, answer.body["error"]) == (400, "invalid_grant")


# Refresh tokens.


@pytest.mark.parametrize("name", ["native", "basic", "post", "device"])
def test_a_refresh_token_is_replaced_and_its_second_use_revokes_the_family(
    server: AuthorizationServer, name: str
) -> None:
    other, made = server.grant(name), server.grant(name)
    first = server.refresh(made.client, made.refresh_token)
    assert first.status == 200 and server.is_live(first.body["access_token"])
    assert first.body["refresh_token"] != made.refresh_token
    assert invalid_grant(server.refresh(made.client, made.refresh_token))
    assert invalid_grant(server.refresh(made.client, first.body["refresh_token"]))
    assert not server.is_live(first.body["access_token"])
    assert not server.is_live(made.access_token)
    assert server.refresh(other.client, other.refresh_token).status == 200
    counted = server.counters()
    assert counted["requests"] == {"refresh_token": 4}
    assert counted["successes"] == {"refresh_token": 2}
    assert counted["errors"] == {"invalid_grant": 2}
    assert (counted["reuses"], counted["revoked_families"]) == (1, 1)


def test_of_many_at_once_with_one_refresh_token_one_gets_an_answer(
    server: AuthorizationServer,
) -> None:
    made = server.grant()
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: server.refresh(made.client, made.refresh_token), range(8))
        )
    assert sorted(answer.status for answer in answers) == [200] + [400] * 7
    assert server.counters()["reuses"] == 7


def test_a_client_with_a_secret_is_refused_without_it(server: AuthorizationServer) -> None:
    made = server.grant("basic")
    for wrong in (
        made.client._replace(secret="wrong"),
        made.client._replace(auth="none"),
        made.client._replace(auth="client_secret_post"),  # the right one, in the wrong place
    ):
        answer = server.refresh(wrong, made.refresh_token)
        assert (answer.status, answer.body["error"]) == (401, "invalid_client")
    assert server.refresh(made.client, made.refresh_token).status == 200


def test_a_refresh_token_of_another_client_and_a_scope_that_was_not_granted_consume_nothing(
    server: AuthorizationServer,
) -> None:
    made = server.grant()
    assert invalid_grant(server.refresh(server.client("basic"), made.refresh_token))
    answer = server.refresh(made.client, made.refresh_token, scope="openid")
    assert (answer.status, answer.body["error"]) == (400, "invalid_scope")
    assert server.refresh(made.client, made.refresh_token).status == 200


def test_lifetimes_change_while_it_runs(server: AuthorizationServer) -> None:
    made = server.grant()
    assert made.expires_in == 3600
    server.lifetime(access=1, refresh=1)
    short = server.refresh(made.client, made.refresh_token).body
    assert short["expires_in"] == 1
    assert server.is_live(made.access_token)
    time.sleep(1.1)
    assert not server.is_live(short["access_token"])
    assert invalid_grant(server.refresh(made.client, short["refresh_token"]))


@pytest.mark.peer
def test_lifetimes_can_be_given_at_the_start() -> None:
    with AuthorizationServer(access_seconds=7, token_chars=2000) as server:
        made = server.grant()
    assert (made.expires_in, len(made.access_token)) == (7, 2000)


def test_the_user_can_take_back_what_was_granted(server: AuthorizationServer) -> None:
    made = server.grant()
    again = server.refresh(made.client, made.refresh_token).body
    server.revoke(made.access_token)
    assert not server.is_live(made.access_token)
    assert server.is_live(again["access_token"])
    server.revoke(again["refresh_token"])
    assert not server.is_live(again["access_token"])
    assert invalid_grant(server.refresh(made.client, again["refresh_token"]))


def test_client_credentials_give_a_token_of_no_user_and_nothing_to_refresh(
    server: AuthorizationServer,
) -> None:
    answer = server.ask(server.client("service"), grant_type="client_credentials", scope="smtp")
    assert answer.status == 200 and "refresh_token" not in answer.body
    found = server.token(answer.body["access_token"])
    assert (found["live"], found["account"], found["scope"]) == (True, None, "smtp")


# Faults.


def raw(server: AuthorizationServer, token: str, seconds: float = 5) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=seconds)
    form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": "native"}
    headers = {"content-type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/token", urlencode(form), headers)
    return connection.getresponse()


@pytest.mark.parametrize(
    ("kind", "more", "status", "content_type"),
    [
        ("status", {}, 500, "application/json"),
        ("status", {"status": 429, "retry_after": 3}, 429, "application/json"),
        ("error", {"error": "temporarily_unavailable"}, 400, "application/json"),
        ("redirect", {"to": "http://127.0.0.1:5/elsewhere"}, 302, None),
        ("html", {}, 200, "text/html"),
        ("no_token", {}, 200, "application/json"),
    ],
)
def test_a_fault_before_the_token_is_used_consumes_nothing(
    server: AuthorizationServer,
    kind: str,
    more: dict[str, object],
    status: int,
    content_type: str | None,
) -> None:
    made = server.grant()
    server.fault(kind, **more)
    answer = raw(server, made.refresh_token)
    body = answer.read()
    assert (answer.status, answer.headers["content-type"]) == (status, content_type)
    assert answer.headers["location"] == more.get("to")
    assert answer.headers["retry-after"] == ("3" if "retry_after" in more else None)
    assert b"access_token" not in body
    if content_type == "application/json":
        assert json.loads(body).get("error") == more.get("error")
    assert server.counters()["faults"] == {kind: 1}
    assert server.counters()["successes"] == {}
    assert server.refresh(made.client, made.refresh_token).status == 200


def test_a_hanging_server_never_answers_and_consumes_nothing(server: AuthorizationServer) -> None:
    made = server.grant()
    server.fault("hang")
    with pytest.raises(TimeoutError):
        raw(server, made.refresh_token, 0.5)
    assert server.refresh(made.client, made.refresh_token).status == 200


def test_an_endless_answer_does_not_end(server: AuthorizationServer) -> None:
    made = server.grant()
    server.fault("huge")
    with raw(server, made.refresh_token) as answer:
        assert len(answer.read(20_000_000)) == 20_000_000
    assert server.refresh(made.client, made.refresh_token).status == 200


def test_a_delayed_answer_comes_late_and_is_right(server: AuthorizationServer) -> None:
    made = server.grant()
    server.fault("delay", seconds=0.7)
    began = time.monotonic()
    late = server.refresh(made.client, made.refresh_token)
    assert late.status == 200 and time.monotonic() - began >= 0.7
    assert server.is_live(late.body["access_token"])


def test_a_lost_answer_has_used_the_token(server: AuthorizationServer) -> None:
    made = server.grant()
    server.fault("lost")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        raw(server, made.refresh_token)
    assert server.counters()["successes"] == {"refresh_token": 1}
    assert invalid_grant(server.refresh(made.client, made.refresh_token))
    assert server.counters()["reuses"] == 1


@pytest.mark.parametrize(("kind", "again"), [("same_refresh", True), ("no_refresh", False)])
def test_a_provider_that_keeps_the_refresh_token(
    server: AuthorizationServer, kind: str, again: bool
) -> None:
    made = server.grant()
    server.fault(kind, times=None)
    for _ in range(3):
        body = server.refresh(made.client, made.refresh_token).body
        assert server.is_live(body["access_token"])
        assert body.get("refresh_token") == (made.refresh_token if again else None)
    assert server.counters()["reuses"] == 0


def test_faults_wait_for_their_turn_and_their_kind_of_request(server: AuthorizationServer) -> None:
    made, service = server.grant(), server.client("service")
    server.fault("status", times=2, status=500, grant_type="refresh_token")
    server.fault("status", times=1, status=429)
    assert server.ask(service, grant_type="client_credentials").status == 429
    statuses = [server.refresh(made.client, made.refresh_token).status for _ in range(3)]
    assert statuses == [500, 500, 200]
    server.fault("status", times=None)
    server.fault("status", path="/device/auth", status=503)
    assert [server.ask(service, grant_type="client_credentials").status for _ in "abc"] == [500] * 3
    assert server.ask(server.client("device"), "/device/auth", scope="smtp").status == 503
    server.mend()
    assert server.ask(service, grant_type="client_credentials").status == 200


def test_a_fault_that_there_is_not_is_said(server: AuthorizationServer) -> None:
    with pytest.raises(AssertionError, match="no fault flood"):
        server.fault("flood")


# A user who logs in.


class Listener:
    """A client's: hears one call at a port of its own."""

    def __enter__(self) -> Listener:
        heard = self.heard = list[str]()

        class Hear(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                heard.append(self.path)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Hear)
        self.callback = f"http://127.0.0.1:{self._server.server_port}/callback"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.mark.parametrize("name", ["native", "basic", "post"])
def test_a_login_comes_back_to_any_port_of_the_loopback(
    server: AuthorizationServer, name: str
) -> None:
    client = server.client(name)
    with Listener() as one, Listener() as other:
        for listener in (one, other):
            back = server.walk(login_url(server, client, listener.callback))
            assert back.startswith(listener.callback)
            assert [told(path) for path in listener.heard] == [told(back)]
            assert told(back)["state"] == "a state"
            assert told(back)["iss"] == server.url
            answer = server.ask(
                client,
                grant_type="authorization_code",
                code=told(back)["code"],
                redirect_uri=listener.callback,
                code_verifier=VERIFIER,
            )
            assert answer.status == 200
            assert server.is_live(answer.body["access_token"], USER)
            assert server.refresh(client, answer.body["refresh_token"]).status == 200


@pytest.mark.parametrize(
    "callback", ["http://127.0.0.1:5/elsewhere", "http://localhost:5/callback", "http://e.org/"]
)
def test_a_login_does_not_go_elsewhere(server: AuthorizationServer, callback: str) -> None:
    with pytest.raises(AssertionError, match="redirect_uri"):
        server.walk(login_url(server, server.client(), callback))


def test_the_user_who_logs_in_can_be_named(server: AuthorizationServer) -> None:
    client = server.client()

    def who(**more: str) -> object:
        code = told(server.walk(login_url(server, client, **more), deliver=False))["code"]
        return server.token(exchange(server, client, code).body["access_token"])["account"]

    assert who(login_hint="bob@example.com") == "bob@example.com"
    server.set(account="eve@example.com")
    assert who() == "eve@example.com"


def test_a_user_who_says_no_is_told_to_the_client(server: AuthorizationServer) -> None:
    server.set(refuse=True)
    back = told(server.walk(login_url(server, server.client()), deliver=False))
    assert (back["error"], back["state"]) == ("access_denied", "a state")
    assert "code" not in back


@pytest.mark.parametrize("name", ["native", "basic"])
def test_a_login_without_pkce_is_refused(server: AuthorizationServer, name: str) -> None:
    url = login_url(server, server.client(name), code_challenge="", code_challenge_method="")
    back = told(server.walk(url, deliver=False))
    assert (back["error"], "code" in back) == ("invalid_request", False)


def test_a_code_is_worth_nothing_without_the_verifier(server: AuthorizationServer) -> None:
    client = server.client()
    code = told(server.walk(login_url(server, client), deliver=False))["code"]
    assert invalid_grant(exchange(server, client, code, "w" * 64))


def test_a_second_use_of_a_code_is_refused_and_revokes_what_the_first_gave(
    server: AuthorizationServer,
) -> None:
    client = server.client()
    code = told(server.walk(login_url(server, client), deliver=False))["code"]
    first = exchange(server, client, code)
    assert first.status == 200
    assert invalid_grant(exchange(server, client, code))
    assert not server.is_live(first.body["access_token"])
    assert invalid_grant(server.refresh(client, first.body["refresh_token"]))


def test_scopes_that_the_server_does_not_know_are_left_out(server: AuthorizationServer) -> None:
    client = server.client()
    url = login_url(server, client, scope="openid offline_access smtp unknown")
    code = told(server.walk(url, deliver=False))["code"]
    answer = exchange(server, client, code).body
    # offline_access is for those who ask with prompt=consent; a refresh token comes without.
    assert answer["scope"] == "openid smtp" and "refresh_token" in answer
    url = login_url(server, client, scope="offline_access smtp", prompt="consent")
    code = told(server.walk(url, deliver=False))["code"]
    assert exchange(server, client, code).body["scope"] == "offline_access smtp"


# A device.


def test_a_device_waits_for_its_user(server: AuthorizationServer) -> None:
    client = server.client("device")
    server.set(interval=0.3)
    asked = server.ask(client, "/device/auth", scope="smtp").body
    assert asked["interval"] == 0.3
    assert asked["verification_uri"].startswith(server.url)

    def poll() -> Answer:
        time.sleep(0.35)
        return server.poll_device(client, asked["device_code"])

    assert poll().body["error"] == "authorization_pending"
    assert server.poll_device(client, asked["device_code"]).body["error"] == "slow_down"
    assert poll().body["error"] == "authorization_pending"
    server.approve_device(asked["user_code"], "bob@example.com")
    answer = poll()
    assert answer.status == 200
    assert server.is_live(answer.body["access_token"], "bob@example.com")
    assert server.refresh(client, answer.body["refresh_token"]).status == 200
    assert invalid_grant(poll())


def test_a_device_hears_that_its_user_said_no(server: AuthorizationServer) -> None:
    client = server.client("device")
    asked = server.ask(client, "/device/auth", scope="smtp").body
    server.deny_device(asked["user_code"].lower())
    answer = server.poll_device(client, asked["device_code"])
    assert (answer.status, answer.body["error"]) == (400, "access_denied")
    for again in (server.approve_device, server.deny_device):
        with pytest.raises(AssertionError, match="no device waits"):
            again(asked["user_code"])


# The server itself.


def test_nothing_is_left_when_it_ends(server: AuthorizationServer) -> None:
    address = urlsplit(server.url)
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname, address.port))
    with pytest.raises(urllib.error.URLError):
        server.counters()


STARTS_ONE = """
import sys
sys.path.insert(0, sys.argv[1])
from helpers.oidc import AuthorizationServer
with AuthorizationServer() as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


def test_nothing_is_left_when_whoever_started_it_is_killed(server: AuthorizationServer) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_ONE, str(TESTS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        assert starter.stdout is not None
        address = urlsplit(starter.stdout.readline().strip())
        socket.create_connection((address.hostname, address.port)).close()
        starter.kill()
    deadline = time.monotonic() + 30
    with pytest.raises(ConnectionRefusedError):
        while time.monotonic() < deadline:
            socket.create_connection((address.hostname, address.port)).close()
            time.sleep(0.05)


# SMTP.


@pytest.fixture
def smtp(server: AuthorizationServer, tmp_path: Path) -> Iterator[OAuthSmtpServer]:
    with OAuthSmtpServer(tmp_path, server.accepts) as running:
        yield running


def connect(smtp: OAuthSmtpServer) -> smtplib.SMTP:
    client = smtplib.SMTP(smtp.host, smtp.port, timeout=60)
    client.starttls(context=ssl.create_default_context(cafile=smtp.cafile))
    client.ehlo()
    return client


def xoauth2(user: str, token: str) -> Callable[..., str]:
    """For smtplib: what the client says at first, and then to each challenge."""
    first = f"user={user}\x01auth=Bearer {token}\x01\x01"
    return lambda challenge=None: "" if challenge else first


def oauthbearer(user: str, token: str) -> Callable[..., str]:
    first = f"n,a={user},\x01host=localhost\x01port=587\x01auth=Bearer {token}\x01\x01"
    return lambda challenge=None: "\x01" if challenge else first


BOTH = pytest.mark.parametrize(
    ("mechanism", "say", "last"), [("XOAUTH2", xoauth2, b""), ("OAUTHBEARER", oauthbearer, b"\x01")]
)


@BOTH
@pytest.mark.parametrize("at_once", [True, False])
def test_a_live_token_logs_its_user_in(
    server: AuthorizationServer,
    smtp: OAuthSmtpServer,
    mechanism: str,
    say: Callable[..., Callable[..., str]],
    last: bytes,
    at_once: bool,
) -> None:
    smtp.mechanisms = (mechanism,)
    server.set(token_chars=2500)
    token = server.grant().access_token
    with connect(smtp) as client:
        assert client.esmtp_features["auth"].split() == [mechanism]
        code, _ = client.auth(mechanism, say(USER, token), initial_response_ok=at_once)
        assert code == 235
        client.sendmail(USER, ["bob@example.com"], b"Subject: Hello\r\n\r\nHello")
    assert [(sent.account, sent.recipients) for sent in smtp.accepted] == [
        (USER, ("bob@example.com",))
    ]
    assert smtp.logins == [Attempt(mechanism, USER, True)]


@BOTH
@pytest.mark.parametrize("wrong", ["dead", "of another", "a refresh token"])
def test_a_token_that_is_not_good_for_the_user_is_refused_with_a_reason(
    server: AuthorizationServer,
    smtp: OAuthSmtpServer,
    mechanism: str,
    say: Callable[..., Callable[..., str]],
    last: bytes,
    wrong: str,
) -> None:
    smtp.mechanisms = (mechanism,)
    made = server.grant(account="bob@example.com" if wrong == "of another" else USER)
    token = made.refresh_token if wrong == "a refresh token" else made.access_token
    if wrong == "dead":
        server.revoke(made.access_token)
    reasons = []

    def answer(challenge: bytes | None = None) -> str:
        if challenge:
            reasons.append(json.loads(challenge)["status"])
        return say(USER, token)(challenge)

    with connect(smtp) as client:
        with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            client.auth(mechanism, answer)
        assert refused.value.smtp_code == 535
        with pytest.raises(smtplib.SMTPSenderRefused):
            client.sendmail(USER, ["bob@example.com"], b"Subject: Hello\r\n\r\nHello")
    assert reasons == ["400" if mechanism == "XOAUTH2" else "invalid_token"]
    assert smtp.logins == [Attempt(mechanism, USER, False, last)]
    assert smtp.accepted == []


def test_a_client_may_give_up_or_talk_nonsense(smtp: OAuthSmtpServer) -> None:
    first = base64.b64encode(xoauth2(USER, "dead")().encode()).decode()
    with connect(smtp) as client:
        assert client.docmd("AUTH", "XOAUTH2 =")[0] == 501
        assert client.docmd("AUTH", "XOAUTH2 YQ==")[0] == 501
        assert client.docmd("AUTH", f"XOAUTH2 {first}")[0] == 334
        assert client.docmd("*")[0] == 501
        assert client.docmd("AUTH", "OAUTHBEARER YQ==")[0] == 504
    assert smtp.logins == [Attempt("XOAUTH2", USER, False)]


def test_a_server_may_still_take_passwords(tmp_path: Path) -> None:
    with (
        OAuthSmtpServer(
            tmp_path,
            lambda user, token: False,
            mechanisms=("XOAUTH2", "PLAIN"),
            accounts={USER: "a password"},
        ) as smtp,
        connect(smtp) as client,
    ):
        assert client.esmtp_features["auth"].split() == ["PLAIN", "XOAUTH2"]
        client.login(USER, "a password")
    assert smtp.logins == [Attempt("PLAIN", USER, True)]


def test_no_token_is_taken_before_tls(smtp: OAuthSmtpServer) -> None:
    with smtplib.SMTP(smtp.host, smtp.port, timeout=60) as client:
        client.ehlo()
        assert "auth" not in client.esmtp_features
        assert client.docmd("AUTH", "XOAUTH2 YQ==")[0] in (530, 538)
