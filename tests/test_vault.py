"""
The adapter's object: what a look-up answers, what it refuses, and what neither it nor `set` ever
does.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import itertools
import logging
import multiprocessing
import os
import pickle
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.faults import forked
from helpers.rows import flipped, insert, put, stored, traced
from helpers.site import (
    Engine,
    Figures,
    Site,
    another,
    dump,
    name_of,
    new_site,
    nothing_left_open,
    refusals,
    require_sound,
    sql,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from outreach_vault import (
    CredentialNotFound,
    DamagedValue,
    DatabaseBusy,
    DatabaseFull,
    DatabaseNotFound,
    DatabaseReadOnly,
    ForeignValue,
    KeyDirectory,
    KeyMissing,
    NotADatabase,
    ProjectNotFound,
    SchemaMismatch,
    SchemaOutdated,
    Secret,
    StorageError,
    Vault,
    VaultError,
)
from outreach_vault.database.sqlite.database import SQLiteDatabase as Database
from outreach_vault.errors import WrongArgument
from outreach_vault.operations.history import limit
from outreach_vault.operations.rotation import rotate
from outreach_vault.operations.status import status
from outreach_vault.schema import migrator
from outreach_vault.schema.shapes import Place, new_id
from outreach_vault.values.history import Limits
from outreach_vault.values.sealing import seal

pytestmark = pytest.mark.sweep(2)

P, Q = "default-project", "6d1f7b52-3c0e-4a4c-9d5e-0a8f4f0f6a11"
APP_VALUE = base64.b64encode(b"v11" + bytes(range(48))).decode()  # the desktop app's own shape
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Watched:
    """
    A key store that counts what it is asked, takes as long as a keyring, and lets a test act in
    between.
    """

    def __init__(
        self, inner: KeyDirectory, during: Callable[[], object] = lambda: time.sleep(0.02)
    ) -> None:
        self.inner, self.during, self.reads, self.marks = inner, during, list[str](), list[str]()
        self.name = inner.name

    def read(self, vault_id: str, key_id: str) -> Secret:
        self.reads.append(key_id)
        self.during()
        return self.inner.read(vault_id, key_id)

    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        self.inner.write(vault_id, key_id, key)

    def holds(self, vault_id: str, key_id: str) -> bool:
        return self.inner.holds(vault_id, key_id)

    def delete(self, vault_id: str, key_id: str) -> None:
        self.inner.delete(vault_id, key_id)

    def successor(self, vault_id: str, key_id: str) -> str | None:
        self.marks.append(key_id)
        return self.inner.successor(vault_id, key_id)

    def mark_superseded(self, vault_id: str, key_id: str, successor_id: str) -> None:
        self.inner.mark_superseded(vault_id, key_id, successor_id)


def make(folder: Path, engine: Engine = None) -> Site:
    """A vault with two projects, in a folder that must not be there yet."""
    made = new_site(folder, engine)
    made.change(
        "INSERT INTO projects (id, name, created_at, updated_at) VALUES (?, 'second', '', '')", Q
    )
    return made


def reopen(path: Path) -> Vault:
    """That file, with the keys beside it."""
    return Vault.open(path, key_store=KeyDirectory(path.parent / "keys"))


def files(folder: Path) -> dict[str, bytes]:
    """
    Every file of *folder* but the shared-memory index, which reads do write.

    Read by another process: closing a second descriptor here would drop the locks of the open
    vault.
    """
    script = "import pathlib, pickle, sys; p = pathlib.Path(sys.argv[1]).rglob('*')\n"
    script += (
        "sys.stdout.buffer.write(pickle.dumps({str(f): f.read_bytes() for f in p if f.is_file()}))"
    )
    found: dict[str, bytes] = pickle.loads(
        subprocess.check_output([sys.executable, "-c", script, folder])
    )
    return {name: data for name, data in found.items() if not name.endswith("-shm")}


@pytest.fixture(scope="session")
def template(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make(tmp_path_factory.mktemp("two projects") / "site", engine)


@pytest.fixture
def path(site: Site) -> Any:
    """The database, as the package is given it."""
    return site.database


# Look-up

STATES = ("absent", "fine", "damaged", "no key", "foreign", "empty")
# Rows: what the project has, "(not asked)" being a look-up without one. Columns: what the global
# scope has; "exact" is the answer with fallback=False, whatever the global scope has.
TRUTH = """
              absent      fine        damaged     no key      foreign     empty       exact
  absent      none        global      damaged     no key      foreign     foreign     none
  fine        project     project     project     project     project     project     project
  damaged     damaged     damaged     damaged     damaged     damaged     damaged     damaged
  no key      no key      no key      no key      no key      no key      no key      no key
  foreign     foreign     foreign     foreign     foreign     foreign     foreign     foreign
  empty       foreign     foreign     foreign     foreign     foreign     foreign     foreign
  (not asked) none        global      damaged     no key      foreign     foreign     -
