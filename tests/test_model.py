"""
Any sequence of what users and operators do, against a dictionary: nothing is lost, mixed up, or
answered with another's value.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from helpers.effort import THOROUGH, effort
from helpers.site import Figures, Site, new_site, sql
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from outreach_vault import (
    CredentialNotFound,
    KeyInUse,
    KeyMissing,
    KeySuperseded,
    Secret,
    Vault,
    VaultError,
)
from outreach_vault.keys import passphrase
from outreach_vault.operations import rotation
from outreach_vault.operations.history import undo
from outreach_vault.operations.recovery import backup, export_keys, import_keys

Where = tuple[str | None, str, str]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
ODD = [
    "a b",
    " ",
    "null",
    "None",
    "global",
    "'; --",
    '"',
    "%",
    "_",
    "ÿ",
    "e\u0301",
    "é",
    "データ",
    "\U0001f511",
    "../..",
    "default-project",
    "A",
    "a",
    "0",
]
PRINTABLE = st.characters(
    exclude_categories=["C", "Z"], include_characters=" "
)  # what str.isprintable means, without a filter
NAMES = st.sampled_from(ODD) | st.text(PRINTABLE, min_size=1, max_size=20)
PASSPHRASE = Secret("of every export")
SMALL = {"iterations": 1, "lanes": 1, "memory_kib": 8}


IN_MEMORY = (
    "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
)  # where there is such a folder: nothing here is about power cuts


class Interrupted(Exception):
    pass


class Kept(NamedTuple):
    """A previous value; `undone`: an undo took it away, so that another goes further back."""

    value: str
    key_id: str
    undone: bool


@dataclass
class Model:
    """What is in one database file; a backup is a copy of it."""

    values: dict[Where, str] = field(default_factory=dict)
    key_of: dict[Where, str] = field(default_factory=dict)
    previous: dict[Where, list[Kept]] = field(default_factory=dict)  # newest first
    active: str = ""
    retired: set[str] = field(default_factory=set)
    destroyed: set[str] = field(default_factory=set)
    unfinished: bool = False

    def keep(self, place: Where, *, undone: bool = False) -> None:
        if place in self.values:
            kept = Kept(self.values[place], self.key_of[place], undone)
            self.previous[place] = [kept, *self.previous.get(place, [])][:3]

    def keys_in_use(self) -> Counter[str]:
        kept = (each.key_id for several in self.previous.values() for each in several)
        return Counter([*self.key_of.values(), *kept])


class Exported(NamedTuple):
    path: Path
    keys: frozenset[str]


class Operations(RuleBasedStateMachine):
    """
    The key store is not a part of the backups: `gone` and `replaced` are what it lacks, and which
    keys it calls replaced.
    """

    template: Site
    done: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=IN_MEMORY))
        self.site = self.template.copy(self.folder / "site")
        self.model = Model(active=self.site.active())
        self.gone, self.replaced = set[str](), set[str]()
        # All keys in the order of their making: their ids are random, and a run must repeat.
        self.made = [self.model.active]
        self.backups, self.exports = list[tuple[Path, Model]](), list[Exported]()
        self.vault = self.site.open()

    def teardown(self) -> None:
        self.vault.close()
        shutil.rmtree(self.folder)

    @initialize(
        projects=st.lists(NAMES, min_size=2, max_size=2, unique=True),
        names=st.lists(NAMES, min_size=4, max_size=4, unique=True),
    )
    def begin(self, projects: list[str], names: list[str]) -> None:
        for project in projects:
            self.site.change(
                "INSERT OR REPLACE INTO projects (id, name, created_at, updated_at) VALUES (?, "
                "'odd', '', '')",
                project,
            )
        self.scopes: list[str | None] = [None, *projects]
        self.fields = [(provider, kind) for provider in names[:2] for kind in names[2:]]

    def place(self, data: st.DataObject) -> Where:
        scope, name = (
            data.draw(st.sampled_from(self.scopes)),
            data.draw(st.sampled_from(self.fields)),
        )
        return (scope, *name)

    @contextlib.contextmanager
    def expect(self, what: str, error: type[VaultError] | None) -> Iterator[None]:
        self.done[what if error is None else f"{what}: {error.__name__}"] += 1
        if error is None:
            yield
            return
        with pytest.raises(VaultError) as caught:
            yield
        assert type(caught.value) is error, caught.value

    def reopen(self) -> None:
        self.vault.close()
        self.vault = self.site.open()

    # what an adapter does

    @rule(data=st.data(), values=st.lists(TEXTS, min_size=1, max_size=6))
    def set(self, data: st.DataObject, values: list[str]) -> None:
        for value in values:
            self.set_one(self.place(data), value)

    def set_one(self, place: Where, value: str) -> None:
        project, provider, kind = place
        stuck = (
            KeyMissing
            if self.model.active in self.gone
            else KeySuperseded
            if self.model.active in self.replaced
            else None
        )
        with self.expect("set", stuck):
            self.vault.set(provider, kind, value, project)
            self.model.keep(place)
            self.model.values[place], self.model.key_of[place] = value, self.model.active

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        project, provider, kind = place = self.place(data)
        assert self.vault.delete(provider, kind, project) is (place in self.model.values)
        self.model.keep(place)
        self.model.values.pop(place, None), self.model.key_of.pop(place, None)

    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        kept = [place for place, several in self.model.previous.items() if several]
        if not kept:  # by chance alone there is seldom one
            place = self.place(data)
            for value in ("earlier", "later"):
                self.set_one(place, value)
            kept = [place]
        place = data.draw(st.sampled_from(kept))
        (project, provider, kind), there = place, self.model.previous.get(place, [])
        wanted = next((kept for kept in there if not kept.undone), None)
        error = (
            CredentialNotFound
            if wanted is None
            else KeyMissing
            if wanted.key_id in self.gone
            else None
        )
        with self.expect("undo", error):
            undo(self.vault, provider, kind, project)
            assert wanted
            there.remove(wanted)
            self.model.keep(place, undone=True)
            self.model.values[place], self.model.key_of[place] = wanted.value, wanted.key_id

    @rule()
    def restart(self) -> None:
        self.reopen()

    # what an operator does

    @rule(after_restore=st.booleans(), batches=st.sampled_from([None, None, 1, 2, 3]))
    def rotate(self, after_restore: bool, batches: int | None) -> None:
        """
        All of it, or up to an error after that many batches; then the rows themselves say how far
        it came.
        """
        model, seen = self.model, 0

        def progress(*_: int) -> None:
            nonlocal seen
            seen += 1
            if seen == batches:
                raise Interrupted

        superseded = model.active in self.replaced
        stuck = (
            KeySuperseded
            if superseded and not after_restore
            else KeyMissing
            if model.active in self.gone
            else None
        )
        resumed = model.unfinished and not superseded
        with (
            self.expect("rotate" if batches is None else "rotate, interrupted", stuck),
            mock.patch.object(rotation, "BATCH", 2),
        ):
            try:
                report = rotation.rotate(self.vault, progress=progress, after_restore=after_restore)
            except Interrupted:
                report = None
            if not resumed:
                model.retired.add(model.active)
                model.active = self.site.active()
                self.made.append(model.active)
                assert model.active not in model.retired | self.replaced | self.gone
            self.replaced |= model.retired
            readable = [place for place, key_id in model.key_of.items() if key_id not in self.gone]
            unreadable = sum(
                count for key_id, count in model.keys_in_use().items() if key_id in self.gone
            )
            model.unfinished = report is None
            if report is not None:
                assert report.unreadable == unreadable and not report.removed
                assert report.rotated == sum(
                    model.key_of[place] != model.active for place in readable
                )
                assert report.resumed is resumed and report.new_key == model.active
                model.key_of.update(dict.fromkeys(readable, model.active))
                for place, kept in model.previous.items():
                    model.previous[place] = [
                        each if each.key_id in self.gone else each._replace(key_id=model.active)
                        for each in kept
                    ]
            else:
                found = self.stored_keys()
                assert all(
                    found[place] == key_id or (found[place] == model.active and place in readable)
                    for place, key_id in model.key_of.items()
                )
                model.key_of.update(found)
                stored = self.stored_history()
                for place, kept in model.previous.items():
                    now = [
                        each._replace(key_id=key_id)
                        for each, key_id in zip(kept, stored.pop(place, []), strict=True)
                    ]
                    assert all(
                        new == old or (new.key_id == model.active and old.key_id not in self.gone)
                        for new, old in zip(now, kept, strict=True)
                    )
                    model.previous[place] = now
                used = model.keys_in_use()
                for key_id in sorted(model.retired & set(used), key=self.made.index):
                    self.destroy_one(key_id)

    @rule(data=st.data())
    @precondition(lambda self: self.model.retired)
    def destroy(self, data: st.DataObject) -> None:
        key_id = data.draw(
            st.sampled_from([*sorted(self.model.retired, key=self.made.index), self.model.active])
        )
        self.destroy_one(key_id)

    def destroy_one(self, key_id: str) -> None:
        in_use = key_id in {self.model.active, *self.model.keys_in_use()}
        with self.expect("destroy", KeyInUse if in_use else None):
            rotation.destroy(self.vault, key_id)
            self.model.retired.discard(key_id)
            self.model.destroyed.add(key_id)
            self.gone.add(key_id)

    @rule()
    def make_export(self) -> None:
        path = self.folder / f"{len(self.exports)}.export"
        listed = {self.model.active, *self.model.retired}
        with self.expect("export", KeyMissing if self.model.active in self.gone else None):
            made = export_keys(self.vault, path, PASSPHRASE)
            assert set(made.keys) == listed - self.gone
            assert {error.key_id for error in made.left_out} == listed & self.gone
            self.exports.append(Exported(path, frozenset(made.keys)))

    @rule(data=st.data())
    @precondition(lambda self: self.exports)
    def take_export(self, data: st.DataObject) -> None:
        self.take(data.draw(st.sampled_from(self.exports)))

    def take(self, export: Exported) -> None:
        with self.expect("import", None):
            done = import_keys(self.vault, export.path, PASSPHRASE)
        wanted = export.keys - self.model.destroyed
        assert set(done.added) == wanted & self.gone
        assert (set(done.there), set(done.destroyed)) == (
            wanted - self.gone,
            export.keys & self.model.destroyed,
        )
        self.gone -= wanted
        self.model.retired |= wanted - {self.model.active}

    @rule()
    def make_backup(self) -> None:
        path = self.folder / f"{len(self.backups)}.db"
        with self.expect("backup", None):
            made = backup(self.vault, path)
        assert {record.id: count for record, count in made.keys} == {
            self.model.active: 0,
            **self.model.keys_in_use(),
        }
        self.backups.append((path, copy.deepcopy(self.model)))

    @rule(data=st.data())
    @precondition(lambda self: self.backups)
    def restore_backup(self, data: st.DataObject) -> None:
        self.restore(*data.draw(st.sampled_from(self.backups)))

    @rule(way=st.sampled_from(["restore", "import"]))
    def come_back_too_late(self, way: str) -> None:
        """A copy or an export from before its keys were destroyed: rare by chance alone."""
        self.make_backup()
        self.make_export()
        self.rotate(after_restore=True, batches=None)
        for key_id in sorted(self.model.retired, key=self.made.index):
            self.destroy_one(key_id)
        if way == "restore":
            self.restore(*self.backups[-1])
        elif self.exports:
            self.take(self.exports[-1])

    @rule()
    # Now and then, else there are seldom many values.
    @precondition(lambda self: len(self.backups) == 2)
    def empty(self) -> None:
        """No value needs the active key then, and it may not be destroyed all the same."""
        for place in list(self.model.values):
            project, provider, kind = place
            assert self.vault.delete(provider, kind, project)
            self.model.keep(place)
        self.model.values.clear(), self.model.key_of.clear()
        self.destroy_one(self.model.active)

    def restore(self, path: Path, model: Model) -> None:
        self.vault.close()
        for beside in ("-wal", "-shm"):
            self.site.database.with_name(self.site.database.name + beside).unlink(missing_ok=True)
        shutil.copyfile(path, self.site.database)
        self.model = copy.deepcopy(model)
        self.vault = self.site.open()
        self.done[
            "restore"
            if not self.gone & set(model.keys_in_use())
            else "restore, and a key is destroyed"
        ] += 1

    # what is true at every moment

    def stored_keys(self) -> dict[Where, str]:
        return {
            (row["project_id"], row["provider"], row["credential_type"]): row["key_id"]
            for row in self.site.rows().values()
        }

    def stored_history(self) -> dict[Where, list[str]]:
        """The keys of the previous values of each place, newest first."""
        found: dict[Where, list[str]] = {}
        for project, provider, kind, key_id in sql(
            self.site.database,
            "SELECT project_id, provider, credential_type, key_id FROM vault_history"
            " ORDER BY number DESC",
        ):
            found.setdefault((project, provider, kind), []).append(key_id)
        return found

    @invariant()
    def every_look_up_gives_the_dictionarys_answer(self) -> None:
        for project in self.scopes:
            for provider, kind in self.fields:
                own: Where = (project, provider, kind)
                for fallback in (True, False):
                    place = (
                        own if own in self.model.values or not fallback else (None, provider, kind)
                    )
                    self.require_answer(own, place, fallback)

    def require_answer(self, asked: Where, place: Where, fallback: bool) -> None:
        project, provider, kind = asked
        assert self.vault.has(provider, kind, project, fallback=fallback) is (
            place in self.model.values
        )
        error = None if place in self.model.values else CredentialNotFound
        try:
            found = self.vault.get(provider, kind, project, fallback=fallback)
        except VaultError as raised:
            assert type(raised) is (error or KeyMissing) and (
                error or self.model.key_of[place] in self.gone
            ), raised
        else:
            assert error is None and self.model.key_of[place] not in self.gone
            assert (found.reveal(), found.project_id) == (self.model.values[place], place[0])

    @invariant()
    def every_listing_has_the_dictionarys_places(self) -> None:
        def shown(vault: Vault, *scope: str | None) -> list[Where]:
            return [(e.project_id, e.provider, e.credential_type) for e in vault.list(*scope)]

        assert sorted(shown(self.vault), key=repr) == sorted(self.model.values, key=repr)
        for scope in self.scopes:
            assert set(shown(self.vault, scope)) == {
                place for place in self.model.values if place[0] == scope
            }
            for provider in {provider for provider, _ in self.fields}:
                first = {
                    kind: (None, provider, kind)
                    for at, name, kind in self.model.values
                    if (at, name) == (None, provider)
                }
                first |= {
                    kind: (scope, provider, kind)
                    for at, name, kind in self.model.values
                    if (at, name) == (scope, provider)
                }
                try:
                    found = self.vault.which(provider, project_id=scope)
                except CredentialNotFound:
                    found = []
                assert [(e.project_id, e.provider, e.credential_type) for e in found] == [
                    first[kind] for kind in sorted(first, key=str.encode)
                ]

    @invariant()
    def exactly_one_key_is_active_and_each_row_names_the_key_that_it_is_under(self) -> None:
        states = (
            {self.model.active: "active"}
            | dict.fromkeys(self.model.retired, "retired")
            | dict.fromkeys(self.model.destroyed, "destroyed")
        )
        assert self.site.states() == states
        assert self.stored_keys() == self.model.key_of
        assert self.stored_history() == {
            place: [each.key_id for each in kept]
            for place, kept in self.model.previous.items()
            if kept
        }
        there = {path.name.split(".")[1] for path in self.site.keys.glob("*.key")}
        assert (
            not there & self.gone and {self.model.active, *self.model.retired} <= there | self.gone
        )


def test_any_sequence_of_operations_agrees_with_a_dictionary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    # Else each export takes a quarter of a second.
    monkeypatch.setattr(passphrase, "_ARGON2ID", SMALL)
    Operations.template, Operations.done = new_site(tmp_path / "template"), Counter()
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Operations,
        settings=settings(
            max_examples=effort(50, 4),
            stateful_step_count=40,
            suppress_health_check=checks,
            derandomize=not THOROUGH,
        ),
    )
    assert {
        "set",
        "rotate",
        "rotate, interrupted",
        "destroy",
        "export",
        "import",
        "backup",
        "restore",
    } <= set(Operations.done)
    figures("operations in any order, each compared with a dictionary", Operations.done.total())
