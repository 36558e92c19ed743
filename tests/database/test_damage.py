"""
Damaged and hostile files: no wrong value is given out, and no row but the one meant is changed.

SQLite trusts its file. Two entries of an index that changed places lead a search to another row
than the one that was searched for, and quick_check calls the file good. So the harm is done here to
the bytes themselves, and what must be there is read from the table without any index.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import time
import traceback
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

import pytest
from helpers.damage import Image, Tree, closed_bytes, random_damage, trees
from helpers.effort import effort, some
from helpers.faults import forked
from helpers.site import Figures, Row, Site, new_site, sql

import outreach_vault
from outreach_vault import KeyDirectory, Secret, StorageError, Vault, VaultError
from outreach_vault.database.sqlite import connections as database
from outreach_vault.errors import KeyInUse, KeyStoreUnavailable, KeyUnavailable
from outreach_vault.operations import doctor, launch, recovery, rotation
from outreach_vault.operations.init import init
from outreach_vault.operations.status import status
from outreach_vault.schema.shapes import Place
from outreach_vault.testing import MemoryKeyStore
from outreach_vault.vault import Entry

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="children are forked"),
    pytest.mark.sweep(3),
    pytest.mark.sqlite("damaged pages and indexes of its file"),
]

A, B, NOBODY = "project-a", "project-b", "no-such-project"
SCOPES: Final = (None, A, B)
FIELDS: Final = {
    "smtp": ("host", "user", "password"),
    "elevenlabs": ("api_key", "screening_agent_id", "phone_number_id"),
    "twilio": ("account_sid", "auth_token", "phone_number"),
    "anthropic": ("api_key",),
}
ASKED: Final = tuple(
    Place(project, provider, field)
    for project in SCOPES
    for provider, fields in FIELDS.items()
    for field in fields
)
STORED: Final = {
    place: f"the {place.project_id or 'global'} {place.provider} {place.credential_type}"
    for place in ASKED
    if place.project_id is None
    or place.provider == "smtp"
    or place in ((A, "twilio", "phone_number"), (B, "anthropic", "api_key"))
}
MEMORY: Final = 3 * 1024**3  # for a child: a list that never ends must not take the machine
SECONDS: Final = 60
COPIES: Final = effort(1500, 30)
WORKERS: Final = 2


class Small(NamedTuple):
    """A small vault, closed: its bytes, its rows by id and by rowid."""

    site: Site
    data: bytes
    rows: dict[str, Row]
    ids: dict[int, str]

    @property
    def places(self) -> dict[str, Place]:
        return {row_id: place_in(row) for row_id, row in self.rows.items()}


class Case(NamedTuple):
    """A harmed copy. *hidden*: the rows that the harmed index may no longer find."""

    name: str
    data: bytes
    hidden: frozenset[str]


def table(path: Path, name: str = "provider_credentials") -> dict[str, Row]:
    """The rows by id as the table itself has them, whatever its indexes say."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute(f"SELECT * FROM {name} NOT INDEXED")]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def place_in(row: Row) -> Place:
    return Place(row["project_id"], row["provider"], row["credential_type"])


def general(place: Place) -> Place:
    return place._replace(project_id=None)


def opened(site: Site, row: Row) -> str:
    """The value in a row, by its key's file and without the package."""
    content = json.loads(site.fernet(row["key_id"]).decrypt(row["encrypted_value"].encode()))
    assert Place(*(content[name] for name in Place._fields)) == place_in(row)
    return str(content["value"])


def of_ours(error: BaseException) -> str:
    """The innermost line of the package that the error went through."""
    folder = str(Path(outreach_vault.__file__).parent)
    lines = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(folder)
    ]
    return lines[-1] if lines else "the test itself"


def child(action: Callable[[], object], folder: Path, seconds: float = SECONDS) -> Any:
    """
    What *action* gives (as JSON has it), done in a child that must end in time.

    A loop inside SQLite hears no signal of Python's; from outside it can be ended.
    """
    said = folder / "said.json"
    said.unlink(missing_ok=True)

    def act() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        try:
            found = action()
        except VaultError as error:
            found = {"refused": f"{type(error).__name__}: {error} ({error.hint})"}
        said.write_text(json.dumps(found))

    pid, deadline = forked(act), time.monotonic() + seconds
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail(f"it did not end within {seconds:g} seconds")
        time.sleep(0.01)
    assert ended[1] == 0, f"the child ended with {os.waitstatus_to_exitcode(ended[1])}"
    return json.loads(said.read_text())


def refused(found: Any) -> str:
    """The text of the VaultError that a child met; empty where it met none."""
    return str(found["refused"]) if isinstance(found, dict) and "refused" in found else ""


SAYS_DAMAGED: Final = re.compile(r"damaged|malformed|out of order", re.IGNORECASE)


def make_small(folder: Path) -> Small:
    # The order of an index of ids, so that a seed harms the same in each run.
    ids = random.Random(2)
    with mock.patch("uuid.uuid4", lambda: uuid.UUID(int=ids.getrandbits(128), version=4)):
        return _make_small(folder)


def _make_small(folder: Path) -> Small:
    site = new_site(folder)
    for project in (A, B):
        sql(
            site.database,
            "INSERT INTO projects (id, name, created_at, updated_at) VALUES (?, ?, '', '')",
            *(project, project),
        )
    places = list(STORED)
    random.Random(1).shuffle(places)  # so that neighbours of an index are none of the table
    with site.open() as vault:
        for place in places:
            vault.set(place.provider, place.credential_type, STORED[place], place.project_id)
    rows = table(site.database)
    ids = dict(sql(site.database, "SELECT rowid, id FROM provider_credentials NOT INDEXED"))
    return Small(site, closed_bytes(site.database), rows, ids)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_small(tmp_path_factory.mktemp("damage") / "small")


_numbers = itertools.count()


@contextlib.contextmanager
def harmed(small: Small, data: bytes, folder: Path) -> Iterator[Site]:
    """A vault with these bytes as its file, and copies of the small one's keys."""
    site = Site.of(folder / f"harmed-{next(_numbers)}")
    site.database.parent.mkdir()
    site.database.write_bytes(data)
    site.database.chmod(0o600)
    shutil.copytree(small.site.keys, site.keys)
    yield site
    shutil.rmtree(site.database.parent)


def indexes(data: bytes, name: str) -> list[Tree]:
    return [tree for tree in trees(data) if tree.is_index and tree.table == name]


def entries(image: Image, tree: Tree) -> Iterator[tuple[int, int]]:
    for page in image.leaves(tree.root):
        for entry in range(image.count(page)):
            yield page, entry


def swaps(data: bytes, ids: dict[int, str], name: str) -> Iterator[Case]:
    """Each two neighbours of each index of the table with their cell pointers swapped."""
    for tree in indexes(data, name):
        for page, entry in entries(Image(data), tree):
            image = Image(data)
            if entry + 1 < image.count(page):
                rowids = [image.rowid(page, entry), image.rowid(page, entry + 1)]
                image.swap(page, entry, entry + 1)
                hidden = frozenset(ids[rowid] for rowid in rowids)
                yield Case(f"{tree.name}, {entry} and {entry + 1} swapped", bytes(image), hidden)


