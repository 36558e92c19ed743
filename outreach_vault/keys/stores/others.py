"""
Key stores of other packages, from the entry point group `outreach_vault.key_stores`.

An entry's name is the scheme of its URLs. Its object, called with the whole URL, returns the key
store. A URL of our own stores never comes here.
"""

from __future__ import annotations

from typing import Final

from ... import packages
from ...errors import KeyStoreUnavailable, UnusablePath, VaultError, typed_name
from .store import KeyStore

GROUP: Final = "outreach_vault.key_stores"
_PARTS: Final = tuple(part for part in vars(KeyStore) if not part.startswith("_"))


def faults(ours: tuple[str, ...]) -> list[str]:
    """Other packages' entries for the schemes that are *ours*, which are never used."""
    from importlib.metadata import entry_points

    return [
        f"key store {entry.name}, {packages.named(entry)}: {entry.name}: is a scheme of our own"
        for entry in entry_points(group=GROUP)
        if entry.name in ours
    ]


def find(scheme: str, url: str, ours: tuple[str, ...]) -> KeyStore:
    """
    The store that another package has for *url*.

    Args:
        ours: our own schemes, for the list in the error.
    Raises:
        UnusablePath: no package has the scheme.
        KeyStoreUnavailable: several packages have it, or its package returns no key store.
    """
    from importlib.metadata import entry_points  # here: it reads the metadata of every package

    entries = entry_points(group=GROUP)
    found = {entry.value: entry for entry in entries if entry.name == scheme}
    if not found:
        schemes = ", ".join(f"{name}:" for name in sorted({*ours, *(e.name for e in entries)}))
        raise UnusablePath(
            "the key store (--keys, OUTREACH_VAULT_KEYS): no package has the scheme "
            f"{typed_name(scheme)}",
            hint=f"known schemes: {schemes}; to use another, install its package beside this one",
        )
    if len(found) > 1:
        raise KeyStoreUnavailable(
            f"key store {scheme}: several packages have this scheme: {', '.join(sorted(found))}",
            hint="keep the one that holds your keys, and uninstall the others",
        )
    (entry,) = found.values()
    named = f"key store {scheme}, {packages.named(entry)}"
    try:
        store = entry.load()(url)
    except VaultError:
        raise  # it explains itself
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever that package does
        raise KeyStoreUnavailable(
            f"{named}: cannot be used: {packages.cause(error)}",
            hint="check that the package is completely installed, and how it wants its URLs",
        ) from None  # its text may repeat the URL
    if lacking := sorted(set(_PARTS) - set(dir(store))):
        raise KeyStoreUnavailable(
            f"{named}: returns a {type(store).__name__}, which has no {', '.join(lacking)}",
            hint="ask its author for a version that passes outreach_vault.testing.KeyStoreContract",
        )
    return store  # type: ignore[no-any-return]
