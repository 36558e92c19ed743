"""
What the command prints, asks and reads. The vault's rules are elsewhere.

Data goes to standard output (`print_text`, `print_json`, `print_table`), everything else to
standard error (`note`, `warn`, `fail`). A secret comes from a hidden prompt, standard input, a file
or the environment, and goes into a `Secret` at once.
"""

from __future__ import annotations

import codecs
import functools
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO, Final, cast

import click

from ..errors import StorageError, brief
from ..schema.shapes import moment_of, unseen
from ..secret import Secret
from ..values.sealing import MAX_VALUE_BYTES
from .prompt import ask, decoded, ready

LINES: Final = (
    "a text of several lines: it ends with its own last line, or with Ctrl-D on an empty line"
)
# Room for a byte order mark, a line end, and one byte more, which shows that it is too long.
_AT_MOST: Final = MAX_VALUE_BYTES + 6
# Characters. Another tool may have stored a megabyte, and all rows are padded to the widest.
_CELL: Final = 100
_LAST: Final = 1000  # of the last column, which has no padding and may be a path or a label
_NARROW: Final = 20  # a terminal that says it is narrower gets lines of this width
_COLOURS: Final = MappingProxyType(
    dict.fromkeys(("ok", "own", "global", "active"), "green")
    | dict.fromkeys(("foreign", "pending", "notice"), "yellow")
    | dict.fromkeys(("key missing", "mixed", "incomplete", "unreadable", "problem"), "red")
)


def print_text(text: str) -> None:
    click.echo(text.encode(errors="replace"))


def note(text: str) -> None:
    click.echo(f"vault: {plain(text)}", err=True)


def warn(text: str) -> None:
    note(f"warning: {text}")


def unlogged() -> None:
    """What the library would log of other packages, the command is about to show in its own way."""
    import logging  # here: most commands do without, and it takes milliseconds to load

    logging.getLogger("outreach_vault.providers").addHandler(logging.NullHandler())


def print_json(value: object) -> None:
    # ASCII, which neither steers a terminal nor fails in an old locale.
    click.echo(json.dumps(value, indent=2))


