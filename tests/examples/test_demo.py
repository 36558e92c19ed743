"""The demo as a person runs it, and its email adapter against a real SMTP server."""

import email
import email.policy
import os
import smtplib
import socket
import ssl
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.site import Site

from outreach_vault import DamagedValue, MixedAccount, Vault, VaultError
from outreach_vault.models import OutreachTemplate

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from email_adapter import send  # noqa: E402
from smtp_server import SmtpServer  # noqa: E402

OWN, PLAIN = "own-project", "plain-project"
EVERYONES, OWNS = "everyone@example.com", "project@example.com"
PASSWORDS = {EVERYONES: "invented-for-everyone", OWNS: "invented-for-the-project"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SmtpServer]:
    with SmtpServer(tmp_path, PASSWORDS) as running:
        yield running


@pytest.fixture
def vault(site: Site, server: SmtpServer) -> Iterator[Vault]:
    """One account for everyone, and one project's own."""
    with site.open() as opened:
        for project in (OWN, PLAIN):
            opened.database.change(
                "INSERT INTO projects (id, name, created_at, updated_at) SELECT ?, ?, created_at, "
                "updated_at FROM projects LIMIT 1",
                (project, project),
            )
        opened.bind_models()
        for project in (OWN, PLAIN):
            OutreachTemplate.create(
                project=project,
                name="n",
                type="email",
                subject="An invitation",
                body="<p>Good day {{name}}</p>",
            )
        store_account(opened, server, EVERYONES, None)
        store_account(opened, server, OWNS, OWN)
        yield opened


def store_account(vault: Vault, server: SmtpServer, account: str, project: str | None) -> None:
    for field, value in {
        "host": server.host,
        "port": str(server.port),
        "user": account,
        "password": PASSWORDS[account],
    }.items():
        vault.set("smtp", field, value, project)


def invite(vault: Vault, project: str, cafile: str | None) -> str:
    template = OutreachTemplate.get_or_none(project=project) or OutreachTemplate(id="none")
    return str(
        send(
            vault, project, "reader@example.com", template.id, {"name": "you"}, cafile=cafile
        ).provider_message_id
    )


def nothing_was_sent(server: SmtpServer) -> bool:
    """Neither sent nor tried, under any account."""
    return server.accepted == [] and server.attempts == []


def change_token(vault: Vault, field: str, project: str) -> None:
    """As another program could: one character of the stored token."""
    changed = vault.database.change(
        "UPDATE provider_credentials SET encrypted_value = substr(encrypted_value, 1, 60) ||"
        " CASE substr(encrypted_value, 61, 1) WHEN 'A' THEN 'B' ELSE 'A' END || "
        "substr(encrypted_value, 62)"
        " WHERE project_id = ? AND credential_type = ?",
        (project, field),
    )
    assert changed == 1


