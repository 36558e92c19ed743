"""
What a rotation leaves of old tokens beside another writer: nothing, if it says that it scrubbed.

The vault overwrites what it deletes; the desktop app does not. Where that one's writes split a
page, copies of the vault's rows stay in free space, which no later write has to touch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import SAMPLES, TESTS
from helpers.effort import THOROUGH, effort
from helpers.faults import forked
from helpers.residue_peers import (
    PIECE,
    Program,
    Tokens,
    fill_unevenly,
    residue,
    rotations,
    sealed_by_us,
)
from helpers.rotation_peers import fill, place
from helpers.site import Figures, Site

from outreach_vault import KeyDirectory
from outreach_vault.database.sqlite import database
from outreach_vault.database.sqlite.connections import _Connection
from outreach_vault.operations import rotation
from outreach_vault.operations.init import init

pytestmark = [
    pytest.mark.skipif(
        os.name == "nt", reason="reads files that are open, by cat; forks and kills"
    ),
    pytest.mark.sweep(2),
    pytest.mark.sqlite("what is left in its file and its log"),
]
TURNS = effort(10, 3)


@contextlib.contextmanager
def program_on(site: Site, chance: random.Random) -> Iterator[Program]:
    program = Program(site.database, chance)
    with contextlib.closing(program.connection):
        yield program


@contextlib.contextmanager
def reading(site: Site) -> Iterator[None]:
    """Another program in the middle of a long read."""
    with contextlib.closing(sqlite3.connect(site.database, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM provider_credentials").fetchone()
        yield
        reader.execute("COMMIT")


def spread(site: Site) -> Tokens:
    """All tokens that are stored, after another program had copies of them made in free space."""
    old = Tokens()
    old.add(sealed_by_us(site))
    with program_on(site, random.Random(1)) as program:
        for _ in range(6):
            program.labels()
            program.insert()
            program.delete()
        program.connection.execute("DELETE FROM provider_credentials WHERE provider = 'app'")
    return old


# What is left


def test_the_search_finds_every_piece_of_a_token_and_nothing_else() -> None:
    """The tests below look for nothing, which is also what a search that does not work finds."""
    chance, old = random.Random(5), Tokens()
    token = "gAAAAABh" + "".join(chance.choices("abcdefXYZ019_-", k=70)) + "=="
    old.add([token])
    assert len(old.pieces) == len(token) - PIECE + 1
    for at in range(len(token) - PIECE + 1):
        piece = token[at : at + PIECE].encode()
        for before in range(25):
            assert old.found_in(b"\0" + b"Q" * before + piece + b"Q" * (at % 3) + b"\0") == {piece}
    assert old.found_in(b"\0" + token.encode() + b"\xff") == old.pieces
    assert not old.found_in(token[:19].encode() + b"." + token[19:38].encode() + b"Q" * 50)


# One is large; beside half of them the program writes at any moment; a third are files that move
# pages to become smaller.
@pytest.mark.parametrize("number", range(10) if THOROUGH else (1, 4, 6))
def test_rotate_beside_a_program_that_overwrites_nothing_leaves_no_piece_of_an_old_token(
    site: Site, monkeypatch: pytest.MonkeyPatch, figures: Figures, number: int
) -> None:
    count, chance, done = 400 if number == 0 else 25 + 10 * number, random.Random(number), 0
    monkeypatch.setattr(rotation, "BATCH", count // 8)
    with site.open() as vault:
        fill_unevenly(vault, count, 2_500 if number == 0 else 6_000, chance)
    if number % 3 == 1:
        with contextlib.closing(sqlite3.connect(site.database, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA auto_vacuum = {1 + number // 3 % 2}")
            connection.execute("VACUUM")
    with program_on(site, chance) as program:
        for report, old, left in rotations(site, program, TURNS, at_work=number % 2 == 0):
            assert report.scrubbed and report.complete
            assert old > 100 * count and not left, (
                f"{len(left)} of {old} pieces are left after rotation {done + 1}"
            )
            done += 1
    assert {row["key_id"] for row in site.rows().values() if row["provider"] != "app"} == {
        site.active()
    }
    assert done == TURNS
    figures(
        "rotations beside a program that overwrites nothing, no old token left in the files",
        done,
    )


@pytest.mark.thorough
@pytest.mark.peer
def test_rotate_with_a_sqlite_that_overwrites_nothing_leaves_no_piece_of_an_old_token(
    tmp_path: Path, figures: Figures
) -> None:
    """Debian builds SQLite to overwrite what is deleted, and most others do not."""
    if importlib.util.find_spec("pysqlite3") is None:
        pytest.skip("no pysqlite3 on this machine (PyPI: pysqlite3-binary)")
    script = (
        "import sys, pysqlite3; sys.modules['sqlite3'] = pysqlite3; "
        "from helpers import residue_peers; residue_peers.main()"
    )
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", script, str(tmp_path / "site"), "8"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (build, _), *found = [line.split() for line in done.stdout.splitlines()]
    assert build == "plain"
    assert [(scrubbed, complete, left) for scrubbed, complete, _, left in found] == [
        ("True", "True", "0")
    ] * 8
    assert all(int(old) > 10_000 for _, _, old, _ in found)
    figures(
        "rotations with a SQLite that overwrites nothing, no old token left in the files",
        len(found),
    )


# What keeps it from being done


@pytest.mark.usefixtures("impatient")
def test_rotate_beside_an_open_reader_says_that_it_did_not_scrub_and_the_next_one_does(
    site: Site,
) -> None:
    with site.open() as vault:
        values = fill(vault, 30, size=50)
        old = spread(site)
        with reading(site):
            vault.database.fetch("PRAGMA busy_timeout = 100")
            report = rotation.rotate(vault)
            assert (report.log_truncated, report.scrubbed, report.complete) == (False, False, False)
            assert report.rotated == 30 and residue(site, old, vault)
            assert vault.keys.states.unfinished_rotation()
            site.require_intact(values)
        again = rotation.rotate(vault)
        assert (again.log_truncated, again.scrubbed, again.complete, again.resumed) == (
            True,
            True,
            True,
            True,
        )
        assert again.new_key == report.new_key and (again.rotated, again.already_current) == (0, 30)
        assert not residue(site, old, vault) and not vault.keys.states.unfinished_rotation()
    site.require_intact(values)


def test_rotate_without_scrub_is_complete_and_says_that_it_left_that_out(site: Site) -> None:
    with site.open() as vault:
        values = fill(vault, 30, size=50)
        old = spread(site)
        left_out = rotation.rotate(vault, scrub=False)
        assert (left_out.scrubbed, left_out.complete, left_out.log_truncated, left_out.rotated) == (
            False,
            True,
            True,
            30,
        )
        assert not vault.keys.states.unfinished_rotation() and residue(site, old, vault)
        site.require_one_key()
        done = rotation.rotate(vault, scrub=True)
        assert (
            done.scrubbed
            and done.complete
            and not done.resumed
            and done.new_key != left_out.new_key
        )
        assert not residue(site, old, vault)
    site.require_intact(values)


def test_rotate_of_a_file_that_is_too_large_is_finished_without_a_new_key_by_one_that_scrubs_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SCRUB_AT_MOST", 1)
    with site.open() as vault:
        values = fill(vault, 30, size=50)
        old = spread(site)
        first = rotation.rotate(vault)
        assert (first.scrubbed, first.complete, first.log_truncated, first.rotated) == (
            False,
            False,
            True,
            30,
        )
        assert residue(site, old, vault) and vault.keys.states.unfinished_rotation()
        keys = site.states()
        done = rotation.rotate(vault, scrub=True)
        assert (done.scrubbed, done.complete, done.resumed, done.rotated, done.already_current) == (
            True,
            True,
            True,
            0,
            30,
        )
        assert (
            site.states() == keys
            and done.new_key == first.new_key
            and done.old_key == first.old_key
        )
        assert not residue(site, old, vault) and not vault.keys.states.unfinished_rotation()
        assert rotation.rotate(vault, scrub=True).new_key not in keys
    site.require_intact(values)


def test_the_log_is_cut_in_short_tries_so_that_no_writer_gives_up_while_a_reader_is_open(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    SQLite keeps the write lock for as long as it waits for readers there, and the app waits five
    seconds at most.
    """
    monkeypatch.setattr(database, "_CHECKPOINT_PAUSES", (0.0, 0.0))
    with site.open() as vault, reading(site):
        fill(vault, 3)
        said = list[str]()
        vault.database.connection().set_trace_callback(said.append)
        assert not vault.database.truncate_log()
        once = [
            "PRAGMA busy_timeout = 500",
            "PRAGMA wal_checkpoint(TRUNCATE)",
            "PRAGMA busy_timeout = 5000",
        ]
        assert said == once * 2


