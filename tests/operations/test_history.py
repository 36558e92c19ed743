"""
Values that were replaced or deleted: kept sealed, put back unopened, rotated and destroyed with the
others, and gone when their time is over.
"""

from __future__ import annotations

import contextlib
import random
import threading
from pathlib import Path

import pytest
from helpers.effort import effort
from helpers.faults import each_stop
from helpers.rows import ABORT, flipped, triggered
from helpers.site import Figures, Site, sql

from outreach_vault import (
    CredentialNotFound,
    KeyMissing,
    ProjectNotFound,
    SchemaMismatch,
    Vault,
    VaultError,
)
from outreach_vault.errors import KeyInUse, WrongArgument
from outreach_vault.operations import rotation
from outreach_vault.operations.doctor import examine
from outreach_vault.operations.history import forget, limit, previous_values, undo
from outreach_vault.operations.recovery import abandon, backup
from outreach_vault.operations.rotation import rotate
from outreach_vault.operations.status import status
from outreach_vault.schema.shapes import Place
from outreach_vault.values import history, rows, tokens
from outreach_vault.values.history import Limits
from outreach_vault.values.opening import open_row
from outreach_vault.values.rows import Row

P = "default-project"
AT = ("twilio", "auth_token", P)


def previous(vault: Vault, place: tuple[str, str, str | None] = AT) -> list[str]:
    """The previous values, newest first, opened as a row of the place would be."""
    return [
        open_row(vault.keys, Row._make(each[:9])).reveal()
        for each in previous_values(vault, *place)
    ]


def present(vault: Vault, place: tuple[str, str, str | None] = AT) -> str | None:
    try:
        return vault.get(*place, fallback=False).reveal()
    except CredentialNotFound:
        return None


def set_each(vault: Vault, *values: str, place: tuple[str, str, str | None] = AT) -> None:
    provider, field, project = place
    for value in values:
        vault.set(provider, field, value, project)


def test_both_modules_mean_the_same_table() -> None:
    """`rows` does not load the others, since no look-up needs them."""
    assert rows.TABLES == (rows.TABLE, tokens.TABLE, history.TABLE)


# What is kept


def test_a_place_keeps_its_last_three_values_newest_first(vault: Vault) -> None:
    set_each(vault, "one", "two", "three", "four", "five")
    assert present(vault) == "five" and previous(vault) == ["four", "three", "two"]
    assert [each.number for each in previous_values(vault, *AT)] == [4, 3, 2]
    assert {each.ended_by for each in previous_values(vault, *AT)} == {"set"}


def test_the_kept_token_is_the_row_s_own_with_its_label_and_times(site: Site, vault: Vault) -> None:
    vault.set(*AT[:2], "one", P, label="the first")
    (row,) = site.rows().values()
    vault.set(*AT[:2], "two", P)
    (kept,) = previous_values(vault, *AT)
    assert kept._asdict().items() >= {k: v for k, v in row.items() if k != "id"}.items()


def test_scopes_and_fields_have_histories_of_their_own(vault: Vault) -> None:
    places = (AT, ("twilio", "auth_token", None), ("twilio", "account_sid", P))
    for place in places:
        set_each(vault, *(f"{number} {place}" for number in range(3)), place=place)
    for place in places:
        assert previous(vault, place) == [f"1 {place}", f"0 {place}"]


def test_the_account_of_several_fields_is_kept_as_well(vault: Vault) -> None:
    vault.set_fields("smtp", {"host": "a.example", "user": "a"}, P)
    vault.set_fields("smtp", {"host": "b.example", "user": "b"}, P)
    assert previous(vault, ("smtp", "host", P)) == ["a.example"]
    assert previous(vault, ("smtp", "user", P)) == ["a"]


def test_a_value_that_the_vault_did_not_seal_is_not_kept(site: Site, vault: Vault) -> None:
    set_each(vault, "one")
    site.change("UPDATE provider_credentials SET encrypted_value = 'of the app'")
    set_each(vault, "two")
    assert previous(vault) == []


def test_a_write_that_fails_leaves_the_history_as_it_was(site: Site, vault: Vault) -> None:
    set_each(vault, "one", "two")
    never = triggered(site.database, "BEFORE UPDATE ON provider_credentials", ABORT)
    with never, pytest.raises(VaultError, match="no"):
        set_each(vault, "three")
    assert present(vault) == "two" and previous(vault) == ["one"]


