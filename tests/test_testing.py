"""
What the tests of adapters are given: a vault whose keys are in memory, like any other but for what
it leaves behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import string
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outreach_vault import KeyMissing, KeySuperseded, ProjectNotFound, Secret, Vault, testing
from outreach_vault.cipher import generate_key
from outreach_vault.keys.stores import KeyStore
from outreach_vault.operations.init import init
from outreach_vault.operations.recovery import backup, export_keys, import_keys
from outreach_vault.operations.rotation import destroy, rotate
from outreach_vault.testing import KeyStoreContract, MemoryKeyStore

P = "default-project"
QUICK = {"iterations": 1, "lanes": 1, "memory_kib": 8}


@pytest.fixture
def store() -> KeyStore:
    """As a `KeyStore`, so that a type checker sees a method that is missing or another's."""
    return MemoryKeyStore()


class TestMemoryKeyStore(KeyStoreContract):
    @pytest.fixture
    def again(self, store: KeyStore) -> KeyStore:
        return store  # it is in no other process

    @pytest.fixture
    def store(self) -> KeyStore:
        return MemoryKeyStore()


def test_it_shows_no_key(store: KeyStore) -> None:
    key = generate_key()
    store.write("v", "k", key)
    assert key.reveal() not in f"{store} {store!r} {vars(store)} {store.name}"


@pytest.fixture
def vault(tmp_path: Path, store: KeyStore) -> Iterator[Vault]:
    init(tmp_path / "vault.db", key_store=store)
    with Vault.open(tmp_path / "vault.db", key_store=store) as opened:
        opened.set("smtp", "password", "canary")
        yield opened


@pytest.fixture
def anew(vault: Vault, store: KeyStore) -> Callable[[], str]:
    """
    The value as a vault reads it that was opened just now: the first one keeps the keys that it has
    fetched.
    """

    def read() -> str:
        with Vault.open(vault.database.path, key_store=store) as other:
            return other.get("smtp", "password").reveal()

    return read


def test_keys_are_rotated_and_destroyed(
    vault: Vault, store: KeyStore, anew: Callable[[], str]
) -> None:
    old = vault.keys.states.active_id()
    report = rotate(vault)
    assert report.complete and report.rotated == 1 and report.new_key and report.old_key == old
    assert store.successor(vault.keys.vault_id, old) == report.new_key and anew() == "canary"
    destroy(vault, old)
    assert not store.holds(vault.keys.vault_id, old) and anew() == "canary"


def test_an_older_database_is_noticed(tmp_path: Path, vault: Vault, store: KeyStore) -> None:
    backup(vault, tmp_path / "older.db")
    rotate(vault)
    with Vault.open(tmp_path / "older.db", key_store=store) as older:
        assert older.get("smtp", "password").reveal() == "canary"
        with pytest.raises(KeySuperseded):
            older.set("smtp", "user", "u")


def test_exported_keys_are_imported_into_a_store_that_lost_them(
    tmp_path: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch, anew: Callable[[], str]
) -> None:
    # What is shown does not depend on the time that it takes.
    monkeypatch.setattr("outreach_vault.keys.passphrase._ARGON2ID", QUICK)
    rotate(vault)
    keys = export_keys(vault, tmp_path / "keys.export", Secret("a passphrase")).keys
    fresh = MemoryKeyStore()
    with Vault.open(vault.database.path, key_store=fresh) as other:
        with pytest.raises(KeyMissing):
            other.get("smtp", "password")
        assert (
            set(import_keys(other, tmp_path / "keys.export", Secret("a passphrase")).added)
            == set(keys)
            and len(keys) == 2
        )
        assert other.get("smtp", "password").reveal() == anew() == "canary"
    assert {fresh.successor(vault.keys.vault_id, key) for key in keys} == {
        None,
        vault.keys.states.active_id(),
    }


# In an adapter's own tests

