"""The commands about values: `set`, `get`, `which`, `list`, `label` and `delete`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Final

import click

from .. import errors
from ..providers import Field, find, is_plain, provider_of, require_rule
from ..schema.shapes import age_days, as_text
from ..secret import Secret
from ..values.rows import place_of
from ..vault import Entry, Every, Vault
from .group import Where, chosen_project, cli, json_option, long_option, project_option
from .names import known_provider, require_known, unrepeated
from .notes import note_account, scope_of, warn_of_keys
from .prompt import ask
from .terminal import (
    LINES,
    confirm,
    counted,
    day,
    fail,
    note,
    print_json,
    print_table,
    read_value,
    warn_of_unseen,
)

MASK: Final = "********"


@cli.command("set")
@click.argument("provider")
@click.argument("field", required=False)
@project_option
@click.option(
    "--label", metavar="TEXT", help="A name for people. Without this the old label stays."
)
@click.option(
    "--due",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="DATE",
    help="The day when it is due to be replaced, for 'vault due'.",
)
@click.option("--from-file", metavar="F", help="Read the value from a file.")
@click.option("--from-env", metavar="NAME", help="Take the value from an environment variable.")
@click.option(
    "--new",
    is_flag=True,
    help="Store it even if no such provider or field is known or stored yet.",
)
@click.option("--no-check", is_flag=True, help="Store it even if it looks wrong for its field.")
@click.pass_obj
def set_(
    where: Where,
    provider: str,
    field: str | None,
    project: str | None,
    label: str | None,
    due: datetime | None,
    from_file: str | None,
    from_env: str | None,
    new: bool,
    no_check: bool,
) -> None:
    """
    Store a value. Asks for it at a hidden prompt, or reads it from standard input.

    One trailing newline is removed from standard input and from a file. Without FIELD, asks at the
    terminal for each field of the provider.
    """
    if from_file is not None and from_env is not None:
        raise click.UsageError("give --from-file or --from-env, not both")
    _require_names(provider, field)
    with where.open() as vault:
        require_known(vault, provider, field, new=new)
        project = chosen_project(vault, project)
        if field is None:
            if any(option is not None for option in (from_file, from_env, label, due)):
                raise click.UsageError("--label, --due, --from-file and --from-env need a FIELD")
            _ask_for_each(vault, provider, project, no_check)
            return
        value = read_value(
            f"{provider}/{field}", from_file, from_env, _whole(provider_of(provider).field(field))
        )
        if not no_check:
            require_rule(provider, field, value)
        _store(vault, provider, {field: value}, project, label, due.date() if due else None)


@cli.command()
@click.argument("provider")
@click.argument("field")
@project_option
@click.option("--no-fallback", is_flag=True, help="Only the exact scope.")
@json_option
@click.pass_obj
def get(
    where: Where, provider: str, field: str, project: str | None, no_fallback: bool, as_json: bool
) -> None:
    """Print a value, and nothing else."""
    with where.open() as vault, unrepeated(vault, provider, field=field):
        project = chosen_project(vault, project)
        found = vault.get(provider, field, project, fallback=not no_fallback)
    if not as_json:
        click.echo(found.reveal().encode())
        return
    names = ("provider", "credential_type", "project_id", "scope", "id", "label", "updated_at")
    print_json({name: as_text(getattr(found, name)) for name in names} | {"value": found.reveal()})


@cli.command()
@click.argument("provider")
@click.argument("field", required=False)
@project_option
@long_option
@json_option
@click.pass_obj
def which(
    where: Where,
    provider: str,
    field: str | None,
    project: str | None,
    whole: bool,
    as_json: bool,
) -> None:
    """Show where each field's value would come from."""
    with where.open() as vault, unrepeated(vault, provider, field=field):
        project = chosen_project(vault, project)
        entries = vault.which(provider, field, project)
        warn_of_keys(vault, (e.key_id for e in entries if e.state == "key missing"))
        note_account(vault, provider, project)
        names = {} if whole else vault.projects.names()
    if as_json:
        print_json(
            [
                entry._asdict()
                | {"scope": entry.scope, "value": MASK, "age_days": age_days(entry.updated_at)}
                for entry in entries
            ]
        )
        return
    print_table(
        ("FIELD", "SCOPE", "VALUE", "STATE", *_times("AGE", whole), "LABEL"),
        (
            (
                *(e.credential_type, scope_of(e.project_id, names), MASK, e.state),
                *((e.updated_at, e.id) if whole else (_age(e),)),
                e.label or "",
            )
            for e in entries
        ),
        whole=whole,
    )


