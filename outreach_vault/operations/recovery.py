"""
What outlives the machine: a copy of the database, and the keys in a file under a passphrase.

Neither is worth anything without the other, so they are kept apart. The file of keys is the one thing
that holds all of them: it is sealed under a key that Argon2id makes of the passphrase, and names the
vault whose keys it holds.
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
        keys: the keys that its values need, each with the number of values, and its active key.
    """

    path: Path
    keys: tuple[tuple[KeyRecord, int], ...]


@dataclass(frozen=True, slots=True)
class Export:
    """
    A file of keys.

    Attributes:
        keys: the ids of the keys in it.
        left_out: for each retired key that could not be had, why.
    """

    path: Path
    keys: tuple[str, ...]
    left_out: tuple[KeyUnavailable, ...]


@dataclass(frozen=True, slots=True)
class Import:
    """
    What was taken from a file of keys.

    Attributes:
        added: the ids of the keys that the key store has anew. there: of those that it had already.
        destroyed: of those that the vault has destroyed since, which stay so.
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

    Raises:
        StorageError: the copy cannot be made, or *target* exists; nothing is left behind.
    """
    path = absolute(target, "the file to be made")

    def needed(copy: Database) -> tuple[tuple[KeyRecord, int], ...]:
        used = Rows(copy).count_by_key()
        records = KeyStates(copy).records()
        return tuple((r, used[r.id]) for r in records if used[r.id] or r.state == "active")

    return Backup(path, vault.database.backup(path, needed))


def export_keys(vault: Vault, target: str | os.PathLike[str], passphrase: Secret) -> Export:
    """
    Write every active and retired key to a new file, sealed under *passphrase*, mode 0600.

    Where the same keys are in a file at *target* under this passphrase already, that is all right.

    Raises:
        KeyUnavailable: the active key cannot be had, or the key store cannot be asked.
        StorageError: something else is at *target*, or it cannot be written; nothing is left behind.
    """
    _require_secret(passphrase)
    path = absolute(target, "the file to be made")
    return vault.database.operators_turn(lambda: _export_keys(vault, path, passphrase))


def _require_secret(passphrase: Secret) -> None:
    if not isinstance(passphrase, Secret):
        raise TypeError(f"passphrase: a Secret is needed, not {type(passphrase).__name__}")
    if passphrase == Secret(""):
        raise WrongArgument("passphrase: it is empty, and so it protects nothing")


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
    Put the keys of an exported file back into the key store; all is checked before anything is written.

    A key that the database does not list is listed: as active where it was that and none is, else as
    retired. What is there already stays as it is, so it can be done again.

    Raises:
        BadKeyFile: not such a file, cut or changed, not under this passphrase, or of another vault.
        WrongKey: a key in it is not the one that the database knows. KeyExists: the key store has
            another entry of that name. KeyUnavailable: it cannot be asked, or not be written.
        StorageError: the file cannot be read, or the database not be written.
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

    def note() -> None:
        for copy in wanted:
            if copy.record.id not in listed:
                _list(
                    vault,
                    copy,
                    as_active=copy.record.state == "active" and "active" not in listed.values(),
                )
        ids = [copy.record.id for copy in wanted]
        vault.keys.states.exported(ids, made_at, unless_later=True)

    vault.database.write(note)  # the row comes before the key store's entry
    for copy in lacking:
        vault.keys.store.write(vault.keys.vault_id, copy.record.id, copy.key)
        vault.keys.cipher(copy.record.id)  # read back and proved
    _mark(vault, wanted)
    added = tuple(copy.record.id for copy in lacking)
    return Import(
        added,
        tuple(copy.record.id for copy in wanted if copy.record.id not in added),
        tuple(destroyed),
    )


def abandon(vault: Vault, key_id: str) -> str:
    """
    Give up a key that is lost for good, and with it all that was sealed under it; its values stay, and open no more.

    Returns:
        The id of the active key: a new one, where the lost one was that.
    Raises:
        KeyInUse: the key can be had, or the key store does not answer. KeyMissing: the vault lists no such key.
        OperationRunning: another process changes this vault's keys or schema.
    """
    return vault.database.operators_turn(lambda: vault.keys.abandon(key_id))


def _copies(vault: Vault) -> tuple[list[_Copy], list[KeyUnavailable]]:
    """Every active and retired key; and why those that are left out cannot be had."""
    copies, left_out = list[_Copy](), list[KeyUnavailable]()
    for record in vault.keys.states.in_state("active", "retired"):
        try:
            copies.append(_copy(vault, record))
        except (KeyMissing, WrongKey) as problem:
            if record.state == "active":
                raise
            left_out.append(problem)
    return copies, left_out


