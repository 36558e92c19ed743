"""A key directory: for machines without a keyring."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

from ...errors import KeyExists, KeyMissing, KeyStoreUnavailable
from ...files import (
    absolute,
    advice,
    make_private,
    new_folder,
    put_in_place,
    real,
    sync_folder,
    with_descriptor,
)
from ...secret import Secret
from .store import TRIAL, is_id, missing_key, named_successor

# Kubernetes mounts a Secret so: each file is a link through this one, which it sets anew with all
# files at once.
_VERSION: Final = "..data"
_SUCCESSOR: Final = "successor"  # ends the name of the file that names the next key


class KeyDirectory:
    """
    A folder (0700) with one file (0600) per key, for machines without a keyring: containers,
    servers. A replaced key has a second file, `.successor`, with the id of the next key.

    The first key that is written makes the folder; the one above it must exist. Stricter modes are
    fine (0500 and 0400, as for systemd's credentials); looser ones are refused.

    A Secret that Kubernetes mounted is such a folder too, which nothing is written to. There the
    folder may be open: what counts is who can read the files, and that nobody can put others there.

    Args:
        path: the folder. Keep it apart from the database and from its backups.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = absolute(path, "the key directory (--key-dir, OUTREACH_VAULT_KEY_DIR)")

    @property
    def name(self) -> str:
        return f"key directory {self.path}"

    def read(self, vault_id: str, key_id: str) -> Secret:
        found = self._read(self._file(vault_id, key_id))
        if found is None:
            raise missing_key(self.name, key_id)
        return Secret(found)

    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        path = self._file(vault_id, key_id)
        if not self._write(path, key):
            there = f"{self.name}: {path.name} exists already; it was not changed"
            raise KeyExists(there, key_id=key_id)

    def holds(self, vault_id: str, key_id: str) -> bool:
        path = self._file(vault_id, key_id)
        return self._is_made() and self._read(path) is not None

    def delete(self, vault_id: str, key_id: str) -> None:
        path = self._file(vault_id, key_id)
        if os.path.lexists(path):
            self._require_own()
        try:
            path.unlink(missing_ok=True)
            self._remove_parts(path)
            sync_folder(self.path)
        except FileNotFoundError:
            return  # no folder yet, so no entry either
        except OSError as error:
            raise self._unavailable(path, error) from error

    def successor(self, vault_id: str, key_id: str) -> str | None:
        path = self._file(vault_id, key_id, _SUCCESSOR)
        return named_successor(self._read(path), str(path), key_id)

    def mark_superseded(self, vault_id: str, key_id: str, successor_id: str) -> None:
        self._write(self._file(vault_id, key_id, _SUCCESSOR), Secret(successor_id))

    def _file(self, vault_id: str, key_id: str, kind: str = "key") -> Path:
        """The ids come from the database, so they are checked before they name a file."""
        name = f"{vault_id}.{key_id}.{kind}"
        if not (is_id(vault_id) and is_id(key_id)):
            problem = "the database has a vault or key id that cannot be one"
            raise KeyMissing(f"{problem}: {name!r}", key_id=key_id)
        return self.path / name

    def _is_made(self) -> bool:
        try:
            self.path.stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unavailable(self.path, error) from error
        return True

    def _read(self, path: Path) -> str | None:
        """The text of one of the directory's files; None if it does not exist."""
        version = self._version()
        at = path
        if version is None:
            self._require_private(self.path)
        else:
            self._require_kept(self.path)
            self._require_kept(self.path / version)
        if _link(path) is not None:
            if version is None or _link(path) != f"{_VERSION}/{path.name}":
                raise KeyStoreUnavailable(
                    f"{path}: a link; keys are not read through links",
                    hint="name a folder with the files themselves, or a Secret as Kubernetes mounts"
                    " it",
                    key_id=self._key_id(path),
                )
            at = self.path / version / path.name  # a link there is not followed

        def read(descriptor: int) -> str:
            self._require_private(path, os.fstat(descriptor), mounted=at != path)
            return os.read(descriptor, 1024).decode("ascii", "replace")

        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # a pipe must not block
        try:
            return with_descriptor(at, flags, read)
        except FileNotFoundError:
            # Kubernetes may have put the next version in place meanwhile.
            return self._read(path) if self._version() != version else None
        except OSError as error:
            raise self._unavailable(path, error) from error

    def _write(self, path: Path, text: Secret) -> bool:
        """Make a file, complete or not at all. False if it exists; it is not changed."""

        def write(descriptor: int) -> None:
            with open(descriptor, "w", encoding="ascii", closefd=False) as file:
                make_private(part, 0o600)
                self._require_private(part, os.fstat(descriptor))  # before anything is in it
                file.write(text.reveal())
                file.flush()
                os.fsync(descriptor)

        self._require_own()
        try:
            if not self._is_made():
                try:
                    new_folder(self.path)
                except FileNotFoundError as error:
                    raise self._unavailable(self.path.parent, error) from error
                except FileExistsError:
                    pass  # another writer was faster
            self._require_private(self.path)
            self._remove_parts()
            own = f"{os.urandom(6).hex()}.{os.getpid()}.part"
            name = os.fspath(part := path.with_name(f"{path.name}.{own}"))
            try:
                with_descriptor(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, write)
                put_in_place(part, path)
            except FileExistsError:
                return False
            finally:
                # No `suppress` nor other Python function: a signal handler may raise as it begins,
                # and the file would stay.
                try:  # noqa: SIM105
                    os.unlink(name)  # noqa: PTH108
                except FileNotFoundError:
                    pass  # it was never made, or is in place
        except OSError as error:
            raise self._unavailable(path, error) from error
        return True

    def known_as(self) -> str:
        return str(real(self.path))

    def left_over(self) -> list[Path]:
        """Files that killed commands left. No vault needs them."""
        try:
            files = self._files()
        except OSError as error:
            raise self._unavailable(self.path, error) from error
        return [f for f in files if f.suffix == ".part" or f.name.startswith(f"{TRIAL}.")]

    def _remove_parts(self, entry: Path | None = None) -> None:
        """Remove what killed writes left: for this entry, or by processes that are gone."""
        for file in self._files():
            name = file.name.split(".")
            if name[-1] != "part" or len(name) < 3 or not os.path.isfile(file):  # noqa: PTH113
                continue
            gone = name[-2].isdecimal() and not _is_running(int(name[-2]))
            if file.name.startswith(f"{entry.name}.") if entry else gone:
                file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        names = os.listdir(self.path)  # noqa: PTH208  # glob would read the folder's name as a pattern
        return [self.path / name for name in sorted(names)]

    def _version(self) -> str | None:
        """The folder in a mounted Secret that has its files now; None in any other folder."""
        named = _link(self.path / _VERSION)
        return named if named and re.fullmatch(r"\.\.[0-9][\w.-]*", named) else None

    def _require_own(self) -> None:
        if self._version() is not None:
            raise KeyStoreUnavailable(
                f"{self.name}: Kubernetes mounted it, so keys are not written there",
                hint="write keys to a folder of your own ('vault keys import FILE', --key-dir), and"
                " make the Secret of its files",
            )

    def _require_kept(self, path: Path) -> None:
        """Of a mounted Secret: only root and this user can change what is in the folder."""
        if os.name == "nt":
            return  # as for any other folder there
        try:
            status, system = path.stat(), os.statvfs(path)
        except OSError as error:
            raise self._unavailable(path, error) from error
        if status.st_uid not in (os.geteuid(), 0) or (
            status.st_mode & 0o022 and not system.f_flag & os.ST_RDONLY
        ):
            raise KeyStoreUnavailable(
                f"{path}: other users can put files there",
                hint="mount the Secret read-only, as Kubernetes does by itself",
            )

    def _require_private(
        self, path: Path, status: os.stat_result | None = None, *, mounted: bool = False
    ) -> None:
        try:
            status = status or path.stat()
        except FileNotFoundError:
            raise KeyStoreUnavailable(
                f"{self.name}: there is no such folder",
                hint="'vault keys import FILE' makes it and puts exported keys there; if they are"
                " in another folder, name that (--key-dir, OUTREACH_VAULT_KEY_DIR)",
            ) from None
        except OSError as error:
            raise self._unavailable(path, error) from error
        if os.name == "nt":
            return  # modes say nothing there; the folder's access list decides
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            raise KeyStoreUnavailable(
                f"{path}: not a file",
                hint="find out who put it there, and remove it",
                key_id=self._key_id(path),
            )
        others = 0o077
        if status.st_uid == 0 != os.geteuid() and status.st_gid == 0:
            # systemd gives a service's user access by an access list, which shows as group bits
            others &= ~0o050
        if mounted and status.st_gid in {os.getegid(), *os.getgroups()}:
            others &= ~0o040  # Kubernetes gives the pod's user access by the pod's own group
        if stat.S_IMODE(status.st_mode) & others:
            raise KeyStoreUnavailable(
                f"{path}: mode {stat.S_IMODE(status.st_mode):04o} lets other users in",
                hint=(
                    "find out who had access, then run (FAT has no modes: mount it with "
                    f"umask=077): chmod go= '{path}'"
                ),
                key_id=self._key_id(path),
            )
        if status.st_uid not in (os.geteuid(), 0):
            raise KeyStoreUnavailable(
                f"{path}: belongs to another user",
                hint="the key directory must belong to the user who runs the vault, or to root",
                key_id=self._key_id(path),
            )

    def _unavailable(self, path: Path, error: OSError) -> KeyStoreUnavailable:
        return KeyStoreUnavailable(
            f"{path}: {error.strerror or error}",
            hint=advice(error, "check the path of the key directory"),
            key_id=self._key_id(path),
        )

    def _key_id(self, path: Path) -> str | None:
        """From the name of a key's file. A fault of the directory itself concerns no single key."""
        return path.name.split(".")[1] if path.parent == self.path else None


def _link(path: Path) -> str | None:
    """Where a link leads; None for what is none."""
    try:
        return os.readlink(path)  # noqa: PTH115
    except OSError:
        return None


def _is_running(process_id: int) -> bool:
    if os.name == "nt":
        return True  # there os.kill would end it
    try:
        os.kill(process_id, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True
