"""
Keys in OpenBao or HashiCorp Vault: a KV mount of version 2, where check-and-set writes an entry
once. The only module that imports hvac.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from ...errors import KeyringLocked, KeyStoreUnavailable, KeyUnavailable
from ...secret import Secret
from .remote import RemoteStore, refuse
from .store import KEYRING_SECONDS, SCHEMES

T = TypeVar("T")

_FORM: Final = SCHEMES["openbao"]
PLAIN: Final = "openbao+http"  # the scheme without TLS
_PORT: Final = 8200
_PART: Final = re.compile(r"(?!\.+/)(?:[A-Za-z0-9_.-]+)/")
_JWT: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_TOKENS: Final = (
    "set BAO_TOKEN, or BAO_ROLE_ID and BAO_SECRET_ID, or BAO_K8S_ROLE; or log in with 'bao login'"
)


class OpenBao(RemoteStore):
    """
    OpenBao or HashiCorp Vault. A key is the field `key` of the entry `PATH/VAULT_ID/KEY_ID/key`.

    Each operation has a connection of its own, so threads and forked children share none. No
    redirect is followed: it would take the token elsewhere.

    Args:
        url: `openbao://HOST[:PORT]/MOUNT/PATH`; or `openbao+http:`, to this machine alone.
    """

    package, extra = "hvac", "openbao"
    reach = "check that the server runs, its host and port, and the network"

    def __init__(self, url: str, *, seconds: float = KEYRING_SECONDS) -> None:
        scheme, self._host, self._path = _parts(url)
        self._is_plain = scheme == PLAIN
        self._namespace = _variable("NAMESPACE").strip("/")
        within = f" (namespace {self._namespace})" if self._namespace else ""
        super().__init__(f"{scheme}://{self._host}/{self._path}{within}", seconds=seconds)
        self._token: Secret | None = None
        self._mount: str | None = None

    def _get(self, entry: str) -> Secret | None:
        from hvac.exceptions import InvalidPath

        def get(client: Any, mount: str, path: str) -> Secret | None:
            kv = client.secrets.kv.v2
            found, missing = None, False
            try:
                found = kv.read_secret_version(
                    f"{path}{entry}", mount_point=mount, raise_on_deleted_version=False
                )
            except InvalidPath as error:
                # Of a missing entry it has an empty list. It has another without a mount, and
                # none at all where something else answers in the server's place.
                missing = error.errors == []
            if missing:
                return None
            if found is None:
                self._mount = None
                raise self._no_mount()
            data = self._body(found)["data"]
            if data["data"] is None:
                raise self.unavailable(
                    f"{entry}: its version {data['metadata']['version']} was deleted",
                    f"'bao kv undelete' brings it back; if it is gone for good, 'bao kv metadata "
                    f"delete {mount}{path}{entry}' removes what is left of it",
                )
            return Secret(str(data["data"].get(entry.rpartition("/")[2], "")))

        return self._ask(get)

    def _create(self, entry: str, text: Secret) -> bool:
        from hvac.exceptions import InvalidRequest

        def create(client: Any, mount: str, path: str) -> bool:
            field = entry.rpartition("/")[2]
            try:
                done = client.secrets.kv.v2.create_or_update_secret(
                    f"{path}{entry}", {field: text.reveal()}, cas=0, mount_point=mount
                )
            except InvalidRequest as error:
                if "check-and-set" not in str(error):
                    raise
                return False
            self._body(done)
            return True

        return self._ask(create)

    def _remove(self, entry: str) -> None:
        def remove(client: Any, mount: str, path: str) -> None:
            done = client.secrets.kv.v2.delete_metadata_and_all_versions(
                f"{path}{entry}", mount_point=mount
            )
            if getattr(done, "status_code", None) != 204:
                self._body(done)

        self._ask(remove)

    def _ask(self, operation: Callable[[Any, str, str], T]) -> T:
        """*operation*, logged in; with a new login where the old one may have expired."""
        import hvac
        import requests

        with requests.Session() as session:
            session.trust_env = not self._is_plain  # a proxy would see the token
            session.verify = self._authorities()  # hvac prefers the session's
            client = hvac.Client(
                url=f"http{'' if self._is_plain else 's'}://{self._host}",
                token="",
                timeout=self._seconds,
                allow_redirects=False,
                session=session,
                namespace=self._namespace or None,
            )
            for first in (True, False):
                token = (first and self._token) or self._log_in(client)
                if not first and token == self._token:
                    break
                self._token, client.token = token, token.reveal()
                try:
                    self._mount = self._mount or self._find_mount(client)
                    below = f"{self._path}/"[len(self._mount) :]
                    return operation(client, self._mount, below)
                except hvac.exceptions.Forbidden:
                    continue
            raise self._refusal(client)

    def _find_mount(self, client: Any) -> str:
        """The server knows where the mount's name ends, and whether it can write once."""
        found = client.adapter.get(f"/v1/sys/internal/ui/mounts/{self._path}")
        data = self._body(found)["data"]
        mount = str(data["path"])
        if data["type"] != "kv" or (data.get("options") or {}).get("version") != "2":
            raise self.unavailable(
                f"{mount} is not a KV mount of version 2, the only kind that writes an entry once",
                f"name another mount; or if it is KV version 1: bao kv enable-versioning {mount}",
            )
        return mount

    def _log_in(self, client: Any) -> Secret:
        """The token that is named; or one from a login, as AppRole or in Kubernetes."""
        from hvac.exceptions import Forbidden, InvalidRequest, Unauthorized

        if token := _variable("TOKEN"):
            return Secret(token)
        mount = _variable("AUTH_MOUNT")
        if role := _variable("ROLE_ID"):
            kind, secret = "approle", {"role_id": role, "secret_id": _variable("SECRET_ID")}
        elif role := _variable("K8S_ROLE"):
            file = _variable("K8S_TOKEN_PATH", _JWT)
            kind, secret = "kubernetes", {"role": role, "jwt": _content(file)}
        else:
            file = _variable("TOKEN_PATH", str(Path.home() / ".vault-token"))
            if not Path(file).exists():
                raise self.unavailable("there is no token to log in with", _TOKENS)
            return Secret(_content(file))
        try:
            answer = client.auth.adapter.post(
                f"/v1/auth/{mount or kind}/login", json={k: v for k, v in secret.items() if v}
            )
            return Secret(str(self._body(answer)["auth"]["client_token"]))
        except (Forbidden, InvalidRequest, Unauthorized):
            pass
        raise self.unavailable(
            f"refuses the login at auth/{mount or kind}",
            "check the role, whether its secret id or service account is still good, and "
            "BAO_AUTH_MOUNT",
        )

    def _refusal(self, client: Any) -> KeyStoreUnavailable:
        """Why it answers 403: of the token, of its rights, or since there is no such mount."""
        from hvac.exceptions import Forbidden, InvalidPath

        try:
            client.auth.token.lookup_self()
            client.adapter.get(f"/v1/{self._path}")
        except Forbidden as error:
            if "lookup-self" in str(error.url):
                return self.unavailable("does not take the token, which may have expired", _TOKENS)
        except InvalidPath as error:
            if error.errors:
                return self._no_mount()
        return self.unavailable(
            "the token has no right to do this there, or nothing is mounted there",
            "give its policy create and read on MOUNT/data/PATH/*, and delete on "
            "MOUNT/metadata/PATH/*",
        )

    def _no_mount(self) -> KeyStoreUnavailable:
        return self.unavailable(
            "nothing is mounted there",
            "check the path and BAO_NAMESPACE; 'bao secrets enable -path=MOUNT -version=2 kv'"
            " makes a mount",
        )

    def _authorities(self) -> str | bool:
        file = _variable("CACERT")
        if file and not Path(file).exists():
            raise self.unavailable(f"BAO_CACERT: {file}: no such file", "name the CA's PEM file")
        return file or True

    def _body(self, answer: Any) -> dict[str, Any]:
        if isinstance(answer, dict):
            return answer
        problem = f"answers {answer.status_code}, as OpenBao does not; a redirect is not followed"
        raise self.unavailable(problem, "name the server itself, and check what is in between")

    def _load(self) -> None:
        import hvac  # noqa: F401  # so that loading it is not counted against the time limit

    def _explained(self, error: Exception) -> tuple[KeyUnavailable, bool]:
        from hvac import exceptions
        from requests import exceptions as http

        kind, said = type(error).__name__, str(error)
        if isinstance(error, http.SSLError):
            hint = "check the host's name, and name its CA's file in BAO_CACERT (VAULT_CACERT)"
            return self.unavailable("its TLS certificate is not trusted", hint), False
        if isinstance(error, http.Timeout):
            return self.timed_out(), False
        if isinstance(error, (http.ConnectionError, http.ChunkedEncodingError)):
            return self.unreachable(), True
        if isinstance(error, exceptions.VaultDown) and "sealed" in said:
            locked = KeyringLocked(
                f"{self.name}: the server is sealed",
                hint="unseal it ('bao operator unseal'), then try again",
            )
            return locked, False
        passing = (
            exceptions.BadGateway,
            exceptions.InternalServerError,
            exceptions.RateLimitExceeded,
            exceptions.UnexpectedError,
            exceptions.VaultDown,
        )
        hint = "the server's own log says why"
        passes = isinstance(error, passing) or "Upgrading from non-versioned" in said
        return self.unavailable(f"cannot be used: {kind}", hint), passes


