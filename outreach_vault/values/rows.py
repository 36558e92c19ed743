"""
`provider_credentials`: which row a look-up means, and every other statement on that table.

A look-up takes the project's row, else the global one (`project_id` NULL). It fails closed: where the
project has a row, that is the answer, whatever is in it. An unknown project is never taken for the
global scope.

An index of the file may be damaged, and lead to another row. So nothing here believes the row that was
found. A row that will be opened gets the place that was *asked for*, and its token opens there alone
(`one`, `fields`). Everything else reads a row again by its own key, which no index has a part in, and
compares its columns with what was asked (`found`, `at`, `of_scope`).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from ..cipher import looks_sealed
from ..database import Database
from ..errors import (
    CredentialNotFound,
    DuplicateCredentials,
    ProjectNotFound,
    StorageError,
    WrongArgument,
    brief,
    typed_id,
)
from ..schema.shapes import Place, new_id, now

TABLE: Final = "provider_credentials"


class Row(NamedTuple):
    """One row as it is stored, unopened. A column is a field here; nothing else lists them."""

    id: str
    project_id: str | None
    provider: str
    credential_type: str
    encrypted_value: str
    key_id: str | None
    label: str | None
    created_at: str
    updated_at: str

    @property
    def place(self) -> Place:
        return Place._make(self[1:4])

    @property
    def sealing_key(self) -> str | None:
        return sealing_key(self.encrypted_value, self.key_id)


def sealing_key(stored: object, key_id: object) -> str | None:
    """
    The key that a value was sealed under, or None where this vault did not seal it (it is *foreign*).

    Args:
        stored: the value, or its beginning. The look of it decides: the app overwrites a value, and
            leaves our key_id behind.
    """
    return key_id if isinstance(key_id, str) and looks_sealed(stored) else None


class At(NamedTuple):
    """What is at a place: the row's id, and its key in the table (`Database.row_key`)."""

    id: str | None
    key: Any


# What one update of a rotation needs: the new token and the id of its key; the row's key in the table
# (another tool may have left its id empty), and what must still be there.
Swap = tuple[str, str, Any, str, str]

COLUMNS: Final = ", ".join(Row._fields)
_REST: Final = ", ".join(Row._fields[4:])
_PLACE: Final = ", ".join(("id", *Place._fields))
# One index search for each scope: with OR, SQLite reads every project of the provider (1.4 ms at a
# million rows, measured). Where the project has the row, the global one is not searched for.
_OWN: Final = "project_id = :project_id AND provider = :provider"
_GENERAL: Final = "project_id IS NULL AND provider = :provider"
_FIELD: Final = " AND credential_type = :credential_type"
_ORDER: Final = "ORDER BY project_id IS NOT NULL, project_id, provider, credential_type"
# Enough for a value that opens in this project alone.
_LISTED: Final = "EXISTS (SELECT 1 FROM projects WHERE id = :project_id)"


def place_of(provider: str, credential_type: str, project_id: str | None) -> Place:
    """
    The place that three names mean.

    Raises:
        TypeError, ValueError: one of them names nothing: not text, empty, or with control characters.
    """
    try:
        return _known_place(provider, credential_type, project_id)
    except (
        TypeError
    ):  # from the cache itself, where a list was given, and then it names no argument
        return _place(provider, credential_type, project_id)


def _place(provider: str, credential_type: str, project_id: str | None) -> Place:
    return Place(
        None if project_id is None else name("project_id", project_id),
        name("provider", provider),
        name("credential_type", credential_type),
    )


# An adapter asks for the same places again and again.
_known_place: Final = functools.lru_cache(maxsize=1024)(_place)


def name(what: str, text: str) -> str:
    """The text, if it can name something; TypeError or ValueError if not."""
    if not isinstance(text, str):
        raise TypeError(f"{what}: text is needed, not {type(text).__name__}")
    if not text or not text.isprintable():
        found = "empty text" if not text else "text with control characters"
        raise WrongArgument(f"{what}: {found} names nothing")
    return text


