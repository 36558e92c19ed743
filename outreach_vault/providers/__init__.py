"""
The catalogue: which fields a provider's account has, which are secret, which belong together, how each is checked.

It is data. A provider that is not in it stores and reads all the same; another package can add its own
through the entry point group `outreach_vault.providers` (an object of `Provider`). Field names are those of the
desktop app where it has them, else those that the provider's own library or documentation uses.
"""

from __future__ import annotations

import functools
import re
from types import MappingProxyType
from typing import Final, NamedTuple

from ..errors import WrongArgument
from ..schema.shapes import unseen
from ..secret import Secret

ENTRY_POINTS: Final = "outreach_vault.providers"
CHANNELS: Final = ("email", "sms", "voice", "ai", "ats")


class Rule(NamedTuple):
    """
    How a value must look: in words for people, and as a pattern that the whole value matches.

    Characters that are not shown, other than tabs and line ends, keep no rule: they come with copying, and no pattern means them.
    """

    words: str
    pattern: str

    def allows(self, value: str) -> bool:
        return (
            re.fullmatch(self.pattern, value) is not None and value.translate(_LAYOUT).isprintable()
        )


class Field(NamedTuple):
    """
    One field of a provider, stored as a `credential_type`.

    Attributes:
        help: what it is and where the provider shows it, in one line.
        secret: it is asked for at a hidden prompt, and never shown.
        account: it belongs to one account: it must come from the same scope as the other fields that do.
        required: without it nothing can be sent.
        rule: how it must look, or None where the provider does not say.
        lines: its value is a text of several lines: a prompt reads on until the rule is kept.
    """

    name: str
    help: str
    secret: bool = False
    account: bool = True
    required: bool = True
    rule: Rule | None = None
    lines: bool = False


class Provider(NamedTuple):
    """
    One provider.

    Attributes:
        channel: one of `CHANNELS`.
        source: where the names and rules of its fields are from.
    """

    name: str
    title: str
    channel: str
    fields: tuple[Field, ...]
    source: str

    def field(self, name: str) -> Field | None:
        return next((field for field in self.fields if field.name == name), None)

    def belongs(self, name: str) -> bool:
        """Whether the field is one of an account; so is one that is not listed."""
        field = self.field(name)
        return field is None or field.account

    def is_optional(self, name: str) -> bool:
        field = self.field(name)
        return field is not None and not field.required


_LAYOUT: Final = MappingProxyType(dict.fromkeys(map(ord, "\t\r\n")))
_E164: Final = Rule("a phone number in international form: + and 9 to 15 digits", r"\+[0-9]{9,15}")
_EMAIL: Final = Rule("an email address", r"[^@\s<>]+@[^@\s<>]+")
_HOST: Final = Rule(
    "the name or address of a host, without https:// or a path", r"[A-Za-z0-9.:_-]+"
)
_NUMBER: Final = Rule("a number", r"[0-9]+")
_PEM: Final = Rule(
    "a whole PEM text, from its -----BEGIN line to the -----END line of the same name",
    r"\s*-----BEGIN (?P<name>[A-Z0-9 ]+)-----[ \t]*\r?\n(?:(?!-----)[^\n]*\n)+-----END (?P=name)-----\s*",
)
_PORT: Final = Rule(
    "a port: 1 to 65535",
    r"[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]",
)
_TEXT: Final = Rule("text without spaces or line ends around it", r"\S(?:.*\S)?")
_TOKEN: Final = Rule("one word, without spaces", r"\S+")

