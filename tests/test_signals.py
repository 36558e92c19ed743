"""
A signal's handler that raises, at any moment of a call: a worker's time limit, a caught Ctrl-C.

The process goes on afterwards. So the interrupted call has done its work or none of it, it leaves
nothing (a transaction, a lock, a turn, a descriptor, a file), and what is acknowledged later is in
the file.

Two kinds of evidence. With a real timer the moment is a matter of chance, and also inside SQLite
and the system's calls. Counted, the moments of a call are tried one by one: CPython runs a handler
only where it looks for signals (at the entry of a function, after a call into C, at the jump back
of a loop), so there are not many.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import pytest
from helpers import V4
from helpers.commands import process
from helpers.effort import THOROUGH, effort, some
from helpers.faults import forked
from helpers.postgres import psycopg
from helpers.site import Engine, Figures, Site, name_of, new_site, operators_lock, sql

import outreach_vault
from outreach_vault import (
    CredentialNotFound,
    KeyDirectory,
    KeyExists,
    OperationRunning,
    Secret,
    StorageError,
    Vault,
    cipher,
)
from outreach_vault.keys import passphrase
from outreach_vault.operations import recovery, rotation
from outreach_vault.operations.doctor import examine
from outreach_vault.operations.init import init
from outreach_vault.operations.status import status
from outreach_vault.schema.migrator import migrate
from outreach_vault.schema.shapes import Place
from outreach_vault.values.sealing import opened, require_storable, resealed, seal

pytestmark = pytest.mark.skipif(
    sys.implementation.name != "cpython" or not Path("/proc/self/fd").is_dir(),
    reason="counts CPython's looks for signals, and descriptors as Linux shows them",
)
T = TypeVar("T")
Values = dict[str, str]
PASSPHRASE = Secret("correct horse battery staple")
SECONDS = 300  # no child lives longer: a lock that is never given back must not hold the tests up


class Interrupted(KeyboardInterrupt):
    """As Ctrl-C: no `except Exception` sees it, and psycopg asks the server to stop."""


class OutOfTime(Exception):
    """As a worker's time limit (celery's, rq's): an `except Exception` sees it."""


KINDS = (Interrupted, OutOfTime)


def is_ours(error: BaseException | None) -> bool:
    """The handler's own, or an error of the vault's that it is the cause of."""
    while error is not None:
        if isinstance(error, KINDS):
            return True
        error = error.__cause__ or error.__context__
    return False


# --- what a call may leave

PROBE = "asks for the turn"  # a thread that waits for it in vain is no second fault


def threads_left() -> int:
    return sum(thread.name != PROBE for thread in threading.enumerate())


def sqlites(site: Site) -> set[str]:
    """SQLite shares these among the connections of a process, and closes them when it can."""
    return {str(site.database) + end for end in ("", "-wal", "-shm")}


def descriptors(site: Site) -> Counter[str]:
    """What this process has open, by name."""
    found = Counter[str]()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the list's own
            found[os.readlink(f"/proc/self/fd/{number}")] += 1
    shared = sqlites(site)  # and a pool's sockets: see `sessions`
    return Counter(
        {name: n for name, n in found.items() if name not in shared and "socket:" not in name}
    )


def sessions(site: Site, vault: Vault) -> tuple[int, int, int]:
    """
    What the server knows of this process's connections: how many no later call can have, how many
    are in a transaction, and how many have a lock that others wait for.
    """
    if site.engine is None:
        return 0, 0, 0
    locked = "EXISTS (SELECT 1 FROM pg_locks WHERE pid = a.pid AND locktype = 'advisory')"
    ((found, active, locking),) = site.engine.sql(
        "postgres",
        "SELECT count(*), count(*) FILTER (WHERE state <> 'idle'),"
        f" count(*) FILTER (WHERE {locked}) FROM pg_stat_activity a"
        " WHERE datname = ? AND application_name LIKE ?",
        name_of(site.database),
        f"% {os.getpid()}",
    )
    database: Any = vault.database
    peewees = getattr(database._this_thread, "peewees", None)
    kept = len(database._pool._idle) + bool(peewees and not peewees.closed)
    return found - kept, active, locking


