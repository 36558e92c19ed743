"""
A fleet at work on one database: python fleet_peers.py DATABASE KEYS NOTES ROTATORS WORKERS.

Each worker owns some things, stores one version of each after the other, and reads everybody's.
The notes, which all share, have two numbers for each thing: the version that its owner tries to
store, and the last one that was acknowledged. What is read is one of these, or one in between.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from outreach_vault import KeyDirectory, Vault, VaultError
from outreach_vault.errors import (
    DatabaseBusy,
    DatabaseUnreachable,
    OperationRunning,
    OutcomeUnknown,
)
from outreach_vault.operations import rotation
from outreach_vault.schema.shapes import now

EACH = 12  # things of a worker; every third is an account
# What a call may say while a server is away. Anything else ends the process.
LOST = (DatabaseUnreachable, OutcomeUnknown)


class Notes:
    """Numbers that all processes have in one file."""

    def __init__(self, file: Path, things: int) -> None:
        size = 8 * (1 + 2 * things)
        file.touch()
        with open(file, "r+b") as opened:
            opened.truncate(size)
            self._numbers = memoryview(mmap.mmap(opened.fileno(), size)).cast("q")

    def stop(self) -> None:
        self._numbers[0] = 1

    @property
    def stopped(self) -> bool:
        return self._numbers[0] == 1

    @property
    def acknowledged(self) -> int:
        """How many changes of all things."""
        return sum(self._numbers[2::2])

    def tried(self, thing: int) -> int:
        return self._numbers[1 + 2 * thing]

    def stored(self, thing: int) -> int:
        return self._numbers[2 + 2 * thing]

    def try_next(self, thing: int) -> int:
        self._numbers[1 + 2 * thing] += 1
        return self.tried(thing)

    def acknowledge(self, thing: int) -> None:
        self._numbers[2 + 2 * thing] = self.tried(thing)


class Thing(NamedTuple):
    """
    One value, or one account of three.

    A project's value always hides a global one of the same name. Every account is a project's.
    """

    number: int

    @property
    def project_id(self) -> str | None:
        return project_of(self.number) if self.number % 3 else None

    def store(self, vault: Vault, version: int) -> None:
        # Some are longer than a page.
        text = f"{self.number} {version} {'x' * (version % 5 // 4 * 4000)}"
        if self.number % 3 == 2:
            fields = {"host": text, "user": text, "password": text}
            vault.set_fields("smtp", fields, self.project_id)
        else:
            vault.set("provider", f"field-{self.number // 3}", text, self.project_id)

    def read(self, vault: Vault) -> int:
        """The version that is stored. A global value is asked for by a project that has none."""
        if self.number % 3 == 2:
            account = vault.bundle("smtp", self.project_id)
            found = {account.host, account.user, account.password.reveal()}
        else:
            project_id = self.project_id or project_of((self.number + 3) % EACH)
            found = {vault.get("provider", f"field-{self.number // 3}", project_id).reveal()}
        (text,) = found  # all of an account's are of one version
        number, version, _ = text.split(" ")
        assert int(number) == self.number, f"{self} has the value of {number}"
        return int(version)


def project_of(number: int) -> str:
    return f"project-{number // 3}"


def fill(vault: Vault, notes: Notes, workers: int) -> None:
    insert = "INSERT INTO projects (id, name, created_at, updated_at) VALUES (?, ?, ?, ?)"
    for number in range(workers * EACH):
        if number % 3 == 0:
            vault.database.change(insert, (project_of(number), "a project", now(), now()))
        Thing(number).store(vault, notes.try_next(number))
        notes.acknowledge(number)


def work(notes: Notes, name: int, workers: int, vault: Vault, told: dict[str, Any]) -> None:
    draw, own = random.Random(name), range(name * EACH, (name + 1) * EACH)
    everything = range(workers * EACH)
    told |= {"reads": 0, "writes": 0, "maybe": 0, "failed": [], "slowest": 0.0}
    while not notes.stopped:
        begun = time.monotonic()
        if draw.random() < 0.3:
            number = draw.choice(own)
            try:
                Thing(number).store(vault, notes.try_next(number))
                notes.acknowledge(number)
                told["writes"] += 1
            except LOST:
                told["maybe"] += 1
            continue
        number = draw.choice(everything)
        stored = notes.stored(number)
        try:
            version = Thing(number).read(vault)
        except LOST as error:
            told["failed"].append((begun, time.monotonic(), str(error)))
            time.sleep(0.01)
            continue
        assert stored <= version <= notes.tried(number), (number, stored, version)
        told["reads"] += 1
        told["slowest"] = max(told["slowest"], time.monotonic() - begun)


def rotate(vault: Vault, notes: Notes, told: dict[str, Any]) -> None:
    told |= {"rotations": 0, "finished": 0, "refused": 0, "broken": 0}
    while not notes.stopped:
        try:
            report = rotation.rotate(vault)
            assert report.complete, report
            told["rotations"] += 1
            told["finished"] += report.resumed
        except OperationRunning:
            told["refused"] += 1
            time.sleep(0.05)
        except (*LOST, DatabaseBusy):
            told["broken"] += 1
            time.sleep(0.05)


def forked(name: str, run: Callable[[dict[str, Any]], None]) -> int:
    """A child that does this, and says at its end what it has seen."""
    if child := os.fork():
        return child
    status, told = 1, dict[str, Any](name=name)
    try:
        run(told)
        status = 0
    except BaseException as error:
        hint = error.hint if isinstance(error, VaultError) else None
        told["fault"] = f"{type(error).__name__}: {error} {hint} {error.__cause__!r}"
    finally:
        os.write(1, json.dumps(told).encode() + b"\n")
        os._exit(status)


def main(database: str, keys: str, file: str, rotators: str, workers: str) -> None:
    notes = Notes(Path(file), int(workers) * EACH)

    def opened() -> Vault:
        vault = Vault.open(database, key_store=KeyDirectory(keys))
        os.write(1, b'"ready"\n')
        return vault

    def worker(name: int) -> int:
        run = partial(work, notes, name, int(workers))
        return forked(f"worker {name}", lambda told: run(opened(), told))

    def rotator(name: int) -> int:
        return forked(f"rotator {name}", lambda told: rotate(opened(), notes, told))

    children = [*map(worker, range(int(workers))), *map(rotator, range(int(rotators)))]
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
