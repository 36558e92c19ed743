"""
Prove, without writing, that every value opens and every key is accounted for.

A finding is a *problem* (something does not open, is unprotected or unfinished) or a *notice*
(nothing is wrong, but an operator may want to act). Each says what, where, the likely cause and the
next command. Values and keys are opened in memory and never shown.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from .. import providers
from ..cipher import sealed_at
from ..database import Concern, Location, locate
from ..errors import (
    KeyMissing,
    KeySuperseded,
    KeyUnavailable,
    SchemaError,
    UnusableValue,
    VaultError,
    brief,
)
from ..keys import hosts, states, stores
from ..keys.states import KeyRecord
from ..keys.stores import KeyStore, left_over
from ..schema import facts, migrator
from ..schema.shapes import Place, age_days, as_text
from ..values import history, tokens
from ..values.bundle import require_usable
from ..values.opening import fault, opener
from ..values.rows import GRANTS, TABLE, TABLES, Row
from ..vault import Vault
from .accounts import faults
from .staging import lacking

OLD_DAYS: Final = 365  # a key or a value of this age is worth a notice
NAMED_AT_MOST: Final = 1000  # findings of one kind; memory must not grow with the rows
_SECONDS_A_DAY: Final = 24 * 60 * 60
_HEAD: Final = 60  # characters; they include the IV, so no two tokens begin alike
_TOKEN: Final = re.compile(rb"gAAAA[A-Za-z0-9_-]{%d}" % (_HEAD - 5))
# All that the vault relies on.
_TABLES: Final = (*TABLES, GRANTS, "projects", states.TABLE, hosts.TABLE, facts.TABLE)
_ROWS_SHOWN: Final = 5
_OF_ACCOUNTS: Final = MappingProxyType(
    {
        "incomplete account": "'vault set PROVIDER --project PROJECT' stores what is missing;"
        " 'vault accounts' shows all accounts",
        "mixed account": "'vault set PROVIDER --project PROJECT' stores what a project lacks,"
        " 'vault delete PROVIDER --project PROJECT' gives it the global account;"
        " 'vault accounts' shows all accounts",
    }
)
# Grants that an operator has to mend; any other may get a token the next time.
_UNUSABLE: Final = ("needs login", "client refused")
_FOREIGN: Final = "not sealed by this vault (the desktop app's own, or another tool's)"
_OLD: Final = "set more than a year ago"


class Finding(NamedTuple):
    """
    One thing that the doctor found.

    Attributes:
        level: `problem` or `notice`.
        kind: one or two words, the same for all findings of a kind.
        message: what, where, and the likely cause. hint: what to do next, or None.
        key_id: the key in question, or the key of the value in question.
        project_id, provider, credential_type, row_id: the row of the value in question.
        cause: the same text for all findings that have one cause, or None.
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
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class Examination:
    """
    What the doctor looked at, and what it found.

    Attributes:
        deep: it opened every value and checked the whole file.
        values: how many values are `ok`, `foreign` and `unreadable`. Unless *deep*, `ok` means a
            whole token whose key is at hand.
        keys: all keys, oldest first, each with the number of values that name it.
        problems: how many of the findings are problems.
        findings: problems first, at most `NAMED_AT_MOST` of a kind.
        more: how many more there are, by kind.
        causes: how many findings each cause has, in all.
    """

    database: str
    vault_id: str
    key_store: str
    deep: bool
    values: dict[str, int]
    keys: tuple[tuple[KeyRecord, int], ...]
    problems: int
    findings: tuple[Finding, ...]
    more: dict[str, int]
    causes: dict[str, int]

    def lines(self) -> Iterator[tuple[Finding, int]]:
        """
        The findings as people read them, each with how many others it stands for.

        Those of one cause are one. A key that cannot be read is a finding itself, and the cause of
        what its values lack. Several accounts of a kind have one hint, after the last of them.
        """
        said, left = set[str](), Counter(finding.kind for finding in self.findings)
        several = {kind for kind in _OF_ACCOUNTS if left[kind] > 1}
        for finding in self.findings:
            left[finding.kind] -= 1
            if finding.kind in several:
                hint = None if left[finding.kind] else _OF_ACCOUNTS[finding.kind]
                yield finding._replace(hint=hint), 0
            elif (what := finding.cause or finding.message) not in said:
                said.add(what)
                count = self.causes.get(what, 0)
                others = count - bool(finding.cause)
                message = _joined(finding, count) if others else finding.message
                yield finding._replace(message=message), others


def _order(finding: Finding) -> tuple[bool, tuple[str, ...]]:
    """Problems first, accounts last of them, and those in the order of their names."""
    named = (finding.kind, finding.message) if finding.kind in _OF_ACCOUNTS else ()
    return finding.level != "problem", named


