"""
Rotation by stages: hosts that each have their own copy of the keys have the new one before any
value is put under it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import failed, process, run
from helpers.faults import each_stop
from helpers.rotation_peers import fill, place
from helpers.site import Figures, Site, entries, sql

from outreach_vault import (
    HostNotFound,
    KeyDirectory,
    KeyInUse,
    KeyMissing,
    KeyNotAcknowledged,
    KeyStoreUnavailable,
    Secret,
    Vault,
    WrongKey,
)
from outreach_vault.errors import WrongArgument
from outreach_vault.keys.stores import KeyStore
from outreach_vault.operations import doctor, recovery, rotation, staging
from outreach_vault.operations.init import init
from outreach_vault.operations.status import status

pytestmark = pytest.mark.skipif(os.name == "nt", reason="stops forked children")
HERE, THERE = "host-a", "host-b"
PASSPHRASE = Secret("an invented passphrase")


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: HERE)


@pytest.fixture
def other(site: Site) -> Site:
    """Another host: the same database, and its own copy of the keys."""
    keys = site.keys.with_name("keys-of-host-b")
    shutil.copytree(site.keys, keys)
    return Site(site.database, keys)


def stage(site: Site, store: KeyStore | None = None, host: str = HERE) -> str:
    with site.open(store) as vault:
        return staging.stage(vault, host=host)[0].id


def acknowledge(site: Site, host: str, store: KeyStore | None = None) -> None:
    with site.open(store) as vault:
        staging.acknowledge(vault, host=host)


def rotate(site: Site, store: KeyStore | None = None, **options: object) -> rotation.Report:
    with site.open(store) as vault:
        return rotation.rotate(vault, **options)  # type: ignore[arg-type]


def bring(site: Site, other: Site, key_id: str) -> None:
    """What hands out the keys' files."""
    (file,) = site.keys.glob(f"*.{key_id}.key")
    shutil.copy2(file, other.keys / file.name)


def hosts(site: Site) -> dict[str, str]:
    return dict(sql(site.database, "SELECT host, key_id FROM vault_hosts"))


def findings(site: Site) -> list[doctor.Finding]:
    """Of this host, and not of the tests' own server, which need not outlive a power cut."""
    found = doctor.examine(site.database, key_store=KeyDirectory(site.keys)).findings
    return [each for each in found if each.kind != "unsafe server"]


def states(site: Site) -> list[str]:
    with site.open() as vault:
        return sorted(record.state for record in vault.keys.states.records())


# The way through


def test_a_staged_key_becomes_active_once_every_known_host_has_acknowledged_it(
    site: Site, other: Site
) -> None:
    with site.open() as vault:
        values = fill(vault, 5)
    first = site.active()
    acknowledge(other, THERE)
    rows, key = site.rows(), stage(site)
    assert site.active() == first and site.rows() == rows and states(site) == ["active", "staged"]
    assert hosts(site) == {HERE: key, THERE: first}
    with pytest.raises(KeyNotAcknowledged, match=f"not acknowledged by: {THERE} .last seen 20"):
        rotate(site)
    with pytest.raises(KeyMissing, match=f"{key}, which {HERE} staged"):
        acknowledge(other, THERE)
    assert hosts(site)[THERE] == first
    bring(site, other, key)
    acknowledge(other, THERE)
    report = rotate(site)
    assert (report.new_key, report.old_key, report.complete) == (key, first, True)
    site.require_intact(values)
    other.require_intact(values)
    site.require_one_key()
    assert set(hosts(site).values()) == {key}


def test_a_staged_key_is_made_once_and_survives_the_other_commands(
    site: Site, other: Site, tmp_path: Path
) -> None:
    key = stage(site)
    for host in (site, other):
        assert stage(host) == key
        assert init(host.database, key_store=KeyDirectory(host.keys)) is None
        with host.open() as vault:
            assert vault.keys.settle() is None
            assert vault.keys.states.staged() == vault.keys.states.record(key)
        assert {each.level for each in findings(host)} == {"notice"}
    assert states(site) == ["active", "staged"] and len(list(site.keys.glob("*.key"))) == 2


def test_an_exported_file_brings_a_staged_key_to_another_host(
    site: Site, other: Site, tmp_path: Path
) -> None:
    first, key, file = site.active(), stage(site), tmp_path / "exported"
    with site.open() as vault:
        assert set(recovery.export_keys(vault, file, PASSPHRASE).keys) == {first, key}
    with pytest.raises(KeyMissing, match=f"{key}, which {HERE} staged"):
        rotate(other, host=THERE, without_all=True)
    with other.open() as vault:
        assert recovery.import_keys(vault, file, PASSPHRASE).added == (key,)
    assert site.active() == first and states(site) == ["active", "staged"]
    acknowledge(other, THERE)
    assert rotate(other, host=THERE).new_key == key


