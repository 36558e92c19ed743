"""
Plain Peewee in the vault's own database: a model's `get` and `save`, and Fernet for the value.

`python peewee_models.py FOLDER COUNT`. Re-encrypting is one transaction in which each object is
loaded and saved.
"""

from __future__ import annotations

import sys
from pathlib import Path

from contender import serve
from cryptography.fernet import Fernet
from peewee import SqliteDatabase
from vault_calls import Place, build, in_turn, open_by_hand, places

from outreach_vault.models import ProviderCredential


def main(folder: Path, count: int) -> None:
    database, keys = folder / "samsara.db", folder / "keys"
    everything = list(places(count, 1))
    build(database, keys, everything)
    connection, key = open_by_hand(database, keys)
    connection.close()
    peewee = SqliteDatabase(
        database, pragmas={"foreign_keys": 1, "synchronous": "full", "secure_delete": 1}
    )
    peewee.bind([ProviderCredential])

    def read(place: Place) -> bytes:
        project_id, provider, credential_type = place
        found = ProviderCredential.get(
            ProviderCredential.project == project_id,
            ProviderCredential.provider == provider,
            ProviderCredential.credential_type == credential_type,
        )
        return key.decrypt(found.encrypted_value)

    def reencrypt(_: int) -> int:
        nonlocal key
        old, key = key, Fernet(Fernet.generate_key())
        done = 0
        with peewee.atomic():
            for row in ProviderCredential.select():
                row.encrypted_value = key.encrypt(old.decrypt(row.encrypted_value)).decode()
                row.save()
                done += 1
        return done

    assert b"invented" in read(everything[-1])
    serve(
        {"read": in_turn([place for place in everything if place[0]], read), "reencrypt": reencrypt}
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
