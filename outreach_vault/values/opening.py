"""The state of a row, decided here alone; and its value, if it opens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from ..cipher import looks_sealed, sealed_at
from ..errors import DamagedValue, ForeignValue, KeyUnavailable, UnreadableValue, brief
from ..keys.ring import KeyRing
from ..schema.shapes import as_text
from ..secret import Secret
from .rows import Row
from .sealing import opened

# `ok`: this vault's token, and its key can be read; not opened. `foreign`: this vault did not seal
# it. `key missing`: its key cannot be read now, for whatever reason.
State = Literal["ok", "foreign", "key missing"]


def state(key_id: str | None, problems: Mapping[str, KeyUnavailable | None]) -> State:
    """
    The state of a value, without opening it.

    Args:
        key_id: the key that sealed it (`rows.sealing_key`), or None.
        problems: for each key, why it cannot be read, or None (`KeyRing.survey`).
    """
    if key_id is None:
        return "foreign"
    return "key missing" if problems[key_id] else "ok"


def open_row(keys: KeyRing, row: Row) -> Secret:
    """
    The value of a row, opened with the key that the row names and no other.

    Raises:
        UnreadableValue, KeyUnavailable: the text names the row.
    """
    cipher = keys.fetched.get(row.key_id)  # type: ignore[arg-type]  # None finds none
    if cipher is None:
        if row.sealing_key is None:
            raise _foreign(row)
        try:
            cipher = keys.cipher(row.sealing_key)
        except KeyUnavailable as error:
            raise of_row(error, row) from error
    fault, value = opened(cipher, row[1:4], row.encrypted_value)
    if value is None:
        # Only now, since a value that opens is ours.
        raise _foreign(row) if row.sealing_key is None else _damaged(row, fault)
    return value


def fault(
    keys: KeyRing,
    row: Row,
    problem: Callable[[str], KeyUnavailable | None],
    *,
    deep: bool = True,
    also: Callable[[Row, Secret], None] = lambda row, value: None,
) -> UnreadableValue | KeyUnavailable | None:
    """
    Why the value of a row cannot be read; None if it can.

    Args:
        problem: why a key cannot be read, or None.
        deep: open the value; else check only its state and the shape of its token.
        also: a further check of a value that opens; raises UnreadableValue.
    """
    if row.sealing_key is not None:
        if found := problem(row.sealing_key):
            return of_row(found, row)
        if not deep and _is_whole(row.encrypted_value):
            return None
    try:
        also(row, open_row(keys, row))
    except (UnreadableValue, KeyUnavailable) as error:
        return error
    return None


def opener(keys: KeyRing, row: Row, key_ids: Iterable[str] | None = None) -> str | None:
    """
    Which of these keys (by default all) opens a value, whatever key the row names.

    Only to know whose value it is, never to give it out.
    """
    if not looks_sealed(token := as_text(row.encrypted_value)):
        return None
    for key_id in key_ids or [record.id for record in keys.states.in_state("active", "retired")]:
        if keys.unavailable(key_id) is None:
            cipher = keys.cipher(key_id)
            if opened(cipher, row.place, token)[1] is not None:
                return key_id
    return None


def of_row(problem: KeyUnavailable, row: Row) -> KeyUnavailable:
    """A key's problem, as an error about a value that needs the key."""
    return problem.again(f"{row.place}, row {brief(row.id)}: ")


def _is_whole(token: str) -> bool:
    try:
        return bool(sealed_at(token))
    except ValueError:
        return False


def _damaged(row: Row, fault: str) -> DamagedValue:
    return DamagedValue(
        f"{row.place}: {fault} (row {brief(row.id)}, key {brief(row.key_id)})",
        hint="store the value again with 'vault set', or restore the row from a backup;"
        " 'vault doctor' says whether the database is damaged",
        row_id=row.id,
    )


def _foreign(row: Row) -> ForeignValue:
    kind = "was not sealed by this vault (the desktop app's own, or another tool's)"
    what = kind if row.encrypted_value else "is empty"
    return ForeignValue(
        f"{row.place}: the stored value {what} (row {brief(row.id)})",
        hint="'vault set' replaces it",
        row_id=row.id,
    )
