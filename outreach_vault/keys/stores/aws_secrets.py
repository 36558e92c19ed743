"""
Keys in AWS Secrets Manager, where a secret's name can be created once. The only module that imports
boto3.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from typing import Any, Final

from ...errors import KeyStoreUnavailable, KeyUnavailable
from ...secret import Secret
from .remote import RemoteStore, refuse
from .store import KEYRING_SECONDS, SCHEMES

_URL: Final = re.compile(r"aws-secrets://([a-z]{2}[a-z0-9-]+)/([\w/+=.@-]*[\w+=.@-])/?", re.ASCII)
_PASSING: Final = {
    "InternalServiceError", "InternalFailure", "RequestTimeout", "ServiceUnavailable",
    "ThrottlingException", "Throttling", "TooManyRequestsException",
}  # fmt: skip
_REFUSED: Final = {
    "AccessDenied", "AccessDeniedException", "DecryptionFailure", "EncryptionFailure",
    "ExpiredToken", "ExpiredTokenException", "IncompleteSignature", "InvalidClientTokenId",
    "InvalidSignatureException", "NotAuthorized", "OptInRequired", "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}  # fmt: skip
_CREDENTIALS: Final = {
    "CredentialRetrievalError", "LoginError", "NoAuthTokenError", "NoCredentialsError",
    "PartialCredentialsError", "ProfileNotFound", "SSOTokenLoadError", "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
}  # fmt: skip


class AWSSecrets(RemoteStore):
    """
    AWS Secrets Manager. A key is the text of the secret `PREFIX/VAULT_ID/KEY_ID/key`.

    boto3 finds the credentials, and AWS_ENDPOINT_URL where that is set.

    Args:
        url: `aws-secrets://REGION/PREFIX`.
    """

    package, extra = "boto3", "aws"
    reach = "check the region's name, the network, and AWS_ENDPOINT_URL if it is set"

    def __init__(self, url: str, *, seconds: float = KEYRING_SECONDS) -> None:
        found = _URL.fullmatch(url)
        if found is None or "//" in found[2] or found[2].startswith("/"):
            refuse(
                "a region and a prefix are needed, of letters, digits and '/_+=.@-'",
                SCHEMES["aws-secrets"],
            )
        self._region, self._prefix = found.groups()
        super().__init__(f"aws-secrets://{self._region}/{self._prefix}", seconds=seconds)
        self._made: tuple[int, Any] | None = None

    def _get(self, entry: str) -> Secret | None:
        client = self._client()
        with contextlib.suppress(client.exceptions.ResourceNotFoundException):
            return Secret(client.get_secret_value(SecretId=self._id(entry))["SecretString"])
        return None

    def _create(self, entry: str, text: Secret) -> bool:
        client = self._client()
        with contextlib.suppress(client.exceptions.ResourceExistsException):
            made = client.create_secret(
                Name=self._id(entry),
                SecretString=text.reveal(),
                # A new one each time: with one that was used before, AWS takes a second write of
                # the same text for the first.
                ClientRequestToken=str(uuid.uuid4()),
                Description="a key of outreach_vault; without it, values cannot be read",
            )
            return bool(made["Name"])  # boto3 takes any answer for one
        return False

    def _remove(self, entry: str) -> None:
        """
        For good, without a recovery window: in one, the name could not be used, and a destroyed key
        would not be destroyed. AWS removes it a little later, and that is waited for in half of the
        time; what it has accepted it does.
        """
        client, name = self._client(), self._id(entry)
        until = time.monotonic() + self._seconds / 2
        with contextlib.suppress(client.exceptions.ResourceNotFoundException):
            client.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)["DeletionDate"]
            while "DeletedDate" in client.describe_secret(SecretId=name):
                if time.monotonic() > until:
                    break
                time.sleep(0.2)

    def _id(self, entry: str) -> str:
        return f"{self._prefix}/{entry}"

    def _client(self) -> Any:
        """One for each process: a forked child must not speak on its parent's connections."""
        from boto3.session import Session
        from botocore.config import Config

        made = self._made
        if made is None or made[0] != os.getpid():
            settings = Config(
                connect_timeout=self._seconds,
                read_timeout=self._seconds,
                retries={"total_max_attempts": 1},  # ours know which write was tried before
            )
            session = Session(region_name=self._region)
            made = os.getpid(), session.client("secretsmanager", config=settings)
            self._made = made
        return made[1]

    def _load(self) -> None:
        import boto3  # noqa: F401  # so that loading it is not counted against the time limit

    def _explained(self, error: Exception) -> tuple[KeyUnavailable, bool]:
        from botocore import exceptions

        kind = type(error).__name__
        if isinstance(error, exceptions.ClientError):
            said = error.response.get("Error", {})
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = str(said.get("Code", ""))
            # The code comes from the other side, so it is shown only if it is one.
            kind = code if re.fullmatch("[A-Za-z]{1,60}", code) else kind
            if code == "InvalidRequestException" and "delet" in str(said.get("Message")):
                return self._scheduled(), False
            if code in _REFUSED:
                return self._refusal(kind), False
            return self._other(kind), code in _PASSING or status >= 500
        if kind in _CREDENTIALS:
            return self._refusal(kind), False
        if isinstance(error, (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError)):
            return self.timed_out(), False
        if isinstance(error, exceptions.SSLError):
            hint = "check AWS_CA_BUNDLE, and what is between this machine and AWS"
            return self.unavailable("its TLS certificate is not trusted", hint), False
        if isinstance(error, (exceptions.ConnectionError, exceptions.HTTPClientError)):
            return self.unreachable(), True
        return self._other(kind), False

    def _scheduled(self) -> KeyStoreUnavailable:
        return self.unavailable(
            "the secret is scheduled for deletion",
            "'aws secretsmanager restore-secret' brings it back; if it was destroyed just now, try"
            " again in a minute",
        )

    def _refusal(self, kind: str) -> KeyStoreUnavailable:
        self._made = None  # the next call looks for credentials anew
        return self.unavailable(
            f"refuses the request: {kind}",
            "check the credentials that boto3 finds, and that they may use GetSecretValue,"
            " CreateSecret, DescribeSecret and DeleteSecret of secretsmanager below the prefix",
        )

    def _other(self, kind: str) -> KeyStoreUnavailable:
        return self.unavailable(f"cannot be used: {kind}", "see AWS's own text on this error")