"""
ERRORS = {
    "none": CredentialNotFound,
    "damaged": DamagedValue,
    "no key": KeyMissing,
    "foreign": ForeignValue,
}


def truth() -> dict[str, dict[str, str]]:
    head, *rows = [
        [line[2:14].strip(), *re.split(r"\s{2,}", line[14:].strip())]
        for line in TRUTH.strip("\n").splitlines()
    ]
    return {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in rows}


@pytest.fixture(scope="module")
def every_case(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Vault, dict[tuple[str, str | None], str]]]:
    """One vault with a provider for each pair of states, and the ids of its rows."""
    site = make(tmp_path_factory.mktemp("truth") / "site", engine)
    path = site.database
    rows: dict[tuple[str, str | None], str] = {}
    with site.open() as vault:
        lost = vault.keys.states.active_id()

        def fill(state_now: Callable[[str], bool]) -> None:
            for of_project, of_global in itertools.product(STATES, STATES):
                for project, state in ((P, of_project), (None, of_global)):
                    if state != "absent" and state_now(state):
                        provider = f"{of_project}, {of_global}"
                        rows[provider, project] = vault.set(
                            provider, "key", "of the project" if project else "of all", project
                        )

        fill(lambda state: state == "no key")
        vault.keys.promote(vault.keys.create())
        fill(lambda state: state != "no key")
        for (provider, project), row_id in rows.items():
            state = provider.split(", ")[0 if project else 1]
            if state == "damaged":
                put(path, row_id, encrypted_value=flipped(stored(path, row_id)))
            elif state in ("foreign", "empty"):
                put(
                    path,
                    row_id,
                    encrypted_value=APP_VALUE if state == "foreign" else "",
                    key_id=None,
                )
        KeyDirectory(site.keys).delete(vault.keys.vault_id, lost)
    with site.open() as vault:
        yield vault, rows


@pytest.mark.parametrize("of_global", STATES)
@pytest.mark.parametrize("of_project", STATES)
@pytest.mark.parametrize("asked", ["fallback", "exact", "global"])
def test_get_answers_with_the_first_row_in_order_or_fails_closed(
    every_case: Any, of_project: str, of_global: str, asked: str
) -> None:
    vault, rows = every_case
    provider = f"{of_project}, {of_global}"
    outcome = truth()["(not asked)" if asked == "global" else of_project][
        "exact" if asked == "exact" else of_global
    ]
    look_up = (provider, "key", None if asked == "global" else P)
    assert vault.has(*look_up, fallback=asked != "exact") is (outcome != "none")
    if outcome in ERRORS:
        with pytest.raises(ERRORS[outcome]) as caught:
            vault.get(*look_up, fallback=asked != "exact")
        assert type(caught.value) is ERRORS[outcome]
        if outcome != "none":
            first = rows.get((provider, look_up[2])) or rows[provider, None]
            assert first in str(caught.value) and "of all" not in str(caught.value)
        return
    found = vault.get(*look_up, fallback=asked != "exact")
    project = P if outcome == "project" else None
    assert (found.scope, found.project_id, found.id) == (outcome, project, rows[provider, project])
    assert found.reveal() == ("of the project" if project else "of all")


def test_errors_about_a_value_carry_its_row(every_case: Any) -> None:
    vault, rows = every_case
    for state in ("damaged", "foreign"):
        with pytest.raises(VaultError) as caught:
            vault.get(f"{state}, fine", "key", P)
        assert caught.value.row_id == rows[f"{state}, fine", P]  # type: ignore[attr-defined]


PLACES = [
    (project, provider, kind)
    for project in (None, P, Q)
    for provider in ("smtp", "twilio")
    for kind in ("user", "password")
]


@pytest.fixture(scope="module")
def shared(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, Vault]]:
    """For property tests, which empty it first."""
    site = make(tmp_path_factory.mktemp("shared") / "site", engine)
    with site.open() as vault:
        yield site, vault


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(PLACES),
        st.sampled_from(["fine", "damaged", "unknown key", "foreign", "empty"]),
        max_size=8,
    )
)
def test_get_has_which_and_list_mean_the_same_row(
    shared: tuple[Site, Vault], rows: dict[tuple[str | None, str, str], str]
) -> None:
    (path, _), vault = shared
    vault.database.change("DELETE FROM provider_credentials")
    key_id, ids = vault.keys.states.active_id(), {}
    for place, state in rows.items():
        token = seal(vault.keys.cipher(key_id), Place(*place), Secret("v"))
        value = {"damaged": flipped(token), "foreign": APP_VALUE, "empty": ""}.get(state, token)
        ids[place] = insert(
            path, value, *place, key_id=new_id() if state == "unknown key" else key_id
        )
    listed = {entry.id: entry for entry in vault.list()}
    assert set(listed) == set(ids.values())
    assert [e.id for e in vault.list(P)] == [
        ids[p] for p in sorted((p for p in rows if p[0] == P), key=lambda p: p[1:])
    ]
    for project, provider, kind in PLACES:
        first = next(
            (p for p in ((project, provider, kind), (None, provider, kind)) if p in rows), None
        )
        assert vault.has(provider, kind, project) is (first is not None)
        if first is None:
            with pytest.raises(CredentialNotFound):
                vault.which(provider, kind, project)
            continue
        assert vault.which(provider, kind, project) == [listed[ids[first]]]
        assert listed[ids[first]] in vault.which(provider, project_id=project)
        expected = {"fine": "ok", "damaged": "ok", "unknown key": "key missing"}.get(
            rows[first], "foreign"
        )
        assert listed[ids[first]].state == expected
        try:
            answer = vault.get(provider, kind, project)
        except VaultError as error:
            assert ids[first] in str(error) and rows[first] != "fine"
        else:
            assert (answer.id, rows[first]) == (ids[first], "fine")


NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
VALUES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_text_at_any_place_comes_back_exactly(
    shared: tuple[Site, Vault], data: st.DataObject
) -> None:
    _, vault = shared
    vault.database.change("DELETE FROM provider_credentials")
    places = data.draw(
        st.lists(
            st.tuples(NAMES, NAMES, st.sampled_from([None, P, Q])),
            min_size=1,
            max_size=4,
            unique=True,
        )
    )
    model: dict[tuple[str, str, str | None], str] = {}
    for place, value in data.draw(
        st.lists(st.tuples(st.sampled_from(places), st.none() | VALUES), max_size=12)
    ):
        if value is None:
            assert vault.delete(*place) is (model.pop(place, None) is not None)
        else:
            vault.set(place[0], place[1], value, place[2])
            model[place] = value
        for provider, kind, project in places:
            own, common = model.get((provider, kind, project)), model.get((provider, kind, None))
            assert vault.has(provider, kind, project) is ((own or common) is not None)
            if own or common:
                assert vault.get(provider, kind, project).reveal() == (own or common)
    assert {(e.provider, e.credential_type, e.project_id) for e in vault.list()} == set(model)


@pytest.mark.parametrize(
    "value",
    [
        "x",
        " both ends ",
        "one\n",
        "two\r\n\r\n",
        "a\0b",
        "\U0001f511",
        "\x1b[31m",
        "é" * 32768,
        "v" * 65536,
    ],
)
def test_unusual_text_comes_back_exactly(vault: Vault, value: str) -> None:
    vault.set("smtp", "password", value)
    assert vault.get("smtp", "password").reveal() == value


@pytest.mark.parametrize("value", ["", "v" * 65537, "é" * 32769, "\ud800"])
def test_what_cannot_be_stored_is_refused_and_the_old_value_stays(vault: Vault, value: str) -> None:
    vault.set("smtp", "password", "before")
    with pytest.raises(ValueError, match="the value"):
        vault.set("smtp", "password", value)
    assert vault.get("smtp", "password").reveal() == "before"


CALLS: dict[str, Callable[[Vault, str], object]] = {
    "get": lambda vault, project: vault.get("smtp", "user", project),
    "get exact": lambda vault, project: vault.get("smtp", "user", project, fallback=False),
    "has": lambda vault, project: vault.has("smtp", "user", project),
    "set": lambda vault, project: vault.set("smtp", "user", "other", project),
    "set fields": lambda vault, project: vault.set_fields("smtp", {"user": "other"}, project),
    "set no field": lambda vault, project: vault.set_fields("smtp", {}, project),
    "delete": lambda vault, project: vault.delete("smtp", "user", project),
    "list": lambda vault, project: vault.list(project),
    "which": lambda vault, project: vault.which("smtp", "user", project),
    "which of all": lambda vault, project: vault.which("smtp", project_id=project),
    "which of nothing": lambda vault, project: vault.which("nothing", project_id=project),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("project", "error"),
    [("", ValueError), ("no-such-project", ProjectNotFound), (P.upper(), ProjectNotFound)],
)
def test_empty_text_and_an_unknown_project_are_not_the_global_scope(
    path: Any, vault: Vault, call: str, project: str, error: type[Exception]
) -> None:
    vault.set("smtp", "user", "of all")
    before = sql(path, "SELECT * FROM provider_credentials")
    with pytest.raises(error):
        CALLS[call](vault, project)
    assert sql(path, "SELECT * FROM provider_credentials") == before


@pytest.mark.parametrize("project", [None, P])
def test_which_of_a_provider_without_rows_is_an_error(vault: Vault, project: str | None) -> None:
    vault.set("smtp", "user", "v", Q)
    with pytest.raises(CredentialNotFound, match=r"^smtp: no credential of this provider"):
        vault.which("smtp", project_id=project)


@pytest.mark.parametrize("call", CALLS)
def test_empty_text_is_refused_even_where_a_project_is_named_so(
    path: Any, vault: Vault, call: str
) -> None:
    sql(
        path,
        "INSERT INTO projects (id, name, created_at, updated_at) VALUES ('', 'nameless', '', '')",
    )
    vault.set("smtp", "user", "of all")
    with pytest.raises(ValueError, match="project_id"):
        CALLS[call](vault, "")
    assert vault.get("smtp", "user").reveal() == "of all"


def test_a_row_of_a_project_named_by_empty_text_is_not_the_global_one(
    path: Any, vault: Vault
) -> None:
    row_id = vault.set("smtp", "user", "v")
    sql(
        path,
        "INSERT INTO projects (id, name, created_at, updated_at) VALUES ('', 'nameless', '', '')",
    )
    put(path, row_id, project_id="")
    assert not vault.has("smtp", "user")
    with pytest.raises(CredentialNotFound):
        vault.get("smtp", "user", P)


def test_a_row_at_the_empty_text_is_nobodys_and_stays(path: Any, vault: Vault) -> None:
    """
    As another program wrote it, which has no foreign keys: a global value beside it is stored, read
    and deleted as ever.
    """
    row_id = vault.set("smtp", "user", "v")
    put(path, row_id, project_id="")
    before = sql(path, "SELECT * FROM provider_credentials WHERE project_id = ''")
    for value in ("first", "second"):
        vault.set("smtp", "user", value)
        assert vault.get("smtp", "user").reveal() == vault.get("smtp", "user", P).reveal() == value
    assert [entry.project_id for entry in vault.list(None)] == [None]
    assert [entry.project_id for entry in vault.list()] == [None, ""]
    assert vault.delete("smtp", "user") and not vault.delete("smtp", "user")
    assert sql(path, "SELECT * FROM provider_credentials") == before


@pytest.mark.parametrize(
    ("provider", "field"), [("", "user"), ("smtp", ""), ("smtp\n", "user"), ("smtp", "us\x1ber")]
)
def test_names_that_name_nothing_are_refused(vault: Vault, provider: str, field: str) -> None:
    for call in (
        lambda: vault.set(provider, field, "v"),
        lambda: vault.get(provider, field),
        lambda: vault.delete(provider, field),
    ):
        with pytest.raises(ValueError, match=r"the name (is empty|has unprintable)"):
            call()
    assert vault.list() == []


@pytest.mark.parametrize(
    "stored_for",
    [
        ("gone",),
        (None,),
        ("gone", None),
    ],
)
@pytest.mark.parametrize("fallback", [True, False])
def test_neither_the_row_of_a_project_that_is_gone_nor_the_global_one_is_given_out_for_it(
    path: Any, vault: Vault, stored_for: tuple[str | None, ...], fallback: bool
) -> None:
    """
    Another program deletes a project without foreign keys; its rows stay, whole and under the
    active key.
    """
    key_id = vault.keys.states.active_id()
    for project, (provider, field) in itertools.product(
        stored_for, [("anthropic", "api_key"), ("other", "token")]
    ):
        token = seal(
            vault.keys.cipher(key_id), Place(project, provider, field), Secret("of nobody")
        )
        insert(path, token, project, provider, field, key_id)
    for provider, field in (("anthropic", "api_key"), ("other", "token"), ("nothing", "token")):
        calls: list[Callable[[], object]] = [
            lambda: vault.get(provider, field, "gone", fallback=fallback),  # noqa: B023
            lambda: vault.has(provider, field, "gone", fallback=fallback),  # noqa: B023
            lambda: vault.bundle(provider, "gone"),  # noqa: B023
            lambda: vault.which(provider, field, "gone"),  # noqa: B023
            lambda: vault.which(provider, project_id="gone"),  # noqa: B023
            lambda: vault.set(provider, field, "v", "gone"),  # noqa: B023
            lambda: vault.set_fields(provider, {field: "v"}, "gone"),  # noqa: B023
            lambda: vault.delete(provider, field, "gone"),  # noqa: B023
        ]
        for call in calls:
            with pytest.raises(ProjectNotFound):
                call()
    if None in stored_for:
        assert (
            vault.get("anthropic", "api_key", P).reveal() == "of nobody"
            and len(vault.bundle("other", P)) == 1
        )
    assert "gone" not in stored_for or vault.database.broken_references(), "the rows are no orphans"


@pytest.mark.parametrize(
    ("project", "error"),
    [
        (5, TypeError),
        (5.0, TypeError),
        (True, TypeError),
        (b"5", TypeError),
        ([], TypeError),
        ("5\n", ValueError),
    ],
)
def test_a_project_that_is_not_named_by_text_is_refused_even_where_sqlite_would_find_it(
    path: Any, vault: Vault, project: Any, error: type[Exception]
) -> None:
    for known in ("5", "5\n"):
        sql(
            path,
            "INSERT INTO projects (id, name, created_at, updated_at) VALUES (?, 'a number', '', "
            "'')",
            known,
        )
    vault.set("smtp", "user", "of all")
    vault.set("smtp", "user", "its own", "5")
    for call in (*CALLS.values(), lambda vault, project: vault.bundle("other", project)):
        with pytest.raises(error, match="project_id"):
            call(vault, project)
    assert {(entry.project_id, entry.provider) for entry in vault.list()} == {
        (None, "smtp"),
        ("5", "smtp"),
    }


@pytest.mark.parametrize("name", [5, b"5", [], "5\n", "\ud800"])
def test_a_provider_or_field_that_is_not_named_by_text_is_refused_even_where_sqlite_would_find_it(
    path: Any, vault: Vault, name: Any
) -> None:
    for provider, field in itertools.product(["5", "5\n", "smtp"], ["5", "5\n", "user"]):
        insert(path, APP_VALUE, None, provider, field)
    error = WrongArgument if isinstance(name, str) else TypeError
    calls: list[tuple[str, Callable[[], object]]] = [
        ("provider", lambda: vault.get(name, "user")),
        ("credential_type", lambda: vault.get("smtp", name)),
        ("provider", lambda: vault.has(name, "user")),
        ("credential_type", lambda: vault.has("smtp", name)),
        ("provider", lambda: vault.which(name)),
        ("credential_type", lambda: vault.which("smtp", name)),
        ("provider", lambda: vault.bundle(name)),
    ]
    for what, call in calls:
        with pytest.raises(
            error, match=f"{what}: (must be text|the name has unprintable)"
        ) as caught:
            call()
        assert type(caught.value) is error


# What was done to a row behind the vault's back


def test_swapped_tokens_are_refused_and_the_error_names_the_row(path: Any, vault: Vault) -> None:
    places = [
        ("smtp", "password", None),
        ("smtp", "user", None),
        ("smtp", "password", P),
        ("twilio", "password", P),
    ]
    rows = {place: vault.set(place[0], place[1], f"value of {place}", place[2]) for place in places}
    for one, other in itertools.combinations(places, 2):
        tokens = {place: stored(path, rows[place]) for place in (one, other)}
        put(path, rows[one], encrypted_value=tokens[other])
        put(path, rows[other], encrypted_value=tokens[one])
        for place in (one, other):
            with pytest.raises(DamagedValue, match="another place") as caught:
                vault.get(*place)
            assert rows[place] in str(caught.value) and caught.value.row_id == rows[place]
        for place in (one, other):
            put(path, rows[place], encrypted_value=tokens[place])
            assert vault.get(*place).reveal() == f"value of {place}"


def test_a_row_copied_to_another_project_is_refused(path: Any, vault: Vault) -> None:
    original = vault.set("smtp", "password", "v", P)
    copy = insert(
        path, stored(path, original), Q, "smtp", "password", stored(path, original, "key_id")
    )
    with pytest.raises(DamagedValue, match=copy):
        vault.get("smtp", "password", Q)
    assert vault.get("smtp", "password", P).reveal() == "v"


def test_a_row_relabelled_to_another_valid_key_is_refused(path: Any, vault: Vault) -> None:
    row_id = vault.set("smtp", "password", "v")
    first = stored(path, row_id, "key_id")
    vault.keys.promote(vault.keys.create())
    put(path, row_id, key_id=vault.keys.states.active_id())
    with pytest.raises(DamagedValue, match=row_id):
        vault.get("smtp", "password")
    put(path, row_id, key_id=first)
    assert vault.get("smtp", "password").reveal() == "v"


def test_an_older_value_put_back_whole_is_not_detected(path: Any, vault: Vault) -> None:
    """A documented limit: the row is a good one, only not the latest."""
    row_id = vault.set("smtp", "password", "old")
    token, moment = stored(path, row_id), stored(path, row_id, "updated_at")
    vault.set("smtp", "password", "new")
    put(path, row_id, encrypted_value=token, updated_at=moment)
    assert vault.get("smtp", "password").reveal() == "old"


def test_a_value_that_the_app_wrote_over_ours_is_foreign_though_our_key_id_stays(
    path: Any, vault: Vault
) -> None:
    row_id = vault.set("smtp", "password", "v", P)
    vault.set("smtp", "password", "of all")
    put(path, row_id, encrypted_value=APP_VALUE)
    with pytest.raises(ForeignValue, match=row_id):
        vault.get("smtp", "password", P)
    assert [entry.state for entry in vault.list(P)] == ["foreign"]
    assert status(vault).values == {"ok": 1, "foreign": 1, "key missing": 0}
    vault.set("smtp", "password", "again", P)
    assert vault.get("smtp", "password", P).reveal() == "again"


@pytest.mark.parametrize("blob", [b"", b"\x00\xff", b"gAAAAABk"])
def test_a_blob_as_a_value_is_foreign_and_breaks_nothing_else(
    path: Any, vault: Vault, blob: bytes
) -> None:
    vault.set("smtp", "user", "v")
    row_id = vault.set("smtp", "password", "v")
    put(path, row_id, encrypted_value=blob)
    with pytest.raises(ForeignValue, match=row_id):
        vault.get("smtp", "password")
    assert vault.get("smtp", "user").reveal() == "v"
    assert {entry.credential_type: entry.state for entry in vault.list()} == {
        "user": "ok",
        "password": "foreign",
    }
    assert [entry.state for entry in vault.which("smtp")] == ["foreign", "ok"]
    assert status(vault).values == {"ok": 1, "foreign": 1, "key missing": 0}
    assert rotate(vault).foreign == 1


@pytest.mark.parametrize("column", ["label", "encrypted_value", "provider"])
def test_text_that_is_not_utf8_breaks_no_list_and_no_other_look_up(
    path: Any, vault: Vault, column: str
) -> None:
    vault.set("smtp", "user", "v")
    row_id = vault.set("twilio", "auth_token", "v")
    sql(
        path,
        f"UPDATE provider_credentials SET {column} = CAST(x'67ff41' AS TEXT) WHERE id = ?",
        row_id,
    )
    assert vault.get("smtp", "user").reveal() == "v"
    assert {entry.id for entry in vault.list()} >= {row_id}
    assert sum(status(vault).values.values()) == 2


# Writing


def test_set_keeps_id_time_of_creation_and_label_unless_given(path: Any, vault: Vault) -> None:
    row_id = vault.set("smtp", "password", "one", P, label="main")
    assert ID.fullmatch(row_id)
    assert TIME.fullmatch(stored(path, row_id, "created_at")) and stored(
        path, row_id, "created_at"
    ) == stored(path, row_id, "updated_at")
    early = "2020-01-01T00:00:00.000Z"
    put(path, row_id, created_at=early, updated_at=early)
    for label, expected in ((None, "main"), ("other", "other"), ("", None), (None, None)):
        assert vault.set("smtp", "password", "two", P, label=label) == row_id
        found = vault.get("smtp", "password", P)
        assert (found.reveal(), found.label, found.id) == ("two", expected, row_id)
        assert stored(path, row_id, "created_at") == early
        assert TIME.fullmatch(found.updated_at) and found.updated_at > early


@pytest.mark.sqlite("a primary key without a value")
def test_set_gives_an_id_to_a_row_that_another_tool_left_without(path: Any, vault: Vault) -> None:
    vault.set("smtp", "password", "before")
    sql(path, "UPDATE provider_credentials SET id = NULL WHERE provider = 'smtp'")
    row_id = vault.set("smtp", "password", "after")
    assert row_id and vault.get("smtp", "password").id == row_id


def test_set_replaces_the_app_own_value_in_place(path: Any, vault: Vault) -> None:
    row_id = insert(path, APP_VALUE, None, "smtp", "password")
    assert vault.set("smtp", "password", "ours") == row_id
    assert vault.get("smtp", "password").reveal() == "ours"


def test_the_same_value_twice_gives_two_tokens(path: Any, vault: Vault) -> None:
    row_id = vault.set("smtp", "password", "v")
    first = stored(path, row_id)
    vault.set("smtp", "password", "v")
    assert stored(path, row_id) != first


def test_delete_takes_exactly_one_scope(vault: Vault) -> None:
    vault.set("smtp", "user", "of all")
    vault.set("smtp", "user", "of p", P)
    assert vault.delete("smtp", "user", Q) is False
    assert vault.delete("smtp", "user", P) is True
    assert vault.get("smtp", "user", P).scope == "global"
    assert vault.delete("smtp", "user") is True
    assert not vault.has("smtp", "user", P)


def test_a_deleted_project_takes_its_values_with_it(vault: Vault) -> None:
    vault.set("smtp", "user", "of q", Q)
    vault.database.change("DELETE FROM projects WHERE id = ?", (Q,))
    assert vault.list() == []


def test_another_program_cannot_insert_a_second_global_value(path: Any, vault: Vault) -> None:
    vault.set("smtp", "user", "v")
    with pytest.raises(refusals()):
        insert(path, APP_VALUE, None, "smtp", "user")
    insert(path, APP_VALUE, P, "smtp", "user")
    with pytest.raises(refusals()):
        insert(path, APP_VALUE, P, "smtp", "user")


def test_two_processes_that_set_one_global_value_leave_one_row(
    site: Site, path: Any, vault: Vault
) -> None:
    script = """
