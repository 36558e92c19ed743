"""
Log in to an account with OAuth2: in a browser of this machine (RFC 6749, 4.1, always with PKCE), or
with a code that is typed into another machine's (RFC 8628).

Nothing is stored until the server has given a refresh token. Then the account is stored as a whole,
in one transaction, unless somebody changed it meanwhile.
"""

from __future__ import annotations

import contextlib
import re
import ssl
import time
from collections.abc import Callable, Container, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from ..errors import (
    ClientRefused,
    LoginFailed,
    NoTokenGiven,
    ProviderUnreachable,
    UnreadableValue,
    VaultError,
    WrongArgument,
    at_project,
    brief,
)
from ..masking import silent
from ..network import Network
from ..providers import Field, Provider, provider_of, require_rule
from ..providers.grants import TENANT, Grant, Preset, is_endpoint, preset_of
from ..providers.oauth import (
    Client,
    Device,
    Failed,
    Form,
    Granted,
    begin_device,
    fault_of,
    request,
    require_library,
)
from ..schema.shapes import Place
from ..secret import Secret
from ..values.opening import open_row
from ..values.rows import Row
from ..values.sealing import require_storable
from ..vault import Vault
from .loopback import Loopback, require_callback

SECONDS: Final = 300.0  # for the user to log in; a device has as long as its code lives
_HTTP_SECONDS: Final = 20.0
_CALLBACK: Final = "http://127.0.0.1/callback"
_DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_SLOWER_SECONDS: Final = 5  # RFC 8628, 3.5
_MISSES: Final = 3  # questions in a row that a server may leave unanswered
_LONGER_SECONDS: Final = 1.0  # for the browser to leave the address with the code in it


class Given(NamedTuple):
    """
    What an operator says of a login.

    Attributes:
        fields: values of the account, by field.
        secret: the application's; empty for one that has none; None if nothing was said.
        url: of the login page, or with *device* of the device authorisation endpoint.
        callback: the redirect URI that the application is registered with.
        device: the user logs in on another machine.
    """

    fields: Mapping[str, Secret]
    preset: Preset | None = None
    tenant: str | None = None
    url: str | None = None
    callback: str | None = None
    secret: Secret | None = None
    device: bool = False


class Plan(NamedTuple):
    """
    A login that may begin once it is `answered`.

    Attributes:
        own: what the scope has of the account, by field.
        values: what the account is to have, but for the refresh token.
        kept: those of the values that are stored already.
        lacking: the fields to ask for. asks_secret: nothing is known of the application's secret.
        extra: parameters for the login page.
    """

    provider: Provider
    project_id: str | None
    grant: Grant
    own: Mapping[str, Row]
    values: Mapping[str, Secret]
    kept: frozenset[str]
    lacking: tuple[Field, ...]
    asks_secret: bool
    url: str
    callback: str
    extra: tuple[tuple[str, str], ...]
    device: bool

    @property
    def at(self) -> str:
        scope = "global" if self.project_id is None else f"project {brief(self.project_id)}"
        return f"{self.provider.name} ({scope})"

    @property
    def scope(self) -> str | None:
        found = self.values.get(self.grant.scope)
        return found.reveal() if found else None

    def client(self) -> Client:
        grant, fixed = self.grant, is_endpoint(self.grant.token_url)
        return Client(
            grant.token_url if fixed else self.values[grant.token_url].reveal(),
            self.values[grant.client_id].reveal(),
            self.values.get(grant.client_secret),
            grant.basic,
        )

    def answered(self, answers: Mapping[str, Secret]) -> Plan:
        """With what was asked for; an empty answer leaves its field out."""
        more = {name: value for name, value in answers.items() if value != Secret("")}
        return self._replace(values={**self.values, **more}, lacking=(), asks_secret=False)


class Done(NamedTuple):
    """The names of the fields that were stored, and of those removed."""

    stored: tuple[str, ...]
    removed: tuple[str, ...]


