"""
A rotation of COUNT values, and beside it the cryptography that it cannot do without.

`python vault_rotation.py FOLDER COUNT`. "crypto" decrypts each token, encrypts what was in it under another key, and
decrypts that again, as a rotation must to prove it; the time is that of this loop alone, without reading the tokens.
The vault is made by another process, so that what this one grows is what a rotation needs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from contender import serve
from cryptography.fernet import Fernet
from vault_calls import open_by_hand

from outreach_vault import KeyDirectory, Vault
from outreach_vault.rotation import rotate

TOKENS = "SELECT rowid, encrypted_value FROM provider_credentials WHERE rowid > ? ORDER BY rowid LIMIT 500"


def main(folder: Path, count: int) -> None:
    database, keys = folder / "samsara.db", folder / "keys"
    subprocess.run([sys.executable, Path(__file__).with_name("vault_files.py"), folder, str(count)], check=True)

    def turn(_: int) -> int:
        with Vault.open(database, key_store=KeyDirectory(keys)) as vault:
            report = rotate(vault)
        assert report.complete
        return report.rotated

    def crypto(most: int) -> dict[str, float]:
        connection, old = open_by_hand(database, keys)
        new, spent, done, last = Fernet(Fernet.generate_key()), 0.0, 0, -1
        while done < most and (rows := connection.execute(TOKENS, (last,)).fetchall()):
            last, tokens = rows[-1][0], [token for _, token in rows]
            begun = time.process_time()
            for token in tokens:
                plaintext = old.decrypt(token)
                assert new.decrypt(new.encrypt(plaintext)) == plaintext
            spent += time.process_time() - begun
            done += len(tokens)
        connection.close()
        return {"seconds": spent, "rows": done}

    serve({"rotate": turn, "crypto": crypto})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
