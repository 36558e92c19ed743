"""`vault accounts`, and what other commands say of the account that they touched."""

from __future__ import annotations

import pytest
from helpers.commands import failed, run
from helpers.site import Site

from outreach_vault import Vault

P = "default-project"
WHOLE = {"host": "mail.example.com", "user": "u", "password": "p"}


def test_accounts_shows_whose_account_each_project_sends_from(site: Site, vault: Vault) -> None:
    for name, value in WHOLE.items():
        vault.set("smtp", name, value)
    vault.set("smtp", "password", "p", P)
    vault.set("twilio", "auth_token", "t", P)
    head, *lines = run(site, "accounts").out.splitlines()
    assert head.split() == ["SCOPE", "PROVIDER", "CHANNEL", "STATE", "DETAIL"]
    assert [" ".join(line.split()) for line in lines] == [
        "global smtp email global",
        "Default Project smtp email mixed own password; global host, user",
        "Default Project twilio sms incomplete missing account_sid, phone_number",
    ]


def test_accounts_as_json_has_exactly_the_published_names(site: Site, vault: Vault) -> None:
    vault.set("smtp", "host", "h", P)
    assert run(site, "accounts", "--json").data == [
        {
            "project_id": P,
            "project": "Default Project",
            "provider": "smtp",
            "channel": "email",
            "state": "incomplete",
            "missing": ["user", "password"],
            "fields": {"host": "project"},
        }
    ]


def test_accounts_of_one_project_are_its_own_and_the_global_ones_it_gets(
    site: Site, vault: Vault
) -> None:
    for name, value in WHOLE.items():
        vault.set("smtp", name, value)
    other = vault.projects.add("Zürich Search")
    vault.set("crm", "token", "t", P)
    vault.set("slack", "token", "t", other)
    found = run(site, "accounts", "--project", "Zürich Search", "--json").data
    assert [(each["project_id"], each["provider"], each["state"]) for each in found] == [
        (other, "slack", "own"),
        (other, "smtp", "global"),
    ]
    failed(run(site, "accounts", "--project", "nobody"), 10, "no project")
    assert run(site, "accounts", "--json", "--project", P).data[0]["provider"] == "crm"


@pytest.mark.parametrize("scope", [(), ("--project", P)])
def test_a_command_says_that_the_account_it_touched_is_incomplete_until_it_is_not(
    site: Site, scope: tuple[str, ...]
) -> None:
    missing = list(WHOLE)
    for name, value in WHOLE.items():
        done = run(site, "set", "smtp", name, *scope, stdin=value.encode())
        missing.remove(name)
        stored, *said = done.err.splitlines()
        assert done.status == 0 and stored.startswith(f"vault: stored smtp/{name}")
        assert [f"missing {', '.join(missing)}" in line for line in said] == [True] * bool(missing)
        assert all("'vault set smtp" in line for line in said)
        assert run(site, "which", "smtp", *scope).err.splitlines() == said
    done = run(site, "delete", "smtp", "user", *scope, "--yes")
    _, said = done.err.splitlines()
    assert "missing user; 'vault set smtp" in said


def test_a_command_says_that_the_account_it_touched_is_mixed(site: Site, vault: Vault) -> None:
    for name, value in WHOLE.items():
        vault.set("smtp", name, value)
    done = run(site, "set", "smtp", "user", "--project", P, stdin=b"u")
    _, said = done.err.splitlines()
    assert "mixed from two accounts: the project's user; the global host, password;" in said
    assert "'vault delete smtp FIELD --project \"Default Project\"'" in said
    assert run(site, "which", "smtp", "host", "--project", P).err.splitlines() == [said]
    assert len(run(site, "delete", "smtp", "user", "--project", P, "--yes").err.splitlines()) == 1
