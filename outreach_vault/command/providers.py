"""The commands about providers: `providers` and `check`."""

from __future__ import annotations

from typing import Any

import click

from ..providers import Provider, catalogue, faults
from ..providers.grants import is_endpoint
from .group import (
    INCOMPLETE,
    UNREACHABLE,
    Where,
    chosen_project,
    cli,
    json_option,
    project_option,
)
from .names import known_provider, unrepeated
from .terminal import note, plain, print_folded, print_json, print_table, print_text, unlogged, warn


@cli.command()
@click.argument("provider", required=False)
@json_option
def providers(provider: str | None, as_json: bool) -> None:
    """List the known providers, or show the fields of one."""
    unlogged()
    for fault in faults():
        warn(fault)
    if provider is None:
        listed = catalogue()
        if as_json:
            print_json([_provider_json(each) for each in listed])
        else:
            print_table(
                ("PROVIDER", "CHANNEL", "TITLE"),
                ((each.name, each.channel, each.title) for each in listed),
            )
        return
    known = known_provider(provider)
    if as_json:
        print_json(_provider_json(known))
        return
    print_folded(f"{known.title} ({known.channel}), after {known.source}")
    print_table(
        ("FIELD", "SECRET", "REQUIRED", "ACCOUNT", "WHAT IT IS"),
        (
            (
                field.name,
                *("yes" if flag else "-" for flag in (field.secret, field.required, field.account)),
                field.help + (f" ({field.rule.words})" if field.rule else ""),
            )
            for field in known.fields
        ),
        fold=True,
    )
    if grant := known.grant:
        names = ", ".join(field.name for field in known.grant_fields)
        given = f"{grant.gives} from {'' if is_endpoint(grant.token_url) else 'the URL in '}"
        print_folded(f"OAuth2: {names}; {given}{grant.token_url}; after {grant.source}")


@cli.command()
@click.argument("provider")
@project_option
@json_option
@click.pass_obj
def check(where: Where, provider: str, project: str | None, as_json: bool) -> int:
    """
    Try the stored credentials at the provider.

    An account with OAuth2 gets a new access token first. Exits 16 if the provider refuses them,
    17 if it cannot be reached.
    """
    from ..operations.checks import check_stored

    with where.open() as vault, unrepeated(vault, provider):
        project = chosen_project(vault, project)
        bundle = vault.bundle(provider, project)
        verdict = check_stored(vault, bundle)
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
    if verdict.hint:
        note(f"hint: {verdict.hint}")
    return {"valid": 0, "refused": INCOMPLETE, "unreachable": UNREACHABLE}[verdict.outcome]


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
    grant = provider.grant
    return {
        "name": provider.name,
        "title": provider.title,
        "channel": provider.channel,
        "source": provider.source,
        "fields": fields,
        "grant": grant
        and {
            "fields": [field.name for field in provider.grant_fields],
            "token_url": grant.token_url,
            "gives": grant.gives,
            "source": grant.source,
        },
    }
