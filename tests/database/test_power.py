"""
A power cut: what was acknowledged is there, and what came later is there whole or not at all.

The log is synced at each commit, so a cut can lose or tear only what was written to it after the
last acknowledgement. A kill does not show this, since the system still writes what a killed process
left. Here the log is cut at a byte by hand, and its lost end is left away or replaced by junk (a
torn write).
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.rotation_peers import Values, fill
from helpers.site import Figures, Site, bytes_of

from outreach_vault import CredentialNotFound, KeyDirectory, Vault
from outreach_vault.database.sqlite import database
from outreach_vault.keys.keyset import KeySet
from outreach_vault.operations import rotation
from outreach_vault.operations.init import init

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="reads files that are open, by cat"),
    pytest.mark.sqlite("its file and its log, as a cut of the power leaves them"),
]
LOG_HEADER, FRAME_HEADER = 32, 24


class Pictures(NamedTuple):
    """The two files of a database at one moment: what a cut leaves of them is made from these."""

    database: bytes
    log: bytes
    keys: Path

    def after_a_cut(self, folder: Path, at: int, chance: random.Random) -> Site:
        """
        The files with the log cut at byte *at*, in a new folder; half of the time with junk for the
        lost end.
        """
        folder.mkdir()
        junk = chance.randbytes(len(self.log) - at) if chance.random() < 0.5 else b""
        (folder / "app.db").write_bytes(self.database)
        (folder / "app.db-wal").write_bytes(self.log[:at] + junk)
        return Site(folder / "app.db", self.keys)


def log_of(site: Site) -> Path:
    return site.database.with_name(site.database.name + "-wal")


@contextlib.contextmanager
def held_open(site: Site) -> Iterator[None]:
    """
    A reader's old snapshot, as a program in the middle of a long read has: nothing of the log can
    be moved and overwritten.
    """
    with contextlib.closing(sqlite3.connect(site.database, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM provider_credentials").fetchone()
        yield


def log_end(log: bytes) -> int:
    """Where the valid frames end: SQLite may leave old ones behind them."""
    page, salt, at = struct.unpack(">I", log[8:12])[0], log[16:24], LOG_HEADER
    while log[at + 8 : at + 16] == salt:
        at += FRAME_HEADER + page
    return at


def values_of(site: Site) -> Values:
    """Everything that is stored, opened by a vault that was opened just now."""
    with site.open() as vault:
        assert vault.database.fetch("PRAGMA integrity_check") == [("ok",)]
        return {
            (entry.project_id, entry.provider, entry.credential_type): vault.get(
                entry.provider, entry.credential_type, entry.project_id, fallback=False
            ).reveal()
            for entry in vault.list()
        }


def change_at_random(vault: Vault, values: Values, chance: random.Random, number: int) -> None:
    """
    One write of any kind, kept in *values* too: a new value, a replaced one, or a deleted one.
    """
    if values and chance.random() < 0.2:
        project_id, provider, kind = chance.choice(sorted(values, key=str))
        assert vault.delete(provider, kind, project_id)
        del values[project_id, provider, kind]
        return
    project_id, kind = chance.choice([None, "default-project"]), f"field-{chance.randrange(8)}"
    value = f"value {number} " + "x" * chance.choice([0, 40, 700, 5_000, 20_000])
    vault.set("smtp", kind, value, project_id)
    values[project_id, "smtp", kind] = value


@pytest.mark.thorough
def test_a_power_cut_at_any_byte_after_an_acknowledgement_loses_nothing_acknowledged(
    site: Site, tmp_path: Path, figures: Figures
) -> None:
    chance, cuts, writes = random.Random(11), 200, 30
    values: Values = {}
    with site.open() as vault:
        vault.set("smtp", "field-0", "of before")
        vault.database.truncate_log()
        with held_open(site):
            values[None, "smtp", "field-0"] = "of before"
            states, acknowledged = [dict(values)], [0]
            for number in range(writes):
                change_at_random(vault, values, chance, number)
                acknowledged.append(log_end(bytes_of(log_of(site))))
                states.append(dict(values))
            assert vault.database.fetch("PRAGMA synchronous") == [(2,)]
            assert vault.database.fetch("PRAGMA journal_mode") == [("wal",)]
            pictures = Pictures(bytes_of(site.database), bytes_of(log_of(site)), site.keys)
    assert acknowledged == sorted(set(acknowledged)) and len(pictures.log) == acknowledged[-1]
    met = set()
    for number in range(cuts):
        last = chance.randrange(writes + 1)  # the last that was acknowledged when the power went
        at = chance.choice(
            [acknowledged[last], chance.randrange(acknowledged[last], len(pictures.log) + 1)]
        )
        found = values_of(pictures.after_a_cut(tmp_path / f"cut-{number}", at, chance))
        # All before the cut, and nothing of the next.
        whole = max(index for index, end in enumerate(acknowledged) if end <= at)
        assert found == states[whole], (
            f"cut at {at}: write {whole} was acknowledged at {acknowledged[whole]}"
        )
        met.add(whole)
    assert len(met) > writes // 2
    figures("power cuts between writes, everything acknowledged there after each", cuts)


def test_a_value_whose_write_was_cut_before_its_commit_is_the_old_one_and_can_be_stored_again(
    site: Site, tmp_path: Path
) -> None:
    with site.open() as vault:
        vault.set("smtp", "password", "old")
        with held_open(site):
            before = log_end(bytes_of(log_of(site)))
            vault.set("smtp", "password", "new" * 5_000)
            vault.set("smtp", "user", "added")
            pictures = Pictures(bytes_of(site.database), bytes_of(log_of(site)), site.keys)
    cut = pictures.after_a_cut(
        tmp_path / "cut", before + FRAME_HEADER + 4096 + 100, random.Random(12)
    )
    with cut.open() as vault:
        assert vault.get("smtp", "password").reveal() == "old"
        with pytest.raises(CredentialNotFound):
            vault.get("smtp", "user")
        vault.set("smtp", "password", "new")
    with cut.open() as vault:
        assert vault.get("smtp", "password").reveal() == "new"


@pytest.mark.thorough
def test_a_power_cut_in_a_rotation_leaves_every_value_open_and_the_next_finishes_it(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 4)
    chance, cuts, promoted = random.Random(13), 80, list[int]()
    with site.open() as vault:
        values, old = fill(vault, 40, size=400), site.active()
        assert vault.database.truncate_log()
        promote = vault.keys.promote

        def noted(key_id: str) -> None:
            promote(key_id)
            promoted.append(log_end(bytes_of(log_of(site))))

        monkeypatch.setattr(vault.keys, "promote", noted)
        with held_open(site):
            # The reader never ends here.
            monkeypatch.setattr(database, "_CHECKPOINT_PAUSES", (0.0,))
            report = rotation.rotate(vault)
            assert report.rotated == 40 and not report.log_truncated
            pictures = Pictures(bytes_of(site.database), bytes_of(log_of(site)), site.keys)
    left, end = [], len(pictures.log)
    for number in range(cuts):
        at = (
            chance.randrange(LOG_HEADER, promoted[0])
            if number < 8
            else chance.randrange(promoted[0], end + 1)
        )
        cut = pictures.after_a_cut(tmp_path / f"cut-{number}", at, chance)
        cut.require_intact(values)
        if at >= promoted[0]:
            assert cut.states() == {
                old: "retired",
                report.new_key: "active",
            }  # acknowledged, so not taken back
        else:
            assert cut.states() in ({old: "active"}, {old: "active", report.new_key: "pending"})
        left.append(sum(row["key_id"] == old for row in cut.rows().values()))
        if number % 8 == 0:
            with cut.open() as vault:
                assert rotation.rotate(vault, although_copied=True).complete
            cut.require_intact(values)
            cut.require_one_key()
    assert len(set(left)) > 5 and max(left) == 40 and min(left) < 10  # early cuts and late ones
    figures("power cuts inside a rotation, all values open after each", cuts)


def test_a_new_key_and_its_name_are_on_the_disk_before_it_becomes_active(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Of a key file whose sync is still to come, a power cut would leave nothing, and of its values
    nothing could be opened.
    """
    synced, fsync, proved = dict[int, set[str]](), os.fsync, []

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        names = {file.name for file in site.keys.iterdir()}
        synced[os.fstat(descriptor).st_ino] = (
            names  # of the folder: the names that are on the disk with it
        )

    with site.open() as vault:
        promote = vault.keys.promote

        def looked_at(key_id: str) -> None:
            (file,) = site.keys.glob(f"*.{key_id}.key")
            proved.append(
                file.stat().st_ino in synced
                and file.name in synced.get(site.keys.stat().st_ino, ())
            )
            promote(key_id)

        monkeypatch.setattr(os, "fsync", noted)
        monkeypatch.setattr(vault.keys, "promote", looked_at)
        rotation.rotate(vault)
    assert proved == [True]


def test_the_folder_of_the_first_key_is_on_the_disk_before_the_key_becomes_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, on_disk, proved = os.fsync, set[str](), list[bool]()

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            on_disk.update(file.name for file in tmp_path.iterdir())

    promote = KeySet.promote
    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(
        KeySet,
        "promote",
        lambda keys, key_id: (proved.append("keys" in on_disk), promote(keys, key_id)),
    )
    init(tmp_path / "app.db", key_store=KeyDirectory(tmp_path / "keys"))
    assert proved == [True]
