"""
The desktop app's formats of ids, times and JSON, and the place of a value.

In another format they would sort or compare wrongly in the app.
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
    """An id in the app's format: lower-case UUID v4 text."""
    import uuid  # here: no look-up needs it, and it takes as long to load as sqlite3

    return str(uuid.uuid4())


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: Python reads a byte unknown to the locale as half a surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


# By character, or by its Unicode category. Read-only.
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
    The invisible parts of *text*: what and where, such as "a byte order mark at the beginning".

    Spaces, tabs and line ends count only at the ends; other unprintable characters everywhere.
    """
    if text.isprintable() and text == text.strip():
        return []
    from unicodedata import category  # here: few texts need it

    shown = {i for i, char in enumerate(text) if char.isprintable() and not char.isspace()}
    start, end = min(shown, default=len(text)), max(shown, default=len(text))
    found = dict[str, None]()  # an ordered set
    for index, char in enumerate(text):
        usual = char in " \t\n" or text[index : index + 2] == "\r\n"
        where = "at the beginning" if index < start else "inside" if index < end else "at the end"
        if index not in shown and not (usual and where == "inside"):
            kind = _KINDS.get(char) or _KINDS.get(category(char), "a character that is not shown")
            found[f"{'white space' if usual else kind} {where}"] = None
    return list(found)


def as_text(stored: Any) -> Any:
    """*stored* as text, to show: another tool may have stored bytes or a number instead."""
    if stored is None or isinstance(stored, str):
        return stored
    return stored.decode(errors="replace") if isinstance(stored, bytes) else str(stored)


def as_texts(row: Sequence[Any]) -> Sequence[Any]:
    """Each column as text. Mostly all are text already, which one check shows."""
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
        raise ValueError("the time is outside the years 1 to 9999 in UTC") from None
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def now() -> str:
    """The current time, in the app's format."""
    return to_iso(datetime.now(UTC))


def moment_of(stored: str) -> datetime:
    """
    A stored time; one without a zone is UTC.

    Raises:
        ValueError: *stored* is not a time.
    """
    then = datetime.fromisoformat(stored)
    return then if then.tzinfo else then.replace(tzinfo=UTC)


def age(moment: str) -> timedelta:
    """
    How long ago a stored time was.

    Raises:
        ValueError: *moment* is not a time.
    """
    return datetime.now(UTC) - moment_of(moment)


def age_days(moment: object) -> int | None:
    """In whole days; None for no time, another format, or the future (a clock was set back)."""
    try:
        passed = age(moment) if isinstance(moment, str) and moment else None
    except (ValueError, OverflowError):
        return None
    if passed is None or passed < timedelta(hours=-1):  # two hosts' clocks may differ that much
        return None
    return max(passed.days, 0)


def to_json(value: object) -> str:
    """
    JavaScript's `JSON.stringify(value)`: no spaces, non-ASCII unescaped, whole floats as integers.

    Floats below 0.0001 and from 2**53 up are spelled otherwise (1e-05 for 0.00001), and are equal.

    Raises:
        ValueError: NaN or an infinity.
        TypeError: not a JSON value.
    """
    plain = _as_javascript(value)
    return json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _as_javascript(value: object) -> object:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _as_javascript(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_javascript(item) for item in value]
    return value
