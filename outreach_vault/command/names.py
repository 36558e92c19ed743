"""Names of providers and fields as an operator types them: known, nearly known, or a secret."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Final

from .. import errors
from ..errors import brief, near
from ..providers import Provider, catalogue, find, provider_of
from ..vault import Vault

_OTHERS: Final = (
    "'vault providers' lists the known ones;"
    " 'vault set PROVIDER FIELD --new' stores a field of any other"
)


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
