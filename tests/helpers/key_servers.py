"""Real servers that keep keys: OpenBao, and moto's double of AWS. `make peers` installs them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

import pytest

from helpers import ROOT

# Ours first: the environment with the lowest versions has none.
_PATH = os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ.get("PATH", os.defpath)])
ROOT_TOKEN = "the-root-token-of-the-tests"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """A process in a folder of its own; it can be killed, frozen and started again."""

    program = ""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    def __enter__(self) -> Self:
        if shutil.which(self.program, path=_PATH) is None:
            pytest.skip(f"no {self.program} on this machine (make peers)")
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("BAO_", "VAULT_", "AWS"))}
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [str(shutil.which(self.program, path=_PATH)), *self.arguments()],
                env=clean | {"HOME": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 60
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.05)

    def kill(self) -> None:
        if self._process:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Any:
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class Bao(Server):
    """
    OpenBao. One for trials, in memory with TLS and unsealed; or, with *kept*, one with files.

    Attributes:
        url: of a key store in its mount `secret`.
        ca: the file of its authority.
    """

    program = "bao"

    def __init__(self, folder: Path, *, kept: bool = False) -> None:
        super().__init__(folder)
        self.kept, self.token, self.unsealing = kept, ROOT_TOKEN, ""
        self.ca = folder / "vault-ca.pem"
        scheme = "openbao+http" if kept else "openbao"
        self.url = f"{scheme}://127.0.0.1:{self.port}/secret/outreach"

    def arguments(self) -> list[str]:
        at = f"127.0.0.1:{self.port}"
        if not self.kept:
            tls = ["-dev-tls", f"-dev-tls-cert-dir={self.folder}"]
            return ["server", *tls, f"-dev-root-token-id={ROOT_TOKEN}", f"-dev-listen-address={at}"]
        (self.folder / "bao.hcl").write_text(
            f'storage "file" {{ path = "{self.folder}/data" }}\n'
            f'listener "tcp" {{ address = "{at}", tls_disable = true }}\n'
            f'api_addr = "http://{at}"\n'
        )
        return ["server", f"-config={self.folder}/bao.hcl"]

    def is_ready(self) -> bool:
        wanted = {200, 429, 472, 473} | ({501, 503} if self.kept else set())
        try:
            status = self.request("GET", "sys/health", status=True)
        except (OSError, ssl.SSLError):
            return False
        said = (self.folder / "log").read_text()
        if not self.kept and "Unseal Key: " in said:
            self.unsealing = said.partition("Unseal Key: ")[2].split()[0]
        return status in wanted and (self.kept or self.unsealing != "")

    def request(self, method: str, path: str, data: object = None, *, status: bool = False) -> Any:
        scheme = "http" if self.kept else "https"
        request = urllib.request.Request(
            f"{scheme}://127.0.0.1:{self.port}/v1/{path}",
            method=method,
            headers={"X-Vault-Token": self.token, "Content-Type": "application/json"},
            data=None if data is None else json.dumps(data).encode(),
        )
        trusting = None if self.kept else ssl.create_default_context(cafile=self.ca)
        try:
            with urllib.request.urlopen(request, context=trusting, timeout=30) as answer:
                body = answer.read()
                return answer.status if status else json.loads(body or b"null")
        except urllib.error.HTTPError as error:
            if status:
                return error.code
            raise AssertionError(f"{path}: {error.code} {error.read()!r}") from None

    def initialize(self) -> None:
        """One with files is new: make its keys, open it, and mount `secret`."""
        made = self.request("POST", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        self.token, self.unsealing = made["root_token"], made["keys"][0]
        self.unseal()
        self.request("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})

    def seal(self) -> None:
        self.request("PUT", "sys/seal")

    def unseal(self) -> None:
        self.request("PUT", "sys/unseal", {"key": self.unsealing})
        while self.request("GET", "sys/health", status=True) != 200:
            time.sleep(0.05)

    def token_for(self, rules: str, **more: object) -> str:
        """A token with a policy of these rules, by the policy's text."""
        name = f"p{abs(hash(rules))}"
        self.request("PUT", f"sys/policies/acl/{name}", {"policy": rules})
        made = self.request("POST", "auth/token/create", {"policies": [name], **more})
        return str(made["auth"]["client_token"])


class Moto(Server):
    """AWS's double, for any region."""

    program = "moto_server"

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "AKIAINVENTEDINVENTED",
            "AWS_SECRET_ACCESS_KEY": "an-invented-secret-access-key",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def arguments(self) -> list[str]:
        return ["-H", "127.0.0.1", "-p", str(self.port)]

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False
