"""
A real local SMTP server for the demo and the tests: several accounts, verified TLS before login.

It delivers nothing. It keeps what it accepted, with the account that was logged in.
"""

from __future__ import annotations

import datetime
import ipaddress
import logging
import ssl
from pathlib import Path
from typing import Any, NamedTuple

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Accepted(NamedTuple):
    """One message that the server took, and the account that was logged in."""

    account: str
    sender: str
    recipients: tuple[str, ...]
    content: bytes


class SmtpServer:
    """
    Listens at 127.0.0.1 while in a `with` statement.

    Args:
        folder: where it writes the certificates; private and temporary.
        accounts: user -> password; may change while it runs.
        port: 0 takes a free one.
        tls_first: TLS from the start (as at port 465) instead of STARTTLS.

    Attributes:
        cafile: the authority that a client must trust; each server makes its own.
        accepted: what it took, in order. attempts: the user of each login attempt, in order.
    """

    def __init__(
        self, folder: Path, accounts: dict[str, str], *, port: int = 0, tls_first: bool = False
    ) -> None:
        self.host = "localhost"
        # Else aiosmtpd's remarks go to standard error.
        logging.getLogger("mail.log").addHandler(logging.NullHandler())
        self.accounts = dict(accounts)
        self.accepted: list[Accepted] = []
        self.attempts: list[str] = []
        self.cafile, chain = _make_certificates(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        # aiosmtpd ignores TLS from the start when it asks for TLS before login; so with tls_first
        # handle_DATA checks the login.
        tls: dict[str, Any] = {"tls_context": context, "require_starttls": True}
        if tls_first:
            tls = {"ssl_context": context, "auth_require_tls": False}
        self._controller = _AnyPort(
            self,
            hostname="127.0.0.1",
            port=port,
            server_hostname="localhost",
            authenticator=self._authenticate,
            auth_required=not tls_first,
            ready_timeout=60,  # the default, 5 seconds, is short on a busy machine
            **tls,
        )

    @property
    def port(self) -> int:
        return int(self._controller.port)

    def __enter__(self) -> SmtpServer:
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop()

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        if not isinstance(data, LoginPassword):
            return AuthResult(success=False, handled=False)
        user, password = data.login.decode(), data.password.decode()
        self.attempts.append(user)
        right = self.accounts.get(user) == password
        return AuthResult(success=right, handled=False, auth_data=user)

    # The name is aiosmtpd's.
    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if not session.authenticated or not isinstance(session.auth_data, str):
            return "530 5.7.0 Authentication required"
        content = envelope.original_content or b""
        sender, recipients = envelope.mail_from or "", tuple(envelope.rcpt_tos)
        self.accepted.append(Accepted(session.auth_data, sender, recipients, content))
        return "250 2.0.0 OK"


class _AnyPort(Controller):
    def _trigger_server(self) -> None:
        """Once it listens, learn its port. A free port found earlier could be taken by now."""
        self.port = self.server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        super()._trigger_server()  # type: ignore[no-untyped-call]


def _make_certificates(folder: Path) -> tuple[str, Path]:
    """Two files, good for a day: an authority, and its certificate for localhost with the key."""
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _name("outreach-vault demo authority")
    no_other_use = (False,) * 5
    usage = x509.KeyUsage(
        *no_other_use, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False
    )
    authority_cert = (
        _builder(authority, authority, authority_key, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    server_cert = (
        _builder(_name("localhost"), authority, server_key, authority_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key = server_key.private_bytes(pem, pkcs8, serialization.NoEncryption())
    cafile, chain = folder / "authority.pem", folder / "server.pem"
    cafile.write_bytes(authority_cert.public_bytes(pem))
    chain.touch(mode=0o600)
    chain.write_bytes(key + server_cert.public_bytes(pem))
    return str(cafile), chain


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuer_id, critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