_BUILT_IN: Final = (
    Provider(
        "twilio",
        "Twilio",
        "sms",
        (
            Field(
                "account_sid",
                "the account's SID, on the console's first page",
                rule=Rule("AC and 32 digits 0-9 or a-f", r"AC[0-9a-fA-F]{32}"),
            ),
            Field(
                "auth_token",
                "the account's auth token, on the console's first page",
                secret=True,
                rule=Rule("20 or more characters, no spaces", r"\S{20,}"),
            ),
            Field(
                "phone_number", "the number that messages are sent from", account=False, rule=_E164
            ),
        ),
        "https://www.twilio.com/docs/usage/requests-to-twilio",
    ),
    Provider(
        "smtp",
        "SMTP server",
        "email",
        (
            Field("host", "the server's name", rule=_HOST),
            Field(
                "port",
                "465 for TLS from the start; 587, or nothing, for STARTTLS",
                required=False,
                rule=_PORT,
            ),
            Field("user", "the name to log in with", rule=_TEXT),
            Field("password", "the password to log in with", secret=True),
            Field(
                "from_email",
                "the sender; the user where there is none",
                account=False,
                required=False,
                rule=_EMAIL,
            ),
        ),
        "https://www.rfc-editor.org/rfc/rfc8314",
    ),
    Provider(
        "elevenlabs",
        "ElevenLabs",
        "voice",
        (
            Field("api_key", "an API key of the workspace", secret=True, rule=_TOKEN),
            Field(
                "screening_agent_id", "the agent that makes the calls", account=False, rule=_TOKEN
            ),
            Field(
                "phone_number_id",
                "the id at ElevenLabs (no phone number) of the number that it calls from",
                account=False,
                rule=_TOKEN,
            ),
        ),
        "https://elevenlabs.io/docs/api-reference/twilio/outbound-call",
    ),
    Provider(
        "anthropic",
        "Anthropic",
        "ai",
        (Field("api_key", "an API key of the console", secret=True, rule=_TOKEN),),
        "https://docs.anthropic.com/en/api/overview",
    ),
    Provider(
        "sendgrid",
        "SendGrid",
        "email",
        (
            Field(
                "api_key",
                "an API key: Settings > API Keys; shown once",
                secret=True,
                rule=Rule("SG. and 66 more characters, without spaces", r"SG\.\S{66}"),
            ),
            Field(
                "from_email",
                "the sender, where a message names none",
                account=False,
                required=False,
                rule=_EMAIL,
            ),
        ),
        "https://www.twilio.com/docs/sendgrid/ui/account-and-settings/api-keys",
    ),
    Provider(
        "ses",
        "Amazon SES",
        "email",
        (
            Field(
                "aws_access_key_id",
                "the id of an access key: IAM console > Users > Security credentials",
                # 16 to 128 together: https://docs.aws.amazon.com/STS/latest/APIReference/API_GetAccessKeyInfo.html
                rule=Rule(
                    "AKIA or ASIA and 12 or more letters and digits",
                    r"(?:AKIA|ASIA)[A-Za-z0-9_]{12,124}",
                ),
            ),
            Field(
                "aws_secret_access_key",
                "the secret of that access key; shown once",
                secret=True,
                rule=_TOKEN,
            ),
            Field(
                "aws_session_token",
                "only for a temporary key, whose id begins with ASIA",
                secret=True,
                required=False,
                rule=_TOKEN,
            ),
            Field(
                "region_name",
                "the region where the sender is verified, such as eu-west-1",
                rule=Rule("letters, digits and hyphens", r"[A-Za-z0-9-]+"),
            ),
            Field(
                "from_email",
                "the sender, where a message names none",
                account=False,
                required=False,
                rule=_EMAIL,
            ),
        ),
        "https://boto3.amazonaws.com/v1/documentation/api/latest/guide/credentials.html",
    ),
    Provider(
        "mailgun",
        "Mailgun",
        "email",
        (
            Field(
                "api_key",
                "the account's API key, or the domain's sending key; shown once",
                secret=True,
                rule=_TOKEN,
            ),
            Field("domain", "the sending domain, as listed under Domains", rule=_HOST),
            Field(
                "region",
                "where the domain was created: us or eu; us where there is none",
                required=False,
                rule=Rule("us or eu", r"us|eu"),
            ),
            Field(
                "from_email",
                "the sender, where a message names none",
                account=False,
                required=False,
                rule=_EMAIL,
            ),
        ),
        "https://documentation.mailgun.com/docs/mailgun/api-reference/api-overview",
    ),
    Provider(
        "postmark",
        "Postmark",
        "email",
        (
            Field(
                "server_token",
                "a server's API token: the server's API Tokens tab",
                secret=True,
                rule=_TOKEN,
            ),
            Field(
                "message_stream",
                "the id of the server's message stream; outbound where there is none",
                account=False,
                required=False,
                rule=_TOKEN,
            ),
            Field(
                "from_email",
                "the sender, where a message names none",
                account=False,
                required=False,
                rule=_EMAIL,
            ),
        ),
        "https://postmarkapp.com/support/article/811-what-are-the-smtp-details-api-tokens-i-should-be-using",
    ),
    Provider(
        "vonage",
        "Vonage",
        "sms",
        (
            Field(
                "api_key",
                "the account's API key, on the dashboard's first page",
                secret=True,
                rule=_TOKEN,
            ),
            Field(
                "api_secret",
                "the account's API secret, on the dashboard's first page",
                secret=True,
                rule=_TOKEN,
            ),
            Field(
                "application_id",
                "for calls: the id of the application, under Applications",
                required=False,
                rule=_TOKEN,
            ),
            Field(
                "private_key",
                "for calls: that application's private key, the whole PEM text",
                secret=True,
                required=False,
                rule=_PEM,
                lines=True,
            ),
            Field(
                "phone_number",
                "the number (without +) or name that messages are sent from",
                account=False,
                required=False,
                rule=_TEXT,
            ),
        ),
        "https://github.com/Vonage/vonage-python-sdk/blob/main/http_client/src/vonage_http_client/auth.py",
    ),
    Provider(
        "telnyx",
        "Telnyx",
        "sms",
        (
            Field(
                "api_key",
                "an API key of API v2: the portal's API Keys page; shown once",
                secret=True,
                rule=Rule("KEY and more characters, without spaces", r"KEY\S+"),
            ),
            Field(
                "phone_number",
                "the number, short code or name that messages are sent from",
                account=False,
                required=False,
                rule=_TEXT,
            ),
            Field(
                "messaging_profile_id",
                "the messaging profile, for sending from its numbers",
                account=False,
                required=False,
                rule=_TOKEN,
            ),
            Field(
                "connection_id",
                "for calls: the id of the Call Control application",
                account=False,
                required=False,
                rule=_TOKEN,
            ),
        ),
        "https://developers.telnyx.com/development/api-fundamentals/authentication",
    ),
    Provider(
        "plivo",
        "Plivo",
        "sms",
        (
            Field(
                "auth_id",
                "the Auth ID of the account (MA) or a subaccount (SA), on the console's first page",
                rule=Rule("MA or SA and 18 more characters, without spaces", r"(?:MA|SA)\S{18}"),
            ),
            Field(
                "auth_token",
                "the Auth Token of the same account, on the console's first page",
                secret=True,
                rule=_TOKEN,
            ),
            Field(
                "phone_number",
                "the number, short code or name that messages are sent from",
                account=False,
                required=False,
                rule=_TEXT,
            ),
            Field(
                "powerpack_uuid",
                "the Powerpack to send from, in place of a number",
                account=False,
                required=False,
                rule=_TOKEN,
            ),
        ),
        "https://www.plivo.com/docs/account/api/subaccount",
    ),
    Provider(
        "vapi",
        "Vapi",
        "voice",
        (
            Field(
                "token",
                "a private API key: the dashboard's API Keys page",
                secret=True,
                rule=_TOKEN,
            ),
            Field(
                "assistant_id",
                "the assistant that makes the calls",
                account=False,
                required=False,
                rule=_TOKEN,
            ),
            Field(
                "phone_number_id",
                "the id at Vapi (no phone number) of the number that it calls from",
                account=False,
                required=False,
                rule=_TOKEN,
            ),
        ),
        "https://docs.vapi.ai/security-and-privacy/api-keys",
    ),
    Provider(
        "retell",
        "Retell AI",
        "voice",
        (
            Field("api_key", "an API key: Settings > API Keys", secret=True, rule=_TOKEN),
            Field(
                "from_number",
                "the number that calls come from, bought from or imported to Retell",
                account=False,
                required=False,
                rule=_E164,
            ),
            Field(
                "override_agent_id",
                "the agent that makes the calls, in place of the number's own",
                account=False,
                required=False,
                rule=_TOKEN,
            ),
        ),
        "https://docs.retellai.com/api-references/create-phone-call",
    ),
    Provider(
        "openai",
        "OpenAI",
        "ai",
        (
            Field(
                "api_key",
                "an API key: the platform's API keys page; shown once",
                secret=True,
                rule=Rule("sk- and more characters, without spaces", r"sk-\S+"),
            ),
            Field(
                "organization",
                "the organization's id, for a key of a user in several",
                required=False,
                rule=_TOKEN,
            ),
            Field(
                "project",
                "the project's id, for a key that is not a project's own",
                required=False,
                rule=_TOKEN,
            ),
        ),
        "https://platform.openai.com/docs/api-reference/authentication",
    ),
    Provider(
        "greenhouse",
        "Greenhouse Harvest",
        "ats",
        (
            Field(
                "client_id",
                "of Harvest V3 (OAuth) credentials: Dev Center > API Credentials",
                rule=_TOKEN,
            ),
            Field(
                "client_secret",
                "the secret of the same credentials; shown once",
                secret=True,
                rule=_TOKEN,
            ),
            Field(
                "sub",
                "the id of the user who acts: the number in the user's URL",
                account=False,
                required=False,
                rule=_NUMBER,
            ),
            Field(
                "api_key",
                "a key of Harvest v1 or v2, announced to end on 31 August 2026",
                secret=True,
                required=False,
                rule=_TOKEN,
            ),
            Field(
                "on_behalf_of",
                "the id of the user who acts, in Harvest v1 and v2",
                account=False,
                required=False,
                rule=_NUMBER,
            ),
        ),
        "https://harvestdocs.greenhouse.io/docs/authentication",
    ),
    Provider(
        "lever",
        "Lever",
        "ats",
        (
            Field(
                "api_key",
                "an API key: Settings > Integrations and API > API Credentials; shown once",
                secret=True,
                rule=_TOKEN,
            ),
            Field(
                "perform_as",
                "the id of the user who acts, which some changes need",
                account=False,
                required=False,
                rule=_TOKEN,
            ),
        ),
        "https://hire.lever.co/developer/documentation",
    ),
    Provider(
        "ashby",
        "Ashby",
        "ats",
        (
            Field(
                "api_key", "an API key: Admin > Integrations > API Keys", secret=True, rule=_TOKEN
            ),
        ),
        "https://developers.ashbyhq.com/docs/authentication",
    ),
    Provider(
        "bullhorn",
        "Bullhorn",
        "ats",
        (
            Field("client_id", "the OAuth client id, from Bullhorn's support", rule=_TOKEN),
            Field(
                "client_secret",
                "the OAuth client secret, from Bullhorn's support",
                secret=True,
                rule=_TOKEN,
            ),
            Field(
                "username",
                "the API user's name, from Bullhorn's support; it decides the data center",
                rule=_TEXT,
            ),
            Field("password", "the API user's password", secret=True),
        ),
        "https://bullhorn.github.io/Getting-Started-with-REST/",
    ),
    Provider(
        "jobadder",
        "JobAdder",
        "ats",
        (
            Field(
                "client_id", "of the application registered at developers.jobadder.com", rule=_TOKEN
            ),
            Field("client_secret", "of the same application", secret=True, rule=_TOKEN),
            Field(
                "refresh_token",
                "from an authorization with offline_access; ends after 2 weeks without use",
                secret=True,
                rule=_TOKEN,
            ),
        ),
        "https://jobadderapi.zendesk.com/hc/en-us/articles/360022196774-OAuth2-Authentication",
    ),
    Provider(
        "vincere",
        "Vincere",
        "ats",
        (
            Field(
                "domain", "the company's host at Vincere, such as company.vincere.io", rule=_HOST
            ),
            Field(
                "client_id",
                "the client id: Settings > Marketplace > API, or from Vincere's support",
                rule=_TOKEN,
            ),
            Field(
                "api_key", "the company's API key, from the same place", secret=True, rule=_TOKEN
            ),
            Field(
                "refresh_token",
                "from a user's authorization at id.vincere.io",
                secret=True,
                rule=_TOKEN,
            ),
        ),
        "https://github.com/vincere-io/vincere-identity",
    ),
)
_BY_NAME: Final = {provider.name: provider for provider in _BUILT_IN}