def test_an_older_database_gets_a_staged_key_back_as_a_retired_one(
    site: Site, tmp_path: Path
) -> None:
    older = site.copy(tmp_path / "older")
    first, key, file = site.active(), stage(site), tmp_path / "exported"
    with site.open() as vault:
        recovery.export_keys(vault, file, PASSPHRASE)
    with older.open() as vault:
        recovery.import_keys(vault, file, PASSPHRASE)
    assert older.active() == first and older.states()[key] == "retired"


def test_what_was_taken_back_is_never_active_and_its_hosts_still_have_the_active_key(
    site: Site, other: Site
) -> None:
    first, key = site.active(), stage(site)
    bring(site, other, key)
    acknowledge(other, THERE)
    with site.open() as vault:
        assert staging.unstage(vault) == key
        with pytest.raises(KeyMissing, match="no key is staged"):
            staging.unstage(vault)
    assert hosts(site) == {HERE: first, THERE: first} and site.states()[key] == "destroyed"
    assert len(list(site.keys.glob("*.key"))) == 2  # whoever writes the database deletes no key
    assert rotate(site, without_all=True).new_key != key
    assert run(site, "keys", "destroy", key, "--yes").status == 0
    assert not list(site.keys.glob(f"*.{key}.key"))


# Who has it


def test_nobody_but_the_host_that_made_it_is_not_enough_unless_the_operator_says_so(
    site: Site,
) -> None:
    key = stage(site)
    with pytest.raises(KeyNotAcknowledged, match=f"by any host but {HERE}, which made it"):
        rotate(site)
    assert states(site) == ["active", "staged"]
    assert rotate(site, without_all=True).new_key == key


@pytest.mark.parametrize("staged", [False, True])
def test_a_rotation_that_would_lock_a_known_host_out_changes_nothing_unless_it_is_named(
    site: Site, other: Site, staged: bool
) -> None:
    acknowledge(other, THERE)
    acknowledge(other, "host-c")
    if staged:
        stage(site)
    before = sql(site.database, "SELECT * FROM vault_keys"), entries(site)
    for without in ((), (THERE,)):
        with pytest.raises(KeyNotAcknowledged) as caught:
            rotate(site, without=without)
        assert caught.value.hosts == tuple(h for h in (THERE, "host-c") if h not in without)
    with pytest.raises(HostNotFound):
        rotate(site, without=(THERE, "host-c", "host-d"))
    assert (sql(site.database, "SELECT * FROM vault_keys"), entries(site)) == before
    assert rotate(site, without=(THERE, "host-c")).complete


def test_a_host_that_was_removed_is_waited_for_no_longer(site: Site, other: Site) -> None:
    acknowledge(other, THERE)
    with site.open() as vault:
        staging.remove(vault, THERE)
        with pytest.raises(HostNotFound):
            staging.remove(vault, THERE)
        assert rotation.rotate(vault).complete


def test_a_host_that_is_the_only_one_rotates_as_ever_and_is_noted_to_have_the_key(
    site: Site,
) -> None:
    acknowledge(site, HERE)
    report = rotate(site)
    assert hosts(site) == {HERE: report.new_key}
    rotate(site)
    assert hosts(site) == {HERE: site.active()}


def test_a_rotation_that_goes_on_asks_nobody(site: Site, other: Site) -> None:
    """Its key is active already: to stop would help no host that lacks it."""
    acknowledge(other, THERE)
    with site.open() as vault:
        vault.keys.begin_rotation(after_restore=False)
    assert rotate(site).resumed


def test_a_host_acknowledges_what_its_key_store_has(site: Site, other: Site) -> None:
    key = stage(site)
    bring(site, other, site.active())
    (file,) = site.keys.glob(f"*.{key}.key")
    (other.keys / file.name).write_bytes(next(other.keys.glob("*.key")).read_bytes())
    (other.keys / file.name).chmod(0o600)
    with pytest.raises(WrongKey, match=key):
        acknowledge(other, THERE)
    bring(site, other, key)
    for active in other.keys.glob(f"*.{site.active()}.key"):
        active.unlink()
    with pytest.raises(KeyMissing, match=site.active()):
        acknowledge(other, THERE)
    assert THERE not in hosts(site)


@pytest.mark.parametrize("staged", [False, True])
def test_a_key_that_another_host_acknowledged_is_not_given_up_as_lost(
    site: Site, other: Site, staged: bool
) -> None:
    first = site.active()
    if staged:
        bring(site, other, stage(site))
    acknowledge(other, THERE)
    (file,) = site.keys.glob(f"*.{first}.key")
    file.unlink()
    before = site.states()
    with site.open() as vault:
        if staged:
            staging.remove(vault, HERE)
        with pytest.raises(KeyInUse, match=f"is not lost: it was acknowledged by {THERE}"):
            recovery.abandon(vault, first)
        assert site.states() == before
        staging.remove(vault, THERE)
        assert recovery.abandon(vault, first) != first


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a" * 256])
def test_a_name_that_no_host_has_is_refused(vault: Vault, name: str) -> None:
    with pytest.raises(WrongArgument):
        staging.acknowledge(vault, host=name)
    with pytest.raises(WrongArgument):
        staging.stage(vault, host=name)


