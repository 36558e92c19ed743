"""
From version 0.1.0's one index, for which '' was a global row, to two: with 0, 1 and many values,
stopped anywhere, beside the app.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest
from helpers import FROZEN
from helpers.faults import each_stop
from helpers.rotation_peers import Values, fill
from helpers.site import Figures, Site, sql

from outreach_vault import KeyDirectory, SchemaOutdated
from outreach_vault.operations.init import init
from outreach_vault.schema import migrator
from outreach_vault.schema.steps import own_steps

PLACE = (
    "CREATE UNIQUE INDEX vault_credentials_place ON provider_credentials (coalesce(project_id, "
    "''), provider, credential_type)"
)
NEW = {"vault_credentials_global", "vault_credentials_project"}

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="stops forked children"),
    pytest.mark.sweep(3),
    pytest.mark.sqlite("a vault of 0.1.0, which knew no servers"),
]


def indexes(path: Path) -> set[str]:
    return {
        name
        for (name,) in sql(
            path,
            "SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE "
            "'vault_credentials%'",
        )
    }


def version(path: Path) -> str:
    return str(sql(path, "SELECT value FROM vault_meta WHERE key = 'version'")[0][0])


@pytest.fixture(params=[0, 1, 700])
def earlier(request: pytest.FixtureRequest, empty: Site, tmp_path: Path) -> tuple[Site, Values]:
    """A vault as 0.1.0 left it, with so many values."""
    site = empty.copy(tmp_path / "earlier")
    with site.open() as vault:
        values = fill(vault, request.param)
    for name in NEW:
        sql(site.database, f"DROP INDEX {name}")
    sql(site.database, PLACE)
    sql(site.database, "ALTER TABLE vault_keys DROP COLUMN replaced_by")
    sql(site.database, "UPDATE vault_meta SET value = '2' WHERE key = 'version'")
    sql(site.database, "DELETE FROM vault_meta WHERE key IN ('home', 'home_keys')")
    old = FROZEN / "1" / "vault.db"
    assert (indexes(site.database), version(site.database)) == (indexes(old), version(old))
    return site, values


def make_ready(site: Site) -> None:
    init(site.database, key_store=KeyDirectory(site.keys))


def test_the_index_is_replaced_and_every_value_opens(earlier: tuple[Site, Values]) -> None:
    site, values = earlier
    with pytest.raises(SchemaOutdated, match="0008_scopes"):
        site.open()
    make_ready(site)
    assert (indexes(site.database), version(site.database)) == (NEW, str(own_steps()))
    site.require_intact(values)


def test_stopped_at_each_statement_it_is_the_old_or_the_new_and_the_next_run_finishes(
    earlier: tuple[Site, Values], figures: Figures
) -> None:
    template, values = earlier
    for site in each_stop(
        template,
        lambda site, _: migrator.migrate(site.database),
        figures,
        "stops of the step to two indexes, old or new after each",
        every=4,
    ):
        old = version(site.database) == "2"
        assert indexes(site.database) == ({"vault_credentials_place"} if old else NEW)
        make_ready(site)
        assert indexes(site.database) == NEW
        site.require_intact(values)


def test_beside_the_app_s_open_connection_it_is_replaced_and_the_app_goes_on(
    earlier: tuple[Site, Values],
) -> None:
    site, values = earlier
    with contextlib.closing(sqlite3.connect(site.database, isolation_level=None)) as app:
        app.execute("PRAGMA foreign_keys = ON")
        read = (
            "SELECT count(*) FROM provider_credentials WHERE project_id = ? OR project_id IS NULL"
        )
        before = app.execute(read, ("default-project",)).fetchall()
        make_ready(site)
        assert app.execute(read, ("default-project",)).fetchall() == before
        columns = (
            "id, project_id, provider, credential_type, encrypted_value, created_at, updated_at"
        )
        insert = (
            f"INSERT INTO provider_credentials ({columns}) VALUES (?, ?, 'crm', 'token', 'djEx', "
            "'', '')"
        )
        app.execute(insert, ("the app's", None))
        app.execute(insert, ("the app's own", "default-project"))
        for project in (None, "default-project"):
            with pytest.raises(sqlite3.IntegrityError):
                app.execute(insert, ("one more", project))
        app.execute("DELETE FROM provider_credentials WHERE provider = 'crm'")
    site.require_intact(values)


def test_a_row_that_the_old_index_would_not_have_let_in_is_nobodys(
    earlier: tuple[Site, Values],
) -> None:
    """Another program's, at the empty text: '' and NULL were one place."""
    site, values = earlier
    make_ready(site)
    with contextlib.closing(sqlite3.connect(site.database, isolation_level=None)) as other:
        other.execute(
            "INSERT INTO provider_credentials (id, project_id, provider, credential_type,"
            " encrypted_value, created_at, updated_at)"
            " SELECT 'empty', '', provider, credential_type, 'x', '', ''"
            " FROM provider_credentials WHERE project_id IS NULL LIMIT 1"
        )
    with site.open() as vault:
        for (project, provider, field), value in values.items():
            assert vault.get(provider, field, project, fallback=False).reveal() == value