def require_rule(provider: str, field: str, value: Secret) -> None:
    """
    Raise ValueError where the catalogue has a rule for the field that *value* does not keep; the text says the rule, not the value.

    The command does so (`vault set`). `Vault.set` stores without it: a provider may change its rules before the catalogue does.
    """
    listed = provider_of(provider).field(field)
    if listed and listed.rule and not listed.rule.allows(value.reveal()):
        hidden = " and ".join(unseen(value.reveal()))
        raise WrongArgument(
            f"{provider}/{field}: {hidden and f'it has {hidden}; '}expected {listed.rule.words}; --no-check stores it anyway"
        )


def find(name: str) -> Provider | None:
    """The provider of that name: of this catalogue, else one that another package adds; None where there is none."""
    return _BY_NAME.get(name) or next(
        (provider for provider in _added() if provider.name == name), None
    )


def provider_of(name: str) -> Provider:
    """The provider of that name; one without listed fields where it is not known."""
    return find(name) or Provider(name, name, "", (), "")


def catalogue() -> list[Provider]:
    """All providers by name; one of this catalogue is never replaced by another package's."""
    found = {
        provider.name: provider for provider in (*reversed(_added()), *_BUILT_IN)
    }  # of one name the one that `find` finds
    return [found[name] for name in sorted(found)]


@functools.cache  # the metadata of every installed package is read for it: milliseconds, and the same in the whole process
def _added() -> tuple[Provider, ...]:
    from importlib.metadata import entry_points  # here: no provider of this catalogue needs it

    found = []
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            provider = entry.load()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is that package's, and the others' providers go on
            import logging

            logging.getLogger(__name__).warning(
                "provider %s of another package cannot be loaded: %s",
                entry.name,
                type(error).__name__,
            )
            continue
        if isinstance(provider, Provider):
            found.append(provider)
    return tuple(found)
