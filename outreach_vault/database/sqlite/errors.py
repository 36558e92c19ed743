"""What SQLite says, in the vault's words and with the true cause."""

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
    ProjectNotFound,
    SchemaMismatch,
    StorageError,
    VaultError,
)
from ...files import os_error, real, take
from .files import free_bytes

# What a statement can raise: the schema's text, which errors quote, need be no UTF-8, and a damaged
# size asks for any memory.
FAULTS: Final = (sqlite3.Error, UnicodeDecodeError, MemoryError)
_LONGEST: Final = 512 - len("-journal")  # of a path, in SQLite's own way to the files of Unix
# Of a database at one moment: the file, its log, the log's index, the folder.
_DESCRIPTORS: Final = 4
_NEARLY_FULL: Final = 65536  # bytes


def explain(path: Path, error: Exception, *, in_transaction: bool, waited: float) -> VaultError:
    """
    The vault's own error for what SQLite said.

    Args:
        in_transaction: of the connection that it said it to. waited: for how many seconds it waits
            for a lock.
    """
    cause = _first_fault(error)
    name = getattr(cause, "sqlite_errorname", "")
    if name.startswith("SQLITE_BUSY") and in_transaction:  # it has read, and SQLite does not wait
        return DatabaseBusy(
            f"{path}: another program has the database locked, or wrote after this transaction had read",
            hint="undo the transaction and try again; one that begins with the lock, atomic('IMMEDIATE'), waits for it",
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
        return DatabaseBusy(
            f"{path}: another program kept the database locked for more than {waited:g} seconds",
            hint="try again; if it stays so, look for a program that holds a transaction open, or was suspended",
        )
    # The shared-memory file's growth fails as an I/O error.
    nearly_full = name.startswith("SQLITE_IOERR") and free_bytes(path.parent) < _NEARLY_FULL
    if name.startswith("SQLITE_FULL") or nearly_full:
        return DatabaseFull(
            f"{path}: the disk or a quota on it is full",
            hint="make room and try again; nothing is half-done",
        )
    if name == "SQLITE_READONLY_DBMOVED":
        return moved(path)
    if name.startswith("SQLITE_READONLY"):
        return _read_only(path)
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return NotADatabase(
            f"{path}: {cause}",
            hint="it was left as it is; restore a backup, or look whether the path is right",
        )
    if isinstance(cause, MemoryError):
        return NotADatabase(
            f"{path}: a size in it that memory does not hold: the file is damaged, or this process has too little memory",
            hint="give it more memory; if that does not help, 'vault doctor' says what is left, and a backup is to be restored",
        )
    if isinstance(cause, UnicodeDecodeError):
        return damaged(path, "text of its schema that is no UTF-8")
    if name.startswith("SQLITE_CANTOPEN"):
        return _cannot_open(path)
    if name == "SQLITE_CONSTRAINT_FOREIGNKEY":
        return ProjectNotFound(f"{path}: the row names a project that is not there")
    if "no such table" in str(cause) or "no such column" in str(cause):
        return SchemaMismatch(
            f"{path}: {cause}", hint="run 'vault migrate --plan' to see what the file lacks"
        )
    if isinstance(cause, sqlite3.OperationalError):
        return StorageError(
            f"{path}: {cause}", hint="mend the cause and try again; nothing is half-done"
        )
    return VaultError(f"{path}: {cause}")


def damaged(path: Path, what: str) -> NotADatabase:
    """The error for what can only be where the file was damaged."""
    return NotADatabase(
        f"{path}: the file is damaged: {what}",
        hint="'vault doctor' says what is left; restore a backup",
    )


def moved(path: Path) -> StorageError:
    return StorageError(
        f"{path}: the file was moved, removed or replaced while it is open here",
        hint="look where it is, and open the vault anew",
    )


def _first_fault(error: BaseException) -> BaseException:
    """The first fault in the chain: what undoing it raised says less."""
    cause, link = error, error.__cause__ or error.__context__
    while link is not None:
        if isinstance(link, FAULTS):
            cause = link
        link = link.__cause__ or link.__context__
    return cause


def _cannot_open(path: Path) -> StorageError:
    """SQLite has one word for all of these."""
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
        return StorageError(
            f"{path}: SQLite takes no path of more than {_LONGEST} bytes",
            hint="give a shorter path",
        )
    if not os.access(path, os.R_OK):
        return StorageError(
            f"{path}: no permission to read it", hint="run as the user whose file it is"
        )
    if not os.access(path.parent, os.W_OK):
        return _read_only(path)
    return StorageError(
        f"{path}: SQLite cannot open it, or its log beside it",
        hint="look at the permissions of the file and of its folder",
    )


def _read_only(path: Path) -> DatabaseReadOnly:
    return DatabaseReadOnly(
        f"{path}: the file or its folder is read-only",
        hint="run as the user whose file it is; SQLite writes a log beside it even to read",
    )
