"""SQLite's errors in the vault's words, with the true cause."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from ...errors import (
    DatabaseBusy,
    DatabaseFull,
    DatabaseReadOnly,
    NotADatabase,
    SchemaMismatch,
    StorageError,
    VaultError,
)
from ...files import os_error, real, take
from .files import free_bytes

# What a statement can raise: errors quote the schema's text, which may not be UTF-8, and a damaged
# size asks for any amount of memory.
FAULTS: Final = (sqlite3.Error, UnicodeDecodeError, MemoryError)
_LONGEST: Final = 512 - len("-journal")  # a path, in SQLite on Unix
_DESCRIPTORS: Final = 4  # open at once: the file, its log, the log's index, the folder
_NEARLY_FULL: Final = 65536  # bytes


def explain(path: Path, error: Exception, *, in_transaction: bool, waited: float) -> VaultError:
    """
    The vault's own error for SQLite's.

    Args:
        in_transaction: whether the connection was in one.
        waited: how many seconds the connection waits for a lock.
    """
    cause = _first_fault(error)
    name = getattr(cause, "sqlite_errorname", "")
    if name.startswith("SQLITE_BUSY") and in_transaction:  # after a read, SQLite does not wait
        return DatabaseBusy(
            f"{path}: another program has it locked, or wrote after this transaction had read",
            hint="undo the transaction and try again; begun with atomic('IMMEDIATE'), it waits",
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
        return DatabaseBusy(
            f"{path}: another program kept the database locked for more than {waited:g} seconds",
            hint="try again; if that fails, look for a suspended program or an open transaction",
        )
    # With a full disk, the shared-memory file fails to grow with an I/O error.
    nearly_full = name.startswith("SQLITE_IOERR") and free_bytes(path.parent) < _NEARLY_FULL
    if name.startswith("SQLITE_FULL") or nearly_full:
        advice = "make room and try again; nothing is half-done"
        return DatabaseFull(f"{path}: the disk or a quota on it is full", hint=advice)
    if name == "SQLITE_READONLY_DBMOVED":
        return moved(path)
    if name.startswith("SQLITE_READONLY"):
        return _read_only(path)
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        advice = "it was not changed; restore a backup, or check the path"
        return NotADatabase(f"{path}: {cause}", hint=advice)
    if isinstance(cause, MemoryError):
        return NotADatabase(
            f"{path}: a size in it exceeds memory: it is damaged, or there is too little memory",
            hint="try with more memory; if that fails, see 'vault doctor' and restore a backup",
        )
    if isinstance(cause, UnicodeDecodeError):
        return damaged(path, "text in its schema is not UTF-8")
    if name.startswith("SQLITE_CANTOPEN"):
        return _cannot_open(path)
    if name.startswith("SQLITE_CONSTRAINT"):  # what we write fits the tables as we make them
        advice = "a trigger or a rule of another program refuses it: see 'vault doctor'"
        return StorageError(f"{path}: {cause}", hint=advice)
    if "no such table" in str(cause) or "no such column" in str(cause):
        advice = "run 'vault migrate --plan' to see what the file lacks"
        return SchemaMismatch(f"{path}: {cause}", hint=advice)
    if isinstance(cause, sqlite3.OperationalError):
        return StorageError(f"{path}: {cause}", hint="fix that and try again; nothing is half-done")
    return VaultError(f"{path}: {cause}")


def damaged(path: Path, what: str) -> NotADatabase:
    """The error for something that only damage to the file explains."""
    advice = "'vault doctor' says what is left; restore a backup"
    return NotADatabase(f"{path}: the file is damaged: {what}", hint=advice)


def moved(path: Path) -> StorageError:
    return StorageError(
        f"{path}: the file was moved, removed or replaced while it is open here",
        hint="find out where it is, and open the vault again",
    )


def _first_fault(error: BaseException) -> BaseException:
    """The first fault in the chain: a failed rollback says less."""
    cause, link = error, error.__cause__ or error.__context__
    while link is not None:
        if isinstance(link, FAULTS):
            cause = link
        link = link.__cause__ or link.__context__
    return cause


def _cannot_open(path: Path) -> StorageError:
    """SQLite has one error for all of these."""
    held: list[int] = []
    try:
        path.stat()
        for _ in range(_DESCRIPTORS):
            # Never the file itself: closing it would drop SQLite's locks.
            take(held, os.open, os.devnull, os.O_RDONLY)
    except OSError as error:
        return os_error(path, error)
    finally:
        for descriptor in held:
            os.close(descriptor)
    if len(os.fsencode(real(path))) > _LONGEST:
        message = f"{path}: SQLite takes no path of more than {_LONGEST} bytes"
        return StorageError(message, hint="give a shorter path")
    if not os.access(path, os.R_OK):
        return StorageError(f"{path}: no permission to read it", hint="run as the file's owner")
    if not os.access(path.parent, os.W_OK):
        return _read_only(path)
    return StorageError(
        f"{path}: SQLite cannot open it, or its log beside it",
        hint="check the permissions of the file and its folder",
    )


def _read_only(path: Path) -> DatabaseReadOnly:
    return DatabaseReadOnly(
        f"{path}: the file or its folder is read-only",
        hint="run as the file's owner; SQLite writes a log beside it even to read",
    )
