"""Rows as another program writes and reads them, and what the database is asked."""

from __future__ import annotations

import base64
import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

from helpers.postgres import psycopg, translated
from helpers.site import is_url, name_of, server_of, sql
from outreach_vault import Vault
from outreach_vault.schema.shapes import new_id

SENDING = ("execute", "executemany", "stream")
IGNORE, ABORT = "SELECT RAISE(IGNORE)", "SELECT RAISE(ABORT, 'no')"  # what a trigger does
_ON_POSTGRES = {IGNORE: "RETURN NULL", ABORT: "RAISE EXCEPTION 'no'"}


def stored(database: Any, row_id: str, column: str = "encrypted_value") -> Any:
    return sql(database, f"SELECT {column} FROM provider_credentials WHERE id = ?", row_id)[0][0]


def put(database: Any, row_id: str, **columns: object) -> None:
    for column, value in columns.items():
        change = f"UPDATE provider_credentials SET {column} = ? WHERE id = ?"
        unchecked(database, change, value, row_id)


def insert(
    database: Any,
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
    unchecked(database, statement, row_id, project, provider, kind, value, key_id)
    return row_id


@contextlib.contextmanager
def undone(database: Any, changes: str) -> Iterator[None]:
    """Another program's trigger silently undoes the *changes* ("UPDATE ON a table")."""
    with triggered(database, f"BEFORE {changes}", IGNORE):
        yield


@contextlib.contextmanager
def triggered(database: Any, changes: str, action: str, when: str = "") -> Iterator[None]:
    """Meanwhile there is a trigger, as of `trigger`."""
    trigger(database, changes, action, when)
    yield
    table = f" ON {changes.split()[-1]}" if is_url(database) else ""
    sql(database, f"DROP TRIGGER theirs{table}")


def trigger(database: Any, changes: str, action: str, when: str = "") -> None:
    """
    Make another program's trigger, "theirs".

    Args:
        changes: as "BEFORE UPDATE ON a_table".
        action: a statement, IGNORE (leave the row as it is), or ABORT.
        when: a condition for it.
    """
    condition = f" WHEN ({when})" if when else ""
    if is_url(database):
        body = f"BEGIN {_ON_POSTGRES.get(action, f'{action}; RETURN NEW')}; END"
        sql(
            database,
            f"CREATE OR REPLACE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $${body}$$",
        )
        does = f"FOR EACH ROW{condition} EXECUTE FUNCTION theirs()"
    else:
        does = f"{condition} BEGIN {action}; END"
    sql(database, f"CREATE TRIGGER theirs {changes} {does}")


def unchecked(database: Any, statement: str, *params: object) -> None:
    """A change for which no foreign key is checked, as in a restore with --disable-triggers."""
    server = server_of(database)
    if server is None:
        sql(database, statement, *params)  # SQLite checks none unless it is told to
        return
    with server.connect(name_of(database)) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(translated(statement), params)


def flipped(token: str) -> str:
    raw = bytearray(base64.urlsafe_b64decode(token))
    raw[30] ^= 1
    return base64.urlsafe_b64encode(raw).decode()


@contextlib.contextmanager
def traced(vault: Vault) -> Iterator[list[str]]:
    """
    The statements that the database runs for this thread: SQLite's own account of them, with their
    values in place; or what psycopg sends, where each value is a %s.
    """
    statements: list[str] = []
    connection = vault.database.connection()
    if isinstance(connection, sqlite3.Connection):
        connection.set_trace_callback(statements.append)
        try:
            yield statements
        finally:
            connection.set_trace_callback(None)
        return
    thread = threading.get_ident()

    def noting(send: Any) -> Any:
        def noted(cursor: Any, query: Any, *params: Any, **options: Any) -> Any:
            if threading.get_ident() == thread:
                statements.append(query if isinstance(query, str) else query.as_string(cursor))
            return send(cursor, query, *params, **options)

        return noted

    with mock.patch.multiple(
        psycopg.Cursor, **{name: noting(getattr(psycopg.Cursor, name)) for name in SENDING}
    ):
        yield statements
