"""
The vault's keys, and the life of each: made, in use, replaced, destroyed or given up.

A key's row comes before its entry in the key store. When a key is retired, the key store notes
which one replaced it. No key is ever made because another could not be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..cipher import Cipher, generate_key
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
from .hosts import Hosts
from .ring import KeyRing
from .states import KeyRecord
from .stores import prove


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


class KeySet(KeyRing):
    """The keys of one open vault, and what changes their states."""

    @property
    def hosts(self) -> Hosts:
        return Hosts(self._database)

    def create(self, *, staged_by: str | None = None) -> str:
        """
        Make a new key: listed as pending, written to the key store, read back and proved.

        Args:
            staged_by: the name of this host, if `stage` is to follow.
        Raises:
            KeyUnavailable: it could not be written, or another is read back; no value uses it.
        """
        key_id, key = new_id(), generate_key()
        check_value = Cipher(key).sealed(Secret(self._check_text(key_id)))
        if check_value is None:
            raise KeyUnavailable("a new key does not open what it sealed; it was not stored")
        self.states.add_pending(key_id, check_value, staged_by)
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

        A pending key becomes active if the key store has it, or staged if it was made for that. If
        its entry is missing or wrong, the key is written off: no value ever used it. This deletes
        nothing from the key store, since anybody who can write the database could call any key
        pending. Somebody did so if the key has a successor: it is retired again. A staged key stays
        as it is, whether or not it was brought to this host.

        Returns:
            The id of the key that became active, or None.
        Raises:
            KeyUnavailable: the key store does not answer; nothing was changed.
        """
        promoted = None
        for pending in self.states.in_state("pending", "staged"):
            staged = pending.state == "staged"
            problem = None if staged else self.unavailable(pending.id)
            if isinstance(problem, (KeyMissing, WrongKey)):
                self.states.write_off(pending.id)
            elif self.store.successor(self.vault_id, pending.id):
                self.states.retire_again(pending.id)
            elif pending.staged_by and not staged:
                self._stage(pending.id, pending.staged_by)
            elif not staged:
                self.promote(pending.id)
                promoted = pending.id
        return promoted

    def stage(self, host: str) -> KeyRecord:
        """
        Make a key that waits until other hosts have it, or find the one that waits already.

        Args:
            host: this host's name. It has the key, so it acknowledges it.
        Raises:
            KeySuperseded, KeyUnavailable: as `begin_rotation`.
        """
        self.settle()
        if staged := self.states.staged():
            return staged
        active = self.states.active_id()
        self.require_not_superseded(active)
        self.cipher(active)
        key_id = self.create(staged_by=host)
        self._stage(key_id, host)
        return self.states.record(key_id)

    def _stage(self, key_id: str, host: str) -> None:
        self.cipher(key_id)

        def note() -> None:
            self.states.stage(key_id)
            self.hosts.acknowledge(host, key_id)

        self._database.write(note)

    def unstage(self) -> str:
        """
        Write off the staged key, or what an interrupted staging left; its id.

        Its entry stays in each key store, as in `settle`; 'vault keys destroy' removes it there.

        Raises:
            KeyMissing: there is none.
        """
        made = [each for each in self.states.in_state("staged", "pending") if each.staged_by]
        if not made:
            raise KeyMissing("no key is staged", hint="'vault rotate --stage' makes one")
        key_id = made[0].id

        def note() -> None:
            self.hosts.unstage(key_id, self.states.active_id())
            self.states.write_off(key_id)

        self._database.write(note)
        return key_id

    def prove_staged(self, staged: KeyRecord) -> None:
        """
        Fetch a staged key from this host's key store.

        Raises:
            KeyMissing: it was not brought here yet. KeyUnavailable: as `cipher`.
        """
        try:
            self.cipher(staged.id)
        except KeyMissing as error:
            raise KeyMissing(
                f"{error}, which {staged.staged_by} staged at {staged.staged_at}",
                hint="bring it here: 'vault keys export FILE' where it is, and 'vault keys import"
                " FILE' here, or your own way to hand out keys; 'vault rotate --unstage' takes it"
                " back",
                key_id=staged.id,
            ) from None

    def begin_rotation(
        self,
        *,
        after_restore: bool,
        may_replace: Callable[[KeyRecord | None], None] = lambda staged: None,
    ) -> Begun:
        """
        Make a new key active, or go on with the rotation that an interrupted run began. A staged
        key is the new one, if there is one.

        Tells the key store, for each retired key, which one replaced it.

        Args:
            after_restore: go on although the key store says that the active key was replaced.
            may_replace: raises, given the staged key or None, if other hosts would lack the new
                key. Not asked where a rotation goes on: there it is active already.
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
            staged = self.states.staged()
            may_replace(staged)
            if staged:
                self.prove_staged(staged)
                prove(self.store)  # else only the note of the old key's successor would find out
            self.promote(staged.id if staged else self.create())
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
                hint="'vault rotate' retires the active key, and settles a pending one;"
                " 'vault rotate --unstage' takes a staged one back",
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
            self._require_on_no_host(record)
            return record
        why = problem or f"it is in the {self.store.name}"
        hint = "fix that, and try again; give up a key only if no key store has it"
        raise KeyInUse(
            f"key {key_id} is not lost: {why}; it was not given up",
            key_id=key_id,
            hint=hint if problem else None,
        )

    def _require_on_no_host(self, record: KeyRecord) -> None:
        """Here the key may only not have been brought. A host proves the active one beside any."""
        staged = self.states.staged()
        shows = {record.id, staged.id if staged and record.state == "active" else record.id}
        if has := [brief(each.host) for each in self.hosts.known() if each.key_id in shows]:
            raise KeyInUse(
                f"key {record.id} is not lost: it was acknowledged by {', '.join(has)}; it was not"
                " given up",
                key_id=record.id,
                hint="'vault keys export FILE' there and 'vault keys import FILE' here bring it;"
                " where it is lost too, 'vault keys hosts --remove HOST'",
            )
