"""
What a machine, a file system or another user does to the vault: each fault has its name, and
nothing is left half-made.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import pwd
import re
import resource
import shutil
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from helpers.commands import QUICK, failed, process, run
from helpers.effort import THOROUGH
from helpers.site import Figures, Site, entries, new_site, nothing_left_open, sql

from outreach_vault import (
    KeyDirectory,
    KeyInUse,
    KeyStoreUnavailable,
    OSKeyring,
    Secret,
    StorageError,
    UnusablePath,
    Vault,
    VaultError,
    WeakStorage,
    files,
)
from outreach_vault.database import locate
from outreach_vault.database.sqlite.files import app_path
from outreach_vault.keys.stores import choose
from outreach_vault.operations.doctor import examine
from outreach_vault.operations.init import init
from outreach_vault.operations.recovery import backup, export_keys, import_keys
from outreach_vault.operations.rotation import destroy, rotate
from outreach_vault.operations.status import status

pytestmark = pytest.mark.sweep(5)

PASSPHRASE = Secret("words of a phrase")
NOBODY = "~no-such-user/samsara.db"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outreach_vault.keys.passphrase._ARGON2ID", QUICK)


# Paths


def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> NoReturn:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def open_vault(path: str) -> None:
    Vault.open(path, key_store=KeyDirectory("/nowhere")).close()


@pytest.mark.parametrize("use", [locate, choose, KeyDirectory, open_vault, examine])
@pytest.mark.parametrize(
    "path", ["", NOBODY, "~/samsara.db", "samsara.db\r", "sams\tara.db", "\x7f.db"]
)
def test_a_path_that_names_no_place_is_an_error_of_ours(
    use: Callable[[str], Any], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    homeless(monkeypatch)
    with pytest.raises(UnusablePath) as caught:
        use(path)
    assert caught.value.hint


@pytest.mark.parametrize("home", ["", "relative"])
def test_a_home_that_is_empty_or_relative_is_none(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    with pytest.raises(UnusablePath):
        app_path()


def test_without_a_home_the_command_says_what_to_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = (
        "import pwd, sys; pwd.getpwuid = {}.__getitem__; from outreach_vault.command.cli import "
        "run; sys.exit(run(['list']))"
    )
    env = {name: text for name, text in os.environ.items() if name != "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and "--db, OUTREACH_VAULT_DB" in done.stderr, done
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_name_begins_with_a_tilde_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(locate("./~old.db")) == str(tmp_path / "~old.db")


@pytest.mark.parametrize("named", ["conf", "~/.config", "./conf"])
def test_a_configuration_folder_that_is_not_absolute_is_ignored_as_its_specification_says(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", named)
    monkeypatch.setattr(sys, "platform", "linux")
    assert app_path() == Path(os.environ["HOME"], ".config", "Samsara", "samsara.db")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/conf")
    assert app_path() == Path("/etc/conf/Samsara/samsara.db")


def test_a_path_with_a_windows_line_end_makes_no_second_database(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(site.folder.iterdir())
    monkeypatch.setenv("OUTREACH_VAULT_DB", f"{site.database}\r")
    done = subprocess.run(
        [sys.executable, "-m", "outreach_vault", "init"], capture_output=True, text=True
    )
    what = "line end" if site.engine is None else "control character"
    assert done.returncode == 2 and what in done.stderr, done
    assert sorted(site.folder.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [("list",), ("--db", "x.db", "init"), ("--key-dir", "k", "status"), ("backup", "b")],
)
def test_a_current_folder_that_was_deleted_is_said(
    arguments: tuple[str, ...], site: Site, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    env = os.environ | {
        "OUTREACH_VAULT_DB": str(site.database),
        "OUTREACH_VAULT_KEY_DIR": str(site.keys),
    }
    script = (
        "import os, runpy, sys; os.rmdir(os.getcwd()); runpy.run_module('outreach_vault', "
        "run_name='__main__')"
    )
    env["PYTHONPATH"], env["PYTHONSAFEPATH"] = os.pathsep.join(filter(None, sys.path)), "1"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=env,
        cwd=gone,
        capture_output=True,
        text=True,
    )
    expected = 0 if arguments == ("list",) else 2
    assert done.returncode == expected and "a bug" not in done.stderr, done
    assert expected == 0 or "current folder" in done.stderr


@pytest.mark.thorough
def test_commands_work_without_docstrings_and_assertions(tmp_path: Path) -> None:
    site = Site(tmp_path / "samsara.db", tmp_path / "keys")
    for arguments in (("init",), ("migrate", "--plan"), ("doctor",), ("list",), ("--help",)):
        done = process(site, *arguments, env=os.environ | {"PYTHONOPTIMIZE": "2"})
        assert done.status == 0 and "a bug" not in done.err, done
    assert (
        "applied 0001_projects: Projects"
        in process(
            Site(tmp_path / "two.db", tmp_path / "keys"),
            "init",
            env=os.environ | {"PYTHONOPTIMIZE": "2"},
        ).out
    )


# What the system says


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.EMFILE, "ulimit"),
        (errno.ENFILE, "too many open files"),
        (errno.ENAMETOOLONG, "shorter path"),
        (errno.EIO, "fault"),
        (errno.ELOOP, "link"),
        (errno.ENOENT, "check the path"),
        (errno.EACCES, "permissions"),
        (errno.ENOSPC, "make room"),
        (errno.ENOLCK, "locks"),
    ],
)
def test_each_fault_of_the_system_has_its_own_advice(
    number: int, word: str, tmp_path: Path
) -> None:
    error = files.os_error(tmp_path, OSError(number, os.strerror(number)))
    assert word in str(error.hint) and os.strerror(number) in str(error)


def test_links_in_a_circle_are_not_called_links_that_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "loop.db").symlink_to(tmp_path / "loop.db")
    for command in ("list", "init"):
        failed(
            run(Site(tmp_path / "loop.db", tmp_path / "keys"), command),
            15,
            "links lead in a circle",
        )


@pytest.mark.sqlite("how many files it opens")
@pytest.mark.parametrize("free", range(7))
@pytest.mark.parametrize(
    "use",
    [lambda vault: Vault.open(vault.database.path, key_store=vault.keys.store).close(), "backup"],
)
def test_too_many_open_files_are_not_called_a_matter_of_permissions(
    free: int, use: Any, site: Site
) -> None:
    use = (lambda vault: backup(vault, site.database.with_name("copy"))) if use == "backup" else use
    with site.open() as vault:
        vault.set("smtp", "user", "v")
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, before[1]))
        try:
            use(vault)
        except StorageError as error:
            assert "Too many open files" in str(error) and "ulimit" in str(error.hint)
        else:
            assert free > 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_rows_that_are_not_all_read_end_in_silence(site: Site) -> None:
    """
    As where an error ends `doctor` in the middle of a table: the rows are let go after the database
    is closed.
    """
    with site.open() as vault:
        rows = vault.database.each("SELECT 1 UNION SELECT 2")
        next(rows)
    rows.close()  # type: ignore[attr-defined]


@pytest.mark.sqlite("paths")
def test_a_path_that_sqlite_finds_too_long_is_said(site: Site, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 100] * 5)
    deep.mkdir(parents=True)
    shutil.copyfile(site.database, deep / "samsara.db")
    with nothing_left_open(), pytest.raises(StorageError, match="504 bytes"):
        Vault.open(deep / "samsara.db", key_store=KeyDirectory(site.keys))


@pytest.mark.sqlite("its file")
def test_a_database_that_went_away_is_not_called_unreadable(site: Site) -> None:
    with site.open() as vault:
        vault.database.close_all()
        vault.database.closed = False
        vault.database.leave_to_parent()
        site.database.unlink()
        with pytest.raises(StorageError, match="No such file"):
            vault.list()


@pytest.mark.sqlite("its file")
def test_a_database_that_is_replaced_while_it_is_open_is_said(site: Site) -> None:
    sql(site.database, "PRAGMA journal_mode = DELETE")  # with a log (-wal) SQLite does not notice
    with site.open() as vault:
        vault.set("smtp", "password", "first")
        site.database.rename(site.database.with_name("moved.db"))
        with pytest.raises(StorageError, match="moved, removed or replaced"):
            vault.set("smtp", "password", "second")


def test_without_the_steps_of_the_schema_no_database_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir = os.listdir
    monkeypatch.setattr(
        os, "listdir", lambda path: [] if Path(path).name == "migrations" else listdir(path)
    )
    site = Site(tmp_path / "samsara.db", tmp_path / "keys")
    with pytest.raises(StorageError, match="steps of the schema"):
        begin(site)
    assert not site.database.exists()


def test_an_unreadable_folder_above_the_keys_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of the key store, where the system refuses to look into the folder above."""
    keys = KeyDirectory(tmp_path / "above" / "keys")

    def refuse(path: Any, *_: Any, **__: Any) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    for name in ("stat", "lstat", "open", "mkdir", "unlink", "listdir", "scandir"):
        monkeypatch.setattr(os, name, refuse)
    for use in (
        lambda: keys.holds("v", "k"),
        lambda: keys.read("v", "k"),
        lambda: keys.write("v", "k", Secret("x")),
        lambda: keys.delete("v", "k"),
        lambda: keys.successor("v", "k"),
        lambda: keys.mark_superseded("v", "k", "other"),
        keys.left_over,
    ):
        with pytest.raises(KeyStoreUnavailable, match="Permission denied"):
            use()


