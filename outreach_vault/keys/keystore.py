"""
Where keys live: the OS keyring, or a key directory. The only module that imports keyring.

One entry per key, under the vault's id and the key's, written once and never overwritten: macOS
deletes and then adds, Windows leaves copies. Which of the two is in use is the operator's explicit
choice and is never read from the database, whose writer could otherwise redirect the keys.

When a key is replaced, a second entry beside it names its successor. So the key store knows which key
is the present one (the one without a successor), without an entry that ever changes: who can write the
database alone cannot make an older key the active one unnoticed.

Measured with gnome-keyring: a read takes 17 ms, a write 40 ms, a frozen daemon blocks a call for ever,
and of 16 threads at once a few get faults that pass. So every call to a keyring is made by one thread
at a time, within a time limit, and again when the fault may pass. What was read is kept by the caller.
"""

from __future__ import annotations

import importlib
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from ..cipher import generate_key
from ..errors import (
    KeyExists,
    KeyMissing,
    KeyringLocked,
    KeyringRefused,
    KeyringTimedOut,
    KeyStoreUnavailable,
    KeyUnavailable,
    StorageError,
    VaultError,
    WrongArgument,
)
from ..files import absolute, advice, make_private, put_in_place, sync_folder, with_descriptor
from ..limits import TookTooLong, within
from ..schema.shapes import new_id
from ..secret import Secret

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

T = TypeVar("T")

KEYRING_SECONDS: Final = 10.0
_ACCOUNT: Final = "fernet-key"
_SUCCESSOR: Final = "successor"  # the account of the entry that names the key which replaced this one
_TRIAL: Final = "trial"  # in the place of a vault's id
_PAUSES: Final = (0.05, 0.2, 0.5)  # seconds between tries; faults of simultaneous callers pass in less
_APPROVED: Final = {
    "keyring.backends.SecretService.Keyring": "Secret Service",
    "keyring.backends.kwallet.DBusKeyring": "KWallet",
    "keyring.backends.macOS.Keyring": "macOS Keychain",
    "keyring.backends.Windows.WinVaultKeyring": "Windows Credential Locker",
}
_ADVICE: Final = "unlock or start the system's keyring; on a machine without one name a key directory (--key-dir, OUTREACH_VAULT_KEY_DIR)"


class KeyStore(Protocol):
    """
    A place for keys. Each raises `KeyUnavailable` of the kind that fits.

    A key's name is its vault's id and its own id. An entry is written once; `read` gives what `write`
    was given, or raises; `holds` says whether there is one, also where the store is not made yet;
    `delete` of what is not there does nothing. `successor` is the id of the key that replaced this
    one, or None; the first `mark_superseded` stands, later ones do nothing, and it outlives the key:
    a key that comes back from a backup is still an older one.
    """

    @property
    def name(self) -> str: ...
    def read(self, vault_id: str, key_id: str) -> Secret: ...
    def write(self, vault_id: str, key_id: str, key: Secret) -> None: ...
    def holds(self, vault_id: str, key_id: str) -> bool: ...
    def delete(self, vault_id: str, key_id: str) -> None: ...
    def successor(self, vault_id: str, key_id: str) -> str | None: ...
    def mark_superseded(self, vault_id: str, key_id: str, successor_id: str) -> None: ...


def choose(key_dir: str | os.PathLike[str] | None = None) -> KeyStore:
    """
    The key directory at *key_dir*, else at OUTREACH_VAULT_KEY_DIR; the OS keyring where neither is given.

    OUTREACH_VAULT_KEYRING_TIMEOUT is the keyring's time limit in seconds, 10 by default.

    Raises:
        UnusablePath: the path names no place; empty text, taken for "the keyring", would be a silent fallback.
        ValueError: the time limit is not a positive number.
    """
    chosen = os.environ.get("OUTREACH_VAULT_KEY_DIR") if key_dir is None else key_dir
    if chosen is None:
        return OSKeyring(seconds=_time_limit())
    return KeyDirectory(chosen)


def _time_limit() -> float:
    text = os.environ.get("OUTREACH_VAULT_KEYRING_TIMEOUT")
    try:
        seconds = KEYRING_SECONDS if text is None else float(text)
    except ValueError:
        seconds = 0
    if not _is_limit(seconds):
        raise WrongArgument(f"OUTREACH_VAULT_KEYRING_TIMEOUT: {text!r} is not a number of seconds above 0")
    return seconds


def _is_limit(seconds: float) -> bool:
    return 0 < seconds <= threading.TIMEOUT_MAX / 4  # also not a number that compares with none


