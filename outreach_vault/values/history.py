"""
`vault_history`: values that were replaced, deleted or undone, still sealed for their place.

A token goes there in the transaction that takes it from its row, and comes back in one, unopened.
A place keeps its last few, for some days; then they are removed for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

from ..database import Database
from ..errors import SchemaMismatch, WrongArgument
from ..schema import facts
from ..schema.shapes import Place, new_id, now, to_iso

TABLE: Final = "vault_history"
VALUES_AT_MOST: Final = 1000
DAYS_AT_MOST: Final = 3650

Ending = Literal["set", "delete", "undo"]


class Previous(NamedTuple):
    """
    One row of `vault_history`: a row of `provider_credentials` as it was, and how it ended.

    Attributes:
        number: counts the values of the place; the newest has the highest.
        ended_at: when. ended_by: `set`, `delete` or `undo`.
    """

    id: str
    project_id: str | None
    provider: str
    credential_type: str
    encrypted_value: str
    key_id: str
    label: str | None
    created_at: str
    updated_at: str
    number: int
    ended_at: str
    ended_by: Ending

    @property
    def place(self) -> Place:
        return Place._make(self[1:4])


class Limits(NamedTuple):
    """How many previous values each place keeps, and for how many days. 0 of either: none."""

    values: int = 3
    days: int = 30


_COLUMNS: Final = ", ".join(Previous._fields)
_PLACE: Final = "provider = :provider AND credential_type = :credential_type AND project_id"


class History:
    """The previous values of one database. Every change is a part of a write transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def limits(self) -> Limits:
        """
        Raises:
            SchemaMismatch: another tool put something else in their place.
        """
        noted = facts.facts(self._database)
        try:
            limits = Limits(
                int(noted.get("history_values", Limits().values)),
                int(noted.get("history_days", Limits().days)),
            )
            _require_possible(limits)
        except ValueError:
            raise SchemaMismatch(
                f"{self._database.name}: the limits of the history in vault_meta are no numbers,"
                " or out of range",
                hint="'vault config history 3 --days 30' sets them",
            ) from None
        return limits

    def limit(self, limits: Limits) -> int:
        """Keep to these limits from now on. Returns how many previous values were removed."""
        _require_possible(limits)
        facts.note(self._database, history_values=str(limits.values), history_days=str(limits.days))
        ranks = (
            "SELECT id, row_number() OVER (PARTITION BY project_id, provider, credential_type"
            f" ORDER BY number DESC) AS age FROM {TABLE}"
        )
        beyond = self._database.change(
            f"DELETE FROM {TABLE} WHERE id IN (SELECT id FROM ({ranks}) AS ranked WHERE age > ?)",
            (limits.values,),
        )
        return beyond + self.expire(limits)

    def expire(self, limits: Limits | None = None) -> int:
        """Remove what has been kept for long enough. Returns how many that were."""
        since = _since(limits or self.limits())
        return self._database.change(f"DELETE FROM {TABLE} WHERE ended_at <= ?", (since,))

    def of(
        self, place: Place, limits: Limits | None = None, *, to_change: bool = False
    ) -> list[Previous]:
        """
        The previous values of the place, newest first.

        Args:
            to_change: in a write transaction: nobody else changes them until it ends.

        Raises:
            NotADatabase: a damaged index leads to another row.
        """
        where = f"{_PLACE} {'IS NULL' if place.project_id is None else '= :project_id'}"
        search = self._database.read_again(TABLE, _COLUMNS, ((where, "1"),), to_change=to_change)
        found = [Previous._make(row[:-2]) for row in self._database.fetch(search, place._asdict())]
        if any(previous.place != place for previous in found):
            raise self._database.astray(TABLE)
        since = _since(limits or self.limits())
        there = (previous for previous in found if previous.ended_at > since)
        return sorted(there, key=lambda previous: -previous.number)

    def keep(self, row: Sequence[Any], ended_by: Ending, taken: Previous | None = None) -> None:
        """
        Keep a row's value, and no more of the place's than the limits allow.

        Args:
            row: the columns of `rows.Row`, as stored.
            taken: the value that comes back in its stead, and is no previous one any more. Its
                number is not used again: an operator has just read it.
        """
        limits = self.limits()
        if not limits.values or not limits.days:
            return  # `limit` has removed what there was
        self.expire(limits)
        there = self.of(Place._make(row[1:4]), limits, to_change=True)
        number = max((previous.number for previous in there), default=0) + 1
        marks = ", ".join("?" * len(Previous._fields))
        self._database.change(
            f"INSERT INTO {TABLE} ({_COLUMNS}) VALUES ({marks})",
            (new_id(), *row[1:], number, now(), ended_by),
        )
        others = [previous.id for previous in there if previous != taken]
        if beyond := others[limits.values - 1 :]:
            self.remove(beyond)

    def remove(self, ids: Iterable[str]) -> None:
        self._database.change_each(f"DELETE FROM {TABLE} WHERE id = ?", [(each,) for each in ids])


def _require_possible(limits: Limits) -> None:
    most = Limits(VALUES_AT_MOST, DAYS_AT_MOST)
    for name, value, at_most in zip(Limits._fields, limits, most, strict=True):
        if not 0 <= value <= at_most:
            raise WrongArgument(f"{name}: must be a number from 0 to {at_most}")


def _since(limits: Limits) -> str:
    return to_iso(datetime.now(UTC) - timedelta(days=limits.days))
