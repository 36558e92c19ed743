"""What the modules may know of each other, and that importing the package does nothing."""

from __future__ import annotations

import ast
import functools
import importlib
import subprocess
import sys
import threading
import tomllib
import weakref
from collections.abc import Iterator, MutableMapping, MutableSequence, MutableSet
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Literal, get_origin

import pytest

import outreach_vault
from outreach_vault import errors

PACKAGE = Path(outreach_vault.__file__).parent
MIGRATIONS = Path(importlib.import_module("outreach_vault.migrations").__file__ or "").parent
# Folders and single modules at the top. Whatever is in one imports only from its own folder and
# from those after it.
ROOMS = (
    "__main__", "command", "testing", "operations", "__init__", "vault", "models", "values",
    "providers", "keys", "schema", "database",
    "network", "masking", "cipher", "files", "limits", "secret", "packages", "errors",
)  # fmt: skip
# A room inside another, and what it may import of the rest of that one.
INNER = {"keys.stores": set[str](), "database.sqlite": {"database.engine"}}
# Values that can change at module level, each with its reason; all others are made by whoever needs
# them.
STATE = {
    ("command.cli", "_HOMES"): "a constant table: the module of each command",
    ("command.group", "STATUSES"): "a constant table; dict because it is looked up by class",
    ("keys.passphrase", "_ARGON2ID"): "a constant table of numbers",
    ("keys.passphrase", "_ARGON2ID_AT_MOST"): "a constant table of numbers",
    ("values.bundle", "_TYPED"): "a constant table: the class of each typed bundle",
    ("operations.checks", "_CHECKS"): "a constant table: how each provider is tried",
    ("masking", "_SHORT"): "a constant table of characters",
    ("masking", "_TO_URLSAFE"): "a constant table of characters",
    ("providers", "_BY_NAME"): "a constant table: the catalogue by name",
    ("files", "_NEXT"): "a constant table of advice",
    ("database.sqlite.connections", "_OPEN"): "what a forked child must let go of",
    (
        "database.sqlite.connections",
        "_LEFT_TO_PARENT",
    ): "so that the child does not close the parent's connections",
    ("database.postgres.connections", "_OPEN"): "what a forked child must let go of",
    (
        "database.postgres.connections",
        "_LEFT_TO_PARENT",
    ): "so that the child does not close the parent's connections",
    ("keys.stores.os_keyring", "_APPROVED"): "a constant table of names",
    ("keys.stores.store", "SCHEMES"): "a constant table",
    ("keys.stores.aws_secrets", "_PASSING"): "a constant set of names",
    ("keys.stores.aws_secrets", "_REFUSED"): "a constant set of names",
    ("keys.stores.aws_secrets", "_CREDENTIALS"): "a constant set of names",
    (
        "__init__",
        "_ALONE",
    ): "a constant table: the modules that only those who use their names load",
    ("keys.stores.os_keyring", "_turn"): "one call to a key store at a time in this process",
}
# Modules that raise a plain ValueError, each with the reason why no command's user can cause it;
# all others raise WrongArgument.
PLAIN = {
    "cipher": "whoever asks for a key or a token to be read catches it",
    "keys.passphrase": "whoever asks for a file to be opened catches it",
    "keys.stores.store": "the time limit that a program gives a key store",
    "schema.models": "an adapter's own queries",
    "schema.shapes": "a time that a program gives",
}


def named(file: Path) -> str:
    """`keys.keyset`; of a folder's `__init__` the folder's name."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


# Each module of the package by its name in it, as the folders have them.
FILES = {
    named(file): file for file in sorted(PACKAGE.rglob("*.py")) if "__pycache__" not in file.parts
}


@functools.cache
def sources() -> dict[str, ast.Module]:
    return {name: ast.parse(file.read_text("utf-8")) for name, file in FILES.items()}


def imported(module: str, tree: ast.AST) -> Iterator[str]:
    """
    What any line of *module* imports, lazily too, by full name; `from x import y` is x.y where that
    is a module, else x.
    """
    folder = PACKAGE.joinpath(*module.split("."))
    above = ["outreach_vault", *module.split(".")][
        : None if (folder / "__init__.py").is_file() else -1
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = above[: len(above) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                at = PACKAGE.parent.joinpath(*base.split("."), alias.name)
                yield (
                    f"{base}.{alias.name}"
                    if at.is_dir() or at.with_suffix(".py").is_file()
                    else base
                )


def ours(module: str, tree: ast.AST) -> set[str]:
    """Those of the package's modules that *module* imports, by their name in it."""
    names = (
        name.removeprefix("outreach_vault").lstrip(".")
        for name in imported(module, tree)
        if name.startswith("outreach_vault")
    )
    return {name or "__init__" for name in names} - {"migrations"}


