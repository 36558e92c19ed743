"""A database on a server, as the command is told of it: its URL, its password, its backups."""

from __future__ import annotations

import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.commands import Done, failed, problems, process, run
from helpers.postgres import APP, PASSWORD
from helpers.rotation_peers import fill
from helpers.site import Site, name_of, prepared, sql

from outreach_vault import KeyDirectory, SharedKeys, Vault
from outreach_vault.command import cli
from outreach_vault.errors import StorageError, UnusablePath
from outreach_vault.operations import rotation

LINE = b"an invented passphrase of seven plain words\n"
SECRET = "hidden-in-a-url"
WAYS = ("OUTREACH_VAULT_DB", "OUTREACH_VAULT_DB_FILE", "PGPASSFILE")
on_a_server = pytest.mark.server("a URL, and what the server's own programs do")


def at_tcp(site: Site, password: str = PASSWORD) -> str:
    assert site.engine
    return site.engine.tcp_url(name_of(site.database), password=password)


def kinds(site: Site) -> set[str]:
    """Of the problems in a vault."""
    return {each["kind"] for each in problems(run(site, "doctor", "--deep", "--json"))}


# A password


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://app:{SECRET}@db.example/vault",
        f"postgres://:{SECRET}@/vault",
        f"postgresql://app@db.example/vault?password={SECRET}",
        f"postgresql://app@db.example/vault?pass%77ord={SECRET}",
        f"postgresql://app@db.example/vault?sslmode=require&sslpassword={SECRET}",
        f"postgresql://app:{SECRET}@one.example:1,two.example:2/vault",
        f"postgresql://app:{SECRET}\u2100@db.example/vault",  # urllib's error would repeat it
        f"postgresql://app:{SECRET}@[::1/vault",
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_a_password_on_the_command_line_is_refused_and_not_repeated(
    url: str, after: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    said = ["--db", url]
    status = cli.run(["status", *said] if after else [*said, "status"])
    done = Done(status, *capfd.readouterr())
    failed(done, 2, "--db", *WAYS)
    assert SECRET not in done.err


@on_a_server
def test_a_password_reaches_the_server_by_each_other_way(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    keys, url = ["--key-dir", str(site.keys)], at_tcp(site)
    without = url.replace(url.partition("//")[2].partition("@")[0], APP)
    monkeypatch.setenv("OUTREACH_VAULT_DB", url)
    assert cli.run([*keys, "status"]) == 0
    monkeypatch.delenv("OUTREACH_VAULT_DB")
    (file := tmp_path / "url").write_text(f"{url}\n")
    monkeypatch.setenv("OUTREACH_VAULT_DB_FILE", str(file))
    assert cli.run([*keys, "status"]) == 0
    monkeypatch.delenv("OUTREACH_VAULT_DB_FILE")
    (passwords := tmp_path / "pgpass").write_text(f"*:*:*:{APP}:{PASSWORD}\n")
    passwords.chmod(0o600)
    assert cli.run([*keys, "--db", without, "status"]) == 15
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    assert cli.run([*keys, "--db", without, "status"]) == 0
    out, err = capfd.readouterr()
    assert without in out and PASSWORD not in out + err


# A file with the URL


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n", "\na second line\n"])
def test_the_first_line_of_a_file_names_the_database(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    (file := tmp_path / "url").write_bytes(f"{site.database}{end}".encode())
    monkeypatch.setenv("OUTREACH_VAULT_DB_FILE", str(file))
    with Vault.open(key_store=KeyDirectory(site.keys)) as vault:
        assert vault.keys.states.active_id() == site.active()


def test_what_is_given_outdoes_the_variables(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTREACH_VAULT_DB_FILE", str(tmp_path / "missing"))
    assert run(site, "status").status == 0


def test_two_variables_or_a_file_that_names_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "url"
    monkeypatch.setenv("OUTREACH_VAULT_DB_FILE", str(file))
    with pytest.raises(StorageError, match=str(file)):
        Vault.open()
    for content in (b"", b"\n", b"\xff\xfe\n"):
        file.write_bytes(content)
        with pytest.raises(UnusablePath):
            Vault.open()
    file.write_text("postgresql://app@/vault")
    monkeypatch.setenv("OUTREACH_VAULT_DB", str(tmp_path / "samsara.db"))
    with pytest.raises(UnusablePath, match="both OUTREACH_VAULT_DB and OUTREACH_VAULT_DB_FILE"):
        Vault.open()


# A backup


def restored(site: Site, command: str, dump: Path) -> Site:
    """A new database with what *command* has put into *dump*, and no keys."""
    server = site.engine
    assert server
    words = shlex.split(command)
    there = server.folder / dump.name  # where the server's user may write
    words = [
        str(server.programs / words[0]),
        *(w.replace(str(dump), str(there)) for w in words[1:]),
    ]
    server.run(*words)
    (folder := site.folder.parent / "restored").mkdir()
    made = prepared(folder, server)
    server.run(server.programs / "pg_restore", "--dbname", made.database, there)
    return made


@on_a_server
def test_of_a_database_on_a_server_the_program_that_makes_a_backup_is_named(site: Site) -> None:
    with site.open() as vault:
        fill(vault, 3)
    target = site.folder / "dump"
    done = run(site, "backup", str(target))
    assert done.status == 16 and not target.exists()
    assert done.out == f"needs key {site.active()} (active) for 3 values\n"
    assert "nothing was written" in done.err and f"pg_dump --format=custom --file={target} " in (
        done.err
    )
    found = run(site, "backup", str(target), "--json")
    assert found.status == 16 and found.data["path"] is None
    assert f"run: {found.data['command']}\n" in done.err
    assert [key["id"] for key in found.data["keys"]] == [site.active()]


@on_a_server
def test_a_dump_and_an_export_are_all_that_is_needed_for_a_new_server(site: Site) -> None:
    with site.open() as vault:
        values = fill(vault, 5)
    target, export = site.folder / "dump", site.folder / "export"
    assert run(site, "keys", "export", str(export), stdin=LINE).status == 0
    command = run(site, "backup", str(target), "--json").data["command"]
    there = restored(site, command, target)
    done = run(there, "keys", "import", str(export), stdin=LINE)
    assert done.status == 0, done.err
    there.require_intact(values)
    with there.open() as vault:  # it has keys of its own
        rotation.rotate(vault)
    there.require_intact(values)
    site.require_intact(values)


@on_a_server
def test_a_restored_database_with_the_same_keys_is_a_copy(site: Site) -> None:
    assert run(site, "init").status == 0  # where it lives now
    with site.open() as vault:
        values = fill(vault, 2)
    target = site.folder / "dump"
    there = restored(site, run(site, "backup", str(target), "--json").data["command"], target)
    there = there._replace(keys=site.keys)
    with there.open() as vault, pytest.raises(SharedKeys, match="is a copy of the database"):
        rotation.rotate(vault)
    there.require_intact(values)
    failed(run(there, "rotate"), 16, "--although-copied")
    assert run(there, "rotate", "--although-copied").status == 0
    there.require_intact(values)


# Two at once, and two beside each other


def test_of_two_inits_at_once_one_makes_the_vault_and_the_other_waits_or_says_so(
    place: Site,
) -> None:
    with ThreadPoolExecutor(2) as pool:
        done = [each.result() for each in [pool.submit(process, place, "init") for _ in range(2)]]
    assert {each.status for each in done} <= {0, 15}, done
    made = [each for each in done if "made key" in each.out]
    assert len(made) == 1 and made[0].status == 0
    assert list(place.states().values()) == ["active"]
    assert len(list(place.keys.glob("*.key"))) == 1
    assert kinds(place) == set()


def in_schema(site: Site, name: str) -> Site:
    return Site(f"{site.database}&options=-csearch_path%3D{name}", site.folder / f"keys of {name}")


@on_a_server
def test_two_vaults_in_two_schemas_do_not_disturb_each_other(place: Site) -> None:
    names = ("one", "two")
    for name in names:
        sql(place.database, f"CREATE SCHEMA {name}")
    sites = [in_schema(place, name) for name in names]
    for site in sites:
        assert run(site, "init").status == 0
    values = []
    for site, count in zip(sites, (3, 5), strict=True):
        with site.open() as vault:
            values.append(fill(vault, count))
    one, two = sites
    before = two.rows(), two.states()
    with one.open() as vault, two.open() as other:
        # Neither waits for the other's operator.
        vault.database.operators_turn(lambda: rotation.rotate(other))
        assert two.states() != before[1]
        before = two.rows(), two.states()
        rotation.rotate(vault, scrub=True)
    assert (two.rows(), two.states()) == before
    for site, expected in zip(sites, values, strict=True):
        site.require_intact(expected)
        assert kinds(site) == set()
        assert "search_path" in run(site, "status").out
    assert sql(place.database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [
        (0,)
    ]


@on_a_server
def test_a_schema_that_is_missing_is_not_made(place: Site) -> None:
    site = in_schema(place, "missing")
    for command in ("init", "status"):
        failed(run(site, command), 14, "names no schema", "CREATE SCHEMA")
    assert sql(place.database, "SELECT 1 FROM pg_namespace WHERE nspname = 'missing'") == []
