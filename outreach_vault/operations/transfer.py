"""
Values taken to another scope, deleted or labelled: one field of a provider, or all of one scope.

Each is one write transaction that goes through `Rows.put` and `Rows.delete`, so nobody reads half
an account, and a fault at any value changes nothing.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping
from datetime import date
from typing import NamedTuple

from ..cipher import time_of
from ..errors import CredentialNotFound, WrongArgument, at_project, brief
from ..providers import provider_of
from ..schema.shapes import Place, as_text
from ..secret import Secret
from ..values.opening import open_row
from ..values.rows import Row, place_of
from ..values.sealing import seal
from ..vault import Vault, require_label


class Transferred(NamedTuple):
    """
    What `transfer` did.

    Attributes:
        fields: the names of the fields that it stored.
        removed: those that it deleted, since they belonged to the account that was replaced.
    """

    fields: list[str]
    removed: list[str]


def own_rows(
    vault: Vault, provider: str, project_id: str | None, field: str | None = None
) -> dict[str, Row]:
    """
    The rows of exactly this scope, by field: all of the provider's, or one.

    Raises:
        CredentialNotFound: there is none. ProjectNotFound: no such project.
    """
    found = vault.rows.found(provider, field, project_id, fallback=False)
    own = {name: row for name, row in found.items() if row.project_id == project_id}
    if not own:
        raise CredentialNotFound(
            f"{_scope(provider, project_id)}: no credential of this provider",
            hint="'vault list' shows what is stored",
        )
    return own


def transfer(
    vault: Vault,
    provider: str,
    source: str | None,
    target: str | None,
    *,
    field: str | None = None,
    move: bool = False,
    replace: bool = False,
) -> Transferred:
    """
    Copy values to another scope: each is opened, and sealed again for its new place.

    A value keeps its label and the day when it is due, and its token the time when it was set.

    Args:
        source, target: a project's id, or None for the global scope.
        field: this one alone; by default all that *source* has of the provider.
        move: delete the values of *source*.
        replace: overwrite. Of a whole account also delete what *target* had beside it: the port of
            the old account would be used with the host of the new one.
    Raises:
        WrongArgument: *target* has such values, and *replace* is false. Or a refresh token would be
            in two scopes: most are for one use, and a second ends the whole grant.
        UnreadableValue, KeyUnavailable: a value cannot be opened.
        CredentialNotFound, ProjectNotFound, StorageError. Whatever it is, nothing was changed.
    """
    if source == target:
        raise WrongArgument("the source and the destination are the same scope")
    belongs, grant = provider_of(provider).belongs, provider_of(provider).grant

    def store(rows: Mapping[str, Row], values: Mapping[str, Secret]) -> Transferred | None:
        active = vault.keys.states.active_id()
        cipher = vault.keys.for_sealing(active)
        if cipher is None or own_rows(vault, provider, source, field) != rows:
            return None
        if grant and grant.refresh_token in rows and not move:
            at = at_project(target)
            raise WrongArgument(
                f"{_scope(provider, source)}: {grant.refresh_token} is not copied: two accounts"
                " that use one refresh token can end each other's grant; nothing was changed",
                hint=f"'vault move' takes it, 'vault login {brief(provider)}{at}' gets another;"
                " or keep one global account",
            )
        found, days = vault.rows.found(provider, None, target), vault.rows.due.days()
        own = [name for name, row in found.items() if row.project_id == target]
        left = [name for name in own if field is None and name not in rows and belongs(name)]
        if not replace and (taken := [name for name in own if name in rows or name in left]):
            raise WrongArgument(
                f"{_scope(provider, target)}: {', '.join(map(brief, taken))} stored there already;"
                " nothing was changed; --replace replaces the account that is there"
            )
        for name, row in rows.items():
            place = Place(target, provider, name)
            token = seal(cipher, place, values[name], at=time_of(row.encrypted_value))
            there = vault.rows.put(place, token, active, as_text(row.label) or "")
            with contextlib.suppress(ValueError):  # no day, or another tool's idea of one
                vault.rows.due.name(there.id, date.fromisoformat(days.get(row.id, "")))
        _delete(vault, provider, target, left)
        if move:
            _delete(vault, provider, source, rows)
        return Transferred(list(rows), left)

    while True:
        rows = own_rows(vault, provider, source, field)
        # Without the lock: a keyring may take seconds.
        values = {name: open_row(vault.keys, row) for name, row in rows.items()}
        done = vault.database.write(functools.partial(store, rows, values), alone=True)
        if done is not None:
            return done
        vault.keys.prove_active()


def delete(vault: Vault, provider: str, project_id: str | None, fields: Iterable[str]) -> int:
    """Remove these fields of one scope together. Returns how many there were."""
    return vault.database.write(lambda: _delete(vault, provider, project_id, fields))


def _delete(vault: Vault, provider: str, project_id: str | None, fields: Iterable[str]) -> int:
    return sum(vault.rows.delete(Place(project_id, provider, name)) for name in fields)


def relabel(
    vault: Vault, provider: str, field: str, label: str, project_id: str | None = None
) -> None:
    """
    Give the value of exactly one scope another label; empty text removes it.

    The value and its `updated_at` stay as they are.

    Raises:
        CredentialNotFound: no such value. ProjectNotFound: no such project.
    """
    require_label(label)
    place = place_of(provider, field, project_id)
    if not vault.database.write(lambda: vault.rows.relabel(place, label or None)):
        raise CredentialNotFound(
            f"{place}: no such credential", hint="'vault list' shows what is stored"
        )


def _scope(provider: str, project_id: str | None) -> str:
    return f"{provider} ({'global' if project_id is None else f'project {brief(project_id)}'})"
