"""
The access token of an account with OAuth2: the one at hand while it lasts, else a new one.

All processes share one token, and one of them refreshes it: the others wait and read again. No
transaction is open while the provider is asked. What came of it is stored in one transaction: the
access token, and the refresh token if the provider replaced that.

The token is sealed with what it was given for, so that it is no other account's: if the account
was changed, by whatever program, it counts as none.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from ..database import Database
from ..errors import (
    ClientRefused,
    DatabaseBusy,
    DatabaseUnreachable,
    IncompleteAccount,
    KeyUnavailable,
    NeedsLogin,
    NoTokenGiven,
    OutcomeUnknown,
    ProviderUnreachable,
    StorageError,
    TokenUnavailable,
    UnreadableValue,
    WrongArgument,
    at_project,
    brief,
)
from ..keys.keyset import KeySet
from ..network import Network
from ..providers import Provider, provider_of
from ..providers.grants import Grant
from ..providers.oauth import Client, Failed, Fault, Form, Granted, request, require_library
from ..schema.shapes import Place, moment_of, new_id, to_iso
from ..secret import Secret, new_secret
from .bundle import of_one_account, require_complete
from .credential import AccessToken
from .opening import open_row
from .rows import Row, Rows
from .sealing import require_storable, seal
from .tokens import FIELD, LEASE_AT_MOST, Turn

LASTS_SECONDS: Final = 60  # what a token that is given out has left at least
# The provider's refusal may be about more than this account, and end without a change here.
_REST_SECONDS: Final = 60
_CLOCK_SECONDS: Final = 60  # a clock may be set back by so much at any time
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.25


class _TooLate(Exception):
    """This process was suspended, or is very slow: its lease may end before the answer comes."""


class _Account(NamedTuple):
    """
    An account's grant, opened.

    Attributes:
        scope: the project's id, or None, and the provider.
        asked_scope: what the tokens are to be for.
        renewed: the row of the refresh token.
        more: what else client credentials send.
    """

    scope: tuple[str | None, str]
    grant: Grant
    client: Client
    asked_scope: str | None
    refresh_token: Secret | None
    renewed: Row | None
    more: dict[str, str]

    def proof(self, refresh_token: Secret | None) -> str:
        """What tells this grant, with that refresh token, from any other. Kept sealed."""
        secret = refresh_token or self.client.secret
        known = (self.client.token_url, self.client.id, self.asked_scope, self.more)
        hashed = hashlib.sha256(json.dumps(known).encode())
        hashed.update(secret.reveal().encode() if secret else b"")
        return hashed.hexdigest()


class _Kept(NamedTuple):
    """The stored token of an account, and the refresh token that its own one replaced."""

    token: AccessToken
    seconds: int
    previous: Secret | None

    def lasts(self, now: datetime, seconds: float = 0.0) -> bool:
        """Not if it would last for longer than it was given: the clock was wrong then, or is."""
        left = (self.token.expires_at - now).total_seconds()
        return seconds < left <= self.seconds + _CLOCK_SECONDS

    def is_good(self, now: datetime, refused: Secret | None) -> bool:
        """A provider may give tokens for less than two minutes: then half of that must be left."""
        return self.token != refused and self.lasts(now, min(LASTS_SECONDS, self.seconds / 2))


class Access:
    """
    The access tokens of one vault.

    Args:
        http_seconds: the time limit for one request.
        lease: for how many seconds nobody takes over from a process that refreshes.
        context: what TLS trusts; by default the system's authorities.
    """

    def __init__(
        self,
        database: Database,
        rows: Rows,
        keys: KeySet,
        *,
        http_seconds: float,
        lease: float,
        context: ssl.SSLContext | None = None,
    ) -> None:
        # Half of it to connect: whoever needs longer would give the lease back, and begin again.
        if not 0 < 2 * http_seconds <= lease <= LEASE_AT_MOST:
            fault = (
                f"lease_seconds must be twice http_seconds at least, and {LEASE_AT_MOST:g} at most"
            )
            raise WrongArgument(fault)
        self._database, self._rows, self._keys = database, rows, keys
        self._seconds, self._lease, self._context = http_seconds, lease, context

    def token(
        self,
        provider: str,
        project_id: str | None,
        *,
        refused: Secret | None = None,
        insist: bool = False,
    ) -> AccessToken:
        """What `Vault.access_token` does; *insist* asks the provider again however it failed."""
        if self._database.in_transaction():
            raise StorageError(
                f"{brief(provider)}: a transaction is open, and a token may take seconds to come",
                hint="ask for the access token before the transaction begins",
            )
        owner, pause, waits_since, tokens = new_id(), _FIRST_PAUSE, "", self._rows.tokens
        while True:
            account = self._account(provider, project_id)
            kept = self._kept(account)
            if kept and kept.is_good(tokens.now(), refused):
                return kept.token
            turn = tokens.turn(*account.scope)
            if turn and turn.fault and turn.fault in _ERRORS:
                # Who waited for an attempt shares its failure: ten processes do not ask in turn.
                shared = waits_since and (turn.tried_at or "") >= waits_since
                free = not insist and not shared and not tokens.is_taken(turn)
                if shared or (free and _rests(turn, tokens.now())):
                    return self._or_old(account, kept, refused, turn.fault, turn.said or "")
            if turn is None or not tokens.is_taken(turn):
                turn = self._take(account, owner)
            if turn.owner == owner:
                if token := self._refresh(provider, project_id, turn, refused):
                    return token
            else:
                waits_since = waits_since or tokens.moment()
                time.sleep(pause)
                pause = min(pause * 1.5, _LONGEST_PAUSE)

    def _account(self, provider: str, project_id: str | None) -> _Account:
        """Raises what `Vault.bundle` raises, and IncompleteAccount if it has no grant."""
        known = provider_of(provider)
        rows = of_one_account(known, project_id, self._rows.fields(provider, project_id))
        if not rows:
            require_complete(known, project_id, rows)
        grant = known.grant_of(rows)
        if grant is None:
            raise _no_grant(known, project_id, rows)
        opened = {name: open_row(self._keys, rows[name]) for name in grant.fields if name in rows}
        url, scope = opened.get(grant.token_url), opened.get(grant.scope)
        client = Client(
            url.reveal() if url else grant.token_url,
            opened[grant.client_id].reveal(),
            opened.get(grant.client_secret),
            grant.basic,
        )
        # A project's own `more` with the global client makes a token of the project's own.
        owners = filter(None, (rows[name].project_id for name in opened))
        return _Account(
            (next(owners, None), provider),
            grant,
            client,
            scope.reveal() if scope else None,
            opened.get(grant.refresh_token),
            rows.get(grant.refresh_token),
            {name: opened[name].reveal() for name in grant.more if name in opened},
        )

    def _kept(self, account: _Account) -> _Kept | None:
        """The stored token, if it was given for this very account."""
        row = self._rows.tokens.token(*account.scope)
        if row is None:
            return None
        found: Any = None
        try:
            found = json.loads(open_row(self._keys, Row._make(row)).reveal())
            if found["for"] != account.proof(account.refresh_token):
                return None
            token = AccessToken(found["token"])
            token.expires_at = moment_of(found["expires_at"])
            token.granted_scope, token.project_id = found["scope"], account.scope[0]
            previous = found["previous"]
            return _Kept(
                token, int(found["seconds"]), None if previous is None else Secret(previous)
            )
        except (UnreadableValue, KeyUnavailable, ValueError, TypeError, LookupError):
            return None  # it is had anew
        finally:
            found = None

    def _take(self, account: _Account, owner: str) -> Turn:
        def take() -> Turn:
            self._rows.require_project(account.scope[0])  # the reason, not the foreign key's name
            return self._rows.tokens.take(*account.scope, owner, self._lease)

        return self._database.write(take)

    def _refresh(
        self, provider: str, project_id: str | None, held: Turn, refused: Secret | None
    ) -> AccessToken | None:
        """A new token, while this process has the lease; None if that or the account changed."""
        tokens = self._rows.tokens
        try:
            # Only what is read under the lease is the latest.
            account = self._account(provider, project_id)
            kept = self._kept(account)
            current = account.scope == held[:2]
            found = None
            if current and kept and kept.is_good(tokens.now(), refused):
                found = kept.token
            if current and not found:
                # What the provider is about to replace must be stored: first prove that it can be.
                require_library()
                self._prove_sealing()
        except BaseException:
            self._database.write(lambda: tokens.give_back(held))
            raise
        if found or not current:
            self._database.write(lambda: tokens.give_back(held))
            return found
        began = tokens.now()
        try:
            granted = self._ask(account, held, kept and kept.previous)
            return self._store(account, held, granted, began)
        except _TooLate:
            self._database.write(lambda: tokens.give_back(held))
            return None
        except Failed as failed:
            fault, said = failed.fault, str(failed)
        if not self._database.write(lambda: tokens.give_back(held, fault, said)):
            return None
        return self._or_old(account, kept, refused, fault, said)

    def _ask(self, account: _Account, held: Turn, previous: Secret | None) -> Granted:
        """The provider's answer. Raises Failed."""
        if account.refresh_token is None:
            given: Form = {"scope": account.asked_scope, **account.more}
            try:
                return self._request(account, held, "client_credentials", given)
            except Failed as failed:
                if failed.fault == "login":  # no user logs in to it: some say so of the application
                    failed.fault = "client"
                raise
        try:
            # Without a scope it is that of the grant (RFC 6749, 6).
            given = {"refresh_token": account.refresh_token}
            return self._request(account, held, "refresh_token", given)
        except Failed as failed:
            if failed.fault != "login" or previous is None:
                raise
            try:
                given = {"refresh_token": previous}
                granted = self._request(account, held, "refresh_token", given)
            except Failed:
                raise failed from None
            return granted._replace(refresh_token=granted.refresh_token or previous)

    def _request(self, account: _Account, held: Turn, grant_type: str, given: Form) -> Granted:
        def require_time() -> None:
            """Whoever takes over sends the same refresh token: ours must be answered by then."""
            if not self._rows.tokens.lasts(held, self._seconds):
                raise _TooLate

        if self._context is None:  # here: to load the system's authorities takes 30 ms
            self._context = ssl.create_default_context()
        network = Network(self._context, seconds=self._seconds, sending=require_time)
        return request(
            account.client, grant_type, given, network=network, gives=account.grant.gives
        )

    def _store(
        self, account: _Account, held: Turn, granted: Granted, began: datetime
    ) -> AccessToken | None:
        """
        Store what came, all of it or nothing. None if the lease is another's, or the account was
        changed. Raises Failed if it cannot be stored.
        """
        token = AccessToken(granted.token.reveal())
        token.expires_at = began + timedelta(seconds=granted.seconds)
        token.granted_scope, token.project_id = granted.scope, account.scope[0]
        ends, replaced = to_iso(token.expires_at), granted.refresh_token
        if account.renewed is None or replaced == account.refresh_token:
            replaced = None
        sealed = new_secret()
        sealed._text = json.dumps(
            {
                "token": token.reveal(),
                "expires_at": ends,
                "seconds": granted.seconds,
                "scope": granted.scope,
                "previous": account.refresh_token.reveal()
                if replaced and account.refresh_token
                else None,
                "for": account.proof(replaced or account.refresh_token),
            }
        )
        try:
            for secret in filter(None, (sealed, replaced)):
                require_storable(secret)
        except ValueError:
            raise Failed("answer", "an answer with a token that is too long to be stored") from None

        def store() -> bool | None:
            self._rows.require_project(account.scope[0])
            active = self._keys.states.active_id()
            cipher = self._keys.for_sealing(active)
            if cipher is None:
                return None
            tokens = self._rows.tokens
            at = Place(*account.scope, FIELD)
            there = tokens.turn(*account.scope)
            if there is None or there.attempt != held.attempt:
                return False
            # Of a changed account the token is another's. But where it has kept its refresh token,
            # the provider takes only the one that replaced that.
            done = tokens.store(held, seal(cipher, at, sealed), active, ends)
            if replaced and account.renewed:
                again = seal(cipher, account.renewed.place, replaced)
                if not self._rows.renew(account.renewed, again, active):
                    tokens.forget(*account.scope)
                    return False
            return done

        # The provider gives it no second time: a server that fails over may be back soon.
        until = time.monotonic() + self._lease
        while True:
            try:
                stored = self._database.patiently(lambda: self._database.write(store))
                if stored is not None:
                    return token if stored else None
                self._keys.prove_active()  # without the lock: a keyring may take seconds
            except (DatabaseBusy, DatabaseUnreachable, OutcomeUnknown):
                if time.monotonic() > until:
                    raise
                time.sleep(_LONGEST_PAUSE)

    def _or_old(
        self,
        account: _Account,
        kept: _Kept | None,
        refused: Secret | None,
        fault: Fault,
        said: str,
    ) -> AccessToken:
        """The old token while it lasts; else the error for *fault*."""
        if kept and kept.token != refused and kept.lasts(self._rows.tokens.now()):
            return kept.token
        project_id, provider = account.scope
        raise failure(provider, project_id, fault, said)

    def _prove_sealing(self) -> None:
        if self._keys.for_sealing(self._keys.states.active_id()) is None:
            self._keys.prove_active()


