"""
A provider's fields read together: from one account and one moment, by the same rows as every other
look-up, or not at all.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers import TESTS
from helpers.effort import THOROUGH, some
from helpers.rows import flipped, insert, put, stored, traced
from helpers.site import Engine, Site, prepared, sql

import outreach_vault
from outreach_vault import (
    AnyBundle,
    Bundle,
    CredentialNotFound,
    DamagedValue,
    ForeignValue,
    IncompleteAccount,
    KeyMissing,
    MixedAccount,
    ProjectNotFound,
    Secret,
    SmtpBundle,
    TwilioBundle,
    UnreadableValue,
    UnusableValue,
    Vault,
)
from outreach_vault.operations.init import init
from outreach_vault.schema.shapes import Place, new_id
from outreach_vault.testing import MemoryKeyStore
from outreach_vault.values.sealing import seal

pytestmark = pytest.mark.sweep(3)

P = "default-project"
APP_VALUE = base64.b64encode(b"v11" + bytes(range(48))).decode()  # the desktop app's own shape
SMTP = ("host", "user", "password")


@pytest.fixture(scope="module")
def made(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return prepared(tmp_path_factory.mktemp("bundle"), engine)


@pytest.fixture(scope="module")
def opened(made: Site) -> Iterator[Vault]:
    init(made.database, key_store=(keys := MemoryKeyStore()))
    with made.open(keys) as vault:
        yield vault


@pytest.fixture
def path(made: Site) -> Any:
    """The database, as the package is given it."""
    return made.database


@pytest.fixture
def vault(opened: Vault) -> Iterator[Vault]:
    """One vault for all, emptied: what is shown here does not depend on how it was made."""
    yield opened
    opened.database.change("DELETE FROM provider_credentials")
    opened.database.change("DELETE FROM projects WHERE id <> ?", (P,))


def fill(
    vault: Vault, fields: Mapping[str, str], provider: str = "smtp", project: str | None = None
) -> dict[str, str]:
    """Store each; the ids of their rows."""
    return {name: vault.set(provider, name, value, project) for name, value in fields.items()}


def account(of: str, names: tuple[str, ...] = SMTP) -> dict[str, str]:
    return {name: f"{name}.{of}" for name in names}


# From which scope


@pytest.mark.parametrize(
    ("provider", "needed", "extra", "free"),
    [
        ("smtp", SMTP, ("port",), ("from_email",)),
        ("twilio", ("account_sid", "auth_token"), (), ("phone_number",)),
    ],
)
def test_every_way_to_spread_the_fields_over_two_scopes_gives_one_account_or_none(
    vault: Vault,
    provider: str,
    needed: tuple[str, ...],
    extra: tuple[str, ...],
    free: tuple[str, ...],
) -> None:
    """
    The model knows scopes alone. *extra*: optional fields of the account; *free*: those that may be
    of another scope.
    """
    names = (*needed, *extra, *free)
    rows = {
        (project, name): (
            new_id(),
            project,
            provider,
            name,
            seal(vault.keys.cipher(vault.keys.states.active_id()), place, Secret(value)),
        )
        for project, name in itertools.product((None, P), names)
        for place, value in [
            (
                Place(project, provider, name),
                ("465" if project else "25") if name == "port" else f"{name} of {project}",
            )
        ]
    }
    key_id, outcomes = vault.keys.states.active_id(), dict[str, int]()
    spread = itertools.product(((), (None,), (P,), (P, None)), repeat=len(names))
    for where in (tried := some(list(spread), 300)):
        there = [
            rows[project, name]
            for name, projects in zip(names, where, strict=True)
            for project in projects
        ]
        vault.database.change("DELETE FROM provider_credentials")
        vault.database.change_each(
            "INSERT INTO provider_credentials (id, project_id, provider, credential_type,"
            " encrypted_value, created_at, updated_at, key_id)"
            f" VALUES (?, ?, ?, ?, ?, '', '', '{key_id}')",
            there,
        )
        for asked in (P, None):
            first = {
                name: projects[0]
                for name, projects in zip(names, where, strict=True)
                if projects and asked is not None
            }
            first |= {
                name: None
                for name, projects in zip(names, where, strict=True)
                if None in projects and asked is None
            }
            assert {
                entry.credential_type: entry.project_id for entry in which(vault, provider, asked)
            } == first
            own = P in [first[name] for name in (*needed, *extra) if name in first]
            expected = {
                name: scope
                for name, scope in first.items()
                if not (own and scope is None and name in extra)
            }
            belonging = {name: scope for name, scope in expected.items() if name not in free}
            missing = tuple(
                name
                for name in names
                if name not in (*extra, *expected) and not (provider == "smtp" and name in free)
            )
            try:
                found: Bundle = vault.bundle(provider, asked)
            except MixedAccount as error:
                outcome = "mixed"
                assert len(set(belonging.values())) == 2
                assert error.rows == {
                    name: rows[scope, name][0] for name, scope in belonging.items()
                }
                assert all(
                    f"{name} (row {row_id})" in str(error) for name, row_id in error.rows.items()
                )
                assert "'vault set " in str(error.hint) and "'vault delete " in str(error.hint)
            except IncompleteAccount as error:
                outcome = "incomplete"
                assert (
                    len(set(belonging.values())) < 2
                    and missing
                    and sorted(error.missing) == sorted(missing)
                )
                assert all(name in str(error) for name in missing)
            else:
                outcome = "whole"
                assert len(set(belonging.values())) == 1 and not missing
                assert {
                    name: credential.project_id for name, credential in found.items()
                } == expected
                for name, credential in found.items():
                    assert credential == vault.get(
                        provider, name, asked
                    ) and credential.reveal() in (
                        "465",
                        "25",
                        f"{name} of {first[name]}",
                    )
                    assert credential.scope == ("global" if expected[name] is None else "project")
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            if asked is not None:
                assert [vault.has(provider, name, asked) for name in names] == [
                    name in first for name in names
                ]
    assert set(outcomes) == {"mixed", "incomplete", "whole"}
    assert sum(outcomes.values()) == 2 * len(tried)


def which(vault: Vault, provider: str, project: str | None) -> list[Any]:
    try:
        return vault.which(provider, project_id=project)
    except CredentialNotFound:
        return []


def test_a_field_that_the_catalogue_does_not_list_belongs_to_the_account(vault: Vault) -> None:
    fill(vault, account("all"))
    assert fill(vault, {"helo": "h"})["helo"] == vault.bundle("smtp", P)["helo"].id
    fill(vault, {"helo": "h"}, project=P)
    with pytest.raises(MixedAccount, match="the project's helo "):
        vault.bundle("smtp", P)


def test_all_fields_of_an_unlisted_provider_belong_to_one_account(vault: Vault) -> None:
    fill(vault, {"user": "u", "token": "of all"}, "other")
    assert vault.bundle("other", P).token.reveal() == "of all"
    fill(vault, {"token": "own"}, "other", P)
    with pytest.raises(MixedAccount, match="token"):
        vault.bundle("other", P)
    fill(vault, {"user": "u"}, "other", P)
    assert vault.bundle("other", P).token.reveal() == "own"


@pytest.mark.parametrize(
    ("project", "error"),
    [("", ValueError), ("no-such", ProjectNotFound), (P.upper(), ProjectNotFound)],
)
def test_empty_text_and_an_unknown_project_are_not_the_global_scope(
    vault: Vault, project: str, error: type[Exception]
) -> None:
    fill(vault, account("all"))
    with pytest.raises(error):
        vault.bundle("smtp", project)


def test_rows_of_a_project_named_by_empty_text_are_not_the_global_ones(
    path: Any, vault: Vault
) -> None:
    sql(
        path,
        "INSERT INTO projects (id, name, created_at, updated_at) VALUES ('', 'nameless', '', '')",
    )
    for row_id in fill(vault, account("all")).values():
        put(path, row_id, project_id="")
    for project in (P, None):
        with pytest.raises(IncompleteAccount) as caught:
            vault.bundle("smtp", project)
        assert caught.value.missing == SMTP
    with pytest.raises(ValueError, match="project_id"):
        vault.bundle("smtp", "")


# Rows that cannot be opened


@pytest.mark.parametrize("project", [None, P])
@pytest.mark.parametrize("name", ["password", "port", "from_email"])
@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("damaged", DamagedValue),
        ("key missing", KeyMissing),
        ("foreign", ForeignValue),
        ("empty", ForeignValue),
    ],
)
def test_a_row_that_cannot_be_opened_is_an_error_and_nothing_takes_its_place(
    path: Any, vault: Vault, state: str, error: type[Exception], name: str, project: str | None
) -> None:
    values = account("all") | {"port": "25", "from_email": "a@example.com"}
    fill(vault, values)
    rows = {
        (asked, field): row
        for asked in (None, P)
        for field, row in fill(vault, values, project=asked).items()
    }
    token = stored(path, rows[project, name])
    bad = {
        "damaged": {"encrypted_value": flipped(token)},
        "key missing": {"key_id": new_id()},
        "foreign": {"encrypted_value": APP_VALUE},
    }
    put(path, rows[project, name], **bad.get(state, {"encrypted_value": "", "key_id": None}))
    if state == "empty" and name != "password":
        # The app's way to leave an optional one out.
        assert name not in vault.bundle("smtp", project)
        return
    with pytest.raises(error) as caught:
        vault.bundle("smtp", project)
    assert (
        type(caught.value) is error
        and rows[project, name] in str(caught.value)
        and "all" not in str(caught.value)
    )
    if project is None:
        assert vault.bundle("smtp", P).port == 25  # the other account is not touched by it


def test_an_optional_field_that_the_app_left_empty_hides_the_global_one(
    path: Any, vault: Vault
) -> None:
    fill(vault, account("all") | {"from_email": "all@example.com", "port": "465"})
    assert (vault.bundle("smtp", P).from_email, vault.bundle("smtp", P).port) == (
        "all@example.com",
        465,
    )
    insert(path, "", P, "smtp", "from_email")
    assert (
        vault.bundle("smtp", P).from_email == "user.all"
        and vault.bundle("smtp").from_email == "all@example.com"
    )
    insert(path, "", P, "smtp", "port")  # which is no account of the project's own
    assert (vault.bundle("smtp", P).host, vault.bundle("smtp", P).port) == ("host.all", 587)
    fill(vault, account("own"), project=P)
    assert vault.bundle("smtp", P).port == 587 and not vault.bundle("smtp", P).tls_first


@pytest.mark.sqlite("bytes in a column of text")
def test_a_row_whose_field_is_no_text_does_not_break_the_account_beside_it(
    path: Any, vault: Vault
) -> None:
    """
    It can be there: SQLite keeps another tool's bytes in a column of text. An error of ours would
    do as well; a TypeError does not.
    """
    fill(vault, account("all"))
    statement = (
        "INSERT INTO provider_credentials (id, provider, credential_type, encrypted_value,"
        " created_at, updated_at) VALUES (?, 'smtp', x'6162', 'v', '', '')"
    )
    sql(path, statement, new_id())
    with contextlib.suppress(UnreadableValue):
        assert vault.bundle("smtp").host == "host.all"
    assert vault.get("smtp", "host").reveal() == "host.all"


# What is in a bundle


def test_values_come_by_name_and_by_attribute_in_their_types(vault: Vault) -> None:
    rows = fill(vault, account("all"))
    found = vault.bundle("smtp")
    assert type(found) is SmtpBundle and (found.host, found.user, found["host"].reveal()) == (
        "host.all",
        "user.all",
        "host.all",
    )
    assert (
        type(found.password) is Secret
        and found.password == Secret("password.all") == found["password"].secret
    )
    assert (found.port, found.tls_first, found.from_email) == (587, False, "user.all")
    assert (
        {name: credential.id for name, credential in found.items()} == rows
        and "port" not in found
        and len(found) == 3
    )
    assert (found.provider, found.project_id) == ("smtp", None)
    fill(vault, {"account_sid": "s", "auth_token": "t", "phone_number": "n"}, "twilio")
    twilio = vault.bundle("twilio", P)
    assert type(twilio) is TwilioBundle and (
        twilio.account_sid,
        twilio.auth_token,
        twilio.phone_number,
    ) == ("s", Secret("t"), "n")
    fill(vault, {"api_key": "k", "screening_agent_id": "a", "phone_number_id": "i"}, "elevenlabs")
    voice = vault.bundle("elevenlabs")
    assert (voice.api_key, voice.screening_agent_id, voice.phone_number_id) == (
        Secret("k"),
        "a",
        "i",
    )
    fill(vault, {"api_key": "k"}, "anthropic")
    assert vault.bundle("anthropic").api_key == Secret("k")
    with pytest.raises(AttributeError):
        _ = vault.bundle("smtp").pasword  # type: ignore[attr-defined]


def test_the_fields_of_any_other_provider_are_secrets(vault: Vault) -> None:
    fill(vault, {"token": "t", "base url": "b", "_private": "p"}, "other")
    found = vault.bundle("other")
    assert (
        type(found) is AnyBundle
        and found.token == Secret("t")
        and found["base url"].reveal() == "b"
    )
    for name in ("nothing", "_private"):
        with pytest.raises(AttributeError, match=name):
            getattr(found, name)


@pytest.mark.parametrize("project", [None, P])
def test_an_unlisted_provider_without_a_field_is_incomplete_and_the_advice_can_be_followed(
    vault: Vault, project: str | None
) -> None:
    with pytest.raises(IncompleteAccount, match=r"other .*no field is stored") as caught:
        vault.bundle("other", project)
    assert caught.value.missing == ()
    option = "" if project is None else f" --project {project}"
    # Of a provider that it does not list 'vault set' asks for none.
    assert f"'vault set other FIELD{option}'" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "number", "tls_first"),
    [
        ("465", 465, True),
        ("0465", 465, False),
        ("587", 587, False),
        ("25", 25, False),
        ("1", 1, False),
        ("65535", 65535, False),
    ],
)
def test_a_port_is_a_number_and_tls_comes_first_only_with_exactly_465(
    vault: Vault, text: str, number: int, tls_first: bool
) -> None:
    fill(vault, account("all") | {"port": text})
    found = vault.bundle("smtp")
    assert (found.port, found.tls_first) == (number, tls_first)


@pytest.mark.parametrize("project", [None, P])
@pytest.mark.parametrize(
    "text",
    [
        " 465",
        "465 ",
        "465\n",
        "abc",
        "0",
        "65536",
        "００００",
        "４６５",
        "-25",
        "2_5",
        "25.0",
        "9" * 5000,
        "\ud7ff",
    ],
)
def test_what_is_no_port_is_refused_by_row_and_not_repeated(
    vault: Vault, text: str, project: str | None
) -> None:
    row_id = fill(vault, account("all") | {"port": text}, project=project)["port"]
    found = vault.bundle("smtp", project)
    assert found.host == "host.all" and not found.tls_first
    with pytest.raises(UnusableValue, match="1 to 65535") as caught:
        _ = found.port
    assert caught.value.row_id == row_id and row_id in str(caught.value)
    assert len(text) < 3 or text.strip() not in f"{caught.value} {caught.value.hint}".replace(
        row_id, ""
    )


def test_the_advice_about_a_projects_port_is_about_that_project(vault: Vault) -> None:
    """Without --project it would change the account of all, and leave the fault where it is."""
    fill(vault, account("own") | {"port": "abc"}, project=P)
    with pytest.raises(UnusableValue) as caught:
        _ = vault.bundle("smtp", P).port
    assert f"--project {P}" in str(caught.value.hint)


@pytest.mark.sqlite("bytes in a column of text")
def test_a_field_that_another_tool_named_with_bytes_is_in_no_bundle(vault: Vault) -> None:
    fill(vault, {**account("office"), "port": "25"})
    vault.database.change(
        "UPDATE provider_credentials SET credential_type = x'00ff' WHERE credential_type = 'port'"
    )
    assert list(vault.bundle("smtp")) == sorted(SMTP)


def test_a_credential_equals_another_of_the_same_row_until_that_is_replaced(vault: Vault) -> None:
    fill(vault, {"host": "mail.example.com"})
    fill(vault, {"host": "mail.example.com"}, project=P)
    before = vault.get("smtp", "host", P)
    assert (
        before == vault.get("smtp", "host", P)
        and before != vault.get("smtp", "host")
        and before != "mail.example.com"
    )
    vault.set("smtp", "host", "mail.example.com", P)
    assert before != vault.get("smtp", "host", P)


def test_a_bundle_shows_scopes_and_no_value(vault: Vault) -> None:
    fill(vault, account("canary") | {"port": "46555"}, project=P)
    fill(vault, {"from_email": "canary@example.com"})
    found = vault.bundle("smtp", P)
    for text in (
        repr(found),
        str(found),
        f"{found}",
        repr(dict(found)),
        repr(list(found.values())),
    ):
        assert "canary" not in text and "46555" not in text
    assert repr(found).startswith(
        f"SmtpBundle('smtp', project_id={P!r}, "
    ) and "from_email: global, host: project" in repr(found)


# One moment


@pytest.mark.sqlite("the plan of its planner")
@pytest.mark.parametrize("project", [None, P])
def test_a_bundle_is_one_statement_served_by_the_index(vault: Vault, project: str | None) -> None:
    fill(vault, account("all") | {"port": "25", "from_email": "a@example.com"}, project=project)
    vault.bundle("smtp", project)
    with traced(vault) as statements:
        vault.bundle("smtp", project)
    assert len(statements) == 1
    plan = [row[3] for row in vault.database.fetch(f"EXPLAIN QUERY PLAN {statements[0]}")]
    searches = [step for step in plan if "provider_credentials" in step]
    assert len(searches) == (1 if project is None else 2)
    assert all(
        step.startswith("SEARCH") and "INDEX vault_credentials_" in step and "provider=?)" in step
        for step in searches
    )
    assert not [step for step in plan if "SCAN" in step]


WRITER = """
import sys
from helpers.site import another
with another(sys.argv[1]) as connection:
    connection.execute("PRAGMA synchronous = OFF" if "://" not in sys.argv[1] else "SELECT 1")
    print("ready", flush=True)
    while True:
        for pair in (sys.argv[2:4], sys.argv[4:6]):
            connection.begin()
            for name, token in zip(("host", "password"), pair):
                connection.execute(
                    "UPDATE provider_credentials SET encrypted_value = ? WHERE credential_type = ?",
                    (token, name),
                )
            connection.execute("COMMIT")
