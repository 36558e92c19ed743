"""Make a database ready: its tables, and the first key."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..database import Location, locate
from ..errors import KeyMissing, StorageError
from ..keys import home, states
from ..keys.states import KeyStates
from ..keys.stores import KeyStore, prove
from ..schema import facts, migrator
from ..vault import Vault, store_of

_PATIENCE: Final = 30.0  # seconds for another process's init: a keyring call may take ten


def init(
    database: str | os.PathLike[str] | None = None,
    *,
    key_store: KeyStore | None = None,
    on_folder: Callable[[Path], None] | None = None,
    on_schema: Callable[[migrator.Migration], None] | None = None,
) -> str | None:
    """
    Create a database, or back up and migrate an existing one; then make the first key. Makes the
    folder of the desktop app's own file too, but no other.

    Args:
        database, key_store: as for `Vault.open`.
        on_folder: told the folder, if it was made.
        on_schema: told what was done to the schema, before a key is made.
    Returns:
        The id of the new key; None if there was one already.
    Raises:
        SchemaError, StorageError: the database cannot be created or migrated.
        KeyUnavailable: no key can be made, or the existing one cannot be read. Run it again once
            the cause is gone. If the key store cannot be used at all, nothing was changed.
    """
    location, database = locate(database), None  # as in `open_database`
    store = store_of(key_store)
    _require_usable(store, location)
    made = location.make_folder()
    if made and on_folder:
        on_folder(made)
    location.require_locks()
    try:
        exists = location.exists()
        done = migrator.migrate(location) if exists else migrator.create(location)
    except StorageError:
        if not location.exists():
            raise
        done = migrator.migrate(location)  # another process created it first
    if on_schema:
        on_schema(done)

    def make_key() -> str | None:
        made = vault.keys.ensure_active(vault.rows.name_keys)
        if home.original(vault.database, vault.keys) is None:
            home.record(vault.database, vault.keys)
        return made

    with Vault.open(location, key_store=store) as vault:
        return vault.database.operators_turn(make_key, patience=_PATIENCE)


def _require_usable(store: KeyStore, location: Location) -> None:
    """Before any change: the key store must answer for the present key, or keep a trial one."""
    vault_id = key_id = None
    if location.exists():
        opened = location.open(read_only=True)
        try:
            if {facts.TABLE, states.TABLE} <= opened.tables():
                vault_id = facts.facts(opened).get("vault_id")
                key_id = KeyStates(opened).active_id()
        except KeyMissing:
            pass  # none yet
        finally:
            opened.close_all()
    if vault_id and key_id:
        store.holds(vault_id, key_id)
    else:
        prove(store)
