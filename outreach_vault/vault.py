"""
The adapter's object: open, get, has, set, delete, list.

A look-up takes the project's row, else the global one (`project_id` NULL), and fails closed: if the
project's row cannot be opened, that is an error. The global value would send from the wrong
account. Every look-up goes through one resolver.
"""
# mypy: disable-error-code="overload-overlap"
# `bundle("smtp")` is more exact than `bundle(str)`.

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self, TypeVar, overload

from .database import Database, Location, locate
from .errors import (
    CredentialNotFound,
    SchemaMismatch,
    SchemaOutdated,
    WrongArgument,
)
from .keys import states
from .keys.keyset import KeySet
from .keys.stores import KeyStore, choose
from .schema import facts
from .schema.shapes import Place, as_texts, is_text
from .schema.steps import SHARED, own_steps
from .secret import Secret
from .values import rows
from .values.bundle import (
    AnthropicBundle,
    AnyBundle,
    ElevenLabsBundle,
    SmtpBundle,
    TwilioBundle,
    bundle_of,
)
from .values.credential import AccessToken, Credential, Scope
from .values.declared import Bundle, ready
from .values.opening import State, open_row, state
from .values.projects import Projects
from .values.rows import Rows, Stored, name, place_of, sealing_key
from .values.sealing import require_storable, seal

if TYPE_CHECKING:
    import ssl

    from .schema.models import BoundDatabase


B = TypeVar("B", bound=Bundle)


class Every(enum.Enum):
    """For `Vault.list`: all scopes."""

    SCOPE = "every scope"


