"""Where a database in a file is: the one that was named, or the desktop app's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ...errors import OperationRunning
from ...files import alone, new_folder, os_error, real
from ..engine import Concern, Database, Location
from . import files
from .database import create_file, open_file

T = TypeVar("T")


class FileLocation(Location):
    """
    A file.

    Args:
        path: its absolute path; by default the desktop app's own file.
    Raises:
        UnusablePath: there is no home folder.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._is_the_apps = path or files.app_path(), path is None

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def open(self, *, read_only: bool = False) -> Database:
        """With *read_only* it changes no byte, not even when it closes."""
        return open_file(self.path, read_only=read_only)

    def create(self, fill: Callable[[Database], T]) -> T:
        return create_file(self.path, fill)

    def require_locks(self) -> None:
        with contextlib.suppress(OperationRunning):
            alone(self.path, lambda: None)

    def make_folder(self) -> Path | None:
        folder = self.path.parent
        if not self._is_the_apps or os.path.lexists(folder):
            return None
        for missing in reversed([folder, *folder.parents]):
            if not os.path.lexists(missing):
                try:
                    new_folder(missing)
                except FileExistsError:
                    pass  # another process was faster
                except OSError as error:
                    raise os_error(missing, error) from error
        return folder

    def exposed(self) -> list[Concern]:
        return files.exposed(real(self.path))
