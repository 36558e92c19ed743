"""
Try a stored account at its provider: the cheapest call that needs the credentials and changes
nothing. An account with OAuth2 gets a new access token first, and logs in with that.

It talks only to the provider's own host, the stored SMTP host or that of the stored token URL, over
verified TLS. It follows no redirect, and has a limit for bytes and for time. The provider's answer
is cut short, and never repeats a credential.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import smtplib
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote

from ..errors import ProviderUnreachable, TokenUnavailable, UnusableValue, WrongArgument
from ..limits import TookTooLong, within
from ..masking import silent
from ..network import (
    STEP_SECONDS,
    Line,
    Network,
    TooMuch,
    Unreachable,
    Unsendable,
    basic,
    exchange,
    named,
)
from ..providers import catalogue, provider_of
from ..values.bundle import SmtpBundle, secrets
from ..values.credential import AccessToken
from ..values.declared import Bundle
from ..vault import Vault

_FINAL: Final = 500  # from here on a mail server's no is final, and a web server's is not about us
_NOT_NOW: Final = (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What the provider said.

    Attributes:
        outcome: `valid`, `refused` (by the provider), or `unreachable` (no clear answer).
        reason: the provider's words, or what failed, without any credential; what a valid account
            was given, or None.
        hint: what to do next, or None.
    """

    outcome: Literal["valid", "refused", "unreachable"]
    reason: str | None = None
    hint: str | None = None


class _Refused(Exception):
    """The provider said no."""


def check_stored(vault: Vault, bundle: Bundle, *, network: Network | None = None) -> Verdict:
    """
    As `check`; an account with OAuth2 must get a new access token first.

    A provider that gives one and has no check of its own accepts the account.
    """
    grant = provider_of(bundle.provider).grant_of(bundle)
    if grant is None:
        return check(bundle, network=network)
    try:
        token = _new_token(vault, bundle, bundle[grant.client_id].project_id, network)
    except TokenUnavailable as error:
        away = isinstance(error, ProviderUnreachable)
        return Verdict("unreachable" if away else "refused", str(error), error.hint)
    if bundle.provider not in _CHECKS:
        ends = f"{token.expires_at:%Y-%m-%d %H:%M} UTC"
        return Verdict("valid", f"the provider gave an access token until {ends}")
    return check(bundle, token, network=network)


def _new_token(
    vault: Vault, bundle: Bundle, scope: str | None, network: Network | None
) -> AccessToken:
    """Not the one at hand, which would say nothing of the refresh token."""

    def generation() -> int | None:
        turn = vault.rows.tokens.turn(scope, bundle.provider)
        return turn and turn.generation

    ask = functools.partial(
        vault.access_token,
        *(bundle.provider, bundle.project_id),
        insist=True,
        context=network.context if network else None,
    )
    before, token = generation(), ask()
    return token if generation() != before else ask(refused=token)


def check(
    bundle: Bundle, token: AccessToken | None = None, *, network: Network | None = None
) -> Verdict:
    """
    Whether the provider accepts these credentials.

    Args:
        token: for a mail account with OAuth2 (`check_stored` gets one).
    Raises:
        ValueError: the vault cannot check this provider; `checkable` lists those that it can.
        UnusableValue: a field cannot be what it means.
        MixedAccount: the token is another account's.
    """
    network = network or Network()
    if bundle.provider not in _CHECKS:
        known = ", ".join(checkable())
        raise WrongArgument(
            f"{bundle.provider}: this provider cannot be checked", hint=f"these can: {known}"
        )
    attempt, line = _CHECKS[bundle.provider], Line()
    if bundle.provider == "smtp":
        attempt = functools.partial(_smtp, token=token)
    try:
        within(network.seconds, lambda: attempt(bundle, network, line))
    except _Refused as answer:
        return Verdict("refused", silent(str(answer), secrets(bundle)))
    except TookTooLong:
        return Verdict("unreachable", f"no answer within {network.seconds:g} seconds")
    except Unreachable as fault:
        return Verdict("unreachable", silent(str(fault), secrets(bundle)))
    finally:
        line.hang_up()  # ends the thread that `within` leaves behind
    return Verdict("valid")


def checkable() -> list[str]:
    """The providers that `check_stored` can try, if the account has what it needs."""
    return sorted({*_CHECKS, *(known.name for known in catalogue() if known.grant)})


def _smtp(
    bundle: Bundle, network: Network, line: Line, *, token: AccessToken | None = None
) -> None:
    assert isinstance(bundle, SmtpBundle)
    with named(f"{bundle.host}:{bundle.port}"):
        server = _mail(bundle, network, line)
        try:
            if not bundle.tls_first:
                # Raises if the server has no STARTTLS: no login goes in the clear.
                server.starttls(context=network.context)
            _log_in(server, bundle, token)
        finally:
            with contextlib.suppress(smtplib.SMTPException):
                server.putcmd("QUIT")  # no need to wait for the answer: the login has had its own
            server.close()