@pytest.mark.thorough
def test_demo_ends_well_with_an_empty_home_and_leaves_nothing_behind(tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py")],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("demo: all of it held")
    assert done.stderr == ""
    assert not [
        password for password in ("invented-password", "invented value") if password in done.stdout
    ]
    assert list(home.rglob("*")) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.thorough
def test_demo_says_what_did_not_hold_and_fails(tmp_path: Path) -> None:
    """A copy of it that only rehearses the rotation."""
    copy = tmp_path / "project"
    (copy / "tests" / "data").mkdir(parents=True)
    (copy / "examples").mkdir()
    (copy / "tests" / "data" / "v4.db").write_bytes(
        (EXAMPLES.parent / "tests" / "data" / "v4.db").read_bytes()
    )
    for example in EXAMPLES.glob("*.py"):
        text = example.read_text(encoding="utf-8").replace(
            'vault("rotate")', 'vault("rotate", "--dry-run")'
        )
        (copy / "examples" / example.name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(copy / "examples" / "demo.py")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith(
        "demo: FAILED: this did not hold: of 308 old tokens none is left"
    )


def test_adapter_sends_from_the_own_account_else_from_everyones(
    vault: Vault, server: SmtpServer
) -> None:
    ids = [invite(vault, OWN, server.cafile), invite(vault, PLAIN, server.cafile)]
    assert [(took.account, took.sender, took.recipients) for took in server.accepted] == [
        (OWNS, OWNS, ("reader@example.com",)),
        (EVERYONES, EVERYONES, ("reader@example.com",)),
    ]
    messages = [
        email.message_from_bytes(took.content, policy=email.policy.default)
        for took in server.accepted
    ]
    assert [message["Message-ID"] for message in messages] == ids
    assert len(set(ids)) == 2
    assert [part.get_content_type() for part in messages[0].walk()] == [
        "multipart/alternative",
        "text/plain",
        "text/html",
    ]


def test_adapter_sends_in_the_name_of_from_email(vault: Vault, server: SmtpServer) -> None:
    vault.set("smtp", "from_email", "jobs@example.com", OWN)
    invite(vault, OWN, server.cafile)
    assert [(took.account, took.sender) for took in server.accepted] == [(OWNS, "jobs@example.com")]


def test_adapter_takes_up_a_changed_password_at_once(vault: Vault, server: SmtpServer) -> None:
    invite(vault, OWN, server.cafile)
    server.accounts[OWNS] = "invented-and-changed"
    vault.set("smtp", "password", "invented-and-changed", OWN)
    invite(vault, OWN, server.cafile)
    assert len(server.accepted) == 2


def test_adapter_with_a_wrong_password_sends_nothing_and_shows_no_secret(
    vault: Vault, server: SmtpServer
) -> None:
    vault.set("smtp", "password", "invented-but-wrong", OWN)
    with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
        invite(vault, OWN, server.cafile)
    assert server.accepted == []
    assert set(server.attempts) == {OWNS}
    shown = "".join(traceback.format_exception(refused.value)) + repr(refused.value)
    assert not [secret for secret in (*PASSWORDS.values(), "invented-but-wrong") if secret in shown]


@pytest.mark.parametrize("field", ["host", "port", "user", "password", "from_email"])
def test_adapter_sends_nothing_when_a_row_of_the_project_is_damaged(
    vault: Vault, server: SmtpServer, field: str
) -> None:
    for project in (None, OWN):
        vault.set("smtp", "from_email", "jobs@example.com", project)
    change_token(vault, field, OWN)
    with pytest.raises(DamagedValue, match=f"smtp/{field}"):
        invite(vault, OWN, server.cafile)
    assert nothing_was_sent(server)


@pytest.mark.parametrize("field", ["host", "user", "password"])
def test_adapter_sends_nothing_from_half_an_account(
    vault: Vault, server: SmtpServer, field: str
) -> None:
    vault.delete("smtp", field, OWN)
    with pytest.raises(MixedAccount, match=rf"the global {field} "):
        invite(vault, OWN, server.cafile)
    assert nothing_was_sent(server)


def test_adapter_sends_nothing_for_an_unknown_project(vault: Vault, server: SmtpServer) -> None:
    with pytest.raises(ValueError, match="there is no project"):
        invite(vault, "no-such-project", server.cafile)
    assert nothing_was_sent(server)


def test_adapter_does_not_log_in_where_the_certificate_is_not_trusted(
    vault: Vault, server: SmtpServer
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        invite(vault, OWN, None)
    assert nothing_was_sent(server)


def test_adapter_does_not_quote_a_port_that_is_no_number(vault: Vault, server: SmtpServer) -> None:
    vault.set("smtp", "port", "invented-secret-in-the-wrong-field", OWN)
    with pytest.raises(VaultError, match="smtp/port") as refused:
        invite(vault, OWN, server.cafile)
    assert "invented-secret" not in "".join(traceback.format_exception(refused.value))
    assert nothing_was_sent(server)


@pytest.mark.peer  # the server is one: where the port cannot be had, the gate must say so
@pytest.mark.parametrize(("stored", "port"), [("465", 465), (None, 587)])
def test_adapter_knows_the_two_ports_for_submission(
    vault: Vault, tmp_path: Path, stored: str | None, port: int
) -> None:
    """
    465 is TLS from the start; a missing port is 587, with STARTTLS, and never the global account's
    port.
    """
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        pytest.skip(f"port {port} cannot be had on this machine: {error.strerror}")
    vault.delete("smtp", "port", OWN)
    if stored:
        vault.set("smtp", "port", stored, OWN)
    (tmp_path / "other").mkdir()
    with SmtpServer(tmp_path / "other", PASSWORDS, port=port, tls_first=port == 465) as other:
        invite(vault, OWN, other.cafile)
        assert [took.account for took in other.accepted] == [OWNS]


def test_server_takes_no_message_without_a_login(server: SmtpServer, tmp_path: Path) -> None:
    """Otherwise the record of who logged in would prove nothing."""
    (tmp_path / "other").mkdir()
    with SmtpServer(tmp_path / "other", PASSWORDS, tls_first=True) as tls_first:
        for peer in (server, tls_first):
            context = ssl.create_default_context(cafile=peer.cafile)
            connect = (
                smtplib.SMTP_SSL(peer.host, peer.port, context=context)
                if peer is tls_first
                else smtplib.SMTP(peer.host, peer.port)
            )
            with connect as client:
                if peer is server:
                    with pytest.raises(
                        smtplib.SMTPNotSupportedError
                    ):  # no AUTH is offered before TLS
                        client.login(OWNS, PASSWORDS[OWNS])
                    client.starttls(context=context)
                with pytest.raises(smtplib.SMTPResponseException) as refused:
                    client.sendmail(OWNS, ["reader@example.com"], b"Subject: hello\r\n\r\nhello")
                assert refused.value.smtp_code == 530
            assert peer.accepted == []
