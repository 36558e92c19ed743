"""The pages in docs/: each Python block does what the page says, on a new vault."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from outreach_vault import KeyDirectory, Vault
from outreach_vault.operations.init import init

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "adapters.md").read_text()
SECONDS = 60


class Block(NamedTuple):
    heading: str
    language: str
    text: str
    runs: bool


def blocks() -> list[Block]:
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.M)[1:]:
        for block in re.finditer(
            r"^(<!-- not run: [^\n]+ -->\n)?```(\w+)\n(.*?)^```$", section, re.M | re.S
        ):
            found.append(Block(section.splitlines()[0], block[2], block[3], not block[1]))
    return found


EXPECTED = {
    "One account in one call": "mail.example.com 587 False office@example.com\nglobal\n16\n",
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A vault with one global mail account."""
    keys = KeyDirectory(tmp_path / "keys")
    init(tmp_path / "samsara.db", key_store=keys)
    with Vault.open(tmp_path / "samsara.db", key_store=keys) as vault:
        for field, value in {
            "host": "mail.example.com",
            "user": "office@example.com",
            "password": "invented for all",
        }.items():
            vault.set("smtp", field, value)
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


@pytest.mark.parametrize("heading", sorted(EXPECTED))
def test_each_block_prints_what_it_says(folder: Path, heading: str) -> None:
    [block] = [
        block for block in blocks() if block.heading == heading and block.language == "python"
    ]
    (folder / "snippet.py").write_text(block.text)
    assert python(folder, "-W", "error", "snippet.py").startswith(EXPECTED[heading])


def test_the_blocks_about_tests_are_a_test_that_passes(folder: Path) -> None:
    plugins, test, settings = [block.text for block in blocks() if block.heading == "Tests"]
    (folder / "pyproject.toml").write_text(settings)
    (folder / "conftest.py").write_text(plugins)
    (folder / "test_adapter.py").write_text(test)
    assert "1 passed" in python(folder, "-m", "pytest", "-p", "no:cacheprovider")


def test_the_block_about_a_key_store_is_a_test_that_passes(folder: Path) -> None:
    heading = "A key store of your own"
    [block] = [block for block in blocks() if block.heading == heading and block.runs]
    (folder / "test_store.py").write_text(block.text)
    said = python(folder, "-m", "pytest", "-p", "no:cacheprovider")
    assert re.search(r"\b1[0-9] passed, 2 skipped", said), said


def test_no_block_is_left_out() -> None:
    assert PAGE.count("\n```") == 2 * len(blocks()), (
        "a block that the expression does not find is not checked"
    )
    assert {block.heading for block in blocks() if block.runs} == {
        *EXPECTED,
        "Tests",
        "A key store of your own",
    }
    assert [block.language for block in blocks() if not block.runs] == ["toml"] * 2
