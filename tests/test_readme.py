"""
README.md and SECURITY.md are true: their commands and snippets run, their tables and diagrams are
the code's own.

The README's commands are one session, in one folder, in its order: a schema-4 file of the app
becomes a vault.
"""

from __future__ import annotations

import ast
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import outreach_vault
from outreach_vault import KeyDirectory, OSKeyring, Vault, VaultError
from outreach_vault.command import group
from outreach_vault.database import open_database
from outreach_vault.database.sqlite.database import SQLiteDatabase as Database
from outreach_vault.models import OWN_MODELS, SHARED_MODELS
from outreach_vault.operations.init import init
from outreach_vault.schema import migrator as steps

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SECURITY = (ROOT / "SECURITY.md").read_text()
TYPED = "invented-global-token"  # what the operator types at the prompt
PROJECT = "default-project"
SECONDS = 60
RAISED = (
    outreach_vault.CredentialNotFound,
    outreach_vault.KeyStoreUnavailable,
)  # though they have subclasses
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Block(NamedTuple):
    """
    A fenced block: its language, its text, whether it is marked `<!-- not run: ... -->`, its line
    in the README.
    """

    language: str
    text: str
    runs: bool
    line: int


class Line(NamedTuple):
    """One `$ ` line, and what the README shows that it prints."""

    command: str
    shown: str
    number: int


def blocks(text: str) -> Iterator[Block]:
    for found in re.finditer(
        r"^(<!-- not run: [^\n]+ -->\n)?```(\w+)\n(.*?)^```$", text, re.M | re.S
    ):
        yield Block(found[2], found[3], not found[1], text[: found.start(3)].count("\n") + 1)


def lines(block: Block) -> Iterator[Line]:
    """The `$ ` lines of a console block; a line that ends in a backslash goes on."""
    for found in re.finditer(
        r"^\$ ((?:[^\n]*\\\n)*[^\n]*)\n((?:(?!\$ )[^\n]*\n)*)", block.text, re.M
    ):
        yield Line(found[1], found[2], block.line + block.text[: found.start()].count("\n"))


def section(title: str) -> str:
    found = re.search(rf"^#+ {re.escape(title)}[^\n]*\n(.*?)(?=^#+ |\Z)", README, re.M | re.S)
    assert found, f"the README has no section {title!r}"
    return found[1]


def cells(text: str) -> list[list[str]]:
    """The rows of the Markdown table in *text*, without its head."""
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in text.splitlines()
        if row.startswith("|")
    ]
    assert len(rows) > 2
    return rows[2:]


def plain(text: str, home: Path) -> str:
    """
    *text* without what differs from run to run: ids, times, the folder, the width of columns, the
    kind of key store.
    """
    text = text.replace(f"key directory {home}/.keys", "OS keyring (Secret Service)").replace(
        str(home), "/home/you"
    )
    text = ID.sub("ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d[:-]\d\d[:-]\d\d\.\d{3}Z", "TIME", text)
    return "\n".join(re.sub(r" +", " ", line).rstrip() for line in text.splitlines()).strip()


def as_pattern(shown: str) -> str:
    """A line of three dots stands for any lines, also none."""
    parts = (
        r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"\n" for line in shown.splitlines()
    )
    return "".join(parts)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """
    A home with the app's folder: its own file at schema 4, and one at schema 5 that holds a
    credential twice.
    """
    folder = tmp_path / ".config" / "Samsara"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "data" / "v4.db", folder / "samsara.db")
    shutil.copy(ROOT / "tests" / "data" / "v4.db", folder / "twice.db")
    database = open_database(folder / "twice.db")
    for step in steps.steps()[:5]:
        steps.apply(database, step)
    for row in ("row-1", "row-2"):
        database.change(
            "INSERT INTO provider_credentials (id, provider, credential_type, encrypted_value, "
            "created_at, updated_at)"
            " VALUES (?, 'twilio', 'auth_token', '', '2026-02-06T09:30:00.250Z', "
            "'2026-02-06T09:30:00.250Z')",
            (row,),
        )
    database.close_all()
    commands = tmp_path / ".bin"
    commands.mkdir()
    for name, arguments in (("vault", "-m outreach_vault"), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (commands / name).chmod(0o755)
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "PATH": f"{home / '.bin'}:{os.environ['PATH']}",
        "OUTREACH_VAULT_KEY_DIR": str(home / ".keys"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
    }


def run(home: Path, arguments: list[str]) -> str:
    """What it prints, errors among it. A status other than 0 fails the test."""
    done = subprocess.run(
        arguments,
        cwd=home / ".config" / "Samsara",
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
    )
    assert done.returncode == 0, (
        f"{arguments[-1]}: exit status {done.returncode}: {done.stdout.decode()}"
    )
    return done.stdout.decode()


def run_at_a_terminal(home: Path, arguments: list[str], answer: str) -> str:
    """What the terminal shows of a command that asks one hidden question, which gets *answer*."""
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        arguments,
        cwd=home / ".config" / "Samsara",
        env=environment(home),
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        start_new_session=True,  # the terminal that started the tests must not be asked
    )
    try:
        deadline = time.monotonic() + SECONDS
        shown = b""
        while not shown.endswith(b": "):  # what is typed before the question is thrown away
            assert process.poll() is None and time.monotonic() < deadline, (
                f"{arguments[-1]} asks nothing"
            )
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 64 * 1024)
        os.write(terminal, answer.encode() + b"\n")
        assert process.wait(SECONDS) == 0
        return (shown + os.read(terminal, 64 * 1024)).decode()
    finally:
        process.kill()
        process.wait()
        os.close(its_end)
        os.close(terminal)


