"""
Read-only proof that every value opens and every key is accounted for.

What is found is either a *problem* (something does not open, is unprotected, or waits to be finished)
or a *notice* (nothing is wrong, and an operator may want to act). Each says what, where, the likely
cause, and the next command. Values and keys are opened in memory and never shown.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from ..cipher import Place, sealed_at
from ..database.sqlite import TO_WAL, UNINDEXED, locate, log_path
from ..errors import (
    IncompleteAccount,
    KeySuperseded,
    KeyUnavailable,
    MixedAccount,
    ProjectNotFound,
    SchemaError,
    UnreadableValue,
    UnusableValue,
    VaultError,
    brief,
)
from ..files import os_error, real
from ..keys.keyset import COLUMNS, KeyRecord, StoredValue
from ..keys.keystore import KeyDirectory, KeyStore
from ..providers import find
from ..schema import migrator
from ..schema.shapes import age_days, as_text
from ..values.bundle import require_account, require_usable
from ..values.lookup import TABLE, require_project
from ..vault import Vault

OLD_DAYS: Final = 365  # from here on the age of a key, or of a value, is worth a notice
NAMED_AT_MOST: Final = 1000  # findings of one kind kept by name, so that memory does not grow with the rows
_SECONDS_A_DAY: Final = 24 * 60 * 60
_HEAD: Final = 60  # characters of a token that tell it from any other: its IV is among them
_TOKEN: Final = re.compile(rb"gAAAA[A-Za-z0-9_-]{%d}" % (_HEAD - 5))
_CHUNK: Final = 1024 * 1024
_ROWS_SHOWN: Final = 5


class Finding(NamedTuple):
    """
    One thing that was found.

    Attributes:
        level: `problem` or `notice`.
        kind: what it is, in one or two words; the same for all findings of a kind.
        message: what, where, and the likely cause. hint: what to do next, or None.
        key_id: of `vault_keys`, where it is about a key or a value that has one.
        project_id, provider, credential_type, row_id: the row's, where it is about a value.
    """

    level: str
    kind: str
    message: str
    hint: str | None = None
    key_id: str | None = None
    project_id: str | None = None
    provider: str | None = None
    credential_type: str | None = None
    row_id: str | None = None


@dataclass(frozen=True, slots=True)
class Examination:
    """
    What was looked at, and what was found.

    Attributes:
        deep: every value was opened, and the whole file checked.
        values: how many values are `ok`, `foreign` and `unreadable`. Unless *deep*, `ok` means a whole token whose key is at hand.
        keys: all keys, oldest first, each with the number of values that name it.
        problems: how many of the findings are one.
        findings: problems first; of each kind up to `NAMED_AT_MOST`. more: of each kind, how many more there are.
    """

    database: Path
    vault_id: str
    key_store: str
    deep: bool
    values: dict[str, int]
    keys: tuple[tuple[KeyRecord, int], ...]
    problems: int
    findings: tuple[Finding, ...]
    more: dict[str, int]


def examine(path: str | os.PathLike[str] | None, *, key_store: KeyStore | None = None, deep: bool = False) -> Examination:
    """
    Look at everything that could keep a value from being read, now or after a restore. Changes no byte.

    Args:
        path, key_store: as for `Vault.open`.
        deep: open every value under its key, and check the whole file (SQLite's integrity_check).
    Raises:
        SchemaError: not a database that is ready for this version. StorageError: it cannot be read just now.
    """
    files = _files(real(locate(path)))  # before SQLite adds its own
    with Vault.open(path, key_store=key_store, read_only=True) as vault:
        kept, counted, values = list[Finding](), Counter[tuple[str, str]](), Counter[str](ok=0, foreign=0, unreadable=0)
        for finding in _findings(vault, files, deep, values):
            counted[finding.level, finding.kind] += 1
            if counted[finding.level, finding.kind] <= NAMED_AT_MOST:
                kept.append(finding)
        more = Counter[str]()
        for (_, kind), count in counted.items():
            more[kind] += max(0, count - NAMED_AT_MOST)
        used = Counter[str | None]()
        with contextlib.suppress(SchemaError):  # it is among the findings
            used = vault.keys.values_by_key()
        return Examination(
            database=vault.database.path,
            vault_id=vault.keys.vault_id,
            key_store=vault.keys.store.name,
            deep=deep,
            values=dict(values),
            keys=tuple((record, used[record.id]) for record in vault.keys.records()),
            problems=sum(count for (level, _), count in counted.items() if level == "problem"),
            findings=tuple(sorted(kept, key=lambda finding: finding.level != "problem")),
            more={kind: count for kind, count in more.items() if count},
        )


def _findings(vault: Vault, files: dict[Path, int], deep: bool, values: Counter[str]) -> Iterator[Finding]:
    yield from _access(real(vault.database.path), files)
    unasked: list[KeyUnavailable] = []
    for check in (
        _damage(vault, deep),
        _references(vault),
        _schema(vault),
        _keys(vault, unasked),
        _rotation(vault),
        _values(vault, deep, values, unasked),
        _shadowed(vault),
        _accounts(vault),
    ):
        try:
            yield from check
        except SchemaError as error:  # a damaged page; what is on others can be looked at all the same
            yield _damaged(str(error))


def _damage(vault: Vault, deep: bool) -> Iterator[Finding]:
    found = vault.database.damage("provider_credentials", "projects", "vault_keys", "vault_meta")
    if deep and not found:  # the thorough check gives up at what the quick one names
        found = vault.database.damage(thoroughly=True)
    yield from map(_damaged, found)


def _damaged(what: str) -> Finding:
    return Finding(
        "problem", "damaged file", f"SQLite finds: {' '.join(what.split())}", "stop the programs that use the file, and restore a backup"
    )


def _references(vault: Vault) -> Iterator[Finding]:
    broken: dict[tuple[str, str], list[str]] = {}
    for table, rowid, parent, _ in vault.database.broken_references():
        broken.setdefault((table, parent), []).append(str(rowid))
    for (table, parent), rows in broken.items():
        named = ", ".join(rows[:_ROWS_SHOWN]) + (", ..." if len(rows) > _ROWS_SHOWN else "")
        yield Finding(
            "problem" if table == "provider_credentials" else "notice",
            "broken reference",
            f"{len(rows)} row(s) of {table} name a row of {parent} that is not there: rowid {named}",
            "look which program deleted it without SQLite's foreign_keys setting",
        )


def _files(path: Path) -> dict[Path, int]:
    """The database, its folder, and what is beside it under its name, each with its mode; not SQLite's index of the log."""
    modes: dict[Path, int] = {}
    for file in {path, path.parent, *_beside(path, f"{path.name}-", f"{path.name}.")}:
        with contextlib.suppress(OSError):  # removed just now, or not to be asked
            found = file.lstat()
            if (stat.S_ISREG(found.st_mode) and file.name != f"{path.name}-shm") or file == path.parent:
                modes[file] = stat.S_IMODE(found.st_mode)
    return modes


def _beside(path: Path, *beginnings: str) -> list[Path]:
    """What is in the file's folder under names that begin so. No pattern: the file's own name may look like one."""
    try:
        return [path.with_name(name) for name in sorted(os.listdir(path.parent)) if name.startswith(beginnings)]  # noqa: PTH208
    except OSError:
        return []  # a folder may be searched and not listed


def _access(path: Path, files: dict[Path, int]) -> Iterator[Finding]:
    if os.name == "nt":
        return  # modes say nothing there
    mode = files.pop(path.parent, 0)
    if mode & 0o022 and not mode & stat.S_ISVTX:
        yield Finding("problem", "open folder", f"{path.parent}: mode {mode:04o} lets others put files in", f"chmod go-w '{path.parent}'")
    for file, mode in sorted(files.items()):
        if mode & 0o077:
            level = "problem" if mode & 0o022 else "notice"
            yield Finding(level, "open file", f"{file}: mode {mode:04o} lets other users in", f"chmod go= '{file}'")
    for left in _beside(path, f".{path.name}."):
        yield Finding("notice", "left over", f"{left}: an interrupted command left this", "if no vault command is running, remove it")


def _schema(vault: Vault) -> Iterator[Finding]:
    if (mode := vault.database.journal_mode()) != "wal":
        yield Finding(
            "problem",
            "journal mode",
            f"the file is in journal mode {mode} and not in WAL: adapters and other programs keep each other from reading and writing",
            f"stop the programs that use the file, and run: {TO_WAL}; look which program changed it",
        )
    advice = "look which program changed the schema; restore a backup"
    for name in migrator.missing_after([], vault.database):
        yield Finding("problem", "schema", f"the {'column' if '.' in name else 'table'} {name} is missing", advice)
    for name, sql in migrator.missing_indexes(vault.database).items():
        what = "trigger" if " TRIGGER " in sql else "index"
        yield Finding(
            "problem",
            "schema",
            f"the {what} {name} is missing: what relies on it fails or is slow",
            f"restore a backup, or put it back with any SQLite tool: {' '.join(sql.split())}",
        )
    for what, name, table in migrator.planted(vault.database):
        yield Finding(
            "problem" if what == "trigger" else "notice",
            "planted trigger" if what == "trigger" else "view",
            f"the {what} {brief(name)} is on {table}, and is not of this schema: it can "
            + ("undo or copy what is stored" if what == "trigger" else "show what is stored, still sealed"),
            f'look which program made it; with any SQLite tool: DROP {what.upper()} "{brief(name)}"',
        )
    for place, ids in migrator.duplicates(vault.database).items():
        yield Finding(
            "problem",
            "duplicates",
            f"{place}: several rows for one place: {', '.join(map(brief, ids))}",
            "look which is right, and delete the others from provider_credentials by their id, with any SQLite tool",
            None,
            *map(as_text, place),
        )


def _keys(vault: Vault, unasked: list[KeyUnavailable]) -> Iterator[Finding]:
    """The reason goes to *unasked* where the key store as a whole does not answer: to ask it for each value may take minutes."""
    try:
        yield from _each_key(vault)
        if isinstance(vault.keys.store, KeyDirectory):
            for left in vault.keys.store.left_over():
                advice = "if no vault command is running, remove it"
                yield Finding("notice", "left over", f"{left}: an interrupted command left this", advice)
    except KeyUnavailable as error:
        unasked.append(error)
        yield _problem("key store", error)


def _each_key(vault: Vault) -> Iterator[Finding]:
    keys, active = vault.keys, None
    if unnamed := keys.unnamed():
        yield Finding(
            "problem", "key", f"{unnamed} row(s) of vault_keys have an id that is no text", "look which program wrote them, and delete them"
        )
    for record in keys.records():
        if record.state == "destroyed":
            if keys.store.holds(keys.vault_id, record.id):
                yield _notice(
                    record,
                    "left over",
                    "it was destroyed, and its entry is in the key store",
                    f"'vault keys destroy {brief(record.id)}' removes it",
                )
            continue
        if record.state == "pending":
            yield _about(record, "interrupted rotation", "it was made and is not in use yet", "'vault rotate' settles it")
            continue
        active = record if record.state == "active" else active
        if problem := keys.unavailable(record.id):
            if problem.key_id is None:
                raise problem
            yield _problem("key", problem)
        elif record.exported_at is None:
            yield _notice(
                record,
                "never exported",
                "no file of exported keys holds it",
                "'vault keys export FILE', and keep that apart from the backups",
            )
    if active is None:
        yield Finding(
            "problem",
            "key",
            "the vault has no active key: nothing can be stored",
            "'vault init' says why; restore a backup or import its keys",
        )
        return
    try:
        keys.require_present(active.id)
    except KeySuperseded as error:
        yield _problem("superseded key", error)
    days = age_days(active.activated_at)
    if days is not None and days >= OLD_DAYS:
        yield _notice(active, "old key", f"it has been active for {days} days", "'vault rotate' puts everything under a new one")


def _rotation(vault: Vault) -> Iterator[Finding]:
    if vault.keys.unfinished_rotation():
        yield Finding(
            "problem",
            "interrupted rotation",
            "a rotation was interrupted (or is running now), and old tokens may be left",
            "'vault rotate' finishes it",
        )


def _values(vault: Vault, deep: bool, values: Counter[str], unasked: list[KeyUnavailable]) -> Iterator[Finding]:
    """Each value once; and how many tokens are in the log that are no longer stored."""
    replaced = _tokens_in(log_path(vault.database.path))
    for record in vault.keys.records():
        replaced.discard((vault.keys.check_value(record.id) or "")[:_HEAD].encode(errors="replace"))  # tokens as well
    lost: dict[str, KeyUnavailable | None] = {}
    for columns in vault.database.each(f"SELECT {COLUMNS} FROM {TABLE} {UNINDEXED}"):
        stored = StoredValue._make(columns)
        if isinstance(stored.encrypted_value, str):
            replaced.discard(stored.encrypted_value[:_HEAD].encode(errors="replace"))
        error = _unreadable(vault, stored, deep, lost, unasked)
        values["ok" if error is None or isinstance(error, UnusableValue) else "foreign" if stored.is_foreign else "unreadable"] += 1
        if error is not None and deep and stored.is_foreign and (key_id := vault.keys.opener(stored)):
            yield _of_row(
                stored,
                "problem",
                "key not named",
                f"{stored.place}, row {brief(stored.id)}: it is sealed under key {key_id} and does not name it: no look-up opens it",
                f"with any SQLite tool: UPDATE provider_credentials SET key_id = '{key_id}', encrypted_value ="
                f" CAST(encrypted_value AS TEXT) WHERE id = '{brief(stored.id)}'; look which program changed it",
            )
        elif error is not None:
            opens = "unusable" if isinstance(error, UnusableValue) else "unreadable"
            level, kind = ("notice", "foreign value") if stored.is_foreign else ("problem", f"{opens} value")
            yield _of_row(stored, level, kind, str(error), error.hint)
        elif (days := _days_since(stored)) >= OLD_DAYS:
            yield _of_row(
                stored,
                "notice",
                "old value",
                f"{stored.place}, row {brief(stored.id)}: it was set {days} days ago",
                "change it at the provider, then 'vault set'",
            )
    if replaced:
        yield Finding(
            "notice",
            "old tokens in the log",
            f"{len(replaced)} token(s) that were replaced or deleted are still in {log_path(vault.database.path).name}",
            "they go when the programs that have the file open are closed, and at the end of 'vault rotate'",
        )


def _unreadable(
    vault: Vault, stored: StoredValue, deep: bool, lost: dict[str, KeyUnavailable | None], unasked: list[KeyUnavailable]
) -> VaultError | None:
    """Why the value cannot be read; unless *deep*, as far as that shows without opening it."""
    if not stored.is_foreign:
        assert stored.key_id is not None
        if stored.key_id not in lost:
            lost[stored.key_id] = unasked[0] if unasked else vault.keys.unavailable(stored.key_id)
        if problem := lost[stored.key_id]:
            return type(problem)(f"{stored.place}, row {brief(stored.id)}: {problem}", hint=problem.hint, key_id=stored.key_id)
        if not deep and _is_whole(stored.encrypted_value):
            return None
    try:
        require_usable(stored, vault.keys.open(stored))
    except (UnreadableValue, KeyUnavailable) as error:
        return error
    return None


def _is_whole(token: str) -> bool:
    try:
        return bool(sealed_at(token))
    except ValueError:
        return False


def _days_since(stored: StoredValue) -> int:
    """By the token's own time, which nobody can change without the key; `updated_at` is only a column."""
    return int(time.time() - sealed_at(stored.encrypted_value)) // _SECONDS_A_DAY


def _tokens_in(log: Path) -> set[bytes]:
    """The beginnings of all tokens in SQLite's log. Its locks are on other files, so reading this one drops none."""
    found, rest = set[bytes](), b""
    try:
        with log.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(_TOKEN.findall(rest + chunk))
                rest = chunk[-_HEAD:]
    except FileNotFoundError:
        pass
    except OSError as error:
        raise os_error(log, error) from error
    return found


def _shadowed(vault: Vault) -> Iterator[Finding]:
    for project_id, provider, kind, row_id in vault.database.fetch(
        "SELECT own.project_id, own.provider, own.credential_type, own.id FROM provider_credentials own JOIN provider_credentials general"
        " ON general.project_id IS NULL AND general.provider = own.provider AND general.credential_type = own.credential_type"
        " WHERE own.project_id IS NOT NULL ORDER BY 1, 2, 3"
    ):
        place = Place(*map(as_text, (project_id, provider, kind)))
        yield Finding(
            "notice", "shadowed value", f"{place}: the project's own value is used, not the global one", None, None, *place, as_text(row_id)
        )


def _accounts(vault: Vault) -> Iterator[Finding]:
    """
    Accounts that no bundle would give out. One pass, without opening a value; the global rows and one project's are in memory.

    A global sender alone is a default for projects, and no account that lacks something.
    """
    facts = "id, project_id, provider, credential_type, CASE WHEN encrypted_value = '' THEN '' ELSE '-' END, NULL, NULL, '', ''"
    sql = f"SELECT {facts} FROM {TABLE} {UNINDEXED} ORDER BY project_id IS NOT NULL, project_id, provider"
    general: dict[str, dict[str, StoredValue]] = {}
    rows = (StoredValue._make(row) for row in vault.database.each(sql))
    for (project_id, provider), group in groupby(rows, key=lambda row: (row.project_id, row.provider)):
        known = find(provider) if isinstance(provider, str) else None
        if known is None or not (project_id is None or isinstance(project_id, str)):
            continue
        own = {row.credential_type: row for row in group if isinstance(row.credential_type, str)}
        if project_id is None:
            general[provider] = own
            if not any(map(known.belongs, own)):
                continue
        try:
            require_account(provider, project_id, general.get(provider, {}) | own)
        except (MixedAccount, IncompleteAccount) as error:
            with contextlib.suppress(ProjectNotFound):  # an orphan's rows are nobody's, and among the findings already
                require_project(vault.database, project_id)
                kind = "mixed account" if isinstance(error, MixedAccount) else "incomplete account"
                yield Finding("problem", kind, str(error), error.hint, None, project_id, provider)


def _problem(kind: str, error: KeyUnavailable) -> Finding:
    return Finding("problem", kind, str(error), error.hint, error.key_id)


def _about(record: KeyRecord, kind: str, message: str, hint: str) -> Finding:
    return Finding("problem", kind, f"key {brief(record.id)} ({record.state}): {message}", hint, record.id)


def _notice(record: KeyRecord, kind: str, message: str, hint: str) -> Finding:
    return _about(record, kind, message, hint)._replace(level="notice")


def _of_row(stored: StoredValue, level: str, kind: str, message: str, hint: str | None) -> Finding:
    return Finding(level, kind, message, hint, *map(as_text, (stored.key_id, *stored.place, stored.id)))
