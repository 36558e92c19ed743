"""
The operating system's keyring. The only module that imports the keyring library.

An entry is never overwritten: macOS deletes and then adds, Windows leaves copies.

With gnome-keyring a read takes 17 ms and a write 40 ms. A frozen daemon blocks a call for ever, and
of 16 threads at once a few get passing errors. So one thread at a time calls the keyring, with a
time limit, and tries again if the error may pass. The caller keeps what was read.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from ...errors import (
    KeyExists,
    KeyringLocked,
    KeyringRefused,
    KeyringTimedOut,
    KeyStoreUnavailable,
    KeyUnavailable,
    StorageError,
    VaultError,
)
from ...limits import TookTooLong, within
from ...secret import Secret
from .store import ADVICE, KEYRING_SECONDS, limit, missing_key, named_successor

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

T = TypeVar("T")

_CHOICE: Final = (
    "unset PYTHON_KEYRING_BACKEND (or keyringrc.cfg's default-keyring), or name a key directory "
    "(--key-dir, OUTREACH_VAULT_KEY_DIR)"
)
_ACCOUNT: Final = "fernet-key"
_SUCCESSOR: Final = "successor"  # the account of the entry that names the next key
# Seconds between tries. Errors from simultaneous calls pass sooner.
_PAUSES: Final = (0.05, 0.2, 0.5)
_APPROVED: Final = {
    "keyring.backends.SecretService.Keyring": "Secret Service",
    "keyring.backends.kwallet.DBusKeyring": "KWallet",
    "keyring.backends.macOS.Keyring": "macOS Keychain",
    "keyring.backends.Windows.WinVaultKeyring": "Windows Credential Locker",
}


class OSKeyring:
    """
    The operating system's keyring: Secret Service, KWallet, macOS Keychain, or Windows Credential
    Locker.

    A key's entry is named `outreach-vault/<vault id>/<key id>`. If the keyring library is set to a
    backend (PYTHON_KEYRING_BACKEND, keyringrc.cfg), it must be one of the four, or a chainer with
    one of them; any other is refused by name.

    Args:
        seconds: the time limit for one operation, retries included.
    """

    def __init__(self, *, seconds: float = KEYRING_SECONDS) -> None:
        self._seconds = limit(seconds)
        self._backend: KeyringBackend | None = None

    @property
    def name(self) -> str:
        if self._backend is None:
            return "OS keyring"
        return f"OS keyring ({_APPROVED[_class_name(self._backend)]})"

    def read(self, vault_id: str, key_id: str) -> Secret:
        entry = self._read(vault_id, key_id, _ACCOUNT)
        if entry is None:
            raise missing_key(self.name, key_id)
        return Secret(entry)

    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        service, tried = _service(vault_id, key_id), list[bool]()

        def write(backend: KeyringBackend) -> None:
            """In one turn: of two writing threads, the second must find the first one's entry."""
            found = backend.get_password(service, _ACCOUNT)
            if found is None:
                tried.append(True)
                backend.set_password(service, _ACCOUNT, key.reveal())
            elif not tried or key != Secret(found):  # else it is ours, and its answer was lost
                there = f"{self.name}: {service} exists already; it was not changed"
                raise KeyExists(there, key_id=key_id)

        self._call(write)

    def holds(self, vault_id: str, key_id: str) -> bool:
        return self._read(vault_id, key_id, _ACCOUNT) is not None

    def delete(self, vault_id: str, key_id: str) -> None:
        if self.holds(vault_id, key_id):
            service = _service(vault_id, key_id)
            self._call(lambda backend: backend.delete_password(service, _ACCOUNT))

    def successor(self, vault_id: str, key_id: str) -> str | None:
        return self._named(self._read(vault_id, key_id, _SUCCESSOR), key_id)

    def mark_superseded(self, vault_id: str, key_id: str, successor_id: str) -> None:
        service = _service(vault_id, key_id)

        def mark(backend: KeyringBackend) -> None:
            if self._named(backend.get_password(service, _SUCCESSOR), key_id) is None:
                backend.set_password(service, _SUCCESSOR, successor_id)

        self._call(mark)

    def _named(self, text: str | None, key_id: str) -> str | None:
        where = f"{self.name}: the note of the successor of key {key_id}"
        return named_successor(text, where, key_id)

    def _read(self, vault_id: str, key_id: str, account: str) -> str | None:
        return self._call(lambda backend: backend.get_password(_service(vault_id, key_id), account))

    def _call(self, operation: Callable[[KeyringBackend], T]) -> T:
        """
        One operation on the backend: alone, with a time limit, again if the error may pass.

        The thread that does it takes the turn. No signal handler runs there, so nothing can come
        between taking the turn and the `try` that gives it back.
        """
        deadline = time.monotonic() + self._seconds
        for pause in (*_PAUSES, None):
            try:
                left = deadline - time.monotonic()
                return within(left, lambda: self._in_turn(operation, deadline))
            except StorageError as error:  # no thread could be started
                raise KeyStoreUnavailable(f"{self.name}: {error}", hint=error.hint) from error
            except VaultError:
                raise
            except TookTooLong:
                raise KeyringTimedOut(
                    f"{self.name}: no answer within the time limit",
                    hint="check whether its daemon hangs, or waits for somebody at its prompt",
                ) from None
            except Exception as error:  # from keyring, jeepney, D-Bus, ctypes: no common base
                final = _keyring_error(self.name, error)
                locked = isinstance(final, KeyringLocked)
                if locked or pause is None or time.monotonic() + pause >= deadline:
                    raise final from error
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _in_turn(self, operation: Callable[[KeyringBackend], T], deadline: float) -> T:
        turn = _turn  # a fork may replace it
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
    global _turn  # a thread that the child does not have may hold it
    _turn = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _service(vault_id: str, key_id: str) -> str:
    return f"outreach-vault/{vault_id}/{key_id}"


