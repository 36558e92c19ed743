"""
What is wrong with another package whose entry point cannot be used: its name, and where.

Never an exception's text: that package may have put anything into it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import brief

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def named(entry: EntryPoint) -> str:
    package = entry.dist and entry.dist.name
    whose = f"the package {brief(package)}" if package else "another package"
    return f"the entry point {brief(entry.value)} of {whose}"


def cause(error: BaseException) -> str:
    """The exception's class, and the last line of that package that it passed."""
    from traceback import walk_tb  # here: nothing is wrong with most packages

    passed = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    theirs = [place for place in passed[1:] if "importlib" not in place[0]]  # the first is ours
    at = f" at {Path(theirs[-1][0]).name}:{theirs[-1][1]}" if theirs else ""
    return f"{type(error).__name__}{at}"
