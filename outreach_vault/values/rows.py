"""
`provider_credentials`: which row a look-up means, and every other statement on that table.

A look-up takes the project's row, else the global one (`project_id` NULL). It fails closed: if the
project has a row, that is the answer, whatever it holds. An unknown project never gets the global
value.

A damaged index may lead to another row, so nothing here trusts the row that it finds. A row to be
opened gets the place that was *asked for*, and its token opens only there (`one`, `fields`).
Everything else rereads a row by its own key, without an index, and compares its columns with what
was asked for (`found`, `at`, `of_scope`).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..cipher import looks_sealed
from ..database import Database
from ..errors import (
    CredentialNotFound,
    DuplicateCredentials,
    ProjectNotFound,
    WrongArgument,
    brief,
    typed_id,
    undone,
)
from ..providers import may_have_grant
from ..schema.shapes import Place, new_id, now

if TYPE_CHECKING:
    from .due import Due
    from .history import Ending, History, Previous
    from .tokens import Tokens

TABLE: Final = "provider_credentials"
TABLES: Final = (TABLE, "vault_tokens", "vault_history")  # all that have values
GRANTS: Final = "vault_grants"


class Row(NamedTuple):
    """One row as stored, unopened. Its fields are the columns; they are listed only here."""

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
    The key that sealed a value, or None if this vault did not seal it (it is *foreign*).

    Args:
        stored: the value, or its beginning. Its look decides: when the app overwrites a value, it
            leaves our key_id behind.
    """
    if isinstance(key_id, str) and key_id and looks_sealed(stored):  # '' names none, like NULL
        return key_id
    return None


class At(NamedTuple):
    """What is at a place: the row's id, and its key in the table (`Database.row_key`)."""

    id: str | None
    key: Any


class Stored(NamedTuple):
    """What `Rows.put` did: the row's id, and whether a value was there before."""

    id: str
    replaced: bool


# One update of a rotation: the new token and its key's id; the row's key in the table (another tool
# may have left the id empty); the token and key id that must still be there.
Swap = tuple[str, str, Any, str, str]

COLUMNS: Final = ", ".join(Row._fields)
_STORED: Final = ", ".join(Row._fields[:6])
_REST: Final = ", ".join(Row._fields[4:])
_PLACE: Final = ", ".join(("id", *Place._fields))
# One index search for each scope: with OR, SQLite reads every project of the provider (1.4 ms at a
# million rows, measured). If the project has the row, the global search is skipped.
_OWN: Final = "project_id = :project_id AND provider = :provider"
_GENERAL: Final = "project_id IS NULL AND provider = :provider"
_FIELD: Final = " AND credential_type = :credential_type"
_ORDER: Final = "ORDER BY project_id IS NOT NULL, project_id, provider, credential_type"
# Enough for a value that opens only in this project.
_LISTED: Final = "EXISTS (SELECT 1 FROM projects WHERE id = :project_id)"


def place_of(provider: str, credential_type: str, project_id: str | None) -> Place:
    """
    The place that three names mean.

    Raises:
        TypeError, ValueError: a name is not text, is empty, or has unprintable characters.
    """
    try:
        return _known_place(provider, credential_type, project_id)
    except TypeError:  # the cache's own, about a list: it does not say which name that was
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
        raise TypeError(f"{what}: must be text, not {type(text).__name__}")
    if not text or not text.isprintable():
        fault = "has unprintable characters" if text else "is empty"
        raise WrongArgument(f"{what}: the name {fault}")
    return text