import sys
from outreach_vault import KeyDirectory, Vault
with Vault.open(sys.argv[1], key_store=KeyDirectory(sys.argv[2])) as vault:
    sys.stdin.readline()
    for turn in range(50):
        vault.set("smtp", "user", f"{sys.argv[3]} {turn}")
"""
    command = [sys.executable, "-c", script, str(path), str(site.keys)]
    writers = [subprocess.Popen([*command, name], stdin=subprocess.PIPE) for name in ("one", "two")]
    for writer in writers:
        assert writer.stdin
        writer.stdin.close()  # the end of its input is the sign to begin
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(vault.list()) == 1
    assert vault.get("smtp", "user").reveal() in ("one 49", "two 49")


def test_set_after_another_process_rotated_uses_the_new_key(site: Site, vault: Vault) -> None:
    row_id = vault.set("smtp", "user", "one")
    with site.open() as other:
        report = rotate(other)
    vault.set("smtp", "user", "two")
    vault.set("smtp", "password", "three", P)
    assert {entry.key_id for entry in vault.list()} == {report.new_key}
    assert report.old_key != report.new_key and vault.get("smtp", "user").id == row_id


def test_a_writer_that_a_rotation_overtakes_strands_no_value(site: Site, path: Any) -> None:
    """
    The whole rotation happens after the writer has read the active key, and before it has the write
    lock.
    """

    def overtake() -> None:
        store.during = lambda: None
        with site.open() as other:
            rotate(other)

    store = Watched(KeyDirectory(site.keys), overtake)
    with Vault.open(path, key_store=store) as vault:
        vault.set("smtp", "user", "v")
        assert len(store.reads) == 2
        assert [entry.key_id for entry in vault.list()] == [vault.keys.states.active_id()]
        assert vault.get("smtp", "user").reveal() == "v"


@pytest.mark.sqlite("one lock for all that writes")
def test_a_writer_waits_for_the_lock_before_it_reads_and_then_says_busy(
    path: Any, vault: Vault
) -> None:
    row_id = vault.set("smtp", "user", "before")
    vault.database.fetch("PRAGMA busy_timeout = 50")
    with another(path) as other:
        other.begin()
        with traced(vault) as statements:
            for call in (
                lambda: vault.set("smtp", "user", "after"),
                lambda: vault.delete("smtp", "user", P),
            ):
                with pytest.raises(DatabaseBusy) as caught:
                    call()
                assert caught.value.hint
        assert not [s for s in statements if "projects" in s or s.startswith(("INSERT", "DELETE"))]
        assert vault.get("smtp", "user").reveal() == "before"
        other.execute("ROLLBACK")
    assert vault.set("smtp", "user", "after") == row_id
    assert vault.get("smtp", "user").reveal() == "after"


# What a call costs SQLite


@pytest.mark.sqlite("the plans of its planner")
@pytest.mark.parametrize("project", [None, P])
def test_get_is_one_statement_served_by_the_index(vault: Vault, project: str | None) -> None:
    vault.set("smtp", "user", "of all")
    vault.get("smtp", "user", project)
    with traced(vault) as statements:
        vault.get("smtp", "user", project)
    assert len(statements) == 1
    plan = [row[3] for row in vault.database.fetch(f"EXPLAIN QUERY PLAN {statements[0]}")]
    searches = [step for step in plan if "provider_credentials" in step]
    assert len(searches) == (1 if project is None else 2)
    for step in searches:
        assert (
            step.startswith("SEARCH")
            and "INDEX vault_credentials_" in step
            and "provider=? AND credential_type=?)" in step
        )
    assert not [step for step in plan if "SCAN" in step]


@pytest.mark.sqlite("the plans of its planner, and one lock for all that writes")
@pytest.mark.parametrize(("kept", "most_of_set", "most_of_delete"), [(0, 11, 10), (3, 15, 14)])
def test_writes_are_few_statements_that_take_the_lock_first_and_scan_nothing(
    vault: Vault, kept: int, most_of_set: int, most_of_delete: int
) -> None:
    limit(vault, Limits(values=kept))
    for value in "uv":  # a table is looked at once, and not by what follows
        vault.set("smtp", "user", value, P)
    for call, most in (
        (lambda: vault.set("smtp", "user", "w", P), most_of_set),
        (lambda: vault.delete("smtp", "user", P), most_of_delete),
    ):
        with traced(vault) as statements:
            call()
        begin = statements.index("BEGIN IMMEDIATE")
        assert len(statements) <= most and statements[-1] == "COMMIT"
        assert not [s for s in statements[:begin] if not s.startswith("SELECT id FROM vault_keys")]
        for statement in statements[begin + 1 : -1]:
            plan = [row[3] for row in vault.database.fetch(f"EXPLAIN QUERY PLAN {statement}")]
            scans = [
                step for step in plan if step.startswith("SCAN") and step != "SCAN CONSTANT ROW"
            ]  # which is no table
            small = ("vault_keys", "vault_meta")
            assert not [s for s in scans if not any(table in s for table in small)], statement


@pytest.mark.sqlite("settings of a connection")
def test_the_connection_of_every_thread_is_set_up_alike(path: Any, vault: Vault) -> None:
    def pragmas() -> dict[str, int]:
        names = ("foreign_keys", "synchronous", "secure_delete", "trusted_schema", "busy_timeout")
        return {name: vault.database.fetch(f"PRAGMA {name}")[0][0] for name in names}

    expected = {
        "foreign_keys": 1,
        "synchronous": 2,
        "secure_delete": 1,
        "trusted_schema": 0,
        "busy_timeout": 5000,
    }
    with ThreadPoolExecutor(1) as pool:
        assert pragmas() == pool.submit(pragmas).result() == expected


# The key store


def test_the_key_store_is_asked_once_for_each_key(site: Site, path: Any, vault: Vault) -> None:
    vault.set("smtp", "user", "old key")
    first = vault.keys.states.active_id()
    vault.keys.promote(vault.keys.create())
    vault.set("smtp", "password", "new key")
    store = Watched(KeyDirectory(site.keys))
    with Vault.open(path, key_store=store) as other:
        assert store.reads == []
        for _ in range(3):
            (
                other.get("smtp", "user"),
                other.get("smtp", "password"),
                other.list(),
                status(other),
                other.set("smtp", "user", "v"),
            )
            other.set("smtp", "host", "v")
    assert sorted(store.reads) == sorted([first, vault.keys.states.active_id()])
    assert store.marks == [vault.keys.states.active_id()]


def test_sixteen_threads_at_once_ask_the_key_store_once(
    site: Site, path: Any, vault: Vault
) -> None:
    vault.set("smtp", "user", "v")
    store, gate = Watched(KeyDirectory(site.keys)), threading.Barrier(16)

    def first_get(_: int) -> str:
        gate.wait()
        return other.get("smtp", "user").reveal()

    with Vault.open(path, key_store=store) as other, ThreadPoolExecutor(16) as pool:
        assert set(pool.map(first_get, range(16))) == {"v"}
    assert len(store.reads) == 1


# Threads, processes, several vaults


def test_sixteen_threads_get_and_set_without_an_error(vault: Vault, figures: Figures) -> None:
    vault.set("smtp", "common", "v")

    def work(number: int) -> bool:
        for turn in range(8):
            vault.set("smtp", f"field {number}", f"{number} {turn}")
            assert vault.get("smtp", f"field {number}", P).reveal() == f"{number} {turn}"
            assert vault.get("smtp", "common").reveal() == "v"
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))
    assert len(vault.list()) == 17
    figures("gets and sets of 16 threads with one vault, no error", 16 * 8 * 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_children_and_their_parent_share_an_open_vault(
    site: Site, vault: Vault, figures: Figures
) -> None:
    vault.set("smtp", "common", "v")

    of_the_parent = vault.database.connection()

    def child(number: int) -> None:
        # One SQLite connection in two processes corrupts the file.
        assert vault.database.connection() is not of_the_parent
        for turn in range(5):
            vault.set("smtp", f"field {number}", f"{number} {turn}")
            assert vault.get("smtp", f"field {number}").reveal() == f"{number} {turn}"
            assert vault.get("smtp", "common", P).reveal() == "v"

    children = [
        multiprocessing.get_context("fork").Process(target=child, args=(number,))
        for number in range(8)
    ]
    for process in children:
        process.start()
    for turn in range(10):
        vault.set("smtp", "of the parent", str(turn))
    for process in children:
        process.join()
    assert [process.exitcode for process in children] == [0] * 8
    assert vault.get("smtp", "of the parent").reveal() == "9"
    assert [vault.get("smtp", f"field {number}").reveal() for number in range(8)] == [
        f"{number} 4" for number in range(8)
    ]
    require_sound(site.database)
    figures("forked children of a process with an open vault, no error", len(children))


@pytest.mark.sqlite("the file of a transaction")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_closes_no_connection_of_its_parents(site: Site, path: Any) -> None:
    """SQLite would undo the parent's transaction, and here delete its journal."""
    sql(path, "PRAGMA journal_mode = DELETE")

    def child() -> None:
        gc.collect()  # a connection is in a cycle with its statements
        vault.close()

    with site.open() as vault:
        vault.database.change("BEGIN IMMEDIATE")  # in `write` a frame would hold the connection
        vault.set("smtp", "user", "v")
        assert os.waitpid(forked(child), 0)[1] == 0
        assert path.with_name(f"{path.name}-journal").exists()


