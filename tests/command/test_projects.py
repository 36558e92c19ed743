"""`vault projects`, and what --project may name: an id, or a name that only one project has."""

from __future__ import annotations

import pytest
from helpers.commands import failed, run
from helpers.rows import undone
from helpers.site import Site, sql

from outreach_vault import StorageError, Vault

P = "default-project"
NAMED = "6d1f7b52-3c0e-4a4c-9d5e-0a8f4f0f6a11"


def project(site: Site, project_id: str, title: object, archived: int = 0) -> None:
    insert = (
        "INSERT INTO projects (id, name, is_archived, created_at, updated_at)"
        " VALUES (?, ?, ?, '', '')"
    )
    sql(site.database, insert, project_id, title, archived)


@pytest.fixture
def named(site: Site) -> Site:
    """Beside the default project one whose name only it has."""
    project(site, NAMED, "Zürich Search")
    return site


def test_projects_are_listed_by_name_with_the_values_of_their_own(named: Site) -> None:
    project(named, "old", "A closed one", archived=1)
    for arguments in (("smtp", "host"), ("smtp", "host", "--project", NAMED)):
        assert run(named, "set", *arguments, stdin=b"mail.example.com").status == 0
    assert run(named, "projects", "--json").data == [
        {"id": P, "name": "Default Project", "archived": False, "values": 0},
        {"id": NAMED, "name": "Zürich Search", "archived": False, "values": 1},
        {"id": "old", "name": "A closed one", "archived": True, "values": 0},
    ]
    head, *lines = run(named, "projects", "--long").out.splitlines()
    assert head.split() == ["ID", "NAME", "ARCHIVED", "VALUES"]
    assert [line.split()[0] for line in lines] == [P, NAMED, "old"]
    assert lines[-1].endswith("yes       0")


def test_each_command_takes_a_projects_name(named: Site) -> None:
    chosen = ("--project", "Zürich Search")
    fields = {"host": "mail.example.com", "user": "u", "password": "canary"}
    for field, value in fields.items():
        assert run(named, "set", "smtp", field, *chosen, stdin=value.encode()).status == 0
    assert {row["project_id"] for row in named.rows().values()} == {NAMED}
    assert run(named, "get", "smtp", "user", *chosen).out == "u\n"
    assert [e["project_id"] for e in run(named, "list", *chosen, "--json").data] == [NAMED] * 3
    assert run(named, "which", "smtp", "user", *chosen, "--json").data[0]["scope"] == "project"
    checked = run(named, "check", "smtp", *chosen, "--json")
    assert (checked.status, checked.data["project_id"]) == (17, NAMED)
    with named.open() as vault:
        assert not vault.has("smtp", "user", P)
    assert run(named, "delete", "smtp", "user", *chosen, "--yes").status == 0
    failed(run(named, "get", "smtp", "user", *chosen), 10, "no such credential")


def test_an_id_is_taken_before_a_name(named: Site) -> None:
    """A project that is called like another's id does not get what was meant for that."""
    project(named, "impostor", NAMED)
    assert run(named, "set", "smtp", "host", "--project", NAMED, stdin=b"h.example").status == 0
    assert [row["project_id"] for row in named.rows().values()] == [NAMED]


def test_a_name_that_two_projects_have_is_refused_with_both(named: Site) -> None:
    project(named, "second", "Zürich Search")
    done = run(named, "set", "smtp", "host", "--project", "Zürich Search", stdin=b"h.example")
    failed(done, 10, NAMED, "second", "give the id")
    assert named.rows() == {}


@pytest.mark.parametrize("text", ["Zurich Search", "zürich search", "default-projct"])
def test_a_near_miss_is_no_project_and_is_answered_with_the_nearest(named: Site, text: str) -> None:
    done = run(named, "get", "smtp", "host", "--project", text)
    near = P if text.startswith("default") else "Zürich Search"
    failed(done, 10, f"did you mean {near}?", "'vault projects' lists them")


def test_what_is_near_nothing_is_not_repeated(named: Site) -> None:
    done = run(named, "get", "smtp", "host", "--project", "a canary value")
    failed(done, 10, "there is no project")
    assert "canary" not in done.err


def test_names_that_another_program_left_break_no_list(named: Site) -> None:
    project(named, "odd", b"\xff\x00")
    project(named, "number", 7)
    assert next(each["id"] for each in run(named, "projects", "--json").data) == "number"
    assert run(named, "projects").status == 0
    assert run(named, "get", "smtp", "host", "--project", "Zürich Search").status == 10


def test_a_project_can_be_made_where_no_app_does(site: Site) -> None:
    made = run(site, "projects", "add", "Zürich Search").out.strip()
    assert run(site, "set", "smtp", "host", "--project", made, stdin=b"h.example").status == 0
    rows = sql(site.database, "SELECT id, name, is_archived, is_pinned FROM projects")
    assert (made, "Zürich Search", 0, 0) in rows


@pytest.mark.parametrize("title", ["", "bell\a", "Default Project", P, "\udcff"])
def test_a_name_that_is_none_or_another_projects_makes_nothing(site: Site, title: str) -> None:
    failed(run(site, "projects", "add", title), 2)
    assert len(sql(site.database, "SELECT * FROM projects")) == 1


def test_a_project_that_a_trigger_undid_is_not_said_to_be_made(site: Site, vault: Vault) -> None:
    with (
        undone(site.database, "INSERT ON projects"),
        pytest.raises(StorageError, match="trigger"),
    ):
        vault.projects.add("Zürich Search")
