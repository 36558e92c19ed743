"""SQLite's files: where they are, what they may be, who may read them."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from re import Pattern
from typing import Final
from urllib.parse import quote

from ...errors import DatabaseNotFound, NotADatabase
from ...files import TEMPORARY, absolute, os_error, real
from ..engine import Concern

NAMED: Final = "the database (--db, OUTREACH_VAULT_DB)"
_CHUNK: Final = 1024 * 1024


def app_path() -> Path:
    """
    The desktop app's own file, in its place on this system.

    Raises:
        UnusablePath: there is no home folder.
    """
    if sys.platform == "darwin":
        folder = "~/Library/Application Support"
    elif sys.platform == "win32":
        folder = os.environ.get("APPDATA") or "~/AppData/Roaming"
    else:
        named = os.environ.get("XDG_CONFIG_HOME", "")
        folder = named if os.path.isabs(named) else "~/.config"  # noqa: PTH117  # the specification: a relative one is ignored
    return (
        absolute(folder, f"{NAMED} is not named, and the desktop app's own")
        / "Samsara"
        / "samsara.db"
    )


def address(file: Path, mode: str) -> str:
    """What SQLite opens, as a URI. From Python 3.14 on, `Path.as_uri` loads urllib.request, with 60 modules more."""
    path = quote(os.fsencode(file.absolute().as_posix()), safe="/:")  # a drive's colon
    return f"file://{'' if path.startswith('/') else '/'}{path}?mode={mode}"


def log_path(path: Path) -> Path:
    """SQLite's write-ahead log of the database at *path*: beside the file itself, where that is a link."""
    file = real(path)
    return file.with_name(file.name + "-wal")


def require_content(path: Path) -> None:
    """Refuse what SQLite would take for an empty database, or create; it also deletes the log of a 0-byte file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise DatabaseNotFound(
            f"{path}: there is no database",
            hint="look whether the path is right (--db, OUTREACH_VAULT_DB); 'vault init' creates one",
        ) from None
    except OSError as error:
        raise os_error(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise NotADatabase(f"{path}: not a file", hint="give the path of the database itself")
    if found.st_size == 0:
        raise NotADatabase(
            f"{path}: the file is empty",
            hint="restore a backup; or remove the empty file, and 'vault init' creates a database",
        )


def free_bytes(folder: Path) -> int:
    """How much room there is; no end of it, where the system does not say."""
    import shutil  # here: a look-up does not need it

    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return sys.maxsize


def exposed(path: Path) -> list[Concern]:
    """
    Who else may read or write the database, its folder, and what is beside it under its name.

    SQLite adds files of its own when it opens the database, so ask before that.
    """
    found = list(_left_over(path))
    if os.name == "nt":
        return found  # modes say nothing there
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(path.parent.stat().st_mode)
        if mode & 0o022 and not mode & stat.S_ISVTX:
            found.append(
                Concern(
                    "problem",
                    "open folder",
                    f"{path.parent}: mode {mode:04o} lets others put files in",
                    f"chmod go-w '{path.parent}'",
                )
            )
    for file in sorted({path, *beside(path, f"{path.name}-", f"{path.name}.")}):
        with contextlib.suppress(OSError):  # removed just now, or not to be asked
            status = file.lstat()
            mode = stat.S_IMODE(status.st_mode)
            # The index of the log has its mode from the database.
            if stat.S_ISREG(status.st_mode) and mode & 0o077 and file.name != f"{path.name}-shm":
                level = "problem" if mode & 0o022 else "notice"
                message = f"{file}: mode {mode:04o} lets other users in"
                found.append(Concern(level, "open file", message, f"chmod go= '{file}'"))
    return found


def _left_over(path: Path) -> Iterator[Concern]:
    # The second is how version 0.1.0 named them.
    for left in beside(path, TEMPORARY, f".{path.name}."):
        yield Concern(
            "notice",
            "left over",
            f"{left}: an interrupted command left this",
            "if no vault command is running, remove it",
        )


def beside(path: Path, *beginnings: str) -> list[Path]:
    """
    What is in the file's folder under names that begin so. No pattern: the file's own name may look
    like one.
    """
    try:
        names = sorted(os.listdir(path.parent))  # noqa: PTH208
    except OSError:
        return []  # a folder may be searched and not listed
    return [path.with_name(name) for name in names if name.startswith(beginnings)]


def matches_in(log: Path, pattern: Pattern[bytes], longest: int) -> set[bytes]:
    """
    Each match of *pattern*, of at most *longest* bytes, in SQLite's log. Its locks are on other files,
    so reading this one drops none.
    """
    found, rest = set[bytes](), b""
    try:
        with log.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(pattern.findall(rest + chunk))
                rest = chunk[-longest:]
    except FileNotFoundError:
        pass
    except OSError as error:
        raise os_error(log, error) from error
    return found
