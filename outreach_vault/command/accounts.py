"""The commands about accounts: `accounts`; and what other commands say of the one they touched."""

from __future__ import annotations

import click

from ..operations.accounts import Account, account_of, accounts
from ..vault import Vault
from .group import Where, chosen_project, cli, json_option
from .terminal import note, print_json, print_table


@cli.command("accounts")
@click.option("--project", metavar="PROJECT", help="Only what this project would send from.")
@json_option
@click.pass_obj
def accounts_(where: Where, project: str | None, as_json: bool) -> None:
    """
    Show whose account each project would send from, and what keeps it from sending.

    States: own, global, mixed (two accounts), incomplete, unreadable. No value is opened.
    """
    with where.open() as vault:
        project = chosen_project(vault, project)
        found = [each for each in accounts(vault) if project in (None, each.project_id)]
        names = vault.projects.names()
    if as_json:
        print_json([dict(zip(Account._fields[:7], each, strict=False)) for each in found])
        return
    print_table(
        ("SCOPE", "PROVIDER", "CHANNEL", "STATE", "DETAIL"),
        (
            (
                "global" if each.project_id is None else names.get(each.project_id, "?"),
                each.provider,
                each.channel,
                each.state,
                _detail(each),
            )
            for each in found
        ),
    )


def _detail(account: Account) -> str:
    if account.missing:
        return f"missing {', '.join(account.missing)}"
    if account.state == "mixed":
        return f"own {account.of_scope('project')}; global {account.of_scope('global')}"
    return ", ".join(f"{name}: {state}" for name, state in account.unreadable.items())


def note_account(vault: Vault, provider: str, project: str | None) -> None:
    """Say that the account just touched is of no use to adapters, and what to do next."""
    account = account_of(vault, provider, project)
    if account and account.problem and account.is_fault:
        todo, _, _ = str(account.problem.hint).partition("; ")
        note(f"{account.message}; {todo}")