def test_the_history_of_a_project_goes_with_the_project(site: Site, vault: Vault) -> None:
    set_each(vault, "one", "two")
    set_each(vault, "one", "two", place=("twilio", "auth_token", None))
    vault.database.change("DELETE FROM projects")
    assert [each.project_id for each in vault.rows.each("vault_history")] == [None]


# Undo


def test_undo_goes_one_further_back_each_time_and_a_number_brings_what_was_undone(
    site: Site, vault: Vault
) -> None:
    set_each(vault, "one", "two", "three")
    before = site.rows()
    assert undo(vault, *AT).place == Place(P, "twilio", "auth_token")
    assert present(vault) == "two"
    undo(vault, *AT)
    assert present(vault) == "one"
    with pytest.raises(CredentialNotFound, match="no earlier value"):
        undo(vault, *AT)
    undone = previous_values(vault, *AT)
    assert [each.ended_by for each in undone] == ["undo", "undo"]
    number = next(each.number for each in undone if each.encrypted_value in str(before))
    undo(vault, *AT, number=number)
    assert present(vault) == "three" and site.rows().keys() == before.keys()


def test_an_undo_at_the_limit_loses_no_value(vault: Vault) -> None:
    set_each(vault, "one", "two", "three", "four")
    for wanted in ("three", "two", "one"):
        undo(vault, *AT)
        assert present(vault) == wanted
        assert {*previous(vault), wanted} == {"one", "two", "three", "four"}
    numbers = [each.number for each in previous_values(vault, *AT)]
    assert numbers == [6, 5, 4]  # none is used again


def test_undo_of_a_deletion_brings_back_value_label_and_age(site: Site, vault: Vault) -> None:
    vault.set(*AT[:2], "one", P, label="the account")
    (row,) = site.rows().values()
    vault.delete(*AT)
    assert present(vault) is None
    undo(vault, *AT)
    (back,) = site.rows().values()
    assert {**back, "id": ""} == {**row, "id": ""} and previous(vault) == []


def test_undo_opens_nothing_and_a_token_of_another_place_stays_shut(
    site: Site, vault: Vault
) -> None:
    set_each(vault, "one", "two")
    site.change("UPDATE vault_history SET credential_type = 'account_sid'")
    undo(vault, "twilio", "account_sid", P)
    with pytest.raises(Exception, match="twilio/account_sid"):
        vault.get("twilio", "account_sid", P)
    assert present(vault) == "two"


def test_undo_is_refused_if_the_key_of_the_earlier_value_is_missing(
    site: Site, vault: Vault
) -> None:
    set_each(vault, "one", "two")
    old = site.active()
    rotate(vault)
    site.change("UPDATE vault_history SET key_id = ?", old)
    for file in site.keys.glob(f"*.{old}.key"):
        file.unlink()
    with site.open() as vault, pytest.raises(KeyMissing):
        undo(vault, *AT)
    with site.open() as vault:
        assert present(vault) == "two"


def test_an_unknown_project_or_number_is_an_error(vault: Vault) -> None:
    set_each(vault, "one", "two")
    for call in (previous_values, undo, forget):
        with pytest.raises(ProjectNotFound):
            call(vault, "twilio", "auth_token", "nobody")
    with pytest.raises(CredentialNotFound, match="number 9"):
        undo(vault, *AT, number=9)


# Limits


def test_with_a_limit_of_none_a_replaced_token_leaves_the_file(site: Site, vault: Vault) -> None:
    set_each(vault, "one", "two")
    kept = [each.encrypted_value.encode() for each in previous_values(vault, *AT)]
    assert limit(vault, Limits(values=0)) == 1
    kept += [row["encrypted_value"].encode() for row in site.rows().values()]
    set_each(vault, "three")
    vault.delete(*AT)
    vault.database.clean(scrub=True)
    vault.close()
    files = b"".join(file.read_bytes() for file in site.folder.glob("samsara.db*"))
    assert len(kept) == 2 and not any(token in files for token in kept)


