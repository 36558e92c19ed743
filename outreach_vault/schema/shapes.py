"""
The desktop app's own shapes of ids, times and JSON, and what a place for a value is.

Other shapes of the same would sort or compare wrongly in the app.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from ..errors import brief

_TEXT_OR_NULL: Final = frozenset({str, type(None)})


class Place(NamedTuple):
    """Where a value belongs: one row's scope (None is global), provider and credential_type."""

    project_id: str | None
    provider: str
    credential_type: str

    def __str__(self) -> str:
        scope = "global" if self.project_id is None else f"project {brief(self.project_id)}"
        return f"{brief(self.provider)}/{brief(self.credential_type)} ({scope})"


def new_id() -> str:
    """An id in the app's shape: lower-case UUID v4 text."""
    import uuid  # here: no look-up needs it, and it loads as long as sqlite3

    return str(uuid.uuid4())


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: a byte that the locale cannot read reaches Python as half a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


# Of characters, and of their categories in Unicode. A Mapping, which nobody changes.
_KINDS: Final = MappingProxyType(
    {
        "\ufeff": "a byte order mark",
        "\r": "a carriage return",
        "Cc": "a control character",
        "Cf": "a character without width",
        "Zs": "a space of another kind",
    }
)


def unseen(text: str) -> list[str]:
    """
    What *text* has that nobody sees: each as what it is and where, such as "a byte order mark at the beginning".

    Spaces, tabs and line ends are that at the beginning and at the end; anything else that is not printed is it everywhere.
    """
    if text.isprintable() and text == text.strip():
        return []
    from unicodedata import category  # here: few texts need it

    def odd(character: str) -> bool:
        return character.isspace() or not character.isprintable()

    start = next((index for index, character in enumerate(text) if not odd(character)), len(text))
    end = len(text) - next(
        (index for index, character in enumerate(reversed(text)) if not odd(character)), len(text)
    )
    found = dict[str, None]()  # a set that keeps their order
    for index, character in enumerate(text):
        usual = character in " \t\n" or text[index : index + 2] == "\r\n"
        if odd(character) and not (usual and start <= index < end):
            kind = (
                "white space"
                if usual
                else _KINDS.get(character)
                or _KINDS.get(category(character), "a character that is not shown")
            )
            found[
                f"{kind} {'at the beginning' if index < start else 'inside' if index < end else 'at the end'}"
            ] = None
    return list(found)


def as_text(stored: Any) -> Any:
    """Another tool may have stored bytes or a number where text belongs; a list shows them all the same."""
    if stored is None or isinstance(stored, str):
        return stored
    return stored.decode(errors="replace") if isinstance(stored, bytes) else str(stored)


def as_texts(row: Sequence[Any]) -> Sequence[Any]:
    """Each of the row as text. Mostly each is text already, which is seen at once."""
    return row if _TEXT_OR_NULL.issuperset(map(type, row)) else [as_text(stored) for stored in row]


def to_iso(moment: datetime) -> str:
    """
    JavaScript's `toISOString()`: UTC, three decimals, `Z`. The app sorts by this text.

    Raises:
        ValueError: *moment* has no time zone, or is before the year 1 or after 9999 in UTC.
    """
    if moment.tzinfo is None:
        raise ValueError("the time has no time zone; use datetime.now(UTC)")
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time is outside of the years 1 to 9999 in UTC") from None
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def now() -> str:
    """The present, in the app's shape."""
    return to_iso(datetime.now(UTC))


def age(moment: str) -> timedelta:
    """
    How long ago a stored time was.

    Raises:
        ValueError: not a time.
    """
    then = datetime.fromisoformat(moment)
    return datetime.now(UTC) - (then if then.tzinfo else then.replace(tzinfo=UTC))


def age_days(moment: object) -> int | None:
    """In whole days; None where there is no time, another tool's shape of one, or one to come: a clock was put back."""
    try:
        passed = age(moment) if isinstance(moment, str) and moment else None
    except (ValueError, OverflowError):
        return None
    if passed is None or passed < timedelta(
        hours=-1
    ):  # by so much the clocks of two hosts may differ
        return None
    return max(passed.days, 0)


def to_json(value: object) -> str:
    """
    JavaScript's `JSON.stringify(value)`: no spaces, non-ASCII as it is, whole floats without a point.

    Floats below 0.0001 and from 2**53 on are the same numbers in another spelling (1e-05 for 0.00001).

    Raises:
        ValueError: NaN or an infinity.
        TypeError: not a JSON value.
    """
    return json.dumps(
        _as_javascript(value), ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )


def _as_javascript(value: object) -> object:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _as_javascript(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_javascript(item) for item in value]
    return value