class Entry(NamedTuple):
    """
    One row of `provider_credentials`, without its value.

    Attributes:
        state: `ok` (this vault's token, and its key can be read; not opened), `foreign` (not sealed
            by this vault), or `key missing` (its key cannot be read now, for whatever reason).
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
    def scope(self) -> Scope:
        return "global" if self.project_id is None else "project"


# The tables that the vault itself needs.
_TABLES: Final = frozenset({"projects", *rows.TABLES, rows.GRANTS, states.TABLE, facts.TABLE})
Entries = list[Entry]  # `list` is a method below


class Vault:
    """
    An open vault. Threads share it, forked children inherit it, several may be open at once.

    Get one from `Vault.open`; close it, or use it in a `with` statement.

    Attributes:
        database: its database. For an adapter's own queries use `bind_models`.
        keys, rows, projects: its keys, stored values and projects, for the operator's functions.
    """

    def __init__(self, database: Database, keys: KeySet) -> None:
        self.database = database
        self.keys = keys
        self.rows = Rows(database)
        self.projects = Projects(database)

    @classmethod
    def open(
        cls,
        database: str | os.PathLike[str] | Location | None = None,
        *,
        key_store: KeyStore | None = None,
        read_only: bool = False,
    ) -> Self:
        """
        Open the vault in an existing database. Nothing is created, migrated or repaired here.

        Args:
            database: the file's path, or the URL of a PostgreSQL database; by default
                OUTREACH_VAULT_DB or OUTREACH_VAULT_DB_FILE, else the desktop app's file.
            key_store: by default what OUTREACH_VAULT_KEYS or OUTREACH_VAULT_KEY_DIR names, else the
                OS keyring. Each key is read once, when first needed.
            read_only: refuse every write through this vault.
        Raises:
            SchemaError: no database, not one of ours, or 'vault init' was not run.
            StorageError: it cannot be read now.
        """
        database = locate(database)  # as in `open_database`
        opened = database.open(read_only=read_only)
        try:
            store = store_of(key_store)
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
            project_id: None means the global value alone.
            fallback: False means this exact scope.
        Raises:
            CredentialNotFound: no such value. ProjectNotFound: no such project.
            UnreadableValue, KeyUnavailable: the first row in that order cannot be opened; the next
                is not tried.
        """
        row = self.rows.one(provider, credential_type, project_id, fallback=fallback)
        return Credential(row, open_row(self.keys, row))

    @overload
    def bundle(self, provider: type[B], project_id: str | None = None) -> B: ...
    @overload
    def bundle(self, provider: Literal["smtp"], project_id: str | None = None) -> SmtpBundle: ...
    @overload
    def bundle(
        self, provider: Literal["twilio"], project_id: str | None = None
    ) -> TwilioBundle: ...
    @overload
    def bundle(
        self, provider: Literal["elevenlabs"], project_id: str | None = None
    ) -> ElevenLabsBundle: ...
    @overload
    def bundle(
        self, provider: Literal["anthropic"], project_id: str | None = None
    ) -> AnthropicBundle: ...
    @overload
    def bundle(self, provider: str, project_id: str | None = None) -> AnyBundle: ...
    def bundle(self, provider: str | type[Bundle], project_id: str | None = None) -> Bundle:
        """
        All fields of a provider, from one account and one moment.

        Each is the project's value, else the global one. With a literal name, such as `"smtp"`, a
        type checker knows the fields; so it does with a class of your own (`Bundle`).

        Raises:
            IncompleteAccount: required fields are missing; it names them all.
            MixedAccount: fields that belong to one account come from two scopes; it names the rows.
            ProjectNotFound: no such project.
            UnreadableValue, KeyUnavailable: one of the rows cannot be opened.
            TypeError: the catalogue does not have what the class declares.
        """
        kind: type[Bundle] = AnyBundle
        if isinstance(provider, type):
            kind, provider = ready(provider), provider.provider
        rows = self.rows.fields(provider, project_id)
        return bundle_of(provider, project_id, rows, lambda row: open_row(self.keys, row), kind)

    def access_token(
        self,
        provider: str,
        project_id: str | None = None,
        *,
        refused: Secret | None = None,
        http_seconds: float = 10.0,
        lease_seconds: float = 30.0,
        context: ssl.SSLContext | None = None,
        insist: bool = False,
    ) -> AccessToken:
        """
        The access token of an account with OAuth2, which lasts for 60 more seconds at least.

        It is the stored one while that lasts, whoever got it; else the provider is asked for a new
        one, by one process for all. If the provider gives tokens for less than two minutes, half
        of that is left. If it cannot give one now, the old one is given out while it lasts at all.

        Args:
            project_id: as for `bundle`: the project's own account, else the global one.
            refused: a token that the provider has just refused; get another.
            http_seconds: the time limit for asking the provider; half of *lease_seconds* at most.
            lease_seconds: after that, another process asks in the place of one that was killed.
            context: what TLS trusts; by default the system's authorities.
            insist: ask even if the provider refused a short time ago.
        Raises:
            IncompleteAccount: the account has no grant. MixedAccount and others as `bundle`.
            NeedsLogin: the provider takes the refresh token no more.
            ClientRefused, ProviderUnreachable, NoTokenGiven: as they say. Nothing was deleted.
            LibraryMissing: the extra `oauth` is not installed.
            StorageError: the database cannot be written, or a transaction is open.
        """
        from .values.access import Access  # here: only accounts with OAuth2 need it

        access = Access(
            *(self.database, self.rows, self.keys),
            http_seconds=http_seconds,
            lease=lease_seconds,
            context=context,
        )
        return access.token(provider, project_id, refused=refused, insist=insist)

    def has(
        self,
        provider: str,
        credential_type: str,
        project_id: str | None = None,
        *,
        fallback: bool = True,
    ) -> bool:
        """
        Whether `get` would find a row; not whether the row would open.

        Raises:
            ProjectNotFound: no such project.
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
        due: date | None = None,
    ) -> str:
        """
        Store a value at exactly one place, in one write transaction.

        The active key is read under the write lock, so a rotation misses no writer. If the key
        store says that another key replaced it, nothing is stored (`KeySuperseded`).

        Args:
            value: 1 character to 64 KiB of UTF-8, kept exactly as it is.
            label: a name for people; None keeps the present one, empty text removes it.
            due: the day when the value is due to be replaced (`vault due`).
        Returns:
            The row's id. Replacing a value changes neither it nor `created_at`.
        Raises:
            ProjectNotFound, KeyUnavailable, StorageError: nothing was stored.
            TypeError, ValueError: an argument cannot be stored; the text names it. The catalogue's
                rules do not apply here: only the command, `vault set`, checks them.
        """
        try:
            given = value if isinstance(value, Secret) else Secret(value)
        except TypeError as error:
            raise TypeError(f"value: {error}") from None
        finally:
            value = ""  # from here on, no variable in our frames holds the text
        if due is not None and not isinstance(due, date):
            raise _wrong_type("due", type(due), "a date")
        place = place_of(provider, credential_type, project_id)
        return self.store([(place, given)], label, due)[0].id

    def set_fields(
        self, provider: str, values: Mapping[str, str | Secret], project_id: str | None = None
    ) -> None:
        """
        Store several fields of a provider, all or none. Raises what `set` raises.

        Nobody reads an account half old and half new.
        """
        given: dict[str, Secret] = {}
        value: str | Secret = ""
        try:
            if not isinstance(values, Mapping):
                raise _wrong_type("values", type(values), "a mapping of names to values")
            for name, value in values.items():
                try:
                    given[name] = value if isinstance(value, Secret) else Secret(value)
                except TypeError as error:
                    raise TypeError(f"values[{name!r}]: {error}") from None
        finally:
            values, value = {}, ""  # from here on, no variable in our frames holds a text
        if not given:  # nothing else would look at the project
            self.rows.require_project(place_of(provider, "any", project_id).project_id)
        places = (place_of(provider, name, project_id) for name in given)
        self.store(list(zip(places, given.values(), strict=True)))

    def store(
        self,
        values: Sequence[tuple[Place, Secret]],
        label: str | None = None,
        due: date | None = None,
        *,
        labels: Mapping[Place, str | None] | None = None,
        before: Callable[[], None] | None = None,
    ) -> Sequence[Stored]:
        """
        What `set` and `set_fields` do, in one write transaction. For the command: it says for each
        value, in the same order, whether one was there before.

        Args:
            labels: for places with a label of their own.
            before: what to do first in the transaction, which is alone then.
        """
        if label is not None:
            require_label(label)
        for _, value in values:
            require_storable(value)
        named = labels or {}

        def store() -> Sequence[Stored] | None:
            active = self.keys.states.active_id()
            if cipher := self.keys.for_sealing(active):
                if before:  # not earlier: where nothing can be sealed yet, nothing is done
                    before()
                # In the order of the places: two that store the same ones wait in one line.
                done = {
                    at: self.rows.put(
                        place, seal(cipher, place, value), active, named.get(place, label)
                    )
                    for at, (place, value) in sorted(enumerate(values), key=_by_place)
                }
                if due:
                    for each in done.values():
                        self.rows.due.name(each.id, due)
                return [done[at] for at in range(len(values))]
            return None

        while (stored := self.database.write(store, alone=before is not None)) is None:
            self.keys.prove_active()  # without the lock: a keyring may take seconds
        return stored

    def delete(self, provider: str, credential_type: str, project_id: str | None = None) -> bool:
        """
        Remove the value of exactly one scope. Returns whether there was one.

        Raises:
            ProjectNotFound: no such project.
        """
        place = place_of(provider, credential_type, project_id)
        return self.database.write(lambda: self.rows.delete(place))

    def list(self, project_id: str | Every | None = Every.SCOPE) -> Entries:
        """
        Rows without their values, global ones first, then by project, provider and credential_type.

        Nothing is decrypted, and no bad row breaks the list. If a key cannot be read, its rows show
        `key missing`.

        Args:
            project_id: this project's own rows, or None for the global ones; by default all.
        Raises:
            ProjectNotFound: no such project.
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
        The rows that `get` would take, for one field of *provider* or for all of them.

        Raises:
            CredentialNotFound: no such value. ProjectNotFound: no such project.
        """
        rows = self.rows.found(provider, credential_type, project_id)
        if not rows:
            fault = f"{provider}: no credential of this provider"
            raise CredentialNotFound(fault, hint="'vault list' shows what is stored")
        return self._entries(rows.values())

    def bind_models(self) -> BoundDatabase:
        """
        Bind the classes of `outreach_vault.models` to this vault's database, for the whole process.

        The vault itself does not need it. Of several open vaults, the last to bind gets them.

        Returns:
            Peewee's database object. Vault calls inside its `atomic()` join that transaction.
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
        """From plain rows: a `Row` for each of ten thousand would be made for nothing."""
        sealed = [(row, sealing_key(row[4], row[5])) for row in rows]
        problems = self.keys.survey({key_id for _, key_id in sealed if key_id})
        entries = []
        for row, key_id in sealed:
            row_id, project_id, provider, field, _, named, label, created_at, updated_at = row
            facts = (row_id, project_id, provider, field, label, state(key_id, problems), named)
            entries.append(Entry._make(as_texts((*facts, created_at, updated_at))))
        return entries


