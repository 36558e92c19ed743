"""Many processes on one server, which is killed and started again beside them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from helpers.effort import effort
from helpers.fleet import at_work, require_kept
from helpers.postgres import Postgres
from helpers.site import Figures, new_site

pytestmark = pytest.mark.peer


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