def test_a_lower_limit_removes_the_oldest_of_each_place(vault: Vault) -> None:
    other = ("twilio", "auth_token", None)
    for place in (AT, other):
        set_each(vault, "one", "two", "three", "four", place=place)
    assert limit(vault, Limits(values=1)) == 4
    assert previous(vault) == previous(vault, other) == ["three"]
    assert vault.rows.history.limits() == (1, 30)


@pytest.mark.parametrize("limits", [Limits(values=-1), Limits(values=1001), Limits(days=-1)])
def test_a_limit_that_makes_no_sense_is_refused(vault: Vault, limits: Limits) -> None:
    with pytest.raises(WrongArgument, match="must be a number from 0"):
        limit(vault, limits)
    assert vault.rows.history.limits() == (3, 30)


@pytest.mark.parametrize(
    ("fact", "spoiled"),
    [("values", "many"), ("values", "-2"), ("days", "99999999999"), ("days", "")],
)
def test_limits_that_another_tool_spoiled_are_an_error_and_not_a_guess(
    site: Site, vault: Vault, fact: str, spoiled: str
) -> None:
    set_each(vault, "one")
    sql(site.database, "INSERT INTO vault_meta VALUES (?, ?)", f"history_{fact}", spoiled)
    with pytest.raises(SchemaMismatch, match="limits of the history"):
        set_each(vault, "two")
    assert present(vault) == "one"


def test_after_its_days_a_value_is_neither_shown_nor_kept(site: Site, vault: Vault) -> None:
    set_each(vault, "one", "two")
    site.change("UPDATE vault_history SET ended_at = '2020-01-01T00:00:00.000Z'")
    assert previous_values(vault, *AT) == []
    with pytest.raises(CredentialNotFound):
        undo(vault, *AT)
    set_each(vault, "else", place=("smtp", "user", None))
    set_each(vault, "else again", place=("smtp", "user", None))
    assert [each.provider for each in vault.rows.each("vault_history")] == ["smtp"]


def test_a_rotation_removes_what_was_kept_for_its_days(site: Site, vault: Vault) -> None:
    set_each(vault, "one", "two")
    site.change("UPDATE vault_history SET ended_at = '2020-01-01T00:00:00.000Z'")
    rotate(vault)
    assert list(vault.rows.each("vault_history")) == []


def test_forget_removes_one_place_s(vault: Vault) -> None:
    other = ("twilio", "auth_token", None)
    for place in (AT, other):
        set_each(vault, "one", "two", place=place)
    assert forget(vault, *AT) == 1
    assert previous(vault) == [] and previous(vault, other) == ["one"]


# Keys


def test_a_rotation_puts_the_history_under_the_new_key(site: Site, vault: Vault) -> None:
    set_each(vault, "one", "two", "three")
    old = site.active()
    with pytest.raises(KeyInUse):
        rotation.destroy(vault, old)
    report = rotate(vault, destroy_old=True)
    assert (report.rotated, report.previous, report.complete) == (1, 2, True)
    assert report.destroyed_key == old
    assert previous(vault) == ["two", "one"]
    undo(vault, *AT)
    assert present(vault) == "two"


def test_a_key_that_only_the_history_needs_is_not_destroyed(site: Site, vault: Vault) -> None:
    set_each(vault, "one", "two")
    old, kept = site.active(), previous_values(vault, *AT)[0]
    rotate(vault)
    site.change(
        "UPDATE vault_history SET encrypted_value = ?, key_id = ?", kept.encrypted_value, old
    )
    with pytest.raises(KeyInUse, match="1 value"):
        rotation.destroy(vault, old)
    assert previous(vault) == ["one"]
    if site.engine is None:
        assert [count for record, count in backup(vault, site.folder / "b").keys] == [1, 1]


def test_a_rotation_stopped_at_each_step_leaves_every_previous_value_open(
    site: Site, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 2)
    with site.open() as vault:
        set_each(vault, "one", "two", "three", "four")
    name = "stops of a rotation at a numbered step, all previous values open after each"
    for stopped in each_stop(
        site, lambda site, store: _rotate(site, store), figures, name, every=4
    ):
        with stopped.open() as vault:
            assert present(vault) == "four" and previous(vault) == ["three", "two", "one"]
            rotate(vault)
            assert set(vault.rows.count_by_key()) == {stopped.active()}
            assert present(vault) == "four" and previous(vault) == ["three", "two", "one"]


