"""Values that were replaced or deleted: see them, put one back, remove them, keep fewer."""

from __future__ import annotations

from ..schema.shapes import Place
from ..values.history import Limits, Previous
from ..values.rows import place_of
from ..vault import Vault


def previous_values(
    vault: Vault, provider: str, credential_type: str, project_id: str | None = None
) -> list[Previous]:
    """
    What the history has of one scope's value, newest first; read-only.

    Raises:
        ProjectNotFound: no such project.
    """
    return vault.rows.history.of(_place(vault, provider, credential_type, project_id))


def earlier(
    vault: Vault,
    provider: str,
    credential_type: str,
    project_id: str | None = None,
    *,
    number: int | None = None,
) -> Previous:
    """The value that `undo` would put back; read-only. Raises as that does."""
    return vault.rows.earlier(_place(vault, provider, credential_type, project_id), number)


def undo(
    vault: Vault,
    provider: str,
    credential_type: str,
    project_id: str | None = None,
    *,
    number: int | None = None,
) -> Previous:
    """
    Put a previous value back, unopened. The present one joins the history, if the vault sealed it.

    Run again, it goes one further back: a value that was undone is put back only by its *number*.

    Args:
        number: which value; by default the newest that was not undone.
    Raises:
        CredentialNotFound: the history has no such value. ProjectNotFound: no such project.
        KeyUnavailable: its key cannot be read; nothing was changed.
        StorageError: the database cannot be written.
    """
    place = _place(vault, provider, credential_type, project_id)
    chosen = vault.rows.earlier(place, number)
    vault.keys.cipher(chosen.key_id)  # without the lock: a keyring may take seconds
    return vault.database.write(lambda: vault.rows.undo(place, chosen.number))


def forget(vault: Vault, provider: str, credential_type: str, project_id: str | None = None) -> int:
    """
    Remove the previous values of one scope's value for good. Returns how many there were.

    Raises:
        ProjectNotFound: no such project.
    """
    place = _place(vault, provider, credential_type, project_id)

    def remove() -> int:
        there = vault.rows.history.of(place)
        vault.rows.history.remove(previous.id for previous in there)
        return len(there)

    return vault.database.write(remove)


def limit(vault: Vault, limits: Limits) -> int:
    """
    Keep to these limits from now on. Returns how many previous values were removed.

    Raises:
        WrongArgument: one of them is too large, or below 0; nothing was changed.
    """
    # Who has read the earlier limits keeps a value by them: its transaction ends first.
    return vault.database.write(lambda: vault.rows.history.limit(limits), alone=True)


def _place(vault: Vault, provider: str, credential_type: str, project_id: str | None) -> Place:
    place = place_of(provider, credential_type, project_id)
    vault.rows.require_project(project_id)
    return place
