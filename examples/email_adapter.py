"""
A whole email adapter: it sends from the project's right account, or raises an error.

Copy it and change it. The vault's part is `bundle`, `access_token` and `log_in`.
"""

from __future__ import annotations

import contextlib
import smtplib
import ssl
from collections.abc import Mapping
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import make_msgid
from html.parser import HTMLParser

from outreach import Rendered, begin_message, finish_failed, finish_sent, render, require_recordable

from outreach_vault import AccessToken, SmtpBundle, Vault
from outreach_vault.models import Message

SECONDS = 20.0
REFUSED = 535  # the login (RFC 4954)


def send(
    vault: Vault,
    project_id: str,
    to: str,
    template_id: str,
    variables: Mapping[str, str],
    *,
    cv_id: str | None = None,
    cafile: str | None = None,
) -> Message:
    """
    Send one message from the project's own SMTP account, else from the global one, and record it.

    It logs in with the password, or with an access token where the account has OAuth2.

    The models must be bound to the vault's database (`vault.bind_models()`).

    Args:
        cafile: trust this certificate authority instead of the system's.
    Returns:
        The recorded row, whose `provider_message_id` is the Message-ID.
    Raises:
        VaultError: no account, no access token, or an account that is mixed or cannot be opened.
            Nothing was sent, and the row says `failed`.
        smtplib.SMTPException, OSError: the server refused or cannot be reached; the row says so.
        ValueError: no such project or CV, not one address, or a gap in the template; no row.
        NotRecorded: the server took it, but the row could not say so. Do not send it again.
    """
    require_recordable(project_id, cv_id)
    rendered = render(project_id, template_id, "email", variables)
    recipient = one_address(to)
    row = begin_message(project_id, "email", to, rendered, cv_id=cv_id)
    sender = None
    try:
        account = vault.bundle("smtp", project_id)
        sender = account.from_email
        message = compose(sender, recipient, rendered)
        deliver(vault, account, message, ssl.create_default_context(cafile=cafile))
    except Exception as error:
        finish_failed(row, error, sender)
        raise
    return finish_sent(row, message["Message-ID"], sender)


def one_address(text: str) -> Address:
    """The address, if *text* is exactly one; else ValueError."""
    try:
        return Address(addr_spec=text)
    except (HeaderParseError, ValueError, IndexError):
        raise ValueError("the recipient is not one email address") from None


def compose(sender: str, to: Address, rendered: Rendered) -> EmailMessage:
    """The message, with plain text beside the HTML."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, to, rendered.subject
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2])
    message.set_content(as_text(rendered.body))
    message.add_alternative(rendered.body, subtype="html")
    return message


def deliver(
    vault: Vault, account: SmtpBundle, message: EmailMessage, context: ssl.SSLContext
) -> None:
    """
    Hand the message over. A token that the server refuses is replaced once: it may have been
    revoked before its time. The new one goes over a new connection, for some servers end the old.
    """
    if not account.oauth:
        hand_over(account, None, message, context)
        return
    token = vault.access_token("smtp", account.project_id)
    try:
        hand_over(account, token, message, context)
    except smtplib.SMTPAuthenticationError as error:
        if error.smtp_code != REFUSED:
            raise
        token = vault.access_token("smtp", account.project_id, refused=token)
        hand_over(account, token, message, context)


def hand_over(
    account: SmtpBundle, token: AccessToken | None, message: EmailMessage, context: ssl.SSLContext
) -> None:
    """
    Hand the message over in one connection. No login is sent before TLS, or to an untrusted
    certificate.

    Only `send_message` decides whether the server took it. The answer to QUIT is not read: on 421,
    say, smtplib's own `with` raises, and a message that was taken would be sent again.
    """
    server: smtplib.SMTP
    if account.tls_first:
        server = smtplib.SMTP_SSL(account.host, account.port, timeout=SECONDS, context=context)
    else:
        server = smtplib.SMTP(account.host, account.port, timeout=SECONDS)
    try:
        if not account.tls_first:
            server.starttls(context=context)  # raises if the server does not offer it
        account.log_in(server, token)
        server.send_message(message)
    finally:
        with contextlib.suppress(smtplib.SMTPException, OSError):
            server.putcmd("QUIT")
        with contextlib.suppress(OSError):
            server.close()


class _Text(HTMLParser):
    LINES, CELLS = ("p", "div", "li", "h1", "h2", "h3", "h4", "tr"), ("td", "th")
    AFTER = dict.fromkeys(LINES, "\n") | dict.fromkeys(CELLS, " ")
    UNSEEN = ("style", "script", "title")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.unseen = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.unseen = self.unseen or tag in self.UNSEEN
        self.parts.append("\n" if tag == "br" else "")

    def handle_endtag(self, tag: str) -> None:
        self.unseen = self.unseen and tag not in self.UNSEEN
        self.parts.append(self.AFTER.get(tag, ""))

    def handle_data(self, data: str) -> None:
        self.parts.append("" if self.unseen else data)


def as_text(body: str) -> str:
    """The words of an HTML body, a line for each paragraph."""
    parser = _Text()
    parser.feed(body)
    parser.close()
    return "".join(parser.parts).strip() + "\n"
