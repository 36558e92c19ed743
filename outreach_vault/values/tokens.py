"""
`vault_tokens` and `vault_grants`: the access token of each account with OAuth2, sealed for its
place, and whose turn it is to get the next one.

Who refreshes takes the lease first, in a transaction of its own, and gives it back in the one that
stores what came. Nobody else refreshes meanwhile: a provider whose refresh tokens are for one use
takes a second use for a theft, and ends the whole grant. A lease that has run out may be taken
over; its first holder then stores nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..database import Database
from ..errors import brief, undone
from ..schema.shapes import as_text, new_id, now, to_iso

if TYPE_CHECKING:  # `vault set` looks here too, and would load http.client and ssl
    from ..providers.oauth import Fault

TABLE: Final = "vault_tokens"
_GRANTS: Final = "vault_grants"
FIELD: Final = "oauth_access_token"  # the third name of a token's place
LEASE_AT_MOST: Final = 600.0  # seconds; a lease that ends later was written by a wrong clock
_ASKED_SECONDS: Final = 60
_COUNTED_AT_MOST: Final = 2**62  # SQLite has integers up to 2**63 - 1
_OWN: Final = "project_id = :project_id AND provider = :provider"
_GENERAL: Final = "project_id IS NULL AND provider = :provider"


class Turn(NamedTuple):
    """
    One row of `vault_grants`: how the account of one scope gets its access tokens.

    Attributes:
        generation: counts what made older tokens void: a refresh, a change of the account.
        attempt: counts the refreshes that were begun.
        owner, until: who refreshes now, and when another may take over; None: nobody.
        expires_at: when the present access token ends; None without one.
        fault, said, tried_at: how the last attempt failed, the reason without a secret, and when;
            None if it did not fail, or the account was changed since.
    """

    project_id: str | None
    provider: str
    generation: int
    attempt: int
    owner: str | None
    until: str | None
    expires_at: str | None
    fault: Fault | None
    said: str | None
    tried_at: str | None


_COLUMNS: Final = ", ".join(Turn._fields)


class Tokens:
    """The tokens of one database. Every change is a part of a write transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ahead, self._ask_at = timedelta(), -math.inf

    def token(self, project_id: str | None, provider: str) -> tuple[Any, ...] | None:
        """
        The row of the scope's access token, to be opened: the columns of `rows.Row`.

        Its place is the one asked for, whatever row was found.
        """
        asked = {"project_id": project_id, "provider": provider, "field": FIELD}
        found = self._database.fetch(
            "SELECT id, :project_id, :provider, :field, encrypted_value, key_id, label, created_at,"
            f" updated_at FROM {TABLE} WHERE {_GENERAL if project_id is None else _OWN}",
            asked,
        )
        return found[0] if found else None

    def given_at(self, project_id: str | None, provider: str) -> str | None:
        """When the provider gave the scope's access token."""
        row = self.token(project_id, provider)
        return str(row[-1]) if row else None

    def turn(self, project_id: str | None, provider: str) -> Turn | None:
        """Raises NotADatabase if a damaged index leads to another row."""
        found = self._at(_GRANTS, _COLUMNS, project_id, provider)
        return _turn(found[:-2]) if found else None

    def turns(self) -> dict[tuple[str | None, str], Turn]:
        """All of them, by scope and provider."""
        found = self._database.fetch(f"SELECT {_COLUMNS} FROM {self._database.whole(_GRANTS)}")
        return {row[:2]: _turn(row) for row in found}

    def is_taken(self, turn: Turn) -> bool:
        if turn.until is None:
            return False
        return self.lasts(turn) and turn.until <= self.moment(LEASE_AT_MOST)

    def lasts(self, turn: Turn, seconds: float = 0.0) -> bool:
        """Whether nobody may take the lease over for that long."""
        return turn.until is not None and self.moment(seconds) < turn.until

    def moment(self, seconds: float = 0.0) -> str:
        """The time in so many seconds, on the clock that all processes go by."""
        return to_iso(self._database.clock() + timedelta(seconds=seconds))

    def now(self) -> datetime:
        """
        That clock's time, by which tokens end: on a host whose own is wrong each look at a token
        would refresh it. Asked for once a minute, since a look must cost no second message.
        """
        if (at := time.monotonic()) >= self._ask_at:
            self._ahead = self._database.clock() - datetime.now(UTC)
            self._ask_at = at + _ASKED_SECONDS
        return datetime.now(UTC) + self._ahead

    def take(self, project_id: str | None, provider: str, owner: str, seconds: float) -> Turn:
        """Take the lease, unless another has it. The answer's `owner` is who has it now."""
        there = self.turn(project_id, provider)
        if there is None:
            self._database.change(
                f"INSERT INTO {_GRANTS} (id, project_id, provider, generation, attempt)"
                " VALUES (?, ?, ?, 0, 0)",
                (new_id(), project_id, provider),
            )
            there = Turn(project_id, provider, 0, 0, *[None] * 6)
        if self.is_taken(there):
            return there
        taken = there._replace(attempt=there.attempt + 1, owner=owner, until=self.moment(seconds))
        self._note(taken)
        return taken

    def store(self, held: Turn, token: str, key_id: str, expires_at: str) -> bool:
        """
        Put in the new access token, and give the lease back. False if it is no longer held: then
        nothing is changed.
        """
        if not self._holds(held):
            return False
        scope, moment = held[:2], now()
        at = self._at(TABLE, "project_id, provider", *scope)
        if at is None:
            self._database.change(
                f"INSERT INTO {TABLE} (id, project_id, provider, credential_type, encrypted_value,"
                " key_id, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (new_id(), *scope, FIELD, token, key_id, moment, moment),
            )
        else:
            self._database.change(
                f"UPDATE {TABLE} SET encrypted_value = ?, key_id = ?, updated_at = ?"
                f" WHERE {self._database.row_key(TABLE)} = ?",
                (token, key_id, moment, at[-1]),
            )
        generation = held.generation + 1
        self._note(Turn(*scope, generation, held.attempt, None, None, expires_at, *[None] * 3))
        return True

    def give_back(self, held: Turn, fault: Fault | None = None, said: str | None = None) -> bool:
        """End the lease, with how the attempt failed. False if it is no longer held."""
        if not self._holds(held):
            return False
        ended = held._replace(owner=None, until=None)
        self._note(
            ended._replace(fault=fault, said=said, tried_at=self.moment()) if fault else ended
        )
        return True

    def forget(self, project_id: str | None, provider: str) -> None:
        """The account was changed: its token is another's, and who refreshes now is too late."""
        there = self.turn(project_id, provider)
        if there is None:
            return
        self._note(Turn(*there[:2], there.generation + 1, there.attempt, *[None] * 6))
        if at := self._at(TABLE, "project_id, provider, id", *there[:2]):
            self.remove([at[2]])

    def remove(self, ids: Iterable[str]) -> None:
        self._database.change_each(f"DELETE FROM {TABLE} WHERE id = ?", [(each,) for each in ids])

    def _holds(self, held: Turn) -> bool:
        there = self.turn(held.project_id, held.provider)
        return there is not None and there[:5] == held[:5]

    def _note(self, turn: Turn) -> None:
        found = self._at(_GRANTS, "project_id, provider", *turn[:2])
        assert found
        sets = ", ".join(f"{name} = ?" for name in Turn._fields[2:])
        self._database.change(
            f"UPDATE {_GRANTS} SET {sets} WHERE {self._database.row_key(_GRANTS)} = ?",
            (*turn[2:], found[-1]),
        )
        if self.turn(*turn[:2]) != turn:  # who went on would ask the provider again and again
            raise undone(f"{_GRANTS}: {brief(turn.provider)}", "is not what was just stored")

    def _at(
        self, table: str, columns: str, project_id: str | None, provider: str
    ) -> tuple[Any, ...] | None:
        """The row of the scope and provider: *columns*, which begin with these two; its key."""
        where, writes = _GENERAL if project_id is None else _OWN, self._database.in_transaction()
        search = self._database.read_again(table, columns, ((where, "1"),), to_change=writes)
        asked = {"project_id": project_id, "provider": provider}
        rows = self._database.fetch(search, asked)
        if any(row[:2] != (project_id, provider) for row in rows):
            raise self._database.astray(table)
        return rows[0] if rows else None


def _turn(row: Sequence[Any]) -> Turn:
    """Another tool may have put anything into any column; the next change puts it right."""
    counts = (n if isinstance(n, int) and 0 <= n < _COUNTED_AT_MOST else 0 for n in row[2:4])
    return Turn(*row[:2], *counts, *map(as_text, row[4:]))
