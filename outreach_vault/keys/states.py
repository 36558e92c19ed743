"""
`vault_keys`: every key that may exist, and its state. A key store cannot list its keys.

A key is *pending* until it is proved to be in the key store; *active* while new values are sealed
with it (exactly one is); *retired* once another is active (backups still need it); *destroyed* once
somebody destroys it. Each row has a check value: a known text sealed under its key.

A *staged* key is a pending one that waits until other hosts have it. The table's CHECK knows no
such state and SQLite cannot alter that, so a time in `staged_at` tells it. `staged_by` alone is
what an interrupted staging left.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple

from ..database import Database
from ..errors import KeyMissing, KeyUnavailable, WrongArgument, brief, typed_id
from ..schema import facts
from ..schema.shapes import as_text, now

TABLE: Final = "vault_keys"
_UNFINISHED: Final = "unfinished_rotation"
KeyState = Literal["pending", "staged", "active", "retired", "destroyed"]


class KeyRecord(NamedTuple):
    """
    One row of `vault_keys`; times are ISO-8601 text as stored, or None.

    Attributes:
        exported_at: when it was last exported to a file.
        emptied_at: when a rotation left no value under it. Backups from `activated_at` until then
            need it.
        replaced_by: the id of the key that became active in its place; None if not known.
        staged_by, staged_at: the host that made it for a rotation by stages, and when that was
            done.
    """

    id: str
    state: KeyState
    created_at: str
    activated_at: str | None
    retired_at: str | None
    destroyed_at: str | None
    exported_at: str | None
    emptied_at: str | None
    replaced_by: str | None = None
    staged_by: str | None = None
    staged_at: str | None = None


_COLUMNS: Final = ", ".join(KeyRecord._fields)


class KeyStates:
    """The keys of one database. Each change is a write transaction of its own, or a part of one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Read-only

    def active_id(self) -> str:
        """
        The id of the key that new values are sealed with.

        Raises:
            KeyMissing: no key is active. NotADatabase: a damaged index leads to another key.
        """
        sql = self._database.read_again(TABLE, "id, state", (("state = 'active'", "1"),))
        found = self._database.fetch(sql)
        if not found:
            raise KeyMissing(
                "the vault has no active key",
                hint="run 'vault init', which makes the first one or says why it cannot",
            )
        key_id, state, *_ = found[0]
        if state != "active" or not isinstance(key_id, str):
            raise self._database.astray(TABLE)
        return key_id

    def records(self) -> list[KeyRecord]:
        """All keys, oldest first. Leaves out `unnamed` rows."""
        found = [KeyRecord(*map(as_text, row)) for row in self._rows() if isinstance(row[0], str)]
        return [
            each._replace(state="staged") if each.state == "pending" and each.staged_at else each
            for each in found
        ]

    def unnamed(self) -> int:
        """How many rows another tool gave an id that is not text: nothing can name them."""
        return sum(not isinstance(row[0], str) for row in self._rows())

    def record(self, key_id: str) -> KeyRecord:
        """
        Raises:
            KeyMissing: the vault lists no such key.
        """
        found = next((record for record in self.records() if record.id == key_id), None)
        if found is None:
            raise KeyMissing(
                f"the vault lists no key {typed_id(key_id)}",
                hint="'vault keys list' shows them",
                key_id=key_id,
            )
        return found

    def find(self, typed: str) -> str:
        """
        The id of the key that *typed* is, or alone begins with (four characters or more).

        Raises:
            WrongArgument: several begin so. KeyMissing: none does.
        """
        ids = [record.id for record in self.records()]
        begin = [key_id for key_id in ids if len(typed) >= 4 and key_id.startswith(typed)]
        if typed in ids or not begin:
            return self.record(typed).id
        if len(begin) > 1:
            listed = ", ".join(map(brief, begin))
            raise WrongArgument(
                f"{len(begin)} keys have an id that begins so: {listed}", hint="give more of the id"
            )
        return begin[0]

    def check(self, key_id: str) -> tuple[str, str, str | None] | None:
        """State, check value and time of destruction of a key; None without such a key."""
        found = self._database.fetch(
            f"SELECT state, check_value, destroyed_at FROM {self._table} WHERE id = ?", (key_id,)
        )
        return (str(found[0][0]), str(found[0][1]), as_text(found[0][2])) if found else None

    def check_value(self, key_id: str) -> str | None:
        """The check value of a listed key; None where there is no such key."""
        found = self.check(key_id)
        return found[1] if found else None

    def in_state(self, *states: KeyState) -> list[KeyRecord]:
        return [record for record in self.records() if record.state in states]

    def staged(self) -> KeyRecord | None:
        """The key that waits until other hosts have it, if there is one."""
        return next(iter(self.in_state("staged")), None)

    def predecessor(self, key_id: str) -> str | None:
        """The id of the key that this one replaced; None if not known."""
        replaced = [record.id for record in self.records() if record.replaced_by == key_id]
        return replaced[0] if len(replaced) == 1 else None

    def unfinished_rotation(self) -> bool:
        return _UNFINISHED in facts.facts(self._database)

    # Changes

    def add_pending(self, key_id: str, check_value: str, staged_by: str | None = None) -> None:
        self._change(
            f"INSERT INTO {TABLE} (id, state, check_value, created_at, staged_by)"
            " VALUES (?, 'pending', ?, ?, ?)",
            (key_id, check_value, now(), staged_by),
        )

    def stage(self, key_id: str) -> None:
        """A pending key is in the key store of the host that made it, and waits for the others."""
        sql = f"UPDATE {self._table} SET staged_at = ? WHERE id = ? AND state = 'pending'"
        self._change(sql, (now(), key_id))

    def add_imported(self, record: KeyRecord, check_value: str) -> None:
        marks = ", ".join("?" * (1 + len(record)))
        self._change(
            f"INSERT INTO {TABLE} (check_value, {_COLUMNS}) VALUES ({marks})",
            (check_value, *record),
        )

    def take_back(self, key_id: str) -> None:
        """Remove a pending key that the key store never got."""
        self._change(f"DELETE FROM {self._table} WHERE id = ? AND state = 'pending'", (key_id,))

    def write_off(self, key_id: str) -> None:
        """A pending key becomes destroyed: no value ever used it."""
        self._change(
            f"UPDATE {self._table} SET state = 'destroyed', destroyed_at = ?"
            " WHERE id = ? AND state = 'pending'",
            (now(), key_id),
        )

    def promote(self, key_id: str) -> None:
        """
        Make a pending key active, and retire the active one, in one transaction.

        If one was retired, a rotation has begun: `unfinished_rotation` is true until
            `end_rotation`.
        """

        def swap() -> None:
            moment = now()
            retired = self._database.change(
                f"UPDATE {self._table} SET state = 'retired', retired_at = ?, replaced_by = ?"
                " WHERE state = 'active'",
                (moment, key_id),
            )
            self._activate(key_id, moment)
            if retired:
                facts.note(self._database, **{_UNFINISHED: key_id})

        # A writer that has read the old key seals with it: its transaction ends first.
        self._database.write(swap, alone=True)

    def retire_again(self, key_id: str) -> None:
        """Retire a key that was called pending although it has a successor."""
        sql = f"UPDATE {self._table} SET state = 'retired' WHERE id = ? AND state = 'pending'"
        self._change(sql, (key_id,))

    def destroyed(self, key_id: str) -> None:
        """Note that a retired key is no longer in the key store."""

        def say_so() -> None:
            self._empty(key_id)
            self._database.change(
                f"UPDATE {self._table} SET state = 'destroyed', destroyed_at = ?"
                " WHERE id = ? AND state = 'retired'",
                (now(), key_id),
            )

        self._database.write(say_so)

    def abandoned(self, key_id: str, new: str | None) -> None:
        """Note that a key is lost. A pending *new* one becomes active in its place."""

        def give_up() -> None:
            self._database.change(
                f"UPDATE {self._table} SET state = 'destroyed', destroyed_at = ?,"
                " replaced_by = coalesce(replaced_by, ?) WHERE id = ? AND state <> 'destroyed'",
                (now(), new, key_id),
            )
            if new:
                self._activate(new, now())

        self._database.write(give_up, alone=True)

    def exported(self, key_ids: Iterable[str], at: str, *, unless_later: bool = False) -> None:
        """Note that these keys were exported *at* that time. Inside a write transaction."""
        self._database.change_each(
            f"UPDATE {self._table} SET exported_at = ?"
            " WHERE id = ? AND (coalesce(exported_at, '') < ? OR ?)",
            [(at, key_id, at, not unless_later) for key_id in key_ids],
        )

    def end_rotation(self, emptied: Iterable[str]) -> None:
        """Note that a rotation is finished, and left no value under the keys *emptied*."""

        def end() -> None:
            for key_id in emptied:
                self._empty(key_id)
            facts.forget(self._database, _UNFINISHED)

        self._database.write(end)

    def _activate(self, key_id: str, moment: str) -> None:
        """Inside the transaction that ends the previous key's active state."""
        sets = "SET state = 'active', activated_at = ? WHERE id = ? AND state = 'pending'"
        if not self._database.change(f"UPDATE {self._table} {sets}", (moment, key_id)):
            message = (
                f"key {key_id} is not pending, so it cannot become active; nothing was changed"
            )
            raise KeyUnavailable(message, key_id=key_id)

    def _empty(self, key_id: str) -> None:
        sql = f"UPDATE {self._table} SET emptied_at = ? WHERE id = ? AND emptied_at IS NULL"
        self._database.change(sql, (now(), key_id))

    def _rows(self) -> list[tuple[Any, ...]]:
        return self._database.fetch(f"SELECT {_COLUMNS} FROM {self._table} ORDER BY created_at, id")

    def _change(self, sql: str, params: tuple[object, ...]) -> None:
        self._database.write(lambda: self._database.change(sql, params))

    @property
    def _table(self) -> str:
        """Without its indexes: the table is small, and a damaged one would lead to another key."""
        return self._database.whole(TABLE)
