"""
Rotation: every row opens at every instant, nothing is lost, nothing is left behind. R1 to R11.

Children are stopped at every numbered step and killed at random moments; what they left is then
opened by a process that knows nothing of them. `rotate` below checks that the counts of every
report add up.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet, InvalidToken
from helpers import V4, rotation_peers
from helpers.commands import process, run
from helpers.effort import effort
from helpers.faults import each_stop, forked, stopped_at
from helpers.rotation_peers import fill, place
from helpers.site import (
    Connection,
    Engine,
    Figures,
    Site,
    another,
    bytes_of,
    dump,
    new_site,
    sql,
    standing_still,
    tables_of,
    writing,
)

from outreach_vault import (
    DamagedValue,
    DatabaseBusy,
    ForeignValue,
    KeyDirectory,
    KeyMissing,
    KeyringLocked,
    KeyStoreUnavailable,
    KeyUnavailable,
    OperationRunning,
    Secret,
    Vault,
    WrongKey,
)
from outreach_vault.cipher import generate_key, sealed_at
from outreach_vault.database import open_database
from outreach_vault.database.postgres import connections as of_postgres
from outreach_vault.database.postgres.database import PostgresDatabase
from outreach_vault.database.sqlite import connections as of_sqlite
from outreach_vault.database.sqlite.connections import IN_MEMORY
from outreach_vault.database.sqlite.database import SQLiteDatabase
from outreach_vault.keys.stores import KeyStore
from outreach_vault.operations import recovery, rotation
from outreach_vault.operations.init import init
from outreach_vault.operations.rotation import Report
from outreach_vault.schema import migrator
from outreach_vault.values.sealing import seal

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="stops forked children, and kills"),
    pytest.mark.sweep(2),
]


def rotate(vault: Vault, **options: Any) -> Report:
    """
    `rotation.rotate`, whose counts add up to the rows that there are, when nobody else changes any.
    """
    report = rotation.rotate(vault, **options)
    assert_adds_up(vault, report)
    return report


def assert_adds_up(vault: Vault, report: Report) -> None:
    total = vault.database.fetch("SELECT count(*) FROM provider_credentials")[0][0]
    assert report.rotated + report.already_current + report.foreign + report.unreadable == total
    assert (
        min(
            report.rotated,
            report.already_current,
            report.foreign,
            report.unreadable,
            report.changed_meanwhile,
        )
        >= 0
    )


def rotate_once(site: Site, store: KeyStore | None = None) -> Report:
    with site.open(store) as vault:
        return rotate(vault)


# R1: stopped and killed


def test_the_stops_of_a_write_meet_every_state_that_its_files_have_on_the_way(site: Site) -> None:
    """
    Without the numbering of file changes there would be two of the four, and the tests below would
    show less than they say.
    """
    (there,) = [file.name for file in site.keys.iterdir()]
    seen = set()
    for step in itertools.count(1):
        copy = site.copy(site.folder.with_name(f"write-{step}"))
        going = stopped_at(
            step, lambda store: store.write("vault", "key", Secret("a key")), copy.keys
        )
        seen.add(frozenset(file.suffix for file in copy.keys.iterdir() if file.name != there))
        if not going:
            break
    assert seen == {
        frozenset(),
        frozenset({".part"}),
        frozenset({".part", ".key"}),
        frozenset({".key"}),
    }


def test_the_stops_of_a_database_come_before_each_row_that_is_changed_and_on_both_sides_of_a_commit(
    site: Site,
) -> None:
    """
    Of each change and of nothing else: neither what is read, nor a connection's own settings, nor a
    database in memory.
    """

    def change(database: Any) -> None:
        scratch = SQLiteDatabase(IN_MEMORY, str(IN_MEMORY))
        scratch.change("CREATE TABLE t (n)")
        scratch.change_each("INSERT INTO t VALUES (?)", [(1,), (2,)])
        opened = open_database(database)
        opened.change_each("INSERT INTO app_meta VALUES (?, 'by itself')", [("1",), ("2",), ("3",)])
        assert opened.fetch("SELECT count(*) FROM app_meta") and not opened.broken_references()

        def in_one() -> None:
            opened.change("INSERT INTO app_meta VALUES ('4', 'in one')")
            opened.change_each("INSERT INTO app_meta VALUES (?, 'in one')", [("5",), ("6",)])

        opened.write(in_one)

    seen = []
    for step in itertools.count(1):
        copy = site.copy(site.folder.with_name(f"change-{step}"))
        going = stopped_at(step, lambda store: change(copy.database), copy.keys)  # noqa: B023
        ((count,),) = sql(
            copy.database, "SELECT count(*) FROM app_meta WHERE value IN ('by itself', 'in one')"
        )
        seen.append(count)
        if not going:
            break
    # The three, which psycopg sends as one; then BEGIN, three more, COMMIT; what came after it; and
    # the end
    assert seen == [0, *([0, 0] if site.engine else [1, 2]), *[3] * 5, 6, 6]


def test_rotate_stopped_at_each_step_leaves_every_value_open_and_is_finished_by_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 2)
    with site.open() as vault:
        values = fill(vault, 5)
    first, resumed, nothing_left = site.active(), 0, 0
    for stopped in each_stop(
        site,
        rotate_once,
        figures,
        "stops of a rotation at a numbered step, all values open after each",
        every=3,
    ):
        stopped.require_intact(values)
        before, made = (
            stopped.rows(),
            {file.name.split(".")[1] for file in stopped.keys.glob("*.key")},
        )
        begun = made - {first}
        finished_before = (
            not _unfinished(stopped) and {row["key_id"] for row in before.values()} == begun
        )
        report = rotate_once(stopped)
        assert report.complete
        stopped.require_intact(values)
        stopped.require_one_key()
        assert stopped.active() == report.new_key
        if begun and not finished_before:
            # No key of its own.
            assert report.resumed and {report.new_key} == begun and report.old_key == first
            resumed += 1
            current = {row_id: row for row_id, row in before.items() if row["key_id"] in begun}
            assert current.items() <= stopped.rows().items()  # what is done is not done again
            assert report.already_current == len(current)
            nothing_left += report.rotated == 0
        else:
            assert not report.resumed and report.new_key not in made
    assert resumed > effort(8, 2) and nothing_left > effort(2, 0)


def _unfinished(site: Site) -> bool:
    with site.open() as vault:
        return vault.keys.states.unfinished_rotation()


def test_set_stopped_at_each_step_leaves_the_old_value_or_the_new(
    site: Site, figures: Figures
) -> None:
    with site.open() as vault:
        vault.set("smtp", "password", "the old value")
        vault.set("smtp", "user", "another")

    def change(site: Site, store: KeyStore) -> None:
        with site.open(store) as vault:
            vault.set("smtp", "password", "the new value")
            vault.set("smtp", "host", "an added value")

    found = Counter[tuple[str, bool]]()
    for stopped in each_stop(
        site,
        change,
        figures,
        "stops of a write at a numbered step, the old value or the new after each",
    ):
        with stopped.open() as vault:
            found[vault.get("smtp", "password").reveal(), vault.has("smtp", "host")] += 1
            assert vault.get("smtp", "user").reveal() == "another"
    assert set(found) == {
        ("the old value", False),
        ("the new value", False),
        ("the new value", True),
    }


def test_an_account_whose_storing_is_stopped_at_each_step_is_the_old_one_or_the_new(
    site: Site, figures: Figures
) -> None:
    """Half of a new account beside half of the old one sends the new password to the old server."""
    names, found = ("host", "user", "password"), Counter[str]()
    with site.open() as vault:
        vault.set_fields("smtp", dict.fromkeys(names, "old"))

    def change(site: Site, store: KeyStore) -> None:
        with site.open(store) as vault:
            vault.set_fields("smtp", {**dict.fromkeys(names, "new"), "from_email": "new"})

    for stopped in each_stop(
        site,
        change,
        figures,
        "stops of the storing of an account at a numbered step, the old one or the new after each",
    ):
        with stopped.open() as vault:
            (value,) = {vault.get("smtp", name).reveal() for name in names}
            assert vault.has("smtp", "from_email") is (value == "new")
        found[value] += 1
    assert found["old"] > 4 and found["new"] > 0


@pytest.mark.sqlite("the desktop app's file")
def test_init_of_an_older_file_stopped_at_each_step_is_finished_by_the_next(
    tmp_path: Path, figures: Figures
) -> None:
    (tmp_path / "v4").mkdir()
    template = Site(tmp_path / "v4" / "app.db", tmp_path / "v4" / "keys")
    shutil.copyfile(V4, template.database)
    before = dump(template.database)
    name = "stops of an init at a numbered step, all rows of the app as they were after each"
    for stopped in each_stop(
        template, lambda site, store: init(site.database, key_store=store), figures, name, every=9
    ):
        init(stopped.database, key_store=KeyDirectory(stopped.keys))
        after = dump(stopped.database)
        assert all(after[table] == rows for table, rows in before.items())
        assert (
            Counter(stopped.states().values())["active"] == 1
            and "pending" not in stopped.states().values()
        )
        with stopped.open() as vault:
            vault.set("smtp", "password", "a value")
            assert vault.get("smtp", "password", "default-project").reveal() == "a value"
            assert migrator.plan(vault.database) == []


@pytest.mark.thorough
def test_rotate_killed_at_random_moments_beside_a_writer_loses_nothing(
    site: Site, tmp_path: Path, figures: Figures
) -> None:
    kills, places = effort(50, 8), effort(2000, 800)
    with site.open() as vault:
        values = fill(vault, places)
        begun = time.monotonic()
        rotate(vault)
        whole = time.monotonic() - begun

    def rotations() -> None:
        with site.open() as vault:
            while True:  # so that a kill finds a rotation at work, however late it comes
                rotation.rotate(vault)

    log, chance, inside = tmp_path / "log", random.Random(8), 0
    with writing(site, log, places) as writer:
        for _ in range(kills):
            child = forked(rotations)
            time.sleep(chance.uniform(0, whole))
            os.kill(child, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
            with standing_still(writer):
                inside += "pending" in site.states().values() or _unfinished(site)
                site.require_intact(rotation_peers.replay(values, _numbers(log), places))
    assert rotate_once(site).complete
    site.require_intact(rotation_peers.replay(values, _numbers(log), places))
    site.require_one_key()
    assert inside > effort(kills // 4, 0) and len(_numbers(log)) > kills
    figures("kills of a rotation (SIGKILL at random), all values open after each", kills)
    figures("kills of a rotation (SIGKILL at random), of these inside one", inside)
    figures("writes acknowledged beside rotations, none lost", len(_numbers(log)))


def _numbers(log: Path) -> list[int]:
    """The acknowledged changes; a line that the writer is in the middle of is not one yet."""
    numbers = (
        [int(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if log.exists()
        else []
    )
    assert numbers == list(range(1, len(numbers) + 1))
    return numbers


# R2, R3: other writers


def test_rotate_beside_another_process_keeps_its_last_write_and_leaves_nothing_behind(
    site: Site, tmp_path: Path, figures: Figures
) -> None:
    places, log = 600, tmp_path / "log"
    with site.open() as vault:
        values = fill(vault, places)
        with writing(site, log, places):
            changed = 0
            while len(_numbers(log)) < effort(300, 100):
                changed += rotation.rotate(vault).changed_meanwhile
        site.require_one_key()  # before another rotation could put that right
    site.require_intact(rotation_peers.replay(values, _numbers(log), places))
    figures("writes acknowledged beside rotations, none lost", len(_numbers(log)))
    figures("rotations beside a writer, no value left behind", len(site.states()) - 1)
    figures("values changed between seal and swap, none overwritten", changed)


Meddling = Callable[[Vault, Site, int], object]


def _sets(vault: Vault, site: Site, number: int) -> None:
    vault.set("smtp", f"field-{number}", "theirs", place(number).project_id)


def _deletes(vault: Vault, site: Site, number: int) -> None:
    assert vault.delete("smtp", f"field-{number}", place(number).project_id)


def _makes_anew(vault: Vault, site: Site, number: int) -> None:
    _deletes(vault, site, number)
    _sets(vault, site, number)


def _app_overwrites(vault: Vault, site: Site, number: int) -> None:
    site.change(
        "UPDATE provider_credentials SET encrypted_value = 'djExQUFBQQ==' WHERE credential_type = "
        "?",
        f"field-{number}",
    )


@pytest.mark.parametrize(
    ("meddle", "left", "report"),
    [
        (_sets, "theirs", Report(rotated=6, already_current=1, changed_meanwhile=1)),
        (_deletes, None, Report(rotated=6, changed_meanwhile=1)),
        (_makes_anew, "theirs", Report(rotated=6, already_current=1, changed_meanwhile=1)),
        (_app_overwrites, ForeignValue, Report(rotated=6, foreign=1, changed_meanwhile=1)),
    ],
)
def test_rotate_keeps_what_another_stored_between_seal_and_swap(
    site: Site, monkeypatch: pytest.MonkeyPatch, meddle: Meddling, left: Any, report: Report
) -> None:
    with site.open() as vault, site.open() as other:
        values = fill(vault, 7)
        monkeypatch.setattr(rotation, "BATCH", 3)
        order = "id" if site.engine else "rowid"
        fields = sql(
            site.database, f"SELECT credential_type FROM provider_credentials ORDER BY {order}"
        )
        field = fields[4][0]  # in the second batch
        number = int(field.removeprefix("field-"))
        _before_a_swap(monkeypatch, 2, lambda: meddle(other, site, number))
        found = rotate(vault)
        counts = ("rotated", "already_current", "changed_meanwhile", "foreign", "unreadable")
        assert [getattr(found, name) for name in counts] == [
            getattr(report, name) for name in counts
        ]
        where = place(number)
        if left is ForeignValue:
            with pytest.raises(ForeignValue):
                vault.get(where.provider, where.credential_type, where.project_id)
            assert [
                row["encrypted_value"]
                for row in site.rows().values()
                if row["credential_type"] == field
            ] == ["djExQUFBQQ=="]
            return
        del values[where]
    site.require_intact(values | ({where: left} if left else {}))
    site.require_one_key()


def _before_a_swap(
    monkeypatch: pytest.MonkeyPatch, number: int, meddle: Callable[[], object]
) -> None:
    """The moment between sealing a batch and writing it can be met in no other way."""
    replace, swaps = rotation._replace, itertools.count(1)

    def meddled(*args: Any) -> int:
        if next(swaps) == number:
            meddle()
        return replace(*args)

    monkeypatch.setattr(rotation, "_replace", meddled)


def test_rotate_passes_over_a_value_that_was_inserted_meanwhile(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.open() as vault, site.open() as other:
        values = fill(vault, 4)
        _before_a_swap(monkeypatch, 1, lambda: other.set("twilio", "auth_token", "inserted"))
        report = rotation.rotate(vault)
        assert (report.rotated, report.changed_meanwhile) == (4, 0)
        # In a pass by keys its row may be where the pass has been.
        assert report.already_current == 1 or (site.engine and report.already_current == 0)
    site.require_intact(values | {(None, "twilio", "auth_token"): "inserted"})
    site.require_one_key()


def test_rotate_counts_no_less_than_nothing_when_what_it_rotated_is_deleted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 1)
    with site.open() as vault:
        fill(vault, 3)
        _before_a_swap(monkeypatch, 3, lambda: site.change("DELETE FROM provider_credentials"))
        report = rotation.rotate(vault)
    assert (report.rotated, report.already_current, report.changed_meanwhile) == (2, 0, 1)


def test_rotate_leaves_and_names_a_row_whose_new_token_does_not_give_back_what_was_sealed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    encrypt = Fernet.encrypt_at_time

    def garbled(fernet: Fernet, data: bytes, current_time: int) -> bytes:
        return encrypt(fernet, data.replace(b"value 1 ", b"value 2 "), current_time)

    with site.open() as vault:
        values = fill(vault, 3)
        monkeypatch.setattr(Fernet, "encrypt_at_time", garbled)
        report = rotate(vault)
        assert (report.rotated, report.unreadable, report.complete) == (2, 1, False)
        assert (
            "does not give back what was sealed" in report.unreadable_rows[0].reason
            and "field-1" in report.unreadable_rows[0].reason
        )
        assert {place: vault.get(*place[1:], place[0]).reveal() for place in values} == values


def test_rotate_asks_once_for_a_key_that_cannot_be_had(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.open() as vault:
        fill(vault, 20)
        old = site.active()
    rows = site.rows()
    with site.open() as vault:
        rotate(vault)
    for row_id, row in rows.items():  # as an older copy of the rows would be
        site.change(
            "UPDATE provider_credentials SET encrypted_value = ?, key_id = ? WHERE id = ?",
            row["encrypted_value"],
            row["key_id"],
            row_id,
        )
    (file,) = site.keys.glob(f"*.{old}.key")
    file.unlink()
    asked: Counter[str] = Counter()

    class Counting(KeyDirectory):
        def read(self, vault_id: str, key_id: str) -> Secret:
            asked[key_id] += 1
            return super().read(vault_id, key_id)

    with site.open(Counting(site.keys)) as vault:
        report = rotate(vault)
    assert (report.unreadable, len(report.unreadable_rows), asked[old]) == (20, 20, 1)
    assert all(row.id in row.reason and old in row.reason for row in report.unreadable_rows)


@pytest.mark.sqlite("rowid")
def test_rotate_meets_rows_whatever_their_rowid(site: Site) -> None:
    with site.open() as vault:
        values = fill(vault, 3)
        for number, rowid in enumerate((0, -7), start=1):
            site.change("UPDATE provider_credentials SET rowid = ? WHERE rowid = ?", rowid, number)
        assert rotate(vault).rotated == 3
    site.require_intact(values)
    site.require_one_key()


def test_rotate_leaves_nothing_to_a_writer_that_held_the_old_key_all_along(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 5)
    with site.open() as vault, site.open() as writer:
        values = fill(vault, 40)
        writer.set("smtp", "password", "with the old key")
        numbers = itertools.count()

        def progress(seen: int, total: int) -> None:
            number = next(numbers)
            values[None, "smtp", "password"] = f"written {number}"
            writer.set("smtp", "password", f"written {number}")
            if number < 8:  # every time would make a row more for a batch more, for ever
                values[None, "twilio", f"field-{number}"] = "added"
                writer.set("twilio", f"field-{number}", "added")

        assert rotation.rotate(vault, progress=progress).complete
    site.require_one_key()
    site.require_intact(values)


def test_set_begun_before_a_rotation_stores_under_the_key_that_is_active_when_it_writes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.open() as vault, site.open() as writer:
        vault.set("smtp", "password", "old")
        write, rotations = writer.database.write, list[Report]()

        def late(operation: Callable[[], Any], **options: Any) -> Any:
            if not rotations:
                rotations.append(rotate(vault))
            return write(operation, **options)

        monkeypatch.setattr(writer.database, "write", late)
        writer.set("smtp", "password", "new")
        assert rotations[0].complete
    site.require_one_key()
    site.require_intact({(None, "smtp", "password"): "new"})


@pytest.mark.thorough
def test_get_in_other_threads_is_right_throughout(site: Site) -> None:
    with site.open() as vault:
        values = fill(vault, 600)
        ended, faults, reads = threading.Event(), list[str](), Counter[int]()

        def read(number: int) -> None:
            chance = random.Random(number)
            try:
                while not ended.is_set():
                    where = place(chance.randrange(600))
                    if (
                        vault.get(where.provider, where.credential_type, where.project_id).reveal()
                        != values[where]
                    ):
                        faults.append(f"{where}: a wrong value")
                    reads[number] += 1
            except Exception as error:
                faults.append(repr(error))

        readers = [threading.Thread(target=read, args=(number,)) for number in range(3)]
        for reader in readers:
            reader.start()
        try:
            for _ in range(3):
                assert rotate(vault).rotated == 600
        finally:
            ended.set()
            for reader in readers:
                reader.join()
    assert not faults
    assert min(reads[number] for number in range(3)) > 10


# R4: two at once


def test_rotate_beside_another_says_so_and_follows_when_that_was_killed(site: Site) -> None:
    with site.open() as vault:
        values = fill(vault, 3)
    first = site.peer("hold")
    try:
        assert first.stdout and first.stdout.readline() == "rotating\n"
        states = site.states()
        with site.open() as vault, pytest.raises(OperationRunning):
            rotation.rotate(vault)
        refused = process(site, "rotate")
        assert refused.status == 15 and "another vault command" in refused.err
        assert site.states() == states
    finally:
        first.kill()
        first.communicate()
    done = process(site, "rotate")
    assert done.status == 0 and "finished a rotation that was interrupted" in done.err
    assert site.states().keys() == states.keys()
    site.require_intact(values)
    site.require_one_key()


# R5, R6, R7: what changes, and what does not


def test_rotate_seals_every_value_under_the_new_key_alone(site: Site) -> None:
    with site.open() as vault:
        fill(vault, 5)
    old = site.active()
    rotate_once(site)
    old_key, new_key = site.fernet(old), site.fernet(site.active())
    for row in site.rows().values():
        assert f'"credential_type":"{row["credential_type"]}"'.encode() in new_key.decrypt(
            row["encrypted_value"]
        )
        with pytest.raises(InvalidToken):
            old_key.decrypt(row["encrypted_value"])
    assert site.states()[old] == "retired"


def test_rotate_writes_no_token_that_does_not_open(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A faulty memory or library: the token of one value comes out wrong."""
    with site.open() as vault:
        values = fill(vault, 4)
        encrypt = Fernet.encrypt_at_time

        def faulty(fernet: Fernet, data: bytes, current_time: int) -> bytes:
            return encrypt(fernet, data.replace(b"value 2", b"value 3"), current_time)

        with monkeypatch.context() as patch:
            patch.setattr(Fernet, "encrypt_at_time", faulty)
            report = rotate(vault)
        assert (report.rotated, report.unreadable, report.complete) == (3, 1, False)
        site.require_intact(values)
        assert rotate(vault).complete
    site.require_intact(values)


