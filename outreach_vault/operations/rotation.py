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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ..cipher import Cipher
from ..errors import KeyInUse, KeyUnavailable, brief
from ..keys import home
from ..keys.states import KeyRecord
from ..values.opening import fault, opener
from ..values.rows import Row, Swap
from ..values.sealing import NOT_PROVED, Names, opened, resealed
from ..vault import Vault

BATCH: Final = 500  # rows for one write transaction: about 8 ms under the lock
NAMED_AT_MOST: Final = (
    1000  # unreadable rows kept by name, so that memory does not grow with the rows
)

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
        unreadable_rows: those, up to `NAMED_AT_MOST`.
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
    unreadable_rows: tuple[Unreadable, ...] = ()
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
            space. That keeps other writers waiting, 1 s for 100 MB (measured). By default where it is short and safe.
    Raises:
        OperationRunning: another process changes this vault's keys or schema.
        KeySuperseded: the key store says that the active key was replaced, and not *after_restore*.
        SharedKeys: the file is a copy, and not *although_copied*.
        KeyUnavailable: the active key cannot be had, or the new one not be stored; no value was changed.
        StorageError: the database cannot be written; run it again when the cause is mended.
    """
    return vault.database.operators_turn(
        lambda: _rotate(vault, progress, after_restore, although_copied, destroy_old, scrub)
    )


def _rotate(
    vault: Vault,
    progress: Progress | None,
    after_restore: bool,
    although_copied: bool,
    destroy_old: bool,
    scrub: bool | None,
) -> Report:
    home.require_own_keys(vault.database, vault.keys, although_copied=although_copied)
    begun = vault.keys.begin_rotation(after_restore=after_restore)
    home.record(vault.database, vault.keys)
    report = Report(old_key=begun.old_key, new_key=begun.new_key, resumed=begun.resumed)
    _passes(vault, begun.new_key, report, progress)
    cleaned = vault.database.clean(scrub)
    report.log_truncated, report.scrubbed, report.scrub_problem = cleaned
    if report.complete and destroy_old and report.old_key:
        # Counts the rows again: one that came back under the key stops it.
        vault.keys.destroy(report.old_key, lambda key_id: _require_unneeded(vault, key_id))
        report.destroyed_key = report.old_key
    if report.log_truncated and not report.scrub_problem:
        # Read before the lock is taken: it is every row, and none comes back under a retired key.
        vault.keys.end_rotation(vault.rows.keys_named())
    return report


def _passes(vault: Vault, new_key: str, report: Report, progress: Progress | None) -> None:
    """
    Pass over the rows until none is left under another key but those that cannot be read.

    What is left is counted in one statement: another program's VACUUM gives the rows other numbers in the middle of a
    pass, which then may meet a row twice or never. Two passes in a row after which no fewer are left end it: something
    undoes the changes.
    """
    before, stalled = _left_on_others(vault, new_key), 0
    while True:
        changed = _pass(vault, new_key, report, progress)
        left = _left_on_others(vault, new_key)
        if left <= report.unreadable and not changed:
            return
        stalled = stalled + 1 if left >= before else 0
        if stalled == 2:
            report.unreadable, report.undone = (
                max(left, report.unreadable),
                max(left - report.unreadable, 0),
            )
            return
        before = left


def _left_on_others(vault: Vault, key_id: str) -> int:
    """
    How many values name another key than this one; counted in one moment, whatever moves the rows.
    """
    counts = vault.rows.count_by_key().items()
    return sum(count for other, count in counts if other not in (None, key_id))


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
        vault.keys.destroy(key_id, lambda key_id: _require_unneeded(vault, key_id))

    vault.database.operators_turn(end)


def require_unused(vault: Vault, key_id: str) -> KeyRecord:
    """
    The row of a key that may be destroyed, or that is destroyed.

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
            hint="'vault rotate' puts them under the active key; 'vault doctor' names those that cannot be read",
        )
    # Where another program made the table anew without the column, rows name no key of ours.
    listed = {record.id for record in vault.keys.states.records()}
    nameless = (row for row in vault.rows.each() if row.key_id not in listed)
    if opens := sum(opener(vault.keys, row, [key_id]) is not None for row in nameless):
        raise KeyInUse(
            f"{opens} value(s) open under key {key_id}, and do not name it; it was not destroyed",
            key_id=key_id,
            hint="'vault doctor --deep' names them, and what puts the key's id back",
        )