"""


def test_an_account_that_is_replaced_meanwhile_is_read_as_it_was_before_or_after(
    path: Any, vault: Vault
) -> None:
    fill(vault, account("old"))
    cipher = vault.keys.cipher(vault.keys.states.active_id())
    tokens = [
        seal(cipher, Place(None, "smtp", name), Secret(f"{name}.{of}"))
        for of in ("old", "new")
        for name in ("host", "password")
    ]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path, *tokens],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
    )
    try:
        assert writer.stdout and writer.stdout.readline()
        seen = {("old", "old"): 0, ("new", "new"): 0}
        end = time.monotonic() + 1
        while time.monotonic() < end and (THOROUGH or min(seen.values(), default=0) < 20):
            found = vault.bundle("smtp")
            pair = found.host.partition(".")[2], found.password.reveal().partition(".")[2]
            seen[pair] = seen.get(pair, 0) + 1
    finally:
        writer.kill()
        writer.communicate()
    assert set(seen) == {("old", "old"), ("new", "new")} and min(seen.values()) > 10


# For a type checker

TYPES = """
from outreach_vault import Bundle, Scope, Secret, SmtpBundle, State, Vault

class Own(Bundle, provider="vonage"):
    api_key: Secret
    phone_number: str | None

def use(vault: Vault, name: str) -> None:
    reveal_type(vault.bundle("smtp").port)  # int
    reveal_type(vault.bundle("smtp", "p").password)  # Secret
    reveal_type(vault.bundle("smtp")["host"])  # Credential
    reveal_type(vault.bundle("twilio").account_sid)  # str
    reveal_type(vault.bundle("elevenlabs").api_key)  # Secret
    reveal_type(vault.bundle("anthropic").api_key)  # Secret
    reveal_type(vault.bundle("other").anything)  # Secret
    vault.bundle("smtp").pasword  # error
    vault.bundle("twilio").pasword  # error
    vault.bundle("elevenlabs").pasword  # error
    vault.bundle("anthropic").pasword  # error
    vault.bundle("smtp", 1)  # error
    reveal_type(vault.bundle(Own, "p"))  # Own
    reveal_type(vault.bundle(Own).api_key)  # Secret
    reveal_type(vault.bundle(SmtpBundle).port)  # int
    reveal_type(vault.bundle(Own)["api_key"])  # Credential
    vault.bundle(Own).api_keys  # error
    vault.bundle(Own).phone_number.upper()  # error
    vault.bundle(int)  # error
    scope: Scope = vault.get("smtp", "host").scope
    state: State = vault.list()[0].state
    vault.get("smtp", "host").scope == "globl"  # error
    vault.list()[0].scope == "projcet"  # error
    vault.list()[0].state == "okay"  # error
    scope = "globl"  # error
    state = "okay"  # error
"""


@pytest.mark.thorough
def test_a_type_checker_knows_the_fields_and_finds_a_misspelt_one(tmp_path: Path) -> None:
    assert outreach_vault.__file__
    # mypy does not follow an editable installation.
    (tmp_path / "outreach_vault").symlink_to(Path(outreach_vault.__file__).parent)
    (tmp_path / "adapter.py").write_text(TYPES)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--config-file=",
        "--cache-dir=cache",
        "adapter.py",
    ]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120).stdout
    for number, line in enumerate(TYPES.splitlines(), 1):
        about = [text for text in said.splitlines() if text.startswith(f"adapter.py:{number}: ")]
        if "# " not in line:
            assert not about, said
        elif line.endswith("# error"):
            assert any(": error: " in text for text in about), said
        else:
            kind = line.partition("# ")[2]
            assert [text.split('"')[1].rpartition(".")[2] for text in about] == [kind], said
