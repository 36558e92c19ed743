"""
`SmtpBundle.log_in` and `sasl`: a token as the server takes it, of the same account, over TLS alone,
and in no error. Against a real server; what gives the tokens out is not the point here.
"""

from __future__ import annotations

import base64
import contextlib
import smtplib
import ssl
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult
from helpers.forms import forms
from helpers.oauth_smtp import Attempt, OAuthSmtpServer

import outreach_vault
from outreach_vault import AccessToken, MixedAccount, Secret, SmtpBundle, UnusableValue
from outreach_vault.values.credential import Credential
from outreach_vault.values.rows import Row

USER, TOKEN = "ada@example.com", "canary-of-the-token.0123456789~+/-_=="
PASSWORD = "canary-of-the-password-0123456789"
GRANT = {
    "oauth_client_id": "a client",
    "oauth_refresh_token": "a refresh token",
    "oauth_token_url": "https://login.example.com/token",
}


def account(project_id: str | None = None, **fields: str) -> SmtpBundle:
    whole = {"host": "localhost", "user": USER} | fields
    found = {
        name: Credential(
            Row(f"row {name}", project_id, "smtp", name, "", None, None, "", ""), Secret(value)
        )
        for name, value in whole.items()
    }
    return SmtpBundle("smtp", project_id, found)


def a_token(text: str = TOKEN, project_id: str | None = None) -> AccessToken:
    token = AccessToken(text)
    token.expires_at, token.granted_scope = datetime.now(UTC), None
    token.project_id = project_id
    return token


class Server(OAuthSmtpServer):
    """
    Attributes:
        echo: refuse with the very text that the client sent. ask: how often to send it before.
    """

    echo, ask = False, 0

    async def auth_XOAUTH2(self, server: SMTP, arguments: list[str]) -> AuthResult:
        for _ in range(self.ask):
            await server.challenge_auth(arguments[1], encode_to_b64=False)
        if self.echo:
            return AuthResult(success=False, handled=False, message=f"535 5.7.8 {arguments[1]}")
        return await super().auth_XOAUTH2(server, arguments)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(
        tmp_path, lambda user, token: (user, token) == (USER, TOKEN), accounts={USER: PASSWORD}
    ) as running:
        yield running


def connected(server: Server, *, tls: bool = True) -> smtplib.SMTP:
    client = smtplib.SMTP(server.host, server.port, timeout=60)
    if tls:
        client.starttls(context=ssl.create_default_context(cafile=server.cafile))
    return client


