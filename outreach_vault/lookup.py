"""
Which row a look-up means: the project's, else the global one (`project_id` NULL). Read-only, and unopened.

The one resolver for the library, the command, bundles and listings. It fails closed: where the project has
a row, that is the answer, whatever is in it. An unknown project is never taken for the global scope.
"""

from __future__ import annotations

import functools
from typing import Final

from .cipher import Place
from .database import Database
from .errors import CredentialNotFound, ProjectNotFound
from .keyset import COLUMNS, StoredValue

AT: Final = "coalesce(project_id, '') = ? AND provider = ? AND credential_type = ?"
# ?1 is the project, ?2 the provider, ?3 the field. One index search for each scope: with OR, SQLite reads every project of
# the provider (measured: 1.4 ms at a million rows). Where the project has the row, the global one is not searched for.
_FROM: Final = f"SELECT {COLUMNS} FROM provider_credentials WHERE"
_PROJECTS: Final = f"{_FROM} coalesce(project_id, '') = ?1 AND project_id IS NOT NULL AND provider = ?2"
_GLOBALS: Final = f"{_FROM} coalesce(project_id, '') = '' AND project_id IS NULL AND provider = ?2"
_KNOWN: Final = "EXISTS (SELECT 1 FROM projects WHERE id = ?1)"  # an orphan's row is nobody's
_GLOBAL: Final = f"{_GLOBALS} AND credential_type = ?3"
_PROJECT_ELSE_GLOBAL: Final = f"{_PROJECTS} AND credential_type = ?3 AND {_KNOWN} UNION ALL {_GLOBAL} AND {_KNOWN} LIMIT 1"
_PROJECT_THEN_GLOBAL_FIELDS: Final = f"{_PROJECTS} AND {_KNOWN} UNION ALL {_GLOBALS} AND {_KNOWN}"


def place_of(provider: str, credential_type: str, project_id: str | None) -> Place:
    """
    The place that three names mean.

    Raises:
        TypeError, ValueError: one of them names nothing: not text, empty, or with control characters.
    """
    try:
        return _place_of(provider, credential_type, project_id)
    except TypeError:  # what cannot be remembered has an error that names no argument
        return _place_of.__wrapped__(provider, credential_type, project_id)


@functools.lru_cache(maxsize=1024)  # an adapter asks for the same places again and again
def _place_of(provider: str, credential_type: str, project_id: str | None) -> Place:
    return Place(
        None if project_id is None else name("project_id", project_id),
        name("provider", provider),
        name("credential_type", credential_type),
    )


def name(what: str, text: str) -> str:
    """The text, if it can name something; TypeError or ValueError if not."""
    if not isinstance(text, str):
        raise TypeError(f"{what}: text is needed, not {type(text).__name__}")
    if not text or not text.isprintable():
        raise ValueError(f"{what}: {'empty text' if not text else 'text with control characters'} names nothing")
    return text


def at(place: Place) -> tuple[str, str, str]:
    """What `AT` is compared with."""
    return place.project_id or "", place.provider, place.credential_type


def row(database: Database, provider: str, credential_type: str, project_id: str | None, *, fallback: bool = True) -> StoredValue:
    """
    The row for one field: the project's, else, with *fallback*, the global one.

    Raises:
        CredentialNotFound: there is none. ProjectNotFound: there is no such project.
        TypeError, ValueError: as `place_of`.
    """
    place = place_of(provider, credential_type, project_id)  # first: SQLite would take the number 5 for the text '5'
    found = database.fetch(_GLOBAL if project_id is None else _PROJECT_ELSE_GLOBAL, (project_id, provider, credential_type))
    if found and (fallback or found[0][1] == project_id):
        return StoredValue._make(found[0])
    require_project(database, project_id)
    beside = " and no global one" if fallback and project_id is not None else ""
    raise CredentialNotFound(f"{place}: no such credential{beside}", hint="'vault list' shows what is stored, 'vault set' stores it")


def fields(database: Database, provider: str, project_id: str | None) -> dict[str, StoredValue]:
    """
    The row for each field of the provider, by field; in one statement, so from one moment.

    Raises:
        ProjectNotFound: there is no such project.
    """
    place_of(provider, "any", project_id)
    rows = database.fetch(_GLOBALS if project_id is None else _PROJECT_THEN_GLOBAL_FIELDS, (project_id, provider))
    if not rows:
        require_project(database, project_id)
    # The project's rows come first: walked backwards, they take the place of the global ones. Another tool's bytes name no field.
    by_field = {row[3]: StoredValue._make(row) for row in reversed(rows) if isinstance(row[3], str)}
    return dict(sorted(by_field.items()))


def providers_of(database: Database, project_id: str | None) -> list[str]:
    """The providers that have a field in the project's or the global scope; not those whose name no look-up takes."""
    sql = "SELECT DISTINCT provider FROM provider_credentials WHERE project_id IS NULL OR project_id = ? ORDER BY 1"
    return [
        provider for (provider,) in database.fetch(sql, (project_id,)) if isinstance(provider, str) and provider and provider.isprintable()
    ]


def require_project(database: Database, project_id: str | None) -> None:
    """Raise ProjectNotFound where there is no such project."""
    if project_id is not None and not database.fetch("SELECT 1 FROM projects WHERE id = ?", (project_id,)):
        raise ProjectNotFound(
            f"there is no project {project_id!r}", hint="an unknown project is never taken for the global scope; look at its id"
        )
