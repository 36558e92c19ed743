"""
The operator's terminal: what is printed, asked and read. No rule of the vault is in here.

Data goes to standard output, everything else to standard error. A secret comes from a hidden prompt,
standard input, a file or the environment, and goes into a `Secret` at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from .cipher import MAX_VALUE_BYTES
from .errors import brief
from .secret import Secret

_CELL: Final = 100  # characters; a row of another tool may have a megabyte, to which each other row would be padded
_LAST: Final = 1000  # of the last column, which is not padded, and may be a path or a label


class Command(click.Command):
    """A command that does not repeat an argument too many, as click's own words would: it may be a secret."""

    allow_extra_args = True

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.args:
            raise click.UsageError("too many arguments; a value or a passphrase is never one, since every user can read those", ctx)
        return super().invoke(ctx)


class Group(click.Group):
    command_class = Command
    group_class = type  # of the groups in it: this one


def say(text: str) -> None:
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
    say("\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True)))


def _plain_column(cells: Sequence[str | None]) -> list[str]:
    """All at once where nothing has to be left out: two thirds of the time of one after the other (measured)."""
    texts = ["-" if cell is None else cell for cell in cells]
    return texts if "".join(texts).isprintable() else list(map(plain, texts))


def plain(text: str | None) -> str:
    """Text of the database without what could steer a terminal."""
    if text is None:
        return "-"
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


def confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        note("there is no terminal to ask on; --yes does it without asking")
        raise click.Abort
    click.confirm(plain(question), abort=True, err=True)


def with_progress(operation: Callable[[Callable[[int, int], None] | None], Any]) -> Any:
    if not sys.stderr.isatty():
        return operation(None)
    with click.progressbar(length=0, label="rotating", file=sys.stderr) as bar:

        def progress(seen: int, total: int) -> None:
            bar.length = total
            bar.update(seen - bar.pos)

        return operation(progress)


def read_value(prompt: str, from_file: str | None, from_env: str | None) -> Secret:
    if from_env:
        if from_env not in os.environ:
            raise click.UsageError(f"--from-env: there is no environment variable {from_env}")
        return Secret(os.environ[from_env])
    if from_file:
        with Path(from_file).open("rb") as file:
            return _text(file.read(MAX_VALUE_BYTES + 3), from_file)
    if sys.stdin is None or sys.stdin.closed:
        raise click.UsageError("standard input is closed; give the value there, or with --from-file or --from-env")
    if sys.stdin.isatty():
        return Secret(click.prompt(prompt, hide_input=True, err=True))
    return _text(sys.stdin.buffer.read(MAX_VALUE_BYTES + 3), "standard input")


def read_passphrase(from_file: str | None, *, twice: bool = False) -> Secret:
    if from_file is None and sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty():
        return Secret(click.prompt("passphrase", hide_input=True, confirmation_prompt=twice, err=True))
    if from_file is None and (sys.stdin is None or sys.stdin.closed):
        raise click.UsageError("standard input is closed; give the passphrase there, or with --passphrase-file")
    if from_file is None:
        passphrase = _text(sys.stdin.buffer.readline(MAX_VALUE_BYTES), "standard input")
    else:
        with Path(from_file).open("rb") as file:
            passphrase = _text(file.readline(MAX_VALUE_BYTES), from_file)
    if passphrase == Secret(""):
        raise click.UsageError(f"{from_file or 'standard input'}: the first line, which is the passphrase, is empty")
    return passphrase


def _text(data: bytes, source: str) -> Secret:
    text = _without_line_end(data)
    del data  # neither the error's frames nor its cause may hold it
    if text is None:
        raise click.UsageError(f"{source}: not UTF-8 text")
    return text


def _without_line_end(data: bytes) -> Secret | None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return Secret(text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text)
