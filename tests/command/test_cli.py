"""The command: what it prints where, what it asks, its exit statuses, and what it never shows."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import pytest
from helpers import V4
from helpers.commands import LACKS, Done, Terminal, failed, leaves, process, where
from helpers.site import COMMAND, Site, another, name_of, operators_lock, sql

from outreach_vault import KeyringLocked, KeyringTimedOut, Secret, Vault
from outreach_vault.command import cli, group, values
from outreach_vault.database import Database, locate
from outreach_vault.operations.history import limit
from outreach_vault.schema import migrator
from outreach_vault.values.history import Limits

pytestmark = pytest.mark.sweep(5)

P = "default-project"
APP_VALUE = base64.b64encode(b"v11" + bytes(range(48))).decode()  # the desktop app's own shape


Command = Callable[..., Done]


@pytest.fixture
def command(
    place: Site, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """The command in this process: what it does is the same, and it starts at once."""

    def run(*arguments: str, stdin: bytes = b"", places: Sequence[str] | None = None) -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = cli.run([*(where(place) if places is None else places), *arguments])
        out, err = capsysbinary.readouterr()
        return Done(status, out.decode(), err.decode())

    return run


# init and migrate


def test_init_makes_a_database_and_a_key_and_a_second_time_nothing(
    place: Site, command: Command
) -> None:
    done = command("init")
    assert done.status == 0
    assert (
        "applied 0001_projects" in done.out
        and "applied 0006_vault" in done.out
        and "backup" not in done.out
    )
    made = next((place.keys).iterdir()).name.split(".")[1]
    step = f"vault: next: 'vault keys export FILE': no exported file holds key {made}"
    assert done.err == f"{step} (last export: none)\n"
    name = locate(place.database)
    assert f"made key {made}" in done.out and f"{name}: ready" in done.out
    again = command("init")
    assert (again.status, again.err, again.out) == (
        0,
        done.err,
        f"{name}: was ready already\n",
    )
    assert len(list((place.keys).iterdir())) == 1


@pytest.mark.sqlite("the desktop app's own file")
def test_init_of_the_released_app_file_migrates_it_after_a_backup_that_it_names(
    place: Site, command: Command
) -> None:
    shutil.copyfile(V4, place.database)
    done = command("init")
    assert done.status == 0
    backup = next(
        line.removeprefix("backup: ")
        for line in done.out.splitlines()
        if line.startswith("backup: ")
    )
    assert Path(backup).parent == place.folder and Path(backup).stat().st_mode & 0o777 == 0o600
    with contextlib.closing(sqlite3.connect(backup)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (4,)
    assert sql(place.database, "PRAGMA user_version") == [(5,)]
    assert "applied 0005_outreach" in done.out and "0004" not in done.out


@pytest.mark.sqlite("the desktop app's own file")
def test_migrate_plan_only_says_what_would_be_done(place: Site, command: Command) -> None:
    shutil.copyfile(V4, place.database)
    before = (place.database).read_bytes()
    done = command("migrate", "--plan")
    assert done.status == 0
    assert (
        "would apply 0005_outreach" in done.out
        and "would apply 0006_vault" in done.out
        and "backup would be made first" in done.out
    )
    assert (place.database).read_bytes() == before
    assert [
        path.name for path in place.folder.iterdir() if not path.name.endswith(("-wal", "-shm"))
    ] == ["samsara.db"]
    assert command("migrate").status == 0
    for again in (("migrate", "--plan"), ("migrate",)):
        assert "nothing to do" in command(*again).out


def of_the_app(place: Site) -> None:
    """Make the tables as they are before the vault's own steps."""

    def fill(database: Database) -> None:
        for step in migrator.steps()[:5]:
            migrator.apply(database, step)

    locate(place.database).create(fill)


def test_a_plan_on_a_server_names_the_program_that_makes_a_backup(
    place: Site, command: Command
) -> None:
    of_the_app(place)
    older = command("list")
    failed(older, 14, "'vault init'")
    assert ("pg_dump" in older.err) == (place.engine is not None)
    done = command("migrate", "--plan")
    assert done.status == 0 and "would apply 0006_vault" in done.out
    assert ("pg_dump" in done.out) == (place.engine is not None)
    assert ("a backup would be made first" in done.out) == (place.engine is None)
    assert command("migrate").status == 0
    assert "nothing to do" in command("migrate", "--plan").out


def test_migrate_keep_first_keeps_the_row_that_the_app_reads(place: Site, command: Command) -> None:
    of_the_app(place)
    for name in ("first", "second"):
        sql(
            place.database,
            "INSERT INTO provider_credentials VALUES (?, NULL, 'smtp', 'user', ?, NULL, '', '')",
            name,
            APP_VALUE,
        )
    failed(command("migrate"), 14, "first, second", "--keep-first")
    failed(command("init"), 14, "first, second")
    assert command("migrate", "--keep-first").status == 0
    assert sql(place.database, "SELECT id FROM provider_credentials") == [("first",)]


# set: where a value comes from

STDIN = {
    "a line": (b"value\n", "value"),
    "a line of Windows": (b"value\r\n", "value"),
    "no line end": (b"value", "value"),
    "two line ends": (b"value\n\n", "value\n"),
    "several lines": (b"-----\none\r\ntwo\n-----\n", "-----\none\r\ntwo\n-----"),
    "a carriage return alone": (b"value\r", "value\r"),
    "spaces": (b"  value  \n", "  value  "),
    "not ASCII": ("\U0001f511é\n".encode(), "\U0001f511é"),
    "64 KiB": (b"x" * 65536, "x" * 65536),
    "64 KiB and a line end": (b"x" * 65536 + b"\r\n", "x" * 65536),
}


@pytest.mark.parametrize("what", STDIN)
@pytest.mark.usefixtures("site")
def test_set_stores_standard_input_without_one_line_end(
    command: Command, vault: Vault, what: str
) -> None:
    given, expected = STDIN[what]
    done = command("set", "smtp", "password", stdin=given)
    assert (done.status, done.out) == (0, "")
    said, *warned = done.err.removesuffix(LACKS).splitlines()
    assert said == "vault: stored smtp/password (global)"
    assert [line.startswith("vault: warning: smtp/password has ") for line in warned] == [True] * (
        expected != expected.strip()
    )
    assert vault.get("smtp", "password").reveal() == expected


