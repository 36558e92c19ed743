"""
`vault_hosts`: which key each host acknowledged last, where each has its own copy of the keys.

A host is known once it has acknowledged a key. Where all hosts share a key store, none is known.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ..database import Database
from ..schema.shapes import as_text, now

TABLE: Final = "vault_hosts"


class Host(NamedTuple):
    """
    One row of `vault_hosts`.

    Attributes:
        key_id: the key that the host proved to have, beside the one that was active then.
    """

    host: str
    key_id: str
    acknowledged_at: str


class Hosts:
    """The hosts of one database. Every change is a part of a write transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def known(self) -> list[Host]:
        """All hosts, by name; read-only."""
        sql = f"SELECT {', '.join(Host._fields)} FROM {self._table} ORDER BY host"
        return [Host(*(as_text(text) or "" for text in row)) for row in self._database.fetch(sql)]

    def acknowledge(self, host: str, key_id: str) -> None:
        self._database.change(
            f"INSERT INTO {TABLE} (host, key_id, acknowledged_at) VALUES (?, ?, ?)"
            " ON CONFLICT (host) DO UPDATE SET key_id = excluded.key_id,"
            " acknowledged_at = excluded.acknowledged_at",
            (host, key_id, now()),
        )

    def unstage(self, key_id: str, active: str) -> None:
        """Hosts that acknowledged a staged key had proved the active one too."""
        sql = f"UPDATE {self._table} SET key_id = ? WHERE key_id = ?"
        self._database.change(sql, (active, key_id))

    def remove(self, host: str) -> None:
        self._database.change(f"DELETE FROM {self._table} WHERE host = ?", (host,))

    @property
    def _table(self) -> str:
        return self._database.whole(TABLE)
