"""
A real Secret Service of our own: a D-Bus daemon and gnome-keyring-daemon in a temporary folder.

Debian: apt-get install --no-install-recommends dbus gnome-keyring libsecret-tools
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

PROGRAMS = ("dbus-daemon", "gnome-keyring-daemon", "secret-tool")
PASSWORD = "test-login"
# Without standard_session_servicedirs: with them, D-Bus starts a second, locked daemon the moment
# ours dies.
BUS_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/>
  </policy>
</busconfig>
"""


def missing_programs() -> list[str]:
    return [program for program in PROGRAMS if shutil.which(program) is None]


class SecretService:
    """
    A context manager; `env` is what a client's environment needs.

    Args:
        password: of the login collection, which is made and unlocked; None starts a daemon that has
            no collection and cannot make one.
    """

    def __init__(self, password: str | None = PASSWORD) -> None:
        self._password = password
        # A socket's path has 108 bytes at most: pytest's tmp_path is often too long.
        self.folder = Path(tempfile.mkdtemp(prefix="ov", dir="/tmp"))
        self.env = {
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.folder}/bus",
            "HOME": f"{self.folder}/home",
            "XDG_CONFIG_HOME": f"{self.folder}/home/.config",
            "XDG_DATA_HOME": f"{self.folder}/home/.local/share",
            "XDG_RUNTIME_DIR": f"{self.folder}/run",
        }
        self._bus: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SecretService:
        try:
            for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"):
                Path(self.env[name]).mkdir(parents=True, mode=0o700)
            (self.folder / "bus.conf").write_text(BUS_CONFIG.format(socket=self.folder / "bus"))
            self._bus = self._popen(
                "dbus-daemon", "--nofork", "--nopidfile", f"--config-file={self.folder}/bus.conf"
            )
            self._wait_for(self._bus_answers, self._bus)
            self.start(self._password)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, password: str | None = PASSWORD) -> None:
        """Start the daemon: with the right password unlocked, with a wrong one or None locked."""
        assert self._daemon is None, "there is a daemon already"
        arguments = [
            "--components=secrets",
            "--foreground",
            f"--control-directory={self.folder}/run",
        ]
        self._daemon = self._popen(
            "gnome-keyring-daemon", *arguments, *(["--unlock"] if password is not None else [])
        )
        assert self._daemon.stdin is not None
        self._daemon.stdin.write((password or "").encode())  # all of standard input is the password
        self._daemon.stdin.close()
        self._wait_for(self._unlocked if password == PASSWORD else self._on_the_bus, self._daemon)

    def kill(self) -> None:
        """Kill the daemon (a frozen one too); the bus stays."""
        assert self._daemon is not None, "there is no daemon"
        _end(self._daemon)
        self._daemon = None

    def kill_bus(self) -> None:
        """Kill the bus as well: its address becomes stale."""
        if self._daemon is not None:
            self.kill()
        assert self._bus is not None, "there is no bus"
        _end(self._bus)
        self._bus = None

    def restart(self, password: str | None = PASSWORD) -> None:
        self.kill()
        self.start(password)

    def freeze(self) -> None:
        assert self._daemon is not None, "there is no daemon"
        self._daemon.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._daemon is not None, "there is no daemon"
        self._daemon.send_signal(signal.SIGCONT)

    def lookup(self, service: str, username: str) -> str | None:
        """What a second, independent client finds."""
        found = self._secret_tool("lookup", "service", service, "username", username)
        return found.stdout if found.returncode == 0 else None

    def store(self, service: str, username: str, text: str) -> None:
        """Make an entry as a second, independent client."""
        self._secret_tool(
            "store", "--label", service, "service", service, "username", username, text=text
        ).check_returncode()

    def close(self) -> None:
        for process in (self._daemon, self._bus):
            if process is not None:
                _end(process)
        self._daemon = self._bus = None
        shutil.rmtree(self.folder)

    def _secret_tool(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["secret-tool", *arguments],
            env=os.environ | self.env,
            input=text,
            capture_output=True,
            text=True,
            timeout=20,
        )

    def _popen(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, env=os.environ | self.env, stdin=subprocess.PIPE, stdout=log, stderr=log
            )

    def _wait_for(self, ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 60
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"{process.args!r} did not start:\n{(self.folder / 'log').read_text()}"
                )
            time.sleep(0.02)

    def _bus_answers(self) -> bool:
        with (
            contextlib.suppress(FileNotFoundError, ConnectionRefusedError),
            socket.socket(socket.AF_UNIX) as client,
        ):
            client.connect(f"{self.folder}/bus")  # its file is there a moment before it listens
            return True
        return False

    def _on_the_bus(self) -> bool:
        import secretstorage

        with contextlib.closing(self._connect()) as connection:
            return secretstorage.check_service_availability(connection)

    def _unlocked(self) -> bool:
        import secretstorage

        with contextlib.closing(self._connect()) as connection:
            if not secretstorage.check_service_availability(connection):
                return False
            # The alias itself: get_default_collection would make a missing collection, and prompt.
            with contextlib.suppress(secretstorage.ItemNotFoundException):
                return not secretstorage.Collection(
                    connection, "/org/freedesktop/secrets/aliases/default"
                ).is_locked()
            return False

    def _connect(self) -> object:
        from jeepney.io.blocking import open_dbus_connection

        return open_dbus_connection(self.env["DBUS_SESSION_BUS_ADDRESS"])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # reaches a stopped process as well
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
