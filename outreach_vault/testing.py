"""
For the tests of adapters: a key store in memory, and a pytest fixture. Nothing of the machine's keyring is touched.

    pytest_plugins = ["outreach_vault.testing"]        # in conftest.py

    def test_my_adapter(vault):
        vault.set("smtp", "host", "mail.example.com")
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .errors import KeyExists
from .keys.stores import missing_key
from .secret import Secret
from .vault import Vault, init


class MemoryKeyStore:
    """A `KeyStore` that forgets everything with the process. Not for anything but tests: nobody could open the values again."""

    name = "memory"

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str], Secret] = {}
        self._successors: dict[tuple[str, str], str] = {}

    def read(self, vault_id: str, key_id: str) -> Secret:
        if (vault_id, key_id) not in self._keys:
            raise missing_key(self.name, key_id)
        return self._keys[vault_id, key_id]

    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        if (vault_id, key_id) in self._keys:
            raise KeyExists(f"{self.name} has a key {key_id} already", key_id=key_id)
        self._keys[vault_id, key_id] = key

    def holds(self, vault_id: str, key_id: str) -> bool:
        return (vault_id, key_id) in self._keys

    def delete(self, vault_id: str, key_id: str) -> None:
        self._keys.pop((vault_id, key_id), None)

    def successor(self, vault_id: str, key_id: str) -> str | None:
        return self._successors.get((vault_id, key_id))

    def mark_superseded(self, vault_id: str, key_id: str, successor_id: str) -> None:
        self._successors.setdefault((vault_id, key_id), successor_id)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """An open vault in a new database with the project `default-project`, and its keys in memory."""
    path, keys = tmp_path / "vault.db", MemoryKeyStore()
    init(path, key_store=keys)
    with Vault.open(path, key_store=keys) as opened:
        yield opened
