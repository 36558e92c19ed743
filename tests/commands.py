"""The command as the tests of keys and of recovery drive it, and what it must leave as it was."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import test_cli
from faults import Site
from rotation_peers import Values, fill

from outreach_vault import KeyDirectory
from outreach_vault.command import cli
from outreach_vault.operations import rotation
from outreach_vault.vault import init

QUICK = {"iterations": 1, "lanes": 1, "memory_kib": 8}


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


class Terminal(test_cli.Terminal):
    """
    That of the command's own tests; a command that ends without asking fails the test that waits
    for its question.
    """

    def read_until(self, word: bytes) -> None:
        while word not in self.seen:
            data = self._read()
            assert data, f"it ended after {self.seen!r}"
            self.seen += data


def where(site: Site, *, keyring: bool = False) -> list[str]:
    return ["--db", str(site.database), *([] if keyring else ["--key-dir", str(site.keys)])]


def run(site: Site, *arguments: str, stdin: bytes = b"", keyring: bool = False) -> Done:
    """The command in this process: what it does is the same, and it starts at once."""
    said, warned, given = io.BytesIO(), io.BytesIO(), io.TextIOWrapper(io.BytesIO(stdin))
    out, err = io.TextIOWrapper(said), io.TextIOWrapper(warned)
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "stdin", given),
    ):
        status = cli.run([*where(site, keyring=keyring), *arguments])
        out.flush()
        err.flush()
    return Done(status, said.getvalue().decode(), warned.getvalue().decode())


def process(
    site: Site, *arguments: str, stdin: bytes = b"", keyring: bool = False, **options: Any
) -> Done:
    """The real command in a process of its own."""
    done: subprocess.CompletedProcess[Any] = subprocess.run(
        [sys.executable, "-m", "outreach_vault", *where(site, keyring=keyring), *arguments],
        capture_output=True,
        timeout=60,
        **({"input": stdin} | options),
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def failed(done: Done, status: int, *words: str) -> None:
    """An error of ours: its status, nothing on standard output, no traceback."""
    assert (done.status, done.out) == (status, ""), done
    assert "vault: error: " in done.err and "a bug" not in done.err and "Traceback" not in done.err
    for word in words:
        assert word in done.err, done.err


def sql(path: Path, statement: str, *params: object) -> list[Any]:
    """What another program does: its own connection."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement, params).fetchall()


def problems(done: Done) -> list[dict[str, Any]]:
    """
    Of `doctor --json`, but for accounts: the fields of these tests (`smtp/field-1`) make none that
    could send.
    """
    found = [each for each in done.data["findings"] if each["level"] == "problem"]
    assert done.status == (16 if found else 0)
    return [each for each in found if each["kind"] not in ("mixed account", "incomplete account")]


def entries(site: Site) -> dict[str, str]:
    """Each file of the key directory."""
    return (
        {file.name: file.read_text() for file in site.keys.iterdir() if file.is_file()}
        if site.keys.exists()
        else {}
    )


def everything(site: Site) -> list[Any]:
    """All that the vault keeps: its rows and its files."""
    return [
        sql(site.database, f"SELECT * FROM {table} ORDER BY 1")
        for table in ("vault_keys", "vault_meta", "provider_credentials")
    ] + [entries(site)]


def marks(site: Site) -> dict[str, str]:
    """For each key that has one, the key that the key directory calls its successor."""
    return {
        name.split(".")[1]: text
        for name, text in entries(site).items()
        if name.endswith(".successor")
    }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Argon2id at its least: what is shown about a file does not depend on how long its passphrase is
    stretched.
    """
    monkeypatch.setattr("outreach_vault.keys.passphrase._ARGON2ID", QUICK)


Rotated = tuple[Site, Values, str, str]


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Rotated]:
    """
    A new vault, and one after a rotation, made once: a copy needs none of the waiting for the disk
    that making one does.
    """
    empty, after = (
        Site(folder / "samsara.db", folder / "keys")
        for folder in map(tmp_path_factory.mktemp, ("empty", "after"))
    )
    for site in (empty, after):
        init(site.database, key_store=KeyDirectory(site.keys))
    with after.open() as vault:
        values = fill(vault, 4)
        old = vault.keys.states.active_id()
        return empty, (after, values, old, str(rotation.rotate(vault).new_key))


@pytest.fixture
def site(templates: tuple[Site, Rotated], tmp_path: Path) -> Site:
    """A vault without values, its keys in a key directory beside it."""
    return templates[0].copy(tmp_path / "site")


@pytest.fixture
def rotated(templates: tuple[Site, Rotated], tmp_path: Path) -> Rotated:
    """A vault after a rotation: its values, and the ids of the old key and of the present one."""
    made, values, old, new = templates[1]
    return made.copy(tmp_path / "site"), dict(values), old, new
