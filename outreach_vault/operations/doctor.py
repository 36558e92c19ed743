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
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from ..cipher import sealed_at
from ..database import Concern, exposed, locate
from ..errors import (
    IncompleteAccount,
    KeySuperseded,
    KeyUnavailable,
    MixedAccount,
    ProjectNotFound,
    SchemaError,
    UnusableValue,
    VaultError,
    brief,
)
from ..files import real
from ..keys import states
from ..keys.states import KeyRecord
from ..keys.stores import KeyStore, left_over
from ..providers import find
from ..schema import facts, migrator
from ..schema.shapes import Place, age_days, as_text
from ..values.bundle import require_account, require_usable
from ..values.opening import fault, opener
from ..values.rows import TABLE, Row
from ..vault import Vault

OLD_DAYS: Final = 365  # from here on the age of a key, or of a value, is worth a notice
NAMED_AT_MOST: Final = (
    1000  # findings of one kind kept by name, so that memory does not grow with the rows
)
_SECONDS_A_DAY: Final = 24 * 60 * 60
_HEAD: Final = 60  # characters of a token that tell it from any other: its IV is among them
_TOKEN: Final = re.compile(rb"gAAAA[A-Za-z0-9_-]{%d}" % (_HEAD - 5))
_TABLES: Final = (TABLE, "projects", states.TABLE, facts.TABLE)  # all that the vault relies on
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


def examine(
    path: str | os.PathLike[str] | None, *, key_store: KeyStore | None = None, deep: bool = False
) -> Examination:
    """
    Look at everything that could keep a value from being read, now or after a restore. Changes no byte.

    Args:
        path, key_store: as for `Vault.open`.
        deep: open every value under its key, and check the whole file (SQLite's integrity_check).
    Raises:
        SchemaError: not a database that is ready for this version. StorageError: it cannot be read just now.
    """
    beside = exposed(real(locate(path)))  # before SQLite adds its own
    with Vault.open(path, key_store=key_store, read_only=True) as vault:
        kept, counted, values = (
            list[Finding](),
            Counter[tuple[str, str]](),
            Counter[str](ok=0, foreign=0, unreadable=0),
        )
        for finding in _findings(vault, beside, deep, values):
            counted[finding.level, finding.kind] += 1
            if counted[finding.level, finding.kind] <= NAMED_AT_MOST:
                kept.append(finding)
        more = Counter[str]()
        for (_, kind), count in counted.items():
            more[kind] += max(0, count - NAMED_AT_MOST)
        used = Counter[str | None]()
        with contextlib.suppress(SchemaError):  # it is among the findings
            used = vault.rows.count_by_key()
        return Examination(
            database=vault.database.path,
            vault_id=vault.keys.vault_id,
            key_store=vault.keys.store.name,
            deep=deep,
            values=dict(values),
            keys=tuple((record, used[record.id]) for record in vault.keys.states.records()),
            problems=sum(count for (level, _), count in counted.items() if level == "problem"),
            findings=tuple(sorted(kept, key=lambda finding: finding.level != "problem")),
            more={kind: count for kind, count in more.items() if count},
        )


