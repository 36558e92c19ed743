"""
A command with credentials in its environment, and nowhere else.

The command takes this process's place, so signals and its exit status are its own. Any program that runs
as the same user can read a process's environment: hand over no more than the command needs.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from .bundle import of_one_account, require_complete
from .lookup import fields, providers_of
from .providers import named
from .secret import Secret
from .vault import Vault


def credentials(vault: Vault, project_id: str | None, providers: Iterable[str] = (), *, only: Collection[str] = ()) -> dict[str, Secret]:
    """
    The variables for a command: TWILIO_ACCOUNT_SID, SMTP_HOST, ..., each with the value that `Vault.get` gives.

    Args:
        providers: these, each of which must be complete; by default each that has a field in either scope.
        only: of the variables just these.
    Raises:
        IncompleteAccount, MixedAccount, ProjectNotFound, UnreadableValue, KeyUnavailable: there is no
            environment at all then. ValueError: a variable of *only* is not there, two fields have one
            name, or a value cannot be in an environment.
    """
    found: dict[str, Secret] = {}
    asked_for = list(providers)
    for provider in asked_for or providers_of(vault.database, project_id):
        known = named(provider)
        rows = of_one_account(known, project_id, fields(vault.database, provider, project_id))
        if asked_for:
            require_complete(known, project_id, rows)
        for field, row in rows.items():
            name = variable(provider, field)
            if only and name not in only:
                continue
            if name in found:
                raise ValueError(f"{name}: two fields have this name as a variable; choose one with --provider")
            found[name] = vault.keys.open(row)
            if "\0" in found[name].reveal():
                raise ValueError(f"{name}: the value has a NUL character, which no environment can hold")
    if lacking := set(only) - set(found):
        raise ValueError(f"{', '.join(sorted(lacking))}: no stored field has this name as a variable")
    return found


def variable(provider: str, field: str) -> str:
    """The name of a field as a variable: upper case, and an underscore for what is no letter, digit or underscore."""
    return re.sub(r"[^A-Z0-9_]", "_", f"{provider}_{field}".upper())


def launch(command: Sequence[str], variables: Mapping[str, Secret], *, pristine: bool = False) -> int:
    """
    Become *command*, with *variables* in its environment as UTF-8.

    Args:
        pristine: with nothing else in it.
    Returns:
        On Windows, which cannot do that, the exit status of the command.
    Raises:
        FileNotFoundError, PermissionError: there is no such program, or it cannot be run.
    """
    program = shutil.which(command[0])  # with the PATH of now: a pristine environment has none
    if program is None:
        number = errno.EACCES if Path(command[0]).exists() else errno.ENOENT
        raise OSError(number, os.strerror(number))
    if os.name == "nt":  # its execve starts a second process and leaves the terminal to both
        given = {} if pristine else dict(os.environ)
        return subprocess.run([program, *command[1:]], env=given | _texts(variables), check=False).returncode  # noqa: S603
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores these, and what is ignored stays so in the command
    # As bytes, since Python would spell text as the locale has it.
    ours = {} if pristine else dict(os.environb)
    os.execve(program, list(command), ours | {name.encode(): value.encode() for name, value in _texts(variables).items()})  # noqa: S606
    return 0  # never: execve does not come back


def _texts(variables: Mapping[str, Secret]) -> dict[str, str]:
    return {name: value.reveal() for name, value in variables.items()}
