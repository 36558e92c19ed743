"""
Connections to providers: verified TLS, no redirect followed, a limit for bytes and for time.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from .secret import Secret

SECONDS: Final = 20.0
STEP_SECONDS: Final = 10.0  # one step of a connection; the whole check has `SECONDS`
_ANSWER_BYTES: Final = 64 * 1024  # the body of an answer
_HEARD_BYTES: Final = 128 * 1024  # everything: the lines of SMTP, headers, `100 Continue`, the body


@dataclass(frozen=True, slots=True)
class Network:
    """
    How providers are reached.

    Attributes:
        context: what TLS trusts; by default the system's authorities.
        address: where a host listens; by default its own name and port 443. The certificate must be
            the host's in any case.
        seconds: the time limit for a whole check, or a whole request for a token.
        sending: called when a connection is there, just before a web request is sent; it may raise.
    """

    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    address: Callable[[str], tuple[str, int]] = lambda host: (host, 443)
    seconds: float = SECONDS
    sending: Callable[[], None] = lambda: None


class Unreachable(Exception):
    """The provider said neither yes nor no."""


class TooMuch(http.client.HTTPException):
    """The provider sends too much. Not an OSError: smtplib takes that for a lost connection."""


class Line:
    """One connection. It counts what is read, and any thread can end it."""

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
        """What *of* receives, up to one limit for the whole connection; then TooMuch."""
        return io.BufferedReader(_Counted(of.makefile("rb", buffering=0), self._count))

    def _count(self, read: int) -> None:
        self._left -= read
        if self._left < 0:
            raise TooMuch(f"it sends more than {_HEARD_BYTES // 1024} KiB")

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


@contextlib.contextmanager
def named(peer: str) -> Iterator[None]:
    """Name *peer* in each fault of the connection."""
    try:
        yield
    except UnicodeError:  # in the name
        raise Unreachable(f"{peer}: not the name of a host") from None
    except (OSError, http.client.HTTPException) as fault:  # ssl's and smtplib's are OSErrors
        raise Unreachable(f"{peer}: {fault or type(fault).__name__}") from fault


class Answer(NamedTuple):
    """What a web server answered."""

    status: int
    reason: str
    body: bytes


class Unsendable(Exception):
    """A header, the path or the host has characters that cannot be sent."""


def exchange(
    network: Network,
    line: Line,
    url: str,
    headers: Mapping[str, str],
    body: Secret | None = None,
) -> Answer:
    """
    GET, or with a *body* POST. Plain http only where the URL says so.

    Raises:
        Unreachable: no answer, one that is too long, or a redirect.
        Unsendable: nothing was sent.
    """
    parts = urlsplit(url)
    host, where = parts.hostname or "", parts.netloc
    connection: _Plain
    if parts.scheme == "http":
        connection = _Plain(host, parts.port, timeout=STEP_SECONDS)
    else:
        address = (host, parts.port) if parts.port else network.address(host)
        connection = _Tls(*address, timeout=STEP_SECONDS, context=network.context)
        connection.trusting = network.context
    connection.line, connection.asked_for = line, host
    connection.set_debuglevel(0)  # the library's own debugging would print the headers
    with named(where), contextlib.closing(connection):
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.putrequest("GET" if body is None else "POST", path, skip_host=True)
            for name, value in {"Accept": "application/json", "Host": where, **headers}.items():
                connection.putheader(name, value.encode())
            if body is not None:
                connection.putheader("Content-Length", str(len(body.reveal().encode())))
        except (ValueError, http.client.InvalidURL):  # the error would repeat the value
            raise Unsendable from None
        finally:
            value = ""  # no error's frame may hold it
        connection.connect()
        network.sending()
        connection.endheaders(None if body is None else body.reveal().encode())
        try:
            with connection.getresponse() as response:
                answer = Answer(response.status, response.reason, response.read(_ANSWER_BYTES))
        except ValueError:  # http.client's own, as at a part of a negative length
            raise http.client.HTTPException("not an answer of HTTP") from None
    if http.client.MULTIPLE_CHOICES <= answer.status < http.client.BAD_REQUEST:
        raise Unreachable(f"{where} answers with a redirect, which is not followed")
    return answer


def basic(user: str, password: Secret) -> str:
    """For the header Authorization."""
    return "Basic " + base64.b64encode(f"{user}:{password.reveal()}".encode()).decode("ascii")


class _Plain(http.client.HTTPConnection):
    """Counts what it reads."""

    line: Line
    asked_for: str

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.line.connected(self.sock)

    def response_class(self, sock: socket.socket, *rest: Any, **options: Any) -> Any:  # type: ignore[override]
        heard: Any = _Heard(sock, self.line)
        return http.client.HTTPResponse(heard, *rest, **options)


class _Tls(_Plain, http.client.HTTPSConnection):
    """Its certificate must be that of the host that was asked for, whatever its address."""

    trusting: ssl.SSLContext

    def connect(self) -> None:
        _Plain.connect(self)
        self.sock = self.trusting.wrap_socket(self.sock, server_hostname=self.asked_for)


class _Heard:
    """All that an HTTPResponse needs of a socket."""

    def __init__(self, sock: socket.socket, line: Line) -> None:
        self._sock, self._line = sock, line

    def makefile(self, _mode: str) -> io.BufferedReader:
        return self._line.file(self._sock)
