"""
`vault_meta`: the vault's facts about itself, as text by name.

`vault_id`; `version`, how many of the vault's own steps were applied; `home` and `home_keys`, where
the file and its keys are; `unfinished_rotation`, only during one.
"""

from __future__ import annotations

from ..database import Database

TABLE = "vault_meta"


def facts(database: Database) -> dict[str, str]:
    """All facts; a NULL that another tool left is empty text. Read-only."""
    found = database.fetch(f"SELECT key, value FROM {database.whole(TABLE)}")
    texts = ((key, "" if value is None else str(value)) for key, value in found)
    return {key: text for key, text in texts if isinstance(key, str)}


def note(database: Database, **noted: str) -> None:
    """Inside a write transaction."""
    database.change_each(
        f"INSERT INTO {TABLE} (key, value) VALUES (?, ?)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        noted.items(),
    )


def forget(database: Database, name: str) -> None:
    """Inside a write transaction."""
    database.change(f"DELETE FROM {database.whole(TABLE)} WHERE key = ?", (name,))