def test_every_module_is_in_a_room_that_has_a_place() -> None:
    assert {module.split(".")[0] for module in sources()} == set(ROOMS)
    assert len(sources()) > len(ROOMS)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_point_down(module: str) -> None:
    room, *_ = module.split(".")
    below = ROOMS[ROOMS.index(room) + 1 :]
    assert [
        name for name in ours(module, sources()[module]) if name.split(".")[0] not in (room, *below)
    ] == []


@pytest.mark.parametrize("inner", INNER)
def test_a_room_inside_another_does_not_look_out_into_it(inner: str) -> None:
    seen = {
        name
        for module, tree in sources().items()
        if f"{module}.".startswith(f"{inner}.")
        for name in ours(module, tree)
    }
    beside = {name for name in seen if not f"{name}.".startswith(f"{inner}.")}
    assert {name for name in beside if name.split(".")[0] == inner.split(".")[0]} <= INNER[inner]


def test_one_room_knows_which_engines_there_are() -> None:
    for of in ("database.sqlite", "sqlite3"):
        knowing = {
            module.split(".")[0]
            for module, tree in sources().items()
            if any(
                f"{name}.".startswith(f"{of}.")
                for name in {*ours(module, tree), *imported(module, tree)}
            )
        }
        assert knowing == {"database"}, of


def test_no_module_is_imported_by_one_that_it_imports() -> None:
    TopologicalSorter(
        {module: ours(module, tree) - {module} for module, tree in sources().items()}
    ).prepare()


def test_the_wheel_has_every_room() -> None:
    listed = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    folders = {
        file.parent.relative_to(PACKAGE).as_posix().replace("/", ".")
        for file in PACKAGE.rglob("__init__.py")
    }
    assert {
        name.removeprefix("outreach_vault").lstrip(".") or "." for name in listed
    } == folders | {"migrations"}


def test_migrations_import_the_migrator_and_nothing_else() -> None:
    files = sorted(MIGRATIONS.glob("0*.py"))
    assert len(files) >= 6
    for file in files:
        assert set(imported("migrations.step", ast.parse(file.read_text("utf-8")))) <= {
            "outreach_vault.schema.migrator"
        }, file.name


def users(library: str) -> set[str]:
    return {
        module
        for module, tree in sources().items()
        if any(name.split(".")[0] == library for name in imported(module, tree))
    }


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("cryptography", {"cipher"}),
        ("boto3", {"keys.stores.aws_secrets"}),
        ("hvac", {"keys.stores.openbao"}),
        ("keyring", {"keys.stores.os_keyring"}),
        ("peewee", {"schema.models"}),
    ],
)
def test_one_module_knows_each_library(library: str, owners: set[str]) -> None:
    assert users(library) == owners


def raised(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Raise)
            and isinstance(node.exc, ast.Call)
            and isinstance(node.exc.func, ast.Name)
        ):
            yield node.exc.func.id


def test_a_plain_value_error_is_none_that_a_user_can_cause() -> None:
    """For the command it is a bug."""
    assert {module for module, tree in sources().items() if "ValueError" in raised(tree)} == set(
        PLAIN
    )


def test_one_room_knows_click() -> None:
    assert {module.split(".")[0] for module in users("click")} == {"command"}


def test_only_the_database_module_issues_pragmas() -> None:
    def texts(tree: ast.Module) -> str:
        return " ".join(
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )

    assert [module for module, tree in sources().items() if "PRAGMA " in texts(tree)] == [
        "database.sqlite.connections",
        "database.sqlite.database",
    ]


