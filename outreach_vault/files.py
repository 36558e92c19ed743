"""
Our own files: each appears complete or not at all, and only its owner can read it.

Also here: what a given path means, our words for the system's errors about files, and the file
lock that keeps two operators' commands apart.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from . import errors
from .errors import OperationRunning, StorageError, UnusablePath, WeakStorage

T = TypeVar("T")

TEMPORARY: Final = ".outreach-vault."  # begins the name of each folder that a file is made in
# Codes that a file system may give for lacking a feature: FAT has no modes and no links, CIFS
# cannot sync a folder, and a user's mount may lack all of it.
_UNSUPPORTED: Final = frozenset({
    errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP,
    errno.EMLINK,
})  # fmt: skip
_NEXT: Final = {
    errno.ENOENT: "check the path; make missing folders first",
    errno.EACCES: "check the permissions of the file and its folder",
    errno.EPERM: "check the permissions of the file and folder, and what the file system can do",
    errno.EROFS: "the file system is read-only: choose another, or remount it for writing",
    errno.EMFILE: "the process has too many open files: close some, or raise its limit (ulimit -n)",
    errno.ENFILE: "the system has too many open files: close a program",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "links lead in a circle, or a link is not allowed there: give the file's own path",
    errno.EIO: "the disk or file system has a fault: read the system log, and save what you can",
    errno.ENOMEM: "the system has too little memory: close a program",
    errno.ENOLCK: "the file system has no locks: keep the database on a disk of this machine",
}


def absolute(path: str | os.PathLike[str], source: str) -> Path:
    """
    The absolute path that is meant; a leading `~` is a home folder.

    Args:
        source: where the path comes from, for the error.
    Raises:
        TypeError: *path* is not text.
        UnusablePath: it is empty, has a control character, is the root of the file system, or names
            a home folder that does not exist; or it is relative and the current folder was deleted.
            Taken literally, each would make a second database or key store that nobody meant.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise TypeError(f"{source}: the path must be text, not {type(text).__name__}")
    if not text:
        fault, hint = "the path is empty", "give a path, or unset the variable that holds it"
    elif text[-1] in "\r\n":
        fault = f"the path ends with a line break: {text!r}"
        hint = "save the file that sets it with Unix line ends"
    elif any(c < " " or c == "\x7f" for c in text):
        fault, hint = f"the path has a control character: {text!r}", "correct it where it is set"
    else:
        return _named_place(text, source)
    raise UnusablePath(f"{source}: {fault}", hint=hint)


def _named_place(text: str, source: str) -> Path:
    if text.startswith("~"):
        # Path's own expanduser raises RuntimeError, and takes ./~ for ~.
        home = os.path.expanduser(text)  # noqa: PTH111
        if home == text or not os.path.isabs(home) or os.environ.get("HOME") == "":  # noqa: PTH117
            raise UnusablePath(
                f"{source}: {text!r} names a home folder that does not exist",
                hint="give the whole path; for a file whose name begins with ~, write ./~...",
            )
        text = home
    try:
        found = Path(text).absolute()
    except OSError as error:
        raise UnusablePath(
            f"{source}: {text!r} is relative, but the current folder no longer exists",
            hint="go to another folder, or give the whole path",
        ) from error
    if not found.name:
        fault = f"{source}: {text!r} is the root of the file system"
        raise UnusablePath(fault, hint="give the path of a file or folder in it")
    return found


def real(path: Path) -> Path:
    """The path without links. `Path.resolve` would raise where they lead in a circle."""
    return Path(os.path.realpath(path))


def take(held: list[T], acquire: Callable[..., T], *arguments: object) -> None:
    """
    Append what *acquire* returns to *held*, so that the caller's `finally` can release it.

    A signal handler may raise after any call returns. `descriptor = os.open(...)` is two steps: a
    handler that raises between them loses the descriptor, or the lock. The interpreter runs
    `extend` over `map` as one step.
    """
    held.extend(map(acquire, *((argument,) for argument in arguments)))


