"""
Where keys live: the OS keyring, a key directory, OpenBao, AWS Secrets Manager, or another package's
store.

Each key is one entry, named by the vault's id and its own, and is never overwritten. The operator
chooses the store. The database has no say in it: whoever writes there could redirect the keys.

When a key is replaced, a second entry beside it names its successor. So the store knows the current
key (the one without a successor), though no entry ever changes. Somebody who can write only to the
database cannot make an older key active unnoticed.
"""

from __future__ import annotations

import os
import re
from typing import Final

from ...errors import UnusablePath
from ...files import absolute
from .store import SCHEMES, KeyStore, known_as, left_over, missing_key, prove, time_limit

__all__ = ["FORMS", "KeyStore", "choose", "faults", "known_as", "left_over", "missing_key", "prove"]

_URL: Final = re.compile(r"([a-z][a-z0-9+.-]+):([^\x00-\x1f\x7f]*)")
_OPTIONS: Final = ("--keys", "--key-dir")
_VARIABLES: Final = ("OUTREACH_VAULT_KEYS", "OUTREACH_VAULT_KEY_DIR")
_NAMED: Final = "the key store (--keys, OUTREACH_VAULT_KEYS)"
_OURS: Final = tuple(SCHEMES)
FORMS: Final = ", ".join(filter(None, SCHEMES.values()))  # for help and messages
_WRITE: Final = f"write one of: {FORMS}"


def choose(
    key_dir: str | os.PathLike[str] | None = None,
    *,
    keys: str | None = None,
) -> KeyStore:
    """
    The key store at the URL *keys*, or the key directory *key_dir*.

    Without either, OUTREACH_VAULT_KEYS or OUTREACH_VAULT_KEY_DIR names it; the default is the OS
    keyring. OUTREACH_VAULT_KEYRING_TIMEOUT is the time limit in seconds of every store but a key
    directory (default: 10). No error repeats a URL that cannot be used, which may hold a password;
    it may show the path after `dir:`.

    Args:
        keys: `keyring:`, `dir:/path`, `openbao://host/mount/path`, `aws-secrets://region/prefix`,
            or a URL whose scheme another package registers in the entry point group
            `outreach_vault.key_stores`.
    Raises:
        UnusablePath: it names no place, or the two name different places. Empty text is refused:
            to take it for the keyring would be a silent fallback.
        KeyStoreUnavailable: another package's key store cannot be loaded.
        LibraryMissing: the store needs an extra that is not installed.
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
            f"{' and '.join(named)} name different places for the keys",
            hint="give only one of them; an option comes before any variable",
        )
    return store


def _parts(url: str) -> tuple[str, str]:
    """The scheme and what follows it. A single letter is a Windows drive, not a scheme."""
    if not url:
        raise UnusablePath(f"{_NAMED}: the URL is empty", hint=_WRITE)
    found = _URL.fullmatch(url)
    if found is None:
        raise UnusablePath(
            f"{_NAMED}: the URL has no scheme, or has a control character", hint=_WRITE
        )
    return found[1], found[2]


def _at(scheme: str, rest: str) -> KeyStore:
    if scheme == "dir":
        if rest.startswith("//") and not rest.startswith("///"):
            raise UnusablePath(f"{_NAMED}: dir: takes a path, not a host", hint=_WRITE)
        return _directory(absolute(rest, "the key directory (--keys, OUTREACH_VAULT_KEYS)"))
    if scheme == "keyring":
        if rest:
            raise UnusablePath(f"{_NAMED}: nothing may follow keyring:", hint=_WRITE)
        from .os_keyring import OSKeyring  # here: no store loads another

        return OSKeyring(seconds=time_limit())
    url = f"{scheme}:{rest}"
    if scheme in ("openbao", "openbao+http"):
        from .openbao import OpenBao

        return OpenBao(url, seconds=time_limit())
    if scheme == "aws-secrets":
        from .aws_secrets import AWSSecrets

        return AWSSecrets(url, seconds=time_limit())
    from .others import find

    return find(scheme, url, ours=_OURS)


def faults() -> list[str]:
    """The entry points of other packages that claim a scheme of ours; they are never used."""
    from .others import faults

    return faults(_OURS)


def _directory(path: str | os.PathLike[str]) -> KeyStore:
    from .directory import KeyDirectory

    return KeyDirectory(path)