def asks(command: str) -> bool:
    return command.startswith("vault set ") and "--from-" not in command


SNIPPET = f"""
class Client:
    def login(self, token):
        print("logged in with", token)

project_id, client = {PROJECT!r}, Client()
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_every_command_and_snippet_of_the_readme_does_what_it_shows(home: Path) -> None:
    ran = []
    seen: dict[str, str] = {}
    ids: dict[
        str, str
    ] = {}  # those that the README shows, and those that were printed in their place

    def of_this_run(found: re.Match[str]) -> str:
        return ids[found[0]]

    for block in blocks(README):
        if block.language == "python":
            if (
                "client.login" in block.text
            ):  # the adapter's three lines come before the operator's part; they need its values
                continue
            seen[block.text] = run(
                home, [sys.executable, "-W", "error", "-c", SNIPPET + block.text]
            )
        for line in lines(block) if block.language in ("console", "sh") and block.runs else ():
            arguments = ["bash", "-o", "pipefail", "-c", ID.sub(of_this_run, line.command)]
            printed = (
                run_at_a_terminal(home, arguments, TYPED)
                if asks(line.command)
                else run(home, arguments)
            )
            ids |= zip(ID.findall(line.shown), ID.findall(printed), strict=False)
            shown, printed = plain(line.shown, home), plain(printed, home)
            if shown:
                assert re.fullmatch(as_pattern(shown), printed + "\n"), (
                    f"README.md:{line.number}: it prints\n{printed}"
                )
            ran.append(line.command)
    assert len(ran) > 20
    with Vault.open(
        home / ".config/Samsara/samsara.db", key_store=KeyDirectory(home / ".keys")
    ) as vault:
        values = {
            vault.get(e.provider, e.credential_type, e.project_id, fallback=False).reveal()
            for e in vault.list()
        }
    assert {TYPED, "invented-token-of-one-project"} < values
    [printed] = [printed for text, printed in seen.items() if "Fernet" in text]
    assert all(repr(value) in printed for value in values), (
        "the emergency exit must give every value"
    )
    [adapter] = [block.text for block in blocks(README) if "client.login" in block.text]
    assert (
        run(home, [sys.executable, "-W", "error", "-c", SNIPPET + adapter])
        == "logged in with invented-token-of-one-project\n"
    )


def test_each_block_is_of_a_kind_that_is_checked_and_few_are_not_run() -> None:
    found = list(blocks(README))
    assert README.count("\n```") == 2 * len(found), (
        "a block that the expression does not find is not checked"
    )
    assert {block.language for block in found} == {"console", "python", "mermaid"}
    assert len([block for block in found if not block.runs]) == 5
    assert all(block.text.startswith("$ ") for block in found if block.language == "console"), (
        "no prompt, so it would not be run"
    )


def test_each_make_command_is_a_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        line.command.removeprefix("make ")
        for block in blocks(README)
        for line in lines(block)
        if line.command.startswith("make ")
    }
    assert {"demo", "test"} == named <= targets


@pytest.mark.peer
def test_the_keyring_line_of_the_emergency_exit_prints_the_key(
    secret_service: object, tmp_path: Path
) -> None:
    init(tmp_path / "samsara.db", key_store=(store := OSKeyring()))
    with Vault.open(tmp_path / "samsara.db", key_store=store) as vault:
        vault_id, key_id = vault.keys.vault_id, vault.keys.states.active_id()
    [command] = [
        line.command
        for block in blocks(README)
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
    of_readme = {int(number): text for number, text in cells(section("Exit statuses"))}
    assert of_readme == of_help
    assert list(of_readme) == [0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17, 18, 126, 127]
    assert {*group.STATUSES.values(), group.INCOMPLETE} <= set(of_readme)


def test_the_table_of_errors_has_each_error_that_is_raised_with_its_status() -> None:
    family = {
        name: cls
        for name in outreach_vault.__all__
        if issubclass(cls := getattr(outreach_vault, name), VaultError)
    }
    leaves = {name for name, cls in family.items() if cls in RAISED or not cls.__subclasses__()}
    table = {name.strip("`"): int(status) for name, status, _ in cells(section("Errors"))}
    assert set(table) == leaves
    for name, status in table.items():
        assert status == next(
            group.STATUSES[cls] for cls in family[name].__mro__ if cls in group.STATUSES
        ), name


def test_the_layout_names_what_is_there_and_every_module() -> None:
    paths = {path.strip("`") for path, _ in cells(section("Layout"))}
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


def diagram(kind: str) -> str:
    [found] = [block.text for block in blocks(README) if block.text.startswith(kind)]
    return found


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
    told = section("What the vault does to the shared database")
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


def test_each_promise_of_security_names_a_test() -> None:
    promised, _, not_protected = SECURITY.partition("## What is not protected")
    assert not_protected
    rows = [
        row
        for row in promised.splitlines()
        if row.startswith("| ") and not row.startswith(("| promise", "| ---"))
    ]
    assert len(rows) > 10
    assert not [row for row in rows if "tests/" not in row]