@pytest.fixture
def unbound() -> Iterator[None]:
    yield
    from outreach_vault.models import OWN_MODELS, SHARED_MODELS

    for model in SHARED_MODELS + OWN_MODELS:
        model._meta.set_database(None)


@pytest.mark.usefixtures("unbound")
@pytest.mark.parametrize("bound", ["neither", "first", "second"])
def test_two_open_vaults_never_mix(engine: Engine, tmp_path: Path, bound: str) -> None:
    from outreach_vault.models import ProviderCredential

    vaults = []
    for name in ("first", "second"):
        vaults.append(make(tmp_path / name, engine).open())
    with vaults[0] as first, vaults[1] as second:
        if bound != "neither":
            (first if bound == "first" else second).bind_models()
        first.set("smtp", "user", "of the first")
        second.set("smtp", "user", "of the second", P)
        first.set("smtp", "only", "here")
        assert (first.get("smtp", "user", P).reveal(), second.get("smtp", "user", P).reveal()) == (
            "of the first",
            "of the second",
        )
        assert [len(vault.list()) for vault in (first, second)] == [2, 1]
        assert not second.has("smtp", "only", P)
        if bound != "neither":
            assert ProviderCredential.select().count() == (2 if bound == "first" else 1)
        second.close()
        assert first.get("smtp", "user").reveal() == "of the first"


