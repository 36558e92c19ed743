"""Plaintext that does not show itself."""

from __future__ import annotations

import functools
from typing import Final, NoReturn


class Secret:
    """
    Text that only `reveal()` gives out.

    `repr` and `str` are masked at a fixed width, so a log line or a traceback shows nothing.
    Formatting, pickling and copying are refused: each could carry the text, or the mask in its
    place, where nobody meant it to go. Comparison takes constant time.

    If a signal handler raises, the traceback keeps each frame that it passes, with its variables.
    So no function of the package ends with plaintext in a variable, or passes it as an argument.
    `new_secret()`, then `_text`, avoids `Secret(...)`, whose frame begins with it as an argument.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text, text = text, ""
        if not isinstance(self._text, str):
            raise TypeError(f"a secret is text, not {type(self._text).__name__}")

    def reveal(self) -> str:
        """The text itself. Call it where you hand the text over; do not store the result."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('********')"

    def __str__(self) -> str:
        return "********"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        from hmac import compare_digest  # here: no look-up needs it, and it loads all of hashlib

        texts = (secret._text.encode("utf-8", "surrogatepass") for secret in (self, other))
        return compare_digest(*texts)

    # A hash would outlive the text, and show which secrets are equal.
    __hash__ = None  # type: ignore[assignment]

    def __format__(self, spec: str) -> NoReturn:
        raise TypeError("a secret cannot be formatted; hand reveal() to the call that needs it")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")


new_secret: Final = functools.partial(Secret.__new__, Secret)
