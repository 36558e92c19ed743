"""
Many values from a file at once, and many to one, in clear.

An import is a plan first: what it would store, what it would replace, and all that does not fit.
All of the plan is stored in one transaction, or nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from typing import Final, Literal, NamedTuple

from ..errors import (
    CredentialNotFound,
    KeyUnavailable,
    ProjectNotFound,
    StorageError,
    UnreadableValue,
    WrongArgument,
    brief,
)
from ..providers import is_plain, require_rule
from ..schema.shapes import Place, is_text
from ..secret import Secret, new_secret
from ..values.opening import open_row
from ..values.rows import Row, place_of
from ..values.sealing import require_storable
from ..vault import Every, Vault
from . import formats
from .formats import Problem
from .launch import environment, fields_by_variable

_SHOWN: Final = 10


class Step(NamedTuple):
    """
    One value of a plan.

    Attributes:
        source: where the file has it.
        present: the row that is there now.
    """

    source: str
    place: Place
    value: Secret
    label: str | None
    what: Literal["new", "replaces", "same"]
    present: Row | None


class Plan(NamedTuple):
    """What an import would do, and what does not fit. With a problem nothing may be stored."""

    steps: list[Step]
    problems: list[Problem]

    @property
    def changes(self) -> list[Step]:
        return [step for step in self.steps if step.what != "same"]


def plan(
    vault: Vault,
    kind: str,
    text: Secret,
    project_id: str | None = None,
    *,
    new: bool = False,
    check: bool = True,
) -> Plan:
    """
    What storing the values of a text would do. Changes nothing.

    Args:
        kind: one of `formats.FORMATS`.
        project_id: the project for all values. None: the project of each JSON row, of everything
            else the global scope.
        new: take also fields that are neither in the catalogue nor stored.
        check: values must keep the catalogue's rules.
    Raises:
        ProjectNotFound: there is no project *project_id*.
    """
    vault.rows.require_project(project_id)
    fields = fields_by_variable(vault)
    known = {place for places in fields.values() for place in places}
    made, sources = Plan([], []), dict[tuple[str | None, str, str], str]()
    for entry in formats.read(kind, text, fields, project_id):
        if isinstance(entry, Problem):
            made.problems.append(entry)
            continue
        try:
            if problem := _unknown(entry, known, new):
                made.problems.append(problem)
            else:
                made.steps.append(_step(vault, entry, check))
        except (WrongArgument, ProjectNotFound) as error:
            made.problems.append(Problem(entry.source, str(error)))
        # Even if the first does not fit: all that is wrong is said at once.
        if first := sources.get(entry[1:4]):
            made.problems.append(Problem(entry.source, f"for the same place as {first}"))
        sources.setdefault(entry[1:4], entry.source)
    return made


def _unknown(entry: formats.Entry, known: Collection[tuple[str, str]], new: bool) -> Problem | None:
    """As for `vault set`: in other capitals a name is a slip, which every look-up would miss."""
    names = entry.provider, entry.field
    if not all(map(is_plain, names)):
        raise WrongArgument("a provider or field has other than letters, digits, '_', '.', '-'")
    if names in known:
        return None
    if "/".join(names).casefold() in {"/".join(each).casefold() for each in known}:
        return Problem(entry.source, "this provider and field are known in other capitals")
    what = "no such provider and field is known or stored; --new stores it"
    return None if new else Problem(entry.source, what, unknown=True)


def _step(vault: Vault, entry: formats.Entry, check: bool) -> Step:
    if entry.label and not is_text(entry.label):
        raise WrongArgument("its label is not text")
    require_storable(entry.value)
    if check:
        require_rule(entry.provider, entry.field, entry.value)
    place = place_of(entry.provider, entry.field, entry.project_id)
    present = _present(vault, place)
    what: Literal["new", "replaces", "same"] = "replaces" if present else "new"
    if present and (entry.label or present.label) == present.label:
        with contextlib.suppress(UnreadableValue, KeyUnavailable):  # so it is not this value
            what = "same" if open_row(vault.keys, present) == entry.value else what
    return Step(entry.source, place, entry.value, entry.label, what, present)


def _present(vault: Vault, place: Place) -> Row | None:
    project_id, provider, field = place
    try:
        return vault.rows.one(provider, field, project_id, fallback=False)
    except CredentialNotFound:
        return None


def store(vault: Vault, planned: Plan) -> int:
    """
    Store the new and the replacing values of a plan, all or none. Returns how many.

    Raises:
        StorageError: a place has changed since the plan was made. Others as `Vault.set`.
    """
    changes = planned.changes

    def require_unchanged() -> None:
        for step in changes:
            if _present(vault, step.place) != step.present:
                raise StorageError(
                    f"{step.place}: it was changed meanwhile; nothing was stored",
                    hint="run it again, and look at the new plan",
                )

    if changes:
        vault.store(
            [(step.place, step.value) for step in changes],
            labels={step.place: step.label for step in changes},
            before=require_unchanged,
        )
    return len(changes)


def as_json(
    vault: Vault, scope: str | Every | None = Every.SCOPE, providers: Collection[str] = ()
) -> tuple[Secret, int]:
    """
    The rows of a scope, by default of all, as `vault list --json` shows them, each with its value;
    and their number. All are of one moment.

    Raises:
        UnreadableValue, KeyUnavailable: some cannot be read; it names them.
    """
    found = vault.rows.every() if isinstance(scope, Every) else vault.rows.of_scope(scope)
    rows = [row for row in map(Row._make, found) if not providers or row.provider in providers]
    opened, faults = list[Secret](), list[UnreadableValue | KeyUnavailable]()
    for row in rows:
        try:
            opened.append(open_row(vault.keys, row))
        except (UnreadableValue, KeyUnavailable) as error:
            faults.append(error)
    if faults:
        listed = "; ".join(map(str, faults[:_SHOWN]))
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        faults[0].args = (f"{listed}{more}; nothing was written",)
        raise faults[0]
    text, entries = new_secret(), vault._entries(rows)
    text._text = json.dumps(
        [
            entry._asdict() | {"value": value.reveal()}
            for entry, value in zip(entries, opened, strict=True)
        ],
        indent=2,
    ) + "\n"  # fmt: skip
    return text, len(rows)


def as_dotenv(
    vault: Vault, project_id: str | None = None, providers: Collection[str] = ()
) -> tuple[Secret, int]:
    """
    The stored fields under the variables that they have in `vault run`, as dotenv
    (`formats.as_dotenv`); and their number.

    Raises:
        WrongArgument: no text carries some of the values to each reader; it names them. Others as
            `environment`.
    """
    variables = environment(vault, project_id, providers, tokens=False).given
    text, refused = formats.as_dotenv(variables)
    if refused:
        raise WrongArgument(
            f"{', '.join(map(brief, refused))}: a shell and python-dotenv have no way in common to"
            " write such a value; nothing was written",
            hint="'--format json' writes any value, and 'vault run' hands it to a command",
        )
    return text, len(variables)
