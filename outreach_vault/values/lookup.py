"""
Which row a look-up means: the project's, else the global one (`project_id` NULL). Read-only, and unopened.

The one resolver for the library, the command, bundles and listings. It fails closed: where the project has
a row, that is the answer, whatever is in it. An unknown project is never taken for the global scope.

An index of the file may be damaged, and lead to another row. So nothing here believes the row that was found.
What will be opened is given the place that was *asked for*, and its token opens there alone (`row`, `fields`).
Everything else is about rows that were read again by their number, which no index has a part in, and whose
columns were compared with what was asked (`found`, `stored_at`, `listed`).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from ..cipher import Place
from ..database.sqlite import UNINDEXED, Database
from ..errors import CredentialNotFound, DuplicateCredentials, ProjectNotFound, brief
from ..keys.keyset import COLUMNS, StoredValue

TABLE: Final = "provider_credentials"
# Placeholders with names: of ?1 and a sequence, Python 3.12.0 to 3.12.3 warns at each look-up (gh-117995).
# One index search for each scope: with OR, SQLite reads every project of
# the provider (measured: 1.4 ms at a million rows). Where the project has the row, the global one is not searched for.
_OWN: Final = "project_id = :project_id AND provider = :provider"
_GENERAL: Final = "project_id IS NULL AND provider = :provider"
_FIELD: Final = " AND credential_type = :credential_type"
# An orphan's row is nobody's. The project's row is read again by its number, and its id compared byte for byte: neither a damaged index
# nor a column that compares otherwise makes another name of it, which would be given the global value.
_KNOWN: Final = (
    "EXISTS (SELECT 1 FROM (SELECT _rowid_ AS n FROM projects WHERE id = :project_id) LEFT JOIN projects ON projects._rowid_ = n"
    " WHERE CAST(projects.id AS BLOB) = CAST(:project_id AS BLOB))"
)
_LISTED: Final = "EXISTS (SELECT 1 FROM projects WHERE id = :project_id)"  # enough for what opens in this project alone
_AT_OWN: Final = (_OWN + _FIELD, _KNOWN)  # a search, and what its rows are marked with
_AT_GENERAL: Final = (_GENERAL + _FIELD, "1")
_PLACE: Final = "id, project_id, provider, credential_type"
_REST: Final = ", ".join(StoredValue._fields[4:])
_OWN_ROW: Final = f"SELECT id, :project_id, :provider, :credential_type, {_REST} FROM {TABLE} WHERE {_OWN}{_FIELD}"
_GENERAL_ROW: Final = f"SELECT id, NULL, :provider, :credential_type, {_REST} FROM {TABLE} WHERE {_GENERAL}{_FIELD}"
_OWN_ELSE_GENERAL_ROW: Final = f"{_OWN_ROW} AND {_LISTED} UNION ALL {_GENERAL_ROW} AND {_KNOWN} LIMIT 1"
_OWN_FIELDS: Final = f"SELECT id, :project_id, :provider, credential_type, {_REST} FROM {TABLE} WHERE {_OWN}"
_GENERAL_FIELDS: Final = f"SELECT id, NULL, :provider, credential_type, {_REST} FROM {TABLE} WHERE {_GENERAL}"
_OWN_THEN_GENERAL_FIELDS: Final = f"{_OWN_FIELDS} AND {_LISTED} UNION ALL {_GENERAL_FIELDS} AND {_KNOWN}"


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


def row(database: Database, provider: str, credential_type: str, project_id: str | None, *, fallback: bool = True) -> StoredValue:
    """
    The row for one field, to be opened: the project's, else, with *fallback*, the global one.

    Its place is the one that was asked for, whatever row was found.

    Raises:
        CredentialNotFound: there is none. ProjectNotFound: there is no such project.
        TypeError, ValueError: as `place_of`.
    """
    place = place_of(provider, credential_type, project_id)  # first: SQLite would take the number 5 for the text '5'
    asked = {"project_id": project_id, "provider": provider, "credential_type": credential_type}
    found = database.fetch(_GENERAL_ROW if project_id is None else _OWN_ELSE_GENERAL_ROW, asked)
    if found and (fallback or found[0][1] == project_id):
        return StoredValue._make(found[0])
    raise _nothing_at(database, place, fallback)


def fields(database: Database, provider: str, project_id: str | None) -> dict[str, StoredValue]:
    """
    The row for each field of the provider, by field, to be opened; in one statement, so from one moment.

    The place of each is the one that was asked for, whatever row was found.

    Raises:
        ProjectNotFound: there is no such project.
    """
    place_of(provider, "any", project_id)
    asked = {"project_id": project_id, "provider": provider}
    rows = database.fetch(_GENERAL_FIELDS if project_id is None else _OWN_THEN_GENERAL_FIELDS, asked)
    if not rows:
        require_project(database, project_id)
    return _by_field(rows)


def found(
    database: Database, provider: str, credential_type: str | None, project_id: str | None, *, fallback: bool = True
) -> dict[str, StoredValue]:
    """
    The rows that `row` or, where *credential_type* is None, `fields` would take, by field: as the table has them.

    Raises:
        NotADatabase: an index leads to another row. Others as `row` and `fields`; a missing provider is no error.
    """
    place = place_of(provider, "any" if credential_type is None else credential_type, project_id)
    field, asked = "" if credential_type is None else _FIELD, place._asdict()
    searches: tuple[tuple[str, str], ...] = ((_GENERAL + field, "0"),)
    if project_id is not None:
        searches = ((f"{_OWN}{field} AND {_KNOWN}", "1"), (f"{_GENERAL}{field} AND {_KNOWN}", "0"))
    rows = database.fetch(_by_number(database.row_number(TABLE), searches, COLUMNS), asked)
    if any(row[1:4] != (project_id if row[-2] else None, provider, credential_type or row[3]) for row in rows):
        raise database.astray(TABLE)
    rows.sort(key=lambda row: row[1] is None)  # the project's own come first
    if credential_type is not None and not (rows and (fallback or rows[0][1] == project_id)):
        raise _nothing_at(database, place, fallback)
    if not rows:
        require_project(database, project_id)
    return _by_field([row[:-2] for row in rows])


def _by_field(rows: Sequence[Sequence[Any]]) -> dict[str, StoredValue]:
    """The project's rows come first: walked backwards, they take the place of the global ones. Another tool's bytes name no field."""
    by_field = {row[3]: StoredValue._make(row) for row in reversed(rows) if isinstance(row[3], str)}
    return dict(sorted(by_field.items()))


class At(NamedTuple):
    """What is at a place: the row's id, and its number (`Database.row_number`)."""

    id: str | None
    number: int


