"""Key stores on a server, each with a real one: OpenBao, and AWS Secrets Manager's double."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from helpers.key_servers import Bao, Moto

from outreach_vault.keys.stores import KeyStore
from outreach_vault.keys.stores.aws_secrets import AWSSecrets
from outreach_vault.keys.stores.openbao import OpenBao
from outreach_vault.testing import KeyStoreContract

NOBODY = "127.0.0.1:1"  # where nothing listens


@pytest.fixture
def path() -> str:
    """Of the keys of this test alone: the servers serve many."""
    return uuid.uuid4().hex


@pytest.mark.usefixtures("impatient")
class TestOpenBao(KeyStoreContract):
    @pytest.fixture
    def store(self, bao: Bao, path: str) -> KeyStore:
        return OpenBao(f"{bao.url}/{path}")

    @pytest.fixture
    def again(self, bao: Bao, path: str) -> KeyStore:
        return OpenBao(f"{bao.url}/{path}")

    @pytest.fixture
    def unreachable(self, bao: Bao) -> KeyStore:
        return OpenBao(f"openbao://{NOBODY}/secret/path")

    @pytest.fixture
    def slow(self, bao: Bao) -> Iterator[KeyStore]:
        with bao.frozen():
            yield OpenBao(bao.url, seconds=0.3)


@pytest.mark.usefixtures("impatient")
class TestAWSSecrets(KeyStoreContract):
    @pytest.fixture
    def store(self, aws: Moto, path: str) -> KeyStore:
        return AWSSecrets(f"aws-secrets://eu-west-1/{path}")

    @pytest.fixture
    def again(self, aws: Moto, path: str) -> KeyStore:
        return AWSSecrets(f"aws-secrets://eu-west-1/{path}")

    @pytest.fixture
    def unreachable(self, aws: Moto, monkeypatch: pytest.MonkeyPatch) -> KeyStore:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{NOBODY}")
        return AWSSecrets("aws-secrets://eu-west-1/path")

    @pytest.fixture
    def slow(self, aws: Moto) -> Iterator[KeyStore]:
        with aws.frozen():
            yield AWSSecrets("aws-secrets://eu-west-1/path", seconds=0.3)
