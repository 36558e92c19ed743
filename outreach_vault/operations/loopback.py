"""
Where a browser brings the answer to a login: a web server for one request (RFC 8252, 7.3).

It listens on 127.0.0.1 alone. Any other program of this machine can reach it too: it takes nothing
without the `state` of this login, which is not given up for an answer with a wrong one. The code in
the answer is of no use without the PKCE verifier, which never leaves this process.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, Final, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

from ..errors import WrongArgument
from ..limits import on_thread
from ..secret import Secret

_DONE: Final = "/done"
_REQUEST_SECONDS: Final = 10.0
_AT_MOST: Final = 32  # parameters
_PAGE: Final = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>outreach_vault</title><p>{}</p>'
)
_HEADERS: Final = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'"),
    ("X-Content-Type-Options", "nosniff"),
)


class Answer(NamedTuple):
    """What the login page answered: a code, or why there is none."""

    code: Secret | None
    error: str = ""
    description: str = ""


class Loopback:
    """
    Runs while in a `with` statement.

    Args:
        callback: passes `require_callback`; without a port in it, any free one is taken.
        state: what the answer must repeat.
    Raises:
        WrongArgument: its port is in use.
    Attributes:
        url, port: where it listens.
        strays: how many answers had another state.
        shown: set when the browser shows the last page, whose address has no code.
    """

    def __init__(self, callback: str, state: Secret) -> None:
        parts = urlsplit(callback)
        self._path, self._state = parts.path or "/", state
        self._lock, self._come = threading.Lock(), threading.Event()
        self._answer: Answer | None = None
        self.strays, self.shown = 0, threading.Event()
        try:
            self._server = _Server(("127.0.0.1", parts.port or 0), _Handler)
        except OSError as error:
            raise WrongArgument(
                f"--callback: port {parts.port} cannot be listened on: {error.strerror}"
            ) from None
        self._server.loopback = self
        self.port = int(self._server.server_address[1])
        self.url = f"http://{parts.hostname}:{self.port}{parts.path}"

    def __enter__(self) -> Self:
        try:
            on_thread(lambda: self._server.serve_forever(poll_interval=0.05))
        except BaseException:
            self._server.server_close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self, seconds: float) -> Answer | None:
        """The answer; None if none came in time."""
        self._come.wait(seconds)
        return self._answer

    def handle(self, target: str) -> tuple[int, str]:
        """The status for a request, and the text to show; for a redirect, where to."""
        path, _, query = target.partition("?")
        if path == _DONE and self._answer:
            return 200, "The login goes on at the terminal. You can close this window."
        if path != self._path:
            return 404, "There is nothing here."
        try:
            pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_AT_MOST)
        except ValueError:
            pairs = []
        given = dict(pairs)
        with self._lock:
            if len(given) != len(pairs) or Secret(given.get("state", "")) != self._state:
                self.strays += 1
                return 400, "This is not the answer to the login that waits here."
            if self._answer:
                return 400, "The answer to this login has come already."
            if not (given.get("code") or given.get("error")):
                return 400, "The answer to the login has neither a code nor an error."
            code = None if given.get("error") else Secret(given["code"])
            self._answer = Answer(code, given.get("error", ""), given.get("error_description", ""))
        self._come.set()
        return 303, _DONE


def require_callback(callback: str) -> None:
    """Raise WrongArgument unless it is a URL of this machine that a login can come back to."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(callback)
        if (
            re.fullmatch("[!-~]+", callback)  # a browser would write the path in another way
            and parts.scheme == "http"
            and parts.netloc in (f"{parts.hostname}", f"{parts.hostname}:{parts.port}")
            and parts.hostname in ("127.0.0.1", "localhost")
            and not (parts.query or parts.fragment or parts.path == _DONE)
        ):
            return
    raise WrongArgument(
        "--callback: must be a URL such as http://127.0.0.1/callback, of this machine itself"
    )


class _Server(ThreadingTCPServer):
    """With threads: a browser opens connections ahead, and says nothing on them."""

    daemon_threads, block_on_close = True, False
    # A registered port is used again for the next login. On Windows others could then take it over.
    allow_reuse_address = os.name != "nt"
    loopback: Loopback

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away; a traceback would show the request


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _REQUEST_SECONDS
    server_version, sys_version = "outreach_vault", ""

    def do_GET(self) -> None:
        status, text = self.server.loopback.handle(self.path)
        self._show(status, text)
        if status == 200:
            self.server.loopback.shown.set()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self._show(code, "This cannot be answered.")  # the library's page repeats the request

    def log_message(self, format: str, *args: Any) -> None:
        pass  # it would be the request, with the code

    def _show(self, status: int, text: str) -> None:
        self.send_response(status)
        for name, value in _HEADERS:
            self.send_header(name, value)
        if status == 303:
            self.send_header("Location", text)
        self.end_headers()
        self.wfile.write(_PAGE.format("" if status == 303 else text).encode())