def with_descriptor(path: Path, flags: int, use: Callable[[int], T]) -> T:
    """
    Open *path*, return what *use* makes of the descriptor, and close it.

    A link as the last name is not followed. A new file is its owner's alone (0600).
    """
    held: list[int] = []
    try:
        take(held, os.open, path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
        return use(held[0])
    finally:
        for descriptor in held:
            os.close(descriptor)


def new_file(path: Path, fill: Callable[[Path], T], *, like: Path | None = None) -> T:
    """
    Make a file that appears at *path* complete or not at all, mode 0600 from its first byte.

    Nothing at *path* is ever replaced or followed. Warns (`WeakStorage`) where the file system has
    no modes.

    Args:
        path: absolute.
        fill: gets the path of an empty file in a private folder (0700) beside *path*. What it
            leaves there is moved to *path*.
        like: if root runs this, the new file goes to the owner of this one.
    Returns:
        What *fill* returns.
    Raises:
        StorageError: *path* exists, or its folder cannot be written.
    """
    # The name comes first, so that what is made can be removed.
    folder = path.with_name(f"{TEMPORARY}{os.urandom(6).hex()}")
    part = folder / "part"  # short: *path* may use all 255 bytes, and SQLite adds to the name
    try:
        folder.mkdir(0o700)
        make_private(folder, 0o700)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        with_descriptor(part, flags, lambda descriptor: _made(descriptor, part, like))
        made = fill(part)
        if os.name != "nt" and part.stat().st_mode & 0o077:
            _warn(f"{path}: this file system has no modes, so other users may read the file")
        put_in_place(part, path)
        return made
    except FileExistsError as error:
        fault = f"{path}: something is there already; it was left as it is"
        raise StorageError(fault, hint="choose another name") from error
    except OSError as error:
        raise os_error(path if os.path.lexists(folder) else path.parent, error) from error
    finally:
        try:
            _remove(os.fspath(folder))
        finally:  # a signal handler may interrupt the first try
            _remove(os.fspath(folder))


def _remove(folder: str) -> None:
    """Remove a folder and its files if possible; `vault doctor` names one left by the database."""
    try:
        # shutil.rmtree would hold a descriptor of the folder, which a signal could leak.
        for name in os.listdir(folder):  # noqa: PTH208
            os.unlink(folder + os.sep + name)  # noqa: PTH108
        os.rmdir(folder)  # noqa: PTH106
    except OSError:
        return


def make_private(path: Path, mode: int) -> None:
    """Set the mode, whatever the umask. A file system without modes is left as it is."""
    try:
        os.chmod(path, mode)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def new_folder(path: Path) -> None:
    """
    Make a folder for its owner alone.

    Raises:
        FileExistsError: something is there; it stays as it is. OSError: it was not made.
    """
    path.mkdir(mode=0o700)
    make_private(path, 0o700)
    sync_folder(path.parent)


def put_in_place(part: Path, path: Path) -> None:
    """
    Move the complete file *part* to *path*, on the same file system, to survive a power cut.

    Raises:
        FileExistsError: the name is taken; that file stays as it is. OSError: *path* was not made.
    """
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _rename_to_new(part, path)
    try:
        sync_folder(path.parent)
    except OSError:
        path.unlink()
        raise


def _rename_to_new(part: Path, path: Path) -> None:
    """For file systems without links (FAT, exFAT): a rename that replaces nothing."""
    if os.name == "nt":
        part.rename(path)
        return
    import ctypes  # here: few file systems need it

    libc, names = ctypes.CDLL(None, use_errno=True), (os.fsencode(part), os.fsencode(path))
    if hasattr(libc, "renameat2"):  # Linux: from the current folder (AT_FDCWD), RENAME_NOREPLACE
        failed = libc.renameat2(-100, names[0], -100, names[1], 1)
    elif hasattr(libc, "renamex_np"):  # macOS: RENAME_EXCL
        failed = libc.renamex_np(*names, 4)
    else:
        failed, _ = -1, ctypes.set_errno(errno.ENOSYS)
    if failed and (number := ctypes.get_errno()) not in _UNSUPPORTED:
        raise OSError(number, os.strerror(number), os.fspath(path))
    if failed:  # no such rename: claim the name with an empty file, which a kill just then leaves
        ours = with_descriptor(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, os.fstat)
        if not os.path.samestat(ours, path.lstat()):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))
        try:
            part.replace(path)
        except OSError:
            if os.path.samestat(ours, path.lstat()):
                path.unlink()
            raise


def sync_folder(folder: Path) -> None:
    """
    Make a new name in *folder* survive a power cut (a file's own sync does not cover its name).

    Warns (`WeakStorage`) where that is impossible, as on CIFS or in an unreadable folder.
    """
    if os.name == "nt":
        return  # Windows cannot open a folder for this
    try:
        with_descriptor(real(folder), os.O_RDONLY, os.fsync)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _warn(f"{folder}: a new file there may not survive a power cut: {error.strerror}")


def _warn(message: str) -> None:
    warnings.warn(message, WeakStorage, stacklevel=3)


def _made(descriptor: int, path: Path, like: Path | None) -> None:
    """
    Make a new file private; if root made it, give it to the owner of *like*.

    SQLite does the same: a file that root leaves beside a user's database would lock the user out.
    By descriptor, never by name: the user may have put something else there meanwhile.
    """
    make_private(path, 0o600)
    if like and os.name != "nt" and os.geteuid() == 0:
        try:
            owner = like.stat()
        except FileNotFoundError:
            return  # a new database, so root's too
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def alone(path: Path, operation: Callable[[], T], *, patience: float = 0.0) -> T:
    """
    Run *operation* while no other process changes the keys or the schema of the database at *path*.

    The operating system's lock on an empty file beside the database. It ends with the process,
    however that ends, so a kill leaves nothing to clean up. Adapters never take it.

    Args:
        patience: how many seconds to wait.
    Raises:
        OperationRunning: another process has the lock.
        StorageError: the lock file cannot be made, or the file system has no locks.
    """
    file = real(path)
    beside = file.with_name(file.name + ".vault-lock")
    held: list[int] = []
    try:
        try:
            _open_lock(held, beside, file)
            deadline = time.monotonic() + patience
            while not _try_lock(held[0]):
                if time.monotonic() >= deadline:
                    fault = f"{path}: another vault command is changing its keys or schema"
                    raise OperationRunning(fault, hint="let it finish, then run this again")
                time.sleep(0.05)
        except OSError as error:
            at = beside.parent if error.errno == errno.ENOENT else beside
            raise os_error(at, error) from error
        return operation()
    finally:
        for descriptor in held:
            os.close(descriptor)


def _open_lock(held: list[int], path: Path, database: Path) -> None:
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    try:
        take(held, os.open, path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        take(held, os.open, path, flags)
    else:
        _made(held[0], path, database)


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
    """Our own error for a system error about *path*."""
    what = f"{path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.DatabaseFull(what, hint="make room and try again")
    kind = StorageError
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        kind = errors.DatabaseReadOnly
    return kind(what, hint=advice(error, "check the path, fix what the system reports, try again"))


def advice(error: OSError, otherwise: str) -> str:
    """What to do about a system error; *otherwise* for one that we have no advice for."""
    return _NEXT.get(error.errno or 0, otherwise)
