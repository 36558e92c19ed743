"""
Files of our own: they appear complete or not at all, and only for their owner.

Also what a path that somebody gave means, the words for what the system says of a file, and the lock that keeps two
operators' commands apart, which is one on a file.
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

from .errors import (
    DatabaseFull,
    DatabaseReadOnly,
    OperationRunning,
    StorageError,
    UnusablePath,
    WeakStorage,
)

T = TypeVar("T")

TEMPORARY: Final = ".outreach-vault."  # how the name of each folder begins in which a file is made
# What a system call says that is right and that this file system does not have: FAT has no modes and no links, CIFS no sync
# of a folder, and what is mounted by a user may have none of it.
_NOT_HAD: Final = frozenset(
    {
        errno.EPERM,
        errno.EACCES,
        errno.EINVAL,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
        errno.EMLINK,
    }
)
_NEXT: Final = {
    errno.ENOENT: "look whether the path is right; folders are to be made first",
    errno.EACCES: "look at the permissions of the file and of its folder",
    errno.EPERM: "look at the permissions of the file and of its folder, and whether its file system can do this",
    errno.EROFS: "the file system is mounted for reading alone: choose another, or mount it for writing",
    errno.EMFILE: "this process has too many files open: let it close some, or raise its limit (ulimit -n)",
    errno.ENFILE: "the system has too many files open: end some program",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "links lead in a circle there, or one stands where none is followed: give the path of the file itself",
    errno.EIO: "the disk or the file system has a fault: look at the system's log, and save what can still be read",
    errno.ENOMEM: "the system has too little memory: end some program",
    errno.ENOLCK: "the file system has no locks: keep the database on a disk of this machine",
}


def absolute(path: str | os.PathLike[str], source: str) -> Path:
    """
    The absolute path that is meant; `~` at its beginning is a home folder.

    Args:
        source: where the path comes from, for the error.
    Raises:
        TypeError: it is no text.
        UnusablePath: it is empty, has a control character, is the root of the file system, or names a home folder that is not
            there; or it is relative, and the current folder was deleted. Each of them, taken as it stands, would be a second
            place that nobody meant.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise TypeError(f"{source}: a path as text is needed, not {type(text).__name__}")
    if not text:
        raise UnusablePath(
            f"{source}: a path is needed, and this is empty text",
            hint="give the path, or unset what names it",
        )
    if text[-1] in "\r\n":
        raise UnusablePath(
            f"{source}: the path ends in a line end: {text!r}",
            hint="give the file that sets it Unix line ends",
        )
    if any(c < " " or c == "\x7f" for c in text):
        raise UnusablePath(
            f"{source}: the path has a control character: {text!r}", hint="look where it was set"
        )
    if text.startswith("~"):
        home = os.path.expanduser(text)  # noqa: PTH111  # Path's own raises RuntimeError, and takes ./~ for ~
        if home == text or not os.path.isabs(home) or os.environ.get("HOME") == "":  # noqa: PTH117
            raise UnusablePath(
                f"{source}: {text!r} names a home folder, and there is none of that name",
                hint="give the whole path; of a file whose name begins so: ./~...",
            )
        text = home
    try:
        found = Path(text).absolute()
    except OSError as error:
        raise UnusablePath(
            f"{source}: {text!r} is relative, and the current folder is not there any more",
            hint="go to another folder, or give the whole path",
        ) from error
    if not found.name:
        raise UnusablePath(
            f"{source}: {text!r} is the root of the file system",
            hint="give the path of a file or folder in it",
        )
    return found


def real(path: Path) -> Path:
    """The path without links; Path's own raises where they lead in a circle."""
    return Path(os.path.realpath(path))


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


def new_file(path: Path, fill: Callable[[Path], T], *, like: Path | None = None) -> T:
    """
    Make a file that appears at *path* complete or not at all, mode 0600 from its first byte.

    Nothing at *path* is ever replaced or followed. Where the file system keeps no modes it warns (`WeakStorage`).

    Args:
        path: absolute.
        fill: is given the path of an empty file, in a folder of its own (0700) beside *path*; what it has become
            afterwards is put in place.
        like: a file whose owner is to have the new one, where root makes it.
    Returns:
        What *fill* gives.
    Raises:
        StorageError: *path* exists, or its folder cannot be written.
    """
    folder = path.with_name(
        f"{TEMPORARY}{os.urandom(6).hex()}"
    )  # the name comes first, so that what is made can be removed
    part = folder / "part"  # a name of 255 bytes has room for nothing more, and SQLite adds to it
    try:
        folder.mkdir(0o700)
        make_private(folder, 0o700)
        with_descriptor(
            part,
            os.O_CREAT | os.O_EXCL | os.O_WRONLY,
            lambda descriptor: _made(descriptor, part, like),
        )
        made = fill(part)
        if os.name != "nt" and part.stat().st_mode & 0o077:
            _warn(
                f"{path}: this file system keeps no modes, so the file may be open to other users"
            )
        put_in_place(part, path)
        return made
    except FileExistsError as error:
        raise StorageError(
            f"{path}: something is there already; it was left as it is", hint="choose another name"
        ) from error
    except OSError as error:
        raise os_error(path if os.path.lexists(folder) else path.parent, error) from error
    finally:
        try:
            _remove(os.fspath(folder))
        finally:  # a signal's handler may raise in the midst of it
            _remove(os.fspath(folder))