def _rests(turn: Turn, now: datetime) -> bool:
    """Whether the provider's last refusal still stands, so that it is not asked again."""
    if turn.fault == "unreachable" or turn.tried_at is None:
        return False
    try:  # a time in the future is a wrong clock's, and one that is none another tool's
        is_new = abs(now - moment_of(turn.tried_at)) < timedelta(seconds=_REST_SECONDS)
    except ValueError:
        is_new = False
    return turn.fault == "login" or is_new


def failure(provider: str, project: str | None, fault: Fault, said: str) -> TokenUnavailable:
    """The error for a grant whose last attempt failed so; *project* is an id or a name."""
    at = at_project(project)
    scope = "global" if project is None else f"project {brief(project)}"
    kind, what, advice = _ERRORS[fault]
    return kind(
        f"{brief(provider)} ({scope}): {what}: {said}", hint=advice.format(f"{brief(provider)}{at}")
    )


_ERRORS: Final[Mapping[Fault, tuple[type[TokenUnavailable], str, str]]] = MappingProxyType(
    {
        "login": (
            NeedsLogin,
            "the account needs a new login",
            "log in again: 'vault login {}'; nothing was deleted",
        ),
        "client": (
            ClientRefused,
            "the provider refuses the application",
            "check its id, its secret, which may have ended, and its permissions at the provider;"
            " then 'vault check {}' tries again",
        ),
        "unreachable": (
            ProviderUnreachable,
            "no access token, since the provider does not answer",
            "try again; 'vault check {}' does",
        ),
        "answer": (
            NoTokenGiven,
            "no access token",
            "check the token URL: 'vault which {}' shows where it is from",
        ),
    }
)


def _no_grant(
    known: Provider, project_id: str | None, rows: Mapping[str, Row]
) -> IncompleteAccount:
    scope = "global" if project_id is None else f"project {brief(project_id)}"
    option = at_project(project_id)
    missing = known.grant_missing(rows)
    if known.grant and known.grant.instead_of in rows:
        what = f"this account logs in with its {known.grant.instead_of}, not with OAuth2"
    elif missing:
        what = f"no grant of OAuth2: missing {', '.join(missing)}"
    else:
        what = "the catalogue knows of no OAuth2 for this provider"
    return IncompleteAccount(
        f"{brief(known.name)} ({scope}): {what}",
        hint=f"'vault login {brief(known.name)}{option}' stores a grant; 'vault providers"
        f" {brief(known.name)}' lists its fields",
        missing=missing,
    )