def test_rotate_changes_only_the_token_and_its_key(site: Site) -> None:
    init(site.database, key_store=KeyDirectory(site.keys))  # it notes where this copy is
    with site.open() as vault:
        fill(vault, 5)
        where, key = place(2), vault.keys.cipher(vault.keys.states.active_id())
        site.change(
            "UPDATE provider_credentials SET encrypted_value = ?, updated_at = 'another tool''s "
            "time' WHERE credential_type = 'field-2'",
            seal(key, where, Secret("of earlier"), at=1_700_000_000),
        )
    before, rows = dump(site.database, ("encrypted_value", "key_id")), site.rows()
    rotate_once(site)
    after = dump(site.database, ("encrypted_value", "key_id"))
    assert before.pop("vault_keys") != after.pop("vault_keys")
    assert after == before
    for row_id, row in site.rows().items():
        assert sealed_at(row["encrypted_value"]) == sealed_at(rows[row_id]["encrypted_value"])
        assert row["encrypted_value"] != rows[row_id]["encrypted_value"]
    assert 1_700_000_000 in {sealed_at(row["encrypted_value"]) for row in site.rows().values()}


def stored_bytes(site: Site) -> object:
    """Of a database on a server its rows, with the transactions that made them."""
    if site.engine is None:
        return site.database.read_bytes()
    return {
        table: sql(site.database, f"SELECT ctid::text, xmin::text, * FROM {table} ORDER BY 1")
        for table in tables_of(site.database)
    }


