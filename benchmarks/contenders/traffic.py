"""
An adapter at work: a call every so often, each timed. `python traffic.py FOLDER get|set`.

The database is that of `vault_rotation.py`, which may be rotating meanwhile. A run of COUNT
milliseconds gives back each call's milliseconds, and how many calls failed.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from contender import serve
from vault_calls import places

from outreach_vault import KeyDirectory, Vault, VaultError

PAUSES = {"get": 0.001, "set": 0.01}


def main(folder: Path, count: int, call: str) -> None:
    vault = Vault.open(folder / "samsara.db", key_store=KeyDirectory(folder / "keys"))
    own = random.Random(7).choices([place for place in places(count, 1) if place[0]], k=500)

    def work(milliseconds: int) -> dict[str, object]:
        took: list[float] = []
        failed = 0
        end = time.perf_counter() + milliseconds / 1000
        while (begun := time.perf_counter()) < end:
            project_id, provider, credential_type = own[len(took) % len(own)]
            try:
                if call == "get":
                    vault.get(provider, credential_type, project_id).reveal()
                else:
                    vault.set(provider, credential_type, "another invented value", project_id)
            except VaultError:
                failed += 1
            took.append((time.perf_counter() - begun) * 1000)
            time.sleep(PAUSES[call])
        return {"milliseconds": took, "failed": failed}

    serve({"work": work})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
