"""Rows as another program writes and reads them, and what SQLite is asked."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.site import sql
from outreach_vault import Vault
from outreach_vault.schema.shapes import new_id


def stored(path: Path, row_id: str, column: str = "encrypted_value") -> Any:
    return sql(path, f"SELECT {column} FROM provider_credentials WHERE id = ?", row_id)[0][0]


def put(path: Path, row_id: str, **columns: object) -> None:
    for column, value in columns.items():
        sql(path, f"UPDATE provider_credentials SET {column} = ? WHERE id = ?", value, row_id)


def insert(
    path: Path,
    value: object,
    project: str | None,
    provider: str,
    kind: str,
    key_id: str | None = None,
) -> str:
    row_id = new_id()
    statement = (
        "INSERT INTO provider_credentials (id, project_id, provider, credential_type,"
        " encrypted_value, key_id, created_at, updated_at) VALUES"
        " (?, ?, ?, ?, ?, ?, '2026-02-06T09:30:00.250Z', '2026-02-06T09:30:00.250Z')"
    )
    sql(path, statement, row_id, project, provider, kind, value, key_id)
    return row_id


def flipped(token: str) -> str:
    raw = bytearray(base64.urlsafe_b64decode(token))
    raw[30] ^= 1
    return base64.urlsafe_b64encode(raw).decode()


@contextlib.contextmanager
def traced(vault: Vault) -> Iterator[list[str]]:
    """The statements that SQLite itself runs on this thread's connection."""
    statements: list[str] = []
    connection = vault.database.connection()
    connection.set_trace_callback(statements.append)
    try:
        yield statements
    finally:
        connection.set_trace_callback(None)
