"""The commands about accounts: `accounts`, `copy` and `move`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import click

from ..errors import brief
from ..operations.accounts import Account, accounts
from .group import Where, chosen_project, cli, json_option, long_option
from .names import unrepeated
from .notes import note_account, scope_of
from .terminal import counted, note, print_json, print_table


@cli.command("accounts")
@click.option("--project", metavar="PROJECT", help="Only what this project would send from.")
@long_option
@json_option
@click.pass_obj
def accounts_(where: Where, project: str | None, whole: bool, as_json: bool) -> None:
    """
    Show whose account each project would send from.

    Where it could not send, why not. States: own, global, mixed (two accounts), incomplete,
    unreadable. The detail says if an account with OAuth2 needs a new login, if its client was
    refused, and if its access token has ended or was never asked for. No value is opened. Projects
    that have nothing of their own are counted beside the global account; --project and --json
    name each.
    """
    with where.open() as vault:
        project = chosen_project(vault, project)
        found = [each for each in accounts(vault) if project in (None, each.project_id)]
        names = {} if whole else vault.projects.names()
    if as_json:
        print_json([dict(zip(Account._fields[:8], each, strict=False)) for each in found])
        return
    shown = [a for a in found if project or a.project_id is None or a.of_scope("project")]
    others = Counter(each.provider for each in found) - Counter(each.provider for each in shown)
    print_table(
        ("SCOPE", "PROVIDER", "CHANNEL", "STATE", "DETAIL"),
        (
            (
                scope_of(each.project_id, names),
                each.provider,
                each.channel,
                each.state,
                _detail(each, 0 if each.project_id else others[each.provider]),
            )
            for each in shown
        ),
        fold=True,
        whole=whole,
    )


def _detail(account: Account, others: int) -> str:
    parts = [f"{brief(name)}: {state}" for name, state in account.unreadable.items()]
    if account.missing:
        parts.append(f"missing {', '.join(account.missing)}")
    if account.state == "mixed":
        parts.append(f"own {account.of_scope('project')}; global {account.of_scope('global')}")
    if account.grant not in (None, "ok"):
        parts.append(str(account.grant))
    if others:
        parts.append(f"also for {counted(others, 'project')}")
    return "; ".join(parts)


def _ends(command: Callable[..., Any]) -> Callable[..., Any]:
    """Both ends are always said: what is left out must not mean that all projects get it."""
    for option in (
        click.argument("provider"),
        click.argument("field", required=False),
        click.option("--from", "source", metavar="PROJECT", help="From this project."),
        click.option("--from-global", is_flag=True, help="From the global scope."),
        click.option("--to", "target", metavar="PROJECT", help="To this project."),
        click.option("--to-global", is_flag=True, help="To the global scope."),
        click.option("--replace", is_flag=True, help="Overwrite what is there."),
        click.pass_obj,
    )[::-1]:
        command = option(command)
    return command


@cli.command()
@_ends
def copy(where: Where, **given: Any) -> None:
    """
    Copy values to another scope.

    Without FIELD it is the provider's whole account. Labels are kept. Where a value cannot be
    opened, or one is there already, nothing is changed. The refresh token of an account with OAuth2
    is not copied: most are for one use. It can be moved.
    """
    _transfer(where, move=False, **given)


@cli.command()
@_ends
def move(where: Where, **given: Any) -> None:
    """
    Move values to another scope.

    As 'vault copy', which then deletes them where they come from.
    """
    _transfer(where, move=True, **given)


def _transfer(
    where: Where,
    *,
    provider: str,
    field: str | None,
    source: str | None,
    from_global: bool,
    target: str | None,
    to_global: bool,
    replace: bool,
    move: bool,
) -> None:
    from ..operations.transfer import transfer

    for option, project, is_global in (
        ("--from", source, from_global),
        ("--to", target, to_global),
    ):
        if (project is not None) == is_global:
            raise click.UsageError(f"give one of {option} PROJECT and {option}-global")
    with where.open() as vault, unrepeated(vault, provider, field=field):
        source, target = chosen_project(vault, source), chosen_project(vault, target)
        done = transfer(vault, provider, source, target, field=field, move=move, replace=replace)
        values = f"{counted(len(done.fields), 'value')} of {provider}"
        ends = (("from", source), ("to", target))
        way = " ".join(f"{end} {scope_of(project, {})}" for end, project in ends)
        note(f"{'moved' if move else 'copied'} {values} {way}: {', '.join(done.fields)}")
        if done.removed:
            note(f"deleted there, of the account replaced: {', '.join(done.removed)}")
        note_account(vault, provider, target)
        if move:
            note_account(vault, provider, source)
