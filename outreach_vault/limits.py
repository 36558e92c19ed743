"""A time limit for operations that cannot be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from .errors import StorageError

T = TypeVar("T")


class TookTooLong(Exception):
    """The time limit passed. Not TimeoutError, which the operation itself may raise."""


def within(seconds: float, operation: Callable[[], T]) -> T:
    """
    What *operation* returns or raises within *seconds*.

    It runs on a thread. One that takes longer is left behind, since nothing can stop a thread; the
    caller can close what it waits for.

    Raises:
        TookTooLong: it took longer. StorageError: the system has no thread for it; it never began.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(operation())
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            errors.append(error)

    thread = on_thread(run)
    thread.join(max(seconds, 0))
    for error in errors:
        raise error
    for answer in answers:
        return answer
    raise TookTooLong


def on_thread(operation: Callable[[], object]) -> threading.Thread:
    """
    Run *operation* beside the caller, until the process ends.

    Raises:
        StorageError: the system has no thread for it; it never began.
    """
    thread = threading.Thread(target=operation, name="bounded", daemon=True)
    try:
        thread.start()
    except RuntimeError as refusal:
        raise StorageError(
            f"the system has no thread for this process: {refusal}",
            hint="close a program, or raise the limit of processes"
            " (ulimit -u; in a container: pids.max) or of memory",
        ) from refusal
    return thread