def plan(vault: Vault, provider: str, project_id: str | None, given: Given) -> Plan:
    """
    What is known of the account: what was given, the values of the mail service that was named, or
    what the scope has stored.

    Raises:
        WrongArgument: the provider has no login, or what was given is not enough or of no use.
        ProjectNotFound, UnreadableValue, KeyUnavailable. LibraryMissing: oauthlib.
    """
    require_library()
    known = provider_of(provider)
    own = _own(vault, provider, project_id)
    grant = known.grant
    if grant is None or known.field(grant.refresh_token) is None:
        raise WrongArgument(
            f"{brief(provider)}: no user logs in to an account of this provider",
            hint=f"'vault set {brief(provider)}{at_project(project_id)}' stores its fields",
        )
    if not (given.preset or grant.client_id in given.fields) and _needs_no_user(known, grant, own):
        raise WrongArgument(
            f"{provider}: this account logs in by itself, with the application's own secret",
            hint=f"'vault set {provider} {grant.client_secret}{at_project(project_id)}' replaces"
            " that; with --client-id or --preset a user logs in to the account instead",
        )

    def stored(name: str) -> Secret | None:
        # The desktop app clears a field with empty text.
        cleared = name not in own or own[name].encrypted_value == ""
        return None if cleared else open_row(vault.keys, own[name])

    def is_kept(name: str) -> bool:
        with contextlib.suppress(UnreadableValue):
            return name in values and stored(name) == values[name]
        return False

    service, tenant = given.preset, given.tenant
    url = given.fields.get(grant.token_url) or stored(grant.token_url)
    found = preset_of(provider, url.reveal()) if url else None
    if found and service in (None, found[0]):
        service, tenant = found[0], tenant or found[1]
    offered = _offered(known, grant, service, tenant)
    named = offered if given.preset else {}
    if given.tenant:
        named = {**named, grant.token_url: offered[grant.token_url]}
    moves = _moves(grant, stored(grant.token_url), given.fields, named)

    def theirs(name: str) -> Secret | None:
        """What is stored, unless it belongs to the application at another service."""
        return None if moves and name in grant.fields else stored(name)

    values = dict[str, Secret]()
    for field in filter(lambda field: _is_known(field, grant), known.fields):
        name = field.name
        if name in given.fields:
            values[name] = _checked(provider, name, given.fields[name])
        elif value := named.get(name) or theirs(name) or offered.get(name):
            values[name] = value
    same = not moves and is_kept(grant.client_id)  # else the stored secret is another application's
    secret = given.secret or (stored(grant.client_secret) if same else None)
    if secret not in (None, Secret("")):
        values[grant.client_secret] = secret
    callback = given.callback or (service.callback if service else _CALLBACK)
    require_callback(callback)
    if grant.token_url not in values and not is_endpoint(grant.token_url):
        raise WrongArgument(
            f"{provider}: not known where the service gives out tokens",
            hint="give --preset for a mail service that it knows; else --token-url, --scope and"
            " --authorization-url, or --device and --device-url",
        )
    return Plan(
        known,
        project_id,
        grant,
        own,
        values,
        frozenset(filter(is_kept, values)),
        tuple(f for f in known.fields if _is_asked(f, grant) and f.name not in values),
        given.secret is None and not same,
        _url(given, grant, service, tenant),
        callback,
        service.extra if service else (),
        given.device,
    )


def login(
    vault: Vault,
    plan: Plan,
    *,
    show_page: Callable[[str, int], object],
    show_device: Callable[[Device], object],
    seconds: float | None = None,
    network: Network | None = None,
) -> Done:
    """
    Let the user log in, and store the account.

    Args:
        show_page: is told the address that the user is to open, and the port that the answer comes
            to. show_device: is told what the user is to open and type.
        seconds: for how long to wait for the user.
    Raises:
        LoginFailed: the user or the server refused, it took too long, there is no refresh token, or
            the account was changed meanwhile.
        ClientRefused, ProviderUnreachable, NoTokenGiven: as they say.
        StorageError, KeyUnavailable. Whatever it is, nothing was stored.
    """
    assert not plan.lacking
    vault.database.require_writable()  # not after the user's work
    vault.keys.prove_active()
    network = network or Network(ssl.create_default_context(), seconds=_HTTP_SECONDS)
    fault = None
    try:
        if plan.device:
            granted = _by_device(plan, network, show_device, seconds)
        else:
            granted = _by_page(plan, network, show_page, seconds or SECONDS)
    except Failed as failed:
        fault = _error(plan, failed)
    if fault:  # raised here, it has no context, whose frames have the answer
        raise fault
    if granted.refresh_token is None:
        raise LoginFailed(
            f"{plan.at}: the login gave a token for now, but no refresh token",
            hint="the scope may need offline_access, or the login page access_type=offline; nothing"
            " was stored",
        )
    return _store(vault, plan, granted.refresh_token)