def soon(look: Callable[[], T], right: T) -> T:
    """What it finds, when it is right or has had its time: a server takes a moment to notice."""
    ends = time.monotonic() + 1
    while (found := look()) != right and time.monotonic() < ends:
        time.sleep(0.005)
    return found


def strays(site: Site, *expected: str) -> set[str]:
    """Files and folders beside the database that have no place there; the keys' folder included."""
    known = {*sqlites(site), f"{site.database}.vault-lock", str(site.keys)}
    there = {
        str(path) for path in site.folder.rglob("*") if path.suffix not in (".key", ".successor")
    }
    return {
        path
        for path in there - known
        if not any(fnmatch(Path(path).name, name) for name in expected)
    }


def locks_taken(site: Site) -> list[str]:
    """The operators' locks that an open file of another process would not get at once."""
    taken = []
    if site.engine:
        try:
            with operators_lock(site.database):
                pass
        except OperationRunning:
            taken.append("of the server")
    for path in site.folder.glob("*.vault-lock"):
        with open(path, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                taken.append(path.name)
    return taken


def values_in(vault: Vault, provider: str = "smtp") -> Values:
    return {
        e.credential_type: vault.get(e.provider, e.credential_type, fallback=False).reveal()
        for e in vault.list(None)
        if e.state == "ok" and e.provider == provider
    }


def seen_by_a_new_vault(site: Site, provider: str = "smtp") -> Values | None:
    """What another thread reads, for which it needs the turn; None where it does not get it."""
    answers = list[Values]()

    def read() -> None:
        with site.open() as other:
            answers.append(values_in(other, provider))

    thread = threading.Thread(target=read, daemon=True, name=PROBE)
    thread.start()
    thread.join(2)
    return answers[0] if answers else None


def leaks_while_held(site: Site, vault: Vault) -> list[str]:
    """What is still taken while a caller keeps the exception, and so the frames it came through."""
    found = []
    if vault.database.in_transaction():
        found.append("a transaction is open")
    if soon(lambda: sessions(site, vault)[2], 0):
        found.append("a writer's lock is taken at the server")
    found += [f"the operators' lock {name} is taken" for name in locks_taken(site)]
    for _ in range(7):  # psycopg prepares what a connection has done five times
        vault.set("probe", "later", "acknowledged")
    row = sql(site.database, "SELECT 1 FROM provider_credentials WHERE credential_type = 'later'")
    if not row:
        found.append("a later set is acknowledged, and nobody else sees it")
    seen = seen_by_a_new_vault(site, "probe")
    if seen is None:
        found.append("the key store's turn is taken")
    elif row and seen.get("later") != "acknowledged":
        found.append("a later set reads back as another value")
    return found


def leaks(
    site: Site, vault: Vault, before: Counter[str], threads: int, *expected: str
) -> list[str]:
    """What is still there when the exception is gone."""
    gc.collect()
    more = soon(lambda: threads_left() > threads, False)
    found = [f"a descriptor of {Path(name).name}" for name in descriptors(site) - before]
    if more:
        found.append("a thread")
    if any(counts := soon(lambda: sessions(site, vault), (0, 0, 0))):
        found.append("connections: {} lost, {} in a transaction, {} with locks".format(*counts))
    return found + [f"a file {Path(name).name}" for name in sorted(strays(site, *expected))]


# --- at a moment of chance

CALLS = effort(6000, 300)  # of each kind of exception
PLACES = 12
READER = """
import fcntl, json, sys
from outreach_vault import KeyDirectory, Vault
database, keys = sys.argv[1:]
with Vault.open(database, key_store=KeyDirectory(keys)) as vault:
    for _ in sys.stdin:
        names = [entry.credential_type for entry in vault.list()]
        found = {name: vault.get("smtp", name).reveal() for name in names}
        if vault.database.kind == "SQLite":
            with open(database + ".vault-lock", "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            vault.database.operators_turn(lambda: None)
        print(json.dumps(found), flush=True)
"""


class Timer:
    """Raises *kind* in a call, once, at a moment drawn so that three of four calls are hit."""

    def __init__(self, kind: type[BaseException], chance: random.Random) -> None:
        self.raised = 0
        self.kept: BaseException | None = None  # as a caller does who logs it later
        self._kind = kind
        self._chance = chance
        self._armed = False
        self._typical: dict[str, float] = {}
        signal.signal(signal.SIGALRM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            self.raised += 1
            raise self._kind

    def measure(self, name: str, calls: list[Callable[[], object]]) -> None:
        took = []
        for call in calls:
            began = time.perf_counter()
            call()
            took.append(time.perf_counter() - began)
        self._typical[name] = statistics.median(took)

    def call(self, name: str, call: Callable[[], object]) -> bool:
        """Whether the call came to its end."""
        delay = self._chance.uniform(1e-6, 1.3 * self._typical[name])
        done = False
        try:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, delay)
            call()
            done = True
            self._armed = False  # a signal that comes now finds nothing to do, so disarming is safe
        except BaseException as error:
            self._armed = False
            if not is_ours(error):
                raise
            self.kept = error
        signal.setitimer(signal.ITIMER_REAL, 0)
        # A rotation takes longer the more keys there are; this keeps to three hits for each miss.
        self._typical[name] *= 0.94 if done else 1.02
        return done


def storm(site: Site, kind: type[BaseException], seed: int) -> dict[str, int]:
    """*CALLS* interrupted calls; what another process reads must be what was acknowledged."""
    chance = random.Random(seed)
    command = [sys.executable, "-c", READER, str(site.database), str(site.keys)]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as reader,
        site.open() as vault,
    ):
        assert reader.stdin and reader.stdout
        answers = reader.stdout
        allowed: dict[str, set[str | None]] = {f"field-{n}": {None} for n in range(PLACES)}
        timer = Timer(kind, chance)

        def look() -> None:
            for name in allowed:
                with contextlib.suppress(CredentialNotFound):
                    vault.get("smtp", name)

        def check(number: int) -> None:
            assert not vault.database.in_transaction(), f"{number}: a transaction is open"
            print(file=reader.stdin, flush=True)
            answer = answers.readline()
            assert answer, f"{number}: another process does not get the operators' lock"
            for found in (json.loads(answer), seen_by_a_new_vault(site)):
                assert found is not None, f"{number}: the key store's turn is taken"
                lost = {name for name, states in allowed.items() if found.get(name) not in states}
                assert not lost, f"{number}: acknowledged and not in the file: {sorted(lost)}"
            timer.kept = None
            assert leaks(site, vault, before, threads) == [], f"{number}"

        def change(name: str, value: str | None, done: bool) -> None:
            allowed[name] = {value} if done else allowed[name] | {value}

        timer.measure("set", [lambda: vault.set("smtp", "field-0", "measured")] * 21)
        timer.measure("get", [lambda: vault.get("smtp", "field-0")] * 21)
        timer.measure("rotate", [lambda: rotation.rotate(vault)] * 3)
        timer.measure("delete", [lambda: vault.delete("smtp", "field-0")] * 21)
        before, threads = descriptors(site), threads_left()
        check(0)
        done = Counter[str]()
        for number in range(1, CALLS + 1):
            name, draw, value = (
                f"field-{chance.randrange(PLACES)}",
                chance.random(),
                f"value {number}",
            )
            if number % effort(60, 20) == 0:
                done["rotate"] += timer.call("rotate", lambda: rotation.rotate(vault))
            elif draw < 0.5:
                ended = timer.call("set", lambda: vault.set("smtp", name, value))  # noqa: B023
                change(name, value, ended)
                done["set"] += ended
            elif draw < 0.7:
                ended = timer.call("delete", lambda: vault.delete("smtp", name))  # noqa: B023
                change(name, None, ended)
                done["delete"] += ended
            else:
                with contextlib.suppress(CredentialNotFound):
                    done["get"] += timer.call("get", lambda: vault.get("smtp", name))  # noqa: B023
            if number % effort(200, 100) == 0:
                check(number)
        look()
        timer.kept = None
        assert process(site, "rotate").status == 0
        check(CALLS)
        reader.stdin.close()
        assert reader.wait(20) == 0
    assert timer.raised > CALLS / 2
    assert not THOROUGH or all(done[name] for name in ("set", "get", "delete", "rotate")), done
    return {"interrupted": timer.raised, "acknowledged": done.total()}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_acknowledged_after_an_interrupted_call_is_in_the_file(
    kind: type[BaseException], site: Site, tmp_path: Path, figures: Figures
) -> None:
    result = tmp_path / "result.json"

    def child() -> None:
        # psycopg warns of a connection that is collected while it is open, as an interrupted one
        # is. pytest's hook would keep the warning, and so the connection.
        sys.unraisablehook = lambda unraisable: None
        found = storm(site, kind, seed=KINDS.index(kind))
        result.write_text(json.dumps(found))

    _, status = os.waitpid(forked(child), 0)
    assert os.waitstatus_to_exitcode(status) == 0, "the child says above what was lost"
    found = json.loads(result.read_text())
    figures("calls that a timer's signal interrupted, nothing left over", found["interrupted"])
    figures("calls acknowledged between them, each in the file", found["acknowledged"])


