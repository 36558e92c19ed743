"""
The adapter's object: open, get, has, set, delete, list.

A look-up takes the project's row, else the global one (`project_id` NULL), and fails closed: a project's
row that cannot be opened is an error and never answered with the global value, which would send from
the wrong account. One resolver serves all that look up.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self, overload

from .database import Database, locate, open_database
from .errors import (
    CredentialNotFound,
    KeyMissing,
    OperationRunning,
    SchemaMismatch,
    SchemaOutdated,
    StorageError,
    WrongArgument,
)
from .files import alone
from .keys import home, states
from .keys.keyset import KeySet
from .keys.states import KeyStates
from .keys.stores import KeyStore, choose, prove
from .schema import facts
from .schema.shapes import Place, as_texts, is_text
from .schema.steps import SHARED, own_steps
from .secret import Secret
from .values import rows
from .values.bundle import (
    AnthropicBundle,
    AnyBundle,
    Bundle,
    Credential,
    ElevenLabsBundle,
    SmtpBundle,
    TwilioBundle,
    bundle_of,
)
from .values.opening import State, open_row, state
from .values.rows import Rows, name, place_of, sealing_key
from .values.sealing import require_storable, seal

if TYPE_CHECKING:
    from .schema import migrator
    from .schema.models import BoundDatabase


class Every(enum.Enum):
    """For `Vault.list`: not one scope but all."""

    SCOPE = "every scope"


class Entry(NamedTuple):
    """
    One row of `provider_credentials`, without its value.

    Attributes:
        state: `ok` (a token of this vault whose key is at hand; not opened), `foreign` (not sealed by
            this vault), or `key missing` (its key cannot be had now, for whatever reason).
    """

    id: str
    project_id: str | None
    provider: str
    credential_type: str
    label: str | None
    state: State
    key_id: str | None
    created_at: str
    updated_at: str

    @property
    def scope(self) -> str:
        return "global" if self.project_id is None else "project"


# All that the vault itself needs.
_TABLES: Final = frozenset({"projects", rows.TABLE, states.TABLE, facts.TABLE})
_PATIENCE: Final = (
    30.0  # seconds for the key of another process's init: a keyring may take ten for each call
)
Entries = list[Entry]  # `list` is a method below
Ids = list[str]


class Vault:
    """
    An open vault. Threads share it, forked children inherit it, several may be open side by side.

    Made by `Vault.open`; close it, or use it in a `with` statement.

    Attributes:
        database: its database; `bind_models` is for an adapter's own queries.
        keys, rows: its keys and its stored values, for the operator's functions.
    """

    def __init__(self, database: Database, keys: KeySet) -> None:
        self.database = database
        self.keys = keys
        self.rows = Rows(database)

    @classmethod
    def open(
        cls,
        database: str | os.PathLike[str] | None = None,
        *,
        key_store: KeyStore | None = None,
        read_only: bool = False,
    ) -> Self:
        """
        Open the vault in an existing database. Nothing is created, migrated or repaired here.

        Args:
            database: the file's path; by default OUTREACH_VAULT_DB, else the desktop app's own file.
            key_store: by default what OUTREACH_VAULT_KEYS or OUTREACH_VAULT_KEY_DIR names, else the
                OS keyring. It is asked for a key when one is first needed, and once for each key.
            read_only: let SQLite refuse every write through this vault.
        Raises:
            SchemaError: no database, not one of ours, or not made ready with 'vault init'.
            StorageError: it cannot be read just now.
        """
        opened = open_database(database, read_only=read_only)
        try:
            store = _store(key_store)
            return cls(opened, KeySet(opened, store, _vault_id(opened)))
        except BaseException:
            opened.close_all()
            raise

    def get(
        self,
        provider: str,
        credential_type: str,
        project_id: str | None = None,
        *,
        fallback: bool = True,
    ) -> Credential:
        """
        The project's value, else the global one.

        Args:
            project_id: None asks for the global value alone.
            fallback: False asks for the exact scope.
        Raises:
            CredentialNotFound: there is none. ProjectNotFound: there is no such project.
            UnreadableValue, KeyUnavailable: the row that is first in order cannot be opened; there is
                no second choice.
        """
        row = self.rows.one(provider, credential_type, project_id, fallback=fallback)
        return Credential(row, open_row(self.keys, row))

    @overload
    def bundle(self, provider: Literal["smtp"], project_id: str | None = None) -> SmtpBundle: ...  # type: ignore[overload-overlap]  # more exact than str
    @overload
    def bundle(
        self, provider: Literal["twilio"], project_id: str | None = None
    ) -> TwilioBundle: ...  # type: ignore[overload-overlap]  # more exact than str
    @overload
    def bundle(
        self, provider: Literal["elevenlabs"], project_id: str | None = None
    ) -> ElevenLabsBundle: ...  # type: ignore[overload-overlap]  # more exact than str
    @overload
    def bundle(
        self, provider: Literal["anthropic"], project_id: str | None = None
    ) -> AnthropicBundle: ...  # type: ignore[overload-overlap]  # more exact than str
    @overload
    def bundle(self, provider: str, project_id: str | None = None) -> AnyBundle: ...
    def bundle(self, provider: str, project_id: str | None = None) -> Bundle:
        """
        All fields of a provider, from one account and one moment: for each the project's value, else the global one.

        A type checker knows the fields of a provider that is named in the call itself, as `"smtp"`.

        Raises:
            IncompleteAccount: required fields are missing; it names all of them.
            MixedAccount: fields that belong to one account come from two scopes; it names the rows.
            ProjectNotFound: there is no such project.
            UnreadableValue, KeyUnavailable: a row that is first in order cannot be opened.
        """
        rows = self.rows.fields(provider, project_id)
        return bundle_of(provider, project_id, rows, lambda row: open_row(self.keys, row))

    def has(
        self,
        provider: str,
        credential_type: str,
        project_id: str | None = None,
        *,
        fallback: bool = True,
    ) -> bool:
        """
        Whether `get` would find a row, in the same order; not whether it would open.

        Raises:
            ProjectNotFound: there is no such project.
        """
        try:
            self.rows.found(provider, credential_type, project_id, fallback=fallback)
        except CredentialNotFound:
            return False
        return True

    def set(
        self,
        provider: str,
        credential_type: str,
        value: str | Secret,
        project_id: str | None = None,
        *,
        label: str | None = None,
    ) -> str:
        """
        Store a value at exactly one place, in one write transaction.

        The active key is read under the write lock, so a rotation cannot pass a writer by. Where the key
        store says that another key has replaced it, nothing is stored (`KeySuperseded`).

        Args:
            value: 1 character to 64 KiB of UTF-8, kept exactly as it is.
            label: a name for people; None keeps the one that is there, empty text removes it.
        Returns:
            The row's id, which stays when a value is replaced, as does `created_at`.
        Raises:
            ProjectNotFound, KeyUnavailable, StorageError: nothing was stored.
            TypeError, ValueError: an argument cannot be stored; the text names it. What a provider's value looks like is not
                looked at: the catalogue's rules are those of the command, `vault set`.
        """
        try:
            given = value if isinstance(value, Secret) else Secret(value)
        except TypeError as error:
            raise TypeError(f"value: {error}") from None
        finally:
            value = ""  # from here on no frame of ours has the text in a variable
        if label is not None and not isinstance(label, str):
            raise _no_text("label", type(label))
        if label and not is_text(label):
            raise WrongArgument("label: half a surrogate pair, which is not text")
        return self._store([(place_of(provider, credential_type, project_id), given)], label)[0]

    def set_fields(
        self, provider: str, values: Mapping[str, str | Secret], project_id: str | None = None
    ) -> None:
        """
        Store several fields of a provider, all of them or none; as `set`, which says what it raises.

        An account that changes is never read half old and half new.
        """
        given: dict[str, Secret] = {}
        value: str | Secret = ""
        try:
            if not isinstance(values, Mapping):
                raise _no_text("values", type(values), "a mapping of names to values")
            for name, value in values.items():
                try:
                    given[name] = value if isinstance(value, Secret) else Secret(value)
                except TypeError as error:
                    raise TypeError(f"values[{name!r}]: {error}") from None
        finally:
            values, value = {}, ""  # from here on no frame of ours has a text in a variable
        self._store(
            [(place_of(provider, name, project_id), secret) for name, secret in given.items()], None
        )

    def _store(self, values: Sequence[tuple[Place, Secret]], label: str | None) -> Ids:
        """In one write transaction; the ids of the rows."""
        for _, value in values:
            require_storable(value)

        def store() -> Ids | None:
            active = self.keys.states.active_id()
            if cipher := self.keys.for_sealing(active):
                return [
                    self.rows.put(place, seal(cipher, place, value), active, label)
                    for place, value in values
                ]
            return None

        while (ids := self.database.write(store)) is None:
            self.keys.prove_active()  # without the lock: a keyring may need seconds
        return ids

    def delete(self, provider: str, credential_type: str, project_id: str | None = None) -> bool:
        """
        Remove the value of exactly one scope; whether there was one.

        Raises:
            ProjectNotFound: there is no such project.
        """
        place = place_of(provider, credential_type, project_id)

        return self.database.write(lambda: self.rows.delete(place))

    def list(self, project_id: str | Every | None = Every.SCOPE) -> Entries:
        """
        Rows without their values, global ones first, then by project, provider and credential_type.

        Nothing is decrypted, and no bad row breaks the list. A key store that cannot be asked shows as
        `key missing` on its rows.

        Args:
            project_id: exactly this project's rows, or, for None, the global ones; by default all.
        Raises:
            ProjectNotFound: there is no such project.
        """
        if isinstance(project_id, Every):
            return self._entries(self.rows.every())
        if project_id is not None:
            self.rows.require_project(name("project_id", project_id))
        return self._entries(self.rows.of_scope(project_id))

    def which(
        self, provider: str, credential_type: str | None = None, project_id: str | None = None
    ) -> Entries:
        """
        The rows that `get` would take, for one field of *provider* or for each that it has.

        Raises:
            CredentialNotFound: there is none. ProjectNotFound: there is no such project.
        """
        rows = self.rows.found(provider, credential_type, project_id)
        if not rows:
            raise CredentialNotFound(
                f"{provider}: no credential of this provider",
                hint="'vault list' shows what is stored",
            )
        return self._entries(rows.values())

    def bind_models(self) -> BoundDatabase:
        """
        Bind the classes of `outreach_vault.models` to this vault's database, for the whole process.

        The vault itself does not need it. With several vaults open, the last one bound has them.

        Returns:
            Peewee's database object, for `atomic()`: the vault's own calls inside it are a part of that transaction.
        """
        from .schema.models import bind  # here: nothing else needs Peewee

        return bind(self.database)

    def close(self) -> None:
        """Close the database for all threads."""
        self.database.close_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _entries(self, rows: Iterable[Sequence[Any]]) -> Entries:
        """One for each; plain rows will do: of ten thousand, each `Row` would be made for nothing."""
        sealed = [(row, sealing_key(row[4], row[5])) for row in rows]
        problems = self.keys.survey({key_id for _, key_id in sealed if key_id})
        entries = []
        for row, key_id in sealed:
            row_id, project_id, provider, field, _, named, label, created_at, updated_at = row
            facts = (row_id, project_id, provider, field, label, state(key_id, problems), named)
            entries.append(Entry._make(as_texts((*facts, created_at, updated_at))))
        return entries


def init(
    database: str | os.PathLike[str] | None = None,
    *,
    key_store: KeyStore | None = None,
    on_schema: Callable[[migrator.Migration], None] | None = None,
) -> str | None:
    """
    Make a database ready: create a missing one, else back it up and migrate it; then make the first key.

    Args:
        database, key_store: as for `Vault.open`.
        on_schema: told what was done to the schema, before a key is made.
    Returns:
        The id of the key that was made, or None where there was one.
    Raises:
        SchemaError, StorageError: the database cannot be made ready. KeyUnavailable: no key can be made,
            or the one that there is cannot be had; run it again when the cause is mended. Where the key store cannot
            be used, nothing was changed.
    """
    from .schema import migrator  # here: an adapter never makes a database ready

    path = locate(database)
    store = _store(key_store)
    _require_usable(store, path)
    with contextlib.suppress(
        OperationRunning
    ):  # a file system without locks is known before anything is made
        alone(path, lambda: None)
    try:
        done = migrator.migrate(path) if os.path.lexists(path) else migrator.create(path)
    except StorageError:
        if not os.path.lexists(path):
            raise
        done = migrator.migrate(path)  # another process was faster to create it
    if on_schema:
        on_schema(done)

    def make_key() -> str | None:
        made = vault.keys.ensure_active(vault.rows.name_keys)
        if home.original(vault.database, vault.keys) is None:
            home.record(vault.database, vault.keys)
        return made

    with Vault.open(path, key_store=store) as vault:
        return vault.database.operators_turn(make_key, patience=_PATIENCE)


def _require_usable(store: KeyStore, path: Path) -> None:
    """Before anything is changed: the key store answers for the key that there is, or keeps one that is tried."""
    vault_id = key_id = None
    if os.path.lexists(path):
        opened = open_database(path, read_only=True)
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


def _no_text(argument: str, found: type, wanted: str = "text") -> TypeError:
    """By its type and never by what it is: it may be a secret."""
    return TypeError(f"{argument}: {wanted} is needed, not {found.__name__}")


def _store(key_store: KeyStore | None) -> KeyStore:
    if key_store is not None and (isinstance(key_store, type) or not hasattr(key_store, "read")):
        raise _no_text("key_store", type(key_store), "a key store, as KeyDirectory(PATH),")
    return choose() if key_store is None else key_store


def _vault_id(database: Database) -> str:
    """The vault's id, where the file is ready for this version; the reason where it is not."""
    noted: dict[str, str] = {}
    with contextlib.suppress(SchemaMismatch):
        if database.tables() >= _TABLES:  # a view in a table's place may do anything, and for ever
            noted = facts.facts(database)
    if noted.get("version") != str(own_steps()) or database.schema_version() < SHARED:
        from .schema.migrator import require_current  # here: a file that is ready needs none of it

        require_current(database)
    if not noted.get("vault_id"):
        raise SchemaOutdated(
            f"{database.path}: its vault_meta names no vault", hint="restore a backup"
        )
    return noted["vault_id"]
