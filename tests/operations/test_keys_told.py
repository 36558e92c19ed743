"""
What is said of keys is true: which one was replaced, whose they are, why one cannot be had; and how
to begin again without one.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from helpers import FROZEN, V4
from helpers.commands import Done, failed, process, run
from helpers.effort import effort
from helpers.faults import each_stop
from helpers.rotation_peers import fill
from helpers.shape import files_in
from helpers.site import (
    Figures,
    Rotated,
    Site,
    entries,
    everything,
    kept,
    marks,
    restored,
    sql,
)

from outreach_vault import (
    KeyDirectory,
    KeyringTimedOut,
    KeyStoreUnavailable,
    KeyUnavailable,
    Secret,
    SharedKeys,
)
from outreach_vault.command import group
from outreach_vault.keys import ring, states
from outreach_vault.operations import doctor, recovery, rotation
from outreach_vault.operations.init import init
from outreach_vault.operations.status import status
from outreach_vault.schema import shapes

FILES = pytest.mark.sqlite("where files are")

# Which key was replaced


@pytest.mark.parametrize("clock", ["stands still", "goes back"])
def test_a_rotation_destroys_the_key_that_it_replaced_whatever_the_clock_says(
    site: Site, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    times = iter(
        datetime(2027, 5, 5, tzinfo=UTC) - timedelta(days=n if clock == "goes back" else 0)
        for n in range(1000)
    )
    monkeypatch.setattr(states, "now", lambda: shapes.to_iso(next(times)))
    with site.open() as vault:
        fill(vault, 3)
        first, second, third = (
            rotation.rotate(vault, destroy_old=number == 2) for number in range(3)
        )
    assert [second.old_key, third.old_key, third.destroyed_key] == [
        first.new_key,
        second.new_key,
        second.new_key,
    ]
    assert {name.split(".")[1] for name in entries(site) if name.endswith(".key")} == {
        first.old_key,
        first.new_key,
        third.new_key,
    }
    assert marks(site)[str(first.new_key)] == second.new_key


@pytest.mark.parametrize("doubtful", [False, True])
def test_what_a_key_was_replaced_by_is_taken_over_from_the_times_where_they_leave_no_doubt(
    tmp_path: Path, doubtful: bool
) -> None:
    made = Site(
        shutil.copytree(FROZEN / "1", tmp_path / "frozen") / "vault.db",
        tmp_path / "frozen" / "keys",
    )
    for file in made.keys.iterdir():
        file.chmod(0o600)
    made.keys.chmod(0o700)
    first, second, third = (
        key_id for (key_id,) in sql(made.database, "SELECT id FROM vault_keys ORDER BY created_at")
    )
    if doubtful:  # as two rotations in one tick of the clock left it
        sql(
            made.database,
            "UPDATE vault_keys SET retired_at = (SELECT max(retired_at) FROM vault_keys) WHERE "
            "retired_at IS NOT NULL",
        )
    init(made.database, key_store=KeyDirectory(made.keys))
    found = dict(sql(made.database, "SELECT id, replaced_by FROM vault_keys"))
    assert found == {
        first: None if doubtful else second,
        second: None if doubtful else third,
        third: None,
    }


# Whose keys they are


@pytest.fixture
def copied(site: Site, tmp_path: Path) -> Site:
    """
    A copy of the database; both have their keys in one key directory. The database was filled and
    rotated.
    """
    with site.open() as vault:
        fill(vault, 3)
        rotation.rotate(vault)
    copy = restored(site, tmp_path / "copied", kept(site, tmp_path / "copy.db"))
    return Site(copy.database, site.keys)


def original_of(site: Site) -> str:
    """What a copy calls it."""
    if site.engine is None:
        return str(site.database)
    with site.open() as vault:
        return f"the database {vault.database.home()}"


def both(site: Site, copied: Site) -> list[object]:
    return [everything(site), everything(copied)]


@pytest.mark.parametrize("arguments", [["rotate"], ["rotate", "--destroy-old"]])
def test_a_copy_is_not_rotated_without_saying_what_the_original_loses(
    site: Site, copied: Site, arguments: list[str]
) -> None:
    before = both(site, copied)
    done = run(copied, *arguments, "--yes")
    failed(
        done,
        16,
        original_of(site),
        "is a copy of",
        "the original can store nothing",
        "--key-dir",
        "--although-copied",
    )
    assert both(site, copied) == before
    with copied.open() as vault, pytest.raises(SharedKeys) as raised:
        rotation.rotate(vault)
    assert raised.value.original == original_of(site)
    assert both(site, copied) == before
    assert process(copied, "rotate", "--although-copied").status == 0
    # It is the vault's home now, and is not asked about again.
    assert process(copied, "rotate").status == 0


def test_no_key_is_destroyed_from_a_copy_without_saying_so(site: Site, copied: Site) -> None:
    (old,) = (key_id for key_id, state in copied.states().items() if state == "retired")
    before = both(site, copied)
    failed(run(copied, "keys", "destroy", old, "--yes"), 16, "is a copy of")
    with copied.open() as vault, pytest.raises(SharedKeys):
        rotation.destroy(vault, old)
    assert both(site, copied) == before
    assert run(copied, "keys", "destroy", old, "--yes", "--although-copied").status == 0


def _moved(site: Site, copied: Site) -> Site:
    site.database.rename(site.database.with_name("elsewhere.db"))
    return Site(site.database.with_name("elsewhere.db"), site.keys)


def _keys_of_its_own(site: Site, copied: Site) -> Site:
    return Site(
        copied.database, Path(shutil.copytree(site.keys, site.keys.with_name("other keys")))
    )


def _original_gone(site: Site, copied: Site) -> Site:
    site.database.unlink()
    return copied


def _linked(site: Site, copied: Site) -> Site:
    site.database.with_name("link.db").symlink_to(site.database)
    return Site(site.database.with_name("link.db"), site.keys)


def _replaced_by_another_vault(site: Site, copied: Site) -> Site:
    site.database.unlink()
    init(site.database, key_store=KeyDirectory(site.keys))
    return copied


@pytest.mark.parametrize(
    "how",
    [
        _keys_of_its_own,
        *(
            pytest.param(how, marks=FILES)
            for how in (_moved, _original_gone, _linked, _replaced_by_another_vault)
        ),
    ],
)
def test_what_is_no_copy_is_rotated_unasked(
    site: Site, copied: Site, how: Callable[[Site, Site], Site]
) -> None:
    one = how(site, copied)
    done = run(one, "rotate")
    assert done.status == 0 and "copy" not in done.err


@FILES
def test_a_copy_is_known_where_the_paths_have_bytes_that_are_no_utf8(site: Site) -> None:
    there = site.copy(site.database.parent.with_name("caf\udce9"))  # one byte, as Python has it
    there.database.unlink()
    init(there.database, key_store=KeyDirectory(there.keys))
    with there.open() as vault:
        recovery.backup(vault, there.database.with_name("copy.db"))
    with (
        Site(there.database.with_name("copy.db"), there.keys).open() as copy,
        pytest.raises(SharedKeys) as raised,
    ):
        rotation.rotate(copy)
    assert raised.value.original == str(there.database)
    failed(run(Site(copy.database.path, there.keys), "rotate"), 16, "is a copy of")
    with there.open() as vault:
        assert rotation.rotate(vault).complete


@FILES
def test_a_home_that_is_no_vault_but_goes_on_for_ever_is_not_asked(
    site: Site, tmp_path: Path
) -> None:
    endless = (
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT 'x' || n, 'y' || "
        "n FROM r"
    )
    sql(tmp_path / "endless.db", f"CREATE VIEW vault_meta (key, value) AS {endless}")
    site.change("UPDATE vault_meta SET value = ? WHERE key = 'home'", str(tmp_path / "endless.db"))
    assert process(site, "rotate").status == 0


def test_init_in_a_copy_does_not_make_it_the_home(site: Site, copied: Site) -> None:
    init(copied.database, key_store=KeyDirectory(copied.keys))
    failed(run(copied, "rotate"), 16, "is a copy of")


# The only key is lost


@pytest.fixture
def lost(site: Site) -> tuple[Site, str]:
    """A vault with three values, whose only key is gone; and the key's id."""
    with site.open() as vault:
        fill(vault, 3)
    for file in site.keys.iterdir():
        file.unlink()
    return site, site.active()


