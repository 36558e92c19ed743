"""
The end of a key: never while a value needs it, known to the operator beforehand, and then for good.
K7.

A key is gone from the key store before its row says so, so that no row calls a key destroyed that
is still there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import Terminal, failed, problems, process, run
from helpers.faults import each_stop
from helpers.rotation_peers import fill
from helpers.secret_service import SecretService
from helpers.site import (
    Figures,
    Rotated,
    Site,
    another,
    entries,
    everything,
    marks,
    operators_lock,
    sql,
)

from outreach_vault import KeyDirectory, KeyMissing, KeyStoreUnavailable, OperationRunning
from outreach_vault.database import Cleaned
from outreach_vault.errors import KeyInUse
from outreach_vault.keys.stores import KeyStore
from outreach_vault.keys.stores.os_keyring import OSKeyring
from outreach_vault.operations import rotation
from outreach_vault.operations.init import init

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="terminals, and stops forked children"),
    pytest.mark.sweep(2),
]


def held(site: Site) -> set[str]:
    """The ids of the keys that are in the key directory."""
    return {name.split(".")[1] for name in entries(site) if name.endswith(".key")}


def destroy(site: Site, key_id: str, store: KeyStore | None = None) -> None:
    with site.open(store) as vault:
        rotation.destroy(vault, key_id)


# When it is refused


def _active(site: Site, old: str, new: str) -> str:
    return new


def _pending(site: Site, old: str, new: str) -> str:
    with site.open() as vault:
        return vault.keys.create()


def _needed(site: Site, old: str, new: str) -> str:
    with site.open() as vault:
        rotation.rotate(vault)
    sql(
        site.database,
        "UPDATE provider_credentials SET key_id = ? WHERE credential_type = 'field-1'",
        new,
    )
    return new


def _needed_by_a_damaged_row(site: Site, old: str, new: str) -> str:
    sql(
        site.database,
        "UPDATE provider_credentials SET key_id = ?, encrypted_value = 'gAAAAAbroken'"
        " WHERE credential_type = 'field-1'",
        old,
    )
    return old


def _needed_by_a_garbled_row(site: Site, old: str, new: str) -> str:
    sql(
        site.database,
        "UPDATE provider_credentials SET key_id = ?, provider = x'00ff', id = NULL"
        " WHERE credential_type = 'field-1'",
        old,
    )
    return old


@pytest.mark.parametrize(
    "arrange",
    [
        _active,
        _pending,
        _needed,
        _needed_by_a_damaged_row,
        pytest.param(
            _needed_by_a_garbled_row, marks=pytest.mark.sqlite("bytes in a column of text")
        ),
    ],
)
def test_destroy_of_a_key_in_use_is_refused_and_changes_nothing(
    rotated: Rotated, arrange: Callable[[Site, str, str], str]
) -> None:
    site, _, old, new = rotated
    key_id = arrange(site, old, new)
    before = everything(site)
    with site.open() as vault, pytest.raises(KeyInUse) as caught:
        rotation.destroy(vault, key_id)
    assert caught.value.key_id == key_id and caught.value.hint
    failed(run(site, "keys", "destroy", key_id, "--yes"), 16, key_id, "vault rotate")
    assert everything(site) == before


@pytest.mark.parametrize("key_id", ["unknown", "../keys", ""])
def test_destroy_of_an_unknown_key_is_an_error(rotated: Rotated, key_id: str) -> None:
    site, *_ = rotated
    before = everything(site)
    failed(run(site, "keys", "destroy", key_id, "--yes"), 12, "lists no key")
    assert everything(site) == before


def test_a_value_that_the_app_replaced_needs_the_key_beside_it_no_more(rotated: Rotated) -> None:
    site, _, old, _ = rotated
    sql(
        site.database,
        "UPDATE provider_credentials SET key_id = ?, encrypted_value = 'djExQUFBQQ=='"
        " WHERE credential_type = 'field-1'",
        old,
    )
    assert run(site, "keys", "destroy", old, "--yes").status == 0
    assert site.states()[old] == "destroyed"


def test_destroy_beside_another_operator_says_so(rotated: Rotated) -> None:
    site, _, old, _ = rotated
    before = everything(site)
    with operators_lock(site.database):
        failed(process(site, "keys", "destroy", old, "--yes"), 15, "another vault command")
        with pytest.raises(OperationRunning):
            destroy(site, old)
    assert everything(site) == before


def test_a_value_that_came_back_under_the_key_while_the_operator_was_asked_keeps_it(
    rotated: Rotated,
) -> None:
    site, _, old, _ = rotated
    with Terminal(site, "keys", "destroy", old, piped=False) as terminal:
        terminal.read_until(b"[y/N]")
        one = "WHERE credential_type = 'field-1'"
        sql(site.database, f"UPDATE provider_credentials SET key_id = ? {one}", old)
        terminal.type(b"y\n")
        assert terminal.end() == 16 and b"1 value(s) need key" in terminal.seen
    assert old in held(site) and site.states()[old] == "retired"


# Asking


def test_a_foreign_value_that_names_a_key_does_not_keep_it_in_use(site: Site) -> None:
    """The desktop app overwrites a value and leaves the key's id behind."""
    with site.open() as vault:
        fill(vault, 3)
        old = vault.keys.states.active_id()
    one = "WHERE credential_type = 'field-1'"
    sql(site.database, f"UPDATE provider_credentials SET encrypted_value = 'djEw' {one}")
    with site.open() as vault:
        assert (report := rotation.rotate(vault)).foreign == 1 and report.complete
    assert sql(
        site.database, "SELECT count(*) FROM provider_credentials WHERE key_id = ?", old
    ) == [(1,)]
    assert sql(
        site.database, "SELECT emptied_at IS NOT NULL FROM vault_keys WHERE id = ?", old
    ) == [(1,)]
    destroy(site, old)
    assert old not in held(site)


