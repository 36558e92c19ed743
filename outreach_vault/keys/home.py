"""
Which file a vault lives in: a copy of a database is the same vault, so it shares the keys.

If a copy is rotated, the original's key is replaced, and perhaps destroyed. The original can then
store nothing. So the file notes its own path and its key store. If another file is at the noted
path, and is the same vault with the same key store, then this file is a copy. A copy with its own
keys is harmless.
"""

from __future__ import annotations

import os
from typing import Final

from ..database import Database
from ..errors import SharedKeys
from ..schema import facts
from ..schema.shapes import is_text
from .ring import KeyRing
from .stores import known_as

_NOTED: Final = ("home", "home_keys")
_BYTES: Final = "bytes:"


def record(database: Database, keys: KeyRing) -> None:
    """Note that the vault lives in this database and has its keys in this key store."""
    present = {"home": database.home(), "home_keys": known_as(keys.store)}
    if _noted(database) != present:
        noted = {name: _as_text(path) for name, path in present.items()}
        database.write(lambda: facts.note(database, **noted))


def original(database: Database, keys: KeyRing) -> str | None:
    """
    The database that this one is a copy of, as a name for people, if it may be in use; None if not
    a copy.
    """

    def is_same(other: Database) -> bool:
        if facts.TABLE not in other.tables():  # a view might never end
            return False
        return facts.facts(other).get("vault_id") == keys.vault_id

    noted = _noted(database)
    home = noted.get("home")
    if home is None or noted.get("home_keys") != known_as(keys.store):
        return None
    return database.copied_from(home, is_same)


def require_own_keys(database: Database, keys: KeyRing, *, although_copied: bool) -> None:
    """Raise SharedKeys if the database is a copy, unless the operator has decided."""
    if not although_copied and (other := original(database, keys)):
        raise SharedKeys(
            f"{database.name} is a copy of {other} and shares its keys: once the copy is rotated,"
            " the original can store nothing, and without the old key it opens nothing",
            hint="to try something out, give the copy its own keys: --key-dir with a copy of the"
            " key directory, or 'vault keys export' and 'import'; if nobody uses the original any"
            " more, say --although-copied (or move the file away)",
            original=other,
        )


def _noted(database: Database) -> dict[str, str]:
    found = facts.facts(database)
    return {name: _from_text(found[name]) for name in _NOTED if name in found}


def _as_text(path: str) -> str:
    """A path may have bytes that are not text. None begins with `bytes:`, as paths are absolute."""
    return path if is_text(path) else _BYTES + os.fsencode(path).hex()


def _from_text(noted: str) -> str:
    if not noted.startswith(_BYTES):
        return noted
    try:
        return os.fsdecode(bytes.fromhex(noted.removeprefix(_BYTES)))
    except ValueError:
        return noted  # not ours
