"""
The commands and snippets of every page do what the page shows; its links lead somewhere.

The commands of a page are one session, in one folder, in the page's order. The README and the
runbook begin with a schema-4 file of the app; the other pages with a vault that has some values.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import call, ready
from helpers.pages import FILES, ID, PAGES, ROOT, anchors, blocks, lines, links
from helpers.ready import Call

from outreach_vault import KeyDirectory, Vault
from outreach_vault.database import open_database
from outreach_vault.operations.init import init
from outreach_vault.schema import migrator as steps

PROJECT = "default-project"
SECONDS = 60
STREAMS = ("stdin", "stdout", "stderr")
# What the operator types at a prompt, by the field's name; at any other, Enter alone.
ANSWERS = {
    "host": "mail.example.com",
    "user": "office@example.com",
    "password": "invented for all",
    "auth_token": "invented-global-token",
}
# Each is run by a test of its own: test_fleet_page.py has a server, and
# command/test_import_export.py a file of Airflow.
ELSEWHERE = ("docs/fleet.md", "docs/import-export.md")
FROM_THE_APPS_FILE = ("README.md", "docs/operators.md")
NOT_RUN = {
    "README.md": 1,
    "docs/adapters.md": 2,
    "docs/contributing.md": 1,
    "docs/fleet.md": 1,
    "docs/formats.md": 1,
    "docs/keys.md": 1,
    "docs/oauth.md": 3,
    "docs/values.md": 1,
}
# The blocks of the page for authors: each alone, on a new vault, by its heading.
EXPECTED = {
    "One account in one call": "mail.example.com 587 False office@example.com\nglobal\n16\n",
    "A secret in a text": "log in with ********\na secret cannot be formatted",
    "Fail closed": (
        "not sent: twilio (project default-project): missing account_sid, auth_token, "
        "phone_number\nnext: 'vault set twilio"
    ),
    "Records that the app shows": "1\n",
    "One transaction": "project\n",
    "Threads": "{'mail.example.com'}\n",
    "asyncio": "{'mail.example.com'}\n",
    "Workers that fork": "{'mail.example.com'}\n",
    "A provider of your own": "",
    "A typed bundle of your own": "Acme global\n",
}
SNIPPET = f"""
class Server:
    def login(self, user, password):
        print(user, "logged in with", password)

project_id, server = {PROJECT!r}, Server()
"""


def plain(text: str, home: Path) -> str:
    """Without what differs from run to run: ids, times, folder, columns' width, key store."""
    text = text.replace(f"key directory {home}/.keys", "OS keyring (Secret Service)").replace(
        str(home), "/home/you"
    )
    text = ID.sub("ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d[:-]\d\d[:-]\d\d\.\d{3}Z", "TIME", text)
    text = re.sub(r"\b\d{4}-\d\d-\d\d( \d\d:\d\d)?\b", "DAY", text)
    return "\n".join(re.sub(r" +", " ", line).rstrip() for line in text.splitlines()).strip()


def as_pattern(shown: str) -> str:
    """A line of three dots stands for any lines, also none."""
    parts = (
        r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"\n" for line in shown.splitlines()
    )
    return "".join(parts)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the app's folder: a file at schema 4, and one with a credential twice."""
    folder = tmp_path / ".config" / "Samsara"
    folder.mkdir(parents=True)
    for name in ("samsara.db", "twice.db"):
        shutil.copy(ROOT / "tests" / "data" / "v4.db", folder / name)
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


def at(home: Path) -> dict[str, Any]:
    return {"cwd": str(home / ".config" / "Samsara"), "env": environment(home)}


