"""
From value to token and back, bound to a place.

Fernet has no associated data, so a row's token would open in any other row under the same key. So
the plaintext names its place, and a token that names another row's place is refused::

    {"v":1,"project_id":null,"provider":"smtp","credential_type":"password","value":"..."}
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring as quoted
from operator import itemgetter
from typing import Final

from ..cipher import UNREADABLE, Cipher, time_of
from ..errors import DamagedValue, WrongArgument
from ..schema.shapes import Place
from ..secret import Secret, new_secret

MAX_VALUE_BYTES: Final = 64 * 1024
_FORMAT: Final = 1
_DECODER: Final = json.JSONDecoder()
# A `Place`, or the columns of a row that make one: the fast paths build no `Place`.
Names = tuple[str | None, str, str]

NOT_PROVED: Final = "a token just made does not give back what was sealed; nothing was stored"


def seal(cipher: Cipher, place: Place, value: Secret, *, at: int | None = None) -> str:
    """
    Encrypt *value* so that it opens only under this key and only at *place*.

    The token is opened again with this key, and its content compared, before it is returned.

    Args:
        value: 1 character to 64 KiB of UTF-8. The token's length shows its length to 16 bytes.
        at: the token's time in whole seconds since 1970, by default now. Anyone can read it.
    Returns:
        A Fernet token: url-safe base64, about 4/3 x (value + place + 110) characters.
    Raises:
        ValueError: *value* is empty, too long, or not text that UTF-8 can hold.
    """
    require_storable(value)
    token = cipher.sealed(_plaintext(place, value), at)
    if token is None:
        raise DamagedValue(f"{place}: {NOT_PROVED}")
    return token


def opened(
    cipher: Cipher, place: Names, token: str, *, whole: bool = False
) -> tuple[str, Secret | None]:
    """
    Empty text and the value that was sealed for *place*; or what is wrong with *token*, and None.

    It raises nothing, like `Cipher.opened`.

    Args:
        whole: return the whole plaintext, which names its place, not the value alone.
    """
    fault, plaintext = cipher.opened(token)
    if plaintext is None:
        return fault, None
    text = value = ""
    try:
        text = plaintext.reveal()
        if text.startswith(head := _head(place)):
            value, end = _DECODER.raw_decode(text, len(head) - 1)  # from its `"`
            if text[end:] == "}":
                plaintext._text = text if whole else value
                return "", plaintext
    except (ValueError, RecursionError, TypeError):  # another tool's row may have bytes as a place
        return UNREADABLE, None
    finally:
        text = value = ""  # if a signal handler raised, its traceback keeps this frame
    return _misfit(plaintext, place), None


def resealed(new: Cipher, place: Names, token: str, old: Cipher) -> str | None:
    """
    A token under *new* for what *token* holds under *old*, with the same time.

    The new token was opened again, and its content compared. None if *token* does not open under
    *old* at *place* (`opened` says why), or if the new one did not give back what was sealed.
    """
    _, plaintext = opened(old, place, token, whole=True)
    return None if plaintext is None else new.sealed(plaintext, time_of(token))


def require_storable(value: Secret) -> None:
    """Raise ValueError unless *value* is text that UTF-8 can hold, of 1 character to 64 KiB."""
    try:
        size = len(value.reveal().encode())
    except UnicodeEncodeError:
        size = -1
    if size < 0:  # raised out here: UnicodeEncodeError holds the text, and would become the context
        raise WrongArgument("the value is not valid text: it has half a surrogate pair")
    if not 1 <= size <= MAX_VALUE_BYTES:
        what = "empty" if not size else f"{size} bytes long"
        raise WrongArgument(
            f"the value is {what}; it must be 1 to {MAX_VALUE_BYTES} bytes of UTF-8"
        )


def _plaintext(place: Place, value: Secret) -> Secret:
    plaintext = new_secret()
    plaintext._text = f"{_head(place)}{quoted(value.reveal())[1:]}}}"  # the head has its `"`
    return plaintext


def _head(place: Names) -> str:
    """
    Everything before the value in a plaintext sealed for *place*.

    Its spelling is fixed, so one comparison proves the place and only the value is parsed. That
    takes less than half the time of parsing the whole (measured).
    """
    project_id, provider, field = place
    project = "null" if project_id is None else quoted(project_id)
    head = f'{{"v":{_FORMAT},"project_id":{project},"provider":{quoted(provider)}'
    return f'{head},"credential_type":{quoted(field)},"value":"'


def _misfit(plaintext: Secret, place: Names) -> str:
    """Why a plaintext was not sealed for *place*."""
    content = None
    try:
        content = json.loads(plaintext.reveal())
        found = itemgetter(*Place._fields)(content)  # a missing project is not the global scope
        is_value = content["v"] == _FORMAT and isinstance(content["value"], str)
        moved = is_value and found != tuple(place)
    except (ValueError, TypeError, KeyError, RecursionError):
        moved = False
    finally:
        content = None
    return "the value was sealed for another place and moved here" if moved else UNREADABLE
