"""The command as the tests drive it: in this process, as a process, and at a real terminal."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import select
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self
from unittest import mock

import click

from helpers.effort import THOROUGH
from helpers.ready import Call
from helpers.site import COMMAND, Site
from outreach_vault.command import cli
from outreach_vault.command.completing import inner

# Read by the interpreter as it starts, so only a new process has them as they are.
AT_THE_START = ("PYTHON", "LC_", "LANG", "LD_")
TAKEN_ON = ("PYTHONPATH", "PYTHON_KEYRING_")
# Argon2id at its least.
QUICK = {"iterations": 1, "lanes": 1, "memory_kib": 8}
# What `set smtp password` says at the end where nothing else of smtp is stored.
LACKS = "vault: smtp (global): missing host, user; 'vault set smtp' stores them\n"


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


def where(site: Site, *, keyring: bool = False) -> list[str]:
    database = [] if site.database is None else ["--db", str(site.database)]
    return [*database, *([] if keyring else ["--key-dir", str(site.keys)])]


def run(site: Site, *arguments: str, stdin: bytes = b"", keyring: bool = False) -> Done:
    """The command in this process: what it does is the same, and it starts at once."""
    said, warned, given = io.BytesIO(), io.BytesIO(), io.TextIOWrapper(io.BytesIO(stdin))
    out, err = io.TextIOWrapper(said), io.TextIOWrapper(warned)
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "stdin", given),
    ):
        status = cli.run([*where(site, keyring=keyring), *arguments])
        out.flush()
        err.flush()
    return Done(status, said.getvalue().decode(), warned.getvalue().decode())


def ready(env: Mapping[str, str]) -> bool:
    """Whether a process with this environment may be a fork."""
    return not THOROUGH and all(
        env.get(name) == os.environ.get(name)
        for name in env.keys() | os.environ.keys()
        if name.startswith(AT_THE_START) and not name.startswith(TAKEN_ON)
    )


def process(site: Site, *arguments: str, keyring: bool = False, **options: Any) -> Done:
    """The real command in a process of its own; see `ready`."""
    command = [*where(site, keyring=keyring), *arguments]
    if options.keys() <= {"cwd", "env", "input"} and ready(options.get("env", os.environ)):
        return call(command, **options)
    done: subprocess.CompletedProcess[Any] = subprocess.run(
        [*COMMAND, *command],
        capture_output=True,
        **({"input": b"", "timeout": 60} | options),
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def call(
    command: Sequence[str], input: bytes = b"", *, together: bool = False, **options: Any
) -> Done:
    """The command in a process of `ready`; *together*: its errors among its output."""
    (given, giving), (out, said), (err, warned) = os.pipe(), os.pipe(), os.pipe()
    running = Call(command, (given, said, said if together else warned), **options)
    for fd in (given, said, warned):
        os.close(fd)
    with ThreadPoolExecutor() as at_once:
        gives = at_once.submit(_give, giving, input)
        takes = [at_once.submit(_take, fd) for fd in (out, err)]
        try:
            status = running.wait(60)
        finally:
            running.kill()
        gives.result()
        return Done(status, *(each.result().decode() for each in takes))


def _take(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def _give(fd: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(fd, "wb") as file:
        file.write(data)


def failed(done: Done, status: int, *words: str) -> None:
    """An error of ours: its status, nothing on standard output, no traceback."""
    assert (done.status, done.out) == (status, ""), done
    assert "vault: error: " in done.err and "Traceback" not in done.err, done.err
    assert ("a bug" in done.err) == (status == 1), done.err
    for word in words:
        assert word in done.err, done.err


def problems(done: Done) -> list[dict[str, Any]]:
    """
    Of `doctor --json`, but for accounts: the fields of these tests (`smtp/field-1`) make none that
    could send.
    """
    found = [each for each in done.data["findings"] if each["level"] == "problem"]
    assert done.status == (16 if found else 0)
    return [each for each in found if each["kind"] not in ("mixed account", "incomplete account")]


def leaves(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Each command of the group, by the words that call it."""
    for name, command in inner(group).items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*above, name))
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield " ".join((*above, name))


class Shell:
    """A program at a real terminal of its own, with its standard output beside it if *piped*."""

    def __init__(self, command: Sequence[str], *, piped: bool = False, typed: bytes = b"") -> None:
        self.master, slave = os.openpty()
        self.type(typed)
        self.process = self._start(command, slave, piped)
        os.close(slave)
        self.seen = b""

    def _start(
        self, command: Sequence[str], slave: int, piped: bool
    ) -> subprocess.Popen[bytes] | Call:
        return subprocess.Popen(
            command,
            stdin=slave,
            stderr=slave,
            stdout=subprocess.PIPE if piped else slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        os.close(self.master)

    def read_until(self, word: bytes) -> None:
        """
        A prompt throws away what was typed before it, so a test waits for it as a person does.
        """
        while word not in self.seen:
            data = self._read()
            assert data, f"it ended after {self.seen!r}"
            self.seen += data

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def end(self) -> int:
        while data := self._read():
            self.seen += data
        return self.process.wait()

    def interrupt(self) -> int:
        """
        Ctrl-C until it is heard: one that comes just before the interpreter's read begins waits for
        the end of a line.
        """
        while True:
            self.type(b"\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
                return self.end()

    def shows(self) -> bool:
        """Whether the terminal shows what is typed, and edits lines: as it did before."""
        flags = termios.tcgetattr(self.master)[3]
        assert bool(flags & termios.ECHO) == bool(flags & termios.ICANON)
        return bool(flags & termios.ECHO)

    def _read(self) -> bytes:
        if not select.select([self.master], [], [], 20)[0]:
            raise AssertionError(f"nothing more came after {self.seen!r}")
        try:
            return os.read(self.master, 4096)
        except OSError:  # EIO: the other end is closed
            return b""


class Terminal(Shell):
    """The command at a terminal; see `ready`. *typed*: what waits there when it begins."""

    def __init__(self, site: Site, *arguments: str, piped: bool = True, typed: bytes = b"") -> None:
        super().__init__([*COMMAND, *where(site), *arguments], piped=piped, typed=typed)

    def _start(
        self, command: Sequence[str], slave: int, piped: bool
    ) -> subprocess.Popen[bytes] | Call:
        if not ready(os.environ):
            return super()._start(command, slave, piped)
        out, said = os.pipe() if piped else (-1, os.dup(slave))
        try:
            return Call(
                command[len(COMMAND) :],
                (slave, said, slave),
                session=True,
                stdout=open(out, "rb") if piped else None,
            )
        finally:
            os.close(said)
