"""What a vault holds: its schema, its keys, its values by state. Never a value or a key."""

from __future__ import annotations

from dataclasses import dataclass

from ..keys.states import KeyRecord
from ..schema import migrator
from ..schema.shapes import age_days
from ..values import history
from ..values.opening import state
from ..values.rows import TABLE
from ..vault import Vault


@dataclass(frozen=True, slots=True)
class Status:
    """
    What a vault holds, without any value.

    Attributes:
        schema: user_version, the desktop app's number. vault_schema: the vault's own number.
        key_store: the one in use. key_store_error: why it does not give the active key, or None.
        keys: all keys, oldest first, each with the number of values that name it.
        values: the number of values in each state (`ok`, `foreign`, `key missing`).
        previous: the number of values in the history.
        active_key_age_days: whole days since it became active; None without an active key.
        unfinished_rotation: a rotation was interrupted; 'vault rotate' finishes it.
    """

    database: str
    schema: int
    vault_schema: int
    vault_id: str
    key_store: str
    key_store_error: str | None
    active_key: str | None
    active_key_age_days: int | None
    keys: tuple[tuple[KeyRecord, int], ...]
    values: dict[str, int]
    previous: int
    unfinished_rotation: bool


def status(vault: Vault) -> Status:
    """What the vault holds; read-only. Asks the key store for each key that a value names."""
    used = vault.rows.count_by_key()
    values = {"ok": 0, "foreign": 0, "key missing": 0}
    records = vault.keys.states.records()
    active = next((record for record in records if record.state == "active"), None)
    named = [key_id for key_id in used if key_id]
    problems = vault.keys.survey([active.id, *named] if active else named)
    for key_id, count in vault.rows.count_by_key(TABLE).items():
        values[state(key_id, problems)] += count
    problem = problems[active.id] if active else None
    return Status(
        database=vault.database.name,
        schema=vault.database.schema_version(),
        vault_schema=migrator.own_version(vault.database),
        vault_id=vault.keys.vault_id,
        key_store=vault.keys.store.name,
        key_store_error=str(problem) if problem else None,
        active_key=active.id if active else None,
        active_key_age_days=age_days(active.activated_at) if active else None,
        keys=tuple((record, used[record.id]) for record in records),
        values=values,
        previous=vault.rows.count(history.TABLE),
        unfinished_rotation=vault.keys.states.unfinished_rotation(),
    )
