"""
One family of errors, each with a fact and a hint.

A fault outside the caller's code is a `VaultError`; a wrong argument stays a `TypeError` or
`ValueError`. A class exists where a caller would act differently. Messages hold ids, paths and
names, never a value, a token or a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import copy
from typing import Final, Self

_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# One word of a name. A secret is longer, or mixes its characters.
_PART: Final = re.compile(r"(?:[A-Z]?[a-z]{0,15}|[A-Z]{0,16})[0-9]{0,3}")


def typed_id(text: str, otherwise: str = "with that id") -> str:
    """How to name an unknown id. It is repeated only if it looks like one: it may be a secret."""
    return repr(text) if _ID.fullmatch(text) else otherwise


def typed_name(text: str) -> str:
    """How to name an unknown program or variable; repeated only if made of short words."""
    plain = len(text) <= 100 and all(map(_PART.fullmatch, re.split(r"[/._+-]", text)))
    return text if plain else "a name that is not repeated, since it may be a secret"


def near(typed: str, names: Iterable[str]) -> str:
    """
    A guess at which of *names* was meant, to end a sentence that does not repeat *typed*; empty if
    none is near, or *typed* is one of them. Capitals make no difference.
    """
    from difflib import get_close_matches  # here: nothing else needs it

    listed = sorted(names)
    by_look = {name.casefold(): name for name in listed}
    found = get_close_matches(typed.casefold(), by_look, n=1)
    return f"; did you mean {brief(by_look[found[0]])}?" if found and typed not in listed else ""


def brief(name: object, at_most: int = 100) -> str:
    """*name* for a message or a table; past *at_most* characters, its beginning and its length."""
    text = str(name)
    return text if len(text) <= at_most else f"{text[:at_most]}... ({len(text)} characters)"


def at_project(project: str | None) -> str:
    """How a command in a hint names a project, after a space; empty for the global scope."""
    return "" if project is None else f" --project {brief(project)}"


class VaultError(Exception):
    """
    What went wrong, with advice beside it.

    Attributes:
        hint: what to do next, in one sentence, or None.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class WrongArgument(ValueError):
    """
    What was given for an argument cannot be used; the text says why. Not of the family: its cause
    is the caller's code.

    For the command it tells a user's mistake from a library's own ValueError, which is a bug.

    Attributes:
        hint: what to do next, or None.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UnusablePath(VaultError, ValueError):
    """
    A given path or URL cannot be used: empty, with control characters, in an unknown home folder,
    or of a scheme that no key store has. Or two settings name different places for the keys.
    """


class NotFound(VaultError):
    """Nothing has the name that was asked for."""


class CredentialNotFound(NotFound):
    """No such credential in the project or the global scope, or in the one scope asked for."""


class ProjectNotFound(NotFound):
    """The project is not in the database. An unknown project never gets the global value."""


class HostNotFound(NotFound):
    """No host of that name has acknowledged a key."""


class IncompleteAccount(CredentialNotFound):
    """
    Required fields of a provider are stored in neither scope.

    Attributes:
        missing: the names of all such fields.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, missing: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.missing = missing


class MixedAccount(VaultError):
    """
    Two accounts might be handed out as one, so nothing is.

    One account's fields come from two scopes. Or, in `vault run`, two fields share a variable, or
    a field's variable would change how programs run.

    Attributes:
        rows: the `provider_credentials.id` of each such field's row, by field.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, rows: dict[str, str] | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.rows = rows or {}


class UnreadableValue(VaultError):
    """
    The row is there, but its value cannot be read. Another row's value never stands in for it.

    Attributes:
        row_id: `provider_credentials.id` of the row; None while no row is known.
    """

    def __init__(self, message: str, *, hint: str | None = None, row_id: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.row_id = row_id


class DamagedValue(UnreadableValue):
    """Its key refuses the token, or the token was sealed for another place or holds no value."""


class ForeignValue(UnreadableValue):
    """Not a token of this vault: the desktop app's own value, another tool's, or an empty one."""


class UnusableValue(UnreadableValue):
    """The value opens but breaks its field's rule; the text states the rule, never the value."""


class TokenUnavailable(VaultError):
    """
    An account with OAuth2 has no access token that lasts. Nothing was deleted, and no other
    account's token stands in for it.
    """


class NeedsLogin(TokenUnavailable):
    """The provider takes the account's refresh token no more; somebody has to log in again."""


class ProviderUnreachable(TokenUnavailable):
    """The provider did not answer, or has a fault of its own; the same call may work soon."""


class ClientRefused(TokenUnavailable):
    """The provider refuses the application: its id, its secret, its scope or its kind of grant."""


class NoTokenGiven(TokenUnavailable):
    """The provider answered, and the answer has no token."""