def _joined(finding: Finding, count: int) -> str:
    if finding.cause is None:
        return f"{finding.message} ({count} value(s) need it)"
    if finding.provider is None:
        return f"{finding.cause}: {count} keys"
    one = f"{brief(finding.provider)}/{brief(finding.credential_type)}"
    return f"{finding.cause}: {count} values, such as {one}"


def examine(
    path: str | os.PathLike[str] | Location | None,
    *,
    key_store: KeyStore | None = None,
    deep: bool = False,
) -> Examination:
    """
    Look for anything that could keep a value from being read, now or after a restore.

    Changes no byte.

    Args:
        path, key_store: as for `Vault.open`.
        deep: open every value, and check the whole of a file (SQLite's integrity_check).
    Raises:
        SchemaError: the database is not ready for this version.
        StorageError: it cannot be read just now.
    """
    path = locate(path)
    beside = path.exposed()  # before opening it adds files
    with Vault.open(path, key_store=key_store, read_only=True) as vault:
        kept, counted = list[Finding](), Counter[tuple[str, str]]()
        causes = Counter[str]()
        values = Counter[str](ok=0, foreign=0, unreadable=0)
        for finding in _findings(vault, beside, deep, values):
            counted[finding.level, finding.kind] += 1
            if finding.cause is not None:
                causes[finding.cause] += 1
            if counted[finding.level, finding.kind] <= NAMED_AT_MOST:
                kept.append(finding)
        more = Counter[str]()
        for (_, kind), count in counted.items():
            more[kind] += max(0, count - NAMED_AT_MOST)
        used = Counter[str | None]()
        with contextlib.suppress(SchemaError):  # a finding says so already
            used = vault.rows.count_by_key()
        return Examination(
            database=vault.database.name,
            vault_id=vault.keys.vault_id,
            key_store=vault.keys.store.name,
            deep=deep,
            values=dict(values),
            keys=tuple((record, used[record.id]) for record in vault.keys.states.records()),
            problems=sum(count for (level, _), count in counted.items() if level == "problem"),
            findings=tuple(sorted(kept, key=_order)),
            more={kind: count for kind, count in more.items() if count},
            causes=dict(causes),
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
        _packages(),
    ):
        try:
            yield from check
        except SchemaError as error:  # a damaged page: go on with the others
            advice = "stop the programs that use the file, and restore a backup"
            yield Finding(
                "problem", "damaged file", f"{vault.database.kind} finds: {error}", advice
            )


def _of_database(concern: Concern) -> Finding:
    return Finding(*concern)


def _references(vault: Vault) -> Iterator[Finding]:
    broken: dict[tuple[str, str], list[str]] = {}
    for table, row, parent, _ in vault.database.broken_references():
        broken.setdefault((table, parent), []).append(str(row))
    for (table, parent), rows in broken.items():
        named = ", ".join(rows[:_ROWS_SHOWN]) + (", ..." if len(rows) > _ROWS_SHOWN else "")
        level = "problem" if table == TABLE else "notice"
        missing = f"{len(rows)} row(s) of {table} name a row of {parent} that does not exist"
        advice = f"find the program that deleted it {vault.database.unchecked}"
        yield Finding(level, "broken reference", f"{missing}: row {named}", advice)


def _schema(vault: Vault) -> Iterator[Finding]:
    for name in migrator.missing_after([], vault.database):
        missing = f"the {'column' if '.' in name else 'table'} {name} is missing"
        advice = "find the program that changed the schema; restore a backup"
        yield Finding("problem", "schema", missing, advice)
    for name, sql in migrator.missing_indexes(vault.database).items():
        what = "trigger" if " TRIGGER " in sql else "index"
        missing = f"the {what} {name} is missing: whatever relies on it fails or is slow"
        advice = (
            f"restore a backup, or use any tool for {vault.database.kind}: {' '.join(sql.split())}"
        )
        yield Finding("problem", "schema", missing, advice)
    for place, ids in migrator.repeated(vault.database, TABLE).items():
        message = f"{place}: more than one row: {', '.join(map(brief, ids))}"
        advice = (
            f"keep the right one; delete the others from {TABLE} by id, with any tool for"
            f" {vault.database.kind}"
        )
        yield Finding("problem", "duplicates", message, advice, None, *map(as_text, place))


