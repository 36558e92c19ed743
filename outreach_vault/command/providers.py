"""The commands about providers: `providers` and `check`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import click

from .. import errors
from ..providers import Provider, catalogue, faults, find
from .group import (
    INCOMPLETE,
    UNREACHABLE,
    Where,
    chosen_project,
    cli,
    json_option,
    project_option,
)
from .terminal import plain, print_json, print_table, print_text, unlogged, warn


@cli.command()
@click.argument("name", required=False)
@json_option
def providers(name: str | None, as_json: bool) -> None:
    """List the known providers, or show the fields of one."""
    unlogged()
    for fault in faults():
        warn(fault)
    if name is None:
        known = catalogue()
        if as_json:
            print_json([_provider_json(provider) for provider in known])
        else:
            print_table(
                ("PROVIDER", "CHANNEL", "TITLE"),
                ((provider.name, provider.channel, provider.title) for provider in known),
            )
        return
    provider = known_provider(name)
    if as_json:
        print_json(_provider_json(provider))
        return
    print_text(f"{provider.title} ({provider.channel}), after {provider.source}")
    print_table(
        ("FIELD", "SECRET", "REQUIRED", "ACCOUNT", "WHAT IT IS"),
        (
            (
                field.name,
                *("yes" if flag else "-" for flag in (field.secret, field.required, field.account)),
                field.help + (f" ({field.rule.words})" if field.rule else ""),
            )
            for field in provider.fields
        ),
    )


@cli.command()
@click.argument("provider")
@project_option
@json_option
@click.pass_obj
def check(where: Where, provider: str, project: str | None, as_json: bool) -> int:
    """
    Try the stored credentials at the provider.

    Exits 16 if the provider refuses them, 17 if it cannot be reached.
    """
    from ..operations.checks import check as try_out

    with where.open() as vault, unrepeated(provider):
        project = chosen_project(vault, project)
        bundle = vault.bundle(provider, project)
        verdict = try_out(bundle)
    scopes = {name: credential.scope for name, credential in bundle.items()}
    if as_json:
        print_json(
            {
                "provider": provider,
                "project_id": project,
                "outcome": verdict.outcome,
                "reason": verdict.reason,
                "scopes": scopes,
            }
        )
    else:
        of = ", ".join(f"{name} {scope}" for name, scope in scopes.items())
        reason = f": {verdict.reason}" if verdict.reason else ""
        print_text(plain(f"{provider}: {verdict.outcome}{reason} ({of})"))
    return {"valid": 0, "refused": INCOMPLETE, "unreachable": UNREACHABLE}[verdict.outcome]


def known_provider(name: str) -> Provider:
    provider = find(name)
    if provider is None:
        raise click.UsageError(
            "not a known provider; 'vault providers' lists the known ones,"
            " and 'vault set PROVIDER FIELD' stores a field of any other"
        )
    return provider


@contextlib.contextmanager
def unrepeated(*providers: str, field: str | None = None) -> Iterator[None]:
    """
    Name a missing credential only if the catalogue knows its name: another may be a secret in the
    wrong place.
    """
    try:
        yield
    except errors.CredentialNotFound:
        if all(known := [find(provider) for provider in providers]) and (
            field is None or (known[0] and known[0].field(field))
        ):
            raise
        raise errors.CredentialNotFound(
            "no such credential; its name is not in the catalogue, so it is not repeated",
            hint="'vault list' shows what is stored",
        ) from None


def _provider_json(provider: Provider) -> dict[str, Any]:
    fields = [
        {
            "name": field.name,
            "help": field.help,
            "secret": field.secret,
            "required": field.required,
            "account": field.account,
            "rule": field.rule.words if field.rule else None,
        }
        for field in provider.fields
    ]
    return {
        "name": provider.name,
        "title": provider.title,
        "channel": provider.channel,
        "source": provider.source,
        "fields": fields,
    }