@cli.command("list")
@click.argument("provider", required=False)
@click.option("--project", metavar="PROJECT", help="Only this project's own rows.")
@click.option("--global", "only_global", is_flag=True, help="Only the global rows.")
@long_option
@json_option
@click.pass_obj
def list_(
    where: Where,
    provider: str | None,
    project: str | None,
    only_global: bool,
    whole: bool,
    as_json: bool,
) -> None:
    """List all rows without their values, or those of one provider."""
    if project is not None and only_global:
        raise click.UsageError("give --project or --global, not both")
    named = () if provider is None else (provider,)
    with where.open() as vault, unrepeated(vault, *named):
        project = chosen_project(vault, project)
        entries = vault.list(None if only_global else Every.SCOPE if project is None else project)
        if provider is not None:
            entries = [entry for entry in entries if entry.provider == provider]
            if not entries and find(provider) is None:  # mistyped, not merely empty
                raise errors.CredentialNotFound(
                    "no credential of this provider, which is not in the catalogue",
                    hint="'vault list' shows what is stored",
                )
        warn_of_keys(vault, (e.key_id for e in entries if e.state == "key missing"))
        names = {} if whole else vault.projects.names()
    if as_json:
        print_json([entry._asdict() for entry in entries])
        return
    if not whole:  # by name, and not by an id that the table does not show
        entries.sort(key=lambda e: (e.project_id is not None, names.get(e.project_id or "", "")))
    print_table(
        ("PROVIDER", "FIELD", "SCOPE", "STATE", *_times("UPDATED", whole), "LABEL"),
        (
            (
                *(e.provider, e.credential_type, scope_of(e.project_id, names), e.state),
                *((e.updated_at, e.id) if whole else (day(e.updated_at),)),
                e.label or "",
            )
            for e in entries
        ),
        whole=whole,
    )


@cli.command()
@click.argument("provider")
@click.argument("field")
@click.argument("text")
@project_option
@click.pass_obj
def label(where: Where, provider: str, field: str, text: str, project: str | None) -> None:
    """Change the label of a stored value. Empty TEXT removes it. The value stays."""
    from ..operations.transfer import relabel

    with where.open() as vault, unrepeated(vault, provider, field=field):
        project = chosen_project(vault, project)
        relabel(vault, provider, field, text, project)
    done = "labelled" if text else "removed the label of"
    note(f"{done} {_at(provider, field, project)}")


@cli.command()
@click.argument("provider")
@click.argument("field", required=False)
@project_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(where: Where, provider: str, field: str | None, project: str | None, yes: bool) -> None:
    """
    Remove a value, of exactly one scope.

    Without FIELD it is the provider's whole account in that scope.
    """
    with where.open() as vault, unrepeated(vault, provider, field=field):
        project = chosen_project(vault, project)
        if field is None:
            _delete_all(vault, provider, project, yes)
            return
        if vault.has(provider, field, project, fallback=False):
            confirm(f"delete {_at(provider, field, project)}?", yes)
        if not vault.delete(provider, field, project):
            raise errors.CredentialNotFound(
                f"{_at(provider, field, project)}: no such credential",
                hint="'vault list' shows what is stored",
            )
        note(f"deleted {_at(provider, field, project)}")
        note_account(vault, provider, project)


