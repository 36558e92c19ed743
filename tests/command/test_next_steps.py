"""What the operator does next: exports, imports, folders, ids of keys."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.commands import Done, Terminal, failed, run
from helpers.rotation_peers import fill
from helpers.site import COMMAND, Rotated, Site

from outreach_vault.files import new_folder

pytestmark = pytest.mark.sweep(3)

LINE = b"correct horse battery staple\n"


def at_home(home: Path, *arguments: str, **variables: str) -> Done:
    """The command without --db, in a home of its own and under a careless umask."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("XDG_")}
    done = subprocess.run(
        [*COMMAND, "--key-dir", str(home / "keys"), *arguments],
        env=kept | {"HOME": str(home)} | variables,
        capture_output=True,
        preexec_fn=lambda: os.umask(0),
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_init_makes_the_apps_own_folder_for_its_owner_alone_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "Samsara"
    failed(at_home(tmp_path, "list"), 14, "vault init")
    assert not folder.parent.exists()
    done = at_home(tmp_path, "init")
    assert done.status == 0 and f"made the folder {folder}, for this user alone\n" in done.out
    assert [each.stat().st_mode & 0o777 for each in (folder, folder.parent)] == [0o700] * 2
    assert (folder / "samsara.db").exists()
    again = at_home(tmp_path, "init")
    assert again.status == 0 and "folder" not in again.out


@pytest.mark.parametrize("named", ["variable", "option"])
def test_init_makes_no_folder_of_a_database_that_was_named(tmp_path: Path, named: str) -> None:
    """That would be a slip in its path."""
    path = str(tmp_path / "misspelt" / "samsara.db")
    if named == "option":
        done = at_home(tmp_path, "init", "--db", path)
    else:
        done = at_home(tmp_path, "init", OUTREACH_VAULT_DB=path)
    failed(done, 15, "misspelt")
    assert not (tmp_path / "misspelt").exists() and not (tmp_path / ".config").exists()


def test_init_makes_no_folder_where_the_key_store_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "keys").touch()
    failed(at_home(tmp_path, "init"), 12)
    assert not (tmp_path / ".config").exists()


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    with pytest.raises(FileExistsError):
        new_folder(tmp_path / "there")
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o755


# Export


def test_after_a_new_key_the_next_step_is_an_export_until_it_was_done(site: Site) -> None:
    first, export = site.active(), str(site.folder / "export")
    step = "vault: next: 'vault keys export FILE': no exported file holds key "
    assert run(site, "init").err == f"{step}{first} (last export: none)\n"
    assert run(site, "rotate", "--dry-run").err == ""
    assert run(site, "keys", "export", export, stdin=LINE).status == 0
    assert run(site, "init").err == ""
    (record,) = run(site, "keys", "list", "--json").data
    done = run(site, "rotate")
    assert (
        done.err.splitlines(keepends=True)[-1]
        == f"{step}{site.active()} (last export: {record['exported_at']})\n"
    )
    assert done.out and "export" not in done.out


def test_a_key_that_values_need_is_in_the_step_and_one_that_nothing_needs_is_not(
    site: Site,
) -> None:
    with site.open() as vault:
        fill(vault, 2)
    old = site.active()
    assert run(site, "rotate").status == 0
    assert old not in run(site, "init").err and site.active() in run(site, "init").err
    site.change("UPDATE provider_credentials SET key_id = ?", old)
    assert old in run(site, "init").err and site.active() in run(site, "init").err


def test_before_a_key_is_destroyed_its_exports_are_named_with_their_time(rotated: Rotated) -> None:
    site, _, old, _ = rotated
    words = "files of exported keys still hold it, until you delete them"
    export = str(site.folder / "export")
    with Terminal(site, "keys", "destroy", old) as terminal:
        terminal.read_until(b"[y/N]: ")
        assert f"{words} (none is noted here)".encode() in terminal.seen
        terminal.type(b"n\n")
        assert terminal.end() == 3
    assert run(site, "keys", "export", export, stdin=LINE).status == 0
    exported = {key["id"]: key["exported_at"] for key in run(site, "keys", "list", "--json").data}
    done = run(site, "keys", "destroy", old, "--yes")
    assert f"{words} (the last noted here was made at {exported[old]})\n" in done.err