def test_asyncio_tasks_use_a_vault_through_threads(vault: Vault) -> None:
    async def task(number: int) -> str:
        await asyncio.to_thread(vault.set, "smtp", f"field {number}", str(number))
        return (await asyncio.to_thread(vault.get, "smtp", f"field {number}")).reveal()

    async def everything() -> list[str]:
        return await asyncio.gather(*map(task, range(20)))

    assert asyncio.run(everything()) == [str(number) for number in range(20)]


def test_close_closes_for_all_threads_and_later_use_says_so(site: Site) -> None:
    vault = site.open()
    vault.set("smtp", "user", "v")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(vault.get, "smtp", "user").result().reveal() == "v"
        vault.close()
        vault.close()
        calls: list[Callable[[], object]] = [
            lambda: vault.get("smtp", "user"),
            lambda: vault.has("smtp", "user"),
            lambda: vault.set("smtp", "user", "w"),
            lambda: vault.delete("smtp", "user"),
            vault.list,
            lambda: vault.which("smtp"),
        ]
        for call in calls:
            for where in (call, lambda call=call: pool.submit(call).result()):  # type: ignore[misc]
                with pytest.raises(VaultError, match="closed"):
                    where()
    assert [file.name for file in site.folder.glob("*-wal")] == []


# Opening, and what reading leaves alone


