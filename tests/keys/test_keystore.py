from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.secret_service import SecretService
from helpers.shape import NOBODY, in_child
from helpers.site import Figures

from outreach_vault import (
    KeyDirectory,
    KeyExists,
    KeyMissing,
    KeyringLocked,
    KeyringTimedOut,
    KeyStoreUnavailable,
    OSKeyring,
    Secret,
)
from outreach_vault.cipher import generate_key
from outreach_vault.keys.stores import KeyStore, os_keyring
from outreach_vault.testing import KeyStoreContract

pytestmark = pytest.mark.sweep(3)

VAULT, OTHER_VAULT = str(uuid.uuid4()), str(uuid.uuid4())
KEY, OTHER_KEY = str(uuid.uuid4()), str(uuid.uuid4())


def python(code: str, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """
    A second process; `env` beside the environment of this one, PYTHONPATH before what is there.
    """
    if "PYTHONPATH" in env and "PYTHONPATH" in os.environ:
        env["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=60)


# --- the contract, and both stores under it


class TestKeyDirectory(KeyStoreContract):
    @pytest.fixture
    def store(self, key_dir: KeyDirectory) -> KeyStore:
        return key_dir

    @pytest.fixture
    def again(self, key_dir: KeyDirectory) -> KeyStore:
        return KeyDirectory(key_dir.path)

    @pytest.fixture
    def unreachable(self, key_dir: KeyDirectory) -> KeyStore:
        key_dir.path.write_text("a file in the folder's place")
        key_dir.path.chmod(0o600)
        return key_dir


@pytest.mark.usefixtures("impatient")
class TestOSKeyring(KeyStoreContract):
    """With a real Secret Service."""

    @pytest.fixture
    def store(self, secret_service: SecretService) -> KeyStore:
        return OSKeyring()

    @pytest.fixture
    def again(self, secret_service: SecretService) -> KeyStore:
        return OSKeyring()

    @pytest.fixture
    def unreachable(self, store: KeyStore, secret_service: SecretService) -> KeyStore:
        store.write(VAULT, KEY, generate_key())
        secret_service.kill()
        return store

    @pytest.fixture
    def slow(self, secret_service: SecretService) -> KeyStore:
        OSKeyring().write(VAULT, KEY, generate_key())
        secret_service.freeze()
        return OSKeyring(seconds=0.2)


# --- key directory


def modes(folder: Path) -> dict[str, str]:
    return {
        path.name if path != folder else ".": oct(path.lstat().st_mode & 0o7777)
        for path in (folder, *folder.iterdir())
    }


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
def test_folder_is_0700_and_key_0600_under_any_umask(key_dir: KeyDirectory, mask: int) -> None:
    with umask(mask):
        key_dir.write(VAULT, KEY, generate_key())
    assert modes(key_dir.path) == {".": "0o700", f"{VAULT}.{KEY}.key": "0o600"}


# Root is not bound by modes, so that a chmod that came too late would not be noticed there.
@pytest.mark.parametrize("mask", [0, 0o777])
def test_an_ordinary_user_writes_and_reads_under_any_umask(
    ordinary_folder: Path, mask: int
) -> None:
    keys, key = KeyDirectory(ordinary_folder / "keys"), generate_key()

    def work() -> bool:
        os.umask(mask)
        keys.write("v", "k", key)
        return keys.read("v", "k") == key

    assert in_child(work, ordinary=True) == (0, "True")
    assert modes(keys.path) == {".": "0o700", "v.k.key": "0o600"}


@pytest.fixture
def ordinary_folder() -> Iterator[Path]:
    """
    A folder that belongs to an ordinary user; pytest's own are closed to it where root runs the
    tests.
    """
    with tempfile.TemporaryDirectory(prefix="ov", dir="/tmp") as name:
        if os.geteuid() == 0:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)


def test_a_key_is_private_from_its_first_byte(
    key_dir: KeyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        seen.append(oct(os.fstat(descriptor).st_mode & 0o777))
        fsync(descriptor)

    opened: list[int] = []
    real_open = os.open

    def note(path: str | Path, flags: int, mode: int = 0o777, **more: int) -> int:
        if flags & os.O_CREAT:
            opened.append(mode)
        return real_open(path, flags, mode, **more)

    monkeypatch.setattr(os, "fsync", look)
    monkeypatch.setattr(os, "open", note)
    with umask(0):
        key_dir.write(VAULT, KEY, generate_key())
    assert opened == [0o600]
    above = oct(key_dir.path.parent.stat().st_mode & 0o777)
    assert seen == [
        above,
        "0o600",
        "0o700",
    ]  # the new folder's name is synced, then the file, then the folder that holds its name


def test_a_folder_that_another_writer_made_meanwhile_is_used(
    key_dir: KeyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_dir.path.mkdir(mode=0o700)
    monkeypatch.setattr(KeyDirectory, "_is_made", lambda _: False)  # as it was a moment ago
    key_dir.write(VAULT, KEY, key := generate_key())
    assert key_dir.read(VAULT, KEY) == key


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o710, 0o701, 0o770, 0o777, 0o1777])
def test_a_folder_that_lets_others_in_is_refused_with_the_way_to_mend_it(
    key_dir: KeyDirectory, mode: int
) -> None:
    key = generate_key()
    key_dir.write(VAULT, KEY, key)
    key_dir.path.chmod(mode)
    for use in (
        lambda: key_dir.read(VAULT, KEY),
        lambda: key_dir.write(VAULT, OTHER_KEY, generate_key()),
    ):
        with pytest.raises(
            KeyStoreUnavailable, match=f"mode {mode:04o} lets other users in"
        ) as caught:
            use()
        assert str(caught.value.hint).endswith(f"chmod go= '{key_dir.path}'")
    assert len(list(key_dir.path.iterdir())) == 1
    subprocess.run(["chmod", "go=", key_dir.path], check=True)  # the advice, taken
    assert key_dir.read(VAULT, KEY) == key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o666])
