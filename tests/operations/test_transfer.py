"""
Values taken to another scope, deleted or labelled: all or nothing, and never parts of two accounts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from helpers.rows import IGNORE, flipped, insert, put, stored, trigger, triggered
from helpers.site import Site, everything

from outreach_vault import (
    CredentialNotFound,
    DamagedValue,
    ForeignValue,
    ProjectNotFound,
    Secret,
    StorageError,
    Vault,
    VaultError,
)
from outreach_vault.cipher import sealed_at
from outreach_vault.errors import WrongArgument
from outreach_vault.operations.rotation import rotate
from outreach_vault.operations.transfer import delete, relabel, transfer
from outreach_vault.schema.shapes import Place
from outreach_vault.values.sealing import seal

pytestmark = pytest.mark.sweep(3)

P = "default-project"
WHOLE = {"host": "mail.example.com", "user": "u", "password": "p"}


@pytest.fixture
def other(vault: Vault) -> str:
    return vault.projects.add("Another")


def fill(vault: Vault, project: str | None, *, label: str = "main", **more: str) -> None:
    for name, value in (WHOLE | more).items():
        vault.set(
            "smtp", name, f"{value} of {project}" if name != "port" else value, project, label=label
        )


def held(vault: Vault, project: str | None) -> dict[str, tuple[str, str | None]]:
    """The value and label of each field of exactly this scope."""
    return {
        each.credential_type: (
            vault.get("smtp", each.credential_type, project, fallback=False).reveal(),
            each.label,
        )
        for each in vault.list(project)
    }


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize(("source", "target"), [(None, P), (P, None), (P, "other")])
def test_an_account_is_taken_to_another_scope_with_its_labels(
    vault: Vault, other: str, source: str | None, target: str | None, move: bool
) -> None:
    target = other if target == "other" else target
    fill(vault, source)
    before = held(vault, source)
    done = transfer(vault, "smtp", source, target, move=move)
    assert (sorted(done.fields), done.removed) == (sorted(WHOLE), [])
    assert held(vault, target) == before
    assert held(vault, source) == ({} if move else before)


def test_one_field_is_taken_alone(vault: Vault) -> None:
    fill(vault, None)
    vault.set("smtp", "user", "own", P)
    transfer(vault, "smtp", None, P, field="host", move=True)
    assert (set(held(vault, None)), set(held(vault, P))) == ({"user", "password"}, {"host", "user"})


def test_a_value_is_as_old_as_it_was_whichever_scope_it_is_in(site: Site, vault: Vault) -> None:
    """`doctor` tells by the token's own time which values are due."""
    key_id = vault.keys.states.active_id()
    then = int(time.time()) - 400 * 86_400
    token = seal(vault.keys.cipher(key_id), Place(None, "smtp", "host"), Secret("h"), at=then)
    insert(site.database, token, None, "smtp", "host", key_id)
    transfer(vault, "smtp", None, P)
    ages = [sealed_at(row["encrypted_value"]) for row in site.rows().values()]
    assert ages == [then, then]


@pytest.mark.parametrize("move", [False, True])
def test_a_value_is_due_on_the_day_that_was_named_whichever_scope_it_is_in(
    vault: Vault, move: bool
) -> None:
    vault.set("smtp", "password", "p", due=date(2027, 1, 31))
    vault.set("smtp", "user", "u")
    transfer(vault, "smtp", None, P, move=move)
    days = vault.rows.due.days()
    assert [days.get(each.id) for each in vault.list(P)] == ["2027-01-31", None]
    assert [days.get(each.id) for each in vault.list(None)] == ["2027-01-31", None][: 2 - 2 * move]


@pytest.mark.parametrize("field", [None, "user"])
def test_nothing_is_overwritten_unless_it_is_said(
    site: Site, vault: Vault, field: str | None
) -> None:
    fill(vault, None)
    vault.set("smtp", "user", "own", P, label="own")
    before = everything(site)
    with pytest.raises(WrongArgument, match=r"user stored there already; nothing was changed"):
        transfer(vault, "smtp", None, P, field=field, move=True)
    assert everything(site) == before
    row_id = next(each.id for each in vault.list(P))
    transfer(vault, "smtp", None, P, field=field, replace=True)
    assert held(vault, P)["user"] == ("u of None", "main")
    assert row_id in {each.id for each in vault.list(P)}  # a value in its place, as with `set`


