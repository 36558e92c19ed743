"""
Which file a vault lives in: copies of a database share its keys, since they are the same vault.

A rotation of a copy replaces the key of the original, which then can store nothing any more, and destroys it if it is told to. So the
path of the file, and which key store its keys are in, are noted in it. Where another file is still there, is the same vault, and was
used with the same key store, this one is the copy. A copy that was given keys of its own is nobody's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ..database import Database, open_database
from ..errors import SharedKeys, VaultError
from ..files import real
from ..schema import facts
from ..schema.shapes import is_text
from .keyset import KeySet
from .stores import known_as

_NOTED: Final = ("home", "home_keys")
_BYTES: Final = "bytes:"


def record(database: Database, keys: KeySet) -> None:
    """Note that the vault lives in this file, and that its keys are in this key store."""
    present = {"home": str(real(database.path)), "home_keys": known_as(keys.store)}
    if _noted(database) != present:
        noted = {name: _as_text(path) for name, path in present.items()}
        database.write(lambda: facts.note(database, **noted))


def original(database: Database, keys: KeySet) -> Path | None:
    """The database that this one is a copy of, if that is still where it was and has its keys here; None where this one is no copy."""
    noted = _noted(database)
    if noted.get("home_keys") != known_as(keys.store):
        return None
    path = Path(noted.get("home", database.path))
    try:
        if path.samefile(database.path):
            return None
        other = open_database(path, read_only=True)
    except (OSError, ValueError, VaultError):
        return None  # moved away, or not to be read: nobody uses it here
    try:
        if facts.TABLE not in other.tables():  # a view may go on for ever
            return None
        same = facts.facts(other).get("vault_id") == keys.vault_id
    except VaultError:
        return None
    finally:
        other.close_all()
    return path if same else None


def require_own_keys(database: Database, keys: KeySet, *, although_copied: bool) -> None:
    """Raise SharedKeys where the file is a copy, unless the operator has decided."""
    if not although_copied and (other := original(database, keys)):
        raise SharedKeys(
            f"{database.path} is a copy of {other}, and shares its keys: what is done to a key here is done to it there as well;"
            " after a rotation of the copy the original can store nothing, and without the old key it opens nothing",
            hint="to try something out, give the copy keys of its own: --key-dir with a copy of the key directory, or 'vault keys"
            " export' and 'import'; where the original is not used any more, move it away, or say --although-copied",
            original=other,
        )


def _noted(database: Database) -> dict[str, str]:
    found = facts.facts(database)
    return {name: _from_text(found[name]) for name in _NOTED if name in found}


def _as_text(path: str) -> str:
    """A name may have bytes that are no text. No path is taken for these, since each is absolute."""
    return path if is_text(path) else _BYTES + os.fsencode(path).hex()


def _from_text(noted: str) -> str:
    try:
        return (
            os.fsdecode(bytes.fromhex(noted.removeprefix(_BYTES)))
            if noted.startswith(_BYTES)
            else noted
        )
    except ValueError:
        return noted  # not ours
