"""Which key store is meant, by URL, also another package's; and what a store may have besides."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Done, process
from helpers.site import Site, is_made

from outreach_vault import KeyDirectory, OSKeyring, Vault
from outreach_vault.command import cli
from outreach_vault.errors import (
    SharedKeys,
    UnusablePath,
)
from outreach_vault.keys.stores import FORMS, choose, known_as, remote
from outreach_vault.operations.doctor import examine
from outreach_vault.operations.init import init
from outreach_vault.operations.recovery import backup
from outreach_vault.operations.rotation import rotate
from outreach_vault.testing import MemoryKeyStore

URL, DIR = "OUTREACH_VAULT_KEYS", "OUTREACH_VAULT_KEY_DIR"
WRITE = f"write one of: {FORMS}"
PASSWORD = "hunter2-of-the-store"
LONGEST = threading.TIMEOUT_MAX / 4


# --- which one is meant


@pytest.mark.parametrize(
    ("options", "variables", "meant"),
    [
        ({}, {}, "OS keyring"),
        ({"keys": "keyring:"}, {}, "OS keyring"),
        ({"keys": "dir:/a"}, {}, "key directory /a"),
        ({"keys": "dir:///a"}, {}, "key directory /a"),
        ({"keys": "dir:/a b%20?#c"}, {}, "key directory /a b%20?#c"),
        ({"key_dir": "/a"}, {}, "key directory /a"),
        ({}, {URL: "dir:/a"}, "key directory /a"),
        ({}, {URL: "keyring:"}, "OS keyring"),
        ({}, {DIR: "/a"}, "key directory /a"),
        ({"keys": "dir:/a"}, {URL: "dir:/b", DIR: "/c"}, "key directory /a"),
        ({"keys": "keyring:"}, {DIR: "/c"}, "OS keyring"),
        ({"key_dir": "/a"}, {URL: "nonsense", DIR: ""}, "key directory /a"),
        ({"keys": "dir:/a", "key_dir": "/b/../a/"}, {}, "key directory /b/../a"),
        ({}, {URL: "dir:/a", DIR: "/a"}, "key directory /a"),
    ],
)
def test_an_option_is_taken_before_any_variable(
    options: Any, variables: dict[str, str], meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert choose(**options).name == meant


@pytest.mark.parametrize("second", ["dir:/b", "keyring:", "other://host"])
def test_two_places_are_refused_by_name(second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UnusablePath, match=r"^--keys and --key-dir name different places"
    ) as caught:
        choose("/a", keys=second)
    assert caught.value.hint
    monkeypatch.setenv(URL, second)
    monkeypatch.setenv(DIR, "/a")
    with pytest.raises(UnusablePath, match=f"^{URL} and {DIR} name different places"):
        choose()


@pytest.mark.parametrize(
    ("seconds", "is_one"),
    [
        (0, False),
        (math.ulp(0), True),
        (LONGEST, True),
        (math.nextafter(LONGEST, math.inf), False),
    ],
)
def test_a_time_limit_is_above_0_and_at_most_what_a_thread_can_wait(
    seconds: float, is_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTREACH_VAULT_KEYRING_TIMEOUT", repr(seconds))
    for named, make in (
        ("seconds: ", lambda: OSKeyring(seconds=seconds)),
        ("OUTREACH_VAULT_KEYRING_TIMEOUT: ", lambda: choose(keys="keyring:")),
    ):
        with contextlib.nullcontext() if is_one else pytest.raises(ValueError, match=f"^{named}"):
            make()


def test_a_link_to_the_same_folder_is_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "keys")
    assert choose(tmp_path / "keys", keys=f"dir:{tmp_path}/link")


@pytest.mark.parametrize(
    "url",
    ["", PASSWORD, f"/path/{PASSWORD}", f"{PASSWORD}!:x", f"C:\\{PASSWORD}", f":{PASSWORD}",
     f"keyring:{PASSWORD}", f"dir://{PASSWORD}/path", f"dir:/{PASSWORD}\r", f"{PASSWORD}\n:x"],
)  # fmt: skip
def test_what_is_no_url_of_a_place_is_refused_with_what_to_write(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["--keys", url, "list"]) == 2
    monkeypatch.setenv(URL, url)
    assert cli.run(["status"]) == 2
    said = capsys.readouterr().err
    assert said.count(WRITE) == said.count(URL) == 2 and PASSWORD not in said


def test_a_dir_without_a_path_is_refused() -> None:
    with pytest.raises(UnusablePath, match=rf"\(--keys, {URL}\): the path is empty"):
        choose(keys="dir:")


def test_a_scheme_that_nobody_has_is_said_with_those_that_there_are() -> None:
    with pytest.raises(UnusablePath, match=r"the scheme elsewhere$") as caught:
        choose(keys=f"elsewhere://me:{PASSWORD}@host/path")
    assert ": aws-secrets:, dir:, keyring:, openbao:, openbao+http:;" in str(caught.value.hint)
    with pytest.raises(UnusablePath, match=r"a secret$"):
        choose(keys="sk1live2token3:x")


@pytest.mark.parametrize(
    ("url", "form"),
    [
        *((url, "write openbao://HOST/MOUNT/PATH") for url in (
            f"openbao:{PASSWORD}", "openbao://", f"openbao:///{PASSWORD}/a", f"openbao://{PASSWORD}",
            f"openbao://host/{PASSWORD}", f"openbao://me:{PASSWORD}@host/mount/path",
            f"openbao://{PASSWORD}@host/mount/path", f"openbao://host/mount/path?{PASSWORD}",
            f"openbao://host/mount/path#{PASSWORD}", f"openbao://host:{PASSWORD}/mount/path",
            f"openbao://host/mount/../{PASSWORD}", f"openbao://host/mount//{PASSWORD}",
            f"openbao://host/mount/{PASSWORD} x", f"openbao+http://{PASSWORD}.com/mount/path",
            f"openbao+http://10.0.0.1/{PASSWORD}/path",
        )),
        *((url, "write aws-secrets://REGION/PREFIX") for url in (
            f"aws-secrets:{PASSWORD}", f"aws-secrets://{PASSWORD}", "aws-secrets://eu-west-1/",
            f"aws-secrets:///{PASSWORD}", f"aws-secrets://eu-west-1//{PASSWORD}",
            f"aws-secrets://me:{PASSWORD}@eu-west-1/a", f"aws-secrets://eu-west-1/a?{PASSWORD}",
        )),
    ],
)  # fmt: skip
def test_a_server_is_named_completely_and_without_a_password(url: str, form: str) -> None:
    with pytest.raises(UnusablePath) as caught:
        choose(keys=url)
    assert caught.value.hint == form and PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("openbao://Host/mount/path/", "openbao://host:8200/mount/path"),
        ("openbao://host:443/a/b/c", "openbao://host:443/a/b/c"),
        ("openbao+http://[::1]/a/b", "openbao+http://[::1]:8200/a/b"),
        ("openbao+http://localhost/a/b", "openbao+http://localhost:8200/a/b"),
        ("aws-secrets://eu-west-1/a/b/", "aws-secrets://eu-west-1/a/b"),
    ],
)
def test_a_place_on_a_server_has_one_name(url: str, place: str) -> None:
    assert known_as(choose(keys=url)) == place and choose(keys=url).name == f"key store {place}"


@pytest.mark.parametrize(
    ("url", "library", "extra"),
    [
        ("openbao://host/mount/path", "hvac", "openbao"),
        ("aws-secrets://eu-west-1/a", "boto3", "aws"),
    ],
)
def test_an_extra_that_is_not_installed_is_named(
    url: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch, place: Site,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(remote, "find_spec", lambda name: None)
    assert cli.run(["--db", str(place.database), "--keys", url, "init"]) == 2
    said = capsys.readouterr().err
    assert f"needs {library}, which is not installed" in said
    assert f"pip install 'outreach_vault[{extra}]'" in said
    assert not is_made(place.database)


# --- another package's


SCHEMES = """[outreach_vault.key_stores]
files = its_store:open_store
dir = its_store:steal
keyring = its_store:steal
broken = its_store:broken
leaves = its_store:leaves
absent = its_store:absent
nowhere = its_nowhere:open_store
nothing = its_store:nothing
own = its_store:own
"""
ITS_STORE = """
from outreach_vault import KeyDirectory
from outreach_vault.errors import UnusablePath

