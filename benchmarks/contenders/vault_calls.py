"""
The vault, and beside it the floor: the same done by hand with sqlite3 and Fernet alone. Both in one
process.

`python vault_calls.py FOLDER COUNT SHARE` works in a database of COUNT values, of which SHARE in a
hundred are global and the others belong to a hundred projects. A read asks for one of a thousand
places, each in turn, drawn by chance from all.
"""

from __future__ import annotations

import json
import random
import sqlite3
import sys
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

from contender import serve
from cryptography.fernet import Fernet

from outreach_vault import KeyDirectory, Vault
from outreach_vault.operations.init import init
from outreach_vault.schema.shapes import new_id, now

Place = tuple[str | None, str, str]
FIELDS = ("host", "port", "user", "password", "from_email")
VALUES = {"host": "mail.example.com", "port": "587"}
PROJECTS = [f"project-{number:03d}" for number in range(100)]
ACCOUNT, NOBODY = "project-with-an-account", "project-without-rows"
COLUMNS = (
    "id, project_id, provider, credential_type, encrypted_value, key_id, label, created_at, "
    "updated_at"
)
INSERT = f"INSERT INTO provider_credentials ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
# What a look-up asks, in one statement: the project's row, else the global one, and nothing for a
# project that does not exist.
WANTED = (
    "SELECT id, project_id, encrypted_value, key_id, label, updated_at FROM provider_credentials "
    "WHERE"
)
KNOWN = "EXISTS (SELECT 1 FROM projects WHERE id = ?1)"
OF_FIELD = "provider = ?2 AND credential_type = ?3"
ONE = f"""
    {WANTED} project_id = ?1 AND {OF_FIELD} AND {KNOWN}
    UNION ALL {WANTED} project_id IS NULL AND {OF_FIELD} AND {KNOWN} LIMIT 1"""
ALL = f"""
    {WANTED} project_id = ?1 AND provider = ?2 AND {KNOWN}
    UNION ALL {WANTED} project_id IS NULL AND provider = ?2 AND {KNOWN}"""
UPSERT = f"""{INSERT}
    ON CONFLICT (project_id, provider, credential_type) WHERE project_id IS NOT NULL DO UPDATE SET
    encrypted_value = excluded.encrypted_value, key_id = excluded.key_id,
    updated_at = excluded.updated_at"""


def places(count: int, share: int) -> Iterator[Place]:
    for number in range(count):
        project_id = None if number % 100 < share else PROJECTS[number % 100]
        yield (
            project_id,
            f"provider-{number // 500}",
            f"field-{number // 100 % 5}-{number % 100 if project_id is None else ''}",
        )


def plaintext(place: Place, value: str) -> bytes:
    names = dict(zip(("project_id", "provider", "credential_type"), place, strict=True))
    return json.dumps(
        {"v": 1, **names, "value": value}, ensure_ascii=False, separators=(",", ":")
    ).encode()


def build(database: Path, keys: Path, everything: list[Place]) -> None:
    """
    A vault with a value at each place; beside them one account, and what one project finds in the
    global scope alone.
    """
    init(database, key_store=KeyDirectory(keys))
    with Vault.open(database, key_store=KeyDirectory(keys)) as vault:
        key_id, moment = vault.keys.states.active_id(), now()
        key = Fernet(vault.keys.store.read(vault.keys.vault_id, key_id).reveal())

        def stored() -> Iterator[tuple[object, ...]]:
            for number, place in enumerate(everything):
                token = key.encrypt(plaintext(place, f"invented value {number:017d}")).decode()
                yield new_id(), *place, token, key_id, None, moment, moment

        def fill() -> None:
            for project_id in (*PROJECTS, ACCOUNT, NOBODY):
                row = (project_id, project_id, moment, moment)
                vault.database.change(
                    "INSERT INTO projects (id, name, created_at, updated_at) VALUES (?, ?, ?, ?)",
                    row,
                )
            vault.database.change_each(INSERT, stored())

        vault.database.write(fill)
        for name in FIELDS:
            vault.set("smtp", name, VALUES.get(name, "office@example.com"), ACCOUNT)
        vault.database.clean(scrub=False)


def open_by_hand(database: Path, keys: Path) -> tuple[sqlite3.Connection, Fernet]:
    connection = sqlite3.connect(database, isolation_level=None)
    for pragma in ("foreign_keys = 1", "synchronous = FULL", "secure_delete = 1"):
        connection.execute(f"PRAGMA {pragma}")
    [key_id] = connection.execute("SELECT id FROM vault_keys WHERE state = 'active'").fetchone()
    [file] = keys.glob(f"*.{key_id}.key")
    return connection, Fernet(file.read_text())


def in_turn(asked: list[Place], ask: Callable[[Place], object]) -> Callable[[int], None]:
    turns = cycle(asked)

    def run(count: int) -> None:
        for place in islice(turns, count):
            ask(place)

    return run


def main(folder: Path, count: int, share: int) -> None:
    database, keys = folder / "samsara.db", folder / "keys"
    everything = list(places(count, share))
    build(database, keys, everything)
    vault = Vault.open(database, key_store=KeyDirectory(keys))
    connection, key = open_by_hand(database, keys)

    def get(place: Place) -> str:
        project_id, provider, credential_type = place
        return vault.get(provider, credential_type, project_id).reveal()

    def get_by_hand(place: Place) -> bytes:
        return key.decrypt(connection.execute(ONE, place).fetchone()[2])

    def bundle(_: Place) -> str:
        return vault.bundle("smtp", ACCOUNT).host

    def bundle_by_hand(_: Place) -> list[bytes]:
        return [
            key.decrypt(row[2]) for row in connection.execute(ALL, (ACCOUNT, "smtp")).fetchall()
        ]

    def put(place: Place) -> None:
        project_id, provider, credential_type = place
        vault.set(provider, credential_type, "another invented value", project_id)

    def put_by_hand(place: Place) -> None:
        connection.execute("BEGIN IMMEDIATE")
        [active] = connection.execute("SELECT id FROM vault_keys WHERE state = 'active'").fetchone()
        token, moment = key.encrypt(plaintext(place, "another invented value")).decode(), now()
        connection.execute(UPSERT, (new_id(), *place, token, active, None, moment, moment))
        connection.execute("COMMIT")

    draw = random.Random(5)
    own = draw.sample(
        projects := [place for place in everything if place[0]], min(1000, len(projects))
    )
    everyones = [(NOBODY, *place[1:]) for place in everything if place[0] is None]
    general = draw.sample(everyones, min(1000, len(everyones)))
    assert {get(place).encode() in get_by_hand(place) for place in (*own, *general)} == {True}
    serve(
        {"project": in_turn(own, get), "project by hand": in_turn(own, get_by_hand)}
        | {"fallback": in_turn(general, get), "fallback by hand": in_turn(general, get_by_hand)}
        | {"bundle": in_turn(own, bundle), "bundle by hand": in_turn(own, bundle_by_hand)}
        | {"set": in_turn(own, put), "set by hand": in_turn(own, put_by_hand)}
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
