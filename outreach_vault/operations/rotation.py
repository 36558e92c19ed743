"""
Put everything under a new key while adapters read and write.

Every row opens at every instant, whatever happens. The new key is in the key store, read back and
proved, before it becomes active. The old key stays there, retired. A row's value and the id of its
key change together or not at all. Sealing happens outside the write lock: inside, other writers
waited 1.5 to 2.3 s instead of 9 ms (measured). So a row is changed only if it is still what was
sealed. The next pass takes the rows that changed meanwhile.

If a run is interrupted, the next one finishes it and makes no key of its own.

At the end the whole file is rewritten: programs that do not overwrite what they delete leave copies
of old tokens in its free space.

Destroying the old key is a separate step, since backups still need it. A copy of a database shares
its keys, so it is not rotated unasked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple

from ..cipher import Cipher
from ..errors import KeyInUse, KeyUnavailable, UnreadableValue, brief
from ..keys import home
from ..keys.states import KeyRecord
from ..values import history, tokens
from ..values.opening import fault, opener
from ..values.rows import TABLE, TABLES, Row, Swap
from ..values.sealing import NOT_PROVED, Names, opened, resealed
from ..vault import Vault
from . import staging

BATCH: Final = 500  # rows in one write transaction: about 8 ms under the lock
NAMED_AT_MOST: Final = 1000  # unreadable rows; memory must not grow with the rows

Progress = Callable[[int, int], None]


class Unreadable(NamedTuple):
    """A row that stayed under its old key, and why."""

    id: str
    reason: str


@dataclass(slots=True)
class Report:
    """
    What a rotation did, or would do.

    Attributes:
        old_key: id of the key that was active before.
        new_key: id of the key that is active now; None in a rehearsal that would make one.
        rotated: values that this run put under the new key.
        previous: values of the history that it put there.
        removed: values of the history, and access tokens, that it removed, because nothing can open
            them any more.
        already_current: values that were under it before.
        changed_meanwhile: values that others replaced or removed while this run sealed them.
        foreign: values that are not this vault's; never touched.
        unreadable: values that their key does not open, or whose key is not available.
        unreadable_rows: the unreadable values, at most `NAMED_AT_MOST`.
        undone: readable values that something moved back from the new key; in `unreadable` too.
        resumed: this run finished one that was interrupted.
        log_truncated: no old token is left in the write-ahead log; None if only the server knows.
        scrubbed: none is left in free space either.
        scrub_problem: why the database was not rewritten, unless the caller asked for that.
        destroyed_key: id of the old key, if it was destroyed at the end.
    """

    old_key: str | None = None
    new_key: str | None = None
    rotated: int = 0
    previous: int = 0
    removed: int = 0
    already_current: int = 0
    changed_meanwhile: int = 0
    foreign: int = 0
    unreadable: int = 0
    unreadable_rows: tuple[Unreadable, ...] = ()
    undone: int = 0
    resumed: bool = False
    log_truncated: bool | None = True
    scrubbed: bool = False
    scrub_problem: str | None = None
    destroyed_key: str | None = None

    @property
    def complete(self) -> bool:
        """Nothing is left under an older key, except in free space if the caller chose that."""
        return not self.unreadable and self.cleaned

    @property
    def cleaned(self) -> bool:
        """Old tokens were cleared as far as the caller asked, and this process can."""
        return self.log_truncated is not False and self.scrub_problem is None


# For each key id in the rows: the key, or why it is not available. Asked once in a pass, since a
# keyring may need seconds. None: nothing to do (the new key, or not the id of a key).
_Keys = dict[object, Cipher | KeyUnavailable | None]


def rotate(
    vault: Vault,
    *,
    progress: Progress | None = None,
    after_restore: bool = False,
    although_copied: bool = False,
    destroy_old: bool = False,
    scrub: bool | None = None,
    host: str | None = None,
    without: Collection[str] = (),
    without_all: bool = False,
) -> Report:
    """
    Put every value under a new key; online, and safe to kill and to run again.

    Args:
        progress: called with (rows seen, rows in all) after each batch of a pass.
        after_restore: go on although the key store says that the active key was replaced. The
            operator has restored an older database, or has checked who changed the keys.
        although_copied: go on although this is a copy of another database of the vault. The
            original can store nothing any more, and *destroy_old* makes its values unreadable.
        destroy_old: at the end destroy the old key, if nothing is left under it in the database or
            its log. Backups that need it then open nothing.
        scrub: rewrite the whole file at the end, to clear copies of old tokens from its free space.
            Other writers wait meanwhile, 1 s for 100 MB. By default only if it is short and safe.
        host: this host's name, where hosts have their own copy of the keys; else the machine's.
        without: the names of known hosts that may lack the new key; *without_all*: any may.
    Raises:
        OperationRunning: another process changes this vault's keys or schema.
        KeySuperseded: the key store says that the active key was replaced, and not *after_restore*.
        SharedKeys: the database is a copy, and not *although_copied*.
        KeyNotAcknowledged: hosts with their own copy of the keys would lack the new one.
        KeyUnavailable: the active key is not available, or the key store does not take the new one;
            no value was changed.
        StorageError: the database cannot be written; run it again once that is fixed.
    """

    def may_replace(staged: KeyRecord | None) -> None:
        staging.require_acknowledged(vault, staged, host, without, without_all)

    def turn() -> Report:
        home.require_own_keys(vault.database, vault.keys, although_copied=although_copied)
        begun = vault.keys.begin_rotation(after_restore=after_restore, may_replace=may_replace)
        staging.renew(vault, host, begun.new_key)
        vault.database.write(vault.rows.history.expire)
        home.record(vault.database, vault.keys)
        report = Report(old_key=begun.old_key, new_key=begun.new_key, resumed=begun.resumed)
        _passes(vault, begun.new_key, report, progress)
        cleaned = vault.database.clean(scrub)
        report.log_truncated, report.scrubbed, report.scrub_problem = cleaned
        if report.complete and destroy_old and report.old_key:
            # Counts the rows again: a row that came back under the key stops it.
            vault.keys.destroy(report.old_key, lambda key_id: _require_unneeded(vault, key_id))
            report.destroyed_key = report.old_key
        if report.cleaned:
            # Reads every row, so before the lock: none comes back under a retired key.
            vault.keys.end_rotation(vault.rows.keys_named())
        return report

    return vault.database.operators_turn(turn)


def _passes(vault: Vault, new_key: str, report: Report, progress: Progress | None) -> None:
    """
    Pass over the rows until only unreadable ones are left under another key.

    One statement counts what is left: another program's VACUUM renumbers rows in the middle of a
        pass,
    which may then meet a row twice or never. It ends after two passes in a row that leave no fewer:
    something undoes the changes.
    """
    before, stalled = _left_on_others(vault, new_key), 0
    while True:
        changed = _pass(vault, new_key, report, progress)
        left = _left_on_others(vault, new_key)
        if left <= report.unreadable and not changed:
            return
        stalled = stalled + 1 if left >= before else 0
        if stalled == 2:
            report.undone = max(left - report.unreadable, 0)
            report.unreadable = max(left, report.unreadable)
            return
        before = left


def _left_on_others(vault: Vault, key_id: str) -> int:
    """How many values name a key other than this one, all counted at one moment."""
    counts = vault.rows.count_by_key().items()
    return sum(count for other, count in counts if other not in (None, key_id))


def destroy(vault: Vault, key_id: str, *, although_copied: bool = False) -> None:
    """
    Destroy a retired key: backups that need it open nothing any more. Safe to run again.

    Args:
        although_copied: go on although this is a copy, whose original shares its keys.
    Raises:
        SharedKeys: the database is a copy, and not *although_copied*.
        OperationRunning: another process changes this vault's keys or schema.
        KeyInUse: the key is not retired, or values need it.
        KeyUnavailable: there is no such key, or the key store cannot remove it.
    """

    def end() -> None:
        home.require_own_keys(vault.database, vault.keys, although_copied=although_copied)
        vault.keys.destroy(key_id, lambda key_id: _require_unneeded(vault, key_id))

    vault.database.operators_turn(end)


def require_unused(vault: Vault, key_id: str) -> KeyRecord:
    """
    The row of a key that may be destroyed, or already is.

    Raises:
        KeyInUse: it is not retired, or a value needs it. KeyMissing: the vault lists no such key.
    """
    record = vault.keys.require_retired(key_id)
    _require_unneeded(vault, key_id)
    return record


def _require_unneeded(vault: Vault, key_id: str) -> None:
    if needed := vault.rows.count_by_key()[key_id]:
        raise KeyInUse(
            f"{needed} value(s) need key {key_id}; it was not destroyed",
            key_id=key_id,
            hint="'vault rotate' puts them under the active key; 'vault doctor' names the rest",
        )
    # Another program may have rebuilt the table without the column: rows then name no key of ours.
    listed = {record.id for record in vault.keys.states.records()}
    rows = chain.from_iterable(map(vault.rows.each, TABLES))
    nameless = (row for row in rows if row.key_id not in listed)
    if opens := sum(opener(vault.keys, row, [key_id]) is not None for row in nameless):
        raise KeyInUse(
            f"{opens} value(s) open under key {key_id} but do not name it; it was not destroyed",
            key_id=key_id,
            hint="'vault doctor --deep' names them, and says how to put the key's id back",
        )


def rehearse(vault: Vault) -> Report:
    """What `rotate` would do. Read-only: it opens every value, and writes and makes nothing."""
    states = vault.keys.states
    report = Report(old_key=states.active_id(), resumed=states.unfinished_rotation())
    vault.keys.cipher(states.active_id())
    if report.resumed:
        report.new_key = states.active_id()
        report.old_key = states.predecessor(report.new_key)
    keys: _Keys = {report.new_key: None}
    for table in TABLES:
        for batch in vault.rows.pages(BATCH, table):
            swaps, dead = _seal(vault, batch, report.new_key, report, keys, table)
            _count(report, table, len(swaps), len(dead))
    return report


def _pass(vault: Vault, new_key: str, report: Report, progress: Progress | None) -> bool:
    """Take every row once. True if some changed meanwhile, so that another pass is needed."""
    total, rotated_before = vault.rows.count(*TABLES), report.rotated
    latest = vault.rows.count(history.TABLE)
    report.already_current = report.foreign = report.unreadable = seen = changed = 0
    report.unreadable_rows, keys = (), _Keys({new_key: None})
    for table in TABLES:
        for batch in vault.rows.pages(BATCH, table):
            swaps, dead = _seal(vault, batch, new_key, report, keys, table)
            replaced = _replace(vault, swaps, table)
            if dead:
                remove = (vault.rows.tokens if table == tokens.TABLE else vault.rows.history).remove
                vault.database.write(functools.partial(remove, dead))
            _count(report, table, replaced, len(dead))
            changed += len(swaps) - replaced
            seen += len(batch)
            if progress:
                progress(seen, max(total, seen))
            if table == history.TABLE:
                # Each change by others adds a row at its end: to follow them might never end.
                latest -= len(batch)
                if latest <= 0:
                    break
    # An earlier pass of this run put some there; somebody may have removed some of those since.
    report.already_current = max(0, report.already_current - rotated_before)
    report.changed_meanwhile += changed
    return changed > 0


def _count(report: Report, table: str, rotated: int, removed: int) -> None:
    if table == history.TABLE:
        report.previous += rotated
    elif table == TABLE:  # an access token is no value of the operator's
        report.rotated += rotated
    report.removed += removed


def _seal(
    vault: Vault,
    batch: list[tuple[Any, ...]],
    new_key: str | None,
    report: Report,
    keys: _Keys,
    table: str,
) -> tuple[list[Swap], list[str]]:
    """
    New tokens for the rows that need one, each proved to open with the new key; counts the rest.

    A row that opens under its key needs no closer look, which would add 7% to the cryptography.

    Returns:
        Also the ids of previous values that nothing can open any more.
    """
    swaps, dead = list[Swap](), list[str]()
    new = vault.keys.cipher(new_key) if new_key else None
    for row in batch:
        place, token, key_id = row[1:4], row[4], row[5]
        if isinstance(key_id, str) and key_id not in keys:
            keys[key_id] = vault.keys.unavailable(key_id) or vault.keys.cipher(key_id)
        old, renewed = keys.get(key_id), None
        if isinstance(old, Cipher):
            renewed = resealed(new, place, token, old) if new else _rehearsed(place, token, old)
        if renewed is not None:
            swaps.append((renewed, new_key or "", row[-1], token, key_id))
        elif table != TABLE and _is_dead(vault, stored := Row._make(row[:-1]), new_key, old):
            dead.append(stored.id)
        else:
            _leave(vault, Row._make(row[:-1]), new_key, report, old, table)
    return swaps, dead


def _is_dead(
    vault: Vault, row: Row, new_key: str | None, key: Cipher | KeyUnavailable | None
) -> bool:
    """Whether nothing can open a value: its key refuses it, or was destroyed."""
    if row.sealing_key == new_key:
        return False
    if row.sealing_key is None or isinstance(key, Cipher):
        return isinstance(fault(vault.keys, row, lambda _: None), UnreadableValue)
    destroyed = vault.keys.states.in_state("destroyed")
    return row.sealing_key in {record.id for record in destroyed}


def _rehearsed(place: Names, token: str, key: Cipher) -> str | None:
    """The token if it opens, else None."""
    return None if opened(key, place, token)[1] is None else token


def _leave(
    vault: Vault,
    row: Row,
    new_key: str | None,
    report: Report,
    key: Cipher | KeyUnavailable | None,
    table: str,
) -> None:
    """Count a row that stays as it is, and name it if it should not."""
    if row.sealing_key is None:
        report.foreign += 1
    elif row.sealing_key == new_key:
        report.already_current += table == TABLE
    else:
        problem = key if isinstance(key, KeyUnavailable) else None
        found = fault(vault.keys, row, lambda _: problem)
        report.unreadable += 1
        if len(report.unreadable_rows) < NAMED_AT_MOST:
            reason = str(found or f"{row.place}, row {brief(row.id)}: {NOT_PROVED}")
            report.unreadable_rows += (Unreadable(row.id, reason),)


def _replace(vault: Vault, swaps: list[Swap], table: str) -> int:
    """Compare and swap in one short transaction; how many rows had not changed meanwhile."""
    return vault.database.write(lambda: vault.rows.swap(swaps, table)) if swaps else 0
