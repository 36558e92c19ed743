"""
What the key stores on a server share: names of entries, time limits, further tries, and errors that
hold nothing of the library's own, which may repeat a key or a token.
"""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from typing import ClassVar, Final, NoReturn, TypeVar

from ...errors import (
    KeyExists,
    KeyMissing,
    KeyringTimedOut,
    KeyStoreUnavailable,
    KeyUnavailable,
    LibraryMissing,
    StorageError,
    UnusablePath,
    VaultError,
)
from ...limits import TookTooLong, within
from ...secret import Secret
from .store import KEYRING_SECONDS, is_id, limit, missing_key, named_successor

T = TypeVar("T")

_PAUSES: Final = (0.05, 0.2, 0.5)  # seconds between tries


class RemoteStore(ABC):
    """
    The protocol on top of three operations of a server: get an entry, create it if there is none,
    remove it.

    Args:
        place: where the keys are, as a URL without anything secret.
        seconds: the time limit for one operation, further tries included.
    Raises:
        LibraryMissing: the extra is not installed.
    """

    package: ClassVar[str]
    extra: ClassVar[str]
    reach: ClassVar[str]  # what to check when it is not reached

    def __init__(self, place: str, *, seconds: float = KEYRING_SECONDS) -> None:
        self._place, self._seconds = place, limit(seconds)
        if find_spec(self.package) is None:  # not imported yet: that takes longer than a look-up
            raise LibraryMissing(
                f"a key store at {place.partition(':')[0]}: needs {self.package}, which is not "
                "installed",
                hint=f"pip install 'outreach_vault[{self.extra}]'",
            )

    @property
    def name(self) -> str:
        return f"key store {self._place}"

    def known_as(self) -> str:
        return self._place

    def read(self, vault_id: str, key_id: str) -> Secret:
        found = self._read(self._entry(vault_id, key_id, "key"))
        if found is None:
            raise missing_key(self.name, key_id)
        return found

    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        entry = self._entry(vault_id, key_id, "key")
        if not self._write(entry, key):
            there = f"{self.name}: {entry} exists already; it was not changed"
            raise KeyExists(there, key_id=key_id)

    def holds(self, vault_id: str, key_id: str) -> bool:
        return self._read(self._entry(vault_id, key_id, "key")) is not None

    def delete(self, vault_id: str, key_id: str) -> None:
        entry = self._entry(vault_id, key_id, "key")
        self._call(lambda: self._remove(entry))

    def successor(self, vault_id: str, key_id: str) -> str | None:
        entry = self._entry(vault_id, key_id, "successor")
        found = self._read(entry)  # an empty one is damaged
        return named_successor(
            None if found is None else found.reveal(), f"{self.name}: {entry}", key_id
        )

    def mark_superseded(self, vault_id: str, key_id: str, successor_id: str) -> None:
        self._write(self._entry(vault_id, key_id, "successor"), Secret(successor_id))

    # What a server has for it. Any error of its library is for `_explained`.

    @abstractmethod
    def _get(self, entry: str) -> Secret | None: ...

    @abstractmethod
    def _create(self, entry: str, text: Secret) -> bool:
        """False if there is one; it is not changed."""

    @abstractmethod
    def _remove(self, entry: str) -> None: ...

    @abstractmethod
    def _load(self) -> None:
        """Import the library."""

    @abstractmethod
    def _explained(self, error: Exception) -> tuple[KeyUnavailable, bool]:
        """Our error for the library's, with nothing of its text; and whether it may pass."""

    def _entry(self, vault_id: str, key_id: str, kind: str) -> str:
        """The ids come from the database, so they are checked before they name an entry."""
        entry = f"{vault_id}/{key_id}/{kind}"
        if not (is_id(vault_id) and is_id(key_id)):
            problem = "the database has a vault or key id that cannot be one"
            raise KeyMissing(f"{problem}: {entry!r}", key_id=key_id)
        return entry

    def _read(self, entry: str) -> Secret | None:
        return self._call(lambda: self._get(entry))

    def _write(self, entry: str, text: Secret) -> bool:
        tries = itertools.count()

        def write() -> bool:
            again = next(tries) > 0
            # After a try whose answer was lost, an entry with this very text is ours.
            return self._create(entry, text) or (again and self._get(entry) == text)

        return self._call(write)

    def _call(self, operation: Callable[[], T]) -> T:
        """
        One operation, with a time limit, again if its fault may pass.

        Its error is raised when the library's is gone: that one may hold a key or a token, which
        the context of ours would show.
        """
        self._load()
        deadline = time.monotonic() + self._seconds
        for pause in (*_PAUSES, None):
            try:
                return within(deadline - time.monotonic(), operation)
            except StorageError as error:  # no thread could be started
                final: KeyUnavailable = KeyStoreUnavailable(
                    f"{self.name}: {error}", hint=error.hint
                )
                passes = False
            except VaultError:
                raise
            except TookTooLong:
                final, passes = self.timed_out(), False
            except Exception as error:  # noqa: BLE001  # the libraries have no common base
                final, passes = self._explained(error)
            if not passes or pause is None or time.monotonic() + pause >= deadline:
                raise final
            time.sleep(pause)
        raise AssertionError("unreachable")

    def timed_out(self) -> KeyringTimedOut:
        return KeyringTimedOut(
            f"{self.name}: no answer within the time limit",
            hint=f"{self.reach}; OUTREACH_VAULT_KEYRING_TIMEOUT sets another limit, in seconds",
        )

    def unreachable(self) -> KeyStoreUnavailable:
        return self.unavailable("cannot be reached", self.reach)

    def unavailable(self, problem: str, hint: str) -> KeyStoreUnavailable:
        return KeyStoreUnavailable(f"{self.name}: {problem}", hint=hint)


def refuse(problem: str, form: str) -> NoReturn:
    """A URL that names no place, never repeated: it may hold a password."""
    raise UnusablePath(
        f"the key store (--keys, OUTREACH_VAULT_KEYS): {problem}", hint=f"write {form}"
    )
