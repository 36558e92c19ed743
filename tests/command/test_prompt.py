"""
Questions at a real terminal: all that is typed or pasted is taken, or none, and the terminal is as
it was afterwards.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import LACKS, Shell, Terminal, where
from helpers.site import COMMAND, Site

from outreach_vault import Vault
from outreach_vault.command import prompt

pytestmark = pytest.mark.sweep(6)

# an invented one
PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAAAAA\n-----END PRIVATE KEY-----"
PEM_LINES = f"{PEM}\n".encode()
CUT_AT = prompt._CUT_AT
BEGIN, END = b"\x1b[200~", b"\x1b[201~"
LATER = 3 * prompt._QUIET


QUESTIONS = {
    "set smtp password": b"password: ", "set smtp": b"\nhost: ",
    "keys export FILE": b"passphrase: ",
    "set vonage private_key": b"private_key: ", "delete smtp password": b"[y/N]: ",
    "rotate --destroy-old": b"[y/N]: ",
}  # fmt: skip


@pytest.fixture(autouse=True)
def term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def switched(seen: bytes) -> bytes:
    """For each time that the terminal was told to mark pastes an h, to stop that an l."""
    return b"".join(re.findall(rb"\x1b\[\?2004([hl])", seen))


def typed(
    site: Path, *arguments: str, question: bytes = b": ", text: bytes | list[bytes]
) -> tuple[int, bytes]:
    """
    The exit status and all that the terminal showed, when *text* is typed at the first question.

    The parts of a list come one after the other, so late that their speed does not make them one.
    """
    with Terminal(site, *arguments, piped=False) as terminal:
        terminal.read_until(question)
        before, terminal.seen = terminal.seen, b""
        for number, part in enumerate([text] if isinstance(text, bytes) else text):
            if number:
                time.sleep(LATER)
                assert not terminal.shows()  # it waits for this part
            while part:  # a terminal takes 4,096 bytes at once
                part = part[os.write(terminal.master, part[:1000]) :]
        status = terminal.end()
        assert terminal.shows()
        return status, before + terminal.seen


def values(vault: Vault) -> dict[str, str]:
    return {
        entry.credential_type: vault.get(entry.provider, entry.credential_type).reveal()
        for entry in vault.list()
    }


# One line


@pytest.mark.parametrize("size", [CUT_AT - 1, CUT_AT, CUT_AT + 1, 5000, 65536])
def test_a_line_of_any_length_comes_in_whole(site: Site, vault: Vault, size: int) -> None:
    assert typed(site, "set", "smtp", "password", text=b"x" * (size - 1) + b"y\n")[0] == 0
    assert values(vault) == {"password": "x" * (size - 1) + "y"}


@pytest.mark.parametrize("command", ["set smtp password", "keys export FILE"])
def test_a_line_that_is_too_long_is_refused_as_a_whole(
    site: Site, vault: Vault, command: str
) -> None:
    arguments = command.replace("FILE", str(site.folder / "export")).split()
    status, shown = typed(site, *arguments, question=QUESTIONS[command], text=b"x" * 65537 + b"\n")
    assert status == 2 and b"65536 bytes" in shown
    assert vault.list() == [] and not (site.folder / "export").exists()


@pytest.mark.parametrize("command", ["set smtp password", "keys export FILE"])
def test_a_pasted_text_of_several_lines_is_refused_where_one_line_is_asked_for(
    site: Site, vault: Vault, command: str
) -> None:
    arguments = command.replace("FILE", str(site.folder / "export")).split()
    for text in (b"first\nsecond\n", b"first\r\rthird\r", b"-----BEGIN PRIVATE KEY-----\n"):
        status, shown = typed(site, *arguments, question=QUESTIONS[command], text=text)
        assert status == 2 and b"vault: error: more than one line was given" in shown, shown
        assert vault.list() == [] and not (site.folder / "export").exists()


def test_nothing_of_a_refused_text_is_left_for_the_shell(site: Site) -> None:
    """Here the shell is Python: after the command it says what it finds typed."""
    shell = (
        "import subprocess, sys, termios, fcntl; status = subprocess.call(sys.argv[1:]);"
        "print('left', status, int.from_bytes(fcntl.ioctl(0, termios.FIONREAD, bytes(4)), "
        "'little'), 'bytes')"
    )
    for command in ("set smtp password", "set smtp"):
        with Shell(
            [sys.executable, "-c", shell, *COMMAND, *where(site), *command.split()]
        ) as terminal:
            terminal.read_until(QUESTIONS[command])
            terminal.seen = b""
            terminal.type(b"first\n" + b"rm -rf something\n" * 200)
            if command == "set smtp":  # asks again
                terminal.read_until(QUESTIONS[command])
                terminal.type(b"\x04")
            terminal.read_until(b"left")
            terminal.end()
        expected = b"left 3 0 bytes" if command == "set smtp" else b"left 2 0 bytes"
        assert expected in terminal.seen, terminal.seen


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (b"ax\x7fb", "ab"),
        (
            "a\u00e9\x7f\U0001f511\x7fb".encode(),
            "ab",
        ),  # a whole character, however many bytes it has
        (b"\x7f\x7fab", "ab"),
        (b"wrong\x15ab", "ab"),
        (b"ab wrong  \x17", "ab "),
        (b"a\x04b", "ab"),  # Ctrl-D in the middle ends nothing
        (b"a\x16\x13\x11b", "a\x16\x13\x11b"),  # what the kernel would keep for itself
        (b" a\tb ", " a\tb "),
        ("\u00e9\U0001f511\x1b[D".encode(), "\u00e9\U0001f511\x1b[D"),
    ],
)
def test_keys_that_edit_a_line_do_so_and_others_are_taken(
    site: Site, vault: Vault, keys: bytes, expected: str
) -> None:
    assert typed(site, "set", "smtp", "password", text=keys + b"\n")[0] == 0
    assert values(vault) == {"password": expected}


@pytest.mark.parametrize("end", [b"\r", b"\r\n", b"\n\n"])
def test_any_line_end_ends_a_line_and_empty_lines_after_it_are_nothing(
    site: Site, vault: Vault, end: bytes
) -> None:
    assert typed(site, "set", "smtp", "password", text=b"v" + end)[0] == 0
    assert values(vault) == {"password": "v"}


def test_an_empty_line_is_asked_for_again(site: Site, vault: Vault) -> None:
    with Terminal(site, "set", "smtp", "password", piped=False) as terminal:
        for text in (b"\n", b"\n", b"v\n"):
            terminal.read_until(b"password: ")
            terminal.seen = b""
            terminal.type(text)
        assert terminal.end() == 0
    assert values(vault) == {"password": "v"}


@pytest.mark.parametrize(
    "command", ["set smtp password", "keys export FILE", "rotate --destroy-old"]
)
def test_bytes_that_are_no_utf_8_are_a_usage_error_at_every_question(
    site: Site, vault: Vault, command: str
) -> None:
    arguments = command.replace("FILE", str(site.folder / "export")).split()
    status, shown = typed(site, *arguments, question=QUESTIONS[command], text=b"gr\xfcn\n")
    assert status == 2 and b"vault: error: not UTF-8 text" in shown and b"a bug" not in shown
    assert (
        vault.list() == []
        and not (site.folder / "export").exists()
        and len(vault.keys.states.records()) == 1
    )


@pytest.mark.parametrize(
    ("field", "refused", "problem"),
    [
        ("password", b"first\nsecond\n", b"more than one line was given"),
        ("password", BEGIN + b"first\nsecond\n" + END, b"more than one line was given"),
        ("password", b"-----BEGIN PRIVATE KEY-----\n", b"more than one line was given"),
        ("password", b"gr\xfcn\n", b"not UTF-8 text"),
        ("password", b"p" * 65_537 + b"\n", b"longer than 65536 bytes"),
        ("host", b"first\nsecond\n", b"more than one line was given"),
        ("host", b"gr\xfcn\n", b"not UTF-8 text"),
        ("host", b"h" * 4095 + b"\n", b"the terminal may have cut the line"),
        ("host", BEGIN + END + b"h" * 4095 + b"\n", b"the terminal may have cut the line"),
        ("host", b"https://mail.example.com\n", b"without https://"),
    ],
)
def test_set_of_a_provider_asks_again_for_what_it_refused_and_keeps_the_other_answers(
    site: Site, vault: Vault, field: str, refused: bytes, problem: bytes
) -> None:
    answers = {"host": "mail.test", "port": "587", "user": "u", "password": "v", "from_email": ""}
    shown = b""
    with Terminal(site, "set", "smtp", piped=False) as terminal:
        for name, answer in answers.items():
            for text in ([refused] if name == field else []) + [answer.encode() + b"\n"]:
                terminal.read_until(f"\n{name}".encode())
                terminal.read_until(b": \x1b[?2004h" if name == "password" else b": ")
                shown, terminal.seen = shown + terminal.seen, b""
                while text:
                    text = text[os.write(terminal.master, text[:1000]) :]
        assert terminal.end() == 0
    assert b"vault: error: " in shown and problem in shown
    assert b"vault: hint: enter it again, or press Ctrl-C to store nothing" in shown
    assert values(vault) == {name: answer for name, answer in answers.items() if answer}


# Pastes that the terminal marks


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([BEGIN + b"one ", b"line" + END, b"\n"], "one line"),
        ([BEGIN + b"with its end", b"\n", END], "with its end"),
        ([BEGIN + b"with empty lines\r\n\r\n" + END], "with empty lines"),
        ([b"typed, " + BEGIN + b"pasted" + END + b", typed\n"], "typed, pasted, typed"),
        ([b"\x1b", b"[20", b"0~split\x1b", b"[201", b"~", b"\n"], "split"),
        ([BEGIN + b"wrong\nlines" + END + b"\x15" + BEGIN + b"right" + END + b"\n"], "right"),
        ([BEGIN + b"no\x7f\x15\x04\x17keys" + END + b"\n"], "no\x7f\x15\x04\x17keys"),
        ([BEGIN + b"\n" + END, BEGIN + b"v" + END + b"\n"], "v"),  # it asks again
    ],
)
def test_a_marked_paste_is_a_part_of_the_line_whatever_its_timing(
    site: Site, vault: Vault, parts: list[bytes], expected: str
) -> None:
    assert typed(site, "set", "smtp", "password", text=parts)[0] == 0
    assert values(vault) == {"password": expected}


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("text", [PEM, f"{PEM}\n", f"{PEM}\n\n", f"\n{PEM}\n"], ids=ascii)
def test_a_marked_paste_of_several_lines_is_one_text_whatever_its_timing(
    site: Site, vault: Vault, text: str, end: str
) -> None:
    first, rest = text.replace("\n", end).encode().split(end.encode(), 1)
    parts = [BEGIN + first + end.encode(), rest, END, *([b"\n"] if text == PEM else [])]
    field = "set vonage private_key"
    status, shown = typed(site, *field.split(), question=QUESTIONS[field], text=parts)
    assert status == 0 and b"MC4C" not in shown, shown
    assert values(vault) == {"private_key": text.rstrip("\n")}


@pytest.mark.parametrize(
    ("field", "parts", "problem"),
    [
        ("smtp password", [BEGIN + b"first\n", b"second" + END, b"\n"], b"more than one line"),
        ("smtp password", [BEGIN + b"first\n", b"second\n" + END], b"more than one line"),
        ("smtp password", [BEGIN + b"\n", b"second\n" + END], b"more than one line"),
        ("smtp password", [BEGIN + b"cut", BEGIN + b"whole" + END, b"\n"], b"a part of the paste"),
        ("smtp password", [b"the end of one" + END, b"\n"], b"a part of the paste is missing"),
        ("smtp password", [BEGIN + b"x" * 66_000 + b"\n", b"y" + END], b"longer than 65536"),
        ("vonage private_key", [BEGIN + PEM_LINES, PEM_LINES + END], b"more after the end"),
        ("vonage private_key", [BEGIN + PEM_LINES, b"rm x" + END, b"\n"], b"more after the end"),
    ],
)
def test_a_marked_paste_that_is_no_answer_is_refused_as_a_whole(
    site: Site, vault: Vault, field: str, parts: list[bytes], problem: bytes
) -> None:
    question = QUESTIONS[f"set {field}"]
    status, shown = typed(site, "set", *field.split(), question=question, text=parts)
    assert status == 2 and b"vault: error: " in shown and problem in shown, shown
    assert vault.list() == []


@pytest.mark.parametrize("question", ["set smtp password", "set vonage private_key"])
@pytest.mark.parametrize("ignored", ["HUP", "USR2"])
def test_a_paste_that_ends_with_the_terminal_is_none(
    site: Site, vault: Vault, question: str, ignored: str
) -> None:
    """With the signal ignored the command goes on, and finds that there is nothing more to read."""
    command = [*COMMAND, *where(site), *question.split()]
    with Shell(["sh", "-c", f"trap '' {ignored}; exec \"$@\"", "sh", *command]) as terminal:
        terminal.read_until(QUESTIONS[question])
        terminal.type(BEGIN + PEM.encode() + b"\n")
        os.dup2(nothing := os.open(os.devnull, os.O_RDWR), terminal.master)
        os.close(nothing)
        assert terminal.process.wait(60) in ((3, 15) if ignored == "HUP" else (-signal.SIGHUP,))
    assert vault.list() == []


def test_a_marked_paste_that_began_before_the_question_is_no_answer(
    site: Site, vault: Vault
) -> None:
    early = BEGIN + b"too early\n"
    with Terminal(site, "set", "smtp", "password", piped=False, typed=early) as terminal:
        while terminal.shows():
            time.sleep(0.01)
        for late in (b"and late\n", END[:3], END[3:]):
            time.sleep(LATER)
            terminal.type(late)
        terminal.read_until(b"password: ")
        terminal.type(b"in time\n")
        assert terminal.end() == 0
    assert values(vault) == {"password": "in time"}


@pytest.mark.parametrize("term", [None, "", "dumb"])
def test_a_terminal_that_may_not_know_it_is_not_told_to_mark_pastes(
    site: Site, vault: Vault, monkeypatch: pytest.MonkeyPatch, term: str | None
) -> None:
    monkeypatch.delenv("TERM") if term is None else monkeypatch.setenv("TERM", term)
    status, shown = typed(site, "set", "smtp", "password", text=BEGIN + b"v\n" + END)
    assert status == 0 and b"\x1b" not in shown
    assert values(vault) == {"password": "v"}


def test_the_terminal_is_told_and_not_the_file_of_standard_error(site: Site, vault: Vault) -> None:
    command = [*COMMAND, *where(site), "set", "smtp", "password"]
    with Shell(
        ["sh", "-c", 'exec 2>"$0"; exec "$@"', str(site.folder / "err"), *command]
    ) as terminal:
        terminal.read_until(b"password: ")
        terminal.type(b"v\n")
        assert terminal.end() == 0 and switched(terminal.seen) == b"hl"
    said = (site.folder / "err").read_text()
    assert said == f"\nvault: stored smtp/password (global)\n{LACKS}"


# Several lines


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize(
    "text",
    [PEM, f"{PEM}\n\n", f"\n{PEM}"],
    ids=["whole", "with empty lines after it", "with an empty line before it"],
)
def test_a_text_of_several_lines_comes_in_whole(
    site: Site, vault: Vault, text: str, end: str
) -> None:
    status, shown = typed(
        site,
        "set",
        "vonage",
        "private_key",
        question=b"private_key: ",
        text=(text + "\n").replace("\n", end).encode(),
    )
    assert status == 0 and b"MC4C" not in shown and b"several lines" in shown, shown
    assert values(vault) == {"private_key": text.rstrip("\n")}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (PEM.replace("\n-----END PRIVATE KEY-----", "\n\x04"), b"a whole PEM text"),
        ("one line\n\x04", b"a whole PEM text"),
        (f"{PEM}\n{PEM}\n", b"more after the end of the text"),
        (f"{PEM}\nrm -rf something\n", b"more after the end of the text"),
        (PEM[: len(PEM) // 2] + "x" * 70_000 + "\n", b"longer than 65536 bytes"),
    ],
)
def test_a_text_of_several_lines_that_is_not_whole_is_refused(
    site: Site, vault: Vault, text: str, problem: bytes
) -> None:
    status, shown = typed(
        site, "set", "vonage", "private_key", question=b"private_key: ", text=text.encode()
    )
    assert status == 2 and problem in shown and b"MC4C" not in shown, shown
    assert vault.list() == []


def test_no_check_stores_a_text_of_several_lines_that_breaks_the_rule(
    site: Site, vault: Vault
) -> None:
    assert (
        typed(
            site,
            "set",
            "vonage",
            "private_key",
            "--no-check",
            question=b"private_key: ",
            text=b"one\n\ntwo\n\x04",
        )[0]
        == 0
    )
    assert values(vault) == {"private_key": "one\n\ntwo"}


def test_set_of_a_provider_asks_for_a_text_of_several_lines_too(site: Site, vault: Vault) -> None:
    answers = {
        b"api_key: ": "k",
        b"api_secret: ": "s",
        b"application_id [": "",
        b"private_key [": PEM[:-5] + "\n\x04",
    }
    answers |= {b"private_key [Enter": PEM, b"phone_number [": ""}
    with Terminal(site, "set", "vonage", piped=False) as terminal:
        for question, text in answers.items():
            terminal.read_until(question)
            terminal.read_until(b": ") if b"[" not in question else terminal.read_until(b"]: ")
            terminal.seen = b""
            terminal.type(text.encode() + (b"" if text.endswith("\x04") else b"\n"))
        assert terminal.end() == 0
    assert values(vault) == {"api_key": "k", "api_secret": "s", "private_key": PEM}


# Questions that show the answer


def test_what_ends_in_the_middle_of_a_visible_answer_is_none(site: Site, vault: Vault) -> None:
    status, shown = typed(site, "set", "smtp", question=b"\nhost: ", text=b"mail.exa\x04\x04")
    assert status == 3 and b"aborted" in shown and vault.list() == []


def test_a_question_is_answered_by_yes_or_no_alone_and_in_our_own_voice(
    site: Site, vault: Vault
) -> None:
    vault.set("smtp", "password", "v")
    for answer in (b"n\n", b"\n", b"\x04", b"no\n"):
        assert typed(site, "delete", "smtp", "password", question=b"[y/N]: ", text=answer)[0] == 3
    with Terminal(site, "delete", "smtp", "password", piped=False) as terminal:
        for text in (b"perhaps\n", b"Y\n"):
            terminal.read_until(b"[y/N]: ")
            before, terminal.seen = terminal.seen, b""
            terminal.type(text)
        assert terminal.end() == 0 and b"Error" not in before and b"vault: answer y or n" in before
    assert vault.list() == []


# The terminal is put back


@pytest.mark.parametrize(
    "question",
    ["set smtp password", "keys export FILE", "set vonage private_key", "delete smtp password"],
)
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_a_signal_at_a_question_has_its_effect_on_a_terminal_that_was_put_back(
    site: Site, vault: Vault, question: str, end: signal.Signals
) -> None:
    vault.set("smtp", "password", "v")
    with Terminal(
        site, *question.replace("FILE", str(site.folder / "export")).split(), piped=False
    ) as terminal:
        terminal.read_until(QUESTIONS[question])
        assert terminal.shows() == question.startswith("delete")
        terminal.type(b"half")
        terminal.process.send_signal(end)
        assert terminal.end() == (3 if end == signal.SIGINT else -end)
        expected = b"" if question.startswith("delete") else b"hl+"
        assert terminal.shows() and re.fullmatch(expected, switched(terminal.seen))
    assert values(vault) == {"password": "v"}


# What a shell with job control does, which says what it finds when its job has stopped.
JOB_CONTROL = """
import os, signal, sys, termios
def shown():
    return "shown" if termios.tcgetattr(0)[3] & termios.ECHO else "hidden"
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
before = termios.tcgetattr(0)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])
while os.WIFSTOPPED(status := os.waitpid(job, os.WUNTRACED)[1]):
    os.tcsetpgrp(0, os.getpid())
    found = shown()
    termios.tcsetattr(0, termios.TCSADRAIN, before)  # as each shell does
    print("stopped", found, flush=True)
    input()
    os.tcsetpgrp(0, job)
    os.kill(job, signal.SIGCONT)
