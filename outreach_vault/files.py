"""
Files of our own: they appear complete or not at all, and only for their owner.

Also the lock that keeps two operators' commands apart, which is one on a file.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .errors import DatabaseFull, DatabaseReadOnly, OperationRunning, StorageError

T = TypeVar("T")


def take(held: list[T], acquire: Callable[..., T], *arguments: object) -> None:
    """
    Append what *acquire* gives to *held*, so that the caller's `finally` can give it back.

    A signal's handler may raise after any call that returns. `descriptor = os.open(...)` is two steps, and what it
    raises between them loses the descriptor, or the lock. `extend` and `map` are one step of the interpreter's.
    """
    held.extend(map(acquire, *((argument,) for argument in arguments)))


def with_descriptor(path: Path, flags: int, use: Callable[[int], T]) -> T:
    """
    What *use* makes of a descriptor of *path*, which is closed at the end; no link is followed at the last name.

    A file that is made is its owner's alone (0600).
    """
    held: list[int] = []
    try:
        take(held, os.open, path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
        return use(held[0])
    finally:
        for descriptor in held:
            os.close(descriptor)


def new_file(path: Path, fill: Callable[[Path], T]) -> T:
    """
    Make a file that appears at *path* complete or not at all, mode 0600 from its first byte.

    Nothing at *path* is ever replaced or followed.

    Args:
        fill: is given the path of an empty file, in a folder of its own (0700) beside *path*; what it has become
            afterwards is put in place.
    Returns:
        What *fill* gives.
    Raises:
        StorageError: *path* exists, or its folder cannot be written.
    """
    path = path.absolute()
    folder = path.with_name(f".{path.name}.{os.urandom(6).hex()}")  # the name comes first, so that what is made can be removed
    part = folder / path.name
    try:
        folder.mkdir(0o700)
        folder.chmod(0o700)  # whatever the umask took away
        with_descriptor(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, lambda _: os.chmod(part, 0o600))
        made = fill(part)
        os.link(part, path)
        sync_folder(path.parent)
        return made
    except FileExistsError as error:
        raise StorageError(f"{path}: something is there already; it was left as it is", hint="choose another name") from error
    except OSError as error:
        raise os_error(path if os.path.lexists(folder) else path.parent, error) from error
    finally:
        try:
            _remove(os.fspath(folder))
        finally:  # a signal's handler may raise in the midst of it
            _remove(os.fspath(folder))


def _remove(folder: str) -> None:
    """Remove a folder and its files, if it is there; what cannot be removed is left (`vault doctor` names it)."""
    try:
        for name in os.listdir(folder):  # noqa: PTH208  # no descriptor of the folder is in Python's hands, as in shutil.rmtree
            os.unlink(folder + os.sep + name)  # noqa: PTH108
        os.rmdir(folder)  # noqa: PTH106
    except OSError:
        return


def sync_folder(folder: Path) -> None:
    """Make a new name in *folder* survive a power cut (a file's own sync does not cover its name)."""
    if os.name != "nt":  # Windows has no way to open a folder for this
        with_descriptor(folder.resolve(), os.O_RDONLY, os.fsync)


def alone(path: Path, operation: Callable[[], T], *, patience: float = 0.0) -> T:
    """
    What *operation* gives, while no other process changes the keys or the schema of the database at *path*.

    A lock of the operating system on an empty file beside the database: it ends with the process,
    however that ends, so nothing has to be cleaned up after a kill. Adapters never take it.

    Args:
        patience: for how many seconds to wait.
    Raises:
        OperationRunning: another process has it.
    """
    beside = path.resolve().with_name(path.resolve().name + ".vault-lock")
    held: list[int] = []
    try:
        try:
            _open_lock(held, beside)
        except OSError as error:
            raise os_error(beside, error) from error
        deadline = time.monotonic() + patience
        while not _try_lock(held[0]):
            if time.monotonic() >= deadline:
                raise OperationRunning(
                    f"{path}: another vault command is changing its keys or schema", hint="let it finish, then run this again"
                )
            time.sleep(0.05)
        return operation()
    finally:
        for descriptor in held:
            os.close(descriptor)


def _open_lock(held: list[int], path: Path) -> None:
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    try:
        take(held, os.open, path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        take(held, os.open, path, flags)
    else:
        path.chmod(0o600)  # whatever the umask took away


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def os_error(path: Path, error: OSError) -> StorageError:
    """Our own error for what the system said of *path*."""
    what = f"{path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DatabaseFull(what, hint="make room and try again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DatabaseReadOnly(what, hint="look at the permissions of the file and of its folder")
    return StorageError(what, hint="look whether the path is right, and mend the cause")
