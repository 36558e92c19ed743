"""
A whole email adapter: the right account for the project at hand, or an error, never another account.

Copy it and change it; the vault is the three lines with `get`.
"""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage
from email.utils import make_msgid

from outreach_vault import Credential, CredentialNotFound, Vault, VaultError

SECONDS = 20.0


def send(vault: Vault, project_id: str, to: str, subject: str, text: str, html: str, *, cafile: str | None = None) -> str:
    """
    Send one message from the project's own SMTP account, else from the global one.

    Args:
        cafile: trust this certificate authority instead of the system's.
    Returns:
        The Message-ID.
    Raises:
        VaultError: no account, or one that cannot be opened or is mixed; nothing was sent.
        smtplib.SMTPException, OSError: the server refused or cannot be reached; ssl.SSLError is an OSError.
    """
    host, user, password = (vault.get("smtp", field, project_id) for field in ("host", "user", "password"))
    if len({host.project_id, user.project_id, password.project_id}) > 1:  # one account's user at another's server
        raise VaultError(
            f"smtp: host is {host.scope} (row {host.id}), user {user.scope} (row {user.id}), password {password.scope} (row {password.id})",
            hint="store the project's own host, user and password together",
        )
    port = _port(_optional(vault, "port", host.project_id, fallback=False))  # only the one that goes with this host
    sender = _optional(vault, "from_email", project_id) or user
    message = _compose(sender.reveal(), to, subject, text, html)
    context = ssl.create_default_context(cafile=cafile)
    with _connect(host.reveal(), port, context) as server:
        server.login(user.reveal(), password.reveal())
        server.send_message(message)
    return str(message["Message-ID"])


def _optional(vault: Vault, field: str, project_id: str | None, *, fallback: bool = True) -> Credential | None:
    """A missing value is no error; a damaged one, or one whose key is missing, is."""
    try:
        return vault.get("smtp", field, project_id, fallback=fallback)
    except CredentialNotFound:
        return None


def _port(found: Credential | None) -> int:
    if found and not (found.reveal().isascii() and found.reveal().isdigit()):
        raise VaultError(f"smtp/port ({found.scope}, row {found.id}): not a number")  # and not what it is: int() would quote it
    return int(found.reveal()) if found else 587


def _connect(host: str, port: int, context: ssl.SSLContext) -> smtplib.SMTP:
    if port == 465:
        return smtplib.SMTP_SSL(host, port, timeout=SECONDS, context=context)
    server = smtplib.SMTP(host, port, timeout=SECONDS)
    try:
        server.starttls(context=context)  # raises where the server offers none: no password in the clear
    except BaseException:
        server.close()
        raise
    return server


def _compose(sender: str, to: str, subject: str, text: str, html: str) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, to, subject
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2])
    message.set_content(text)
    message.add_alternative(html, subtype="html")
    return message
