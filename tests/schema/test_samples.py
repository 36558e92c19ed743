"""
Real databases of the desktop app: made ready, read and rotated, with everything of the app's left
as it was.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import SAMPLES
from helpers.site import dump

from outreach_vault import CredentialNotFound, ForeignValue, KeyDirectory, Vault
from outreach_vault.operations.init import init
from outreach_vault.operations.rotation import rehearse, rotate
from outreach_vault.schema.migrator import Migration
from outreach_vault.vault import Entry

WITH_VALUES = ("samsara-v5", "samsara-v10")
pytestmark = [pytest.mark.samples, pytest.mark.sqlite("the desktop app's own files")]


def _copy(name: str, folder: Path) -> Path:
    """The sample's log belongs to it; what SQLite makes anew is left behind."""
    for suffix in (".db", ".db-wal"):
        shutil.copyfile(SAMPLES / f"{name}{suffix}", folder / f"{name}{suffix}")
    return folder / f"{name}.db"


def _open(path: Path) -> Vault:
    return Vault.open(path, key_store=KeyDirectory(path.with_name("keys")))


def _value_of(vault: Vault, entry: Entry) -> str:
    return vault.get(entry.provider, entry.credential_type, entry.project_id).reveal()


@pytest.fixture(params=WITH_VALUES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A sample that has values of the app's own, made ready."""
    copy = _copy(request.param, tmp_path)
    init(copy, key_store=KeyDirectory(tmp_path / "keys"))
    return copy


@pytest.mark.parametrize(
    ("name", "version"), [("samsara-v4", 5), ("samsara-v5", 5), ("samsara-v10", 10)]
)
def test_init_leaves_every_row_as_it_was(tmp_path: Path, name: str, version: int) -> None:
    path = _copy(name, tmp_path)
    before = dump(path)
    assert sum(map(len, before.values())) > 20
    done: list[Migration] = []
    assert init(path, key_store=KeyDirectory(tmp_path / "keys"), on_schema=done.append)
    assert done[0].backup and dump(done[0].backup) == before
    after = dump(path)
    for table, rows in before.items():
        added = {"key_id": None} if table == "provider_credentials" else {}
        assert after[table] == [row | added for row in rows], table
    with _open(path) as vault:
        assert vault.database.schema_version() == version
        assert vault.database.fetch("PRAGMA integrity_check") == [("ok",)]
    assert init(path, key_store=KeyDirectory(tmp_path / "keys")) is None
    assert dump(path) == after


def test_values_of_the_app_are_listed_as_foreign_and_never_opened(path: Path) -> None:
    with _open(path) as vault:
        entries = vault.list()
        assert len(entries) == 17 and {entry.state for entry in entries} == {"foreign"}
        for entry in entries:
            with pytest.raises(ForeignValue) as raised:
                _value_of(vault, entry)
            assert raised.value.row_id == entry.id


def test_rotate_leaves_values_of_the_app_byte_for_byte(path: Path) -> None:
    before = dump(path)
    with _open(path) as vault:
        vault.set("twilio", "sender_name", "of the vault")
        assert rehearse(vault).foreign == 17
        report = rotate(vault)
        assert report.complete and (report.foreign, report.rotated, report.already_current) == (
            17,
            1,
            0,
        )
        assert vault.get("twilio", "sender_name").reveal() == "of the vault"
    after = dump(path)
    assert [row for row in after["provider_credentials"] if row["key_id"] is None] == before[
        "provider_credentials"
    ]
    for table in before.keys() - {"provider_credentials", "vault_keys"}:
        assert after[table] == before[table], table


def test_values_of_the_app_can_be_replaced_and_are_rotated_then(path: Path) -> None:
    old = {row["id"]: row for row in dump(path)["provider_credentials"]}
    with _open(path) as vault:
        for entry in vault.list():
            assert (
                vault.set(
                    entry.provider, entry.credential_type, f"anew {entry.id}", entry.project_id
                )
                == entry.id
            )
        assert {entry.state for entry in vault.list()} == {"ok"}
        report = rotate(vault)
        assert report.complete and (report.rotated, report.foreign) == (17, 0)
        assert {entry.id: _value_of(vault, entry) for entry in vault.list()} == {
            row_id: f"anew {row_id}" for row_id in old
        }
        assert {entry.key_id for entry in vault.list()} == {report.new_key}
    kept = ("number", "project_id", "provider", "credential_type", "label", "created_at")
    for row in dump(path)["provider_credentials"]:
        assert [row[name] for name in kept] == [old[row["id"]][name] for name in kept]


def test_a_foreign_value_of_a_project_is_never_answered_with_a_good_global_one(path: Path) -> None:
    with _open(path) as vault:
        of_projects = [entry for entry in vault.list() if entry.project_id is not None]
        assert len(of_projects) == 5
        for entry in of_projects:
            vault.set(entry.provider, entry.credential_type, "the global one")
        rotate(vault)
        for entry in of_projects:
            assert vault.get(entry.provider, entry.credential_type).reveal() == "the global one"
            with pytest.raises(ForeignValue):
                _value_of(vault, entry)
            vault.delete(entry.provider, entry.credential_type, entry.project_id)
            assert _value_of(vault, entry) == "the global one"
            with pytest.raises(CredentialNotFound):
                vault.get(entry.provider, entry.credential_type, entry.project_id, fallback=False)