def test_rehearse_changes_no_byte(site: Site) -> None:
    with site.open() as vault:
        fill(vault, 5)
        site.change(
            "UPDATE provider_credentials SET encrypted_value = 'gAAAAAbroken' WHERE "
            "credential_type = 'field-1'"
        )
        site.change(
            "UPDATE provider_credentials SET encrypted_value = 'djExQQ==' WHERE credential_type = "
            "'field-2'"
        )
    before = stored_bytes(site)
    with site.open() as vault:
        report = rotation.rehearse(vault)
        assert_adds_up(vault, report)
        assert (report.rotated, report.unreadable, report.foreign, report.new_key) == (
            3,
            1,
            1,
            None,
        )
    dry = process(site, "rotate", "--dry-run")
    assert dry.status == 16
    assert stored_bytes(site) == before
    assert [file.suffix for file in site.keys.iterdir()] == [".key"]


def test_rotate_without_values_says_so(site: Site) -> None:
    with site.open() as vault:
        report = rotate(vault)
        assert report.complete and report.rotated == report.already_current == 0
    done = process(site, "rotate")
    assert done.status == 0 and "there are no values" in done.out


# R8: rows that cannot be rotated


def test_rotate_keeps_old_key_when_a_row_is_unreadable(site: Site) -> None:
    where = "WHERE credential_type = ?"
    with site.open() as vault:
        values = fill(vault, 8)
    oldest, restored = (
        site.active(),
        next(row for row in site.rows().values() if row["credential_type"] == "field-7"),
    )
    rotate_once(site)
    old = site.active()
    site.change(
        f"UPDATE provider_credentials SET encrypted_value = ?, key_id = ? {where}",
        restored["encrypted_value"],
        oldest,
        "field-7",
    )
    (lost,) = site.keys.glob(f"*.{oldest}.key")
    lost = lost.rename(site.keys.with_name(lost.name))
    rows = {row["credential_type"]: row for row in site.rows().values()}
    token = rows["field-1"]["encrypted_value"]
    bad = {
        "field-1": token[:60] + ("A" if token[60] != "A" else "B") + token[61:],  # a changed bit
        "field-2": rows["field-4"]["encrypted_value"],  # of another place
        "field-4": rows["field-2"]["encrypted_value"],
    }
    for kind, value in bad.items():
        site.change(f"UPDATE provider_credentials SET encrypted_value = ? {where}", value, kind)
    foreign = {"field-0": "djExQUFBQQ==", "field-5": ""}
    for kind, value in foreign.items():
        site.change(f"UPDATE provider_credentials SET encrypted_value = ? {where}", value, kind)
    before = {row["credential_type"]: row for row in site.rows().values()}

    done = process(site, "rotate")

    assert done.status == 16
    for kind in (*bad, "field-7"):
        assert (
            f"not readable, left under its old key: smtp/{kind}" in done.err
            and before[kind]["id"] in done.err
        )
    after = {row["credential_type"]: row for row in site.rows().values()}
    assert {kind for kind in after if after[kind] == before[kind]} == {*bad, *foreign, "field-7"}
    assert {after[kind]["key_id"] for kind in ("field-3", "field-6")} == {site.active()} != {old}
    assert site.states()[old] == "retired" and list(site.keys.glob(f"*.{old}.key"))

    lost.rename(site.keys / lost.name)
    with site.open() as vault:
        for number in (1, 2, 4):
            vault.set("smtp", f"field-{number}", values[place(number)], place(number).project_id)
        report = rotate(vault)
        assert report.complete and (report.rotated, report.foreign, report.unreadable) == (6, 2, 0)
    last = {row["credential_type"]: row for row in site.rows().values()}
    assert all(last[kind] == before[kind] for kind in foreign)


