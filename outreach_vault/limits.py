"""A limit in time for what cannot be stopped."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class TookTooLong(Exception):
    """The time limit was reached; not TimeoutError, which the operation itself may raise."""


def within(seconds: float, operation: Callable[[], T]) -> T:
    """
    What *operation* gives, or raises, within *seconds*.

    It runs on a thread that is left behind if it takes longer, since nothing can stop it.

    Raises:
        TookTooLong: it took longer.
    """
    answer: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((operation(), None))
        except BaseException as error:  # noqa: BLE001  # carried to the caller's thread, whatever it is
            answer.put((None, error))

    threading.Thread(target=run, name="bounded", daemon=True).start()
    try:
        result, error = answer.get(timeout=max(seconds, 0))
    except queue.Empty:
        raise TookTooLong from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # None is an answer of some operations