def plants(data: bytes, ids: dict[int, str], name: str) -> Iterator[Case]:
    """Each entry of each index of the table leading to the row of the next, and to a far one."""
    for tree in indexes(data, name):
        for page, entry in entries(Image(data), tree):
            rowids = sorted(ids)
            here = rowids.index(Image(data).rowid(page, entry))
            for rowid in {rowids[(here + step) % len(rowids)] for step in (1, len(rowids) // 2)}:
                image = Image(data)
                own = image.rowid(page, entry)
                if rowid != own and image.plant(page, entry, rowid):
                    name_ = f"{tree.name}, entry {entry} of row {own} leads to row {rowid}"
                    yield Case(name_, bytes(image), frozenset([ids[own]]))


def drops(data: bytes, ids: dict[int, str], name: str) -> Iterator[Case]:
    """Each entry of each index of the table gone."""
    for tree in indexes(data, name):
        for page, entry in entries(Image(data), tree):
            image = Image(data)
            own = image.rowid(page, entry)
            image.drop(page, entry)
            yield Case(f"{tree.name}, entry {entry} dropped", bytes(image), frozenset([ids[own]]))


HARMS: Final = {"swapped": swaps, "planted": plants, "dropped": drops}
each_harm = pytest.mark.parametrize("harm", HARMS)


def cases(small: Small, harm: str) -> list[Case]:
    found = list(HARMS[harm](small.data, small.ids, "provider_credentials"))
    assert len(found) > 2 * len(STORED)
    return list(some(found, 8))


class Faults(list[str]):
    """What went wrong in any case: all are met before the test fails, and the first are shown."""

    def require_none(self) -> None:
        shown = "\n".join(self[:12])
        assert not self, f"{len(self)} times:\n{shown}"


Faulty = Iterator[str]


def over_cases(small: Small, harm: str, folder: Path, look: Callable[[Case, Vault], Faulty]) -> int:
    """*look* at each case in an open vault; it gives what is wrong. How many cases there were."""
    faults, met = Faults(), cases(small, harm)
    for case in met:
        with harmed(small, case.data, folder) as site, site.open() as vault:
            faults += [f"{case.name}: {fault}" for fault in look(case, vault)]
    faults.require_none()
    return len(met)


def may_be_global(case: Case, small: Small, place: Place) -> bool:
    """The global row is the project's: it has none of its own, or the harmed index hides that."""
    hidden = {small.places[row_id] for row_id in case.hidden}
    return place.project_id is not None and (place not in STORED or place in hidden)


def allowed(case: Case, small: Small, place: Place, *, fallback: bool) -> set[Place]:
    """The places whose row may answer the question for *place*."""
    found = {place}
    if fallback and may_be_global(case, small, place):
        found.add(general(place))
    return found & set(STORED)


# What is read


@each_harm
def test_get_gives_the_value_of_the_place_asked_for_or_none(
    small: Small, harm: str, tmp_path: Path, figures: Figures
) -> None:
    asked = 0

    def look(case: Case, vault: Vault) -> Faulty:
        nonlocal asked
        hidden = {small.places[row_id] for row_id in case.hidden}
        for place, fallback in itertools.product(ASKED, (True, False)):
            right = allowed(case, small, place, fallback=fallback)
            asked += 1
            try:
                got = vault.get(*place[1:], place.project_id, fallback=fallback)
            except VaultError as error:
                if right and not hidden & {place, general(place)}:
                    yield f"{place}: {type(error).__name__}, and its entry is whole"
                continue
            if got.reveal() not in {STORED[found] for found in right}:
                yield f"{place}, fallback={fallback}: {got.reveal()!r}"
            elif STORED.get(place_in(small.rows[got.id])) != got.reveal():
                yield f"{place}: its credential names row {got.id}"

    met = over_cases(small, harm, tmp_path, look)
    figures(f"files with an index entry {harm}", met)
    figures("look-ups in them without a wrong value", asked)


@each_harm
def test_a_bundle_has_no_value_of_another_place(small: Small, harm: str, tmp_path: Path) -> None:
    def look(case: Case, vault: Vault) -> Faulty:
        for provider, project in itertools.product(FIELDS, SCOPES):
            with contextlib.suppress(VaultError):
                for field, got in vault.bundle(provider, project).items():
                    place = Place(project, provider, field)
                    right = allowed(case, small, place, fallback=True)
                    if got.reveal() not in {STORED[found] for found in right}:
                        yield f"{place}: {got.reveal()!r}"

    over_cases(small, harm, tmp_path, look)


@each_harm
def test_a_command_is_given_no_value_of_another_place(
    small: Small, harm: str, tmp_path: Path
) -> None:
    def look(case: Case, vault: Vault) -> Faulty:
        for project in SCOPES:
            for chosen in ([], *([provider] for provider in FIELDS)):
                with contextlib.suppress(VaultError):
                    for name, value in launch.environment(vault, project, chosen).given.items():
                        place = place_of_variable(project, name)
                        right = allowed(case, small, place, fallback=True)
                        if value.reveal() not in {STORED[found] for found in right}:
                            yield f"{project}, {chosen}: {name} is {value.reveal()!r}"

    over_cases(small, harm, tmp_path, look)


def place_of_variable(project: str | None, name: str) -> Place:
    """The place whose variable it is; one that nobody asked for, where there is none."""
    found = [p for p in ASKED if p.project_id == project and launch.variable(*p[1:]) == name]
    return found[0] if found else Place(project, "no provider", name)


@each_harm
def test_has_says_what_is_there_wherever_the_entry_is_whole(
    small: Small, harm: str, tmp_path: Path
) -> None:
    def look(case: Case, vault: Vault) -> Faulty:
        hidden = {small.places[row_id] for row_id in case.hidden}
        for place, fallback in itertools.product(ASKED, (True, False)):
            there = place in STORED or (fallback and general(place) in STORED)
            with contextlib.suppress(VaultError):
                said = vault.has(*place[1:], place.project_id, fallback=fallback)
                if said and not there:
                    yield f"{place}, fallback={fallback}: there, and nothing is stored"
                if there and not said and not hidden & {place, general(place)}:
                    yield f"{place}, fallback={fallback}: not there, and its entry is whole"

    over_cases(small, harm, tmp_path, look)


def misfit(small: Small, entry: Entry) -> str:
    """What an entry says that the row of its id does not; empty where they agree."""
    row = small.rows.get(entry.id)
    if row is None:
        return f"row {entry.id} is not in the table"
    names = set(Entry._fields) - {"state"}
    wrong = [name for name in sorted(names) if getattr(entry, name) != row[name]]
    return f"row {entry.id} has another {', '.join(wrong)}" if wrong else ""


@each_harm
def test_which_names_the_row_of_the_place_asked_for(
    small: Small, harm: str, tmp_path: Path
) -> None:
    def look(case: Case, vault: Vault) -> Faulty:
        questions = [(place.provider, place.credential_type, place.project_id) for place in ASKED]
        for question in [*questions, *itertools.product(FIELDS, [None], SCOPES)]:
            with contextlib.suppress(VaultError):
                for entry in vault.which(*question):
                    if fault := misfit(small, entry):
                        yield f"{question}: {fault}"
                    field = question[1] or entry.credential_type
                    place = Place(question[2], question[0], field)
                    found = Place(entry.project_id, entry.provider, entry.credential_type)
                    if found not in allowed(case, small, place, fallback=True):
                        yield f"{question}: {found}"

    over_cases(small, harm, tmp_path, look)


@each_harm
def test_list_shows_rows_as_the_table_has_them_and_of_no_other_scope(
    small: Small, harm: str, tmp_path: Path
) -> None:
    def look(case: Case, vault: Vault) -> Faulty:
        for scope in (None, *SCOPES):
            with contextlib.suppress(VaultError):
                shown = vault.list() if scope is None else vault.list(scope)
                yield from (fault for entry in shown if (fault := misfit(small, entry)))
                if scope is not None and {entry.project_id for entry in shown} - {scope}:
                    yield f"list({scope}) shows another scope's rows"
                wanted = {i for i, p in small.places.items() if scope in (None, p.project_id)}
                if lacking := wanted - {entry.id for entry in shown} - case.hidden:
                    yield f"list({scope}) lacks {lacking}, whose entries are whole"
        with contextlib.suppress(VaultError):
            if {entry.project_id for entry in vault.list(None)} - {None}:
                yield "list(None) shows a project's rows"

    over_cases(small, harm, tmp_path, look)


# What is written


def targets(small: Small, case: Case) -> list[Place]:
    """The places of the harmed entries, the same field in each other scope, and one not stored."""
    near = [small.places[row_id] for row_id in sorted(case.hidden)]
    twins = [place._replace(project_id=scope) for place in near for scope in SCOPES]
    return list(dict.fromkeys([*near, *twins, Place(A, "elevenlabs", "api_key")]))


def changed(small: Small, site: Site) -> dict[str, Place]:
    """The rows that are not as they were, each with its place (that of before, if it went)."""
    after = table(site.database)
    return {
        row_id: place_in(after.get(row_id) or small.rows[row_id])
        for row_id in after.keys() | small.rows.keys()
        if after.get(row_id) != small.rows.get(row_id)
    }


def over_targets(
    small: Small, harm: str, folder: Path, act: Callable[[Case, Site, Place], Faulty]
) -> int:
    faults, met = Faults(), 0
    for case in cases(small, harm):
        for place in targets(small, case):
            met += 1
            with harmed(small, case.data, folder) as site:
                faults += [f"{case.name}: {place}: {fault}" for fault in act(case, site, place)]
                strangers = set(changed(small, site).values()) - {place}
                if strangers:
                    faults.append(f"{case.name}: {place}: changed {[*map(str, strangers)]}")
    faults.require_none()
    return met


@each_harm
def test_set_changes_the_row_of_its_place_alone_and_says_so_only_where_it_is_readable(
    small: Small, harm: str, tmp_path: Path, figures: Figures
) -> None:
    def act(case: Case, site: Site, place: Place) -> Faulty:
        try:
            with site.open() as vault:
                row_id = vault.set(*place[1:], "new", place.project_id)
        except VaultError:
            return
        row = table(site.database).get(row_id)
        if row is None or place_in(row) != place or opened(site, row) != "new":
            yield f"row {row_id}, which set names, does not hold it"
        yield from unreadable(site, place, "new")

    figures("values set in harmed files", over_targets(small, harm, tmp_path, act))


def unreadable(site: Site, place: Place, value: str) -> Faulty:
    try:
        with site.open() as vault:
            got = vault.get(*place[1:], place.project_id, fallback=False).reveal()
    except VaultError as error:
        got = f"{type(error).__name__}: {error}"
    if got != value:
        yield f"acknowledged, and then: {got}"


@each_harm
def test_set_fields_changes_the_rows_of_its_places_alone(
    small: Small, harm: str, tmp_path: Path
) -> None:
    faults = Faults()
    for case in cases(small, harm):
        scopes = {small.places[row_id].project_id for row_id in case.hidden}
        for scope in scopes | {A}:
            with harmed(small, case.data, tmp_path) as site:
                values = {field: f"new {field}" for field in FIELDS["smtp"]}
                places = {Place(scope, "smtp", field) for field in values}
                done = False
                with contextlib.suppress(VaultError), site.open() as vault:
                    vault.set_fields("smtp", values, scope)
                    done = True
                found = changed(small, site)
                if set(found.values()) - (places if done else set()):
                    faults.append(f"{case.name}: {scope}: changed {[*map(str, found.values())]}")
                if done:
                    for place in sorted(places, key=str):
                        new = values[place.credential_type]
                        faults += [f"{case.name}: {each}" for each in unreadable(site, place, new)]
    faults.require_none()


@each_harm
def test_delete_removes_the_row_of_its_place_alone(
    small: Small, harm: str, tmp_path: Path, figures: Figures
) -> None:
    def act(case: Case, site: Site, place: Place) -> Faulty:
        try:
            with site.open() as vault:
                was_there = vault.delete(*place[1:], place.project_id)
        except VaultError:
            if changed(small, site):
                yield "it refused, and changed rows"
            return
        left = place in {place_in(row) for row in table(site.database).values()}
        hidden = place in {small.places[row_id] for row_id in case.hidden}
        if was_there and (left or place not in STORED):
            yield "it says that there was a row, and it is there" if left else "there was no row"
        if not was_there and left and not hidden:
            yield "it says that there was no row, and its entry is whole"

    figures("values deleted in harmed files", over_targets(small, harm, tmp_path, act))


@each_harm
def test_a_rotation_in_a_file_with_a_harmed_index_leaves_every_value_openable(
    small: Small, harm: str, tmp_path: Path
) -> None:
    faults = Faults()
    for case in cases(small, harm):
        with harmed(small, case.data, tmp_path) as site:
            with contextlib.suppress(VaultError), site.open() as vault:
                report = rotation.rotate(vault)
                if report.complete and report.rotated != len(STORED):
                    faults.append(f"{case.name}: complete with {report.rotated} values")
            found = {place_in(row): opened(site, row) for row in table(site.database).values()}
            if found != STORED:
                faults.append(f"{case.name}: the table holds other values")
    faults.require_none()


@each_harm
def test_the_ordinary_examination_finds_an_index_that_is_not_its_tables(
    small: Small, harm: str, tmp_path: Path, figures: Figures
) -> None:
    faults, met = Faults(), cases(small, harm)
    for case in met:
        with harmed(small, case.data, tmp_path) as site:
            found = doctor.examine(site.database, key_store=KeyDirectory(site.keys)).findings
            if ("problem", "damaged file") not in {(each.level, each.kind) for each in found}:
                faults.append(case.name)
    faults.require_none()
    figures("harmed indexes named by doctor", len(met))


def test_a_whole_file_has_no_problem(small: Small, tmp_path: Path) -> None:
    """Or the tests above would show nothing."""
    with harmed(small, small.data, tmp_path) as site:
        for deep in (False, True):
            found = doctor.examine(site.database, key_store=KeyDirectory(site.keys), deep=deep)
            assert found.problems == 0 and found.values["ok"] == len(STORED)
        site.require_intact({(p[0], p[1], p[2]): value for p, value in STORED.items()})


# The indexes of the keys


class Keys(NamedTuple):
    small: Small
    rows: dict[str, Row]

    def id_in(self, state: str) -> str:
        (found,) = [row["id"] for row in self.rows.values() if row["state"] == state]
        return str(found)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """The small vault with keys in each state: three retired, one destroyed, one pending."""
    small = make_small(tmp_path_factory.mktemp("keys") / "small")
    with small.site.open() as vault:
        first = vault.keys.states.active_id()
        for _ in range(4):
            rotation.rotate(vault)
        rotation.destroy(vault, first)
        vault.keys.create()
    path = small.site.database
    ids = dict(sql(path, "SELECT rowid, id FROM vault_keys NOT INDEXED"))
    small = small._replace(data=closed_bytes(path), rows=table(path), ids=ids)
    return Keys(small, table(path, "vault_keys"))


@pytest.fixture(params=HARMS)
def key_cases(keys: Keys, request: pytest.FixtureRequest) -> list[Case]:
    found = list(HARMS[request.param](keys.small.data, keys.small.ids, "vault_keys"))
    assert len(found) >= 5
    return found


def test_nothing_is_sealed_with_a_key_that_is_not_active(
    keys: Keys, key_cases: list[Case], tmp_path: Path
) -> None:
    faults, active = Faults(), keys.id_in("active")
    for case in key_cases:
        with harmed(keys.small, case.data, tmp_path) as site:
            with contextlib.suppress(VaultError), site.open() as vault:
                if (said := vault.keys.states.active_id()) != active:
                    faults.append(
                        f"{case.name}: active is said to be a {keys.rows[said]['state']} key"
                    )
            with contextlib.suppress(VaultError), site.open() as vault:
                vault.set("smtp", "host", "new", A)
            named = {row["key_id"] for row in table(site.database).values()}
            if named != {active}:
                faults.append(f"{case.name}: sealed with another key than the active one")
    faults.require_none()


def test_promote_changes_the_new_key_and_the_one_before_it_alone(
    keys: Keys, key_cases: list[Case], tmp_path: Path
) -> None:
    faults, active, pending = Faults(), keys.id_in("active"), keys.id_in("pending")
    for case in key_cases:
        with harmed(keys.small, case.data, tmp_path) as site:
            done = False
            with contextlib.suppress(VaultError), site.open() as vault:
                vault.keys.promote(pending)
                done = True
            after = table(site.database, "vault_keys")
            wanted = {i: row["state"] for i, row in keys.rows.items()}
            if done:
                wanted |= {pending: "active", active: "retired"}
            strangers = {i for i in keys.rows if after[i] != keys.rows[i]} - {pending, active}
            if {i: row["state"] for i, row in after.items()} != wanted or strangers:
                states = Counter(row["state"] for row in after.values())
                faults.append(
                    f"{case.name}: done={done}, states {dict(states)}, others {strangers}"
                )
    faults.require_none()


def test_destroy_removes_the_key_that_was_named_alone(
    keys: Keys, key_cases: list[Case], tmp_path: Path
) -> None:
    faults = Faults()
    for case, key_id in itertools.product(key_cases, keys.rows):
        state = keys.rows[key_id]["state"]
        with harmed(keys.small, case.data, tmp_path) as site:
            done = False
            with contextlib.suppress(VaultError), site.open() as vault:
                rotation.destroy(vault, key_id)
                done = True
            after = table(site.database, "vault_keys")
            touched = {i for i in keys.rows if after.get(i) != keys.rows[i]}
            gone = {f.name for f in keys.small.site.keys.iterdir()} - set(os.listdir(site.keys))
            name = f"{case.name}: destroy of the {state} key, done={done}:"
            if touched - {key_id} or [each for each in gone if key_id not in each]:
                faults.append(f"{name} another key was touched: {touched - {key_id}}")
            if state in ("active", "pending") and (done or touched or gone):
                faults.append(f"{name} it was not refused")
            if done and after[key_id]["state"] != "destroyed":
                faults.append(f"{name} its row says {after[key_id]['state']}")
    faults.require_none()


def test_a_rotation_with_a_harmed_index_of_keys_leaves_every_value_openable(
    keys: Keys, key_cases: list[Case], tmp_path: Path
) -> None:
    faults = Faults()
    for case in key_cases:
        with harmed(keys.small, case.data, tmp_path) as site:
            with contextlib.suppress(VaultError), site.open() as vault:
                rotation.rotate(vault)
            found = {place_in(row): opened(site, row) for row in table(site.database).values()}
            if found != STORED:
                faults.append(case.name)
    faults.require_none()


# Random damage


Answer = tuple[Place, bool, str]  # the place asked for, whether a global row may answer, a value


class LookUp(NamedTuple):
    name: str
    ask: Callable[[Vault], Iterable[Answer]]


def _gets(place: Place, fallback: bool) -> Callable[[Vault], Iterable[Answer]]:
    def ask(vault: Vault) -> Iterable[Answer]:
        got = vault.get(*place[1:], place.project_id, fallback=fallback)
        return [(place, fallback, got.reveal())]

    return ask


def _bundles(provider: str, project: str | None) -> Callable[[Vault], Iterable[Answer]]:
    def ask(vault: Vault) -> Iterable[Answer]:
        fields = vault.bundle(provider, project).items()
        return [(Place(project, provider, field), True, got.reveal()) for field, got in fields]

    return ask


def _launches(chosen: list[str], project: str | None) -> Callable[[Vault], Iterable[Answer]]:
    def ask(vault: Vault) -> Iterable[Answer]:
        found = launch.environment(vault, project, chosen).given.items()
        return [(place_of_variable(project, name), True, value.reveal()) for name, value in found]

    return ask


def _shows(
    provider: str, field: str | None, project: str | None
) -> Callable[[Vault], list[Answer]]:
    def ask(vault: Vault) -> list[Answer]:
        answers = []
        for entry in vault.which(provider, field, project):
            place = Place(project, provider, field or entry.credential_type)
            shown = Place(entry.project_id, entry.provider, entry.credential_type)
            if shown not in (place, general(place)):
                answers.append((place, True, f"the row of {shown}"))
        return answers

    return ask


def _asks_own(place: Place) -> Callable[[Vault], Iterable[Answer]]:
    return _silent(lambda vault: vault.has(*place[1:], place.project_id, fallback=False))


def _silent(act: Callable[[Vault], object]) -> Callable[[Vault], Iterable[Answer]]:
    def ask(vault: Vault) -> Iterable[Answer]:
        act(vault)
        return ()

    return ask


def look_ups() -> list[LookUp]:
    """Two hundred of them: every place there is, every scope, and what is not there."""
    absent = [Place(project, "smtp", "no-such-field") for project in (*SCOPES, NOBODY)]
    absent += [Place(NOBODY, "smtp", field) for field in FIELDS["smtp"]]
    found = []
    for place in (*ASKED, *absent):
        provider, field, project = place.provider, place.credential_type, place.project_id
        found.append(LookUp(f"get {place}", _gets(place, True)))
        if project is not None:
            found.append(LookUp(f"get {place}, no fallback", _gets(place, False)))
            found.append(LookUp(f"has {place}, no fallback", _asks_own(place)))
        has = _silent(lambda vault, p=place: vault.has(*p[1:], p.project_id))  # type: ignore[misc]
        found.append(LookUp(f"has {place}", has))
        found.append(LookUp(f"which {place}", _shows(provider, field, project)))
    for provider, project in itertools.product(FIELDS, SCOPES):
        found.append(LookUp(f"bundle {provider} {project}", _bundles(provider, project)))
        found.append(LookUp(f"which {provider} {project}", _shows(provider, None, project)))
        found.append(LookUp(f"launch {provider} {project}", _launches([provider], project)))
    for project in SCOPES:
        found.append(LookUp(f"launch {project}", _launches([], project)))
        shown = _silent(lambda vault, p=project: vault.list(p))  # type: ignore[misc]
        found.append(LookUp(f"list {project}", shown))
    found.append(LookUp("list", _silent(lambda vault: vault.list())))
    assert len(found) >= 200
    return found


def verdict(place: Place, fallback: bool, value: str) -> str:
    if STORED.get(place) == value:
        return "right"
    if fallback and place.project_id in (A, B) and STORED.get(general(place)) == value:
        return "right" if place not in STORED else "hidden"
    return "wrong"


class Seen(NamedTuple):
    """What one harmed copy came to. *faults*: what must not be, in words that group."""

    counts: Counter[str]
    faults: list[str]

    def attempt(self, name: str, act: Callable[[], Iterable[Answer]]) -> bool:
        """Whether it gave an answer, and not an error of ours."""
        try:
            answers = list(act())
        except VaultError:
            self.counts["errors of ours"] += 1
            return False
        except Exception as error:
            self.faults.append(
                f"{type(error).__name__} at {of_ours(error)} | {name}: {error}"[:300]
            )
            return False
        for place, fallback, value in answers:
            self.counts[found := verdict(place, fallback, value)] += 1
            if found == "wrong":
                self.faults.append(f"wrong value | {name}: {value!r}")
        return True


def memory_keys(small: Small) -> MemoryKeyStore:
    store = MemoryKeyStore()
    for file in small.site.keys.iterdir():
        vault_id, key_id, _ = file.name.split(".")
        store.write(vault_id, key_id, Secret(file.read_text()))
    return store


def look(seen: Seen, path: Path, store: Any, questions: list[LookUp]) -> None:
    try:
        vault = Vault.open(path, key_store=store)
    except VaultError:
        seen.counts["did not open"] += 1
        return
    except Exception as error:
        seen.faults.append(f"{type(error).__name__} at {of_ours(error)} | open: {error}"[:300])
        return
    with vault:
        for name, ask in questions:
            seen.counts["look-ups"] += 1
            seen.attempt(name, lambda ask=ask: ask(vault))  # type: ignore[misc]


def operate(seen: Seen, small: Small, data: bytes, folder: Path, questions: list[LookUp]) -> None:
    """What an operator does with the file: each with a copy of its own, and the keys of before."""
    place, new = Place(A, "smtp", "host"), Place(B, "twilio", "auth_token")

    def acts(path: Path) -> dict[str, Callable[[Vault], object]]:
        return {
            "status": status,
            "backup": lambda vault: recovery.backup(vault, path.with_name("copy")),
            "rotate": rotation.rotate,
            "rehearse": rotation.rehearse,
            "set": lambda vault: vault.set(*place[1:], STORED[place], place.project_id),
            "set anew": lambda vault: vault.set(*new[1:], STORED[general(new)], new.project_id),
            "delete": lambda vault: vault.delete(*new[1:], new.project_id),
        }

    for name in ("doctor", "doctor, deep", *acts(folder)):
        with harmed(small, data, folder) as site:
            store, path = memory_keys(small), site.database

            def act(name: str = name, path: Path = path, store: Any = store) -> Iterable[Answer]:
                if name.startswith("doctor"):
                    doctor.examine(path, key_store=store, deep=name.endswith("deep"))
                else:
                    with Vault.open(path, key_store=store) as vault:
                        acts(path)[name](vault)
                return ()

            seen.counts["operations"] += 1
            if seen.attempt(name, act) and name in ("rotate", "set", "delete"):
                look(seen, path, store, questions)


def damaged_copy(small: Small, seed: int, folder: Path, questions: list[LookUp]) -> Seen:
    seen, data = Seen(Counter(copies=1), []), random_damage(small.data, seed)
    with harmed(small, data, folder) as site:
        store = memory_keys(small) if seed % 4 else KeyDirectory(site.keys)
        look(seen, site.database, store, questions)
    if seed % 12 == 0:
        operate(seen, small, data, folder, [each for each in questions if each.name[:3] == "get"])
    return seen


def work(small: Small, seeds: Iterable[int], folder: Path, said: Path) -> None:
    """In a child. A seed is written down before its copy is met, so a child that dies names it."""
    questions = look_ups()
    with said.open("a") as file, said.with_suffix(".stalled").open("w") as stalled:
        for seed in seeds:
            file.write(f"{seed} ")
            file.flush()
            faulthandler.dump_traceback_later(20, exit=True, file=stalled)
            seen = damaged_copy(small, seed, folder, questions)
            faulthandler.cancel_dump_traceback_later()
            file.write(json.dumps(seen) + "\n")
            file.flush()


def test_randomly_damaged_files_give_no_wrong_value_no_hang_and_no_error_but_ours(
    small: Small, tmp_path: Path, figures: Figures
) -> None:
    counts, faults = Counter[str](), defaultdict[str, list[str]](list)
    left = {k: list(range(k, COPIES, WORKERS)) for k in range(WORKERS)}
    running: dict[int, int] = {}
    deaths = 0
    try:
        while running or any(left.values()):
            for k, seeds in left.items():
                if seeds and k not in running.values():
                    said = tmp_path / f"worker-{k}-{len(seeds)}" / "said"
                    said.parent.mkdir()
                    said.touch()
                    running[forked(functools.partial(work, small, seeds, said.parent, said))] = k
            pid, ended = os.wait()
            k = running.pop(pid)
            said = tmp_path / f"worker-{k}-{len(left[k])}" / "said"
            last, code = met_by(said, counts, faults), os.waitstatus_to_exitcode(ended)
            if code == 0:
                left[k] = []
                continue
            deaths += 1
            trace = said.with_suffix(".stalled").read_text()
            lines = re.findall(r'outreach_vault/([\w/]+\.py)", line (\d+)', trace)
            at = ":".join(lines[0]) if lines else "an unknown line"
            died = f"no end within 20 seconds at {at}" if trace else f"died, {code}"
            faults[died].append(str(last))
            left[k] = [seed for seed in left[k] if seed > last]
            assert deaths < 25, dict(faults)
    finally:
        for pid in running:  # our own, where the test ends before they do
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    shown = [
        f"{len(each)} x {fault}: seeds {', '.join(dict.fromkeys(each[:8]))}"
        for fault, each in sorted(faults.items())
    ]
    assert not shown, "\n".join([*shown, str(dict(counts))])
    assert counts["copies"] == COPIES
    assert counts["look-ups"] > 200 * COPIES // 2
    figures("randomly damaged files, each looked up in two hundred times", COPIES)
    figures("values found in them, each that of its place", counts["right"])
    figures("values hidden by damage, and answered by the global one", counts["hidden"])
    figures("operations on randomly damaged files", counts["operations"])


def met_by(said: Path, counts: Counter[str], faults: dict[str, list[str]]) -> int:
    """Add up what a child has written; the seed that it was at last."""
    seed = "-1"
    for line in said.read_text().splitlines():
        seed, _, rest = line.partition(" ")
        if rest:
            of_one, found = json.loads(rest)
            counts.update(of_one)
            for fault in found:
                kind, _, detail = fault.partition(" | ")
                act = detail.split(" ", 1)[0].rstrip(":")
                faults[f"{kind} ({act})"].append(seed)
    return int(seed)


# Rows out of order


def disorders(small: Small) -> list[Case]:
    """Each two neighbours of each leaf of the table with their cell pointers swapped."""
    (tree,) = [each for each in trees(small.data) if each.name == "provider_credentials"]
    found = []
    for page, entry in entries(Image(small.data), tree):
        image = Image(small.data)
        if entry + 1 < image.count(page):
            image.swap(page, entry, entry + 1)
            name = f"page {page} of the table, {entry} and {entry + 1}"
            found.append(Case(name, bytes(image), frozenset()))
    return found


def test_an_examination_of_rows_out_of_order_ends_and_names_the_damage(
    small: Small, tmp_path: Path
) -> None:
    def act() -> list[str]:
        silent = []
        for case in disorders(small):
            with harmed(small, case.data, tmp_path) as site:
                found = doctor.examine(site.database, key_store=KeyDirectory(site.keys)).findings
                if "damaged file" not in {each.kind for each in found if each.level == "problem"}:
                    silent.append(case.name)
        return silent

    assert child(act, tmp_path) == []


def test_a_rotation_over_rows_out_of_order_ends_and_says_that_the_file_is_damaged(
    small: Small, tmp_path: Path
) -> None:
    def act() -> list[str]:
        silent = []
        for case in disorders(small):
            print(case.name, flush=True)  # which one it was, where it does not end
            with harmed(small, case.data, tmp_path) as site, site.open() as vault:
                try:
                    rotation.rotate(vault)
                except VaultError as error:
                    if SAYS_DAMAGED.search(f"{error} {error.hint}"):
                        continue
                silent.append(case.name)
        return silent

    assert child(act, tmp_path) == []


# Hostile files


def values_of(small: Small, site: Site) -> dict[Place, str]:
    """What the table's rows hold, each opened by its key's file."""
    return {place_in(row): opened(site, row) for row in table(site.database).values()}


@pytest.fixture
def hostile(small: Small, tmp_path: Path) -> Iterator[Site]:
    """A copy to be changed by a test, as another program would do it."""
    with harmed(small, small.data, tmp_path) as site:
        yield site


HOST: Final = Place(A, "smtp", "host")
NEW: Final = Place(B, "twilio", "auth_token")
OLD_BACK: Final = (
    "UPDATE provider_credentials SET encrypted_value = old.encrypted_value, key_id = old.key_id "
    "WHERE id = old.id"
)
TRIGGERS: Final = {
    "before update, ignores": ("BEFORE UPDATE", "SELECT RAISE(IGNORE)", HOST),
    "after update, puts back": ("AFTER UPDATE", OLD_BACK, HOST),
    "after update, another key": (
        "AFTER UPDATE",
        "UPDATE provider_credentials SET key_id = 'x' WHERE id = new.id",
        HOST,
    ),
    "after update, deletes": (
        "AFTER UPDATE",
        "DELETE FROM provider_credentials WHERE id = new.id",
        HOST,
    ),
    "before update, refuses": ("BEFORE UPDATE", "SELECT RAISE(ABORT, 'no')", HOST),
    "after update, to no project": (
        "AFTER UPDATE",
        "UPDATE provider_credentials SET project_id = 'gone' WHERE id = new.id",
        HOST,
    ),
    "before insert, ignores": ("BEFORE INSERT", "SELECT RAISE(IGNORE)", NEW),
    "after insert, deletes": (
        "AFTER INSERT",
        "DELETE FROM provider_credentials WHERE id = new.id",
        NEW,
    ),
    "after insert, moves": (
        "AFTER INSERT",
        "UPDATE provider_credentials SET credential_type = 'x' WHERE id = new.id",
        NEW,
    ),
}


def plant_trigger(site: Site, when: str, act: str, on: str = "provider_credentials") -> None:
    sql(site.database, f"CREATE TRIGGER planted {when} ON {on} BEGIN {act}; END")


@pytest.mark.parametrize("what", TRIGGERS)
def test_set_acknowledges_no_write_that_a_trigger_undid(
    small: Small, hostile: Site, what: str
) -> None:
    when, act, place = TRIGGERS[what]
    plant_trigger(hostile, when, act)
    for several in (False, True):
        with hostile.open() as vault, pytest.raises(StorageError) as caught:
            if several:
                vault.set_fields(place.provider, {place.credential_type: "new"}, place.project_id)
            else:
                vault.set(*place[1:], "new", place.project_id)
        assert "'vault doctor'" in str(caught.value.hint)
        assert table(hostile.database) == small.rows


@pytest.mark.parametrize(
    "act", ["BEFORE DELETE|SELECT RAISE(IGNORE)", "AFTER DELETE|%s"], ids=["ignores", "puts back"]
)
def test_delete_says_that_a_row_is_gone_only_where_it_is(
    small: Small, hostile: Site, act: str
) -> None:
    names = ", ".join(small.rows[next(iter(small.rows))])
    olds = ", ".join(f"old.{name}" for name in names.split(", "))
    back = f"INSERT INTO provider_credentials ({names}) VALUES ({olds})"
    plant_trigger(hostile, *act.replace("%s", back).split("|"))
    with hostile.open() as vault, pytest.raises(VaultError):
        vault.delete(*HOST[1:], HOST.project_id)
    assert table(hostile.database) == small.rows


@pytest.mark.parametrize("what", [name for name in TRIGGERS if "update" in name][:2])
def test_a_rotation_against_a_trigger_ends_and_does_not_call_itself_complete(
    small: Small, hostile: Site, tmp_path: Path, what: str
) -> None:
    plant_trigger(hostile, *TRIGGERS[what][:2])

    def act() -> bool:
        with hostile.open() as vault:
            return rotation.rotate(vault).complete

    found = child(act, tmp_path)
    assert refused(found) or found is False
    assert values_of(small, hostile) == STORED
    assert {row["key_id"] for row in table(hostile.database).values()} <= set(hostile.states())


@pytest.mark.parametrize("on", ["provider_credentials", "vault_keys", "vault_meta"])
def test_doctor_names_a_trigger_on_a_table_of_the_vault(hostile: Site, on: str) -> None:
    plant_trigger(hostile, "AFTER INSERT", "SELECT 1", on)
    assert "planted" in problems(hostile)


def test_doctor_names_a_view_of_the_vaults_tables(hostile: Site) -> None:
    sql(hostile.database, "CREATE VIEW planted AS SELECT * FROM provider_credentials")
    found = doctor.examine(hostile.database, key_store=KeyDirectory(hostile.keys)).findings
    assert [each for each in found if "planted" in each.message]


def problems(site: Site) -> str:
    found = doctor.examine(site.database, key_store=KeyDirectory(site.keys)).findings
    return "\n".join(f"{each.kind}: {each.message}" for each in found if each.level == "problem")


def test_rows_at_the_least_and_at_the_greatest_rowid_are_rotated_and_examined(
    small: Small, hostile: Site
) -> None:
    for rowid, place in {
        -(1 << 63): HOST,
        (1 << 63) - 1: Place(None, "anthropic", "api_key"),
    }.items():
        (row_id,) = [i for i, at in small.places.items() if at == place]
        hostile.change("UPDATE provider_credentials SET rowid = ? WHERE id = ?", rowid, row_id)
    old = hostile.active()
    for deep in (False, True):
        found = doctor.examine(hostile.database, key_store=KeyDirectory(hostile.keys), deep=deep)
        assert found.values["ok"] == len(STORED)
    with hostile.open() as vault:
        assert rotation.rehearse(vault).rotated == len(STORED)
        report = rotation.rotate(vault)
    assert (report.complete, report.rotated) == (True, len(STORED))
    assert old not in {row["key_id"] for row in table(hostile.database).values()}
    assert values_of(small, hostile) == STORED


ROWID_NAMES: Final = ("rowid", "oid", "_rowid_")


@pytest.mark.parametrize(
    "names",
    [names for count in (1, 2) for names in itertools.combinations(ROWID_NAMES, count)],
    ids=lambda names: " and ".join(names),
)
@pytest.mark.parametrize("filled", ["empty", "misleading"])
def test_columns_that_are_named_as_the_rows_number_mislead_nothing(
    small: Small, hostile: Site, names: tuple[str, ...], filled: str
) -> None:
    mislead(hostile, names, filled)
    old, before = hostile.active(), table(hostile.database)
    examined = doctor.examine(hostile.database, key_store=KeyDirectory(hostile.keys), deep=True)
    assert examined.values == {"ok": len(STORED), "foreign": 0, "unreadable": 0}
    with hostile.open() as vault:
        vault.set(*HOST[1:], "new", HOST.project_id)
        assert vault.delete("twilio", "phone_number", A)
        assert vault.get(*HOST[1:], HOST.project_id).reveal() == "new"
        report = rotation.rotate(vault)
    assert (report.complete, report.rotated) == (True, len(STORED) - 1)
    after = table(hostile.database)
    assert old not in {row["key_id"] for row in after.values()}
    kept = {name: value for name, value in STORED.items() if name != (A, "twilio", "phone_number")}
    assert values_of(small, hostile) == kept | {HOST: "new"}
    for row_id, row in after.items():
        assert [row[name] for name in names] == [before[row_id][name] for name in names]


def mislead(site: Site, names: Iterable[str], filled: str) -> None:
    """Columns with these names; *misleading*, each row's has the number of the next row."""
    numbers = [number for (number,) in sql(site.database, "SELECT rowid FROM provider_credentials")]
    ids = dict(sql(site.database, "SELECT rowid, id FROM provider_credentials"))
    for name in names:
        sql(site.database, f'ALTER TABLE provider_credentials ADD COLUMN "{name}" INTEGER')
        for here, following in zip(numbers, [*numbers[1:], numbers[0]], strict=True):
            if filled == "misleading":
                site.change(
                    f'UPDATE provider_credentials SET "{name}" = ? WHERE id = ?',
                    following,
                    ids[here],
                )


def test_a_table_that_takes_all_names_of_the_rows_number_is_refused(
    small: Small, hostile: Site, tmp_path: Path
) -> None:
    mislead(hostile, ROWID_NAMES, "misleading")
    before = table(hostile.database)

    def rotate() -> bool:
        with hostile.open() as vault:
            rotation.rotate(vault)
        return True

    def examine() -> str:
        return problems(hostile)

    assert refused(child(rotate, tmp_path))
    found = child(examine, tmp_path)
    assert refused(found) or "provider_credentials" in found
    assert table(hostile.database) == before
    with contextlib.suppress(VaultError), hostile.open() as vault:
        vault.set(*HOST[1:], "new", HOST.project_id)
        assert vault.get(*HOST[1:], HOST.project_id).reveal() == "new"
    others = {i for i, row in before.items() if place_in(row) != HOST}
    after = table(hostile.database)
    assert {i: after.get(i) for i in others} == {i: before[i] for i in others}


def rewrite_schema(site: Site, statement: str, *params: object) -> None:
    with contextlib.closing(sqlite3.connect(site.database, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        assert connection.execute(statement, params).rowcount == 1


def no_utf8(made: str) -> Callable[[Site], None]:
    def plant(site: Site) -> None:
        sql(site.database, made.replace("?", "x"))
        text = made.replace("?", "\x00").encode().replace(b"\x00", b"\xff")
        rewrite_schema(
            site, "UPDATE sqlite_master SET sql = CAST(? AS TEXT) WHERE name LIKE 'odd%'", text
        )

    return plant


def no_utf8_name(site: Site) -> None:
    sql(site.database, "CREATE TABLE oddx (a)")
    rewrite_schema(
        site,
        "UPDATE sqlite_master SET sql = CAST(? AS TEXT), name = CAST(? AS TEXT), tbl_name = "
        "CAST(? AS TEXT) WHERE name = 'oddx'",
        *(b"CREATE TABLE odd\xff (a)", b"odd\xff", b"odd\xff"),
    )


def no_module(site: Site) -> None:
    rewrite_schema(
        site,
        "INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql)"
        " VALUES ('table', 'x', 'x', 0, 'CREATE VIRTUAL TABLE x USING no_such_module(a)')",
    )


def broken_view(site: Site) -> None:
    sql(site.database, "CREATE VIEW x AS SELECT no_such_column FROM no_such_table")


ODD: Final[dict[str, Callable[[Site], None]]] = {
    "a view with a byte that is no UTF-8": no_utf8("CREATE VIEW odd AS SELECT '?' AS a"),
    "a table with one": no_utf8("CREATE TABLE odd (a TEXT DEFAULT '?')"),
    "a column with one": no_utf8("CREATE TABLE odd (a?)"),
    "a table's name with one": no_utf8_name,
    "a virtual table without its module": no_module,
    "a view of what is not there": broken_view,
}


@pytest.fixture(params=ODD)
def odd(hostile: Site, request: pytest.FixtureRequest) -> Site:
    ODD[request.param](hostile)
    return hostile


def test_with_something_odd_in_the_schema_status_is_had(odd: Site) -> None:
    with odd.open() as vault:
        assert status(vault).values["ok"] == len(STORED)


def test_with_something_odd_in_the_schema_doctor_meets_every_value(odd: Site) -> None:
    for deep in (False, True):
        found = doctor.examine(odd.database, key_store=KeyDirectory(odd.keys), deep=deep)
        assert found.values == {"ok": len(STORED), "foreign": 0, "unreadable": 0}
        assert "damaged file" not in {each.kind for each in found.findings}


def test_with_something_odd_in_the_schema_init_finds_the_file_ready(odd: Site) -> None:
    assert init(odd.database, key_store=KeyDirectory(odd.keys)) is None


def test_with_something_odd_in_the_schema_a_rotation_is_complete(small: Small, odd: Site) -> None:
    with odd.open() as vault:
        report = rotation.rotate(vault)
        assert (report.complete, report.rotated) == (True, len(STORED))
    assert values_of(small, odd) == STORED


def test_with_something_odd_in_the_schema_a_backup_holds_every_value(
    small: Small, odd: Site
) -> None:
    copy = odd.database.with_name("copy.db")
    with odd.open() as vault:
        recovery.backup(vault, copy)
    assert values_of(small, odd._replace(database=copy)) == STORED


# A second row that looks like a key's


@pytest.mark.parametrize("state", ["pending", "retired", "destroyed"])
def test_bytes_that_spell_the_active_keys_id_are_not_that_key(
    small: Small, hostile: Site, state: str
) -> None:
    active = hostile.active()
    hostile.change(
        "INSERT INTO vault_keys (id, state, check_value, created_at)"
        " SELECT CAST(id AS BLOB), ?, check_value, '2000' FROM vault_keys WHERE state = 'active'",
        state,
    )
    files = set(os.listdir(hostile.keys))
    found = doctor.examine(hostile.database, key_store=KeyDirectory(hostile.keys)).findings
    assert not [each for each in found if f"keys destroy {active}" in f"{each.message} {each.hint}"]
    with hostile.open() as vault, contextlib.suppress(VaultError):
        rotation.destroy(vault, active)
    assert set(os.listdir(hostile.keys)) == files, "the active key's file is gone"
    with hostile.open() as vault, contextlib.suppress(VaultError):
        rotation.rotate(vault)
    assert values_of(small, hostile) == STORED
    with hostile.open() as vault:
        assert vault.get(*HOST[1:], HOST.project_id).reveal() == STORED[HOST]
        if hostile.active() == active:
            vault.set(*HOST[1:], "new", HOST.project_id)
            assert vault.get(*HOST[1:], HOST.project_id).reveal() == "new"


# The key directory


@pytest.mark.parametrize("kind", ["key", "successor"])
def test_a_pipe_in_the_key_directory_is_an_error_and_no_wait(
    small: Small, hostile: Site, tmp_path: Path, kind: str
) -> None:
    (file,) = hostile.keys.glob("*.key")
    if kind == "key":
        file.unlink()
    os.mkfifo(file.with_suffix(f".{kind}"), 0o600)

    def act() -> str:
        with hostile.open() as vault:
            if kind == "key":
                with pytest.raises(KeyStoreUnavailable, match="not a file"):
                    vault.get(*HOST[1:], HOST.project_id)
                with pytest.raises(KeyInUse):  # it may be mended, so it is not given up
                    recovery.abandon(vault, vault.keys.states.active_id())
            with pytest.raises(KeyUnavailable):
                vault.set(*HOST[1:], "new", HOST.project_id)
        return problems(hostile)

    found = child(act, tmp_path, 15)
    assert refused(found) or "key" in found


def test_doctor_names_what_a_killed_write_left_in_the_key_directory(hostile: Site) -> None:
    (file,) = hostile.keys.glob("*.key")
    left = file.with_name(f"{file.name}.abcd1234.part")
    left.write_text(file.read_text())
    left.chmod(0o600)
    found = doctor.examine(hostile.database, key_store=KeyDirectory(hostile.keys)).findings
    assert [each for each in found if left.name in each.message]


# A view where a table should be


@pytest.mark.parametrize("name", ["provider_credentials", "vault_keys", "vault_meta", "projects"])
def test_a_view_that_never_ends_in_a_tables_place_is_refused_when_the_vault_is_opened(
    hostile: Site, tmp_path: Path, name: str
) -> None:
    columns = [row[1] for row in sql(hostile.database, f"PRAGMA table_info({name})")]
    shown = ", ".join(f"'x' AS {column}" for column in columns)
    sql(hostile.database, f"DROP TABLE {name}")
    sql(
        hostile.database,
        f"CREATE VIEW {name} AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        f"SELECT {shown} FROM n",
    )

    def act() -> str:
        with hostile.open():
            return "opened"

    assert refused(child(act, tmp_path, 10))


# Projects


def _one_byte_of_the_index(site: Site) -> str:
    """The index then holds a project that the table has not."""
    with contextlib.closing(sqlite3.connect(site.database)) as connection:
        found = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_projects_1'"
        )
        (page,), size = found.fetchone(), connection.execute("PRAGMA page_size").fetchone()[0]
    data = bytearray(site.database.read_bytes())
    at = data.index(A.encode(), (page - 1) * size, page * size)
    data[at + len(A) - 1 : at + len(A)] = b"X"
    site.database.write_bytes(data)
    return f"{A[:-1]}X"


def _ids_that_are_compared_otherwise(site: Site) -> str:
    with contextlib.closing(sqlite3.connect(site.database, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'id TEXT PRIMARY KEY', 'id TEXT COLLATE "
            "NOCASE PRIMARY KEY')"
            " WHERE name = 'projects'"
        )
    return A.upper()


@pytest.mark.parametrize("harm", [_one_byte_of_the_index, _ids_that_are_compared_otherwise])
def test_a_project_that_is_not_in_the_table_is_given_nothing_whatever_its_index_says(
    hostile: Site, harm: Callable[[Site], str]
) -> None:
    closed_bytes(hostile.database)
    unknown = harm(hostile)
    with hostile.open() as vault:
        calls: list[Callable[[], object]] = [
            lambda: vault.get("smtp", "password", unknown),
            lambda: vault.get("elevenlabs", "api_key", unknown),
            lambda: vault.bundle("smtp", unknown),
            lambda: vault.has("smtp", "password", unknown),
            lambda: vault.which("elevenlabs", None, unknown),
            lambda: vault.list(unknown),
            lambda: vault.set("smtp", "password", "x", unknown),
            lambda: vault.delete("smtp", "password", unknown),
            lambda: launch.environment(vault, unknown),
        ]
        for call in calls:
            with pytest.raises(outreach_vault.ProjectNotFound):
                call()


# What SQLite's library raises that is no error of its own


@pytest.mark.parametrize(
    "error", [MemoryError(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")]
)
def test_what_a_damaged_file_makes_the_library_raise_is_said_to_be_damage(
    hostile: Site, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """
    A size that no memory holds, and a message that quotes bytes of the file, which need be no
    UTF-8.
    """
    with hostile.open() as vault:

        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(database._Connection, "execute", fail)
        monkeypatch.setattr(database._Connection, "executemany", fail)
        for call in (
            vault.list,
            vault.database.schema_version,
            lambda: vault.database.change("x"),
            lambda: vault.database.change_each("x", []),
        ):
            with pytest.raises(outreach_vault.NotADatabase, match="damaged"):
                call()
