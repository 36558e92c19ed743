"""PostgreSQL's errors in the vault's words."""

from __future__ import annotations

import re
from typing import Final

import psycopg

from ...errors import (
    DatabaseBusy,
    DatabaseFull,
    DatabaseNotFound,
    DatabaseReadOnly,
    DatabaseRefused,
    DatabaseUnreachable,
    OutcomeUnknown,
    SchemaMismatch,
    StorageError,
    VaultError,
)

FAULTS: Final = (psycopg.Error,)
_SAID: Final = (
    ("password authentication failed", "28000"),
    ("no password supplied", "28000"),
    ("no pg_hba.conf entry", "28000"),
    ("is not permitted to log in", "28000"),
    ("too many clients", "53300"),
    ("connection slots are reserved", "53300"),
    ("too many connections for", "53300"),
    ("permission denied for database", "42501"),
)
_NO_DATABASE: Final = re.compile(r'database ".*" does not exist')
_NO_ROLE: Final = re.compile(r'role ".*" does not exist')
_ROLES: Final = "'vault roles --sql' prints what each kind of role needs"
# What undoes a transaction through no fault of its own: it is run again.
AGAIN: Final = (
    psycopg.errors.UniqueViolation,  # another made the same row first
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)


def explain(name: str, error: BaseException, *, lost: bool, then: str) -> VaultError:
    """
    The vault's own error for PostgreSQL's.

    Args:
        lost: the connection broke, or the server ended it.
        then: what that means for the call, or empty.
    """
    text = _text(error)
    state = getattr(error, "sqlstate", None) or _state_of(text)
    if state == "28000":
        return DatabaseRefused(
            f"{name}: the server does not let this user in: {text}",
            hint="check the user and the password (PGPASSFILE, OUTREACH_VAULT_DB_FILE), and the"
            " server's pg_hba.conf",
        )
    if state == "3D000":
        return DatabaseNotFound(
            f"{name}: the server has no such database",
            hint="check the URL; the server's owner makes one with: createdb -E UTF8 NAME",
        )
    if state == "42501":
        return DatabaseRefused(f"{name}: {text}", hint=_ROLES)
    if state == "53300":
        return DatabaseBusy(
            f"{name}: the server has no connection left: {text}",
            hint="try again; use fewer processes or threads, a pooler, or raise max_connections",
        )
    if state in ("53100", "53200") or "No space left on device" in text:
        return DatabaseFull(
            f"{name}: the server's disk or memory is full", hint="make room on it and try again"
        )
    if state == "25006":
        return read_only(name)
    if state in ("55P03", "57014"):
        what = "waited for a lock" if state == "55P03" else "ran"
        return DatabaseBusy(
            f"{name}: a statement {what} for longer than its limit: {text}",
            hint="try again; if that fails, look for an open transaction in pg_stat_activity",
        )
    if isinstance(error, AGAIN):
        return DatabaseBusy(
            f"{name}: others changed the same rows at the same time: {text}",
            hint="undo the transaction and try again",
        )
    if state in ("42P01", "42703"):
        return SchemaMismatch(
            f"{name}: {text}", hint="run 'vault migrate --plan' to see what the database lacks"
        )
    if lost:
        said = f"; {then}" if then else ""
        return DatabaseUnreachable(
            f"{name}: the connection was lost: {text}{said}",
            hint="try again once the server answers",
        )
    if state == "54000":
        return StorageError(
            f"{name}: {text}", hint="use a shorter name; an index holds some 2700 bytes"
        )
    # What the server refuses has a number. 57P03: it is starting up, or shutting down.
    if isinstance(error, psycopg.OperationalError) and state[:2] in ("", "08", "57"):
        return DatabaseUnreachable(
            f"{name}: the server cannot be reached: {text}", hint=_reach(text)
        )
    if state.startswith("23"):  # what we write fits the tables as we make them
        return StorageError(
            f"{name}: {text}",
            hint="a trigger or a rule of another program refuses it: see 'vault doctor'",
        )
    if isinstance(error, psycopg.DataError):
        return StorageError(
            f"{name}: {text}", hint="leave out what PostgreSQL cannot store, such as NUL characters"
        )
    return StorageError(f"{name}: {text}", hint="fix that and try again; nothing is half-done")


def unknown(name: str, why: BaseException | str) -> OutcomeUnknown:
    said = why if isinstance(why, str) else _text(why)
    return OutcomeUnknown(
        f"{name}: the server did not say that a change is safe ({said}):"
        " whether it was stored is not known",
        hint="look whether it is there ('vault list', 'vault history'), and store it again if not",
    )


def read_only(name: str) -> DatabaseReadOnly:
    return DatabaseReadOnly(
        f"{name}: the server takes no changes: it is a standby, or set to read only",
        hint="name the primary, or all servers with target_session_attrs=read-write",
    )


def _state_of(text: str) -> str:
    """libpq gives no number for what a server says while it is connected to."""
    if _NO_DATABASE.search(text):
        return "3D000"
    if _NO_ROLE.search(text):
        return "28000"
    return next((state for word, state in _SAID if word in text), "")


def _text(error: BaseException) -> str:
    """The first line, without DETAIL, which quotes rows."""
    diagnosis = getattr(error, "diag", None)
    said = diagnosis.message_primary if diagnosis else None
    return said or next(iter(str(error).splitlines()), type(error).__name__)


def _reach(text: str) -> str:
    if "certificate" in text or "SSL" in text:
        return "check sslmode and sslrootcert, and the server's certificate"
    return "check the host and the port, and that the server runs"
