"""
A rotation of COUNT values, and in the midst of it the cryptography that it cannot do without.

`python vault_rotation.py FOLDER COUNT`. The cryptography decrypts a token, encrypts what was in it
under another key, and decrypts that again, as a rotation must to prove it; the time is that of this
loop alone. "rotate beside crypto" stops after every fifth batch and runs it with as many tokens as
a batch has: a machine that slows down does so for both. The vault is made by another process, so
that what this one grows is what a rotation needs.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

from contender import serve
from cryptography.fernet import Fernet
from vault_calls import open_by_hand

from outreach_vault import KeyDirectory, Vault
from outreach_vault.operations.rotation import BATCH, Progress, rotate

EVERY = 5


def main(folder: Path, count: int) -> None:
    database, keys = folder / "samsara.db", folder / "keys"
    subprocess.run(
        [sys.executable, Path(__file__).with_name("vault_files.py"), folder, str(count)], check=True
    )

    def turn(_: int, progress: Progress | None = None) -> int:
        with Vault.open(database, key_store=KeyDirectory(keys)) as vault:
            report = rotate(vault, progress=progress)
        assert report.complete
        return report.rotated

    def beside_crypto(_: int) -> dict[str, float]:
        """The CPU seconds of each for one value."""
        connection, old = open_by_hand(database, keys)
        tokens = [
            token
            for (token,) in connection.execute(
                "SELECT encrypted_value FROM provider_credentials LIMIT ?", (BATCH,)
            )
        ]
        connection.close()
        new, batch, crypto = Fernet(Fernet.generate_key()), itertools.count(), []

        def after_a_batch(_seen: int, _total: int) -> None:
            if next(batch) % EVERY == 0:
                begun = time.process_time()
                for token in tokens:
                    plaintext = old.decrypt(token)
                    assert new.decrypt(new.encrypt(plaintext)) == plaintext
                crypto.append(time.process_time() - begun)

        begun = time.process_time()
        rotated = turn(1, after_a_batch)
        spent = time.process_time() - begun - sum(crypto)
        return {"rotate": spent / rotated, "crypto": sum(crypto) / len(crypto) / len(tokens)}

    serve({"rotate": turn, "rotate beside crypto": beside_crypto})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