def test_rotate_leaves_a_file_as_it_is_where_a_full_text_index_holds_the_numbers_of_rows(
    site: Site,
) -> None:
    """
    VACUUM gives the rows of a table without an integer key other numbers, and such an index then
    finds others.
    """
    with contextlib.closing(sqlite3.connect(site.database)) as app:
        app.execute("CREATE VIRTUAL TABLE found USING fts5(raw_text, content='cvs')")
    with site.open() as vault:
        fill(vault, 3)
        report = rotation.rotate(vault)
        assert not report.scrubbed and "found" in str(report.scrub_problem) and not report.complete
        assert rotation.rotate(vault, scrub=True).complete


def test_rotate_of_a_file_that_is_too_large_does_not_destroy_the_old_key_until_it_is_scrubbed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who destroys a key to make old copies worthless must not be told that none is in the file."""
    monkeypatch.setattr(database, "SCRUB_AT_MOST", 1)
    with site.open() as vault:
        fill(vault, 5)
        first = rotation.rotate(vault, destroy_old=True)
        assert (
            first.destroyed_key is None
            and first.old_key
            and site.states()[first.old_key] == "retired"
        )
        done = rotation.rotate(vault, destroy_old=True, scrub=True)
        assert done.destroyed_key == first.old_key and site.states()[first.old_key] == "destroyed"


# What others do meanwhile


def _vacuums(connection: sqlite3.Connection) -> None:
    connection.execute("VACUUM")


def _makes_the_table_anew(connection: sqlite3.Connection) -> None:
    """Where ALTER TABLE is not enough (sqlite.org/lang_altertable.html, 7): new row numbers."""
    (table,) = connection.execute(
        "SELECT sql FROM sqlite_master WHERE name = 'provider_credentials'"
    ).fetchone()
    rest = connection.execute(
        "SELECT sql FROM sqlite_master WHERE tbl_name = 'provider_credentials' AND type <> "
        "'table' AND sql > ''"
    )
    statements = [sql for (sql,) in rest]
    connection.execute("PRAGMA foreign_keys = 0")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(table.replace("provider_credentials", "made_anew", 1))
    connection.execute("INSERT INTO made_anew SELECT * FROM provider_credentials ORDER BY rowid")
    connection.execute("DROP TABLE provider_credentials")
    connection.execute("ALTER TABLE made_anew RENAME TO provider_credentials")
    for sql in statements:
        connection.execute(sql)
    connection.execute("COMMIT")


@pytest.mark.parametrize("at", range(1, 9))
@pytest.mark.parametrize("meddle", [_vacuums, _makes_the_table_anew])
def test_rotate_meets_every_row_where_another_program_numbers_them_anew_in_the_middle_of_a_pass(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    meddle: Callable[[sqlite3.Connection], None],
    at: int,
) -> None:
    """A row that gets a number which the pass has gone by must not be missed."""
    monkeypatch.setattr(rotation, "BATCH", 4)
    with (
        site.open() as vault,
        contextlib.closing(sqlite3.connect(site.database, isolation_level=None)) as connection,
    ):
        values = fill(vault, 50)
        for number in (*range(14), 20, 30, 31):
            vault.delete(*place(number)[1:], place(number).project_id)
            del values[place(number)]
        calls = 0

        def progress(seen: int, total: int) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                meddle(connection)

        report = rotation.rotate(vault, progress=progress)
        assert calls >= at and report.complete and report.rotated == len(values) == 33
        assert report.already_current == report.foreign == report.unreadable == 0
    site.require_one_key()
    site.require_intact(values)


def test_rotate_leaves_a_program_whose_statement_and_connection_were_open_all_along_at_work(
    site: Site,
) -> None:
    with (
        site.open() as vault,
        contextlib.closing(sqlite3.connect(site.database, isolation_level=None)) as other,
    ):
        values = fill(vault, 20)
        update = "UPDATE provider_credentials SET label = ? WHERE credential_type = 'field-1'"
        other.execute(update, ("before",))
        assert rotation.rotate(vault).scrubbed
        assert other.execute(update, ("after",)).rowcount == 1
        assert other.execute(
            "SELECT count(*) FROM provider_credentials WHERE label = 'after'"
        ).fetchone() == (1,)
    site.require_intact(values)


# What stays as it was


def _rest(path: Path) -> dict[str, Any]:
    """All that a rotation has no business with: rows with their types, the schema, the header."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        names = (
            "user_version",
            "application_id",
            "encoding",
            "page_size",
            "auto_vacuum",
            "journal_mode",
        )
        found: dict[str, Any] = {
            name: connection.execute(f"PRAGMA {name}").fetchone() for name in names
        }
        found["schema"] = connection.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
        ).fetchall()
        tables = [
            name for kind, name, _, _ in found["schema"] if kind == "table" and name != "vault_keys"
        ]
        found["integrity"] = connection.execute("PRAGMA integrity_check").fetchall()
        connection.text_factory = bytes
        for table in tables:
            columns = [
                row[1].decode() for row in connection.execute(f'PRAGMA table_info("{table}")')
            ]
            kept = [name for name in columns if name not in ("encrypted_value", "key_id")]
            sql = ", ".join(f'typeof("{name}"), "{name}"' for name in kept)
            found[f"rows of {table}"] = connection.execute(
                f'SELECT {sql} FROM "{table}" '
            ).fetchall()
    return found