CONFTEST = """
import os, sys

pytest_plugins = ["outreach_vault.testing"]
touched = []

def hook(event, arguments):
    home = os.environ["HOME"]
    if event in ("open", "os.mkdir", "os.listdir", "os.scandir", "sqlite3.connect"):
        if str(arguments[0]).startswith(home):
            touched.append((event, arguments[0]))
    if event in ("socket.connect", "subprocess.Popen"):
        touched.append(event)

sys.addaudithook(hook)
"""
ADAPTER = """
import sys
import pytest
from outreach_vault import ProjectNotFound, CredentialNotFound, Vault

@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_a_vault_of_its_own(vault, tmp_path, turn):
    assert isinstance(vault, Vault) and vault.list() == []
    vault.set("smtp", "host", "mail.example.com")
    vault.set("smtp", "user", "u", "default-project")
    assert vault.get("smtp", "host", "default-project").reveal() == "mail.example.com"
    assert vault.database.path.is_relative_to(tmp_path)
    with pytest.raises(ProjectNotFound):
        vault.get("smtp", "host", "another")

def test_it_is_closed_in_the_end(request, vault):
    request.config.ended = vault

def test_nothing_of_the_machine_was_touched(request):
    from conftest import touched
    assert touched == []
    keyrings = ("keyring", "secretstorage", "jeepney")
    assert [name for name in sys.modules if name.split(".")[0] in keyrings] == []
    with pytest.raises(Exception):
        request.config.ended.list()
"""


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """
    With all that could lead to the machine's own vault leading to a home where nothing may be
    looked at.
    """
    (home := folder / "home").mkdir()
    env = os.environ | {
        "HOME": str(home),
        "OUTREACH_VAULT_DB": str(home / "no.db"),
        "OUTREACH_VAULT_KEY_DIR": str(home),
    }
    return subprocess.run(
        [sys.executable, "-s", *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.thorough
def test_the_fixture_serves_an_adapters_tests_and_touches_nothing_of_the_machine(
    tmp_path: Path,
) -> None:
    for name, text in {
        "conftest.py": CONFTEST,
        "test_adapter.py": ADAPTER,
        "pytest.ini": "[pytest]\nfilterwarnings = error\n",
    }.items():
        (tmp_path / name).write_text(text)
    done = python(
        tmp_path,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
        "test_adapter.py",
    )
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr
    assert list((tmp_path / "home").iterdir()) == []


# A secret that becomes text

strict_secrets = testing.strict_secrets


@dataclasses.dataclass
class Account:
    token: Secret


def log(secret: Secret) -> None:
    """To a handler that no plugin of pytest's sees."""
    logger = logging.Logger("adapter")
    logger.addHandler(logging.StreamHandler(io.StringIO()))
    logger.error("logging in with %s", secret)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda secret: f"Bearer {secret}",
        lambda secret: f"Bearer {secret!s}",
        lambda secret: f"Bearer {secret:>20}",
        lambda secret: "Bearer {}".format(secret),  # noqa: UP032  # the spelling is under test
        lambda secret: "Bearer %s" % secret,  # noqa: UP031  # the spelling is under test
        lambda secret: "Bearer %(t)s" % {"t": secret},  # noqa: UP031
        lambda secret: string.Template("Bearer $t").substitute(t=secret),
        lambda secret: " ".join(map(str, ["Bearer", secret])),
        lambda secret: urllib.parse.urlencode({"token": secret}),
        lambda secret: json.dumps({"token": secret}, default=str),
        lambda secret: print(secret),
        lambda secret: logging.getLogger("adapter").error("logging in with %s", secret),
        log,
    ],
)
@pytest.mark.usefixtures("strict_secrets")
def test_a_secret_that_becomes_text_fails_the_test_whatever_the_adapter_catches(
    mistake: Callable[[Secret], object],
) -> None:
    with pytest.raises(pytest.fail.Exception, match="hand reveal\\(\\) to the call"):  # noqa: SIM117
        with contextlib.suppress(Exception):
            mistake(Secret("canary"))


@pytest.mark.usefixtures("strict_secrets")
def test_a_join_is_refused_as_ever_and_repr_stays_silent() -> None:
    secret = Secret("canary")
    with pytest.raises(TypeError, match="Secret found"):
        " ".join(["Bearer", secret])  # type: ignore[list-item]
    shown = f"{secret!r} {[secret]} {Account(secret)}" + "%r" % (secret,)  # noqa: UP031
    assert shown.count("Secret('********')") == 4 and secret.reveal() == "canary"


def test_without_the_fixture_a_secret_becomes_the_mask(request: pytest.FixtureRequest) -> None:
    assert str(Secret("canary")) == "********"
    request.getfixturevalue("strict_secrets")
    with pytest.raises(pytest.fail.Exception):
        str(Secret("canary"))


MISTAKEN = """
import email.message, logging
from outreach_vault import VaultError

def send(vault, project_id, post):
    try:
        account = vault.bundle("sendgrid", project_id)
        post({"Authorization": "Bearer %s" % account.api_key})
    except VaultError:
        raise
    except Exception:
        logging.getLogger("adapter").exception("not sent")  # as a worker that must go on

def test_it_sends(vault):
    vault.set("sendgrid", "api_key", "canary")
    sent = []
    send(vault, "default-project", sent.append)
    assert len(sent) == 1
"""


@pytest.mark.parametrize(("strict", "outcome"), [(False, "1 passed"), (True, "1 failed")])
def test_an_adapter_that_would_send_the_mask_is_found_by_its_own_test(
    tmp_path: Path, strict: bool, outcome: str
) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["outreach_vault.testing"]')
    (tmp_path / "pytest.ini").write_text("[pytest]\n" + "usefixtures = strict_secrets" * strict)
    (tmp_path / "test_adapter.py").write_text(MISTAKEN)
    done = python(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_adapter.py")
    assert outcome in done.stdout, done.stdout
    assert ("test_adapter.py:8: " in done.stdout) == strict and "canary" not in done.stderr


def test_a_project_that_is_not_there_is_none_here_either(vault: Vault) -> None:
    vault.set("smtp", "user", "u", P)
    with pytest.raises(ProjectNotFound):
        vault.set("smtp", "user", "u", "another")


def test_the_package_alone_does_not_import_pytest(tmp_path: Path) -> None:
    names = "('pytest', '_pytest', 'outreach_vault.testing')"
    code = (
        "import sys, outreach_vault, outreach_vault.command.cli; sys.exit(any(name in "
        f"sys.modules for name in {names}))"
    )
    done = python(tmp_path, "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
