"""`vault run` as a real process: what the command finds in its environment, what it inherits beside it, and what keeps it from starting."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, NoReturn

import pytest
from commands import Done, entries, failed, process, run, where
from faults import Figures, Site, new_site

from outreach_vault import Secret, Vault, launch

P = "default-project"
SID, TOKEN = "AC" + secrets.token_hex(16), secrets.token_hex(16)
# A starting interpreter may add to its own environment; what the kernel shows is what it was given.
SHOW = """
import json, os, resource, sys
given = open("/proc/self/environ", "rb").read().split(b"\\0")[:-1]
shown = {n: os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{n}")}
print(json.dumps({"environment": dict(line.decode().split("=", 1) for line in given), "arguments": sys.argv[1:], "open": shown,
    "core": resource.getrlimit(resource.RLIMIT_CORE), "pid": os.getpid()}))
"""
SHOWS = [sys.executable, "-I", "-S", "-c", SHOW]
linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="this system does not show processes in /proc")
pytestmark = linux


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Complete accounts of two providers for everyone, one of them the project's too, and a part of a third."""
    made = new_site(tmp_path_factory.mktemp("launch") / "site")
    with made.open() as vault:
        for field, value in {"host": "mail.example.com", "user": "everyone", "password": "of-everyone", "port": "587"}.items():
            vault.set("smtp", field, value)
        for field, value in {"host": "own.example.com", "user": "own", "password": "of-the-project"}.items():
            vault.set("smtp", field, value, P)
        for field, value in {"account_sid": SID, "auth_token": TOKEN, "phone_number": "+15550100000"}.items():
            vault.set("twilio", field, value)
        vault.set("twilio", "phone_number", "+15550100001", P)
        vault.set("elevenlabs", "api_key", "invented")
    return made


@pytest.fixture
def site(filled: Site, tmp_path: Path) -> Site:
    return filled.copy(tmp_path / "site")


@pytest.fixture
def vault(site: Site) -> Iterator[Vault]:
    with site.open() as opened:
        yield opened


GLOBAL = {
    "ELEVENLABS_API_KEY": "invented",
    **{"SMTP_HOST": "mail.example.com", "SMTP_PASSWORD": "of-everyone", "SMTP_PORT": "587", "SMTP_USER": "everyone"},
    **{"TWILIO_ACCOUNT_SID": SID, "TWILIO_AUTH_TOKEN": TOKEN, "TWILIO_PHONE_NUMBER": "+15550100000"},
}
OWN = {
    **{name: value for name, value in GLOBAL.items() if name != "SMTP_PORT"},  # the global account's port is no part of the project's
    **{"SMTP_HOST": "own.example.com", "SMTP_PASSWORD": "of-the-project", "SMTP_USER": "own", "TWILIO_PHONE_NUMBER": "+15550100001"},
}


def shown(site: Site, *options: str, command: Sequence[str] = SHOWS, **given: Any) -> dict[str, Any]:
    done = process(site, "run", *options, "--", *command, **given)
    assert (done.status, done.err) == (0, ""), done
    return dict(done.data)


@contextlib.contextmanager
def starting(site: Site, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-m", "outreach_vault", *where(site), "run", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def stopped(site: Site, status: int, *words: str, options: Sequence[str] = (), program: Sequence[str] = ("touch",)) -> Done:
    """It fails as it must, and the command did not start."""
    marker = site.database.parent / "started"
    done = process(site, "run", *options, "--", *program, str(marker))
    failed(done, status, *words)
    assert not marker.exists()
    return done


# what the command finds in its environment


@pytest.mark.parametrize(
    ("options", "expected"),
    {
        "no options": ([], GLOBAL),
        "a project": (["--project", P], OWN),
        "one provider": (["--provider", "twilio"], {name: value for name, value in GLOBAL.items() if name.startswith("TWILIO")}),
        "two": (["--project", P, "--provider", "twilio", "--provider", "smtp"], {n: v for n, v in OWN.items() if n[0] in "TS"}),
        "one variable": (["--only", "SMTP_HOST"], {"SMTP_HOST": "mail.example.com"}),
        "two variables": (
            ["--only", "SMTP_HOST", "--only", "TWILIO_AUTH_TOKEN"],
            {n: GLOBAL[n] for n in ("SMTP_HOST", "TWILIO_AUTH_TOKEN")},
        ),
    }.values(),
    ids=lambda value: " ".join(value) or "all" if isinstance(value, list) else "",
)
def test_the_command_finds_the_resolvers_values_and_with_pristine_nothing_else(
    site: Site, vault: Vault, options: list[str], expected: dict[str, str]
) -> None:
    assert shown(site, "--pristine", *options)["environment"] == expected
    project = P if "--project" in options else None
    for name, value in expected.items():
        provider, _, field = name.lower().partition("_")
        assert vault.get(provider, field, project).reveal() == value


def test_the_rest_of_the_environment_stays_and_a_stored_value_wins(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_HOST", "of the shell")
    monkeypatch.setenv("SMTP_FROM_EMAIL", "of the shell")
    found = shown(site, "--project", P, env=dict(os.environ))["environment"]  # named: readline adds to the process's own unseen
    assert found == dict(os.environ) | OWN


def test_variables_are_those_of_get_wherever_the_fields_are_stored(site: Site, vault: Vault, figures: Figures) -> None:
    fields = {"twilio": "phone_number", "smtp": "from_email"}
    count = 0
    for stored in itertools.product(itertools.product((False, True), repeat=2), repeat=2):
        for (provider, field), (everyones, own) in zip(fields.items(), stored, strict=True):
            for is_stored, project in ((everyones, None), (own, P)):
                if is_stored:
                    vault.set(provider, field, f"{provider} {project}", project)
                else:
                    vault.delete(provider, field, project)
        for project in (None, P):
            found = launch.credentials(vault, project)
            for provider, field in fields.items():
                name, count = f"{provider}_{field}".upper(), count + 1
                assert (name in found) == vault.has(provider, field, project)
                assert name not in found or found[name] == vault.get(provider, field, project).secret
    figures("variables of a command, each as the resolver gives it", count)


@pytest.mark.parametrize(
    "value",
    ["line\nline\r\n", " of 'all' \"kinds\" $HOME `id` \\ é \U0001f511 ", "x" * 65536, "=", "-x"],
    ids=lambda value: repr(value[:8]),
)
def test_a_value_passes_exactly_as_it_is(site: Site, vault: Vault, value: str) -> None:
    vault.set("smtp", "password", value)
    assert shown(site, "--only", "SMTP_PASSWORD")["environment"]["SMTP_PASSWORD"] == value


def test_a_value_passes_as_utf8_whatever_the_locale_and_is_in_no_error(site: Site, vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `vault get` prints it. The C library's own locale can encode ASCII alone."""
    vault.set("smtp", "password", "x\U0001f511")
    for name, setting in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, setting)
    done = process(site, "run", "--only", "SMTP_PASSWORD", "--", "printenv", "SMTP_PASSWORD")
    assert "U0001f511" not in done.err
    assert (done.status, done.out) == (0, "x\U0001f511\n")


# what it is beside that: this very process


@pytest.mark.parametrize("arguments", [["printf", r"%s\n", "--json", "-x", "--", "a 'b' \"c\" $d", "", "é", "--help", "--project"]])
def test_arguments_pass_unchanged(site: Site, arguments: list[str]) -> None:
    assert shown(site, command=[*SHOWS, *arguments])["arguments"] == arguments
    done = process(site, "run", *arguments)  # and without `--`
    assert (done.status, done.out.splitlines()) == (0, ["--json", "-x", "--", *arguments[5:]])


@pytest.mark.parametrize("status", [0, 7, 255])
def test_exit_status_is_the_commands(site: Site, status: int) -> None:
    assert process(site, "run", "--", "sh", "-c", f"exit {status}") == Done(status, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_process_ends_the_command_by_it(site: Site, number: signal.Signals) -> None:
    with starting(site, "--", "sh", "-c", "echo $$; exec sleep 60") as running:
        assert running.stdout
        assert int(running.stdout.readline()) == running.pid
        running.send_signal(number)
        assert running.wait(timeout=20) == -number


def test_no_signal_is_ignored_in_the_command_that_our_caller_did_not_ignore(site: Site) -> None:
    done = process(site, "run", "--", "cat", "/proc/self/status")
    (ignored,) = [int(line.split()[1], 16) for line in done.out.splitlines() if line.startswith("SigIgn")]
    assert not [name for name in (signal.SIGPIPE, signal.SIGXFSZ) if ignored >> (name - 1) & 1]
    assert process(site, "run", "--", "sh", "-c", "yes | head -1") == Done(0, "y\n", "")


def test_standard_input_passes_and_no_other_file_does(site: Site) -> None:
    data = secrets.token_bytes(100_000).hex().encode()
    assert process(site, "run", "--", "cat", stdin=data) == Done(0, data.decode(), "")
    found = shown(site)
    assert sorted(int(number) for number in found["open"])[:3] == [0, 1, 2]
    assert not [target for target in found["open"].values() if target.startswith(str(site.database.parent))]
    assert len(found["open"]) == 3, found["open"]  # the one that lists them is closed again
    assert found["core"] == [0, 0]


def test_no_argument_of_any_process_and_no_environment_but_the_commands_holds_a_value(site: Site, figures: Figures) -> None:
    """A key that can be read only when the test writes it: until then the process stands still."""
    ((name, key),) = entries(site).items()
    (site.keys / name).unlink()
    os.mkfifo(site.keys / name, 0o600)
    with starting(site, "--provider", "twilio", "--", "sh", "-c", "echo $$; read line; echo $TWILIO_AUTH_TOKEN") as running:
        assert running.stdin and running.stdout
        (site.keys / name).write_text(key)  # opens when the other side does
        assert int(running.stdout.readline()) == running.pid
        lines = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if os.access(file, os.R_OK)]
        assert not [line for line in lines if TOKEN.encode() in line]
        assert TOKEN.encode() in Path(f"/proc/{running.pid}/environ").read_bytes()
        assert TOKEN.encode() not in Path("/proc/self/environ").read_bytes()
        assert running.communicate(b"go\n", timeout=20) == (f"{TOKEN}\n".encode(), b"")
    figures("command lines of processes without a value in them", len(lines))


def test_our_own_environment_is_not_touched(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *call: given.append(call))
    monkeypatch.setattr(signal, "signal", lambda *call: None)
    before = dict(os.environ), bytes(Path("/proc/self/environ").read_bytes())
    launch.launch(["sh", "-x"], launch.credentials(vault, None), pristine=True)
    assert (dict(os.environ), Path("/proc/self/environ").read_bytes()) == before
    ((program, arguments, environment),) = given
    assert (program, arguments) == (shutil.which("sh"), ["sh", "-x"])
    assert {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()} == GLOBAL


def test_pristine_finds_the_program_by_path(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By ours: the command's own environment has none."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "only-here").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert shown(site, "--pristine", "--only", "SMTP_HOST", command=["only-here", *SHOWS[1:]])["environment"] == {
        "SMTP_HOST": "mail.example.com"
    }


@pytest.mark.parametrize("status", [0, 7, 255])
def test_on_windows_a_second_process_is_waited_for_and_its_status_is_ours(site: Site, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    calls: list[Any] = []

    def instead(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append((command, options))
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(launch, "os", SimpleNamespace(name="nt", environ=dict(os.environ)))
    monkeypatch.setattr(subprocess, "run", instead)
    assert run(site, "run", "--pristine", "--only", "SMTP_HOST", "--", "sh", "-c", "exit") == Done(status, "", "")
    assert calls == [([shutil.which("sh"), "-c", "exit"], {"env": {"SMTP_HOST": "mail.example.com"}, "check": False})]


# what keeps it from starting


def damage(site: Site) -> None:
    site.change("UPDATE provider_credentials SET encrypted_value = replace(encrypted_value, substr(encrypted_value, 60, 4), 'AAAA')")


def foreign(site: Site) -> None:
    site.change("UPDATE provider_credentials SET encrypted_value = 'djExAAAA' WHERE credential_type = 'auth_token'")


def lose_the_key(site: Site) -> None:
    for file in site.keys.iterdir():
        file.unlink()


def mix(site: Site) -> None:
    site.change("DELETE FROM provider_credentials WHERE project_id = ? AND credential_type = 'password'", P)


STOPS: dict[str, tuple[Any, int, tuple[str, ...]]] = {
    "damaged": (damage, 11, ("row ",)),
    "foreign": (foreign, 11, ("twilio/auth_token",)),
    "key missing": (lose_the_key, 12, ("has no key",)),
    "mixed": (mix, 16, ("smtp", "host", "password")),
}


@pytest.mark.parametrize("what", STOPS)
def test_the_command_does_not_start_with_a_part_of_the_values(site: Site, what: str) -> None:
    harm, status, words = STOPS[what]
    harm(site)
    done = stopped(site, status, options=["--project", P])
    assert "vault: hint: " in done.err
    for word in words:
        assert word in done.err


def test_providers_that_were_not_chosen_stop_nothing(site: Site, vault: Vault) -> None:
    foreign(site)
    mix(site)
    vault.set("anthropic", "api_key", "invented")
    assert shown(site, "--pristine", "--project", P, "--provider", "anthropic")["environment"] == {"ANTHROPIC_API_KEY": "invented"}


def test_a_foreign_value_that_only_leaves_out_does_not_stop_what_was_asked_for(site: Site) -> None:
    foreign(site)
    assert shown(site, "--pristine", "--only", "TWILIO_ACCOUNT_SID")["environment"] == {"TWILIO_ACCOUNT_SID": SID}


def test_an_optional_field_that_the_app_left_empty_is_left_out_as_in_a_bundle(site: Site, vault: Vault) -> None:
    site.change("UPDATE provider_credentials SET encrypted_value = '', key_id = NULL WHERE credential_type = 'port'")
    expected = {f"SMTP_{name.upper()}": credential.reveal() for name, credential in vault.bundle("smtp").items()}
    assert shown(site, "--pristine", "--provider", "smtp")["environment"] == expected


def test_another_projects_row_with_an_unusable_name_stops_nothing(site: Site) -> None:
    site.change(
        "INSERT INTO projects (id, name, created_at, updated_at) SELECT 'other', 'other', created_at, updated_at FROM projects LIMIT 1"
    )
    site.change("INSERT INTO provider_credentials SELECT 'odd', 'other', 'bell' || char(7), 'x', 'x', NULL, '', '', NULL")
    assert shown(site, "--pristine", "--project", P)["environment"] == OWN


USAGE: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "unknown variable": (["--only", "SMTP_HOST", "--only", "SMTP_HOTS"], 2, ("SMTP_HOTS",)),
    "variable of a provider that was not chosen": (["--provider", "twilio", "--only", "SMTP_HOST"], 2, ("SMTP_HOST",)),
    "incomplete": (["--provider", "elevenlabs"], 10, ("screening_agent_id", "phone_number_id")),
    "one of two incomplete": (["--provider", "smtp", "--provider", "elevenlabs"], 10, ("screening_agent_id",)),
    "nothing stored": (["--provider", "no-such"], 10, ("no-such",)),
    "unknown project": (["--project", "no-such"], 10, ("no-such",)),
    "empty project": (["--project", ""], 2, ("project_id",)),
    "misspelt option": (["--provder", "smtp"], 2, ("--provder",)),
}


@pytest.mark.parametrize("what", USAGE)
def test_what_cannot_be_meant_stops_it(site: Site, what: str) -> None:
    options, status, words = USAGE[what]
    stopped(site, status, *words, options=options)


def test_a_value_that_no_environment_can_hold_stops_it_and_is_not_shown(site: Site, vault: Vault) -> None:
    vault.set("smtp", "password", f"{TOKEN}\0x")
    assert TOKEN not in stopped(site, 2, "SMTP_PASSWORD", "NUL").err
    assert set(shown(site, "--pristine", "--only", "SMTP_HOST")["environment"]) == {"SMTP_HOST"}


@pytest.mark.parametrize("places", [(("acme", "api-key"), ("acme", "api_key")), (("a_b", "c"), ("a", "b_c"))])
def test_two_fields_of_one_name_stop_it(site: Site, vault: Vault, places: tuple[tuple[str, str], ...]) -> None:
    for provider, field in places:
        vault.set(provider, field, TOKEN)
    name = launch.variable(*places[0])
    assert TOKEN not in stopped(site, 2, name, "two fields").err
    assert set(shown(site, "--pristine", "--provider", "twilio")["environment"]) == {name for name in GLOBAL if name[0] == "T"}


@pytest.mark.parametrize(
    ("mode", "text", "words"),
    [(None, "", "no such program"), (0o600, "#!/bin/sh\n", "Permission denied"), (0o700, "no program", "format error")],
    ids=["none", "not executable", "not a program"],
)
def test_a_program_that_cannot_be_run_is_a_usage_error_that_says_why(
    site: Site, tmp_path: Path, mode: int | None, text: str, words: str
) -> None:
    program = tmp_path / "program"
    if mode is not None:
        program.write_text(text)
        program.chmod(mode)
    stopped(site, 2, str(program), words, program=[str(program)])


def test_no_command_is_a_usage_error(site: Site) -> None:
    failed(run(site, "run", "--"), 2, "COMMAND")


def test_a_failed_start_shows_no_value(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*call: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "execve", fail)
    monkeypatch.setattr(signal, "signal", lambda *call: None)
    with pytest.raises(PermissionError) as raised:
        launch.launch(["sh"], {"SMTP_PASSWORD": Secret(TOKEN)})
    frame: TracebackType | None = raised.tb
    while frame:
        assert frame.tb_frame.f_code.co_filename != launch.__file__ or TOKEN not in repr(frame.tb_frame.f_locals)
        frame = frame.tb_next


def test_a_misspelt_option_is_not_taken_for_the_command_and_opens_no_value(site: Site) -> None:
    site.change("UPDATE provider_credentials SET encrypted_value = 'broken'")
    failed(run(site, "run", "--provder", "smtp", "--", "true"), 2, "--provder", "not an option")
