"""
Try a stored account at its provider: the cheapest call that needs the credentials and changes
nothing.

It talks only to the provider's own host or the stored SMTP host, over verified TLS. It follows no
redirect, and has a limit for bytes and for time. The provider's answer is cut short, and never
repeats a credential.
"""

from __future__ import annotations

import base64
import contextlib
import html
import http.client
import io
import json
import re
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import quote, unquote, unquote_plus

from ..errors import WrongArgument
from ..limits import TookTooLong, within
from ..providers import provider_of
from ..secret import Secret
from ..values.bundle import SmtpBundle
from ..values.declared import Bundle

SECONDS: Final = 20.0
_STEP_SECONDS: Final = 10.0  # one step of a connection; the whole check has `SECONDS`
_ANSWER_BYTES: Final = 64 * 1024  # the body of an answer
_HEARD_BYTES: Final = 128 * 1024  # everything: the lines of SMTP, headers, `100 Continue`, the body
_REASON_CHARACTERS: Final = 200
_FINAL: Final = 500  # from here on a mail server's no is final, and a web server's is not about us
_NOT_NOW: Final = (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{2,}")
_HEX: Final = re.compile(r"[0-9A-Fa-f]{2,}")
_ESCAPE: Final = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|(.))")
_SHORT: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
_MASK: Final = "********"
_MASKED_BY_WORD: Final = 4096  # characters; a longer text with a secret in it is not shown at all
_TO_URLSAFE: Final = str.maketrans("+/", "-_")


@dataclass(frozen=True, slots=True)
class Network:
    """
    How providers are reached.

    Attributes:
        context: what TLS trusts; by default the system's authorities.
        address: where a host listens; by default its own name and port 443. The certificate must be
            the host's in any case.
        seconds: the time limit for a whole check.
    """

    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    address: Callable[[str], tuple[str, int]] = lambda host: (host, 443)
    seconds: float = SECONDS


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


class _Unreachable(Exception):
    """The provider said neither yes nor no."""


class _TooMuch(http.client.HTTPException):
    """The provider sends too much. Not an OSError: smtplib takes that for a lost connection."""


class _Line:
    """The connection of one check. It counts what is read, and any thread can end it."""

    def __init__(self) -> None:
        self._left, self._lock, self._over = _HEARD_BYTES, threading.Lock(), False
        self._same: socket.socket | None = None

    def connected(self, to: socket.socket) -> None:
        """Keep a second descriptor. Call this before TLS, which takes the first away from *to*."""
        with self._lock:
            self._same = to.dup()
        if self._over:  # the time ran out before there was a connection
            self.hang_up()

    def file(self, of: socket.socket) -> io.BufferedReader:
        """What *of* receives, up to one limit for the whole connection; then _TooMuch."""
        return io.BufferedReader(_Counted(of.makefile("rb", buffering=0), self._count))

    def _count(self, read: int) -> None:
        self._left -= read
        if self._left < 0:
            raise _TooMuch(f"it sends more than {_HEARD_BYTES // 1024} KiB")

    def hang_up(self) -> None:
        """End the connection: any read or write on it fails at once."""
        with self._lock:
            self._over, same, self._same = True, self._same, None
        if same:
            with same, contextlib.suppress(OSError):  # the peer may have gone
                same.shutdown(socket.SHUT_RDWR)


class _Counted(io.RawIOBase):
    def __init__(self, file: io.RawIOBase, count: Callable[[int], None]) -> None:
        self._file, self._count = file, count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        read = self._file.readinto(buffer)
        self._count(read or 0)
        return read

    def close(self) -> None:
        self._file.close()
        super().close()


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
    attempt, line = _CHECKS[bundle.provider], _Line()
    try:
        within(network.seconds, lambda: attempt(bundle, network, line))
    except _Refused as answer:
        return Verdict("refused", _silent(str(answer), bundle))
    except TookTooLong:
        return Verdict("unreachable", f"no answer within {network.seconds:g} seconds")
    except _Unreachable as fault:
        return Verdict("unreachable", _silent(str(fault), bundle))
    finally:
        line.hang_up()  # ends the thread that `within` leaves behind
    return Verdict("valid")


def _smtp(bundle: Bundle, network: Network, line: _Line) -> None:
    assert isinstance(bundle, SmtpBundle)
    with _named(f"{bundle.host}:{bundle.port}"):
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


