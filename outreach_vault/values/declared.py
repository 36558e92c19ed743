"""
A bundle, and what a subclass of it declares: which fields it has, and as what each is read.

The catalogue decides. A secret declared as text, or a field that it does not know, is an error at
the first use of the class: not a value that shows itself, or one that is never found.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final

from ..errors import IncompleteAccount, UnusableValue, at_project, brief
from ..providers import Provider, find
from ..secret import Secret
from .credential import Credential


class Bundle(Mapping[str, Credential]):
    """
    One provider's stored fields, by name: `bundle["host"].scope`.

    A subclass of your own declares the fields that you use, and `Vault.bundle` takes it:

        class Vonage(Bundle, provider="vonage"):
            api_key: Secret
            phone_number: str | None

    Each is a `Secret`, a `str` or an `int` (from 0). One that may be missing has `| None`, or a
    default. At its first use the class is compared with the catalogue.

    Attributes:
        provider: its name.
        project_id: the project asked for; None means the global scope alone.
    """

    provider = ""

    def __init_subclass__(cls, *, provider: str = "", **others: Any) -> None:
        super().__init_subclass__(**others)
        cls.provider = provider or cls.provider

    def __init__(
        self, provider: str, project_id: str | None, credentials: dict[str, Credential]
    ) -> None:
        if type(self).provider:
            ready(type(self))
        self.provider, self.project_id = provider, project_id
        self._credentials = credentials

    def __getitem__(self, name: str) -> Credential:
        return self._credentials[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._credentials)

    def __len__(self) -> int:
        return len(self._credentials)

    def __repr__(self) -> str:
        scopes = ", ".join(f"{name}: {credential.scope}" for name, credential in self.items())
        asked = f"{self.provider!r}, project_id={self.project_id!r}"
        return f"{type(self).__name__}({asked}, {{{scopes}}})"


@functools.cache
def ready(kind: type[Bundle]) -> type[Bundle]:
    """
    *kind*, each of whose annotations is a property from now on.

    Not where the class is defined: the catalogue reads the metadata of every package, and may be
    loading the one that defines it.

    Raises:
        TypeError: the catalogue says otherwise.
    """
    called = kind.__qualname__
    if Bundle not in kind.__mro__ or not kind.provider:  # issubclass asks every Mapping
        raise TypeError(f'{called} has no provider: class Example(Bundle, provider="example")')
    provider = find(kind.provider)
    if provider is None:
        raise TypeError(f"{called}: the catalogue has no provider {kind.provider!r}")
    for base in kind.__mro__:
        for name, hint in _annotated(base) if Bundle in base.__mro__ else ():
            declared = getattr(kind, name, _READ)  # a default, or the property of a base
            if not isinstance(declared, property):
                setattr(kind, name, _property(provider, called, name, hint, declared))
    return kind


def _annotated(kind: type[Bundle]) -> Iterator[tuple[str, object]]:
    """As typing.get_type_hints, which since Python 3.14 loads 5 ms of modules for it."""
    try:
        for name, hint in kind.__annotations__.items():
            if isinstance(hint, str):
                hint = eval(hint, vars(sys.modules[kind.__module__]))  # noqa: S307  # its own source
            yield name, hint
    except NameError as error:
        fault = f"{kind.__qualname__}: {error}: import it outside of TYPE_CHECKING"
        raise TypeError(fault) from None


def _property(provider: Provider, called: str, name: str, hint: object, default: object) -> Any:
    field = provider.field(name)
    plain: Any = next((each for each in _READ if hint in (each, each | None)), None)
    if field is None:
        known = ", ".join(field.name for field in provider.fields)
        fault = f"{provider.name} has no such field in the catalogue; it has {known}"
    elif hasattr(Bundle, name) or name == "project_id":
        fault = f"every bundle has this name for something else; use bundle[{name!r}]"
    elif field.secret and plain is not Secret:
        fault = "it is a secret: declare it Secret"
    elif plain is None:
        fault = "declare it Secret, str or int, or one of them | None"
    elif not field.required and hint is plain and default is _READ:
        fault = "it may be missing: add | None, or give it a default"
    else:
        read, missing = _READ[plain], None if default is _READ else default
        required = hint is plain and default is _READ

        def of(bundle: Bundle) -> object:
            stored = bundle._credentials.get(name)
            if stored is None and required:  # it has a grant instead
                raise IncompleteAccount(
                    f"{provider.name}: this account has no {name}: it logs in with OAuth2",
                    hint="ask for a token with Vault.access_token",
                    missing=(name,),
                )
            return missing if stored is None else read(stored)

        return property(of)
    raise TypeError(f"{called}.{name}: {fault}")


def number_of(stored: Credential, allowed: range = range(2**63), instead: str = "") -> int:
    """Raises UnusableValue if it is none of those *allowed*; *instead* ends the advice."""
    number = _number(stored.secret, allowed)
    if number is None:
        provider, field = stored.provider, stored.credential_type
        at = at_project(stored.project_id)
        raise UnusableValue(
            f"{provider}/{field} ({stored.scope}, row {brief(stored.id)}):"
            f" not a number from {allowed[0]} to {allowed[-1]}",
            hint=f"correct it with 'vault set {provider} {field}{at}'{instead}",
            row_id=stored.id,
        )
    return number


def _number(value: Secret, allowed: range) -> int | None:
    """The number, or None. No frame keeps the text: it may be a secret in the wrong field."""
    text = ""
    try:
        text = value.reveal()
        is_short_number = text.isascii() and text.isdigit() and len(text) <= len(str(allowed[-1]))
        return int(text) if is_short_number and int(text) in allowed else None
    finally:
        text = ""


# How a field is read that is declared so.
_READ: Final[Mapping[Any, Callable[[Credential], object]]] = MappingProxyType(
    {Secret: attrgetter("secret"), str: Credential.reveal, int: number_of}
)