def test_reading_changes_no_file_and_creates_none(site: Site, path: Any, vault: Vault) -> None:
    vault.set("smtp", "user", "of all")
    row_id = vault.set("smtp", "password", "v", P)
    put(path, row_id, encrypted_value=flipped(stored(path, row_id)))

    def kept() -> object:
        return files(site.folder), site.engine and dump(path)

    before = kept()
    with site.open() as other:
        other.get("smtp", "user", P)
        for look_up in (("smtp", "password", P), ("smtp", "host"), ("smtp", "user", "x")):
            with pytest.raises(VaultError):
                other.get(*look_up)
        (
            other.has("smtp", "user"),
            other.list(),
            other.list(P),
            other.which("smtp", project_id=P),
            status(other),
        )
        assert kept() == before
    assert kept() == before


def at_schema(path: Path, version: int) -> Path:
    """A file as the app leaves it at that schema number."""
    path.touch()
    database = Database(path)
    for step in migrator.steps()[:version]:
        migrator.apply(database, step)
    database.close_all()
    return path


def other_program(path: Path) -> None:
    sql(path, "CREATE TABLE notes (text)")


UNFIT: dict[str, tuple[Callable[[Path], object], type[VaultError]]] = {
    "missing": (lambda path: None, DatabaseNotFound),
    "a folder": (lambda path: path.mkdir(), NotADatabase),
    "empty": (lambda path: path.touch(), NotADatabase),
    "text": (lambda path: path.write_text("notes\n" * 999), NotADatabase),
    "of another program": (other_program, NotADatabase),
    "at schema 4": (lambda path: at_schema(path, 4), SchemaOutdated),
    "at schema 5, without the vault's tables": (lambda path: at_schema(path, 5), SchemaOutdated),
    "labelled 10 at schema 4": (
        lambda path: sql(at_schema(path, 4), "PRAGMA user_version = 10"),
        SchemaMismatch,
    ),
}


