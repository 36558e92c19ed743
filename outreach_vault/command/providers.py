"""The commands about providers: `providers` and `check`."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any, Final

import click

from .. import errors
from ..errors import brief, near
from ..providers import Provider, catalogue, faults, find, provider_of
from ..vault import Vault
from .group import (
    INCOMPLETE,
    UNREACHABLE,
    Where,
    chosen_project,
    cli,
    json_option,
    project_option,
)
from .terminal import plain, print_folded, print_json, print_table, print_text, unlogged, warn

_OTHERS: Final = (
    "'vault providers' lists the known ones;"
    " 'vault set PROVIDER FIELD --new' stores a field of any other"
)


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

    with where.open() as vault, unrepeated(vault, provider):
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
        raise errors.WrongArgument(
            f"not a known provider{near(name, (known.name for known in catalogue()))}",
            hint=_OTHERS,
        )
    return provider


def require_known(vault: Vault, provider: str, field: str | None, *, new: bool) -> None:
    """
    Refuse a provider or field that is neither in the catalogue nor stored, unless it is to be *new*
    and differs from each of those in more than capitals: it is a slip that every look-up misses.
    """
    if find(provider) is None:
        _require_among("not a known provider", provider, _providers(vault), _OTHERS, new)
    if field is not None and provider_of(provider).field(field) is None:
        fields = _fields(vault, provider)
        hint = f"it has {brief(', '.join(fields), 300)}; --new stores another"
        _require_among(f"{provider} has no such field", field, fields, hint, new)


def _require_among(problem: str, typed: str, names: Collection[str], hint: str, new: bool) -> None:
    if typed in names:
        return
    if typed.casefold() in map(str.casefold, names):
        problem, hint = f"{problem}, in these capitals", "type the name as it is known"
    elif new:
        return
    raise errors.WrongArgument(f"{problem}{near(typed, names)}", hint=hint)


def _providers(vault: Vault) -> Collection[str]:
    known = [provider.name for provider in catalogue()]
    return dict.fromkeys([*known, *(provider for provider, _ in vault.rows.places())])


def _fields(vault: Vault, provider: str) -> Collection[str]:
    known = [field.name for field in provider_of(provider).fields]
    return dict.fromkeys([*known, *(field for _, field in vault.rows.places([provider]))])


@contextlib.contextmanager
def unrepeated(vault: Vault, *providers: str, field: str | None = None) -> Iterator[None]:
    """
    Name a missing credential only if its name is in the catalogue or stored: another may be a
    secret in the wrong place. In its place, name the nearest one.
    """
    try:
        yield
    except errors.CredentialNotFound:
        try:
            guess = _guess(vault, providers, field)
        except errors.VaultError:
            guess = ""  # the file is too damaged to tell
        if guess is None:
            raise
        raise errors.CredentialNotFound(
            f"no such credential{guess}",
            hint="'vault list' shows what is stored, 'vault providers' what is known;"
            " a name that neither has is not repeated",
        ) from None


def _guess(vault: Vault, providers: Collection[str], field: str | None) -> str | None:
    """At what was meant by the first name that is not known, as in `near`. None if all are."""
    for provider in providers:
        if find(provider) is None and provider not in (names := _providers(vault)):
            return near(provider, names)
        listed = field is None or provider_of(provider).field(field)
        if field is not None and not listed and field not in (names := _fields(vault, provider)):
            return near(field, names)
    return None


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