CALLS = (
    "open",
    "stat",
    "lstat",
    "mkdir",
    "rmdir",
    "unlink",
    "link",
    "chmod",
    "fchown",
    "fsync",
    "read",
    "listdir",
    "scandir",
    "replace",
)
ERRORS = (errno.EIO, errno.EACCES)


def begin(site: Site) -> None:
    init(site.database, key_store=KeyDirectory(site.keys))


def look(site: Site) -> None:
    with site.open() as vault:
        vault.get("smtp", "password")
        vault.list()
        vault.which("smtp")
        status(vault)


def change(site: Site) -> None:
    with site.open() as vault:
        vault.set("smtp", "password", "invented")
        rotate(vault)


def keep(site: Site) -> None:
    with site.open() as vault:
        backup(vault, site.database.with_name("copy"))
        export_keys(vault, site.database.with_name("exported"), PASSPHRASE)


def bring_back(site: Site) -> None:
    with site.open() as vault:
        import_keys(vault, site.database.with_name("exported"), PASSPHRASE)


def inspect(site: Site) -> None:
    examine(site.database, key_store=KeyDirectory(site.keys), deep=True)


@pytest.mark.parametrize("operation", [begin, look, change, keep, bring_back, inspect])
def test_a_system_call_that_fails_gives_an_error_of_ours_and_leaves_nothing_half_made(
    operation: Callable[[Site], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figures: Figures,
) -> None:
    warnings.simplefilter("ignore", WeakStorage)
    made = new_site(tmp_path / "prepared")
    with made.open() as vault:
        vault.set("smtp", "password", "invented")
        if operation is bring_back:
            export_keys(vault, made.database.with_name("exported"), PASSPHRASE)
    if operation in (begin, bring_back):
        shutil.rmtree(made.keys)
    if operation is begin:
        made.database.unlink()
    tried = 0
    for turn, call in enumerate(CALLS):
        true, countdown = getattr(os, call), 0

        for number in ERRORS if THOROUGH else (ERRORS[turn % 2],):

            def failing(
                *arguments: Any, _true: Any = true, _number: int = number, **options: Any
            ) -> Any:
                nonlocal countdown
                countdown -= 1
                if countdown == 0:
                    raise OSError(_number, os.strerror(_number))
                return _true(*arguments, **options)

            for at in (1, 2, 3, *range(4, 200)) if THOROUGH else (1, 3, 30):
                site = made.copy(tmp_path / "site")
                countdown = at
                with monkeypatch.context() as patch:
                    patch.setattr(os, call, failing)
                    try:
                        operation(site)
                    except VaultError as error:
                        # Python's own search for modules does not say why it finds none.
                        said = str(error)
                        assert (
                            os.strerror(number) in said
                            or "steps of the schema cannot be found" in said
                        ), error
                    over = countdown > 0
                for name in ("copy", "exported"):  # whole or not there
                    assert (
                        not site.database.with_name(name).exists()
                        or site.database.with_name(name).stat().st_size > 500
                    )
                operation_again(operation, site)
                shutil.rmtree(tmp_path / "site")
                if over:
                    break
                tried += 1
    figures("calls of the system that failed inside a command", tried)


def operation_again(operation: Callable[[Site], None], site: Site) -> None:
    """When the cause is mended: the same does its work, and nothing was lost."""
    for name in ("copy",):
        site.database.with_name(name).unlink(missing_ok=True)
    operation(site)
    with site.open() as vault:
        if operation is not begin:
            assert vault.get("smtp", "password").reveal() == "invented"
        vault.set("smtp", "user", "afterwards")
    left = [
        file.name
        for file in site.database.parent.iterdir()
        if file.name.startswith(files.TEMPORARY) or file.suffix == ".part"
    ]
    assert left == []


@pytest.mark.sqlite("backups to a file")
@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "-"])
def test_a_backup_may_have_any_name_and_what_a_killed_one_leaves_is_named(
    name: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.open() as vault:
        target = backup(vault, site.database.with_name(name)).path
        assert target.stat().st_size > 500
        target.unlink()
        monkeypatch.setattr(files, "_remove", lambda _: None)  # the command ends before it can
        backup(vault, target)
    left = [
        finding.message
        for finding in examine(site.database, key_store=KeyDirectory(site.keys)).findings
        if finding.kind == "left over"
    ]
    (folder,) = site.database.parent.glob(f"{files.TEMPORARY}*")
    assert len(left) == 1 and str(folder) in left[0]


@pytest.mark.parametrize("text", [b"", b"\0" * 36, b"\xff\xfe", b"two words"])
def test_a_note_of_a_successor_that_was_emptied_or_garbled_is_damage(
    text: bytes, site: Site
) -> None:
    store = KeyDirectory(site.keys)
    with site.open() as vault:
        vault.set("smtp", "password", "v")
        rotate(vault)
        old = next(record.id for record in vault.keys.states.records() if record.state == "retired")
        (note,) = site.keys.glob("*.successor")
        note.write_bytes(text)
        found = [
            each
            for each in examine(site.database, key_store=store).findings
            if each.level == "problem" and each.kind == "key"
        ]
        assert [each.key_id for each in found] == [old] and f"{note}: damaged" in found[0].message
        # As who would have the older key back.
        sql(site.database, "UPDATE vault_keys SET state = 'pending' WHERE id = ?", old)
        with pytest.raises(KeyStoreUnavailable, match="damaged"):
            rotate(vault)
        sql(site.database, "UPDATE vault_keys SET state = 'retired' WHERE id = ?", old)
        note.unlink()
        new = rotate(vault).new_key
        assert store.successor(vault.keys.vault_id, old) and vault.keys.states.active_id() == new
        note.with_name(note.name.replace(old, str(new))).touch(0o600)
        with site.open() as again, pytest.raises(KeyStoreUnavailable, match="damaged"):
            again.set("smtp", "password", "w")
        found = [
            each
            for each in examine(site.database, key_store=store).findings
            if each.level == "problem" and each.kind == "key"
        ]
        assert [each.key_id for each in found] == [new]


@pytest.mark.parametrize("seconds", ["10", None, True, 0, -1, float("nan"), float("inf")])
def test_a_time_limit_that_is_none_is_named_at_once(seconds: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="seconds: "):
        OSKeyring(seconds=seconds)


@pytest.mark.parametrize("store", ["/path", Path("/path"), KeyDirectory, 0])
def test_a_key_store_that_is_none_is_named_at_once(store: Any, site: Site) -> None:
    for use in (Vault.open, init, examine):
        with pytest.raises(TypeError, match="key_store: "):
            use(site.database, key_store=store)


# File systems that lack something


def fail(
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    number: int,
    *,
    only: Callable[..., bool] = lambda *_: True,
) -> None:
    true = getattr(module, name)

    def failing(*arguments: Any, **options: Any) -> Any:
        if only(*arguments):
            raise OSError(number, os.strerror(number))
        return true(*arguments, **options)

    monkeypatch.setattr(module, name, failing)


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


class NoExclusiveRename:
    """A C library whose exclusive rename the file system refuses."""

    def renameat2(self, *_: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1


@pytest.fixture(params=["rename", "claim"])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    fail(monkeypatch, os, "link", errno.EPERM)
    if request.param == "claim":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: NoExclusiveRename())
    return str(request.param)


def test_everything_is_made_on_a_file_system_without_hard_links(
    no_links: str, tmp_path: Path
) -> None:
    site = Site(tmp_path / "samsara.db", tmp_path / "keys")
    begin(site)
    change(site)
    keep(site)
    shutil.rmtree(site.keys)
    bring_back(site)
    look(site)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "copy", "exported", "keys", "samsara.db", "samsara.db.vault-lock",
    ]  # fmt: skip
    assert not KeyDirectory(site.keys).left_over()


