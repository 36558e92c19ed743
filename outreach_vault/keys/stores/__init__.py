"""
Where keys live: the OS keyring, or a key directory.

One entry per key, under the vault's id and the key's, written once and never overwritten. Which store
is in use is the operator's explicit choice and is never read from the database, whose writer could
otherwise redirect the keys.

When a key is replaced, a second entry beside it names its successor. So the key store knows which key
is the present one (the one without a successor), without an entry that ever changes: who can write the
database alone cannot make an older key the active one unnoticed.
"""

from __future__ import annotations

import os

from .store import KeyStore, missing_key, prove

__all__ = ["KeyStore", "choose", "missing_key", "prove"]


def choose(key_dir: str | os.PathLike[str] | None = None) -> KeyStore:
    """
    The key directory at *key_dir*, else at OUTREACH_VAULT_KEY_DIR; the OS keyring where neither is given.

    OUTREACH_VAULT_KEYRING_TIMEOUT is the keyring's time limit in seconds, 10 by default.

    Raises:
        UnusablePath: the path names no place; empty text, taken for "the keyring", would be a silent fallback.
        ValueError: the time limit is not a positive number.
    """
    chosen = os.environ.get("OUTREACH_VAULT_KEY_DIR") if key_dir is None else key_dir
    if chosen is None:
        from .os_keyring import OSKeyring, time_limit  # here: each store loads no other

        return OSKeyring(seconds=time_limit())
    from .directory import KeyDirectory

    return KeyDirectory(chosen)
