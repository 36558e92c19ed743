"""
What is read from standard input and from files, and what is written: all of it, or the exit status
says so.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import resource
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import LACKS, process, where
from helpers.site import COMMAND, Site

from outreach_vault import Vault
from outreach_vault.command import group

pytestmark = pytest.mark.sweep(5)

LARGE = "x" * 65_000
BOM = b"\xef\xbb\xbf"


def started(site: Path, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    given: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    } | options
    return subprocess.Popen([*COMMAND, *where(site), *arguments], **given)


# Reading


def in_parts(site: Path, parts: list[bytes], *arguments: str) -> tuple[int, bytes]:
    """
    The command with these at a non-blocking standard input, the next when the one before was read.
    """
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with started(site, *arguments, stdin=reading) as running:
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


def test_a_value_comes_in_whole_from_a_non_blocking_standard_input(
    site: Site, vault: Vault
) -> None:
    assert in_parts(site, [b"first half, ", b"second half\n"], "set", "smtp", "password")[0] == 0
    assert vault.get("smtp", "password").reveal() == "first half, second half"


def test_a_passphrase_comes_in_whole_from_a_non_blocking_standard_input(site: Site) -> None:
    path = str(site.folder / "export")
    assert in_parts(site, [b"correct horse", b" battery\n"], "keys", "export", path)[0] == 0
    assert process(site, "keys", "import", path, input=b"correct horse battery\n").status == 0
    assert process(site, "keys", "import", path, input=b"correct horse").status == 12


def test_a_passphrase_line_that_is_too_long_is_refused_and_not_cut(site: Site) -> None:
    for text in (b"p" * 65_537 + b"\n", b"p" * 1_000_000):
        (site.folder / "passphrase").write_bytes(text)
        for source in ((), ("--passphrase-file", str(site.folder / "passphrase"))):
            done = process(site, "keys", "export", str(site.folder / "export"), *source, input=text)
            assert (
                (done.status, done.out) == (2, "")
                and "longer than 65536 bytes" in done.err
                and not (site.folder / "export").exists()
            )


@pytest.mark.parametrize(
    "text", ["v" * 65_537, "v" * 1_000_000, "é" * 40_000, "éx" * 30_000 + "\n"]
)
def test_a_value_that_is_too_long_is_called_that_from_each_source(
    site: Site, vault: Vault, text: str
) -> None:
    """
    Of a file only the beginning is read: neither its length is known, nor is the end of it a whole
    character.
    """
    (site.folder / "value").write_text(text)
    # Linux has no variable of more than 128 KiB.
    given = {"GIVEN": text} if len(text) < 100_000 else {}
    for source in (
        (),
        ("--from-file", str(site.folder / "value")),
        *(("--from-env", name) for name in given),
    ):
        done = process(
            site, "set", "smtp", "password", *source, input=text.encode(), env=os.environ | given
        )
        assert (done.status, done.out) == (
            2,
            "",
        ) and "longer than 65536 bytes (64 KiB)\n" in done.err, done
    assert vault.list() == []


def test_a_byte_order_mark_is_no_part_of_a_passphrase(site: Site) -> None:
    path = str(site.folder / "export")
    (site.folder / "passphrase").write_bytes(BOM + b"of several words\r\n")
    assert (
        process(
            site, "keys", "export", path, "--passphrase-file", str(site.folder / "passphrase")
        ).err
        == ""
    )
    for typed in (b"of several words\n", BOM + b"of several words"):
        assert process(site, "keys", "import", path, input=typed).status == 0


def test_a_pipe_is_read_to_its_end(site: Site, vault: Vault) -> None:
    os.mkfifo(site.folder / "pipe")
    for arguments in (
        ("set", "smtp", "password", "--from-file"),
        ("keys", "export", str(site.folder / "export"), "--passphrase-file"),
    ):
        with started(site, *arguments, str(site.folder / "pipe")) as running:
            with open(site.folder / "pipe", "wb", buffering=0) as file:
                file.write(b"first half, ")
                file.write(b"second half\n")
            assert running.wait() == 0
    assert vault.get("smtp", "password").reveal() == "first half, second half"
    assert (
        process(
            site, "keys", "import", str(site.folder / "export"), input=b"first half, second half"
        ).status
        == 0
    )


def test_what_cannot_be_read_is_an_error_in_words(site: Site, vault: Vault) -> None:
    (site.folder / "folder").mkdir()
    for option in (
        "set smtp password --from-file",
        f"keys export {site.folder / 'export'} --passphrase-file",
    ):
        for path, words in (
            (site.folder / "folder", "directory"),
            (site.folder / "none", "No such file"),
            ("", "No such file"),
            ("n" * 999, "too long"),
        ):
            done = process(site, *option.split(), str(path))
            assert (
                (done.status, done.out) == (2, "") and words in done.err and "a bug" not in done.err
            ), done
    for arguments in (["set", "smtp", "password"], ["keys", "export", str(site.folder / "export")]):
        fd = os.open(site.folder / "folder", os.O_RDONLY)
        done = process(
            site, *arguments, input=None, preexec_fn=lambda fd=fd: os.dup2(fd, 0), pass_fds=[fd]
        )
        os.close(fd)
        assert (
            (done.status, done.out) != (0, "")
            and "a bug" not in done.err
            and "Traceback" not in done.err
        )
    assert vault.list() == [] and not (site.folder / "export").exists()


@pytest.mark.skipif(
    not Path("/proc/self/mem").exists(),
    reason="this system has no file whose first byte cannot be read",
)
def test_an_error_while_reading_is_one_in_words(site: Site, vault: Vault) -> None:
    for arguments in (["set", "smtp", "password"], ["keys", "export", str(site.folder / "export")]):
        with open("/proc/self/mem", "rb") as unreadable:
            done = process(site, *arguments, input=None, stdin=unreadable)
        assert (
            done.status == 15
            and f"standard input cannot be read: {os.strerror(errno.EIO)}" in done.err
        )
    assert vault.list() == [] and not (site.folder / "export").exists()


def test_a_terminal_is_no_file_to_read_from(site: Site, vault: Vault) -> None:
    """It would cut a line at 4,095 bytes."""
    master, slave = pty.openpty()
    os.write(master, b"value\n\x04")
    done = process(site, "set", "smtp", "password", "--from-file", os.ttyname(slave))
    os.close(master)
    os.close(slave)
    assert done.status == 2 and "this is a terminal" in done.err and vault.list() == []


@pytest.mark.parametrize(
    "option", [("--from-env", ""), ("--from-file", ""), ("--from-env", "", "--from-file", "")]
)
def test_empty_text_is_no_option_that_was_left_out(
    site: Site, vault: Vault, option: tuple[str, ...]
) -> None:
    for arguments in (("set", "smtp", "password"), ("set", "smtp")):
        done = process(site, *arguments, *option, input=b"what stands there\n")
        assert (done.status, done.out) == (2, "") and "--from-" in done.err and vault.list() == []


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
    "\ufeff v ": "a byte order mark at the beginning and white space at the beginning and "
    "white space at the end",
    "two words\tand\r\nlines\nof a text": None,
    "\u00e9\U0001f511": None,
}


@pytest.mark.parametrize("value", UNSEEN, ids=ascii)
def test_what_nobody_sees_is_kept_and_said(site: Site, vault: Vault, value: str) -> None:
    done = process(
        site, "set", "smtp", "password", input=value.encode() + b"\n" * (not value.endswith("\r"))
    )
    warning = (
        f"vault: warning: smtp/password has {UNSEEN[value]}; it is kept as it was given\n"
        if UNSEEN[value]
        else ""
    )
    stored = "vault: stored smtp/password (global)\n"
    assert (done.status, done.err) == (0, f"{stored}{warning}{LACKS}")
    assert vault.get("smtp", "password").reveal() == value


def test_what_nobody_sees_in_a_passphrase_is_said(site: Site) -> None:
    done = process(
        site, "keys", "export", str(site.folder / "export"), input=b" of several words\n"
    )
    assert (done.status, done.err) == (
        0,
        "vault: warning: the passphrase has white space at the beginning; it is kept as it was "
        "given\n",
    )


# Writing

UNBUFFERED = [{}, {"PYTHONUNBUFFERED": "1"}]


@pytest.mark.parametrize("environment", UNBUFFERED, ids=["as it is", "unbuffered"])
@pytest.mark.parametrize(
    "command",
    ["get smtp password", "get smtp password --json", "list --json", "list", "providers --json"],
)
def test_output_that_does_not_fit_on_the_disk_is_said_by_the_exit_status(
    site: Site, vault: Vault, command: str, environment: dict[str, str]
) -> None:
    vault.set("smtp", "password", LARGE)
    for number in range(60):
        vault.set("smtp", f"field-{number}", "v", label="l" * 200)

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    whole = process(site, *command.split()).out
    with open(site.folder / "out", "wb") as out:
        done = subprocess.run(
            [*COMMAND, *where(site), *command.split()],
            stdout=out, stderr=subprocess.PIPE, env=os.environ | environment,
            preexec_fn=little_room,
        )  # fmt: skip
    assert len(whole) > 8192 and whole.startswith((site.folder / "out").read_text())
    assert done.returncode == group.UNSAID == 18
    assert (
        done.stderr
        == b"vault: error: the work is done, but its output could not be written: "
        + os.strerror(errno.EFBIG).encode()
        + b"\n"
    )


def closed(fd: int) -> Callable[[], None]:
    return lambda: os.close(fd)


def full(fd: int) -> Callable[[], None]:
    return lambda: (
        (os.dup2(device := os.open("/dev/full", os.O_WRONLY), fd), os.close(device))[0] and None
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("environment", UNBUFFERED, ids=["as it is", "unbuffered"])
@pytest.mark.parametrize("fault", [closed, full])
@pytest.mark.parametrize(
    ("fd", "command"),
    [
        (1, "list"),
        (1, "get smtp password"),
        (1, "--help"),
        (1, "--version"),
        (1, "keys list --json"),
        (2, "set smtp user"),
        (2, "delete smtp host --yes"),
    ],
)
def test_a_full_or_closed_output_is_status_18_and_the_work_is_done(
    site: Site,
    vault: Vault,
    fd: int,
    command: str,
    fault: Callable[[int], Callable[[], None]],
    environment: dict[str, str],
) -> None:
    vault.set("smtp", "password", "v")
    vault.set("smtp", "host", "mail.example.com")
    done = process(
        site, *command.split(), input=b"u\n", preexec_fn=fault(fd), env=os.environ | environment
    )
    assert (done.status, done.out) == (18, "")
    assert done.err.startswith("vault: error: the work is done") == (fd == 1) and len(
        done.err.splitlines()
    ) == (fd == 1)
    assert vault.has("smtp", "user") == command.startswith("set") and vault.has(
        "smtp", "host"
    ) != command.startswith("delete")


@pytest.mark.parametrize("fault", [closed, full])
def test_init_goes_on_to_make_its_key_when_its_words_cannot_be_written(
    place: Site, fault: Callable[[int], Callable[[], None]]
) -> None:
    assert process(place, "init", preexec_fn=fault(1)).status == 18
    assert len(list((place.keys).iterdir())) == 1
    assert process(place, "status").status == 0


@pytest.mark.parametrize("fault", [closed, full])
def test_an_error_keeps_its_status_when_its_words_cannot_be_written(
    site: Site, fault: Callable[[int], Callable[[], None]]
) -> None:
    for arguments, status in ((("get", "smtp", "password"), 10), (("nonsense",), 2), ((), 2)):
        assert process(site, *arguments, preexec_fn=fault(2)) == (status, "", "")


def test_a_slow_reader_gets_everything_through_a_non_blocking_pipe(
    site: Site, vault: Vault
) -> None:
    vault.set("smtp", "password", LARGE)
    reading, writing = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)  # less than the value
    os.set_blocking(writing, False)
    with started(site, "get", "smtp", "password", stdout=writing) as running:
        os.close(writing)
        while fcntl.ioctl(reading, termios.FIONREAD, bytes(4)) == bytes(4):
            assert running.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)  # the pipe is full by now, or the test shows less; it holds either way
        with open(reading, "rb") as file:
            assert file.read() == LARGE.encode() + b"\n"
        assert running.wait() == 0


def test_nothing_is_left_in_a_buffer_for_the_command_of_run(site: Site, vault: Vault) -> None:
    vault.set("smtp", "host", "mail.example.com")
    done = process(
        site,
        "run",
        "--",
        sys.executable,
        "-c",
        "import os; os.write(1, os.environb[b'SMTP_HOST'])",
    )
    assert (done.status, done.out, done.err) == (0, "mail.example.com", "")


def test_the_output_keeps_its_encoding(site: Site, vault: Vault) -> None:
    vault.set("smtp", "host", "v", label="\u00e9")
    for name in ("C.UTF-8", "POSIX"):
        done = process(site, "list", env=os.environ | {"LC_ALL": name})
        assert done.status == 0 and "\u00e9" in done.out
