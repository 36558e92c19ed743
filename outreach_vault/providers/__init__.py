"""
The catalogue: each provider's fields, which are secret, which belong together, and their rules.

It is data. The vault stores and reads unlisted providers too. Another package can add its own
`Provider` through the entry point group `outreach_vault.providers`. A field has the desktop app's
name for it, else the one in the provider's library or documentation.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from ..errors import WrongArgument, brief
from ..schema.shapes import unseen
from ..secret import Secret
from .grants import ENDPOINT, Grant

ENTRY_POINTS: Final = "outreach_vault.providers"
CHANNELS: Final = ("email", "sms", "voice", "ai", "ats")


class Rule(NamedTuple):
    """
    How a value must look: in words, and as a pattern that the whole value matches.

    Invisible characters other than tabs and line ends break every rule: they come from careless
    copying.
    """

    words: str
    pattern: str

    def allows(self, value: str) -> bool:
        visible = value.translate(_LAYOUT).isprintable()
        return visible and re.fullmatch(self.pattern, value) is not None


class Field(NamedTuple):
    """
    One field of a provider, stored as a `credential_type`.

    Attributes:
        help: what it is and where the provider shows it, in one line.
        secret: a hidden prompt asks for it, and it is never shown.
        account: it belongs to one account, so all such fields must come from the same scope.
        required: without it nothing can be sent.
        rule: how it must look; None if the provider does not say.
        lines: it has several lines: a prompt reads on until the text meets the rule.
        days: how long the provider lets a value live after it was set; a refresh token, after it
            was last used.
        ends: the day when the provider ends all such values: `2026-08-31`.
    """

    name: str
    help: str
    secret: bool = False
    account: bool = True
    required: bool = True
    rule: Rule | None = None
    lines: bool = False
    days: int | None = None
    ends: str | None = None


class Provider(NamedTuple):
    """
    One provider.

    Attributes:
        channel: one of `CHANNELS`.
        source: where the names and rules of its fields come from.
        grant: which of the fields make an OAuth2 grant, if any do.
    """

    name: str
    title: str
    channel: str
    fields: tuple[Field, ...]
    source: str
    grant: Grant | None = None

    def field(self, name: str) -> Field | None:
        return next((field for field in self.fields if field.name == name), None)

    def belongs(self, name: str) -> bool:
        """Whether the field belongs to one account; an unlisted field does."""
        field = self.field(name)
        return field is None or field.account

    def is_optional(self, name: str) -> bool:
        field = self.field(name)
        return field is not None and not field.required

    @property
    def grant_fields(self) -> tuple[Field, ...]:
        """The fields that make the grant."""
        names = self.grant.fields if self.grant else ()
        return tuple(field for field in self.fields if field.name in names)

    def grant_of(self, names: Container[str]) -> Grant | None:
        """The grant, if an account with the fields *names* has all of it."""
        return None if self.grant_missing(names) else self.grant

    def grant_missing(self, names: Container[str]) -> tuple[str, ...]:
        """What an account with the fields *names* lacks for the grant."""
        if self.grant is None:
            return ()
        lacking = [f.name for f in self.grant_fields if f.required and f.name not in names]
        for name in self.grant.missing(names):
            # Where there are no refresh tokens, only the secret can be what is missing.
            if name not in lacking and (name != self.grant.refresh_token or self.field(name)):
                lacking.append(name)
        return tuple(lacking)

    def asked_for(self, names: Container[str]) -> tuple[Field, ...]:
        """
        The fields to ask an operator for, who has an account with the fields *names*.

        Where a grant stands in for a required field, what only it needs comes from a login.
        """
        if self.grant is None or self.grant.instead_of is None:
            return self.fields
        others = {*self._only_of_grant, *([self.grant.instead_of] if self.grant_of(names) else [])}
        return tuple(field for field in self.fields if field.name not in others)

    def missing(self, names: Container[str]) -> tuple[str, ...]:
        """The required fields that an account with the fields *names* lacks."""
        lacking = [
            field.name for field in self.fields if field.required and field.name not in names
        ]
        if self.grant and self.grant.instead_of in lacking:
            of_grant = self.grant_missing(names)
            if not of_grant or any(name in names for name in self._only_of_grant):
                lacking.remove(self.grant.instead_of)
                lacking += (name for name in of_grant if name not in lacking)
        return tuple(lacking)

    @property
    def _only_of_grant(self) -> list[str]:
        """The names of the fields that an account without the grant does not have."""
        return [field.name for field in self.grant_fields if not field.required]


_LAYOUT: Final = MappingProxyType(dict.fromkeys(map(ord, "\t\r\n")))
_E164: Final = Rule("a phone number in international form: + and 9 to 15 digits", r"\+[0-9]{9,15}")
_EMAIL: Final = Rule("an email address", r"[^@\s<>]+@[^@\s<>]+")
_ENDPOINT: Final = Rule(
    "a URL with https:// and a path, or with http:// on this machine itself", ENDPOINT
)
_HOST: Final = Rule("a host's name or address, without https:// or a path", r"[A-Za-z0-9.:_-]+")
_NUMBER: Final = Rule("a number", r"[0-9]+")
_PEM: Final = Rule(
    "a whole PEM text, from its -----BEGIN line to the matching -----END line",
    r"\s*-----BEGIN (?P<name>[A-Z0-9 ]+)-----[ \t]*\r?\n"
    r"(?:(?!-----)[^\n]*\n)+-----END (?P=name)-----\s*",
)
_PORT: Final = Rule(
    "a port: 1 to 65535",
    r"[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]",
)
_TEXT: Final = Rule("text without spaces or line ends around it", r"\S(?:.*\S)?")
_TOKEN: Final = Rule("one word, without spaces", r"\S+")

_token: Final = functools.partial(Field, rule=_TOKEN)
_secret: Final = functools.partial(Field, secret=True, rule=_TOKEN)
_extra: Final = functools.partial(Field, account=False, required=False, rule=_TOKEN)
_FROM_EMAIL: Final = _extra("from_email", "the sender, if the message names none", rule=_EMAIL)

_BUILT_IN: Final = (
    Provider("twilio", "Twilio", "sms", (
        Field("account_sid", "the account's SID, on the console's first page",
              rule=Rule("AC and 32 digits 0-9 or a-f", r"AC[0-9a-fA-F]{32}")),
        _secret("auth_token", "the account's auth token, on the console's first page",
                rule=Rule("20 or more characters, no spaces", r"\S{20,}")),
        Field("phone_number", "the number to send messages from", account=False, rule=_E164),
    ), "https://www.twilio.com/docs/usage/requests-to-twilio"),
    Provider("smtp", "SMTP server", "email", (
        Field("host", "the server's name", rule=_HOST),
        Field("port", "465 for TLS from the start; 587, or nothing, for STARTTLS",
              required=False, rule=_PORT),
        Field("user", "the name to log in with", rule=_TEXT),
        Field("password", "the password to log in with", secret=True),
        _extra("from_email", "the sender; by default the user", rule=_EMAIL),
        _token("oauth_client_id", "for OAuth2: the id of the application at the mail service",
               required=False),
        _secret("oauth_client_secret", "for OAuth2: its secret; a public client has none",
                required=False),
        _secret("oauth_refresh_token", "for OAuth2: from 'vault login'; the application's own"
                " accounts (client credentials) have none", required=False),
        _token("oauth_token_url", "for OAuth2: where the mail service gives out access tokens",
               required=False, rule=_ENDPOINT),
        Field("oauth_scope", "for OAuth2: what the access tokens are for; several with spaces",
              required=False, rule=_TEXT),
    ), "https://www.rfc-editor.org/rfc/rfc8314",
        Grant("oauth_token_url", "https://www.rfc-editor.org/rfc/rfc6749", "oauth_client_id",
              "oauth_client_secret", "oauth_refresh_token", "oauth_scope",
              instead_of="password", basic=True)),
    Provider("elevenlabs", "ElevenLabs", "voice", (
        _secret("api_key", "an API key of the workspace"),
        _token("screening_agent_id", "the agent that makes the calls", account=False),
        _token("phone_number_id", "ElevenLabs' id for the number to call from (not the number)",
               account=False),
    ), "https://elevenlabs.io/docs/api-reference/twilio/outbound-call"),
    Provider("anthropic", "Anthropic", "ai", (
        _secret("api_key", "an API key from the console"),
    ), "https://docs.anthropic.com/en/api/overview"),
    Provider("sendgrid", "SendGrid", "email", (
        _secret("api_key", "an API key: Settings > API Keys; shown once",
                rule=Rule("SG. and 66 more characters, without spaces", r"SG\.\S{66}")),
        _FROM_EMAIL,
    ), "https://www.twilio.com/docs/sendgrid/ui/account-and-settings/api-keys"),
    Provider("ses", "Amazon SES", "email", (
        Field("aws_access_key_id",
              "the id of an access key: IAM console > Users > Security credentials",
              # 16 to 128 characters in all:
              # https://docs.aws.amazon.com/STS/latest/APIReference/API_GetAccessKeyInfo.html
              rule=Rule("AKIA or ASIA and 12 or more letters and digits",
                        r"(?:AKIA|ASIA)[A-Za-z0-9_]{12,124}")),
        _secret("aws_secret_access_key", "the secret of that access key; shown once"),
        _secret("aws_session_token", "only for a temporary key, whose id begins with ASIA",
                required=False),
        Field("region_name", "the region where the sender is verified, such as eu-west-1",
              rule=Rule("letters, digits and hyphens", r"[A-Za-z0-9-]+")),
        _FROM_EMAIL,
    ), "https://boto3.amazonaws.com/v1/documentation/api/latest/guide/credentials.html"),
    Provider("mailgun", "Mailgun", "email", (
        _secret("api_key", "the account's API key, or the domain's sending key; shown once"),
        Field("domain", "the sending domain, as listed under Domains", rule=_HOST),
        Field("region", "where the domain was created: us (the default) or eu",
              required=False, rule=Rule("us or eu", r"us|eu")),
        _FROM_EMAIL,
    ), "https://documentation.mailgun.com/docs/mailgun/api-reference/api-overview"),
    Provider("postmark", "Postmark", "email", (
        _secret("server_token", "a server's API token: the server's API Tokens tab"),
        _extra("message_stream", "the id of the server's message stream; by default outbound"),
        _FROM_EMAIL,
    ), "https://postmarkapp.com/support/article/"
       "811-what-are-the-smtp-details-api-tokens-i-should-be-using"),
    Provider("vonage", "Vonage", "sms", (
        _secret("api_key", "the account's API key, on the dashboard's first page"),
        _secret("api_secret", "the account's API secret, on the dashboard's first page"),
        _token("application_id", "for calls: the id of the application, under Applications",
               required=False),
        _secret("private_key", "for calls: that application's private key, the whole PEM text",
                required=False, rule=_PEM, lines=True),
        _extra("phone_number", "the number (without +) or name to send messages from", rule=_TEXT),
    ), "https://github.com/Vonage/vonage-python-sdk/blob/main/"
       "http_client/src/vonage_http_client/auth.py"),
    Provider("telnyx", "Telnyx", "sms", (
        _secret("api_key", "a key of API v2: the portal's API Keys page; shown once",
                rule=Rule("KEY and more characters, without spaces", r"KEY\S+")),
        _extra("phone_number", "the number, short code or name to send messages from", rule=_TEXT),
        _extra("messaging_profile_id", "the messaging profile, for sending from its numbers"),
        _extra("connection_id", "for calls: the id of the Call Control application"),
    ), "https://developers.telnyx.com/development/api-fundamentals/authentication"),
    Provider("plivo", "Plivo", "sms", (
        Field("auth_id",
              "the Auth ID of the account (MA) or a subaccount (SA), on the console's first page",
              rule=Rule("MA or SA and 18 more characters, without spaces", r"(?:MA|SA)\S{18}")),
        _secret("auth_token", "the Auth Token of the same account, on the console's first page"),
        _extra("phone_number", "the number, short code or name to send messages from", rule=_TEXT),
        _extra("powerpack_uuid", "the Powerpack to send from, instead of a number"),
    ), "https://www.plivo.com/docs/account/api/subaccount"),
    Provider("vapi", "Vapi", "voice", (
        _secret("token", "a private API key: the dashboard's API Keys page"),
        _extra("assistant_id", "the assistant that makes the calls"),
        _extra("phone_number_id", "Vapi's id for the number to call from (not the number)"),
    ), "https://docs.vapi.ai/security-and-privacy/api-keys"),
    Provider("retell", "Retell AI", "voice", (
        _secret("api_key", "an API key: Settings > API Keys"),
        _extra("from_number", "the number to call from, bought from Retell or imported there",
               rule=_E164),
        _extra("override_agent_id", "the agent that makes the calls, instead of the number's own"),
    ), "https://docs.retellai.com/api-references/create-phone-call"),
    Provider("openai", "OpenAI", "ai", (
        _secret("api_key", "an API key: the platform's API keys page; shown once",
                rule=Rule("sk- and more characters, without spaces", r"sk-\S+")),
        _token("organization", "the organization's id, for a key of a user in several",
               required=False),
        _token("project", "the project's id, for a key that is not a project's own",
               required=False),
    ), "https://platform.openai.com/docs/api-reference/authentication"),
    Provider("greenhouse", "Greenhouse Harvest", "ats", (
        _token("client_id", "from Harvest V3 (OAuth) credentials: Dev Center > API Credentials"),
        _secret("client_secret", "the secret of the same credentials; shown once"),
        _extra("sub", "the id of the user who acts: the number in the user's URL", rule=_NUMBER),
        _secret("api_key", "a key of Harvest v1 or v2, announced to end on 31 August 2026",
                required=False, ends="2026-08-31"),
        _extra("on_behalf_of", "the id of the user who acts, in Harvest v1 and v2", rule=_NUMBER),
    ), "https://harvestdocs.greenhouse.io/docs/authentication",
        Grant("https://auth.greenhouse.io/token",
              "https://harvestdocs.greenhouse.io/docs/authentication",
              basic=True, more=("sub",))),
    Provider("lever", "Lever", "ats", (
        _secret("api_key", "an API key: Settings > Integrations and API > API Credentials; shown"
                " once; not for an account with OAuth2"),
        _extra("perform_as", "the id of the user who acts, which some changes need"),
        _token("client_id", "for OAuth2: from a partner's registration at Lever", required=False),
        _secret("client_secret", "for OAuth2: from the same registration", required=False),
        _secret("refresh_token", "for OAuth2: from a login with the scope offline_access",
                required=False),
        Field("scope", "for OAuth2: what the access tokens are for; several with spaces",
              required=False, rule=_TEXT),
    ), "https://hire.lever.co/developer/documentation",
        Grant("https://auth.lever.co/oauth/token", "https://hire.lever.co/developer/oauth",
              instead_of="api_key", needs_login=True,
              authorization_url="https://auth.lever.co/authorize"
                                "?audience=https://api.lever.co/v1/")),
    Provider("ashby", "Ashby", "ats", (
        _secret("api_key", "an API key: Admin > Integrations > API Keys"),
    ), "https://developers.ashbyhq.com/docs/authentication"),
    Provider("bullhorn", "Bullhorn", "ats", (
        _token("client_id", "the OAuth client id, from Bullhorn's support"),
        _secret("client_secret", "the OAuth client secret, from Bullhorn's support"),
        Field("username",
              "the API user's name, from Bullhorn's support; it decides the data center",
              rule=_TEXT),
        Field("password", "the API user's password; not for an account with a refresh token",
              secret=True),
        _secret("refresh_token", "from the API user's authorization, if Bullhorn's support lets"
                " the client have one; good for one use", required=False),
        _token("token_url", "for a refresh token: the user's oauthUrl, from rest-services/loginInfo"
               " of Bullhorn, and /token", required=False, rule=_ENDPOINT),
    ), "https://bullhorn.github.io/Getting-Started-with-REST/",
        # The API takes the BhRestToken that this access token is exchanged for.
        Grant("token_url", "https://bullhorn.github.io/docs/oauth/", instead_of="password",
              needs_login=True)),
    Provider("jobadder", "JobAdder", "ats", (
        _token("client_id", "from the application registered at developers.jobadder.com"),
        _secret("client_secret", "from the same application"),
        _secret("refresh_token",
                "from an authorization with offline_access; expires after 2 weeks without use",
                days=14),
        Field("scope", "what the access tokens are for, such as read write offline_access",
              required=False, rule=_TEXT),
    ), "https://jobadderapi.zendesk.com/hc/en-us/articles/360022196774-OAuth2-Authentication",
        Grant("https://id.jobadder.com/connect/token",
              "https://jobadderapi.zendesk.com/hc/en-us/articles/"
              "360022196774-OAuth2-Authentication",
              needs_login=True, authorization_url="https://id.jobadder.com/connect/authorize")),
    Provider("vincere", "Vincere", "ats", (
        Field("domain", "the company's host at Vincere, such as company.vincere.io", rule=_HOST),
        _token("client_id",
               "the client id: Settings > Marketplace > API, or from Vincere's support"),
        _secret("api_key", "the company's API key, from the same place"),
        _secret("refresh_token", "from a user's authorization at id.vincere.io"),
    ), "https://github.com/vincere-io/vincere-identity",
        Grant("https://id.vincere.io/oauth2/token", "https://github.com/vincere-io/vincere-identity",
              gives="id_token", needs_login=True,
              authorization_url="https://id.vincere.io/oauth2/authorize")),
    Provider("zoho_recruit", "Zoho Recruit", "ats", (
        _token("client_id", "from the client registered at api-console.zoho.com"),
        _secret("client_secret", "from the same client"),
        _secret("refresh_token", "from an authorization with access_type=offline"),
        _token("token_url", "the accounts URL of the user's data center and /oauth/v2/token, such"
               " as https://accounts.zoho.eu/oauth/v2/token", rule=_ENDPOINT),
        Field("scope", "what the access tokens are for, such as ZohoRecruit.modules.ALL; several"
              " with commas", required=False, rule=_TEXT),
    ), "https://www.zoho.com/recruit/developer-guide/apiv2/oauth-overview.html",
        Grant("token_url", "https://help.zoho.com/portal/kb/articles/refreshing-access-tokens",
              needs_login=True,
              authorization_url="https://accounts.zoho.com/oauth/v2/auth"
                                "?access_type=offline&prompt=consent")),
)  # fmt: skip
_BY_NAME: Final = {provider.name: provider for provider in _BUILT_IN}


def require_rule(provider: str, field: str, value: Secret) -> None:
    """
    Raise ValueError if *value* breaks the catalogue's rule for the field; it states the rule alone.

    Only the command does this (`vault set`). `Vault.set` does not: a provider may change its rules
    before the catalogue does.
    """
    listed = provider_of(provider).field(field)
    if listed and listed.rule and not listed.rule.allows(value.reveal()):
        hidden = " and ".join(unseen(value.reveal()))
        fault = f"{hidden and f'it has {hidden}; '}it must be {listed.rule.words}"
        hint = "enter the right one; --no-check stores this one all the same"
        raise WrongArgument(f"{provider}/{field}: {fault}", hint=hint)


def is_plain(name: str) -> bool:
    """Whether a new provider or field may have the name. What else is typed may be a value."""
    return re.fullmatch(r"[\w.-]+", name) is not None


def find(name: str) -> Provider | None:
    """The provider of that name, from this catalogue, else from another package; or None."""
    return _BY_NAME.get(name) or _added()[0].get(name)


def may_have_grant(name: str) -> bool:
    """False for what this catalogue has without a grant. Looks at no other package."""
    known = _BY_NAME.get(name)
    return known is None or known.grant is not None


def provider_of(name: str) -> Provider:
    """The provider of that name; an unknown one lists no fields."""
    return find(name) or Provider(name, name, "", (), "")


def catalogue() -> list[Provider]:
    """All providers by name. Another package's never replaces one of this catalogue."""
    found = {**_added()[0], **_BY_NAME}
    return [found[name] for name in sorted(found)]


def faults() -> Sequence[str]:
    """What other packages name as a provider and the catalogue leaves out, each with the reason."""
    return _added()[1]


@functools.cache  # it reads every installed package's metadata, which takes milliseconds
def _added() -> tuple[Mapping[str, Provider], Sequence[str]]:
    """The providers of other packages, and what is wrong with those left out, logged once."""
    from importlib.metadata import entry_points  # here: no provider of this catalogue needs it

    from .. import packages

    found, faults = dict[str, Provider](), list[str]()
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            provider = entry.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001  # the others still load
            fault = f"cannot be loaded: {packages.cause(error)}"
        else:
            if not isinstance(provider, Provider):
                fault = f"is no Provider but a {type(provider).__name__}"
            elif provider.name in _BY_NAME or provider.name in found:
                fault = f"there is another provider {brief(provider.name)}, which stays"
            else:
                found[provider.name] = provider
                continue
        import logging

        faults.append(f"provider {brief(entry.name)}, {packages.named(entry)}: {fault}")
        logging.getLogger(__name__).warning("%s", faults[-1])
    return found, faults
