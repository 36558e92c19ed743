"""What our own files leave open, and the kind of error that each fault of the system is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from helpers.site import Site, nothing_left_open

from outreach_vault import KeyDirectory, Vault
from outreach_vault.database import Database, locate
from outreach_vault.errors import (
    DatabaseFull,
    DatabaseReadOnly,
    SharedKeys,
    StorageError,
)
from outreach_vault.files import alone, new_file, os_error, with_descriptor
from outreach_vault.operations.init import init
from outreach_vault.operations.recovery import backup
from outreach_vault.operations.rotation import rotate


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DatabaseFull),
        (errno.EDQUOT, DatabaseFull),
        (errno.EACCES, DatabaseReadOnly),
        (errno.EPERM, DatabaseReadOnly),
        (errno.EROFS, DatabaseReadOnly),
        (errno.EIO, StorageError),
    ],
)
def test_a_fault_is_told_by_what_an_adapter_can_do_about_it(
    number: int, kind: type[StorageError]
) -> None:
    assert type(os_error(Path("/f"), OSError(number, os.strerror(number)))) is kind


def test_a_folder_that_is_missing_is_named_itself(tmp_path: Path) -> None:
    file = tmp_path / "gone" / "file"
    for make in (lambda: new_file(file, Path.touch), lambda: alone(file, lambda: None)):
        with pytest.raises(StorageError, match=f"^{file.parent}: No such file"):
            make()


def test_what_was_opened_is_closed_whether_its_use_ends_well_or_not(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with nothing_left_open():
        with_descriptor(file, os.O_CREAT | os.O_RDWR, os.fstat)
        alone(file, lambda: None)
        with pytest.raises(ZeroDivisionError):
            with_descriptor(file, os.O_RDWR, lambda descriptor: descriptor / 0)
        with pytest.raises(ZeroDivisionError):
            alone(file, lambda: 1 / 0)


@pytest.mark.sqlite("files in the making")
@pytest.mark.parametrize("make", ["backup", "new"])
def test_a_database_in_the_making_is_closed_and_only_it_is_there(
    make: str, vault: Vault, tmp_path: Path
) -> None:
    (folder := tmp_path / "folder").mkdir()
    kept = list[Database]()
    with nothing_left_open():
        if make == "backup":
            vault.database.backup(folder / "made", kept.append)
        else:
            locate(folder / "made").create(kept.append)
    assert kept[0].closed and [file.name for file in folder.iterdir()] == ["made"]


def test_what_was_opened_to_make_sure_of_a_key_is_closed(site: Site) -> None:
    with nothing_left_open():
        init(site.database, key_store=KeyDirectory(site.keys))


@pytest.mark.sqlite("the original of a copy is looked at")
def test_what_was_opened_only_to_look_is_closed(site: Site) -> None:
    init(site.database, key_store=KeyDirectory(site.keys))
    with site.open() as vault:
        backup(vault, copy := site.database.with_name("copy"))
    with Site(copy, site.keys).open() as vault, nothing_left_open(), pytest.raises(SharedKeys):
        rotate(vault)