def test_without_its_only_key_a_vault_begins_again_where_the_operator_gives_it_up(
    lost: tuple[Site, str],
) -> None:
    site, key_id = lost
    failed(run(site, "init"), 12, f"vault init --abandon {key_id}")
    before = everything(site)
    failed(
        run(site, "init", "--abandon", key_id),
        3,
        "3 values of this database",
        "they are lost",
        "vault keys import",
    )
    assert everything(site) == before
    done = process(site, "init", "--abandon", key_id, "--yes")
    assert (done.status, site.states()[key_id]) == (0, "destroyed") and site.active() in done.out
    assert marks(site) == {key_id: site.active()}
    assert [entry["state"] for entry in run(site, "list", "--json").data] == ["key missing"] * 3
    assert run(site, "set", "smtp", "field-1", "--no-check", stdin=b"again").status == 0
    assert run(site, "get", "smtp", "field-1").out == "again\n"
    with site.open() as vault:
        report = rotation.rotate(vault)
        assert (report.rotated, report.unreadable, report.complete) == (1, 2, False)


def test_a_key_that_can_be_had_or_may_come_back_is_not_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, key_id = everything(site), site.active()
    failed(run(site, "init", "--abandon", key_id, "--yes"), 16, "is not lost")
    failed(run(site, "init", "--abandon", "no-such-key", "--yes"), 12, "lists no key")
    monkeypatch.setattr(group, "choose", lambda *_, **__: Silent(site.keys))
    failed(run(site, "init", "--abandon", key_id, "--yes"), 16, "is not lost", "time limit")
    assert everything(site) == before