def _by_page(
    plan: Plan, network: Network, show: Callable[[str, int], object], seconds: float
) -> Granted:
    from oauthlib.common import add_params_to_uri, generate_token
    from oauthlib.oauth2 import WebApplicationClient

    client = plan.client()
    made = WebApplicationClient(client.id)
    state, verifier = Secret(generate_token(43)), Secret(made.create_code_verifier(64))
    with Loopback(plan.callback, state) as loopback:
        user = plan.values.get("user")
        asked = {
            "response_type": "code",
            "client_id": client.id,
            "redirect_uri": loopback.url,
            "scope": plan.scope,
            "state": state.reveal(),
            "code_challenge": made.create_code_challenge(verifier.reveal(), "S256"),
            "code_challenge_method": "S256",
            "login_hint": user and user.reveal(),
            **dict(plan.extra),
        }
        # Not the library's own call: that takes no http, which a server on this machine may have.
        del made
        show(add_params_to_uri(plan.url, [(n, v) for n, v in asked.items() if v]), loopback.port)
        answer = loopback.wait(seconds)
        if answer is None:
            strays = loopback.strays
            also = f"; {strays} of another login came, and were not taken" if strays else ""
            raise LoginFailed(
                f"{plan.at}: no answer of the login came within {seconds:g} seconds{also}",
                hint="run it again; nothing was stored",
            )
        loopback.shown.wait(_LONGER_SECONDS)
    if answer.code is None:
        words = f"{answer.error}: {answer.description}" if answer.description else answer.error
        said = f"{urlsplit(plan.url).netloc}: {silent(words, [verifier, state])}"
        raise Failed(fault_of(answer.error), said, answer.error)
    given: Form = {"code": answer.code, "redirect_uri": loopback.url, "code_verifier": verifier}
    return request(client, "authorization_code", given, network=network, gives=plan.grant.gives)


def _by_device(
    plan: Plan, network: Network, show: Callable[[Device], object], seconds: float | None
) -> Granted:
    client = plan.client()
    device = begin_device(client, plan.url, plan.scope, network=network)
    lasts = min(device.seconds, seconds or device.seconds)
    ends = time.monotonic() + lasts
    show(device._replace(seconds=int(lasts)))
    pause, misses = device.pause, 0
    while (left := ends - time.monotonic()) > 0:
        time.sleep(min(pause, left))
        try:
            given = {"device_code": device.code}
            return request(client, _DEVICE_GRANT, given, network=network, gives=plan.grant.gives)
        except Failed as failed:
            if failed.fault == "unreachable" and misses < _MISSES:
                pause, misses = pause * 2, misses + 1
            elif failed.code == "slow_down":
                pause += _SLOWER_SECONDS
            elif failed.code == "authorization_pending":
                misses = 0
            else:
                raise
    raise LoginFailed(f"{plan.at}: nobody has logged in with the code in time", hint="run it again")


def _store(vault: Vault, plan: Plan, refresh_token: Secret) -> Done:
    """What differs from what is stored: a value that stays keeps its age, and its due date."""
    grant, name = plan.grant, plan.provider.name
    try:
        require_storable(refresh_token)
    except ValueError:
        raise NoTokenGiven(f"{plan.at}: a refresh token that is too long to be stored") from None
    new = {field: value for field, value in plan.values.items() if field not in plan.kept}
    new[grant.refresh_token] = refresh_token
    others = {*grant.fields, grant.instead_of} - {*plan.values, grant.refresh_token}
    removed = [field for field in plan.own if field in others]

    def remove() -> None:
        if _stamps(_own(vault, name, plan.project_id), grant) != _stamps(plan.own, grant):
            raise LoginFailed(
                f"{plan.at}: somebody changed the account during the login; nothing was stored",
                hint=f"look at it with 'vault which {name}{at_project(plan.project_id)}', and log"
                " in again",
            )
        for field in removed:
            vault.rows.delete(Place(plan.project_id, name, field))

    places = [(Place(plan.project_id, name, field), value) for field, value in new.items()]
    vault.database.patiently(lambda: vault.store(places, before=remove))
    return Done(tuple(f.name for f in plan.provider.fields if f.name in new), tuple(removed))


def _own(vault: Vault, provider: str, project_id: str | None) -> dict[str, Row]:
    found = vault.rows.found(provider, None, project_id)
    return {name: row for name, row in found.items() if row.project_id == project_id}


