"""
The accounts at a glance: by the rules of every look-up, without opening a value, in as many
statements for ten thousand projects as for one.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from helpers.effort import some
from helpers.rows import insert, traced, unchecked
from helpers.site import Site, sql

from outreach_vault import IncompleteAccount, MixedAccount, ProjectNotFound, Vault
from outreach_vault.cipher import Cipher
from outreach_vault.operations.accounts import Account, account_of, accounts, faults
from outreach_vault.operations.init import init
from outreach_vault.testing import MemoryKeyStore

pytestmark = pytest.mark.sweep(3)

P = "default-project"
OTHER = "another-project"
WHOLE = {"host": "mail.example.com", "user": "u", "password": "p"}
SMTP = WHOLE | {"port": "25", "from_email": "a@b"}
TWILIO = {"account_sid": "AC1", "auth_token": "t", "phone_number": "+41123456789"}


def add_project(path: Path, project_id: object, name: object, archived: int = 0) -> None:
    insert = (
        "INSERT INTO projects (id, name, is_archived, created_at, updated_at)"
        " VALUES (?, ?, ?, '', '')"
    )
    sql(path, insert, project_id, name, archived)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    path, keys = tmp_path_factory.mktemp("accounts") / "samsara.db", MemoryKeyStore()
    init(path, key_store=keys)
    add_project(path, OTHER, "Another")
    with Vault.open(path, key_store=keys) as vault:
        yield vault


def outcome(vault: Vault, provider: str, project: str | None) -> str:
    """What an adapter gets."""
    try:
        bundle = vault.bundle(provider, project)
    except MixedAccount:
        return "mixed"
    except IncompleteAccount:
        return "incomplete"
    return (
        "own" if bundle["password" if provider == "smtp" else "auth_token"].project_id else "global"
    )


def judgement(account: Account) -> tuple[object, ...]:
    """Without whose it is, and without its error, which is another object each time."""
    return account.provider, account.channel, account.state, account.missing, account.fields


@pytest.mark.parametrize(("provider", "fields"), [("smtp", SMTP), ("twilio", TWILIO)])
def test_the_state_is_what_a_bundle_does_for_every_spread_over_two_scopes(
    opened: Vault, provider: str, fields: dict[str, str]
) -> None:
    spread = itertools.product(((), (None,), (P,), (None, P)), repeat=len(fields))
    met = set[str]()
    for where in some(list(spread), 150):
        opened.database.change("DELETE FROM provider_credentials")
        for (name, value), scopes in zip(fields.items(), where, strict=True):
            for scope in scopes:
                opened.set(provider, name, value, scope)
        found = {each.project_id: each for each in accounts(opened)}
        for project in (None, P, OTHER):
            alone = account_of(opened, provider, project)
            if not opened.rows.found(provider, None, project):
                assert project not in found and alone is None
                continue
            account = found.pop(project)
            assert alone and judgement(alone) == judgement(account)
            assert account.state == outcome(opened, provider, project)
            met.add(account.state)
            if account.problem is None:
                bundle = opened.bundle(provider, project)
                assert account.fields == {name: each.scope for name, each in bundle.items()}
        assert found == {}
    assert met == {"own", "global", "mixed", "incomplete"}


def test_one_line_for_each_scope_and_provider_by_the_projects_name(
    site: Site, vault: Vault
) -> None:
    add_project(site.database, OTHER, "A first one")
    add_project(site.database, "old", "A closed one", archived=1)
    for name, value in WHOLE.items():
        vault.set("smtp", name, value)
        vault.set("smtp", name, value, P)
    vault.set("smtp", "from_email", "a@b", OTHER)
    vault.set("twilio", "auth_token", "t", OTHER)
    vault.set("crm", "token", "t", "old")
    of_global = dict.fromkeys(WHOLE, "global")
    assert [each[:7] for each in accounts(vault)] == [
        (None, None, "smtp", "email", "global", (), of_global),
        (
            OTHER, "A first one", "smtp", "email", "global", (),
            of_global | {"from_email": "project"},
        ),
        (
            OTHER, "A first one", "twilio", "sms", "incomplete",
            ("account_sid", "phone_number"), {"auth_token": "project"},
        ),
        (P, "Default Project", "smtp", "email", "own", (), dict.fromkeys(WHOLE, "project")),
        ("old", "A closed one", "crm", None, "own", (), {"token": "project"}),
        ("old", "A closed one", "smtp", "email", "global", (), of_global),
    ]  # fmt: skip


def test_an_account_with_a_value_that_cannot_be_read_says_so_and_opens_nothing(
    site: Site, vault: Vault
) -> None:
    for name, value in WHOLE.items():
        vault.set("smtp", name, value)
    insert(site.database, "the app's own", P, "smtp", "from_email")
    vault.set("crm", "token", "t", P)
    with mock.patch.object(Cipher, "opened", side_effect=AssertionError):  # its key was proved
        found = {(a.project_id, a.provider): (a.state, a.unreadable) for a in accounts(vault)}
    assert found == {
        (None, "smtp"): ("global", {}),
        (P, "smtp"): ("unreadable", {"from_email": "foreign"}),
        (P, "crm"): ("own", {}),
    }
    shutil.rmtree(site.keys)
    with site.open() as again:
        assert {each.state for each in accounts(again)} == {"unreadable"}
        assert accounts(again)[0].unreadable == dict.fromkeys(WHOLE, "key missing")


def test_what_is_incomplete_or_mixed_is_called_that_whatever_its_keys(
    site: Site, vault: Vault
) -> None:
    """As a bundle, which looks at that before it opens a value."""
    vault.set("smtp", "host", "h")
    vault.set("smtp", "user", "u", P)
    shutil.rmtree(site.keys)
    with site.open() as again:
        assert [each.state for each in accounts(again)] == ["incomplete", "mixed"]


def test_it_costs_as_many_statements_for_many_projects_as_for_one(site: Site, vault: Vault) -> None:
    def statements() -> int:
        with traced(vault) as seen:
            list(faults(vault))
            accounts(vault)
        return len(seen)

    vault.set("smtp", "host", "h", P)
    vault.set("smtp", "user", "u")
    few = statements()
    for number in range(40):
        add_project(site.database, f"project-{number}", f"Number {number}")
        vault.set("smtp", "host", "h", f"project-{number}")
    assert (statements(), len(accounts(vault))) == (few, 42)


def test_rows_that_nobody_can_look_for_make_no_account(site: Site, vault: Vault) -> None:
    row_id = insert(site.database, "", P, "smtp", "host")
    gone = "UPDATE provider_credentials SET project_id = 'gone' WHERE id = ?"
    unchecked(site.database, gone, row_id)
    if site.engine is None:  # PostgreSQL's columns have their type
        for project, provider, field in (
            (b"\xff", "smtp", "host"),
            (P, b"\xff", "host"),
            (P, "smtp", b"x"),
        ):
            insert(site.database, "", project, provider, field)  # type: ignore[arg-type]
    expected = [] if site.engine else [("smtp", "incomplete")]
    assert [(a.provider, a.state) for a in accounts(vault)] == expected
    with pytest.raises(ProjectNotFound):
        account_of(vault, "smtp", "gone")


def test_a_fault_names_the_project_as_a_shell_and_the_command_take_it(
    site: Site, vault: Vault
) -> None:
    names = {"a": "Zürich Search", "b": "Twice", "c": "Twice", "d": 'He said "no"', "e": "$HOME"}
    for project_id, name in names.items():
        add_project(site.database, project_id, name)
        vault.set("smtp", "host", "h", project_id)
    hints = [str(each.problem and each.problem.hint) for each in faults(vault)]
    assert [hint.partition("--project ")[2].partition("' stores")[0] for hint in hints] == [
        '"Zürich Search"', "b", "c", "d", "e"
    ]  # fmt: skip
    assert all(
        str(row["id"]) not in each.message for row in site.rows().values() for each in faults(vault)
    )


def test_a_global_sender_alone_is_no_fault_and_nor_is_what_the_catalogue_does_not_know(
    vault: Vault,
) -> None:
    vault.set("smtp", "from_email", "a@b")
    vault.set("crm", "token", "t")
    vault.set("crm", "user", "t", P)
    assert list(faults(vault)) == []
    assert [(a.provider, a.state) for a in accounts(vault) if a.project_id] == [
        ("crm", "mixed"), ("smtp", "incomplete")
    ]  # fmt: skip
