"""
What outlives the machine: a copy of the database, and a file of its keys under a passphrase.

Neither is any use without the other, so keep them apart. The file of keys is sealed under a key
that Argon2id makes from the passphrase, and it names its vault.
"""

from __future__ import annotations

import json
import os
from codecs import BOM_UTF8
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from ..database import Database
from ..errors import (
    BadKeyFile,
    KeyExists,
    KeyMissing,
    KeyUnavailable,
    StorageError,
    WrongArgument,
    WrongKey,
)
from ..files import absolute, new_file, os_error
from ..keys.passphrase import open_under_passphrase, seal_under_passphrase
from ..keys.states import KeyRecord, KeyStates
from ..schema.shapes import now
from ..secret import Secret, new_secret
from ..values.rows import Rows
from ..vault import Vault

KIND: Final = "outreach-vault keys 1"
_MAX_BYTES: Final = 16 * 1024 * 1024  # some 20,000 keys


@dataclass(frozen=True, slots=True)
class Backup:
    """
    A copy of the database.

    Attributes:
        path: None if none was made, as the server's own program makes it.
        keys: its active key and those that its values need, each with its number of values.
        command: what makes it then.
    """

    path: Path | None
    keys: tuple[tuple[KeyRecord, int], ...]
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Export:
    """
    A file of keys.

    Attributes:
        keys: the ids of the keys in it.
        left_out: for each staged or retired key that is missing from it, why.
    """

    path: Path
    keys: tuple[str, ...]
    left_out: tuple[KeyUnavailable, ...]


@dataclass(frozen=True, slots=True)
class Import:
    """
    What came from a file of keys: the ids of its keys.

    Attributes:
        added: now in the key store. there: in it already.
        destroyed: destroyed by the vault since; they stay so.
    """

    added: tuple[str, ...]
    there: tuple[str, ...]
    destroyed: tuple[str, ...]


class _Copy(NamedTuple):
    record: KeyRecord
    check_value: str
    key: Secret


def backup(vault: Vault, target: str | os.PathLike[str]) -> Backup:
    """
    Make a consistent copy of the live database at *target*, mode 0600, and say which keys it needs.

    Of a database on a server nothing is written: the answer has the command that does it.

    Raises:
        StorageError: the copy cannot be made, or *target* exists; nothing is left behind.
    """
    path = absolute(target, "the file to be made")

    def needed(copy: Database) -> tuple[tuple[KeyRecord, int], ...]:
        used = Rows(copy).count_by_key()
        records = KeyStates(copy).records()
        return tuple((r, used[r.id]) for r in records if used[r.id] or r.state == "active")

    if command := vault.database.backup_command(path):
        return Backup(None, needed(vault.database), command)
    return Backup(path, vault.database.backup(path, needed))


def export_keys(vault: Vault, target: str | os.PathLike[str], passphrase: Secret) -> Export:
    """
    Write every active, staged and retired key to a new file, sealed under *passphrase*, mode 0600.

    An existing file with the same keys under the same passphrase counts as done.

    Raises:
        KeyUnavailable: the active key is not available, or the key store does not answer.
        StorageError: something else is at *target*, or it cannot be written; nothing is left
            behind.
    """
    _require_secret(passphrase)
    path = absolute(target, "the file to be made")
    return vault.database.operators_turn(lambda: _export_keys(vault, path, passphrase))


def _require_secret(passphrase: Secret) -> None:
    if not isinstance(passphrase, Secret):
        raise TypeError(f"passphrase: a Secret is needed, not {type(passphrase).__name__}")
    if passphrase == Secret(""):
        raise WrongArgument("passphrase: it is empty, so it protects nothing")


def _export_keys(vault: Vault, path: Path, passphrase: Secret) -> Export:
    copies, left_out = _copies(vault)
    made_at = now()
    if not _is_export_of(path, vault, copies, passphrase):
        text = seal_under_passphrase(passphrase, _as_text(vault, copies, made_at), KIND)
        new_file(path, lambda part: _write(part, text))

    ids = tuple(copy.record.id for copy in copies)
    vault.database.write(lambda: vault.keys.states.exported(ids, made_at))
    return Export(path, ids, tuple(left_out))


