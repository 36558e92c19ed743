"""
What a call costs, counted and not timed: statements, how SQLite serves them, calls to the key
store, modules that are loaded.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.rotation_peers import fill
from helpers.rows import traced
from helpers.secret_service import SecretService
from helpers.site import Site, another

from outreach_vault import KeyDirectory, OSKeyring, Vault
from outreach_vault.keys.stores import KeyStore
from outreach_vault.operations import rotation
from outreach_vault.operations.init import init

P = "default-project"
AN_INDEX = re.compile(r"SEARCH (\w+) USING (?:COVERING )?(?:INDEX \w+|INTEGER PRIMARY KEY)")


def plan(vault: Vault, statement: str) -> list[str]:
    return [row[3] for row in vault.database.fetch(f"EXPLAIN QUERY PLAN {statement}")]


def servers_plan(site: Site, statement: str) -> list[str]:
    """What serves it where an index can; a server reads a table that is small as a whole."""
    numbers = itertools.count(1)
    named = re.sub(r"%[sb]|%\(\w+\)s", lambda _: f"${next(numbers)}", statement)
    with another(site.database) as connection:
        connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        found = connection.execute(f"EXPLAIN (GENERIC_PLAN) {named}").fetchall()
    return re.findall(r"(?:Seq|Index(?: Only)?) Scan.* on \w+", "\n".join(row for (row,) in found))


@pytest.fixture
def vault(vault: Vault) -> Vault:
    fill(vault, 20)
    for name in ("account_sid", "auth_token", "phone_number"):
        vault.set("twilio", name, "of the project", P)
        vault.set("twilio", name, "of all")
    return vault


# Statements


@pytest.mark.parametrize(
    "call",
    [
        lambda vault: vault.get("twilio", "auth_token", P),
        lambda vault: vault.get("twilio", "auth_token"),
        lambda vault: vault.get("smtp", "field-1", P),
        lambda vault: vault.bundle("twilio", P),
        lambda vault: vault.bundle("twilio"),
        lambda vault: vault.has("twilio", "auth_token", P),
        lambda vault: vault.which("twilio", None, P),
        lambda vault: vault.list(),
    ],
    ids=["get", "get global", "get by fallback", "bundle", "bundle global", "has", "which", "list"],
)
def test_a_read_is_one_statement(vault: Vault, call: Callable[[Vault], object]) -> None:
    call(vault)  # a key is fetched once, and not by this
    with traced(vault) as statements:
        call(vault)
    assert [statement for statement in statements if not statement.startswith("--")] == statements[
        :1
    ]


def test_a_set_is_two_searches_and_one_change_that_is_read_again_in_one_transaction(
    vault: Vault,
) -> None:
    """
    The active key and the row, whose value goes to the history; where there is none yet, the
    project.
    """
    for value in "uv":  # a table is looked at once, and not by what follows
        vault.set("smtp", "user", value, P)
    with traced(vault) as statements:
        vault.set("smtp", "user", "w", P)
        vault.set("smtp", "port", "587", P)
    verbs = [statement.split()[0] for statement in statements]
    first = verbs.index("COMMIT") + 1
    assert verbs[:first] == [
        *["BEGIN", "SELECT", "SELECT"],
        *["SELECT", "SELECT", "DELETE", "SELECT", "INSERT"],  # the history's, with its limits
        *["SELECT", "UPDATE", "DELETE", "SELECT", "COMMIT"],  # the account's access token first
    ]
    assert verbs[first:] == [
        "BEGIN",
        "SELECT",
        "SELECT",
        "SELECT",
        "SELECT",
        "INSERT",
        "SELECT",
        "SELECT",
        "COMMIT",
    ]


def test_a_rotation_is_one_search_and_one_transaction_for_each_batch(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 10)
    with traced(vault) as statements:
        report = rotation.rotate(vault)
    on_a_server = vault.database.kind == "PostgreSQL"
    pages = [each for each in statements if "_rowid_ >=" in each or "ORDER BY id LIMIT" in each]
    swaps = [
        statement for statement in statements if statement.startswith("UPDATE provider_credentials")
    ]
    # A batch is one statement on a server. The last page of each table is empty.
    assert (report.rotated, len(swaps), len(pages)) == (26, 3 if on_a_server else 26, 6)
    # What is left, before and after.
    assert sum("count(*)" in each for each in statements if "GROUP BY" in each) == 2
    first = statements.index(swaps[0])
    count = 1 if on_a_server else 10
    assert [each.split()[0] for each in statements[first - 2 : first + count + 2]] == [
        "SELECT",
        "BEGIN",
        *["UPDATE"] * count,
        "COMMIT",
        "SELECT",
    ]


# How SQLite serves them


@pytest.mark.sqlite("the plans of its planner")
@pytest.mark.parametrize("project_id", [P, None])
def test_a_read_searches_one_index_for_each_scope(vault: Vault, project_id: str | None) -> None:
    for call in (
        lambda: vault.get("twilio", "auth_token", project_id),
        lambda: vault.bundle("twilio", project_id),
    ):
        with traced(vault) as statements:
            call()
        steps = plan(vault, statements[0])
        assert [step for step in steps if "SCAN" in step] == []
        searches = [step for step in steps if step.startswith("SEARCH provider_credentials")]
        assert len(searches) == (1 if project_id is None else 2)
        for step in searches:
            assert re.match(
                r"SEARCH provider_credentials USING INDEX vault_credentials_(project "
                r"\(project_id=\? AND |global \()prov",
                step,
            )


@pytest.mark.sqlite("the plans of its planner")
def test_a_set_searches_an_index_in_each_statement(vault: Vault) -> None:
    for value in "uv":  # a table is looked at once, and not by what follows
        vault.set("smtp", "user", value, P)
    with traced(vault) as statements:
        vault.set("smtp", "user", "w", P)
    _, active, place, old, _, expire, kept, _, grant, update, due, again, _ = statements
    by_number = "USING INTEGER PRIMARY KEY (rowid=?)"
    assert plan(vault, active) == [
        "SEARCH vault_keys USING COVERING INDEX vault_keys_one_active (state=?)",
        f"SEARCH vault_keys {by_number} LEFT-JOIN",
    ]
    assert plan(vault, again) == [f"SEARCH provider_credentials {by_number}"]
    assert plan(vault, place) == [
        "SEARCH provider_credentials USING COVERING INDEX vault_credentials_project (project_id=? "
        "AND provider=? AND credential_type=?)",
        f"SEARCH provider_credentials {by_number} LEFT-JOIN",
        "SCALAR SUBQUERY 2",
        "SEARCH projects USING COVERING INDEX sqlite_autoindex_projects_1 (id=?)",
        "SEARCH projects USING INTEGER PRIMARY KEY (rowid=?)",
    ]
    assert plan(vault, update) == [f"SEARCH provider_credentials {by_number}"]
    assert plan(vault, old) == [f"SEARCH provider_credentials {by_number}"]
    assert plan(vault, expire) == [
        "SEARCH vault_history USING COVERING INDEX vault_history_ended (ended_at<?)"
    ]
    assert plan(vault, kept) == [
        "SEARCH vault_history USING COVERING INDEX vault_history_place (provider=? AND"
        " credential_type=? AND project_id=?)",
        f"SEARCH vault_history {by_number} LEFT-JOIN",
    ]
    assert plan(vault, grant) == [
        "SEARCH vault_grants USING COVERING INDEX vault_grants_project (project_id=? AND"
        " provider=?)",
        f"SEARCH vault_grants {by_number} LEFT-JOIN",
    ]
    assert plan(vault, due) == [
        "SEARCH vault_due USING INDEX sqlite_autoindex_vault_due_1 (credential_id=?)"
    ]


@pytest.mark.sqlite("the plans of its planner")
def test_a_rotation_goes_by_the_rowid(vault: Vault) -> None:
    with traced(vault) as statements:
        rotation.rotate(vault)
    page = next(statement for statement in statements if "_rowid_ >=" in statement)
    swap = next(
        statement for statement in statements if statement.startswith("UPDATE provider_credentials")
    )
    assert plan(vault, page) == ["SEARCH provider_credentials USING INTEGER PRIMARY KEY (rowid>?)"]
    assert plan(vault, swap) == ["SEARCH provider_credentials USING INTEGER PRIMARY KEY (rowid=?)"]


@pytest.mark.server("the plans of its planner")
@pytest.mark.parametrize("project_id", [P, None])
def test_a_server_can_serve_a_read_by_one_index_for_each_scope(
    site: Site, vault: Vault, project_id: str | None
) -> None:
    for call in (
        lambda: vault.get("twilio", "auth_token", project_id),
        lambda: vault.bundle("twilio", project_id),
    ):
        with traced(vault) as statements:
            call()
        steps = [each for each in servers_plan(site, statements[0]) if "provider_cred" in each]
        scopes = ("project", "global") if project_id else ("global",)
        assert sorted(steps) == sorted(
            f"Index Scan using vault_credentials_{scope} on provider_credentials"
            for scope in scopes
        )


@pytest.mark.server("the plans of its planner")
def test_a_server_can_serve_a_set_and_a_rotation_by_indexes(site: Site, vault: Vault) -> None:
    with traced(vault) as statements:
        vault.set("smtp", "user", "w", P)
        vault.set("smtp", "user", "x", P)
        rotation.rotate(vault)
    looked = [
        each
        for each in statements
        if each.startswith(("SELECT", "UPDATE", "DELETE"))
        and "provider_credentials" in each
        and "WHERE" in each
        and "count(*)" not in each
    ]
    assert len(looked) > 6
    for each in looked:
        assert not [step for step in servers_plan(site, each) if step.startswith("Seq Scan")], each


# The key store


class Counted(KeyDirectory):
    """A key directory that counts what it is asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: list[tuple[str, str]] = []

    def read(self, vault_id: str, key_id: str) -> object:  # type: ignore[override]
        self.asked.append(("read", key_id))
        return super().read(vault_id, key_id)

    def successor(self, vault_id: str, key_id: str) -> str | None:
        self.asked.append(("successor", key_id))
        return super().successor(vault_id, key_id)


