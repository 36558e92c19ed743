"""
The email adapter with accounts of OAuth2: a real authorisation server, and a real SMTP server that
asks it. From one account, over TLS, once; else not at all, and recorded without a secret.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import smtplib
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult
from helpers import ROOT
from helpers.effort import some
from helpers.forms import forms
from helpers.mail_account import MailAccount
from helpers.oauth_smtp import Attempt, OAuthSmtpServer
from helpers.oidc import AuthorizationServer
from helpers.site import Figures, Site, sql

from outreach_vault import (
    IncompleteAccount,
    MixedAccount,
    NeedsLogin,
    ProviderUnreachable,
    Vault,
    VaultError,
)
from outreach_vault.models import OutreachTemplate, Project
from outreach_vault.operations.accounts import Account, account_of

sys.path.insert(0, str(ROOT / "examples"))

import email_adapter

EVERYONE, OWN, PLAIN = "everyone", "own", "plain"
PASSWORD = {account: f"canary-of-{account}-0123456789" for account in (EVERYONE, OWN)}
GRANT = ("oauth_client_id", "oauth_refresh_token", "oauth_token_url")


def user(account: str) -> str:
    return f"{account}@example.com"


class World(NamedTuple):
    site: Site
    vault: Vault
    oauth: AuthorizationServer
    smtp: OAuthSmtpServer
    secrets: list[str]

    def fields(self, account: str, client: str = "native") -> dict[str, str]:
        """Of an account that can log in either way, with a grant of its own."""
        made = MailAccount.new(self.oauth, self.smtp, user(account), client)
        self.secrets.extend(made.secrets)
        return made.fields | {"password": PASSWORD[account]}

    def store(self, account: str, *without: str, client: str = "native") -> None:
        fields = {n: v for n, v in self.fields(account, client).items() if n not in without}
        self.vault.set_fields("smtp", fields, OWN if account == OWN else None)

    def token(self, project: str | None) -> Any:
        token = self.vault.access_token("smtp", project)
        self.secrets.append(token.reveal())
        return token

    def send(self, project: str, **given: Any) -> Any:
        given = {"cafile": self.smtp.cafile, "variables": {}} | given
        to = f"{project}@candidates.example"
        return email_adapter.send(self.vault, project, to, f"of-{project}", **given)

    def records(self) -> list[tuple[str, str | None]]:
        return sql(
            self.site.database, "SELECT status, error_message FROM messages ORDER BY created_at"
        )

    def refreshes(self) -> int:
        return int(self.oauth.counters()["requests"].get("refresh_token", 0))

    def require_no_secret(self, *said: str) -> None:
        """In no file of the vault's, and not in what was said."""
        for (text,) in sql(self.site.database, "SELECT id FROM vault_tokens"):
            assert text  # there are tokens, else this shows nothing
        seen = [path.read_bytes() for path in self.site.folder.glob("samsara.db*")]
        seen += [text.encode() for text in said]
        for secret in [*self.secrets, *PASSWORD.values()]:
            spelled = forms(secret.encode())
            assert [data for data in seen for each in spelled if each in data] == []


@pytest.fixture
def world(site: Site, authorization_server: AuthorizationServer, tmp_path: Path) -> Iterator[World]:
    with site.open() as vault, OAuthSmtpServer(
        tmp_path,
        authorization_server.accepts,
        mechanisms=("XOAUTH2", "PLAIN"),
        accounts={user(account): password for account, password in PASSWORD.items()},
    ) as smtp:  # fmt: skip
        vault.bind_models()
        for project in (OWN, PLAIN):
            Project.create(id=project, name=project)
            OutreachTemplate.create(
                id=f"of-{project}", project=project, name="n", type="email", body="<p>Hello</p>"
            )
        yield World(site, vault, authorization_server, smtp, [])


# Which account.