def import_keys(vault: Vault, source: str | os.PathLike[str], passphrase: Secret) -> Import:
    """
    Put the keys of an exported file back into the key store. Checks everything before it writes.

    A key that the database does not list becomes retired, or active if it was active when exported
    and the database has no active key. Whatever is there already stays as it is, a staged key too,
    so it is safe to run again.

    Raises:
        BadKeyFile: not such a file, cut or changed, not under this passphrase, or of another vault.
        WrongKey: a key in it is not the one that the database knows.
        KeyExists: the key store has another entry of that name.
        KeyUnavailable: the key store cannot be read or written.
        StorageError: the file cannot be read, or the database cannot be written.
    """
    _require_secret(passphrase)
    path = absolute(source, "the file of exported keys")
    return vault.database.operators_turn(lambda: _import_keys(vault, path, passphrase))


def _import_keys(vault: Vault, path: Path, passphrase: Secret) -> Import:
    made_at, copies = _read(path, vault, passphrase)
    listed = {record.id: record.state for record in vault.keys.states.records()}
    destroyed = [copy.record.id for copy in copies if listed.get(copy.record.id) == "destroyed"]
    wanted = [copy for copy in copies if copy.record.id not in destroyed]
    lacking = [copy for copy in wanted if _lacks(vault, copy)]
    ids = [copy.record.id for copy in wanted]

    def note() -> None:
        for copy in wanted:
            if copy.record.id not in listed:
                active = copy.record.state == "active" and "active" not in listed.values()
                _list(vault, copy, as_active=active)
        vault.keys.states.exported(ids, made_at, unless_later=True)

    vault.database.write(note)  # the row comes before the key store's entry
    for copy in lacking:
        vault.keys.store.write(vault.keys.vault_id, copy.record.id, copy.key)
        vault.keys.cipher(copy.record.id)  # read back and proved
    _mark(vault, wanted)
    added = tuple(copy.record.id for copy in lacking)
    return Import(added, tuple(each for each in ids if each not in added), tuple(destroyed))


def abandon(vault: Vault, key_id: str) -> str:
    """
    Give up a key that is lost for good. Its values stay, but nothing opens them any more.

    Returns:
        The id of the active key: a new one, if the lost key was active.
    Raises:
        KeyInUse: the key is not lost, or the key store does not answer.
        KeyMissing: the vault lists no such key.
        OperationRunning: another process changes this vault's keys or schema.
    """
    return vault.database.operators_turn(lambda: vault.keys.abandon(key_id))


def _copies(vault: Vault) -> tuple[list[_Copy], list[KeyUnavailable]]:
    """Every active, staged and retired key, and for each one left out the reason."""
    copies, left_out = list[_Copy](), list[KeyUnavailable]()
    for record in vault.keys.states.in_state("active", "staged", "retired"):
        try:
            copies.append(_copy(vault, record))
        except (KeyMissing, WrongKey) as problem:
            if record.state == "active":
                raise
            left_out.append(problem)
    return copies, left_out


def _copy(vault: Vault, record: KeyRecord) -> _Copy:
    """The key as the key store has it now, not as the vault fetched it earlier."""
    vault.keys.cipher(record.id)
    key = vault.keys.store.read(vault.keys.vault_id, record.id)
    check_value = vault.keys.states.check_value(record.id) or ""
    if not vault.keys.is_key(record.id, key, check_value):
        raise WrongKey(
            f"{vault.keys.store.name}: the entry for key {record.id} is now another key",
            hint="put the right key back from an export or a backup",
            key_id=record.id,
        )
    return _Copy(record, check_value, key)


def _as_text(vault: Vault, copies: Iterable[_Copy], made_at: str) -> Secret:
    text = new_secret()
    # No variable holds the keys: an exception from a signal's handler keeps this frame.
    text._text = json.dumps(
        {
            "vault_id": vault.keys.vault_id,
            "made_at": made_at,
            "keys": [
                {**copy.record._asdict(), "check_value": copy.check_value, "key": copy.key.reveal()}
                for copy in copies
            ],
        }
    )
    return text


