"""A fleet of processes at work on one vault on a server."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from helpers import fleet_peers
from helpers.fleet_peers import EACH, Notes, Thing
from helpers.site import Site

WORKERS, ROTATORS = 8, 2


@contextlib.contextmanager
def at_work(
    site: Site, database: str, rotators: int = ROTATORS
) -> Iterator[tuple[Notes, list[dict[str, Any]]]]:
    """A fleet, and at the end what each of its processes has seen."""
    notes, seen = Notes(site.folder / "notes", WORKERS * EACH), list[dict[str, Any]]()
    with site.open() as vault:
        fleet_peers.fill(vault, notes, WORKERS)
    names = (database, site.keys, site.folder / "notes", rotators, WORKERS)
    command = [sys.executable, fleet_peers.__file__, *map(str, names)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as fleet:
        assert fleet.stdout
        lines = map(json.loads, fleet.stdout)
        reading = threading.Thread(target=lambda: seen.extend(lines))
        try:
            told = [next(lines) for _ in range(WORKERS + rotators)]
            assert all(line == "ready" for line in told), told
            reading.start()
            yield notes, seen
        finally:
            notes.stop()
            if reading.ident:
                reading.join()
    assert [each["fault"] for each in seen if "fault" in each] == []
    assert len(seen) == WORKERS + rotators


def require_kept(site: Site, notes: Notes) -> None:
    """Each thing has the last version that was acknowledged, or one that was tried later."""
    with site.open() as vault:
        for number in range(WORKERS * EACH):
            version = Thing(number).read(vault)
            assert notes.stored(number) <= version <= notes.tried(number), number