KINDS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "a password": ("host", "port", "user", "password"),
    "a grant": ("host", "port", "user", *GRANT),
    "both": ("host", "port", "user", "password", *GRANT),
    "a part of a grant": ("host", "port", "user", GRANT[0], GRANT[2]),
    "a password and a part of a grant": ("host", "port", "user", "password", GRANT[0], GRANT[2]),
    "a grant alone": GRANT,
    "a server alone": ("host", "port"),
}
Expected = tuple[str, str] | type[VaultError]


def expected(own: set[str], general: set[str]) -> Expected:
    """Whose account sends, and how it logs in; from the rules, not from the package."""
    has, account = (own, OWN) if own else (general, EVERYONE)
    by_token = has.issuperset(GRANT)
    needed = {"host", "user"} | (set() if by_token else {"password"})
    if own and (needed - own) & general:
        return MixedAccount
    if not has.issuperset(needed):
        return IncompleteAccount
    return account, "XOAUTH2" if by_token else "PLAIN"


def shown(listed: Account | None) -> tuple[str, bool] | None:
    """What `vault accounts` calls the account, and whether it says how a grant stands."""
    return listed and (listed.state, listed.grant is not None)


def told(wanted: Expected, is_there: bool) -> tuple[str, bool] | None:
    if isinstance(wanted, type):
        return ("mixed" if wanted is MixedAccount else "incomplete", False) if is_there else None
    account, mechanism = wanted
    return "own" if account == OWN else "global", mechanism == "XOAUTH2"


def test_every_arrangement_of_passwords_and_grants_sends_from_one_account_or_not_at_all(
    world: World, figures: Figures
) -> None:
    arrangements = some(list(itertools.product(KINDS, repeat=2)), 22)
    for general, own in arrangements:
        for account, kind, scope in ((EVERYONE, general, None), (OWN, own, OWN)):
            for name in KINDS["both"]:
                world.vault.delete("smtp", name, scope)
            fields = world.fields(account)
            if KINDS[kind]:
                world.vault.set_fields("smtp", {n: fields[n] for n in KINDS[kind]}, scope)
        # The global account first, so that its token is at hand when the project has none.
        for project, kind in ((PLAIN, "nothing"), (OWN, own)):
            world.smtp.logins.clear()
            world.smtp.accepted.clear()
            before = world.refreshes()
            wanted = expected(set(KINDS[kind]), set(KINDS[general]))
            listed = account_of(world.vault, "smtp", project)
            assert shown(listed) == told(wanted, bool(KINDS[kind] or KINDS[general]))
            if isinstance(wanted, type):
                with pytest.raises(wanted):
                    world.send(project)
                assert (world.smtp.logins, world.refreshes()) == ([], before), (general, own)
                continue
            world.send(project)
            account, mechanism = wanted
            assert world.smtp.logins == [Attempt(mechanism, user(account), True)], (general, own)
            assert [sent.account for sent in world.smtp.accepted] == [user(account)]
            asked = mechanism == "XOAUTH2" and (project == PLAIN or account == OWN)
            assert world.refreshes() == before + asked
    figures(
        "arrangements of passwords and grants, each sent from one account or not", len(arrangements)
    )


@pytest.mark.parametrize("client", ["native", "basic"])
def test_no_secret_of_a_grant_is_in_the_record_or_in_the_file(world: World, client: str) -> None:
    world.store(EVERYONE, client=client)
    world.send(PLAIN)
    world.token(PLAIN)
    assert world.records() == [("sent", None)]
    world.require_no_secret()


# A refused token.


def test_a_token_revoked_before_its_time_is_replaced_once_and_the_message_arrives_once(
    world: World,
) -> None:
    world.store(EVERYONE)
    world.oauth.revoke(world.token(None).reveal())
    row = world.send(PLAIN)
    assert [each.accepted for each in world.smtp.logins] == [False, True]
    assert [sent.recipients for sent in world.smtp.accepted] == [("plain@candidates.example",)]
    assert row.provider_message_id.encode() in world.smtp.accepted[0].content
    assert world.records() == [("sent", None)] and world.refreshes() == 2
    world.send(PLAIN)
    assert world.refreshes() == 2  # the new one is there for all
    world.token(PLAIN)
    world.require_no_secret()


