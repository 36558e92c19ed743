"""
`vault check` against real servers on this machine: what each answer means, who is asked, and that
no credential comes back.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import http.client
import http.server
import json
import logging
import re
import secrets
import smtplib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from helpers.commands import failed, run
from helpers.effort import THOROUGH, effort
from helpers.forms import forms
from helpers.site import Engine, Figures, Site, new_site
from hypothesis import example, given, settings
from hypothesis import strategies as st

from outreach_vault import Secret
from outreach_vault.masking import silent
from outreach_vault.network import Line, Network
from outreach_vault.operations import checks
from outreach_vault.operations.checks import Verdict, check
from outreach_vault.providers import catalogue
from outreach_vault.values.bundle import AnyBundle, Bundle, SmtpBundle
from outreach_vault.values.credential import Credential
from outreach_vault.values.rows import Row

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from smtp_server import SmtpServer, _builder, _name

pytestmark = pytest.mark.sweep(3)

SECRET = secrets.token_hex(20)
SID = "AC" + secrets.token_hex(16)
ACCOUNTS = {
    "twilio": {"account_sid": SID, "auth_token": SECRET, "phone_number": "+15550100000"},
    "elevenlabs": {"api_key": SECRET, "screening_agent_id": "agent", "phone_number_id": "number"},
    "anthropic": {"api_key": SECRET},
    "sendgrid": {"api_key": SECRET},
    "openai": {"api_key": SECRET, "organization": "org-1", "project": "proj-1"},
}
BASIC = "Basic " + base64.b64encode(f"{SID}:{SECRET}".encode()).decode()
CALLS: dict[str, tuple[str, str, dict[str, str]]] = {
    "twilio": ("api.twilio.com", f"/2010-04-01/Accounts/{SID}.json", {"Authorization": BASIC}),
    "elevenlabs": ("api.elevenlabs.io", "/v1/user", {"xi-api-key": SECRET}),
    "anthropic": (
        "api.anthropic.com",
        "/v1/models?limit=1",
        {"x-api-key": SECRET, "anthropic-version": "2023-06-01"},
    ),
    "sendgrid": ("api.sendgrid.com", "/v3/scopes", {"Authorization": f"Bearer {SECRET}"}),
    "openai": (
        "api.openai.com",
        "/v1/models",
        {
            "Authorization": f"Bearer {SECRET}",
            "OpenAI-Organization": "org-1",
            "OpenAI-Project": "proj-1",
        },
    ),
}
# As the providers word them, in their own shapes.
NO: list[tuple[str, int, Any, str]] = [
    (
        "twilio",
        401,
        {
            "code": 20003,
            "detail": "AuthToken was incorrect.",
            "message": "Authenticate",
            "status": 401,
        },
        "AuthToken was incorrect.",
    ),
    (
        "twilio",
        404,
        {"code": 20404, "message": f"/Accounts/{SID}.json was not found", "status": 404},
        "was not found",
    ),
    (
        "elevenlabs",
        401,
        {"detail": {"status": "invalid_api_key", "message": "Invalid API key"}},
        "Invalid API key",
    ),
    (
        "anthropic",
        401,
        {
            "type": "error",
            "error": {"type": "authentication_error", "message": "invalid x-api-key"},
        },
        "invalid x-api-key",
    ),
    (
        "anthropic",
        403,
        {"type": "error", "error": {"type": "permission_error", "message": "not allowed"}},
        "permission_error",
    ),
    (
        "sendgrid",
        401,
        {"errors": [{"message": "the grant is invalid, expired, or revoked", "field": None}]},
        "expired, or revoked",
    ),
    (
        "sendgrid",
        403,
        {"errors": [{"message": "access forbidden", "field": None}]},
        "access forbidden",
    ),
    (
        "openai",
        401,
        {"error": {"message": "Incorrect API key provided: sk-a***b.", "type": "x", "param": None}},
        "Incorrect API key provided",
    ),
]


def bundle(provider: str, **changed: str) -> Bundle:
    fields = ACCOUNTS.get(provider, {}) | changed
    found = {
        name: Credential(Row("row", None, provider, name, "", None, None, "", ""), Secret(value))
        for name, value in fields.items()
    }
    return (SmtpBundle if provider == "smtp" else AnyBundle)(provider, None, found)


# the servers


class Tls:
    """An authority, and for each of two hosts' names a server's side that it certifies."""

    def __init__(self, folder: Path) -> None:
        self._key, self._folder = ec.generate_private_key(ec.SECP256R1()), folder
        name = _name("invented authority")
        builder = _builder(name, name, self._key, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        usage = x509.KeyUsage(
            False,
            False,
            False,
            False,
            False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        self._authority = builder.add_extension(usage, critical=True).sign(
            self._key, hashes.SHA256()
        )
        self.client = ssl.create_default_context(
            cadata=self._authority.public_bytes(serialization.Encoding.PEM).decode()
        )

    def server(self, *names: str) -> ssl.SSLContext:
        key, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
        chain = self._folder / f"{names[0]}.pem"
        certificate = (
            _builder(_name(names[0]), self._authority.subject, key, self._key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain.write_bytes(private + certificate.public_bytes(pem))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context


Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Https

    def handle(self) -> None:
        try:
            self.connection.do_handshake()
            super().handle()
        except OSError:  # the client has gone, which is what some tests are about
            pass

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        self.server.requests.append((self.command, self.path, self.headers.items()))
        return parsed

    def do_GET(self) -> None:
        self.server.answer(self)

    def log_message(self, *_: object) -> None:
        pass


class Https(http.server.ThreadingHTTPServer):
    """
    Over TLS at a free port; it answers with what `answer` is, and keeps each request that it could
    read.
    """

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )
        self.requests: list[tuple[str, str, list[tuple[str, str]]]] = []
        self.answer: Answer = says(200, {})
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Https:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()


def says(status: int, body: Any, reason: str | None = None, **headers: str) -> Answer:
    def answer(handler: Handler) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status, reason)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def writes(data: bytes) -> Answer:
    def answer(handler: Handler) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return answer


def drips(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    for _ in range(200):
        if not handler.server.ended.wait(0.02):
            handler.wfile.write(b" ")


def waits(handler: Handler) -> None:
    handler.server.ended.wait(20)


def pours(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while not handler.server.ended.is_set():
        handler.wfile.write(b"x" * 65536)


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def https(tls: Tls) -> Iterator[Https]:
    with Https(tls.server(*(host for host, *_ in CALLS.values()))) as running:
        yield running


@pytest.fixture
def other(tls: Tls) -> Iterator[Https]:
    with Https(tls.server("other.example.com")) as running:
        yield running


@pytest.fixture
def network(tls: Tls, https: Https) -> Network:
    return Network(tls.client, lambda host: ("127.0.0.1", https.server_address[1]), 10)


class Mail:
    """
    A mail server that says what a test lets it say, to every verb its reply; TLS from the start
    where it has a context.

    Attributes:
        seen: each line that it was sent.
    """

    def __init__(
        self,
        greeting: bytes,
        replies: dict[bytes, Any] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.seen: list[bytes] = []
        self._greeting, self._replies, self._context = greeting, replies or {}, context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._ended = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            connection, _ = self._socket.accept()
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rwb", buffering=0) as file:
                file.write(self._greeting)
                if not self._greeting:
                    self._ended.wait(20)
                while line := file.readline():
                    self.seen.append(line)
                    reply = self._replies.get(line.split()[0].upper(), b"500 what?")
                    said = reply(line) if callable(reply) else reply
                    if said is None:
                        return
                    file.write(said + b"\r\n")
        except OSError:
            pass

    def __enter__(self) -> Mail:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._socket.close()


EHLO = {b"EHLO": b"250-localhost\r\n250 AUTH PLAIN", b"QUIT": b"221 bye"}


class Reached:
    """Which names were looked up; and what stands for port 465, at which no test can listen."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.port_465 = 465