def run(home: Path, arguments: list[str]) -> str:
    """What it prints, errors among it. A status other than 0 fails the test."""
    if words := of_the_command(arguments):
        status, out, _ = call(words, together=True, **at(home))
        assert status == 0, f"{arguments[-1]}: exit status {status}: {out}"
        return out
    done = subprocess.run(
        arguments,
        **at(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
    )
    assert done.returncode == 0, (
        f"{arguments[-1]}: exit status {done.returncode}: {done.stdout.decode()}"
    )
    return done.stdout.decode()


def run_at_a_terminal(home: Path, arguments: list[str]) -> str:
    """What the terminal shows of a command whose questions get their ANSWERS."""
    terminal, its_end = pty.openpty()
    words, streams = of_the_command(arguments), dict.fromkeys(STREAMS, its_end)
    # In a session of its own: the terminal that started the tests must not be asked.
    process: subprocess.Popen[bytes] | Call = (
        Call(words, list(streams.values()), session=True, **at(home))
        if words
        else subprocess.Popen(arguments, start_new_session=True, **streams, **at(home))
    )
    try:
        deadline, shown, answered = time.monotonic() + SECONDS, "", 0
        while process.poll() is None or select.select([terminal], [], [], 0)[0]:
            assert time.monotonic() < deadline, f"{arguments[-1]} waits after {shown!r}"
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 64 * 1024).decode()
            asked = re.search(r"(\w+)(?: \[[^\]]+\])?: \Z", shown[answered:])
            if asked:  # what is typed before the question is thrown away
                answered = len(shown)
                os.write(terminal, f"{ANSWERS.get(asked[1], '')}\n".encode())
        assert process.returncode == 0, shown
        return shown
    finally:
        process.kill()
        process.wait()
        os.close(its_end)
        os.close(terminal)


def of_the_command(arguments: list[str]) -> list[str]:
    """The words after `vault`, if a shell adds nothing to them; none in a thorough run."""
    alone = ready(os.environ) and re.fullmatch(r"vault ([^|&;<>$`*?(){}\\~\n]+)", arguments[-1])
    return shlex.split(alone[1]) if alone else []


def asks(command: str) -> bool:
    return command.startswith("vault set ") and "--from-" not in command


def store_some(database: Path, keys: Path) -> None:
    init(database, key_store=(store := KeyDirectory(keys)))
    with Vault.open(database, key_store=store) as vault:
        for field in ("host", "user", "password"):
            vault.set("smtp", field, ANSWERS[field].removesuffix(" for all"))
        vault.set("acme", "token", "invented-for-one-project", PROJECT)
        vault.set("acme", "token", "invented-for-all")


class Session:
    """The commands of one page, in one home."""

    def __init__(self, home: Path, page: str) -> None:
        self.home, self.page = home, page
        # The ids that the page shows, and those that were printed in their place.
        self.ids: dict[str, str] = {}
        if page not in FROM_THE_APPS_FILE:
            store_some(home / ".config" / "Samsara" / "samsara.db", home / ".keys")

    def command(self, command: str, shown: str, number: int) -> None:
        command = ID.sub(lambda found: self.ids[found[0]], command)
        arguments = ["bash", "-o", "pipefail", "-c", command]
        start = run_at_a_terminal if asks(command) else run
        printed = start(self.home, arguments)
        self.ids |= zip(ID.findall(shown), ID.findall(printed), strict=False)
        wanted, found = plain(shown, self.home), plain(printed, self.home)
        if wanted:
            assert re.fullmatch(as_pattern(wanted), found + "\n"), (
                f"{self.page}:{number}: it prints\n{found}"
            )

    def python(self, text: str) -> str:
        return run(self.home, [sys.executable, "-W", "error", "-c", SNIPPET + text])


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize("page", sorted(set(PAGES) - set(ELSEWHERE)))
def test_every_command_and_snippet_does_what_the_page_shows(home: Path, page: str) -> None:
    session, ran, printed, adapters = Session(home, page), 0, "", list[str]()
    for block in blocks(page):
        if block.language == "python" and "server.login" in block.text:
            adapters.append(block.text)  # before the operator's part, and needs its values
        elif block.language == "python" and block.runs and page != "docs/adapters.md":
            printed += session.python(block.text)
        for line in lines(block) if block.language == "console" and block.runs else ():
            session.command(*line)
            ran += 1
    for text in adapters:
        assert session.python(text) == "office@example.com logged in with invented for all\n"
    assert (page == "README.md") == bool(adapters)
    assert ran > 3 or page not in (*FROM_THE_APPS_FILE, "docs/keys.md", "docs/values.md")
    if page == "docs/formats.md":
        values = ("mail.example.com", "invented", "invented-for-one-project", "invented-for-all")
        assert all(f"{value!r}}}" in printed for value in values), "the emergency exit gives all"
        assert re.search(f"^{ID.pattern} active 44$", printed, re.M), printed