def test_rotate_with_scrub_leaves_all_else_of_a_vault_byte_for_byte(site: Site) -> None:
    init(site.database, key_store=KeyDirectory(site.keys))  # it notes where this copy is
    with site.open() as vault:
        fill(vault, 40, size=100)
    with contextlib.closing(sqlite3.connect(site.database, isolation_level=None)) as app:
        app.executescript("""
            ALTER TABLE provider_credentials ADD COLUMN app_note BLOB;
            UPDATE provider_credentials
                SET app_note = randomblob(rowid), label = CAST(x'ff00fe' AS TEXT)
                WHERE rowid % 3 = 0;
            UPDATE provider_credentials SET app_note = rowid / 7.0 WHERE rowid % 3 = 1;
            CREATE TABLE app_plain (a, b TEXT DEFAULT 'none', c INTEGER AS (length(b)) VIRTUAL);
            CREATE TABLE app_counted (
                n INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT COLLATE NOCASE UNIQUE
            );
            CREATE TABLE app_odd (k TEXT PRIMARY KEY, v) WITHOUT ROWID;
            CREATE INDEX app_part ON app_plain (b DESC) WHERE a IS NOT NULL;
            CREATE VIEW app_view AS SELECT provider, label FROM provider_credentials;
            CREATE TRIGGER app_log AFTER DELETE ON app_plain BEGIN
                INSERT INTO app_counted (what) VALUES (old.b);
            END;
            INSERT INTO app_plain (a, b) VALUES
                (1, 'one'), (NULL, 'two'), (x'00', 'three'), (1e300, 'a' || char(0) || 'b');
            INSERT INTO app_counted (what) VALUES ('a'), ('b'), ('c');
            DELETE FROM app_counted WHERE what = 'c';
            DELETE FROM app_plain WHERE b = 'two';
            INSERT INTO app_odd VALUES ('k', x'ff'), ('j', 3);
            ANALYZE;
            PRAGMA application_id = 77;
            PRAGMA user_version = 5;
        """)
    before = _rest(site.database)
    with site.open() as vault:
        assert rotation.rotate(vault).scrubbed
        assert _rest(site.database) == before
    assert _rest(site.database) == before
    assert before["application_id"] == (77,) and before["integrity"] == [("ok",)]
    with contextlib.closing(sqlite3.connect(site.database)) as app:
        # The trigger is there, and the counter knows of the row that was deleted.
        app.execute("DELETE FROM app_plain WHERE b = 'one'")
        assert app.execute("SELECT n FROM app_counted WHERE what = 'one'").fetchone() == (5,)