@pytest.fixture(autouse=True)
def reached(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reached]:
    """No test of this file looks up any other host than this machine, whatever it is about."""
    found, connect, look_up = Reached(), socket.create_connection, socket.getaddrinfo

    def connecting(address: tuple[str, int], *arguments: Any, **options: Any) -> socket.socket:
        host, port = address
        return connect((host, found.port_465 if port == 465 else port), *arguments, **options)

    def looking_up(host: Any, *arguments: Any, **options: Any) -> Any:
        found.names.append(host)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "create_connection", connecting)
    monkeypatch.setattr(socket, "getaddrinfo", looking_up)
    yield found
    assert set(found.names) <= {"127.0.0.1", "localhost", "a..b", ".localhost", "x" * 64, "a\0b"}


def mail_verdict(
    tls: Tls, reached: Reached, replies: dict[bytes, Any], seconds: float = 5, **changed: str
) -> tuple[Verdict, list[bytes]]:
    """What comes of a login at a server with these replies, over TLS from the start."""
    with Mail(b"220 localhost\r\n", EHLO | replies, tls.server("localhost")) as server:
        reached.port_465 = server.port
        account = {
            "host": "localhost",
            "port": "465",
            "user": "me@example.com",
            "password": SECRET,
        } | changed
        return check(
            bundle("smtp", **account), network=Network(tls.client, seconds=seconds)
        ), server.seen


def require_silent(text: str | None, *values: str) -> None:
    """One printable line, cut short, without the values in any spelling."""
    assert text is not None and text and text.isprintable() and len(text) <= 200 + len("...")
    for value in values:
        assert not [form for form in forms(value.encode()) if form in text.encode()], text


# providers with an API


