"""A limit in time for what cannot be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from .errors import StorageError

T = TypeVar("T")


class TookTooLong(Exception):
    """The time limit was reached; not TimeoutError, which the operation itself may raise."""


def within(seconds: float, operation: Callable[[], T]) -> T:
    """
    What *operation* gives, or raises, within *seconds*.

    It runs on a thread that is left behind if it takes longer, since nothing can stop a thread; the caller can take away what it waits for.

    Raises:
        TookTooLong: it took longer. StorageError: the system gives no thread for it; nothing was begun.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(operation())
        except BaseException as error:  # noqa: BLE001  # carried to the caller's thread, whatever it is
            errors.append(error)

    thread = threading.Thread(target=run, name="bounded", daemon=True)
    try:
        thread.start()
    except RuntimeError as refusal:
        raise StorageError(
            f"the system gives this process no thread: {refusal}",
            hint="end some program, or raise the limit of processes (ulimit -u; of a container: pids.max) or of memory",
        ) from refusal
    thread.join(max(seconds, 0))
    for error in errors:
        raise error
    for answer in answers:
        return answer
    raise TookTooLong