@pytest.mark.sqlite("backups to a file")
def test_without_hard_links_nothing_is_replaced(no_links: str, site: Site) -> None:
    target = site.database.with_name("theirs")
    target.write_text("theirs")
    with site.open() as vault:
        with pytest.raises(StorageError, match="something is there already"):
            backup(vault, target)
        with pytest.raises(StorageError, match="something is there already"):
            export_keys(vault, target, PASSPHRASE)
    assert target.read_text() == "theirs"
    key = next(iter(site.keys.glob("*.key")))
    vault_id, key_id, _ = key.name.split(".")
    before = key.read_text()
    with pytest.raises(KeyStoreUnavailable.__bases__[0], match="exists already"):
        KeyDirectory(site.keys).write(vault_id, key_id, Secret("other"))
    assert key.read_text() == before


def test_of_two_that_make_one_file_without_hard_links_one_wins(
    no_links: str, tmp_path: Path
) -> None:
    def fill(part: Path) -> None:
        part.write_text("the first")
        with pytest.MonkeyPatch.context():  # while it is filled, another makes the same file
            path.write_text("the other's")

    path = tmp_path / "file"
    with pytest.raises(StorageError, match="something is there already"):
        files.new_file(path, fill)
    assert path.read_text() == "the other's" and list(tmp_path.iterdir()) == [path]


