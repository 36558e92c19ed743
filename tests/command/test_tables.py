"""
What people see: tables that fit their terminal, names in place of ids, one line for one cause; and
what a pipe gets, which is never cut and has no colours.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import struct
import termios
import time
import unicodedata
from pathlib import Path

import pytest
from helpers.commands import Terminal, run
from helpers.rows import insert
from helpers.site import Engine, Site, new_site, sql

from outreach_vault.command import terminal
from outreach_vault.operations.rotation import rotate

pytestmark = pytest.mark.sweep(4)

P = "default-project"
WHOLE = {"host": "mail.example.com", "user": "u", "password": "p"}
NAMES = (
    "Zürich – Senior Backend Engineer (m/w/d), Platform Team, remote possible",
    "Zürich – Senior Backend Engineer (m/w/d), Platform Team, on site only",
    "データ採用プロジェクト：シニアバックエンドエンジニア（東京オフィス）",
)
LABEL = "the company's own account, owned by the finance department, renewed each January"
TABLES = (
    "list", "list smtp", "which smtp", "which elevenlabs", "which smtp --project 2", "accounts",
    "accounts --project 1", "projects", "keys list", "providers", "providers smtp",
    "providers vonage", "status", "doctor", "doctor --deep",
)  # fmt: skip
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def template(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A vault with names as people give them, two keys, and some of each trouble."""
    folder = tmp_path_factory.mktemp("tables") / ("a folder with a rather long name " * 2).strip()
    folder.mkdir()
    made = new_site(folder / "site", engine)
    with made.open() as vault:
        for name, value in (WHOLE | {"from_email": "a@b"}).items():
            vault.set("smtp", name, value, label=LABEL)
        projects = [vault.projects.add(name) for name in NAMES]
        for project in projects:
            vault.set("elevenlabs", "screening_agent_id", "x", project, label=LABEL)
            vault.set("smtp", "from_email", "a@b", project)
        vault.set("smtp", "password", "p", projects[1], label=LABEL)
        vault.set("twilio", "phone_number", "+41123456789")
        for name in ("api_key", "screening_agent_id", "phone_number_id"):
            vault.set("elevenlabs", name, "x")
        rotate(vault)
        insert(made.database, "the app's own", projects[2], "linkedin", "session_cookie")
    sql(made.database, "UPDATE provider_credentials SET updated_at = '2020-02-06T09:30:00.250Z'"
        " WHERE provider = 'elevenlabs'")  # fmt: skip
    return made


def arguments(line: str) -> list[str]:
    return [NAMES[int(word)] if word.isdigit() else word for word in line.split()]