def test_giving_up_a_key_that_is_not_the_active_one_makes_none(rotated: Rotated) -> None:
    site, _, old, new = rotated
    next(site.keys.glob(f"*.{old}.key")).unlink()
    with site.open() as vault:
        assert recovery.abandon(vault, old) == new
    assert site.states() == {old: "destroyed", new: "active"}


def test_giving_up_a_key_stopped_at_each_step_is_finished_by_the_next(
    lost: tuple[Site, str], figures: Figures
) -> None:
    template, key_id = lost

    def give_up(site: Site, store: object) -> None:
        with site.open(store) as vault:  # type: ignore[arg-type]
            recovery.abandon(vault, key_id)

    for stopped in each_stop(
        template,
        give_up,
        figures,
        "stops of giving up a key at a numbered step, finished by the next",
    ):
        with stopped.open() as vault:
            vault.keys.settle()
            recovery.abandon(vault, key_id)
            vault.set("smtp", "user", "v")
            assert vault.get("smtp", "user").reveal() == "v"
        assert (
            stopped.states()[key_id] == "destroyed"
            and list(stopped.states().values()).count("active") == 1
        )


# A first init that fails, or two at once


@pytest.mark.parametrize("released", [False, True], ids=["no file", "the app's file"])
def test_an_init_whose_key_store_cannot_be_used_changes_nothing(
    tmp_path: Path, released: bool
) -> None:
    path = tmp_path / "samsara.db"
    if released:
        shutil.copy(V4, path)
    before = files_in(tmp_path)
    for _ in range(3):
        with pytest.raises(KeyringTimedOut):
            init(path, key_store=Silent(tmp_path / "keys"))
        assert files_in(tmp_path) == before
    init(path, key_store=KeyDirectory(tmp_path / "keys"))
    assert list(Site(path, tmp_path / "keys").states().values()) == ["active"]


@pytest.mark.parametrize("error", [KeyStoreUnavailable, KeyringTimedOut])
def test_a_key_that_could_not_be_stored_leaves_no_row_unless_its_entry_may_still_come(
    site: Site, error: type[KeyUnavailable]
) -> None:
    class Full(KeyDirectory):
        def write(self, vault_id: str, key_id: str, key: Secret) -> None:
            raise error("not written")

    before = everything(site)
    with site.open(Full(site.keys)) as vault:
        for _ in range(3):
            with pytest.raises(error):
                rotation.rotate(vault)
    assert list(site.states().values()) == ["active"] + ["destroyed"] * (
        3 if error is KeyringTimedOut else 0
    )
    assert everything(site)[1:] == before[1:]