def test_a_file_that_could_not_take_its_name_leaves_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, os, "link", errno.EPERM)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: NoExclusiveRename())
    fail(monkeypatch, os, "replace", errno.EIO)
    with pytest.raises(StorageError, match=os.strerror(errno.EIO)):
        files.new_file(tmp_path / "file", lambda part: part.write_text("whole"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_where_modes_cannot_be_set_files_are_made_and_keys_only_where_they_are_private(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, os, "chmod", number)
    site = Site(tmp_path / "samsara.db", tmp_path / "keys")
    begin(site)  # the modes are private from the first byte, so nothing has to be set
    keep(site)
    true = os.open

    def as_on_fat(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        descriptor = true(path, flags, mode, **options)
        if flags & os.O_CREAT:
            os.fchmod(descriptor, 0o755)
        return descriptor

    monkeypatch.setattr(os, "open", as_on_fat)
    with site.open() as vault:
        with pytest.warns(WeakStorage, match="has no modes"):
            backup(vault, tmp_path / "open")
        before = entries(site)
        with pytest.raises(KeyStoreUnavailable, match="lets other users in"):
            rotate(vault)
    assert entries(site) == before


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced_is_a_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, os, "fsync", number, only=is_folder)
    site = Site(tmp_path / "samsara.db", tmp_path / "keys")
    for operation in (begin, change, keep):
        with pytest.warns(WeakStorage, match="may not survive a power cut"):
            operation(site)
    look(site)
    assert len(list(site.keys.glob("*.key"))) == 2


@pytest.mark.sqlite("backups to a file")
def test_a_folder_whose_sync_fails_is_left_without_the_new_file(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, keys = sorted(site.database.parent.iterdir()), entries(site)
    fail(monkeypatch, os, "fsync", errno.EIO, only=is_folder)
    with site.open() as vault:
        for make in (lambda: backup(vault, site.database.with_name("b")), lambda: rotate(vault)):
            with pytest.raises(VaultError, match=os.strerror(errno.EIO)):
                make()
    after = [
        file
        for file in site.database.parent.iterdir()
        if not file.name.endswith((".vault-lock", "-wal", "-shm"))
    ]
    assert sorted(after) == [
        file for file in before if not file.name.endswith((".vault-lock", "-wal", "-shm"))
    ]
    assert entries(site) == keys


@pytest.mark.sqlite("locks of files")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_known_before_anything_is_made(
    number: int, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, fcntl, "flock", number)
    new = Site(tmp_path / "new.db", tmp_path / "new.keys")
    with pytest.raises(StorageError, match=os.strerror(number)):
        begin(new)
    assert not new.database.exists()
    with site.open() as vault:
        before = entries(site)
        for use in (lambda: rotate(vault), lambda: export_keys(vault, tmp_path / "e", PASSPHRASE)):
            with pytest.raises(StorageError, match=os.strerror(number)):
                use()
    assert entries(site) == before and not (tmp_path / "e").exists()


@pytest.mark.sqlite("files beside it")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file for somebody else")
def test_what_root_leaves_beside_a_users_database_is_the_users(site: Site) -> None:
    os.chown(site.database, 54321, 54322)
    site.database.with_name(f"{site.database.name}.vault-lock").unlink()
    assert run(site, "rotate").status == 0
    lock = site.database.with_name(f"{site.database.name}.vault-lock").stat()
    assert (lock.st_uid, lock.st_gid, stat.S_IMODE(lock.st_mode)) == (54321, 54322, 0o600)
    with site.open() as vault:
        made = site.database.with_name("before")
        vault.database.backup(made, lambda copy: None)
    assert (made.stat().st_uid, stat.S_IMODE(made.stat().st_mode)) == (54321, 0o600)


@pytest.mark.sqlite("files beside it")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file for somebody else")
def test_root_gives_nobody_a_file_that_was_there(site: Site, tmp_path: Path) -> None:
    os.chown(site.database, 54321, 54321)
    theirs = tmp_path / "roots-own"
    theirs.touch(0o600)
    lock = site.database.with_name(f"{site.database.name}.vault-lock")
    lock.unlink()
    os.link(theirs, lock)  # a user with a hard link to a file of root's
    assert run(site, "rotate").status == 0
    assert theirs.stat().st_uid == 0


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("OSError(5, 'Input/output error', '/a/file')", "/a/file: Input/output error"),
        ("MemoryError", "too little memory"),
    ],
)
def test_a_fault_of_the_machine_is_not_called_a_bug(fault: str, words: str, site: Site) -> None:
    """Wherever it comes from: here from the last place that a command asks."""
    code = (
        "from outreach_vault import Vault\nfrom outreach_vault.command import cli\ndef fail(*_): "
        f"raise {fault}\nVault.list = fail\n"
        "import sys\n"
        f"sys.exit(cli.run(['--db', {str(site.database)!r}, '--key-dir', {str(site.keys)!r}, "
        "'list']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 15 and words in done.stderr and "a bug" not in done.stderr, done


@pytest.mark.parametrize(
    "module", ["outreach_vault.errors", "sqlite3", "click", "outreach_vault.operations.status"]
)
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("MemoryError()", "too little memory"),
        ("ImportError('/x.so: failed to map segment from shared object')", "too little memory"),
        ("OSError(12, 'Cannot allocate memory')", "too little memory"),
        ("OSError(24, 'Too many open files', '/lib')", "Too many open files"),
        ("OSError(5, 'Input/output error', '/lib')", "Input/output error"),
        ("ModuleNotFoundError('No module named x')", "install outreach_vault again"),
    ],
)
def test_what_keeps_the_command_from_being_loaded_is_said(
    module: str, fault: str, words: str, site: Site
) -> None:
    """Whether it is loaded first, or when the command needs it."""
    code = (
        "import runpy, sys\n"
        "class Finder:\n"
        f"    def find_spec(self, name, *_):\n        if name == {module!r}: raise {fault}\n"
        "sys.meta_path.insert(0, Finder())\nrunpy.run_module('outreach_vault', run_name='__main__')"
    )
    where = ["--db", str(site.database), "--key-dir", str(site.keys)]
    done = subprocess.run(
        [sys.executable, "-c", code, *where, "status"], capture_output=True, text=True
    )
    assert done.returncode == 15 and words in done.stderr and done.stdout == "", done
    assert [line.split(":")[1] for line in done.stderr.splitlines()] == [" error", " hint"]