def _rotate(site: Site, store: object) -> None:
    with site.open(store) as vault:  # type: ignore[arg-type]
        rotate(vault, scrub=False)


def test_values_that_change_beside_rotations_are_never_stranded(
    site: Site, figures: Figures
) -> None:
    """A value may go from its row to the history and back while a pass is in the other table."""
    with site.open() as vault:
        set_each(vault, *(f"value {number}" for number in range(4)))
        ended, wrong = threading.Event(), list[BaseException]()

        def change(seed: int) -> None:
            chosen = random.Random(seed)
            field = f"field_{seed}"
            try:
                while not ended.wait(0.001):  # else the rotation waits for ever on a busy machine
                    what = chosen.choice(("set", "set", "delete", "undo"))
                    if what == "set":
                        vault.set("twilio", field, f"value {chosen.random()}", P)
                    elif what == "delete":
                        vault.delete("twilio", field, P)
                    elif previous_values(vault, "twilio", field, P):
                        with contextlib.suppress(CredentialNotFound):
                            undo(vault, "twilio", field, P)
            except BaseException as error:  # told to the test below
                wrong.append(error)

        threads = [threading.Thread(target=change, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        old, rounds = site.active(), effort(10, 3)
        for _ in range(rounds):
            rotate(vault, scrub=False)
            assert vault.rows.count_by_key()[old] == 0
            old = site.active()
        ended.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert set(vault.rows.count_by_key()) == {site.active()}
        for row in (*vault.rows.each(), *vault.rows.each("vault_history")):
            open_row(vault.keys, row)
    figures("rotations beside values that went to the history and back, none stranded", rounds)


def test_a_damaged_previous_value_is_removed_by_the_next_rotation(site: Site, vault: Vault) -> None:
    """Else the cure of a damaged value, to store it again, would only hide it in the history."""
    set_each(vault, "one")
    (row,) = site.rows().values()
    site.change(
        "UPDATE provider_credentials SET encrypted_value = ?", flipped(row["encrypted_value"])
    )
    set_each(vault, "two", "three")
    found = examine(site.database, key_store=vault.keys.store, deep=True)
    assert [f.level for f in found.findings if f.kind == "unreadable previous value"] == ["notice"]
    assert rotation.rehearse(vault).removed == 1
    report = rotate(vault)
    assert (report.complete, report.removed, report.previous) == (True, 1, 1)
    assert previous(vault) == ["two"]


def test_a_previous_value_whose_key_is_missing_stays_and_is_named(
    site: Site, vault: Vault, tmp_path: Path
) -> None:
    set_each(vault, "one", "two")
    old, kept = site.active(), previous_values(vault, *AT)[0]
    rotate(vault)
    site.change(
        "UPDATE vault_history SET encrypted_value = ?, key_id = ?", kept.encrypted_value, old
    )
    (file,) = site.keys.glob(f"*.{old}.key")
    file.rename(tmp_path / "aside")
    with site.open() as vault:
        report = rotate(vault)
        assert (report.complete, report.unreadable, report.removed) == (False, 1, 0)
        assert old in report.unreadable_rows[0].reason
        assert len(previous_values(vault, *AT)) == 1
    (tmp_path / "aside").rename(file)
    with site.open() as vault:
        assert rotate(vault).complete and previous(vault) == ["one"]


def test_what_a_key_that_was_given_up_sealed_leaves_the_history_too(
    site: Site, vault: Vault
) -> None:
    set_each(vault, "one", "two")
    lost = site.active()
    vault.close()
    for file in site.keys.glob(f"*.{lost}.key"):
        file.unlink()
    with site.open() as vault:
        abandon(vault, lost)
        set_each(vault, "three")
        report = rotate(vault)
        assert (report.complete, report.removed) == (True, 2)


def test_status_counts_previous_values_apart_and_with_their_keys(vault: Vault) -> None:
    set_each(vault, "one", "two", "three")
    found = status(vault)
    assert (found.values["ok"], found.previous) == (1, 2)
    assert [count for _, count in found.keys] == [3]