def rehearse(vault: Vault) -> Report:
    """What `rotate` would do. Read-only: every value is opened under its key, and nothing is written or made."""
    states = vault.keys.states
    report = Report(old_key=states.active_id(), resumed=states.unfinished_rotation())
    vault.keys.cipher(states.active_id())
    if report.resumed:
        report.new_key = states.active_id()
        report.old_key = states.predecessor(report.new_key)
    keys: _Keys = {report.new_key: None}
    for batch in vault.rows.pages(BATCH):
        report.rotated += len(_seal(vault, batch, report.new_key, report, keys))
    return report


def _pass(vault: Vault, new_key: str, report: Report, progress: Progress | None) -> bool:
    """Meet every row once; whether some changed meanwhile, so that another pass is needed."""
    total = vault.rows.count()
    seen = changed = 0
    keys: _Keys = {new_key: None}
    (
        rotated_before,
        report.already_current,
        report.foreign,
        report.unreadable,
        report.unreadable_rows,
    ) = report.rotated, 0, 0, 0, ()
    for batch in vault.rows.pages(BATCH):
        swaps = _seal(vault, batch, new_key, report, keys)
        replaced = _replace(vault, swaps)
        report.rotated += replaced
        changed += len(swaps) - replaced
        seen += len(batch)
        if progress:
            progress(seen, max(total, seen))
    # Less what an earlier pass of this run has put there; somebody may have removed some of that since.
    report.already_current = max(0, report.already_current - rotated_before)
    report.changed_meanwhile += changed
    return changed > 0


def _seal(
    vault: Vault, batch: list[tuple[Any, ...]], new_key: str | None, report: Report, keys: _Keys
) -> list[Swap]:
    """
    New tokens for the rows that need one, each proved to open with the new key alone; the rest is counted.

    A row that opens under its key needs no closer look (7 % of the cryptography, measured).
    """
    swaps: list[Swap] = []
    new = vault.keys.cipher(new_key) if new_key else None
    for row in batch:
        place, token, key_id = row[1:4], row[4], row[5]
        if key_id not in keys:
            keys[key_id] = (
                vault.keys.unavailable(key_id) or vault.keys.cipher(key_id)
                if isinstance(key_id, str)
                else None
            )
        old, renewed = keys[key_id], None
        if isinstance(old, Cipher):
            renewed = resealed(new, place, token, old) if new else _rehearsed(place, token, old)
        if renewed is None:
            _leave(vault, Row._make(row[:-1]), new_key, report, old)
        else:
            swaps.append((renewed, new_key or "", row[-1], token, key_id))
    return swaps


def _rehearsed(place: Names, token: str, key: Cipher) -> str | None:
    """Something where the token opens, None where it does not."""
    return None if opened(key, place, token)[1] is None else token


def _leave(
    vault: Vault, row: Row, new_key: str | None, report: Report, key: Cipher | KeyUnavailable | None
) -> None:
    """Count a row that stays as it is, and name it where it should not."""
    if row.sealing_key is None:
        report.foreign += 1
    elif row.sealing_key == new_key:
        report.already_current += 1
    else:
        problem = key if isinstance(key, KeyUnavailable) else None
        found = fault(vault.keys, row, lambda _: problem)
        report.unreadable += 1
        if len(report.unreadable_rows) < NAMED_AT_MOST:
            report.unreadable_rows += (
                Unreadable(row.id, str(found or f"{row.place}, row {brief(row.id)}: {NOT_PROVED}")),
            )


def _replace(vault: Vault, swaps: list[Swap]) -> int:
    """Compare and swap, in one short transaction; how many rows still were what was sealed."""
    return vault.database.write(lambda: vault.rows.swap(swaps)) if swaps else 0