@pytest.mark.sqlite("a file that is none of ours")
@pytest.mark.parametrize("what", UNFIT)
def test_open_refuses_what_is_not_ready_and_leaves_it_as_it_is(tmp_path: Path, what: str) -> None:
    path = tmp_path / "samsara.db"
    UNFIT[what][0](path)
    before, names = files(tmp_path), sorted(tmp_path.iterdir())
    with nothing_left_open(), pytest.raises(UNFIT[what][1]) as caught:
        Vault.open(path, key_store=KeyDirectory(tmp_path / "keys"))
    assert str(path) in str(caught.value) and caught.value.hint
    if UNFIT[what][1] is SchemaOutdated:
        assert "vault init" in caught.value.hint
    assert (files(tmp_path), sorted(tmp_path.iterdir())) == (before, names)


@pytest.mark.sqlite("a file that vanishes")
def test_a_file_that_vanishes_while_it_is_opened_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Database(tmp_path / "samsara.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sqlite("the schema number in the file's head")
def test_a_file_that_the_app_took_to_its_schema_ten_works_and_keeps_its_number(
    site: Site, path: Any
) -> None:
    sql(path, "ALTER TABLE messages ADD COLUMN cost_cents INTEGER")
    sql(path, "CREATE TABLE dnc_registry (id TEXT PRIMARY KEY)")
    sql(path, "PRAGMA user_version = 10")
    with site.open() as vault:
        vault.set("smtp", "user", "v", P)
        assert vault.get("smtp", "user", P).reveal() == "v"
        rotate(vault)
        assert vault.get("smtp", "user", P).reveal() == "v"
        assert status(vault).schema == 10
    assert sql(path, "PRAGMA user_version") == [(10,)]


# Faults of the disk


@pytest.mark.sqlite("a limit to the file's pages")
def test_a_full_database_says_so_leaves_nothing_half_done_and_works_afterwards(
    path: Any, vault: Vault
) -> None:
    vault.set("smtp", "user", "before")
    pages = vault.database.fetch("PRAGMA page_count")[0][0]
    vault.database.fetch(f"PRAGMA max_page_count = {pages}")
    rows = sql(path, "SELECT * FROM provider_credentials")
    for call in (
        lambda: vault.set("smtp", "user", "x" * 60000),
        lambda: vault.set("smtp", "password", "x" * 60000, P),
    ):
        with pytest.raises(DatabaseFull) as caught:
            call()
        assert "full" in str(caught.value) and caught.value.hint
    assert sql(path, "SELECT * FROM provider_credentials") == rows
    vault.database.fetch("PRAGMA max_page_count = 1000000")
    vault.set("smtp", "user", "x" * 60000)
    assert vault.get("smtp", "user").reveal() == "x" * 60000


LIMITED = """
import resource, signal, sys
from outreach_vault import KeyDirectory, StorageError, Vault
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Vault.open(sys.argv[1], key_store=KeyDirectory(sys.argv[2])) as vault:
    vault.set("smtp", "user", "before")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    stored = []
    try:
        for number in range(100):
            vault.set("smtp", f"field {number}", "x" * 30_000)
            stored.append(f"field {number}")
    except StorageError as error:
        print(type(error).__name__, error)
    assert sorted(e.credential_type for e in vault.list()) == sorted(["user", *stored])
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    vault.set("smtp", "user", "after")
    assert vault.get("smtp", "user").reveal() == "after"
    assert [vault.get("smtp", name).reveal() for name in stored] == ["x" * 30_000] * len(stored)
"""


@pytest.mark.sqlite("a limit to the file's size")
def test_a_file_that_may_not_grow_says_so_leaves_nothing_half_done_and_works_afterwards(
    site: Site,
    path: Any,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, path, site.keys], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    # SQLite knows a full disk by ENOSPC alone; for this limit of the system's it says what it saw
    assert done.stdout == f"StorageError {path}: disk I/O error\n"
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]


def as_an_ordinary_user(work: Callable[[Path], None], folder: Path) -> int:
    """
    The exit status of *work* in a child without root's rights, who ignores permission bits.

    Forked and not started: the interpreter itself may be in a folder that only root may enter.
    """

    def child() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        work(folder)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    return process.exitcode if process.exitcode is not None else -1


@pytest.fixture
def open_folder(site: Site) -> Iterator[Path]:
    """
    The vault's folder, copied to where an ordinary user may go (and the modules that a child needs
    are loaded).
    """
    with site.open() as vault:
        vault.set("smtp", "user", "before")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(site.folder, folder, dirs_exist_ok=True)
        for item in (Path(folder), *Path(folder).rglob("*")):
            if os.geteuid() == 0:
                os.chown(item, 65534, 65534)
        yield Path(folder)


def refuses_to_write(path: Path) -> None:
    with reopen(path) as vault, pytest.raises(DatabaseReadOnly, match="read-only") as caught:
        vault.set("smtp", "user", "after")
    assert str(path) in str(caught.value) and caught.value.hint


def works(path: Path, expected: str) -> None:
    with reopen(path) as vault:
        assert vault.get("smtp", "user").reveal() == expected
        vault.set("smtp", "user", "after")
        assert vault.get("smtp", "user").reveal() == "after"


def in_a_read_only_folder(folder: Path) -> None:
    folder.chmod(0o500)
    with pytest.raises(
        DatabaseReadOnly, match="read-only"
    ):  # SQLite cannot make its log there, so not even read
        reopen(folder / "samsara.db")
    folder.chmod(0o700)
    works(folder / "samsara.db", "before")


def with_a_read_only_file(folder: Path) -> None:
    path = folder / "samsara.db"
    path.chmod(0o400)
    refuses_to_write(path)
    with reopen(path) as vault:
        assert vault.get("smtp", "user").reveal() == "before"
        with pytest.raises(DatabaseReadOnly):
            vault.set("smtp", "user", "after")
        for file in folder.glob("samsara.db*"):
            file.chmod(0o600)
        vault.set("smtp", "user", "before")  # the same vault, not opened anew
    works(path, "before")


def with_an_unreadable_file(folder: Path) -> None:
    (folder / "samsara.db").chmod(0)
    with pytest.raises(StorageError, match="no permission to read"):
        reopen(folder / "samsara.db")
    (folder / "samsara.db").chmod(0o600)
    works(folder / "samsara.db", "before")