class LoginFailed(VaultError):
    """A login was refused, came too late, or gave nothing that lasts. Nothing was stored."""


class LibraryMissing(VaultError):
    """This needs a package that one of the extras installs; the text names both."""


class KeyUnavailable(VaultError):
    """
    A key cannot be read. No other key is tried, and no new one is made.

    Attributes:
        key_id: `vault_keys.id` of the key; None if the whole key store is at fault.
    """

    def __init__(self, message: str, *, hint: str | None = None, key_id: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.key_id = key_id

    def again(self, about: str = "") -> Self:
        """
        The same fault as a new error, with *about* before its text.

        Raised in several places, one error would collect the frames of them all.
        """
        error = copy(self)
        error.args = (f"{about}{self}",)
        return error


class KeyMissing(KeyUnavailable):
    """The key store has no such key, the vault lists none, or the key was destroyed."""


class WrongKey(KeyUnavailable):
    """The entry under a key's id is another key: it does not open the check value."""


class KeyExists(KeyUnavailable):
    """The key store already has an entry with that id; an entry is never replaced."""


class KeySuperseded(KeyUnavailable):
    """The database calls the key active, the key store calls it replaced; it seals nothing."""


class BadKeyFile(KeyUnavailable):
    """The exported file was cut or changed, is another vault's, or has another passphrase."""


class KeyStoreUnavailable(KeyUnavailable):
    """The keyring, the key directory or another key store cannot be reached or used."""


class KeyringRefused(KeyStoreUnavailable):
    """The configured keyring backend does not keep secrets (null, fail, plaintext, unknown)."""


class KeyringLocked(KeyUnavailable):
    """The keyring is locked, or the server that keeps the keys is sealed."""


class KeyringTimedOut(KeyUnavailable):
    """The keyring or another key store did not answer within the time limit."""


class SharedKeys(VaultError):
    """
    The database is a copy of one that would lose the key too; nothing was changed.

    Attributes:
        original: the other database, as a name for people: the path of a file.
    """

    def __init__(self, message: str, *, original: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.original = original


class KeyNotAcknowledged(VaultError):
    """
    Hosts that have their own copy of the keys would lack the next one; nothing was changed.

    Attributes:
        hosts: their names; empty if none has ever acknowledged the staged key.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, hosts: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.hosts = hosts


class KeyInUse(VaultError):
    """
    The key cannot be destroyed: values need it, or it is not retired.

    Attributes:
        key_id: `vault_keys.id` of the key.
    """

    def __init__(self, message: str, *, key_id: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.key_id = key_id


class SchemaError(VaultError):
    """This version cannot work in the database, which was left as it is."""


class DatabaseNotFound(SchemaError):
    """There is nothing at the path or URL; opening never creates one."""


class NotADatabase(SchemaError):
    """It is empty, damaged, or another program's; a server's is not in UTF-8 or has no schema."""


class SchemaOutdated(SchemaError):
    """The schema or the vault's additions to it are missing, or older than this version needs."""


class SchemaMismatch(SchemaError):
    """
    The tables do not match the version number.

    Attributes:
        missing: the missing `table` and `table.column` names, sorted.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, missing: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.missing = missing


class DuplicateCredentials(SchemaError):
    """
    Several rows have one scope, provider and credential_type; nothing was changed.

    Attributes:
        rows: the ids of the rows at each such place, in the app's order.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, rows: tuple[tuple[str, ...], ...] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.rows = rows


class CannotStart(VaultError):
    """
    A command was not started.

    Attributes:
        found: False if the program does not exist, or the interpreter that it names.
    """

    def __init__(self, message: str, *, found: bool, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.found = found


class StorageError(VaultError):
    """The database cannot be read or written now; the same call works once the cause is gone."""


class DatabaseBusy(StorageError):
    """
    Another connection kept the database locked past the time limit.

    A transaction that has read fails at once if another connection writes, or wrote since.
    """


class OperationRunning(StorageError):
    """Another process is changing this vault's keys or schema."""


class DatabaseFull(StorageError):
    """The disk is full, or a quota on it is used up."""


class DatabaseReadOnly(StorageError):
    """The file, its folder, the file system or the server refuses writes."""


class DatabaseUnreachable(StorageError):
    """The server does not answer, or the connection to it was lost; nothing was stored."""


class DatabaseRefused(StorageError):
    """The server does not let this user in, or not do this."""


class OutcomeUnknown(StorageError):
    """The server did not say whether it stored a change: look before you store it again."""


class WeakStorage(UserWarning):
    """The file was made, but its file system cannot protect it fully; the text says how."""


def undone(where: object, what: str) -> StorageError:
    """The error for a change that something in the database did not let stand."""
    return StorageError(
        f"{where}: the row {what}; nothing was changed",
        hint="a trigger may have undone it: 'vault doctor' names the triggers on our tables",
    )
