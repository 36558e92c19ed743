"""
A whole voice adapter: ElevenLabs' agent calls from the project's right account, or it raises.

Copy it and change it. The vault takes one line, the one with `bundle`.
The API: https://elevenlabs.io/docs/api-reference/twilio/outbound-call
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from outreach import require_recordable, save_accepted

from outreach_vault import ElevenLabsBundle, Vault
from outreach_vault.models import CallRecord

HOST = "api.elevenlabs.io"
PATH = "/v1/convai/twilio/outbound-call"
SECONDS = 20.0
_ANSWER_BYTES = 64 * 1024


class CallRefused(Exception):
    """ElevenLabs did not confirm the call. Holds its status, not its text: that may repeat ours."""


def call(
    vault: Vault,
    project_id: str,
    phone_number: str,
    variables: Mapping[str, str],
    *,
    cv_id: str | None = None,
    address: tuple[str, int] = (HOST, 443),
    context: ssl.SSLContext | None = None,
) -> CallRecord:
    """
    Begin a screening call from the project's own account, else from the global one, and record it.

    The desktop app polls a row that is `in_progress` until the call ends. The models must be bound
    to the vault's database (`vault.bind_models()`).

    Args:
        variables: what the agent is told about the candidate (its dynamic variables).
        address, context: where the API listens and what TLS trusts; for tests.
    Returns:
        The recorded row, whose `provider_call_id` is the conversation's id.
    Raises:
        VaultError: no account, or one that is mixed or cannot be opened. Nobody was called, and the
            row says `failed`.
        CallRefused, OSError: ElevenLabs refused or cannot be reached; the row says `failed`.
        ValueError: no such project or CV; there is no row.
        NotRecorded: the call has begun, but the row lacks its id. Do not call again.
    """
    require_recordable(project_id, cv_id)
    row = begin_record(project_id, phone_number, cv_id)
    try:
        account = vault.bundle("elevenlabs", project_id)
        trust = context or ssl.create_default_context()
        conversation = begin(account, phone_number, variables, address, trust)
    except Exception:
        row.status, row.ended_at = "failed", row.started_at
        row.save()
        raise
    row.provider_call_id = conversation
    return save_accepted(row, conversation)


def begin(
    account: ElevenLabsBundle,
    phone_number: str,
    variables: Mapping[str, str],
    address: tuple[str, int],
    context: ssl.SSLContext,
) -> str:
    """Ask for the call, and return the conversation's id. Never retried: that could call twice."""
    body = {
        "agent_id": account.screening_agent_id,
        "agent_phone_number_id": account.phone_number_id,
        "to_number": phone_number,
        "conversation_initiation_client_data": {"dynamic_variables": dict(variables)},
    }
    connection = http.client.HTTPSConnection(*address, timeout=SECONDS, context=context)
    try:
        connection.request(
            "POST",
            PATH,
            json.dumps(body),
            {"xi-api-key": account.api_key.reveal(), "Content-Type": "application/json"},
        )
        response = connection.getresponse()
        answer = _json(_what_came(response))
    except http.client.HTTPException as error:
        raise CallRefused(f"ElevenLabs' answer is not HTTP: {type(error).__name__}") from None
    finally:
        with contextlib.suppress(OSError):
            connection.close()
    conversation = answer.get("conversation_id")
    if response.status != http.client.OK or not answer.get("success") or not conversation:
        raise CallRefused(f"ElevenLabs did not confirm the call: HTTP {response.status}")
    return str(conversation)


def begin_record(project_id: str, phone_number: str, cv_id: str | None) -> CallRecord:
    """
    Insert the row of one call before it begins. Without the conversation's id the app does not
    poll it.

    If the row cannot be written, nobody is called. The table has no column for a failure's reason.
    """
    now = datetime.now(UTC)
    return CallRecord.create(
        project=project_id,
        cv=cv_id,
        type="screening",
        status="in_progress",
        phone_number=phone_number,
        started_at=now,
        created_at=now,
    )


def _what_came(response: http.client.HTTPResponse) -> bytes:
    """What arrived of the answer: if the connection fails after the id, the call still runs."""
    came = bytearray()
    with contextlib.suppress(OSError, http.client.HTTPException):
        # One byte at a time: if a longer `read` fails, it drops what came before.
        while len(came) < _ANSWER_BYTES and (byte := response.read(1)):
            came += byte
    return bytes(came)


def _json(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