def stored_at(database: Database, place: Place) -> At | None:
    """
    The row at exactly this place, which was read again by its number and compared; None where there is none.

    Raises:
        ProjectNotFound: there is no such project. NotADatabase: an index leads to another row.
        DuplicateCredentials: several rows, where the index is missing.
    """
    searches = (_AT_GENERAL if place.project_id is None else _AT_OWN,)
    rows = database.fetch(_by_number(database.row_number(TABLE), searches, _PLACE), place._asdict())
    if not rows or not rows[0][-2]:
        require_project(database, place.project_id)
    if any(row[1:4] != place for row in rows):
        raise database.astray(TABLE)
    if len(rows) > 1:
        raise DuplicateCredentials(
            f"{place}: several rows for this place: {', '.join(brief(row[0]) for row in rows)}; nothing was changed",
            hint="'vault doctor' says which index is missing",
            rows=(tuple(str(row[0]) for row in rows),),
        )
    return At(rows[0][0], rows[0][-1]) if rows else None


@functools.cache  # a dozen in all
def _by_number(number: str, searches: tuple[tuple[str, str], ...], columns: str) -> str:
    """
    The statement for the rows that the searches lead to, read by their number: *columns*, the mark of the search, the number.

    A number that no row of the table has gives a row of NULLs.
    """
    numbers = " UNION ALL ".join(f"SELECT {number} AS number, {mark} AS mark FROM {TABLE} WHERE {where}" for where, mark in searches)
    return f"SELECT {columns}, mark, number FROM ({numbers}) LEFT JOIN {TABLE} ON {TABLE}.{number} = number"


def every(database: Database) -> list[tuple[Any, ...]]:
    """All rows as the table has them, plain `COLUMNS`: global ones first, then by project, provider and credential_type."""
    return database.fetch(f"SELECT {COLUMNS} FROM {TABLE} {UNINDEXED} {_ORDER}")


def listed(database: Database, project_id: str | None) -> list[tuple[Any, ...]]:
    """The rows of one scope as the table has them, as `every` has them; a row of another scope that an index leads to is left out."""
    number = database.row_number(TABLE)
    scope = "project_id IS NULL" if project_id is None else "project_id = ?"
    rows = database.fetch(
        f"SELECT {COLUMNS} FROM {TABLE} WHERE {number} IN (SELECT {number} FROM {TABLE} WHERE {scope}) {_ORDER}",
        () if project_id is None else (project_id,),
    )
    return [row for row in rows if row[1] == project_id]


_ORDER: Final = "ORDER BY project_id IS NOT NULL, project_id, provider, credential_type"


def providers_of(database: Database, project_id: str | None) -> list[str]:
    """The providers that have a field in the project's or the global scope; not those whose name no look-up takes."""
    sql = f"SELECT DISTINCT provider FROM {TABLE} WHERE project_id IS NULL OR project_id = ? ORDER BY 1"
    return [
        provider for (provider,) in database.fetch(sql, (project_id,)) if isinstance(provider, str) and provider and provider.isprintable()
    ]


def places(database: Database, providers: Collection[str] = ()) -> list[tuple[str, str]]:
    """Each provider and field that any scope has stored; of these providers, by default of all."""
    marks = ", ".join("?" * len(providers))
    where = f"WHERE provider IN ({marks})" if providers else ""
    found = database.fetch(f"SELECT DISTINCT provider, credential_type FROM {TABLE} {UNINDEXED} {where}", tuple(providers))
    return [(provider, field) for provider, field in found if isinstance(provider, str) and isinstance(field, str)]


def require_project(database: Database, project_id: str | None) -> None:
    """Raise ProjectNotFound where there is no such project."""
    if project_id is not None and database.fetch(f"SELECT {_KNOWN}", {"project_id": project_id}) != [(1,)]:
        raise ProjectNotFound(
            f"there is no project {brief(project_id)!r}", hint="an unknown project is never taken for the global scope; look at its id"
        )


def _nothing_at(database: Database, place: Place, fallback: bool) -> CredentialNotFound:
    """The error where there is no row; ProjectNotFound is raised here where there is no project either."""
    require_project(database, place.project_id)
    beside = " and no global one" if fallback and place.project_id is not None else ""
    return CredentialNotFound(f"{place}: no such credential{beside}", hint="'vault list' shows what is stored, 'vault set' stores it")
