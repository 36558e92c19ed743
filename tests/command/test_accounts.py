"""`vault accounts`, and what other commands say of the account that they touched."""

from __future__ import annotations

import pytest
from helpers.commands import Terminal, failed, run
from helpers.site import Site

from outreach_vault import Vault

pytestmark = pytest.mark.sweep(3)

P = "default-project"
WHOLE = {"host": "mail.example.com", "user": "u", "password": "p"}


def test_accounts_shows_whose_account_each_project_sends_from(site: Site, vault: Vault) -> None:
    for name, value in WHOLE.items():
        vault.set("smtp", name, value)
    vault.set("smtp", "password", "p", P)
    vault.set("twilio", "auth_token", "t", P)
    vault.projects.add("Zürich Search")
    head, *lines = run(site, "accounts").out.splitlines()
    assert head.split() == ["SCOPE", "PROVIDER", "CHANNEL", "STATE", "DETAIL"]
    assert [" ".join(line.split()) for line in lines] == [
        "global smtp email global also for 1 project",
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
            "grant": None,
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


# copy, move, delete, label


def fill(vault: Vault, project: str | None = None) -> None:
    for name, value in WHOLE.items():
        vault.set("smtp", name, value, project)


def fields(site: Site, *scope: str) -> list[str]:
    return [each["credential_type"] for each in run(site, "list", *scope, "--json").data]


def test_copy_and_move_take_an_account_to_where_it_is_told(site: Site, vault: Vault) -> None:
    fill(vault)
    done = run(site, "copy", "smtp", "--from-global", "--to", "Default Project")
    assert done == (
        0, "", f"vault: copied 3 values of smtp from global to project {P}: host, password, user\n"
    )  # fmt: skip
    failed(run(site, "copy", "smtp", "--from-global", "--to", P), 2, "--replace", "host")
    done = run(site, "move", "smtp", "--from", P, "--to-global", "--replace")
    assert done.status == 0 and done.err.startswith("vault: moved 3 values of smtp from project")
    assert (fields(site, "--project", P), len(fields(site))) == ([], 3)
    done = run(site, "move", "smtp", "user", "--from-global", "--to", P)
    assert [line.split(":")[1].split(" (")[0] for line in done.err.splitlines()[1:]] == [
        " smtp", " smtp"
    ]  # fmt: skip
    assert "mixed" in done.err and "missing user" in done.err  # of both ends


@pytest.mark.parametrize(
    "ends",
    [(), ("--from-global",), ("--to", P), ("--from-global", "--from", P, "--to", P),
     ("--from-global", "--to", P, "--to-global"), ("--from-global", "--to-global")],
)  # fmt: skip
def test_both_ends_are_said_and_nothing_is_meant_by_silence(
    site: Site, vault: Vault, ends: tuple[str, ...]
) -> None:
    fill(vault)
    for command in ("copy", "move"):
        failed(run(site, command, "smtp", *ends), 2)
    assert fields(site, "--project", P) == []


def test_a_whole_account_is_deleted_when_its_count_is_confirmed(site: Site, vault: Vault) -> None:
    fill(vault)
    fill(vault, P)
    assert run(site, "delete", "smtp").status == 3 and len(fields(site)) == 6
    for answer, status, left in ((b"n\n", 3, 6), (b"y\n", 0, 3)):
        with Terminal(site, "delete", "smtp", "--project", P) as terminal:
            terminal.read_until(b"delete 3 values: smtp/host, password, user (project default-pro")
            terminal.type(answer)
            assert terminal.end() == status
        assert len(fields(site)) == left
    failed(run(site, "delete", "smtp", "--project", P, "--yes"), 10, "no credential")
    assert run(site, "delete", "smtp", "--yes").status == 0 and fields(site) == []


def test_a_label_is_changed_and_removed_without_the_secret(site: Site, vault: Vault) -> None:
    vault.set("smtp", "host", "h", P, label="old")
    for text, label, said in (("new é", "new é", "labelled"), ("", None, "removed the label of")):
        done = run(site, "label", "smtp", "host", text, "--project", P)
        assert done == (0, "", f"vault: {said} smtp/host (project {P})\n")
        assert run(site, "list", "--json").data[0]["label"] == label
    failed(run(site, "label", "smtp", "host", "a canary"), 10)
    assert vault.get("smtp", "host", P).reveal() == "h"


def test_list_of_one_provider_is_its_rows_alone(site: Site, vault: Vault) -> None:
    fill(vault)
    vault.set("crm", "token", "t")
    for provider, count in (("smtp", 3), ("crm", 1), ("twilio", 0)):
        rows = run(site, "list", provider, "--json").data
        assert [row["provider"] for row in rows] == [provider] * count
    done = run(site, "list", "a-canary")
    failed(done, 10, "'vault list'")
    assert "canary" not in done.err
