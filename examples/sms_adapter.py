"""
A whole SMS adapter with Twilio's library (PyPI: twilio): the project's right account, or an error.

Copy it and change it. The vault takes one line, the one with `bundle`.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Mapping

from outreach import begin_message, finish_failed, finish_sent, render, require_recordable
from requests import Response
from twilio.base.exceptions import TwilioException
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client
from urllib3.exceptions import HTTPError

from outreach_vault import TwilioBundle, Vault
from outreach_vault.models import Message

SECONDS = 20.0
TRIES = 3
_PAUSE = 1.0  # seconds; twice as long after each try
_TOO_MANY_REQUESTS = 429


class SmsRefused(Exception):
    """Twilio did not confirm the message. Holds its code, not its text, which may repeat ours."""


def keep_what_came(response: Response, *_: object, **__: object) -> None:
    """
    Keep the part of an answer that came before the connection failed.

    Requests would drop it all, and with it the SID of a message that Twilio took.
    """
    came = bytearray()
    with contextlib.suppress(HTTPError):
        for part in response.raw.stream(1, decode_content=True):
            came += part
    response.raw = io.BytesIO(came)


HOOKS = {"response": keep_what_came}


def send(
    vault: Vault,
    project_id: str,
    to: str,
    template_id: str,
    variables: Mapping[str, str],
    *,
    cv_id: str | None = None,
    http_client: TwilioHttpClient | None = None,
) -> Message:
    """
    Send one message from the project's own Twilio account, else from the global one, and record it.

    The models must be bound to the vault's database (`vault.bind_models()`).

    Args:
        to: the number, in international form (E.164).
        http_client: replaces Twilio's own in tests; give it `HOOKS`.
    Returns:
        The recorded row, whose `provider_message_id` is the message's SID.
    Raises:
        VaultError: no account, or one that is mixed or cannot be opened. Nothing was sent, and the
            row says `failed`.
        SmsRefused, OSError: Twilio refused or cannot be reached; the row says so.
        ValueError: no such project or CV, or a gap in the template; no row.
        NotRecorded: Twilio took it, but the row could not say so. Do not send it again.
    """
    require_recordable(project_id, cv_id)
    rendered, sender = render(project_id, template_id, "sms", variables), None
    row = begin_message(project_id, "sms", to, rendered, cv_id=cv_id)
    try:
        account = vault.bundle("twilio", project_id)
        sender = account.phone_number
        client = http_client or TwilioHttpClient(timeout=SECONDS, request_hooks=HOOKS)
        sid = deliver(account, to, rendered.body, client)
    except Exception as error:
        finish_failed(row, error, sender)
        raise
    return finish_sent(row, sid, sender)


def deliver(account: TwilioBundle, to: str, body: str, http_client: TwilioHttpClient) -> str:
    """
    Hand the message over, and return its SID. Retried only on "too many requests".

    After any other failure Twilio may have taken the message: a second try could send it twice.
    """
    client = Client(account.account_sid, account.auth_token.reveal(), http_client=http_client)
    for attempt in range(TRIES):
        sid = status = code = None
        try:
            sid = client.messages.create(to=to, from_=account.phone_number, body=body).sid
        except TwilioException as error:  # several kinds, with and without these attributes
            status, code = getattr(error, "status", None), getattr(error, "code", None)
        except ValueError:
            pass  # the answer is not JSON
        if sid:
            return str(sid)
        if status != _TOO_MANY_REQUESTS or attempt == TRIES - 1:
            raise SmsRefused(f"Twilio did not confirm the message: HTTP {status}, code {code}")
        time.sleep(_PAUSE * 2**attempt)
    raise AssertionError("unreachable")
