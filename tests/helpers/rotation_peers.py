"""
The other processes of the tests of rotation and backups: python rotation_peers.py ROLE DATABASE
KEYS [LOG PLACES].

A change is a function of its number alone, so that the test can tell from a list of acknowledged
numbers what must be stored.
"""

from __future__ import annotations

import itertools
import os
import random
import select
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from outreach_vault import KeyDirectory, Secret, Vault
from outreach_vault.operations import rotation
from outreach_vault.schema.shapes import Place, new_id, now
from outreach_vault.values.sealing import seal

Values = dict[tuple[str | None, str, str], str]


def place(number: int) -> Place:
    return Place("default-project" if number % 3 == 0 else None, "smtp", f"field-{number}")


def fill(vault: Vault, count: int, *, size: int = 0) -> Values:
    """
    Store *count* values in one transaction, each with *size* more characters than the last mod 7.
    """
    key_id, values, moment = vault.keys.states.active_id(), {}, now()
    cipher = vault.keys.cipher(key_id)

    def store() -> None:
        for number in range(count):
            values[place(number)] = f"value {number} " + "x" * (size * (number % 7))
            vault.database.change(
                "INSERT INTO provider_credentials"
                " (id, project_id, provider, credential_type, encrypted_value, key_id, label, "
                "created_at, updated_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    new_id(),
                    *place(number),
                    seal(cipher, place(number), Secret(values[place(number)])),
                    key_id,
                    "a label",
                    moment,
                    moment,
                ),
            )

    vault.database.write(store)
    return values


def change(number: int, places: int) -> tuple[Place, str | None]:
    """
    What change *number* does: a value to store at a place, or None to remove the one there. A fifth
    of the places begins empty.
    """
    choice = random.Random(number)
    return place(
        choice.randrange(places + places // 4)
    ), None if choice.random() < 0.2 else f"change {number}"


def replay(values: Values, numbers: Iterable[int], places: int) -> Values:
    """What must be stored after these changes."""
    after = dict(values)
    for number in numbers:
        where, value = change(number, places)
        after.pop(where, None)
        if value is not None:
            after[where] = value
    return after


def write(vault: Vault, log: str, places: str) -> None:
    """
    Make changes until the input ends; the number of each is on disk before the next begins.

    A line of input makes the writer stand still between two changes until the next line. SIGSTOP
    would also stop it inside SQLite, with a lock that every reader then waits for in vain
    (SQLITE_PROTOCOL, measured).
    """
    with open(log, "a", encoding="ascii") as acknowledged:
        for number in itertools.count(1):
            if select.select([sys.stdin], [], [], 0)[0]:
                # A line is one byte. Python would read the next line with it, and select not see
                # that.
                if not os.read(0, 1):
                    return
                print("still", flush=True)
                os.read(0, 1)
            (project_id, provider, kind), value = change(number, int(places))
            if value is None:
                vault.delete(provider, kind, project_id)
            else:
                vault.set(provider, kind, value, project_id)
            acknowledged.write(f"{number}\n")
            acknowledged.flush()
            os.fsync(acknowledged.fileno())


def hold(vault: Vault) -> None:
    """Rotate, and stay in the middle of it until a line comes."""

    def progress(seen: int, total: int) -> None:
        print("rotating", flush=True)
        sys.stdin.readline()

    rotation.rotate(vault, progress=progress)


def measure(vault: Vault) -> None:
    """How many KiB a rotation adds to the most memory that this process had."""
    vault.get(*place(1)[1:])
    before = _most_memory()
    rotation.rotate(vault)
    print(_most_memory() - before)


def _most_memory() -> int:
    """
    Since this program began; getrusage's number begins with that of the process that started it.
    """
    return int(
        next(
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM:")
        ).split()[1]
    )


ROLES: dict[str, Callable[..., None]] = {"write": write, "hold": hold, "measure": measure}

if __name__ == "__main__":
    _, role, database, keys, *more = sys.argv
    with Vault.open(database, key_store=KeyDirectory(keys)) as opened:
        ROLES[role](opened, *more)
