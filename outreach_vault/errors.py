"""
One family of errors, and advice beside each fact.

Everything that the vault raises for a reason outside the caller's code is a `VaultError`. Wrong
arguments stay `TypeError` and `ValueError`. A class of its own exists where a caller would act
differently. Messages hold ids, paths and names, never a value, a token or a key.
"""

from __future__ import annotations

import re
from copy import copy
from pathlib import Path
from typing import Final, Self

_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PART: Final = re.compile(
    r"(?:[A-Z]?[a-z]{0,15}|[A-Z]{0,16})[0-9]{0,3}"
)  # of a name; a secret is longer, or mixed


def typed_id(text: str) -> str:
    """The end of a sentence about an id that is not there. It is repeated where it looks like one: else it may be a secret."""
    return repr(text) if _ID.fullmatch(text) else "of that id"


def typed_name(text: str) -> str:
    """A name of a program or variable that is not there. It is repeated where it is made of short words, as those are."""
    plain = len(text) <= 100 and all(map(_PART.fullmatch, re.split(r"[/._+-]", text)))
    return text if plain else "a name that is not repeated, since it may be a secret"


def brief(name: object, at_most: int = 100) -> str:
    """*name* as text for a message or a table: of one beyond *at_most* characters its beginning, and how long it is."""
    text = str(name)
    return text if len(text) <= at_most else f"{text[:at_most]}... ({len(text)} characters)"


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
    What was given for an argument cannot be used; the text says why. Not of the family: its cause is the caller's code.

    For the command it tells a user's mistake from a library's own ValueError, which is a bug.
    """


class UnusablePath(VaultError, ValueError):
    """
    A path or URL that was given names no place: empty, with control characters, in a home folder
    that is not there, of a scheme that no key store has. Or two name different places for the keys.
    """


class NotFound(VaultError):
    """What was asked for by name is not there."""


class CredentialNotFound(NotFound):
    """Neither the project nor the global scope (or not the exact scope asked for) has the credential."""


class ProjectNotFound(NotFound):
    """The project is not in the database: an unknown project is never taken for the global scope."""


class IncompleteAccount(CredentialNotFound):
    """
    Required fields of a provider are stored in neither scope.

    Attributes:
        missing: the names of all of them.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, missing: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.missing = missing


class MixedAccount(VaultError):
    """
    Fields of perhaps two accounts would be given out as one; none is. Those of one account come from two scopes, or two have one variable.

    Also where a field has the name of a variable that changes how programs run, which no field is given under.

    Attributes:
        rows: for each of these fields the `provider_credentials.id` of its row.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, rows: dict[str, str] | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.rows = rows or {}


class UnreadableValue(VaultError):
    """
    The row is there, and its value cannot be had from it; never answered with another row's value.

    Attributes:
        row_id: `provider_credentials.id` of the row, or None where no row is known yet.
    """

    def __init__(self, message: str, *, hint: str | None = None, row_id: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.row_id = row_id


class DamagedValue(UnreadableValue):
    """A token that its own key refuses, that was sealed for another place, or that holds no value of ours."""


class ForeignValue(UnreadableValue):
    """Not a token of this vault: the desktop app's own value, an empty one, or another tool's."""


class UnusableValue(UnreadableValue):
    """A value that opens, and cannot be what its field means; the text says which rule, never the value."""


class KeyUnavailable(VaultError):
    """
    A key cannot be had; no other key is tried and none is made instead.

    Attributes:
        key_id: `vault_keys.id` of the key, or None where the fault is the key store's as a whole.
    """

    def __init__(self, message: str, *, hint: str | None = None, key_id: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.key_id = key_id

    def again(self, about: str = "") -> Self:
        """
        The same fault as a new error, perhaps about something: one error that is raised in several
        places would gather the frames of all of them.
        """
        error = copy(self)
        error.args = (f"{about}{self}",)
        return error


class KeyMissing(KeyUnavailable):
    """The key store answers, and has no such key (or the vault lists none, or it was destroyed)."""


class WrongKey(KeyUnavailable):
    """The key store's entry is not the key whose id it bears: it does not open the check value."""


class KeyExists(KeyUnavailable):
    """The key store has an entry of that id already; entries are written once and never replaced."""


class KeySuperseded(KeyUnavailable):
    """The database says that the key is active, and the key store that another replaced it: nothing is sealed with it."""


class BadKeyFile(KeyUnavailable):
    """A file of exported keys that cannot be used: cut, changed, of another vault, or not under this passphrase."""


class KeyStoreUnavailable(KeyUnavailable):
    """The keyring, the key directory or another key store cannot be reached or used."""


class KeyringRefused(KeyStoreUnavailable):
    """The configured keyring backend is not one that keeps a secret (null, fail, plaintext, unknown)."""


class KeyringLocked(KeyUnavailable):
    """The keyring is there and locked."""


class KeyringTimedOut(KeyUnavailable):
    """The keyring did not answer within the time limit."""


class SharedKeys(VaultError):
    """
    The file is a copy of another database of the same vault, which would lose the key too; nothing was changed.

    Attributes:
        original: the path of the other database.
    """

    def __init__(self, message: str, *, original: Path, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.original = original


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
    """The file is not a database that this version can work in; it was left as it is."""


class DatabaseNotFound(SchemaError):
    """No file at the path: opening never creates one."""


class NotADatabase(SchemaError):
    """The file is empty, is not SQLite, is damaged, or belongs to another program."""


class SchemaOutdated(SchemaError):
    """The schema, or the vault's additions to it, are missing or older than this version needs."""


class SchemaMismatch(SchemaError):
    """
    The tables are not what the file's version number says.

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
    Several rows for one scope, provider and credential_type; nothing was changed.

    Attributes:
        rows: for each such place the ids of its rows, the one that the app reads first.
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
        found: False where there is no such program, or not the interpreter that it names.
    """

    def __init__(self, message: str, *, found: bool, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.found = found


class StorageError(VaultError):
    """The database cannot be read or written just now; the same call works when the cause is mended."""


class DatabaseBusy(StorageError):
    """
    Another connection kept the database locked for longer than the time limit.

    A transaction that has read is not kept waiting: it gets this at once where another connection writes, or has written since.
    """


class OperationRunning(StorageError):
    """Another process is changing this vault's keys or schema."""


class DatabaseFull(StorageError):
    """The disk, or a quota on it, is full."""


class DatabaseReadOnly(StorageError):
    """The file, its folder or the file system refuses writing."""


class WeakStorage(UserWarning):
    """What was made is there, and the file system does not keep it as it should be kept; the text says what it lacks."""