def test_a_key_file_that_lets_others_in_is_refused_with_the_way_to_mend_it(
    key_dir: KeyDirectory, mode: int
) -> None:
    key_dir.write(VAULT, KEY, generate_key())
    file = key_dir.path / f"{VAULT}.{KEY}.key"
    file.chmod(mode)
    with pytest.raises(KeyStoreUnavailable, match=f"mode {mode:04o} lets other users in") as caught:
        key_dir.read(VAULT, KEY)
    assert str(caught.value.hint).endswith(f"chmod go= '{file}'")
    subprocess.run(["chmod", "go=", file], check=True)
    assert key_dir.read(VAULT, KEY)


def test_a_symlinked_key_file_is_refused(key_dir: KeyDirectory, tmp_path: Path) -> None:
    key_dir.write(VAULT, KEY, generate_key())
    (tmp_path / "elsewhere").write_text("planted")
    (tmp_path / "elsewhere").chmod(0o600)
    (key_dir.path / f"{VAULT}.{OTHER_KEY}.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyStoreUnavailable):
        key_dir.read(VAULT, OTHER_KEY)


@pytest.mark.parametrize("dangling", [True, False])
def test_a_planted_symlink_is_never_written_through(
    key_dir: KeyDirectory, tmp_path: Path, dangling: bool
) -> None:
    key_dir.path.mkdir(mode=0o700)
    target = tmp_path / "elsewhere"
    if not dangling:
        target.write_text("before")
    (key_dir.path / f"{VAULT}.{KEY}.key").symlink_to(target)
    with pytest.raises(KeyExists):
        key_dir.write(VAULT, KEY, generate_key())
    assert (target.read_text() if target.exists() else None) == (None if dangling else "before")


def test_a_key_file_that_is_a_folder_or_not_text_does_not_crash(key_dir: KeyDirectory) -> None:
    key_dir.path.mkdir(mode=0o700)
    (key_dir.path / f"{VAULT}.{KEY}.key").mkdir(mode=0o700)
    with pytest.raises(KeyStoreUnavailable):
        key_dir.read(VAULT, KEY)
    other = key_dir.path / f"{VAULT}.{OTHER_KEY}.key"
    other.write_bytes(b"\xff\x00" * 5000)
    other.chmod(0o600)
    # No key, which its check value then tells.
    assert len(key_dir.read(VAULT, OTHER_KEY).reveal()) <= 1024


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("which", ["folder", "file"])
def test_what_belongs_to_another_user_is_refused(key_dir: KeyDirectory, which: str) -> None:
    key_dir.write(VAULT, KEY, generate_key())
    path = key_dir.path if which == "folder" else key_dir.path / f"{VAULT}.{KEY}.key"
    os.chown(path, 65534, 65534)
    with pytest.raises(
        KeyStoreUnavailable, match=f"{re.escape(str(path))}: belongs to another user"
    ) as caught:
        key_dir.read(VAULT, KEY)
    assert "must belong to the user" in str(caught.value.hint)


def test_a_missing_folder_is_named_and_not_made_by_a_read(key_dir: KeyDirectory) -> None:
    with pytest.raises(
        KeyStoreUnavailable, match=f"{re.escape(str(key_dir.path))}: there is no such folder"
    ) as caught:
        key_dir.read(VAULT, KEY)
    assert "--key-dir" in str(caught.value.hint)
    key_dir.delete(VAULT, KEY)
    assert not key_dir.path.exists()


def test_a_missing_folder_above_is_not_made_by_a_write(tmp_path: Path) -> None:
    with pytest.raises(KeyStoreUnavailable, match="No such file"):
        KeyDirectory(tmp_path / "not mounted" / "keys").write(VAULT, KEY, generate_key())
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("")
    (tmp_path / "keys").chmod(0o600)
    for use in (
        lambda d: d.read(VAULT, KEY),
        lambda d: d.write(VAULT, KEY, generate_key()),
        lambda d: d.delete(VAULT, KEY),
    ):
        with pytest.raises(KeyStoreUnavailable, match="Not a directory"):
            use(KeyDirectory(tmp_path / "keys"))


def test_a_read_only_folder_is_read_by_an_ordinary_user_and_not_written(
    ordinary_folder: Path,
) -> None:
    keys, key = KeyDirectory(ordinary_folder / "keys"), generate_key()
    assert in_child(lambda: keys.write("v", "k", key), ordinary=True) == (0, "None")
    (keys.path / "v.k.key").chmod(0o400)
    keys.path.chmod(0o500)
    assert in_child(lambda: keys.read("v", "k") == key, ordinary=True) == (0, "True")
    refused = in_child(lambda: keys.write("v", "other", key), ordinary=True)[1]
    assert re.search(
        f"KeyStoreUnavailable: {re.escape(str(keys.path))}.*: Permission denied", refused
    )
    assert modes(keys.path) == {".": "0o500", "v.k.key": "0o400"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder that is another's")
def test_a_folder_of_root_alone_is_read_by_nobody_else(ordinary_folder: Path) -> None:
    keys = KeyDirectory(ordinary_folder / "keys")
    keys.write("v", "k", generate_key())
    assert "Permission denied" in in_child(lambda: keys.read("v", "k"), ordinary=True)[1]


@pytest.mark.parametrize("bad", ["../x", "..", "x/y", "x\\y", "x.y", "x\0y", " ", "x\n", "~", "*"])
@pytest.mark.parametrize("vault_is_bad", [True, False])
def test_an_id_that_is_not_one_never_reaches_the_file_system(
    tmp_path: Path, bad: str, vault_is_bad: bool
) -> None:
    key_dir = KeyDirectory(tmp_path / "a" / "keys")
    (tmp_path / "a").mkdir()
    key_dir.write(VAULT, KEY, generate_key())
    planted = {
        tmp_path / "a" / f"{name}.key" for name in ("x", f"x.{KEY}", f"{VAULT}.x")
    }  # where `../x` would lead
    for path in planted:
        path.write_text("planted")
        path.chmod(0o600)
    before = sorted(tmp_path.rglob("*"))
    name = (bad, KEY) if vault_is_bad else (VAULT, bad)
    for use in (
        lambda: key_dir.read(*name),
        lambda: key_dir.write(*name, generate_key()),
        lambda: key_dir.delete(*name),
    ):
        with pytest.raises(KeyMissing, match="id that cannot be one"):
            use()
    assert sorted(tmp_path.rglob("*")) == before


KILLED_WRITE = """
import os, signal, sys
from outreach_vault import KeyDirectory, Secret
calls = 0
COUNTED = (os.open, os.chmod, os.fsync, os.link, os.unlink, os.mkdir)
def die(frame, event, argument):
    global calls
    if event == "c_call" and argument in COUNTED:
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(die)
KeyDirectory(sys.argv[1]).write("v", "k", Secret(sys.argv[3]))
sys.setprofile(None)
"""


def test_a_write_killed_at_any_step_leaves_the_whole_key_or_none_and_can_be_cleared(
    tmp_path: Path,
) -> None:
    key = generate_key()
    outcomes = []
    for step in range(1, 30):
        key_dir = KeyDirectory(tmp_path / str(step))
        done = python(KILLED_WRITE, key_dir.path, step, key.reveal())
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        try:
            assert key_dir.read("v", "k") == key
            outcomes.append("whole")
        except (KeyMissing, KeyStoreUnavailable) as error:
            outcomes.append(type(error).__name__)
        key_dir.delete("v", "k")
        assert not key_dir.path.exists() or list(key_dir.path.iterdir()) == []
        key_dir.write("v", "k", key)
        assert key_dir.read("v", "k") == key
    else:
        pytest.fail("the write never came to its end")
    assert set(outcomes) == {
        "KeyStoreUnavailable",
        "KeyMissing",
        "whole",
    }  # in this order: no folder, no key, all of it
    assert outcomes == sorted(outcomes, key=["KeyStoreUnavailable", "KeyMissing", "whole"].index)


def test_what_an_interrupted_write_left_is_never_seen_as_a_key(key_dir: KeyDirectory) -> None:
    key_dir.path.mkdir(mode=0o700)
    part = key_dir.path / f"{VAULT}.{KEY}.key.0000.part"
    part.write_text(generate_key().reveal())
    part.chmod(0o600)
    with pytest.raises(KeyMissing, match=KEY):
        key_dir.read(VAULT, KEY)
    key_dir.write(VAULT, KEY, generate_key())  # it is in nobody's way
    assert part.exists()
    key_dir.delete(VAULT, KEY)
    assert list(key_dir.path.iterdir()) == []


def test_a_write_removes_what_killed_writes_left_and_nothing_of_one_that_goes_on(
    key_dir: KeyDirectory,
) -> None:
    key_dir.path.mkdir(mode=0o700)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for writer in (dead.pid, os.getpid(), os.getppid()):
        (key_dir.path / f"{VAULT}.{OTHER_KEY}.key.0000.{writer}.part").write_text("a part")
    key_dir.write(VAULT, KEY, generate_key())
    assert {file.name.split(".")[-2] for file in key_dir.left_over()} == {
        str(os.getpid()),
        str(os.getppid()),
    }
    assert key_dir.holds(VAULT, KEY)


def test_of_two_processes_that_write_one_entry_one_wins(key_dir: KeyDirectory) -> None:
    key_dir.path.mkdir(mode=0o700)
    code = (
        "import sys; from outreach_vault import KeyDirectory, KeyExists, Secret; sys.stdin.read()\n"
        "try: KeyDirectory(sys.argv[1]).write('v', 'k', Secret(sys.argv[2])); print(sys.argv[2])\n"
        "except KeyExists: print('refused')"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, key_dir.path, f"key-{n}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()  # the starting shot
        writer.stdin = None
    answers = [writer.communicate(timeout=60)[0].strip() for writer in writers]
    winners = [answer for answer in answers if answer != "refused"]
    assert winners == [key_dir.read("v", "k").reveal()]


# --- OS keyring, on a real Secret Service


def test_another_client_sees_the_same_entry(secret_service: SecretService) -> None:
    key = generate_key()
    OSKeyring().write(VAULT, KEY, key)
    assert secret_service.lookup(f"outreach-vault/{VAULT}/{KEY}", "fernet-key") == key.reveal()
    OSKeyring().delete(VAULT, KEY)
    assert secret_service.lookup(f"outreach-vault/{VAULT}/{KEY}", "fernet-key") is None


def test_keyring_in_use_is_named(secret_service: SecretService) -> None:
    keyring = OSKeyring()
    assert keyring.name == "OS keyring"
    keyring.write(VAULT, KEY, generate_key())
    assert keyring.name == "OS keyring (Secret Service)"


@pytest.mark.parametrize("password", [None, "not the password"])
def test_a_locked_keyring_says_so_and_opens_when_unlocked(
    secret_service: SecretService, password: str | None
) -> None:
    key = generate_key()
    used = OSKeyring()
    used.write(VAULT, KEY, key)
    secret_service.restart(password)
    for keyring in (used, OSKeyring()):
        for use in uses(keyring):
            with pytest.raises(KeyringLocked, match="locked") as caught:
                use()
            assert "unlock it" in str(caught.value.hint)
    secret_service.restart()
    assert_untouched(secret_service, used, key)


def uses(keyring: OSKeyring) -> list[Callable[[], object]]:
    """Everything that a store does; a write is of a key that is not there yet."""
    return [
        lambda: keyring.read(VAULT, KEY),
        lambda: keyring.write(VAULT, OTHER_KEY, generate_key()),
        lambda: keyring.delete(VAULT, KEY),
    ]


def assert_untouched(service: SecretService, keyring: OSKeyring, key: Secret) -> None:
    """The same object works again, and what failed has changed nothing."""
    assert keyring.read(VAULT, KEY) == key
    assert service.lookup(f"outreach-vault/{VAULT}/{OTHER_KEY}", "fernet-key") is None


@pytest.mark.parametrize("fresh", [True, False])
def test_a_frozen_keyring_times_out_and_is_usable_again_after_thaw(
    secret_service: SecretService, fresh: bool
) -> None:
    key = generate_key()
    keyring = OSKeyring(seconds=1)
    keyring.write(VAULT, KEY, key)
    secret_service.freeze()
    asked = OSKeyring(seconds=1) if fresh else keyring  # a fresh one has its backend to find, too
    finished = threading.Event()

    def read() -> None:
        with pytest.raises(KeyringTimedOut, match="no answer within the time limit") as caught:
            asked.read(VAULT, KEY)
        assert "daemon hangs" in str(caught.value.hint)
        finished.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    # Far above the limit: this is about for ever, not about a second.
    assert finished.wait(30), "a frozen daemon blocks for ever"
    secret_service.thaw()
    assert asked.read(VAULT, KEY) == key


def test_a_keyring_that_dies_is_unavailable_until_it_is_restarted(
    secret_service: SecretService,
) -> None:
    key = generate_key()
    used = OSKeyring()
    used.write(VAULT, KEY, key)
    secret_service.kill()
    for use in (lambda: used.read(VAULT, KEY), *uses(OSKeyring())):
        assert_unavailable(use)
    secret_service.start()
    assert_untouched(secret_service, used, key)


def test_a_fault_that_passes_is_not_seen_by_the_caller(secret_service: SecretService) -> None:
    key = generate_key()
    keyring = OSKeyring(seconds=60)
    keyring.write(VAULT, KEY, key)
    secret_service.kill()
    pauses = []
    with pytest.MonkeyPatch.context() as patch:

        def mend_meanwhile(seconds: float) -> None:
            pauses.append(seconds)
            patch.undo()
            secret_service.start()

        # What passes in the pause before the second try is up to this test.
        patch.setattr(time, "sleep", mend_meanwhile)
        assert keyring.read(VAULT, KEY) == key
    assert len(pauses) == 1


def test_a_write_whose_answer_was_lost_is_no_second_write(
    secret_service: SecretService, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keyring.backends.SecretService import Keyring

    real, faults = Keyring.set_password, [OSError("the answer was lost")]

    def stored_and_lost(self: Keyring, service: str, username: str, password: str) -> None:
        real(self, service, username, password)
        if faults:
            raise faults.pop()

    monkeypatch.setattr(Keyring, "set_password", stored_and_lost)
    keyring, key = OSKeyring(seconds=60), generate_key()
    keyring.write(VAULT, KEY, key)
    assert keyring.read(VAULT, KEY) == key and not faults


def assert_unavailable(use: Callable[[], object]) -> None:
    with pytest.raises(KeyStoreUnavailable) as caught:
        use()
    assert type(caught.value) is KeyStoreUnavailable
    assert "--key-dir" in str(caught.value.hint)


def test_a_killed_bus_is_unavailable(secret_service: SecretService) -> None:
    used = OSKeyring()
    used.write(VAULT, KEY, generate_key())
    secret_service.kill_bus()
    for keyring in (used, OSKeyring()):
        assert_unavailable(lambda keyring=keyring: keyring.read(VAULT, KEY))


@pytest.mark.peer
@pytest.mark.parametrize(
    "address", [None, "unix:path=/nonexistent/bus", "", "nonsense", "tcp:host=127.0.0.1,port=1"]
)
def test_no_bus_or_a_stale_address_is_unavailable(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(
        "secretstorage", reason="only systems with a Secret Service have a bus to miss"
    )
    if address is not None:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    for use in uses(OSKeyring()):
        assert_unavailable(use)


def test_a_daemon_that_has_no_collection_and_cannot_ask_is_unavailable(
    secret_service: SecretService, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SecretService(password=None) as empty:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", empty.env["DBUS_SESSION_BUS_ADDRESS"])
        assert_unavailable(lambda: OSKeyring().write(VAULT, KEY, generate_key()))
        assert empty.lookup(f"outreach-vault/{VAULT}/{KEY}", "fernet-key") is None


PLAINTEXT = """
import keyring.backend
class PlaintextKeyring(keyring.backend.KeyringBackend):
    priority = 9
    def get_password(self, service, username):
        return None
    def set_password(self, service, username, password):
        open({file!r}, "w").write(password)
"""
USE = """
import sys
from outreach_vault import KeyUnavailable, OSKeyring, Secret
for use in (
    lambda: k.read("v", "there"),
    lambda: k.write("v", "new", Secret("canary")),
    lambda: k.delete("v", "there"),
):
    k = OSKeyring(seconds=5)
    try:
        use()
        print("done")
    except KeyUnavailable as error:
        print(type(error).__name__, error, error.hint, sep=" | ")
"""


@pytest.fixture
def canary_backend(tmp_path: Path) -> Path:
    """A module `plaintext` in the manner of keyrings.alt, and where its file would be."""
    (tmp_path / "plaintext.py").write_text(PLAINTEXT.format(file=str(tmp_path / "plain.txt")))
    return tmp_path / "plain.txt"


def assert_refused(named: str, service: SecretService, canary: Path, **env: str) -> None:
    """
    Refused by name with a way out; and the Secret Service, which is there and unlocked, is not used
    instead.
    """
    service.store("outreach-vault/v/there", "fernet-key", "before")
    done = python(USE, PYTHONPATH=str(canary.parent), **env)
    answers = done.stdout.splitlines()
    assert (done.stderr, len(answers)) == ("", 3)
    for answer in answers:
        kind, text, hint = answer.split(" | ")
        assert (kind, named in text) == ("KeyringRefused", True), answer
        assert "PYTHON_KEYRING_BACKEND" in hint
        assert "--key-dir" in hint
    assert service.lookup("outreach-vault/v/there", "fernet-key") == "before"
    assert service.lookup("outreach-vault/v/new", "fernet-key") is None
    assert not canary.exists()


@pytest.mark.parametrize(
    ("backend", "named"),
    [
        ("keyring.backends.null.Keyring", "keyring.backends.null.Keyring"),
        ("keyring.backends.fail.Keyring", "keyring.backends.fail.Keyring"),
        ("plaintext.PlaintextKeyring", "plaintext.PlaintextKeyring"),
        ("keyring.backends.SecretServce.Keyring", "'keyring.backends.SecretServce.Keyring'"),
        ("keyring.backends.SecretService.Keyrign", "'keyring.backends.SecretService.Keyrign'"),
        ("Keyring", "'Keyring'"),
        ("", "''"),
    ],
)
def test_a_backend_that_keeps_no_secret_is_refused_by_name(
    secret_service: SecretService, canary_backend: Path, backend: str, named: str, figures: Figures
) -> None:
    assert_refused(named, secret_service, canary_backend, PYTHON_KEYRING_BACKEND=backend)
    figures("keyring backends that keep no secret, each refused by name", 1)


@pytest.mark.parametrize(
    "backend",
    [
        "keyring.backends.null.Keyring",
        "keyring.backends.fail.Keyring",
        "plaintext.PlaintextKeyring",
    ],
)
def test_keyringrc_is_held_to_the_same_list(
    secret_service: SecretService, canary_backend: Path, backend: str
) -> None:
    configure(secret_service, backend)
    assert_refused(backend, secret_service, canary_backend)


@pytest.mark.parametrize("backend", ["keyring.backends.SecretServce.Keyring", ""])
def test_a_misspelt_backend_in_keyringrc_is_no_reason_to_use_another(
    secret_service: SecretService, canary_backend: Path, backend: str
) -> None:
    configure(secret_service, backend)
    secret_service.store("outreach-vault/v/there", "fernet-key", "before")
    done = python("import plaintext\n" + USE, PYTHONPATH=str(canary_backend.parent))
    kinds = [answer.split(" | ")[0] for answer in done.stdout.splitlines()]
    assert (len(kinds), done.stderr) == (3, "")
    assert set(kinds) == {"KeyringRefused"}
    assert secret_service.lookup("outreach-vault/v/there", "fernet-key") == "before"
    assert secret_service.lookup("outreach-vault/v/new", "fernet-key") is None
    assert not canary_backend.exists()


def configure(service: SecretService, backend: str) -> None:
    config = Path(service.env["XDG_CONFIG_HOME"]) / "python_keyring" / "keyringrc.cfg"
    config.parent.mkdir(parents=True)
    config.write_text(f"[backend]\ndefault-keyring={backend}\n")


@pytest.mark.parametrize("configured_by", ["environment", "file"])
def test_the_approved_backend_inside_a_chainer_is_used(
    secret_service: SecretService, canary_backend: Path, configured_by: str
) -> None:
    secret_service.store("outreach-vault/v/there", "fernet-key", "before")
    chainer = "keyring.backends.chainer.ChainerBackend"
    if configured_by == "file":
        configure(secret_service, chainer)
    env = {"PYTHON_KEYRING_BACKEND": chainer} if configured_by == "environment" else {}
    # The plaintext backend has a higher priority: the chainer itself would write there.
    done = python("import plaintext\n" + USE, PYTHONPATH=str(canary_backend.parent), **env)
    assert (done.stdout.splitlines(), done.stderr) == (["done"] * 3, "")
    assert secret_service.lookup("outreach-vault/v/new", "fernet-key") == "canary"
    assert secret_service.lookup("outreach-vault/v/there", "fernet-key") is None
    assert not canary_backend.exists()


def test_a_chainer_without_an_approved_backend_is_refused(canary_backend: Path) -> None:
    env = {
        "PYTHON_KEYRING_BACKEND": "keyring.backends.chainer.ChainerBackend",
        "PYTHONPATH": str(canary_backend.parent),
    }
    answers = python("import plaintext\n" + USE, **env).stdout.splitlines()
    assert [answer.split(" | ")[0] for answer in answers] == ["KeyringRefused"] * 3
    assert "keyring.backends.chainer.ChainerBackend" in answers[0]
    assert not canary_backend.exists()


def test_the_platforms_own_backend_may_be_named(
    secret_service: SecretService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.SecretService.Keyring")
    key = generate_key()
    OSKeyring().write(VAULT, KEY, key)
    assert secret_service.lookup(f"outreach-vault/{VAULT}/{KEY}", "fernet-key") == key.reveal()
    secret_service.kill()
    assert_unavailable(lambda: OSKeyring().read(VAULT, KEY))  # unreachable is not refused


# --- many at once


@pytest.mark.thorough
def test_sixteen_threads_read_one_at_a_time_and_without_a_fault(
    secret_service: SecretService, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    inside, most = 0, 0
    from keyring.backends.SecretService import Keyring

    real = Keyring.get_password

    def counted(self: Keyring, service: str, username: str) -> str | None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return real(self, service, username)
        finally:
            inside -= 1

    # Simultaneous calls fail only now and then, so that no fault alone would not show that there
    # were none.
    monkeypatch.setattr(Keyring, "get_password", counted)
    keys = {str(uuid.uuid4()): generate_key() for _ in range(4)}
    one = OSKeyring(seconds=60)
    for key_id, key in keys.items():
        one.write(VAULT, key_id, key)

    def read(thread: int) -> list[bool]:
        # The turn is the process's, not the object's.
        keyring = one if thread % 2 else OSKeyring(seconds=60)
        return [
            keyring.read(VAULT, key_id) == key for _ in range(2) for key_id, key in keys.items()
        ]

    with ThreadPoolExecutor(16) as pool:
        results = [answer for answers in pool.map(read, range(16)) for answer in answers]
    assert results == [True] * 16 * 8
    assert most == 1
    figures("reads of 16 threads from a real keyring, no error", len(results))


FORKS = """
import os, sys, threading
from outreach_vault import OSKeyring
from outreach_vault.keys.stores import os_keyring
keyring = OSKeyring(seconds=5)
keyring.read("v", "k")
held, done = threading.Event(), threading.Event()
def hold():
    with os_keyring._turn:
        held.set()
        done.wait()
if sys.argv[1] == "held":
    threading.Thread(target=hold, daemon=True).start()
    held.wait()
children = []
for number in range(8):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            asked = keyring if number % 2 else OSKeyring(seconds=5)
            status = 0 if asked.read("v", "k").reveal() == "a key" else 2
        finally:
            os._exit(status)
    children.append(child)
statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
done.set()
print(statuses, keyring.read("v", "k").reveal())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("turn", ["free", "held"])
def test_forked_children_read_even_when_another_thread_had_the_turn(
    secret_service: SecretService, turn: str
) -> None:
    OSKeyring().write("v", "k", Secret("a key"))
    done = python(FORKS, turn)
    assert done.stdout == f"{[0] * 8} a key\n", done.stderr


def test_a_turn_that_never_ends_times_out_for_the_others(secret_service: SecretService) -> None:
    key = generate_key()
    OSKeyring().write(VAULT, KEY, key)
    with ThreadPoolExecutor(1) as pool:
        with os_keyring._turn, pytest.raises(KeyringTimedOut, match="time limit"):
            pool.submit(OSKeyring(seconds=0.2).read, VAULT, KEY).result()
        assert pool.submit(OSKeyring().read, VAULT, KEY).result() == key


# --- what is loaded


LOADED = (
    "; print(*sorted(name for name in sys.modules if name.partition('.')[0] in ('keyring', "
    "'secretstorage', 'jeepney', 'dbus')))"
)


def test_importing_the_package_imports_no_keyring() -> None:
    done = python(
        "import sys, outreach_vault, outreach_vault.keys.stores; "
        "outreach_vault.keys.stores.choose()" + LOADED
    )
    assert (done.stdout, done.stderr) == ("\n", "")


def test_using_a_key_directory_imports_no_keyring(key_dir: KeyDirectory) -> None:
    key_dir.write("v", "k", Secret("a key"))
    done = python(
        "import sys; from outreach_vault.keys.stores import choose; choose(sys.argv[1]).read('v', "
        "'k')" + LOADED,
        key_dir.path,
    )
    assert (done.stdout, done.stderr) == ("\n", "")


def test_using_the_keyring_imports_only_the_platforms_own_backend(
    secret_service: SecretService,
) -> None:
    OSKeyring().write("v", "k", Secret("a key"))
    plain = python(
        "import sys, keyring.core" + LOADED
    ).stdout.split()  # what the library itself cannot do without
    done = python(
        "import sys; from outreach_vault import OSKeyring; OSKeyring().read('v', 'k')" + LOADED
    )
    backends = {name for name in done.stdout.split() if name.startswith("keyring.backends.")}
    assert backends - set(plain) == {"keyring.backends.SecretService"}
    assert "keyring.backends.fail" in backends
    assert len(backends) == 2


def test_using_the_keyring_starts_no_process(secret_service: SecretService) -> None:
    OSKeyring().write("v", "k", Secret("a key"))
    hook = (
        "sys.addaudithook(lambda event, args: event in ('subprocess.Popen', 'os.system', "
        "'os.posix_spawn', 'os.exec') and print(event))"
    )
    done = python(
        f"import sys; {hook}; from outreach_vault import OSKeyring; OSKeyring().read('v', 'k'); "
        "print('read')"
    )
    assert (done.stdout, done.stderr) == ("read\n", "")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize(
    ("owner", "group", "readable"), [(0, 0, True), (0, 4, False), (NOBODY - 1, 0, False)]
)
def test_what_root_opens_to_a_service_is_read_as_systemd_shows_it(
    owner: int, group: int, readable: bool
) -> None:
    with tempfile.TemporaryDirectory() as above:
        os.chmod(above, 0o755)
        store = KeyDirectory(Path(above) / "keys")
        store.write(VAULT, KEY, key := generate_key())
        (file,) = store.path.iterdir()
        for path, mode in ((file, 0o440), (store.path, 0o550)):
            os.chown(path, owner, group)
            os.chmod(path, mode)

        def service() -> bool:
            os.setgroups([])
            # An access list is not to be had on every file system; its mask shows as these bits.
            os.setgid(group)
            os.setuid(NOBODY)
            return store.read(VAULT, KEY) == key

        status, said = in_child(service)
    assert (status, said == "True", "lets other users in" in said) == (0, readable, not readable), (
        said
    )
