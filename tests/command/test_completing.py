"""The Tab key: the words that a shell is given, what is never among them, and the real shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import Shell, run
from helpers.site import Site, another, sql

from outreach_vault.command import cli, completing
from outreach_vault.providers import catalogue

pytestmark = pytest.mark.sweep(3)

PROJECT, ODD = "Default Project", "Two 'words' * and $more"
SECRET = "invented-secret"
Words = Callable[..., list[str]]


@pytest.fixture
def words(site: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Words:
    """What `vault LINE` completes to, its last word being unfinished."""
    monkeypatch.setenv("OUTREACH_VAULT_DB", str(site.database))
    monkeypatch.delenv("OUTREACH_VAULT_KEY_DIR", raising=False)

    def complete(*line: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", "\n".join(["vault", *line]))
        monkeypatch.setenv("COMP_CWORD", str(len(line)))
        monkeypatch.setenv("_VAULT_COMPLETE", "bash_complete")
        status, (out, err) = cli.run([]), capfd.readouterr()
        assert (status, err) == (0, "")
        return [word.partition(",")[2] for word in out.splitlines() if word]

    return complete


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (("rot",), ["rotate"]),
        (("keys", "ex"), ["export"]),
        (("set", "tw"), ["twilio"]),
        (("set", "twilio", ""), ["account_sid", "auth_token", "phone_number"]),
        (("get", "smtp", "p"), ["port", "password"]),
        (("get", "unknown", ""), []),
        (("providers", "smt"), ["smtp"]),
        (("check", "sendg"), ["sendgrid"]),
        (("run", "--provider", "elev"), ["elevenlabs"]),
        (("get", "smtp", "host", "--project", "Def"), [PROJECT]),
        (("list", "--project", "no such"), []),
        (("completion", "f"), ["fish"]),
    ],
)
def test_commands_providers_fields_and_projects_are_completed(
    words: Words, line: tuple[str, ...], found: list[str]
) -> None:
    assert words(*line) == found


def test_every_provider_is_offered(words: Words) -> None:
    assert words("set", "") == [provider.name for provider in catalogue()]


def test_each_parameter_that_takes_a_project_or_a_provider_completes_it() -> None:
    found, waiting = list[str](), [cli.cli]
    for command in waiting:
        waiting += getattr(command, "commands", {}).values()
        for param in command.params:
            named = (param.metavar or param.human_readable_name).strip("[]").upper()
            if named in ("PROJECT", "PROVIDER", "FIELD") or param.opts == ["--provider"]:
                assert isinstance(param.type, completing._Word), (command.name, param.name)
                found.append(named)
    assert len(found) > 10


def test_of_two_projects_with_one_name_the_ids_are_offered(site: Site, words: Words) -> None:
    for project in ("one-id", "other-id"):
        sql(
            site.database,
            "INSERT INTO projects (id, name, created_at, updated_at)"
            " VALUES (?, 'Twice', '2026-02-06T09:30:00.250Z', '2026-02-06T09:30:00.250Z')",
            project,
        )
    assert words("list", "--project", "one") == ["one-id"]
    assert words("list", "--project", "Twi") == []


@pytest.mark.sqlite("what is in a file")
@pytest.mark.parametrize("fault", ["missing", "damaged", "empty", "no database", "odd path"])
def test_what_cannot_be_read_gives_no_words_and_no_error(
    site: Site, words: Words, fault: str
) -> None:
    path = {"missing": site.folder / "none.db", "no database": site.folder}.get(fault)
    if fault == "damaged":
        path = site.folder / "damaged.db"
        path.write_bytes(site.database.read_bytes()[:100] + b"\xff" * 9000)
    if fault == "empty":
        (path := site.folder / "empty.db").write_bytes(b"")
    at = "~nobody-here/x.db" if path is None else str(path)
    assert words("--db", at, "list", "--project", "") == []
    assert words("list", "--db", at, "--project", "") == []


def test_a_locked_database_is_not_waited_for(site: Site, words: Words) -> None:
    with another(site.database) as other:
        for lock in (
            ("PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE")
            if site.engine is None
            else ("BEGIN", "LOCK TABLE projects")
        ):
            other.execute(lock)
        begun = time.monotonic()
        assert words("list", "--project", "") == []
        assert time.monotonic() - begun < 4  # the time limit, and a busy machine


def test_no_value_is_offered_and_no_word_of_the_line_repeated(site: Site, words: Words) -> None:
    run(site, "set", "smtp", "password", stdin=SECRET.encode())
    for line in (("get", "smtp", ""), ("which", ""), ("list", ""), ("keys", "destroy", "")):
        assert not [word for word in words(*line) if SECRET in word]
    for line in (("set",), ("set", "smtp"), ("get", "smtp", "host", "--project"), ("keys",)):
        assert words(*line, SECRET) == []


# The real shells


def path_with(folder: Path, program: str) -> str:
    """A PATH on which `vault` is that shell script."""
    (folder / "vault").write_text(f"#!/bin/sh\n{program}\n")
    (folder / "vault").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def real(site: Site) -> str:
    return f'OUTREACH_VAULT_DB="{site.database}" exec "{sys.executable}" -m outreach_vault "$@"'


def in_bash(path: str, *line: str) -> subprocess.CompletedProcess[str]:
    quoted = " ".join(f"'{word}'" for word in ("vault", *line))
    code = (
        f"{completing.script('bash')}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(line)}\n"
        '_vault_completion vault; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "--norc", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path})


needs_bash = pytest.mark.skipif(not shutil.which("bash"), reason="no bash")


@pytest.mark.peer
@needs_bash
def test_bash_gets_words_that_it_can_take_as_they_are(site: Site, tmp_path: Path) -> None:
    run(site, "projects", "add", ODD)
    found = in_bash(path_with(tmp_path, real(site)), "list", "--project", "")
    assert found.stderr == ""
    command = ["bash", "-c", f"printf '%s\\n' {' '.join(found.stdout.split(chr(10)))}"]
    listed = {project["name"] for project in run(site, "projects", "--json").data}
    assert set(subprocess.run(command, capture_output=True, text=True).stdout.splitlines()) == {
        *listed
    }
    assert ODD in listed


@pytest.mark.peer
@needs_bash
@pytest.mark.parametrize("program", ["echo broken >&2; exit 1", "exit 15", "kill -9 $$"])
def test_bash_shows_nothing_of_a_command_that_fails(tmp_path: Path, program: str) -> None:
    done = in_bash(path_with(tmp_path, program), "list", "")
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.peer
@needs_bash
def test_the_tab_key_in_a_real_bash(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", path_with(tmp_path, real(site)))
    monkeypatch.setenv("PS1", "$ ")
    monkeypatch.setenv("TERM", "dumb")
    with Shell(["bash", "--norc", "--noprofile", "-i"]) as shell:
        shell.read_until(b"$ ")
        shell.type(b'eval "$(vault completion bash)" && echo lo""aded\n')
        shell.read_until(b"loaded\r\n")
        shell.type(b"vault --db x keys expo\t")
        shell.read_until(b"keys export ")
        shell.type(b"\x15vault list --project Def\t")
        shell.read_until(b"--project Default\\ Project ")
        shell.type(b"\x15exit\n")
        shell.end()


@pytest.mark.peer
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_take_the_script_and_drop_errors(
    shell: str, tmp_path: Path, site: Site
) -> None:
    text = completing.script(shell)
    [asked] = [line for line in text.splitlines() if f"={shell}_complete" in line]
    assert "vault 2>/dev/null)" in asked
    assert "zsh_eval_context" not in text  # or an installed file completes at its first call alone
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")
    (tmp_path / "script").write_text(text)
    done = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.peer
@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh")
def test_the_tab_key_in_a_real_zsh_with_the_installed_file(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first call and at the second."""
    monkeypatch.setenv("PATH", path_with(tmp_path, real(site)))
    (tmp_path / "_vault").write_text(completing.script("zsh"))
    with Shell(["zsh", "-f", "-i"]) as shell:
        begin = f"fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -u -D; echo lo''aded"
        shell.type(begin.encode() + b"\n")
        shell.read_until(b"loaded\r\n")
        shell.type(b"vault keys expo\t")
        shell.read_until(b"keys export")
        shell.type(b"\x15vault list --project Def\t")
        shell.read_until(b"--project Default\\ Project")
        shell.type(b"\x15exit\n")
        shell.end()