class Files(KeyDirectory):
    @property
    def name(self):
        return f"its files in {self.path.name}"

def open_store(url):
    scheme, _, path = url.partition("://")
    assert scheme == "files"
    return Files(path.partition("@")[2])

def steal(url):
    raise SystemExit("stolen")

def broken(url):
    raise ValueError(url)

def leaves(url):
    raise SystemExit(0)

def nothing(url):
    return object()

def own(url):
    raise UnusablePath("the place has no name", hint="name it")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A second package as pip would have put it there; where it is found, by processes too."""
    folder = tmp_path / "site-packages"
    (info := folder / "its_store-1.0.dist-info").mkdir(parents=True)
    (info / "entry_points.txt").write_text(SCHEMES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: its-store\nVersion: 1.0\n")
    (folder / "its_store.py").write_text(ITS_STORE)
    before = [path for path in (os.environ.get("PYTHONPATH"),) if path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *before]))
    return folder


def vault(folder: Path, *arguments: str, value: str = "") -> Done:
    site = Site(folder / "app.db", folder / "none")
    return process(site, *arguments, keyring=True, input=value.encode())


def test_another_packages_store_is_used_by_its_url(package: Path, tmp_path: Path) -> None:
    url = f"files://{PASSWORD}@{tmp_path}/its"
    said = []
    for arguments in (["init"], ["set", "smtp", "user"], ["rotate"], ["get", "smtp", "user"]):
        done = vault(tmp_path, "--keys", url, *arguments, value="the value")
        assert done.status == 0, done.err
        said += [done.out, done.err]
    assert "in the its files in its" in said[0] and said[-2] == "the value\n"
    assert "its files in its" in (status := vault(tmp_path, "--keys", url, "status")).out
    assert PASSWORD not in "".join([*said, status.out, status.err])
    assert len(list((tmp_path / "its").glob("*.key"))) == 2
    assert PASSWORD.encode() not in (tmp_path / "app.db").read_bytes()


def test_ours_are_never_its(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vault(tmp_path, "--keys", f"dir:{tmp_path}/keys", "init").status == 0
    (tmp_path / "app.db").unlink()
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    refused = vault(tmp_path, "--keys", "keyring:", "init")
    assert refused.status == 12 and "keyring of this system" in refused.err


@pytest.mark.parametrize(
    ("scheme", "entry", "fault"),
    [
        ("broken", "its_store:broken", "cannot be used: ValueError at its_store.py:19\n"),
        ("leaves", "its_store:leaves", "cannot be used: SystemExit at its_store.py:22\n"),
        ("absent", "its_store:absent", "cannot be used: AttributeError\n"),
        ("nowhere", "its_nowhere:open_store", "cannot be used: ModuleNotFoundError\n"),
        ("nothing", "its_store:nothing", "returns a object, which has no delete"),
    ],
)
def test_a_broken_one_is_named(
    package: Path, tmp_path: Path, scheme: str, entry: str, fault: str
) -> None:
    done = vault(tmp_path, "--keys", f"{scheme}://{PASSWORD}", "list")
    assert done.status == 12 and done.out == ""
    named = f"key store {scheme}, the entry point {entry} of the package its-store"
    assert f"vault: error: {named}: {fault}" in done.err
    assert "vault: hint: " in done.err and PASSWORD not in done.err


def test_doctor_says_that_a_scheme_of_ours_is_never_its(package: Path, tmp_path: Path) -> None:
    where = ("--keys", f"dir:{tmp_path}/keys")
    assert vault(tmp_path, *where, "init").status == 0
    done = vault(tmp_path, *where, "doctor")
    assert done.status == 0 and done.err == ""
    lines = [line for line in done.out.splitlines() if line.startswith("notice: key store")]
    assert lines == [
        f"notice: key store {scheme}, the entry point its_store:steal of the package its-store:"
        f" {scheme}: is a scheme of our own"
        for scheme in ("dir", "keyring")
    ]


def test_an_error_of_ours_that_it_raises_is_kept(package: Path, tmp_path: Path) -> None:
    done = vault(tmp_path, "--keys", "own:", "list")
    assert done.status == 2
    assert done.err == "vault: error: the place has no name\nvault: hint: name it\n"


def test_its_schemes_are_listed(package: Path, tmp_path: Path) -> None:
    done = vault(tmp_path, "--keys", "flies:x", "list")
    assert done.status == 2
    known = "absent:, aws-secrets:, broken:, dir:, files:, keyring:, leaves:,"
    assert f"known schemes: {known}" in done.err


def test_a_scheme_of_two_packages_is_neithers(package: Path, tmp_path: Path) -> None:
    (info := package / "another-1.0.dist-info").mkdir()
    (info / "entry_points.txt").write_text("[outreach_vault.key_stores]\nfiles = another:store\n")
    done = vault(tmp_path, "--keys", f"files://x@{tmp_path}/its", "init")
    assert done.status == 12 and "another:store, its_store:open_store" in done.err
    assert not (tmp_path / "app.db").exists()


MODULES = """
import sys
from outreach_vault.keys.stores import choose
choose(keys=sys.argv[1]).name
print(*sorted(name.rpartition(".")[2] for name in sys.modules if ".keys.stores." in name))
print({"importlib.metadata", "keyring", "hvac", "requests", "boto3"} & {*sys.modules})
"""


@pytest.mark.parametrize(
    ("url", "loaded"),
    [
        ("dir:/a", "directory store"),
        ("keyring:", "os_keyring store"),
        ("openbao://host/mount/path", "openbao remote store"),
        ("aws-secrets://eu-west-1/prefix", "aws_secrets remote store"),
    ],
)
def test_a_store_of_ours_loads_no_other_and_looks_for_none(url: str, loaded: str) -> None:
    command = [sys.executable, "-c", MODULES, url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [loaded, "set()"]


# --- what a store may have besides


class Elsewhere(MemoryKeyStore):
    """A store that says which place it is, and what was left in it."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def known_as(self) -> str:
        return self.place

    def left_over(self) -> list[str]:
        return [f"{self.place}/half a key"]


def test_a_copy_is_told_by_what_the_store_is_known_as(tmp_path: Path) -> None:
    store = Elsewhere("place://one")
    init(tmp_path / "app.db", key_store=store)
    with Vault.open(tmp_path / "app.db", key_store=store) as opened:
        backup(opened, tmp_path / "copy.db")
    with Vault.open(tmp_path / "copy.db", key_store=store) as copy, pytest.raises(SharedKeys):
        rotate(copy)
    store.place = "place://two"  # where somebody has put the same keys
    with Vault.open(tmp_path / "copy.db", key_store=store) as copy:
        assert rotate(copy).complete


def test_doctor_says_what_any_store_says_is_left_over(tmp_path: Path) -> None:
    store = Elsewhere("place://one")
    init(tmp_path / "app.db", key_store=store)
    found = [finding.message for finding in examine(tmp_path / "app.db", key_store=store).findings]
    assert "place://one/half a key: an interrupted command left this" in found


def test_what_files_in_use_have_noted_stays(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "keys")
    assert known_as(KeyDirectory(tmp_path / "link")) == str(tmp_path / "keys")
    assert [known_as(OSKeyring()), known_as(MemoryKeyStore())] == ["OSKeyring", "MemoryKeyStore"]