@pytest.mark.parametrize(
    ("answer", "status", "state"),
    [
        (b"y\n", 0, "destroyed"),
        (b"n\n", 3, "retired"),
        (b"\n", 3, "retired"),
        (b"\x04", 3, "retired"),
    ],
)
def test_destroy_asks_with_the_dates_of_the_backups_that_would_open_nothing(
    rotated: Rotated, answer: bytes, status: int, state: str
) -> None:
    site, values, old, _ = rotated
    (dates,) = sql(
        site.database, "SELECT activated_at, emptied_at FROM vault_keys WHERE id = ?", old
    )
    with Terminal(site, "keys", "destroy", old, piped=False) as terminal:
        terminal.read_until(b"[y/N]")
        for word in (
            f"from {dates[0]} to {dates[1]} ",
            f"open nothing without key {old}",
            f"destroy key {old}?",
        ):
            assert word in terminal.seen.decode()
        assert old in held(site)
        terminal.type(answer)
        assert terminal.end() == status
    assert site.states()[old] == state and (old in held(site)) == (state == "retired")
    site.require_intact(values)


@pytest.mark.parametrize("arguments", [("keys", "destroy", "OLD"), ("rotate", "--destroy-old")])
def test_without_a_terminal_nothing_is_destroyed_unless_yes_is_said(
    rotated: Rotated, arguments: tuple[str, ...]
) -> None:
    site, _, old, new = rotated
    arguments = tuple(old if word == "OLD" else word for word in arguments)
    before = everything(site)
    done = process(site, *arguments, input=b"y\n")
    assert (
        done.status == 3 and "--yes" in done.err and done.out == "" and everything(site) == before
    )
    assert run(site, *arguments, "--yes").status == 0
    assert "destroyed" in site.states().values() and held(site) != {old, new}


@pytest.mark.parametrize("answer", [b"n\n", b"y\n"])
def test_rotate_destroy_old_asks_before_it_begins(rotated: Rotated, answer: bytes) -> None:
    site, _, old, new = rotated
    before = everything(site)
    with Terminal(site, "rotate", "--destroy-old", piped=False) as terminal:
        terminal.read_until(b"[y/N]")
        assert everything(site) == before and b"backups made before" in terminal.seen
        terminal.type(answer)
        assert terminal.end() == (0 if answer == b"y\n" else 3)
    if answer == b"n\n":
        assert everything(site) == before
    else:
        assert site.states()[new] == "destroyed" and held(site) == {old, site.active()}


