"""
Twilio's and ElevenLabs' APIs on this machine, as far as the example adapters use them. Nothing is
sent.

Each keeps what it was asked, with the account that asked: None where the account did not prove
itself. Fields, answers and errors are those of the providers' own references
(twilio.com/docs/usage/twilios-response, elevenlabs.io/docs/api-reference).
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import ssl
import sys
import threading
from collections import deque
from collections.abc import Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs

from twilio.http.http_client import TwilioHttpClient
from twilio.http.response import Response

TWILIO = "https://api.twilio.com"


class Answer(NamedTuple):
    """
    What is answered.

    Attributes:
        seconds: how long it takes; a client that waits less gives up.
        raw: the body is all that is answered, so it may be no HTTP.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}
    seconds: float = 0.0
    raw: bool = False


class Asked(NamedTuple):
    account: str | None
    fields: dict[str, Any]
    status: int


def as_json(status: int, found: object, headers: Mapping[str, str] = {}) -> Answer:
    return Answer(
        status, json.dumps(found).encode(), {"Content-Type": "application/json", **headers}
    )


def twilio_error(status: int, code: int, message: str, headers: Mapping[str, str] = {}) -> Answer:
    more = f"https://www.twilio.com/docs/errors/{code}"
    return as_json(
        status, {"code": code, "message": message, "more_info": more, "status": status}, headers
    )


TOO_MANY = twilio_error(429, 20429, "Too Many Requests", {"Retry-After": "1"})


class Api:
    """
    Listens at 127.0.0.1 while in a `with` statement.

    Attributes:
        asked: each request, in order. answers: given instead of its own ones, first to last.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        self.answers: deque[Answer] = deque()
        self.stopped = threading.Event()
        self._server = _Server(self, context)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, headers: Message, body: bytes) -> Answer:
        account, fields, own = self.own_answer(path, headers, body)
        answer = self.answers.popleft() if self.answers else own
        self.asked.append(Asked(account, fields, answer.status))
        return answer

    def own_answer(
        self, path: str, headers: Message, body: bytes
    ) -> tuple[str | None, dict[str, Any], Answer]:
        raise NotImplementedError


class Twilio(Api):
    """Messages only. *accounts*: for each account SID its auth token and its number."""

    def __init__(self, accounts: Mapping[str, tuple[str, str]]) -> None:
        super().__init__()
        self.accounts = dict(accounts)

    def own_answer(
        self, path: str, headers: Message, body: bytes
    ) -> tuple[str | None, dict[str, Any], Answer]:
        fields: dict[str, Any] = {
            name: values[0] for name, values in parse_qs(body.decode(), strict_parsing=True).items()
        }
        scheme, _, proof = headers.get("Authorization", "").partition(" ")
        sid, _, token = base64.b64decode(proof).decode().partition(":")
        expected, number = self.accounts.get(sid, ("", ""))
        if scheme != "Basic" or not expected or token != expected:
            return None, fields, twilio_error(401, 20003, "Authenticate")
        return sid, fields, self._message(path, headers, sid, number, fields)

    def _message(
        self, path: str, headers: Message, sid: str, number: str, fields: dict[str, Any]
    ) -> Answer:
        if (
            path != f"/2010-04-01/Accounts/{sid}/Messages.json"
            or headers.get_content_type() != "application/x-www-form-urlencoded"
        ):
            return twilio_error(404, 20404, f"The requested resource {path} was not found")
        if fields.keys() != {"To", "From", "Body"}:
            return twilio_error(400, 21602, "Message body is required.")
        if fields["From"] != number:
            return twilio_error(
                400,
                21660,
                f"Mismatch between the 'From' number {fields['From']} and the account {sid}",
            )
        if not re.fullmatch(r"\+[1-9]\d{7,14}", fields["To"]):
            return twilio_error(
                400, 21211, f"The 'To' number {fields['To']} is not a valid phone number."
            )
        message = "SM" + secrets.token_hex(16)
        found = {
            "sid": message,
            "account_sid": sid,
            "to": fields["To"],
            "from": fields["From"],
            "body": fields["Body"],
            "status": "queued",
        }
        rest = {
            "num_segments": "1",
            "num_media": "0",
            "direction": "outbound-api",
            "api_version": "2010-04-01",
            "error_code": None,
        }
        dates = {
            "date_created": "Fri, 06 Feb 2026 09:30:00 +0000",
            "date_updated": "Fri, 06 Feb 2026 09:30:00 +0000",
            "date_sent": None,
        }
        return as_json(
            201,
            found | rest | dates | {"uri": f"/2010-04-01/Accounts/{sid}/Messages/{message}.json"},
        )


class ElevenLabs(Api):
    """
    Outbound calls only, over TLS. *keys*: for each API key the name of its workspace; *chain*:
    certificate and key of localhost.
    """

    def __init__(self, keys: Mapping[str, str], chain: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        super().__init__(context)
        self.keys = dict(keys)

    def own_answer(
        self, path: str, headers: Message, body: bytes
    ) -> tuple[str | None, dict[str, Any], Answer]:
        fields: dict[str, Any] = json.loads(body)
        workspace = self.keys.get(headers.get("xi-api-key", ""))
        if workspace is None:
            return (
                None,
                fields,
                as_json(
                    401, {"detail": {"status": "invalid_api_key", "message": "Invalid API key"}}
                ),
            )
        if (
            path != "/v1/convai/twilio/outbound-call"
            or headers.get_content_type() != "application/json"
        ):
            return workspace, fields, as_json(404, {"detail": "Not Found"})
        required = ("agent_id", "agent_phone_number_id", "to_number")
        if lacking := [
            name for name in required if not isinstance(fields.get(name), str) or not fields[name]
        ]:
            detail = [
                {"type": "missing", "loc": ["body", name], "msg": "Field required"}
                for name in lacking
            ]
            return workspace, fields, as_json(422, {"detail": detail})
        ids = {
            "conversation_id": f"conv_{secrets.token_hex(14)}",
            "callSid": f"CA{secrets.token_hex(16)}",
        }
        return workspace, fields, as_json(200, {"success": True, "message": "Success", **ids})


class LocalTwilio(TwilioHttpClient):
    """
    Twilio's own client, which reaches *api* instead of the internet; nothing else of it is changed.
    """

    def __init__(self, api: Twilio, **options: Any) -> None:
        super().__init__(**options)
        self._address = f"http://127.0.0.1:{api.port}"

    def request(self, method: str, url: str, *arguments: Any, **options: Any) -> Response:
        assert url.startswith(TWILIO + "/"), url
        return super().request(
            method, self._address + url.removeprefix(TWILIO), *arguments, **options
        )


class _Server(ThreadingHTTPServer):
    def __init__(self, api: Api, context: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api, self._context = api, context

    def get_request(self) -> tuple[Any, Any]:
        """
        The handshake is left to the first read, which another thread does: a client that makes none
        holds up no other.
        """
        connection, address = super().get_request()
        if self._context:
            connection = self._context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(
            sys.exc_info()[1], OSError
        ):  # a client that gave up, or does not trust the certificate, is meant to be tried
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = self.server.api.answer(self.path, self.headers, body)
        if answer.seconds:
            self.server.api.stopped.wait(answer.seconds)
        if not answer.raw:
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Standard error is what the tests look at."""
