"""Which values are due to be replaced, and when: by the operator's word, else the provider's."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Literal, NamedTuple

from ..providers import provider_of
from ..vault import Entry, Vault


class DueValue(NamedTuple):
    """
    A value that is due some day.

    Attributes:
        entry: its row. day: when it is due.
        by: `operator` if somebody named the day, else `provider`.
    """

    entry: Entry
    day: date
    by: Literal["operator", "provider"]


def due(vault: Vault) -> list[DueValue]:
    """All values that are due some day, the earliest first; read-only, and opens none."""
    named, found = vault.rows.due.days(), list[DueValue]()
    for entry in vault.list():
        if (day := _day(named.get(entry.id))) is not None:
            found.append(DueValue(entry, day, "operator"))
        elif (day := _ends(vault, entry)) is not None:
            found.append(DueValue(entry, day, "provider"))
    return sorted(found, key=lambda value: (value.day, value.entry.id))


def _ends(vault: Vault, entry: Entry) -> date | None:
    """When the provider ends the value, as far as the catalogue knows."""
    known = provider_of(entry.provider)
    field = known.field(entry.credential_type)
    if field is None:
        return None
    begun = entry.updated_at
    if field.days is not None and known.grant and known.grant.refresh_token == field.name:
        # Each use begins its life anew, also where the provider does not replace it.
        begun = max(begun, vault.rows.tokens.given_at(entry.project_id, entry.provider) or "")
    begun_on = _day(begun[:10])
    lasts = None if field.days is None or begun_on is None else begun_on + timedelta(field.days)
    return min(filter(None, (lasts, _day(field.ends))), default=None)


def _day(text: str | None) -> date | None:
    """None for no text, or what another tool left there."""
    try:
        return date.fromisoformat(text or "")
    except ValueError:
        return None


def today() -> date:
    return datetime.now(UTC).date()
