"""
Requests to an OAuth2 server's endpoints, and what came of them. oauthlib has the protocol.

It goes to the endpoint's own host alone: no redirect is followed, and no proxy is asked.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from ..errors import LibraryMissing
from ..limits import TookTooLong, within
from ..masking import silent
from ..network import Answer, Line, Network, Unreachable, Unsendable, basic, exchange
from ..secret import Secret, new_secret
from .grants import is_endpoint

# How an attempt failed: the account needs a new login; the client was refused; no clear answer; an
# answer without a token.
Fault = Literal["login", "client", "unreachable", "answer"]
ASSUMED_SECONDS: Final = 600  # the life of a token whose answer does not say it
_AT_MOST_SECONDS: Final = 10 * 365 * 24 * 3600
_NOT_NOW: Final = (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS)
_SERVER_ERRORS: Final = 500
# RFC 6749, 5.2; OpenID Connect Core, 3.1.2.6, whose words Microsoft answers to a refresh as well;
# and Zoho's word for a refresh token that it does not take.
_LOGIN: Final = (
    *("invalid_grant", "interaction_required", "login_required", "consent_required"),
    "invalid_code",
)
_LATER: Final = ("server_error", "temporarily_unavailable")
_POLL_SECONDS: Final = 5  # RFC 8628, 3.2
_POLL_AT_MOST: Final = 60
# What is raised about an answer of another shape: nested deeply, or with an infinite number, too.
_ODD: Final = (ValueError, LookupError, TypeError, OverflowError, RecursionError)
Form = Mapping[str, str | Secret | None]


class Client(NamedTuple):
    """
    An application at an authorization server, and how it says who it is.

    Attributes:
        basic: in a header, not in the body.
    """

    token_url: str
    id: str
    secret: Secret | None = None
    basic: bool = False


class Granted(NamedTuple):
    """
    What a token endpoint gave.

    Attributes:
        seconds: how long the token lives.
        refresh_token: the one to use from now on; None: still the one that was sent.
    """

    token: Secret
    seconds: int
    refresh_token: Secret | None
    scope: str | None


class Device(NamedTuple):
    """
    A login that a user may approve on another machine (RFC 8628, 3.2).

    Attributes:
        url, user_code: what the user opens, and types there.
        seconds: how long the codes live. pause: seconds between two questions whether it is done.
    """

    code: Secret
    url: str
    user_code: str
    seconds: int
    pause: int


class Failed(Exception):
    """
    No token.

    Attributes:
        code: the server's word for the fault (RFC 6749, 5.2), or empty.
    """

    def __init__(self, fault: Fault, said: str, code: str = "") -> None:
        super().__init__(said)
        self.fault, self.code = fault, code


def request(
    client: Client,
    grant_type: str,
    given: Form,
    *,
    network: Network,
    gives: str = "access_token",
) -> Granted:
    """
    Ask the token endpoint for a token.

    Args:
        grant_type: such as `refresh_token` (RFC 6749, 6) or `client_credentials` (4.4).
        given: the parameters of that type; None is left out.
        network: its time limit is for the whole request.
        gives: the answer's name for the token.
    Raises:
        Failed: the text repeats no secret.
        LibraryMissing: oauthlib is not installed.
    """
    parsed, refusal = _library()
    answer = post(client, client.token_url, {"grant_type": grant_type, **given}, network)
    found: Any = None
    try:
        found = _object(answer)
        seconds = _seconds(found.pop("expires_in", None))
        found = parsed(json.dumps(found))
        return Granted(
            _token(found[gives]),
            seconds,
            _token(found["refresh_token"]) if found.get("refresh_token") else None,
            " ".join(found["scope"]) if found.get("scope") else None,
        )
    except refusal as error:
        if error.error != "missing_token":
            raise _refused(answer, error.error, error.description, client, given) from None
    except (*_ODD, AttributeError):
        pass  # not an answer of RFC 6749; the error's text may hold it
    finally:
        found = None
    raise Failed("answer", f"{urlsplit(client.token_url).netloc}: an answer without a token")


def begin_device(client: Client, url: str, scope: str | None, *, network: Network) -> Device:
    """
    Ask the device authorisation endpoint for codes.

    Raises:
        Failed: the text repeats no secret.
    """
    given = {"scope": scope}
    answer = post(client, url, given, network)
    found: Any = None
    try:
        found = _object(answer)
        if "error" in found:
            code, words = str(found["error"]), str(found.get("error_description") or "")
            raise _refused(answer, code, words, client, given)
        return Device(
            _token(found["device_code"]),
            str(found["verification_uri"]),
            str(found["user_code"]),
            _seconds(found.get("expires_in")),
            max(1, min(int(found.get("interval", _POLL_SECONDS)), _POLL_AT_MOST)),
        )
    except _ODD:
        pass  # not an answer of RFC 8628; the error's text may hold it
    finally:
        found = None
    raise Failed("answer", f"{urlsplit(url).netloc}: an answer without a code for a device")


def post(client: Client, url: str, given: Form, network: Network) -> Answer:
    """
    POST a form, with the client's own credentials.

    Raises:
        Failed: no answer, or one that is not about the request.
    """
    if not is_endpoint(url):  # first: only of such a URL it is certain that it can be taken apart
        raise Failed("answer", "its URL is neither https nor on this machine; nothing was sent")
    host = urlsplit(url).netloc
    line, headers = Line(), {"Content-Type": "application/x-www-form-urlencoded"}
    try:
        body = _form(client, given, headers)
        answer = within(network.seconds, lambda: exchange(network, line, url, headers, body))
    except TookTooLong:
        fault = f"{host}: no answer within {network.seconds:g} seconds"
        raise Failed("unreachable", fault) from None
    except Unreachable as error:
        raise Failed("unreachable", silent(str(error), _secrets(client, given))) from None
    except Unsendable:
        raise Failed("client", "it has characters that cannot be sent") from None
    finally:
        line.hang_up()  # ends the thread that `within` leaves behind
        headers.clear()
    if answer.status >= _SERVER_ERRORS or answer.status in _NOT_NOW:
        said = silent(f"{answer.status} {answer.reason}", _secrets(client, given))
        raise Failed("unreachable", f"{host}: {said}")
    return answer


def _form(client: Client, given: Form, headers: dict[str, str]) -> Secret:
    """The body, as a secret. A client that says in a header who it is has that put there."""
    body, secret = new_secret(), client.secret
    if secret is not None and client.basic:  # each is encoded as in a form first
        encoded = new_secret()
        encoded._text = quote(secret.reveal(), safe="")
        headers["Authorization"] = basic(quote(client.id, safe=""), encoded)
        secret = None
    whole = {"client_id": client.id, "client_secret": secret, **given}
    body._text = urlencode({name: _text(value) for name, value in whole.items() if value})
    return body


def _text(value: str | Secret | None) -> str:
    return value.reveal() if isinstance(value, Secret) else value or ""


def _object(answer: Answer) -> dict[str, Any]:
    """The answer, if it is a JSON object: oauthlib would also take a form."""
    found = json.loads(answer.body)
    if not isinstance(found, dict):
        raise LookupError("not an object")
    return found


def _refused(
    answer: Answer, code: str, description: str | None, client: Client, given: Form
) -> Failed:
    words = f"{answer.status} {code}{f': {description}' if description else ''}"
    host = urlsplit(client.token_url).netloc
    return Failed(fault_of(code), f"{host}: {silent(words, _secrets(client, given))}", code)


def fault_of(code: str) -> Fault:
    """What the server's word for a fault means for an account."""
    return "login" if code in _LOGIN else "unreachable" if code in _LATER else "client"


