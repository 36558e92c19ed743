"""What the modules may know of each other, and that importing the package does nothing."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, MutableMapping, MutableSequence, MutableSet
from pathlib import Path

import pytest

import outreach_vault
from outreach_vault import errors

PACKAGE = Path(outreach_vault.__file__).parent
MIGRATIONS = Path(importlib.import_module("outreach_vault.migrations").__file__ or "").parent
# A module imports only from those after it. Not all of them need be there.
ORDER = (
    "cli", "testing", "doctor", "rotation", "recovery", "status", "launch", "checks", "vault", "home", "lookup",
    "bundle", "providers", "keyset", "migrator", "models", "database", "keystore", "limits", "files", "shapes", "terminal", "prompt",
    "cipher", "secret", "errors",
)  # fmt: skip
# Values that can change at module level, each with its reason; all others are made by whoever needs them.
STATE = {
    ("cli", "STATUSES"): "a constant table; dict because it is looked up by class",
    ("cipher", "_ARGON2ID"): "a constant table of numbers",
    ("cipher", "_ARGON2ID_AT_MOST"): "a constant table of numbers",
    ("bundle", "_TYPED"): "a constant table: the class of each typed bundle",
    ("checks", "_CHECKS"): "a constant table: how each provider is tried",
    ("checks", "_SHORT"): "a constant table of characters",
    ("checks", "_TO_URLSAFE"): "a constant table of characters",
    ("providers", "_BY_NAME"): "a constant table: the catalogue by name",
    ("files", "_NEXT"): "a constant table of advice",
    ("database", "_OPEN"): "what a forked child must let go of",
    ("database", "_LEFT_TO_PARENT"): "so that the child does not close the parent's connections",
    ("keystore", "_APPROVED"): "a constant table of names",
    ("keystore", "_turn"): "one call to a key store at a time in this process",
}


def sources() -> dict[str, ast.Module]:
    return {file.stem: ast.parse(file.read_text("utf-8")) for file in sorted(PACKAGE.glob("*.py")) if not file.stem.startswith("__")}


def imported(tree: ast.AST) -> Iterator[str]:
    """What any line of a module imports, lazily too, by full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            parts = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (f"outreach_vault.{part}" for part in parts)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_every_module_has_a_place_in_the_order() -> None:
    assert set(sources()) <= set(ORDER)
    assert set(sources()) >= {"cli", "vault", "keyset", "database", "keystore", "cipher", "secret", "errors"}


@pytest.mark.parametrize("module", sorted(sources()))
def test_imports_point_down(module: str) -> None:
    ours = [name.split(".")[1] for name in imported(sources()[module]) if name.startswith("outreach_vault.")]
    below = ORDER[ORDER.index(module) + 1 :]
    assert [name for name in ours if name not in below] == []


def test_migrations_import_the_migrator_and_nothing_else() -> None:
    files = sorted(MIGRATIONS.glob("0*.py"))
    assert len(files) >= 6
    for file in files:
        assert set(imported(ast.parse(file.read_text("utf-8")))) <= {"outreach_vault.migrator"}, file.name


@pytest.mark.parametrize(
    ("library", "owners"),
    [("cryptography", {"cipher"}), ("keyring", {"keystore"}), ("peewee", {"models"}), ("click", {"cli", "terminal"})],
)
def test_one_module_knows_each_library(library: str, owners: set[str]) -> None:
    users = {module for module, tree in sources().items() if any(name.split(".")[0] == library for name in imported(tree))}
    assert users == owners


def test_only_the_database_module_issues_pragmas() -> None:
    def texts(tree: ast.Module) -> str:
        return " ".join(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))

    assert [module for module, tree in sources().items() if "PRAGMA " in texts(tree)] == ["database"]


def state(module: str, tree: ast.Module) -> Iterator[str]:
    """Names that the module gives, at its top level, to something that can change."""
    lock_types = (type(threading.Lock()), type(threading.RLock()), threading.local)
    names = {name.id for node in tree.body for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    for name in names & set(vars(loaded := importlib.import_module(f"outreach_vault.{module}"))):
        if isinstance(getattr(loaded, name), (MutableMapping, MutableSequence, MutableSet, weakref.WeakSet, *lock_types)):
            yield name


def test_no_module_keeps_state_besides_what_is_documented() -> None:
    assert {(module, name) for module, tree in sources().items() for name in state(module, tree)} == set(STATE)
    rebound = {(module, *node.names) for module, tree in sources().items() for node in ast.walk(tree) if isinstance(node, ast.Global)}
    assert rebound == {("keystore", "_turn")}


# Run in a process of its own: what happens while the package is imported.
WATCH = """
import os, sys
package = os.path.dirname(os.path.dirname(sys.argv[1]))
opened, asked = [], []

class Watched(type(os.environ)):
    def note(self, name):
        frame = sys._getframe(2)
        while frame and "/outreach_vault/" not in frame.f_code.co_filename.replace(os.sep, "/"):
            if not frame.f_code.co_filename.endswith(("os.py", "_collections_abc.py>", "_collections_abc.py")) \\
                    and not frame.f_code.co_filename.startswith("<frozen"):
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
    if event == "open" and isinstance(arguments[0], str) and not arguments[0].endswith((".py", ".pyc", ".so", ".pyd")):
        opened.append(arguments[0])
    if event in ("sqlite3.connect", "subprocess.Popen", "socket.connect", "os.fork", "os.mkdir"):
        opened.append(event)

os.environ.__class__ = Watched
sys.addaudithook(audit)
before = set(sys.modules)
import outreach_vault
opened = [name for name in opened if not os.path.basename(os.path.dirname(name)).endswith("__pycache__")]
new = set(sys.modules) - before
print(repr((opened, asked, sorted(new), sys.modules["outreach_vault"].__file__)))
"""


def test_importing_the_package_opens_nothing_reads_no_environment_and_loads_no_more_than_it_needs() -> None:
    done = subprocess.run([sys.executable, "-c", WATCH, outreach_vault.__file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    opened, asked, modules, _ = ast.literal_eval(done.stdout)
    assert (opened, asked) == ([], [])
    assert "outreach_vault.vault" in modules
    unwanted = {"click", "rich", "keyring", "secretstorage", "jeepney"}
    ours = {"outreach_vault.models", "outreach_vault.cli", "outreach_vault.migrations", "outreach_vault.rotation"}
    assert [name for name in modules if name.split(".")[0] in unwanted or name in ours] == []


def test_the_public_names_are_the_documented_ones() -> None:
    family = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.VaultError)}
    assert set(outreach_vault.__all__) == family | {"Vault", "Credential", "Entry", "Secret", "OSKeyring", "KeyDirectory"} | {
        "WeakStorage", "Bundle", "AnyBundle", "SmtpBundle", "TwilioBundle", "ElevenLabsBundle", "AnthropicBundle",
    }  # fmt: skip
    assert len(outreach_vault.__all__) == len(set(outreach_vault.__all__))
    for name in outreach_vault.__all__:
        assert getattr(outreach_vault, name).__name__ == name


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
