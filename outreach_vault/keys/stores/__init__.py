"""
Where keys live: the OS keyring, a key directory, or another package's store.

One entry per key, under the vault's id and the key's, written once and never overwritten. Which
store is in use is the operator's explicit choice and is never read from the database, whose writer
could otherwise redirect the keys.

When a key is replaced, a second entry beside it names its successor. So the key store knows which
key is the present one (the one without a successor), without an entry that ever changes: who can
write the database alone cannot make an older key the active one unnoticed.
"""

from __future__ import annotations

import os
import re
from typing import Final

from ...errors import UnusablePath
from ...files import absolute
from .store import KeyStore, known_as, left_over, missing_key, prove

__all__ = ["KeyStore", "choose", "known_as", "left_over", "missing_key", "prove"]

_URL: Final = re.compile(r"([a-z][a-z0-9+.-]+):([^\x00-\x1f\x7f]*)")
_OPTIONS: Final = ("--keys", "--key-dir")
_VARIABLES: Final = ("OUTREACH_VAULT_KEYS", "OUTREACH_VAULT_KEY_DIR")
_NAMED: Final = "the key store (--keys, OUTREACH_VAULT_KEYS)"
_WRITE: Final = "write keyring: for the OS keyring, or dir:/path for a key directory"


def choose(
    key_dir: str | os.PathLike[str] | None = None,
    *,
    keys: str | None = None,
) -> KeyStore:
    """
    The key store at the URL *keys*, or the key directory *key_dir*.

    Where neither is given, OUTREACH_VAULT_KEYS and OUTREACH_VAULT_KEY_DIR say the same; without
    these it is the OS keyring, whose time limit in seconds is OUTREACH_VAULT_KEYRING_TIMEOUT, 10 by
    default. No error repeats the URL, which may hold a password; of `dir:` it may name the path.

    Args:
        keys: `keyring:`, `dir:/path`, or a URL whose scheme another package has in the entry point
            group `outreach_vault.key_stores`.
    Raises:
        UnusablePath: it names no place, or the two name two. Empty text, taken for "the keyring",
            would be a silent fallback.
        KeyStoreUnavailable: another package's key store cannot be loaded.
        ValueError: the time limit is not a positive number.
    """
    named = _OPTIONS
    if keys is None and key_dir is None:
        named = _VARIABLES
        keys, key_dir = map(os.environ.get, _VARIABLES)
    store = None if key_dir is None else _directory(key_dir)
    if store is None or keys is None:
        return store or _at(*_parts("keyring:" if keys is None else keys))
    scheme, rest = _parts(keys)
    if scheme != "dir" or known_as(_at(scheme, rest)) != known_as(store):
        raise UnusablePath(
            f"{' and '.join(named)} name two places for the keys",
            hint="give one of the two; an option is taken before any variable",
        )
    return store


def _parts(url: str) -> tuple[str, str]:
    """Its scheme and what comes after. One letter is none: it is a drive of Windows."""
    if not url:
        raise UnusablePath(f"{_NAMED}: a URL is needed, and this is empty text", hint=_WRITE)
    found = _URL.fullmatch(url)
    if found is None:
        raise UnusablePath(f"{_NAMED}: no scheme, or a control character in it", hint=_WRITE)
    return found[1], found[2]


def _at(scheme: str, rest: str) -> KeyStore:
    if scheme == "dir":
        if rest.startswith("//") and not rest.startswith("///"):
            raise UnusablePath(f"{_NAMED}: dir: has a path and no host", hint=_WRITE)
        return _directory(absolute(rest, "the key directory (--keys, OUTREACH_VAULT_KEYS)"))
    if scheme == "keyring":
        if rest:
            raise UnusablePath(f"{_NAMED}: nothing comes after keyring:", hint=_WRITE)
        from .os_keyring import OSKeyring, time_limit  # here: each store loads no other

        return OSKeyring(seconds=time_limit())
    from .others import find

    return find(scheme, f"{scheme}:{rest}", ours=("dir", "keyring"))


def _directory(path: str | os.PathLike[str]) -> KeyStore:
    from .directory import KeyDirectory

    return KeyDirectory(path)
