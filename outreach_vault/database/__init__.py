"""The database: which one is meant, and the engine for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import OperationRunning
from ..files import absolute, alone, new_folder, os_error, real
from .engine import Cleaned, Concern, Database
from .sqlite import files
from .sqlite.database import create_file, open_file

__all__ = [
    "Cleaned",
    "Concern",
    "Database",
    "create_database",
    "exists",
    "exposed",
    "locate",
    "make_folder",
    "open_database",
    "require_locks",
]

T = TypeVar("T")


def locate(path: str | os.PathLike[str] | None) -> Path:
    """
    The absolute path: of *path*, else of OUTREACH_VAULT_DB, else of the desktop app's own file.

    Raises:
        UnusablePath: it names no place. That includes empty text: a silent fallback to the app's
            file would hide a mistake.
    """
    chosen = os.environ.get("OUTREACH_VAULT_DB") if path is None else path
    return files.app_path() if chosen is None else absolute(chosen, files.NAMED)


def make_folder(path: str | os.PathLike[str] | None) -> Path | None:
    """
    Make the folder of the desktop app's own file, for its owner alone, if that is the one that
    `locate` finds and there is no such folder.

    Returns:
        The folder; None if it was there, or another file is meant.
    Raises:
        StorageError: it cannot be made.
    """
    folder = locate(path).parent
    named = path is not None or "OUTREACH_VAULT_DB" in os.environ
    if named or os.path.lexists(folder):
        return None
    for missing in reversed([folder, *folder.parents]):
        if not os.path.lexists(missing):
            try:
                new_folder(missing)
            except FileExistsError:
                pass  # another process was faster
            except OSError as error:
                raise os_error(missing, error) from error
    return folder


def exists(path: Path) -> bool:
    """Whether anything is there, a database or not."""
    return os.path.lexists(path)


def require_locks(path: Path) -> None:
    """
    Raise what `Database.operators_turn` would raise at *path*, before anything is made there.

    Another process's turn is no fault.
    """
    with contextlib.suppress(OperationRunning):
        alone(path, lambda: None)


def open_database(path: str | os.PathLike[str] | None, *, read_only: bool = False) -> Database:
    """
    Open the existing database that `locate` finds for *path*. Never creates one.

    Args:
        read_only: refuse every write, and change no byte, not even when it closes.
    Raises:
        DatabaseNotFound, NotADatabase, StorageError: the file cannot be used.
    """
    return open_file(locate(path), read_only=read_only)


def create_database(path: Path, fill: Callable[[Database], T]) -> T:
    """
    Make a new database at *path*, complete or not at all. *fill* puts everything in.

    Returns:
        What *fill* returns.
    Raises:
        StorageError: something is at *path*, or its folder cannot be written.
    """
    return create_file(path, fill)


def exposed(path: Path) -> list[Concern]:
    """Who else can read or write the database. Ask before it is opened."""
    return files.exposed(real(path))
