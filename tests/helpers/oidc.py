"""
A real authorisation server of our own: npm's oidc-provider, started by tests/peers/oidc/server.mjs.

`make peers` installs it. A refresh token is good for one use, and its second use revokes the whole
family; PKCE is required; a native client may be called back at any port of 127.0.0.1.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, NamedTuple
from urllib.parse import quote_plus, urlencode

import pytest

from helpers import ROOT, TESTS

_FOLDER = TESTS / "peers" / "oidc"
# The one of our own environment first: `make peers` put it there because there was none that will
# do. Named from here: the environment with the lowest versions has none.
_PATH = os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ.get("PATH", os.defpath)])
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


def missing_peer() -> str | None:
    """Why there can be no authorisation server here."""
    if shutil.which("node", path=_PATH) is None:
        return "no node on this machine (make peers)"
    if not (_FOLDER / "node_modules" / "oidc-provider").is_dir():
        return "no oidc-provider in tests/peers/oidc (make peers)"
    return None


class Client(NamedTuple):
    """A client that the server knows; auth as in its metadata: none, client_secret_basic, ..."""

    id: str
    secret: str | None
    auth: str


class Grant(NamedTuple):
    """What a login gave."""

    client: Client
    account: str
    scope: str
    refresh_token: str
    access_token: str
    expires_in: int


class Answer(NamedTuple):
    status: int
    body: dict[str, Any]


class AuthorizationServer:
    """
    Runs while in a `with` statement; the test is skipped where it is not installed.

    Args:
        settings: what `set` takes too.
    """

    def __init__(self, **settings: object) -> None:
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None
        self._clients: dict[str, Client] = {}
        self.url = ""

    def __enter__(self) -> AuthorizationServer:
        if missing := missing_peer():
            pytest.skip(missing)
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            ["node", str(_FOLDER / "server.mjs"), json.dumps(self._settings)],
            env={**os.environ, "PATH": _PATH},
            stdin=subprocess.PIPE,  # its end is the server's
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        if not (ready := self._process.stdout.readline()):
            self.close()
            raise RuntimeError(f"the authorisation server did not start:\n{self.log()}")
        told = json.loads(ready)
        self.url = told["url"]
        self._clients = {known["id"]: Client(**known) for known in told["clients"]}
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._log.close()

    def close(self) -> None:
        """Also in the middle, as when the provider is down: its port then refuses."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # Where node is a script that starts another, only the end of their output shows that both
        # have ended.
        self._process.communicate()
        self._process = None

    def reset(self) -> None:
        """Settings, faults and counters as at the beginning; what hangs hangs on."""
        if self._process is None:  # a test ended it
            self.__enter__()
        else:
            self._control("reset")

    def log(self) -> str:
        """What it wrote to standard error."""
        self._log.seek(0)
        return self._log.read()

    @property
    def token_url(self) -> str:
        return f"{self.url}/token"

    @property
    def authorization_url(self) -> str:
        return f"{self.url}/auth"

    @property
    def device_url(self) -> str:
        """Where a device asks for a code (its authorisation endpoint)."""
        return f"{self.url}/device/auth"

    def client(self, name: str = "native") -> Client:
        """
        "native" (public), "basic" and "post" (with a secret) log in by code or device; "device" by
        device alone; "service" has client_credentials.
        """
        return self._clients[name]

    def grant(
        self, client: str = "native", *, account: str = "ada@example.com", scope: str = "smtp"
    ) -> Grant:
        """A login without the login."""
        made = self._control("grant", client_id=client, account=account, scope=scope)
        return Grant(client=self.client(made.pop("client_id")), **made)

    def counters(self) -> dict[str, Any]:
        """
        requests and successes by grant type, errors by their name, faults by kind; reuses (a
        refresh token that was consumed came again); revoked_families.
        """
        return self._control("counters")

    def fault(self, kind: str, times: int | None = 1, **more: object) -> None:
        """
        What goes wrong with the next *times* token requests; None: with all, until `mend`.

        Nothing is consumed: hang, status (status=, retry_after=), error (error=), redirect (to=),
        html, no_token, huge. Processed: delay (seconds=), lost (and no answer), same_refresh (no
        rotation, the old one in the answer), no_refresh (no rotation, none in the answer).
        grant_type= for those alone; path= for another endpoint than /token.
        """
        limit = {} if times is None else {"times": times}
        self._control("fault", kind=kind, **limit, **more)

    def mend(self) -> None:
        """Forget all faults."""
        self._control("fault")

    def lifetime(self, access: int | None = None, refresh: int | None = None) -> None:
        """How long tokens given out from now on last; the server's clock has whole seconds."""
        given = {"access_seconds": access, "refresh_seconds": refresh}
        self.set(**{name: value for name, value in given.items() if value is not None})

    def set(self, **settings: object) -> None:
        """
        account (who logs in), refuse (the user says no), interval (seconds between two polls of a
        device), token_chars (length of an access token), access_seconds, refresh_seconds.
        """
        self._control("settings", **settings)

    def walk(self, url: str, *, deliver: bool = True) -> str:
        """
        Follow *url* as the user's browser does, with cookies, and through login and consent, to
        where the client waits; returns that address. Without *deliver* the client does not hear.
        """
        browser = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPCookieProcessor(),
            _StaysAt(self.url),
        )
        try:
            with browser.open(url, timeout=60) as page:
                raise AssertionError(f"no redirect to a client, but {page.url}: {page.read()!r}")
        except urllib.error.HTTPError as redirect:
            with redirect:
                if redirect.code not in (302, 303):
                    raise AssertionError(f"{redirect}: {redirect.read()!r}") from None
                back = redirect.headers["Location"]
        if deliver:
            with _DIRECT.open(back, timeout=60) as page:
                page.read()
        return str(back)

    def approve_device(self, user_code: str, account: str = "ada@example.com") -> None:
        self._control("device", user_code=user_code, approve=True, account=account)

    def deny_device(self, user_code: str) -> None:
        self._control("device", user_code=user_code, approve=False)

    def token(self, token: str) -> dict[str, Any]:
        """live; and if so kind, account, client_id, scope and expires_in."""
        return self._control("token", token=token)

    def is_live(self, access_token: str, account: str | None = None) -> bool:
        """Whether a service takes it; with *account*, as that one's."""
        found = self.token(access_token)
        return (
            found["live"]
            and found["kind"] != "RefreshToken"
            and account in (None, found["account"])
        )

    def accepts(self, account: str, access_token: str) -> bool:
        """What `OAuthSmtpServer` asks."""
        return self.is_live(access_token, account)

    def revoke(self, token: str) -> None:
        """An access token alone; of a refresh token its family, as when the user takes it back."""
        self._control("revoke", token=token)

    def ask(
        self, client: Client, path: str = "/token", *, timeout: float = 60, **form: str
    ) -> Answer:
        """One request of a client, as the standard has it."""
        request = urllib.request.Request(self.url + path)
        if client.auth == "client_secret_basic":
            pair = f"{quote_plus(client.id)}:{quote_plus(client.secret or '')}"
            request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
        else:
            form["client_id"] = client.id
        if client.auth == "client_secret_post":
            form["client_secret"] = client.secret or ""
        return _answer(request, urlencode(form).encode(), timeout)

    def refresh(self, client: Client, refresh_token: str, **more: Any) -> Answer:
        return self.ask(client, grant_type="refresh_token", refresh_token=refresh_token, **more)

    def poll_device(self, client: Client, device_code: str) -> Answer:
        return self.ask(client, grant_type=_DEVICE_GRANT, device_code=device_code)

    def _control(self, call: str, **told: object) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.url}/control/{call}")
        status, body = _answer(request, json.dumps(told).encode(), 60)
        assert status == 200, f"/control/{call}: {body}"
        return body


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _answer(request: urllib.request.Request, body: bytes, timeout: float) -> Answer:
    try:
        with _DIRECT.open(request, body, timeout=timeout) as answer:
            return Answer(answer.status, json.load(answer))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, json.load(error))


class _StaysAt(urllib.request.HTTPRedirectHandler):
    """Follows what leads to another page of the server; anything else is raised."""

    def __init__(self, url: str) -> None:
        self._url = url

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, to: str
    ) -> Any:
        if to.startswith(f"{self._url}/"):
            return super().redirect_request(req, fp, code, msg, headers, to)
        return None
