"""
Rotations beside a program that overwrites nothing it deletes, and what is left of old tokens.

As `main()` in a process of its own, the same with another build of SQLite: whoever starts it has
replaced `sqlite3` before anything imports it.
"""

from __future__ import annotations

import base64
import contextlib
import random
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from helpers.rotation_peers import place
from helpers.site import Site, bytes_of, new_site
from outreach_vault import Vault
from outreach_vault.operations import recovery, rotation
from outreach_vault.operations.rotation import Report

PIECE = 20
_HALF = PIECE // 2
_RUNS = re.compile(rb"[A-Za-z0-9_=-]{%d,}" % PIECE)


def parts(text: str, length: int) -> set[bytes]:
    """Every part of *text* that is so long."""
    data = text.encode()
    return {data[at : at + length] for at in range(len(data) - length + 1)}


class Tokens:
    """
    What is looked for: every piece of some tokens that is `PIECE` characters long.

    Whatever the place of a piece, half its length of it lies between two marks that are set that
    far apart. So only what lies between marks is looked up, and then each place around a hit: a
    tenth of the time, and nothing is missed.
    """

    def __init__(self) -> None:
        self.pieces = set[bytes]()
        self._halves = set[bytes]()

    def add(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.pieces |= parts(text, PIECE)
            self._halves |= parts(text, _HALF)

    def found_in(self, data: bytes) -> set[bytes]:
        """A token has no other characters than those of `_RUNS`, so its pieces are in such runs."""
        found = set[bytes]()
        for run in map(re.Match[bytes].group, _RUNS.finditer(data)):
            for mark in range(0, len(run) - _HALF + 1, _HALF):
                if run[mark : mark + _HALF] in self._halves:
                    around = (run[at : at + PIECE] for at in range(max(0, mark - _HALF), mark + 1))
                    found |= self.pieces.intersection(around)
        return found


def sealed_by_us(site: Site) -> list[str]:
    """The tokens of the vault; what the other program stored and deleted is its own business."""
    return _texts(site, "SELECT encrypted_value FROM provider_credentials WHERE provider <> 'app'")


def _texts(site: Site, sql: str) -> list[str]:
    with contextlib.closing(sqlite3.connect(site.database)) as connection:
        return [text for (text,) in connection.execute(sql)]


def residue(site: Site, old: Tokens, vault: Vault) -> set[bytes]:
    """What is left of old tokens in the database, beside it, and in a backup that is made now."""
    target = site.database.with_name("backup.db")
    recovery.backup(vault, target)
    data = b"\n".join(bytes_of(path) for path in (*files_of(site.database), target))
    target.unlink()
    found = old.found_in(data)
    if (
        found
    ):  # the beginning of a token is the time, which stays; and check values are tokens that stay
        for text in (*sealed_by_us(site), *_texts(site, "SELECT check_value FROM vault_keys")):
            found -= parts(text, PIECE)
    return found


def files_of(database: Path) -> list[Path]:
    return [database.with_name(database.name + suffix) for suffix in ("", "-wal", "-shm")]


class Program:
    """The desktop app: on a connection of its own, and what it deletes stays in the file."""

    def __init__(self, database: Path, chance: random.Random) -> None:
        # The tests write from one thread at a time; which one is their business.
        self.connection = sqlite3.connect(
            database, timeout=5, isolation_level=None, check_same_thread=False
        )
        self.connection.execute("PRAGMA secure_delete = 0")
        assert self.connection.execute("PRAGMA secure_delete").fetchone() == (0,)
        self.connection.execute("CREATE TABLE IF NOT EXISTS app_scratch (body TEXT)")
        self.chance = chance
        self.shapes_left = (
            4  # each makes a rotation begin a pass anew; without an end it would have none
        )

    def act(self) -> None:
        """One thing of what such a program does, in a transaction of its own."""
        acts = [
            self.label,
            self.labels,
            self.insert,
            self.insert,
            self.resize,
            self.delete,
            self.scratch,
            self.unscratch,
            self.shrink,
        ]
        if self.chance.random() < 0.1 and self.shapes_left:
            self.shapes_left -= 1
            acts = [self.vacuum, self.add_column]
        self.chance.choice(acts)()

    def text(self, most: int) -> str:
        return base64.b64encode(self.chance.randbytes(self.chance.randrange(most))).decode()

    def label(self) -> None:
        (most,) = self.connection.execute("SELECT max(rowid) FROM provider_credentials").fetchone()
        row = self.chance.randint(1, most or 1)
        self._change(f"UPDATE provider_credentials SET label = ? WHERE rowid = {row}", 90)

    def labels(self) -> None:
        self._change(f"UPDATE provider_credentials SET label = ? WHERE {self._some(7)}", 200)

    def insert(self) -> None:
        row_id = self.chance.randbytes(16).hex()
        self._change(
            "INSERT INTO provider_credentials"
            " (encrypted_value, id, provider, credential_type, created_at, updated_at)"
            f" VALUES ('djEx' || ?, '{row_id}', 'app', 'own-{row_id}', '', '')",
            self.chance.choice([40, 300, 1_500, 9_000]),
        )

    def resize(self) -> None:
        self._change(
            "UPDATE provider_credentials SET encrypted_value = 'djEx' || ? WHERE provider = "
            f"'app' AND {self._some(3)}",
            900,
        )

    def delete(self) -> None:
        self.connection.execute(
            f"DELETE FROM provider_credentials WHERE provider = 'app' AND {self._some(2)}"
        )

    def scratch(self) -> None:
        self._change("INSERT INTO app_scratch VALUES (?)", 20_000)

    def unscratch(self) -> None:
        self.connection.execute(f"DELETE FROM app_scratch WHERE {self._some(2)}")

    def shrink(self) -> None:
        self.connection.execute(
            "PRAGMA incremental_vacuum(3)"
        ).fetchall()  # does something where the file is made for it

    def vacuum(self) -> None:
        self.connection.execute("VACUUM")

    def add_column(self) -> None:
        names = [
            row[1] for row in self.connection.execute("PRAGMA table_info(provider_credentials)")
        ]
        if f"app_{len(names)}" not in names and len(names) < 16:
            self.connection.execute(
                f"ALTER TABLE provider_credentials ADD COLUMN app_{len(names)} TEXT"
            )
            self._change(f"UPDATE provider_credentials SET app_{len(names)} = ?", 60)

    def _some(self, one_in: int) -> str:
        return f"rowid % {one_in} = {self.chance.randrange(one_in)}"

    def _change(self, sql: str, most: int) -> None:
        self.connection.execute(sql, (self.text(most),))

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """It goes on by itself, also while the file is rewritten and its log cut."""
        ended, faults = threading.Event(), list[Exception]()

        def work() -> None:
            try:
                while not ended.is_set():
                    self.act()
                    time.sleep(0.001)  # not without an end, or nobody else comes to write
            except Exception as error:
                faults.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        assert not faults, faults


class Outcome(NamedTuple):
    """Of one rotation: its report, how many pieces were old, and those of them that are left."""

    report: Report
    old: int
    left: set[bytes]


def rotations(site: Site, program: Program, count: int, *, at_work: bool) -> Iterator[Outcome]:
    """
    Rotate *count* times beside *program*, which acts before each and between its batches.

    Args:
        at_work: it also acts at any other moment.
    """
    old = Tokens()

    def act(*_: int) -> None:
        if not at_work:
            program.act()

    with site.open() as vault:
        for _ in range(count):
            program.shapes_left = 4
            for _ in range(program.chance.randrange(1, 8)):
                program.act()
            old.add(sealed_by_us(site))
            with program.at_work() if at_work else contextlib.nullcontext():
                report = rotation.rotate(vault, progress=act)
            yield Outcome(report, len(old.pieces), residue(site, old, vault))


def fill_unevenly(vault: Vault, count: int, most: int, chance: random.Random) -> None:
    """*count* values of any length to *most*: some share a page, some need several."""
    for first in range(0, count, 50):
        values: dict[str, str] = {}
        for number in range(first, min(first + 50, count)):
            values[place(number).credential_type] = "v" * chance.randrange(
                1, chance.choice([60, 300, most])
            )
        vault.set_fields("smtp", values)


def main() -> None:
    """Rotate in a new vault with the `sqlite3` that is here; a line for what each rotation left."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    options = {row[0] for row in sqlite3.connect(":memory:").execute("PRAGMA compile_options")}
    print("secure" if "SECURE_DELETE" in options else "plain", sqlite3.sqlite_version, flush=True)
    chance, site = random.Random(3), new_site(folder)
    with site.open() as vault:
        fill_unevenly(vault, 120, 1_500, chance)
    rotation.BATCH = 15  # type: ignore[misc]
    program = Program(site.database, chance)
    for report, old, left in rotations(site, program, count, at_work=False):
        print(report.scrubbed, report.complete, old, len(left), flush=True)
    program.connection.close()
