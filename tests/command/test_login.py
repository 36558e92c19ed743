"""
`vault login` as an operator sees it: at a terminal, with a browser, with a code, without either.

No secret of a login is anywhere but in the vault: not at the terminal, in a process list, in the
browser's environment, in a page or in the address that the browser is left at.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from helpers.commands import Done, Terminal, failed, run, where
from helpers.oidc import AuthorizationServer
from helpers.site import COMMAND, Site, dump

from outreach_vault import Vault
from outreach_vault.schema.shapes import Place

P = "default-project"
BROWSER = f"""#!{sys.executable}
import os, sys
from pathlib import Path
record = [*sys.argv, *(f"{{name}}={{value}}" for name, value in os.environ.items())]
for process in Path("/proc").glob("[0-9]*/cmdline"):
    try:
        record.append(process.read_text())
    except OSError:
        pass
place = Path(__file__).with_suffix(".seen")
place.with_suffix(".new").write_text("\\n".join(record))
place.with_suffix(".new").rename(place)
"""


@pytest.fixture
def server(authorization_server: AuthorizationServer) -> AuthorizationServer:
    return authorization_server


@pytest.fixture
def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """A browser that only notes what anybody can see of it; returns that."""
    script, seen = tmp_path / "browser", tmp_path / "browser.seen"
    script.write_text(BROWSER)
    script.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(script))

    def wait() -> str:
        deadline = time.monotonic() + 20
        while not seen.exists():
            assert time.monotonic() < deadline, "no browser was opened"
            time.sleep(0.02)
        return seen.read_text()

    return wait


def urls(server: AuthorizationServer, *, device: bool = False) -> list[str]:
    page = ("--device", "--device-url", server.device_url)
    return [
        *("--token-url", server.token_url, "--scope", "smtp offline_access"),
        *(page if device else ("--authorization-url", server.authorization_url)),
    ]


def account(server: AuthorizationServer, *, device: bool = False) -> list[str]:
    client = "device" if device else "native"
    whose = ["--user", "ada@example.com", "--host", "mail.example.com", "--client-id", client]
    return ["login", "smtp", *whose, *urls(server, device=device)]


class Started:
    """The command without a terminal, as it says one line after another."""

    def __init__(self, site: Site, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *where(site), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.err = ""

    def page(self) -> str:
        return self._line(r"(http://\S+/auth\?\S+)\n")

    def code(self) -> str:
        return self._line(r"enter the code (\S+)\n")

    def _line(self, wanted: str) -> str:
        assert self.process.stderr
        while not (found := re.search(wanted, self.err)):
            line = self.process.stderr.readline()
            assert line, self.err
            self.err += line
        return found[1]

    def end(self) -> Done:
        # Not `communicate`: it does not know of what `readline` has read ahead.
        assert self.process.stdout and self.process.stderr
        self.err += self.process.stderr.read()
        return Done(self.process.wait(60), self.process.stdout.read(), self.err)


@contextlib.contextmanager
def started(site: Site, *arguments: str) -> Iterator[Started]:
    command = Started(site, *arguments)
    try:
        yield command
    finally:
        command.process.kill()
        command.process.communicate()


def asked(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def secrets_in(text: str, server: AuthorizationServer, challenge: str) -> list[str]:
    """What in the text is a live token, or the verifier of that challenge."""
    found = list[str]()
    for word in re.findall(r"[A-Za-z0-9._~-]{43,}", text):
        for size in (43, 64):
            for start in range(len(word) - size + 1):
                part = word[start : start + size]
                digest = hashlib.sha256(part.encode()).digest()
                proof = base64.urlsafe_b64encode(digest).decode().rstrip("=")
                if proof == challenge or (size == 43 and server.token(part)["live"]):
                    found.append(part)
    return found


def test_at_a_terminal_it_asks_for_what_it_does_not_know_and_opens_the_browser(
    site: Site, vault: Vault, server: AuthorizationServer, browser: Callable[[], str]
) -> None:
    secret = server.client("basic").secret or ""
    options = ["--host", "mail.example.com", *urls(server)]
    with Terminal(site, "login", "smtp", *options, piped=False) as terminal:
        for question, answer in (
            (b"user: ", "ada@example.com"),
            (b"oauth_client_id: ", "two words"),  # refused, and asked for again
            (b"enter it again, or press Ctrl-C to store nothing\r\noauth_client_id: ", "basic"),
            (b"oauth_client_secret [Enter leaves it out]: ", secret),
        ):
            terminal.read_until(question)
            terminal.type(f"{answer}\n".encode())
        terminal.read_until(b"login_hint=ada%40example.com\r\n")
        opened = browser()
        [page] = re.findall(r"\r\n(http://\S+/auth\?\S+)\r\n", terminal.seen.decode())
        assert page in opened.splitlines()  # the argument, and no more
        back = server.walk(page, deliver=False)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(back) as answer:
            left_at, shown = answer.url, answer.read().decode()
        assert terminal.end() == 0, terminal.seen
    said = terminal.seen.decode()
    assert "vault: logged in; stored host, user, oauth_client_id, oauth_client_secret," in said
    assert said.endswith("vault: next: 'vault check smtp'\r\n")
    assert urlsplit(left_at).path == "/done" and not urlsplit(left_at).query
    assert "close this window" in shown
    assert server.is_live(vault.access_token("smtp").reveal(), "ada@example.com")
    code, challenge = asked(back)["code"], asked(page)["code_challenge"]
    for place in (said, opened, left_at, shown):
        assert code not in place and secret not in place
        assert secrets_in(place, server, challenge) == []


def test_the_search_for_secrets_finds_them(server: AuthorizationServer) -> None:
    verifier, grant = "v" * 64, server.grant()
    digest = hashlib.sha256(verifier.encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    for secret in (verifier, grant.refresh_token, grant.access_token):
        assert secrets_in(f"a={secret}&b {challenge}", server, challenge) == [secret]


def test_with_a_code_it_shows_where_to_type_it_and_no_secret(
    site: Site, vault: Vault, server: AuthorizationServer
) -> None:
    with Terminal(site, *account(server, device=True), piped=False) as terminal:
        terminal.read_until(b"oauth_client_secret [Enter leaves it out]: ")
        terminal.type(b"\n")
        terminal.read_until(b"at most\r\n")
        wanted = rb"open (\S+/device) on any machine, and enter the code (\S+)\r\n"
        shown = re.search(wanted, terminal.seen)
        assert shown and shown[1].decode() == f"{server.url}/device"
        server.approve_device(shown[2].decode())
        assert terminal.end() == 0, terminal.seen
    assert not re.findall(rb"[A-Za-z0-9_-]{30,}", terminal.seen)
    assert server.is_live(vault.access_token("smtp").reveal(), "ada@example.com")


AT = {
    "user": b"user: ",
    "client id": b"oauth_client_id: ",
    "client secret": b"oauth_client_secret [Enter leaves it out]: ",
    "page": b"and use --device\r\n",
    "token": b"and use --device\r\n",
    "code": b"at most\r\n",
}


@pytest.mark.parametrize("at", AT)
def test_ctrl_c_stores_nothing_wherever_it_comes(
    site: Site, vault: Vault, server: AuthorizationServer, at: str
) -> None:
    vault.set_fields("smtp", {"host": "old.example.com", "password": "old"})
    before = dump(site.database)
    server.fault("hang")
    client = "device" if at == "code" else "native"
    answers = {"user": "ada@example.com", "client id": client, "client secret": ""}
    options = urls(server, device=at == "code")
    with Terminal(site, "login", "smtp", *options, piped=False) as terminal:
        for name, answer in answers.items():
            terminal.read_until(AT[name])
            if name == at:
                break
            terminal.type(f"{answer}\n".encode())
        terminal.read_until(AT[at])
        if at == "token":
            [page] = re.findall(r"\r\n(http://\S+/auth\?\S+)\r\n", terminal.seen.decode())
            server.walk(page)
            deadline = time.monotonic() + 20
            while not server.counters()["faults"]:  # the token is asked for
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert terminal.interrupt() == 3, terminal.seen
    assert b"vault: error: aborted" in terminal.seen and b"Traceback" not in terminal.seen
    assert dump(site.database) == before


def test_without_a_browser_it_says_which_port_to_forward(
    site: Site, server: AuthorizationServer
) -> None:
    with started(site, *account(server)) as command:
        page = command.page()
        server.walk(page)
        done = command.end()
    port = urlsplit(asked(page)["redirect_uri"]).port
    assert done.status == 0 and done.out == ""
    assert (
        f"'ssh -L {port}:127.0.0.1:{port}' to this one; or press Ctrl-C and use --device"
        in done.err
    )


def test_a_browser_that_cannot_be_started_is_said_too(
    site: Site, server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER", "/nowhere/browser")
    with started(site, *account(server)) as command:
        server.walk(command.page())
        done = command.end()
    assert done.status == 0 and "no browser can be opened here" in done.err, done.err


def test_a_password_goes_to_the_history_and_the_command_says_so(
    site: Site, vault: Vault, server: AuthorizationServer
) -> None:
    vault.set("smtp", "password", "old", P)
    with started(site, *account(server, device=True), "--project", "Default Project") as command:
        server.approve_device(command.code())
        done = command.end()
    assert done.status == 0
    assert "vault: removed password, which this account does not need now\n" in done.err
    assert f"vault: 'vault undo smtp password --project {P}' puts it back" in done.err
    assert done.err.endswith(f"vault: next: 'vault check smtp --project {P}'\n")
    vault.database.write(lambda: vault.rows.undo(Place(P, "smtp", "password")))
    assert vault.get("smtp", "password", P).reveal() == "old"


@pytest.mark.parametrize("source", ["file", "env"])
def test_the_secret_comes_from_a_file_or_a_variable_that_the_browser_does_not_get(
    site: Site,
    vault: Vault,
    server: AuthorizationServer,
    browser: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
) -> None:
    secret = server.client("basic").secret or ""
    (tmp_path / "secret").write_text(f"{secret}\n")
    monkeypatch.setenv("MAIL_APP_SECRET", secret)
    given = ["--from-file", str(tmp_path / "secret")]
    if source == "env":
        given = ["--from-env", "MAIL_APP_SECRET"]
    else:
        monkeypatch.delenv("MAIL_APP_SECRET")
    with started(site, *account(server), "--client-id", "basic", *given) as command:
        opened = browser()
        server.walk(command.page())
        assert command.end().status == 0
    assert secret not in opened
    assert vault.get("smtp", "oauth_client_secret").reveal() == secret


def refused(server: AuthorizationServer, command: Started) -> None:
    server.set(refuse=True)
    server.walk(command.page())


def gone(server: AuthorizationServer, command: Started) -> None:
    page = command.page()
    server.fault("status", status=503)
    server.walk(page)


def wrong_secret(server: AuthorizationServer, command: Started) -> None:
    server.fault("error", error="invalid_client")
    server.walk(command.page())


@pytest.mark.parametrize(
    ("what", "status", "words"),
    [
        (refused, 16, "the login was refused"),
        (wrong_secret, 16, "redirect URI (http://127.0.0.1/callback)"),
        (gone, 17, "the provider does not answer"),
    ],
)
def test_a_login_that_fails_has_a_status_and_says_what_to_do(
    site: Site,
    server: AuthorizationServer,
    what: Callable[[AuthorizationServer, Started], None],
    status: int,
    words: str,
) -> None:
    before = dump(site.database)
    with started(site, *account(server)) as command:
        what(server, command)
        done = command.end()
    failed(done, status, words, "vault: hint: ", "othing was stored" if status == 16 else "")
    assert dump(site.database) == before


TYPED = {
    "an unknown provider": (["login", "smpt"], "did you mean smtp?"),
    "no terminal": (["login", "smtp", "--preset", "google"], "user, oauth_client_id: not known"),
    "no preset": (["login", "smtp", "--client-id", "a"], "--preset"),
    "an unknown preset": (["login", "smtp", "--preset", "gmail"], "not a valid value"),
    "two sources": (
        ["login", "smtp", "--from-file", "a", "--from-env", "b"],
        "--from-file or --from-env",
    ),
    "a device's URL for a page": (
        ["login", "smtp", "--device-url", "https://a/b"],
        "only for --device",
    ),
    "a page's URL for a device": (
        ["login", "smtp", "--device", "--callback", "http://127.0.0.1/"],
        "only for --device",
    ),
    "Google with a code": (["login", "smtp", "--preset", "google", "--device"], "ssh -L"),
    "no login": (["login", "twilio"], "'vault set twilio' stores its fields"),
    "a field that it has not": (["login", "twilio", "--host", "a"], "has no field host"),
    "the secret as an argument": (["login", "smtp", "--client-secret", "s3cret"], "no such option"),
    "no time": (["login", "smtp", "--wait", "0"], "--wait"),
}


@pytest.mark.parametrize("name", TYPED)
def test_a_slip_is_a_usage_error_and_nobody_logs_in(site: Site, name: str) -> None:
    arguments, words = TYPED[name]
    done = run(site, *arguments)
    failed(done, 2, words, "vault: hint: ")
    assert "s3cret" not in done.err


def test_an_unknown_project_is_not_found(site: Site) -> None:
    failed(run(site, "login", "smtp", "--preset", "google", "--project", "nobody"), 10)
