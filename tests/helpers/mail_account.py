"""Accounts with OAuth2, as an operator stores them."""

from __future__ import annotations

from typing import NamedTuple

from helpers.oauth_smtp import OAuthSmtpServer
from helpers.oidc import AuthorizationServer
from outreach_vault import Vault
from outreach_vault.providers import Field, Provider
from outreach_vault.providers.grants import Grant


class MailAccount(NamedTuple):
    """
    Attributes:
        fields: all that is stored. secrets: those of them that are secret, and an access token.
    """

    fields: dict[str, str]
    secrets: list[str]

    @classmethod
    def new(
        cls,
        oauth: AuthorizationServer,
        smtp: OAuthSmtpServer | None = None,
        user: str = "ada@example.com",
        client: str = "native",
    ) -> MailAccount:
        made = oauth.grant(client, account=user)
        fields = {
            "host": smtp.host if smtp else "localhost",
            "port": str(smtp.port if smtp else 1),
            "user": user,
            "oauth_client_id": made.client.id,
            "oauth_refresh_token": made.refresh_token,
            "oauth_token_url": oauth.token_url,
        }
        secrets = [made.refresh_token, made.access_token]
        if made.client.secret:
            fields["oauth_client_secret"] = made.client.secret
            secrets.append(made.client.secret)
        return cls(fields, secrets)

    def store(self, vault: Vault, project_id: str | None = None) -> MailAccount:
        vault.set_fields("smtp", self.fields, project_id)
        return self


def example(oauth: AuthorizationServer) -> Provider:
    """A provider without a check of its own, and with a grant for all that it does."""
    return Provider(
        "example", "Example", "ats",
        (Field("client_id", ""), Field("client_secret", "", secret=True, required=False),
         Field("refresh_token", "", secret=True, required=False)),
        "", Grant(oauth.token_url, ""),
    )  # fmt: skip