def _keys(vault: Vault, unasked: list[KeyUnavailable]) -> Iterator[Finding]:
    """
    Where the key store does not answer at all, *unasked* gets the reason.

    To ask it again for each value could take minutes.
    """
    try:
        yield from _each_key(vault)
        for left in left_over(vault.keys.store):
            message = f"{left}: an interrupted command left this"
            advice = "if no vault command is running, remove it"
            yield Finding("notice", "left over", message, advice)
    except KeyUnavailable as error:
        unasked.append(error)
        yield _problem("key store", error)


def _each_key(vault: Vault) -> Iterator[Finding]:
    keys, active = vault.keys, None
    if unnamed := keys.states.unnamed():
        message = f"{unnamed} row(s) of vault_keys have an id that is not text"
        advice = "find the program that wrote them, and delete them"
        yield Finding("problem", "key", message, advice)
    for record in keys.states.records():
        if record.state == "destroyed":
            if keys.store.holds(keys.vault_id, record.id):
                message = "it was destroyed, but the key store still has its entry"
                advice = f"'vault keys destroy {brief(record.id)}' removes it"
                yield _notice(record, "left over", message, advice)
            continue
        if record.state == "pending":
            message, advice = "it was made but is not in use yet", "'vault rotate' settles it"
            if record.staged_by:
                advice = (
                    "'vault rotate --stage' finishes it, 'vault rotate --unstage' takes it back"
                )
            yield _about(record, "interrupted rotation", message, advice)
            continue
        if record.state == "staged":
            yield from _staged(vault, record)
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
            advice = "'vault keys export FILE', and keep that apart from the backups"
            message = "no file of exported keys holds it"
            found = _notice(record, "never exported", message, advice)
            yield found._replace(cause=message)
    if active is None:
        message = "the vault has no active key: nothing can be stored"
        advice = "'vault init' says why; restore a backup or import its keys"
        yield Finding("problem", "key", message, advice)
        return
    days = age_days(active.activated_at)
    if days is not None and days >= OLD_DAYS:
        message = f"it has been active for {days} days"
        yield _notice(active, "old key", message, "'vault rotate' replaces it")
    acknowledged = {record.id for record in keys.states.in_state("active", "staged")}
    for host in keys.hosts.known():
        if host.key_id not in acknowledged:
            message = (
                f"host {brief(host.host)} has not acknowledged it, and may lack it"
                f" (last seen {host.acknowledged_at}, with key {brief(host.key_id)})"
            )
            advice = (
                "'vault keys acknowledge' on that host; if it is gone, 'vault keys hosts --remove"
                " HOST'"
            )
            yield _notice(active, "host", message, advice)


def _staged(vault: Vault, record: KeyRecord) -> Iterator[Finding]:
    lack = [brief(host.host) for host in lacking(vault, record.id)]
    waits = f"not acknowledged by {', '.join(lack)}" if lack else "acknowledged by all known hosts"
    problem = vault.keys.unavailable(record.id)
    if problem and problem.key_id is None:
        raise problem
    if isinstance(problem, KeyMissing):
        waits += "; it is not in this host's key store"
    elif problem:
        yield _problem("key", problem)
    advice = "'vault keys acknowledge' on each host that lacks it, then 'vault rotate'"
    message = f"{record.staged_by} staged it at {record.staged_at}: {waits}"
    yield _notice(record, "staged key", message, advice)


def _rotation(vault: Vault) -> Iterator[Finding]:
    if vault.keys.states.unfinished_rotation():
        message = "a rotation was interrupted (or is running now), and old tokens may be left"
        yield Finding("problem", "interrupted rotation", message, "'vault rotate' finishes it")