def _mail(bundle: SmtpBundle, network: Network, line: _Line) -> smtplib.SMTP:
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
            except _TooMuch:
                self.close()  # nobody else can while it connects; smtplib does so at its own errors
                raise

    class MailOverTls(smtplib.SMTP_SSL, Mail):
        """SMTP_SSL's `_get_socket` puts TLS on the socket of Mail's."""

    if bundle.tls_first:
        return MailOverTls(bundle.host, bundle.port, timeout=_STEP_SECONDS, context=network.context)
    return Mail(bundle.host, bundle.port, timeout=_STEP_SECONDS)


def _log_in(server: smtplib.SMTP, bundle: SmtpBundle) -> None:
    if not (bundle.user.isascii() and bundle.password.reveal().isascii()):
        raise _Refused("the user or the password is not ASCII, and this login takes nothing else")
    try:
        server.login(bundle.user, bundle.password.reveal())
    except smtplib.SMTPAuthenticationError as error:
        code, said = error.smtp_code, error.smtp_error
        words = said.decode(errors="replace") if isinstance(said, bytes) else said
        raise (_Refused if code >= _FINAL else _Unreachable)(f"{code} {words}") from None
    except ValueError:  # the server's question is not base64; the error would repeat our answer
        raise _Unreachable("it does not know SMTP's way to log in") from None


@contextlib.contextmanager
def _named(peer: str) -> Iterator[None]:
    """Name *peer* in each fault of the connection."""
    try:
        yield
    except UnicodeError:  # in the name
        raise _Unreachable(f"{peer}: not the name of a host") from None
    except (OSError, http.client.HTTPException) as fault:  # ssl's and smtplib's are OSErrors
        raise _Unreachable(f"{peer}: {fault or type(fault).__name__}") from fault


def _twilio(bundle: Bundle, network: Network, line: _Line) -> None:
    sid = bundle["account_sid"].reveal()
    path = f"/2010-04-01/Accounts/{quote(sid, safe='')}.json"
    headers = {"Authorization": _basic(sid, bundle["auth_token"].secret)}
    _ask(network, line, "api.twilio.com", path, headers)


def _elevenlabs(bundle: Bundle, network: Network, line: _Line) -> None:
    headers = {"xi-api-key": bundle["api_key"].reveal()}
    with _restricted("missing_permissions"):
        _ask(network, line, "api.elevenlabs.io", "/v1/user", headers)


def _anthropic(bundle: Bundle, network: Network, line: _Line) -> None:
    headers = {"x-api-key": bundle["api_key"].reveal(), "anthropic-version": "2023-06-01"}
    _ask(network, line, "api.anthropic.com", "/v1/models?limit=1", headers)


def _sendgrid(bundle: Bundle, network: Network, line: _Line) -> None:
    headers = {"Authorization": f"Bearer {bundle['api_key'].reveal()}"}
    _ask(network, line, "api.sendgrid.com", "/v3/scopes", headers)


def _openai(bundle: Bundle, network: Network, line: _Line) -> None:
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


_CHECKS: Final[dict[str, Callable[[Bundle, Network, _Line], None]]] = {
    "smtp": _smtp,
    "twilio": _twilio,
    "elevenlabs": _elevenlabs,
    "anthropic": _anthropic,
    "sendgrid": _sendgrid,
    "openai": _openai,
}
CHECKED: Final = tuple(sorted(_CHECKS))


def _ask(network: Network, line: _Line, host: str, path: str, headers: Mapping[str, str]) -> None:
    """GET. http.client follows no redirect."""
    connection = _Connection(host, network.address(host), network.context, line)
    connection.set_debuglevel(0)  # the library's own debugging would print the headers
    with _named(host), contextlib.closing(connection):
        try:
            connection.putrequest("GET", path, skip_host=True)
            for name, value in {"Accept": "application/json", "Host": host, **headers}.items():
                connection.putheader(name, value.encode())
        except (ValueError, http.client.InvalidURL):  # the error would repeat the value
            raise _Refused("a credential has characters that cannot be sent") from None
        connection.endheaders()
        with connection.getresponse() as response:
            body = response.read(_ANSWER_BYTES)
    if http.client.OK <= response.status < http.client.MULTIPLE_CHOICES:
        return
    if http.client.MULTIPLE_CHOICES <= response.status < http.client.BAD_REQUEST:
        raise _Unreachable(f"{host} answers with a redirect, which is not followed")
    final = http.client.BAD_REQUEST <= response.status < _FINAL and response.status not in _NOT_NOW
    said = f"{response.status} {_words(body) or response.reason}"
    raise (_Refused if final else _Unreachable)(said)