class Rows:
    """The rows of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # The table of projects decides which exist. A row whose project is gone is nobody's.
        known = self._known = database.exactly("projects", "id", ":project_id")
        rest = f":provider, :credential_type, {_REST} FROM {TABLE} WHERE"
        own = f"SELECT id, :project_id, {rest} {_OWN}"
        general = f"SELECT id, NULL, {rest} {_GENERAL}"
        self._one_general = general + _FIELD
        # The same text for each write: it is the key of a cache.
        self._at_own, self._at_general = ((_OWN + _FIELD, known),), ((_GENERAL + _FIELD, "1"),)
        self._one = database.first_of(
            f"{own}{_FIELD} AND {_LISTED}", f"{general}{_FIELD} AND {known}"
        )
        own, general = (
            sql.replace(":credential_type", "credential_type") for sql in (own, general)
        )
        self._fields_general = general
        self._fields = f"{own} AND {_LISTED} UNION ALL {general} AND {known}"

    @functools.cached_property
    def history(self) -> History:
        """The previous values."""
        from .history import History  # here, as below: no look-up needs it

        return History(self._database)

    @functools.cached_property
    def due(self) -> Due:
        """When values are due to be replaced."""
        from .due import Due

        return Due(self._database)

    @functools.cached_property
    def tokens(self) -> Tokens:
        """The access tokens of accounts with OAuth2."""
        from .tokens import Tokens

        return Tokens(self._database)

    # Look-ups

    def one(
        self, provider: str, credential_type: str, project_id: str | None, *, fallback: bool = True
    ) -> Row:
        """
        The row to open for one field: the project's, else, with *fallback*, the global one.

        Its place is the one asked for, whatever row was found.

        Raises:
            CredentialNotFound: no such row. ProjectNotFound: no such project.
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
        The row to open for each field of the provider, by field; in one statement, so one moment.

        The place of each is the one asked for, whatever row was found.

        Raises:
            ProjectNotFound: no such project.
        """
        place_of(provider, "any", project_id)
        asked = {"project_id": project_id, "provider": provider}
        search = self._fields_general if project_id is None else self._fields
        rows = self._database.fetch(search, asked)
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
        The rows that `one`, or `fields` without *credential_type*, would take, by field.

        Raises:
            NotADatabase: an index leads to another row. Others as `one` and `fields`; a missing
                provider is no error.
        """
        field = "" if credential_type is None else _FIELD
        asked = "any" if credential_type is None else credential_type
        place = place_of(provider, asked, project_id)
        searches = [(_GENERAL + field, "0")]
        if project_id is not None:
            rest = f"{field} AND {self._known}"
            searches = [(_OWN + rest, "1"), (_GENERAL + rest, "0")]
        again = self._database.read_again(TABLE, COLUMNS, searches)
        rows = self._database.fetch(again, place._asdict())
        for row in rows:
            scope = project_id if row[-2] else None
            if row[1:4] != (scope, provider, credential_type or row[3]):
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
        The row at exactly this place, or None; reread by its key and compared. Nobody else changes
        it until the transaction ends.

        Raises:
            ProjectNotFound: no such project. NotADatabase: an index leads to another row.
            DuplicateCredentials: several rows, because the index is missing.
        """
        search = self._at_general if place.project_id is None else self._at_own
        again = self._database.read_again(TABLE, _PLACE, search, to_change=True)
        rows = self._database.fetch(again, place._asdict())
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
        """Raise ProjectNotFound unless the project exists."""
        if project_id is None:
            return
        asked = {"project_id": project_id}
        if self._database.fetch(f"SELECT {self._known}", asked) != [(1,)]:
            raise ProjectNotFound(
                f"there is no project {typed_id(project_id)}",
                hint="check the id; an unknown project never gets the global value",
            )

    def _nothing_at(self, place: Place, fallback: bool) -> CredentialNotFound:
        """The error for a missing row; raises that of a missing project instead."""
        self.require_project(place.project_id)
        beside = " and no global one" if fallback and place.project_id is not None else ""
        return CredentialNotFound(
            f"{place}: no such credential{beside}",
            hint="'vault list' shows what is stored, 'vault set' stores it",
        )

    # Changes, each inside a write transaction

    def put(self, place: Place, token: str, key_id: str, label: str | None) -> Stored:
        """
        Change or make the row at the place, and read it again.

        Args:
            label: None keeps the present one, empty text removes it.
        Raises:
            StorageError: something else is there afterwards. Others as `at`.
        """
        moment, at = now(), self.at(place)
        if at:
            self._keep(at, "set")
        row = Row((at and at.id) or new_id(), *place, token, key_id, label, moment, moment)
        return Stored(self._put(row, at), at is not None)

    def renew(self, row: Row, token: str, key_id: str) -> bool:
        """
        Put in a value that the provider itself replaced. False if the row has another since.

        The history has no part in it: the provider takes the earlier value no more.
        """
        at = self.at(row.place)
        if at is None or at.id != row.id:
            return False
        this = f"WHERE {self._database.row_key(TABLE)} = ?"
        self._database.change(
            f"UPDATE {TABLE} SET encrypted_value = ?, key_id = ?, updated_at = ?"
            f" {this} AND updated_at = ?",
            (token, key_id, now(), at.key, row.updated_at),
        )
        reread = f"SELECT encrypted_value, updated_at FROM {TABLE} {this}"
        for stored, updated_at in self._database.fetch(reread, (at.key,)):
            if stored != token and updated_at == row.updated_at:
                raise undone(row.place, "is not what was just stored")
            return bool(stored == token)
        return False

    def _put(self, row: Row, at: At | None) -> str:
        key = self._database.row_key(TABLE)
        self._account_changed(row.place)
        if at:
            new = (row.id, row.encrypted_value, row.key_id, row.updated_at)
            self._database.change(
                f"UPDATE {TABLE} SET id = coalesce(id, ?), encrypted_value = ?, key_id = ?,"
                f" updated_at = ?, label = CASE WHEN ? THEN ? ELSE label END WHERE {key} = ?",
                (*new, row.label is not None, row.label or None, at.key),
            )
            self.due.forget(row.id)
        else:
            marks = ", ".join("?" * len(row))
            self._database.change(
                f"INSERT INTO {TABLE} ({COLUMNS}) VALUES ({marks})",
                row._replace(label=row.label or None),
            )
            at = self.at(row.place)
        reread = f"SELECT {_STORED} FROM {TABLE} WHERE {key} = ?"
        stored = at and self._database.fetch(reread, (at.key,))
        if not stored or stored[0][1:6] != row[1:6]:
            raise undone(row.place, "is not what was just stored")
        return str(stored[0][0])

    def delete(self, place: Place) -> bool:
        """Remove the row at the place. Returns whether there was one. Raises as `put`."""
        if (at := self.at(place)) is None:
            return False
        self._keep(at, "delete")
        self.due.forget(at.id)
        self._account_changed(place)
        key = self._database.row_key(TABLE)
        self._database.change(f"DELETE FROM {TABLE} WHERE {key} = ?", (at.key,))
        if self.at(place) is not None:
            raise undone(place, "is still there after it was deleted")
        return True

    def _account_changed(self, place: Place) -> None:
        """Its access token, if it may have one, is not its own any more."""
        if may_have_grant(place.provider):
            self.tokens.forget(place.project_id, place.provider)

    def relabel(self, place: Place, label: str | None) -> bool:
        """
        Change the label alone. Returns whether there is such a row. Raises as `put`.

        `updated_at` stays: it is the value's.
        """
        if (at := self.at(place)) is None:
            return False
        this = f"WHERE {self._database.row_key(TABLE)} = ?"
        self._database.change(f"UPDATE {TABLE} SET label = ? {this}", (label, at.key))
        reread = f"SELECT {_PLACE}, label FROM {TABLE} {this}"
        if self._database.fetch(reread, (at.key,)) != [(at.id, *place, label)]:
            raise undone(place, "does not have the label that was just given")
        return True

    def undo(self, place: Place, number: int | None = None) -> Previous:
        """
        Put a previous value back at its place, unopened; the present one joins the history.

        Args:
            number: which one; by default the newest that was not undone itself.
        Raises:
            CredentialNotFound: there is none. Others as `put`.
        """
        # Locked: a rotation that puts it under the new key meanwhile must not miss it.
        at, previous = self.at(place), self.earlier(place, number, to_change=True)
        if at:
            self._keep(at, "undo", previous)
        self.history.remove([previous.id])
        row = Row._make(previous[: len(Row._fields)])
        self._put(row._replace(id=(at and at.id) or new_id(), label=row.label or ""), at)
        return previous

    def earlier(
        self, place: Place, number: int | None = None, *, to_change: bool = False
    ) -> Previous:
        """The value that `undo` puts back; raises as that does. *to_change*: as `History.of`."""
        for previous in self.history.of(place, to_change=to_change):
            if previous.ended_by != "undo" if number is None else previous.number == number:
                return previous
        which = "earlier value" if number is None else f"value number {number}"
        raise CredentialNotFound(
            f"{place}: the history has no {which} of it",
            hint="'vault history' shows what it has",
        )

    def _keep(self, at: At, ended_by: Ending, taken: Previous | None = None) -> None:
        """Keep the value in the history, if the vault sealed it: else nobody knows its place."""
        key = self._database.row_key(TABLE)
        found = self._database.fetch(f"SELECT {COLUMNS} FROM {TABLE} WHERE {key} = ?", (at.key,))
        for row in map(Row._make, found):
            if row.sealing_key is not None:
                self.history.keep(row, ended_by, taken)

    def swap(self, swaps: Sequence[Swap], table: str = TABLE) -> int:
        """Put in new tokens. Returns how many rows still had the old ones, and were changed."""
        names = ("encrypted_value", "key_id")
        return self._database.swap(table, names, (self._database.row_key(table), *names), swaps)

    # Many rows

    def every(self) -> list[tuple[Any, ...]]:
        """
        All rows as stored, plain `COLUMNS`.

        Global ones first, then by project, provider and credential_type.
        """
        return self._database.fetch(f"SELECT {COLUMNS} FROM {self._table} {_ORDER}")

    def of_scope(self, project_id: str | None) -> list[tuple[Any, ...]]:
        """
        The rows of one scope, as in `every`.

        A row of another scope, which a damaged index may find, is left out.
        """
        key = self._database.row_key(TABLE)
        scope = "project_id IS NULL" if project_id is None else "project_id = ?"
        found = f"SELECT {key} FROM {TABLE} WHERE {scope}"
        rows = self._database.fetch(
            f"SELECT {COLUMNS} FROM {TABLE} WHERE {key} IN ({found}) {_ORDER}",
            () if project_id is None else (project_id,),
        )
        return [row for row in rows if row[1] == project_id]

    def each(self, table: str = TABLE) -> Iterator[Row]:
        """All rows, one at a time, all from one moment."""
        return map(
            Row._make, self._database.each(f"SELECT {COLUMNS} FROM {self._database.whole(table)}")
        )

    def pages(self, size: int, table: str = TABLE) -> Iterator[list[tuple[Any, ...]]]:
        """
        All rows in the table's order, *size* at a time: plain `COLUMNS` and the row's key.

        Python's garbage collector visits a tuple of texts once, but a `Row` again and again (8% of
        the cryptography's time, measured). So make a `Row` only when you need one.
        """
        return self._database.pages(table, COLUMNS, size)

    def count(self, *tables: str) -> int:
        """How many rows these tables have in all."""
        counts = (f"SELECT count(*) FROM {self._database.whole(table)}" for table in tables)
        return sum(self._database.fetch(sql)[0][0] for sql in counts)

    def count_by_key(self, *tables: str) -> Counter[str | None]:
        """
        How many values name each key; None counts the foreign ones. Reads only their look.

        Args:
            tables: by default both, counted at one moment: a value may go from one to the other.
        """
        look = "substr(encrypted_value, 1, 5)"
        rows = f"SELECT {look}, key_id, count(*) FROM {self._tokens(*tables)} GROUP BY 1, 2"
        counts: Counter[str | None] = Counter()
        for start, key_id, count in self._database.fetch(rows):
            counts[sealing_key(start, key_id)] += count
        return counts

    def count_by_project(self) -> Counter[object]:
        """How many values each project has of its own; None counts the global ones."""
        found = self._database.fetch(f"SELECT project_id, count(*) FROM {self._table} GROUP BY 1")
        return Counter(dict(found))

    def keys_named(self) -> set[str]:
        """The keys in `count_by_key`, in a sixth of its time (measured): it sorts nothing."""
        rows = f"SELECT DISTINCT substr(encrypted_value, 1, 5), key_id FROM {self._tokens()}"
        found = (sealing_key(start, key_id) for start, key_id in self._database.fetch(rows))
        return set(filter(None, found))

    def name_keys(self) -> bool:
        """Whether any row names a key, whatever its value."""
        rows = f"SELECT 1 FROM {self._tokens()} WHERE key_id IS NOT NULL LIMIT 1"
        return bool(self._database.fetch(rows))

    def providers(self, project_id: str | None) -> list[str]:
        """The providers in the project's or the global scope, except names no look-up accepts."""
        scopes = "project_id IS NULL OR project_id = ?"
        rows = f"SELECT DISTINCT provider FROM {TABLE} WHERE {scopes} ORDER BY 1"
        found = self._database.fetch(rows, (project_id,))
        texts = (provider for (provider,) in found if isinstance(provider, str))
        return [provider for provider in texts if provider and provider.isprintable()]

    def places(self, providers: Collection[str] = ()) -> list[tuple[str, str]]:
        """Each provider and field stored in any scope; of these providers, by default of all."""
        where = f"WHERE provider IN ({', '.join('?' * len(providers))})" if providers else ""
        rows = f"SELECT DISTINCT provider, credential_type FROM {self._table} {where}"
        found = self._database.fetch(rows, tuple(providers))
        return [(p, field) for p, field in found if isinstance(p, str) and isinstance(field, str)]

    def shadowing(self) -> list[tuple[Any, ...]]:
        """Project rows that hide a global one: plain project_id, provider, credential_type, id."""
        return self._database.fetch(
            f"SELECT own.project_id, own.provider, own.credential_type, own.id FROM {TABLE} own"
            f" JOIN {TABLE} general ON general.project_id IS NULL"
            " AND general.provider = own.provider"
            " AND general.credential_type = own.credential_type"
            " WHERE own.project_id IS NOT NULL ORDER BY 1, 2, 3"
        )

    def outlines(self) -> Iterator[Row]:
        """
        All rows by scope (global first) and provider. Of each value only its beginning, which shows
        whether it is empty and whose it is.
        """
        start = "substr(encrypted_value, 1, 5)"
        rows = f"SELECT {_PLACE}, {start}, key_id, NULL, '', '' FROM {self._table}"
        return map(Row._make, self._database.each(f"{rows} {_ORDER}"))

    def _tokens(self, *tables: str) -> str:
        """Every token and its key, for FROM: of these tables, by default of both."""
        each = (
            f"SELECT encrypted_value, key_id FROM {self._database.whole(table)}"
            for table in tables or TABLES
        )
        return f"({' UNION ALL '.join(each)}) AS tokens"

    @property
    def _table(self) -> str:
        return self._database.whole(TABLE)


def _by_field(rows: Iterable[Sequence[Any]]) -> dict[str, Row]:
    """
    The rows by field; a project's row replaces the global one. Bytes that another tool stored name
    no field.
    """
    named = [row for row in rows if isinstance(row[3], str)]
    named.sort(key=lambda row: (row[3], row[1] is not None))
    return {row[3]: Row._make(row) for row in named}