def state(module: str, tree: ast.Module) -> Iterator[str]:
    """Names that the module gives, at its top level, to something that can change."""
    lock_types = (type(threading.Lock()), type(threading.RLock()), threading.local)
    names = {
        name.id
        for node in tree.body
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }
    for name in (names - {"__all__"}) & set(
        vars(
            loaded := importlib.import_module(f"outreach_vault.{module}".removesuffix(".__init__"))
        )
    ):
        if isinstance(
            getattr(loaded, name),
            (MutableMapping, MutableSequence, MutableSet, weakref.WeakSet, *lock_types),
        ):
            yield name


def test_no_module_keeps_state_besides_what_is_documented() -> None:
    assert {
        (module, name) for module, tree in sources().items() for name in state(module, tree)
    } == set(STATE)
    rebound = {
        (module, *node.names)
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Global)
    }
    assert rebound == {("keys.stores.os_keyring", "_turn")}


# Run in a process of its own: what happens while the package is imported.
WATCH = """
import os, sys
package = os.path.dirname(os.path.dirname(sys.argv[1]))
opened, asked = [], []

class Watched(type(os.environ)):
    def note(self, name):
        frame = sys._getframe(2)
        while frame and "/outreach_vault/" not in frame.f_code.co_filename.replace(os.sep, "/"):
            file = frame.f_code.co_filename
            library = file.endswith(("os.py", "_collections_abc.py")) or file.startswith("<frozen")
            if not library:
                return  # a library's own settings
            frame = frame.f_back
        asked.append(name)
    def __getitem__(self, name):
        self.note(name)
        return super().__getitem__(name)
    def __iter__(self):
        self.note("all")
        return super().__iter__()

def audit(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        if not arguments[0].endswith((".py", ".pyc", ".so", ".pyd")):
            opened.append(arguments[0])
    if event in ("sqlite3.connect", "subprocess.Popen", "socket.connect", "os.fork", "os.mkdir"):
        opened.append(event)

os.environ.__class__ = Watched
sys.addaudithook(audit)
before = set(sys.modules)
import outreach_vault
loaded = [name for name in sys.modules if name.startswith("outreach_vault.")]
assert loaded == [], "nothing can say what keeps these from being loaded"
from outreach_vault import Vault
folder = lambda name: os.path.basename(os.path.dirname(name))
opened = [name for name in opened if not folder(name).endswith("__pycache__")]
new = set(sys.modules) - before
print(repr((opened, asked, sorted(new), sys.modules["outreach_vault"].__file__)))
"""


def test_importing_the_package_opens_no_file_reads_no_environment_and_loads_little() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCH, outreach_vault.__file__], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    opened, asked, modules, _ = ast.literal_eval(done.stdout)
    assert (opened, asked) == ([], [])
    assert "outreach_vault.vault" in modules
    unwanted = {"click", "rich", "keyring", "secretstorage", "jeepney"}
    later = {
        "outreach_vault.models",
        "outreach_vault.command.cli",
        "outreach_vault.migrations",
        "outreach_vault.operations.rotation",
    }
    assert [name for name in modules if name.split(".")[0] in unwanted or name in later] == []


def test_the_public_names_are_the_documented_ones() -> None:
    family = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.VaultError)
    }
    words = {"Scope", "State"}  # for annotations
    assert set(outreach_vault.__all__) == family | words | {
        "Vault", "AccessToken", "Credential", "Entry", "Secret", "OSKeyring", "KeyDirectory",
        "WeakStorage", "Bundle", "AnyBundle", "SmtpBundle", "TwilioBundle", "ElevenLabsBundle",
        "AnthropicBundle",
    }  # fmt: skip
    assert len(outreach_vault.__all__) == len(set(outreach_vault.__all__))
    for name in {*outreach_vault.__all__} - words:
        assert getattr(outreach_vault, name).__name__ == name
    assert {get_origin(getattr(outreach_vault, name)) for name in words} == {Literal}


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
