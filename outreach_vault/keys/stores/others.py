"""
Key stores of other packages, by their entry points in the group `outreach_vault.key_stores`.

The name of an entry is the scheme of a URL. Its object is called with the whole URL and gives the
key store. Nothing is looked for here while the URL names a store of ours.
"""

from __future__ import annotations

from typing import Final

from ...errors import KeyStoreUnavailable, UnusablePath, VaultError, typed_name
from .store import KeyStore

GROUP: Final = "outreach_vault.key_stores"
_PARTS: Final = tuple(part for part in vars(KeyStore) if not part.startswith("_"))


def find(scheme: str, url: str, ours: tuple[str, ...]) -> KeyStore:
    """
    The store that another package gives for *url*.

    Args:
        ours: the schemes that are looked up elsewhere, for the list of those that there are.
    Raises:
        UnusablePath: no package has the scheme.
        KeyStoreUnavailable: two have it, or the one that has it does not give a key store.
    """
    from importlib.metadata import entry_points  # here: it reads what every package says of itself

    entries = entry_points(group=GROUP)
    found = {entry.value: entry for entry in entries if entry.name == scheme}
    if not found:
        schemes = ", ".join(f"{name}:" for name in sorted({*ours, *(e.name for e in entries)}))
        raise UnusablePath(
            "the key store (--keys, OUTREACH_VAULT_KEYS): nothing has the scheme "
            f"{typed_name(scheme)}",
            hint=f"there are {schemes}; a package that has another must be installed beside this",
        )
    if len(found) > 1:
        raise KeyStoreUnavailable(
            f"key store {scheme}: several packages have it: {', '.join(sorted(found))}",
            hint="uninstall all but the one whose keys these are",
        )
    (entry,) = found.values()
    named = f"key store {scheme}, the entry point {entry.value} of another package"
    try:
        store = entry.load()(url)
    except VaultError:
        raise  # it has words of its own
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it is, it is that package's
        raise KeyStoreUnavailable(
            f"{named}: cannot be used: {type(error).__name__}",
            hint="look whether that package is installed whole, and what it says of its URLs",
        ) from None  # the fault's own text may repeat the URL
    if lacking := sorted(set(_PARTS) - set(dir(store))):
        raise KeyStoreUnavailable(
            f"{named}: gives a {type(store).__name__}, which has no {', '.join(lacking)}",
            hint="ask its author for one that passes outreach_vault.testing.KeyStoreContract",
        )
    return store  # type: ignore[no-any-return]