print("ended", os.waitstatus_to_exitcode(status), shown(), flush=True)
"""


@pytest.mark.parametrize("how", ["Ctrl-Z", "SIGSTOP"])
def test_a_command_that_was_stopped_asks_anew_when_it_goes_on(
    site: Site, vault: Vault, how: str
) -> None:
    with Shell(
        [sys.executable, "-c", JOB_CONTROL, *COMMAND, *where(site), "set", "smtp", "password"]
    ) as terminal:
        for text in (b"half", b"whole\n"):
            terminal.read_until(b"password: ")
            assert not terminal.shows() and switched(terminal.seen).endswith(b"h")
            terminal.seen = b""
            terminal.type(text)
            if text == b"half":
                if how == "Ctrl-Z":
                    terminal.type(b"\x1a")
                else:
                    os.kill(os.tcgetpgrp(terminal.master), signal.SIGSTOP)
                terminal.read_until(b"stopped")
                terminal.read_until(b"\n")
                if how == "Ctrl-Z":
                    assert b"stopped shown" in terminal.seen and switched(terminal.seen) == b"l"
                terminal.type(b"\n")
        terminal.read_until(b"ended")
        terminal.end()
        assert b"ended 0 shown" in terminal.seen and switched(terminal.seen) == b"l", terminal.seen
    assert values(vault) == {"password": "whole"}


FAULTY = """
import errno, os, sys
from outreach_vault.command import cli
read = os.read
def faulty(fd, size):
    if os.isatty(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return read(fd, size)
os.read = faulty
sys.argv = ["vault", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize(
    "question",
    ["set smtp password", "keys export FILE", "set vonage private_key", "delete smtp password"],
)
def test_a_terminal_that_cannot_be_read_is_an_error_in_words(
    site: Site, vault: Vault, question: str
) -> None:
    vault.set("smtp", "password", "v")
    arguments = question.replace("FILE", str(site.folder / "export")).split()
    with Shell([sys.executable, "-c", FAULTY, *where(site), *arguments]) as terminal:
        terminal.read_until(QUESTIONS[question])
        terminal.type(b"v\n")
        assert terminal.end() == 15
        assert (
            b"the terminal cannot be read: Input/output error" in terminal.seen and terminal.shows()
        )
        assert switched(terminal.seen) == (b"" if question.startswith("delete") else b"hl")
    assert values(vault) == {"password": "v"}


def test_what_was_typed_before_the_question_is_no_answer(site: Site, vault: Vault) -> None:
    with Terminal(site, "set", "smtp", "password", piped=False) as terminal:
        terminal.type(b"too early\n")
        terminal.read_until(b"password: ")
        terminal.type(b"in time\n")
        assert terminal.end() == 0
    assert values(vault) == {"password": "in time"}


MANY_OPEN = """
import os, resource, sys
from outreach_vault.command import cli
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
while os.open(os.devnull, os.O_RDONLY) < 1100:
    pass
sys.argv = ["vault", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize("question", ["set smtp password", "delete smtp password"])
def test_a_process_with_many_open_files_can_ask(site: Site, vault: Vault, question: str) -> None:
    vault.set("smtp", "password", "v")
    with Shell([sys.executable, "-c", MANY_OPEN, *where(site), *question.split()]) as terminal:
        terminal.read_until(QUESTIONS[question])
        terminal.type(b"y\n")
        assert terminal.end() == 0, terminal.seen
    assert values(vault) == ({"password": "y"} if question.startswith("set") else {})
