"""
The vault on a server, and beside it the floor: the same by hand with psycopg and Fernet alone. Both
in one process.

`python server_calls.py FOLDER COUNT URL` fills an empty database with COUNT values, as
`vault_calls.py` does. The floor's statements are prepared, and its rotation proves nothing: it
reads 500 rows at a time, and writes them in one transaction. It has a table of its own for that.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
from contender import serve
from cryptography.fernet import Fernet
from vault_calls import ACCOUNT, COLUMNS, NOBODY, WANTED, Place, build, in_turn, places, plaintext

from outreach_vault import KeyDirectory, Vault
from outreach_vault.operations.rotation import BATCH, rotate
from outreach_vault.schema.shapes import new_id, now

KNOWN = "EXISTS (SELECT 1 FROM projects WHERE id = %(project_id)s)"
OWN, EVERYONES = "project_id = %(project_id)s", "project_id IS NULL"
OF_PROVIDER = "provider = %(provider)s"
OF_FIELD = f"{OF_PROVIDER} AND credential_type = %(field)s"
ONE = f"""
    {WANTED} {OWN} AND {OF_FIELD} AND {KNOWN}
    UNION ALL {WANTED} {EVERYONES} AND {OF_FIELD} AND {KNOWN} ORDER BY 2 NULLS LAST LIMIT 1"""
ALL = f"""
    {WANTED} {OWN} AND {OF_PROVIDER} AND {KNOWN}
    UNION ALL {WANTED} {EVERYONES} AND {OF_PROVIDER} AND {KNOWN}"""
ACTIVE = "SELECT id FROM vault_keys WHERE state = 'active' FOR SHARE"
UPSERT = f"""
    INSERT INTO provider_credentials ({COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (project_id, provider, credential_type) WHERE project_id IS NOT NULL DO UPDATE SET
    encrypted_value = excluded.encrypted_value, key_id = excluded.key_id,
    updated_at = excluded.updated_at"""


def rotation_by_hand(connection: psycopg.Connection, key: Fernet) -> Callable[[int], int]:
    connection.execute("CREATE TABLE by_hand (LIKE provider_credentials INCLUDING ALL)")
    connection.execute("INSERT INTO by_hand SELECT * FROM provider_credentials")
    keys = [key]

    def run(_: int) -> int:
        old, new, last, count = keys[-1], Fernet(Fernet.generate_key()), "", 0
        keys.append(new)
        page = f"SELECT id, encrypted_value FROM by_hand WHERE id > %s ORDER BY 1 LIMIT {BATCH}"
        while rows := connection.execute(page, (last,)).fetchall():
            swaps = [(new.encrypt(old.decrypt(token)).decode(), "new", id) for id, token in rows]
            with connection.transaction(), connection.cursor() as cursor:
                update = "UPDATE by_hand SET encrypted_value = %s, key_id = %s WHERE id = %s"
                cursor.executemany(update, swaps)
            last, count = rows[-1][0], count + len(rows)
        return count

    return run


def main(folder: Path, count: int, url: str) -> None:
    keys, everything = folder / "keys", list(places(count, 1))
    build(url, keys, everything)
    vault = Vault.open(url, key_store=KeyDirectory(keys))
    connection = psycopg.connect(url, autocommit=True)
    active = vault.keys.states.active_id()
    key = Fernet(vault.keys.store.read(vault.keys.vault_id, active).reveal())

    def get(place: Place) -> str:
        return vault.get(*place[1:], place[0]).reveal()

    def get_by_hand(place: Place) -> bytes:
        asked = dict(zip(("project_id", "provider", "field"), place, strict=True))
        found = connection.execute(ONE, asked, prepare=True).fetchone()
        return key.decrypt(found[2])

    def bundle(_: Place) -> str:
        return vault.bundle("smtp", ACCOUNT).host

    def bundle_by_hand(_: Place) -> list[bytes]:
        asked = {"project_id": ACCOUNT, "provider": "smtp"}
        rows = connection.execute(ALL, asked, prepare=True).fetchall()
        return [key.decrypt(row[2]) for row in rows]

    def put(place: Place) -> None:
        vault.set(*place[1:], "another invented value", place[0])

    def put_by_hand(place: Place) -> None:
        with connection.transaction():
            [active] = connection.execute(ACTIVE, prepare=True).fetchone()
            token, moment = key.encrypt(plaintext(place, "another invented value")).decode(), now()
            new = (new_id(), *place, token, active, None, moment, moment)
            connection.execute(UPSERT, new, prepare=True)

    def turn(_: int) -> int:
        return rotate(vault).rotated

    draw = random.Random(5)
    projects = [place for place in everything if place[0]]
    own = draw.sample(projects, min(1000, len(projects)))
    general = [(NOBODY, *place[1:]) for place in everything if place[0] is None][:1000]
    assert {get(place).encode() in get_by_hand(place) for place in (*own, *general)} == {True}
    serve(
        {"project": in_turn(own, get), "project by hand": in_turn(own, get_by_hand)}
        | {"fallback": in_turn(general, get), "fallback by hand": in_turn(general, get_by_hand)}
        | {"bundle": in_turn(own, bundle), "bundle by hand": in_turn(own, bundle_by_hand)}
        | {"set": in_turn(own, put), "set by hand": in_turn(own, put_by_hand)}
        | {"rotate": turn, "rotate by hand": rotation_by_hand(connection, key)}
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
