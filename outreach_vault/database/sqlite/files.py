"""SQLite's files: where they are, what they may hold, who may read them."""

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
    The desktop app's own file, where this system keeps it.

    Raises:
        UnusablePath: there is no home folder.
    """
    if sys.platform == "darwin":
        folder = "~/Library/Application Support"
    elif sys.platform == "win32":
        folder = os.environ.get("APPDATA") or "~/AppData/Roaming"
    else:
        named = os.environ.get("XDG_CONFIG_HOME", "")
        # The specification says to ignore a relative path.
        folder = named if os.path.isabs(named) else "~/.config"  # noqa: PTH117
    parent = absolute(folder, f"{NAMED} is not named, and the desktop app's own")
    return parent / "Samsara" / "samsara.db"


def address(file: Path, mode: str) -> str:
    """The URI for SQLite. `Path.as_uri` loads urllib.request and 60 more modules in Python 3.14."""
    path = quote(os.fsencode(file.absolute().as_posix()), safe="/:")  # a drive's colon
    return f"file://{'' if path.startswith('/') else '/'}{path}?mode={mode}"


def log_path(path: Path) -> Path:
    """SQLite's write-ahead log of the database at *path*: if that is a link, beside its target."""
    file = real(path)
    return file.with_name(file.name + "-wal")


def require_content(path: Path) -> None:
    """
    Refuse a missing or empty file: SQLite would create a database.

    It also deletes the log of a 0-byte file.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        advice = "check the path (--db, OUTREACH_VAULT_DB); 'vault init' creates one"
        raise DatabaseNotFound(f"{path}: there is no database", hint=advice) from None
    except OSError as error:
        raise os_error(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise NotADatabase(f"{path}: not a file", hint="give the path of the database itself")
    if found.st_size == 0:
        advice = "restore a backup; or remove the empty file, and run 'vault init' for a new one"
        raise NotADatabase(f"{path}: the file is empty", hint=advice)


def free_bytes(folder: Path) -> int:
    """How much room there is; unlimited if the system does not say."""
    import shutil  # here, since a look-up does not need it

    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return sys.maxsize


def exposed(path: Path) -> list[Concern]:
    """
    Who else can read or write the database, its folder, and the files beside it with its name.

    SQLite adds files of its own when it opens the database, so ask before that.
    """
    found = list(_left_over(path))
    if os.name == "nt":
        return found  # modes say nothing there
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(path.parent.stat().st_mode)
        if mode & 0o022 and not mode & stat.S_ISVTX:
            message = f"{path.parent}: mode {mode:04o} lets other users add files"
            found.append(Concern("problem", "open folder", message, f"chmod go-w '{path.parent}'"))
    for file in sorted({path, *beside(path, f"{path.name}-", f"{path.name}.")}):
        with contextlib.suppress(OSError):  # removed just now, or not readable
            status = file.lstat()
            mode = stat.S_IMODE(status.st_mode)
            # The log's index gets its mode from the database.
            if stat.S_ISREG(status.st_mode) and mode & 0o077 and file.name != f"{path.name}-shm":
                level = "problem" if mode & 0o022 else "notice"
                message = f"{file}: mode {mode:04o} lets other users in"
                found.append(Concern(level, "open file", message, f"chmod go= '{file}'"))
    return found


def _left_over(path: Path) -> Iterator[Concern]:
    advice = "if no vault command is running, remove it"
    for left in beside(path, TEMPORARY, f".{path.name}."):  # the second is from version 0.1.0
        yield Concern("notice", "left over", f"{left}: an interrupted command left this", advice)


def beside(path: Path, *beginnings: str) -> list[Path]:
    """Files in its folder whose names begin so. No glob: the file's own name may hold a `*`."""
    try:
        names = sorted(os.listdir(path.parent))  # noqa: PTH208
    except OSError:
        return []  # some folders can be searched but not listed
    return [path.with_name(name) for name in names if name.startswith(beginnings)]


def matches_in(log: Path, pattern: Pattern[bytes], longest: int) -> set[bytes]:
    """
    Each match of *pattern*, of at most *longest* bytes, in SQLite's log.

    SQLite holds no locks on the log, so reading it drops none.
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
