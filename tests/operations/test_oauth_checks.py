"""`vault check` of accounts with OAuth2: a new token, and a login with it."""

from __future__ import annotations

import functools
import smtplib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, AuthResult
from helpers.commands import run
from helpers.forms import forms
from helpers.mail_account import MailAccount, example
from helpers.oauth_smtp import Attempt, OAuthSmtpServer
from helpers.oidc import AuthorizationServer
from helpers.site import Site

from outreach_vault import Vault, providers
from outreach_vault.network import Network
from outreach_vault.operations import checks
from outreach_vault.operations.checks import check_stored

USER, P = "ada@example.com", "default-project"


class Server(OAuthSmtpServer):
    """
    Attributes:
        repeat: refuse with what the client sent.
    """

    repeat = False

    async def auth_XOAUTH2(self, server: SMTP, arguments: list[str]) -> AuthResult:
        if self.repeat:
            return AuthResult(success=False, handled=False, message=f"535 5.7.8 {arguments[1]}")
        return await super().auth_XOAUTH2(server, arguments)


@pytest.fixture
def oauth(authorization_server: AuthorizationServer) -> AuthorizationServer:
    return authorization_server


@pytest.fixture
def smtp(
    oauth: AuthorizationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    with Server(tmp_path, oauth.accepts) as running:
        context = ssl.create_default_context(cafile=running.cafile)
        monkeypatch.setattr(checks, "Network", functools.partial(Network, context, seconds=30))
        yield running


@pytest.fixture
def account(oauth: AuthorizationServer, smtp: Server, vault: Vault) -> MailAccount:
    return MailAccount.new(oauth, smtp, USER, "basic").store(vault)


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_valid_is_a_new_token_and_a_login_with_it(
    site: Site,
    vault: Vault,
    oauth: AuthorizationServer,
    smtp: Server,
    account: MailAccount,
    mechanism: str,
) -> None:
    smtp.mechanisms = (mechanism,)
    vault.access_token("smtp")
    done = run(site, "check", "smtp", "--json")
    assert (done.status, done.err, done.data["outcome"]) == (0, "", "valid")
    assert smtp.logins == [Attempt(mechanism, USER, True)]
    assert oauth.counters()["successes"] == {"refresh_token": 2}
    assert vault.access_token("smtp").scope == "global"  # the new one is everyone's
    assert oauth.counters()["successes"] == {"refresh_token": 2}


def test_the_first_check_asks_for_one_token(
    site: Site, oauth: AuthorizationServer, smtp: Server, account: MailAccount
) -> None:
    assert run(site, "check", "smtp", "--project", P).status == 0
    assert oauth.counters()["requests"] == {"refresh_token": 1}


@pytest.mark.parametrize(
    ("fault", "status", "words", "hint"),
    [
        ("login", 16, "smtp: refused: smtp (global): the account needs a new login", "vault login"),
        ("client", 16, "refuses the application: ", "vault check"),
        ("down", 17, "smtp: unreachable: ", "try again"),
        ("answer", 16, "an answer without a token", "token URL"),
    ],
)
@pytest.mark.parametrize("at_hand", [False, True])
def test_without_a_token_the_reason_is_said_and_no_mail_server_asked(
    site: Site,
    vault: Vault,
    oauth: AuthorizationServer,
    smtp: Server,
    account: MailAccount,
    fault: str,
    status: int,
    words: str,
    hint: str,
    at_hand: bool,
) -> None:
    """Also while the token at hand would still serve: soon it will not."""
    if at_hand:
        vault.access_token("smtp")
    if fault == "login":
        oauth.revoke(vault.get("smtp", "oauth_refresh_token").reveal())
    else:
        kinds = {"client": ("error", "error"), "down": ("status", "status"), "answer": ("html", "")}
        kind, name = kinds[fault]
        more = {"error": "unauthorized_client", "status": 503}
        oauth.fault(kind, None, **({name: more[name]} if name else {}))
    for _ in range(2):  # an earlier refusal is no reason not to ask
        before = sum(oauth.counters()["requests"].values())
        done = run(site, "check", "smtp")
        assert done.status == status and words in done.out and hint in done.err, done
        assert sum(oauth.counters()["requests"].values()) > before
    assert smtp.logins == []
    oauth.mend()
    require_silent(account, done.out + done.err)


def test_a_token_that_the_mail_server_refuses_is_refused_in_its_words(
    site: Site, smtp: Server, account: MailAccount
) -> None:
    smtp.accepts = lambda user, token: False
    done = run(site, "check", "smtp")
    assert done.status == 16 and done.out.startswith("smtp: refused: 535 5.7.8 "), done
    assert smtp.logins == [Attempt("XOAUTH2", USER, False, b"")]


def test_a_mail_server_that_repeats_the_token_is_masked(
    site: Site, vault: Vault, smtp: Server, account: MailAccount
) -> None:
    smtp.repeat = True
    done = run(site, "check", "smtp")
    assert "smtp: refused: 535 5.7.8 ********" in done.out
    token = vault.access_token("smtp")
    sasl = vault.bundle("smtp").sasl("XOAUTH2", token).reveal()
    require_silent(account, done.out + done.err, token.reveal(), sasl)


def test_a_mail_server_without_such_a_login_is_unreachable_and_gets_nothing(
    site: Site, smtp: Server, account: MailAccount
) -> None:
    smtp.mechanisms = ("PLAIN",)
    done = run(site, "check", "smtp")
    assert done.status == 17 and "no login with an access token" in done.out, done
    assert smtp.logins == []


def test_an_account_with_a_password_asks_for_no_token(
    site: Site, vault: Vault, oauth: AuthorizationServer, smtp: Server, account: MailAccount
) -> None:
    """The project's own; the grant is everyone's."""
    smtp.mechanisms, smtp.accounts[USER] = ("PLAIN",), "a password"
    port = str(smtp.port)
    own = {"host": smtp.host, "port": port, "user": USER, "password": "a password"}
    vault.set_fields("smtp", own, P)
    assert run(site, "check", "smtp", "--project", P).status == 0
    assert oauth.counters()["requests"] == {}


# A provider whose only check is that it gives a token.


@pytest.fixture
def listed(oauth: AuthorizationServer, monkeypatch: pytest.MonkeyPatch) -> AuthorizationServer:
    monkeypatch.setitem(providers._BY_NAME, "example", example(oauth))
    return oauth


def test_a_token_is_the_whole_check_where_there_is_no_other(
    listed: AuthorizationServer, site: Site, vault: Vault
) -> None:
    made = listed.grant()
    fields = {"client_id": made.client.id, "refresh_token": made.refresh_token}
    vault.set_fields("example", fields)
    done = run(site, "check", "example")
    until = f"{vault.access_token('example').expires_at:%Y-%m-%d %H:%M}"
    assert (done.status, done.err) == (0, "")
    assert f"example: valid: the provider gave an access token until {until} UTC (" in done.out
    assert run(site, "check", "example").status == 0  # the one at hand is no answer
    assert listed.counters()["successes"] == {"refresh_token": 2}
    listed.revoke(vault.get("example", "refresh_token").reveal())
    assert run(site, "check", "example", "--json").data["outcome"] == "refused"


def test_without_its_grant_such_a_provider_cannot_be_checked(
    listed: AuthorizationServer, site: Site, vault: Vault
) -> None:
    vault.set("example", "client_id", "an id")
    done = run(site, "check", "example")
    assert done.status == 2 and "cannot be checked" in done.err and "example" in done.err


def require_silent(account: MailAccount, text: str, *more: str) -> None:
    for secret in [*account.secrets, *more]:
        assert not [form for form in forms(secret.encode()) if form in text.encode()]


def test_the_library_s_own_debugging_prints_no_token(
    vault: Vault,
    smtp: Server,
    account: MailAccount,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(smtplib.SMTP, "debuglevel", 1)
    network = checks.Network()
    assert check_stored(vault, vault.bundle("smtp"), network=network).outcome == "valid"
    said = "".join(capfd.readouterr())
    token = vault.access_token("smtp")
    sasl = vault.bundle("smtp").sasl("XOAUTH2", token).reveal()
    assert "235" not in said  # the answer to the login: the login itself is not there either
    require_silent(account, said, token.reveal(), sasl)
