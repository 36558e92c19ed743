"""
A provider's fields, read together: typed, and from one account.

A mail account's host, user and password belong together: with one project's password at another
account's server, the sender is wrong at best. So an account's fields come from one scope, or none
is given out. The catalogue says which fields belong; one that it does not know counts as belonging.
If the project has its own account, the global one's optional fields (its port) count as missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from ..errors import IncompleteAccount, MixedAccount, brief
from ..providers import Provider, provider_of
from ..secret import Secret
from .credential import Credential
from .declared import Bundle, number_of
from .rows import Row

STARTTLS_PORT: Final = 587  # the default of the desktop app and of RFC 6409


class SmtpBundle(Bundle, provider="smtp"):
    """An SMTP account: with `tls_first` TLS from the start (port 465), else STARTTLS first."""

    host: str
    user: str
    password: Secret

    @property
    def port(self) -> int:
        return _port_of(self["port"]) if "port" in self else STARTTLS_PORT

    @property
    def tls_first(self) -> bool:
        # The text exactly: the desktop app's rule.
        return "port" in self and self["port"].reveal() == "465"

    @property
    def oauth(self) -> bool:
        """Whether it logs in with an access token (`Vault.access_token`), not with the password."""
        return provider_of("smtp").grant_of(self) is not None

    @property
    def from_email(self) -> str:
        return ("from_email" in self and self["from_email"].reveal()) or self.user


def _port_of(stored: Credential) -> int:
    return number_of(stored, range(1, 65536), f", or delete it to use {STARTTLS_PORT}")


class TwilioBundle(Bundle, provider="twilio"):
    """A Twilio account, and the number it sends from."""

    account_sid: str
    auth_token: Secret
    phone_number: str


class ElevenLabsBundle(Bundle, provider="elevenlabs"):
    """An ElevenLabs workspace, and the agent and number of its screening calls."""

    api_key: Secret
    screening_agent_id: str
    phone_number_id: str


class AnthropicBundle(Bundle, provider="anthropic"):
    """An Anthropic account."""

    api_key: Secret


class AnyBundle(Bundle):
    """
    Any other provider: every stored field is an attribute, as a `Secret`.

    If a mapping already has the field's name (`keys`, `get`, ...), use `bundle["keys"]`.
    """

    def __getattr__(self, name: str) -> Secret:
        if name.startswith("_") or name not in self._credentials:
            raise AttributeError(f"{self.provider} has no field {name!r} stored in either scope")
        return self._credentials[name].secret

    def __dir__(self) -> Iterable[str]:
        shown = (name for name in self if name.isidentifier() and not name.startswith("_"))
        return {*super().__dir__(), *shown}


_TYPED: Final[dict[str, type[Bundle]]] = {
    kind.provider: kind for kind in (SmtpBundle, TwilioBundle, ElevenLabsBundle, AnthropicBundle)
}


def require_usable(stored: Row, value: Secret) -> None:
    """Raise UnusableValue if *value* breaks its field's rule, as using the bundle would."""
    if stored.place[1:] == ("smtp", "port"):
        _port_of(Credential(stored, value))


def bundle_of(
    provider: str,
    project_id: str | None,
    rows: Mapping[str, Row],
    opened: Callable[[Row], Secret],
    kind: type[Bundle] = AnyBundle,
) -> Bundle:
    """
    The bundle of these rows, each opened by *opened*. Raises what `Vault.bundle` raises.

    Args:
        kind: its class; instead of AnyBundle the provider's own, if there is one.
    """
    known = provider_of(provider)
    rows = of_one_account(known, project_id, rows)
    require_complete(known, project_id, rows)
    credentials = {name: Credential(row, opened(row)) for name, row in rows.items()}
    if kind is AnyBundle:
        kind = _TYPED.get(provider, kind)
    return kind(provider, project_id, credentials)


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
    if own:  # its optional fields are not the global account's, nor is the other way to log in
        others = set(filter(provider.is_optional, general))
        if grant := provider.grant_of(own):
            others.add(grant.instead_of or "")
        rows = {name: row for name, row in rows.items() if name not in others}
        general = {name: row for name, row in general.items() if name not in others}
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
    missing = provider.missing(rows)
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
        missing=missing,
    )
