"""
The command in a process that has loaded it already.

To load it is most of what a call of the command costs. So a run that is not thorough does that
once, and each call is a fork of that process: it has its own standard streams, environment,
terminal, signals and end, as any process. A thorough run starts each call anew.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, BinaryIO, NoReturn, cast

from outreach_vault.keys import passphrase

# From the beginning: a test may count what is open.
OURS, ITS = socket.socketpair()
atexit.register(OURS.close)
atexit.register(ITS.close)


class Call:
    """One call of the command: as much of a `subprocess.Popen` as is needed."""

    stdin = stderr = None

    def __init__(
        self,
        arguments: Sequence[str],
        streams: Sequence[int],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        session: bool = False,
        stdout: BinaryIO | None = None,
    ) -> None:
        self.args, self.stdout, self.returncode = arguments, stdout, cast("int | None", None)
        os.umask(umask := os.umask(0))
        told, tell = os.pipe()
        self._told = open(told, "rb", 0)  # noqa: SIM115  # closed when it has told the end
        with tempfile.TemporaryFile() as request:
            wanted = {
                "arguments": [os.fspath(each) for each in arguments],
                "cwd": os.fspath(cwd or os.getcwd()),
                "env": dict(os.environ if env is None else env),
                "session": session,
                "stretch": passphrase._ARGON2ID,
                "umask": umask,
            }
            request.write(json.dumps(wanted).encode())
            request.seek(0)
            socket.send_fds(_ready(), [b"\0"], [request.fileno(), tell, *streams])
        os.close(tell)
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        return self.wait(0) if select.select([self._told], [], [], 0)[0] else self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, cast(float, timeout))
            self.returncode = int(self._told.readline())
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None and self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def _ready() -> socket.socket:
    process = subprocess.Popen([sys.executable, __file__], stdin=ITS, cwd="/")
    atexit.register(process.wait)
    atexit.register(OURS.close)  # which ends it; the last that is registered is done first
    return OURS


def _serve(requests: socket.socket) -> None:
    from outreach_vault.command import cli

    for each in (OURS, ITS):
        each.close()
    for home in set(cli.cli.homes.values()):
        import_module(home)
    while fds := socket.recv_fds(requests, 1, 5)[1]:
        if os.fork() == 0:
            requests.detach()  # its number is standard input's
            _watch(*fds)
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _watch(request: int, tell: int, *streams: int) -> NoReturn:
    """The parent of one call: it waits for it, since whoever asked cannot."""
    if (pid := os.fork()) == 0:
        _call(request, streams)
    os.closerange(0, tell)
    os.closerange(tell + 1, tell + 8)
    os.write(tell, b"%d\n" % pid)
    status = os.waitpid(pid, 0)[1]
    os.write(tell, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _call(request: int, streams: Sequence[int]) -> NoReturn:
    """It ends as any interpreter does: nothing above it catches what it raises."""
    with open(request, "rb", closefd=False) as file:
        wanted: dict[str, Any] = json.load(file)
    encodings = [(stream.encoding, stream.errors) for stream in (sys.stdin, sys.stdout, sys.stderr)]
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    os.closerange(3, max(streams) + 8)
    if wanted["session"]:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.umask(wanted["umask"])
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    time.tzset()
    sys.path[:1] = [wanted["cwd"], *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
    sys.argv[1:] = wanted["arguments"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = open(number, "wb" if number else "rb", closefd=False)  # noqa: SIM115
        setattr(sys, name, io.TextIOWrapper(stream, *encodings[number]))
    passphrase._ARGON2ID = wanted["stretch"]  # type: ignore[misc]
    from outreach_vault.__main__ import main

    main()
    raise SystemExit


if __name__ == "__main__":
    _serve(socket.socket(fileno=0))
