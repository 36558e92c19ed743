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
    r"(?::[0-9]{1,5})?/[!-\"$-~]*"
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
