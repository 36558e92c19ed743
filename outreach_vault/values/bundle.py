"""
A provider's fields, read together: typed, and from one account.

A mail account's host, user and password belong together: with one project's password at another
account's server, the sender is wrong at best. So an account's fields come from one scope, or none
is given out. The catalogue says which fields belong; one that it does not know counts as belonging.
If the project has its own account, the global one's optional fields (its port) count as missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Literal

from ..errors import IncompleteAccount, MixedAccount, UnusableValue, at_project, brief
from ..providers import Provider, provider_of
from ..secret import Secret, new_secret
from .credential import AccessToken, Credential
from .declared import Bundle, number_of
from .rows import Row

if TYPE_CHECKING:
    import smtplib


STARTTLS_PORT: Final = 587  # the default of the desktop app and of RFC 6409
# Google's and Microsoft's; and RFC 7628.
Mechanism = Literal["XOAUTH2", "OAUTHBEARER"]
_COMMAND_LINE: Final = 512  # a longer text waits for the server's question (RFC 4954, 4)
_MECHANISMS: Final[tuple[Mechanism, ...]] = ("XOAUTH2", "OAUTHBEARER")


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

    def log_in(self, server: smtplib.SMTP, token: AccessToken | None = None) -> None:
        """
        Log in at a server of smtplib: with the token, or without one with the password.

        Args:
            token: from `Vault.access_token`. It goes out as XOAUTH2, or as OAUTHBEARER where the
                server offers only that.
        Raises:
            smtplib.SMTPAuthenticationError: the server refused. It repeats no secret.
            smtplib.SMTPException: the connection has no TLS, or the server does not offer such a
                login: nothing was sent. Or it ended, or does not know SMTP's way to log in.
            MixedAccount, UnusableValue: as `sasl`. IncompleteAccount: there is no password.
        """
        import smtplib  # here, as below: only adapters of mail need it
        import ssl

        if not isinstance(server.sock, ssl.SSLSocket):
            raise smtplib.SMTPNotSupportedError("no login before TLS: call starttls first")
        secret = self.password if token is None else token
        if token is None and not (self.user.isascii() and secret.reveal().isascii()):
            # smtplib's own error would hold it.
            fault = "the user or the password is not ASCII, and this login takes nothing else"
            raise _unsendable(self, fault)
        failed: smtplib.SMTPException
        level, server.debuglevel = server.debuglevel, 0  # it would print the login
        try:
            server.ehlo_or_helo_if_needed()
            if token is None:
                server.login(self.user, secret.reveal())
            else:
                self._present(server, token)
        except (smtplib.SMTPServerDisconnected, smtplib.SMTPNotSupportedError):
            raise
        except smtplib.SMTPAuthenticationError as error:
            failed = _refused(error, [secret, *secrets(self)])
        except (smtplib.SMTPException, ValueError):  # such as a question that is not base64
            failed = smtplib.SMTPException("it does not know SMTP's way to log in")
        else:
            return
        finally:
            server.debuglevel = level
        raise failed  # here, so that it has no context: that one's text may repeat the login

    def _present(self, server: smtplib.SMTP, token: AccessToken) -> None:
        import smtplib

        offered = server.esmtp_features.get("auth", "").upper().split()
        mechanism = next((each for each in _MECHANISMS if each in offered), None)
        if mechanism is None:
            raise smtplib.SMTPNotSupportedError("it offers no login with an access token")
        text, said = self.sasl(mechanism, token), False

        def answer(_question: bytes | None = None) -> str:
            """A second question says why the token is refused; an answer ends the login."""
            nonlocal said
            first, said = not said, True
            return text.reveal() if first else "" if mechanism == "XOAUTH2" else "\x01"

        line = len(f"AUTH {mechanism} \r\n") + (len(text.reveal()) + 2) // 3 * 4
        server.auth(mechanism, answer, initial_response_ok=line <= _COMMAND_LINE)

    def sasl(self, mechanism: Mechanism, token: AccessToken) -> Secret:
        """
        What logs in with *token*, not yet in base64: for other libraries than smtplib.

        Args:
            mechanism: XOAUTH2 is Google's and Microsoft's; OAUTHBEARER is that of RFC 7628.
        Raises:
            MixedAccount: the token is another account's: this one was changed meanwhile.
            UnusableValue: the user, the host or the token has other than printable ASCII.
        """
        require_same_account(self["user"], token, has_grant=self.oauth)
        texts = (self["user"].secret, self["host"].secret, token)
        if not all(re.fullmatch("[ -~]+", each.reveal()) for each in texts):
            fault = "the user, the host or the access token has other than printable ASCII"
            raise _unsendable(self, fault)
        text, user = new_secret(), self.user
        if mechanism == "XOAUTH2":
            text._text = f"user={user}\x01auth=Bearer {token.reveal()}\x01\x01"
        else:
            user = user.replace("=", "=3D").replace(",", "=2C")
            at = f"host={self.host}\x01port={self.port}"
            text._text = f"n,a={user},\x01{at}\x01auth=Bearer {token.reveal()}\x01\x01"
        return text


def _port_of(stored: Credential) -> int:
    return number_of(stored, range(1, 65536), f", or delete it to use {STARTTLS_PORT}")


def _refused(
    error: smtplib.SMTPAuthenticationError, known: Iterable[Secret]
) -> smtplib.SMTPAuthenticationError:
    from ..masking import silent

    said = error.smtp_error
    words = said.decode(errors="replace") if isinstance(said, bytes) else said
    return type(error)(error.smtp_code, silent(words, known))


def _unsendable(account: SmtpBundle, what: str) -> UnusableValue:
    user = account["user"]
    at = at_project(user.project_id)
    return UnusableValue(
        f"smtp ({user.scope}, row {brief(user.id)}): {what}",
        hint=f"store another with 'vault set smtp{at}'",
        row_id=user.id,
    )


def require_same_account(
    field: Credential | Row, token: AccessToken, *, has_grant: bool = True
) -> None:
    """
    Raise MixedAccount unless *token* is of the account of *field*, which was read before.

    Whoever hands out both calls this: the account may have been changed in between.
    """
    if not has_grant or token.project_id != field.project_id:
        name = field.credential_type
        raise MixedAccount(
            f"{brief(field.provider)}: the access token is of another account ({token.scope}) than"
            f" the {brief(name)} (row {brief(field.id)}), which was changed meanwhile",
            hint="try again",
            rows={name: field.id},
        )


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


def secrets(bundle: Bundle) -> Iterator[Secret]:
    """The values that no text may repeat: the secret ones, and those of unlisted fields."""
    known = provider_of(bundle.provider)
    for name, credential in bundle.items():
        if not (listed := known.field(name)) or listed.secret:
            yield credential.secret


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
        at = f"{provider.name} FIELD{at_project(project_id)}"
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
    scope = "global" if project_id is None else f"project {brief(project_id)}"
    option = at_project(project_id)
    what = f"missing {', '.join(missing)}" if missing else "no field is stored"
    store = f"vault set {provider.name}{'' if provider.fields else ' FIELD'}{option}"
    raise IncompleteAccount(
        f"{provider.name} ({scope}): {what}",
        hint=f"'{store}' stores them; 'vault which {provider.name}{option}' shows what is there",
        missing=missing,
    )
