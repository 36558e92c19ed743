"""`vault import` and `vault export` as an operator meets them."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import dotenv
import pytest
from helpers.commands import Terminal, failed, process, run, where
from helpers.site import COMMAND, Site

from outreach_vault.command import portable

pytestmark = pytest.mark.sweep(3)

ROOT = Path(__file__).parent.parent.parent
AIRFLOW = ROOT / "tests" / "data" / "airflow"
P = "default-project"
HIDDEN = "invented words, hidden"
DOTENV = f"SMTP_HOST=mail.example.com\nSMTP_PASSWORD='{HIDDEN}'\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / ".env"
    path.write_text(DOTENV)
    return path


def stored(site: Site) -> dict[str, str]:
    with site.open() as vault:
        return {
            f"{e.project_id}/{e.provider}/{e.credential_type}": vault.get(
                e.provider, e.credential_type, e.project_id, fallback=False
            ).reveal()
            for e in vault.list()
        }


# --- import


def test_the_plan_is_shown_and_with_yes_stored(site: Site, file: Path) -> None:
    done = run(site, "import", str(file), "--dry-run")
    assert done.status == 0 and stored(site) == {}
    assert [line.split() for line in done.out.splitlines()] == [
        ["PLAN", "PROVIDER", "FIELD", "SCOPE", "FROM"],
        ["new", "smtp", "host", "global", "line", "1,", "SMTP_HOST"],
        ["new", "smtp", "password", "global", "line", "2,", "SMTP_PASSWORD"],
    ]
    done = run(site, "import", str(file), "--yes", "--project", P)
    assert done.status == 0 and "stored 2 values" in done.err and "in clear" in done.err
    assert stored(site) == {
        f"{P}/smtp/host": "mail.example.com",
        f"{P}/smtp/password": HIDDEN,
    }
    done = run(site, "import", str(file), "--project", P)
    assert done.status == 0 and "nothing was changed" in done.err
    assert done.out.count("same") == 2


def test_the_plan_as_json(site: Site) -> None:
    text = f"{DOTENV}NO_SUCH=1\n".encode()
    done = run(site, "import", "-", "--json", "--yes", "--skip-unknown", stdin=text)
    assert done.status == 0 and HIDDEN not in done.out
    assert done.data == {
        "format": "dotenv",
        "values": [
            {
                "project_id": None,
                "provider": "smtp",
                "credential_type": name,
                "plan": "new",
                "source": f"line {line}, SMTP_{name.upper()}",
            }
            for line, name in ((1, "host"), (2, "password"))
        ],
        "skipped": [{"source": "line 3, NO_SUCH", "what": "no field has it", "unknown": True}],
        "problems": [],
        "stored": 2,
    }
    assert len(stored(site)) == 2


def test_a_byte_order_mark_before_the_text_is_no_part_of_it(site: Site) -> None:
    row = {"provider": "acme", "credential_type": "key", "project_id": None, "value": HIDDEN}
    text = b"\xef\xbb\xbf" + json.dumps([row]).encode()
    assert run(site, "import", "-", "--yes", "--new", stdin=text).status == 0
    assert stored(site) == {"None/acme/key": HIDDEN}


def test_standard_input_needs_yes_since_nobody_can_answer(site: Site) -> None:
    done = run(site, "import", "-", stdin=DOTENV.encode())
    assert done.status == 3 and "give --yes" in done.err and stored(site) == {}


def test_at_a_terminal_it_asks(site: Site, file: Path) -> None:
    for answer, values in ((b"n\n", 0), (b"y\n", 2)):
        with Terminal(site, "import", str(file)) as terminal:
            terminal.read_until(b"store 2 values? [y/N]: ")
            terminal.type(answer)
            assert terminal.end() == (0 if values else 3)
            assert HIDDEN.encode() not in terminal.seen
        assert len(stored(site)) == values


def test_another_value_is_replaced_only_if_told(site: Site, file: Path) -> None:
    run(site, "set", "smtp", "host", stdin=b"old.example.com")
    done = run(site, "import", str(file), "--yes")
    assert done.status == 2 and "1 other value would be replaced; nothing was stored" in done.err
    assert "--replace replaces them" in done.err
    assert stored(site) == {"None/smtp/host": "old.example.com"}
    shown = run(site, "import", str(file), "--dry-run")
    assert shown.status == 0 and shown.out.splitlines()[1].startswith("replaces")
    assert run(site, "import", str(file), "--yes", "--replace").status == 0
    assert stored(site)["None/smtp/host"] == "mail.example.com"


def test_all_that_does_not_fit_is_said_and_nothing_is_stored(site: Site, file: Path) -> None:
    file.write_text(f"{DOTENV}SMTP_PORT=x-{HIDDEN}\nNO_SUCH='{HIDDEN}'\n")
    done = run(site, "import", str(file), "--yes")
    failed(done, 2, "2 problems in the dotenv file; nothing was stored", "--skip-unknown",
           "line 3, SMTP_PORT: smtp/port: it must be", "line 4, NO_SUCH: no field")  # fmt: skip
    assert HIDDEN not in done.err and stored(site) == {}
    done = run(site, "import", str(file), "--dry-run")
    assert done.status == 2 and done.out.count("new") == 2
    done = run(site, "import", str(file), "--dry-run", "--json")
    assert done.status == 2 and len(done.data["problems"]) == 2
    failed(run(site, "import", str(file), "--yes", "--json"), 2)
    # Each way to take it: only what is unknown is left out, only what looks wrong is stored.
    failed(run(site, "import", str(file), "--yes", "--skip-unknown"), 2, "1 problem", "correct")
    failed(run(site, "import", str(file), "--yes", "--no-check"), 2, "1 problem")
    done = run(site, "import", str(file), "--yes", "--no-check", "--skip-unknown")
    assert done.status == 0 and len(stored(site)) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"invented", "give --format"),
        (b"A=\xffinvented", "not UTF-8 text"),
        (b"A='" + b"i" * portable._MAX_BYTES, "longer than 16777216 bytes (16384 KiB)"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_usage_error(
    site: Site, file: Path, content: bytes, words: str
) -> None:
    file.with_name("given").write_bytes(content)
    done = run(site, "import", str(file.with_name("given")), "--yes")
    failed(done, 2, words)
    assert "invented" not in done.err


def test_a_file_that_is_not_there_is_not_named(site: Site) -> None:
    done = run(site, "import", HIDDEN)
    failed(done, 2, "FILE: the file cannot be opened")
    assert HIDDEN not in done.err


def test_standard_input_at_a_terminal_is_refused(site: Site) -> None:
    with Terminal(site, "import", "-") as terminal:
        assert terminal.end() == 2 and b"standard input is a terminal" in terminal.seen


def test_an_unknown_project_or_one_of_a_row_is_refused(site: Site, file: Path) -> None:
    failed(run(site, "import", str(file), "--yes", "--project", "nobody"), 10)
    row = {"provider": "smtp", "credential_type": "host", "project_id": "no-one", "value": "a"}
    done = run(site, "import", "-", "--yes", stdin=json.dumps([row]).encode())
    failed(done, 2, "row 1: there is no project")


@pytest.mark.parametrize("name", ["export.json", "export.yaml", "export-uri.env"])
def test_what_airflow_exports_is_stored(site: Site, name: str) -> None:
    done = run(site, "import", str(AIRFLOW / name), "--yes", "--skip-unknown", "--project", P)
    assert done.status == 0 and "unknown field, left out" in done.out
    assert len(stored(site)) == 14
    assert stored(site)[f"{P}/twilio/auth_token"] == "invented-token-made-of-words"


def test_libraries_are_loaded_only_when_needed(site: Site, file: Path) -> None:
    show = (
        "import sys\nfrom outreach_vault.command import cli\ncli.run(sys.argv[1:])\n"
        "print([n for n in ('dotenv', 'yaml', 'outreach_vault.operations.formats')"
        " if n in sys.modules])"
    )

    def loaded(*arguments: str) -> str:
        command = [sys.executable, "-c", show, *where(site), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.stdout.splitlines()[-1]

    assert loaded("list") == "[]"
    assert loaded("export", "--format", "json") == "['outreach_vault.operations.formats']"
    given = str(AIRFLOW / "export.json")
    assert loaded("import", given, "--dry-run") == "['outreach_vault.operations.formats']"


# --- export


@pytest.fixture
def filled(site: Site) -> Site:
    with site.open() as vault:
        vault.set_fields("smtp", {"host": "mail.example.com", "user": "u", "password": HIDDEN})
        vault.set("acme", "key", "it's $5", P)
    return site


def test_a_new_file_is_its_owners_alone_and_never_replaces_one(
    filled: Site, tmp_path: Path
) -> None:
    new = tmp_path / "new.json"
    old = os.umask(0)
    try:
        done = run(filled, "export", str(new), "--format", "json")
    finally:
        os.umask(old)
    assert (done.status, done.out) == (0, "") and HIDDEN not in done.err
    assert "4 values in clear" in done.err and str(new) in done.err
    assert stat.S_IMODE(new.stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {filled.folder.name, "new.json"}
    before = new.read_bytes()
    failed(run(filled, "export", str(new), "--format", "dotenv"), 15, "something is there already")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    failed(run(filled, "export", str(link), "--format", "json"), 15, "something is there already")
    assert new.read_bytes() == before and not (tmp_path / "elsewhere").exists()


def test_what_is_exported_is_imported_again(filled: Site) -> None:
    text = process(filled, "export", "--format", "json").out
    before = stored(filled)
    with filled.open() as vault:
        for entry in vault.list():
            vault.delete(entry.provider, entry.credential_type, entry.project_id)
    done = process(filled, "import", "-", "--yes", "--new", input=text.encode())
    assert done.status == 0 and stored(filled) == before


def test_scopes(filled: Site, tmp_path: Path) -> None:
    def of(*arguments: str) -> list[Any]:
        return [row["provider"] for row in run(filled, "export", *arguments).data]

    assert of("--format", "json") == ["smtp"] * 3 + ["acme"]
    assert of("--format", "json", "--global") == ["smtp"] * 3
    assert of("--format", "json", "--project", P) == ["acme"]
    assert of("--format", "json", "--provider", "acme") == ["acme"]
    failed(run(filled, "export", "--format", "json", "--global", "--project", P), 2, "not both")
    file = tmp_path / "of-global.env"
    assert run(filled, "export", str(file), "--format", "dotenv").status == 0
    assert dotenv.dotenv_values(file) == {
        "SMTP_HOST": "mail.example.com",
        "SMTP_USER": "u",
        "SMTP_PASSWORD": HIDDEN,
    }


def test_a_value_that_dotenv_cannot_carry_leaves_no_file(filled: Site, tmp_path: Path) -> None:
    file = tmp_path / "new.env"
    done = run(filled, "export", str(file), "--format", "dotenv", "--project", P)
    failed(done, 2, "ACME_KEY", "--format json")
    assert "$5" not in done.err and not file.exists()


def test_a_value_that_cannot_be_read_leaves_no_file(filled: Site, tmp_path: Path) -> None:
    filled.change("UPDATE provider_credentials SET encrypted_value = 'x' WHERE provider = 'acme'")
    for kind in ("json", "dotenv"):
        done = run(filled, "export", str(tmp_path / "new"), "--format", kind, "--project", P)
        failed(done, 11, "acme/key")
    assert not (tmp_path / "new").exists()


def test_a_terminal_is_shown_values_only_with_yes(filled: Site) -> None:
    with Terminal(filled, "export", "--format", "json", piped=False) as terminal:
        assert terminal.end() == 2
        assert b"standard output is a terminal" in terminal.seen
        assert HIDDEN.encode() not in terminal.seen
    with Terminal(filled, "export", "--format", "json", "--yes", piped=False) as terminal:
        assert terminal.end() == 0 and HIDDEN.encode() in terminal.seen


def test_a_pipe_gets_the_values_and_a_redirected_file_does_not(
    filled: Site, tmp_path: Path
) -> None:
    done = process(filled, "export", "--format", "dotenv")
    assert done.status == 0 and HIDDEN in done.out and "in clear" in done.err
    shell = [*COMMAND, *where(filled), "export", "--format", "dotenv"]
    with (tmp_path / "redirected").open("wb") as out:
        got = subprocess.run([*shell, "--yes"], stdout=out, stderr=subprocess.PIPE, timeout=60)
    assert got.returncode == 2 and b"standard output is a file" in got.stderr
    assert (tmp_path / "redirected").read_bytes() == b""


# --- the page


PAGE = (ROOT / "docs" / "import-export.md").read_text()


def test_each_command_of_the_page_prints_what_the_page_shows(site: Site, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(AIRFLOW / "export.json", home)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(home),
        "OUTREACH_VAULT_DB": str(site.database),
        "OUTREACH_VAULT_KEY_DIR": str(site.keys),
        "LC_ALL": "C.UTF-8",
    }
    lines = re.findall(r"^\$ ((?:[^\n]*\\\n)*[^\n]*)\n((?:(?!\$ |```)[^\n]*\n)*)", PAGE, re.M)
    assert len(lines) == PAGE.count("\n$ ") > 5
    for command, shown in lines:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        said = done.stdout.replace(str(home), "/home/you")
        assert said.split() == shown.split(), command