# --- at every moment

LIBRARY = (contextlib, threading, tempfile, shutil, weakref)
OWN = str(Path(outreach_vault.__file__).parent)
DRIVER = (f"{Path(psycopg.__file__).parent}{os.sep}",) if psycopg else ()  # what of it is Python
FOLLOWED = (OWN, *DRIVER, *(str(module.__file__) for module in LIBRARY))


class Moment(NamedTuple):
    """Where a handler was run: the innermost frame, and the innermost of the package's own."""

    at: str
    under: str

    def __str__(self) -> str:
        return self.at if self.at == self.under else f"{self.at}, under {self.under}"


def place_of(frame: FrameType | None) -> str:
    if frame is None:
        return "nowhere"
    code = frame.f_code
    return f"{Path(code.co_filename).name}:{frame.f_lineno} ({code.co_name})"


def moment_of(frame: FrameType) -> Moment:
    own: FrameType | None = frame
    while own and not own.f_code.co_filename.startswith(OWN):
        own = own.f_back
    return Moment(place_of(frame), place_of(own))


Position = tuple[tuple[str, int, int], ...]


def position_of(frame: FrameType) -> Position:
    """
    The instruction, that of the package's innermost frame, and those of its three callers.

    Without the callers in psycopg, where each statement has its hundred.
    """
    own: FrameType | None = frame
    while own and not own.f_code.co_filename.startswith(OWN):
        own = own.f_back
    frames = [frame]
    while own and len(frames) < (2 if frame.f_code.co_filename.startswith(DRIVER) else 5):
        frames.append(own)
        own = own.f_back
    return tuple((f.f_code.co_filename, f.f_code.co_firstlineno, f.f_lasti) for f in frames)