@pytest.mark.parametrize(
    ("arguments", "status"), [(("get", "smtp", "password"), 12), (("check", "anthropic"), 15)]
)
def test_a_system_that_gives_no_thread_is_said(
    arguments: tuple[str, ...], status: int, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.open() as vault:
        vault.set("smtp", "password", "invented")
        vault.set("anthropic", "api_key", "invented")

    def refuse(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    failed(run(site, *arguments, keyring=status == 12), status, "no thread", "ulimit -u")


def test_no_thread_is_started_but_where_its_refusal_has_words() -> None:
    starts = re.compile(r"\b(Thread|Timer|ThreadPoolExecutor)\(|start_new_thread")
    sources = {file.name: file.read_text() for file in Path(files.__file__).parent.rglob("*.py")}
    # The second starts those of a test.
    assert {name for name, text in sources.items() if starts.search(text)} == {
        "limits.py",
        "testing.py",
    }


@pytest.mark.parametrize("use", [export_keys, import_keys])
def test_a_passphrase_that_is_no_secret_is_named(
    use: Callable[..., Any], site: Site, tmp_path: Path
) -> None:
    with (
        site.open() as vault,
        pytest.raises(TypeError, match="passphrase: a Secret is needed, not str"),
    ):
        use(vault, tmp_path / "file", "words of a phrase")


@pytest.mark.sqlite("backups to a file")
def test_a_warning_is_one_line_of_the_commands_own(site: Site, tmp_path: Path) -> None:
    code = (
        "import os, stat, sys\n"
        "true = os.fsync\n"
        "def fsync(d):\n"
        "    if stat.S_ISDIR(os.fstat(d).st_mode): raise OSError(22, 'Invalid argument')\n"
        "    true(d)\n"
        "os.fsync = fsync\n"
        "from outreach_vault.command.cli import main\nmain()"
    )
    env = os.environ | {
        "OUTREACH_VAULT_DB": str(site.database),
        "OUTREACH_VAULT_KEY_DIR": str(site.keys),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, "backup", str(tmp_path / "b")],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    first = done.stderr.splitlines()[0]
    assert first == (
        f"vault: warning: {tmp_path}: a new file there may not survive a power cut: Invalid "
        "argument"
    )


# A file that another takes the place of


@pytest.fixture
def replaced(site: Site) -> Iterator[Vault]:
    """A vault that is open while a backup of it is put in its file's place."""
    with site.open() as vault:
        vault.set("smtp", "password", "first")
        backup(vault, site.database.with_name("earlier"))
        for name in (site.database.name, f"{site.database.name}-wal", f"{site.database.name}-shm"):
            site.database.with_name(name).rename(site.database.with_name(f"away-{name}"))
        site.database.with_name("earlier").rename(site.database)
        yield vault


def resume(vault: Vault) -> None:
    """In the middle of a rotation the key store is written before the database."""
    path = vault.database.path
    noted = "INSERT INTO vault_meta VALUES ('unfinished_rotation', '')"
    sql(path.with_name(f"away-{path.name}"), noted)
    vault.keys.begin_rotation(after_restore=False)


@pytest.mark.sqlite("its file")
@pytest.mark.parametrize(
    "write",
    [
        lambda vault: vault.set("smtp", "password", "second"),
        lambda vault: vault.set_fields("smtp", {"user": "u", "password": "second"}),
        lambda vault: vault.delete("smtp", "password"),
        lambda vault: rotate(vault, destroy_old=True),
        lambda vault: vault.keys.begin_rotation(after_restore=False),
        resume,
        lambda vault: export_keys(vault, vault.database.path.with_name("exported"), PASSPHRASE),
    ],
    ids=["set", "set_fields", "delete", "rotate", "mark", "resume", "export"],
)
def test_nothing_is_acknowledged_and_no_key_changed_where_another_file_is_in_place(
    replaced: Vault, site: Site, write: Callable[[Vault], object]
) -> None:
    before = entries(site)
    with pytest.raises(StorageError, match="moved, removed or replaced"):
        write(replaced)
    assert {name: text for name, text in entries(site).items() if name in before} == before
    with site.open() as vault:
        assert vault.get("smtp", "password").reveal() == "first"
        vault.set("smtp", "password", "afterwards")


@pytest.mark.sqlite("its file")
def test_no_key_is_destroyed_where_another_file_is_in_place(site: Site) -> None:
    with site.open() as vault:
        old = vault.keys.states.active_id()
        rotate(vault)
        site.database.rename(site.database.with_name("away"))
        shutil.copyfile(site.database.with_name("away"), site.database)
        with pytest.raises(StorageError, match="moved, removed or replaced"):
            vault.keys.destroy(old, lambda key_id: None)
        assert vault.keys.store.holds(vault.keys.vault_id, old)


# A value whose key's name another program took away


@pytest.mark.parametrize(
    "change",
    [
        "key_id = NULL",
        *(
            pytest.param(change, marks=pytest.mark.sqlite("columns that take any type"))
            for change in (
                "key_id = CAST(key_id AS BLOB)",
                "key_id = NULL, encrypted_value = CAST(encrypted_value AS BLOB)",
            )
        ),
    ],
)
def test_a_value_that_does_not_name_its_key_is_a_problem_and_keeps_the_key(
    site: Site, change: str
) -> None:
    with site.open() as vault:
        vault.set("acme", "key", "v")
        vault.set("acme", "other", "v")
        old = vault.keys.states.active_id()
        sql(
            site.database, f"UPDATE provider_credentials SET {change} WHERE credential_type = 'key'"
        )
        found = examine(site.database, key_store=KeyDirectory(site.keys), deep=True)
        problems = [finding for finding in found.findings if finding.level == "problem"]
        (problem,) = [finding for finding in problems if finding.kind != "unsafe server"]
        assert problem.kind == "key not named" and old in problem.message
        with pytest.raises(KeyInUse, match="do not name it"):
            rotate(vault, destroy_old=True)
        with pytest.raises(KeyInUse, match="do not name it"):
            destroy(vault, old)
        assert vault.keys.store.holds(vault.keys.vault_id, old)
        # What it says to do.
        sql(site.database, str(problem.hint).partition(": ")[2].partition(";")[0])
        assert vault.get("acme", "key").reveal() == "v"
        rotate(vault, destroy_old=True)
        assert vault.get("acme", "key").reveal() == "v"