# What is left of it


def test_a_destroyed_key_is_gone_and_its_row_says_since_when(rotated: Rotated) -> None:
    site, values, old, new = rotated
    (site.keys / f"x.{old}.key").touch(0o600)  # not ours, and not to be touched
    (part,) = (
        file.with_name(f"{file.name}.killed.part")
        for file in site.keys.glob(f"*.{old}.key")
        if not file.name.startswith("x.")
    )
    part.touch(0o600)
    text = part.with_name(part.name.removesuffix(".killed.part")).read_text()
    done = run(site, "keys", "destroy", old, "--yes")
    assert (done.status, done.out) == (0, "") and f"destroyed key {old}" in done.err
    assert not part.exists() and (site.keys / f"x.{old}.key").exists()
    assert text not in "".join(entries(site).values()) and marks(site) == {old: new}
    ((state, destroyed, emptied),) = sql(
        site.database, "SELECT state, destroyed_at, emptied_at FROM vault_keys WHERE id = ?", old
    )
    assert state == "destroyed" and destroyed and emptied and destroyed >= emptied
    assert run(site, "keys", "destroy", old, "--yes").status == 0
    assert sql(site.database, "SELECT destroyed_at FROM vault_keys WHERE id = ?", old) == [
        (destroyed,)
    ]
    site.require_intact(values)
    assert problems(run(site, "doctor", "--deep", "--json")) == []


def test_destroy_again_removes_an_entry_that_came_back(rotated: Rotated) -> None:
    site, _, old, _ = rotated
    (file,) = site.keys.glob(f"*.{old}.key")
    text = file.read_text()
    destroy(site, old)
    file.touch(0o600)
    file.write_text(text)
    assert any(
        f["kind"] == "left over" and f["key_id"] == old
        for f in run(site, "doctor", "--json").data["findings"]
    )
    destroy(site, old)
    assert not file.exists()


def test_a_destroyed_key_is_gone_from_a_real_keyring(
    secret_service: SecretService, tmp_path: Path
) -> None:
    site = Site(tmp_path / "app.db", tmp_path / "none")
    init(site.database, key_store=OSKeyring())
    with site.open(OSKeyring()) as vault:
        values = fill(vault, 2)
        old, new = vault.keys.states.active_id(), str(rotation.rotate(vault).new_key)
        old_service, new_service = (
            f"outreach-vault/{vault.keys.vault_id}/{key_id}" for key_id in (old, new)
        )
        assert secret_service.lookup(old_service, "fernet-key")
        for _ in range(2):
            rotation.destroy(vault, old)
            assert secret_service.lookup(old_service, "fernet-key") is None
        assert (
            secret_service.lookup(new_service, "fernet-key")
            and secret_service.lookup(old_service, "successor") == new
        )
        assert site.states() == {old: "destroyed", new: "active"}
    with site.open(OSKeyring()) as vault:
        assert rotation.rotate(vault, destroy_old=True).destroyed_key == new
        assert secret_service.lookup(new_service, "fernet-key") is None
        for (project, provider, kind), value in values.items():
            assert vault.get(provider, kind, project, fallback=False).reveal() == value


class RefusingStore(KeyDirectory):
    def delete(self, vault_id: str, key_id: str) -> None:
        raise KeyStoreUnavailable("the key store deletes nothing")


class KeepingStore(KeyDirectory):
    """Says nothing, and has the entry still."""

    def delete(self, vault_id: str, key_id: str) -> None:
        return


@pytest.mark.parametrize("store", [RefusingStore, KeepingStore])
def test_a_key_that_the_store_does_not_delete_stays_retired(
    rotated: Rotated, store: type[KeyDirectory]
) -> None:
    site, values, old, new = rotated
    before = everything(site)
    with pytest.raises(KeyStoreUnavailable):
        destroy(site, old, store(site.keys))
    assert everything(site) == before
    with site.open(store(site.keys)) as vault, pytest.raises(KeyStoreUnavailable):
        rotation.rotate(vault, destroy_old=True)
    assert site.states()[new] == "retired" and {old, new} < held(site)
    site.require_intact(values)
    with site.open() as vault:
        report = rotation.rotate(vault, destroy_old=True)
    assert report.resumed and report.destroyed_key == new and site.states()[old] == "retired"