def test_the_texts_are_those_of_google_and_of_the_standard() -> None:
    of_google = f"user={USER}\x01auth=Bearer {TOKEN}\x01\x01"
    assert account(**GRANT).sasl("XOAUTH2", a_token()).reveal() == of_google
    standard = account(user="a,b=c@example.com", port="465", **GRANT)
    assert standard.sasl("OAUTHBEARER", a_token()).reveal() == (
        "n,a=a=2Cb=3Dc@example.com,\x01host=localhost\x01port=465"
        f"\x01auth=Bearer {TOKEN}\x01\x01"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("offered", "used"),
    [
        (["XOAUTH2"], "XOAUTH2"),
        (["OAUTHBEARER"], "OAUTHBEARER"),
        (["OAUTHBEARER", "PLAIN", "XOAUTH2"], "XOAUTH2"),
        (["LOGIN", "OAUTHBEARER"], "OAUTHBEARER"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else value,
)
def test_a_token_logs_in_by_what_the_server_offers(
    server: Server, offered: list[str], used: str
) -> None:
    server.mechanisms = offered
    with connected(server) as client:
        account(password=PASSWORD, **GRANT).log_in(client, a_token())
        client.sendmail(USER, ["bob@example.com"], b"Subject: Hello\r\n\r\nHello")
    assert server.logins == [Attempt(used, USER, True)]
    assert [sent.account for sent in server.accepted] == [USER]


def test_without_a_token_it_is_the_password(server: Server) -> None:
    server.mechanisms = ("XOAUTH2", "PLAIN")
    with connected(server) as client:
        account(password=PASSWORD).log_in(client)
    assert server.logins == [Attempt("PLAIN", USER, True)]
    with connected(server) as client, pytest.raises(outreach_vault.IncompleteAccount):
        account(**GRANT).log_in(client)


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_a_refused_token_gets_the_empty_answer_that_ends_the_login(
    server: Server, mechanism: str
) -> None:
    server.mechanisms = (mechanism,)
    with connected(server) as client:
        with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            account(**GRANT).log_in(client, a_token("another"))
        assert refused.value.smtp_code == 535
        assert client.noop()[0] == 250  # the conversation is not out of step
    last = b"" if mechanism == "XOAUTH2" else b"\x01"
    assert server.logins == [Attempt(mechanism, USER, False, last)]


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
@pytest.mark.parametrize("chars", [*range(300, 342, 3), 2500, 5000])
def test_a_long_token_waits_for_the_server_s_question(
    server: Server, mechanism: str, chars: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No command has more than 512 octets (RFC 4954, 4); what follows one may."""
    sent: list[bytes] = []
    send = smtplib.SMTP.send

    def overheard(self: smtplib.SMTP, text: Any) -> None:
        sent.append(text if isinstance(text, bytes) else text.encode())
        send(self, text)

    monkeypatch.setattr(smtplib.SMTP, "send", overheard)
    server.mechanisms, token = (mechanism,), a_token("t" * chars)
    text = account(**GRANT).sasl(mechanism, token).reveal().encode()  # type: ignore[arg-type]
    coded = base64.b64encode(text) + b"\r\n"
    whole = b"AUTH %s %s" % (mechanism.encode(), coded)
    for accepted in (True, False):
        server.accepts = lambda user, token, accepted=accepted: accepted  # type: ignore[misc]
        sent.clear()
        with connected(server) as client, contextlib.suppress(smtplib.SMTPAuthenticationError):
            account(**GRANT).log_in(client, token)
        apart = [b"AUTH %s\r\n" % mechanism.encode(), coded]
        assert sent[3 : 4 + (len(whole) > 512)] == ([whole] if len(whole) <= 512 else apart)
    last = b"" if mechanism == "XOAUTH2" else b"\x01"
    assert server.logins == [
        Attempt(mechanism, USER, True), Attempt(mechanism, USER, False, last)
    ]  # fmt: skip


@pytest.mark.parametrize("offered", [["PLAIN"], ["LOGIN", "PLAIN"]])
def test_where_neither_is_offered_nothing_is_sent(server: Server, offered: list[str]) -> None:
    server.mechanisms = offered
    with connected(server) as client, pytest.raises(smtplib.SMTPNotSupportedError):
        account(password=PASSWORD, **GRANT).log_in(client, a_token())
    assert server.logins == []


@pytest.mark.parametrize("way", ["token", "password"])
def test_nothing_is_sent_before_tls(
    server: Server, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    send = smtplib.SMTP.send

    def overheard(self: smtplib.SMTP, text: Any) -> None:
        sent.append(text)
        send(self, text)

    with connected(server, tls=False) as client:
        client.ehlo()
        client.esmtp_features["auth"] = "XOAUTH2 PLAIN"  # a server that offers it all the same
        monkeypatch.setattr(smtplib.SMTP, "send", overheard)
        with pytest.raises(smtplib.SMTPNotSupportedError, match="before TLS"):
            account(password=PASSWORD, **GRANT).log_in(
                client, a_token() if way == "token" else None
            )
        assert sent == []


@pytest.mark.parametrize(
    ("project_id", "token_of", "fields"),
    [(None, "a", GRANT), ("a", None, GRANT), ("a", "b", GRANT), (None, None, {}), ("a", "a", {})],
)
def test_a_token_of_another_account_is_not_sent(
    server: Server, project_id: str | None, token_of: str | None, fields: dict[str, str]
) -> None:
    """The account was changed between the look-up and the token."""
    changed = account(project_id, password=PASSWORD, **fields)
    with connected(server) as client, pytest.raises(MixedAccount) as mixed:
        changed.log_in(client, a_token(project_id=token_of))
    assert mixed.value.rows == {"user": "row user"} and server.logins == []


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
@pytest.mark.parametrize(
    ("what", "text"),
    [
        *(("user", f"{USER}{end}") for end in ("\x01auth=Bearer x", "\r\nRSET", "é", "\0")),
        *(("host", f"localhost{end}") for end in ("\x01auth=Bearer x", "é", "\n")),
        *(("token", f"{TOKEN}{end}") for end in ("\x01", "\n", "\x7f", "é", "\x01user=eve\x01")),
        ("token", ""),
    ],
)  # fmt: skip
def test_what_would_end_the_text_is_refused_and_not_shown(
    mechanism: Any, what: str, text: str
) -> None:
    fields = {what: text} if what != "token" else {}
    token = a_token(text if what == "token" else TOKEN)
    with pytest.raises(UnusableValue) as refused:
        account(**fields, **GRANT).sasl(mechanism, token)
    assert not [seen for seen in shown(refused.value) if TOKEN.encode() in seen]


def test_a_password_that_is_not_ascii_is_an_error_without_it(server: Server) -> None:
    with connected(server) as client, pytest.raises(UnusableValue, match="not ASCII") as refused:
        account(password=f"{PASSWORD}é").log_in(client)
    assert not [seen for seen in shown(refused.value) if PASSWORD.encode() in seen]


def shown(error: BaseException | None) -> Iterator[bytes]:
    """All that an error shows, and the variables of our frames."""
    package = str(Path(outreach_vault.__file__).parent)
    while error:
        yield "".join(traceback.format_exception(error)).encode()
        yield repr((error, error.args, vars(error))).encode()
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename.startswith(package):
                yield repr(frame.f_locals).encode()
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("ask", [0, 1, 20])
def test_a_server_that_repeats_the_login_puts_it_into_no_error_and_no_output(
    server: Server, ask: int, capfd: pytest.CaptureFixture[str]
) -> None:
    server.echo, server.ask = True, ask
    client = connected(server)
    client.set_debuglevel(2)
    with pytest.raises(smtplib.SMTPException) as refused:
        account(**GRANT).log_in(client, a_token())
    client.close()
    assert client.debuglevel == 2
    said = [*shown(refused.value), *(text.encode() for text in capfd.readouterr())]
    text = account(**GRANT).sasl("XOAUTH2", a_token()).reveal().encode()
    spelled = {*forms(TOKEN.encode()), base64.b64encode(text)}
    assert [seen for seen in said for each in spelled if each in seen] == []
    if not ask:
        assert "5.7.8 ****" in str(refused.value) and refused.value.__context__ is None