@pytest.mark.parametrize("provider", CALLS)
def test_valid_after_exactly_one_request_of_the_right_kind_to_the_right_host(
    tls: Tls, https: Https, reached: Reached, provider: str
) -> None:
    asked: list[str] = []
    host, path, headers = CALLS[provider]

    def address(name: str) -> tuple[str, int]:
        asked.append(name)
        return "127.0.0.1", https.server_address[1]

    assert check(bundle(provider), network=Network(tls.client, address)) == Verdict("valid")
    ((method, sent_path, sent),) = https.requests
    assert (method, sent_path, asked, reached.names) == ("GET", path, [host], ["127.0.0.1"])
    assert sorted(sent) == sorted(
        {
            "Host": host,
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            **headers,
        }.items()
    )


def test_openai_sends_no_header_for_what_is_not_stored(https: Https, network: Network) -> None:
    account = AnyBundle("openai", None, {"api_key": bundle("openai")["api_key"]})
    assert check(account, network=network).outcome == "valid"
    assert not [name for name, _ in https.requests[0][2] if name.startswith("OpenAI-")]


def test_every_provider_that_can_be_checked_is_tried_here() -> None:
    assert set(checks._CHECKS) == {"smtp", *CALLS}
    with_grants = {known.name for known in catalogue() if known.grant}
    assert checks.checkable() == sorted({"smtp", *CALLS, *with_grants})


@pytest.mark.parametrize(("provider", "status", "body", "words"), NO)
def test_refused_in_the_providers_words(
    https: Https, network: Network, provider: str, status: int, body: Any, words: str
) -> None:
    https.answer = says(status, body)
    verdict = check(bundle(provider), network=network)
    assert (
        verdict.outcome == "refused"
        and verdict.reason
        and verdict.reason.startswith(f"{status} ")
        and words in verdict.reason
    )
    assert len(https.requests) == 1


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        (
            "elevenlabs",
            {
                "detail": {
                    "status": "missing_permissions",
                    "message": "The API key is missing the permission user_read",
                }
            },
        ),
        (
            "openai",
            {
                "error": {
                    "message": (
                        "You have insufficient permissions for this operation. Missing scopes: "
                        "api.model.read."
                    )
                }
            },
        ),
    ],
)
def test_a_key_without_the_permission_to_be_asked_about_is_valid(
    https: Https, network: Network, provider: str, body: Any
) -> None:
    """It is known, and restricted to what it is meant for."""
    https.answer = says(401, body)
    assert check(bundle(provider), network=network) == Verdict("valid")
    assert check(bundle("anthropic"), network=network).outcome == "refused"


@pytest.mark.parametrize("status", [408, 429, 500, 503, 529])
@pytest.mark.parametrize("provider", ["twilio", "elevenlabs"])
def test_unreachable_where_the_answer_is_neither_yes_nor_no(
    https: Https, network: Network, provider: str, status: int
) -> None:
    https.answer = says(status, {"message": "come back later"})
    verdict = check(bundle(provider), network=network)
    assert (
        verdict.outcome == "unreachable"
        and verdict.reason
        and str(status) in verdict.reason
        and "come back later" in verdict.reason
    )


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(
    https: Https, other: Https, network: Network, status: int
) -> None:
    https.answer = says(status, {}, Location=f"https://localhost:{other.server_address[1]}/")
    verdict = check(bundle("anthropic"), network=network)
    assert verdict.outcome == "unreachable" and verdict.reason and "redirect" in verdict.reason
    assert (len(https.requests), other.requests) == (1, [])


def under_another_certificate(tls: Tls, server: Https, fault: str, provider: str) -> Verdict:
    context = tls.client if fault == "of another host" else ssl.create_default_context()
    return check(
        bundle(provider),
        network=Network(context, lambda host: ("127.0.0.1", server.server_address[1]), 5),
    )


@pytest.mark.parametrize("provider", CALLS)
@pytest.mark.parametrize("fault", ["of another host", "of another authority"])
def test_nothing_is_sent_under_another_certificate(
    tls: Tls, https: Https, other: Https, provider: str, fault: str
) -> None:
    server = other if fault == "of another host" else https
    assert under_another_certificate(tls, server, fault, provider).outcome != "valid"
    assert server.requests == []


@pytest.mark.parametrize("fault", ["of another host", "of another authority"])
def test_another_certificate_is_the_networks_fault_and_named(
    tls: Tls, https: Https, other: Https, fault: str
) -> None:
    """The library's error for it is a ValueError too; it says nothing about the credentials."""
    verdict = under_another_certificate(
        tls, other if fault == "of another host" else https, fault, "twilio"
    )
    assert verdict.outcome == "unreachable" and verdict.reason and "certificate" in verdict.reason


