"""
The whole vault, and the command as a process, against a real keyring in every state that a keyring
has.

Whatever the keyring does, three things hold: the error says which fault it is and what to do,
nothing makes a key because another could not be had, and the same call works when the cause is
mended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.fernet import Fernet
from helpers import TESTS
from helpers.commands import Done, failed, process
from helpers.effort import effort
from helpers.faults import forked
from helpers.secret_service import SecretService
from helpers.site import Figures, Site

from outreach_vault import KeyringTimedOut, KeyStoreUnavailable, Vault, WrongKey
from outreach_vault.cipher import generate_key
from outreach_vault.keys.stores import os_keyring
from outreach_vault.operations import rotation
from outreach_vault.operations.init import init

pytestmark = pytest.mark.sweep(6)

VALUE = "the value of before"
TIMEOUT = "OUTREACH_VAULT_KEYRING_TIMEOUT"
BACKEND = "PYTHON_KEYRING_BACKEND"
BUS = "DBUS_SESSION_BUS_ADDRESS"
# Each of these needs the key, or makes one; every one is tried in every situation.
USES = {
    "get": ["get", "smtp", "password"],
    "set": ["set", "smtp", "password"],
    "rotate": ["rotate"],
    "init": ["init"],
}
LIBRARY = """
import json, sys
from outreach_vault import Vault, VaultError
from outreach_vault.operations import rotation
from outreach_vault.operations.init import init
path = sys.argv[1]
uses = {
    "get": lambda vault: vault.get("smtp", "password"),
    "set": lambda vault: vault.set("smtp", "password", "never stored"),
    "rotate": rotation.rotate,
    "init": lambda vault: init(path),
}
found = {}
with Vault.open(path) as vault:
    for name, use in uses.items():
        try:
            found[name] = ["nothing", repr(use(vault)), ""]
        except VaultError as error:
            found[name] = [type(error).__name__, str(error), error.hint or ""]
print(json.dumps(found))
"""
# Commands in one process, each as new: they start at once, and what they do is the same.
COMMANDS = """
import json, sys
from pathlib import Path
from helpers.commands import run
from helpers.site import Site
site = Site(Path(sys.argv[1]), Path())
calls = json.load(sys.stdin)
done = [run(site, *arguments, stdin=text.encode(), keyring=True) for arguments, text in calls]
print(json.dumps(done))
"""
PLAINTEXT = """
import keyring.backend
class PlaintextKeyring(keyring.backend.KeyringBackend):
    priority = 9
    def get_password(self, service, username):
        return None
    def set_password(self, service, username, password):
        open({file!r}, "w").write(password)
