"""
The application's projects, as an operator names them: by id, or by a name that one project has.

Look-ups take ids alone: a name may come to mean another project, and with it another account.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from ..database import Database
from ..errors import ProjectNotFound, StorageError, WrongArgument, brief, near, typed_id
from ..schema.shapes import as_text, new_id, now
from .rows import Rows, name

_TABLE: Final = "projects"
_AT_MOST: Final = 98  # characters: with quotes around it, a message shows such a name whole


class ProjectRow(NamedTuple):
    """One project, and how many values it has of its own."""

    id: str
    name: str
    archived: bool
    values: int


class Projects:
    """The projects of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def every(self) -> list[ProjectRow]:
        """All projects, by name; archived ones last."""
        used = Rows(self._database).count_by_project()
        found = [
            ProjectRow(as_text(project_id), as_text(title), archived == 1, used[project_id])
            for project_id, title, archived in self._fetch("id, name, is_archived")
        ]
        return sorted(found, key=lambda project: (project.archived, project.name, project.id))

    def names(self) -> dict[str, str]:
        """
        What to call each project, by id: its name, if `find` takes it for this project alone; else
        its id. No project is called "global".
        """
        found = [row for row in self._fetch("id, name") if isinstance(row[0], str)]
        taken = Counter(text for row in found for text in {*row})
        taken["global"] += 1
        return {
            str(project_id): title
            if isinstance(title, str)
            and taken[title] == 1
            and title.isprintable()
            and 0 < len(title) <= _AT_MOST
            else str(project_id)
            for project_id, title in found
        }

    def find(self, text: str) -> str:
        """
        The id of the project whose id is *text*, else of the one whose name it is.

        Raises:
            ProjectNotFound: there is none, or several have the name.
            WrongArgument: *text* is empty, or has unprintable characters.
        """
        name("project", text)
        found = self._fetch("id, name")
        if any(project_id == text for project_id, _ in found):
            return text
        named = sorted(str(project_id) for project_id, title in found if title == text)
        if len(named) > 1:
            listed = ", ".join(map(brief, named))
            raise ProjectNotFound(
                f"{len(named)} projects have the name {brief(text)!r}: {listed}",
                hint="give the id of one of them",
            )
        if not named:
            names = {str(each) for row in found for each in row}
            raise ProjectNotFound(
                f"there is no project {typed_id(text, 'of that name or id')}{near(text, names)}",
                hint="'vault projects' lists them; an unknown one never gets the global value",
            )
        return named[0]

    def add(self, title: str) -> str:
        """
        Make a project for a database that no desktop app serves. Returns its id.

        Raises:
            WrongArgument: the name is empty, unprintable, or another project's id or name.
        """
        name("the project's name", title)
        made, moment = new_id(), now()

        def insert() -> None:
            if any(title in each for each in self._fetch("id, name")):
                raise WrongArgument(
                    "a project has this name already",
                    hint="'vault projects' lists them; choose another name",
                )
            self._database.change(
                f"INSERT INTO {_TABLE} (id, name, created_at, updated_at) VALUES (?, ?, ?, ?)",
                (made, title, moment, moment),
            )
            if (made, title) not in self._fetch("id, name"):
                raise StorageError(
                    "the project was not stored: a trigger undid it",
                    hint="'vault doctor' names the triggers on the vault's tables",
                )

        self._database.write(insert, alone=True)  # no index keeps names apart
        return made

    def _fetch(self, columns: str) -> list[tuple[object, ...]]:
        """Without its index, which a damaged file could lead astray."""
        return self._database.fetch(f"SELECT {columns} FROM {self._database.whole(_TABLE)}")
