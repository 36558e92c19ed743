"""What state a row is in, decided here alone; and its value, where it can be had."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from ..cipher import looks_sealed, sealed_at
from ..errors import DamagedValue, ForeignValue, KeyUnavailable, UnreadableValue, brief
from ..keys.keyset import KeySet
from ..schema.shapes import as_text
from ..secret import Secret
from .rows import Row
from .sealing import opened

# `ok`: a token of this vault whose key is at hand; not opened. `foreign`: not sealed by this vault.
# `key missing`: its key cannot be had now, for whatever reason.
State = Literal["ok", "foreign", "key missing"]


def state(key_id: str | None, problems: Mapping[str, KeyUnavailable | None]) -> State:
    """
    The state of a value, as far as it shows unopened.

    Args:
        key_id: the key that it was sealed under (`rows.sealing_key`), or None.
        problems: for each key why it cannot be had, or None (`KeySet.survey`).
    """
    if key_id is None:
        return "foreign"
    return "key missing" if problems[key_id] else "ok"


def open_row(keys: KeySet, row: Row) -> Secret:
    """
    The value of a row, under the key that the row names and no other.

    Raises:
        UnreadableValue, KeyUnavailable: as it is; the text names the row.
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
        # Whether it is foreign is looked at only now: what opens is ours.
        raise _foreign(row) if row.sealing_key is None else _damaged(row, fault)
    return value


def fault(
    keys: KeySet,
    row: Row,
    problem: Callable[[str], KeyUnavailable | None],
    *,
    deep: bool = True,
    also: Callable[[Row, Secret], None] = lambda row, value: None,
) -> UnreadableValue | KeyUnavailable | None:
    """
    Why the value of a row cannot be had; None where it can.

    Args:
        problem: why a key cannot be had, or None.
        deep: open it; else its state and the shape of its token decide.
        also: called with a value that opens; raises UnreadableValue where that is not enough.
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


def opener(keys: KeySet, row: Row, key_ids: Iterable[str] | None = None) -> str | None:
    """
    Which of these keys (by default of all) opens a value, whatever key it names. To know whose it is,
    and never to give it out.
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
    """Why a key cannot be had, about a value that needs it."""
    return problem.again(f"{row.place}, row {brief(row.id)}: ")


def _is_whole(token: str) -> bool:
    try:
        return bool(sealed_at(token))
    except ValueError:
        return False


def _damaged(row: Row, fault: str) -> DamagedValue:
    return DamagedValue(
        f"{row.place}: {fault} (row {brief(row.id)}, key {brief(row.key_id)})",
        hint="store the value again with 'vault set', or restore the row from a backup; 'vault doctor' says whether the file is damaged",
        row_id=row.id,
    )


def _foreign(row: Row) -> ForeignValue:
    kind = "was not sealed by this vault (the desktop app's own, or another tool's)"
    return ForeignValue(
        f"{row.place}: the stored value {kind if row.encrypted_value else 'is empty'} (row {brief(row.id)})",
        hint="store the value with 'vault set', which replaces it",
        row_id=row.id,
    )