def test_rotate_names_no_more_unreadable_rows_than_it_says(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "NAMED_AT_MOST", 10)
    with site.open() as vault:
        fill(vault, 25)
        site.change("UPDATE provider_credentials SET encrypted_value = 'gAAAAAbroken'")
        report = rotate(vault)
    assert report.unreadable == 25 and len(report.unreadable_rows) == 10


# R9, R10: what is left of the old tokens


def _left_of(tokens: set[str], site: Site) -> int:
    """
    How many pieces of tokens are in the files. The first 12 characters are the time's, which
    survives.
    """
    wal = site.database.with_name(site.database.name + "-wal")
    data = bytes_of(site.database) + bytes_of(wal)
    return sum(
        token[at : at + 24].encode() in data
        for token in tokens
        for at in range(12, len(token) - 24, 64)
    )


@pytest.fixture
def plain_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite as most systems build it: Debian's overwrites what is deleted by default."""
    connect = sqlite3.connect

    def plain(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.execute("PRAGMA secure_delete = 0")
        return connection

    monkeypatch.setattr(sqlite3, "connect", plain)


@pytest.mark.sqlite("secure_delete")
@pytest.mark.usefixtures("plain_sqlite")
def test_rotate_leaves_no_piece_of_an_old_token_in_the_files(site: Site) -> None:
    chance = random.Random(9)
    assert sql(site.database, "PRAGMA secure_delete") == [(0,)]
    with site.open() as vault:
        values = fill(vault, effort(150, 60), size=200)
        tokens = {row["encrypted_value"] for row in site.rows().values()}
        for where in chance.sample(
            sorted(values, key=str), effort(80, 40)
        ):  # pages that split, overflow and become free
            if chance.random() < 0.4:
                vault.delete(where[1], where[2], where[0])
            else:
                vault.set(where[1], where[2], "y" * chance.randrange(1, 6000), where[0])
        tokens |= {row["encrypted_value"] for row in site.rows().values()}
        assert _left_of(tokens, site) > effort(300, 100)
        assert rotate(vault).complete
        assert _left_of(tokens, site) == 0
    assert _left_of(tokens, site) == 0


@pytest.mark.sqlite("a log that a reader keeps")
@pytest.mark.usefixtures("impatient")
def test_rotate_says_when_a_reader_keeps_old_tokens_in_the_log(site: Site) -> None:
    with site.open() as vault:
        values = fill(vault, 10)
    tokens = {row["encrypted_value"] for row in site.rows().values()}
    with another(site.database) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM provider_credentials").fetchone()
        done = run(site, "rotate")
        assert done.status == 16 and "open transaction keeps old tokens in the log" in done.err
        assert _left_of(tokens, site) > 0
        site.require_one_key()
        active = site.active()
        assert _unfinished(site)
        reader.execute("COMMIT")
    rows = site.rows()
    with site.open() as vault:
        report = rotate(vault)
        assert report.complete and report.resumed and report.log_truncated
        assert site.active() == report.new_key == active
        assert not vault.keys.states.unfinished_rotation()
        assert _left_of(tokens, site) == 0
    assert site.rows() == rows
    site.require_intact(values)


@pytest.mark.sqlite("its log, cut anywhere")
def test_power_cut_after_a_rotation_brings_nothing_back_under_the_old_key(
    site: Site, tmp_path: Path, figures: Figures
) -> None:
    with site.open() as vault:
        values = fill(vault, 60)
        assert rotate(vault).complete
        active = site.active()
        database, log = bytes_of(site.database), bytes_of(Path(f"{site.database}-wal"))
        assert log
    chance = random.Random(10)
    sizes = sorted(
        {0, len(log), 32, 32 + 24 + 4096, *(chance.randrange(len(log)) for _ in range(150))}
    )
    for size in sizes:
        copy = tmp_path / f"cut-{size}.db"
        copy.write_bytes(database)
        copy.with_name(copy.name + "-wal").write_bytes(log[:size])
        cut = Site(copy, site.keys)
        assert {row["key_id"] for row in cut.rows().values()} == {active}
        if size % 10 == 0:
            cut.require_intact(values)
    assert {synchronous for (synchronous,) in _pragma(site, "synchronous")} == {2}
    figures("power cuts after a rotation, nothing back under the old key", len(sizes))


def _pragma(site: Site, name: str) -> list[tuple[Any, ...]]:
    with site.open() as vault:
        return vault.database.fetch(f"PRAGMA {name}")


# R11: memory, and how long others wait


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="the peer reads /proc")
def test_rotate_needs_no_more_memory_for_more_rows(engine: Engine, tmp_path: Path) -> None:
    grown = {}
    few, many = 2_000, effort(20_000, 12_000)
    for count in (few, many):
        site = new_site(tmp_path / str(count), engine)
        with site.open() as vault:
            fill(vault, count)
        output, _ = site.peer("measure").communicate(timeout=60)
        site.require_one_key()
        grown[count] = int(output)
    # The rows alone are 10 MB, or 6.
    assert grown[many] - grown[few] < effort(4_000, 3_000), f"KiB by rows: {grown}"


