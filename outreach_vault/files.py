"""
Files of our own: they appear complete or not at all, and only for their owner.

Also the lock that keeps two operators' commands apart, which is one on a file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import DatabaseFull, DatabaseReadOnly, OperationRunning, StorageError


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """
    A file that appears at *path* complete or not at all, mode 0600 from its first byte.

    Gives the path of an empty file in a folder of its own (0700) beside *path*; what it has become at
    the end is put in place. Nothing at *path* is ever replaced or followed.

    Raises:
        StorageError: *path* exists, or its folder cannot be written.
    """
    import shutil  # here: a look-up makes no file
    import tempfile

    path = path.absolute()
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise os_error(path.parent, error) from error
    part = folder / path.name
    try:
        folder.chmod(0o700)  # whatever the umask took away
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o600)
        os.chmod(part, 0o600)
        os.close(descriptor)
        yield part
        os.link(part, path)
        sync_folder(path.parent)
    except FileExistsError as error:
        raise StorageError(f"{path}: something is there already; it was left as it is", hint="choose another name") from error
    except OSError as error:
        raise os_error(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make a new name in *folder* survive a power cut (a file's own sync does not cover its name)."""
    if os.name == "nt":
        return  # Windows has no way to open a folder for this
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def operator_lock(path: Path, *, patience: float = 0.0) -> Iterator[None]:
    """
    Let one process at a time change the keys or the schema of the database at *path*.

    A lock of the operating system on an empty file beside the database: it ends with the process,
    however that ends, so nothing has to be cleaned up after a kill. Adapters never take it.

    Args:
        patience: for how many seconds to wait.
    Raises:
        OperationRunning: another process has it.
    """
    beside = path.resolve().with_name(path.resolve().name + ".vault-lock")
    try:
        descriptor = _open_lock(beside)
    except OSError as error:
        raise os_error(beside, error) from error
    try:
        deadline = time.monotonic() + patience
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise OperationRunning(
                    f"{path}: another vault command is changing its keys or schema", hint="let it finish, then run this again"
                )
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    path.chmod(0o600)  # whatever the umask took away
    return descriptor


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