class Rows:
    """The rows of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # A project's own row decides whether there is such a project. An orphan's row is nobody's.
        known = self._known = database.exactly("projects", "id", ":project_id")
        own = f"SELECT id, :project_id, :provider, :credential_type, {_REST} FROM {TABLE} WHERE {_OWN}"
        general = (
            f"SELECT id, NULL, :provider, :credential_type, {_REST} FROM {TABLE} WHERE {_GENERAL}"
        )
        self._one_general = general + _FIELD
        self._one = f"{own}{_FIELD} AND {_LISTED} UNION ALL {general}{_FIELD} AND {known} LIMIT 1"
        own, general = (
            sql.replace(":credential_type", "credential_type") for sql in (own, general)
        )
        self._fields_general = general
        self._fields = f"{own} AND {_LISTED} UNION ALL {general} AND {known}"

    # Look-ups

    def one(
        self, provider: str, credential_type: str, project_id: str | None, *, fallback: bool = True
    ) -> Row:
        """
        The row for one field, to be opened: the project's, else, with *fallback*, the global one.

        Its place is the one that was asked for, whatever row was found.

        Raises:
            CredentialNotFound: there is none. ProjectNotFound: there is no such project.
            TypeError, ValueError: as `place_of`.
        """
        place = place_of(provider, credential_type, project_id)  # SQLite would take 5 for '5'
        asked = {"project_id": project_id, "provider": provider, "credential_type": credential_type}
        found = self._database.fetch(self._one_general if project_id is None else self._one, asked)
        if found and (fallback or found[0][1] == project_id):
            return Row._make(found[0])
        raise self._nothing_at(place, fallback)

    def fields(self, provider: str, project_id: str | None) -> dict[str, Row]:
        """
        The row for each field of the provider, by field, to be opened; in one statement, so from one
        moment. The place of each is the one that was asked for, whatever row was found.

        Raises:
            ProjectNotFound: there is no such project.
        """
        place_of(provider, "any", project_id)
        asked = {"project_id": project_id, "provider": provider}
        rows = self._database.fetch(
            self._fields_general if project_id is None else self._fields, asked
        )
        if not rows:
            self.require_project(project_id)
        return _by_field(rows)

    def found(
        self,
        provider: str,
        credential_type: str | None,
        project_id: str | None,
        *,
        fallback: bool = True,
    ) -> dict[str, Row]:
        """
        The rows that `one` or, where *credential_type* is None, `fields` would take, by field: as the
        table has them.

        Raises:
            NotADatabase: an index leads to another row. Others as `one` and `fields`; a missing
                provider is no error.
        """
        field = "" if credential_type is None else _FIELD
        asked = "any" if credential_type is None else credential_type
        place = place_of(provider, asked, project_id)
        searches: tuple[tuple[str, str], ...] = ((_GENERAL + field, "0"),)
        if project_id is not None:
            own, general = (
                f"{_OWN}{field} AND {self._known}",
                f"{_GENERAL}{field} AND {self._known}",
            )
            searches = ((own, "1"), (general, "0"))
        rows = self._database.fetch(self._again(COLUMNS, *searches), place._asdict())
        if any(
            row[1:4] != (project_id if row[-2] else None, provider, credential_type or row[3])
            for row in rows
        ):
            raise self._database.astray(TABLE)
        rows.sort(key=lambda row: row[1] is None)  # the project's own come first
        missed = not rows or not (fallback or rows[0][1] == project_id)
        if credential_type is not None and missed:
            raise self._nothing_at(place, fallback)
        if not rows:
            self.require_project(project_id)
        return _by_field([row[:-2] for row in rows])

    def at(self, place: Place) -> At | None:
        """
        The row at exactly this place, read again by its key and compared; None where there is none.

        Raises:
            ProjectNotFound: there is no such project. NotADatabase: an index leads to another row.
            DuplicateCredentials: several rows, where the index is missing.
        """
        own = place.project_id is not None
        search = (_OWN + _FIELD, self._known) if own else (_GENERAL + _FIELD, "1")
        rows = self._database.fetch(self._again(_PLACE, search), place._asdict())
        if not rows or not rows[0][-2]:
            self.require_project(place.project_id)
        if any(row[1:4] != place for row in rows):
            raise self._database.astray(TABLE)
        if len(rows) > 1:
            listed = ", ".join(brief(row[0]) for row in rows)
            raise DuplicateCredentials(
                f"{place}: several rows for this place: {listed}; nothing was changed",
                hint="'vault doctor' says which index is missing",
                rows=(tuple(str(row[0]) for row in rows),),
            )
        return At(rows[0][0], rows[0][-1]) if rows else None

    def require_project(self, project_id: str | None) -> None:
        """Raise ProjectNotFound where there is no such project."""
        if project_id is None:
            return
        asked = {"project_id": project_id}
        if self._database.fetch(f"SELECT {self._known}", asked) != [(1,)]:
            raise ProjectNotFound(
                f"there is no project {typed_id(project_id)}",
                hint="an unknown project is never taken for the global scope; look at its id",
            )

    def _again(self, columns: str, *searches: tuple[str, str]) -> str:
        return self._database.read_again(TABLE, columns, searches)

    def _nothing_at(self, place: Place, fallback: bool) -> CredentialNotFound:
        """The error where there is no row; where there is no project either, that one is raised."""
        self.require_project(place.project_id)
        beside = " and no global one" if fallback and place.project_id is not None else ""
        return CredentialNotFound(
            f"{place}: no such credential{beside}",
            hint="'vault list' shows what is stored, 'vault set' stores it",
        )

    # Changes, each inside a write transaction

    def put(self, place: Place, token: str, key_id: str, label: str | None) -> str:
        """
        Change the row at the place, or make it; the row's id. It was read again afterwards.

        Raises:
            StorageError: what is there is something else. Others as `at`.
        """
        moment, at, key = now(), self.at(place), self._database.row_key(TABLE)
        if at:
            self._database.change(
                f"UPDATE {TABLE} SET id = coalesce(id, ?), encrypted_value = ?, key_id = ?,"
                f" updated_at = ?, label = CASE WHEN ? THEN ? ELSE label END WHERE {key} = ?",
                (
                    at.id or new_id(),
                    token,
                    key_id,
                    moment,
                    label is not None,
                    label or None,
                    at.key,
                ),
            )
        else:
            row = Row(new_id(), *place, token, key_id, label or None, moment, moment)
            marks = ", ".join("?" * len(row))
            self._database.change(f"INSERT INTO {TABLE} ({COLUMNS}) VALUES ({marks})", row)
            at = self.at(place)
        stored = at and self._database.fetch(
            f"SELECT {COLUMNS} FROM {TABLE} WHERE {key} = ?", (at.key,)
        )
        if not stored or stored[0][1:6] != (*place, token, key_id):
            raise _undone(place, "is not what was stored just now")
        return str(stored[0][0])

    def delete(self, place: Place) -> bool:
        """Remove the row at the place; whether there was one. Raises as `put`."""
        if (at := self.at(place)) is None:
            return False
        key = self._database.row_key(TABLE)
        self._database.change(f"DELETE FROM {TABLE} WHERE {key} = ?", (at.key,))
        if self.at(place) is not None:
            raise _undone(place, "is still there after it was deleted")
        return True

    def swap(self, swaps: Sequence[Swap]) -> int:
        """Put in new tokens; how many rows still had what they had when that was read."""
        key = self._database.row_key(TABLE)
        return self._database.change_each(
            f"UPDATE {TABLE} SET encrypted_value = ?, key_id = ? WHERE {key} = ? AND encrypted_value = ? AND key_id = ?",
            swaps,
        )

    # Many rows

    def every(self) -> list[tuple[Any, ...]]:
        """
        All rows as the table has them: plain `COLUMNS`, global ones first, then by project, provider
        and credential_type.
        """
        return self._database.fetch(f"SELECT {COLUMNS} FROM {self._table} {_ORDER}")

    def of_scope(self, project_id: str | None) -> list[tuple[Any, ...]]:
        """
        The rows of one scope, as `every` has them. A row of another, to which an index may lead, is
        left out.
        """
        key = self._database.row_key(TABLE)
        scope = "project_id IS NULL" if project_id is None else "project_id = ?"
        rows = self._database.fetch(
            f"SELECT {COLUMNS} FROM {TABLE} WHERE {key} IN (SELECT {key} FROM {TABLE} WHERE {scope}) {_ORDER}",
            () if project_id is None else (project_id,),
        )
        return [row for row in rows if row[1] == project_id]

    def each(self) -> Iterator[Row]:
        """All rows, one after the other and from one moment."""
        return map(Row._make, self._database.each(f"SELECT {COLUMNS} FROM {self._table}"))

    def pages(self, size: int) -> Iterator[list[tuple[Any, ...]]]:
        """
        All rows in the order of the table, *size* at a time; each plain: `COLUMNS`, and its key.

        Python's garbage collector looks at no tuple of texts twice, and at a `Row` again and again
        (8 % of the cryptography, measured). So make one when it is needed.
        """
        return self._database.pages(TABLE, COLUMNS, size)

    def count(self) -> int:
        return int(self._database.fetch(f"SELECT count(*) FROM {self._table}")[0][0])

    def count_by_key(self) -> Counter[str | None]:
        """How many values name each key; None counts the foreign ones. Reads the look of each."""
        counts: Counter[str | None] = Counter()
        for look, key_id, count in self._database.fetch(
            f"SELECT substr(encrypted_value, 1, 5), key_id, count(*) FROM {self._table} GROUP BY 1, 2"
        ):
            counts[sealing_key(look, key_id)] += count
        return counts

    def keys_named(self) -> set[str]:
        """The keys that `count_by_key` counts, in a sixth of its time (measured): nothing is sorted."""
        found = self._database.fetch(
            f"SELECT DISTINCT substr(encrypted_value, 1, 5), key_id FROM {self._table}"
        )
        return set(filter(None, (sealing_key(look, key_id) for look, key_id in found)))

    def name_keys(self) -> bool:
        """Whether any row names a key, whatever its value."""
        return bool(
            self._database.fetch(f"SELECT 1 FROM {self._table} WHERE key_id IS NOT NULL LIMIT 1")
        )

    def providers(self, project_id: str | None) -> list[str]:
        """
        The providers that have a field in the project's or the global scope; not those whose name no
        look-up takes.
        """
        found = self._database.fetch(
            f"SELECT DISTINCT provider FROM {TABLE} WHERE project_id IS NULL OR project_id = ? ORDER BY 1",
            (project_id,),
        )
        texts = (provider for (provider,) in found if isinstance(provider, str))
        return [provider for provider in texts if provider and provider.isprintable()]

    def places(self, providers: Collection[str] = ()) -> list[tuple[str, str]]:
        """Each provider and field that any scope has stored; of these providers, by default of all."""
        where = f"WHERE provider IN ({', '.join('?' * len(providers))})" if providers else ""
        found = self._database.fetch(
            f"SELECT DISTINCT provider, credential_type FROM {self._table} {where}",
            tuple(providers),
        )
        return [(p, field) for p, field in found if isinstance(p, str) and isinstance(field, str)]

    def shadowing(self) -> list[tuple[Any, ...]]:
        """The projects' own rows that hide a global one: plain project_id, provider, field, id."""
        return self._database.fetch(
            f"SELECT own.project_id, own.provider, own.credential_type, own.id FROM {TABLE} own"
            f" JOIN {TABLE} general ON general.project_id IS NULL AND general.provider = own.provider"
            " AND general.credential_type = own.credential_type"
            " WHERE own.project_id IS NOT NULL ORDER BY 1, 2, 3"
        )

    def outlines(self) -> Iterator[Row]:
        """
        All rows by scope, global ones first, and provider; of each value only whether it is empty.
        """
        seen = "CASE WHEN encrypted_value = '' THEN '' ELSE '-' END"
        return map(
            Row._make,
            self._database.each(
                f"SELECT {_PLACE}, {seen}, NULL, NULL, '', '' FROM {self._table} ORDER BY project_id IS NOT NULL, project_id, provider"
            ),
        )

    @property
    def _table(self) -> str:
        return self._database.whole(TABLE)


def _by_field(rows: Iterable[Sequence[Any]]) -> dict[str, Row]:
    """
    The project's rows come first: walked backwards, they take the place of the global ones. Another
    tool's bytes name no field.
    """
    backwards = reversed(list(rows))
    by_field = {row[3]: Row._make(row) for row in backwards if isinstance(row[3], str)}
    return dict(sorted(by_field.items()))


def _undone(place: Place, what: str) -> StorageError:
    return StorageError(
        f"{place}: the row {what}; nothing was changed",
        hint="a trigger in the database may do that: 'vault doctor' names those on our tables",
    )