def test_rotate_holds_the_write_lock_for_one_batch_at_most(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.open() as vault:
        fill(vault, 1_200)
        batches = [0]

        write, swap = vault.database.write, vault.database.swap

        def begun(operation: Callable[[], Any], **options: Any) -> Any:
            batches.append(0)
            return write(operation, **options)

        def changed(table: str, *arguments: Any) -> int:
            assert vault.database.in_transaction()
            count = swap(table, *arguments)
            batches[-1] += count * (table == "provider_credentials")
            return count

        monkeypatch.setattr(vault.database, "write", begun)
        monkeypatch.setattr(vault.database, "swap", changed)
        assert rotate(vault).rotated == 1_200
    assert sum(batches) == 1_200 and max(batches) <= rotation.BATCH == 500


def lock_out(other: Connection, site: Site) -> None:
    """Nobody else changes a value or a key until *other*'s transaction ends."""
    other.begin()
    if site.engine:
        other.execute("LOCK TABLE provider_credentials, vault_keys IN EXCLUSIVE MODE NOWAIT")


def test_rotate_seals_while_others_may_write(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {} if site.engine else {"timeout": 0}
    with site.open() as vault, another(site.database, **options) as other:
        fill(vault, 3)
        seal, free = Fernet.encrypt_at_time, []

        def watched(fernet: Fernet, data: bytes, current_time: int) -> bytes:
            lock_out(other, site)
            free.append(other.execute("ROLLBACK"))
            return seal(fernet, data, current_time)

        monkeypatch.setattr(Fernet, "encrypt_at_time", watched)
        assert rotate(vault).complete
    assert len(free) == 4  # three values, and the new key's check value


# No key is made because one could not be read; a key is used only when it is stored


class LockedStore(KeyDirectory):
    def read(self, vault_id: str, key_id: str) -> Secret:
        raise KeyringLocked("the keyring is locked")


def _removed(file: Path) -> None:
    file.unlink()


def _replaced(file: Path) -> None:
    file.write_text(generate_key().reveal())


def _cut(file: Path) -> None:
    file.write_text(file.read_text()[:-1])


def _kept(file: Path) -> None:
    assert file.exists()


@pytest.mark.parametrize(
    ("harm", "store", "error", "status"),
    [
        (_removed, KeyDirectory, KeyMissing, 12),
        (_replaced, KeyDirectory, WrongKey, 12),
        (_cut, KeyDirectory, WrongKey, 12),
        (_kept, LockedStore, KeyringLocked, None),
    ],
)
def test_rotate_makes_no_key_when_the_active_one_cannot_be_had(
    site: Site,
    harm: Callable[[Path], None],
    store: type[KeyDirectory],
    error: type[KeyUnavailable],
    status: int | None,
) -> None:
    with site.open() as vault:
        fill(vault, 3)
    (file,) = site.keys.iterdir()
    harm(file)
    before, files = dump(site.database), sorted(site.keys.iterdir())
    for operation in (rotation.rotate, rotation.rehearse):
        with site.open(store(site.keys)) as vault, pytest.raises(error):
            operation(vault)
    if status is not None:
        assert process(site, "rotate").status == status
    assert dump(site.database) == before
    assert sorted(site.keys.iterdir()) == files


class RefusingStore(KeyDirectory):
    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        raise KeyStoreUnavailable("the key store takes nothing")


class ForgetfulStore(KeyDirectory):
    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        return


class AlteringStore(KeyDirectory):
    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        super().write(vault_id, key_id, generate_key())


class CuttingStore(KeyDirectory):
    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        super().write(vault_id, key_id, Secret(key.reveal()[:-1]))


class GoneAfterwardsStore(KeyDirectory):
    """Takes the key, and cannot be asked for it just then."""

    written = ""

    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        super().write(vault_id, key_id, key)
        self.written = key_id

    def read(self, vault_id: str, key_id: str) -> Secret:
        if key_id == self.written:
            raise KeyStoreUnavailable("the key store went away")
        return super().read(vault_id, key_id)


@pytest.mark.parametrize(
    ("store", "error"),
    [
        (RefusingStore, KeyStoreUnavailable),
        (ForgetfulStore, KeyMissing),
        (AlteringStore, WrongKey),
        (CuttingStore, WrongKey),
        (GoneAfterwardsStore, KeyStoreUnavailable),
    ],
)
def test_rotate_changes_no_row_when_the_new_key_is_not_stored(
    site: Site, store: type[KeyDirectory], error: type[KeyUnavailable]
) -> None:
    with site.open() as vault:
        values = fill(vault, 3)
    rows, active = site.rows(), site.active()
    with site.open(store(site.keys)) as vault:
        with pytest.raises(error):
            rotation.rotate(vault)
        assert site.rows() == rows and site.active() == active
        vault.set("smtp", "field-1", "still works")
        values[place(1)] = "still works"
    report = rotate_once(site)
    assert (
        report.complete and report.rotated == 3 and report.old_key == active and not report.resumed
    )
    site.require_intact(values)
    site.require_one_key()


def test_rotate_that_cannot_write_names_the_cause_and_is_finished_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.open() as vault:
        values = fill(vault, 6)
        monkeypatch.setattr(rotation, "BATCH", 2)
        replaces, replace = itertools.count(1), rotation._replace

        def blocked(*args: Any) -> int:
            if next(replaces) != 2:
                return replace(*args)
            with another(site.database) as other:
                lock_out(other, site)
                return replace(*args)

        with monkeypatch.context() as patch:
            for engine in (of_sqlite, of_postgres):
                patch.setattr(engine, "PATIENT_SECONDS", 0.05)
            patch.setattr(rotation, "_replace", blocked)
            with pytest.raises(DatabaseBusy):
                rotation.rotate(vault)
        site.require_intact(values)
        report = rotate(vault)
        assert (
            report.resumed
            and report.complete
            and (report.rotated, report.already_current) == (4, 2)
        )
    site.require_intact(values)
    site.require_one_key()


def test_get_after_a_rotation_by_another_process_finds_the_new_key(site: Site) -> None:
    with site.open() as vault:
        values = fill(vault, 2)
        assert vault.get("smtp", "field-1").reveal() == values[place(1)]
        assert process(site, "rotate").status == 0
        assert vault.get("smtp", "field-1").reveal() == values[place(1)]
        site.change(
            "UPDATE provider_credentials SET key_id = (SELECT id FROM vault_keys WHERE state = "
            "'retired')"
        )
        with pytest.raises(DamagedValue):
            vault.get("smtp", "field-1")


# Beside writers that leave the lock no rest

_LIMIT = "PRAGMA busy_timeout"

OPERATIONS: dict[str, Callable[[Site, Vault], object]] = {
    "rotate": lambda site, vault: rotation.rotate(vault),
    "destroy": lambda site, vault: rotation.destroy(
        vault, next(key for key, state in site.states().items() if state == "retired")
    ),
    "export": lambda site, vault: recovery.export_keys(
        vault, site.folder / "a.file", Secret("a passphrase")
    ),
    "import": lambda site, vault: recovery.import_keys(
        vault, site.folder / "exported", Secret("a passphrase")
    ),
    "abandon": lambda site, vault: recovery.abandon(vault, site.active()),
    "init": lambda site, vault: init(site.database, key_store=vault.keys.store),
    "migrate": lambda site, vault: migrator.migrate(site.database),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operator_waits_longer_for_the_lock_than_an_adapter(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with site.open() as vault:
        fill(vault, 3)
        rotate(vault)
        recovery.export_keys(vault, site.folder / "exported", Secret("a passphrase"))
    if name == "abandon":
        next(site.keys.glob(f"*.{site.active()}.key")).unlink()
    if name == "init":
        site.change("UPDATE vault_keys SET state = 'pending' WHERE state = 'active'")
    for engine in (of_sqlite, of_postgres):
        monkeypatch.setattr(engine, "BUSY_SECONDS", 0.05)
    kind = PostgresDatabase if site.engine else SQLiteDatabase
    real, began, locked = kind.patiently, threading.Event(), threading.Event()

    def noted(database: Any, operation: Callable[[], Any]) -> Any:
        def run() -> Any:
            began.set()
            return operation()

        return real(database, run)

    def hold() -> None:
        with another(site.database) as other:
            lock_out(other, site)
            locked.set()
            began.wait(20)
            time.sleep(0.5)  # ten times as long as an adapter waits
            other.execute("COMMIT")

    monkeypatch.setattr(kind, "patiently", noted)
    peer = threading.Thread(target=hold)
    with site.open() as vault:
        if name == "migrate":
            site.change("UPDATE vault_meta SET value = '2' WHERE key = 'version'")
        peer.start()
        assert locked.wait(20)
        try:
            # On a server one whose key is lost says so before it waits.
            keyless = name in ("abandon", "init")
            error = KeyMissing if keyless and site.engine else DatabaseBusy
            with pytest.raises(error) as caught:
                vault.set("smtp", "other", "an adapter's")
            busy = "waited for a lock" if site.engine else "more than 0.05 seconds"
            assert error is KeyMissing or busy in str(caught.value)
            OPERATIONS[name](site, vault)
            limit = "SELECT current_setting('lock_timeout')" if site.engine else _LIMIT
            found = vault.database.write(lambda: vault.database.fetch(limit))
            assert found in ([(50,)], [("50ms",)])  # it is an adapter's again
        finally:
            began.set()
            peer.join()


@pytest.mark.sqlite("its limit to a wait")
def test_whatever_ends_an_operators_wait_the_adapters_limit_is_back(site: Site) -> None:
    with site.open() as vault:
        limit = vault.database.fetch(_LIMIT)

        def fail() -> None:
            vault.database.truncate_log()  # which waits for less, and then for as long as before
            assert vault.database.fetch(_LIMIT) == [(60_000,)]
            vault.database.patiently(lambda: None)
            assert vault.database.fetch(_LIMIT) == [(60_000,)]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            vault.database.patiently(fail)
        assert vault.database.fetch(_LIMIT) == limit == [(5_000,)]
        vault.database.truncate_log()
        assert vault.database.fetch(_LIMIT) == limit