class KeyDirectory:
    """
    A folder (0700) with one file (0600) per key, for machines without a keyring: containers, servers.
    A key that was replaced has a second one, `.successor`, with the id of the key that replaced it.

    The folder is made when the first key is written; the folder above it must be there. Modes that
    give less (0500 and 0400, as systemd's credentials have) do as well; modes that give more are refused.

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
            raise KeyExists(f"{self.name}: {path.name} is there already; it was left as it is", key_id=key_id)

    def holds(self, vault_id: str, key_id: str) -> bool:
        path = self._file(vault_id, key_id)
        return self._is_made() and self._read(path) is not None

    def delete(self, vault_id: str, key_id: str) -> None:
        path = self._file(vault_id, key_id)
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
        return _successor(self._read(path), str(path), key_id)

    def mark_superseded(self, vault_id: str, key_id: str, successor_id: str) -> None:
        self._write(self._file(vault_id, key_id, _SUCCESSOR), Secret(successor_id))

    def _file(self, vault_id: str, key_id: str, kind: str = "key") -> Path:
        """The ids come from the database; only names that we make reach the file system."""
        name = f"{vault_id}.{key_id}.{kind}"
        if not (_is_id(vault_id) and _is_id(key_id)):
            raise KeyMissing(f"the database names a vault or a key by an id that is not one: {name!r}", key_id=key_id)
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
        """The text of one of the directory's files; None where it is not there."""
        if os.path.islink(path):  # noqa: PTH114  # Path's own may raise
            raise KeyStoreUnavailable(
                f"{path}: a link, and a key is not read through one",
                hint="give a folder that has the files themselves; a mounted Kubernetes Secret consists of links: copy its files into one",
                key_id=self._key_id(path),
            )
        self._require_private(self.path)

        def read(descriptor: int) -> str:
            self._require_private(path, os.fstat(descriptor))
            return os.read(descriptor, 1024).decode("ascii", "replace")

        try:
            return with_descriptor(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0), read)  # a pipe must not hang
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unavailable(path, error) from error

    def _write(self, path: Path, text: Secret) -> bool:
        """Make one of the directory's files, complete or not at all; False where it is there, and then it stays as it is."""

        def write(descriptor: int) -> None:
            with open(descriptor, "w", encoding="ascii", closefd=False) as file:
                make_private(part, 0o600)
                self._require_private(part, os.fstat(descriptor))  # before anything is in it
                file.write(text.reveal())
                file.flush()
                os.fsync(descriptor)

        try:
            if not self._is_made():
                try:
                    self.path.mkdir(mode=0o700)
                except FileNotFoundError as error:
                    raise self._unavailable(self.path.parent, error) from error
                make_private(self.path, 0o700)
                sync_folder(self.path.parent)
            self._require_private(self.path)
            self._remove_parts()
            name = os.fspath(part := path.with_name(f"{path.name}.{os.urandom(6).hex()}.{os.getpid()}.part"))
            try:
                with_descriptor(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, write)
                put_in_place(part, path)
            except FileExistsError:
                return False
            finally:
                try:  # noqa: SIM105  # nor any function of Python's: as it begins a signal's handler may raise, and nothing be done
                    os.unlink(name)  # noqa: PTH108
                except FileNotFoundError:
                    pass  # it was not made, or has its place
        except OSError as error:
            raise self._unavailable(path, error) from error
        return True

    def left_over(self) -> list[Path]:
        """Files that a killed command has left; no key's of any vault."""
        try:
            return [file for file in self._files() if file.suffix == ".part" or file.name.startswith(f"{_TRIAL}.")]
        except OSError as error:
            raise self._unavailable(self.path, error) from error

    def _remove_parts(self, entry: Path | None = None) -> None:
        """What killed writes left, which holds a key or a part of one: of this entry, or where the process is gone."""
        for file in self._files():
            name = file.name.split(".")
            if name[-1] != "part" or len(name) < 3 or not os.path.isfile(file):  # noqa: PTH113
                continue
            if file.name.startswith(f"{entry.name}.") if entry else name[-2].isdecimal() and not _is_running(int(name[-2])):
                file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return [self.path / name for name in sorted(os.listdir(self.path))]  # noqa: PTH208  # glob would take names for patterns

    def _require_private(self, path: Path, status: os.stat_result | None = None) -> None:
        try:
            status = status or path.stat()
        except FileNotFoundError:
            raise KeyStoreUnavailable(
                f"{self.name}: there is no such folder", hint="look whether the path is right (--key-dir, OUTREACH_VAULT_KEY_DIR)"
            ) from None
        except OSError as error:
            raise self._unavailable(path, error) from error
        if os.name == "nt":
            return  # modes say nothing there; the folder's access list decides
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            raise KeyStoreUnavailable(f"{path}: not a file", hint="look who put it there, and remove it", key_id=self._key_id(path))
        others = 0o077
        if status.st_uid == 0 != os.geteuid() and status.st_gid == 0:
            others &= ~0o050  # systemd lets a service's user in by an access list, which shows as the bits of root's group
        if stat.S_IMODE(status.st_mode) & others:
            raise KeyStoreUnavailable(
                f"{path}: mode {stat.S_IMODE(status.st_mode):04o} lets other users in",
                hint=f"look who had access, then (FAT has no modes: mount it with umask=077): chmod go= '{path}'",
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
            hint=advice(error, "look whether the path of the key directory is right"),
            key_id=self._key_id(path),
        )

    def _key_id(self, path: Path) -> str | None:
        """Of a key's own file; None for the directory and what is above it, where the fault is not one key's."""
        return path.name.split(".")[1] if path.parent == self.path else None