def _stamps(rows: Mapping[str, Row], grant: Grant) -> dict[str, tuple[str, str]]:
    """What a change of the account changes. A rotation leaves it, and a refresh is none."""
    return {
        name: (row.id, row.updated_at) for name, row in rows.items() if name != grant.refresh_token
    }


def _needs_no_user(known: Provider, grant: Grant, names: Container[str]) -> bool:
    """Whether it is a whole account of client credentials."""
    whole = known.grant_of(names) is not None and known.is_optional(grant.refresh_token)
    return whole and grant.refresh_token not in names


def _is_known(field: Field, grant: Grant) -> bool:
    """Whether a login has to do with the field, and it is no secret."""
    if field.name in grant.fields:
        return not field.secret
    return field.account and not field.secret and field.name != grant.instead_of


def _is_asked(field: Field, grant: Grant) -> bool:
    return _is_known(field, grant) and (field.required or field.name == grant.client_id)


def _moves(grant: Grant, before: Secret | None, *after: Mapping[str, Secret]) -> bool:
    """Whether the account goes to another service, by the host that gives out its tokens."""
    urls = [before, *(found.get(grant.token_url) for found in after)]
    hosts = [_host(url.reveal()) if url else None for url in urls]
    now = next(filter(None, hosts[1:]), hosts[0])
    return hosts[0] is not None and now != hosts[0]


def _host(url: str) -> str:
    return urlsplit(url).netloc if is_endpoint(url) else url


def _offered(
    known: Provider, grant: Grant, service: Preset | None, tenant: str | None
) -> dict[str, Secret]:
    """The fields of a mail service's account."""
    if service is None:
        if tenant:
            raise WrongArgument("--tenant: only with --preset microsoft365")
        return {}
    if service.provider != known.name:
        raise WrongArgument(f"--preset: {service.title} is for {service.provider} accounts")
    if tenant and not (service.tenant and re.fullmatch(TENANT, tenant)):
        raise WrongArgument(f"--tenant: {service.title} has none of that name")
    fields = {
        **dict(service.fields), grant.token_url: service.token_url, grant.scope: service.scope
    }  # fmt: skip
    return {name: Secret(_of(tenant, service, text)) for name, text in fields.items()}


def _of(tenant: str | None, service: Preset, text: str) -> str:
    return text.replace("{tenant}", tenant or service.tenant)


def _url(given: Given, grant: Grant, service: Preset | None, tenant: str | None) -> str:
    """Of the login page, or of the device authorisation endpoint."""
    option = "--device-url" if given.device else "--authorization-url"
    if given.url is not None:
        if not is_endpoint(given.url):
            raise WrongArgument(
                f"{option}: must be a URL with https:// and a path, or with http:// on this machine"
                " itself"
            )
        return given.url
    if service and given.device and service.no_device:
        raise WrongArgument(
            f"--device: {service.no_device}",
            hint="leave --device out, and open the page that is printed on this machine; from"
            " another one, forward the port in it with 'ssh -L' first",
        )
    of_service = service and (service.device_url if given.device else service.authorization_url)
    of_grant = grant.device_url if given.device else grant.authorization_url
    if found := (service and of_service and _of(tenant, service, of_service)) or of_grant:
        return found
    raise WrongArgument(f"not known where the user logs in; give {option} URL")


def _checked(provider: str, field: str, value: Secret) -> Secret:
    try:
        require_rule(provider, field, value)
    except WrongArgument as error:
        raise WrongArgument(str(error)) from None
    return value


def _error(plan: Plan, failed: Failed) -> VaultError:
    """The error that a fault of the login is for its user."""
    at, said = plan.at, str(failed)
    if failed.code == "access_denied":
        return LoginFailed(f"{at}: the login was refused: {said}", hint="nothing was stored")
    if failed.code == "expired_token":
        return LoginFailed(f"{at}: nobody has logged in with the code in time", hint="run it again")
    if failed.fault == "login":
        return LoginFailed(f"{at}: the login was not accepted: {said}", hint="run it again")
    if failed.fault == "client":
        return ClientRefused(
            f"{at}: the provider refuses the application: {said}",
            hint="check its id, its secret, its permissions and its redirect URI"
            f" ({plan.callback}) at the provider; nothing was stored",
        )
    if failed.fault == "unreachable":
        return ProviderUnreachable(
            f"{at}: the provider does not answer: {said}", hint="nothing was stored; try again"
        )
    return NoTokenGiven(f"{at}: no token: {said}", hint="check the token URL; nothing was stored")
