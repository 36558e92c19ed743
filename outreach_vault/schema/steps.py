"""The list of steps; the steps themselves are in `migrations/`."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Final

from ..errors import StorageError
from ..files import os_error

SHARED: Final = 5  # the app's own steps: 0001 to 0005
_STEP: Final = re.compile(r"(\d{4})_\w+(?=\.py$)")


def step_names() -> list[str]:
    """
    The names of the steps' files, in order.

    Raises:
        StorageError: they cannot be found. Python's own search skips an unreadable folder, and
            without steps a new database would be empty.
    """
    [folder] = importlib.import_module("outreach_vault.migrations").__path__
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError as error:
        raise os_error(Path(folder), error) from error
    found = list(filter(None, map(_STEP.match, names)))
    if [int(name[1]) for name in found] != list(range(1, len(found) + 1)) or len(found) <= SHARED:
        raise StorageError(
            f"{folder}: the steps of the schema cannot be found",
            hint="check that the installation is complete and readable",
        )
    return [name[0] for name in found]


def own_steps() -> int:
    """How many of the steps are the vault's own."""
    return len(step_names()) - SHARED
