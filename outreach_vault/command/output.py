"""Standard output and standard error that write everything, or keep the reason why not."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from .prompt import ready

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


class Output(io.RawIOBase):
    """
    Standard output or standard error. It writes all that it is given, even to a slow reader.

    It never raises: a failed message must not stop the work. It keeps the first problem for the
    end, and writes nothing more: nobody would notice a gap in the middle.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._fd = None if stream is None else stream.fileno()
        self.problem: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return super().fileno() if self._fd is None else self._fd

    def isatty(self) -> bool:
        return self._fd is not None and os.isatty(self._fd)

    def write(self, data: Buffer) -> int:
        with memoryview(data).cast("B") as left:
            done = 0
            while done < len(left) and self.problem is None:
                try:
                    done += self._write(left[done:])
                except OSError as error:
                    self.problem = error
            return len(left)

    def _write(self, data: memoryview) -> int:
        if self._fd is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            ready(self._fd, writing=True)
            return 0


def all_written() -> bool:
    """Whether all that was printed so far has gone out."""
    sys.stdout.flush()
    return getattr(sys.stdout.buffer, "problem", None) is None


def take_over_output() -> list[Output]:
    """
    Replace sys.stdout and sys.stderr with an `Output` each, with the same encodings.

    Not on Windows, whose console takes no bytes.
    """
    outputs: list[Output] = []
    for name in ("stdout", "stderr") if sys.platform != "win32" else ():
        stream = getattr(sys, name)
        outputs.append(output := Output(stream))
        text = io.TextIOWrapper(
            cast(BinaryIO, output),
            encoding=getattr(stream, "encoding", "utf-8"),
            errors=getattr(stream, "errors", "backslashreplace"),
            write_through=True,
        )
        setattr(sys, name, text)
    return outputs
