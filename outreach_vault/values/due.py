"""
`vault_due`: the day when a value is due to be replaced, if an operator named one.

It belongs to the value, so a new value has none until one is named again.
"""

from __future__ import annotations

from datetime import date
from typing import Final

from ..database import Database

TABLE: Final = "vault_due"


class Due:
    """The days of one database. Every change is a part of a write transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def days(self) -> dict[str, str]:
        """The day of each row that has one, by the row's id: `2027-01-31`."""
        found = self._database.fetch(
            f"SELECT credential_id, due FROM {self._database.whole(TABLE)}"
        )
        return {str(row_id): str(day) for row_id, day in found}

    def name(self, row_id: str, day: date) -> None:
        self._database.change(
            f"INSERT INTO {TABLE} (credential_id, due) VALUES (?, ?)"
            " ON CONFLICT (credential_id) DO UPDATE SET due = excluded.due",
            (row_id, day.isoformat()),
        )

    def forget(self, row_id: str | None) -> None:
        self._database.change(f"DELETE FROM {TABLE} WHERE credential_id = ?", (row_id,))