@pytest.mark.parametrize("page", PAGES)
def test_each_block_is_of_a_kind_that_is_checked_and_few_are_not_run(page: str) -> None:
    found = list(blocks(page))
    assert PAGES[page].count("\n```") == 2 * len(found), (
        "a block that the expression does not find is not checked"
    )
    assert {block.language for block in found} <= {
        "console",
        "ini",
        "json",
        "mermaid",
        "python",
        "toml",
        "yaml",
    }
    assert len([block for block in found if not block.runs]) == NOT_RUN.get(page, 0)
    assert all(block.text.startswith("$ ") for block in found if block.language == "console"), (
        "no prompt, so it would not be run"
    )


def test_each_make_command_is_a_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        found
        for text in PAGES.values()
        for found in re.findall(r"(?:`|^\$ )make (\w+)", text, re.M)
    }
    assert {"demo", "test", "lint", "bench"} <= named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_each_link_leads_to_a_file_and_a_heading(page: str) -> None:
    folder = (ROOT / page).parent
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        file = folder / path if path else ROOT / page
        assert file.exists(), link
        if anchor:
            assert anchor in anchors(file.resolve().relative_to(ROOT).as_posix()), link


def test_the_readme_leads_to_every_page() -> None:
    pages = {path.relative_to(ROOT).as_posix() for path in FILES} - {"README.md"}
    assert pages <= {link.partition("#")[0] for link in links("README.md")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A vault with one global mail account."""
    keys = KeyDirectory(tmp_path / "keys")
    init(tmp_path / "samsara.db", key_store=keys)
    with Vault.open(tmp_path / "samsara.db", key_store=keys) as vault:
        vault.set_fields("smtp", {field: ANSWERS[field] for field in ("host", "user", "password")})
    return tmp_path


def python(folder: Path, *arguments: str) -> str:
    environment = {
        "HOME": str(folder),
        "PATH": "/usr/bin:/bin",
        "OUTREACH_VAULT_KEY_DIR": str(folder / "keys"),
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def for_authors(heading: str, language: str = "python") -> list[str]:
    found = blocks("docs/adapters.md")
    return [b.text for b in found if (b.heading, b.language, b.runs) == (heading, language, True)]


@pytest.mark.parametrize("heading", sorted(EXPECTED))
def test_each_block_for_authors_prints_what_it_says(folder: Path, heading: str) -> None:
    [text] = for_authors(heading)
    (folder / "snippet.py").write_text(text)
    assert python(folder, "-W", "error", "snippet.py").startswith(EXPECTED[heading])


def test_the_blocks_about_tests_are_a_test_that_passes(folder: Path) -> None:
    plugins, test = for_authors("Tests")
    [settings] = for_authors("Tests", "toml")
    (folder / "pyproject.toml").write_text(settings)
    (folder / "conftest.py").write_text(plugins)
    (folder / "test_adapter.py").write_text(test)
    assert "1 passed" in python(folder, "-m", "pytest", "-p", "no:cacheprovider")


def test_the_block_about_a_key_store_is_a_test_that_passes(folder: Path) -> None:
    [text] = for_authors("A key store of your own")
    (folder / "test_store.py").write_text(text)
    said = python(folder, "-m", "pytest", "-p", "no:cacheprovider")
    assert re.search(r"\b1[0-9] passed, 2 skipped", said), said


def test_no_block_for_authors_is_left_out() -> None:
    run = {block.heading for block in blocks("docs/adapters.md") if block.runs}
    assert run == {*EXPECTED, "Tests", "A key store of your own"}
