"""The commands about projects: `projects` and `projects add`."""

from __future__ import annotations

import click

from .group import Where, cli, json_option
from .terminal import print_json, print_table, print_text


@cli.group(invoke_without_command=True)
@json_option
@click.pass_context
def projects(context: click.Context, as_json: bool) -> None:
    """List the projects: id, name, whether archived, number of values of their own."""
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError("--json is for the list", context)
        return
    where: Where = context.obj
    with where.open() as vault:
        found = vault.projects.every()
    if as_json:
        print_json([project._asdict() for project in found])
        return
    print_table(
        ("ID", "NAME", "ARCHIVED", "VALUES"),
        ((p.id, p.name, "yes" if p.archived else "-", str(p.values)) for p in found),
    )


@projects.command("add")
@click.argument("name")
@click.pass_obj
def projects_add(where: Where, name: str) -> None:
    """Make a project, where no desktop app does, and print its id."""
    with where.open() as vault:
        print_text(vault.projects.add(name))
