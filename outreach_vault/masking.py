"""Other programs' words, without the secrets that they may repeat."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import unquote, unquote_plus

from .secret import Secret

_REASON_CHARACTERS: Final = 200
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{2,}")
_HEX: Final = re.compile(r"[0-9A-Fa-f]{2,}")
_ESCAPE: Final = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|(.))")
_SHORT: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
_MASK: Final = "********"
_MASKED_BY_WORD: Final = 4096  # characters; a longer text with a secret in it is not shown at all
_TO_URLSAFE: Final = str.maketrans("+/", "-_")


def silent(text: str, secrets: Iterable[Secret]) -> str:
    """
    The text on one line, cut short, with a mask for each of the secrets that it repeats.

    It finds secrets in base64, as logins are sent, and in other encodings. Where it cannot tell
    which part holds a secret, it masks everything but the status.
    """
    texts = [secret.reveal() for secret in secrets]
    sought = [value for known in texts for value in (known, _one_line(known)) if value]
    line = _one_line(text)
    for value in sought:
        line = line.replace(value, _MASK)
    if len(line) <= _MASKED_BY_WORD:  # tries all decodings on each word
        line = _BASE64.sub(lambda found: _MASK if _hides(found[0], sought) else found[0], line)
    if _hides(line, sought):
        status = re.match(r"[0-9]{3} ", line)
        line = (status[0] if status else "") + _MASK
    return line if len(line) <= _REASON_CHARACTERS else line[:_REASON_CHARACTERS] + "..."


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _hides(text: str, sought: list[str]) -> bool:
    """Whether decoding the text once, or twice in any two ways, shows a secret."""
    once = {decode(text) for decode in _DECODERS} - {text}
    twice = {decode(found) for found in once for decode in _DECODERS}
    return any(value in found for found in once | twice for value in sought)


def _from_base64(text: str) -> str:
    """Each run of its characters, from four offsets: either end may be cut, or another word's."""
    words = _BASE64.findall(text.translate(_TO_URLSAFE))
    parts = [word[start:] for word in words for start in range(4)]
    return _as_lines(base64.urlsafe_b64decode(part + "A" * (-len(part) % 4)) for part in parts)


def _from_hex(text: str) -> str:
    parts = [word[start:] for word in _HEX.findall(text) for start in (0, 1)]
    return _as_lines(bytes.fromhex(part[: len(part) // 2 * 2]) for part in parts)


def _as_lines(found: Iterable[bytes]) -> str:
    return "\n".join(part.decode(errors="replace") for part in found)


def _from_escapes(text: str) -> str:
    """JSON's, and \\x and \\' as Python shows bytes. Joins the two halves of a surrogate pair."""

    def character(part: re.Match[str]) -> str:
        code = part[1] or part[2]
        return chr(int(code, 16)) if code else _SHORT.get(part[3], part[3])

    found = _ESCAPE.sub(character, text)
    return found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _from_escaped_bytes(text: str) -> str:
    """Bytes of UTF-8, each an escape."""
    return _from_escapes(text).encode("latin-1", "replace").decode(errors="replace")


_DECODERS: Final[tuple[Callable[[str], str], ...]] = (
    unquote,
    unquote_plus,
    lambda text: unquote(text, "latin-1"),
    html.unescape,
    _from_escapes,
    _from_escaped_bytes,
    _from_hex,
    _from_base64,
)