def interrupted_at(
    number: int, kind: type[BaseException], call: Callable[[], object], looks: list[Position]
) -> tuple[Moment | None, BaseException | None]:
    """
    Run *call*, and raise at the look for signals with this *number*; where, and what came out.

    The positions of all looks are added to *looks*, up to that one; 0 is the number of none.

    A signal is made pending before each instruction, by a tracing function in C. So CPython itself
    runs the handler, each time that it looks for signals and at no other moment, and unwinds as it
    does for a signal. An exception raised by a tracing function would come out one instruction
    later, where another `finally` may be in charge, and one in Python would meet the signal itself.
    """
    make_pending = ctypes.pythonapi.PyErr_SetInterrupt  # of SIGINT; nothing is sent
    make_pending.argtypes, make_pending.restype = [ctypes.py_object] * 3, None
    moments = list[Moment]()

    def handle(signum: int, frame: FrameType | None) -> None:
        if frame is None or frame.f_code.co_filename == __file__ or moments:
            return
        looks.append(position_of(frame))
        if len(looks) == number:
            sys.settrace(None)
            moments.append(moment_of(frame))
            raise kind

    def follow(frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(FOLLOWED):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return make_pending

    before = signal.signal(signal.SIGINT, handle)
    error = None
    try:
        sys.settrace(follow)
        call()
    except BaseException as caught:
        error = caught
    finally:
        sys.settrace(None)
        signal.signal(signal.SIGINT, before)
    return (moments[0] if moments else None), error


class Case(NamedTuple):
    """
    A call to interrupt.

    Attributes:
        call: on a site that is this case's alone, and a vault that is open on it.
        warm: whether the vault has its keys already.
        at_most: so many of its moments are tried, spread over the call.
        makes: the names of files that it may make beside the database, as patterns.
        prepare: what is done to the site before the vault is opened.
        within: what the caller does around it, which is not interrupted.
        sqlite: why it is for a file alone.
    """

    call: Callable[[Site, Vault], object]
    warm: bool = True
    at_most: int = 250
    makes: tuple[str, ...] = ()
    prepare: Callable[[Site], object] = lambda site: None
    within: Callable[[Vault], contextlib.AbstractContextManager[object]] = lambda vault: (
        contextlib.nullcontext()
    )
    sqlite: str = ""


def retired(site: Site) -> str:
    return min(
        key_id for key_id, state in site.states().items() if state in ("retired", "destroyed")
    )


def beside(site: Site, name: str) -> Path:
    return site.folder / name


def elsewhere(site: Site) -> Any:
    """Where a new vault can be made: a file, or a schema of the same database."""
    return f"{site.database}&options=-csearch_path%3Dnew" if site.engine else beside(site, "new.db")


def make_a_schema(site: Site) -> None:
    if site.engine:
        sql(site.database, "CREATE SCHEMA new")


def import_what_is_missing(site: Site, vault: Vault) -> None:
    recovery.import_keys(vault, beside(site, "exported"), PASSPHRASE)


def lose_the_old_key(site: Site) -> None:
    (file,) = site.keys.glob(f"*.{retired(site)}.key")
    file.unlink()


def change_often(site: Site) -> None:
    """So often that the next change forgets a value."""
    with site.open() as vault:
        for number in (2, 3, 4, 5, 1):
            vault.set("smtp", "field-1", f"value {number}")


NEW = "00000000-0000-4000-8000-000000000000"
NO_PART = "the database has no part in it"
CASES = {
    "set": Case(lambda site, vault: vault.set("smtp", "field-1", "new")),
    "set, the first of a process": Case(
        lambda site, vault: vault.set("smtp", "field-1", "new"), warm=False
    ),
    "set, forgetting an older value": Case(
        lambda site, vault: vault.set("smtp", "field-1", "new"), prepare=change_often
    ),
    "set in a transaction of the application's": Case(
        lambda site, vault: vault.set("smtp", "field-1", "new"),
        prepare=change_often,
        within=lambda vault: vault.bind_models().atomic(),
    ),
    "set_fields": Case(
        lambda site, vault: vault.set_fields("smtp", {"field-1": "new", "field-9": "new"})
    ),
    "delete": Case(lambda site, vault: vault.delete("smtp", "field-1")),
    "get": Case(lambda site, vault: vault.get("smtp", "field-1"), warm=False),
    "list": Case(lambda site, vault: vault.list(), warm=False),
    "open": Case(lambda site, vault: site.open().close()),
    "status": Case(lambda site, vault: status(vault), warm=False),
    "examine": Case(
        lambda site, vault: examine(site.database, key_store=KeyDirectory(site.keys)), at_most=25
    ),
    "rotate": Case(lambda site, vault: rotation.rotate(vault), at_most=60),
    "rotate, destroying the old key": Case(
        lambda site, vault: rotation.rotate(vault, destroy_old=True), warm=False, at_most=60
    ),
    "destroy": Case(lambda site, vault: rotation.destroy(vault, retired(site))),
    "backup": Case(
        lambda site, vault: recovery.backup(vault, beside(site, "copy")),
        makes=("copy",),
        sqlite="a server's own tools make its copies",
    ),
    "export_keys": Case(
        lambda site, vault: recovery.export_keys(vault, beside(site, "file"), PASSPHRASE),
        makes=("file",),
        at_most=60,
    ),
    "import_keys": Case(import_what_is_missing, prepare=lose_the_old_key, at_most=60),
    "init of a new vault": Case(
        lambda site, vault: init(elsewhere(site), key_store=KeyDirectory(site.keys)),
        makes=("new.db*",),
        prepare=make_a_schema,
        at_most=40,
    ),
    "migrate": Case(
        lambda site, vault: migrate(beside(site, "v4.db")),
        makes=("v4.db?*",),
        at_most=40,
        sqlite="no server has an older schema",
    ),
    "key directory, read": Case(
        lambda site, vault: vault.keys.store.read(vault.keys.vault_id, site.active()),
        sqlite=NO_PART,
    ),
    "key directory, write": Case(
        lambda site, vault: vault.keys.store.write(vault.keys.vault_id, NEW, Secret("a key")),
        sqlite=NO_PART,
    ),
    "key directory, the first write": Case(
        lambda site, vault: KeyDirectory(beside(site, "other")).write(
            vault.keys.vault_id, NEW, Secret("a key")
        ),
        makes=("other",),
        sqlite=NO_PART,
    ),
    "key directory, delete": Case(
        lambda site, vault: vault.keys.store.delete(vault.keys.vault_id, retired(site)),
        sqlite=NO_PART,
    ),
    "key directory, mark_superseded": Case(
        lambda site, vault: vault.keys.store.mark_superseded(
            vault.keys.vault_id, site.active(), NEW
        ),
        sqlite=NO_PART,
    ),
}


@pytest.fixture(scope="session")
def prepared(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Values under the second key, the first retired and exported; and an older file beside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passphrase, "_ARGON2ID", QUICK)
        site = new_site(tmp_path_factory.mktemp("signals") / "template", engine)
        with site.open() as vault:
            for number in range(3):
                vault.set("smtp", f"field-{number}", f"value {number}")
            rotation.rotate(vault)
            recovery.export_keys(vault, beside(site, "exported"), PASSPHRASE)
    shutil.copyfile(V4, beside(site, "v4.db"))
    return site


# psycopg takes any Exception there for a bad number; its frames have the password, so we show none.
UNSEEN = "(timeout_from_conninfo)"
QUICK = {"iterations": 1, "lanes": 1, "memory_kib": 8}
ALWAYS_THERE = ("exported", "v4.db")


def interrupted_once(
    template: Site, folder: Path, case: Case, number: int, states: list[Values]
) -> tuple[Moment | None, list[Position]]:
    """
    One interrupted call on a copy of its own: the moment, None where it has not so many, and all
    positions up to it.

    Raises:
        AssertionError: something is left of it. Its text begins with the moment.
    """
    site, looks = template.copy(folder), list[Position]()
    case.prepare(site)
    with site.open() as vault:
        if case.warm:
            vault.set("probe", "earlier", "to have the keys at hand")
        before, threads = descriptors(site), threads_left()
        kind = KINDS[number % 2]
        moment = error = None
        try:
            with case.within(vault):
                moment, error = interrupted_at(number, kind, lambda: case.call(site, vault), looks)
                if error:
                    raise error
        except BaseException as caught:
            error = caught
        if moment is None:
            assert error is None
            states.append(values_in(vault))
        else:
            found = []
            if error and not is_ours(error) and UNSEEN not in moment.at:
                found.append(f"{type(error).__name__}: {error}")
            try:
                found += leaks_while_held(site, vault)
            except Exception as failed:
                found.append(f"a later call fails: {failed}")
            del error
            found += leaks(site, vault, before, threads, *ALWAYS_THERE, *case.makes)
            if not found:
                if values_in(vault) not in states:
                    found.append("neither what was there before nor what was to come")
                with contextlib.suppress(KeyExists, StorageError):  # it was done already
                    case.call(site, vault)
                if values_in(vault) != states[1]:
                    found.append("done again, it is not what was to come")
            if found:
                raise AssertionError(f"{moment}: {'; '.join(found)}")
    site.remove()
    return moment, looks


def try_each(template: Site, folder: Path, case: Case, after: int, log: Path) -> None:
    """
    Each moment after number *after*, until one leaves something; a line of *log* for each.

    Of the moments at one position, as a loop has many, the first is tried.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    passphrase._ARGON2ID.update(QUICK)  # the child ends with it
    # What a handler raises in a finalizer is swallowed.
    sys.unraisablehook = lambda unraisable: None
    with template.copy(folder / "as-it-was").open() as vault:
        states = [values_in(vault)]
    interrupted_once(template, folder / "first", case, 0, states)  # also imports what it needs
    _, looks = interrupted_once(template, folder / "second", case, 0, states)
    numbers = {position: number for number, position in reversed(list(enumerate(looks, 1)))}
    gc.collect()
    gc.freeze()  # else each look for what is left goes through all that the tests have loaded
    with log.open("a") as lines:
        wanted = sorted(numbers.values())
        at_most = case.at_most // 3 if template.engine else case.at_most  # a copy takes longer
        for number in some(wanted[:: -(-len(wanted) // at_most)], 4):
            if number <= after:
                continue
            try:
                moment, _ = interrupted_once(template, folder / str(number), case, number, states)
            except AssertionError as fault:
                print(json.dumps([number, "fault", str(fault)]), file=lines, flush=True)
                return
            print(json.dumps([number, "fine", str(moment)]), file=lines, flush=True)
        print(json.dumps([len(looks), "end", ""]), file=lines, flush=True)


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.sqlite(case.sqlite) if case.sqlite else ())
        for name, case in CASES.items()
    ],
)
def test_an_exception_at_any_moment_of_a_call_leaves_nothing_behind(
    name: str, prepared: Site, tmp_path: Path, figures: Figures
) -> None:
    case, log, number, faults = CASES[name], tmp_path / "log", 0, list[str]()
    kind = ""
    while kind != "end":
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        work = lambda: try_each(prepared, folder, case, number, log)  # noqa: B023, E731
        _, status = os.waitpid(forked(work), 0)
        assert os.waitstatus_to_exitcode(status) == 0
        number, kind, said = json.loads(log.read_text().splitlines()[-1])
        if kind == "fault":
            faults.append(f"{number}: {said}")
    tried = len(log.read_text().splitlines()) - 1
    assert faults == [], "\n".join([f"{len(faults)} of {tried} moments", *faults])
    figures("moments of calls at which a signal was raised, nothing left over", tried)


# --- what the exception's frames hold

HIDDEN = "canary-value"
GIVEN = {
    ("vault.py", "set"),
    ("vault.py", "set_fields"),
    ("secret.py", "__init__"),
}  # the caller's own text, on its way into a Secret


def plaintext_in(error: BaseException | None) -> Iterator[str]:
    """
    Where a frame of the package that the exception went through, or its cause, has the plaintext in
    a variable.
    """
    while error is not None:
        for frame, line in traceback.walk_tb(error.__traceback__):
            code = frame.f_code
            entered = (
                Path(code.co_filename).name,
                code.co_name,
            ) in GIVEN and line == code.co_firstlineno  # no line of it was run
            if not code.co_filename.startswith(OWN) or entered:
                continue
            for name, held in frame.f_locals.items():
                parts = [
                    held,
                    *(
                        held.values()
                        if isinstance(held, dict)
                        else held
                        if isinstance(held, (list, tuple, set))
                        else ()
                    ),
                ]
                if any(
                    HIDDEN in (part if isinstance(part, str) else repr(part))
                    for part in parts
                    if isinstance(part, (str, bytes))
                ):
                    yield f"{name} in line {line} of {code.co_name}"
        error = error.__cause__ or error.__context__


KEY = cipher.generate_key()
PLACE = Place(None, "smtp", "password")
TOKEN = seal(cipher.Cipher(KEY), PLACE, Secret(HIDDEN))
ELSEWHERE = PLACE._replace(project_id="default-project")
FILE_OF_KEYS = json.dumps(
    {
        "vault_id": "1",
        "made_at": "2",
        "keys": [
            {"id": "3", "check_value": "4", "key": HIDDEN},
            {"id": "5", "check_value": "6", "key": "7"},
        ],
    }
)
OWNED: dict[str, Callable[[Vault], object]] = {
    "get": lambda vault: vault.get("smtp", "password"),
    "set": lambda vault: vault.set("smtp", "user", HIDDEN),
    "set_fields": lambda vault: vault.set_fields("smtp", {"user": HIDDEN, "port": HIDDEN}),
    "bundle": lambda vault: vault.bundle("unlisted"),
    "port": lambda vault: vault.bundle("smtp").port,
    "rotate": lambda vault: rotation.rotate(vault),
    "seal": lambda vault: seal(cipher.Cipher(KEY), PLACE, Secret(HIDDEN)),
    "reseal": lambda vault: resealed(cipher.Cipher(KEY), PLACE, TOKEN, cipher.Cipher(KEY)),
    "open at another place": lambda vault: opened(cipher.Cipher(KEY), ELSEWHERE, TOKEN),
    "check": lambda vault: require_storable(Secret(HIDDEN)),
    "seal under a passphrase": lambda vault: passphrase.seal_under_passphrase(
        Secret(HIDDEN), Secret(HIDDEN), "kind"
    ),
    "open under a passphrase": lambda vault: passphrase.open_under_passphrase(
        Secret(HIDDEN), vault.sealed, "kind"
    ),  # type: ignore[attr-defined]
    "keys into a file": lambda vault: recovery._as_text(vault, [vault.copy], "now"),  # type: ignore[attr-defined]
    "keys out of a file": lambda vault: recovery._from_text(Secret(FILE_OF_KEYS)),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", OWNED)
def test_an_exception_at_any_moment_finds_no_plaintext_in_a_frame_of_ours(
    name: str, site: Site, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    monkeypatch.setattr(passphrase, "_ARGON2ID", QUICK)
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    number, held = 0, set[str]()
    with site.open() as vault:
        vault.set_fields("smtp", {"host": "h", "port": HIDDEN, "user": "u", "password": HIDDEN})
        vault.set("unlisted", "token", HIDDEN)
        vault.sealed = passphrase.seal_under_passphrase(Secret(HIDDEN), Secret(HIDDEN), "kind")  # type: ignore[attr-defined]
        vault.copy = recovery._Copy(vault.keys.states.records()[0], "", Secret(HIDDEN))  # type: ignore[attr-defined]
        looks = list[Position]()
        interrupted_at(0, Interrupted, lambda: OWNED[name](vault), [])  # imports what it needs
        interrupted_at(0, Interrupted, lambda: OWNED[name](vault), looks)
        wanted = sorted(
            {position: number for number, position in reversed(list(enumerate(looks, 1)))}.values()
        )
        for number in wanted[:: -(-len(wanted) // effort(200, 30))]:
            _, error = interrupted_at(number, Interrupted, lambda: OWNED[name](vault), [])
            held.update(plaintext_in(error))
    assert held == set()
    assert number, "no moment was tried"
    figures(
        "moments of calls at which a signal was raised, no plaintext in a frame of ours",
        len(wanted),
    )
