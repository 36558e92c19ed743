"""
One side of a comparison, in a process of its own: it is told what to do, does it, and says how long
that took.

The benchmark starts one such process for each library, since each may need an environment of its
own, and asks them in turn, so that a machine that slows down or speeds up does so for all of them.
Standard library alone.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A credential to be stored: its place, and the value as plain text."""

    project_id: str | None
    provider: str
    credential_type: str
    value: str


def rows(count: int, *, project_id: str | None = "default-project") -> Iterator[Row]:
    """
    The same *count* rows for everybody; each value has 32 characters, as a provider's token has.
    """
    for number in range(count):
        yield Row(
            project_id,
            f"provider-{number // 5}",
            f"field-{number % 5}",
            f"invented value {number:017d}",
        )


def repeated(operation: Callable[[], object]) -> Callable[[int], None]:
    """A contender that does the same thing *count* times."""

    def run(count: int) -> None:
        for _ in range(count):
            operation()

    return run


def serve(contenders: Mapping[str, Callable[[int], Any]]) -> None:
    """
    Say that all is prepared; then, for each line `NAME COUNT` of standard input, run that
    contender.

    Each run is answered by one line of JSON: `wall` (seconds), `grown_kib` (how much the process's
    largest resident size has grown since all was prepared), and `result`, whatever the contender
    gives back.
    """
    prepared = _peak_kib()
    print(json.dumps({"ready": sorted(contenders)}), flush=True)
    for line in sys.stdin:
        name, count = line.rsplit(maxsplit=1)
        begun = time.perf_counter()
        result = contenders[name](int(count))
        wall = time.perf_counter() - begun
        print(
            json.dumps({"wall": wall, "grown_kib": _peak_kib() - prepared, "result": result}),
            flush=True,
        )


def _peak_kib() -> int:
    """
    The largest resident size of this program. Linux's getrusage also counts what the process was
    before it became this program.
    """
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak // 1024 if sys.platform == "darwin" else peak
