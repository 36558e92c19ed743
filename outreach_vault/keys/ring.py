"""
The keys in hand: each fetched from the key store once, and proved by its check value.

The database lists the keys (`KeyStates`), and a key store holds them. A check value shows at once
if a key is the wrong one. If the database calls a key active that the key store says was replaced
(an older copy was restored, or somebody set it back), nothing is sealed with it until the operator
decides.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable

from ..cipher import Cipher
from ..database import Database
from ..errors import KeyMissing, KeySuperseded, KeyUnavailable, WrongKey, brief
from ..secret import Secret
from .states import KeyStates
from .stores import KeyStore


class KeyRing:
    """
    The keys of one open vault. A key that was fetched stays in memory until the vault is closed.

    Args:
        vault_id: from `vault_meta`; a part of every key's name in the key store.
    """

    def __init__(self, database: Database, store: KeyStore, vault_id: str) -> None:
        self._database = database
        self.states = KeyStates(database)
        self.store = store
        self.vault_id = vault_id
        self.fetched: dict[str, Cipher] = {}
        self._sealing: str | None = None  # active when last checked, without a successor
        self._problems: dict[str, KeyUnavailable] = {}
        # When the key store did not answer at all, and why.
        self._silent: tuple[float, KeyUnavailable] | None = None
        self._turn = (os.getpid(), threading.Lock())

    def cipher(self, key_id: str) -> Cipher:
        """
        The key *key_id*, proved by its check value.

        Raises:
            KeyUnavailable: a subclass says why. No other key is tried.
        """
        if cipher := self.fetched.get(key_id):
            return cipher
        asked = time.monotonic()
        if self._turn[0] != os.getpid():  # forked: the parent's thread that held it is not here
            self._turn = (os.getpid(), threading.Lock())
        with self._turn[1]:  # one thread asks; the others find its key, or its error
            if self._silent and self._silent[0] >= asked:
                raise self._silent[1].again()
            if key_id not in self.fetched:
                try:
                    self.fetched[key_id] = self._fetch(key_id)
                except KeyUnavailable as error:
                    if error.key_id is None:
                        self._silent = (time.monotonic(), error)
                    raise
            return self.fetched[key_id]

    def for_sealing(self, key_id: str) -> Cipher | None:
        """
        The active key, if `prove_active` has allowed it to seal. Does not ask the key store.

        Args:
            key_id: the active key's id, as the caller's write transaction read it.
        """
        return self.fetched.get(key_id) if key_id == self._sealing else None

    def prove_active(self) -> None:
        """
        Fetch the active key, and check that no other has replaced it.

        Raises:
            KeySuperseded: the key store says that another replaced it.
            KeyUnavailable: it is not available.
        """
        key_id = self.states.active_id()
        self.cipher(key_id)
        self.require_not_superseded(key_id)
        self._sealing = key_id

    def require_not_superseded(self, key_id: str) -> None:
        """
        Raise KeySuperseded if the database says that the key is active, but the key store says that
        another replaced it.
        """
        successor = self.store.successor(self.vault_id, key_id)
        # Both may have changed just now.
        if successor is not None and self.states.active_id() == key_id:
            raise KeySuperseded(
                f"the database says that key {key_id} is active, but {self.store.name} says that"
                f" key {successor} replaced it: the database was restored from before that, a copy"
                " of it was rotated, or its keys were changed",
                hint="values can be read; if you restored it, run 'vault rotate --after-restore';"
                " else find out why",
                key_id=key_id,
            )

    def unavailable(self, key_id: str) -> KeyUnavailable | None:
        """Why the key is not available, or None."""
        return self.survey([key_id])[key_id]

    def survey(self, key_ids: Iterable[str]) -> dict[str, KeyUnavailable | None]:
        """For each key why it is not available, or None. Asks a silent key store only once."""
        found: dict[str, KeyUnavailable | None] = {}
        silent: KeyUnavailable | None = None
        for key_id in key_ids:
            found[key_id] = None
            if key_id not in self.fetched:
                try:
                    if silent:
                        raise silent.again()
                    self.cipher(key_id)
                except KeyUnavailable as error:
                    found[key_id] = self._problems[key_id] = error
                    silent = error if error.key_id is None else None
        return found

    def last_problem(self, key_id: str) -> KeyUnavailable | None:
        """Why the key was not available the last time, or None. Does not ask the key store."""
        return None if key_id in self.fetched else self._problems.get(key_id)

    def is_key(self, key_id: str, key: Secret, check_value: str) -> bool:
        """Whether *check_value* was made with *key*, for this id in this vault."""
        try:
            return self._passes(Cipher(key), key_id, check_value)
        except ValueError:
            return False

    def _fetch(self, key_id: str) -> Cipher:
        listed = self.states.check(key_id)
        if listed is None:
            raise KeyMissing(
                f"the vault lists no key {brief(key_id)}",
                hint="the row's key id was changed, or the row is from another database",
                key_id=key_id,
            )
        state, check_value, destroyed_at = listed
        if state == "destroyed":
            raise KeyMissing(
                f"key {key_id} was destroyed at {destroyed_at}",
                hint="store the value again with 'vault set'",
                key_id=key_id,
            )
        key = self.store.read(self.vault_id, key_id)
        try:
            cipher = Cipher(key)
        except ValueError:
            what = "is not a key: it was cut, or has white space around it"
            raise self._wrong(key_id, what) from None
        if not self._passes(cipher, key_id, check_value):
            raise self._wrong(key_id, "is another key, not the one that the vault made")
        return cipher

    def _passes(self, cipher: Cipher, key_id: str, check_value: str) -> bool:
        _, text = cipher.opened(check_value)
        return text is not None and text.reveal() == self._check_text(key_id)

    def _check_text(self, key_id: str) -> str:
        return f"outreach-vault {self.vault_id} {key_id}"

    def _wrong(self, key_id: str, what: str) -> WrongKey:
        return WrongKey(
            f"{self.store.name}: the entry for key {key_id} {what}",
            hint="put the right key back from an export or a backup",
            key_id=key_id,
        )
