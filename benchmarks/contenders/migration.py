"""
A migration from schema 4 of a database with COUNT CVs, and beside it a copy of that database.

`python migration.py FOLDER COUNT`. Each run gives back the seconds: `vault migrate` makes a
verified copy itself first.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from contender import serve

from outreach_vault.database import Database, locate, open_database
from outreach_vault.schema import migrator

MOMENT = "2026-02-06T09:30:00.250Z"
CV = (
    "id, file_path, file_name, created_at, updated_at, contact_json, contact_confidence, "
    "parse_confidence, raw_text, project_id"
)


def cvs(count: int) -> Iterator[tuple[object, ...]]:
    for number in range(count):
        text = f"candidate {number}\n" + "one more line of an invented CV\n" * 40
        yield (
            f"{number:032x}",
            "/home/cv.pdf",
            "cv.pdf",
            MOMENT,
            MOMENT,
            '{"name":"Invented"}',
            0.9,
            0.9,
            text,
            "default-project",
        )


def build(path: Path, count: int) -> None:
    insert = f"INSERT INTO cvs ({CV}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

    def fill(database: Database) -> None:
        for step in migrator.steps()[:4]:
            migrator.apply(database, step)
        database.write(lambda: database.change_each(insert, cvs(count)))

    locate(path).create(fill)


def main(folder: Path, count: int) -> None:
    released = folder / "released.db"
    build(released, count)

    def timed(action: str) -> float:
        work = folder / "work"
        work.mkdir()
        path = Path(shutil.copy(released, work / "samsara.db"))
        begun = time.perf_counter()
        if action == "migrate":
            assert len(migrator.migrate(path).steps) == len(migrator.steps()[4:])
        else:
            database = open_database(path)
            database.backup(work / "copy.db", lambda _: None)
            database.close_all()
        seconds = time.perf_counter() - begun
        shutil.rmtree(work)
        return seconds

    serve({"migrate": lambda _: timed("migrate"), "copy": lambda _: timed("copy")})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
