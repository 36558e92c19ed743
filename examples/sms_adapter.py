"""
A whole SMS adapter, with Twilio's own library (PyPI: twilio): the right account for the project, or an error.

Copy it and change it; the vault is the one line with `bundle`.
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
    """Twilio did not take the message: its number for the reason, without its text, which may repeat what was sent."""


def keep_what_came(response: Response, *_: object, **__: object) -> None:
    """
    Let an answer count as far as it came. Requests drops all of it where the connection fails afterwards, and with it the SID of
    what Twilio took.
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
        http_client: instead of Twilio's own, for tests; with `HOOKS`.
    Returns:
        The recorded row, whose `provider_message_id` is the message's SID.
    Raises:
        VaultError: no account, or one that cannot be opened or is mixed; nothing was sent, and the row says `failed`.
        SmsRefused, OSError: Twilio refused or cannot be reached; so does the row then.
        ValueError: no such project or CV, or the template cannot be filled in; there is no row.
        NotRecorded: Twilio took it, and the row could not say so. Do not send it again.
    """
    require_recordable(project_id, cv_id)
    rendered, sender = render(project_id, template_id, "sms", variables), None
    row = begin_message(project_id, "sms", to, rendered, cv_id=cv_id)
    try:
        account = vault.bundle("twilio", project_id)
        sender = account.phone_number
        sid = deliver(
            account,
            to,
            rendered.body,
            http_client or TwilioHttpClient(timeout=SECONDS, request_hooks=HOOKS),
        )
    except Exception as error:
        finish_failed(row, error, sender)
        raise
    return finish_sent(row, sid, sender)


def deliver(account: TwilioBundle, to: str, body: str, http_client: TwilioHttpClient) -> str:
    """
    Hand the message over; its SID. Tried again only where Twilio says that there were too many requests.

    Any other failure may come after the message was taken: a second try could send it twice.
    """
    client = Client(account.account_sid, account.auth_token.reveal(), http_client=http_client)
    for attempt in range(TRIES):
        sid = status = code = None
        try:
            sid = client.messages.create(to=to, from_=account.phone_number, body=body).sid
        except TwilioException as error:  # of several kinds, with and without these
            status, code = getattr(error, "status", None), getattr(error, "code", None)
        except ValueError:
            pass  # an answer that is no JSON
        if sid:
            return str(sid)
        if status != _TOO_MANY_REQUESTS or attempt == TRIES - 1:
            raise SmsRefused(f"Twilio did not say that it took it: HTTP {status}, code {code}")
        time.sleep(_PAUSE * 2**attempt)
    raise AssertionError("unreachable")