@pytest.mark.parametrize(
    "given",
    [b"", b"\n", b"\r\n", b"x" * 65537, b"x" * 65537 + b"\n", b"x" * 1_000_000, b"\xff\xfe"],
)
def test_set_refuses_what_cannot_be_a_value(
    command: Command, vault: Vault, tmp_path: Path, given: bytes
) -> None:
    vault.set("smtp", "password", "before")
    (tmp_path / "value").write_bytes(given)
    for source in ([], ["--from-file", str(tmp_path / "value")]):
        done = command("set", "smtp", "password", *source, stdin=given)
        assert (
            (done.status, done.out) == (2, "")
            and done.err.startswith("vault: error: ")
            and "Traceback" not in done.err
        )
    assert vault.get("smtp", "password").reveal() == "before"


def test_set_refuses_a_closed_standard_input(site: Site) -> None:
    done = process(site, "set", "smtp", "password", preexec_fn=lambda: os.close(0))
    failed(done, 2, "standard input is closed")


def test_set_from_a_file_and_from_the_environment(
    command: Command, vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "value").write_bytes(b"of the file\n")
    monkeypatch.setenv("SMTP_PASSWORD", "of the environment")
    assert (
        command(
            "set", "smtp", "password", "--from-file", str(tmp_path / "value"), "--label", "main"
        ).status
        == 0
    )
    assert (vault.get("smtp", "password").reveal(), vault.get("smtp", "password").label) == (
        "of the file",
        "main",
    )
    assert (
        command("set", "smtp", "password", "--project", P, "--from-env", "SMTP_PASSWORD").status
        == 0
    )
    assert vault.get("smtp", "password", P).reveal() == "of the environment"
    failed(
        command(
            "set",
            "smtp",
            "user",
            "--from-file",
            str(tmp_path / "value"),
            "--from-env",
            "SMTP_PASSWORD",
        ),
        2,
    )
    failed(command("set", "smtp", "user", "--from-env", "NOT_SET"), 2, "no environment variable")
    failed(command("set", "smtp", "user", "--from-file", str(tmp_path / "nothing")), 2)
    assert not vault.has("smtp", "user")


def test_set_asks_on_a_terminal_without_showing_what_is_typed(site: Site, vault: Vault) -> None:
    value = secrets.token_hex(8)
    with Terminal(site, "set", "smtp", "password") as terminal:
        terminal.read_until(b"smtp/password: ")
        terminal.type(f" {value} é\n".encode())
        assert terminal.end() == 0
        assert value.encode() not in terminal.seen and b"stored smtp/password" in terminal.seen
        assert terminal.process.stdout and terminal.process.stdout.read() == b""
    assert vault.get("smtp", "password").reveal() == f" {value} é"


@pytest.mark.parametrize("way", ["Ctrl-C", "Ctrl-D"])
def test_leaving_the_prompt_stores_nothing_and_exits_3(site: Site, vault: Vault, way: str) -> None:
    with Terminal(site, "set", "smtp", "password") as terminal:
        terminal.read_until(b"smtp/password: ")
        if way == "Ctrl-D":
            terminal.type(b"\x04")
        assert (terminal.end() if way == "Ctrl-D" else terminal.interrupt()) == 3
        assert b"vault: error: aborted" in terminal.seen and b"Traceback" not in terminal.seen
    assert vault.list() == []


def test_a_value_as_an_argument_is_a_usage_error_and_is_not_repeated(
    command: Command, vault: Vault
) -> None:
    value = secrets.token_hex(8)
    for arguments in (
        ("set", "smtp", "password", value),
        ("set", "smtp", "password", "--value", value),
    ):
        done = command(*arguments)
        failed(done, 2)
        assert value not in done.err
    assert vault.list() == []


@pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="this system does not show command lines there"
)
def test_no_value_is_in_the_command_line_or_in_the_environment_of_the_command(
    site: Site, vault: Vault
) -> None:
    value = secrets.token_hex(8)
    vault.set("smtp", "host", value)
    running = subprocess.Popen(
        [*COMMAND, *where(site), "set", "smtp", "password"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdin
    running.stdin.write(value.encode())
    running.stdin.flush()
    while b"outreach_vault" not in (
        seen := Path(f"/proc/{running.pid}/cmdline").read_bytes()
    ):  # empty until it has begun
        assert running.poll() is None
    seen += Path(f"/proc/{running.pid}/environ").read_bytes()
    assert (
        running.communicate()[1].startswith(b"vault: stored smtp/password (global)\n")
        and running.returncode == 0
    )
    assert value.encode() not in seen
    assert vault.get("smtp", "password").reveal() == value


# get, which, list, delete


def test_get_prints_the_value_alone(command: Command, vault: Vault) -> None:
    vault.set("smtp", "password", " of all é\n")
    vault.set("smtp", "user", "of the project", P)
    assert command("get", "smtp", "password", "--project", P) == Done(0, " of all é\n\n", "")
    assert command("get", "smtp", "user", "--project", P) == Done(0, "of the project\n", "")
    failed(
        command("get", "smtp", "password", "--project", P, "--no-fallback"), 10, "smtp/password", P
    )
    failed(command("get", "smtp", "user"), 10)


def test_get_as_json_has_exactly_the_published_names(command: Command, vault: Vault) -> None:
    row_id = vault.set("smtp", "password", "é\n\U0001f511", label="main")
    found = command("get", "smtp", "password", "--project", P, "--json").data
    assert set(found) == {
        "provider",
        "credential_type",
        "project_id",
        "scope",
        "value",
        "id",
        "label",
        "updated_at",
    }
    assert (found["value"], found["scope"], found["project_id"], found["id"]) == (
        "é\n\U0001f511",
        "global",
        None,
        row_id,
    )
    assert (found["label"], found["updated_at"]) == (
        "main",
        vault.get("smtp", "password").updated_at,
    )


def test_list_as_json_has_exactly_the_published_names(
    command: Command, vault: Vault, site: Site
) -> None:
    vault.set("smtp", "password", "v", P, label="main")
    vault.set("twilio", "auth_token", "v")
    sql(
        site.database,
        "UPDATE provider_credentials SET encrypted_value = ? WHERE provider = 'twilio'",
        APP_VALUE,
    )
    found = command("list", "--json").data
    names = {
        "id",
        "project_id",
        "provider",
        "credential_type",
        "label",
        "state",
        "key_id",
        "created_at",
        "updated_at",
    }
    assert [set(row) for row in found] == [names, names]
    assert [(row["provider"], row["project_id"], row["state"]) for row in found] == [
        ("twilio", None, "foreign"),
        ("smtp", P, "ok"),
    ]
    assert [row["provider"] for row in command("list", "--json", "--project", P).data] == ["smtp"]
    assert [row["provider"] for row in command("list", "--json", "--global").data] == ["twilio"]
    failed(command("list", "--global", "--project", P), 2)
    failed(command("list", "--project", "nobody"), 10, "no project")


def test_list_goes_on_when_the_keys_cannot_be_had(
    command: Command, vault: Vault, site: Site
) -> None:
    vault.set("smtp", "password", "v")
    shutil.rmtree(site.keys)
    done = command("list", "--json")
    assert done.status == 0 and [row["state"] for row in done.data] == ["key missing"]
    assert "vault: warning: " in done.err and "no such folder" in done.err


def test_which_shows_where_each_field_comes_from(command: Command, vault: Vault) -> None:
    vault.set("smtp", "user", "v", P)
    vault.set("smtp", "user", "v")
    vault.set("smtp", "host", "v")
    found = command("which", "smtp", "--project", P, "--json").data
    assert [(row["credential_type"], row["scope"]) for row in found] == [
        ("host", "global"),
        ("user", "project"),
    ]
    assert [row["scope"] for row in command("which", "smtp", "user", "--json").data] == ["global"]
    failed(command("which", "smtp", "password"), 10)
    failed(command("which", "nothing"), 10)


def test_masks_are_as_wide_for_every_value_and_no_listing_shows_one(
    command: Command, vault: Vault, site: Site
) -> None:
    """A mask as long as its value, or a state that differs, would tell something about it."""
    key = next((site.keys).iterdir()).read_text()
    listings = (
        ("which", "smtp"), ("which", "smtp", "--json"), ("list",), ("list", "--json"),
        ("status",), ("status", "--json"),
        ("keys", "list"), ("keys", "list", "--json"), ("rotate", "--dry-run"),
    )  # fmt: skip
    shown = []
    limit(vault, Limits(values=0))
    for value in ("!", "?" * 5000):
        row_id = vault.set("smtp", "password", value)
        sql(
            site.database,
            "UPDATE provider_credentials SET created_at = '2026-01-01T00:00:00.000Z', updated_at "
            "= '2026-01-01T00:00:00.000Z'",
        )
        done = [command(*listing) for listing in listings]
        assert [answer.status for answer in done] == [0] * len(listings)
        shown.append([answer.out + answer.err for answer in done])
        token = vault.database.fetch(
            "SELECT encrypted_value FROM provider_credentials WHERE id = ?", (row_id,)
        )[0][0]
        for text in shown[-1]:
            assert (
                value not in text and key not in text and token not in text and "gAAAA" not in text
            )
    assert shown[0] == shown[1]
    assert "********" in shown[0][0]


def test_delete_on_a_terminal_asks_first(site: Site, vault: Vault) -> None:
    vault.set("smtp", "password", "v")
    for answer, status, left in ((b"n\n", 3, 1), (b"\n", 3, 1), (None, 3, 1), (b"y\n", 0, 0)):
        with Terminal(site, "delete", "smtp", "password") as terminal:
            terminal.read_until(b"delete smtp/password (global)? [y/N]: ")
            if answer:
                terminal.type(answer)
            assert (terminal.end() if answer else terminal.interrupt()) == status
        assert len(vault.list()) == left


def test_delete_without_a_terminal_refuses_unless_told_not_to_ask(
    command: Command, vault: Vault
) -> None:
    vault.set("smtp", "password", "v")
    vault.set("smtp", "password", "v", P)
    done = command("delete", "smtp", "password", stdin=b"y\n")
    failed(
        done, 3, "vault: error: aborted\nvault: hint: there is no terminal to ask at; give --yes"
    )
    assert len(vault.list()) == 2
    done = command("delete", "smtp", "password", "--yes")
    assert (done.status, done.out, done.err) == (0, "", "vault: deleted smtp/password (global)\n")
    assert [entry.project_id for entry in vault.list()] == [P]
    failed(command("delete", "smtp", "password", "--yes"), 10)


# rotate


def test_rotate_as_json_has_exactly_the_published_names(
    command: Command, vault: Vault, site: Site
) -> None:
    vault.set("smtp", "password", "v")
    vault.set("twilio", "auth_token", "v")
    sql(
        site.database,
        "UPDATE provider_credentials SET encrypted_value = ? WHERE provider = 'twilio'",
        APP_VALUE,
    )
    old = vault.keys.states.active_id()
    done = command("rotate", "--json")
    assert done.status == 0
    expected = {
        "old_key": old,
        "new_key": vault.keys.states.active_id(),
        "rotated": 1,
        "previous": 0,
        "already_current": 0,
    }
    expected |= {
        "changed_meanwhile": 0,
        "foreign": 1,
        "unreadable": 0,
        "destroyed_key": None,
        "unreadable_rows": [],
    }
    assert done.data == expected | {
        "complete": True,
        "resumed": False,
        "log_truncated": True if site.engine is None else None,
        "scrubbed": site.engine is None,
        "scrub_problem": None,
    }


def test_rotate_of_an_empty_vault_says_that_there_was_nothing(site: Site, command: Command) -> None:
    done = command("rotate")
    assert done.status == 0 and "no values" in done.out


def test_rotate_draws_on_a_terminal_only(site: Site, vault: Vault) -> None:
    vault.set("smtp", "password", "v")
    with Terminal(site, "rotate", "--json") as terminal:
        assert terminal.process.stdout
        out = terminal.process.stdout.read()
        assert terminal.end() == 0
    assert json.loads(out)["rotated"] == 1
    assert b"rotating" in terminal.seen and b"100%" in terminal.seen
    piped = process(site, "rotate", "--json")
    assert piped.status == 0 and piped.data["rotated"] == 1
    said = [line.split(":")[1] for line in piped.err.splitlines()]
    assert said[-1:] == [" next"] and len(said) == (1 if site.engine is None else 2)


# Exit statuses


def damaged(site: Path, vault: Vault) -> list[str]:
    vault.set("smtp", "password", "v")
    sql(
        site.database,
        "UPDATE provider_credentials SET encrypted_value = substr(encrypted_value, 1, 60)",
    )
    return ["get", "smtp", "password"]


def foreign(site: Site, vault: Vault) -> list[str]:
    vault.set("smtp", "password", "v")
    sql(site.database, "UPDATE provider_credentials SET encrypted_value = ?", APP_VALUE)
    return ["get", "smtp", "password"]


def key_missing(site: Site, vault: Vault) -> list[str]:
    vault.set("smtp", "password", "v")
    next((site.keys).iterdir()).unlink()
    return ["get", "smtp", "password"]


def wrong_key(site: Site, vault: Vault) -> list[str]:
    vault.set("smtp", "password", "v")
    next((site.keys).iterdir()).write_text("not a key")
    return ["get", "smtp", "password"]


def no_key_store(site: Site, vault: Vault) -> list[str]:
    shutil.rmtree(site.keys)
    return ["set", "smtp", "password", "--from-env", "PATH"]


def no_database(site: Site, vault: Vault) -> list[str]:
    vault.close()
    if site.engine:
        site.engine.drop(name_of(site.database))
    else:
        site.database.unlink()
    return ["list"]


def schema_four(site: Site, vault: Vault) -> list[str]:
    vault.close()
    shutil.copyfile(V4, site.database)
    return ["status"]


def not_a_database(site: Site, vault: Vault) -> list[str]:
    vault.close()
    (site.database).write_text("notes\n" * 999)
    return ["init"]


STATUSES: dict[str, tuple[int, Callable[[Path, Vault], list[str]]]] = {
    "an unknown command": (2, lambda site, vault: ["nonsense"]),
    "a missing argument": (2, lambda site, vault: ["get", "smtp"]),
    "an unknown option": (2, lambda site, vault: ["list", "--nonsense"]),
    "no such credential": (10, lambda site, vault: ["get", "smtp", "password"]),
    "no such project": (
        10,
        lambda site, vault: ["get", "smtp", "password", "--project", "nobody"],
    ),
    "a damaged value": (11, damaged),
    "a foreign value": (11, foreign),
    "a missing key": (12, key_missing),
    "a wrong key": (12, wrong_key),
    "no key store": (12, no_key_store),
    "no database": (14, no_database),
    "an older schema": (14, schema_four),
    "not a database": (14, not_a_database),
}


OF_A_FILE = pytest.mark.sqlite("what is in a file")


@pytest.mark.parametrize(
    "cause",
    [
        pytest.param(cause, marks=OF_A_FILE) if cause in ("an older schema", "not a database")
        else cause
        for cause in STATUSES
    ],
)  # fmt: skip
def test_each_cause_has_its_published_status(
    site: Site, vault: Vault, command: Command, cause: str
) -> None:
    status, arrange = STATUSES[cause]
    failed(command(*arrange(site, vault)), status)


@pytest.mark.parametrize("error", [KeyringLocked, KeyringTimedOut])
def test_a_locked_or_silent_keyring_exits_13(
    vault: Vault, command: Command, monkeypatch: pytest.MonkeyPatch, error: type[KeyringLocked]
) -> None:
    class Unwilling:
        name = "unwilling"

        def read(self, vault_id: str, key_id: str) -> Secret:
            raise error("the keyring says no", hint="unlock it")

    vault.set("smtp", "password", "v")
    monkeypatch.setattr(group, "choose", lambda *_, **__: Unwilling())
    failed(command("get", "smtp", "password"), 13, "the keyring says no", "unlock it")


def test_a_running_operation_exits_15(site: Site, command: Command) -> None:
    with operators_lock(site.database):
        failed(command("rotate"), 15)
    assert command("rotate").status == 0


def test_a_locked_database_exits_15(
    site: Site, vault: Vault, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "sqlite" if site.engine is None else "postgres"
    monkeypatch.setattr(f"outreach_vault.database.{module}.connections.BUSY_SECONDS", 0.02)
    with another(site.database) as other:
        other.begin()
        if site.engine:
            other.execute("LOCK TABLE provider_credentials")
        failed(command("set", "smtp", "password", stdin=b"v"), 15, "lock")
        other.execute("ROLLBACK")
    assert vault.list() == []


def test_a_rotation_that_leaves_a_value_behind_names_it_and_exits_16(
    site: Site, vault: Vault, command: Command
) -> None:
    damaged(site, vault)
    row_id = vault.list()[0].id
    vault.set("smtp", "user", "v")
    done = command("rotate", "--json")
    assert done.status == 16 and done.data["unreadable"] == 1 and done.data["rotated"] == 1
    assert "vault: warning: " in done.err and row_id in done.err
    assert vault.get("smtp", "user").reveal() == "v"


@pytest.mark.parametrize("error", [RuntimeError, ValueError, KeyError, AssertionError, OSError])
def test_a_bug_exits_1_and_says_where_and_not_what(
    vault: Vault, command: Command, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    value = secrets.token_hex(8)

    def buggy(*_: object, **__: object) -> None:
        raise error(value)

    monkeypatch.setattr(Vault, "get", buggy)
    done = command("get", "smtp", "password")
    failed(done, 1, error.__name__, "test_cli.py:")
    assert value not in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", "smtp", ""], ["get", "", "user"], ["get", "smtp", "user", "--project", ""],
        ["which", "smtp", "--project", ""],
        ["delete", "smtp", "user", "--project", "", "--yes"],
        ["list", "--project", ""], ["set", "smtp", "user\x1b", "--from-env", "PATH"],
    ],
)  # fmt: skip
def test_empty_names_and_control_characters_are_usage_errors(
    vault: Vault, command: Command, arguments: list[str]
) -> None:
    vault.set("smtp", "user", "v")
    done = command(*arguments)
    assert (
        (done.status, done.out) == (2, "")
        and done.err.startswith("vault: error: ")
        and "\x1b" not in done.err
    )


def test_an_interrupt_exits_3(
    vault: Vault, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Vault, "list", interrupted)
    done = command("list")
    failed(done, 3, "vault: error: aborted\nvault: hint: ", "can be run again")


# What may not reach a terminal

STEERING = "\x1b[31mred\x07\x9b2J\u202e\r\n\x00"


@pytest.mark.parametrize(
    "column", ["label", "provider", "credential_type", "id", "updated_at", "key_id"]
)
def test_control_characters_of_the_database_reach_no_terminal(
    site: Site, vault: Vault, command: Command, column: str
) -> None:
    vault.set("smtp", "user", "v", label="main")
    steering = STEERING if site.engine is None else STEERING.replace("\x00", "")
    sql(site.database, f"UPDATE provider_credentials SET {column} = ?", steering)
    provider, field = (
        steering if column == name else other
        for name, other in (("provider", "smtp"), ("credential_type", "user"))
    )
    commands = [
        ("list",),
        ("list", "--json"),
        ("status",),
        ("rotate", "--dry-run"),
        ("which", provider),
        ("which", provider, "--json"),
    ]
    commands += [
        ("get", provider, field),
        ("get", provider, field, "--json"),
        ("delete", provider, field),
    ]
    for arguments in commands:
        done = command(*arguments)
        assert done.status != 1, done.err
        shown = (done.out + done.err).replace("\n", "")
        assert [character for character in shown if not character.isprintable()] == [], (
            arguments,
            done,
        )
    assert command("list", "--json").data[0][column] == steering


_LOOSE = pytest.mark.sqlite("columns that take what is not their type, and keys that are NULL")
GARBLED = [
    *(
        pytest.param(change, marks=_LOOSE)
        for change in (
            "id = NULL",
            "label = x'00ff'",
            "updated_at = x'00ff'",
            "provider = x'00ff'",
            "key_id = x'00ff'",
        )
    ),
    "updated_at = 'yesterday'",
    "key_id = ''",
]


@pytest.mark.parametrize("change", GARBLED)
def test_a_row_that_another_tool_garbled_breaks_no_listing(
    site: Site, vault: Vault, command: Command, change: str
) -> None:
    vault.set("twilio", "auth_token", "v")
    vault.set("smtp", "user", "v")
    sql(site.database, f"UPDATE provider_credentials SET {change} WHERE provider = 'twilio'")
    for words in (
        "list",
        "list --json",
        "status",
        "which twilio",
        "which twilio --json",
        "rotate --dry-run",
    ):
        arguments = words.split()
        done = command(*arguments)
        assert done.status in ((0, 10) if arguments[0] == "which" else (0, 16)), (arguments, done)
    assert len(command("list", "--json").data) == 2
    assert command("get", "smtp", "user").out == "v\n"


def test_a_reader_that_goes_away_gets_no_traceback(site: Site, vault: Vault) -> None:
    for number in range(40):
        vault.set("smtp", f"field {number}", "v")
    for arguments in (("list",), ("get", "smtp", "field 1"), ("--help",)):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [*COMMAND, *where(site), *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(writing)
        assert done.stderr == ""
        assert done.returncode == group.UNSAID


# Where keys come from


@pytest.mark.parametrize("way", ["variable", "option"])
def test_a_key_directory_named_by_empty_text_is_refused(
    site: Site, command: Command, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    where = ["--db", str(site.database)]
    if way == "variable":
        monkeypatch.setenv("OUTREACH_VAULT_KEY_DIR", "")
    else:
        where += ["--key-dir", ""]
    for arguments in (["list"], ["init"], ["status"], ["rotate"]):
        done = command(*arguments, places=where)
        said = "the key directory (--key-dir, OUTREACH_VAULT_KEY_DIR): the path is empty"
        assert (done.status, done.out) == (2, "") and said in done.err


def test_a_database_named_by_empty_text_is_refused(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for done in (command("list", places=["--db", ""]), command("migrate", places=["--db", ""])):
        assert (done.status, done.out) == (
            2,
            "",
        ) and "the database (--db, OUTREACH_VAULT_DB): the path is empty" in done.err
    monkeypatch.setenv("OUTREACH_VAULT_DB", "")
    assert command("init", places=[]).status == 2


def bare(site: Path) -> dict[str, str]:
    """The environment of a machine without a keyring."""
    home = site.folder / "home"
    home.mkdir(exist_ok=True)
    kept = {
        name: os.environ[name]
        for name in ("PATH", "LANG", "LC_ALL", "PYTHONPATH")
        if name in os.environ
    }
    return kept | {
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path={home}/none",
    }


def test_no_key_directory_is_used_or_made_unless_it_is_named(site: Site, vault: Vault) -> None:
    vault.set("smtp", "user", "v")
    database, environment = site.database, bare(site)
    before = sorted(site.folder.rglob("*"))
    for arguments in (("get", "smtp", "user"), ("init",)):
        done = subprocess.run(
            [*COMMAND, "--db", database, *arguments],
            capture_output=True,
            env=environment,
            cwd=site.folder,
        )
        failed(Done(done.returncode, done.stdout.decode(), done.stderr.decode()), 12, "--key-dir")
    assert sorted(site.folder.rglob("*")) == before
    named = environment | {
        "OUTREACH_VAULT_KEY_DIR": str(site.keys),
        "OUTREACH_VAULT_DB": str(database),
    }
    done = subprocess.run(
        [*COMMAND, "get", "smtp", "user"], capture_output=True, env=named, cwd=site.folder
    )
    assert (done.returncode, done.stdout) == (0, b"v\n")


def test_status_shows_which_key_store_is_in_use(site: Site, vault: Vault, command: Command) -> None:
    vault.set("smtp", "user", "v")
    found = command("status", "--json").data
    assert found["key_store"] == f"key directory {site.keys}" and found["key_store_error"] is None
    assert (found["schema"], found["values"]) == (5, {"ok": 1, "foreign": 0, "key_missing": 0})
    assert [key["state"] for key in found["keys"]] == ["active"] and found[
        "active_key"
    ] == vault.keys.states.active_id()
    assert str(site.keys) in command("status").out
    shutil.rmtree(site.keys)
    broken = command("status", "--json")
    assert (
        broken.status == 0
        and broken.data["key_store_error"]
        and broken.data["values"]["key_missing"] == 1
    )


# A secret in the wrong place

WRONG_PLACE: dict[str, tuple[str, ...]] = {
    "a field and a value": ("set", "smtp", "password=SECRET"),
    "the field": ("set", "smtp", "SECRET"),
    "the field, in base64": ("set", "other", "SECRET/+="),
    "the provider": ("set", "SECRET"),
    "the provider, with =": ("set", "password=SECRET", "smtp"),
    "an option with =": ("set", "smtp", "password", "--password=SECRET"),
    "an option": ("set", "smtp", "password", "--password", "SECRET"),
    "a short option": ("set", "smtp", "password", "-pSECRET"),
    "an option in one": ("set", "smtp", "password", "--passwordSECRET"),
    "a flag with a value": ("set", "smtp", "password", "--no-check=SECRET"),
    "the variable": ("set", "smtp", "password", "--from-env", "SECRET"),
    "the file": ("set", "smtp", "password", "--from-file", "SECRET"),
    "the file with a NUL": ("set", "smtp", "password", "--from-file", "SECRET\0"),
    "the passphrase's file": ("keys", "export", "EXPORT", "--passphrase-file", "SECRET"),
    "the passphrase's file of import": ("keys", "import", "EXPORT", "--passphrase-file", "SECRET"),
    "the command": ("SECRET",),
    "the command of keys": ("keys", "SECRET"),
    "the provider to show": ("providers", "SECRET"),
    "the option to show": ("providers", "--SECRET"),
    "a variable of run": ("run", "--only", "X=SECRET", "--", "true"),
    "an assignment for run": ("run", "X=SECRET", "true"),
    "an option of run": ("run", "--passwordSECRET", "true"),
    "a provider of run": ("run", "--provider", "SECRET", "--", "true"),
    "a name of a variable of run": ("run", "--only", "SECRET", "--", "true"),
    "the program": ("run", "--", "SECRET"),
    "the program's path": ("run", "--", "/usr/bin/SECRET"),
    "a key to destroy": ("keys", "destroy", "SECRET", "--yes"),
    "a key to give up": ("init", "--abandon", "SECRET", "--yes"),
    **{
        f"the project of {words[0]}": (words[0], "--project", "SECRET", *words[1:])
        for words in (
            ("get", "smtp", "password"),
            ("which", "smtp"),
            ("list",),
            ("check", "smtp"),
            ("run", "true"),
        )
    },
    "the project to store for": ("set", "smtp", "password", "--project", "SECRET"),
    "the project of an account": (
        "set",
        "smtp",
        "host",
        "--project",
        "SECRET",
        "--from-file",
        "/dev/null",
    ),
    "the project to delete from": ("delete", "smtp", "password", "--yes", "--project", "SECRET"),
    "a label": ("set", "smtp", "password", "--project", "no-such", "--label", "SECRET"),
    "get": ("get", "smtp", "password=SECRET"),
    "get, the field": ("get", "smtp", "SECRET"),
    "get, the provider": ("get", "SECRET", "password"),
    "which": ("which", "smtp", "password=SECRET"),
    "which, the provider": ("which", "SECRET"),
    "delete": ("delete", "smtp", "password=SECRET", "--yes"),
    "check": ("check", "smtp", "password=SECRET"),
    "check, the provider": ("check", "password=SECRET"),
}


# Around what is looked for: as it is, as base64, a password and a passphrase look, as a file's line
# is, and too long for a name.
KINDS = ("{}", "{}/+==", "P@{}-9!", "correct horse {} staple", "{}\n", "{}" * 300)


@pytest.mark.parametrize("mistake", WRONG_PLACE)
def test_a_secret_in_the_wrong_place_is_neither_stored_nor_repeated(
    site: Site, vault: Vault, command: Command, mistake: str
) -> None:
    secret = secrets.token_hex(8)
    for kind, project in itertools.product(KINDS, ([], ["--project", P])):
        typed = [
            word.replace("EXPORT", str(site.folder / "export")) for word in WRONG_PLACE[mistake]
        ]
        arguments = [word.replace("SECRET", kind.format(*[secret] * 300)) for word in typed]
        takes = (
            arguments[0] in ("set", "get", "which", "delete", "check")
            and "--project" not in arguments
        )
        done = command(*arguments, *(project if takes else ()), stdin=b"given")
        assert (
            done.status in (2, 10, 12, 126, 127) and done.out == "" and "vault: error: " in done.err
        )
        assert secret not in done.err and "a bug" not in done.err, (kind, done.err)
    for file in site.folder.rglob("*"):
        assert file.is_dir() or secret.encode() not in file.read_bytes()
    assert vault.list() == []


@pytest.mark.parametrize(
    ("arguments", "status", "typed", "repeated"),
    [
        ("list --project", 10, "ec1a4c1e-0b1c-4e39-9b5c-2d6f1a7b8c90", True),
        ("list --project", 10, "hunter", False),
        ("list --project", 10, "20260206", False),
        ("keys destroy --yes", 12, "ec1a4c1e-0b1c-4e39-9b5c-2d6f1a7b8c90", True),
        ("init --abandon", 12, "hunter", False),
        ("run --", 127, "no-such_tool-3.11", True),
        ("run --", 127, "/usr/local/bin/no.such", True),
        ("run --", 127, "Tr0ub4dor", False),
        ("run --", 127, "correcthorsebatterystaple", False),
    ],
)
@pytest.mark.usefixtures("vault")
def test_a_name_that_is_not_there_is_repeated_where_it_looks_like_what_belongs_there(
    command: Command, arguments: str, status: int, typed: str, repeated: bool
) -> None:
    done = command(*arguments.split(), typed)
    failed(done, status)
    assert (typed in done.err) == repeated, done.err


def test_names_near_to_what_was_typed_are_suggested(command: Command, vault: Vault) -> None:
    failed(command("lst"), 2, "did you mean list?")
    failed(command("list", "--jsn"), 2, "did you mean --json?")
    failed(command("run", "--provder", "smtp", "--", "true"), 2, "--provider")
    failed(
        command("set", "smtp", "pasword", stdin=b"v"),
        2,
        "did you mean password?",
        "host, port, user, password, from_email",
        "--new",
    )


def test_a_field_that_the_provider_does_not_have_is_stored_where_that_is_said(
    command: Command, vault: Vault
) -> None:
    assert command("set", "smtp", "reply-to.2", "--new", stdin=b"v").status == 0
    assert command("get", "smtp", "reply-to.2").out == "v\n"


def test_odd_names_that_are_stored_are_reached(command: Command, vault: Vault) -> None:
    for provider, field in (("smtp", "an odd=name"), ("odd/provider", "a b")):
        vault.set(provider, field, "v")
        failed(command("set", provider, field, "--new", stdin=b"w"), 2)
        assert command("which", provider, field).status == 0
        assert command("get", provider, field).out == "v\n"
        assert command("delete", provider, field, "--yes").status == 0


# The command itself


@pytest.mark.parametrize("arguments", [(), ("keys",), ("config",)])
def test_without_a_command_the_whole_help_is_shown_and_the_status_is_2(
    command: Command, arguments: tuple[str, ...]
) -> None:
    done = command(*arguments, places=[])
    assert (done.status, done.out) == (2, "") and "\ufffd" not in done.err
    assert (
        done.err == command(*arguments, "--help", places=[]).out and len(done.err.splitlines()) > 8
    )


@pytest.mark.parametrize("option", ["--db", "--key-dir", "--keys"])
@pytest.mark.parametrize("words", list(leaves(group.cli)))
def test_where_the_vault_is_may_be_said_after_each_command_but_not_twice_differently(
    command: Command, words: str, option: str
) -> None:
    done = command(*words.split(), option, "there", places=[option, "here"])
    failed(done, 2, f"{option} is given twice, and not the same")
    help_text = command(*words.split(), "--help", places=[]).out
    assert option not in help_text, "it is told once, in the group's help"


def test_where_the_vault_is_is_taken_before_a_command_between_and_after_it(
    site: Site, command: Command
) -> None:
    db, keys = ("--db", str(site.database)), ("--key-dir", str(site.keys))
    listed = command("keys", "list", places=[*db, *keys])
    assert listed.status == 0
    for words in (
        ("keys", "list", *db, *keys), ("keys", *db, "list", *keys), (*db, "keys", *keys, "list"),
        (*db, "keys", *db, "list", *db, *keys),
    ):  # fmt: skip
        assert command(*words, places=[]) == listed
    failed(command("--db", "a", "--db", "b", "list", places=[]), 2, "--db is given twice")


def test_what_follows_the_program_of_run_belongs_to_the_program(site: Site) -> None:
    db, keys = ("--db", str(site.database)), ("--key-dir", str(site.keys))
    for words in (("printf", "%s "), ("--", "printf", "%s ")):
        done = subprocess.run(
            [*COMMAND, "run", *db, *keys, *words, "--db", "other", "--keys", "none:"],
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.stderr) == ("--db other --keys none: ", "")


@pytest.mark.parametrize("words", ["bash_source", "bash_complete"])
def test_shell_completion_exits_0(tmp_path: Path, words: str) -> None:
    asked = {"_VAULT_COMPLETE": words, "COMP_WORDS": "vault se", "COMP_CWORD": "1"}
    done = subprocess.run(COMMAND, env=os.environ | asked, capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"") and (
        b"set\n" in done.stdout or b"complete -" in done.stdout
    )
    done = subprocess.run(
        COMMAND,
        env=os.environ | asked | {"_VAULT_COMPLETE": "no_such"},
        capture_output=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    "variables", [{}, {"COMP_WORDS": "vault se"}, {"COMP_WORDS": "vault se", "COMP_CWORD": "x"}]
)
def test_shell_completion_without_what_a_shell_sets_is_one_clear_error(
    shell: str,
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, text in ({"_VAULT_COMPLETE": f"{shell}_complete"} | variables).items():
        monkeypatch.setenv(name, text)
    status, err = cli.run([]), capsys.readouterr().err
    # Fish's word need be no number.
    assert (status == 2 and "shell completion" in err) or (status, err) == (0, ""), err


def test_both_names_start_the_same_command() -> None:
    found = {
        entry.name: entry.value
        for entry in entry_points(group="console_scripts")
        if entry.value.startswith("outreach_vault")
    }
    assert found == {
        "vault": "outreach_vault.__main__:main",
        "outreach-vault": "outreach_vault.__main__:main",
    }
    for name in found:
        script = Path(sys.executable).with_name(name)
        assert subprocess.run(
            [script, "--version"], capture_output=True, text=True, check=True
        ).stdout.startswith("vault, version ")


def test_help_lists_every_exit_status(command: Command) -> None:
    text = " ".join(command("--help", places=[]).out.split())
    table = {
        0: "ok", 1: "a bug", 2: "usage", 3: "aborted", 10: "not found",
        11: "damaged or foreign value", 12: "key or keyring unavailable",
        13: "keyring locked or timed out", 14: "schema", 15: "busy",
        16: "check failed or rotation incomplete", 17: "provider unreachable",
        18: "done, but the output could not be written",
        126: "'run' cannot start the command", 127: "'run' cannot find the command",
    }  # fmt: skip
    for number, meaning in table.items():
        assert f" {number} {meaning}" in text
    assert {*group.STATUSES.values(), group.INCOMPLETE, group.UNREACHABLE, group.UNSAID} <= set(
        table
    )


def test_every_error_of_the_family_has_a_status() -> None:
    from outreach_vault import errors

    expected = {
        "UnusablePath": 2,
        "NotFound": 10, "CredentialNotFound": 10, "ProjectNotFound": 10, "UnreadableValue": 11,
        "DamagedValue": 11, "ForeignValue": 11,
        "KeyUnavailable": 12, "KeyMissing": 12, "WrongKey": 12, "KeyExists": 12,
        "KeyStoreUnavailable": 12, "KeyringRefused": 12,
        "KeySuperseded": 12, "BadKeyFile": 12, "KeyInUse": 16,
        "IncompleteAccount": 10, "UnusableValue": 11, "MixedAccount": 16,
        "KeyringLocked": 13, "KeyringTimedOut": 13, "SchemaError": 14, "DatabaseNotFound": 14,
        "NotADatabase": 14, "SchemaOutdated": 14,
        "SchemaMismatch": 14, "DuplicateCredentials": 14, "VaultError": 14, "StorageError": 15,
        "DatabaseBusy": 15, "OperationRunning": 15,
        "DatabaseFull": 15, "DatabaseReadOnly": 15, "DatabaseUnreachable": 15,
        "DatabaseRefused": 15, "OutcomeUnknown": 15, "SharedKeys": 16, "CannotStart": 126,
        "KeyNotAcknowledged": 16, "HostNotFound": 10,
        "LoginFailed": 16, "TokenUnavailable": 16, "NeedsLogin": 16, "ClientRefused": 16,
        "NoTokenGiven": 16, "ProviderUnreachable": 17, "LibraryMissing": 2,
    }  # fmt: skip
    family = {
        name: cls
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, errors.VaultError)
    }
    assert {
        name: next(group.STATUSES[c] for c in cls.__mro__ if c in group.STATUSES)
        for name, cls in family.items()
    } == expected


def test_the_real_command_works_from_end_to_end(place: Site) -> None:
    assert process(place, "init").status == 0
    assert process(place, "set", "smtp", "password", input=b"hunter\r\n").status == 0
    assert process(place, "get", "smtp", "password") == Done(0, "hunter\n", "")
    failed(process(place, "get", "smtp", "user"), 10)
    failed(process(place, "nonsense"), 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "\udcff", "user"),
        ("get", "smtp", "\udcff", "--project", "default-project"),
        ("which", "smtp", "\udcff"),
        ("list", "--project", "\udcff"),
        ("delete", "smtp", "user", "--project", "\udcff"),
        ("set", "smtp", "user", "--label", "\udcff", "--from-env", "HOME"),
    ],
)
@pytest.mark.usefixtures("vault")
def test_bytes_that_are_no_text_are_a_usage_error_and_not_a_bug(
    command: Command, arguments: tuple[str, ...]
) -> None:
    done = command(*arguments)  # as Python gives a byte that the locale cannot read
    assert (done.status, done.out) == (2, ""), done.err
    assert done.err.startswith("vault: error: ")


REFUSED: dict[str, tuple[str, ...]] = {
    "a name": ("get", "smtp", "a\tb"),
    "an empty value": ("set", "smtp", "password", "--from-env", "EMPTY"),
    "a value that is too long": ("set", "smtp", "password", "--from-env", "LONG"),
    "a rule": ("set", "smtp", "port", "--from-env", "LINE"),
    "a label": ("set", "smtp", "user", "--label", "\udcff", "--from-env", "LINE"),
    "a variable that nothing has": ("run", "--only", "ACME_NOTHING", "--", "true"),
    "a value that no variable can hold": ("run", "--only", "ACME_NUL", "--", "true"),
    "a provider that cannot be tried": ("check", "acme"),
    "a time limit": ("list",),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_vault_refuses_is_a_usage_error(site: Site, vault: Vault, what: str) -> None:
    vault.set("acme", "nul", "a\0b")
    variables = {"EMPTY": "", "LONG": "x" * 70_000, "LINE": "a line"}
    limited = ["--db", str(site.database)], {"OUTREACH_VAULT_KEYRING_TIMEOUT": "soon"}
    places, more = limited if what == "a time limit" else (where(site), {})
    done = subprocess.run(
        [*COMMAND, *places, *REFUSED[what]],
        env=os.environ | variables | more,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("vault: error: ") and "a bug" not in done.stderr
    assert "\nvault: hint: " in done.stderr


@pytest.mark.parametrize(("broken", "error"), [(int, "ValueError"), (abs, "TypeError")])
def test_a_library_s_own_error_that_comes_through_our_code_is_a_bug(
    vault: Vault,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[Any], Any],
    error: str,
) -> None:
    """What a library written in C raises has no frame of its own: the last one is ours."""
    vault.set("smtp", "user", "v")
    monkeypatch.setattr(values, "as_text", broken)
    done = command("get", "smtp", "user", "--json")
    assert (
        done.status == 1
        and f"vault: error: a bug: {error} at values.py:" in done.err
        and "smtp" not in done.err
    ), done


def test_each_command_is_added_by_the_module_that_is_loaded_for_it() -> None:
    """In a new process each: here they are all loaded."""
    script = (
        "import sys; from outreach_vault.command.cli import cli; import click;"
        "before = set(cli.commands); context = click.Context(cli);"
        "cli.get_command(context, sys.argv[1]);"
        "print(*sorted(set(cli.commands) - before))"
    )
    by_module: dict[str, set[str]] = {}
    for name, module in cli.cli.homes.items():
        by_module.setdefault(module, set()).add(name)
    assert set(cli.cli.homes) == set(cli.cli.list_commands(click.Context(cli.cli)))
    for names in by_module.values():
        found = subprocess.run(
            [sys.executable, "-c", script, min(names)], capture_output=True, text=True, check=True
        )
        assert names <= set(found.stdout.split())
