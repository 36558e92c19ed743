"""What is read from standard input and from files: all of it, or nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cli import COMMAND, places, process

from outreach_vault import KeyDirectory, Vault
from outreach_vault.vault import init

BOM = b"\xef\xbb\xbf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init(tmp_path / "samsara.db", key_store=KeyDirectory(tmp_path / "keys"))
    return tmp_path


@pytest.fixture
def vault(folder: Path) -> Iterator[Vault]:
    with Vault.open(folder / "samsara.db", key_store=KeyDirectory(folder / "keys")) as opened:
        yield opened


def started(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    given: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([*COMMAND, *places(folder), *arguments], **given)


# Reading


def in_parts(folder: Path, parts: list[bytes], *arguments: str) -> tuple[int, bytes]:
    """The command with these at a non-blocking standard input, the next when the one before was read."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with started(folder, *arguments, stdin=reading) as running:
        deadline = time.monotonic() + 60
        for part in parts:
            os.write(writing, part)
            while fcntl.ioctl(reading, termios.FIONREAD, bytes(4)) != bytes(4):
                assert running.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
        os.close(reading)
        os.close(writing)
        err = running.communicate()[1]
    return running.returncode, err


def test_a_value_comes_in_whole_from_a_non_blocking_standard_input(folder: Path, vault: Vault) -> None:
    assert in_parts(folder, [b"first half, ", b"second half\n"], "set", "smtp", "password")[0] == 0
    assert vault.get("smtp", "password").reveal() == "first half, second half"


def test_a_passphrase_comes_in_whole_from_a_non_blocking_standard_input(folder: Path) -> None:
    path = str(folder / "export")
    assert in_parts(folder, [b"correct horse", b" battery\n"], "keys", "export", path)[0] == 0
    assert process(folder, "keys", "import", path, input=b"correct horse battery\n").status == 0
    assert process(folder, "keys", "import", path, input=b"correct horse").status == 12


def test_a_passphrase_line_that_is_too_long_is_refused_and_not_cut(folder: Path) -> None:
    for text in (b"p" * 65_537 + b"\n", b"p" * 1_000_000):
        (folder / "passphrase").write_bytes(text)
        for source in ((), ("--passphrase-file", str(folder / "passphrase"))):
            done = process(folder, "keys", "export", str(folder / "export"), *source, input=text)
            assert (done.status, done.out) == (2, b"") and "longer than 65536 bytes" in done.err and not (folder / "export").exists()


def test_a_byte_order_mark_is_no_part_of_a_passphrase(folder: Path) -> None:
    path = str(folder / "export")
    (folder / "passphrase").write_bytes(BOM + b"of words\r\n")
    assert process(folder, "keys", "export", path, "--passphrase-file", str(folder / "passphrase")).err == ""
    for typed in (b"of words\n", BOM + b"of words"):
        assert process(folder, "keys", "import", path, input=typed).status == 0


def test_a_pipe_is_read_to_its_end(folder: Path, vault: Vault) -> None:
    os.mkfifo(folder / "pipe")
    for arguments in (("set", "smtp", "password", "--from-file"), ("keys", "export", str(folder / "export"), "--passphrase-file")):
        with started(folder, *arguments, str(folder / "pipe")) as running:
            with open(folder / "pipe", "wb", buffering=0) as file:
                file.write(b"first half, ")
                file.write(b"second half\n")
            assert running.wait() == 0
    assert vault.get("smtp", "password").reveal() == "first half, second half"
    assert process(folder, "keys", "import", str(folder / "export"), input=b"first half, second half").status == 0


def test_what_cannot_be_read_is_an_error_in_words(folder: Path, vault: Vault) -> None:
    (folder / "folder").mkdir()
    for option in ("set smtp password --from-file", f"keys export {folder / 'export'} --passphrase-file"):
        for path, words in (
            (folder / "folder", "directory"),
            (folder / "none", "No such file"),
            ("", "No such file"),
            ("n" * 999, "too long"),
        ):
            done = process(folder, *option.split(), str(path))
            assert (done.status, done.out) == (2, b"") and words in done.err and "a bug" not in done.err, done
    for arguments in (["set", "smtp", "password"], ["keys", "export", str(folder / "export")]):
        fd = os.open(folder / "folder", os.O_RDONLY)
        done = process(folder, *arguments, input=None, preexec_fn=lambda fd=fd: os.dup2(fd, 0), pass_fds=[fd])
        os.close(fd)
        assert (done.status, done.out) != (0, b"") and "a bug" not in done.err and "Traceback" not in done.err
        with open("/proc/self/mem", "rb") as unreadable:  # which fails at its first byte with EIO
            done = process(folder, *arguments, input=None, stdin=unreadable)
        assert done.status == 15 and f"standard input: it cannot be read: {os.strerror(errno.EIO)}" in done.err
    assert vault.list() == [] and not (folder / "export").exists()


def test_a_terminal_is_no_file_to_read_from(folder: Path, vault: Vault) -> None:
    """It would cut a line at 4,095 bytes."""
    master, slave = pty.openpty()
    os.write(master, b"value\n\x04")
    done = process(folder, "set", "smtp", "password", "--from-file", os.ttyname(slave))
    os.close(master)
    os.close(slave)
    assert done.status == 2 and "that is a terminal" in done.err and vault.list() == []


@pytest.mark.parametrize("option", [("--from-env", ""), ("--from-file", ""), ("--from-env", "", "--from-file", "")])
def test_empty_text_is_no_option_that_was_left_out(folder: Path, vault: Vault, option: tuple[str, ...]) -> None:
    for arguments in (("set", "smtp", "password"), ("set", "smtp")):
        done = process(folder, *arguments, *option, input=b"what stands there\n")
        assert (done.status, done.out) == (2, b"") and "--from-" in done.err and vault.list() == []


UNSEEN = {
    "\ufeffv": "a byte order mark at the beginning",
    "v\u200bw": "a character without width inside",
    " v": "white space at the beginning",
    "v\t": "white space at the end",
    "v\n": "white space at the end",
    "v\r": "a carriage return at the end",
    "v\rw": "a carriage return inside",
    "v\xa0": "a space of another kind at the end",
    "v\xa0w": "a space of another kind inside",
    "v\x07w": "a control character inside",
    "v\u2028w": "a character that is not shown inside",
    "\ufeff v ": "a byte order mark at the beginning and white space at the beginning and white space at the end",
    "two words\tand\r\nlines\nof a text": None,
    "\u00e9\U0001f511": None,
}


@pytest.mark.parametrize("value", UNSEEN, ids=ascii)
def test_what_nobody_sees_is_kept_and_said(folder: Path, vault: Vault, value: str) -> None:
    done = process(folder, "set", "smtp", "password", input=value.encode() + b"\n" * (not value.endswith("\r")))
    warning = f"vault: warning: smtp/password has {UNSEEN[value]}; it is kept as it was given\n" if UNSEEN[value] else ""
    assert (done.status, done.err) == (0, f"vault: stored smtp/password (global)\n{warning}")
    assert vault.get("smtp", "password").reveal() == value


def test_what_nobody_sees_in_a_passphrase_is_said(folder: Path) -> None:
    done = process(folder, "keys", "export", str(folder / "export"), input=b" of words\n")
    assert (done.status, done.err) == (0, "vault: warning: the passphrase has white space at the beginning; it is kept as it was given\n")