def _is_id(text: str) -> bool:
    return text != "" and all(c.isalnum() or c == "-" for c in text)


def _successor(text: str | None, where: str, key_id: str) -> str | None:
    """What such an entry says. One that was emptied must not read as none: an older key would be taken for the present one."""
    if text is None or _is_id(text):
        return text
    raise KeyStoreUnavailable(
        f"{where}: damaged: it does not name the key that replaced this one",
        hint="put it back from a backup of the key store; or remove it, and 'vault rotate' writes it anew for a retired key",
        key_id=key_id,
    )


def _is_running(process_id: int) -> bool:
    if os.name == "nt":
        return True  # to ask there with os.kill would end it
    try:
        os.kill(process_id, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True


class OSKeyring:
    """
    The operating system's keyring: Secret Service, KWallet, macOS Keychain or Windows Credential Locker.

    A key's entry is named `outreach-vault/<vault id>/<key id>`. A backend that is configured for the
    keyring library (PYTHON_KEYRING_BACKEND, keyringrc.cfg) is used if it is one of the four, looked for
    inside a chainer too, and refused by name if not.

    Args:
        seconds: the time limit for one operation, retries included.
    """

    def __init__(self, *, seconds: float = KEYRING_SECONDS) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise TypeError(f"seconds: a number is needed, not {type(seconds).__name__}")
        if not _is_limit(seconds):
            raise ValueError(f"seconds: {seconds!r} is not a number of seconds above 0")
        self._seconds = seconds
        self._backend: KeyringBackend | None = None

    @property
    def name(self) -> str:
        return f"OS keyring ({_APPROVED[_class_name(self._backend)]})" if self._backend else "OS keyring"

    def read(self, vault_id: str, key_id: str) -> Secret:
        entry = self._read(vault_id, key_id, _ACCOUNT)
        if entry is None:
            raise missing_key(self.name, key_id)
        return Secret(entry)

    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        if self.holds(vault_id, key_id):
            raise KeyExists(f"{self.name}: {_service(vault_id, key_id)} is there already; it was left as it is", key_id=key_id)
        self._call(lambda backend: backend.set_password(_service(vault_id, key_id), _ACCOUNT, key.reveal()))

    def holds(self, vault_id: str, key_id: str) -> bool:
        return self._read(vault_id, key_id, _ACCOUNT) is not None

    def delete(self, vault_id: str, key_id: str) -> None:
        if self.holds(vault_id, key_id):
            self._call(lambda backend: backend.delete_password(_service(vault_id, key_id), _ACCOUNT))

    def successor(self, vault_id: str, key_id: str) -> str | None:
        return _successor(self._read(vault_id, key_id, _SUCCESSOR), f"{self.name}: the note of the successor of key {key_id}", key_id)

    def mark_superseded(self, vault_id: str, key_id: str, successor_id: str) -> None:
        if self.successor(vault_id, key_id) is None:
            self._call(lambda backend: backend.set_password(_service(vault_id, key_id), _SUCCESSOR, successor_id))

    def _read(self, vault_id: str, key_id: str, account: str) -> str | None:
        return self._call(lambda backend: backend.get_password(_service(vault_id, key_id), account))

    def _call(self, operation: Callable[[KeyringBackend], T]) -> T:
        """
        One operation on the backend: alone, bounded in time, again where the fault may pass.

        The turn is taken on the thread that does it. No signal's handler runs there, so nothing can come between the
        taking and the `try` that gives it back.
        """
        deadline = time.monotonic() + self._seconds
        for pause in (*_PAUSES, None):
            try:
                return within(deadline - time.monotonic(), lambda: self._in_turn(operation, deadline))
            except StorageError as error:  # there is no thread
                raise KeyStoreUnavailable(f"{self.name}: {error}", hint=error.hint) from error
            except VaultError:
                raise
            except TookTooLong:
                raise KeyringTimedOut(
                    f"{self.name}: no answer within the time limit",
                    hint="look whether its daemon hangs, or waits for somebody at its prompt",
                ) from None
            except Exception as error:  # of keyring, SecretStorage, jeepney, D-Bus, ctypes: no common base
                final = _keyring_error(self.name, error)
                if isinstance(final, KeyringLocked) or pause is None or time.monotonic() + pause >= deadline:
                    raise final from error
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _in_turn(self, operation: Callable[[KeyringBackend], T], deadline: float) -> T:
        turn = _turn  # a fork may put another in its place
        if not turn.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise TookTooLong
        try:
            return operation(self._approved())
        finally:
            turn.release()

    def _approved(self) -> KeyringBackend:
        if self._backend is None:
            self._backend = _configured() or _platform_backend()
        return self._backend


_turn = threading.Lock()


def _after_fork() -> None:
    global _turn  # a thread that does not exist in the child may have had it
    _turn = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _service(vault_id: str, key_id: str) -> str:
    return f"outreach-vault/{vault_id}/{key_id}"


def prove(store: KeyStore) -> None:
    """
    Write an entry that nothing needs, read it back and delete it: so a store that keeps no key is known before anything is changed.

    Raises:
        KeyUnavailable: of the kind that fits.
    """
    key_id, key = new_id(), generate_key()
    store.write(_TRIAL, key_id, key)
    try:
        kept = store.read(_TRIAL, key_id) == key
    except KeyMissing:
        kept = False
    finally:
        store.delete(_TRIAL, key_id)
    if not kept:
        raise KeyStoreUnavailable(f"{store.name} does not give back what is stored in it; nothing was changed", hint=_ADVICE)


def missing_key(name: str, key_id: str) -> KeyMissing:
    return KeyMissing(
        f"{name} has no key {key_id}",
        hint="look whether this is the right key store (vault status); 'vault keys import' puts exported keys back;"
        f" where it is lost for good, 'vault init --abandon {key_id}' gives up what it sealed",
        key_id=key_id,
    )


def _class_name(backend: object) -> str:
    return f"{type(backend).__module__}.{type(backend).__qualname__}"


def _configured() -> KeyringBackend | None:
    """The backend that the keyring library's own settings name, if they name one; refused unless approved."""
    from keyring import core

    try:
        backend = core.load_env() or core.load_config()
    except Exception as error:  # ModuleNotFoundError, AttributeError, ValueError, RuntimeError, ... (measured)
        named = os.environ.get("PYTHON_KEYRING_BACKEND")
        if named in _APPROVED or (named is None and not isinstance(error, (ImportError, AttributeError, ValueError))):
            raise  # a good name, and its service does not answer
        source = "keyringrc.cfg names a backend" if named is None else f"PYTHON_KEYRING_BACKEND names {named!r}"
        raise KeyringRefused(f"{source}, which cannot be used: {type(error).__name__}", hint=_choice()) from error
    if backend is None or _class_name(backend) in _APPROVED:
        return backend
    for inner in getattr(backend, "backends", ()):
        if _class_name(inner) in _APPROVED:
            return inner  # type: ignore[no-any-return]
    raise KeyringRefused(f"the keyring library is set to {_class_name(backend)}, which is not known to keep a secret", hint=_choice())


def _choice() -> str:
    return "unset PYTHON_KEYRING_BACKEND (or keyringrc.cfg's default-keyring), or name a key directory (--key-dir, OUTREACH_VAULT_KEY_DIR)"


def _platform_backend() -> KeyringBackend:
    """This platform's own backend, by name: asking the library to find one starts nine processes (measured)."""
    if sys.platform == "darwin":
        names = ["keyring.backends.macOS.Keyring"]
    elif sys.platform == "win32":
        names = ["keyring.backends.Windows.WinVaultKeyring"]
    else:
        names = ["keyring.backends.SecretService.Keyring", "keyring.backends.kwallet.DBusKeyring"]
    causes: list[Exception] = []
    for name in names:
        module, _, cls = name.rpartition(".")
        try:
            backend = getattr(importlib.import_module(module), cls)
            backend.priority  # noqa: B018  # raises where the backend cannot work here
            return backend()  # type: ignore[no-any-return]
        except Exception as error:  # noqa: BLE001  # RuntimeError by contract; a stale bus address gives FileNotFoundError (measured)
            causes.append(error)
    raise KeyStoreUnavailable(f"no keyring of this system can be reached: {causes[0]}", hint=_ADVICE) from causes[0]


def _keyring_error(name: str, error: Exception) -> KeyUnavailable:
    """Our error for one of keyring's or of what is below it. Their texts hold no key; they may name a service."""
    from keyring.errors import KeyringLocked as Locked

    if isinstance(error, Locked) or type(error).__name__ == "LockedException":
        return KeyringLocked(
            f"{name}: it is locked", hint="unlock it (log in to the desktop, or start its daemon with its password), then try again"
        )
    return KeyStoreUnavailable(f"{name}: {type(error).__name__}: {error}", hint=_ADVICE)