def _variable(name: str, otherwise: str = "") -> str:
    """BAO_*name* or VAULT_*name*; or what is in the file that BAO_*name*_FILE names."""
    for variable in (f"BAO_{name}", f"VAULT_{name}"):
        if text := os.environ.get(variable, "").strip():
            return text
        if file := os.environ.get(f"{variable}_FILE"):
            return _content(file)
    return otherwise


def _content(file: str) -> str:
    try:
        return Path(file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        pass
    raise KeyStoreUnavailable(
        f"{file}: cannot be read, and the key store's login needs it",
        hint="check the file that the variable names (docs/keys.md lists the variables)",
    )


def _parts(url: str) -> tuple[str, str, str]:
    """Scheme, host with port, and path."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORT
    except ValueError:
        host = ""
    if not host or parts.username is not None or parts.query or parts.fragment:
        refuse("a host is needed, and neither a user nor a query", _FORM)
    path = parts.path.strip("/")
    if "/" not in path or not re.fullmatch(f"(?:{_PART.pattern})+", f"{path}/"):
        refuse("a mount and a path in it are needed, of letters, digits and '-_.'", _FORM)
    if parts.scheme == PLAIN and not _is_loopback(host):
        refuse(f"{PLAIN}: is for a server on this machine alone; keys need TLS", _FORM)
    return parts.scheme, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", path


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
