"""
One adapter of many: `python server_reads.py FOLDER COUNT URL KEYS`, in a database that
`server_calls.py` filled. A run of COUNT milliseconds gives back how many values it read.
"""

from __future__ import annotations

import random
import sys
import time

from contender import serve
from vault_calls import places

from outreach_vault import KeyDirectory, Vault


def main(count: int, url: str, keys: str) -> None:
    vault = Vault.open(url, key_store=KeyDirectory(keys))
    own = random.Random().choices([place for place in places(count, 1) if place[0]], k=500)

    def read(milliseconds: int) -> int:
        done, end = 0, time.perf_counter() + milliseconds / 1000
        while time.perf_counter() < end:
            project_id, provider, credential_type = own[done % len(own)]
            vault.get(provider, credential_type, project_id).reveal()
            done += 1
        return done

    serve({"read": read})


if __name__ == "__main__":
    main(int(sys.argv[2]), *sys.argv[3:])