def _by_place(numbered: tuple[int, tuple[Place, Secret]]) -> tuple[str, ...]:
    return tuple(text or "" for text in numbered[1][0])


def require_label(label: str) -> None:
    """Raise TypeError or ValueError unless it can be stored as a label."""
    if not isinstance(label, str):
        raise _wrong_type("label", type(label))
    if not is_text(label):
        raise WrongArgument("label: half a surrogate pair, which is not text")


def _wrong_type(argument: str, found: type, wanted: str = "text") -> TypeError:
    """Shows the type alone: the argument may be a secret."""
    return TypeError(f"{argument}: must be {wanted}, not {found.__name__}")


def store_of(key_store: KeyStore | None) -> KeyStore:
    if key_store is not None and (isinstance(key_store, type) or not hasattr(key_store, "read")):
        raise _wrong_type("key_store", type(key_store), "a key store such as KeyDirectory(PATH)")
    return choose() if key_store is None else key_store


def _vault_id(database: Database) -> str:
    """The vault's id; raises if the file does not fit this version."""
    noted: dict[str, str] = {}
    with contextlib.suppress(SchemaMismatch):
        if database.tables() >= _TABLES:  # a view in a table's place could run for ever
            noted = facts.facts(database)
    if noted.get("version") != str(own_steps()) or database.schema_version() < SHARED:
        from .schema.migrator import require_current  # here: a current file needs none of it

        require_current(database)
    if not noted.get("vault_id"):
        fault = f"{database.name}: its vault_meta has no vault_id"
        raise SchemaOutdated(fault, hint="restore a backup")
    return noted["vault_id"]
