"""
A value into a token and back, bound to its place.

Fernet has no associated data, so a row's token would open in any other row under the same key. The
plaintext therefore names its place::

    {"v":1,"project_id":null,"provider":"smtp","credential_type":"password","value":"..."}

and a place that is not the row's own is refused.
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
# A `Place`, or the part of a row that is one: where each call counts, none is made of it.
Names = tuple[str | None, str, str]

NOT_PROVED: Final = "a token just made does not give back what was sealed; nothing was stored"


def seal(cipher: Cipher, place: Place, value: Secret, *, at: int | None = None) -> str:
    """
    Encrypt *value* so that it opens only under this key and only at *place*.

    The token was opened again with this key, and its content compared, before it is returned.

    Args:
        value: 1 character to 64 KiB of UTF-8. The token's length shows its length to 16 bytes.
        at: the token's time, in whole seconds since 1970; now by default. Anyone can read it.
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

    It raises nothing, as `Cipher.opened`.

    Args:
        whole: give all of the plaintext, which names its place, and not the value alone.
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
    except (
        ValueError,
        RecursionError,
        TypeError,
    ):  # a place from a row of another tool may hold bytes
        return UNREADABLE, None
    finally:
        text = value = ""  # a signal's handler may have raised, and then this frame is kept
    return _misfit(plaintext, place), None


def resealed(new: Cipher, place: Names, token: str, old: Cipher) -> str | None:
    """
    A token under the *new* key with what *token* holds under the *old* one, with the same time.

    The new token was opened again, and its content compared. None where *token* does not open under
    *old* at *place* (`opened` says why), or the new one did not give back what was sealed.
    """
    _, plaintext = opened(old, place, token, whole=True)
    return None if plaintext is None else new.sealed(plaintext, time_of(token))


def require_storable(value: Secret) -> None:
    """Raise ValueError unless *value* is text that UTF-8 can hold, of 1 character to 64 KiB."""
    try:
        size = len(value.reveal().encode())
    except UnicodeEncodeError:
        size = -1
    if size < 0:  # raised out here: the other error holds the whole text, and would hang on to this
        raise WrongArgument("the value is not valid text: it has half a surrogate pair")
    if not 1 <= size <= MAX_VALUE_BYTES:
        what = "empty" if not size else f"{size} bytes long"
        raise WrongArgument(
            f"the value is {what}; 1 to {MAX_VALUE_BYTES} bytes of UTF-8 are stored"
        )


def _plaintext(place: Place, value: Secret) -> Secret:
    plaintext = new_secret()
    plaintext._text = f"{_head(place)}{quoted(value.reveal())[1:]}}}"  # the head has its `"`
    return plaintext


def _head(place: Names) -> str:
    """
    All that comes before the value in a plaintext sealed for *place*. Its spelling is fixed, so that
    one comparison proves the place, and the value alone is parsed: in less than half the time of
    parsing the whole (measured).
    """
    project_id, provider, credential_type = place
    project = "null" if project_id is None else quoted(project_id)
    return f'{{"v":{_FORMAT},"project_id":{project},"provider":{quoted(provider)},"credential_type":{quoted(credential_type)},"value":"'


def _misfit(plaintext: Secret, place: Names) -> str:
    """Why a plaintext is not one for *place*."""
    content = None
    try:
        content = json.loads(plaintext.reveal())
        found = itemgetter(*Place._fields)(content)  # a missing project is not the global scope
        moved = (
            content["v"] == _FORMAT and isinstance(content["value"], str) and found != tuple(place)
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        moved = False
    finally:
        content = None
    return "the value was sealed for another place and moved here" if moved else UNREADABLE