def print_table(
    head: Sequence[str] | None,
    rows: Iterable[Sequence[str | None]],
    *,
    fold: bool = False,
    whole: bool = False,
) -> None:
    """
    Pad each column but the last to its widest cell. Cut cells that are too long.

    At a terminal no line is wider than that: its widest cells are cut further, with "…".

    Args:
        head: None for facts, a name and a text in each row.
        fold: at a terminal what the last column has no room for goes on in the next line, as with
            facts.
        whole: cut nothing for the terminal's sake.
    """
    lines = [*([head] if head else []), *rows]
    columns = [_plain_column(column) for column in zip(*lines, strict=True)]
    for column in columns:
        at_most = _LAST if column is columns[-1] else _CELL
        if max(map(len, column)) > at_most:
            column[:] = [brief(cell, at_most) for cell in column]
    if not whole and _at_terminal():
        columns = _fitted(columns, _columns() - 2 * (len(columns) - 1), fold or head is None)
    for column in columns[:-1]:
        taken = _widths(column)
        width = max(taken)
        column[:] = [cell + " " * (width - w) for cell, w in zip(column, taken, strict=True)]
    if head and "STATE" in head and _has_colours():
        column = columns[head.index("STATE")]
        column[:] = [coloured(cell.rstrip()) + cell[len(cell.rstrip()) :] for cell in column]
    print_text("\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True)))


def print_folded(text: str, *, word: str = "", indent: str = "") -> None:
    """A sentence, *word* in its colour first; at a terminal in lines that fit."""
    lines, deeper = [plain(f"{word}{text}")], f"{indent}  "
    if _at_terminal():
        lines = _folded(lines[0], _columns() - len(deeper))
    lines[0] = lines[0].replace(word, coloured(word), 1)
    print_text(indent + f"\n{deeper}".join(lines))


def minute(moment: str) -> str:
    """The date and the time of day of a stored time, at this place; what is no time as it is."""
    try:
        return f"{moment_of(moment).astimezone():%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):
        return moment


def day(moment: str | None) -> str:
    """The date of a stored time, at this place; what is no time as it is."""
    text = moment or ""
    is_usual = len(text) == 24 and text[-1] == "Z"
    return _day(f"{text[:16]}Z" if is_usual else text) or text or "-"


@functools.lru_cache(maxsize=1024)  # by the minute: rows are often stored in one go
def _day(moment: str) -> str:
    try:
        return moment_of(moment).astimezone().date().isoformat()
    except (ValueError, OverflowError):
        return ""


def coloured(word: str) -> str:
    """A state, in its colour at a terminal that may show one (https://no-color.org)."""
    colour = _COLOURS.get(word)
    return click.style(word, fg=colour) if colour and _has_colours() else word


def _has_colours() -> bool:
    return (
        _at_terminal()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") not in (None, "", "dumb")
    )


def _fitted(columns: list[list[str]], room: int, fold: bool) -> list[list[str]]:
    """The columns in *room*: the widest cells cut, or with *fold* the last in several lines."""
    widths = [max(_widths(column)) for column in columns]
    if sum(widths) <= room:
        return columns
    if fold:
        width = max(room - sum(widths[:-1]), room // 3)
        folded = [_folded(cell, width) for cell in columns[-1]]
        others = [
            [part for cell, more in zip(column, folded, strict=True) for part in _above(cell, more)]
            for column in _fitted(columns[:-1], room - width, fold=False)
        ]
        return [*others, [part for more in folded for part in more]]
    widest = max(widths)
    while sum(min(width, widest) for width in widths) > room and widest > 1:
        widest -= 1
    return [[_cut(cell, widest) for cell in column] for column in columns]


def _above(cell: str, parts: Sequence[str]) -> list[str]:
    """A cell of the same row, in the first of its lines."""
    return [cell, *[""] * (len(parts) - 1)]


def _at_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _columns() -> int:
    from shutil import get_terminal_size  # here: a pipe needs none of what it loads

    return max(get_terminal_size().columns, _NARROW)


def _widths(cells: Sequence[str]) -> list[int]:
    """How many of the terminal's columns each takes. One check shows that all are ASCII."""
    return list(map(len if "".join(cells).isascii() else _width, cells))


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width  # here: few texts need it

    wide = sum(east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(category(character) in ("Mn", "Me") for character in text)


def _cut(text: str, width: int) -> str:
    """In its middle: names that begin alike often differ at their end."""
    if _width(text) <= width:
        return text
    head, tail = text[:width], text[len(text) - width // 3 :]
    while _width(head) > width - width // 3 - 1:
        head = head[:-1]
    while _width(tail) > width // 3:
        tail = tail[1:]
    return f"{head}…{tail}"


def _folded(text: str, width: int) -> list[str]:
    """*text* in lines of at most *width* columns. Only a word that is longer is broken."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if _width(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if _width(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines


def _plain_column(cells: Sequence[str | None]) -> list[str]:
    """All cells are checked at once, which takes a third less time than one by one."""
    texts = ["-" if cell is None else cell for cell in cells]
    return texts if "".join(texts).isprintable() else list(map(plain, texts))


def plain(text: str | None) -> str:
    """Text from the database, without characters that could steer a terminal."""
    if text is None:
        return "-"
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def fail(message: str, hint: str | None, status: int) -> int:
    """Show an error. Returns *status*."""
    note(f"error: {message}")
    if hint:
        note(f"hint: {hint}")
    return status


def confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.Abort("there is no terminal to ask at; give --yes to go ahead without asking")
    asked = f"{plain(question)} [y/N]: "
    while (answer := ask(asked, hidden=False).reveal().strip().lower()) not in ("y", "yes"):
        if answer in ("", "n", "no"):
            raise click.Abort
        note("answer y or n")


def with_progress(
    operation: Callable[[Callable[[int, int], None] | None], Any], label: str = "rotating"
) -> Any:
    if not sys.stderr.isatty():
        return operation(None)
    with click.progressbar(length=0, label=label, file=sys.stderr) as bar:

        def progress(seen: int, total: int) -> None:
            bar.length = total
            bar.update(seen - bar.pos)

        return operation(progress)


def read_value(
    prompt: str,
    from_file: str | None,
    from_env: str | None,
    whole: Callable[[str], bool] | None = None,
) -> Secret:
    """
    A value from where the options say, by default from standard input. Asks at a terminal.

    Args:
        prompt, whole: for the terminal, as in `prompt.ask`.
    Raises:
        click.UsageError, WrongArgument: no such source, or its content is not UTF-8 or too long.
        StorageError: it cannot be read.
    """
    if from_env is not None:
        if from_env not in os.environ:
            raise click.UsageError("--from-env: there is no environment variable with that name")
        if os.name == "nt":
            return Secret(os.environ[from_env])
        # Its bytes: Python would read them as text of the locale.
        return _text(os.environb[os.fsencode(from_env)], "--from-env", line=False)
    if from_file is not None:
        with _opened("--from-file", from_file) as file:
            return _text(_read(file, _AT_MOST), from_file)
    if not _has_stdin():
        raise click.UsageError("standard input is closed; use --from-file or --from-env")
    if not sys.stdin.isatty():
        return _text(_read(_stdin(), _AT_MOST), "standard input")
    if whole:
        note(LINES)
    return _asked(prompt, "--from-file or standard input takes it", whole)


def read_passphrase(from_file: str | None, *, twice: bool = False) -> Secret:
    """
    A passphrase: the first line of the file, by default of standard input. Asks at a terminal.

    A byte order mark, which Windows editors put first, is dropped: nobody could type it.

    Args:
        twice: ask at the terminal until two answers in a row agree.
    Raises:
        As `read_value`. click.UsageError: it is empty, or longer than a value may be.
    """
    if from_file is not None:
        with _opened("--passphrase-file", from_file) as file:
            passphrase, source = _first_line(file, from_file), from_file
    elif not _has_stdin():
        raise click.UsageError("standard input is closed; use --passphrase-file")
    elif sys.stdin.isatty():
        passphrase = _asked("passphrase", "a passphrase is one line")
        while twice and _asked("Repeat for confirmation", "a passphrase is one line") != passphrase:
            note("error: the two passphrases do not match; enter both again")
            passphrase = _asked("passphrase", "a passphrase is one line")
        return passphrase
    else:
        passphrase, source = _first_line(_stdin(), "standard input"), "standard input"
    if passphrase == Secret(""):
        raise click.UsageError(f"{source}: the first line, the passphrase, is empty")
    return passphrase


def read_text(path: str, at_most: int) -> Secret:
    """
    All the text of a file, `-` for standard input, without a byte order mark.

    Raises:
        click.UsageError: it cannot be opened, is a terminal, not UTF-8 or too long.
        StorageError: it cannot be read.
    """
    if path != "-":
        with _opened("FILE", path) as file:
            return _whole_text(file, path, at_most)
    if not _has_stdin():
        raise click.UsageError("standard input is closed; name a file")
    if sys.stdin.isatty():
        raise click.UsageError("standard input is a terminal, which may cut lines; name a file")
    return _whole_text(_stdin(), "standard input", at_most)


def _whole_text(file: BinaryIO, source: str, at_most: int) -> Secret:
    # One expression, so that no error's frame holds it.
    return _text(
        _read(file, at_most + 1).removeprefix(codecs.BOM_UTF8), source, line=False, at_most=at_most
    )


def _first_line(file: BinaryIO, source: str) -> Secret:
    # One expression, so that no error's frame holds it.
    return _text(_read(file, _AT_MOST, line=True).removeprefix(codecs.BOM_UTF8), source)


def _asked(prompt: str, instead: str, whole: Callable[[str], bool] | None = None) -> Secret:
    """The answer to a hidden question; Enter alone asks again."""
    while (answer := ask(f"{prompt}: ", hidden=True, whole=whole, instead=instead)) == Secret(""):
        pass
    return answer


def _has_stdin() -> bool:
    return sys.stdin is not None and not sys.stdin.closed


def _stdin() -> BinaryIO:
    """Without Python's buffer, which takes a pause on a non-blocking descriptor for the end."""
    return cast(BinaryIO, getattr(sys.stdin.buffer, "raw", sys.stdin.buffer))


def _opened(option: str, path: str) -> BinaryIO:
    """Does not repeat the name of a missing file: it may be a secret."""
    try:
        file = io.FileIO(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no file can have such a name"
        raise click.UsageError(f"{option}: the file cannot be opened: {why}") from None
    if file.isatty():
        file.close()
        raise click.UsageError(
            f"{option}: this is a terminal, which may cut what you type; leave {option} out"
        )
    return cast(BinaryIO, file)  # FileIO is one, but its type does not say so


def _read(file: BinaryIO, size: int, *, line: bool = False) -> bytes:
    """Read to the end (*line*: of the first line), or a little more than *size* bytes."""
    found = b""
    try:
        while len(found) < size and not (line and b"\n" in found):
            data: bytes | None = file.read(size)
            if data is None:  # non-blocking, and nothing has come yet
                ready(file.fileno())
            elif data:
                found += data
            else:
                break
    except OSError as error:
        found = data = b""  # no part of it in the error's frame
        source = "standard input" if file.fileno() == 0 else file.name
        raise StorageError(f"{source} cannot be read: {error.strerror}") from None
    return found.partition(b"\n")[0] + b"\n" if line and b"\n" in found else found


def _text(data: bytes, source: str, *, line: bool = True, at_most: int = MAX_VALUE_BYTES) -> Secret:
    """
    The UTF-8 text, without one trailing newline (unless *line* is false).

    The error for too long a text gives no length: only a little more than the limit was read.
    """
    if line and data.endswith(b"\n"):
        data = data.removesuffix(b"\n").removesuffix(b"\r")
    too_long = len(data) > at_most
    text = None if too_long else decoded(data)  # cut, it may end inside a character
    del data  # neither the error's frame nor its cause may hold it
    if text is None:
        too_long_for = f"longer than {at_most} bytes ({at_most // 1024} KiB)"
        problem = too_long_for if too_long else "not UTF-8 text"
        raise click.UsageError(f"{source}: {problem}")
    return text


def warn_of_unseen(what: str, value: Secret) -> None:
    if found := unseen(value.reveal()):
        warn(f"{what} has {' and '.join(found)}; it is kept as it was given")
