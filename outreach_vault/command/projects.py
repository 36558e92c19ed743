"""The commands about projects: `projects` and `projects add`."""

from __future__ import annotations

import click

from .group import Where, cli, json_option, long_option
from .terminal import print_json, print_table, print_text


@cli.group(invoke_without_command=True)
@long_option
@json_option
@click.pass_context
def projects(context: click.Context, whole: bool, as_json: bool) -> None:
    """
    List the projects.

    Of each the name, whether it is archived, and how many values it has of its own.
    """
    if context.invoked_subcommand is not None:
        if as_json or whole:
            raise click.UsageError("--json and --long are for the list", context)
        return
    where: Where = context.obj
    with where.open() as vault:
        found, names = vault.projects.every(), vault.projects.names()
    if as_json:
        print_json([project._asdict() for project in found])
        return
    # A name that --project does not take needs its id beside it.
    ids = whole or any(names.get(project.id) != project.name for project in found)
    print_table(
        (*(("ID",) if ids else ()), "NAME", "ARCHIVED", "VALUES"),
        (
            (
                *((project.id,) if ids else ()),
                *(project.name, "yes" if project.archived else "-", str(project.values)),
            )
            for project in found
        ),
        whole=whole,
    )


@projects.command("add")
@click.argument("name")
@click.pass_obj
def projects_add(where: Where, name: str) -> None:
    """Make a project, where no desktop app does, and print its id."""
    with where.open() as vault:
        print_text(vault.projects.add(name))
