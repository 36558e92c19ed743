"""The passphrase of exported keys: long enough, or made of words that are seen once and nowhere."""

from __future__ import annotations

import logging
import math
import os
import secrets
import subprocess
from pathlib import Path

import pytest
from dicewarepy.diceware import wordlist
from helpers.commands import Terminal, failed, run, where
from helpers.site import COMMAND, Site

from outreach_vault import Secret
from outreach_vault.keys import passphrase
from outreach_vault.operations.recovery import export_keys, import_keys

pytestmark = pytest.mark.usefixtures("quick")

SHORT = "eleven chrs"


@pytest.fixture
def file(site: Site) -> Path:
    return site.folder / "keys.export"


@pytest.mark.parametrize("text", [SHORT, "x", "elf zeichen"])
def test_a_short_passphrase_is_refused_unless_it_is_called_weak(
    site: Site, file: Path, text: str
) -> None:
    line = f"{text}\n".encode()
    done = run(site, "keys", "export", str(file), stdin=line)
    failed(done, 2, "fewer than 12 characters", "--generate", "--weak")
    assert text not in done.err or text == "x"
    assert not file.exists()
    assert run(site, "keys", "export", str(file), "--weak", stdin=line).status == 0
    assert run(site, "keys", "import", str(file), stdin=line).status == 0


def test_a_terminal_is_asked_again_for_one_that_is_too_short(site: Site, file: Path) -> None:
    with Terminal(site, "keys", "export", str(file), piped=False) as terminal:
        for text in (SHORT, "a longer one of words"):
            for prompt in (b"passphrase: ", b"confirmation: "):
                terminal.read_until(prompt)
                assert not file.exists()
                terminal.seen = b""
                terminal.type(f"{text}\n".encode())
            if text == SHORT:
                terminal.read_until(b"enter a longer one")
                said, _, terminal.seen = terminal.seen.partition(b"enter a longer one")
                assert SHORT.encode() not in said
        assert terminal.end() == 0
    assert run(site, "keys", "import", str(file), stdin=b"a longer one of words").status == 0


def test_twelve_characters_are_enough_however_many_bytes_they_are(site: Site, file: Path) -> None:
    failed(run(site, "keys", "export", str(file), stdin=("é" * 11).encode()), 2, "fewer than 12")
    assert run(site, "keys", "export", str(file), stdin=("é" * 12).encode()).status == 0


def test_a_file_from_before_that_has_a_short_passphrase_still_opens(site: Site, file: Path) -> None:
    with site.open() as vault:
        export_keys(vault, file, Secret(SHORT))
        assert import_keys(vault, file, Secret(SHORT)).there
    assert run(site, "keys", "import", str(file), stdin=SHORT.encode()).status == 0


def test_a_generated_passphrase_is_six_words_of_the_list_and_as_hard_to_guess_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = list(wordlist("en").values())
    assert len(set(words)) == len(words) == 7776 and math.log2(len(words) ** 6) > 77
    assert all(word.strip() == word and " " not in word for word in words)
    asked = []
    choice = secrets.choice

    def counted(faces: list[str]) -> str:
        asked.append(len(faces))
        return choice(faces)

    monkeypatch.setattr(secrets, "choice", counted)
    made = {passphrase.new_passphrase().reveal() for _ in range(200)}
    assert len(made) == 200
    assert all(len(text.split(" ")) == 6 and set(text.split(" ")) <= set(words) for text in made)
    assert math.prod(asked[:30]) == len(words) ** 6 and len(asked) == 200 * 30


def test_it_is_printed_once_alone_on_standard_output_and_is_in_no_log_and_no_file(
    site: Site, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    done = run(site, "keys", "export", str(file), "--generate", stdin=b"not read\n")
    made = done.out.removesuffix("\n")
    assert done.status == 0 and len(made.split(" ")) == 6 and "\n" not in made
    assert made not in done.err and f"{file}: 1 key\n" in done.err and made not in caplog.text
    assert [
        each
        for each in site.folder.rglob("*")
        if each.is_file() and made.encode() in each.read_bytes()
    ] == []
    assert run(site, "keys", "import", str(file), stdin=done.out.encode()).status == 0


def test_at_a_terminal_it_is_shown_once_without_a_question(site: Site, file: Path) -> None:
    with Terminal(site, "keys", "export", str(file), "--generate", piped=False) as terminal:
        assert terminal.end() == 0
    lines = terminal.seen.decode().splitlines()
    shown = [line for line in lines if len(line.split(" ")) == 6 and ":" not in line]
    assert len(shown) == 1 and terminal.seen.count(shown[0].encode()) == 1
    assert run(site, "keys", "import", str(file), stdin=shown[0].encode()).status == 0


@pytest.mark.parametrize("closed", ["closed", "full", "gone"])
def test_no_file_is_made_under_one_that_nobody_could_see(
    site: Site, file: Path, closed: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *where(site), "keys", "export", str(file), "--generate"],
            stdout=full if closed == "full" else writing,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=(lambda: os.close(1)) if closed == "closed" else None,
        )
    os.close(writing)
    assert done.returncode == 15 and "no file was made" in done.stderr, done
    assert not file.exists()


def test_one_way_to_a_passphrase_is_enough(site: Site, file: Path) -> None:
    words = ("--generate", "--passphrase-file", "somewhere")
    failed(run(site, "keys", "export", str(file), *words), 2, "not both")
    assert not file.exists()


def test_an_export_that_is_there_stays_under_its_own_passphrase(site: Site, file: Path) -> None:
    assert run(site, "keys", "export", str(file), stdin=b"correct horse battery\n").status == 0
    before = file.read_bytes()
    done = run(site, "keys", "export", str(file), "--generate")
    assert done.status == 15 and "is there already" in done.err and file.read_bytes() == before