"""


class Kept(NamedTuple):
    """A database whose key is in the real keyring."""

    database: Path
    service: SecretService

    def env(self, env: dict[str, str | None] | None) -> dict[str, str]:
        """
        The keyring's environment, with *env* on top; None there takes a variable away.
        """
        merged = os.environ | self.service.env | (env or {})
        return {name: value for name, value in merged.items() if value is not None}

    def run(
        self, *command: str, env: dict[str, str | None] | None = None, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            env=self.env(env),
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def vault(
        self, *arguments: str, env: dict[str, str | None] | None = None, text: str = ""
    ) -> Done:
        site = Site(self.database, Path())
        return process(site, *arguments, keyring=True, env=self.env(env), input=text.encode())

    def vaults(
        self, *calls: list[str], env: dict[str, str | None] | None = None, text: str = ""
    ) -> list[Done]:
        """What each command came to, all with the same standard input."""
        path = os.pathsep.join([str(TESTS), *filter(None, [(env or {}).get("PYTHONPATH")])])
        given = json.dumps([[arguments, text] for arguments in calls])
        done = self.run(
            "-c", COMMANDS, str(self.database), env={**(env or {}), "PYTHONPATH": path}, text=given
        )
        assert done.returncode == 0, done.stderr
        return [Done(*each) for each in json.loads(done.stdout)]

    def states(self) -> dict[str, str]:
        return Site(self.database, Path()).states()

    def active(self) -> str:
        return Site(self.database, Path()).active()

    def entry(self, key_id: str) -> str:
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            [vault_id] = connection.execute(
                "SELECT value FROM vault_meta WHERE key = 'vault_id'"
            ).fetchone()
        return f"outreach-vault/{vault_id}/{key_id}"

    def rows(self) -> list[tuple[str, ...]]:
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            return connection.execute("SELECT * FROM provider_credentials ORDER BY id").fetchall()

    def entries(self) -> list[str]:
        """
        The names of all of our entries in the keyring, by a second client; of locked ones too.
        """
        found = self.secret_tool("search", "--all", "application", "Python keyring library")
        return sorted(
            re.findall(r"attribute\.service = (outreach-vault/\S+)", found.stdout + found.stderr)
        )

    def secret_tool(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["secret-tool", *arguments],
            env=os.environ | self.service.env,
            capture_output=True,
            text=True,
            timeout=20,
        )

    def replace_entry(self, key_id: str, key: str) -> None:
        """
        Clear and store: storing alone may leave two entries, since other clients give them fewer
        attributes.
        """
        self.secret_tool("clear", "service", self.entry(key_id), "username", "fernet-key")
        self.service.store(self.entry(key_id), "fernet-key", key)


@pytest.fixture
def kept(secret_service: SecretService, tmp_path: Path) -> Kept:
    path = tmp_path / "samsara.db"
    init(path)
    with Vault.open(path) as vault:
        vault.set("smtp", "password", VALUE)
    made = Kept(path, secret_service)
    assert made.entries() == [made.entry(made.active())]
    return made


# --- one situation after the other


class Situation(NamedTuple):
    """What is wrong (done to the service, or in the environment), and what the vault must say."""

    error: str
    status: int
    advice: str
    harm: Callable[[SecretService], object] = lambda service: None
    mend: Callable[[SecretService], object] = lambda service: None
    env: dict[str, str | None] = {}


def _refused(backend: str) -> Situation:
    return Situation("KeyringRefused", 12, f"unset {BACKEND}", env={BACKEND: backend})


@contextlib.contextmanager
def new_bus(service: SecretService) -> Iterator[None]:
    """A bus at the address of the one that was killed."""
    bus = subprocess.Popen(
        ["dbus-daemon", "--nofork", "--nopidfile", f"--config-file={service.folder}/bus.conf"]
    )
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{service.folder}/bus")
                break
            time.sleep(0.02)
        service.start()
        yield
        service.kill()
    finally:
        bus.kill()
        bus.wait()


NO_ANSWER = (
    "unlock or start the system's keyring; on a machine without one, use a key directory (--key-dir"
)
SITUATIONS = {
    "locked": Situation(
        "KeyringLocked", 13, "unlock it", lambda s: s.restart(None), lambda s: s.restart()
    ),
    "wrong password": Situation(
        "KeyringLocked",
        13,
        "unlock it",
        lambda s: s.restart("not the password"),
        lambda s: s.restart(),
    ),
    "no bus": Situation("KeyStoreUnavailable", 12, NO_ANSWER, env={BUS: None}),
    "stale bus": Situation(
        "KeyStoreUnavailable", 12, NO_ANSWER, env={BUS: "unix:path=/nonexistent/bus"}
    ),
    "daemon killed": Situation(
        "KeyStoreUnavailable", 12, NO_ANSWER, SecretService.kill, SecretService.start
    ),
    "bus killed": Situation("KeyStoreUnavailable", 12, NO_ANSWER, SecretService.kill_bus),
    "frozen": Situation(
        "KeyringTimedOut",
        13,
        "check whether its daemon hangs",
        SecretService.freeze,
        SecretService.thaw,
        {TIMEOUT: "0.5"},
    ),
    "null backend": _refused("keyring.backends.null.Keyring"),
    "fail backend": _refused("keyring.backends.fail.Keyring"),
    "plaintext backend": _refused("plaintext.PlaintextKeyring"),
    "misspelt backend": _refused("keyring.backends.SecretServce.Keyring"),
}


@pytest.mark.sweep(12)
@pytest.mark.parametrize("name", SITUATIONS)
def test_a_keyring_that_cannot_be_used_is_named_makes_no_key_and_serves_again_when_mended(
    kept: Kept, tmp_path: Path, name: str, figures: Figures
) -> None:
    situation, plain = SITUATIONS[name], tmp_path / "plain.txt"
    (tmp_path / "plaintext.py").write_text(PLAINTEXT.format(file=str(plain)))
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    env = {"PYTHONPATH": path} | situation.env
    keys, rows, entries = kept.states(), kept.rows(), kept.entries()
    situation.harm(kept.service)

    library = kept.run("-c", LIBRARY, str(kept.database), env=env)
    assert library.returncode == 0, library.stderr
    answers = json.loads(library.stdout)
    for use, (error, message, hint) in answers.items():
        assert (use, error) == (use, situation.error), message
        assert situation.advice in hint
    assert set(answers) == set(USES)

    *refused, listed = kept.vaults(*USES.values(), ["list"], env=env, text="never stored")
    for done in refused:
        failed(done, situation.status, f"vault: hint: {situation.advice}")
    # What needs no key is served meanwhile.
    assert listed.status == 0 and "key missing" in listed.out and "smtp" in listed.out
    assert (kept.states(), kept.rows()) == (keys, rows), "no key was made, and no value changed"

    with new_bus(kept.service) if name == "bus killed" else contextlib.nullcontext():
        situation.mend(kept.service)
        assert kept.entries() == entries, "no entry was made, and none is gone"
        _serves(kept)
    assert not plain.exists()
    figures("uses of a keyring that could not be had, each named, no key made", 2 * len(USES))


def _serves(kept: Kept) -> None:
    """Every use works, and only rotation makes a key."""
    before, keys = kept.active(), kept.states()
    done = kept.vaults(["get", "smtp", "password"], ["set", "smtp", "user"], ["init"], text="new")
    assert [each.status for each in done] == [0, 0, 0] and VALUE in done[0].out, done
    assert kept.states() == keys
    rotated = kept.vault("rotate")
    assert rotated.status == 0, rotated.err
    assert (
        sorted(kept.states().values()) == ["active", "retired"]
        and kept.states()[before] == "retired"
    )
    assert set(kept.entries()) == {kept.entry(key_id) for key_id in kept.states()}
    found = kept.vaults(["get", "smtp", "password"], ["get", "smtp", "user"])
    assert [each.out for each in found] == [f"{VALUE}\n", "new\n"]


@pytest.mark.parametrize("name", ["locked", "daemon killed", "null backend"])
def test_a_first_init_without_a_usable_keyring_leaves_nothing_and_is_finished_by_the_next(
    secret_service: SecretService, tmp_path: Path, name: str
) -> None:
    situation, new = SITUATIONS[name], Kept(tmp_path / "new.db", secret_service)
    secret_service.store("another program's", "somebody", "so that there is a collection to lock")
    situation.harm(secret_service)
    for _ in range(2):
        refused = new.vault("init", env=situation.env)
        assert refused.status == situation.status and situation.advice in refused.err
        assert not new.database.exists()
    situation.mend(secret_service)
    assert new.entries() == []
    done = new.vault("init")
    assert done.status == 0, done.err
    assert new.entries() == [new.entry(new.active())]
    assert new.vault("set", "smtp", "password", text="stored").status == 0


# --- the time limit


def test_a_frozen_keyring_ends_a_command_at_the_time_limit_that_was_named(kept: Kept) -> None:
    kept.service.freeze()
    begun = time.monotonic()
    assert kept.vault("get", "smtp", "password", env={TIMEOUT: "0.5"}).status == 13
    assert time.monotonic() - begun < 8, "ten seconds are the limit without it"
    kept.service.thaw()
    assert kept.vault("get", "smtp", "password", env={TIMEOUT: "30"}).out == f"{VALUE}\n"


@pytest.mark.parametrize("limit", ["", "0", "-1", "nan", "inf", "soon"])
def test_a_time_limit_that_is_none_is_a_usage_error_and_not_the_default(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    keys, rows = kept.states(), kept.rows()
    for arguments in USES.values():
        refused = kept.vault(*arguments, env={TIMEOUT: limit}, text="never stored")
        failed(refused, 2, TIMEOUT)
    assert (kept.states(), kept.rows()) == (keys, rows)
    monkeypatch.setenv(TIMEOUT, limit)
    with pytest.raises(ValueError, match=TIMEOUT):
        Vault.open(kept.database)


# --- one open vault while the keyring changes


def test_an_open_vault_outlives_the_daemon_and_is_served_by_the_next(kept: Kept) -> None:
    with Vault.open(kept.database) as used, Vault.open(kept.database) as fresh:
        assert used.get("smtp", "password").reveal() == VALUE
        kept.service.kill()
        with pytest.raises(KeyStoreUnavailable):
            fresh.get("smtp", "password")
        assert used.get("smtp", "password").reveal() == VALUE  # its key was fetched before
        with pytest.raises(KeyStoreUnavailable):
            rotation.rotate(used)
        assert list(kept.states().values()).count("active") == 1
        kept.service.start()
        assert fresh.get("smtp", "password").reveal() == VALUE
        for vault in (used, fresh):
            assert rotation.rotate(vault).complete
            assert vault.get("smtp", "password").reveal() == VALUE
        assert used.get("smtp", "password").reveal() == VALUE  # under a key that the other one made


def test_an_open_vault_says_that_the_daemon_hangs_and_is_served_after_the_thaw(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT, "2")
    with Vault.open(kept.database) as vault:
        kept.service.freeze()
        with pytest.raises(KeyringTimedOut):
            vault.get("smtp", "password")
        kept.service.thaw()
        assert vault.get("smtp", "password").reveal() == VALUE


# --- many at once


@pytest.mark.thorough
def test_sixteen_threads_that_open_and_read_at_once_meet_no_error(
    kept: Kept, figures: Figures
) -> None:
    threads, opens, faults = 16, effort(100, 3), list[str]()

    def work(number: int) -> int:
        right = 0
        for _ in range(opens):
            try:
                with Vault.open(
                    kept.database
                ) as vault:  # a vault of its own has nothing yet, and asks the keyring
                    right += vault.get("smtp", "password").reveal() == VALUE
            except Exception as error:
                faults.append(repr(error))
        return right

    with ThreadPoolExecutor(threads) as pool:
        right = sum(pool.map(work, range(threads)))
    assert faults == []
    assert right == threads * opens
    figures("opens and reads of 16 threads with a real keyring, no error", right)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_children_of_an_open_vault_read_and_write_with_a_real_keyring(
    kept: Kept, figures: Figures
) -> None:
    forking = threading.Event()

    def hold() -> None:
        with os_keyring._turn:
            held.set()
            forking.wait()

    held, holder = threading.Event(), threading.Thread(target=hold)
    with Vault.open(kept.database) as used, Vault.open(kept.database) as fresh:
        assert used.get("smtp", "password").reveal() == VALUE

        def child(number: int) -> None:
            # One has its key from the parent, the other asks for it.
            vault = fresh if number % 2 else used
            for turn in range(5):
                assert vault.get("smtp", "password").reveal() == VALUE
                vault.set("smtp", f"field-{number}", f"{number} {turn}")

        # another thread is at the keyring when they are forked, and in them it does not exist
        holder.start()
        try:
            held.wait()
            children = [forked(lambda number=number: child(number)) for number in range(8)]  # type: ignore[misc]
            assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 8
        finally:
            forking.set()
            holder.join()
        assert [used.get("smtp", f"field-{number}").reveal() for number in range(8)] == [
            f"{number} 4" for number in range(8)
        ]
        assert fresh.get("smtp", "password").reveal() == VALUE
    figures("forked children with a real keyring, no error", 8)


# --- other clients of the keyring


def test_another_client_finds_the_key_that_opens_the_value_with_any_fernet_tool(kept: Kept) -> None:
    key = kept.service.lookup(kept.entry(kept.active()), "fernet-key")
    assert key is not None
    with contextlib.closing(sqlite3.connect(kept.database)) as connection:
        [(key_id, token)] = connection.execute(
            "SELECT key_id, encrypted_value FROM provider_credentials"
        ).fetchall()
    assert key_id == kept.active()
    assert json.loads(Fernet(key).decrypt(token))["value"] == VALUE
    assert kept.vault("rotate").status == 0
    assert kept.service.lookup(kept.entry(key_id), "fernet-key") == key, (
        "the retired key is left as it is"
    )


def test_an_entry_that_another_client_replaced_is_a_wrong_key_and_no_reason_for_a_new_one(
    kept: Kept, figures: Figures
) -> None:
    active, keys, rows = kept.active(), kept.states(), kept.rows()
    right = kept.service.lookup(kept.entry(active), "fernet-key")
    assert right is not None
    wrongs = (generate_key().reveal(), right[:-1], right + " ")[: effort(3, 1)]
    for wrong in wrongs:
        kept.replace_entry(active, wrong)
        answers = json.loads(kept.run("-c", LIBRARY, str(kept.database)).stdout)
        assert {use: error for use, (error, _, _) in answers.items()} == dict.fromkeys(
            USES, WrongKey.__name__
        )
        for refused in kept.vaults(*USES.values(), text="never stored"):
            failed(refused, 12, active, "put the right key back")
            assert wrong not in refused.err
        assert (kept.states(), kept.rows()) == (keys, rows)
        assert kept.service.lookup(kept.entry(active), "fernet-key") == wrong, (
            "an entry is never overwritten"
        )
    kept.replace_entry(active, right)
    assert kept.vault("get", "smtp", "password").out == f"{VALUE}\n"
    assert kept.vault("rotate").status == 0
    figures(
        "uses of a keyring that could not be had, each named, no key made",
        len(wrongs) * 2 * len(USES),
    )