def _class_name(backend: object) -> str:
    return f"{type(backend).__module__}.{type(backend).__qualname__}"


def _configured() -> KeyringBackend | None:
    """The backend that the keyring library is set to, if any; refused unless approved."""
    from keyring import core

    try:
        backend = core.load_env() or core.load_config()
    except Exception as error:  # ImportError, ValueError, RuntimeError, ...
        named, source = os.environ.get("PYTHON_KEYRING_BACKEND"), "keyringrc.cfg names a backend"
        bad_name = isinstance(error, (ImportError, AttributeError, ValueError))
        if named in _APPROVED or (named is None and not bad_name):
            raise  # the name is good, but its service does not answer
        if named is not None:
            source = f"PYTHON_KEYRING_BACKEND names {named!r}"
        problem = f"{source}, which cannot be used: {type(error).__name__}"
        raise KeyringRefused(problem, hint=_CHOICE) from error
    if backend is None or _class_name(backend) in _APPROVED:
        return backend
    for inner in getattr(backend, "backends", ()):
        if _class_name(inner) in _APPROVED:
            return inner  # type: ignore[no-any-return]
    problem = f"{_class_name(backend)}, which is not known to keep a secret"
    raise KeyringRefused(f"the keyring library is set to {problem}", hint=_CHOICE)


def _platform_backend() -> KeyringBackend:
    """This platform's own, by name: the library's search starts nine processes."""
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
        except Exception as error:  # noqa: BLE001  # not only RuntimeError
            causes.append(error)
    problem = f"no keyring of this system can be reached: {causes[0]}"
    raise KeyStoreUnavailable(problem, hint=ADVICE) from causes[0]


def _keyring_error(name: str, error: Exception) -> KeyUnavailable:
    """Our error for one of the keyring library or below it. Their texts hold no key."""
    from keyring.errors import KeyringLocked as Locked

    if isinstance(error, Locked) or type(error).__name__ == "LockedException":
        return KeyringLocked(
            f"{name}: it is locked",
            hint=(
                "unlock it (log in to the desktop, or start its daemon with its password), then "
                "try again"
            ),
        )
    return KeyStoreUnavailable(f"{name}: {type(error).__name__}: {error}", hint=ADVICE)