def test_a_key_is_fetched_once_for_a_process_however_much_is_read(site: Site) -> None:
    with site.open() as vault:
        fill(vault, 20)
        old = vault.keys.states.active_id()
        rotation.rotate(vault)
        vault.set("smtp", "user", "v")
        new = vault.keys.states.active_id()
    store = Counted(site.keys)
    with Vault.open(site.database, key_store=store) as vault:
        for number in range(20):
            vault.get("smtp", f"field-{number}", P)
            vault.list()
    assert store.asked == [("read", new)] and old != new


def test_a_set_asks_the_key_store_twice_for_a_process_and_then_no_more(site: Site) -> None:
    store = Counted(site.keys)
    with Vault.open(site.database, key_store=store) as vault:
        for number in range(20):
            vault.set("smtp", f"field-{number}", "v", P)
        active = vault.keys.states.active_id()
    assert store.asked == [("read", active), ("successor", active)]


@pytest.mark.sqlite("the keyring")
def test_vault_get_makes_one_call_to_the_keyring(
    site: Site, secret_service: SecretService, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring: KeyStore = OSKeyring()
    database = site.database.with_name("of-the-keyring.db")
    init(database, key_store=keyring)
    with Vault.open(database, key_store=keyring) as vault:
        vault.set("smtp", "user", "v")
    made = "SecretService.Keyring.get_password"
    code = f"""
import keyring.backends.SecretService as SecretService, outreach_vault.command.cli as cli, sys
get, calls = {made}, []
def counted(self, service, user):
    calls.append(service)
    return get(self, service, user)
{made} = counted
status = cli.run(["--db", sys.argv[1], "get", "smtp", "user"])
print(status, len(calls))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, database], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["v", "0", "1"], done.stderr


# What is loaded

LOADED = re.compile(r"import time:[^|]+\|[^|]+\|\s*(\S+)")
NEVER = {"rich", "playhouse", "typer", "pydantic"}
NOT_TO_READ = NEVER | {
    "peewee",
    "tempfile",
    "shutil",
    "hashlib",
    "importlib.metadata",
    "traceback",
    "logging",
}
OURS = {
    "models",
    "migrator",
    "migrations",
    "rotation",
    "recovery",
    "doctor",
    "status",
    "checks",
    "launch",
}


def loaded(*arguments: str | Path, variables: dict[str, str] | None = None) -> set[str]:
    """Every module that the command imports, by full name."""
    command = [sys.executable, "-X", "importtime", "-m", "outreach_vault", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(variables or {})}
    )
    assert done.returncode == 0, done.stderr
    return set(LOADED.findall(done.stderr))


@pytest.fixture
def stored(site: Site) -> Site:
    with site.open() as vault:
        vault.set("smtp", "user", "v", P)
    return site


def test_vault_get_loads_no_more_than_it_needs(stored: Site) -> None:
    before = set(
        LOADED.findall(
            subprocess.run(
                [sys.executable, "-X", "importtime", "-c", ""], capture_output=True, text=True
            ).stderr
        )
    )
    found = (
        loaded(
            "--db", stored.database, "--key-dir", stored.keys, "get", "smtp", "user", "--project", P
        )
        - before
    )
    assert {"outreach_vault.command.cli", "click", "cryptography.fernet"} <= found
    # psycopg loads a part of these.
    assert found & (NEVER | {"peewee"} if stored.engine else NOT_TO_READ) == set()
    assert {
        name.split(".")[-1] for name in found if name.startswith("outreach_vault.")
    } & OURS == set()
    assert not [
        name for name in found if name.partition(".")[0] in ("keyring", "secretstorage", "jeepney")
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["which", "smtp", "--project", P],
        ["set", "smtp", "host", "--from-env", "VALUE"],
        ["status"],
    ],
)
def test_no_daily_command_loads_peewee_or_what_draws(stored: Site, arguments: list[str]) -> None:
    found = loaded(
        "--db",
        stored.database,
        "--key-dir",
        stored.keys,
        *arguments,
        variables={"VALUE": "mail.example.com"},
    )
    assert (
        found
        & (NEVER | {"peewee", "outreach_vault.schema.models", "outreach_vault.operations.rotation"})
        == set()
    )
