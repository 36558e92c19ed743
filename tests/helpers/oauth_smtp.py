"""The examples' real SMTP server, where the users of a provider log in with access tokens."""

from __future__ import annotations

import asyncio
import base64
import binascii
import collections
import contextlib
import json
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from aiosmtpd.smtp import MISSING, SMTP, AuthResult, Envelope, LoginPassword, Session

from helpers import ROOT

sys.path.insert(0, str(ROOT / "examples"))

from smtp_server import SmtpServer

MECHANISMS = {"XOAUTH2", "OAUTHBEARER", "PLAIN", "LOGIN"}
# Google's and Microsoft's; and RFC 7628, where the host and the port may be left out.
_XOAUTH2 = re.compile(rb"user=([^\x01]+)\x01auth=Bearer ([^\x01 ]+)\x01\x01")
_OAUTHBEARER = re.compile(
    rb"n,a=([^\x01,]+),\x01(?:(?:host|port)=[^\x01]*\x01)*auth=Bearer ([^\x01 ]+)\x01"
    rb"(?:(?:host|port)=[^\x01]*\x01)*\x01"
)


class Attempt(NamedTuple):
    """One try to log in. `last` is what the client answered to the refusal's reason, decoded."""

    mechanism: str
    user: str
    accepted: bool
    last: bytes | None = None


class OAuthSmtpServer(SmtpServer):
    """
    Args:
        folder: as of SmtpServer.
        accepts: user, access token -> whether it is good for that user.
        mechanisms: what is offered; may change while it runs, for the next connection.
        accounts: user -> password, for PLAIN and LOGIN.

    Attributes:
        logins: each attempt, in order.
    """

    def __init__(
        self,
        folder: Path,
        accepts: Callable[[str, str], bool],
        *,
        mechanisms: Collection[str] = ("XOAUTH2",),
        accounts: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(folder, accounts or {}, **more)
        self.accepts = accepts
        self.mechanisms = mechanisms
        self.logins: list[Attempt] = []
        self._controller.factory = self._connection  # type: ignore[method-assign]

    def __enter__(self) -> OAuthSmtpServer:
        super().__enter__()
        return self

    def _connection(self) -> SMTP:
        assert MECHANISMS.issuperset(self.mechanisms), self.mechanisms
        left_out = MECHANISMS.difference(self.mechanisms)
        return _LongLines(self, auth_exclude_mechanism=left_out, **self._controller.SMTP_kwargs)

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        result = super()._authenticate(server, session, envelope, mechanism, data)
        if isinstance(data, LoginPassword):
            self.logins.append(Attempt(mechanism, data.login.decode(), result.success))
        return result

    # These two names are aiosmtpd's.
    async def auth_XOAUTH2(self, server: SMTP, arguments: list[str]) -> AuthResult:
        # Google says so whatever was wrong.
        reason = {"status": "400", "schemes": "Bearer", "scope": "https://mail.google.com/"}
        return await self._bearer(server, arguments, _XOAUTH2, reason)

    async def auth_OAUTHBEARER(self, server: SMTP, arguments: list[str]) -> AuthResult:
        return await self._bearer(server, arguments, _OAUTHBEARER, {"status": "invalid_token"})

    async def _bearer(
        self, server: SMTP, arguments: list[str], form: re.Pattern[bytes], reason: dict[str, str]
    ) -> AuthResult:
        mechanism, *initial = arguments
        said = _decoded(initial[0]) if initial else await server.challenge_auth("")
        if said is MISSING:
            return AuthResult(success=False)  # aborted, or no base64; it has been answered
        if not (found := form.fullmatch(said)):
            return AuthResult(success=False, handled=False, message="501 5.5.2 Cannot decode it")
        user, token = (part.decode() for part in found.groups())
        if mechanism == "OAUTHBEARER":
            user = user.replace("=2C", ",").replace("=3D", "=")
        if await asyncio.to_thread(self.accepts, user, token):
            self.logins.append(Attempt(mechanism, user, True))
            return AuthResult(success=True, auth_data=user)
        last = await server.challenge_auth(json.dumps(reason))
        self.logins.append(Attempt(mechanism, user, False, None if last is MISSING else last))
        return AuthResult(success=False, handled=last is MISSING)


def _decoded(initial: str) -> bytes:
    with contextlib.suppress(binascii.Error):
        return base64.b64decode(initial, validate=True)
    return b""


class _LongLines(SMTP):
    """Tokens of 2,000 characters are usual: RFC 4954 has 12,288 for this, aiosmtpd 512."""

    line_length_limit = command_size_limit = 12288
    command_size_limits = collections.defaultdict(lambda: 12288)
