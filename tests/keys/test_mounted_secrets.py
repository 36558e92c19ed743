"""A Secret as Kubernetes mounts it is a key directory that nothing is written to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.shape import NOBODY, in_child

from outreach_vault import KeyDirectory, KeyExists, KeyMissing, KeyStoreUnavailable
from outreach_vault.cipher import generate_key
from outreach_vault.secret import Secret

FILE, KEY, LATER = "v.k.key", generate_key(), generate_key()
VERSION = "..2026_11_27_10_00_00.123456789"
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def new_version(folder: Path, key: Secret, version: str, gid: int, mode: int = 0o440) -> None:
    """Files with the modes that kubelet gives them, and the link that it then renames over."""
    (folder / version).mkdir()
    for name, text in ((FILE, key.reveal()), ("v.k.successor", "later")):
        (file := folder / version / name).write_text(text)
        os.chown(file, -1, gid)
        file.chmod(mode)
    os.chown(folder / version, -1, gid)
    (folder / version).chmod(0o2755)
    (folder / "..data_tmp").symlink_to(version)
    (folder / "..data_tmp").rename(folder / "..data")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Root's, where root runs the tests, and of an ordinary user's group; open to all to read."""
    with tempfile.TemporaryDirectory(prefix="ov", dir="/tmp") as name:
        Path(name).chmod(0o755)
        (made := Path(name) / "keys").mkdir()
        gid = NOBODY if os.geteuid() == 0 else os.getegid()
        new_version(made, KEY, VERSION, gid)
        for file in (FILE, "v.k.successor"):
            (made / file).symlink_to(f"..data/{file}")
        os.chown(made, -1, gid)
        made.chmod(0o2755)
        yield made


def said(folder: Path, key_id: str = "k") -> str:
    """What an ordinary user reads there."""
    return in_child(lambda: KeyDirectory(folder).read("v", key_id).reveal(), ordinary=True)[1]


def test_the_pods_user_reads_by_the_pods_group(folder: Path) -> None:
    assert said(folder) == KEY.reveal()
    assert said(folder, "other").startswith("KeyMissing: ")
    keys = KeyDirectory(folder)
    successor = in_child(lambda: keys.successor("v", "k"), ordinary=True)[1]
    assert successor == "later"
    assert in_child(lambda: [keys.holds("v", x) for x in "kx"], ordinary=True)[1] == "[True, False]"


def test_the_next_version_is_read_also_where_it_comes_in_the_middle(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, gid = KeyDirectory(folder), (folder / "..data" / FILE).stat().st_gid
    monkeypatch.setattr(os, "getgroups", lambda: [gid])

    def kept(_: KeyDirectory, path: Path) -> None:
        if path.name == VERSION:
            new_version(folder, LATER, "..2026_11_27_11_00_00.1", gid)
            shutil.rmtree(folder / VERSION)

    monkeypatch.setattr(KeyDirectory, "_require_kept", kept)
    assert keys.read("v", "k") == LATER
    (folder / "..data" / FILE).unlink()
    with pytest.raises(KeyMissing):
        keys.read("v", "k")


@ROOT_ONLY
def test_files_of_a_group_that_the_user_is_not_in_are_refused_and_so_are_open_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mode in (0o444, 0o460, 0o442, 0o644):
        (folder / VERSION / FILE).chmod(mode)
        assert f"mode {mode:04o} lets other users in" in said(folder), oct(mode)
    (folder / VERSION / FILE).chmod(0o440)
    os.chown(folder / VERSION / FILE, 0, 12345)
    monkeypatch.setattr(os, "getgroups", lambda: [0])
    with pytest.raises(KeyStoreUnavailable, match="mode 0440 lets other users in"):
        KeyDirectory(folder).read("v", "k")
    monkeypatch.setattr(os, "getgroups", lambda: [0, 12345])
    assert KeyDirectory(folder).read("v", "k") == KEY


@ROOT_ONLY
@pytest.mark.parametrize("which", [".", VERSION])
def test_a_folder_where_others_could_put_files_is_refused(folder: Path, which: str) -> None:
    for mode in (0o3777, 0o2775):
        (folder / which).chmod(mode)
        assert "other users can put files there" in said(folder)
    (folder / which).chmod(0o755)
    os.chown(folder / which, 12345, NOBODY)
    assert "other users can put files there" in said(folder)


READ = """
import sys
from outreach_vault import KeyDirectory
keys = KeyDirectory(sys.argv[1])
print(keys.read("v", "k").reveal())
"""


@ROOT_ONLY
def test_one_that_is_mounted_read_only_may_be_open_as_kubernetes_has_it(folder: Path) -> None:
    folder.chmod(0o3777)
    os.chown(folder / VERSION / FILE, 0, 0)
    mounted = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-m", "sh", "-c", mounted, "sh", str(folder), sys.executable, READ]
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount anything")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"{KEY.reveal()}\n", done.stderr


@pytest.mark.parametrize(
    ("link", "target"),
    [
        (FILE, "{}/elsewhere"),
        (FILE, "..data/v.other.key"),
        (FILE, "..data/../../elsewhere"),
        (FILE, f"{VERSION}/{FILE}"),
        ("..data", "/tmp"),
        ("..data", "../elsewhere"),
        ("..data", ".."),
        (f"{VERSION}/{FILE}", "{}/elsewhere"),
    ],
)
def test_any_other_link_is_refused(folder: Path, link: str, target: str) -> None:
    (private := folder.parent / "elsewhere").write_text(LATER.reveal())
    os.chown(private, -1, (folder / VERSION / FILE).stat().st_gid)
    private.chmod(0o440)
    (folder / link).unlink()
    (folder / link).symlink_to(target.format(folder.parent))
    assert said(folder).startswith("KeyStoreUnavailable: ")


def test_nothing_is_written_there_and_one_error_says_so(folder: Path) -> None:
    keys, before = KeyDirectory(folder), sorted(os.listdir(folder))
    for use in (
        lambda: keys.write("v", "k", LATER),
        lambda: keys.write("v", "new", LATER),
        lambda: keys.mark_superseded("v", "k", "later"),
        lambda: keys.delete("v", "k"),
    ):
        with pytest.raises(KeyStoreUnavailable, match="Kubernetes mounted it") as caught:
            use()
        assert "vault keys import FILE" in str(caught.value.hint)
        assert not isinstance(caught.value, KeyExists)
    keys.delete("v", "none")
    assert sorted(os.listdir(folder)) == before