def _copy(vault: Vault, record: KeyRecord) -> _Copy:
    """The key as the key store has it now, and not as it was when the vault first needed it."""
    vault.keys.cipher(record.id)
    key = vault.keys.store.read(vault.keys.vault_id, record.id)
    check_value = vault.keys.states.check_value(record.id) or ""
    if not vault.keys.is_key(record.id, key, check_value):
        raise WrongKey(
            f"{vault.keys.store.name}: the entry for key {record.id} is another key now",
            hint="put the right key back from where it was kept",
            key_id=record.id,
        )
    return _Copy(record, check_value, key)


def _as_text(vault: Vault, copies: Iterable[_Copy], made_at: str) -> Secret:
    text = new_secret()
    text._text = json.dumps(  # no name for the keys, nor for what is read: what a signal's handler raises keeps this frame
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
            copies.append(
                _Copy(KeyRecord(*map(entry.get, KeyRecord._fields)), entry["check_value"], key)
            )
        return found["vault_id"], found["made_at"], copies
    finally:
        found = entry = None


def _read(path: Path, vault: Vault, passphrase: Secret) -> tuple[str, list[_Copy]]:
    """When the file was made, and its keys; each is proved to be the key of its own check value."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = (
            data.removeprefix(BOM_UTF8).decode("ascii") if len(data) <= _MAX_BYTES else ""
        )  # an editor may have put that there
    except UnicodeDecodeError:
        text = ""  # no file of ours
    except OSError as error:
        raise os_error(path, error) from error
    try:
        vault_id, made_at, copies = _from_text(open_under_passphrase(passphrase, text, KIND))
    except BadKeyFile as error:
        raise BadKeyFile(f"{path}: {error}", hint=error.hint) from None
    if vault_id != vault.keys.vault_id:
        raise BadKeyFile(
            f"{path}: these are the keys of vault {vault_id}, and {vault.database.path} is vault {vault.keys.vault_id}",
            hint="take the file of this vault's keys; or put the backup of that vault's database in place first",
        )
    for copy in copies:
        if not vault.keys.is_key(copy.record.id, copy.key, copy.check_value):
            raise _wrong(path, copy)
    return made_at, copies


def _is_export_of(path: Path, vault: Vault, copies: list[_Copy], passphrase: Secret) -> bool:
    """Whether the file holds just these keys: a run that was killed may have made it, and not come to note it."""
    if not os.path.isfile(path):  # noqa: PTH113  # a pipe would wait for who writes into it; Path's own may raise
        return False
    try:
        _, there = _read(path, vault, passphrase)
    except (KeyUnavailable, StorageError):
        return False  # whatever it is, the new file will not replace it
    return {(copy.record.id, copy.record.state) for copy in there} == {
        (copy.record.id, copy.record.state) for copy in copies
    }


def _lacks(vault: Vault, copy: _Copy) -> bool:
    """Whether the key store has no entry for the key; what the database and the key store know of it must agree."""
    key_id, store = copy.record.id, vault.keys.store
    known = vault.keys.states.check_value(key_id)
    if known is not None and not vault.keys.is_key(key_id, copy.key, known):
        raise _wrong(vault.database.path, copy)
    if not store.holds(vault.keys.vault_id, key_id):
        return True
    if store.read(vault.keys.vault_id, key_id) != copy.key:
        raise KeyExists(
            f"{store.name} has another entry for key {key_id}; nothing was changed",
            hint="look what it is, and remove it if it is of no use",
            key_id=key_id,
        )
    return False


def _wrong(path: Path, copy: _Copy) -> WrongKey:
    return WrongKey(
        f"{path}: the check value of key {copy.record.id} is not of the key that was exported; nothing was changed",
        hint="look whether the database or the file was changed; take another copy",
        key_id=copy.record.id,
    )


def _list(vault: Vault, copy: _Copy, *, as_active: bool) -> None:
    record = copy.record._replace(emptied_at=None, exported_at=None)  # of the other database
    if not as_active:
        record = record._replace(state="retired", retired_at=record.retired_at or now())
    vault.keys.states.add_imported(record, copy.check_value)


def _mark(vault: Vault, copies: list[_Copy]) -> None:
    """What the exporting machine knew: which of the keys was the present one, so that an older database is noticed."""
    present = next((copy.record.id for copy in copies if copy.record.state == "active"), None)
    for copy in copies:
        if present and copy.record.state == "retired":
            vault.keys.store.mark_superseded(vault.keys.vault_id, copy.record.id, present)


def _write(path: Path, text: str) -> None:
    with path.open("r+", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
