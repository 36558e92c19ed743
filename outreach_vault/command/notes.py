"""What several commands say of keys, of accounts and of where a value is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ..vault import Vault
from .terminal import counted, note, warn


def warn_of_keys(vault: Vault, key_ids: Iterable[str | None], each: str = "value") -> None:
    """Why these keys were not to be had, and what to do: each fault once, with its count."""
    faults = [vault.keys.last_problem(key_id) for key_id in sorted(filter(None, key_ids))]
    found = Counter((str(fault), fault.hint) for fault in faults if fault)
    for (problem, hint), count in found.items():
        warn(problem if count == 1 else f"{problem} ({counted(count, each)})")
        if hint:
            note(f"hint: {hint}")


def next_export(vault: Vault) -> str | None:
    """The step after a new key, if one in use is in no exported file: it is lost with its store."""
    used, records = vault.rows.keys_named(), vault.keys.states.in_state("active", "retired")
    needed = [record for record in records if record.state == "active" or record.id in used]
    lacking = [record.id for record in needed if record.exported_at is None]
    if not lacking:
        return None
    last = max((record.exported_at for record in records if record.exported_at), default=None)
    return (
        f"next: 'vault keys export FILE': no exported file holds key {', '.join(lacking)}"
        f" (last export: {last or 'none'})"
    )


def scope_of(project_id: str | None, names: Mapping[str, str]) -> str:
    """A scope by the project's name, if *names* (`Projects.names`) has it; else with its id."""
    if project_id is None:
        return "global"
    return names.get(project_id) or f"project {project_id}"


def note_account(vault: Vault, provider: str, project: str | None) -> None:
    """Say that the account just touched is of no use to adapters, and what to do next."""
    from ..operations.accounts import account_of  # here: `get` needs none of it

    account = account_of(vault, provider, project)
    if account and account.problem and account.is_fault:
        todo, _, _ = str(account.problem.hint).partition("; ")
        note(f"{account.message}; {todo}")