def test_a_replaced_key_that_is_called_staged_is_retired_again(site: Site) -> None:
    """Whoever can write the database could have everything sealed under a key that leaked."""
    first = site.active()
    rotate(site)
    site.change(
        "UPDATE vault_keys SET state = 'pending', staged_by = 'x', staged_at = retired_at"
        " WHERE id = ?",
        first,
    )
    assert rotate(site).new_key != first and site.states()[first] == "retired"


def test_a_key_store_that_takes_no_note_is_found_out_before_the_key_is_active(
    site: Site, other: Site
) -> None:
    """Nothing else is written to it: in a mounted Secret the rotation would never end."""

    class ReadOnly(KeyDirectory):
        def write(self, vault_id: str, key_id: str, key: Secret) -> None:
            raise KeyStoreUnavailable("it is read-only")

        def mark_superseded(self, vault_id: str, key_id: str, successor_id: str) -> None:
            raise KeyStoreUnavailable("it is read-only")

    first, key = site.active(), stage(site)
    bring(site, other, key)
    acknowledge(other, THERE)
    with pytest.raises(KeyStoreUnavailable):
        rotate(site, ReadOnly(site.keys))
    assert site.active() == first and rotate(site).new_key == key


# Stopped


def test_staging_stopped_at_each_step_is_finished_by_the_next(site: Site, figures: Figures) -> None:
    first, found = site.active(), set[str]()
    for stopped in each_stop(
        site, stage, figures, "stops of a staging at a numbered step, finished by the next", every=2
    ):
        assert stopped.active() == first
        made = {file.name.split(".")[1] for file in stopped.keys.glob("*.key")} - {first}
        found.add(str(sorted(stopped.states().values())))
        if made:  # it is staged now, and no rotation makes it active
            with pytest.raises(KeyNotAcknowledged):
                rotate(stopped)
        assert stopped.active() == first
        key = stage(stopped)
        assert made <= {key} and states(stopped).count("staged") == 1
        assert states(stopped).count("pending") == 0 and hosts(stopped) == {HERE: key}
    assert len(found) == 2


def test_an_interrupted_staging_can_be_taken_back(site: Site) -> None:
    with site.open() as vault:
        key = vault.keys.create(staged_by=HERE)
        assert "--unstage" in str(findings(site)[0].hint)
        assert staging.unstage(vault) == key
    assert states(site) == ["active", "destroyed"]


def test_acknowledging_and_rotating_stopped_at_each_step_is_finished_by_the_next(
    site: Site, figures: Figures
) -> None:
    with site.open() as vault:
        values = fill(vault, 3)
    key = stage(site)

    def go(site: Site, store: KeyStore) -> None:
        acknowledge(site, THERE, store)
        rotate(site, store)

    for stopped in each_stop(
        site,
        go,
        figures,
        "stops of a rotation of a staged key at a numbered step, all values open after each",
        every=4,
    ):
        stopped.require_intact(values)
        acknowledge(stopped, THERE)
        if stopped.active() != key or _unfinished(stopped):
            assert rotate(stopped).new_key == key
        stopped.require_intact(values)
        stopped.require_one_key()
        assert hosts(stopped) == {HERE: key, THERE: key}
        own = [file for file in stopped.keys.glob("*.key") if not file.name.startswith("trial.")]
        assert len(own) == 2


def _unfinished(site: Site) -> bool:
    with site.open() as vault:
        return vault.keys.states.unfinished_rotation()


# A host that was left out


READER = """
import sys
from outreach_vault import KeyDirectory, KeyMissing, Vault
with Vault.open(sys.argv[1], key_store=KeyDirectory(sys.argv[2])) as vault:
    for line in sys.stdin:
        try:
            print(vault.get("smtp", line.strip()).reveal(), flush=True)
        except KeyMissing as error:
            print(error, flush=True)
"""


