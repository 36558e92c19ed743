"""
The operator's terminal: what is printed, asked and read. No rule of the vault is in here.

Data goes to standard output, everything else to standard error. A secret comes from a hidden prompt,
standard input, a file or the environment, and goes into a `Secret` at once.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TextIO, cast

import click

from ..errors import StorageError, brief
from ..schema.shapes import unseen
from ..secret import Secret
from ..values.sealing import MAX_VALUE_BYTES
from .prompt import ask, decoded, ready

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

LINES: Final = "a text of several lines, which ends with its own last line, or with Ctrl-D on an empty line"
_AT_MOST: Final = MAX_VALUE_BYTES + 6  # a byte order mark, a line end, and a byte that shows that there is more
_CELL: Final = 100  # characters; a row of another tool may have a megabyte, to which each other row would be padded
_LAST: Final = 1000  # of the last column, which is not padded, and may be a path or a label


class Output(io.RawIOBase):
    """
    Standard output or standard error. What is written goes out whole, also where the other end is slow to take it.

    It never raises, so that no message ends the work that it is about. The first problem is kept for the end, and
    nothing is written after it: a part in the middle would not be missed.
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


def take_over_output() -> list[Output]:
    """Put `Output` in the place of sys.stdout and sys.stderr, with their encodings. Not on Windows, whose console takes no bytes."""
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


def print_text(text: str) -> None:
    click.echo(text.encode(errors="replace"))


def note(text: str) -> None:
    click.echo(f"vault: {plain(text)}", err=True)


def warn(text: str) -> None:
    note(f"warning: {text}")


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))  # ASCII: nothing in it steers a terminal, or fails in an old locale


