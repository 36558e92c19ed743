"""
Make vaults/1: a vault as this version leaves it, in the middle of its second rotation, with its
keys and what it must open to.

Made once and never again, since it stands for what users have:
python tests/helpers/make_vault.py [FOLDER].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from outreach_vault import KeyDirectory, Secret, Vault
from outreach_vault.operations import rotation
from outreach_vault.operations.init import init
from outreach_vault.operations.recovery import export_keys

PROJECT = "Zürich – データ/№ 1"
PASSPHRASE = "invented for a test: nine cold lanterns é"
# the desktop app's own shape: "v11" and 48 bytes
APP_VALUE = "djExAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4v"
VALUES: tuple[
    tuple[str | None, str, str, str, str | None], ...
] = (  # invented, and unlike any provider's
    (None, "smtp", "user", "x", None),
    (None, "smtp", "password", "  spaces at both ends  ", "the team's own, Zoë"),
    (None, "twilio", "auth_token", "first line\nsecond line\r\n\n", None),
    (None, "odd/name with space", "ключ", "before\0after", None),
    (PROJECT, "smtp", "user", "Grüße, 世界, مرحبا, e\u0301 is not é", None),
    (PROJECT, "smtp", "password", "\U0001f469\u200d\U0001f4bb\U0001f511 emoji", None),
    (PROJECT, "twilio", "auth_token", '{"v":1,"value":"\\"quoted\\""}', ""),
    (PROJECT, "long", "text", "sixteen letters." * 4096, None),  # 64 KiB
    ("default-project", "smtp", "user", "\x1b[31m\u202e\ufeff", None),
)


class Interrupted(Exception):
    pass


def interrupt(seen: int, total: int) -> NoReturn:
    raise Interrupted


def fill(vault: Vault) -> None:
    vault.database.change(
        "INSERT INTO projects (id, name, created_at, updated_at) VALUES (?, 'odd', '', '')",
        (PROJECT,),
    )
    for project, provider, field, value, label in VALUES:
        vault.set(provider, field, value, project, label=label)
    vault.set("of the app", "token", "replaced below")
    # as the app overwrites a value, and leaves the id of our key behind
    vault.database.change(
        "UPDATE provider_credentials SET encrypted_value = ? WHERE provider = 'of the app'",
        (APP_VALUE,),
    )


def make(folder: Path) -> None:
    folder.mkdir(parents=True)
    path, store = folder / "vault.db", KeyDirectory(folder / "keys")
    init(path, key_store=store)
    with Vault.open(path, key_store=store) as vault:
        fill(vault)
        rotation.rotate(vault, destroy_old=True)
        try:
            with mock.patch.object(rotation, "BATCH", 5):
                rotation.rotate(vault, progress=interrupt)
        except Interrupted:
            pass
        export_keys(vault, folder / "keys.export", Secret(PASSPHRASE))
        rows = vault.database.fetch(
            "SELECT project_id, provider, credential_type, label, key_id FROM provider_credentials"
            " WHERE provider <> 'of the app' ORDER BY rowid"
        )
        values = {
            (project, provider, field): value for project, provider, field, value, _ in VALUES
        }
        expected: dict[str, Any] = {
            "passphrase": PASSPHRASE,
            "values": [
                {
                    "project_id": row[0],
                    "provider": row[1],
                    "credential_type": row[2],
                    "label": row[3],
                    "key": row[4],
                    "value": values[row[:3]],
                }
                for row in rows
            ],
            "foreign": [{"project_id": None, "provider": "of the app", "credential_type": "token"}],
            "keys": [
                {
                    "id": record.id,
                    "state": record.state,
                    "successor": store.successor(vault.keys.vault_id, record.id),
                }
                for record in vault.keys.states.records()
            ],
        }
        vault.database.fetch("VACUUM")
        assert vault.database.truncate_log()
    path.with_name("vault.db.vault-lock").unlink()
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", "ascii")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1] / "vaults" / "1"
    if target.exists():
        sys.exit(f"{target}: it is there already, and a frozen vault is never made again")
    make(target)
