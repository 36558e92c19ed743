"""
Other processes that ask for an account's access token: python token_peers.py DATABASE KEYS
HTTP_SECONDS LEASE_SECONDS.

It begins with the first line of its input, and asks until that ends. Then it says how often it
asked, what failed, and which tokens it got, in the order in which it first got them.
"""

from __future__ import annotations

import hashlib
import json
import select
import sys
import time

from outreach_vault import KeyDirectory, Vault, VaultError

PAUSE = 0.01


def main(database: str, keys: str, http_seconds: str, lease_seconds: str) -> None:
    calls, failures, tokens = 0, list[str](), dict[str, None]()
    with Vault.open(database, key_store=KeyDirectory(keys)) as vault:
        print("ready", flush=True)
        sys.stdin.readline()
        while not select.select([sys.stdin], [], [], PAUSE)[0]:
            calls += 1
            try:
                token = vault.access_token(
                    "smtp",
                    "default-project",
                    http_seconds=float(http_seconds),
                    lease_seconds=float(lease_seconds),
                )
            except VaultError as error:
                failures.append(f"{type(error).__name__} at {time.time():.2f}: {error}")
            else:
                tokens[hashlib.sha256(token.reveal().encode()).hexdigest()] = None
    print(json.dumps({"calls": calls, "failures": failures, "tokens": list(tokens)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