def _remove(folder: str) -> None:
    """Remove a folder and its files, if it is there; what cannot be removed is left (`vault doctor` names it, beside the database)."""
    try:
        for name in os.listdir(folder):  # noqa: PTH208  # no descriptor of the folder is in Python's hands, as in shutil.rmtree
            os.unlink(folder + os.sep + name)  # noqa: PTH108
        os.rmdir(folder)  # noqa: PTH106
    except OSError:
        return


def make_private(path: Path, mode: int) -> None:
    """Set the mode, whatever the umask took away. Where the file system keeps none, it stays as it is."""
    try:
        os.chmod(path, mode)
    except OSError as error:
        if error.errno not in _NOT_HAD:
            raise


def put_in_place(part: Path, path: Path) -> None:
    """
    Give the complete file *part* the name *path*, on the same file system, so that it survives a power cut.

    Raises:
        FileExistsError: something has that name; it stays as it is. OSError: *path* was not made.
    """
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in _NOT_HAD:
            raise
        _rename_to_new(part, path)
    try:
        sync_folder(path.parent)
    except OSError:
        path.unlink()
        raise


def _rename_to_new(part: Path, path: Path) -> None:
    """Where the file system has no links (FAT, exFAT): a rename that replaces nothing."""
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
    if failed and (number := ctypes.get_errno()) not in _NOT_HAD:
        raise OSError(number, os.strerror(number), os.fspath(path))
    if failed:  # none such either: an empty file takes the name first. A kill just then leaves that
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

    Where that cannot be had, as on CIFS or in a folder that may not be read, it warns (`WeakStorage`).
    """
    if os.name == "nt":
        return  # Windows has no way to open a folder for this
    try:
        with_descriptor(real(folder), os.O_RDONLY, os.fsync)
    except OSError as error:
        if error.errno not in _NOT_HAD:
            raise
        _warn(f"{folder}: a new file there may not survive a power cut: {error.strerror}")


def _warn(message: str) -> None:
    warnings.warn(message, WeakStorage, stacklevel=3)


def _made(descriptor: int, path: Path, like: Path | None) -> None:
    """
    A file that was made just now becomes its owner's alone; where root made it, that of the owner of *like*.

    SQLite does so with its own files: what root leaves beside a user's database would lock the user out. By descriptor
    and never by name: the user may have put something else there meanwhile.
    """
    make_private(path, 0o600)
    if like and os.name != "nt" and os.geteuid() == 0:
        try:
            owner = like.stat()
        except FileNotFoundError:
            return  # not made yet, so root's too
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def alone(path: Path, operation: Callable[[], T], *, patience: float = 0.0) -> T:
    """
    What *operation* gives, while no other process changes the keys or the schema of the database at *path*.

    A lock of the operating system on an empty file beside the database: it ends with the process,
    however that ends, so nothing has to be cleaned up after a kill. Adapters never take it.

    Args:
        patience: for how many seconds to wait.
    Raises:
        OperationRunning: another process has it. StorageError: it cannot be made, or the file system has no locks.
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
                    raise OperationRunning(
                        f"{path}: another vault command is changing its keys or schema",
                        hint="let it finish, then run this again",
                    )
                time.sleep(0.05)
        except OSError as error:
            raise os_error(
                beside.parent if error.errno == errno.ENOENT else beside, error
            ) from error
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
    """Our own error for what the system said of *path*."""
    what = f"{path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DatabaseFull(what, hint="make room and try again")
    kind = (
        DatabaseReadOnly
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        else StorageError
    )
    return kind(what, hint=advice(error, "look whether the path is right, and mend the cause"))


def advice(error: OSError, otherwise: str) -> str:
    """What to do about what the system said."""
    return _NEXT.get(error.errno or 0, otherwise)