def test_many_senders_replace_a_revoked_token_once_for_all(world: World) -> None:
    world.store(EVERYONE)
    world.oauth.revoke(world.token(None).reveal())
    account = world.vault.bundle("smtp", PLAIN)
    context = ssl.create_default_context(cafile=world.smtp.cafile)

    def deliver() -> None:
        message = email_adapter.compose(
            user(EVERYONE),
            email_adapter.one_address("a@b.example"),
            email_adapter.Rendered("t", "s", "b"),
        )
        email_adapter.deliver(world.vault, account, message, context)

    threads = [threading.Thread(target=deliver) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(world.smtp.accepted) == 6 and world.refreshes() == 2


def test_a_second_refusal_is_the_end_and_recorded(world: World) -> None:
    world.store(EVERYONE)
    token = world.token(None)
    world.smtp.accepts = lambda user, token: False
    with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
        world.send(PLAIN)
    assert [each.accepted for each in world.smtp.logins] == [False, False]
    assert world.refreshes() == 2 and world.smtp.accepted == []
    assert world.records() == [("failed", "SMTPAuthenticationError")]
    assert world.token(None) != token
    world.require_no_secret(repr(refused.value))


def test_a_refused_token_that_cannot_be_replaced_is_recorded_as_that(world: World) -> None:
    world.store(EVERYONE)
    world.oauth.revoke(world.token(None).reveal())
    world.oauth.fault("error", error="invalid_grant")
    with pytest.raises(NeedsLogin) as lost:
        world.send(PLAIN)
    assert [each.accepted for each in world.smtp.logins] == [False]
    assert world.records() == [("failed", str(lost.value))]
    world.require_no_secret(str(lost.value), str(lost.value.hint))


@pytest.mark.parametrize("what", ["down", "login"])
def test_without_a_token_no_mail_server_is_asked(world: World, what: str) -> None:
    world.store(EVERYONE)
    world.store(OWN)
    if what == "down":
        world.oauth.fault("status", status=503)
    else:
        world.oauth.revoke(world.secrets[-2])  # its family
    with pytest.raises(ProviderUnreachable if what == "down" else NeedsLogin) as lost:
        world.send(OWN)
    assert world.smtp.logins == [] and world.records() == [("failed", str(lost.value))]
    world.send(PLAIN)  # the global account's trouble this is not
    assert [sent.account for sent in world.smtp.accepted] == [user(EVERYONE)]


class Temporary(OAuthSmtpServer):
    """454 is no word about the token (RFC 4954)."""

    async def auth_XOAUTH2(self, server: SMTP, arguments: list[str]) -> AuthResult:
        self.logins.append(Attempt("XOAUTH2", "", False))
        return AuthResult(success=False, handled=False, message="454 4.7.0 Try again later")


class Ending(OAuthSmtpServer):
    """Ends the connection with its refusal, as some do."""

    async def auth_XOAUTH2(self, server: SMTP, arguments: list[str]) -> AuthResult:
        result = await super().auth_XOAUTH2(server, arguments)
        if not result.success:
            await server.push("535 5.7.8 Not accepted, and goodbye")
            assert server.transport
            server.transport.close()
            return AuthResult(success=False, handled=True)
        return result


def test_a_refusal_that_is_not_about_the_token_replaces_none(world: World, tmp_path: Path) -> None:
    with Temporary(tmp_path, world.oauth.accepts) as smtp:
        changed = world._replace(smtp=smtp)
        changed.store(EVERYONE)
        with pytest.raises(smtplib.SMTPAuthenticationError):
            changed.send(PLAIN)
        assert len(smtp.logins) == 1 and world.refreshes() == 1


def test_a_server_that_hangs_up_with_its_refusal_is_asked_over_a_new_connection(
    world: World, tmp_path: Path
) -> None:
    with Ending(tmp_path, world.oauth.accepts) as smtp:
        changed = world._replace(smtp=smtp)
        changed.store(EVERYONE)
        world.oauth.revoke(world.token(None).reveal())
        changed.send(PLAIN)
        assert len(smtp.accepted) == 1 and world.refreshes() == 2


# What the server offers.


@pytest.mark.parametrize("offered", [("OAUTHBEARER",), ("OAUTHBEARER", "PLAIN", "LOGIN")])
def test_the_standards_form_serves_where_the_other_is_not_offered(
    world: World, offered: tuple[str, ...]
) -> None:
    world.smtp.mechanisms = offered
    world.store(OWN)
    world.oauth.revoke(world.token(OWN).reveal())
    world.send(OWN)
    assert [each.mechanism for each in world.smtp.logins] == ["OAUTHBEARER"] * 2
    assert len(world.smtp.accepted) == 1


def test_a_server_that_takes_no_token_gets_neither_the_token_nor_the_password(
    world: World,
) -> None:
    world.smtp.mechanisms = ("PLAIN",)
    world.store(OWN)
    with pytest.raises(smtplib.SMTPNotSupportedError):
        world.send(OWN)
    assert world.smtp.logins == [] and world.records() == [("failed", "SMTPNotSupportedError")]


class NoTls:
    """An SMTP server without TLS that asks for logins all the same, and notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        noting = self

        class Noting(SMTP):
            async def smtp_AUTH(self, arg: str) -> None:
                noting.heard.append(arg.encode())
                await self.push("235 2.7.0 Accepted")

        class Anywhere(Controller):
            def factory(self) -> SMTP:
                return Noting(self.handler, auth_require_tls=False)

            def _trigger_server(self) -> None:
                self.port = self.server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
                super()._trigger_server()  # type: ignore[no-untyped-call]

        logging.getLogger("mail.log").addHandler(logging.NullHandler())
        self.controller = Anywhere(object(), hostname="127.0.0.1", port=0, ready_timeout=60)


@contextlib.contextmanager
def listening(server: NoTls) -> Iterator[NoTls]:
    server.controller.start()
    try:
        yield server
    finally:
        server.controller.stop()


@pytest.mark.parametrize("kind", ["a password", "a grant", "both"])
def test_nothing_is_sent_without_tls_or_to_an_untrusted_certificate(
    world: World, kind: str
) -> None:
    world.store(OWN, *set(KINDS["both"]).difference(KINDS[kind]))
    with pytest.raises(ssl.SSLError):
        world.send(OWN, cafile=None)
    assert world.smtp.logins == []
    with listening(NoTls()) as server:
        world.vault.set("smtp", "port", str(server.controller.port), OWN)
        with pytest.raises(smtplib.SMTPNotSupportedError):
            world.send(OWN)
        assert server.heard == []


# An account that changes meanwhile.


@pytest.mark.parametrize("project", [OWN, PLAIN])
def test_an_account_that_changes_scope_before_its_token_comes_sends_nothing(
    world: World, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.store(EVERYONE)
    if project == OWN:
        world.store(OWN)
    access_token = Vault.access_token

    def changed_first(vault: Vault, *args: Any, **given: Any) -> Any:
        if project == OWN:
            for name in KINDS["both"]:
                vault.delete("smtp", name, OWN)
        else:
            fields = world.fields(OWN)
            vault.set_fields("smtp", fields, PLAIN)
        return access_token(vault, *args, **given)

    monkeypatch.setattr(Vault, "access_token", changed_first)
    with pytest.raises(MixedAccount) as mixed:
        world.send(project)
    assert world.smtp.logins == [] and world.records() == [("failed", str(mixed.value))]
