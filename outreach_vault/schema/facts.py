"""
`vault_meta`: what the vault notes of itself, as text by name.

`vault_id`; `version`, how many of the vault's own steps were applied; `home` and `home_keys`, where the
file and its keys are; `unfinished_rotation`, while one is.
"""

from __future__ import annotations

from ..database import Database

TABLE = "vault_meta"


def facts(database: Database) -> dict[str, str]:
    """All of them; empty text where another tool left NULL. Read-only."""
    found = database.fetch(f"SELECT key, value FROM {database.whole(TABLE)}")
    return {
        key: "" if value is None else str(value) for key, value in found if isinstance(key, str)
    }


def note(database: Database, **noted: str) -> None:
    """Inside a write transaction."""
    database.change_each(
        f"INSERT INTO {TABLE} (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        noted.items(),
    )


def forget(database: Database, name: str) -> None:
    """Inside a write transaction."""
    database.change(f"DELETE FROM {database.whole(TABLE)} WHERE key = ?", (name,))