def _mail(bundle: SmtpBundle, network: Network, line: Line) -> smtplib.SMTP:
    """Connect to the mail server. The classes are local: smtplib connects as soon as it is made."""

    class Mail(smtplib.SMTP):
        def _get_socket(self, *address: Any) -> socket.socket:
            made: socket.socket = super()._get_socket(*address)  # type: ignore[misc]  # its stubs leave it out
            line.connected(made)
            return made

        def getreply(self) -> tuple[int, bytes]:
            if self.file is None:  # at the start, and anew after STARTTLS
                self.file = line.file(self.sock)  # type: ignore[arg-type]
            try:
                return super().getreply()
            except TooMuch:
                self.close()  # nobody else can while it connects; smtplib does so at its own errors
                raise

    class MailOverTls(smtplib.SMTP_SSL, Mail):
        """SMTP_SSL's `_get_socket` puts TLS on the socket of Mail's."""

    if bundle.tls_first:
        return MailOverTls(bundle.host, bundle.port, timeout=STEP_SECONDS, context=network.context)
    return Mail(bundle.host, bundle.port, timeout=STEP_SECONDS)


def _log_in(server: smtplib.SMTP, bundle: SmtpBundle, token: AccessToken | None) -> None:
    try:
        bundle.log_in(server, token)
    except smtplib.SMTPAuthenticationError as error:
        said = f"{error.smtp_code} {error.smtp_error!s}"
        raise (_Refused if error.smtp_code >= _FINAL else Unreachable)(said) from None
    except UnusableValue as error:
        raise _Refused(str(error)) from None


def _twilio(bundle: Bundle, network: Network, line: Line) -> None:
    sid = bundle["account_sid"].reveal()
    path = f"/2010-04-01/Accounts/{quote(sid, safe='')}.json"
    headers = {"Authorization": basic(sid, bundle["auth_token"].secret)}
    _ask(network, line, "api.twilio.com", path, headers)


def _elevenlabs(bundle: Bundle, network: Network, line: Line) -> None:
    headers = {"xi-api-key": bundle["api_key"].reveal()}
    with _restricted("missing_permissions"):
        _ask(network, line, "api.elevenlabs.io", "/v1/user", headers)


def _anthropic(bundle: Bundle, network: Network, line: Line) -> None:
    headers = {"x-api-key": bundle["api_key"].reveal(), "anthropic-version": "2023-06-01"}
    _ask(network, line, "api.anthropic.com", "/v1/models?limit=1", headers)


def _sendgrid(bundle: Bundle, network: Network, line: Line) -> None:
    headers = {"Authorization": f"Bearer {bundle['api_key'].reveal()}"}
    _ask(network, line, "api.sendgrid.com", "/v3/scopes", headers)


def _openai(bundle: Bundle, network: Network, line: Line) -> None:
    headers = {"Authorization": f"Bearer {bundle['api_key'].reveal()}"}
    for name, header in (("organization", "OpenAI-Organization"), ("project", "OpenAI-Project")):
        if name in bundle:
            headers[header] = bundle[name].reveal()
    with _restricted("Missing scopes"):
        _ask(network, line, "api.openai.com", "/v1/models", headers)


@contextlib.contextmanager
def _restricted(words: str) -> Iterator[None]:
    """A key without the right to this call is valid: its rights are for other calls."""
    try:
        yield
    except _Refused as answer:
        if words not in str(answer):
            raise


_CHECKS: Final[dict[str, Callable[[Bundle, Network, Line], None]]] = {
    "smtp": _smtp,
    "twilio": _twilio,
    "elevenlabs": _elevenlabs,
    "anthropic": _anthropic,
    "sendgrid": _sendgrid,
    "openai": _openai,
}


def _ask(network: Network, line: Line, host: str, path: str, headers: Mapping[str, str]) -> None:
    try:
        answer = exchange(network, line, f"https://{host}{path}", headers)
    except Unsendable:
        raise _Refused("a credential has characters that cannot be sent") from None
    if http.client.OK <= answer.status < http.client.MULTIPLE_CHOICES:
        return
    final = http.client.BAD_REQUEST <= answer.status < _FINAL and answer.status not in _NOT_NOW
    said = f"{answer.status} {_words(answer.body) or answer.reason}"
    raise (_Refused if final else Unreachable)(said)


def _words(body: bytes) -> str:
    """The words in a JSON answer; each provider nests them in its own way."""
    try:
        return " ".join(_texts(json.loads(body)))
    except (ValueError, RecursionError):
        return ""


def _texts(found: Any) -> list[str]:
    if isinstance(found, dict):
        wanted = ("error", "errors", "detail", "status", "message", "type")
        return [text for name in wanted if name in found for text in _texts(found[name])]
    if isinstance(found, list):
        return [text for item in found for text in _texts(item)]
    return [found] if isinstance(found, str) else []