@pytest.mark.sqlite("a backup, which is a file")
def test_a_backup_of_its_time_names_the_destroyed_key(site: Site, tmp_path: Path) -> None:
    with site.open() as vault:
        values = fill(vault, 2)
        vault.database.backup(tmp_path / "backup.db", lambda copy: None)
        old = vault.keys.states.active_id()
        assert rotation.rotate(vault, destroy_old=True).destroyed_key == old
    site.require_intact(values)
    copy = Site(tmp_path / "backup.db", site.keys)
    failed(run(copy, "get", "smtp", "field-1"), 12, f"has no key {old}")
    assert {entry["state"] for entry in run(copy, "list", "--json").data} == {"key missing"}


def test_a_row_that_comes_back_under_a_destroyed_key_opens_in_no_vault_that_is_open(
    site: Site,
) -> None:
    with site.open() as vault:
        vault.set("smtp", "user", "v")
        (row,) = sql(site.database, "SELECT encrypted_value, key_id FROM provider_credentials")
        rotation.rotate(vault, destroy_old=True)
        sql(site.database, "UPDATE provider_credentials SET encrypted_value = ?, key_id = ?", *row)
        with pytest.raises(KeyMissing, match=f"{row[1]} was destroyed at"):
            vault.get("smtp", "user")


# rotate --destroy-old


def test_rotate_destroys_only_the_key_that_it_replaced(rotated: Rotated) -> None:
    site, values, old, new = rotated
    done = run(site, "rotate", "--destroy-old", "--yes", "--json")
    assert done.status == 0 and (done.data["old_key"], done.data["destroyed_key"]) == (new, new)
    assert site.states() == {old: "retired", new: "destroyed", site.active(): "active"}
    assert held(site) == {old, site.active()}
    site.require_intact(values)
    assert run(site, "rotate", "--json").data["destroyed_key"] is None and len(held(site)) == 3


def test_a_rehearsal_destroys_nothing(rotated: Rotated) -> None:
    site, *_ = rotated
    before = everything(site)
    assert run(site, "rotate", "--dry-run", "--destroy-old", "--yes").status == 0
    assert everything(site) == before


def test_rotate_destroys_nothing_while_a_row_is_unreadable(rotated: Rotated) -> None:
    site, values, old, new = rotated
    sql(
        site.database,
        "UPDATE provider_credentials SET encrypted_value = 'gAAAAAbroken' WHERE credential_type = "
        "'field-1'",
    )
    done = run(site, "rotate", "--destroy-old", "--yes")
    assert done.status == 16 and "the old key was not destroyed" in done.err
    assert {old, new} < held(site) and site.states()[new] == "retired"
    failed(run(site, "keys", "destroy", new, "--yes"), 16, "1 value(s) need key")
    with site.open() as vault:
        vault.set("smtp", "field-1", values[None, "smtp", "field-1"])
    # The broken one is a previous value now, which a rotation removes.
    assert run(site, "rotate").status == 0
    assert run(site, "keys", "destroy", new, "--yes").status == 0
    site.require_intact(values)


