"""
Key states, and the promise that no key is made, used or taken for another because one could not be
read.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.site import Site, is_made, refusals, sql

from outreach_vault import (
    KeyDirectory,
    KeyMissing,
    KeyStoreUnavailable,
    KeySuperseded,
    KeyUnavailable,
    Secret,
    Vault,
    VaultError,
    WrongKey,
)
from outreach_vault.cipher import generate_key
from outreach_vault.operations.init import init
from outreach_vault.operations.rotation import rehearse, rotate
from outreach_vault.schema import migrator


def states(path: Any) -> Counter[str]:
    return Counter(row[0] for row in sql(path, "SELECT state FROM vault_keys"))


def everything(path: Any) -> list[Any]:
    return [
        sql(path, f"SELECT * FROM {table} ORDER BY 1")
        for table in ("vault_keys", "vault_meta", "provider_credentials")
    ]


def entries(keys: KeyDirectory) -> dict[str, bytes]:
    return (
        {file.name: file.read_bytes() for file in keys.path.iterdir()} if keys.path.exists() else {}
    )


def entry(keys: KeyDirectory, vault: Vault, key_id: str) -> Path:
    return keys.path / f"{vault.keys.vault_id}.{key_id}.key"


@pytest.fixture
def path(place: Site) -> Any:
    """The database, as the package is given it."""
    return place.database


@pytest.fixture
def keys(place: Site) -> KeyDirectory:
    return KeyDirectory(place.keys)


@pytest.fixture
def vault(vault: Vault) -> Vault:
    vault.set("smtp", "user", "v")
    return vault


def reopen(path: Any, vault: Vault) -> Vault:
    """The same vault as another process has it: nothing fetched yet."""
    return Vault.open(path, key_store=vault.keys.store)


# States


def test_a_key_goes_from_pending_to_active_to_retired(path: Any, vault: Vault) -> None:
    first = vault.keys.states.active_id()
    second = vault.keys.create()
    assert vault.keys.states.active_id() == first and states(path) == {"active": 1, "pending": 1}
    vault.keys.promote(second)
    found = {record.id: record for record in vault.keys.states.records()}
    assert (found[first].state, found[second].state) == ("retired", "active")
    assert found[first].retired_at and found[second].activated_at and not found[second].retired_at
    assert vault.get("smtp", "user").reveal() == "v"


def test_init_a_second_time_changes_nothing(path: Any, keys: KeyDirectory, vault: Vault) -> None:
    init(path, key_store=keys)  # it notes where this copy is
    before, kept = everything(path), entries(keys)
    assert init(path, key_store=keys) is None
    assert (everything(path), entries(keys)) == (before, kept)
    assert sorted(file.name for file in keys.path.parent.glob("*.backup")) == []


def test_a_second_active_key_cannot_be_stored(path: Any, vault: Vault) -> None:
    with pytest.raises(refusals()):
        sql(
            path,
            "INSERT INTO vault_keys (id, state, check_value, created_at) VALUES ('other', "
            "'active', '', '')",
        )
    vault.keys.create()
    with pytest.raises(refusals()):
        sql(path, "UPDATE vault_keys SET state = 'active'")
    assert states(path) == {"active": 1, "pending": 1}


def test_promote_of_a_key_that_is_not_pending_leaves_the_active_one(
    path: Any, vault: Vault
) -> None:
    """
    Two rotations settle one pending key, or a key was written off meanwhile: exactly one stays
    active.
    """
    first, second = vault.keys.states.active_id(), vault.keys.create()
    with reopen(path, vault) as other:
        other.keys.promote(second)
    for key_id in (first, second):
        with contextlib.suppress(VaultError):
            vault.keys.promote(key_id)
        assert states(path)["active"] == 1
        assert vault.keys.states.active_id() == second


def test_no_change_but_its_successors_ends_the_active_state(vault: Vault) -> None:
    states, active = vault.keys.states, vault.keys.states.active_id()
    for change in (states.take_back, states.write_off, states.retire_again, states.destroyed):
        change(active)
        assert states.active_id() == active


def test_of_two_keys_that_one_replaced_neither_is_its_predecessor(path: Any, vault: Vault) -> None:
    rotate(vault)
    begun = vault.keys.begin_rotation(after_restore=False)
    assert vault.keys.states.predecessor(begun.new_key) == begun.old_key
    sql(path, "UPDATE vault_keys SET replaced_by = ? WHERE state = 'retired'", begun.new_key)
    assert vault.keys.states.predecessor(begun.new_key) is None


def test_only_retired_keys_that_no_value_names_are_noted_as_empty_and_once(
    path: Any, vault: Vault
) -> None:
    made = [vault.keys.states.active_id()]
    for _ in range(2):
        made.append(vault.keys.create())
        vault.keys.promote(made[-1])
    vault.keys.states.write_off(vault.keys.create())  # destroyed; and one that stays pending:
    vault.keys.create()
    for named, empty in (({made[1]}, made[:1]), (set(), made[:2])):
        vault.keys.end_rotation(named)
        found = {record.id: record.emptied_at for record in vault.keys.states.records()}
        assert [key_id for key_id in found if found[key_id]] == empty
        sql(path, "UPDATE vault_keys SET emptied_at = 'before' WHERE id = ?", made[0])
    assert found[made[0]] == "before"


def test_a_key_that_is_destroyed_is_noted_as_empty(vault: Vault) -> None:
    first = vault.keys.states.active_id()
    vault.keys.promote(vault.keys.create())
    vault.keys.destroy(first, lambda key_id: None)
    assert vault.keys.states.record(first).emptied_at


# A key store that does not keep what it is given


class Careless(KeyDirectory):
    """Does something else with a key than keep it."""

    def __init__(self, path: Path, instead: Callable[[Secret], Secret | None]) -> None:
        super().__init__(path)
        self.instead = instead

    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        if (kept := self.instead(key)) is not None:
            super().write(vault_id, key_id, kept)
        else:
            self.path.mkdir(mode=0o700, exist_ok=True)


CARELESS: dict[str, tuple[Callable[[Secret], Secret | None], type[KeyUnavailable]]] = {
    "drops": (lambda key: None, KeyMissing),
    "changes": (lambda key: generate_key(), WrongKey),
    "truncates": (lambda key: Secret(key.reveal()[:20]), WrongKey),
    "empties": (lambda key: Secret(""), WrongKey),
    "adds a line end": (lambda key: Secret(key.reveal() + "\n"), WrongKey),
}


@pytest.mark.parametrize("what", CARELESS)
def test_a_store_that_keeps_no_key_is_known_before_anything_is_made(
    path: Any, keys: KeyDirectory, what: str
) -> None:
    instead, _ = CARELESS[what]
    with pytest.raises(KeyStoreUnavailable, match="does not give back"):
        init(path, key_store=Careless(keys.path, instead))
    assert not is_made(path) and entries(keys) == {}
    assert init(path, key_store=keys)
    assert states(path) == {"active": 1}


@pytest.mark.parametrize("what", CARELESS)
def test_a_first_key_that_the_store_does_not_keep_is_never_active(
    path: Any, keys: KeyDirectory, what: str
) -> None:
    instead, error = CARELESS[what]
    migrator.create(path)
    with Vault.open(path, key_store=Careless(keys.path, instead)) as vault:
        with pytest.raises(error):
            vault.keys.ensure_active(lambda: False)
        with pytest.raises(KeyMissing, match="no active key"):
            vault.set("smtp", "user", "v")
    # Where an entry is left its row is.
    assert states(path) == ({} if what == "drops" else {"destroyed": 1})
    assert init(path, key_store=keys)
    with Vault.open(path, key_store=keys) as vault:
        vault.set("smtp", "user", "v")
        assert vault.get("smtp", "user").reveal() == "v"


@pytest.mark.parametrize("what", CARELESS)
def test_a_new_key_that_the_store_does_not_keep_changes_no_row(
    path: Any, keys: KeyDirectory, vault: Vault, what: str
) -> None:
    instead, error = CARELESS[what]
    rows, active = sql(path, "SELECT * FROM provider_credentials"), vault.keys.states.active_id()
    with Vault.open(path, key_store=Careless(keys.path, instead)) as other, pytest.raises(error):
        rotate(other)
    assert sql(path, "SELECT * FROM provider_credentials") == rows
    assert vault.keys.states.active_id() == active and not vault.keys.states.unfinished_rotation()
    assert rotate(vault).rotated == 1
    assert states(path) == {"active": 1, "retired": 1} | (
        {} if what == "drops" else {"destroyed": 1}
    )
    assert vault.get("smtp", "user").reveal() == "v"


# What an interrupted run left


def test_a_pending_key_that_the_store_has_becomes_active(path: Any, vault: Vault) -> None:
    pending = vault.keys.create()
    with reopen(path, vault) as other:
        assert other.keys.settle() == pending == other.keys.states.active_id()
        assert other.keys.settle() is None
    assert states(path) == {"retired": 1, "active": 1}


@pytest.mark.parametrize(
    "instead", [None, generate_key().reveal(), ""], ids=["none", "another key", "empty"]
)
def test_a_pending_key_that_the_store_has_not_or_has_wrong_is_written_off(
    path: Any, keys: KeyDirectory, vault: Vault, instead: str | None
) -> None:
    active, pending = vault.keys.states.active_id(), vault.keys.create()
    file = entry(keys, vault, pending)
    if instead is None:
        file.unlink()
    else:
        file.write_text(instead)
    kept = entries(keys)
    with reopen(path, vault) as other:
        assert other.keys.settle() is None
        assert other.keys.states.active_id() == active
    assert states(path) == {"destroyed": 1, "active": 1} and entries(keys) == kept


@pytest.mark.sqlite("a backup, which is a file")
def test_a_rotation_whose_key_was_replaced_since_is_not_resumed(
    tmp_path: Path, keys: KeyDirectory, vault: Vault
) -> None:
    """The database was restored from a backup that was made in the middle of the rotation."""
    begun = vault.keys.begin_rotation(after_restore=False)
    vault.database.backup(tmp_path / "before.db", lambda copy: None)
    rotate(vault)
    newest = rotate(vault).new_key
    with Vault.open(tmp_path / "before.db", key_store=keys) as older:
        with pytest.raises(KeySuperseded):
            older.keys.begin_rotation(after_restore=False)
        again = older.keys.begin_rotation(after_restore=True)
    assert again.old_key == begun.new_key and not again.resumed
    assert again.new_key not in (begun.new_key, newest)


def test_a_rotation_is_not_resumed_without_its_key(
    path: Any, keys: KeyDirectory, vault: Vault
) -> None:
    begun = vault.keys.begin_rotation(after_restore=False)
    entry(keys, vault, begun.new_key).unlink()
    with reopen(path, vault) as other, pytest.raises(KeyMissing, match=begun.new_key):
        other.keys.begin_rotation(after_restore=False)


def test_a_rotation_that_finds_the_first_key_pending_makes_no_other(
    path: Any, keys: KeyDirectory
) -> None:
    migrator.create(path)
    with Vault.open(path, key_store=keys) as vault:
        first = vault.keys.create()
        done = rotate(vault, destroy_old=True)
    assert (done.old_key, done.new_key, done.resumed) == (None, first, True)
    assert done.destroyed_key is None


def test_a_note_that_was_lost_names_the_key_that_came_next_again(
    keys: KeyDirectory, vault: Vault
) -> None:
    first = vault.keys.states.active_id()
    second, _ = rotate(vault).new_key, rotate(vault)
    (note := entry(keys, vault, first).with_suffix(".successor")).unlink()
    rotate(vault)
    assert note.read_text() == second


def test_a_key_whose_entry_is_another_key_can_be_given_up(
    path: Any, keys: KeyDirectory, vault: Vault
) -> None:
    first = vault.keys.states.active_id()
    entry(keys, vault, first).write_text(generate_key().reveal())
    with reopen(path, vault) as other:
        assert other.keys.abandon(first) == other.keys.states.active_id() != first


def test_giving_up_a_key_again_changes_nothing_that_is_noted_of_it(
    path: Any, keys: KeyDirectory, vault: Vault
) -> None:
    first, second = vault.keys.states.active_id(), rotate(vault).new_key
    entry(keys, vault, first).unlink()
    with reopen(path, vault) as other:
        other.keys.abandon(first)
        sql(path, "UPDATE vault_keys SET destroyed_at = 'before' WHERE id = ?", first)
        other.keys.abandon(first)
        found = other.keys.states.record(first)
    assert (found.state, found.destroyed_at, found.replaced_by) == ("destroyed", "before", second)


def unreachable(keys: KeyDirectory) -> None:
    keys.path.rename(keys.path.with_name("elsewhere"))


def let_others_in(keys: KeyDirectory) -> None:
    keys.path.chmod(0o755)


@pytest.mark.parametrize("fault", [unreachable, let_others_in])
def test_a_pending_key_stays_where_the_store_cannot_be_asked(
    path: Any, keys: KeyDirectory, vault: Vault, fault: Callable[[KeyDirectory], None]
) -> None:
    vault.keys.create()
    fault(keys)
    before = everything(path)
    for operation in (
        lambda: other.keys.settle(),
        lambda: other.keys.ensure_active(lambda: False),
        lambda: rotate(other),
    ):
        with reopen(path, vault) as other, pytest.raises(KeyStoreUnavailable):
            operation()
    assert everything(path) == before


# Never a new key instead of one that cannot be had


def no_active_key(vault: Vault) -> None:
    vault.database.change("UPDATE vault_keys SET state = 'retired'")


def keys_gone_from_the_list(vault: Vault) -> None:
    vault.database.change("DELETE FROM vault_keys")


def active_key_destroyed(vault: Vault) -> None:
    vault.database.change("UPDATE vault_keys SET state = 'destroyed'")


@pytest.mark.parametrize("fault", [no_active_key, keys_gone_from_the_list, active_key_destroyed])
def test_no_first_key_is_made_where_values_or_retired_keys_need_another(
    path: Any, keys: KeyDirectory, vault: Vault, fault: Callable[[Vault], None]
) -> None:
    fault(vault)
    before, kept = everything(path), entries(keys)
    for operation in (
        lambda: init(path, key_store=keys),
        lambda: rotate(vault),
        lambda: vault.set("smtp", "user", "w"),
    ):
        with pytest.raises(KeyMissing):
            operation()
    assert (everything(path), entries(keys)) == (before, kept)


def test_no_first_key_is_made_where_a_retired_one_is_without_values(
    path: Any, keys: KeyDirectory, vault: Vault
) -> None:
    vault.delete("smtp", "user")
    no_active_key(vault)
    with pytest.raises(KeyMissing, match="no new one was made"):
        init(path, key_store=keys)
    assert states(path) == {"retired": 1} and len(entries(keys)) == 1


def key_of_another_vault(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    others = KeyDirectory(tmp_path / "other" / "keys")
    init(tmp_path / "other" / "samsara.db", key_store=others)
    file.write_bytes(next(iter(entries(others).values())))


FAULTS: dict[str, tuple[Callable[[Path, Path], object], type[KeyUnavailable]]] = {
    "of another vault": (key_of_another_vault, WrongKey),
    "another valid key": (lambda file, _: file.write_text(generate_key().reveal()), WrongKey),
    "truncated": (lambda file, _: file.write_bytes(file.read_bytes()[:-1]), WrongKey),
    "empty": (lambda file, _: file.write_bytes(b""), WrongKey),
    "with a line end": (lambda file, _: file.write_bytes(file.read_bytes() + b"\n"), WrongKey),
    "with a space before": (lambda file, _: file.write_bytes(b" " + file.read_bytes()), WrongKey),
    "twice": (lambda file, _: file.write_bytes(file.read_bytes() * 2), WrongKey),
    "not ASCII": (lambda file, _: file.write_bytes(b"\xff" * 44), WrongKey),
    "missing": (lambda file, _: file.unlink(), KeyMissing),
    "unreachable": (
        lambda file, _: file.parent.rename(file.parent.with_name("elsewhere")),
        KeyStoreUnavailable,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_or_missing_active_key_is_named_and_never_replaced(
    tmp_path: Path, path: Any, keys: KeyDirectory, vault: Vault, fault: str
) -> None:
    break_it, error = FAULTS[fault]
    active = vault.keys.states.active_id()
    break_it(entry(keys, vault, active), tmp_path)
    before, kept = everything(path), entries(keys)
    operations: list[Callable[[Vault], object]] = [
        lambda vault: vault.get("smtp", "user"),
        lambda vault: vault.set("smtp", "user", "w"),
        rotate,
        rehearse,
        lambda vault: init(path, key_store=keys),
    ]
    for operation in operations:
        with reopen(path, vault) as other, pytest.raises(error) as caught:
            operation(other)
        assert type(caught.value) is error and caught.value.hint
        if error is not KeyStoreUnavailable:
            assert active in str(caught.value) and caught.value.key_id == active
        for content in kept.values():
            assert not content.strip() or content.decode("latin-1").strip() not in str(caught.value)
    assert everything(path) == before
    assert entries(keys) == kept
    with reopen(path, vault) as other:
        assert [found.state for found in other.list()] == ["key missing"]


def test_get_says_which_row_needs_the_key_that_is_missing(
    path: Any, keys: KeyDirectory, vault: Vault
) -> None:
    entry(keys, vault, vault.keys.states.active_id()).unlink()
    with reopen(path, vault) as other, pytest.raises(KeyMissing) as caught:
        other.get("smtp", "user")
    assert vault.list()[0].id in str(caught.value)


def test_a_changed_vault_id_is_noticed(path: Any, keys: KeyDirectory, vault: Vault) -> None:
    """
    Whoever writes the database could point it at another vault's keys: first they are not there,
    then they are wrong.
    """
    active = vault.keys.states.active_id()
    file = entry(keys, vault, active)
    sql(
        path,
        "UPDATE vault_meta SET value = '00000000-0000-4000-8000-000000000000' WHERE key = "
        "'vault_id'",
    )
    with reopen(path, vault) as other, pytest.raises(KeyMissing, match=active):
        other.get("smtp", "user")
    with reopen(path, vault) as other:
        shutil.copy2(file, entry(keys, other, active))
        with pytest.raises(WrongKey, match=active):
            other.get("smtp", "user")


def test_a_destroyed_key_is_not_used_though_its_entry_came_back(
    path: Any, keys: KeyDirectory, vault: Vault
) -> None:
    """
    Someone restored the key directory: the vault holds to what was decided, and says when that was.
    """
    active = vault.keys.states.active_id()
    sql(
        path, "UPDATE vault_keys SET state = 'destroyed', destroyed_at = '2026-02-06T09:30:00.250Z'"
    )
    assert entry(keys, vault, active).exists()
    with (
        reopen(path, vault) as other,
        pytest.raises(KeyMissing, match=f"{active} was destroyed at 2026-02-06"),
    ):
        other.get("smtp", "user")


def test_an_entry_of_another_id_is_never_tried(path: Any, keys: KeyDirectory, vault: Vault) -> None:
    """
    The right key is in the store, under the id of another key of the vault: only the one that the
    row names is asked for.
    """
    old = vault.keys.states.active_id()
    new = vault.keys.create()
    entry(keys, vault, old).rename(entry(keys, vault, old).with_name("aside"))
    shutil.copy2(entry(keys, vault, old).with_name("aside"), entry(keys, vault, new))
    with reopen(path, vault) as other, pytest.raises(KeyMissing, match=old):
        other.get("smtp", "user")
    with reopen(path, vault) as other, pytest.raises(WrongKey, match=new):
        other.keys.cipher(new)


@pytest.mark.sqlite("a backup, which is a file")
@pytest.mark.parametrize("at_hand", ["old", "new", "both"])
@pytest.mark.parametrize("database", ["old", "new"])
def test_a_restored_database_opens_with_its_own_key_or_names_the_one_that_is_missing(
    tmp_path: Path, keys: KeyDirectory, vault: Vault, database: str, at_hand: str
) -> None:
    old = vault.keys.states.active_id()
    backup = tmp_path / "before.db"
    vault.database.backup(backup, lambda copy: None)
    new = rotate(vault).new_key
    assert new
    needed = {"old": old, "new": new}[database]
    if at_hand != "both":
        entry(keys, vault, new if at_hand == "old" else old).unlink()
    with Vault.open(
        backup if database == "old" else vault.database.path, key_store=keys
    ) as restored:
        if at_hand in (database, "both"):
            assert restored.get("smtp", "user").reveal() == "v"
        else:
            with pytest.raises(KeyMissing) as caught:
                restored.get("smtp", "user")
            assert caught.value.key_id == needed and needed in str(caught.value)


def test_ids_that_the_database_names_reach_no_file_outside_the_key_directory(
    path: Any, keys: KeyDirectory, vault: Vault
) -> None:
    keys.path.with_name("outside.key").write_text(generate_key().reveal())
    sql(path, "UPDATE vault_meta SET value = '../outside' WHERE key = 'vault_id'")
    with reopen(path, vault) as other, pytest.raises(KeyMissing):
        other.get("smtp", "user")
