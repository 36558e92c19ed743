"""
A provider's fields, read together: typed, and from one account.

A mail account's host, user and password belong together: with one project's password at another
account's server, the sender is wrong at best. So an account's fields come from one scope, or none
is given out. The catalogue says which fields belong; one that it does not know counts as belonging.
If the project has its own account, the global one's optional fields (its port) count as missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from ..errors import IncompleteAccount, MixedAccount, UnusableValue, brief
from ..providers import Provider, provider_of
from ..secret import Secret
from .credential import Credential
from .rows import Row

STARTTLS_PORT: Final = 587  # the default of the desktop app and of RFC 6409


class Bundle(Mapping[str, Credential]):
    """
    One provider's stored fields, by name: `bundle["host"].scope`.

    Attributes:
        provider: its name.
        project_id: the project asked for; None means the global scope alone.
    """

    def __init__(
        self, provider: str, project_id: str | None, credentials: dict[str, Credential]
    ) -> None:
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

    def _text(self, name: str) -> str:
        return self[name].reveal()

    def _optional(self, name: str) -> str | None:
        return self[name].reveal() if name in self else None


class SmtpBundle(Bundle):
    """An SMTP account: with `tls_first` TLS from the start (port 465), else STARTTLS first."""

    @property
    def host(self) -> str:
        return self._text("host")

    @property
    def port(self) -> int:
        if "port" not in self:
            return STARTTLS_PORT
        return _port_of(self["port"])

    @property
    def tls_first(self) -> bool:
        return self._optional("port") == "465"  # the text exactly: the desktop app's rule

    @property
    def user(self) -> str:
        return self._text("user")

    @property
    def password(self) -> Secret:
        return self["password"].secret

    @property
    def from_email(self) -> str:
        return self._optional("from_email") or self.user


def _port_of(stored: Credential) -> int:
    number = _port(stored.secret)
    if number is None:
        at = "" if stored.project_id is None else f" --project {brief(stored.project_id)}"
        raise UnusableValue(
            f"smtp/port ({stored.scope}, row {brief(stored.id)}): not a port from 1 to 65535",
            hint=f"correct it with 'vault set smtp port{at}', or delete it to use {STARTTLS_PORT}",
            row_id=stored.id,
        )
    return number


def require_usable(stored: Row, value: Secret) -> None:
    """Raise UnusableValue if *value* breaks its field's rule, as using the bundle would."""
    if stored.place[1:] == ("smtp", "port"):
        _port_of(Credential(stored, value))


def require_account(provider: str, project_id: str | None, rows: Mapping[str, Row]) -> None:
    """Raise MixedAccount or IncompleteAccount, as `bundle_of` would, without opening a row."""
    known = provider_of(provider)
    require_complete(known, project_id, of_one_account(known, project_id, rows))


def _port(value: Secret) -> int | None:
    """The number, or None. No frame keeps the text: it may be a secret in the wrong field."""
    text = ""
    try:
        text = value.reveal()
        is_short_number = text.isascii() and text.isdigit() and len(text) < 6
        return int(text) if is_short_number and 0 < int(text) < 65536 else None
    finally:
        text = ""


class TwilioBundle(Bundle):
    """A Twilio account, and the number it sends from."""

    @property
    def account_sid(self) -> str:
        return self._text("account_sid")

    @property
    def auth_token(self) -> Secret:
        return self["auth_token"].secret

    @property
    def phone_number(self) -> str:
        return self._text("phone_number")


class ElevenLabsBundle(Bundle):
    """An ElevenLabs workspace, and the agent and number of its screening calls."""

    @property
    def api_key(self) -> Secret:
        return self["api_key"].secret

    @property
    def screening_agent_id(self) -> str:
        return self._text("screening_agent_id")

    @property
    def phone_number_id(self) -> str:
        return self._text("phone_number_id")


class AnthropicBundle(Bundle):
    """An Anthropic account."""

    @property
    def api_key(self) -> Secret:
        return self["api_key"].secret


class AnyBundle(Bundle):
    """
    Any other provider: every stored field is an attribute, as a `Secret`.

    If a mapping already has the field's name (`keys`, `get`, ...), use `bundle["keys"]`.
    """

    def __getattr__(self, name: str) -> Secret:
        if name.startswith("_") or name not in self._credentials:
            raise AttributeError(f"{self.provider} has no field {name!r} stored in either scope")
        return self._credentials[name].secret


_TYPED: Final[dict[str, type[Bundle]]] = {
    "smtp": SmtpBundle,
    "twilio": TwilioBundle,
    "elevenlabs": ElevenLabsBundle,
    "anthropic": AnthropicBundle,
}


def bundle_of(
    provider: str, project_id: str | None, rows: Mapping[str, Row], opened: Callable[[Row], Secret]
) -> Bundle:
    """The bundle of these rows, each opened by *opened*. Raises what `Vault.bundle` raises."""
    known = provider_of(provider)
    rows = of_one_account(known, project_id, rows)
    require_complete(known, project_id, rows)
    credentials = {name: Credential(row, opened(row)) for name, row in rows.items()}
    return _TYPED.get(provider, AnyBundle)(provider, project_id, credentials)


def of_one_account(
    provider: Provider, project_id: str | None, rows: Mapping[str, Row]
) -> dict[str, Row]:
    """
    The rows that make one account.

    It leaves out an optional field stored as empty text (the desktop app clears fields that way,
    and it still hides the global one), and the global account's optional fields if the project has
    its own account.

    Raises:
        MixedAccount: the other fields that belong to one account come from two scopes.
    """
    rows = {
        name: row
        for name, row in rows.items()
        if not (row.encrypted_value == "" and provider.is_optional(name))
    }
    if len({row.project_id for row in rows.values()}) < 2:
        return rows
    belonging = {name: row for name, row in rows.items() if provider.belongs(name)}
    own = {name: row for name, row in belonging.items() if row.project_id is not None}
    general = {name: row for name, row in belonging.items() if row.project_id is None}
    if own:  # its optional fields are not the global account's
        optional = set(filter(provider.is_optional, general))
        rows = {name: row for name, row in rows.items() if name not in optional}
        general = {name: row for name, row in general.items() if name not in optional}
    if own and general:
        at = f"{provider.name} FIELD --project {brief(project_id)}"
        raise MixedAccount(
            f"{provider.name} (project {brief(project_id)}): fields of one account come from two"
            f" scopes: the project's {_listed(own)}; the global {_listed(general)}",
            hint=f"store the missing fields with 'vault set {at}', or delete the project's with"
            f" 'vault delete {at}' to use the global account",
            rows={name: row.id for name, row in rows.items() if provider.belongs(name)},
        )
    return rows


def _listed(rows: Mapping[str, Row]) -> str:
    return ", ".join(f"{brief(name)} (row {brief(row.id)})" for name, row in rows.items())


def require_complete(provider: Provider, project_id: str | None, rows: Mapping[str, Row]) -> None:
    """Raise IncompleteAccount if a required field is missing, or if nothing is stored."""
    missing = [field.name for field in provider.fields if field.required and field.name not in rows]
    if rows and not missing:
        return
    scope, option = "global", ""
    if project_id is not None:
        scope, option = f"project {brief(project_id)}", f" --project {brief(project_id)}"
    what = f"missing {', '.join(missing)}" if missing else "no field is stored"
    store = f"vault set {provider.name}{'' if provider.fields else ' FIELD'}{option}"
    raise IncompleteAccount(
        f"{provider.name} ({scope}): {what}",
        hint=f"'{store}' stores them; 'vault which {provider.name}{option}' shows what is there",
        missing=tuple(missing),
    )
