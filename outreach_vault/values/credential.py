"""What a look-up gives: a value, with the row that it came from."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from ..secret import Secret
from .rows import Row

Scope = Literal["project", "global"]


class Credential:
    """A value, and where it came from. Read-only."""

    __slots__ = ("_secret", "_stored")

    def __init__(self, stored: Row, secret: Secret) -> None:
        self._stored, self._secret = stored, secret

    @property
    def provider(self) -> str:
        return self._stored.provider

    @property
    def credential_type(self) -> str:
        return self._stored.credential_type

    @property
    def scope(self) -> Scope:
        return "global" if self.project_id is None else "project"

    @property
    def project_id(self) -> str | None:
        """The project of its row; None if the scope is global."""
        return self._stored.project_id

    @property
    def id(self) -> str:
        """`provider_credentials.id` of its row."""
        return self._stored.id

    @property
    def label(self) -> str | None:
        """The operator's own name for it, or None."""
        return self._stored.label

    @property
    def updated_at(self) -> str:
        """When the value was set: ISO-8601 text in UTC with milliseconds and `Z`, as stored."""
        return self._stored.updated_at

    @property
    def secret(self) -> Secret:
        """The value, which only `reveal()` shows."""
        return self._secret

    def reveal(self) -> str:
        """The value itself. Call it where you hand the value over."""
        return self._secret.reveal()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Credential):
            return NotImplemented
        return self._stored == other._stored  # with the token: the same token is the same value

    __hash__ = None  # type: ignore[assignment]  # its secret has none either

    def __repr__(self) -> str:
        return f"Credential({self._stored.place}, row {self.id})"


class AccessToken(Secret):
    """
    An access token, and what is known of it.

    Attributes:
        expires_at: when the provider ends it, an aware time.
        granted_scope: what the provider said it is for, or None.
        project_id: the project whose account it is of; None if that is the global one.
    """

    __slots__ = ("expires_at", "granted_scope", "project_id")

    expires_at: datetime
    granted_scope: str | None
    project_id: str | None

    @property
    def scope(self) -> Scope:
        return "global" if self.project_id is None else "project"
