"""Plaintext that does not show itself."""

from __future__ import annotations

import functools
from typing import Final, NoReturn


class Secret:
    """
    A piece of text that leaves only through `reveal()`.

    `repr` and `str` are masked at a fixed width, so that a log line or a traceback holds nothing.
    Formatting, pickling and copying are refused: each is a way for the text, or for the mask in its
    stead, to end up where nobody meant it to. Comparison takes constant time.

    Where a signal's handler raises, the frames that it went through are kept, with what they have in variables. So no
    function of the package has plaintext in one when it ends, nor gives it to another as an argument. `new_secret`
    and then `_text` does without the frame of `Secret(...)`, whose argument it would be as that begins.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text, text = text, ""
        if not isinstance(self._text, str):
            raise TypeError(f"a secret is text, not {type(self._text).__name__}")

    def reveal(self) -> str:
        """The text itself: call it on the line that hands it over, and keep no name for the answer."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('********')"

    def __str__(self) -> str:
        return "********"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        from hmac import compare_digest  # here: no look-up needs it, and it loads all of hashlib

        return compare_digest(
            self._text.encode("utf-8", "surrogatepass"),
            other._text.encode("utf-8", "surrogatepass"),
        )

    __hash__ = None  # type: ignore[assignment]  # a hash would outlive the text, and tell equal secrets apart

    def __format__(self, spec: str) -> NoReturn:
        raise TypeError("a secret cannot be formatted; hand reveal() to the call that needs it")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")


new_secret: Final = functools.partial(Secret.__new__, Secret)