def _findings(
    vault: Vault, beside: list[Concern], deep: bool, values: Counter[str]
) -> Iterator[Finding]:
    yield from map(_of_database, beside)
    unasked: list[KeyUnavailable] = []
    for check in (
        map(_of_database, vault.database.concerns(*_TABLES, deep=deep)),
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
        except (
            SchemaError
        ) as error:  # a damaged page; what is on others can be looked at all the same
            advice = "stop the programs that use the file, and restore a backup"
            yield Finding("problem", "damaged file", f"SQLite finds: {error}", advice)


def _of_database(concern: Concern) -> Finding:
    return Finding(*concern)


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


def _schema(vault: Vault) -> Iterator[Finding]:
    advice = "look which program changed the schema; restore a backup"
    for name in migrator.missing_after([], vault.database):
        yield Finding(
            "problem",
            "schema",
            f"the {'column' if '.' in name else 'table'} {name} is missing",
            advice,
        )
    for name, sql in migrator.missing_indexes(vault.database).items():
        what = "trigger" if " TRIGGER " in sql else "index"
        yield Finding(
            "problem",
            "schema",
            f"the {what} {name} is missing: what relies on it fails or is slow",
            f"restore a backup, or put it back with any SQLite tool: {' '.join(sql.split())}",
        )
    for place, ids in migrator.repeated(vault.database, TABLE).items():
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
        for left in left_over(vault.keys.store):
            advice = "if no vault command is running, remove it"
            yield Finding(
                "notice", "left over", f"{left}: an interrupted command left this", advice
            )
    except KeyUnavailable as error:
        unasked.append(error)
        yield _problem("key store", error)


def _each_key(vault: Vault) -> Iterator[Finding]:
    keys, active = vault.keys, None
    if unnamed := keys.states.unnamed():
        yield Finding(
            "problem",
            "key",
            f"{unnamed} row(s) of vault_keys have an id that is no text",
            "look which program wrote them, and delete them",
        )
    for record in keys.states.records():
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
            yield _about(
                record,
                "interrupted rotation",
                "it was made and is not in use yet",
                "'vault rotate' settles it",
            )
            continue
        active = record if record.state == "active" else active
        try:
            if record.state == "active":
                keys.require_not_superseded(record.id)
            else:
                keys.store.successor(keys.vault_id, record.id)
        except KeyUnavailable as error:
            if error.key_id is None:
                raise
            yield _problem("superseded key" if isinstance(error, KeySuperseded) else "key", error)
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
    days = age_days(active.activated_at)
    if days is not None and days >= OLD_DAYS:
        yield _notice(
            active,
            "old key",
            f"it has been active for {days} days",
            "'vault rotate' puts everything under a new one",
        )


def _rotation(vault: Vault) -> Iterator[Finding]:
    if vault.keys.states.unfinished_rotation():
        yield Finding(
            "problem",
            "interrupted rotation",
            "a rotation was interrupted (or is running now), and old tokens may be left",
            "'vault rotate' finishes it",
        )


def _values(
    vault: Vault, deep: bool, values: Counter[str], unasked: list[KeyUnavailable]
) -> Iterator[Finding]:
    """Each value once; and how many tokens are in the log that are no longer stored."""
    where, replaced = vault.database.replaced(_TOKEN)
    for record in vault.keys.states.records():  # check values are tokens as well
        replaced.discard(_head(vault.keys.states.check_value(record.id)))
    lost: dict[str, KeyUnavailable | None] = {}
    for stored in vault.rows.each():
        replaced.discard(_head(stored.encrypted_value))
        error = _unreadable(vault, stored, deep, lost, unasked)
        opens, foreign = (
            error is None or isinstance(error, UnusableValue),
            stored.sealing_key is None,
        )
        values["ok" if opens else "foreign" if foreign else "unreadable"] += 1
        if error is not None and deep and foreign and (key_id := opener(vault.keys, stored)):
            yield _of_row(
                stored,
                "problem",
                "key not named",
                f"{stored.place}, row {brief(stored.id)}: it is sealed under key {key_id} and does not name it: no look-up opens it",
                f"with any SQLite tool: UPDATE provider_credentials SET key_id = '{key_id}', encrypted_value ="
                f" CAST(encrypted_value AS TEXT) WHERE id = '{brief(stored.id)}'; look which program changed it",
            )
        elif error is not None:
            state = "unusable" if opens else "unreadable"
            level, kind = ("notice", "foreign value") if foreign else ("problem", f"{state} value")
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
            f"{len(replaced)} token(s) that were replaced or deleted are still in {where}",
            "they go when the programs that have the file open are closed, and at the end of 'vault rotate'",
        )


def _unreadable(
    vault: Vault,
    stored: Row,
    deep: bool,
    lost: dict[str, KeyUnavailable | None],
    unasked: list[KeyUnavailable],
) -> VaultError | None:
    """Why the value cannot be read; unless *deep*, as far as that shows without opening it."""

    def problem(key_id: str) -> KeyUnavailable | None:
        if key_id not in lost:
            lost[key_id] = unasked[0] if unasked else vault.keys.unavailable(key_id)
        return lost[key_id]

    return fault(vault.keys, stored, problem, deep=deep, also=require_usable)


def _days_since(stored: Row) -> int:
    """By the token's own time, which nobody can change without the key; `updated_at` is only a column."""
    return int(time.time() - sealed_at(stored.encrypted_value)) // _SECONDS_A_DAY


def _head(token: object) -> bytes:
    """What tells a token from any other."""
    return token[:_HEAD].encode(errors="replace") if isinstance(token, str) else b""


def _shadowed(vault: Vault) -> Iterator[Finding]:
    for project_id, provider, kind, row_id in vault.rows.shadowing():
        place = Place(*map(as_text, (project_id, provider, kind)))
        yield Finding(
            "notice",
            "shadowed value",
            f"{place}: the project's own value is used, not the global one",
            None,
            None,
            *place,
            as_text(row_id),
        )


def _accounts(vault: Vault) -> Iterator[Finding]:
    """
    Accounts that no bundle would give out. One pass, without opening a value; the global rows and one project's are in memory.

    A global sender alone is a default for projects, and no account that lacks something.
    """
    general: dict[str, dict[str, Row]] = {}
    rows = vault.rows.outlines()
    for (project_id, provider), group in groupby(
        rows, key=lambda row: (row.project_id, row.provider)
    ):
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
            with contextlib.suppress(
                ProjectNotFound
            ):  # an orphan's rows are nobody's, and among the findings already
                vault.rows.require_project(project_id)
                kind = "mixed account" if isinstance(error, MixedAccount) else "incomplete account"
                yield Finding("problem", kind, str(error), error.hint, None, project_id, provider)


def _problem(kind: str, error: KeyUnavailable) -> Finding:
    return Finding("problem", kind, str(error), error.hint, error.key_id)


def _about(record: KeyRecord, kind: str, message: str, hint: str) -> Finding:
    return Finding(
        "problem", kind, f"key {brief(record.id)} ({record.state}): {message}", hint, record.id
    )


def _notice(record: KeyRecord, kind: str, message: str, hint: str) -> Finding:
    return _about(record, kind, message, hint)._replace(level="notice")


def _of_row(stored: Row, level: str, kind: str, message: str, hint: str | None) -> Finding:
    return Finding(
        level, kind, message, hint, *map(as_text, (stored.key_id, *stored.place, stored.id))
    )
