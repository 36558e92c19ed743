"""What a key store is: the protocol, the words that all stores share, and a trial of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from ...cipher import generate_key
from ...errors import KeyMissing, KeyStoreUnavailable
from ...schema.shapes import new_id
from ...secret import Secret

TRIAL: Final = "trial"  # in the place of a vault's id
ADVICE: Final = (
    "unlock or start the system's keyring; on a machine without one name a key directory "
    "(--key-dir, OUTREACH_VAULT_KEY_DIR)"
)


class KeyStore(Protocol):
    """
    A place for keys. Each raises `KeyUnavailable` of the kind that fits.

    A store may have two methods more, which `known_as` and `left_over` below ask for.

    A key's name is its vault's id and its own id. An entry is written once; `read` gives what
    `write` was given, or raises; `holds` says whether there is one, also where the store is not
    made yet; `delete` of what is not there does nothing. `successor` is the id of the key that
    replaced this one, or None; the first `mark_superseded` stands, later ones do nothing, and it
    outlives the key: a key that comes back from a backup is still an older one.
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
    Write an entry that nothing needs, read it back and delete it: so a store that keeps no key is
    known before anything is changed.

    Raises:
        KeyUnavailable: of the kind that fits.
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
    The same for the same place of keys in every process: its `known_as()`, else its class's name.

    It is noted in the database, so it must hold no password, and must never change.
    """
    said = getattr(store, "known_as", None)
    return str(said()) if said else type(store).__qualname__


def left_over(store: KeyStore) -> Iterable[object]:
    """What killed commands left in the store, each as text for the operator: its `left_over()`."""
    said = getattr(store, "left_over", None)
    return said() if said else ()


def missing_key(name: str, key_id: str) -> KeyMissing:
    return KeyMissing(
        f"{name} has no key {key_id}",
        hint="look whether this is the right key store (vault status); 'vault keys import' puts"
        f" exported keys back; where it is lost for good, 'vault init --abandon {key_id}' gives up"
        " what it sealed",
        key_id=key_id,
    )


def named_successor(text: str | None, where: str, key_id: str) -> str | None:
    """
    What such an entry says. One that was emptied must not read as none: an older key would be
    taken for the present one.
    """
    if text is None or is_id(text):
        return text
    raise KeyStoreUnavailable(
        f"{where}: damaged: it does not name the key that replaced this one",
        hint=(
            "put it back from a backup of the key store; or remove it, and 'vault rotate' writes "
            "it anew for a retired key"
        ),
        key_id=key_id,
    )


def is_id(text: str) -> bool:
    return text != "" and all(c.isalnum() or c == "-" for c in text)
