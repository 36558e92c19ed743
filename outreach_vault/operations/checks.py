"""
Try a stored account at its provider: the cheapest call that needs the credentials and changes
nothing.

It talks only to the provider's own host or the stored SMTP host, over verified TLS. It follows no
redirect, and has a limit for bytes and for time. The provider's answer is cut short, and never
repeats a credential.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import smtplib
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote

from ..errors import WrongArgument
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
from ..providers import provider_of
from ..secret import Secret
from ..values.bundle import SmtpBundle
from ..values.declared import Bundle

_FINAL: Final = 500  # from here on a mail server's no is final, and a web server's is not about us
_NOT_NOW: Final = (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What the provider said.

    Attributes:
        outcome: `valid`, `refused` (by the provider), or `unreachable` (no clear answer).
        reason: the provider's words, or what failed, without any credential; None if valid.
    """

    outcome: Literal["valid", "refused", "unreachable"]
    reason: str | None = None


class _Refused(Exception):
    """The provider said no."""


def check(bundle: Bundle, *, network: Network | None = None) -> Verdict:
    """
    Whether the provider accepts these credentials.

    Raises:
        ValueError: the vault cannot check this provider; `CHECKED` lists those that it can.
        UnusableValue: a field cannot be what it means.
    """
    network = network or Network()
    if bundle.provider not in _CHECKS:
        known = ", ".join(CHECKED)
        raise WrongArgument(
            f"{bundle.provider}: this provider cannot be checked", hint=f"these can: {known}"
        )
    attempt, line = _CHECKS[bundle.provider], Line()
    try:
        within(network.seconds, lambda: attempt(bundle, network, line))
    except _Refused as answer:
        return Verdict("refused", silent(str(answer), _secrets(bundle)))
    except TookTooLong:
        return Verdict("unreachable", f"no answer within {network.seconds:g} seconds")
    except Unreachable as fault:
        return Verdict("unreachable", silent(str(fault), _secrets(bundle)))
    finally:
        line.hang_up()  # ends the thread that `within` leaves behind
    return Verdict("valid")


def _smtp(bundle: Bundle, network: Network, line: Line) -> None:
    assert isinstance(bundle, SmtpBundle)
    with named(f"{bundle.host}:{bundle.port}"):
        server = _mail(bundle, network, line)
        try:
            server.set_debuglevel(0)  # the library's own debugging would print the login
            if not bundle.tls_first:
                # Raises if the server has no STARTTLS: no password goes in the clear.
                server.starttls(context=network.context)
            _log_in(server, bundle)
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


def _log_in(server: smtplib.SMTP, bundle: SmtpBundle) -> None:
    if not (bundle.user.isascii() and bundle.password.reveal().isascii()):
        raise _Refused("the user or the password is not ASCII, and this login takes nothing else")
    try:
        server.login(bundle.user, bundle.password.reveal())
    except smtplib.SMTPAuthenticationError as error:
        code, said = error.smtp_code, error.smtp_error
        words = said.decode(errors="replace") if isinstance(said, bytes) else said
        raise (_Refused if code >= _FINAL else Unreachable)(f"{code} {words}") from None
    except ValueError:  # the server's question is not base64; the error would repeat our answer
        raise Unreachable("it does not know SMTP's way to log in") from None


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
CHECKED: Final = tuple(sorted(_CHECKS))


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


def _secrets(bundle: Bundle) -> Iterator[Secret]:
    known = provider_of(bundle.provider)
    for name, credential in bundle.items():
        if not (listed := known.field(name)) or listed.secret:
            yield credential.secret