def print_table(head: Sequence[str] | None, rows: Iterable[Sequence[str | None]]) -> None:
    """Columns padded to their widest cell, of which too long ones are shortened; the last one, which may be long, is not."""
    columns = [_plain_column(column) for column in zip(*([head] if head else []), *rows, strict=True)]
    for column in columns[:-1]:
        if (width := max(map(len, column))) > _CELL:
            column[:] = [brief(cell, _CELL) for cell in column]
            width = max(map(len, column))
        column[:] = [cell.ljust(width) for cell in column]
    if columns:
        columns[-1][:] = [brief(cell, _LAST) for cell in columns[-1]]
    print_text("\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True)))


def _plain_column(cells: Sequence[str | None]) -> list[str]:
    """All at once where nothing has to be left out: two thirds of the time of one after the other (measured)."""
    texts = ["-" if cell is None else cell for cell in cells]
    return texts if "".join(texts).isprintable() else list(map(plain, texts))


def plain(text: str | None) -> str:
    """Text of the database without what could steer a terminal."""
    if text is None:
        return "-"
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


def fail(message: str, hint: str | None, status: int) -> int:
    note(f"error: {message}")
    if hint:
        note(f"hint: {hint}")
    return status


def confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        note("there is no terminal to ask on; --yes does it without asking")
        raise click.Abort
    while (answer := ask(f"{plain(question)} [y/N]: ", hidden=False).reveal().strip().lower()) not in ("y", "yes"):
        if answer in ("", "n", "no"):
            raise click.Abort
        note("answer y or n")


def with_progress(operation: Callable[[Callable[[int, int], None] | None], Any]) -> Any:
    if not sys.stderr.isatty():
        return operation(None)
    with click.progressbar(length=0, label="rotating", file=sys.stderr) as bar:

        def progress(seen: int, total: int) -> None:
            bar.length = total
            bar.update(seen - bar.pos)

        return operation(progress)


def read_value(prompt: str, from_file: str | None, from_env: str | None, whole: Callable[[str], bool] | None = None) -> Secret:
    """
    A value from where the options say, by default from the terminal (*whole*: as `prompt.ask` has it) or from standard input.

    Raises:
        click.UsageError, WrongArgument: there is no such source, or what is in it is not UTF-8. StorageError: it cannot be read.
    """
    if from_env is not None:
        if from_env not in os.environ:
            raise click.UsageError("--from-env: there is no environment variable of that name")
        if os.name == "nt":
            return Secret(os.environ[from_env])
        return _text(os.environb[os.fsencode(from_env)], "--from-env", line=False)  # its bytes, which Python takes for text of the locale
    if from_file is not None:
        with _opened("--from-file", from_file) as file:
            return _text(_read(file, _AT_MOST), from_file)
    if not _has_stdin():
        raise click.UsageError("standard input is closed; give the value there, or with --from-file or --from-env")
    if not sys.stdin.isatty():
        return _text(_read(_stdin(), _AT_MOST), "standard input")
    if whole:
        note(LINES)
    return _asked(prompt, "--from-file or standard input takes such a text", whole)


def read_passphrase(from_file: str | None, *, twice: bool = False) -> Secret:
    """
    A passphrase: the first line of the file, by default from the terminal (*twice*: until two are the same) or standard input.

    A byte order mark, which Windows editors put first, is not a part of it: nobody could type it.

    Raises:
        As `read_value`. click.UsageError: it is empty, or longer than a value can be.
    """
    if from_file is not None:
        with _opened("--passphrase-file", from_file) as file:
            passphrase, source = _first_line(file, from_file), from_file
    elif not _has_stdin():
        raise click.UsageError("standard input is closed; give the passphrase there, or with --passphrase-file")
    elif sys.stdin.isatty():
        passphrase = _asked("passphrase", "a passphrase is one line")
        while twice and _asked("Repeat for confirmation", "a passphrase is one line") != passphrase:
            note("error: the two passphrases do not match; give both again")
            passphrase = _asked("passphrase", "a passphrase is one line")
        return passphrase
    else:
        passphrase, source = _first_line(_stdin(), "standard input"), "standard input"
    if passphrase == Secret(""):
        raise click.UsageError(f"{source}: the first line, which is the passphrase, is empty")
    return passphrase


def _first_line(file: BinaryIO, source: str) -> Secret:
    return _text(_read(file, _AT_MOST, line=True).removeprefix(codecs.BOM_UTF8), source)  # no frame of an error has it


def _asked(prompt: str, instead: str, whole: Callable[[str], bool] | None = None) -> Secret:
    """What is typed without being shown; Enter alone is asked again."""
    while (answer := ask(f"{prompt}: ", hidden=True, whole=whole, instead=instead)) == Secret(""):
        pass
    return answer


def _has_stdin() -> bool:
    return sys.stdin is not None and not sys.stdin.closed


def _stdin() -> BinaryIO:
    """Without Python's buffer, which takes the pause of a non-blocking descriptor for the end."""
    return cast(BinaryIO, getattr(sys.stdin.buffer, "raw", sys.stdin.buffer))


def _opened(option: str, path: str) -> BinaryIO:
    """The name is not repeated where there is no such file: it may be a secret."""
    try:
        file = io.FileIO(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise click.UsageError(f"{option}: the file cannot be opened: {why}") from None
    if file.isatty():
        file.close()
        raise click.UsageError(f"{option}: that is a terminal, which may cut what is typed; leave {option} out to be asked")
    return cast(BinaryIO, file)  # FileIO is one, and its type does not say so


def _read(file: BinaryIO, size: int, *, line: bool = False) -> bytes:
    """All that comes until the end (with *line*: of the first line), and at most a little more than *size* bytes."""
    found = b""
    try:
        while len(found) < size and not (line and b"\n" in found):
            data: bytes | None = file.read(size)
            if data is None:  # non-blocking, and nothing there yet
                ready(file.fileno())
            elif data:
                found += data
            else:
                break
    except OSError as error:
        found = data = b""  # no frame of the error has a part of it
        raise StorageError(f"{'standard input' if file.fileno() == 0 else file.name}: it cannot be read: {error.strerror}") from None
    return found.partition(b"\n")[0] + b"\n" if line and b"\n" in found else found


def _text(data: bytes, source: str, *, line: bool = True) -> Secret:
    """
    As UTF-8; less one line end at its end, unless told otherwise.

    Of what is too long no more than a little was read, so its length is not known.
    """
    if line and data.endswith(b"\n"):
        data = data.removesuffix(b"\n").removesuffix(b"\r")
    too_long = len(data) > MAX_VALUE_BYTES
    text = None if too_long else decoded(data)  # cut, it may end within a character
    del data  # neither the error's frames nor its cause may hold it
    if text is None:
        problem = f"longer than {MAX_VALUE_BYTES} bytes (64 KiB)" if too_long else "not UTF-8 text"
        raise click.UsageError(f"{source}: {problem}")
    return text


def warn_of_unseen(what: str, value: Secret) -> None:
    if found := unseen(value.reveal()):
        warn(f"{what} has {' and '.join(found)}; it is kept as it was given")
