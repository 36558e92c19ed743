"""
How much of a sweep is tried: of moments, steps, damaged copies, draws.

`make test` tries a part of each, spread over the whole; with THOROUGH=1, as in .ci/run, all of it.
Both try the same kinds of things, by the same code.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")
THOROUGH: Final = os.environ.get("OUTREACH_VAULT_THOROUGH") == "1"


def effort(whole: int, part: int) -> int:
    return whole if THOROUGH else part


def some(items: Sequence[T], part: int) -> Sequence[T]:
    """All of them, or *part* of them at equal distances, the first and the last among them."""
    if THOROUGH or len(items) <= part:
        return items
    return [items[number * (len(items) - 1) // (part - 1)] for number in range(part)]
