"""
Everything under a new key, while adapters read and write.

Whatever happens, every row opens at every instant: the new key is in the key store, read back and
proved, before it becomes active; the old key stays there, retired; a row's value and the id of its key
change together or not at all. Sealing is done outside the write lock (inside, it starved other
writers: 1.5 to 2.3 s instead of 9 ms, measured), so a row is changed only if it still is what was
sealed anew; what changed meanwhile is met again in the next pass.

A run that was interrupted is finished by the next one, which then makes no key of its own.

At the end the file is written anew, since the writes of programs that overwrite nothing leave copies of old tokens in its
free space.

The old key's end is a step of its own: backups still need it. A copy of a database shares its keys, and is not rotated unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

from ..cipher import NOT_PROVED, Cipher, Names
from ..database.sqlite import UNINDEXED
from ..errors import KeySuperseded, KeyUnavailable, StorageError, UnreadableValue, brief
from ..keys import home
from ..keys.keyset import COLUMNS, StoredValue
from ..values.lookup import TABLE
from ..vault import Vault

SCRUB_AT_MOST: Final = 100_000_000  # bytes; beyond, writers would wait for longer than a second (measured)
BATCH: Final = 500  # rows for one write transaction: about 8 ms under the lock
NAMED_AT_MOST: Final = 1000  # unreadable rows kept by name, so that memory does not grow with the rows

Progress = Callable[[int, int], None]


class Unreadable(NamedTuple):
    """A row that was left under its old key, and why."""

    id: str
    reason: str


@dataclass(slots=True)
class Report:
    """
    What a rotation did, or would do.

    Attributes:
        old_key: id of the key that was active before.
        new_key: id of the key that is active now; None in a rehearsal that would make one.
        rotated: values that this run has put under the new key.
        already_current: values that were under it before.
        changed_meanwhile: values that somebody else replaced or removed while they were sealed anew.
        foreign: values that are not this vault's; never touched.
        unreadable: values that their key does not open, or whose key cannot be had.
        named: those, up to `NAMED_AT_MOST`.
        resumed: this run finished one that was interrupted.
        undone: of those, the ones that could be read, and were not under the new key after it was written.
        log_truncated: no old token is left in the write-ahead log.
        scrubbed: none is left in the file's free space either.
        scrub_problem: why not, where that is not what was asked for.
        destroyed_key: id of the old key, where it was destroyed at the end.
    """

    old_key: str | None = None
    new_key: str | None = None
    rotated: int = 0
    already_current: int = 0
    changed_meanwhile: int = 0
    foreign: int = 0
    unreadable: int = 0
    named: tuple[Unreadable, ...] = ()
    undone: int = 0
    resumed: bool = False
    log_truncated: bool = True
    scrubbed: bool = False
    scrub_problem: str | None = None
    destroyed_key: str | None = None

    @property
    def complete(self) -> bool:
        """Nothing of this vault is left under an older key, in the database, its log or, unless told otherwise, its free space."""
        return not self.unreadable and self.log_truncated and self.scrub_problem is None


# The keys that rows name: each, or why it cannot be had, asked for once in a pass, since a keyring may need seconds. None where there
# is nothing to do: the new key, and what is no id of a key.
_Keys = dict[object, Cipher | KeyUnavailable | None]
# What one update needs: the new token and its key's id; the row's number in the table (another tool may have left the id empty),
# and what must still be there.
_Swap = tuple[str, str, int, str, str]


def rotate(
    vault: Vault,
    *,
    progress: Progress | None = None,
    after_restore: bool = False,
    although_copied: bool = False,
    destroy_old: bool = False,
    scrub: bool | None = None,
) -> Report:
    """
    Put every value under a new key; online, and safe to kill and to run again.

    Args:
        progress: called with (rows seen, rows in all) after each batch of a pass.
        after_restore: go on where the key store says that the active key was replaced: the operator has
            restored an older database, or has looked at who changed the keys.
        although_copied: go on where this file is a copy of another database of the same vault: that one can store
            nothing any more, and with *destroy_old* its values are gone.
        destroy_old: at the end destroy the key that was active before, if nothing is left under it in
            the database or its log. Backups of its time open nothing afterwards.
        scrub: write the whole file anew at the end, since other programs' writes leave copies of old tokens in its free
            space. That keeps other writers waiting, 1 s for 100 MB (measured). By default up to `SCRUB_AT_MOST` bytes.
    Raises:
        OperationRunning: another process changes this vault's keys or schema.
        KeySuperseded: the key store says that the active key was replaced, and not *after_restore*.
        SharedKeys: the file is a copy, and not *although_copied*.
        KeyUnavailable: the active key cannot be had, or the new one not be stored; no value was changed.
        StorageError: the database cannot be written; run it again when the cause is mended.
    """
    return vault.database.operators_turn(lambda: _rotate(vault, progress, after_restore, although_copied, destroy_old, scrub))


def _rotate(
    vault: Vault, progress: Progress | None, after_restore: bool, although_copied: bool, destroy_old: bool, scrub: bool | None
) -> Report:
    home.require_own_keys(vault.database, vault.keys, although_copied=although_copied)
    report = Report()
    report.resumed = vault.keys.settle() is not None or vault.keys.unfinished_rotation()
    present = _is_present(vault, after_restore)
    if not report.resumed or not present:
        vault.keys.cipher(vault.keys.active_id())  # never a new key because the old one could not be read
        vault.keys.promote(vault.keys.create())
        report.resumed = False
    home.record(vault.database, vault.keys)
    vault.keys.mark_superseded()
    report.new_key = vault.keys.active_id()
    vault.keys.cipher(report.new_key)
    report.old_key = vault.keys.predecessor(report.new_key)
    _passes(vault, report.new_key, report, progress)
    _clean(vault, report, scrub)
    if report.complete and destroy_old and report.old_key:
        vault.keys.destroy(report.old_key)  # counts the rows again; a row that came back under the key stops it
        report.destroyed_key = report.old_key
    if report.log_truncated and not report.scrub_problem:
        vault.keys.end_rotation()
    return report


def _passes(vault: Vault, new_key: str, report: Report, progress: Progress | None) -> None:
    """
    Pass over the rows until none is left under another key but those that cannot be read.

    What is left is counted in one statement: another program's VACUUM gives the rows other numbers in the middle of a
    pass, which then may meet a row twice or never. Two passes in a row after which no fewer are left end it: something
    undoes the changes.
    """
    before, stalled = vault.keys.left_on_others(new_key), 0
    while True:
        changed = _pass(vault, new_key, report, progress)
        left = vault.keys.left_on_others(new_key)
        if left <= report.unreadable and not changed:
            return
        stalled = stalled + 1 if left >= before else 0
        if stalled == 2:
            report.unreadable, report.undone = max(left, report.unreadable), max(left - report.unreadable, 0)
            return
        before = left


def _clean(vault: Vault, report: Report, scrub: bool | None) -> None:
    """
    Leave no old token in the log, nor in the free space of the file, where other programs' writes may have put copies.
    """
    database = vault.database
    if scrub is None and (size := database.size()) > SCRUB_AT_MOST:
        report.scrub_problem = f"the file has {size // 1024 // 1024} MB, and to write it anew would keep other programs waiting"
    elif scrub is None and (index := database.held_by_row_number()):
        report.scrub_problem = f"the full-text index {index} holds the numbers of rows, which may change, and would have to be rebuilt"
    elif scrub is not False and database.free_bytes() < 2 * database.size():
        report.scrub_problem = "there is too little room beside the file to write it anew"
    elif scrub is not False:
        try:
            report.log_truncated = report.scrubbed = database.scrub()
        except StorageError as error:
            report.scrub_problem = str(error)
        else:
            return
    report.log_truncated = database.truncate_log()


def destroy(vault: Vault, key_id: str, *, although_copied: bool = False) -> None:
    """
    Destroy a retired key: backups that need it open nothing any more. Done again, it does no more.

    Args:
        although_copied: also where this file is a copy, and the database that it was copied from shares its keys.
    Raises:
        SharedKeys: it is such a copy, and not *although_copied*.
        OperationRunning: another process changes this vault's keys or schema.
        KeyInUse: the key is not retired, or values need it. KeyUnavailable: there is no such key, or the
            key store cannot remove it.
    """

    def end() -> None:
        home.require_own_keys(vault.database, vault.keys, although_copied=although_copied)
        vault.keys.destroy(key_id)

    vault.database.operators_turn(end)


def rehearse(vault: Vault) -> Report:
    """What `rotate` would do. Read-only: every value is opened under its key, and nothing is written or made."""
    report = Report(old_key=vault.keys.active_id(), resumed=vault.keys.unfinished_rotation())
    vault.keys.cipher(vault.keys.active_id())
    if report.resumed:
        report.new_key = vault.keys.active_id()
        report.old_key = vault.keys.predecessor(report.new_key)
    keys: _Keys = {report.new_key: None}
    for batch in batches(vault):
        report.rotated += len(_seal(vault, batch, report.new_key, report, keys))
    return report


def _is_present(vault: Vault, after_restore: bool) -> bool:
    """Whether the active key is the one that the key store takes for the present one; an error, unless the operator has decided."""
    try:
        vault.keys.require_present(vault.keys.active_id())
    except KeySuperseded:
        if not after_restore:
            raise
        return False
    return True


def _pass(vault: Vault, new_key: str, report: Report, progress: Progress | None) -> bool:
    """Meet every row once; whether some changed meanwhile, so that another pass is needed."""
    total = vault.database.fetch(f"SELECT count(*) FROM {TABLE} {UNINDEXED}")[0][0]
    number = vault.database.row_number(TABLE)
    seen = changed = 0
    keys: _Keys = {new_key: None}
    rotated_before, report.already_current, report.foreign, report.unreadable, report.named = report.rotated, 0, 0, 0, ()
    for batch in batches(vault):
        swaps = _seal(vault, batch, new_key, report, keys)
        replaced = _replace(vault, swaps, number)
        report.rotated += replaced
        changed += len(swaps) - replaced
        seen += len(batch)
        if progress:
            progress(seen, max(total, seen))
    # Less what an earlier pass of this run has put there; somebody may have removed some of that since.
    report.already_current = max(0, report.already_current - rotated_before)
    report.changed_meanwhile += changed
    return changed > 0


def batches(vault: Vault) -> Iterator[list[tuple[Any, ...]]]:
    """
    All rows, in the order of the table (half the cost of random order for the updates, measured).

    Each is `COLUMNS` and then the rowid, plain: Python's garbage collector looks at no tuple of texts twice, and at a
    `StoredValue` again and again (8 % of the cryptography, measured). So make one when it is needed.
    """
    number, least = vault.database.row_number(TABLE), -(1 << 63)  # another tool may have chosen any number
    sql = f"SELECT {COLUMNS}, {number} FROM {TABLE} {UNINDEXED} WHERE {number} >= ? ORDER BY {number} LIMIT {BATCH}"
    while rows := vault.database.fetch(sql, (least,)):
        last = rows[-1][-1]
        if rows[0][-1] < least or any(after[-1] <= before[-1] for before, after in pairwise(rows)):
            raise vault.database.damaged(f"the rows of {TABLE} are out of order")
        yield rows
        if last == (1 << 63) - 1:
            return
        least = last + 1


def _seal(vault: Vault, batch: list[tuple[Any, ...]], new_key: str | None, report: Report, keys: _Keys) -> list[_Swap]:
    """
    New tokens for the rows that need one, each proved to open with the new key alone; the rest is counted.

    A row that opens under its key needs no closer look (7 % of the cryptography, measured).
    """
    swaps: list[_Swap] = []
    new = vault.keys.cipher(new_key) if new_key else None
    for row in batch:
        place, token, key_id = row[1:4], row[4], row[5]
        if key_id not in keys:
            keys[key_id] = vault.keys.unavailable(key_id) or vault.keys.cipher(key_id) if isinstance(key_id, str) else None
        old, renewed = keys[key_id], None
        if isinstance(old, Cipher):
            renewed = new.resealed(place, token, old) if new else _rehearsed(place, token, old)
        if renewed is None:
            _leave(vault, StoredValue._make(row[:-1]), new_key, report, old)
        else:
            swaps.append((renewed, new_key or "", row[-1], token, key_id))
    return swaps


def _rehearsed(place: Names, token: str, key: Cipher) -> str | None:
    """Something where the token opens, None where it does not."""
    return None if key.opened(place, token)[1] is None else token


def _leave(vault: Vault, stored: StoredValue, new_key: str | None, report: Report, key: Cipher | KeyUnavailable | None) -> None:
    """Count a row that stays as it is, and name it where it should not."""
    if stored.is_foreign:
        report.foreign += 1
    elif stored.key_id == new_key:
        report.already_current += 1
    elif isinstance(key, KeyUnavailable):
        _name_unreadable(report, stored, f"{stored.place}, row {brief(stored.id)}: {key}")
    else:
        try:
            vault.keys.open(stored)
            _name_unreadable(report, stored, f"{stored.place}, row {brief(stored.id)}: {NOT_PROVED}")
        except UnreadableValue as error:
            _name_unreadable(report, stored, str(error))


def _name_unreadable(report: Report, stored: StoredValue, reason: str) -> None:
    report.unreadable += 1
    if len(report.named) < NAMED_AT_MOST:
        report.named += (Unreadable(stored.id, reason),)


def _replace(vault: Vault, swaps: list[_Swap], number: str) -> int:
    """Compare and swap, in one short transaction; how many rows still were what was sealed."""
    if not swaps:
        return 0
    sql = f"UPDATE {TABLE} SET encrypted_value = ?, key_id = ? WHERE {number} = ? AND encrypted_value = ? AND key_id = ?"
    return vault.database.write(lambda: vault.database.change_each(sql, swaps))
