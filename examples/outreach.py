"""
What the three adapters share: filling in a template, and recording what was sent.

The rows are the desktop app's own: it shows them, and polls the providers for those not final yet.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from outreach_vault import VaultError
from outreach_vault.models import CallRecord, Cv, Message, OutreachTemplate, Project

Row = TypeVar("Row", Message, CallRecord)
_VARIABLE = re.compile(r"\{\{(\w+)\}\}")


class Rendered(NamedTuple):
    """A template with every variable filled in. A missing `subject` is empty text."""

    template_id: str
    subject: str
    body: str


def render(project_id: str, template_id: str, kind: str, variables: Mapping[str, str]) -> Rendered:
    """
    The project's template of this kind (`email` or `sms`), filled in.

    The body of an email is HTML, so values are escaped there.

    Raises:
        ValueError: the project has no such template, or a variable has no value.
    """
    template = OutreachTemplate.get_or_none(id=template_id, project=project_id, type=kind)
    if template is None:
        raise ValueError(f"the project has no {kind} template {template_id}")
    subject = template.subject or ""
    named = {*_VARIABLE.findall(subject), *_VARIABLE.findall(template.body)}
    if lacking := named.difference(variables):
        raise ValueError(f"template {template_id}: no value for {', '.join(sorted(lacking))}")
    one_line = " ".join(_fill(subject, variables).split())  # a line end would begin another header
    if kind == "email":
        variables = {name: html.escape(value) for name, value in variables.items()}
    return Rendered(template_id, one_line, _fill(template.body, variables))


def require_recordable(project_id: str, cv_id: str | None) -> None:
    """Raise ValueError unless both exist: what is sent but not recorded would be sent again."""
    if Project.get_or_none(id=project_id) is None:
        raise ValueError(f"there is no project {project_id}")
    if cv_id is not None and Cv.get_or_none(id=cv_id) is None:
        raise ValueError(f"there is no CV {cv_id}")


class NotRecorded(Exception):
    """
    The provider took it, but its row could not be finished. Do not send it again.

    Attributes:
        row_id: the row, still `queued` (for a call: `in_progress` without an id).
        provider_id: the provider's id for what it took.
    """

    def __init__(self, row_id: str, provider_id: str) -> None:
        taken = f"the provider took it as {provider_id}"
        super().__init__(f"{taken}, but row {row_id} could not be finished; do not send it again")
        self.row_id, self.provider_id = row_id, provider_id


def begin_message(
    project_id: str, kind: str, to: str, rendered: Rendered, *, cv_id: str | None = None
) -> Message:
    """
    Insert the row of one message, `queued`, before it is sent.

    If the row cannot be written, nothing is sent. If the program stops midway, the row stays
    `queued`: nobody knows whether the message was sent.
    """
    now = datetime.now(UTC)
    return Message.create(
        project=project_id,
        cv=cv_id,
        type=kind,
        direction="outbound",
        status="queued",
        to_address=to,
        subject=rendered.subject or None,
        body=rendered.body,
        template_id=rendered.template_id,
        sent_at=now,
        created_at=now,
    )


def finish_failed(row: Message, error: Exception, sender: str | None) -> None:
    """Nothing was sent, for this reason."""
    row.status, row.error_message, row.from_address = "failed", reason(error), sender
    row.save()


def finish_sent(row: Message, provider_id: str, sender: str | None) -> Message:
    """The provider took it under this id. Raises NotRecorded if the row cannot say so."""
    row.status, row.provider_message_id, row.from_address = "sent", provider_id, sender
    return save_accepted(row, provider_id)


def save_accepted(row: Row, provider_id: str) -> Row:
    """Save, or raise NotRecorded: any other error would look like a failed send, and be retried."""
    try:
        saved = row.save()
    except Exception as error:
        raise NotRecorded(row.id, provider_id) from error
    if not saved:  # the project was deleted meanwhile, and its rows with it
        raise NotRecorded(row.id, provider_id)
    return row


def reason(error: Exception) -> str:
    """One line for the record. Another library's error may hold a secret: only its kind is kept."""
    return str(error) if isinstance(error, VaultError) else type(error).__name__


def _fill(text: str, variables: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda found: variables[found[1]], text)
