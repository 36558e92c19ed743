"""A second server that follows the first, and takes its place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from helpers.commands import failed, problems, run
from helpers.fleet import at_work, require_kept
from helpers.postgres import APP, Postgres, Standby
from helpers.site import Site, name_of, new_site

from outreach_vault.errors import OutcomeUnknown

pytestmark = pytest.mark.peer
_NAME, _PLACE = "second", ("smtp", "password")


@pytest.fixture
def primary() -> Iterator[Postgres]:
    with Postgres(18, fsync=True) as server:
        yield server


@pytest.fixture
def site(primary: Postgres, tmp_path: Path) -> Site:
    made = new_site(tmp_path / "site", primary)
    with made.open() as vault:
        vault.set(*_PLACE, "the first")
    return made


@pytest.fixture
def standby(primary: Postgres, site: Site) -> Iterator[Standby]:
    """It shows all that the primary has acknowledged."""
    with Standby(primary, cluster_name=_NAME) as server:
        for setting in (
            f"synchronous_standby_names = {_NAME}",
            "synchronous_commit = remote_apply",
        ):
            primary.sql("postgres", f"ALTER SYSTEM SET {setting}")
        primary.sql("postgres", "SELECT pg_reload_conf()")
        follows = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
        server.wait_for(lambda: primary.sql("postgres", follows))
        yield server


def test_a_standby_that_takes_over_has_all_that_was_acknowledged(
    primary: Postgres, standby: Standby, site: Site
) -> None:
    """The rotation in which it did so is finished by the next one."""
    hosts = ",".join(quote(str(server.folder), safe="") for server in (primary, standby))
    both = site._replace(
        database=f"postgresql://{APP}@/{name_of(site.database)}?host={hosts}"
        f"&port={primary.port},{standby.port}&target_session_attrs=read-write"
    )
    with at_work(site, both.database, rotators=0) as (notes, seen):
        with both.peer("hold") as rotating:
            assert rotating.stdout and rotating.stdout.readline() == "rotating\n"
            before = notes.acknowledged
            primary.kill()
            standby.promote()
            rotating.kill()
        time.sleep(2)
        assert notes.acknowledged > before
    assert all(each["reads"] and each["writes"] for each in seen)
    require_kept(both, notes)
    assert run(both, "rotate", "--json").data["resumed"]
    require_kept(both, notes)
    both.require_one_key()


def test_a_standby_is_read_and_not_written(standby: Standby, site: Site) -> None:
    there = site._replace(database=standby.url(name_of(site.database)))
    assert run(there, "get", *_PLACE).out == "the first\n"
    hint = "name the primary, or all servers with target_session_attrs=read-write"
    for command in (("set", *_PLACE), ("delete", *_PLACE, "--yes"), ("rotate",)):
        failed(run(there, *command, stdin=b"another"), 15, "takes no changes", hint)
    assert run(there, "list").status == run(there, "status").status == 0
    found = run(there, "doctor", "--deep", "--json")
    assert problems(found) == [], found
    assert run(site, "get", *_PLACE).out == "the first\n"


@pytest.mark.parametrize("end", ["cancel", "terminate"])
def test_a_change_that_the_standby_may_lack_is_not_acknowledged(
    end: str, primary: Postgres, standby: Standby, site: Site
) -> None:
    """The server only warns of it, and says that the transaction was committed."""
    waits = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    with site.open() as vault, ThreadPoolExecutor() as beside:
        with standby.frozen():
            setting = beside.submit(vault.set, *_PLACE, "the second")
            primary.wait_for(lambda: primary.sql("postgres", f"SELECT 1 {waits}") or setting.done())
            primary.sql("postgres", f"SELECT pg_{end}_backend(pid) {waits}")
            with pytest.raises(OutcomeUnknown, match="whether it was stored is not known"):
                setting.result(30)
        vault.set(*_PLACE, "the third")
        assert vault.get(*_PLACE).reveal() == "the third"