ODD: dict[str, tuple[Answer, str]] = {
    "a huge body": (says(401, {"error": "x" * 5_000_000}), "refused"),
    "a huge body after yes": (says(200, {"data": "x" * 5_000_000}), "valid"),
    "nested deeper than Python goes": (says(401, b"[" * 60_000), "refused"),
    "nested as deep as JSON goes": (says(401, b'{"error":' * 900 + b'"x"' + b"}" * 900), "refused"),
    "nested, and yes": (says(200, b"[" * 60_000), "valid"),
    "a body without end": (pours, "valid"),
    "a page": (says(403, b"<html>no</html>"), "refused"),
    "no text": (says(401, b"\xff\xfe\x00"), "refused"),
    "half a surrogate pair": (says(401, b'{"error": "a\\ud800b"}'), "refused"),
    "a number of many digits": (says(401, b"1" * 10_000), "refused"),
    "nothing": (writes(b""), "unreachable"),
    "garbage": (writes(b"\x00\xff garbage\r\n\r\n"), "unreachable"),
    "less than was announced": (
        writes(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
        "valid",
    ),
    "a hint, then no": (
        writes(
            b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 401 Unauthorized\r\nContent-Length: "
            b"0\r\n\r\n"
        ),
        "refused or unreachable",
    ),
    "lines without end": (
        writes(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n"),
        "unreachable",
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_answer_is_no_crash_and_never_a_yes_that_was_not_said(
    https: Https, network: Network, what: str
) -> None:
    https.answer, outcome = ODD[what]
    verdict = check(bundle("anthropic"), network=network)
    assert verdict.outcome in outcome.split(" or ")
    if verdict.reason:
        require_silent(verdict.reason, SECRET)


@pytest.mark.parametrize("what", ["a slow answer", "no answer", "no handshake"])
def test_the_time_limit_ends_it(tls: Tls, https: Https, what: str) -> None:
    https.answer = drips if what == "a slow answer" else waits
    with Mail(b"") as silent:
        port = silent.port if what == "no handshake" else https.server_address[1]
        begun = time.monotonic()
        verdict = check(
            bundle("anthropic"), network=Network(tls.client, lambda host: ("127.0.0.1", port), 0.5)
        )
    assert verdict == Verdict("unreachable", "no answer within 0.5 seconds")
    assert time.monotonic() - begun < 3


class Endless:
    """
    A server over TLS that never comes to an end, or sends a piece now and then where it is slow.

    Attributes:
        sent: bytes that it could send, of which the client has read all but what lies in the
        system's buffers.
    """

    def __init__(
        self, context: ssl.SSLContext, begin: bytes, piece: bytes, *, slow: bool = False
    ) -> None:
        self.sent, self._pause = 0, 0.02 if slow else 0.0
        self._context, self._begin, self._piece = context, begin, piece
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._socket.accept()
            with self._context.wrap_socket(connection, server_side=True) as secure:
                secure.sendall(self._begin)
                while not self._ended.wait(self._pause):
                    self.sent += secure.send(self._piece)

    def __enter__(self) -> Endless:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._socket.close()


SLOW_PIECES = {
    "smtp": (b"", b"220-still here\r\n"),
    "anthropic": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}
PIECES = SLOW_PIECES | {
    "smtp, after the greeting": (b"220 localhost\r\n", b"250-" + b"x" * 500 + b"\r\n"),
    "smtp, one line": (b"", b"220-" + b"x" * 5000),
    "anthropic, headers of a hint": (
        b"HTTP/1.1 100 Continue\r\n",
        b"X: " + b"y" * 60_000 + b"\r\n",
    ),
    "anthropic, one line": (b"HTTP/1.1 200 ", b"x" * 5000),
}


def checked_at(
    server: Endless, tls: Tls, reached: Reached, provider: str, seconds: float
) -> Verdict:
    reached.port_465 = server.port
    account = (
        {"host": "localhost", "port": "465", "user": "me", "password": SECRET}
        if provider == "smtp"
        else {}
    )
    return check(
        bundle(provider, **account),
        network=Network(tls.client, lambda host: ("127.0.0.1", server.port), seconds),
    )


@pytest.mark.parametrize("what", PIECES)
def test_a_server_that_never_comes_to_an_end_is_not_read_for_long(
    tls: Tls, reached: Reached, what: str
) -> None:
    """
    The system's own buffers hold some megabytes; read until the time is over it would be gigabytes.
    """
    provider, (begin, piece) = what.split(",")[0], PIECES[what]
    with Endless(
        tls.server("localhost", "api.anthropic.com"), begin, piece * (100_000 // len(piece))
    ) as server:
        verdict = checked_at(server, tls, reached, provider, 60)
        server._thread.join(30)
        assert not server._thread.is_alive() and server.sent < 30_000_000
    assert verdict.outcome == "unreachable"
    # Ours, or what the library of this Python bounds by itself: a line, headers, from 3.14 on
    # interim responses.
    assert any(
        word in str(verdict.reason).lower() for word in ("128 kib", "line", "header", "interim")
    )


def test_all_replies_of_a_mail_server_count_together_also_after_starttls(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STARTTLS begins a new file over the same connection."""
    line, counted = Line(), []
    monkeypatch.setattr(line, "_count", counted.append)
    a, b = socket.socketpair()
    with a, b:
        for _ in range(2):
            b.sendall(b"250 ok\r\n")
            assert line.file(a).readline() == b"250 ok\r\n"
    assert sum(counted) == 16


@pytest.mark.parametrize("provider", SLOW_PIECES)
def test_the_thread_ends_when_the_time_is_over(tls: Tls, reached: Reached, provider: str) -> None:
    begin, piece = SLOW_PIECES[provider]
    before = set(threading.enumerate())
    with Endless(tls.server("localhost", "api.anthropic.com"), begin, piece, slow=True) as server:
        verdict = checked_at(server, tls, reached, provider, 0.5)
        left = [
            thread
            for thread in threading.enumerate()
            if thread not in before and thread.name == "bounded"
        ]
        for thread in left:
            thread.join(20)
        assert not [thread for thread in left if thread.is_alive()]
    assert verdict == Verdict("unreachable", "no answer within 0.5 seconds")


def test_a_connection_that_comes_after_the_time_is_over_is_ended_at_once() -> None:
    line, (a, b) = Line(), socket.socketpair()
    with a, b:
        a.settimeout(5)  # for the case that it is not ended
        line.hang_up()
        line.connected(a)
        assert (a.recv(1), b.recv(1)) == (b"", b"")


BAD_FIELDS = [
    ("anthropic", "api_key", "key\nX-Other: header"),
    ("anthropic", "api_key", "key\U0001f511"),
    ("sendgrid", "api_key", "key\r\n\r\nGET / HTTP/1.1"),
    ("openai", "organization", "org\n"),
    ("twilio", "account_sid", "AC of somebody"),
    ("twilio", "account_sid", "ACé"),
    ("twilio", "account_sid", "AC/../../2010-04-01/Accounts?x="),
]


@pytest.mark.parametrize(("provider", "field", "value"), BAD_FIELDS)
def test_a_field_that_cannot_be_sent_is_refused_unsent_or_sent_as_what_it_is(
    https: Https, network: Network, provider: str, field: str, value: str
) -> None:
    """
    A wrong value is for the operator to mend; it must not look as if the network were at fault, nor
    become another request.
    """
    https.answer = says(401, {"error": "no"})
    verdict = check(bundle(provider, **{field: value}), network=network)
    assert verdict.outcome == "refused" and verdict.reason and value not in verdict.reason
    for _, path, sent in https.requests:
        assert (
            path.count("/") == CALLS[provider][1].count("/")
            and "?x=" not in path
            and "X-Other" not in dict(sent)
        )


def test_an_unreachable_host_is_named(tls: Tls) -> None:
    """The operator at night has to know which of the hosts."""
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    verdict = check(
        bundle("twilio"), network=Network(tls.client, lambda host: ("127.0.0.1", port), 5)
    )
    assert (
        verdict.outcome == "unreachable" and verdict.reason and "refused" in verdict.reason.lower()
    )
    assert "api.twilio.com" in verdict.reason


# what is repeated


BASE64 = base64.b64encode(f"user:{SECRET}".encode()).decode()
REPEATED: dict[str, Answer] = {
    "in words": says(401, {"message": f"the key {SECRET} is not known"}),
    "within a word": says(401, {"error": {"message": f"key=x{SECRET}x."}}),
    "escaped": says(
        401, ('{"message": "' + "".join(f"\\u{ord(c):04x}" for c in SECRET) + '"}').encode()
    ),
    "in base64": says(401, {"message": f"Authorization: Basic {BASE64}"}),
    "in base64, quoted": says(401, {"message": f"got '{BASE64}'."}),
    "in base64, after a name": says(401, {"message": f"authorization={BASE64}"}),
    "in base64, without padding": says(
        401, {"message": base64.b64encode(SECRET.encode()).decode().rstrip("=")}
    ),
    "in base64, its beginning cut": says(401, {"message": BASE64[3:]}),
    "in base64, its end cut": says(401, {"message": BASE64[:-5]}),
    "in base64, url-safe": says(
        401, {"message": base64.urlsafe_b64encode(b"\xff\xfe\xfb" + SECRET.encode()).decode()}
    ),
    "in a long line": says(401, {"message": "x" * 30_000 + SECRET}),
    "at the cut": says(401, {"message": "x " * 90 + SECRET}),
    "with line ends and colours": says(401, {"message": f"\x1b[31m{SECRET}\r\n\x07vault: valid"}),
    "in the status line": says(401, b"", reason=f"No {SECRET}"),
    "in no status line": writes(f"{SECRET}\r\n".encode()),
    "in a list": says(401, {"errors": [{"message": SECRET}, {"message": SECRET}]}),
    "with 500": says(500, {"message": SECRET}),
}


@pytest.mark.parametrize("what", REPEATED)
def test_a_reason_repeats_no_credential(
    https: Https, network: Network, what: str, figures: Figures
) -> None:
    https.answer = REPEATED[what]
    verdict = check(bundle("anthropic"), network=network)
    assert verdict.outcome in ("refused", "unreachable")
    require_silent(verdict.reason, SECRET)
    figures("answers of providers that repeat a secret, each without it in the reason", 1)


SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "percent": lambda text: quote(text, safe=""),
    "percent, small": lambda text: re.sub(
        "%..", lambda found: found[0].lower(), quote(text, safe="")
    ),
    "percent, all of it": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "percent, as in a URL": lambda text: quote(text, safe="/+:;,=&"),
    "form": quote_plus,
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON, all of it": lambda text: "".join(
        f"\\u{int.from_bytes(c, 'big'):04X}" for c in zip_pairs(text.encode("utf-16-be"))
    ),
    "bytes of Python": lambda text: repr(text.encode())[2:-1],
    "HTML": html.escape,
    "HTML, all of it": lambda text: "".join(f"&#{ord(c)};" for c in text),
    "HTML, hexadecimal": lambda text: "".join(f"&#x{ord(c):X};" for c in text),
    "hexadecimal": lambda text: text.encode().hex(),
    "HEXADECIMAL": lambda text: text.encode().hex().upper(),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64, url-safe": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
}


def zip_pairs(data: bytes) -> list[bytes]:
    return [data[at : at + 2] for at in range(0, len(data), 2)]


SECRETS = st.text(
    st.sampled_from("ab9Z%&<>\"'\\/+=;#é€\U0001f511 ")
    | st.characters(codec="utf-8", exclude_categories=["C"]),
    min_size=8,
    max_size=40,
)


# But for the mask itself.
@given(
    value=SECRETS.filter(lambda text: len("".join(text.split())) >= 8 and set(text) != {"*"}),
    first=st.sampled_from(sorted(SPELLINGS)),
    second=st.sampled_from(sorted(SPELLINGS)),
    around=st.sampled_from(
        [("", ""), ("key ", " is not known"), ("key='", "'"), ("x", "x"), ("key=", "&more=1")]
    ),
)
@example("two words%", "form", "plain", ("", ""))
@example("per%cent+plus", "percent, as in a URL", "plain", ("", ""))
@settings(max_examples=effort(400, 100))
def test_a_secret_is_masked_in_any_spelling_and_in_a_spelling_of_that(
    value: str, first: str, second: str, around: tuple[str, str]
) -> None:
    spelled = SPELLINGS[second](around[0] + SPELLINGS[first](value) + around[1])
    said = silent(f"401 {spelled}", [Secret(value)])
    assert said.startswith("401 ") and "********" in said
    for form in (value, SPELLINGS[first](value), spelled):
        assert " ".join(form.split()) not in said


@pytest.mark.parametrize(
    "words",
    [
        "401 invalid x-api-key",
        "535 5.7.8 Error: authentication failed",
        "403 50%25 &amp; \\u0041 deadbeef SGVsbG8=",
    ],
)
def test_words_that_hold_no_secret_are_shown_as_they_are(words: str) -> None:
    assert silent(words, [Secret(SECRET)]) == words


@pytest.mark.parametrize("value", ["with space", 'a"b\\c', "é", "\U0001f511x", "+/+/+/"])
def test_a_mail_servers_words_repeat_no_password_plain_or_coded(
    tls: Tls, reached: Reached, value: str
) -> None:
    """
    A field that the catalogue does not know is taken for a secret; it is no part of the login,
    which is ASCII.
    """
    coded = base64.b64encode(value.encode()).decode()
    verdict, _ = mail_verdict(
        tls,
        reached,
        {b"AUTH": f'535 "{value}" {coded}'.encode()},
        password="ascii-" + SECRET,
        extra=value,
    )
    assert (
        verdict.outcome == "refused"
        and verdict.reason
        and value not in verdict.reason
        and coded not in verdict.reason
    )


def test_a_mail_server_that_repeats_the_login_is_masked(tls: Tls, reached: Reached) -> None:
    """The line of the login is the user and the password in base64."""
    verdict, seen = mail_verdict(
        tls,
        reached,
        {b"AUTH": lambda line: b"535-5.7.8 " + line.strip() + b"\r\n535 no " + SECRET.encode()},
    )
    assert verdict.outcome == "refused" and [
        line for line in seen if line.startswith(b"AUTH PLAIN ")
    ]
    require_silent(verdict.reason, SECRET)
    assert verdict.reason and verdict.reason.startswith("535 5.7.8 AUTH PLAIN ********")


# mail


@pytest.fixture(params=["STARTTLS", "TLS from the start"])
def mail(request: pytest.FixtureRequest, tmp_path: Path, reached: Reached) -> Iterator[SmtpServer]:
    with SmtpServer(
        tmp_path, {"me@example.com": SECRET}, tls_first=request.param != "STARTTLS"
    ) as running:
        reached.port_465 = running.port
        yield running


def account_at(server: SmtpServer, tls_first: bool, **changed: str) -> Bundle:
    port = "465" if tls_first else str(server.port)
    return bundle(
        "smtp",
        **{
            "host": "localhost",
            "port": port,
            "user": "me@example.com",
            "password": SECRET,
            **changed,
        },
    )


def is_tls_first(request: pytest.FixtureRequest) -> bool:
    return bool(request.node.callspec.params["mail"] != "STARTTLS")


def test_mail_account_is_valid_and_nothing_is_sent(
    mail: SmtpServer, request: pytest.FixtureRequest
) -> None:
    context = ssl.create_default_context(cafile=mail.cafile)
    assert check(account_at(mail, is_tls_first(request)), network=Network(context)) == Verdict(
        "valid"
    )
    assert (mail.attempts, mail.accepted) == (["me@example.com"], [])


def test_mail_account_is_refused_in_the_servers_words(
    mail: SmtpServer, request: pytest.FixtureRequest
) -> None:
    context = ssl.create_default_context(cafile=mail.cafile)
    verdict = check(
        account_at(mail, is_tls_first(request), password="wrong"), network=Network(context)
    )
    assert (
        verdict.outcome == "refused" and verdict.reason and verdict.reason.startswith("535 5.7.8 ")
    )
    assert set(mail.attempts) == {"me@example.com"}


def test_no_login_where_the_certificate_is_not_trusted(
    mail: SmtpServer, request: pytest.FixtureRequest
) -> None:
    verdict = check(account_at(mail, is_tls_first(request)), network=Network())
    assert verdict.outcome == "unreachable" and verdict.reason and "certificate" in verdict.reason
    assert mail.attempts == []


def test_no_login_in_the_clear_where_no_starttls_is_offered(tls: Tls) -> None:
    with Mail(b"220 localhost\r\n", EHLO) as server:
        account = bundle(
            "smtp", host="localhost", port=str(server.port), user="me", password=SECRET
        )
        verdict = check(account, network=Network(tls.client, seconds=5))
        assert not [line for line in server.seen if not line.upper().startswith((b"EHLO", b"QUIT"))]
    assert verdict.outcome == "unreachable" and verdict.reason and "STARTTLS" in verdict.reason


@pytest.mark.parametrize(
    ("greeting", "seconds"),
    [(b"", 0.5), (b"\x00\xff\r\n", 5), (b"554 go away\r\n", 5), (b"220 " + b"x" * 100_000, 5)],
)
def test_a_mail_server_that_does_not_speak_is_unreachable(
    tls: Tls, greeting: bytes, seconds: float
) -> None:
    begun = time.monotonic()
    with Mail(greeting) as server:
        account = bundle(
            "smtp", host="localhost", port=str(server.port), user="me", password=SECRET
        )
        verdict = check(account, network=Network(tls.client, seconds=seconds))
    assert verdict.outcome == "unreachable" and time.monotonic() - begun < 3
    require_silent(verdict.reason, SECRET)


@pytest.mark.parametrize("host", ["a..b", ".localhost", "x" * 64, "a\0b"])
def test_a_host_that_cannot_be_one_is_unreachable_and_no_crash(tls: Tls, host: str) -> None:
    verdict = check(
        bundle("smtp", host=host, port="587", user="me", password=SECRET),
        network=Network(tls.client, seconds=5),
    )
    assert verdict.outcome == "unreachable"


def test_a_closed_mail_port_is_named(tls: Tls) -> None:
    free = socket.create_server(("127.0.0.1", 0))
    port = str(free.getsockname()[1])
    free.close()
    verdict = check(
        bundle("smtp", host="localhost", port=port, user="me", password=SECRET),
        network=Network(tls.client, seconds=5),
    )
    assert verdict.outcome == "unreachable" and verdict.reason and "refused" in verdict.reason
    assert f"localhost:{port}" in verdict.reason.replace(" port ", ":")


ENDINGS: dict[str, tuple[dict[bytes, Any], str]] = {
    "yes": ({b"AUTH": b"235 yes"}, "valid"),
    "no": ({b"AUTH": b"535 no"}, "refused"),
    "yes, and no farewell": ({b"AUTH": b"235 yes", b"QUIT": b"500 what?"}, "valid"),
    "yes, and it hangs up": ({b"AUTH": b"235 yes", b"QUIT": lambda line: None}, "valid"),
    "yes, and no end of the farewell": (
        {b"AUTH": b"235 yes", b"QUIT": b"221-x\r\n" * 100_000},
        "valid",
    ),
    "no, and no farewell": ({b"AUTH": b"535 no", b"QUIT": b"421 too many errors"}, "refused"),
    "no, and it hangs up": ({b"AUTH": b"535 no", b"QUIT": lambda line: None}, "refused"),
    "it hangs up": ({b"AUTH": lambda line: None}, "unreachable"),
    "not now": ({b"AUTH": b"454 4.7.0 temporary authentication failure"}, "unreachable"),
    "too many": ({b"AUTH": b"421 4.7.0 too many logins"}, "unreachable"),
    "a question that is none": ({b"AUTH": b"334 a"}, "unreachable"),
    "no login offered": ({b"EHLO": b"250 localhost"}, "unreachable"),
}


@pytest.mark.parametrize("what", ENDINGS)
def test_what_a_mail_server_says_of_the_login_decides(
    tls: Tls, reached: Reached, what: str
) -> None:
    replies, outcome = ENDINGS[what]
    verdict, _ = mail_verdict(tls, reached, replies)
    assert verdict.outcome == outcome, verdict.reason
    if verdict.reason:
        require_silent(verdict.reason, SECRET)


@pytest.mark.parametrize("field", ["user", "password"])
def test_a_login_that_is_not_ascii_is_no_crash_and_is_in_no_error(
    tls: Tls, reached: Reached, field: str
) -> None:
    """The library encodes it as ASCII, and its error holds the whole text."""
    verdict, _ = mail_verdict(tls, reached, {b"AUTH": b"535 no"}, **{field: "é\U0001f511" + SECRET})
    assert verdict.outcome == "refused"
    require_silent(verdict.reason, SECRET)


# the command


@pytest.fixture(scope="session")
def template(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = new_site(tmp_path_factory.mktemp("checks") / "site", engine)
    with made.open() as vault:
        for provider, fields in ACCOUNTS.items():
            for field, value in fields.items():
                vault.set(provider, field, value)
        vault.set("ashby", "api_key", SECRET)
        vault.set("smtp", "host", "localhost")
        vault.set("twilio", "phone_number", "+15550100001", "default-project")
        vault.set("openai", "organization", "org-2", "default-project")
    return made


@pytest.fixture
def answered(site: Site, network: Network, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The vault of a command that reaches the server of these tests; what it does is its own."""
    monkeypatch.setattr(
        checks, "Network", functools.partial(Network, network.context, network.address, 5)
    )
    return site


COMMANDS: dict[str, tuple[Answer, int, str]] = {
    "valid": (says(200, {}), 0, "twilio: valid"),
    "refused": (says(401, {"message": f"no\n{SECRET}"}), 16, "twilio: refused: 401 no ********"),
    "unreachable": (says(503, {"message": "later"}), 17, "twilio: unreachable: 503 later"),
}


@pytest.mark.parametrize("outcome", COMMANDS)
def test_command_says_the_outcome_and_exits_with_its_status(
    answered: Site, https: Https, outcome: str
) -> None:
    https.answer, status, text = COMMANDS[outcome]
    scopes = {"account_sid": "global", "auth_token": "global", "phone_number": "project"}
    done = run(answered, "check", "twilio", "--project", "default-project")
    assert (done.status, done.err) == (status, "")
    assert (
        done.out == f"{text} ({', '.join(f'{name} {scope}' for name, scope in scopes.items())})\n"
    )
    done = run(answered, "check", "twilio", "--project", "default-project", "--json")
    reason = text.partition(f"{outcome}: ")[2] or None
    expected = {
        "provider": "twilio",
        "project_id": "default-project",
        "outcome": outcome,
        "reason": reason,
        "scopes": scopes,
    }
    assert (done.status, done.data, done.err) == (status, expected, "")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["ashby"], 2, ("ashby", "twilio")),
        (["smtp"], 10, ("user, password",)),
        (["no-such"], 10, ("no such credential",)),  # its name may be a secret in the wrong place
        (["openai", "--project", "default-project"], 16, ("organization", "api_key")),
        (["twilio", "--project", "no-such"], 10, ("no project",)),
        (["twilio", SECRET], 2, ()),
    ],
)
def test_command_asks_nobody_where_there_is_nothing_to_ask(
    answered: Site, https: Https, arguments: list[str], status: int, words: tuple[str, ...]
) -> None:
    done = run(answered, "check", *arguments)
    failed(done, status, *words)
    assert https.requests == [] and SECRET not in done.err


def test_an_smtp_port_that_is_none_is_status_11_and_is_not_shown(answered: Site) -> None:
    with answered.open() as vault:
        for field in ("user", "password", "port"):
            vault.set("smtp", field, SECRET)
    done = run(answered, "check", "smtp")
    failed(done, 11, "smtp/port")
    assert SECRET not in done.err


def test_no_log_at_debug_and_no_output_holds_a_credential(
    answered: Site,
    https: Https,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    figures: Figures,
) -> None:
    caplog.set_level(logging.DEBUG)
    options = ([], ["--json"])
    for turn, answer in enumerate(REPEATED.values()):
        https.answer = answer
        for number, provider in enumerate(CALLS, turn):
            for option in options if THOROUGH else (options[number % 2],):
                done = run(answered, "check", provider, *option)
                assert done.status in (0, 16, 17)
                assert SECRET not in done.out + done.err
                figures("runs of `vault check` without a credential in output or log", 1)
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


def test_the_libraries_own_debugging_shows_no_credential(
    tls: Tls,
    network: Network,
    reached: Reached,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A caller may have it on for connections of its own; it prints every header and every line."""
    monkeypatch.setattr(http.client.HTTPConnection, "debuglevel", 1)
    monkeypatch.setattr(smtplib.SMTP, "debuglevel", 1)
    for provider in CALLS:
        check(bundle(provider), network=network)
    mail_verdict(tls, reached, {b"AUTH": b"535 no"})
    seen = "".join(capfd.readouterr())
    assert not [form for form in forms(SECRET.encode()) if form in seen.encode()]
