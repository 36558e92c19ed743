"""
OAuth2 in the catalogue: which fields of a provider make a grant, and the presets of mail services.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Final, NamedTuple

# A path on a verified host, or on this machine; nothing before the host that could pass for one.
ENDPOINT: Final = (
    r"(?:https://[A-Za-z0-9.-]+|http://(?:localhost|127\.[0-9]+\.[0-9]+\.[0-9]+|\[::1\]))"
    r"(?::(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
    r"/[!-\"$-~]*"
)


def is_endpoint(url: str) -> bool:
    """Whether secrets may be sent to this URL: https, or http to this machine itself."""
    return re.fullmatch(ENDPOINT, url) is not None


class Grant(NamedTuple):
    """
    Which fields of a provider make an OAuth2 grant, by name.

    Without a refresh token it is the grant of client credentials (RFC 6749, 4.4).

    Attributes:
        token_url: a field's name; or the URL, if all accounts share one.
        source: where the provider says so.
        instead_of: the required field that an account with a grant does without.
        basic: the client's id and secret go into a header, which every server must take (RFC 6749,
            2.3.1); else into the body, which some providers ask for.
        gives: the answer's name for the token that the provider's API takes.
        needs_login: there are no client credentials: without a refresh token it is no grant.
        more: fields that client credentials send too, each as a parameter of its own name.
        authorization_url: where a user logs in with a browser, if all accounts share one.
        device_url: where a device asks for a code to log in with (RFC 8628), if all share one.
    """

    token_url: str
    source: str
    client_id: str = "client_id"
    client_secret: str = "client_secret"  # noqa: S105  # a name
    refresh_token: str = "refresh_token"  # noqa: S105
    scope: str = "scope"
    instead_of: str | None = None
    basic: bool = False
    gives: str = "access_token"
    needs_login: bool = False
    more: tuple[str, ...] = ()
    authorization_url: str | None = None
    device_url: str | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of its fields; an account need not have each, nor the provider."""
        names = (self.client_id, self.client_secret, self.refresh_token, self.scope, *self.more)
        return names if is_endpoint(self.token_url) else (*names, self.token_url)

    def missing(self, names: Container[str]) -> tuple[str, ...]:
        """What an account with the fields *names* lacks for this grant."""
        needed = [self.client_id]
        if not is_endpoint(self.token_url):
            needed.append(self.token_url)
        if self.needs_login or self.client_secret not in names:
            needed.append(self.refresh_token)
        return tuple(name for name in needed if name not in names)


class Preset(NamedTuple):
    """
    A mail service's own values, so that an operator need not look for them.

    Attributes:
        fields: what an account there has, by field.
        token_url: as each other URL it may have `{tenant}`.
        device_url: None where a device cannot log in; *no_device* says why.
        callback: what an application of an operator's own is registered with.
        tenant: whose users log in; empty where the service has no tenants.
        extra: parameters that the login page needs to give a refresh token.
        sources: where the service says so.
    """

    name: str
    title: str
    provider: str
    fields: tuple[tuple[str, str], ...]
    token_url: str
    authorization_url: str
    device_url: str | None
    scope: str
    callback: str
    sources: tuple[str, ...]
    tenant: str = ""
    extra: tuple[tuple[str, str], ...] = ()
    no_device: str = ""

    def tenant_of(self, token_url: str) -> str | None:
        """The tenant in a token URL of this service; None if it is another service's."""
        pattern = re.escape(self.token_url).replace(r"\{tenant\}", f"({TENANT})")
        found = re.fullmatch(pattern, token_url)
        return found and "".join(found.groups())


TENANT: Final = r"[A-Za-z0-9.-]+"
_MICROSOFT: Final = "https://login.microsoftonline.com/{tenant}/oauth2/v2.0"
_AT_MICROSOFT: Final = "https://learn.microsoft.com"
_AT_GOOGLE: Final = "https://developers.google.com"
PRESETS: Final = (
    Preset(
        "microsoft365", "Microsoft 365", "smtp",
        (("host", "smtp.office365.com"), ("port", "587")),
        f"{_MICROSOFT}/token", f"{_MICROSOFT}/authorize", f"{_MICROSOFT}/devicecode",
        "https://outlook.office.com/SMTP.Send offline_access",
        # Any port is taken, but the path must be the registered one. Its pages take no
        # http://127.0.0.1, which RFC 8252 would rather have.
        "http://localhost",
        (
            f"{_AT_MICROSOFT}/exchange/mail-flow-best-practices/"
            "how-to-set-up-a-multifunction-device-or-application-to-send-email-using-"
            "microsoft-365-or-office-365",
            f"{_AT_MICROSOFT}/exchange/client-developer/legacy-protocols/"
            "how-to-authenticate-an-imap-pop-smtp-application-by-using-oauth",
            f"{_AT_MICROSOFT}/entra/identity-platform/v2-oauth2-auth-code-flow",
            f"{_AT_MICROSOFT}/entra/identity-platform/v2-oauth2-device-code",
            f"{_AT_MICROSOFT}/entra/identity-platform/reply-url#localhost-exceptions",
        ),
        tenant="organizations",  # not `common`, where a personal account could log in
    ),
    Preset(
        "google", "Google Workspace and Gmail", "smtp",
        (("host", "smtp.gmail.com"), ("port", "587")),
        "https://oauth2.googleapis.com/token", "https://accounts.google.com/o/oauth2/v2/auth",
        None,
        "https://mail.google.com/",
        "http://127.0.0.1",
        (
            f"{_AT_GOOGLE}/workspace/gmail/imap/imap-smtp",
            f"{_AT_GOOGLE}/workspace/gmail/imap/xoauth2-protocol",
            f"{_AT_GOOGLE}/identity/protocols/oauth2/native-app",
            f"{_AT_GOOGLE}/identity/protocols/oauth2/web-server#offline",
            f"{_AT_GOOGLE}/identity/protocols/oauth2/limited-input-device#allowedscopes",
        ),
        extra=(("access_type", "offline"), ("prompt", "consent")),
        no_device="Google lets no device log in for mail",
    ),
)  # fmt: skip


def preset_of(provider: str, token_url: str) -> tuple[Preset, str] | None:
    """The mail service whose token URL that is, and the tenant in it."""
    for preset in PRESETS:
        if preset.provider == provider and (tenant := preset.tenant_of(token_url)) is not None:
            return preset, tenant
    return None