def test_rotate_that_destroys_the_old_key_says_so_too(site: Site) -> None:
    done = run(site, "rotate", "--destroy-old", "--yes")
    assert "files of exported keys still hold the old key" in done.err


# A machine that has the database and none of its keys


@pytest.mark.parametrize("folder", ["missing", "empty"])
@pytest.mark.parametrize("words", ["get smtp field-0", "list", "status", "doctor", "which smtp"])
def test_without_the_keys_the_first_thing_to_do_is_to_import_them(
    site: Site, words: str, folder: str
) -> None:
    with site.open() as vault:
        fill(vault, 2)
    export = str(site.folder / "export")
    assert run(site, "keys", "export", export, stdin=LINE).status == 0
    shutil.rmtree(site.keys)
    if folder == "empty":
        site.keys.mkdir(mode=0o700)
    where = ("--project", "default-project") if words.split()[0] in ("get", "which") else ()
    done = run(site, *words.split(), *where)
    hints = re.findall(r"(?:hint|next): (.*)", done.out + done.err)
    assert any(hint.startswith("'vault keys import FILE'") for hint in hints), done
    assert run(site, "keys", "import", export, stdin=LINE).status == 0
    assert "vault keys import" not in run(site, *words.split(), *where).err


# A part of a key's id


def ids(site: Site, *new: str) -> None:
    """Rows of keys that are gone, under ids of these tests' own."""
    for key_id in new:
        site.change(
            "INSERT INTO vault_keys (id, state, check_value, created_at, activated_at, retired_at)"
            " VALUES (?, 'retired', '', '', '', '')",
            key_id,
        )


ONE, TWO = "abcd1111-0000-4000-8000-000000000000", "abcd2222-0000-4000-8000-000000000000"


@pytest.mark.parametrize("typed", ["abcd1", ONE[:-1], ONE])
def test_a_key_is_named_by_as_much_of_its_id_as_no_other_has(site: Site, typed: str) -> None:
    ids(site, ONE, TWO)
    assert f"destroyed key {ONE}\n" in run(site, "keys", "destroy", typed, "--yes").err
    assert site.states()[ONE] == "destroyed" and site.states()[TWO] == "retired"


def test_a_lost_key_is_given_up_by_a_part_of_its_id(site: Site) -> None:
    lost = site.active()
    shutil.rmtree(site.keys)
    site.keys.mkdir(mode=0o700)
    done = run(site, "init", "--abandon", lost[:8], "--yes")
    assert done.status == 0 and f"gave up key {lost}" in done.out and site.active() != lost


@pytest.mark.parametrize("words", ["keys destroy", "init --abandon"])
def test_a_part_that_two_keys_have_names_none_and_lists_both(site: Site, words: str) -> None:
    ids(site, ONE, TWO)
    before = site.states()
    done = run(site, *words.split(), "abcd", "--yes")
    failed(done, 2, ONE, TWO, "give more of the id")
    assert site.states() == before


def test_an_id_that_is_the_beginning_of_another_names_its_own_key(site: Site) -> None:
    ids(site, "abcd1111", ONE)
    assert run(site, "keys", "destroy", "abcd1111", "--yes").status == 0
    assert (site.states()["abcd1111"], site.states()[ONE]) == ("destroyed", "retired")


@pytest.mark.parametrize("typed", ["abc", "", "bcd1", "hunter2", "abcd1111x"])
def test_too_little_of_an_id_or_what_is_none_names_no_key_and_is_not_repeated(
    site: Site, typed: str
) -> None:
    ids(site, ONE)
    done = run(site, "keys", "destroy", typed, "--yes")
    failed(done, 12, "lists no key with that id", "'vault keys list'")
    assert not typed or typed not in done.err