class _Connection(http.client.HTTPSConnection):
    """To the address of *host*, whose certificate it asks for."""

    def __init__(self, host: str, address: tuple[str, int], trusting: ssl.SSLContext, line: _Line):
        super().__init__(*address, timeout=_STEP_SECONDS, context=trusting)
        self._asked_for, self._trusting, self._line = host, trusting, line

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self._line.connected(self.sock)
        self.sock = self._trusting.wrap_socket(self.sock, server_hostname=self._asked_for)

    def response_class(self, sock: socket.socket, *rest: Any, **options: Any) -> Any:  # type: ignore[override]
        heard: Any = _Heard(sock, self._line)
        return http.client.HTTPResponse(heard, *rest, **options)


class _Heard:
    """All that an HTTPResponse needs of a socket."""

    def __init__(self, sock: socket.socket, line: _Line) -> None:
        self._sock, self._line = sock, line

    def makefile(self, _mode: str) -> io.BufferedReader:
        return self._line.file(self._sock)


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


def _silent(text: str, bundle: Bundle) -> str:
    """
    The text on one line, cut short, with a mask for each secret of the bundle that it repeats.

    It finds secrets in base64, as logins are sent, and in other encodings. Where it cannot tell
    which part holds a secret, it masks everything but the status.
    """
    known = provider_of(bundle.provider)
    secrets = [
        credential.reveal()
        for name, credential in bundle.items()
        if not (listed := known.field(name)) or listed.secret
    ]
    sought = [value for secret in secrets for value in (secret, _one_line(secret)) if value]
    line = _one_line(text)
    for value in sought:
        line = line.replace(value, _MASK)
    if len(line) <= _MASKED_BY_WORD:  # tries all decodings on each word
        line = _BASE64.sub(lambda found: _MASK if _hides(found[0], sought) else found[0], line)
    if _hides(line, sought):
        status = re.match(r"[0-9]{3} ", line)
        line = (status[0] if status else "") + _MASK
    return line if len(line) <= _REASON_CHARACTERS else line[:_REASON_CHARACTERS] + "..."


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _hides(text: str, sought: list[str]) -> bool:
    """Whether decoding the text once, or twice in any two ways, shows a secret."""
    once = {decode(text) for decode in _DECODERS} - {text}
    twice = {decode(found) for found in once for decode in _DECODERS}
    return any(value in found for found in once | twice for value in sought)


def _from_base64(text: str) -> str:
    """Each run of its characters, from four offsets: either end may be cut, or another word's."""
    words = _BASE64.findall(text.translate(_TO_URLSAFE))
    parts = [word[start:] for word in words for start in range(4)]
    return _as_lines(base64.urlsafe_b64decode(part + "A" * (-len(part) % 4)) for part in parts)


def _from_hex(text: str) -> str:
    parts = [word[start:] for word in _HEX.findall(text) for start in (0, 1)]
    return _as_lines(bytes.fromhex(part[: len(part) // 2 * 2]) for part in parts)


def _as_lines(found: Iterable[bytes]) -> str:
    return "\n".join(part.decode(errors="replace") for part in found)


def _from_escapes(text: str) -> str:
    """JSON's, and \\x and \\' as Python shows bytes. Joins the two halves of a surrogate pair."""

    def character(part: re.Match[str]) -> str:
        code = part[1] or part[2]
        return chr(int(code, 16)) if code else _SHORT.get(part[3], part[3])

    found = _ESCAPE.sub(character, text)
    return found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _from_escaped_bytes(text: str) -> str:
    """Bytes of UTF-8, each an escape."""
    return _from_escapes(text).encode("latin-1", "replace").decode(errors="replace")


_DECODERS: Final[tuple[Callable[[str], str], ...]] = (
    unquote,
    unquote_plus,
    lambda text: unquote(text, "latin-1"),
    html.unescape,
    _from_escapes,
    _from_escaped_bytes,
    _from_hex,
    _from_base64,
)


def _basic(user: str, password: Secret) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password.reveal()}".encode()).decode("ascii")
