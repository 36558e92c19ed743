"""What a key store is: the protocol, the errors that all stores share, and a trial of one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Final, Protocol

from ...cipher import generate_key
from ...errors import KeyMissing, KeyStoreUnavailable, WrongArgument
from ...schema.shapes import new_id
from ...secret import Secret

KEYRING_SECONDS: Final = 10.0
# Our own schemes, and how a URL of each is written; one without that is for trials.
SCHEMES: Final = {
    "keyring": "keyring:",
    "dir": "dir:/path",
    "openbao": "openbao://HOST/MOUNT/PATH",
    "openbao+http": "",
    "aws-secrets": "aws-secrets://REGION/PREFIX",
}
TRIAL: Final = "trial"  # in place of a vault's id
ADVICE: Final = (
    "unlock or start the system's keyring; on a machine without one, use a key directory "
    "(--key-dir, OUTREACH_VAULT_KEY_DIR)"
)


class KeyStore(Protocol):
    """
    A place for keys. Every method raises the `KeyUnavailable` that fits.

    A store may have two more methods, for `known_as` and `left_over` below.

    A key is named by its vault's id and its own. `write` never replaces an entry. `read` returns
    what was written, or raises. `holds` works even before the store is made. `delete` does nothing
    if there is no entry. `successor` is the id of the key that replaced this one, or None. Only the
    first `mark_superseded` counts, and it outlives the key: a key that comes back from a backup is
    still an old one.
    """

    @property
    def name(self) -> str: ...
    def read(self, vault_id: str, key_id: str) -> Secret: ...
    def write(self, vault_id: str, key_id: str, key: Secret) -> None: ...
    def holds(self, vault_id: str, key_id: str) -> bool: ...
    def delete(self, vault_id: str, key_id: str) -> None: ...
    def successor(self, vault_id: str, key_id: str) -> str | None: ...
    def mark_superseded(self, vault_id: str, key_id: str, successor_id: str) -> None: ...


def prove(store: KeyStore) -> None:
    """
    Write a trial entry, read it back and delete it, to find out before any change whether the store
    keeps keys.

    Raises:
        KeyUnavailable: it does not.
    """
    key_id, key = new_id(), generate_key()
    store.write(TRIAL, key_id, key)
    try:
        kept = store.read(TRIAL, key_id) == key
    except KeyMissing:
        kept = False
    finally:
        store.delete(TRIAL, key_id)
    if not kept:
        problem = "does not give back what is stored in it; nothing was changed"
        raise KeyStoreUnavailable(f"{store.name} {problem}", hint=ADVICE)


def known_as(store: KeyStore) -> str:
    """
    A text for the place of the keys: its `known_as()`, else its class's name.

    It is noted in the database, so it must be the same in every process, never change, and hold no
    password.
    """
    said = getattr(store, "known_as", None)
    return str(said()) if said else type(store).__qualname__


def left_over(store: KeyStore) -> Iterable[object]:
    """What killed commands left in the store, for the operator to read: its `left_over()`."""
    said = getattr(store, "left_over", None)
    return said() if said else ()


def missing_key(name: str, key_id: str) -> KeyMissing:
    return KeyMissing(
        f"{name} has no key {key_id}",
        hint="'vault keys import FILE' puts exported keys there; if they are in another key store,"
        " name that (--key-dir, --keys); if it is lost for good,"
        f" 'vault init --abandon {key_id}' gives up the values sealed under it",
        key_id=key_id,
    )


def named_successor(text: str | None, where: str, key_id: str) -> str | None:
    """
    The id in an entry that names a successor. An emptied entry is an error: read as none, it would
    make an older key the current one.
    """
    if text is None or is_id(text):
        return text
    raise KeyStoreUnavailable(
        f"{where}: damaged: it does not name the key that replaced this one",
        hint=(
            "restore it from a backup of the key store; or remove it, and 'vault rotate' writes it "
            "again for a retired key"
        ),
        key_id=key_id,
    )


def is_id(text: str) -> bool:
    return text != "" and all(c.isalnum() or c == "-" for c in text)


def limit(seconds: float) -> float:
    """*seconds*, if that can be a time limit."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"seconds: a number is needed, not {type(seconds).__name__}")
    if not _is_limit(seconds):
        raise ValueError(f"seconds: {seconds!r} is not a number of seconds above 0")
    return seconds


def _is_limit(seconds: float) -> bool:
    return 0 < seconds <= threading.TIMEOUT_MAX / 4  # NaN compares false


def time_limit() -> float:
    text = os.environ.get("OUTREACH_VAULT_KEYRING_TIMEOUT")
    try:
        seconds = KEYRING_SECONDS if text is None else float(text)
    except ValueError:
        seconds = 0
    if not _is_limit(seconds):
        problem = f"{text!r} is not a number of seconds above 0"
        raise WrongArgument(
            f"OUTREACH_VAULT_KEYRING_TIMEOUT: {problem}",
            hint="unset the variable, or set it to a number of seconds, such as 10",
        )
    return seconds
