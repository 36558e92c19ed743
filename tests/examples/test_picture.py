"""The picture of the README is a real rotation, and can be read without being seen."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.pages import ID

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import demo  # noqa: E402
import picture  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def lines(text: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(text).iter(f"{SVG}text")]


def shape(text: str) -> str:
    """Without the keys' ids, and whose turn it was to be sent for."""
    text = re.sub(r"project A from project@|project B from everyone@", "ITS ACCOUNT@", text)
    return ID.sub("ID", text)


@pytest.mark.thorough
def test_the_picture_is_a_real_run(tmp_path: Path) -> None:
    made = picture.drawn(picture.recorded(tmp_path))
    assert shape(made) == shape(picture.PICTURE.read_text("utf-8")), "'make picture' records it"
    assert len(set(ID.findall(made))) == 2


def test_messages_go_out_while_the_command_runs() -> None:
    shown = lines(picture.PICTURE.read_text("utf-8"))
    at = shown.index("$ vault rotate")
    sent = [number for number, line in enumerate(shown) if line.startswith("  mail sent for")]
    assert sent == [
        *range(at - 3, at),
        *range(at + 1, at + 4),
        *range(len(shown) - 4, len(shown) - 1),
    ]
    assert shown[at + 4].startswith("old key ") and shown[-5].startswith("scrubbed ")
    assert shown[-1].endswith("failed before, meanwhile and after: 0")
    assert max(map(len, shown)) <= picture.COLUMNS


def test_it_is_plain_text_with_a_title_and_a_description_and_no_secret() -> None:
    text = picture.PICTURE.read_text("utf-8")
    tree = ElementTree.fromstring(text)
    names = {each.tag.removeprefix(SVG) for each in tree.iter()}
    assert names == {"svg", "title", "desc", "style", "rect", "g", "text"}
    told = {
        each.get("id") for each in tree if each.tag in (f"{SVG}title", f"{SVG}desc") and each.text
    }
    assert told == set((tree.get("aria-labelledby") or "").split()) and tree.get("role") == "img"
    assert not [secret for secret in (*demo.PASSWORDS.values(), "invented") if secret in text]
    assert "href" not in text and "url(" not in text
    assert "prefers-reduced-motion" in text