def _values(
    vault: Vault, deep: bool, values: Counter[str], unasked: list[KeyUnavailable]
) -> Iterator[Finding]:
    """Check each value once, and count tokens in the log that are no longer stored."""
    where, replaced = vault.database.replaced(_TOKEN)
    for record in vault.keys.states.records():  # check values are tokens too
        replaced.discard(_head(vault.keys.states.check_value(record.id)))
    lost: dict[str, KeyUnavailable | None] = {}
    for stored in vault.rows.each():
        replaced.discard(_head(stored.encrypted_value))
        error = _unreadable(vault, stored, deep, lost, unasked)
        opens = error is None or isinstance(error, UnusableValue)
        foreign, row = stored.sealing_key is None, f"{stored.place}, row {brief(stored.id)}"
        values["ok" if opens else "foreign" if foreign else "unreadable"] += 1
        if error is not None and deep and foreign and (key_id := opener(vault.keys, stored)):
            message = f"{row}: sealed under key {key_id} but does not name it: no look-up opens it"
            advice = (
                f"with any tool for {vault.database.kind}: UPDATE {TABLE} SET key_id = '{key_id}',"
                f" encrypted_value = CAST(encrypted_value AS TEXT) WHERE id = '{brief(stored.id)}';"
                " find the program that changed it"
            )
            yield _of_row(stored, "problem", "key not named", message, advice)
        elif error is not None:
            state = "unusable" if opens else "unreadable"
            level, kind = ("notice", "foreign value") if foreign else ("problem", f"{state} value")
            key = None if foreign else lost.get(str(stored.sealing_key))
            cause = _FOREIGN if foreign else str(key) if key else None
            yield _of_row(stored, level, kind, str(error), error.hint, cause)
        elif (days := _days_since(stored)) >= OLD_DAYS:
            message, advice = f"set {days} days ago", "change it at the provider, then 'vault set'"
            yield _of_row(stored, "notice", "old value", f"{row}: {message}", advice, _OLD)
    for stored in vault.rows.each(history.TABLE):
        replaced.discard(_head(stored.encrypted_value))
        if error := _unreadable(vault, stored, deep, lost, unasked):
            key = lost.get(str(stored.sealing_key))
            cause = f"previous values: {key}" if key else None
            message = f"previous value of {error}"
            advice = "'vault rotate' removes it if nothing can open it any more"
            kind = "unreadable previous value"
            yield _of_row(stored, "notice", kind, message, advice, cause)
    for stored in vault.rows.each(tokens.TABLE):
        replaced.discard(_head(stored.encrypted_value))
        if error := _unreadable(vault, stored, deep, lost, unasked):
            key = lost.get(str(stored.sealing_key))
            cause = f"access tokens: {key}" if key else None
            advice = "the next 'vault check' or message gets a new one"
            kind = "unreadable token"
            yield _of_row(stored, "notice", kind, f"access token of {error}", advice, cause)
    if replaced:
        message = f"{len(replaced)} token(s) that were replaced or deleted are still in {where}"
        advice = "close the programs that have the file open, or run 'vault rotate'"
        yield Finding("notice", "old tokens in the log", message, advice)


def _unreadable(
    vault: Vault,
    stored: Row,
    deep: bool,
    lost: dict[str, KeyUnavailable | None],
    unasked: list[KeyUnavailable],
) -> VaultError | None:
    """Why the value cannot be read; unless *deep*, judged without opening it."""

    def problem(key_id: str) -> KeyUnavailable | None:
        if key_id not in lost:
            lost[key_id] = unasked[0] if unasked else vault.keys.unavailable(key_id)
        return lost[key_id]

    return fault(vault.keys, stored, problem, deep=deep, also=require_usable)


def _days_since(stored: Row) -> int:
    """By the token's own time: without the key nobody can change that, unlike `updated_at`."""
    return int(time.time() - sealed_at(stored.encrypted_value)) // _SECONDS_A_DAY


def _head(token: object) -> bytes:
    """The part that no two tokens share."""
    return token[:_HEAD].encode(errors="replace") if isinstance(token, str) else b""


def _shadowed(vault: Vault) -> Iterator[Finding]:
    for project_id, provider, kind, row_id in vault.rows.shadowing():
        place = Place(*map(as_text, (project_id, provider, kind)))
        cause = "the project's own value is used, not the global one"
        of_row = (*place, as_text(row_id), cause)
        yield Finding("notice", "shadowed value", f"{place}: {cause}", None, None, *of_row)


def _accounts(vault: Vault) -> Iterator[Finding]:
    for account in faults(vault):
        place = (account.project_id, account.provider)
        if account.problem:
            kind, hint = f"{account.state} account", account.problem.hint
            yield Finding("problem", kind, account.message, hint, None, *place)
        elif account.remark:
            level = "problem" if account.grant in _UNUSABLE else "notice"
            yield Finding(level, str(account.grant), *account.remark, None, *place)


def _packages() -> Iterator[Finding]:
    for left_out in (*providers.faults(), *stores.faults()):
        advice = "install another version of that package, or uninstall it"
        yield Finding("notice", "another package", left_out, advice)


def _problem(kind: str, error: KeyUnavailable) -> Finding:
    return Finding("problem", kind, str(error), error.hint, error.key_id)


def _about(record: KeyRecord, kind: str, message: str, hint: str) -> Finding:
    message = f"key {brief(record.id)} ({record.state}): {message}"
    return Finding("problem", kind, message, hint, record.id)


def _notice(record: KeyRecord, kind: str, message: str, hint: str) -> Finding:
    return _about(record, kind, message, hint)._replace(level="notice")


def _of_row(
    stored: Row, level: str, kind: str, message: str, hint: str | None, cause: str | None = None
) -> Finding:
    named = map(as_text, (stored.key_id, *stored.place, stored.id, cause))
    return Finding(level, kind, message, hint, *named)
