"""
What a rotation leaves of old tokens in the files of a server: none in the tables, if they were
rewritten. Its log has them all until the server has written over it.
"""

from __future__ import annotations

import pytest
from helpers.commands import run
from helpers.residue_peers import PIECE, Tokens, parts
from helpers.rotation_peers import fill, place
from helpers.site import Site, another, name_of, sql

from outreach_vault import Secret, Vault
from outreach_vault.database.postgres import connections
from outreach_vault.operations import rotation

pytestmark = pytest.mark.server("its tables, the long values beside them, and its log")

LONG = "x" * 6_000  # its token is in no row: it is cut into pieces in a table of its own


def tokens_of(site: Site) -> list[str]:
    tables = "provider_credentials", "vault_history"
    return [
        token
        for table in tables
        for (token,) in sql(site.database, f"SELECT encrypted_value FROM {table}")
    ]


def left(site: Site, old: Tokens, where: str = "base") -> int:
    """How many pieces of old tokens are left in the tables' files, or in the log ("pg_wal")."""
    assert site.engine
    checks = [text for (text,) in sql(site.database, "SELECT check_value FROM vault_keys")]
    # The beginning of a token is the time, which stays; and check values are tokens that stay.
    stays = set[bytes]().union(*(parts(text, PIECE) for text in (*tokens_of(site), *checks)))
    found = set[bytes]()
    for name, data in site.engine.files(name_of(site.database)).items():
        if f"/{where}/" in name:
            found |= old.found_in(data)
    return len(found - stays)


def filled(site: Site, vault: Vault) -> tuple[dict[tuple[str | None, str, str], str], Tokens]:
    """Short values and long ones, each also as a previous one; and all the tokens."""
    values = fill(vault, 6)
    for number in (1, 2):
        where = place(number)
        for text in ("before", LONG + "1", LONG):
            values[where] = text
            vault.set(where.provider, where.credential_type, Secret(text), where.project_id)
    old = Tokens()
    old.add(tokens_of(site))
    return values, old


def test_old_tokens_are_in_the_tables_until_a_rotation_that_rewrites_them(site: Site) -> None:
    with site.open() as vault:
        values, old = filled(site, vault)
        report = rotation.rotate(vault)
        assert (report.complete, report.scrubbed, report.log_truncated) == (True, False, None)
        assert left(site, old) > 10_000  # of the long ones too
        old.add(tokens_of(site))
        report = rotation.rotate(vault, scrub=True)
        assert (report.complete, report.scrubbed, report.log_truncated) == (True, True, None)
        assert left(site, old) == 0 and left(site, old, "pg_wal") > 10_000
    site.require_intact(values)


def test_a_deleted_value_is_in_no_table_after_a_rotation_that_rewrites_them(site: Site) -> None:
    with site.open() as vault:
        values, old = filled(site, vault)
        for where in list(values)[:3]:
            vault.delete(where[1], where[2], where[0])
            del values[where]
        assert rotation.rotate(vault, scrub=True).complete
        assert left(site, old) == 0
    site.require_intact(values)


def test_a_rewriting_that_a_reader_keeps_waiting_is_said_and_done_by_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = connections._OF_OPERATORS.replace("lock_timeout = '60s'", "lock_timeout = '0.2s'")
    monkeypatch.setattr(connections, "_OF_OPERATORS", patient)
    with site.open() as vault:
        values, old = filled(site, vault)
        with another(site.database) as reader:
            reader.begin()
            reader.execute("SELECT count(*) FROM provider_credentials")
            report = rotation.rotate(vault, scrub=True)
            assert not report.scrubbed and "limit" in (report.scrub_problem or "")
            assert not report.complete and vault.keys.states.unfinished_rotation()
            site.require_one_key()
            said = run(site, "rotate", "--scrub")
            assert said.status == 16 and "the database was not rewritten" in said.err
            assert "finishes this rotation" in said.err
        again = rotation.rotate(vault, scrub=True)
        assert again.resumed and again.complete and again.new_key == report.new_key
        assert left(site, old) == 0
    site.require_intact(values)


def test_a_role_that_may_not_rewrite_a_table_is_not_told_that_it_was_done(site: Site) -> None:
    """PostgreSQL leaves such a table out with a warning, and calls that done."""
    assert site.engine
    name = name_of(site.database)
    role = f"{name}_writer"
    site.engine.sql(name, f"CREATE ROLE {role} LOGIN")
    try:
        for what in ("SELECT, INSERT, UPDATE, DELETE ON ALL TABLES", "ALL ON ALL SEQUENCES"):
            site.engine.sql(name, f"GRANT {what} IN SCHEMA public TO {role}")
        with Site(site.engine.url(name, role), site.keys).open() as vault:
            values, old = filled(site, vault)
            report = rotation.rotate(vault, scrub=True)
            assert not (report.scrubbed or report.complete)
            assert "permission denied" in (report.scrub_problem or "")
            assert left(site, old) > 10_000
    finally:
        site.engine.sql(name, f"DROP OWNED BY {role}; DROP ROLE {role}")
    site.require_intact(values)


def test_a_connection_that_is_ended_in_the_middle_of_it_is_no_end_of_the_rotation(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.open() as vault:
        values, old = filled(site, vault)
        change = vault.database.change

        def ended(statement: str, *params: object) -> int:
            if statement.startswith("VACUUM"):
                others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                this = f"{others} WHERE datname = current_database() AND pid <> pg_backend_pid()"
                sql(site.database, this)
            return change(statement, *params)

        with monkeypatch.context() as patch:
            patch.setattr(vault.database, "change", ended)
            report = rotation.rotate(vault, scrub=True)
            assert "connection was lost" in (report.scrub_problem or "") and not report.complete
        site.require_intact(values)
        again = rotation.rotate(vault, scrub=True)
        assert again.resumed and again.complete and left(site, old) == 0
    site.require_intact(values)
    site.require_one_key()
