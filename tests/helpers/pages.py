"""The pages for people, as the tests read them: blocks, commands, tables, headings and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in FILES}
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Block(NamedTuple):
    """A fenced block: its heading, language and text, whether it is run, and its line."""

    heading: str
    language: str
    text: str
    runs: bool
    line: int


class Line(NamedTuple):
    """One `$ ` line, and what the page shows that it prints."""

    command: str
    shown: str
    number: int


def blocks(page: str) -> Iterator[Block]:
    text = PAGES[page]
    for found in re.finditer(
        r"^(<!-- not run: [^\n]+ -->\n)?```(\w+)\n(.*?)^```$", text, re.M | re.S
    ):
        before = text[: found.start(3)]
        heading = re.findall(r"^#+ (.+)$", before, re.M)[-1]
        yield Block(heading, found[2], found[3], not found[1], before.count("\n") + 1)


def lines(block: Block) -> Iterator[Line]:
    """The `$ ` lines of a console block; a line that ends in a backslash goes on."""
    for found in re.finditer(
        r"^\$ ((?:[^\n]*\\\n)*[^\n]*)\n((?:(?!\$ )[^\n]*\n)*)", block.text, re.M
    ):
        yield Line(found[1], found[2], block.line + block.text[: found.start()].count("\n"))


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```\w+\n.*?^```$", "", PAGES[page], flags=re.M | re.S)


def section(page: str, title: str) -> str:
    """What stands between that heading and the next."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", PAGES[page], re.M | re.S)
    assert found, f"{page} has no section {title!r}"
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


def anchors(page: str) -> set[str]:
    """The headings' anchors, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def diagram(kind: str) -> str:
    """The text of the one Mermaid diagram of that kind."""
    [found] = [b.text for page in PAGES for b in blocks(page) if b.text.startswith(kind)]
    return found
