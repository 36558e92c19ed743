"""
The vault's keys: their states, and what each may be used for.

`vault_keys` lists every key that may exist, since a keyring cannot be listed. A key is *pending* until
it is proved to be in the key store, *active* while new values are sealed with it (exactly one is),
*retired* once another is active (backups still need it), *destroyed* when somebody destroys it. The row
comes before the key store's entry. Each row has a check value, a known text sealed under its key, so
that a wrong key is noticed at once and named. When a key is retired, the key store is told which one
replaced it: where the database then calls the retired one active (an older copy was restored, or
somebody set it back), nothing is sealed with it until the operator has decided.

No key is ever made because one could not be read.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from ..cipher import Cipher, Place, generate_key, looks_sealed
from ..database.sqlite import UNINDEXED, Database
from ..errors import (
    DamagedValue,
    ForeignValue,
    KeyInUse,
    KeyMissing,
    KeyringTimedOut,
    KeyStoreUnavailable,
    KeySuperseded,
    KeyUnavailable,
    UnreadableValue,
    WrongKey,
    brief,
)
from ..schema.shapes import as_text, new_id, now
from ..secret import Secret
from .keystore import KeyStore


class KeyRecord(NamedTuple):
    """
    One row of `vault_keys`; times are ISO-8601 text as stored, or None.

    Attributes:
        exported_at: when a file of exported keys last held it.
        emptied_at: when a rotation had left no value under it. Backups from `activated_at` to then need it.
        replaced_by: the id of the key that became active in its stead; None where that is not known.
    """

    id: str
    state: str
    created_at: str
    activated_at: str | None
    retired_at: str | None
    destroyed_at: str | None
    exported_at: str | None
    emptied_at: str | None
    replaced_by: str | None = None


class StoredValue(NamedTuple):
    """One row of `provider_credentials` as it is stored, unopened; `COLUMNS` selects it."""

    id: str
    project_id: str | None
    provider: str
    credential_type: str
    encrypted_value: str
    key_id: str | None
    label: str | None
    created_at: str
    updated_at: str

    @property
    def place(self) -> Place:
        return Place._make(self[1:4])

    @property
    def is_foreign(self) -> bool:
        return is_foreign(self.encrypted_value, self.key_id)


def is_foreign(stored: object, key_id: object) -> bool:
    """Not sealed by this vault. The look decides: the app overwrites a value and leaves our key_id behind."""
    return not isinstance(key_id, str) or not looks_sealed(stored)


COLUMNS: Final = ", ".join(StoredValue._fields)
RECORD_COLUMNS: Final = ", ".join(KeyRecord._fields)
_KEYS: Final = f"vault_keys {UNINDEXED}"  # a few rows, and a damaged index would lead to another key
_RETIRES: Final = "'vault rotate' retires the active key, and settles a pending one"
_EMPTIES: Final = "'vault rotate' puts them under the active key; 'vault doctor' names those that cannot be read"


class KeySet:
    """
    The keys of one open vault. What was fetched from the key store stays until the vault is closed.

    Args:
        vault_id: `vault_meta`'s; a part of every key's name in the key store.
    """

    def __init__(self, database: Database, store: KeyStore, vault_id: str) -> None:
        self._database = database
        self.store = store
        self.vault_id = vault_id
        self._ciphers: dict[str, Cipher] = {}
        self._present: str | None = None  # the key that was active when last asked for, and has no successor
        self._problems: dict[str, KeyUnavailable] = {}
        self._silent: tuple[float, KeyUnavailable] | None = None  # when the key store as a whole did not answer, and why
        self._turn = (os.getpid(), threading.Lock())

    def cipher(self, key_id: str) -> Cipher:
        """
        The key *key_id*, proved by its check value.

        Raises:
            KeyUnavailable: of the kind that fits. No other key is tried.
        """
        if cipher := self._ciphers.get(key_id):
            return cipher
        asked = time.monotonic()
        if self._turn[0] != os.getpid():  # in a forked child: a thread that does not exist here may have had it
            self._turn = (os.getpid(), threading.Lock())
        with self._turn[1]:  # one thread asks the key store, the others find what it brought, or why it brought nothing
            if self._silent and self._silent[0] >= asked:
                raise _again(self._silent[1])
            if key_id not in self._ciphers:
                try:
                    self._ciphers[key_id] = self._fetch(key_id)
                except KeyUnavailable as error:
                    if error.key_id is None:
                        self._silent = (time.monotonic(), error)
                    raise
            return self._ciphers[key_id]

    def ready(self, key_id: str) -> Cipher | None:
        """The key, if it is proved to be the present one, so that values may be sealed with it; asks no key store."""
        return self._ciphers.get(key_id) if key_id == self._present else None

    def make_ready(self) -> None:
        """
        Fetch the active key, and look that no other has replaced it.

        Raises:
            KeySuperseded: the key store says that another replaced it. KeyUnavailable: it cannot be had.
        """
        key_id = self.active_id()
        self.cipher(key_id)
        self.require_present(key_id)
        self._present = key_id

    def require_present(self, key_id: str) -> None:
        """Raise KeySuperseded where the database says that the key is active, and the key store that another replaced it."""
        successor = self.store.successor(self.vault_id, key_id)
        if successor is not None and self.active_id() == key_id:  # it may have been replaced just now, in both
            raise KeySuperseded(
                f"the database says that key {key_id} is active, but {self.store.name} says that key {successor} replaced it:"
                " the database was restored from before that, a copy of it was rotated, or its keys were changed",
                hint="values can be read; after a restore 'vault rotate --after-restore' puts all under a new key; if not, look why",
                key_id=key_id,
            )

    def unavailable(self, key_id: str) -> KeyUnavailable | None:
        """Why the key cannot be had, or None where it can."""
        return self.survey([key_id])[key_id]

    def survey(self, key_ids: Iterable[str]) -> dict[str, KeyUnavailable | None]:
        """For each key why it cannot be had, or None where it can. A key store that does not answer is asked once for all."""
        found: dict[str, KeyUnavailable | None] = {}
        silent: KeyUnavailable | None = None
        for key_id in key_ids:
            found[key_id] = None
            if key_id not in self._ciphers:
                try:
                    if silent:
                        raise _again(silent)
                    self.cipher(key_id)
                except KeyUnavailable as error:
                    found[key_id] = self._problems[key_id] = error
                    silent = error if error.key_id is None else None
        return found

    def last_problem(self, key_id: str) -> KeyUnavailable | None:
        """Why the key could not be had when it was last asked for; None where it could. Asks no key store."""
        return None if key_id in self._ciphers else self._problems.get(key_id)

    def open(self, stored: StoredValue) -> Secret:
        """
        The plaintext of a row, under the key that the row names and no other.

        Raises:
            UnreadableValue, KeyUnavailable: as it is; the text names the row.
        """
        cipher = self._ciphers.get(stored.key_id) or self._cipher_of(stored)  # type: ignore[arg-type]  # None finds none
        fault, value = cipher.opened(stored[1:4], stored.encrypted_value)
        if value is None:
            raise self._unreadable(stored, fault)
        return value

    def _cipher_of(self, stored: StoredValue) -> Cipher:
        """The key that the row names, where it was not fetched yet."""
        if stored.is_foreign:
            raise self._foreign(stored)
        assert stored.key_id is not None
        try:
            return self.cipher(stored.key_id)
        except KeyUnavailable as error:
            raise type(error)(f"{stored.place}, row {brief(stored.id)}: {error}", hint=error.hint, key_id=error.key_id) from error

    def active_id(self) -> str:
        """
        The id of the key that new values are sealed with.

        Raises:
            KeyMissing: there is none.
        """
        number = self._database.row_number("vault_keys")
        found = self._database.fetch(
            f"SELECT id, state FROM (SELECT {number} AS number FROM vault_keys WHERE state = 'active')"
            f" LEFT JOIN vault_keys ON vault_keys.{number} = number"  # read again by its number, so not from the index
        )
        if not found:
            raise KeyMissing("the vault has no active key", hint="run 'vault init', which makes the first one or says why it cannot")
        key_id, state = found[0]
        if state != "active" or not isinstance(key_id, str):
            raise self._database.astray("vault_keys")
        return key_id

    def records(self) -> list[KeyRecord]:
        """All keys, oldest first. A row whose id is no text is none: nothing can name it."""
        rows = self._database.fetch(f"SELECT {RECORD_COLUMNS} FROM {_KEYS} ORDER BY created_at, id")
        return [KeyRecord(*map(as_text, row)) for row in rows if isinstance(row[0], str)]

    def unnamed(self) -> int:
        """How many rows have an id that is no text, as another tool's bytes: nothing can name them."""
        [(count,)] = self._database.fetch(f"SELECT count(*) FROM {_KEYS} WHERE typeof(id) <> 'text'")
        return int(count)

    def record(self, key_id: str) -> KeyRecord:
        """
        Raises:
            KeyMissing: the vault lists no such key.
        """
        found = next((record for record in self.records() if record.id == key_id), None)
        if found is None:
            raise KeyMissing(f"the vault lists no key {key_id!r}", hint="'vault keys list' shows them", key_id=key_id)
        return found

    def predecessor(self, key_id: str) -> str | None:
        """The id of the key that was retired when this one became active; None where that is not known."""
        replaced = [record.id for record in self.records() if record.replaced_by == key_id]
        return replaced[0] if len(replaced) == 1 else None

    def values_by_key(self) -> Counter[str | None]:
        """How many values name each key; None counts the foreign ones. Reads no more than the look of each."""
        counts: Counter[str | None] = Counter()
        sql = f"SELECT substr(encrypted_value, 1, 5), key_id, count(*) FROM provider_credentials {UNINDEXED} GROUP BY 1, 2"
        for beginning, key_id, count in self._database.fetch(sql):
            counts[key_id if isinstance(key_id, str) and looks_sealed(beginning) else None] += count
        return counts

    def ensure_active(self) -> str | None:
        """
        Make the vault's first key where it has none.

        Returns:
            The id of the key that became active now; None where one was and is at hand.
        Raises:
            KeyUnavailable: the key store cannot be used, or keys or values exist that need another key.
        """
        states = {record.state for record in self.records()}
        if not states & {"active", "retired"}:
            # The first run was killed before its key store was there: no value can need that key.
            for key_id in self._pending_ids():
                if isinstance(self.unavailable(key_id), KeyStoreUnavailable):
                    self._write_off(key_id)
        if settled := self.settle():
            return settled
        if "active" in states:
            self.cipher(self.active_id())
            return None
        if "retired" in states or self._database.fetch(f"SELECT 1 FROM provider_credentials {UNINDEXED} WHERE key_id IS NOT NULL LIMIT 1"):
            raise KeyMissing(
                "the database has values or keys of earlier, and no active key; no new one was made",
                hint="restore the database from a backup, with the keys that belong to it",
            )
        key_id = self.create()
        self.promote(key_id)
        return key_id

    def abandon(self, key_id: str) -> str:
        """
        Give up a key that is lost, and all that was sealed under it; where it was the active one, make another.

        Returns:
            The id of the active key.
        Raises:
            KeyInUse: the key can be had, or may come back, since the key store does not answer.
            KeyMissing: the vault lists no such key. KeyUnavailable: the key store does not keep a new one.
        """
        record = self.require_lost(key_id)
        others = [other for other in self.records() if other.state == "active" and other.id != record.id]
        new = None if others else self.create()

        def give_up() -> None:
            self._database.change(
                f"UPDATE {_KEYS} SET state = 'destroyed', destroyed_at = ?, replaced_by = coalesce(replaced_by, ?)"
                " WHERE id = ? AND state <> 'destroyed'",
                (now(), new, key_id),
            )
            if new:
                self._activate(new, now())

        self._database.write(give_up)
        if new:  # should the key come back with an older copy of the database
            self.store.mark_superseded(self.vault_id, key_id, new)
        return self.active_id()

    def require_lost(self, key_id: str) -> KeyRecord:
        """The row of a key that `abandon` would give up; raises as that does."""
        record, problem = self.record(key_id), self.unavailable(key_id)
        if isinstance(problem, (KeyMissing, WrongKey)):
            return record
        raise KeyInUse(
            f"key {key_id} is not lost: {problem or f'it is in the {self.store.name}'}; it was not given up",
            key_id=key_id,
            hint="mend that, and try again; only what no key store has can be given up" if problem else None,
        )

    def create(self) -> str:
        """
        Make a new key: listed as pending, written to the key store, read back and proved.

        Raises:
            KeyUnavailable: it could not be written, or what is read back is another; no value uses it.
        """
        key_id, key = new_id(), generate_key()
        check_value = Cipher(key).make_check(self._check_text(key_id))
        self._change(
            "INSERT INTO vault_keys (id, state, check_value, created_at) VALUES (?, 'pending', ?, ?)", (key_id, check_value, now())
        )
        try:
            self.store.write(self.vault_id, key_id, key)
            self.cipher(key_id)
        except KeyUnavailable as error:
            self._take_back(key_id, error)
            raise
        return key_id

    def _take_back(self, key_id: str, error: KeyUnavailable) -> None:
        """Of a key that could not be stored no row is left, unless its entry may be in the key store all the same, or come there."""
        try:
            left = isinstance(error, KeyringTimedOut) or self.store.holds(self.vault_id, key_id)
        except KeyUnavailable:
            left = True
        if left:
            self._write_off(key_id)
        else:
            self._change(f"DELETE FROM {_KEYS} WHERE id = ? AND state = 'pending'", (key_id,))

    def promote(self, key_id: str) -> None:
        """
        Make a pending key the active one, and retire the one before it, in one transaction.

        Where one is retired, a rotation has begun: `unfinished_rotation` says so until `end_rotation`.
        """
        self.cipher(key_id)

        def swap() -> None:
            moment = now()
            retired = self._database.change(
                f"UPDATE {_KEYS} SET state = 'retired', retired_at = ?, replaced_by = ? WHERE state = 'active'", (moment, key_id)
            )
            self._activate(key_id, moment)
            if retired:
                self._database.change("INSERT OR REPLACE INTO vault_meta (key, value) VALUES ('unfinished_rotation', ?)", (key_id,))

        self._database.write(swap)

    def _activate(self, key_id: str, moment: str) -> None:
        """Inside the transaction in which the one before it ceases to be active."""
        if not self._database.change(
            f"UPDATE {_KEYS} SET state = 'active', activated_at = ? WHERE id = ? AND state = 'pending'", (moment, key_id)
        ):
            raise KeyUnavailable(f"key {key_id} is not pending, so it cannot become active; nothing was changed", key_id=key_id)

    def settle(self) -> str | None:
        """
        Finish or undo what an interrupted run left pending.

        A pending key that the key store has becomes active; one that it has not, or has wrong, is
        written off: no value ever used it. Nothing is deleted from the key store here, since whoever
        writes the database could name any key pending. One that has a successor was so named: it is
        retired again.

        Returns:
            The id of the key that became active, or None.
        Raises:
            KeyUnavailable: the key store cannot be asked; nothing was changed.
        """
        promoted = None
        for key_id in self._pending_ids():
            if isinstance(self.unavailable(key_id), (KeyMissing, WrongKey)):
                self._write_off(key_id)
            elif self.store.successor(self.vault_id, key_id):
                self._change(f"UPDATE {_KEYS} SET state = 'retired' WHERE id = ? AND state = 'pending'", (key_id,))
            else:
                self.promote(key_id)
                promoted = key_id
        return promoted

    def unfinished_rotation(self) -> bool:
        return bool(self._database.fetch(f"SELECT 1 FROM vault_meta {UNINDEXED} WHERE key = 'unfinished_rotation'"))

    def end_rotation(self) -> None:
        """The rotation is complete: nothing of it waits any more, and the keys without a value are told apart by `emptied_at`."""
        used = self._named_by_values()  # before the lock is taken: it reads every row, and none comes back under a retired key
        emptied = [record.id for record in self.records() if record.state == "retired" and record.id not in used]

        def end() -> None:
            for key_id in emptied:
                self._empty(key_id)
            self._database.change(f"DELETE FROM vault_meta {UNINDEXED} WHERE key = 'unfinished_rotation'")

        self._database.write(end)

    def left_on_others(self, key_id: str) -> int:
        """How many values of this vault name another key than this one; counted in one moment, whatever moves the rows."""
        return sum(count for other, count in self.values_by_key().items() if other not in (None, key_id))

    def mark_superseded(self) -> None:
        """Tell the key store, for each retired key, which one replaced it; where it knows already, nothing is changed."""
        active = self.active_id()
        self._database.require_in_place()
        for record in self.records():
            if record.state == "retired":
                self.store.mark_superseded(self.vault_id, record.id, record.replaced_by or active)

    def require_unused(self, key_id: str) -> KeyRecord:
        """
        The row of a key that may be destroyed, or that is destroyed.

        Raises:
            KeyInUse: it is not retired, or a value needs it. KeyMissing: the vault lists no such key.
        """
        record = self.record(key_id)
        if record.state not in ("retired", "destroyed"):
            raise KeyInUse(f"key {key_id} is {record.state}; only a retired key can be destroyed", key_id=key_id, hint=_RETIRES)
        if needed := self.values_by_key()[key_id]:
            raise KeyInUse(f"{needed} value(s) need key {key_id}; it was not destroyed", key_id=key_id, hint=_EMPTIES)
        if nameless := sum(self.opener(stored, [key_id]) is not None for stored in self._nameless()):
            raise KeyInUse(
                f"{nameless} value(s) open under key {key_id}, and do not name it; it was not destroyed",
                key_id=key_id,
                hint="'vault doctor --deep' names them, and what puts the key's id back",
            )
        return record

    def _nameless(self) -> Iterator[StoredValue]:
        """Values that look sealed and name no key, as where another program made the table anew without that column."""
        sql = f"SELECT {COLUMNS} FROM provider_credentials {UNINDEXED} WHERE typeof(key_id) <> 'text'"
        return (stored for stored in map(StoredValue._make, self._database.each(sql)) if looks_sealed(as_text(stored.encrypted_value)))

    def opener(self, stored: StoredValue, key_ids: Iterable[str] | None = None) -> str | None:
        """Which of these keys (by default of all) opens a value whatever key it names; to know whose it is, and never to give it out."""
        if not looks_sealed(token := as_text(stored.encrypted_value)):
            return None
        for key_id in key_ids or [record.id for record in self.records() if record.state in ("active", "retired")]:
            if self.unavailable(key_id) is None and self.cipher(key_id).opened(stored.place, token)[1] is not None:
                return key_id
        return None

    def destroy(self, key_id: str) -> None:
        """
        Remove a retired key from the key store, and then say so in its row; done again, it does no more.

        Raises:
            KeyInUse, KeyMissing: as `require_unused` says; nothing was changed.
            KeyUnavailable: the key store cannot remove it; the row stays as it is.
        """
        self.require_unused(key_id)
        self._database.require_in_place()
        self.store.delete(self.vault_id, key_id)
        if self.store.holds(self.vault_id, key_id):  # Windows leaves copies
            raise KeyStoreUnavailable(f"{self.store.name}: the entry for key {key_id} is still there after it was deleted", key_id=key_id)
        self._ciphers.pop(key_id, None)

        def say_so() -> None:
            self._empty(key_id)
            self._database.change(
                f"UPDATE {_KEYS} SET state = 'destroyed', destroyed_at = ? WHERE id = ? AND state = 'retired'", (now(), key_id)
            )

        self._database.write(say_so)

    def is_key(self, key_id: str, key: Secret, check_value: str) -> bool:
        """Whether *key* is the one that *check_value* was made with, for this id in this vault."""
        try:
            return Cipher(key).passes_check(check_value, self._check_text(key_id))
        except ValueError:
            return False

    def check_value(self, key_id: str) -> str | None:
        """The check value of a listed key; None where there is no such key."""
        found = self._database.fetch(f"SELECT check_value FROM {_KEYS} WHERE id = ?", (key_id,))
        return str(found[0][0]) if found else None

    def _change(self, sql: str, params: tuple[object, ...]) -> int:
        """One statement in a transaction of its own."""
        return self._database.write(lambda: self._database.change(sql, params))

    def _named_by_values(self) -> set[object]:
        """The keys that `values_by_key` counts; in a sixth of its time (measured), since nothing is sorted."""
        found = self._database.fetch(f"SELECT DISTINCT substr(encrypted_value, 1, 5), key_id FROM provider_credentials {UNINDEXED}")
        return {key_id for beginning, key_id in found if looks_sealed(beginning)}

    def _empty(self, key_id: str) -> None:
        self._database.change(f"UPDATE {_KEYS} SET emptied_at = ? WHERE id = ? AND emptied_at IS NULL", (now(), key_id))

    def _pending_ids(self) -> list[str]:
        return [record.id for record in self.records() if record.state == "pending"]

    def _write_off(self, key_id: str) -> None:
        self._change(f"UPDATE {_KEYS} SET state = 'destroyed', destroyed_at = ? WHERE id = ? AND state = 'pending'", (now(), key_id))

    def _fetch(self, key_id: str) -> Cipher:
        found = self._database.fetch(f"SELECT state, check_value, destroyed_at FROM {_KEYS} WHERE id = ?", (key_id,))
        if not found:
            raise KeyMissing(
                f"the vault lists no key {brief(key_id)}",
                hint="the row's key id was changed, or the row is from another database",
                key_id=key_id,
            )
        state, check_value, destroyed_at = found[0]
        if state == "destroyed":
            raise KeyMissing(f"key {key_id} was destroyed at {destroyed_at}", hint="store the value again with 'vault set'", key_id=key_id)
        key = self.store.read(self.vault_id, key_id)
        try:
            cipher = Cipher(key)
        except ValueError:
            raise self._wrong(key_id, "is not a key: it was cut, or has white space around it") from None
        if not cipher.passes_check(check_value, self._check_text(key_id)):
            raise self._wrong(key_id, "is another key than the one that the vault made")
        return cipher

    def _wrong(self, key_id: str, what: str) -> WrongKey:
        return WrongKey(
            f"{self.store.name}: the entry for key {key_id} {what}", hint="put the right key back from where it was kept", key_id=key_id
        )

    def _check_text(self, key_id: str) -> str:
        return f"outreach-vault {self.vault_id} {key_id}"

    def _unreadable(self, stored: StoredValue, fault: str) -> UnreadableValue:
        """The error for a value that does not open. Whether it is foreign is looked at only now, since what opens is ours."""
        if stored.is_foreign:
            return self._foreign(stored)
        return DamagedValue(
            f"{stored.place}: {fault} (row {brief(stored.id)}, key {brief(stored.key_id)})",
            hint="store the value again with 'vault set', or restore the row from a backup;"
            " 'vault doctor' says whether the file is damaged",
            row_id=stored.id,
        )

    def _foreign(self, stored: StoredValue) -> ForeignValue:
        kind = "is empty" if not stored.encrypted_value else "was not sealed by this vault (the desktop app's own, or another tool's)"
        return ForeignValue(
            f"{stored.place}: the stored value {kind} (row {brief(stored.id)})",
            hint="store the value with 'vault set', which replaces it",
            row_id=stored.id,
        )


def _again(error: KeyUnavailable) -> KeyUnavailable:
    """Another error of the same kind and text: one that several threads raise would get the frames of all."""
    return type(error)(str(error), hint=error.hint, key_id=error.key_id)
