"""The commands about values of the past and the future: `history`, `undo`, `config`, `due`."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import click

from ..errors import SchemaMismatch
from ..schema.shapes import as_text
from ..values.history import DAYS_AT_MOST, VALUES_AT_MOST, Limits, Previous
from ..values.opening import state
from .group import INCOMPLETE, Where, chosen_project, cli, json_option, project_option
from .names import unrepeated
from .notes import scope_of
from .terminal import confirm, counted, minute, note, print_json, print_table, print_text

_SHOWN: Final = tuple(name for name in Previous._fields if name != "encrypted_value")


@cli.command("history")
@click.argument("provider")
@click.argument("field")
@project_option
@click.option("--forget", is_flag=True, help="Remove them for good.")
@click.option("--yes", is_flag=True, help="Do not ask before --forget.")
@json_option
@click.pass_obj
def history_(
    where: Where,
    provider: str,
    field: str,
    project: str | None,
    forget: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """
    Show the values that a value replaced, newest first. 'vault undo' puts one back.

    'vault config history' says how many are kept, and for how long.
    """
    from ..operations import history

    with where.open() as vault, unrepeated(vault, provider, field=field):
        project = chosen_project(vault, project)
        found = history.previous_values(vault, provider, field, project)
        if forget:
            if found:
                confirm(f"remove {counted(len(found), 'previous value')} for good?", yes)
            removed = history.forget(vault, provider, field, project)
            note(f"removed {counted(removed, 'previous value')}")
            return
        problems = vault.keys.survey({previous.key_id for previous in found})
    rows = [
        {name: as_text(getattr(previous, name)) for name in _SHOWN}
        | {"number": previous.number, "state": state(previous.key_id, problems)}
        for previous in found
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("NUMBER", "SET", "ENDED", "BY", "STATE", "LABEL"),
        (
            (
                str(row["number"]),
                minute(row["updated_at"]),
                minute(row["ended_at"]),
                row["ended_by"],
                row["state"],
                row["label"] or "",
            )
            for row in rows
        ),
    )


@cli.command()
@click.argument("provider")
@click.argument("field")
@project_option
@click.option("--number", type=int, metavar="N", help="Which value of 'vault history'.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def undo(
    where: Where, provider: str, field: str, project: str | None, number: int | None, yes: bool
) -> None:
    """
    Put back the value that was replaced or deleted last. Again, it goes one further back.

    The present value joins the history; 'vault undo --number N' puts it back in turn.
    """
    from ..operations import history

    with where.open() as vault, unrepeated(vault, provider, field=field):
        project = chosen_project(vault, project)
        found = history.earlier(vault, provider, field, project, number=number)
        confirm(
            f"put back {found.place}, set {minute(found.updated_at)},"
            f" ended {minute(found.ended_at)} by {found.ended_by}?",
            yes,
        )
        back = history.undo(vault, provider, field, project, number=found.number)
    note(f"put back {back.place} as it was set on {minute(back.updated_at)}")


@cli.group("config")
def config() -> None:
    """Settings, kept in the database."""


@config.command("history")
@click.argument("values", type=int, required=False)
@click.option("--days", type=int, metavar="N", help="Keep each for so many days.")
@click.option("--yes", is_flag=True, help="Do not ask before values are removed.")
@json_option
@click.pass_obj
def config_history(
    where: Where, values: int | None, days: int | None, yes: bool, as_json: bool
) -> None:
    """
    Show or set how many previous values each value keeps, by default 3 for 30 days.

    0 keeps none: a value that is replaced leaves the database at once.
    """
    from ..operations import history

    with where.open() as vault:
        try:
            present = limits = vault.rows.history.limits()
        except SchemaMismatch:
            if values is None or days is None:
                raise
            # Spoiled by another tool, and both are given: this mends them.
            present = limits = Limits(VALUES_AT_MOST, DAYS_AT_MOST)
        if values is not None or days is not None:
            limits = Limits(
                present.values if values is None else values,
                present.days if days is None else days,
            )
            if limits.values < present.values or limits.days < present.days:
                confirm("remove the previous values beyond that for good?", yes)
            if removed := history.limit(vault, limits):
                note(f"removed {counted(removed, 'previous value')}")
    if as_json:
        print_json(limits._asdict())
    else:
        print_text(
            f"history: {counted(limits.values, 'previous value')} of each,"
            f" for {counted(limits.days, 'day')}"
        )


@cli.command("due")
@project_option
@click.option(
    "--within", type=click.IntRange(0, 36_500), default=0, metavar="DAYS",
    help="Count what is due so many days from now, too.",
)  # fmt: skip
@json_option
@click.pass_obj
def due_(where: Where, project: str | None, within: int, as_json: bool) -> int:
    """
    List the values that are due to be replaced some day. Exits 16 if one is due now.

    The day is the one of 'vault set --due', else the provider's own, as far as it is known.
    """
    from ..operations.due import due, today

    with where.open() as vault:
        project = chosen_project(vault, project)
        found = [value for value in due(vault) if project in (None, value.entry.project_id)]
        names = vault.projects.names()
    last = today() + timedelta(days=within)
    if as_json:
        print_json(
            [
                value.entry._asdict()
                | {"due": value.day.isoformat(), "by": value.by, "is_due": value.day <= last}
                for value in found
            ]
        )
    else:
        print_table(
            ("DUE", "", "PROVIDER", "FIELD", "PROJECT", "BY"),
            (
                (
                    value.day.isoformat(),
                    "due" if value.day <= last else "",
                    value.entry.provider,
                    value.entry.credential_type,
                    scope_of(value.entry.project_id, names),
                    value.by,
                )
                for value in found
            ),
        )
    return INCOMPLETE if any(value.day <= last for value in found) else 0
