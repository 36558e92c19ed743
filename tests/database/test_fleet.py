"""Many processes on one server, which is killed and started again beside them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import fleet_peers
from helpers.effort import effort
from helpers.fleet_peers import EACH, Notes, Thing
from helpers.postgres import Postgres
from helpers.site import Figures, Site, new_site

pytestmark = pytest.mark.peer
WORKERS, ROTATORS = 8, 2


@contextlib.contextmanager
def at_work(site: Site, database: str) -> Iterator[tuple[Notes, list[dict[str, Any]]]]:
    """A fleet, and at the end what each of its processes has seen."""
    notes, seen = Notes(site.folder / "notes", WORKERS * EACH), list[dict[str, Any]]()
    with site.open() as vault:
        fleet_peers.fill(vault, notes, WORKERS)
    names = (database, site.keys, site.folder / "notes", ROTATORS, WORKERS)
    command = [sys.executable, fleet_peers.__file__, *map(str, names)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as fleet:
        assert fleet.stdout
        lines = map(json.loads, fleet.stdout)
        reading = threading.Thread(target=lambda: seen.extend(lines))
        try:
            told = [next(lines) for _ in range(WORKERS + ROTATORS)]
            assert all(line == "ready" for line in told), told
            reading.start()
            yield notes, seen
        finally:
            notes.stop()
            if reading.ident:
                reading.join()
    assert [each["fault"] for each in seen if "fault" in each] == []
    assert len(seen) == WORKERS + ROTATORS


def require_kept(site: Site, notes: Notes) -> None:
    """Each thing has the last version that was acknowledged, or one that was tried later."""
    with site.open() as vault:
        for number in range(WORKERS * EACH):
            version = Thing(number).read(vault)
            assert notes.stored(number) <= version <= notes.tried(number), number


def total(seen: list[dict[str, Any]], what: str) -> int:
    return sum(each.get(what, 0) for each in seen)


def test_a_fleet_goes_on_after_its_server_was_killed(tmp_path: Path, figures: Figures) -> None:
    """No value is wrong, nothing acknowledged is lost, no read fails once the server is back."""
    seconds, away = effort(60, 8), list[tuple[float, float]]()
    with Postgres(18, fsync=True) as server:
        site = new_site(tmp_path / "site", server)
        with at_work(site, site.database) as (notes, seen):
            for _ in range(2):
                time.sleep(seconds / 3)
                began = time.monotonic()
                server.kill()
                server.start()
                away.append((began, time.monotonic()))
            time.sleep(seconds / 3)
        require_kept(site, notes)
    failed = [read for each in seen for read in each.get("failed", ())]
    for began, ended, said in failed:
        assert any(down <= ended and began <= up for down, up in away), (began, ended, said, away)
    workers = [each for each in seen if "reads" in each]
    assert all(each["writes"] and each["reads"] for each in workers)
    restart = max(up - down for down, up in away)
    slowest = max(each["slowest"] for each in workers)
    figures("reads by a fleet whose server was killed twice, none wrong", total(seen, "reads"))
    figures("acknowledged writes by that fleet, none lost", total(seen, "writes"))
    figures("rotations by that fleet", total(seen, "rotations"))
    figures("the longest read of that fleet, ms", int(slowest * 1000))
    figures("the longest restart beside that fleet, ms", int(restart * 1000))
