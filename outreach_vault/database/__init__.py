"""The database: which one is meant, and the engine for it."""

from __future__ import annotations

import os
from typing import Final

from ..errors import UnusablePath
from ..files import absolute, os_error
from .engine import Cleaned, Concern, Database, Location
from .sqlite.database import scratch
from .sqlite.files import NAMED
from .sqlite.location import FileLocation

__all__ = [
    "Cleaned",
    "Concern",
    "Database",
    "Location",
    "first_line",
    "is_url",
    "locate",
    "open_database",
    "scratch",
]

_URLS: Final = ("postgresql:", "postgres:")


def is_url(text: object) -> bool:
    """Whether a database is named by a URL, and not by a path."""
    return isinstance(text, str) and text.startswith(_URLS)


def locate(database: str | os.PathLike[str] | Location | None) -> Location:
    """
    What *database* names, else OUTREACH_VAULT_DB, else the URL or path on the first line of the
    file that OUTREACH_VAULT_DB_FILE names, else the desktop app's own file.

    Raises:
        UnusablePath: it names no place. That includes empty text: a silent fallback to the app's
            file would hide a mistake. Or both variables are set. A URL's own faults come later.
        StorageError: the file that OUTREACH_VAULT_DB_FILE names cannot be read.
    """
    if isinstance(database, Location):
        return database
    chosen = _from_environment() if database is None else database
    if chosen is None:
        return FileLocation()
    if is_url(chosen):
        from .postgres.location import ServerLocation  # here: a file needs none of it

        return ServerLocation(str(chosen))
    return FileLocation(absolute(chosen, NAMED))


def open_database(
    database: str | os.PathLike[str] | Location | None, *, read_only: bool = False
) -> Database:
    """
    Open the existing database that `locate` finds. Never creates one.

    Args:
        read_only: refuse every write.
    Raises:
        DatabaseNotFound, NotADatabase, StorageError: the database cannot be used.
    """
    database = locate(database)  # no frame of an error shows a URL, which may have a password
    return database.open(read_only=read_only)


def _from_environment() -> str | None:
    named, file = (os.environ.get(f"OUTREACH_VAULT_DB{end}") for end in ("", "_FILE"))
    if file is None:
        return named
    if named is not None:
        raise UnusablePath(
            "both OUTREACH_VAULT_DB and OUTREACH_VAULT_DB_FILE are set", hint="unset one of them"
        )
    return first_line(file, "the file with the database's URL (OUTREACH_VAULT_DB_FILE)")


def first_line(file: str, what: str) -> str:
    """
    The URL or path on the first line of a file, where no other user reads it.

    Args:
        what: to call the file in an error.
    """
    path = absolute(file, what)
    try:
        with path.open(encoding="utf-8") as lines:
            return next(lines, "").strip()
    except UnicodeDecodeError:
        raise UnusablePath(f"{path}: not a text file", hint="put the URL in it") from None
    except OSError as error:
        raise os_error(path, error) from error
