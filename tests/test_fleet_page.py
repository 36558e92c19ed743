"""What docs/fleet.md says: its unit and its manifest, in folders and modes as a host makes them."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.pages import blocks, lines
from helpers.postgres import SUPERUSER, Postgres
from helpers.site import Site, new_site, sql

from outreach_vault import KeyDirectory, KeyMissing, KeyStoreUnavailable, SchemaMismatch, Vault
from outreach_vault.schema.steps import own_steps

PAGE = "docs/fleet.md"
SENT = "sends with an invented one\n"
WORKER = """
from outreach_vault import Vault
with Vault.open() as vault:
    print("sends with", vault.get("smtp", "password").reveal())
"""


@pytest.fixture
def site(postgres_18: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = new_site(tmp_path_factory.mktemp("operator") / "site", postgres_18)
    with made.open() as vault:
        vault.set("smtp", "password", "an invented one")
    return made


def test_what_the_page_types_sets_a_server_up(postgres_18: Postgres, programs: Path) -> None:
    server, said = postgres_18, ""
    keys = programs.parent / "keys"
    env = {
        "PATH": f"{programs}:{server.programs}:{os.environ['PATH']}",
        "HOME": str(programs.parent),
        "PGHOST": str(server.folder),
        "PGPORT": str(server.port),
        "PGUSER": SUPERUSER,
        "OUTREACH_VAULT_DB": server.url("outreach", "outreach_owner"),
        "OUTREACH_VAULT_KEY_DIR": str(keys),
    }
    roles = ("outreach_adapters", "outreach_operators", "outreach_owner")
    try:
        for block in blocks(PAGE):
            for line in lines(block) if block.language == "console" and block.runs else ():
                command = ["bash", "-euo", "pipefail", "-c", line.command]
                done = subprocess.run(command, env=env, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
                assert done.stdout.startswith(line.shown.partition("...")[0])
                said += line.command
        assert "vault init" in said and "psql" in said
        for role in roles[:2]:
            with Vault.open(server.url("outreach", role), key_store=KeyDirectory(keys)) as vault:
                assert vault.list() == []
    finally:
        server.drop("outreach")
        for role in roles:
            server.sql("postgres", f"DROP ROLE IF EXISTS {role}")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """`vault` and a worker, on the path of the service."""
    (folder := tmp_path / "programs").mkdir()
    for name, arguments in (("vault", "-m outreach_vault"), ("outreach-worker", f"-c '{WORKER}'")):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        (folder / name).chmod(0o755)
    for above in (folder, *folder.parents):
        if above.owner() == folder.owner() and above != Path("/tmp"):
            above.chmod(0o755)
    return folder


def block(language: str) -> str:
    (text,) = [each.text for each in blocks(PAGE) if each.language == language]
    return text


def key_files(site: Site) -> dict[str, str]:
    return {file.name: file.read_text() for file in site.keys.glob("*.key")}


def somebody(uid: int, programs: Path) -> dict[str, Any]:
    """For subprocess: as that user, where root runs the tests and the user can run Python."""
    if os.geteuid() != 0:
        return {}
    user = {"user": uid, "group": uid, "extra_groups": [uid]}
    runs = subprocess.run([programs / "vault", "--version"], cwd="/", capture_output=True, **user)
    return {} if runs.returncode else user


def run(command: list[str], env: dict[str, str], programs: Path, **options: Any) -> str:
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": "/nonexistent", **env}
    done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_unit_runs_in_the_folder_that_systemd_makes(
    site: Site, programs: Path, tmp_path: Path
) -> None:
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    lines = [line.partition("=") for line in block("ini").splitlines() if "=" in line]
    parser.read_string(block("ini"))
    assert parser.sections() == ["Service"]
    given = [value.partition(":")[::2] for name, _, value in lines if name == "LoadCredential"]
    assert all(path.startswith("/etc/outreach/") for _, path in given)
    (credentials := tmp_path / "credentials").mkdir()
    contents = {"database": f"{site.database}\n"}
    (key,) = key_files(site).items()
    contents["VAULT_ID.KEY_ID.key"] = key[1]
    user = somebody(1000, programs)
    for name, _ in given:
        file = credentials / (key[0] if name.startswith("VAULT_ID") else name)
        file.write_text(contents.pop(name))
        file.chmod(0o400)
        if user:
            os.chown(file, user["user"], user["group"])
    assert not contents
    if user:
        os.chown(credentials, user["user"], user["group"])
    credentials.chmod(0o500)
    env = dict(
        value.replace("%d", str(credentials)).split("=", 1)
        for name, _, value in lines
        if name == "Environment"
    )
    for step in ("ExecStartPre", "ExecStart"):
        (command,) = [value for name, _, value in lines if name == step]
        said = run(shlex.split(command), env, programs, **user)
    assert said == SENT
    assert len(sql(site.database, "SELECT host FROM vault_hosts")) == 1


def mounted(folder: Path, files: dict[str, str], mode: int, group: int) -> None:
    """A Secret's volume as kubelet makes it: links to a version's files, which a link names."""
    version = "..2026_11_27_10_00_00.123456789"
    (folder / version).mkdir(parents=True)
    for name, text in files.items():
        (folder / version / name).write_text(text)
        (folder / version / name).chmod(mode)
        os.chown(folder / version / name, -1, group)
        (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data").symlink_to(version)
    for each in (folder, folder / version):
        os.chown(each, -1, group)
        each.chmod(0o2755)


def test_the_manifest_runs_with_the_volumes_that_kubernetes_mounts(
    site: Site, programs: Path, tmp_path: Path
) -> None:
    pod = yaml.safe_load(block("yaml"))
    spec = pod["spec"]
    security, (container,) = spec["securityContext"], spec["containers"]
    assert security["runAsNonRoot"] and security["runAsUser"] == security["runAsGroup"]
    user = somebody(security["runAsUser"], programs)
    group = security["fsGroup"] if user else os.getegid()
    contents = {"outreach-database": {"url": site.database}, "outreach-keys": key_files(site)}
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert all(each["readOnly"] for each in container["volumeMounts"])
    for volume in spec["volumes"]:
        secret = volume["secret"]
        place = tmp_path / mounts[volume["name"]].strip("/")
        mounted(place, contents.pop(secret["secretName"]), secret["defaultMode"], group)
    assert not contents
    env = {each["name"]: f"{tmp_path}{each['value']}" for each in container["env"]}
    assert run(container["command"], env, programs, **user).endswith(SENT)
    assert sql(site.database, "SELECT host FROM vault_hosts") == [("worker",)]


def test_keys_that_anybody_may_read_are_refused_with_the_reason(site: Site, tmp_path: Path) -> None:
    mounted(tmp_path / "open", key_files(site), 0o444, os.getegid())
    keys = KeyDirectory(tmp_path / "open")
    with (
        Vault.open(site.database, key_store=keys) as vault,
        pytest.raises(KeyStoreUnavailable, match="mode 0444"),
    ):
        vault.get("smtp", "password")


def test_a_host_works_as_soon_as_the_key_is_there(site: Site, tmp_path: Path) -> None:
    mounted(tmp_path / "late", {}, 0o440, os.getegid())
    with Vault.open(site.database, key_store=KeyDirectory(tmp_path / "late")) as vault:
        with pytest.raises(KeyMissing, match=site.active()):
            vault.get("smtp", "password")
        for name, text in key_files(site).items():
            (tmp_path / "late" / name).write_text(text)
            (tmp_path / "late" / name).chmod(0o400)
        assert vault.get("smtp", "password").reveal() == "an invented one"


def test_the_urls_of_the_page_are_taken() -> None:
    from outreach_vault.database import locate

    page = Path(__file__).parent.parent / PAGE
    urls = re.findall(r"postgresql://[^`\s)]+", page.read_text())
    assert len(urls) >= 2
    for url in urls:
        assert locate(url).options["dbname"]


def test_what_runs_goes_on_through_a_migration_and_what_starts_with_less_is_refused(
    site: Site,
) -> None:
    """A later version's step: it adds, as every step does."""
    later = str(own_steps() + 1)
    with site.open() as running:
        sql(site.database, "CREATE TABLE vault_later (id TEXT)")
        sql(site.database, "ALTER TABLE provider_credentials ADD COLUMN later TEXT")
        sql(site.database, "UPDATE vault_meta SET value = ? WHERE key = 'version'", later)
        running.set("smtp", "password", "another")
        assert running.get("smtp", "password").reveal() == "another"
    with pytest.raises(SchemaMismatch, match="newer version"):
        site.open()
