"""Real servers that keep keys: OpenBao, and moto's double of AWS. `make peers` installs them."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
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


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """A process in a folder of its own; it can be killed, frozen and started again."""

    program = ""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
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
        self._cluster_port = free_port()
        self.kept, self.token, self.unsealing = kept, ROOT_TOKEN, ""
        self.ca = folder / "vault-ca.pem"
        scheme = "openbao+http" if kept else "openbao"
        self.url = f"{scheme}://127.0.0.1:{self.port}/secret/outreach"

    def arguments(self) -> list[str]:
        at = f"127.0.0.1:{self.port}"
        if not self.kept:
            tls = ["-dev-tls", f"-dev-tls-cert-dir={self.folder}"]
            return ["server", *tls, f"-dev-root-token-id={ROOT_TOKEN}", f"-dev-listen-address={at}"]
        (self.folder / "data").mkdir(exist_ok=True)
        (self.folder / "bao.hcl").write_text(
            f'storage "raft" {{\n path = "{self.folder}/data"\n node_id = "one"\n'
            " performance_multiplier = 1\n}\n"
            f'listener "tcp" {{ address = "{at}", tls_disable = true }}\n'
            f'api_addr = "http://{at}"\ncluster_addr = "http://127.0.0.1:{self._cluster_port}"\n'
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


class Between:
    """
    Stands between a client and a server without TLS.

    Attributes:
        heard: method, path, headers and body of each request.
        faults: what happens to the next requests: "lose" the server's answer, "pass" it on,
            "trickle" one for five seconds, or a status with the text of an answer and headers.
    """

    def __init__(self, server: Server, port: int = 0) -> None:
        self.heard: list[tuple[str, str, dict[str, str], bytes]] = []
        self.faults: list[str | tuple[int, str, dict[str, str]]] = []
        between = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = dict(self.headers.items())
                between.heard.append((self.command, self.path, headers, body))
                fault = between.faults.pop(0) if between.faults else "pass"
                self.close_connection = True
                if fault == "trickle":
                    return self.trickle()
                if isinstance(fault, tuple):
                    return self.say(*fault)
                behind = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
                behind.request(self.command, self.path, body, headers)
                with behind.getresponse() as answer:
                    text = answer.read().decode()
                    told = {"Content-Type": answer.headers.get("Content-Type") or "text/plain"}
                behind.close()
                if fault == "pass":
                    self.say(answer.status, text, told)
                return None

            do_GET = do_POST = do_PUT = do_DELETE = handle_any

            def trickle(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "50")
                self.end_headers()
                with contextlib.suppress(OSError):
                    for _ in range(50):
                        self.wfile.write(b" ")
                        time.sleep(0.1)

            def say(self, status: int, text: str, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
