"""
Which account each project would send from, and why not; read-only, and no value is opened.

The rules are those of `Vault.bundle`, by the same functions: a list that judged by rules of its own
would one day call an account fine that no adapter gets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from ..errors import (
    IncompleteAccount,
    KeyUnavailable,
    MixedAccount,
    brief,
)
from ..providers import provider_of
from ..schema.shapes import now
from ..values.bundle import of_one_account, require_complete
from ..values.opening import state
from ..values.rows import Row
from ..values.tokens import Turn
from ..vault import Vault

if TYPE_CHECKING:
    from ..providers.oauth import Fault

AccountState = Literal["own", "global", "mixed", "incomplete", "unreadable"]
# How a grant of OAuth2 stands. `never used`: since the account was stored; `token ended`: nobody
# asked for another since. The last four are how the last attempt failed.
GrantState = Literal[
    "ok", "never used", "token ended", "needs login", "client refused", "unreachable", "no token"
]
Turns = Mapping[tuple[str | None, str], Turn]
_FAULTS: Final[Mapping[Fault | None, GrantState]] = MappingProxyType(
    {
        "login": "needs login",
        "client": "client refused",
        "unreachable": "unreachable",
        "answer": "no token",
    }
)


class Account(NamedTuple):
    """
    What a bundle of one provider would be in one scope.

    Attributes:
        project_id: None for the global scope. project: the project's name.
        channel: None if the catalogue does not know the provider.
        state: `own` and `global` say whose account it is; `unreadable`: a whole account with a
            value that is foreign or whose key cannot be read.
        missing: the required fields that neither scope has.
        fields: the scope of each field that the bundle would hold; if mixed, of all fields.
        grant: how the account's grant of OAuth2 stands; None without one, or without an account.
        unreadable: the state of each value that cannot be read, by field.
        remark: what an operator may want to know of the grant, and what to do; or None.
        problem: what `bundle` would raise without opening a value.
    """

    project_id: str | None
    project: str | None
    provider: str
    channel: str | None
    state: AccountState
    missing: tuple[str, ...]
    fields: dict[str, str]
    grant: GrantState | None
    unreadable: dict[str, str]
    remark: tuple[str, str | None] | None
    problem: MixedAccount | IncompleteAccount | None

    def of_scope(self, scope: str) -> str:
        """The names of the fields from `project`, or from `global`."""
        return ", ".join(brief(name) for name, found in self.fields.items() if found == scope)

    @property
    def message(self) -> str:
        """What is wrong, in one line without the ids of rows; empty if nothing is."""
        if not isinstance(self.problem, MixedAccount):
            return str(self.problem or "")
        at, _, _ = str(self.problem).partition(": ")
        own, general = self.of_scope("project"), self.of_scope("global")
        return f"{at}: mixed from two accounts: the project's {own}; the global {general}"

    @property
    def is_fault(self) -> bool:
        """
        Whether an operator has something to do here. A global sender alone is a default for the
        projects, and no account that lacks something.
        """
        belongs = provider_of(self.provider).belongs
        return self.problem is not None and (
            self.project_id is not None or any(map(belongs, self.fields))
        )

    @property
    def owns_grant(self) -> bool:
        """Whether its grant is of its own scope."""
        grant = provider_of(self.provider).grant
        own = "global" if self.project_id is None else "project"
        return grant is not None and self.fields.get(grant.client_id) == own


def accounts(vault: Vault) -> list[Account]:
    """
    The account of each provider in each scope: the global one first, then the projects by name.

    A project has a line for each provider that is stored in its own scope or the global one. The
    number of statements does not grow with the projects or the rows.
    """
    rows = list(vault.rows.outlines())
    problems = vault.keys.survey({key for row in rows if (key := row.sealing_key)})
    names, turns = vault.projects.names(), vault.rows.tokens.turns()
    found = {(a.project_id, a.provider): a for a in _stored(rows, names, turns, problems)}
    general = {provider: a for (scope, provider), a in found.items() if scope is None}
    of_projects = dict[str, dict[str, Account]]()
    for (scope, provider), account in found.items():
        if scope is not None:
            of_projects.setdefault(scope, {})[provider] = account
    listed = [general[provider] for provider in sorted(general)]
    for project in vault.projects.every():
        seen = general | of_projects.get(project.id, {})
        listed += (
            seen[provider]._replace(project_id=project.id, project=project.name)
            for provider in sorted(seen)
        )
    return listed


def account_of(vault: Vault, provider: str, project_id: str | None) -> Account | None:
    """
    The account of one provider in one scope, or None if neither scope has a field of it.

    Raises:
        ProjectNotFound: no such project.
    """
    rows = vault.rows.found(provider, None, project_id)
    names = {} if project_id is None else vault.projects.names()
    return _judged(provider, project_id, rows, names, {}) if rows else None


def faults(vault: Vault) -> Iterator[Account]:
    """
    The accounts that have a row of their own and are of no use, one after another; and those whose
    own grant has no token, or was never used.

    It holds the global rows and those of one project. Those of an unlisted provider are left out:
    nobody knows which of its fields belong together.
    """
    turns = vault.rows.tokens.turns()
    for account in _stored(vault.rows.outlines(), vault.projects.names(), turns):
        lacks_token = account.grant not in (None, "ok", "token ended") and account.owns_grant
        if account.channel is not None and (account.is_fault or lacks_token):
            yield account


def _stored(
    rows: Iterator[Row] | list[Row],
    names: Mapping[str, str],
    turns: Turns,
    problems: Mapping[str, KeyUnavailable | None] | None = None,
) -> Iterator[Account]:
    """The account of each scope and provider that has a row of its own; global ones first."""
    general: dict[str, dict[str, Row]] = {}
    for (scope, provider), group in groupby(rows, key=lambda row: (row.project_id, row.provider)):
        # Nobody can look for bytes. A row whose project is gone is nobody's.
        if not isinstance(provider, str) or not (scope is None or scope in names):
            continue
        own = {row.credential_type: row for row in group if isinstance(row.credential_type, str)}
        if scope is None:
            general[provider] = own
        yield _judged(provider, scope, general.get(provider, {}) | own, names, turns, problems)


def _judged(
    provider: str,
    project_id: str | None,
    rows: Mapping[str, Row],
    names: Mapping[str, str],
    turns: Turns,
    problems: Mapping[str, KeyUnavailable | None] | None = None,
) -> Account:
    """
    Args:
        rows: the row that a look-up takes for each field.
        names: what to call each project (`Projects.names`).
        turns: of the grants that were used (`Tokens.turns`).
        problems: for each key, why it cannot be read, or None; without it no value is `unreadable`.
    """
    known, used, missing = provider_of(provider), rows, tuple[str, ...]()
    shown = None if project_id is None else _typed(names.get(project_id, project_id), project_id)
    unreadable, stands, remark = dict[str, str](), None, None
    problem: MixedAccount | IncompleteAccount | None = None
    found: AccountState
    try:
        used = of_one_account(known, shown, rows)
        require_complete(known, shown, used)
    except MixedAccount as error:
        problem, found = error, "mixed"
    except IncompleteAccount as error:
        problem, found, missing = error, "incomplete", error.missing
    else:
        if problems is not None:
            states = {name: state(row.sealing_key, problems) for name, row in used.items()}
            unreadable = {name: each for name, each in states.items() if each != "ok"}
        deciding = [row for name, row in used.items() if known.belongs(name)] or [*used.values()]
        own = any(row.project_id is not None for row in deciding)
        found = "unreadable" if unreadable else "own" if own else "global"
        if grant := known.grant_of(used):
            of = used[grant.client_id].project_id
            turn, of = turns.get((of, provider)), None if of is None else shown
            stands, remark = _stands(turn), _remark(provider, of, turn)
    fields = {name: "global" if used[name].project_id is None else "project" for name in used}
    whose = (project_id, None, provider, known.channel or None, found)
    return Account(*whose, missing, fields, stands, unreadable, remark, problem)


def _stands(turn: Turn | None) -> GrantState:
    if turn and turn.fault in _FAULTS:
        return _FAULTS[turn.fault]
    if turn is None or turn.expires_at is None:
        return "never used"
    return "ok" if str(turn.expires_at) > now() else "token ended"


def _remark(provider: str, shown: str | None, turn: Turn | None) -> tuple[str, str | None] | None:
    if turn and turn.fault and turn.fault in _FAULTS:
        from ..values.access import failure  # here: `vault set` needs nothing that it loads

        error = failure(provider, shown, turn.fault, f"{turn.said} (tried {turn.tried_at})")
        return str(error), error.hint
    if _stands(turn) != "never used":
        return None
    scope, at = ("global", "") if shown is None else (f"project {shown}", f" --project {shown}")
    message = f"{brief(provider)} ({scope}): OAuth2 gave it no access token yet"
    return message, f"'vault check {brief(provider)}{at}' asks for one"


def _typed(name: str, project_id: str) -> str:
    """How a shell takes the name, so that a hint's command can be copied; else the id."""
    if re.fullmatch(r"[\w.@-]+", name):
        return name
    return project_id if re.search(r'["$`\\!]', name) else f'"{name}"'