def at_a_terminal(site: Site, *words: str, columns: int = 80) -> list[str]:
    with Terminal(site, *words, piped=False) as shell:
        fcntl.ioctl(shell.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        assert shell.end() in (0, 16)
        return shell.seen.decode().replace("\r\n", "\n").splitlines()


def width(line: str) -> int:
    """By another count than the command's: each character alone."""
    return sum(
        (1 + (unicodedata.east_asian_width(each) in "WF")) * (unicodedata.combining(each) == 0)
        for each in COLOUR.sub("", line)
    )


def of_stdout(lines: list[str]) -> list[str]:
    """Without notes and warnings, which are sentences on standard error."""
    return [line for line in lines if not line.startswith("vault: ")]


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("line", TABLES)
def test_no_line_of_a_table_is_wider_than_the_terminal(site: Site, line: str, columns: int) -> None:
    shown = of_stdout(at_a_terminal(site, *arguments(line), columns=columns))
    assert shown and [each for each in shown if width(each) > columns] == []


def test_a_long_name_is_cut_at_a_terminal_so_that_those_alike_differ(site: Site) -> None:
    head, *lines = at_a_terminal(site, "projects")
    names = [line.split("  ")[0] for line in lines]
    assert head.startswith("NAME") and len(set(names)) == 4
    assert [name.count("…") for name in names].count(1) >= 2
    listed = [line for line in at_a_terminal(site, "list", "smtp") if "password" in line]
    assert all("…" in line and "the com" in line for line in listed)  # the label is seen


def test_what_is_piped_is_never_cut(site: Site) -> None:
    for line in ("list", "accounts", "projects"):
        out = run(site, *line.split()).out
        assert "…" not in out and "\x1b" not in out
        assert all(name in out for name in NAMES)
    assert LABEL in run(site, "list").out and LABEL in run(site, "which", "smtp").out


def test_columns_are_lined_up_by_what_a_terminal_shows(site: Site) -> None:
    head, *lines = run(site, "projects").out.splitlines()
    at = head.index("ARCHIVED")
    for line in lines:
        _, rest = re.split(r"  +(?=- )", line, maxsplit=1)
        assert width(line) - width(rest) == at


def test_ids_and_whole_times_are_shown_when_asked_for_and_only_then(site: Site) -> None:
    rows = site.rows()
    times = {row["updated_at"] for row in rows.values()}
    projects = {row["project_id"] for row in rows.values()} - {None}
    for line, ids in (
        ("list", rows.keys() | projects), ("which smtp", set()), ("accounts", projects),
        ("projects", projects),
    ):  # fmt: skip
        short, long = (run(site, *line.split(), *more).out for more in ((), ("--long",)))
        assert [each for each in ids | times if each in short] == []
        assert [each for each in ids if each not in long] == []
        assert line in ("accounts", "projects") or any(time in long for time in times)
    assert "2020-02-06" in run(site, "list", "elevenlabs").out
    for line in ("keys list", "status"):
        short, long = (run(site, *line.split(), *more).out for more in ((), ("--long",)))
        assert "RETIRED" in long and "RETIRED" not in short
        assert all(key_id in short and key_id in long for key_id in site.states())


def test_a_date_is_that_of_the_place(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for zone, day in (("Pacific/Kiritimati", "2026-01-02"), ("America/Adak", "2026-01-01")):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        terminal._day.cache_clear()
        assert terminal.day("2026-01-01T23:30:00.000Z") == day
        assert terminal.day("2026-01-01T23:30:00") == day  # another tool's, without a zone
    assert [terminal.day(each) for each in ("yesterday", "", None)] == ["yesterday", "-", "-"]
    monkeypatch.undo()
    time.tzset()
    terminal._day.cache_clear()


def test_a_name_that_would_mean_another_is_an_id(site: Site) -> None:
    for project_id, name in (("a", "Twice"), ("b", "Twice"), ("c", "global"), ("d", "a")):
        sql(
            site.database,
            "INSERT INTO projects (id, name, created_at, updated_at) VALUES (?, ?, '', '')",
            project_id,
            name,
        )
        insert(site.database, "", project_id, "crm", "token")
    scopes = {line.split()[2] for line in run(site, "list", "crm").out.splitlines()[1:]}
    assert scopes == {"a", "b", "c", "d"}
    assert run(site, "projects").out.splitlines()[0].split()[0] == "ID"


def test_states_have_colours_at_a_terminal_that_may_show_them(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(line: str) -> str:
        return "\n".join(at_a_terminal(site, *line.split()))

    monkeypatch.setenv("TERM", "xterm")
    words = {
        "list": ("ok", "foreign"), "accounts": ("global", "incomplete", "unreadable"),
        "keys list": ("active",), "doctor": ("problem", "notice"),
    }  # fmt: skip
    for line, word in [(each, word) for each in words for word in words[each]]:
        assert re.search(rf"\x1b\[3[0-9]m{word}\x1b\[0m", shown(line)), line
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert [line for line in ("list", "doctor") if "\x1b" in shown(line)] == []
    assert "\x1b" not in run(site, "doctor").out


def test_a_missing_key_folder_is_one_problem_of_all_its_values(site: Site) -> None:
    keys, states = site.keys, site.states()
    (retired,) = [key_id for key_id, state in states.items() if state == "retired"]
    token = next(row["encrypted_value"] for row in site.rows().values() if row["key_id"])
    insert(site.database, token, P, "crm", "token", retired)  # two keys, and one cause
    before = run(site, "doctor").out.splitlines()[-1]
    shutil.rmtree(keys)
    lost = [row for row in site.rows().values() if row["key_id"]]
    for command in (("list",), ("which", "elevenlabs")):
        warned = [each for each in run(site, *command).err.splitlines() if "warning" in each]
        assert len(warned) == 1 and "no such folder" in warned[0]
        assert warned[0].endswith(f"({len(lost) if command == ('list',) else 3} values)")
    done = run(site, "doctor")
    assert done.status == 16
    (said,) = [each for each in done.out.splitlines() if "no such folder" in each]
    assert said.startswith("problem: ") and said.endswith(f"({len(lost)} value(s) need it)")
    assert int(done.out.splitlines()[-1].split()[0]) == int(before.split()[0]) + 1
    data = run(site, "doctor", "--json").data  # each of them, for programs
    assert len([each for each in data["findings"] if each["kind"] == "unreadable value"]) == len(
        lost
    )


def test_doctor_has_one_line_for_each_account_and_one_for_each_other_cause(
    tmp_path: Path,
) -> None:
    site = new_site(tmp_path / "many")
    with site.open() as vault:
        for name, value in WHOLE.items():
            vault.set("smtp", name, value)
        projects = [vault.projects.add(f"Number {number:02}") for number in range(20)]
        for number, project in enumerate(projects):
            for name, value in list(WHOLE.items())[: 2 if number < 5 else 3]:
                vault.set("smtp", name, value, project)
            insert(site.database, "the app's own", project, "crm", "token")
    lines = run(site, "doctor").out.splitlines()[5:]
    assert [line.split(":")[0] for line in lines] == [
        *["problem"] * 5, "  next", "notice", "  next", "notice", "  next", "notice", "5 problems"
    ]  # fmt: skip
    assert [line.split('"')[1] for line in lines[:5]] == [f"Number 0{n}" for n in range(5)]
    assert all(any(f": {count} values, such as" in line for line in lines) for count in (20, 55))
    one = run(site, "doctor").out
    assert "'vault accounts'" in one


def test_a_table_of_many_rows_costs_by_the_row(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    began = time.process_time()
    terminal.print_table(("NAME", "LABEL", "X"), (("n" * 20, "é" * 20, "x") for _ in range(20_000)))
    assert time.process_time() - began < 5  # by the pair of rows it would be a minute
    assert capsysbinary.readouterr().out.count(b"\n") == 20_001
