"""The commands about many values at once: `import` and `export`."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from .. import errors
from ..files import absolute, new_file
from ..operations.formats import FORMATS
from ..schema.shapes import Place
from ..secret import Secret
from ..vault import Every
from .group import STATUSES, Where, chosen_project, cli, json_option
from .names import unrepeated
from .notes import scope_of
from .terminal import (
    confirm,
    counted,
    fail,
    note,
    print_json,
    print_table,
    read_text,
    warn,
    warn_of_unseen,
)

_MAX_BYTES: Final = 16 * 1024 * 1024


@cli.command("import")
@click.argument("file")
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), help="Default: what name and content tell."
)
@click.option(
    "--project",
    metavar="PROJECT",
    help="For all values: its id, or a name that no other has. Default: global; of json, each"
    " row's own.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be stored.")
@click.option("--replace", is_flag=True, help="Replace other values that are there.")
@click.option("--skip-unknown", is_flag=True, help="Leave out what no field is there for.")
@click.option(
    "--new", is_flag=True, help="Store even what no provider or field is known or stored for yet."
)
@click.option("--no-check", is_flag=True, help="Store even values that look wrong for their field.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def import_(
    where: Where,
    file: str,
    kind: str | None,
    project: str | None,
    dry_run: bool,
    replace: bool,
    skip_unknown: bool,
    new: bool,
    no_check: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """
    Store the values of a file, all or none. FILE may be - for standard input.

    \b
    dotenv        TWILIO_ACCOUNT_SID=..., as for 'vault run'
    json          the rows of 'vault list --json', each with a value, and for
                  its own project
    airflow-...   the file of 'airflow connections export': json, yaml or env

    Shows the plan, and asks. Nothing is stored if anything in the file does not fit; all of it is
    named.
    """
    from ..operations import formats, portable

    text = read_text(file, _MAX_BYTES)
    kind = kind or formats.recognised(file, text)
    if kind is None:
        raise click.UsageError("FILE: name and content do not tell its format; give --format")
    with where.open() as vault:
        project = chosen_project(vault, project)
        plan = portable.plan(vault, kind, text, project, new=new, check=not no_check)
        unknown = [each for each in plan.problems if each.unknown]
        skipped = unknown if skip_unknown else []
        problems = [each for each in plan.problems if not (skip_unknown and each.unknown)]
        replaced = [step for step in plan.changes if step.what == "replaces"]
        shown: dict[str, Any] = {
            "format": kind,
            "values": [
                step.place._asdict() | {"plan": step.what, "source": step.source}
                for step in plan.steps
            ],
            "skipped": [each._asdict() for each in skipped],
            "problems": [each._asdict() for each in problems],
            "stored": 0,
        }
        if not as_json and (dry_run or not problems):
            names = vault.projects.names()
            print_table(
                ("PLAN", "PROVIDER", "FIELD", "SCOPE", "FROM"),
                [
                    *((s.what, *_named(s.place, names), s.source) for s in plan.steps),
                    *(("unknown field, left out", "", "", "", each.source) for each in skipped),
                ],
            )
        for each in problems:
            note(f"{each.source}: {each.what}")
        fault = hint = None
        if problems:
            fault = f"{counted(len(problems), 'problem')} in the {kind} file"
            hint = "correct the file"
            if unknown and not skipped:
                hint += ", or leave out what no field is there for with --skip-unknown"
        elif replaced and not replace and not dry_run:
            fault = f"{counted(len(replaced), 'other value')} would be replaced"
            hint = "--replace replaces them; --dry-run shows which"
        if fault:
            if as_json and dry_run:
                print_json(shown)
            return fail(f"{fault}; nothing was stored", hint, STATUSES[errors.WrongArgument])
        if plan.changes and not dry_run:
            confirm(f"store {counted(len(plan.changes), 'value')}?", yes)
            shown["stored"] = portable.store(vault, plan)
    if as_json:
        print_json(shown)
    if dry_run:
        return 0
    note(f"stored {counted(shown['stored'], 'value')}" if plan.changes else "nothing was changed")
    for step in plan.changes:
        warn_of_unseen(f"{step.place.provider}/{step.place.credential_type}", step.value)
    if file != "-":
        note("the file still has its values in clear; delete it when you need it no more")
    return 0


@cli.command("export")
@click.argument("file", required=False)
@click.option("--format", "kind", type=click.Choice(("dotenv", "json")), required=True)
@click.option(
    "--project",
    metavar="PROJECT",
    help="Its id, or a name that no other has. Default: of dotenv global, of json all.",
)
@click.option("--global", "only_global", is_flag=True, help="Only the global rows.")
@click.option("--provider", "chosen", metavar="NAME", multiple=True, help="Only this provider's.")
@click.option("--yes", is_flag=True, help="Show the values even at a terminal.")
@click.pass_obj
def export(
    where: Where,
    file: str | None,
    kind: str,
    project: str | None,
    only_global: bool,
    chosen: tuple[str, ...],
    yes: bool,
) -> None:
    """
    Write values in clear, to a new file or a pipe.

    Only you can read the file.

    \b
    dotenv   what 'vault run' would give: each value the project's own, else
             the global one. python-dotenv and POSIX shells (set -a; . FILE)
             read the same values, and so does 'vault import'; docker's
             --env-file only those without quotes. A value that they would
             read differently is named, and nothing is written.
    json     the rows of one scope, by default of all; any value, for
             'vault import'.
    """
    from ..operations import portable

    if project is not None and only_global:
        raise click.UsageError("give --project or --global, not both")
    if file is None:
        _require_private_output(yes)
    with where.open() as vault, unrepeated(vault, *chosen):
        project = chosen_project(vault, project)
        if kind == "dotenv":
            text, count = portable.as_dotenv(vault, project, chosen)
        else:
            scope = Every.SCOPE if project is None and not only_global else project
            text, count = portable.as_json(vault, scope, chosen)
    warn(f"{counted(count, 'value')} in clear: whoever can read this needs no key")
    if file is None:
        click.echo(text.reveal().encode(), nl=False)
        return
    path = absolute(file, "FILE")
    new_file(path, lambda part: _write(part, text))
    note(f"{path}: {counted(count, 'value')}")


def _require_private_output(yes: bool) -> None:
    try:
        mode = os.fstat(sys.stdout.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # no file of the system's, or none at all
        return
    if stat.S_ISREG(mode):  # others may read it, as the shell makes it
        raise click.UsageError("standard output is a file; name FILE, which only you can read")
    if sys.stdout.isatty() and not yes:
        raise click.UsageError(
            "standard output is a terminal, which keeps what it shows; name a FILE, use a pipe,"
            " or give --yes"
        )


def _write(path: Path, text: Secret) -> None:
    with path.open("wb") as file:
        file.write(text.reveal().encode())
        file.flush()
        os.fsync(file.fileno())


def _named(place: Place, names: Mapping[str, str]) -> tuple[str, str, str]:
    return place.provider, place.credential_type, scope_of(place.project_id, names)