@pytest.mark.sqlite("permissions of a file and its folder")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    "work", [in_a_read_only_folder, with_a_read_only_file, with_an_unreadable_file]
)
def test_missing_permissions_are_named_and_the_same_process_works_when_they_are_given(
    open_folder: Path, work: Callable[[Path], None]
) -> None:
    assert as_an_ordinary_user(work, open_folder) == 0


# Leaks


@pytest.mark.usefixtures("unbound")
def test_no_plaintext_is_in_any_file_or_log_or_text(
    site: Site, path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from outreach_vault.models import ProviderCredential

    canary = f"canary {secrets.token_hex(16)}"

    def kept() -> dict[str, bytes]:
        on_server = site.engine.files(name_of(path)) if site.engine else {}
        return files(site.folder) | on_server

    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="peewee")
    with site.open() as vault, traced(vault) as statements:
        vault.bind_models()
        row_id = vault.set("smtp", "password", canary, P, label="main")
        found = vault.get("smtp", "password", P)
        assert canary not in repr(vars(ProviderCredential.get_by_id(row_id)))
        seen = [kept()]
        rotate(vault)
        seen.append(kept())
        texts = [
            repr(found),
            str(found),
            repr(vault),
            repr(vault.list()),
            repr(status(vault)),
            repr(vault.keys),
        ]
        put(path, row_id, encrypted_value=flipped(stored(path, row_id)))
        with pytest.raises(DamagedValue) as caught:
            vault.get("smtp", "password", P)
        texts += [repr(caught.value), str(caught.value), str(caught.value.hint)]
        vault.set("smtp", "password", canary)
        vault.delete("smtp", "password", P)
        seen.append(kept())
    seen.append(kept())
    # With its values, if SQLite runs it.
    assert any("INSERT INTO provider_credentials" in statement for statement in statements)
    # It was listening.
    assert any('FROM "provider_credentials"' in record.getMessage() for record in caplog.records)
    for text in [*texts, *statements, *(record.getMessage() for record in caplog.records)]:
        assert canary not in text
    for name, data in itertools.chain.from_iterable(snapshot.items() for snapshot in seen):
        assert canary.encode() not in data, name


def with_locals(error: BaseException) -> str:
    """
    All that a crash reporter may collect: every error of the chain, suppressed ones too, with the
    locals of their frames.
    """
    texts, link = [], error  # type: tuple[list[str], BaseException | None]
    while link is not None:
        texts += traceback.TracebackException.from_exception(link, capture_locals=True).format()
        link = link.__cause__ or link.__context__
    return "".join(texts)


def moved(path: Path, vault: Vault, canary: str) -> None:
    row_id = vault.set("smtp", "user", canary)
    put(path, row_id, credential_type="password")
    vault.get("smtp", "password")


def bit_flipped(path: Path, vault: Vault, canary: str) -> None:
    row_id = vault.set("smtp", "password", canary)
    put(path, row_id, encrypted_value=flipped(stored(path, row_id)))
    vault.get("smtp", "password")


LEAKS: dict[str, tuple[Callable[[Path, Vault, str], object], type[Exception]]] = {
    "get of a moved row": (moved, DamagedValue),
    "get of a damaged row": (bit_flipped, DamagedValue),
    "set of text for no project": (
        lambda path, vault, canary: vault.set("smtp", "password", canary, "nobody"),
        ProjectNotFound,
    ),
    "set of too long a text": (
        lambda path, vault, canary: vault.set("smtp", "password", canary * 4000),
        ValueError,
    ),
    "set of a secret for no project": (
        lambda path, vault, canary: vault.set("smtp", "user", Secret(canary), "nobody"),
        ProjectNotFound,
    ),
}


@pytest.mark.parametrize("case", LEAKS)
def test_no_plaintext_is_in_a_traceback_with_the_locals_of_our_frames(
    path: Any, vault: Vault, case: str
) -> None:
    canary = secrets.token_hex(16)
    with pytest.raises(LEAKS[case][1]) as caught:
        LEAKS[case][0](path, vault, canary)
    ours = "".join(
        part
        for part in with_locals(caught.value).split('  File "')
        if "outreach_vault" in part.split('"')[0]
    )
    assert "Secret('********')" in ours or "self = " in ours  # locals were captured
    assert canary not in ours


@pytest.mark.sqlite("secure_delete, and its log")
def test_a_replaced_and_a_deleted_token_leave_the_file(site: Site, path: Any, vault: Vault) -> None:
    limit(vault, Limits(values=0))
    row_id = vault.set("smtp", "password", "one")
    tokens = [stored(path, row_id)]
    vault.set("smtp", "password", "two")
    tokens.append(stored(path, row_id))
    vault.delete("smtp", "password")
    assert vault.database.truncate_log()
    data = b"".join(files(site.folder).values())
    assert [token for token in tokens if token.encode()[40:80] in data] == []


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda vault, wrong: vault.set("smtp", "port", wrong), "value"),
        (lambda vault, wrong: vault.set("smtp", "port", "587", label=wrong), "label"),
        (lambda vault, wrong: vault.set_fields("smtp", wrong), "values"),
        (
            lambda vault, wrong: vault.set_fields(
                "smtp", {"host": "mail.example.com", "port": wrong}
            ),
            "values['port']",
        ),
        (lambda vault, wrong: Secret(wrong), "a secret"),
    ],
)
@pytest.mark.parametrize("wrong", [587, b"invented", ["invented"], 5.0])
def test_what_is_no_text_is_a_type_error_that_names_the_argument_and_not_the_value(
    vault: Vault, call: Callable[[Vault, Any], object], argument: str, wrong: Any
) -> None:
    with pytest.raises(TypeError) as caught:
        call(vault, wrong)
    assert str(caught.value).startswith(argument) and str(caught.value).endswith(
        f"not {type(wrong).__name__}"
    )
    assert vault.list() == []


def test_no_value_is_no_value(vault: Vault) -> None:
    for call in (
        lambda: vault.set("smtp", "port", None),
        lambda: vault.set_fields("smtp", None),
        lambda: Secret(None),
    ):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="not NoneType"):
            call()
    assert vault.list() == []


def test_set_stores_what_the_rules_of_the_catalogue_refuse(vault: Vault) -> None:
    vault.set("smtp", "port", "none")
    assert vault.get("smtp", "port").reveal() == "none"


@pytest.mark.sqlite("names of a file")
@pytest.mark.parametrize(
    "name",
    ["a b.db", "what?mode=ro.db", "a#b.db", "100%.db", "a%41.db", "a:b.db", "ä€.db", "\udcff.db"],
)
def test_the_file_and_its_backup_may_have_any_name(site: Site, path: Any, name: str) -> None:
    file = path.rename(path.with_name(name))
    with reopen(file) as vault:
        vault.set("smtp", "user", "v")
        copy = file.with_name(f"copy of {name}")
        vault.database.backup(copy, lambda opened: None)
    with Vault.open(copy, key_store=KeyDirectory(site.keys), read_only=True) as vault:
        assert vault.get("smtp", "user").reveal() == "v"
    assert {file.name, copy.name} <= set(os.listdir(site.folder))