@pytest.mark.samples
@pytest.mark.parametrize("name", ["samsara-v4", "samsara-v5", "samsara-v10"])
def test_rotate_with_scrub_leaves_all_else_of_an_app_file_byte_for_byte(
    tmp_path: Path, name: str
) -> None:
    for suffix in (".db", ".db-wal"):
        shutil.copyfile(SAMPLES / f"{name}{suffix}", tmp_path / f"app{suffix}")
    site = Site(tmp_path / "app.db", tmp_path / "keys")
    init(site.database, key_store=KeyDirectory(site.keys))
    with site.open() as vault:
        for number in range(20):
            vault.set(*place(number)[1:], "a value")
    before, rows = _rest(site.database), site.rows()
    with site.open() as vault:
        report = rotation.rotate(vault)
        assert report.scrubbed and report.complete and report.rotated == 20
    assert _rest(site.database) == before
    after = site.rows()
    theirs = {row_id for row_id, row in rows.items() if row["key_id"] is None}
    assert len(theirs) == report.foreign and all(after[row_id] == rows[row_id] for row_id in theirs)


# Killed in the middle of it


@pytest.mark.thorough
def test_rotate_killed_in_the_middle_of_its_scrub_leaves_a_whole_file_and_is_finished_by_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    kills, chance = effort(25, 5), random.Random(7)
    with site.open() as vault:
        values = fill(vault, 200, size=100)
    with contextlib.closing(sqlite3.connect(site.database, isolation_level=None)) as app:
        app.execute("CREATE TABLE app_bulk (body)")
        app.execute(
            "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) INSERT INTO "
            "app_bulk SELECT randomblob(4000) FROM n"
        )

    def begun() -> tuple[int, int]:
        """A child whose rotation comes to its scrub now; and where it writes when it is done."""
        listen, tell = os.pipe()

        def child() -> None:
            execute = sqlite3.Connection.execute

            def telling(connection: _Connection, sql: str, *params: Any) -> sqlite3.Cursor:
                if sql.startswith("VACUUM"):
                    os.write(tell, b"v")
                return execute(connection, sql, *params)

            # The child ends with it.
            _Connection.execute = telling  # type: ignore[method-assign,assignment]
            with site.open() as vault:
                rotation.rotate(vault)
            os.write(tell, b"e")

        pid = forked(child)
        os.close(tell)
        assert os.read(listen, 1) == b"v"
        return pid, listen

    pid, listen = begun()
    moment = time.monotonic()
    assert os.read(listen, 1) == b"e"
    whole = time.monotonic() - moment
    os.close(listen)
    os.waitpid(pid, 0)
    inside = 0
    for _ in range(kills):
        old = Tokens()
        old.add(sealed_by_us(site))
        pid, listen = begun()
        time.sleep(chance.uniform(0, whole))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        inside += not (select.select([listen], [], [], 0)[0] and os.read(listen, 1))
        os.close(listen)
        site.require_intact(values)  # looks at every page of the file too
        site.require_one_key()
        with site.open() as vault:
            waits, keys = vault.keys.states.unfinished_rotation(), site.states()
            report = rotation.rotate(vault)
            assert report.scrubbed and report.complete and report.resumed is waits
            assert not waits or site.states() == keys
            assert not residue(site, old, vault)
    site.require_intact(values)
    assert inside > effort(kills // 2, 0)
    figures(
        "kills of a scrub (SIGKILL at random), the file whole after each and the rotation finished",
        inside,
    )
