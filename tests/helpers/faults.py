"""
Faults for tests: a vault with its keys in a folder of its own, and children that end dead at a
numbered step.

A step is whatever changes something that outlives the process: a statement or a commit, a
call of the key store, a change of a file or a folder. A stop at a step comes before its act, so it
is also the stop after the act before. What was only read is no step: a stop there is the same as
one at the next change.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from helpers.effort import effort
from helpers.postgres import psycopg
from helpers.site import Figures, Site
from outreach_vault import KeyDirectory
from outreach_vault.database.sqlite.connections import PRAGMAS, _Connection
from outreach_vault.keys.stores import KeyStore

STOPPED = 9
READS = ("SELECT", "PRAGMA foreign_key_check")
# Settings of one connection, which end with it.
SETTINGS = (
    "PRAGMA query_only = ",
    "PRAGMA busy_timeout = ",
    *(f"PRAGMA {each[:-1]}" for each in PRAGMAS),
)
SERVER_SETTINGS = ("SET ", "RESET ", "SHOW ", "LISTEN ")
FILE_CHANGES = frozenset(
    {"os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}
)
CREATES_OR_WRITES = os.O_CREAT | os.O_WRONLY | os.O_RDWR


def forked(action: Callable[[], object]) -> int:
    """The pid of a child that does *action*, and ends with 0 if it came to its end."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class NumberedStore(KeyDirectory):
    """A key directory; each call about a key is two events, one before and one after it."""

    event: Callable[[], None]


def _two_events(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(store: NumberedStore, *args: Any, **options: Any) -> Any:
        store.event()
        found = method(store, *args, **options)
        store.event()
        return found

    return call


def _about_a_key(name: str, method: object) -> bool:
    if name.startswith("_") or not inspect.isfunction(method):
        return False
    return list(inspect.signature(method).parameters)[1:3] == ["vault_id", "key_id"]


# By their arguments and not by a list of names: a call that is added to the key directory is
# numbered at once.
STORE_CALLS = tuple(
    sorted(name for name, method in vars(KeyDirectory).items() if _about_a_key(name, method))
)
assert {"read", "write", "delete"} <= set(STORE_CALLS)
for _name in STORE_CALLS:
    setattr(NumberedStore, _name, _two_events(getattr(KeyDirectory, _name)))


def file_changes(folder: Path, event: Callable[[], None]) -> Callable[[str, tuple[Any, ...]], None]:
    """
    An audit hook: *event* before each change of a file or folder in *folder*, made by Python.

    SQLite opens and writes its files itself and is not seen here; its statements are numbered
    instead. A hook cannot be taken out of a process again, so it belongs into a child.
    """
    inside = (str(folder), str(folder) + os.sep)

    def within(path: object) -> bool:
        if not isinstance(
            path, (str, bytes, os.PathLike)
        ):  # a descriptor: what it is of was opened before
            return False
        name = os.path.abspath(os.fsdecode(path))
        return (name == inside[0] or name.startswith(inside[1])) and not name.endswith(".pyc")

    def hook(name: str, args: tuple[Any, ...]) -> None:
        if name == "open":
            path, mode, flags = args
            if (flags & CREATES_OR_WRITES or set(mode or "") & set("wax+")) and within(path):
                event()
        elif name in FILE_CHANGES and any(map(within, args[:2])):
            event()

    return hook


def file_of(connection: sqlite3.Connection) -> str:
    """The path of a connection's database; empty for one in memory."""
    ((_, _, path), *_) = sqlite3.Connection.execute(connection, "PRAGMA database_list")
    return str(path)


def number_a_servers(event: Callable[[], None]) -> None:
    """*event* before each change that psycopg sends, and on both sides of a commit."""
    if psycopg is None:
        return

    def changes(query: Any) -> bool:
        return not str(query).lstrip().upper().startswith(READS + SERVER_SETTINGS)

    def numbered(kind: type, name: str, *, commits: bool = False) -> None:
        real = getattr(kind, name)

        def call(on: Any, *args: Any, **options: Any) -> Any:
            if name == "executemany":
                args = (args[0], _each_after(event, args[1]))
            elif commits or changes(args[0]):
                event()
            done = real(on, *args, **options)
            if commits or str(args[0]).upper() == "COMMIT":
                event()
            return done

        setattr(kind, name, call)

    numbered(psycopg.Cursor, "execute")
    numbered(psycopg.Cursor, "executemany")
    numbered(psycopg.Copy, "write_row")
    numbered(psycopg.Connection, "commit", commits=True)
    numbered(psycopg.Transaction, "__exit__", commits=True)


def _each_after(event: Callable[[], None], rows: Iterable[Any]) -> Iterator[Any]:
    for row in rows:
        event()
        yield row


def stopped_at(step: int, action: Callable[[KeyStore], object], keys: Path) -> bool:
    """
    Do *action* in a child that ends dead at its event number *step*; False where it has not so
    many.
    """
    events = itertools.count(1)

    def event() -> None:
        if next(events) == step:
            os._exit(STOPPED)

    def changes_nothing(connection: _Connection, sql: str) -> bool:
        """A stop at the next event is the same."""
        return sql.lstrip().startswith(READS + SETTINGS) or not file_of(connection)

    def execute(connection: _Connection, sql: str, *params: Any) -> sqlite3.Cursor:
        if changes_nothing(connection, sql):
            return sqlite3.Connection.execute(connection, sql, *params)
        event()
        done = sqlite3.Connection.execute(connection, sql, *params)
        if sql == "COMMIT":
            event()
        return done

    def executemany(connection: _Connection, sql: str, rows: Iterable[Any]) -> sqlite3.Cursor:
        numbered = rows if changes_nothing(connection, sql) else _each_after(event, rows)
        return sqlite3.Connection.executemany(connection, sql, numbered)

    def child() -> None:
        # The child ends with them.
        number_a_servers(event)
        _Connection.execute = execute  # type: ignore[method-assign,assignment]
        _Connection.executemany = executemany  # type: ignore[method-assign,assignment]
        sys.addaudithook(file_changes(keys.parent, event))
        store = NumberedStore(keys)
        store.event = event
        action(store)

    _, status = os.waitpid(forked(child), 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, STOPPED)
    return code == STOPPED


def each_stop(
    template: Site,
    action: Callable[[Site, KeyStore], object],
    figures: Figures | None = None,
    name: str = "stops at a numbered step",
    every: int = 1,
) -> Iterator[Site]:
    """
    A copy of *template* for each numbered step of *action*, in which it was stopped there.

    For one in *every* steps in a run that is not thorough. Their number goes to *figures* under
    *name* when the last has been looked at, so none is counted that failed.
    """
    for tried, step in enumerate(itertools.count(1, effort(1, every))):
        site = template.copy(template.folder.with_name(f"{template.folder.name}-step-{step}"))
        if not stopped_at(step, lambda store, site=site: action(site, store), site.keys):  # type: ignore[misc]
            assert step > 8
            if figures:
                figures(name, tried)
            return
        yield site
        site.remove()