@pytest.mark.parametrize("mounted", [False, True])
def test_a_running_host_without_the_key_names_it_and_works_once_it_is_there(
    site: Site, other: Site, mounted: bool
) -> None:
    with site.open() as vault:
        values = fill(vault, 2)
    if mounted:
        _mount(other, "..1")
    command = [sys.executable, "-c", READER, str(other.database), str(other.keys)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin and reader.stdout

        def said() -> str:
            print("field-1", file=reader.stdin, flush=True)
            return str(reader.stdout.readline()).rstrip("\n")  # type: ignore[union-attr]

        assert said() == values[place(1)]
        stage(site)
        new = rotate(site, without_all=True).new_key
        assert new and f"has no key {new}" in said()
        if mounted:
            (file,) = site.keys.glob(f"*.{new}.key")
            _mount(other, "..2", file)
        else:
            bring(site, other, new)
        assert said() == values[place(1)]
        reader.stdin.close()
        assert reader.wait(20) == 0


def _mount(site: Site, version: str, *more: Path) -> None:
    """The folder as Kubernetes has it: each file a link through `..data`, which is set anew."""
    files = [*(file for file in site.keys.iterdir() if file.is_file()), *more]
    (site.keys / version).mkdir(0o755)
    for file in files:
        shutil.copy2(file, site.keys / version / file.name)
        (site.keys / version / file.name).chmod(0o400)
        if not (site.keys / file.name).is_symlink():
            (site.keys / file.name).unlink(missing_ok=True)
            (site.keys / file.name).symlink_to(f"..data/{file.name}")
    (site.keys / "..data_tmp").symlink_to(version)
    (site.keys / "..data_tmp").rename(site.keys / "..data")


# What is told


def test_the_doctor_and_the_lists_tell_what_is_staged_and_who_lacks_it(
    site: Site, other: Site
) -> None:
    acknowledge(other, THERE)
    key = stage(site)
    for host, lacks in ((site, ""), (other, "it is not in this host's key store")):
        with host.open() as vault:
            assert [record.state for record, _ in status(vault).keys] == ["active", "staged"]
        found = findings(host)
        (told,) = [each for each in found if each.kind == "staged key"]
        assert (told.level, told.key_id) == ("notice", key) and THERE in told.message
        assert lacks in told.message and {each.level for each in found} == {"notice"}
        assert not [each for each in found if each.kind == "host"]
    listed = run(site, "keys", "list")
    assert "staged" in listed.out and run(site, "keys", "list", "--json").data[1]["id"] == key
    rotate(site, without_all=True)
    (told,) = [each for each in findings(site) if each.kind == "host"]
    assert told.level == "notice" and THERE in told.message and told.key_id == key


def test_the_command_goes_the_whole_way(site: Site, other: Site) -> None:
    first = site.active()
    done = run(other, "keys", "acknowledge", "--host", THERE)
    assert done.out == f"host {THERE} has the active key {first}\n"
    done = run(site, "rotate", "--stage")
    key = stage(site)
    assert f"staged key {key} in the key directory" in done.out
    assert f"not acknowledged by: {THERE}" in done.err and "'vault keys acknowledge'" in done.err
    again = run(site, "rotate", "--stage", "--json").data
    assert again["staged_key"] == key and again["staged_before"] and again["lacking"] == [THERE]
    assert "is staged already" in run(site, "rotate", "--stage").out
    failed(run(site, "rotate"), 16, key, THERE, "last seen", "--without HOST")
    told = f"warning: the rotation would be refused: staged key {key} is not acknowledged"
    rehearsed = run(site, "rotate", "--dry-run")
    assert rehearsed.status == 0 and told in rehearsed.err
    assert told not in run(site, "rotate", "--dry-run", "--without", THERE).err
    assert "refused" not in run(site, "rotate", "--dry-run", "--without-all").err
    failed(run(other, "keys", "acknowledge", "--host", THERE), 12, key, "vault keys export FILE")
    listed = run(site, "keys", "hosts")
    assert [line.split()[:3] for line in listed.out.splitlines()[1:]] == [
        [HERE, key, "staged"],
        [THERE, first, "active"],
    ]
    failed(run(site, "keys", "hosts", "--remove", "host-x", "--yes"), 10, "host-b")
    failed(run(site, "keys", "hosts", "--remove", THERE), 3, "--yes")
    assert run(site, "keys", "hosts", "--remove", THERE, "--yes").status == 0
    failed(run(site, "rotate"), 16, "by any host but host-a")
    bring(site, other, key)
    assert run(other, "keys", "acknowledge", "--host", THERE, "--json").data == {
        "host": THERE,
        "key_id": key,
        "state": "staged",
    }
    assert [each["host"] for each in run(site, "keys", "hosts", "--json").data] == [HERE, THERE]
    assert process(site, "rotate", "--host", HERE).status == 0 and site.active() == key
    failed(run(site, "rotate"), 16, THERE, "'vault rotate --stage'")
    assert run(site, "rotate", "--stage").status == 0
    done = run(site, "rotate", "--unstage")
    assert "is not staged any more" in done.out and "vault keys destroy" in done.err
    failed(run(site, "rotate", "--unstage"), 12, "no key is staged")
    failed(run(site, "rotate", "--unstage", "--stage"), 2, "only one of")
    assert run(site, "rotate", "--without-all").status == 0