@pytest.mark.sqlite("a log that a reader keeps")
@pytest.mark.usefixtures("impatient")
def test_rotate_destroys_nothing_while_a_reader_keeps_old_tokens_in_the_log_and_the_next_run_does(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, values, old, new = rotated
    monkeypatch.setattr("outreach_vault.database.sqlite.connections.PATIENT_SECONDS", 0.05)
    with another(site.database) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM provider_credentials").fetchone()
        done = run(site, "rotate", "--destroy-old", "--yes")
        assert (
            done.status == 16
            and "keeps old tokens in the log" in done.err
            and "the old key was not destroyed" in done.err
        )
        assert new in held(site) and site.states()[new] == "retired"
        active = site.active()
        reader.execute("COMMIT")
    done = run(site, "rotate", "--destroy-old", "--yes", "--json")
    assert done.status == 0 and done.data["destroyed_key"] == new and site.active() == active
    assert held(site) == {old, active} and site.states()[new] == "destroyed"
    site.require_intact(values)


def test_rotate_counts_the_rows_again_before_it_destroys(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A row comes back under the old key when the last pass is over: somebody puts an older copy of it
    into the database.
    """
    site, values, _, new = rotated
    (row,) = sql(
        site.database,
        "SELECT encrypted_value, key_id, id FROM provider_credentials"
        " WHERE credential_type = 'field-1'",
    )
    with site.open() as vault:
        clean = vault.database.clean

        def late(scrub: bool | None) -> Cleaned:
            sql(
                site.database,
                "UPDATE provider_credentials SET encrypted_value = ?, key_id = ? WHERE id = ?",
                *row,
            )
            return clean(scrub)

        monkeypatch.setattr(vault.database, "clean", late)
        with pytest.raises(KeyInUse):
            rotation.rotate(vault, destroy_old=True)
    assert new in held(site) and site.states()[new] == "retired"
    site.require_intact(values)
    with site.open() as vault:
        assert rotation.rotate(vault, destroy_old=True).destroyed_key == new
    site.require_intact(values)


# Stopped at each step


def test_destroy_stopped_at_each_step_is_finished_by_the_next(
    rotated: Rotated, figures: Figures
) -> None:
    site, values, old, new = rotated
    found = set[tuple[bool, str]]()
    name = "stops of a key's destruction at a numbered step, finished by the next"
    for stopped in each_stop(site, lambda site, store: destroy(site, old, store), figures, name):
        stopped.require_intact(values)
        found.add((old in held(stopped), stopped.states()[old]))
        with stopped.open() as vault:
            vault.set("smtp", "field-1", "stored meanwhile")
        destroy(stopped, old)
        assert (
            stopped.states() == {old: "destroyed", new: "active"}
            and held(stopped) == {new}
            and marks(stopped) == {old: new}
        )
        stopped.require_intact(values | {(None, "smtp", "field-1"): "stored meanwhile"})
    assert found == {
        (True, "retired"),
        (False, "retired"),
        (False, "destroyed"),
    }  # never (True, "destroyed")


@pytest.mark.thorough
def test_rotate_destroy_old_stopped_at_each_step_is_finished_by_the_next(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    site, values, first, second = rotated
    monkeypatch.setattr(rotation, "BATCH", 2)

    def turn(site: Site, store: KeyStore | None = None) -> rotation.Report:
        with site.open(store) as vault:
            return rotation.rotate(vault, destroy_old=True)

    found = set[tuple[bool, str]]()
    for stopped in each_stop(
        site,
        turn,
        figures,
        "stops of rotate --destroy-old at a numbered step, finished by the next",
        every=2,
    ):
        stopped.require_intact(values)
        found.add((second in held(stopped), stopped.states()[second]))
        over = (
            not sql(stopped.database, "SELECT 1 FROM vault_meta WHERE key = 'unfinished_rotation'")
            and stopped.active() != second
        )
        if over:  # another run would be another rotation
            assert stopped.states()[second] == "destroyed" and second not in held(stopped)
            continue
        with stopped.open() as vault:
            vault.set("smtp", "field-1", "stored meanwhile")
        report = turn(stopped)
        third = stopped.active()
        assert report.complete and report.destroyed_key == second
        assert (
            stopped.states().items()
            >= {first: "retired", second: "destroyed", third: "active"}.items()
        )
        assert held(stopped) == {first, third} and marks(stopped) == {first: second, second: third}
        assert not sql(
            stopped.database, "SELECT 1 FROM vault_meta WHERE key = 'unfinished_rotation'"
        )
        stopped.require_intact(values | {(None, "smtp", "field-1"): "stored meanwhile"})
        stopped.require_one_key()
    assert found == {(True, "active"), (True, "retired"), (False, "retired"), (False, "destroyed")}