def _from_text(text: Secret) -> tuple[str, str, list[_Copy]]:
    found = entry = None
    copies = list[_Copy]()
    try:
        found = json.loads(text.reveal())
        for entry in found["keys"]:
            key = new_secret()
            key._text = entry["key"]
            record = KeyRecord(*map(entry.get, KeyRecord._fields))
            copies.append(_Copy(record, entry["check_value"], key))
        return found["vault_id"], found["made_at"], copies
    finally:
        found = entry = None


def _read(path: Path, vault: Vault, passphrase: Secret) -> tuple[str, list[_Copy]]:
    """When the file was made, and its keys, each proved by its own check value."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        # An editor may have added a byte order mark.
        text = data.removeprefix(BOM_UTF8).decode("ascii") if len(data) <= _MAX_BYTES else ""
    except UnicodeDecodeError:
        text = ""  # not a file of ours
    except OSError as error:
        raise os_error(path, error) from error
    try:
        vault_id, made_at, copies = _from_text(open_under_passphrase(passphrase, text, KIND))
    except BadKeyFile as error:
        raise BadKeyFile(f"{path}: {error}", hint=error.hint) from None
    if vault_id != vault.keys.vault_id:
        raise BadKeyFile(
            f"{path}: these are the keys of vault {vault_id},"
            f" but {vault.database.name} is vault {vault.keys.vault_id}",
            hint="use this vault's own file of keys, or restore that vault's database first",
        )
    for copy in copies:
        if not vault.keys.is_key(copy.record.id, copy.key, copy.check_value):
            raise _wrong(path, copy)
    return made_at, copies


def _is_export_of(path: Path, vault: Vault, copies: list[_Copy], passphrase: Secret) -> bool:
    """Whether the file has just these keys: a killed run may have written it but not noted that."""
    if not os.path.isfile(path):  # noqa: PTH113  # a pipe would block; Path.is_file may raise
        return False
    try:
        _, there = _read(path, vault, passphrase)
    except (KeyUnavailable, StorageError):
        return False  # whatever it is, the new file will not replace it
    of_file, ours = ({(c.record.id, c.record.state) for c in each} for each in (there, copies))
    return of_file == ours


def _lacks(vault: Vault, copy: _Copy) -> bool:
    """Whether the key store lacks the key. Raises if it or the database has another one."""
    key_id, store = copy.record.id, vault.keys.store
    known = vault.keys.states.check_value(key_id)
    if known is not None and not vault.keys.is_key(key_id, copy.key, known):
        raise _wrong(vault.database.name, copy)
    if not store.holds(vault.keys.vault_id, key_id):
        return True
    if store.read(vault.keys.vault_id, key_id) != copy.key:
        raise KeyExists(
            f"{store.name} has another entry for key {key_id}; nothing was changed",
            hint="find out what it is, and remove it if nobody needs it",
            key_id=key_id,
        )
    return False


def _wrong(where: object, copy: _Copy) -> WrongKey:
    return WrongKey(
        f"{where}: the check value of key {copy.record.id} does not fit the exported key;"
        " nothing was changed",
        hint="find out whether the database or the file was changed; use another copy",
        key_id=copy.record.id,
    )


def _list(vault: Vault, copy: _Copy, *, as_active: bool) -> None:
    record = copy.record._replace(emptied_at=None, exported_at=None)  # of the other database
    if not as_active:
        record = record._replace(state="retired", retired_at=record.retired_at or now())
    vault.keys.states.add_imported(record, copy.check_value)


def _mark(vault: Vault, copies: list[_Copy]) -> None:
    """Note which key was active at export, so that an older database is noticed."""
    active = next((copy.record.id for copy in copies if copy.record.state == "active"), None)
    for copy in copies:
        if active and copy.record.state == "retired":
            vault.keys.store.mark_superseded(vault.keys.vault_id, copy.record.id, active)


def _write(path: Path, text: str) -> None:
    with path.open("r+", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
