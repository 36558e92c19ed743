"""What is installed beside the command: man pages and completions are the command's own."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
from helpers.pages import ROOT

from outreach_vault.command.cli import cli

pytestmark = pytest.mark.sweep(3)

SHARE = ROOT / "share"
PAGES = sorted((SHARE / "man" / "man1").glob("*.1"))


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    place = importlib.util.spec_from_file_location("writer", ROOT / "docs" / "write_pages.py")
    assert place and place.loader
    place.loader.exec_module(module := importlib.util.module_from_spec(place))
    return module


def each_command(
    command: click.Command = cli, path: tuple[str, ...] = ("vault",)
) -> Iterator[tuple[str, click.Command]]:
    yield "-".join(path), command
    for word, inner in getattr(command, "commands", {}).items():
        yield from each_command(inner, (*path, word))


def test_they_are_as_the_command_is_now(writer: ModuleType) -> None:
    wanted = writer.pages()
    there = {path: path.read_text("utf-8") for path in SHARE.rglob("*") if path.is_file()}
    stale = sorted(path.name for path in {*wanted, *there} if wanted.get(path) != there.get(path))
    assert not stale, "'make pages' writes them anew"


def test_each_command_has_a_page_with_all_of_its_options() -> None:
    assert {path.stem for path in PAGES} == {name for name, _ in each_command()}
    for name, command in each_command():
        text = (SHARE / "man" / "man1" / f"{name}.1").read_text("utf-8").replace("\\-", "-")
        shown = [param for param in command.params if not getattr(param, "hidden", False)]
        names = [name for param in shown for name in (*param.opts, *param.secondary_opts)]
        assert [name for name in names if name.startswith("--") and name not in text] == [], name


def test_the_page_of_vault_has_each_variable_of_the_environment(writer: ModuleType) -> None:
    files = (ROOT / "outreach_vault").rglob("*.py")
    named = {
        found
        for file in files
        for found in re.findall(r"OUTREACH_VAULT_[A-Z_]+[A-Z]", file.read_text("utf-8"))
    }
    assert len(named) > 3 and named == set(writer.ENVIRONMENT)


def test_they_are_installed_where_man_and_the_shells_look() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    installed = project["tool"]["setuptools"]["data-files"]
    files = [path for path in SHARE.rglob("*") if path.is_file()]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in files}
    assert installed == {folder: [f"{folder}/*"] for folder in folders}


@pytest.mark.peer
@pytest.mark.skipif(not shutil.which("groff"), reason="no groff")
def test_groff_has_nothing_to_say_of_them() -> None:
    for page in PAGES:
        command = ["groff", "-man", "-ww", "-Tutf8", "-z", str(page)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("", ""), page.name


@pytest.mark.peer
@pytest.mark.skipif(not shutil.which("man"), reason="no man")
def test_man_shows_them(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "MANPATH": str(SHARE / "man"), "LC_ALL": "C.UTF-8"}
    environment |= {"MANWIDTH": "80", "HOME": str(tmp_path)}
    for name in ("vault", "vault-keys-export"):
        shown = subprocess.run(["man", name], capture_output=True, text=True, env=environment)
        assert shown.returncode == 0, shown.stderr
        text = re.sub(r".\x08", "", shown.stdout)
        assert text.startswith(f"{name.upper()}(1)")
        assert {"NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"} <= set(text.splitlines())
