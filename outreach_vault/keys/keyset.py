"""
The vault's keys, and what each may be used for.

The database lists the keys (`KeyStates`), and a key store holds them. The row comes before the key
store's entry. Its check value shows at once if a key is the wrong one. When a key is retired, the
key store notes which one replaced it. If the database then calls the retired key active (an older
copy was restored, or somebody set it back), nothing is sealed with it until the operator decides.

No key is ever made because another could not be read.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..cipher import Cipher, generate_key
from ..database import Database
from ..errors import (
    KeyInUse,
    KeyMissing,
    KeyringTimedOut,
    KeyStoreUnavailable,
    KeySuperseded,
    KeyUnavailable,
    WrongKey,
    brief,
)
from ..schema.shapes import new_id
from ..secret import Secret
from .states import KeyRecord, KeyStates
from .stores import KeyStore


class Begun(NamedTuple):
    """
    A rotation that has begun.

    Attributes:
        old_key: the key that was active before; None if not known.
        new_key: the key that is active now.
        resumed: an interrupted rotation goes on, so no key was made.
    """

    old_key: str | None
    new_key: str
    resumed: bool


class KeySet:
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

    # Keys to use

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

    # The life of a key

    def create(self) -> str:
        """
        Make a new key: listed as pending, written to the key store, read back and proved.

        Raises:
            KeyUnavailable: it could not be written, or another is read back; no value uses it.
        """
        key_id, key = new_id(), generate_key()
        check_value = Cipher(key).sealed(Secret(self._check_text(key_id)))
        if check_value is None:
            raise KeyUnavailable("a new key does not open what it sealed; it was not stored")
        self.states.add_pending(key_id, check_value)
        try:
            self.store.write(self.vault_id, key_id, key)
            self.cipher(key_id)
        except KeyUnavailable as error:
            self._take_back(key_id, error)
            raise
        return key_id

    def _take_back(self, key_id: str, error: KeyUnavailable) -> None:
        """Remove the row of a key that was not stored, unless the key store may yet have it."""
        try:
            left = isinstance(error, KeyringTimedOut) or self.store.holds(self.vault_id, key_id)
        except KeyUnavailable:
            left = True
        if left:
            self.states.write_off(key_id)
        else:
            self.states.take_back(key_id)

    def promote(self, key_id: str) -> None:
        """Make a pending key active, once it is proved to be in the key store."""
        self.cipher(key_id)
        self.states.promote(key_id)

    def ensure_active(self, are_named: Callable[[], bool]) -> str | None:
        """
        Make the vault's first key, if it has none.

        Args:
            are_named: whether any value names a key.
        Returns:
            The id of the key that became active now; None if one was active and is available.
        Raises:
            KeyUnavailable: the key store cannot be used, or older keys or values need another key.
        """
        states = {record.state for record in self.states.records()}
        if not states & {"active", "retired"}:
            # The first run was killed before it had a key store: no value can need that key.
            for pending in self.states.in_state("pending"):
                if isinstance(self.unavailable(pending.id), KeyStoreUnavailable):
                    self.states.write_off(pending.id)
        if settled := self.settle():
            return settled
        if "active" in states:
            self.cipher(self.states.active_id())
            return None
        if "retired" in states or are_named():
            raise KeyMissing(
                "the database has older values or keys, but no active key; no new one was made",
                hint="restore the database from a backup, together with its keys",
            )
        key_id = self.create()
        self.promote(key_id)
        return key_id

    def settle(self) -> str | None:
        """
        Finish or undo what an interrupted run left pending.

        A pending key becomes active if the key store has it. If its entry is missing or wrong, the
        key is written off: no value ever used it. This deletes nothing from the key store, since
        anybody who can write the database could call any key pending. Somebody did so if the key
        has a successor: it is retired again.

        Returns:
            The id of the key that became active, or None.
        Raises:
            KeyUnavailable: the key store does not answer; nothing was changed.
        """
        promoted = None
        for pending in self.states.in_state("pending"):
            if isinstance(self.unavailable(pending.id), (KeyMissing, WrongKey)):
                self.states.write_off(pending.id)
            elif self.store.successor(self.vault_id, pending.id):
                self.states.retire_again(pending.id)
            else:
                self.promote(pending.id)
                promoted = pending.id
        return promoted

    def begin_rotation(self, *, after_restore: bool) -> Begun:
        """
        Make a new key active, or go on with the rotation that an interrupted run began.

        Tells the key store, for each retired key, which one replaced it.

        Args:
            after_restore: go on although the key store says that the active key was replaced.
        Raises:
            KeySuperseded: it says so, and not *after_restore*.
            KeyUnavailable: the active key is not available, or the new one cannot be stored.
        """
        resumed = self.settle() is not None or self.states.unfinished_rotation()
        try:
            self.require_not_superseded(self.states.active_id())
        except KeySuperseded:
            if not after_restore:
                raise
            resumed = False
        if not resumed:
            self.cipher(self.states.active_id())  # raises: an unreadable key is never replaced
            self.promote(self.create())
        active = self.states.active_id()
        self._database.require_in_place()
        for record in self.states.in_state("retired"):
            self.store.mark_superseded(self.vault_id, record.id, record.replaced_by or active)
        self.cipher(active)
        return Begun(self.states.predecessor(active), active, resumed)

    def end_rotation(self, named: Iterable[str]) -> None:
        """
        Note that the rotation is complete.

        Args:
            named: the keys that values still name; the others are noted as empty.
        """
        used = set(named)
        retired = self.states.in_state("retired")
        self.states.end_rotation([record.id for record in retired if record.id not in used])

    def destroy(self, key_id: str, require_unneeded: Callable[[str], None]) -> None:
        """
        Remove a retired key from the key store, then note that in its row. Safe to run again.

        Args:
            require_unneeded: raises KeyInUse if a value needs the key.
        Raises:
            KeyInUse, KeyMissing: nothing was changed.
            KeyUnavailable: the key store cannot remove it; the row stays as it is.
        """
        self.require_retired(key_id)
        require_unneeded(key_id)
        self._database.require_in_place()
        self.store.delete(self.vault_id, key_id)
        if self.store.holds(self.vault_id, key_id):  # Windows leaves copies
            raise KeyStoreUnavailable(
                f"{self.store.name}: the entry for key {key_id} is still there after its deletion",
                key_id=key_id,
            )
        self.fetched.pop(key_id, None)
        self.states.destroyed(key_id)

    def require_retired(self, key_id: str) -> KeyRecord:
        """
        The row of a retired or destroyed key.

        Raises:
            KeyInUse: the key is active or pending. KeyMissing: the vault lists no such key.
        """
        record = self.states.record(key_id)
        if record.state not in ("retired", "destroyed"):
            raise KeyInUse(
                f"key {key_id} is {record.state}; only a retired key can be destroyed",
                key_id=key_id,
                hint="'vault rotate' retires the active key, and settles a pending one",
            )
        return record

    def abandon(self, key_id: str) -> str:
        """
        Give up a lost key and everything sealed under it. If it was active, make another.

        Returns:
            The id of the active key.
        Raises:
            KeyInUse: the key is not lost, or may come back: the key store does not answer.
            KeyMissing: the vault lists no such key.
            KeyUnavailable: the key store does not take a new one.
        """
        record = self.require_lost(key_id)
        others = [other for other in self.states.in_state("active") if other.id != record.id]
        new = None if others else self.create()
        self.states.abandoned(key_id, new)
        if new:  # the key may come back with an older copy of the database
            self.store.mark_superseded(self.vault_id, key_id, new)
        return self.states.active_id()

    def require_lost(self, key_id: str) -> KeyRecord:
        """The row of a key that `abandon` would give up; raises as that does."""
        record, problem = self.states.record(key_id), self.unavailable(key_id)
        if isinstance(problem, (KeyMissing, WrongKey)):
            return record
        why = problem or f"it is in the {self.store.name}"
        hint = "fix that, and try again; give up a key only if no key store has it"
        raise KeyInUse(
            f"key {key_id} is not lost: {why}; it was not given up",
            key_id=key_id,
            hint=hint if problem else None,
        )

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
