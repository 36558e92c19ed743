"""
Everything under a new key, while adapters read and write.

Whatever happens, every row opens at every instant: the new key is in the key store, read back and
proved, before it becomes active; the old key stays there, retired; a row's value and the id of its key
change together or not at all. Sealing is done outside the write lock (inside, it starved other
writers: 1.5 to 2.3 s instead of 9 ms, measured), so a row is changed only if it still is what was
sealed anew; what changed meanwhile is met again in the next pass.

A run that was interrupted is finished by the next one, which then makes no key of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from .cipher import sealed_at
from .errors import KeyUnavailable, UnreadableValue
from .files import operator_lock
from .keyset import COLUMNS, StoredValue
from .vault import Vault

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
        log_truncated: no old token is left in the write-ahead log.
    """

    old_key: str | None = None
    new_key: str | None = None
    rotated: int = 0
    already_current: int = 0
    changed_meanwhile: int = 0
    foreign: int = 0
    unreadable: int = 0
    named: tuple[Unreadable, ...] = ()
    resumed: bool = False
    log_truncated: bool = True

    @property
    def complete(self) -> bool:
        """Nothing of this vault is left under an older key, in the database or its log."""
        return not self.unreadable and self.log_truncated


_Lost = dict[str, KeyUnavailable | None]  # why a key cannot be had; asked once for a pass, since a keyring may need seconds


class _Row(NamedTuple):
    rowid: int  # not the id: another tool may have left that empty
    stored: StoredValue


def rotate(vault: Vault, *, progress: Progress | None = None) -> Report:
    """
    Put every value under a new key; online, and safe to kill and to run again.

    Args:
        progress: called with (rows seen, rows in all) after each batch of a pass.
    Raises:
        OperationRunning: another process changes this vault's keys or schema.
        KeyUnavailable: the active key cannot be had, or the new one not be stored; no value was changed.
        StorageError: the database cannot be written; run it again when the cause is mended.
    """
    with operator_lock(vault.database.path):
        report = Report()
        report.resumed = vault.keys.settle() is not None or vault.keys.unfinished_rotation()
        if not report.resumed:
            vault.keys.cipher(vault.keys.active_id())  # never a new key because the old one could not be read
            vault.keys.promote(vault.keys.create())
        report.new_key = vault.keys.active_id()
        vault.keys.cipher(report.new_key)
        report.old_key = _last_retired(vault)
        while _pass(vault, report.new_key, report, progress):
            pass
        report.log_truncated = vault.database.truncate_log()
        if report.log_truncated:
            vault.keys.end_rotation()
        return report


def rehearse(vault: Vault) -> Report:
    """What `rotate` would do. Read-only: every value is opened under its key, and nothing is written or made."""
    report = Report(old_key=vault.keys.active_id(), resumed=vault.keys.unfinished_rotation())
    vault.keys.cipher(vault.keys.active_id())
    if report.resumed:
        report.old_key, report.new_key = _last_retired(vault), vault.keys.active_id()
    lost: _Lost = {}
    for batch in _batches(vault):
        report.rotated += len(_seal(vault, batch, report.new_key, report, lost))
    return report


def _pass(vault: Vault, new_key: str, report: Report, progress: Progress | None) -> bool:
    """Meet every row once; whether some changed meanwhile, so that another pass is needed."""
    total = vault.database.fetch("SELECT count(*) FROM provider_credentials")[0][0]
    seen = changed = 0
    lost: _Lost = {}
    rotated_before, report.already_current, report.foreign, report.unreadable, report.named = report.rotated, 0, 0, 0, ()
    for batch in _batches(vault):
        sealed = _seal(vault, batch, new_key, report, lost)
        replaced = _replace(vault, sealed, new_key)
        report.rotated += replaced
        changed += len(sealed) - replaced
        seen += len(batch)
        if progress:
            progress(seen, max(total, seen))
    # Less what an earlier pass of this run has put there; somebody may have removed some of that since.
    report.already_current = max(0, report.already_current - rotated_before)
    report.changed_meanwhile += changed
    return changed > 0


def _batches(vault: Vault) -> Iterator[list[_Row]]:
    """All rows, in the order of the table (half the cost of random order for the updates, measured)."""
    after = -(1 << 63)  # another tool may have chosen any rowid
    while rows := vault.database.fetch(
        f"SELECT rowid, {COLUMNS} FROM provider_credentials WHERE rowid > ? ORDER BY rowid LIMIT {BATCH}", (after,)
    ):
        after = rows[-1][0]
        yield [_Row(row[0], StoredValue._make(row[1:])) for row in rows]


def _seal(vault: Vault, batch: list[_Row], new_key: str | None, report: Report, lost: _Lost) -> list[tuple[_Row, str]]:
    """New tokens for the rows that need one, each proved to open with the new key alone; the rest is counted."""
    sealed = []
    for row in batch:
        stored = row.stored
        if stored.is_foreign:
            report.foreign += 1
            continue
        assert stored.key_id is not None
        if stored.key_id == new_key:
            report.already_current += 1
            continue
        if stored.key_id not in lost:
            lost[stored.key_id] = vault.keys.unavailable(stored.key_id)
        if problem := lost[stored.key_id]:
            _name_unreadable(report, stored, f"{stored.place}, row {stored.id}: {problem}")
            continue
        try:
            value = vault.keys.open(stored)
            token = vault.keys.cipher(new_key).seal(stored.place, value, at=sealed_at(stored.encrypted_value)) if new_key else ""
            sealed.append((row, token))
        except UnreadableValue as error:
            _name_unreadable(report, stored, str(error))
    return sealed


def _name_unreadable(report: Report, stored: StoredValue, reason: str) -> None:
    report.unreadable += 1
    if len(report.named) < NAMED_AT_MOST:
        report.named += (Unreadable(stored.id, reason),)


def _replace(vault: Vault, sealed: list[tuple[_Row, str]], new_key: str) -> int:
    """Compare and swap, in one short transaction; how many rows still were what was sealed."""
    if not sealed:
        return 0
    with vault.database.writing():
        return sum(
            vault.database.change(
                "UPDATE provider_credentials SET encrypted_value = ?, key_id = ? WHERE rowid = ? AND encrypted_value = ? AND key_id = ?",
                (token, new_key, row.rowid, row.stored.encrypted_value, row.stored.key_id),
            )
            for row, token in sealed
        )


def _last_retired(vault: Vault) -> str | None:
    retired = [record for record in vault.keys.records() if record.state == "retired"]
    return max(retired, key=lambda record: record.retired_at or "").id if retired else None
