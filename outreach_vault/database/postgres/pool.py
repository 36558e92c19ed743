"""Connections that a call takes and gives back."""

from __future__ import annotations

import gc
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg

from ...errors import DatabaseUnreachable

Connection = psycopg.Connection[tuple[Any, ...]]


class _Place:
    """For one connection. Whoever opens it holds the place, and then the connection does."""


class Pool:
    """
    Opens a connection when none is idle, and so needs no thread.

    It does not count what it lends, as psycopg_pool does: where a signal's handler raises as a
    connection is taken or given back, that one would be counted for good, until no call had any.
    What nobody holds any more is collected, and so closed, and its place is free. For the same
    reason it has no lock.

    Args:
        at_most: how many there are.
        seconds: how long a call waits, while others have all, or the server restarts.
    """

    def __init__(self, connect: Callable[[], Connection], at_most: int, seconds: float) -> None:
        self._connect, self._at_most, self._seconds = connect, at_most, seconds
        self._idle = deque[Connection]()
        self._places = weakref.WeakSet[_Place]()
        self._made = weakref.WeakKeyDictionary[Connection, _Place]()
        self._closed = False

    def take(self) -> Connection | None:
        """None if others have them all."""
        deadline, collected = time.monotonic() + self._seconds, False
        while True:
            with suppress(IndexError):
                return self._idle.pop()
            self._places.add(place := _Place())
            try:
                if len(self._places) <= self._at_most:
                    self._made[connection := self._connect()] = place
                    return connection
            except DatabaseUnreachable:
                if time.monotonic() >= deadline:
                    raise
            del place
            if time.monotonic() >= deadline:
                return None
            if not collected:
                collected = gc.collect() >= 0
            time.sleep(0.02)

    def give(self, connection: Connection) -> None:
        if connection not in self._made:  # a child of fork has its parent's
            return
        if self._closed:
            connection.close()
        if connection.closed:
            self._made.pop(connection, None)
        else:
            self._idle.append(connection)

    def check(self) -> None:
        """Drop the idle ones: one was lost, so they may be too."""
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def close(self) -> None:
        self._closed = True
        self.check()