def _secrets(client: Client, given: Form) -> list[Secret]:
    return [value for value in (client.secret, *given.values()) if isinstance(value, Secret)]


def _token(given: Any) -> Secret:
    """LookupError or TypeError if it is none (RFC 6749, A.12): it goes into headers as it is."""
    token, given = Secret(given), None
    if not re.fullmatch("[ -~]+", token.reveal()):
        raise LookupError("not printable ASCII")
    return token


def _seconds(given: Any) -> int:
    """Some servers send text, some nothing. With the answer, a refresh token would be lost."""
    try:
        seconds = int(float(given))
    except (TypeError, ValueError, OverflowError):
        return ASSUMED_SECONDS
    return ASSUMED_SECONDS if seconds < 0 else min(seconds, _AT_MOST_SECONDS)


def require_library() -> None:
    """Raise LibraryMissing if oauthlib is not installed."""
    _library()


def _library() -> tuple[Any, Any]:
    """oauthlib's reader of answers, and its error for a refusal (RFC 6749, 5.1 and 5.2)."""
    try:  # here: only accounts with OAuth2 need it
        from oauthlib.oauth2 import OAuth2Error
        from oauthlib.oauth2.rfc6749.parameters import parse_token_response
    except ImportError as error:
        raise LibraryMissing(
            "accounts with OAuth2 need oauthlib, which is not installed",
            hint="pip install 'outreach_vault[oauth]'",
        ) from error
    return parse_token_response, OAuth2Error
