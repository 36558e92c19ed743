"""
An import is a plan, which is stored whole or not at all; an export is all of a scope or nothing.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from helpers.rows import IGNORE, trigger
from helpers.site import Site
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from outreach_vault import (
    DamagedValue,
    ForeignValue,
    KeyMissing,
    KeyUnavailable,
    MixedAccount,
    ProjectNotFound,
    Secret,
    StorageError,
    UnreadableValue,
    Vault,
)
from outreach_vault.errors import WrongArgument
from outreach_vault.operations.portable import Plan, as_dotenv, as_json, plan, store
from outreach_vault.values.sealing import MAX_VALUE_BYTES

pytestmark = pytest.mark.sweep(4)

P = "default-project"
SID, TOKEN = "AC" + secrets.token_hex(16), secrets.token_hex(16)
Q = "second-project"


@pytest.fixture
def vault(site: Site, vault: Vault) -> Vault:
    site.change(
        "INSERT INTO projects (id, name, created_at, updated_at) VALUES (?, 'Second', '', '')", Q
    )
    return vault


def rows(*places: tuple[str | None, str, str, str], **more: object) -> Secret:
    names = ("project_id", "provider", "credential_type", "value")
    return Secret(json.dumps([dict(zip(names, place, strict=True)) | more for place in places]))


def everything(vault: Vault) -> dict[tuple[str | None, str, str], str]:
    return {
        (e.project_id, e.provider, e.credential_type): vault.get(
            e.provider, e.credential_type, e.project_id, fallback=False
        ).reveal()
        for e in vault.list()
    }


def said(planned: Plan) -> dict[str, str]:
    return {each.source: each.what for each in planned.problems}


def plan_new(vault: Vault, text: Secret, project_id: str | None = None) -> Plan:
    """JSON, of which no provider and no field need be known."""
    return plan(vault, "json", text, project_id, new=True)


# --- the plan


def test_a_plan_says_what_is_new_replaced_and_there_already_and_changes_nothing(
    vault: Vault, site: Site
) -> None:
    vault.set("smtp", "host", "same.example.com")
    vault.set("smtp", "user", "another", label="kept")
    vault.set("smtp", "port", "25", P)
    before = site.rows()
    text = Secret("SMTP_HOST=same.example.com\nSMTP_USER=office\nSMTP_PORT=587\n")
    planned = plan(vault, "dotenv", text)
    assert [(step.place.credential_type, step.what) for step in planned.steps] == [
        ("host", "same"),
        ("user", "replaces"),
        ("port", "new"),
    ]
    assert planned.problems == [] and site.rows() == before
    assert store(vault, planned) == 2
    assert everything(vault) == {
        (None, "smtp", "host"): "same.example.com",
        (None, "smtp", "user"): "office",
        (None, "smtp", "port"): "587",
        (P, "smtp", "port"): "25",
    }
    assert vault.get("smtp", "user").label == "kept"
    assert store(vault, plan(vault, "dotenv", text)) == 0


def test_rows_go_to_their_own_projects_or_all_to_the_chosen_one(vault: Vault) -> None:
    given = rows((None, "acme", "key", "g"), (P, "acme", "key", "p"), (Q, "acme", "key", "q"))
    store(vault, plan_new(vault, given))
    assert everything(vault) == {(None, "acme", "key"): "g", (P, "acme", "key"): "p",
                                 (Q, "acme", "key"): "q"}  # fmt: skip
    planned = plan_new(vault, rows((None, "acme", "other", "o")), P)
    assert [step.what for step in planned.steps] == ["new"]
    store(vault, planned)
    vault.set("acme", "other", "o")
    assert plan_new(vault, rows((Q, "acme", "other", "o"))).steps[0].what == "new"
    assert vault.get("acme", "other", P, fallback=False).reveal() == "o"


def test_a_label_is_stored_and_makes_a_difference(vault: Vault) -> None:
    for label, what in (("first", "new"), ("first", "same"), ("second", "replaces")):
        planned = plan_new(vault, rows((None, "acme", "key", "v"), label=label))
        assert [step.what for step in planned.steps] == [what]
        store(vault, planned)
        assert vault.get("acme", "key").label == label
    assert said(plan_new(vault, rows((None, "acme", "key", "v"), label="\ud800"))) == {
        "row 1": "its label is not text"
    }
    planned = plan_new(vault, rows((None, "acme", "key", "v"), label=None))
    assert [step.what for step in planned.steps] == ["same"]


def test_all_that_does_not_fit_is_said_at_once_without_the_values(vault: Vault) -> None:
    for name in ("key", "other", "third"):
        vault.set("acme", name, "known", Q)
    planned = plan(
        vault,
        "json",
        rows(
            (None, "smtp", "host", "https://invented"),
            (None, "smtp", "no_such_field", "invented"),
            ("nobody", "smtp", "user", "invented"),
            (None, "smtp", "password", ""),
            (None, "acme", "key", "i" * (MAX_VALUE_BYTES + 1)),
            (None, "acme", "other", "invented\ud800"),
            (None, "acme key", "other", "invented"),
            (None, "", "other", "invented"),
            ("\x1b", "acme", "third", "invented"),
            (None, "smtp", "host", "good.example.com"),
        ),
    )
    found = said(planned)
    assert [*found] == [f"row {number}" for number in range(1, 11)]
    assert "it must be a host's name" in found["row 1"]
    assert found["row 2"].startswith("no such provider and field") and "--new" in found["row 2"]
    assert found["row 3"].startswith("there is no project")
    assert "is empty" in found["row 4"] and "65537 bytes" in found["row 5"]
    assert "not valid text" in found["row 6"]
    assert found["row 7"] == found["row 8"] and "letters" in found["row 7"]
    assert "unprintable" in found["row 9"]
    assert found["row 10"] == "for the same place as row 1"
    assert [each.source for each in planned.problems if each.unknown] == ["row 2"]
    assert "invented" not in repr(planned)


def test_without_the_check_odd_values_are_taken_and_with_new_unknown_fields(vault: Vault) -> None:
    given = rows((None, "smtp", "host", "a b"), (None, "smtp", "no_such_field", "v"))
    planned = plan(vault, "json", given, check=False)
    assert [*said(planned)] == ["row 2"] and len(planned.steps) == 1  # for --skip-unknown
    assert [*said(plan(vault, "json", given, new=True))] == ["row 1"]
    planned = plan(vault, "json", given, new=True, check=False)
    assert planned.problems == [] and store(vault, planned) == 2
    assert plan(vault, "json", given, check=False).problems == []  # stored, so known


@pytest.mark.parametrize(("provider", "field"), [("SMTP", "host"), ("smtp", "Host")])
def test_a_known_name_in_other_capitals_is_never_taken(
    vault: Vault, provider: str, field: str
) -> None:
    [problem] = plan_new(vault, rows((None, provider, field, "a"))).problems
    assert "other capitals" in problem.what and not problem.unknown


TWICE = {
    "dotenv": ("SMTP_HOST=a\nSMTP_HOST=b\n", "line 1, SMTP_HOST"),
    "json": (rows((None, "smtp", "host", "a"), (P, "smtp", "host", "b")).reveal(), "row 1"),
    "airflow-json": (
        '{"a": {"conn_type": "smtp", "host": "a", "extra": {"host": "b"}}}',
        "connection a, host",
    ),
    "airflow-env": ("a=smtp://a\nb=smtp://b\n", "line 1, connection a, host"),
}


@pytest.mark.parametrize("kind", TWICE)
def test_two_entries_for_one_place_are_said(vault: Vault, kind: str) -> None:
    text, first = TWICE[kind]
    [problem] = plan(vault, kind, Secret(text), P).problems
    assert problem.what == f"for the same place as {first}" and not problem.unknown


def test_a_variable_of_a_field_that_somebody_stored_is_known(vault: Vault, site: Site) -> None:
    assert said(plan(vault, "dotenv", Secret("ACME_KEY=a"))) == {
        "line 1, ACME_KEY": "no field has it"
    }
    vault.set("acme", "key", "v", P)
    assert [s.place for s in plan(vault, "dotenv", Secret("ACME_KEY=a")).steps] == [
        (None, "acme", "key")
    ]
    # But none that changes how programs run, and none that could be either of two.
    vault.set("ld", "preload", "v", P)
    vault.set("acme_key", "id", "v", P)
    vault.set("acme", "key_id", "v", P)
    assert said(plan(vault, "dotenv", Secret("LD_PRELOAD=a\nACME_KEY_ID=b"))) == {
        "line 1, LD_PRELOAD": "no field has it",
        "line 2, ACME_KEY_ID": "several fields have this variable",
    }


def test_a_project_that_is_not_there_is_an_error(vault: Vault) -> None:
    with pytest.raises(ProjectNotFound):
        plan(vault, "dotenv", Secret(""), "nobody")


def test_a_value_that_cannot_be_read_is_replaced(vault: Vault, site: Site) -> None:
    vault.set("acme", "key", "v")
    site.change("UPDATE provider_credentials SET encrypted_value = 'foreign'")
    planned = plan_new(vault, rows((None, "acme", "key", "v")))
    assert [step.what for step in planned.steps] == ["replaces"]
    store(vault, planned)
    assert vault.get("acme", "key").reveal() == "v"


# --- storing it


UNDO = "BEFORE INSERT ON provider_credentials", IGNORE, "NEW.credential_type = 'last'"
CHANGES: dict[str, Callable[[Vault, Site], object]] = {
    "a new value": lambda vault, site: vault.set("acme", "new", "other"),
    "another value": lambda vault, site: vault.set("acme", "there", "other"),
    "a deleted value": lambda vault, site: vault.delete("acme", "there"),
    "no project": lambda vault, site: site.change("DELETE FROM projects WHERE id = ?", Q),
    "a trigger": lambda vault, site: trigger(site.database, *UNDO),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_since_the_plan_keeps_all_of_it_from_being_stored(
    vault: Vault, site: Site, change: str
) -> None:
    vault.set("acme", "there", "old")
    planned = plan(
        vault,
        "json",
        rows(
            (None, "acme", "first", "v"),
            (None, "acme", "new", "v"),
            (None, "acme", "there", "v"),
            (Q, "acme", "key", "v"),
            (None, "acme", "last", "v"),
        ),
        new=True,
    )
    CHANGES[change](vault, site)
    before = everything(vault)
    with pytest.raises((StorageError, ProjectNotFound)):
        store(vault, planned)
    assert everything(vault) == before


# --- export


ODD = "'\"\\$`#= \t\n\r\x01é€\U0001f511a"
texts = st.text(st.sampled_from(ODD), min_size=1, max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(texts, min_size=1, max_size=4))
@example(["a" * MAX_VALUE_BYTES, "\r" * MAX_VALUE_BYTES, "\U0001f511" * (MAX_VALUE_BYTES // 4)])
def test_what_is_exported_as_json_is_imported_as_it_was(vault: Vault, given: list[str]) -> None:
    for entry in vault.list():
        vault.delete(entry.provider, entry.credential_type, entry.project_id)
    for number, value in enumerate(given):
        for scope in (None, P, Q)[: number + 1]:
            vault.set(f"p-{number}", "f.x", value, scope, label=f"label {number}")
    before, labels = everything(vault), [entry.label for entry in vault.list()]
    text, count = as_json(vault)
    assert count == len(before)
    for entry in vault.list():
        vault.delete(entry.provider, entry.credential_type, entry.project_id)
    store(vault, plan_new(vault, text))
    assert (everything(vault), [entry.label for entry in vault.list()]) == (before, labels)


def test_json_holds_exactly_the_rows_of_the_scope(vault: Vault) -> None:
    for scope in (None, P, Q):
        vault.set("smtp", "host", f"of-{scope}", scope)
        vault.set("acme", "key", f"of-{scope}", scope)

    def of(*arguments: Any, **options: Any) -> list[tuple[str, str]]:
        text, _ = as_json(vault, *arguments, **options)
        return [(row["provider"], row["value"]) for row in json.loads(text.reveal())]

    assert of(None) == [("acme", "of-None"), ("smtp", "of-None")]
    assert of(P) == [("acme", f"of-{P}"), ("smtp", f"of-{P}")]
    assert len(of()) == 6
    assert of(Q, ["smtp"]) == [("smtp", f"of-{Q}")]
    listed = [entry._asdict() for entry in vault.list(P)]
    [*shown] = json.loads(as_json(vault, P)[0].reveal())
    assert [{**row} for row in shown] == [row | {"value": f"of-{P}"} for row in listed]


def test_what_cannot_be_read_stops_an_export_and_is_named(vault: Vault, site: Site) -> None:
    for name in ("a", "b", "c"):
        vault.set("acme", name, "v")
    site.change(
        "UPDATE provider_credentials SET encrypted_value = 'foreign' WHERE credential_type != 'b'"
    )
    with pytest.raises(ForeignValue, match=r"acme/a .*; acme/c .*; nothing was written"):
        as_json(vault)
    with pytest.raises(ForeignValue, match="acme/a"):
        as_dotenv(vault)
    site.change(
        "UPDATE provider_credentials SET encrypted_value = substr(encrypted_value, 1, 60) || 'AAAA'"
        " || substr(encrypted_value, 65) WHERE credential_type = 'b'"
    )
    vault.delete("acme", "a")
    vault.delete("acme", "c")
    with pytest.raises(DamagedValue, match="acme/b"):
        as_json(vault)


def test_a_key_that_is_missing_stops_an_export(vault: Vault, site: Site) -> None:
    for number in range(12):
        vault.set("acme", f"f{number:02}", "v")
    for file in site.keys.glob("*.key"):
        file.unlink()
    with site.open() as again, pytest.raises(KeyMissing, match=r"f09 .*; and 2 more; nothing"):
        as_json(again)
    assert issubclass(KeyMissing, KeyUnavailable) and issubclass(DamagedValue, UnreadableValue)


def test_dotenv_is_what_run_would_give(vault: Vault) -> None:
    vault.set_fields("smtp", {"host": "general", "user": "u", "password": "p", "port": "25"})
    vault.set_fields("smtp", {"host": "own", "user": "it's", "password": "a b"}, P)
    vault.set_fields("twilio", {"account_sid": SID, "auth_token": TOKEN})
    text, count = as_dotenv(vault, P)
    assert (sorted(text.reveal().splitlines()), count) == (
        [
            "SMTP_HOST=own",
            "SMTP_PASSWORD='a b'",
            'SMTP_USER="it\'s"',
            f"TWILIO_ACCOUNT_SID={SID}",
            f"TWILIO_AUTH_TOKEN={TOKEN}",
        ],
        5,
    )
    text, _ = as_dotenv(vault, None, ["smtp"])
    assert "SMTP_HOST=general\n" in text.reveal() and "TWILIO" not in text.reveal()
    vault.delete("smtp", "password", P)
    with pytest.raises(MixedAccount):
        as_dotenv(vault, P)


def test_a_value_that_dotenv_cannot_carry_is_named_and_nothing_is_given(vault: Vault) -> None:
    vault.set_fields("acme", {"a": "invented $'", "b": "fine", "c": "invented\r"})
    with pytest.raises(WrongArgument, match=r"^ACME_A, ACME_C: ") as caught:
        as_dotenv(vault)
    assert "invented" not in str(caught.value)
