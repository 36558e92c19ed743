"""`vault history`, `undo`, `config history` and `due`, as an operator sees them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from helpers.commands import Terminal, failed, run
from helpers.site import Site, sql

from outreach_vault import Vault

P = "default-project"
FIELD = ("twilio", "auth_token", "--project", P)
TODAY = datetime.now(UTC).date()


@pytest.fixture
def site(site: Site) -> Site:
    with site.open() as vault:
        for number, value in enumerate(("first", "second", "third"), 1):
            vault.set("twilio", "auth_token", value, P, label=f"account {number}")
    return site


def value(site: Site) -> str:
    return run(site, "get", *FIELD).out


def test_history_lists_what_was_replaced_newest_first_and_no_value(site: Site) -> None:
    found = run(site, "history", *FIELD, "--json").data
    assert [(row["number"], row["ended_by"], row["state"], row["label"]) for row in found] == [
        (2, "set", "ok", "account 2"),
        (1, "set", "ok", "account 1"),
    ]
    assert not any("gAAAA" in str(row) for row in found)
    head, second, first = run(site, "history", *FIELD).out.splitlines()
    assert head.split() == ["NUMBER", "SET", "ENDED", "BY", "STATE", "LABEL"]
    assert second.startswith("2") and first.startswith("1") and str(TODAY.year) in first


def test_history_of_a_lost_key_says_so(site: Site) -> None:
    for file in site.keys.glob("*.key"):
        file.unlink()
    assert [row["state"] for row in run(site, "history", *FIELD, "--json").data] == [
        "key missing",
        "key missing",
    ]
    failed(run(site, "undo", *FIELD, "--yes"), 12, "keys import")


def test_undo_asks_and_puts_back(site: Site) -> None:
    with Terminal(site, "undo", *FIELD) as terminal:
        terminal.read_until(b"[y/N]")
        terminal.type(b"y\n")
        assert terminal.end() == 0
    assert value(site) == "second\n"
    assert "put back" in run(site, "undo", *FIELD, "--yes").err
    assert value(site) == "first\n"
    failed(run(site, "undo", *FIELD, "--yes"), 10, "no earlier value", "vault history")
    assert run(site, "undo", *FIELD, "--number", "3", "--yes").status == 0
    assert value(site) == "third\n"


def test_undo_without_a_terminal_needs_yes(site: Site) -> None:
    done = run(site, "undo", *FIELD)
    assert (done.status, done.out) == (3, "") and "--yes" in done.err
    assert value(site) == "third\n"


def test_undo_of_nothing_says_so_at_once(site: Site) -> None:
    failed(run(site, "undo", "twilio", "auth_token"), 10, "no earlier value")
    failed(run(site, "undo", *FIELD, "--number", "7", "--yes"), 10, "number 7")


def test_forget_removes_for_good(site: Site) -> None:
    assert run(site, "history", *FIELD, "--forget").status == 3
    assert run(site, "history", *FIELD, "--forget", "--yes").status == 0
    assert run(site, "history", *FIELD, "--json").data == []


def test_config_history_shows_and_sets_the_limits(site: Site) -> None:
    assert run(site, "config", "history").out == (
        "history: 3 previous values of each, for 30 days\n"
    )
    assert run(site, "config", "history", "0").status == 3  # it would remove values
    assert len(run(site, "history", *FIELD, "--json").data) == 2
    assert "2 previous values" in run(site, "config", "history", "0", "--yes").err
    assert run(site, "config", "history", "--json").data == {"values": 0, "days": 30}
    assert run(site, "config", "history", "5", "--days", "7", "--yes").status == 0
    assert run(site, "config", "history", "--json").data == {"values": 5, "days": 7}
    failed(run(site, "config", "history", "100000"), 2, "from 0 to 1000")


def test_limits_that_another_tool_spoiled_are_mended_as_the_hint_says(site: Site) -> None:
    sql(site.database, "INSERT INTO vault_meta VALUES ('history_days', 'for ever')")
    failed(run(site, "history", *FIELD), 14, "'vault config history 3 --days 30' sets them")
    failed(run(site, "config", "history", "3"), 14, "'vault config history 3 --days 30'")
    assert run(site, "config", "history", "3", "--days", "30", "--yes").status == 0
    assert len(run(site, "history", *FIELD, "--json").data) == 2


# Due


def set_due(site: Site, day: date, field: str = "auth_token") -> None:
    done = run(site, "set", "twilio", field, "--due", str(day), "--no-check", stdin=b"v")
    assert done.status == 0


def test_due_lists_the_earliest_first_and_exits_16_when_one_is(site: Site) -> None:
    assert run(site, "due").status == 0
    set_due(site, TODAY + timedelta(days=9))
    set_due(site, TODAY + timedelta(days=3), "account_sid")
    done = run(site, "due", "--json")
    assert done.status == 0
    assert [(row["credential_type"], row["is_due"]) for row in done.data] == [
        ("account_sid", False),
        ("auth_token", False),
    ]
    soon = run(site, "due", "--within", "5", "--json")
    assert soon.status == 16 and [row["is_due"] for row in soon.data] == [True, False]
    set_due(site, TODAY)
    assert run(site, "due").status == 16
    assert run(site, "due", "--project", P).status == 0  # those are global


def test_a_new_value_is_not_due_until_a_day_is_named_again(site: Site) -> None:
    set_due(site, TODAY)
    assert run(site, "due").status == 16
    assert run(site, "set", "twilio", "auth_token", "--no-check", stdin=b"new").status == 0
    assert run(site, "due").status == 0


def test_a_deleted_value_is_not_due(site: Site, vault: Vault) -> None:
    vault.set("twilio", "auth_token", "v", due=TODAY)
    vault.delete("twilio", "auth_token")
    assert run(site, "due", "--json").data == []
    assert sql(site.database, "SELECT count(*) FROM vault_due") == [(0,)]


def test_what_the_provider_says_is_due_unless_the_operator_says_otherwise(
    site: Site, vault: Vault
) -> None:
    vault.set("jobadder", "refresh_token", "v")
    vault.set("greenhouse", "api_key", "v")
    found = {row["provider"]: row for row in run(site, "due", "--json").data}
    assert found["jobadder"]["due"] == str(TODAY + timedelta(days=14))
    assert found["greenhouse"]["due"] == "2026-08-31" and found["greenhouse"]["is_due"]
    assert {row["by"] for row in found.values()} == {"provider"}
    vault.set("greenhouse", "api_key", "v", due=TODAY + timedelta(days=400))
    found = {row["provider"]: row for row in run(site, "due", "--json").data}
    assert found["greenhouse"]["by"] == "operator" and not found["greenhouse"]["is_due"]


def test_a_day_that_is_none_is_refused_before_anything_is_stored(site: Site, vault: Vault) -> None:
    failed(run(site, "set", *FIELD, "--due", "soon", stdin=b"v"), 2, "--due")
    assert value(site) == "third\n"
    with pytest.raises(TypeError, match="due: must be a date"):
        vault.set("twilio", "auth_token", "v", due="2027-01-31")  # type: ignore[arg-type]


def test_a_day_that_another_tool_spoiled_is_left_out(site: Site, vault: Vault) -> None:
    vault.set("twilio", "auth_token", "v", due=TODAY)
    site.change("UPDATE vault_due SET due = 'soon'")
    assert run(site, "due", "--json").data == []