def _delete_all(vault: Vault, provider: str, project: str | None, yes: bool) -> None:
    from ..operations import transfer

    fields = list(transfer.own_rows(vault, provider, project))
    all_of_it = f"{counted(len(fields), 'value')}: {_at(provider, ', '.join(fields), project)}"
    confirm(f"delete {all_of_it}?", yes)
    transfer.delete(vault, provider, project, fields)  # what was confirmed, and nothing newer
    note(f"deleted {all_of_it}")
    note_account(vault, provider, project)


def _require_names(provider: str, field: str | None) -> None:
    """
    Refuse what may be a value typed in place of a name, and do not repeat it: every list would show
    it.
    """
    for what, name in (("PROVIDER", provider), ("FIELD", field)):
        if name is not None and not is_plain(name):
            raise click.UsageError(
                f"{what}: use only letters, digits, '_', '.' and '-'; a value is never an argument"
            )


def _store(
    vault: Vault,
    provider: str,
    values: Mapping[str, Secret],
    project: str | None,
    label: str | None = None,
    due: date | None = None,
) -> None:
    """Together, and says of each whether it replaced another."""
    places = [(place_of(provider, field, project), value) for field, value in values.items()]
    for (place, value), stored in zip(places, vault.store(places, label, due), strict=True):
        done, field = "replaced" if stored.replaced else "stored", place.credential_type
        note(f"{done} {_at(provider, field, project)}")
        warn_of_unseen(f"{provider}/{field}", value)
    note_account(vault, provider, project)


def _whole(field: Field | None) -> Callable[[str], bool] | None:
    """For a field of several lines: tells whether all of them are there."""
    if field is None or not field.lines:
        return None
    return field.rule.allows if field.rule else lambda text: False


def _ask_for_each(vault: Vault, provider: str, project: str | None, no_check: bool) -> None:
    """
    Ask for each field at the terminal, hidden if it is secret. Enter keeps the scope's own value,
    or leaves out an optional field.
    """
    known = known_provider(provider)
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError(
            "without FIELD the fields are asked for, and there is no terminal; name a FIELD"
        )
    # Stored together at the end: half a new account is worse than the old one.
    entered: dict[str, Secret] = {}
    own = {f.name for f in known.fields if vault.has(provider, f.name, project, fallback=False)}
    for field in known.asked_for(own):
        value = ask_for(provider, field, kept=field.name in own, no_check=no_check)
        if value != Secret(""):
            entered[field.name] = value
    if not entered:
        note("nothing was changed")
        return
    _store(vault, provider, entered, project)


def ask_for(provider: str, field: Field, *, kept: bool = False, no_check: bool = False) -> Secret:
    """The answer for a field, once it meets the rule. Empty: keep its value, or leave it out."""
    rule = f" ({field.rule.words})" if field.rule else ""
    note(f"{field.help}{rule}{f'; {LINES}' if field.lines else ''}")
    while True:
        try:
            value = _ask(field, kept)
            if value != Secret("") and not no_check:
                require_rule(provider, field.name, value)
            return value
        except errors.WrongArgument as error:
            fail(str(error), "enter it again, or press Ctrl-C to store nothing", 2)


def _ask(field: Field, kept: bool) -> Secret:
    """The answer for a field. Empty means to keep its value, or to leave it out."""
    beside = " [Enter keeps it]" if kept else "" if field.required else " [Enter leaves it out]"
    while True:
        value = ask(
            f"{field.name}{beside}: ",
            hidden=field.secret,
            whole=_whole(field),
            instead="'vault set PROVIDER FIELD --from-file F' takes it",
        )
        if value != Secret("") or kept or not field.required:
            return value
        note(f"{field.name} is required")


def _at(provider: str, field: str, project: str | None) -> str:
    return f"{provider}/{field} ({'global' if project is None else f'project {project}'})"


def _times(short: str, whole: bool) -> tuple[str, ...]:
    return ("UPDATED", "ID") if whole else (short,)


def _age(entry: Entry) -> str:
    days = age_days(entry.updated_at)
    return "?" if days is None else "today" if days < 1 else counted(days, "day")