def test_an_account_that_replaces_another_leaves_nothing_of_it_but_what_is_free(
    site: Site, vault: Vault
) -> None:
    """The port of the old account would be used with the host of the new one."""
    fill(vault, None)
    vault.set("smtp", "port", "465", P)
    vault.set("smtp", "from_email", "a@b", P)
    before = everything(site)
    with pytest.raises(WrongArgument, match="port stored there already"):
        transfer(vault, "smtp", None, P)
    assert everything(site) == before
    done = transfer(vault, "smtp", None, P, replace=True)
    assert done.removed == ["port"]
    assert set(held(vault, P)) == {*WHOLE, "from_email"}
    assert vault.bundle("smtp", P).port == 587


@pytest.mark.parametrize("field", [None, "password"])
@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("fault", ["damaged", "foreign", "trigger"])
def test_a_fault_at_any_value_changes_nothing(
    site: Site, vault: Vault, fault: str, move: bool, field: str | None
) -> None:
    fill(vault, None)
    vault.set("smtp", "user", "own", P)
    row_id = next(each.id for each in vault.list() if each.credential_type == "password")
    errors: dict[str, type[VaultError]] = {"damaged": DamagedValue, "foreign": ForeignValue}
    if fault == "damaged":
        put(site.database, row_id, encrypted_value=flipped(stored(site.database, row_id)))
    elif fault == "foreign":
        put(site.database, row_id, encrypted_value="the app's own")
    else:
        undo = "DELETE FROM provider_credentials WHERE id = new.id"
        new = "AFTER INSERT ON provider_credentials"
        trigger(site.database, new, undo, "new.credential_type = 'password'")
    before = everything(site)
    with pytest.raises(errors.get(fault, StorageError)):
        transfer(vault, "smtp", None, P, field=field, move=move, replace=True)
    assert everything(site) == before


def test_what_is_not_there_is_an_error_that_changes_nothing(site: Site, vault: Vault) -> None:
    fill(vault, None)
    before = everything(site)
    for source, target, field, error in (
        (P, None, None, CredentialNotFound),  # not the global one in its place
        (P, None, "host", CredentialNotFound),
        (None, P, "port", CredentialNotFound),
        (None, "nobody", None, ProjectNotFound),
        ("nobody", None, None, ProjectNotFound),
        (None, None, None, WrongArgument),
    ):
        with pytest.raises(error):
            transfer(vault, "smtp", source, target, field=field, move=True, replace=True)
    assert everything(site) == before


def test_what_another_process_changes_meanwhile_is_what_is_taken(
    site: Site, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened outside the lock, so compared under it: a rotation and a `set` come in between."""
    fill(vault, None)
    write, changes = vault.database.write, [rotate, lambda v: fill(v, None, port="25")]

    def later(operation: Callable[[], Any], **options: Any) -> Any:
        if changes:
            with site.open() as beside:
                changes.pop()(beside)
        return write(operation, **options)

    monkeypatch.setattr(vault.database, "write", later)
    transfer(vault, "smtp", None, P, move=True)
    assert changes == [] and held(vault, None) == {}
    assert {name: value for name, (value, _) in held(vault, P).items()} == {
        name: f"{value} of None" for name, value in WHOLE.items()
    } | {"port": "25"}


def test_the_account_of_one_scope_is_deleted_in_one_transaction(site: Site, vault: Vault) -> None:
    fill(vault, None)
    fill(vault, P)
    change, when = "BEFORE DELETE ON provider_credentials", "old.credential_type = 'user'"
    with triggered(site.database, change, IGNORE, when):
        before = everything(site)
        with pytest.raises(StorageError, match="still there"):
            delete(vault, "smtp", P, WHOLE)
        assert everything(site) == before
    assert delete(vault, "smtp", P, [*WHOLE, "port"]) == 3
    assert (set(held(vault, None)), held(vault, P)) == (set(WHOLE), {})


def test_a_label_is_changed_without_its_value(site: Site, vault: Vault) -> None:
    fill(vault, None)
    fill(vault, P)
    before = site.rows()
    row_id = next(each.id for each in vault.list(P) if each.credential_type == "host")
    for given, kept in (("é other", "é other"), ("", None)):
        relabel(vault, "smtp", "host", given, P)
        assert site.rows() == before | {row_id: before[row_id] | {"label": kept}}
    with pytest.raises(CredentialNotFound):
        relabel(vault, "smtp", "port", "x", P)
    with pytest.raises(ProjectNotFound):
        relabel(vault, "smtp", "host", "x", "nobody")
    with pytest.raises(WrongArgument):
        relabel(vault, "smtp", "host", "\udcff")
    undo = "UPDATE provider_credentials SET label = old.label WHERE id = new.id"
    once = "pg_trigger_depth() = 0" if site.engine else ""  # a change of its own starts it too
    trigger(site.database, "AFTER UPDATE OF label ON provider_credentials", undo, once)
    with pytest.raises(StorageError, match="label"):
        relabel(vault, "smtp", "host", "x")