def test_of_two_inits_at_once_the_slower_one_finds_the_vault_of_the_other(tmp_path: Path) -> None:
    for number in range(effort(5, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        site, start = Site(folder / "new.db", folder / "keys"), threading.Barrier(4)

        def one(site: Site = site, start: threading.Barrier = start) -> Done:
            start.wait()
            return process(site, "init")

        with ThreadPoolExecutor(4) as pool:
            done = [task.result() for task in [pool.submit(one) for _ in range(4)]]
        assert [each.status for each in done] == [0] * 4, done
        assert list(site.states().values()) == ["active"]


# A key store that does not answer


class Silent(KeyDirectory):
    """Answers nothing, and counts how often it is asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked = 0

    def _nothing(self, *_: object) -> None:
        self.asked += 1
        raise KeyringTimedOut("no answer within the time limit", hint="look whether it hangs")

    read = write = holds = delete = successor = mark_superseded = _nothing  # type: ignore[assignment]


@pytest.fixture
def three_keys(site: Site) -> Site:
    """Values under three keys."""
    with site.open() as vault:
        fill(vault, 3)
        used = [vault.keys.states.active_id()]
        for _ in range(2):
            used.append(str(rotation.rotate(vault).new_key))
    for row, key_id in zip(site.rows(), used, strict=True):
        site.change("UPDATE provider_credentials SET key_id = ? WHERE id = ?", key_id, row)
    return site


@pytest.mark.parametrize(
    "command",
    [
        ["list"],
        ["which", "smtp"],
        ["status"],
        ["doctor"],
        ["keys", "list"],
        ["rotate", "--dry-run"],
    ],
)
def test_a_key_store_that_does_not_answer_is_asked_once_for_a_command(
    three_keys: Site, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    store = Silent(three_keys.keys)
    monkeypatch.setattr(group, "choose", lambda *_, **__: store)
    done = run(three_keys, *command)
    assert store.asked == (0 if command[0] == "keys" else 1), done
    assert done.status in ({"doctor": 16, "rotate": 13}.get(command[0], 0),)
    if command[0] in ("list", "which"):
        assert done.err.count("time limit") == 1


def test_keys_are_listed_without_their_store(
    three_keys: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_store = run(three_keys, "keys", "list", "--json").data
    monkeypatch.setattr(group, "choose", lambda *_, **__: Silent(three_keys.keys))
    assert run(three_keys, "keys", "list", "--json").data == with_store
    assert [key["values"] for key in with_store] == [1, 1, 1]


def test_threads_that_waited_for_a_key_store_that_did_not_answer_do_not_ask_it_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.open() as vault:
        fill(vault, 3)
    waiting, all_wait = [], threading.Event()

    class Slow(Silent):
        def read(self, vault_id: str, key_id: str) -> Secret:
            assert all_wait.wait(30)
            self._nothing()
            raise AssertionError

    def noted() -> float:
        waiting.append(0)
        if len(waiting) == 8:
            all_wait.set()
        return time.monotonic()

    monkeypatch.setattr(ring, "time", type("clock", (), {"monotonic": staticmethod(noted)}))
    store = Slow(site.keys)
    with site.open(store) as vault, ThreadPoolExecutor(8) as pool:
        tasks = [pool.submit(vault.get, "smtp", "field-1") for _ in range(8)]
        errors = [task.exception() for task in tasks]
        assert [type(error) for error in errors] == [KeyringTimedOut] * 8 and len(
            set(map(id, errors))
        ) == 8
        assert store.asked == 1
        with pytest.raises(KeyringTimedOut):
            vault.get("smtp", "field-1")
        assert store.asked == 2, "who comes later asks anew"


# What the commands say


def test_the_json_of_a_rotation_says_whether_it_is_complete_and_what_was_not_readable(
    site: Site,
) -> None:
    with site.open() as vault:
        fill(vault, 3)
    row = next(iter(site.rows()))
    site.change(
        "UPDATE provider_credentials SET encrypted_value = substr(encrypted_value, 1, 99) WHERE "
        "id = ?",
        row,
    )
    done = run(site, "rotate", "--json")
    assert done.status == 16
    told = ("complete", "resumed", "log_truncated", "scrubbed", "scrub_problem")
    assert {name: done.data[name] for name in told} == {
        "complete": False, "resumed": False, "log_truncated": None if site.engine else True,
        "scrubbed": site.engine is None,
        "scrub_problem": None,
    }  # fmt: skip
    assert [found["id"] for found in done.data["unreadable_rows"]] == [row]
    assert run(site, "rotate", "--json", "--dry-run").data["complete"] is False


def test_a_key_that_was_never_in_use_is_said_to_be_needed_by_no_backup(site: Site) -> None:
    with site.open() as vault:
        key_id = vault.keys.create()
        next(site.keys.glob(f"*.{key_id}.key")).unlink()
        vault.keys.fetched.clear()
        vault.keys.settle()
    assert site.states()[key_id] == "destroyed"
    done = run(site, "keys", "destroy", key_id, "--yes")
    assert done.status == 0 and "never in use" in done.err and "None" not in done.err


@pytest.mark.parametrize("days", [400, -400])
def test_times_to_come_make_no_age(site: Site, days: int) -> None:
    moment = shapes.to_iso(datetime.now(UTC) + timedelta(days=days))
    with site.open() as vault:
        fill(vault, 1)
    site.change("UPDATE provider_credentials SET updated_at = ?", moment)
    site.change("UPDATE vault_keys SET activated_at = ?", moment)
    expected = None if days > 0 else 400
    assert (
        run(site, "which", "smtp", "--project", "default-project", "--json").data[0]["age_days"]
        == expected
    )
    assert run(site, "status", "--json").data["active_key_age_days"] == expected
    assert f"{-days} days" not in run(site, "status").out or days < 0
    found = doctor.examine(site.database, key_store=KeyDirectory(site.keys)).findings
    assert ("old key" in {finding.kind for finding in found}) == (days < 0)


def test_a_small_difference_of_clocks_is_no_age_unknown() -> None:
    assert shapes.age_days(shapes.to_iso(datetime.now(UTC) + timedelta(minutes=5))) == 0
    assert shapes.age_days(shapes.to_iso(datetime.now(UTC) - timedelta(hours=47))) == 1
    assert shapes.age_days("yesterday") is None and shapes.age_days(None) is None


def test_status_of_a_key_without_a_readable_time_is_had(site: Site) -> None:
    site.change("UPDATE vault_keys SET activated_at = 'yesterday'")
    with site.open() as vault:
        assert status(vault).active_key_age_days is None
