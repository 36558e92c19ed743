"""
What the pages say of the code is the code's own: tables, diagrams, the layout, the promises of
SECURITY.md. `test_docs.py` runs their commands.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from helpers.pages import PAGES, ROOT, blocks, cells, diagram, lines, prose, section

import outreach_vault
from outreach_vault import KeyDirectory, OSKeyring, Secret, Vault, VaultError
from outreach_vault.command import cli, group
from outreach_vault.command.completing import inner
from outreach_vault.database import open_database
from outreach_vault.database.sqlite.database import SQLiteDatabase as Database
from outreach_vault.keys.states import KeyRecord
from outreach_vault.models import OWN_MODELS, SHARED_MODELS
from outreach_vault.operations.init import init
from outreach_vault.operations.recovery import KIND, export_keys
from outreach_vault.providers import Field, catalogue
from outreach_vault.schema import migrator as steps

SECURITY = PAGES["SECURITY.md"]
SECONDS = 60
# Raised themselves, though they have subclasses.
RAISED = (outreach_vault.CredentialNotFound, outreach_vault.KeyStoreUnavailable)


@pytest.mark.peer
def test_the_keyring_line_of_the_emergency_exit_prints_the_key(
    secret_service: object, tmp_path: Path
) -> None:
    init(tmp_path / "samsara.db", key_store=(store := OSKeyring()))
    with Vault.open(tmp_path / "samsara.db", key_store=store) as vault:
        vault_id, key_id = vault.keys.vault_id, vault.keys.states.active_id()
    [command] = [
        line.command
        for block in blocks("docs/formats.md")
        for line in lines(block)
        if line.command.startswith("secret-tool ")
    ]
    command = command.replace("VAULT_ID", vault_id).replace("KEY_ID", key_id)
    printed = subprocess.run(
        command.split(), capture_output=True, text=True, check=True, timeout=SECONDS
    ).stdout
    assert printed.rstrip("\n") == store.read(vault_id, key_id).reveal()


def test_the_exit_statuses_are_those_of_the_command() -> None:
    published = " ".join(group.HELP.split()).split("Exit status: ")[1]
    of_help = {
        int(number): text for number, text in re.findall(r"(\d+) (.+?)(?=, \d+ |\.$)", published)
    }
    of_page = {
        int(number): text for number, text in cells(section("docs/errors.md", "Exit statuses"))
    }
    assert of_page == of_help
    assert list(of_page) == [0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17, 18, 126, 127]
    assert {*group.STATUSES.values(), group.INCOMPLETE} <= set(of_page)


def test_the_table_of_errors_has_each_error_that_is_raised_with_its_status() -> None:
    family = {
        name: cls
        for name in outreach_vault.__all__
        if isinstance(cls := getattr(outreach_vault, name), type) and issubclass(cls, VaultError)
    }
    leaves = {name for name, cls in family.items() if cls in RAISED or not cls.__subclasses__()}
    table = {
        name.strip("`"): int(status)
        for name, status, _ in cells(section("docs/errors.md", "In Python"))
    }
    assert set(table) == leaves
    for name, status in table.items():
        assert status == next(
            group.STATUSES[cls] for cls in family[name].__mro__ if cls in group.STATUSES
        ), name


def test_the_layout_names_what_is_there_and_every_module() -> None:
    paths = {
        path.strip("`") for path, _ in cells(section("docs/contributing.md", "Where things are"))
    }
    assert not [path for path in paths if not (ROOT / path).exists()]
    rooms = {
        f"{file.parent.relative_to(ROOT).as_posix()}/"
        for file in (ROOT / "outreach_vault").glob("*/__init__.py")
    }
    assert (
        not (
            rooms
            | {f"outreach_vault/{module.name}" for module in (ROOT / "outreach_vault").glob("*.py")}
        )
        - paths
    )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    steps.create(tmp_path / "new.db")
    opened = open_database(tmp_path / "new.db")
    yield opened
    opened.close_all()


def test_the_diagram_of_tables_is_that_of_the_database(database: Database) -> None:
    text = diagram("erDiagram")
    columns = database.columns()
    tables = {model._meta.table_name for model in SHARED_MODELS + OWN_MODELS}
    assert tables == {name for name in columns if not name.startswith("sqlite_")}
    relations = re.findall(r"^ +(\w+) (\|o|\|\|)(--|\.\.)o\{ (\w+) : (\w+)$", text, re.M)
    entities = re.findall(r"^    (\w+)(?: \{\n(.*?)^    \})?$", text, re.M | re.S)
    assert len(text.splitlines()) == 1 + len(relations) + sum(
        1 + (inside.count("\n") + 1 if inside else 0) for _, inside in entities
    )
    assert {name for name, _ in entities} | {
        name for parent, _, _, child, _ in relations for name in (parent, child)
    } == tables
    for table, inside in entities:
        named = re.findall(r"^ +\w+ (\w+)", inside, re.M)
        assert not inside or named == columns[table], table
    declared: set[tuple[str, str, str]] = set()
    by_name: set[tuple[str, str, str]] = set()
    for parent, ends, kind, child, column in relations:
        assert column in columns[child]
        (declared if kind == "--" else by_name).add((child, column, parent))
        if kind == "--":
            [required] = [
                row[3] for row in database.fetch(f"PRAGMA table_info({child})") if row[1] == column
            ]
            assert ends == ("||" if required else "|o"), f"{child}.{column}"
    assert declared == {
        (table, row[3], row[2])
        for table in tables
        for row in database.fetch(f"PRAGMA foreign_key_list({table})")
    }
    assert not declared & by_name


def test_the_diagram_of_tables_marks_what_the_vault_adds(
    database: Database, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "tests" / "data" / "v4.db", tmp_path / "app.db")
    app = open_database(tmp_path / "app.db")
    for step in steps.steps()[:5]:
        steps.apply(app, step)
    theirs, all_of_it = app.columns(), database.columns()
    app.close_all()
    text = diagram("erDiagram")
    marked = set()
    for table, inside in re.findall(r"^    (\w+) \{\n(.*?)^    \}", text, re.M | re.S):
        marked |= {table} if '"table added by the vault"' in inside else set()
        marked |= {
            f"{table}.{column}"
            for column in re.findall(r'(\w+) "column added by the vault"', inside)
        }
    added = {table for table in all_of_it if table not in theirs}
    added |= {
        f"{table}.{column}"
        for table in theirs
        for column in all_of_it[table]
        if column not in theirs[table]
    }
    assert marked == added
    told = section("docs/database.md", "What the vault adds")
    indexes = (
        "SELECT name FROM sqlite_master WHERE type IN ('index', 'trigger') AND name LIKE 'vault%'"
    )
    assert not [name for (name,) in database.fetch(indexes) if f"`{name}`" not in told]
    assert not [name for name in added if f"`{name}`" not in told]


def test_the_diagram_of_keys_has_the_states_that_the_table_allows(database: Database) -> None:
    [[made]] = database.fetch("SELECT sql FROM sqlite_master WHERE name = 'vault_keys'")
    allowed = set(re.findall(r"'(\w+)'", made.split("CHECK")[1].split(")")[0]))
    arrows = re.findall(r"^ +(\S+) --> ([\w*\[\]]+)", diagram("stateDiagram-v2"), re.M)
    assert {state for arrow in arrows for state in arrow} - {"[*]"} == allowed
    assert {
        ("pending", "active"),
        ("active", "retired"),
        ("retired", "destroyed"),
        ("pending", "destroyed"),
    } < set(arrows)


def test_each_test_that_security_names_exists() -> None:
    named = re.findall(r"tests/([\w/]+\.py)::(\w+)", SECURITY)
    assert len(named) > 10
    defined: dict[str, set[str]] = {}
    for file in {file for file, _ in named}:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        defined[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not [
        f"{file}::{test}"
        for file, test in named
        if not test.startswith("test_") or test not in defined[file]
    ]


def test_each_promise_of_security_names_a_test_and_each_test_a_promise() -> None:
    promised = re.findall(r"^- \*\*([A-Z]\d+)\*\* \S", section_and_below("What is promised"), re.M)
    shown = cells(section("SECURITY.md", "What shows it"))
    assert len(promised) > 100 and promised == [row[0] for row in shown]
    assert not [row for row in shown if "tests/" not in row[1]]
    assert SECURITY.count("tests/") == sum(row[1].count("tests/") for row in shown) + 3, (
        "tests are named in the table, and under what is not protected"
    )


def section_and_below(title: str) -> str:
    return SECURITY.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_what_is_not_protected_and_how_to_report_come_first() -> None:
    assert re.findall(r"^## (.+)$", SECURITY, re.M)[:2] == [
        "What is not protected",
        "How to report a flaw",
    ]


def test_each_command_and_option_that_a_page_names_is_there() -> None:
    """`vault keys export --passphrase-file F` in the text of a page."""
    unknown = []
    for page in PAGES:
        for named in re.findall(r"`vault ([^`]+)`", prose(page)):
            command: click.Command = cli.cli
            options = {option for each in command.params for option in each.opts}
            for word in named.split(" -- ")[0].split():
                if isinstance(command, click.Group) and word in inner(command):
                    command = inner(command)[word]
                    for each in command.params:
                        options |= {*each.opts, *each.secondary_opts}
                elif word.startswith("--") and word not in {*options, "--help", "--version"}:
                    unknown.append(f"{page}: vault {named}: {word}")
            if command is cli.cli and not named.startswith("-"):
                unknown.append(f"{page}: vault {named}")
    assert unknown == []


def test_the_runbook_has_messages_that_the_package_gives() -> None:
    texts = "\n".join(
        node.value
        for file in (ROOT / "outreach_vault").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    rows = cells(section("docs/operators.md", "What a message means"))
    assert len(rows) > 15
    pieces = [piece for message, *_ in rows for piece in message.strip("`").split("...")]
    assert not [piece for piece in pieces if piece.strip(" ,") not in texts]


def test_the_catalogue_on_the_page_is_the_catalogue() -> None:
    def shown(field: Field) -> str:
        name = f"**`{field.name}`**" if field.secret else f"`{field.name}`"
        return name if field.required else f"*{name}*"

    rows = []
    for provider in catalogue():
        own = ", ".join(shown(field) for field in provider.fields if field.account)
        other = ", ".join(shown(field) for field in provider.fields if not field.account)
        rows.append(
            [f"`{provider.name}`", provider.channel, f"{own} ¦ {other}".removesuffix(" ¦ ")]
        )
    assert cells(section("docs/adapters.md", "The catalogue")) == rows


def test_the_formats_are_those_of_the_files(tmp_path: Path) -> None:
    init(tmp_path / "vault.db", key_store=(store := KeyDirectory(tmp_path / "keys")))
    with Vault.open(tmp_path / "vault.db", key_store=store) as vault:
        vault.set("smtp", "password", "...")
        [stored] = vault.rows.each()
        active = vault.keys.states.active_id()
        assert active and stored.key_id == active
        opened = vault.keys.cipher(active).opened(stored.encrypted_value)[1]
        export_keys(vault, tmp_path / "keys.json", Secret("invented"))
    [shown] = [block.text for block in blocks("docs/formats.md") if block.language == "json"]
    assert opened and opened.reveal() == shown.rstrip("\n")
    parts, fields = tables("The file of exported keys")
    exported = json.loads((tmp_path / "keys.json").read_text())
    assert [name for name, _ in parts] == [f"`{name}`" for name in exported]
    assert parts[0][1] == f"`{KIND}`"
    named = {name for names, _ in fields for name in re.findall(r"`(\w+)`", names)}
    assert named == {*KeyRecord._fields, "check_value", "key"}


def tables(title: str) -> list[list[list[str]]]:
    """Each table of that section of the page about formats."""
    found = re.findall(r"(?:^\|.*\n)+", section("docs/formats.md", title), re.M)
    return [cells(table) for table in found]


def test_the_readme_is_short_and_no_page_is_long() -> None:
    """Words as `wc -w` counts them. SECURITY.md is short where it is read, and then a list."""
    words = {page: len(text.split()) for page, text in PAGES.items()}
    words["SECURITY.md"] = len(SECURITY.partition("## What is promised")[0].split())
    assert words["README.md"] <= 1000
    assert not {page: count for page, count in words.items() if count > 2200}
