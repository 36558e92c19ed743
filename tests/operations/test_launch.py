"""
`vault run` as a real process: what the command finds in its environment, what it inherits beside
it, and what keeps it from starting.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
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
from helpers.commands import Done, failed, process, run, where
from helpers.site import Engine, Figures, Site, new_site

from outreach_vault import CannotStart, Secret, Vault
from outreach_vault.operations import launch
from outreach_vault.providers import catalogue

P = "default-project"
SID, TOKEN = "AC" + secrets.token_hex(16), secrets.token_hex(16)
# A starting interpreter may add to its own environment; what the kernel shows is what it was given.
SHOW = """
import json, os, resource, sys
given = open("/proc/self/environ", "rb").read().split(b"\\0")[:-1]
links = {n: f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")}
print(json.dumps({
    "environment": dict(line.decode().split("=", 1) for line in given), "arguments": sys.argv[1:],
    "open": {n: os.readlink(link) for n, link in links.items() if os.path.lexists(link)},
    "core": resource.getrlimit(resource.RLIMIT_CORE), "pid": os.getpid()}))
"""
SHOWS = [sys.executable, "-I", "-S", "-c", SHOW]
linux = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="this system does not show processes in /proc"
)
pytestmark = [linux, pytest.mark.sweep(6)]


@pytest.fixture(scope="session")
def template(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """
    Complete accounts of two providers for everyone, one of them the project's too, and a part of a
    third.
    """
    made = new_site(tmp_path_factory.mktemp("launch") / "site", engine)
    with made.open() as vault:
        for field, value in {
            "host": "mail.example.com",
            "user": "everyone",
            "password": "of-everyone",
            "port": "587",
        }.items():
            vault.set("smtp", field, value)
        for field, value in {
            "host": "own.example.com",
            "user": "own",
            "password": "of-the-project",
        }.items():
            vault.set("smtp", field, value, P)
        for field, value in {
            "account_sid": SID,
            "auth_token": TOKEN,
            "phone_number": "+15550100000",
        }.items():
            vault.set("twilio", field, value)
        vault.set("twilio", "phone_number", "+15550100001", P)
        vault.set("elevenlabs", "api_key", "invented")
    return made


GLOBAL = {
    "ELEVENLABS_API_KEY": "invented",
    **{
        "SMTP_HOST": "mail.example.com",
        "SMTP_PASSWORD": "of-everyone",
        "SMTP_PORT": "587",
        "SMTP_USER": "everyone",
    },
    **{
        "TWILIO_ACCOUNT_SID": SID,
        "TWILIO_AUTH_TOKEN": TOKEN,
        "TWILIO_PHONE_NUMBER": "+15550100000",
    },
}
OWN = {
    **{
        name: value for name, value in GLOBAL.items() if name != "SMTP_PORT"
    },  # the global account's port is no part of the project's
    **{
        "SMTP_HOST": "own.example.com",
        "SMTP_PASSWORD": "of-the-project",
        "SMTP_USER": "own",
        "TWILIO_PHONE_NUMBER": "+15550100001",
    },
}


def shown(
    site: Site, *options: str, command: Sequence[str] = SHOWS, **given: Any
) -> dict[str, Any]:
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


def stopped(
    site: Site,
    status: int,
    *words: str,
    options: Sequence[str] = (),
    program: Sequence[str] = ("touch",),
) -> Done:
    """It fails as it must, and the command did not start."""
    marker = site.folder / "started"
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
        "one provider": (
            ["--provider", "twilio"],
            {name: value for name, value in GLOBAL.items() if name.startswith("TWILIO")},
        ),
        "two": (
            ["--project", P, "--provider", "twilio", "--provider", "smtp"],
            {n: v for n, v in OWN.items() if n[0] in "TS"},
        ),
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


STRANGERS = {
    "SMTP_HOST": "stored in both scopes",
    "SMTP_PORT": "stored for everyone, and no part of the project's account",
    "SMTP_FROM_EMAIL": "in the catalogue, and stored nowhere",
    "TWILIO_AUTH_TOKEN": "of another provider",
    "ACME_TOKEN": "stored for another project alone",
}


@pytest.fixture
def inherited(site: Site, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment that `vault run` is started in: it has variables that could be fields."""
    site.change(
        "INSERT INTO projects (id, name, created_at, updated_at) VALUES ('other', 'other', '', '')"
    )
    with site.open() as vault:
        vault.set("acme", "token", TOKEN, "other")
    for name, value in STRANGERS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SMTP_TIMEOUT", "no field of any provider")
    return dict(os.environ)  # named: readline adds to the process's own unseen


def without(variables: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in names}


def test_no_variable_that_could_be_a_field_is_inherited_and_the_rest_of_the_environment_stays(
    site: Site, inherited: dict[str, str]
) -> None:
    kept = without(inherited, *STRANGERS)
    assert shown(site, "--project", P, env=inherited)["environment"] == kept | OWN
    assert shown(site, "--project", P, "--only", "SMTP_USER", env=inherited)[
        "environment"
    ] == kept | {"SMTP_USER": "own"}


@pytest.mark.parametrize("only", [[], ["--only", "SMTP_USER"]])
def test_of_a_provider_that_was_chosen_nothing_is_inherited(
    site: Site, inherited: dict[str, str], only: list[str]
) -> None:
    kept = without(inherited, "SMTP_HOST", "SMTP_PORT", "SMTP_FROM_EMAIL")
    given = {
        name: OWN[name]
        for name in (["SMTP_USER"] if only else ["SMTP_HOST", "SMTP_USER", "SMTP_PASSWORD"])
    }
    assert (
        shown(site, "--project", P, "--provider", "smtp", *only, env=inherited)["environment"]
        == kept | given
    )


def test_a_run_inside_another_hands_over_one_account(site: Site, vault: Vault) -> None:
    vault.set("smtp", "from_email", "own@example.com", P)
    vault.set("smtp", "port", "2525", P)
    inner = [
        sys.executable,
        "-m",
        "outreach_vault",
        *where(site),
        "run",
        "--provider",
        "smtp",
        "--",
        *SHOWS,
    ]
    found = shown(site, "--project", P, command=inner)["environment"]
    assert {n: v for n, v in found.items() if n.startswith("SMTP")} == {
        n: v for n, v in GLOBAL.items() if n.startswith("SMTP")
    }


@pytest.mark.parametrize("project", ["typo", ""])
def test_an_unknown_project_starts_nothing_where_nothing_is_stored_either(
    tmp_path: Path, project: str
) -> None:
    stopped(
        new_site(tmp_path / "empty"),
        10 if project else 2,
        "project",
        options=["--project", project],
    )


def test_a_variable_begins_with_no_digit_so_that_every_shell_hands_it_on(
    site: Site, vault: Vault
) -> None:
    vault.set("3cx", "api_key", TOKEN)
    asked = ["sh", "-c", 'sh -c "echo \\$_3CX_API_KEY"']
    assert process(site, "run", "--provider", "3cx", "--", *asked).out == f"{TOKEN}\n"


def test_variables_are_those_of_get_wherever_the_fields_are_stored(
    site: Site, vault: Vault, figures: Figures
) -> None:
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
            found = launch.environment(vault, project).given
            for provider, field in fields.items():
                name, count = f"{provider}_{field}".upper(), count + 1
                assert (name in found) == vault.has(provider, field, project)
                assert (
                    name not in found or found[name] == vault.get(provider, field, project).secret
                )
    figures("variables of a command, each as the resolver gives it", count)


@pytest.mark.parametrize(
    "value",
    ["line\nline\r\n", " of 'all' \"kinds\" $HOME `id` \\ é \U0001f511 ", "x" * 65536, "=", "-x"],
    ids=lambda value: repr(value[:8]),
)
def test_a_value_passes_exactly_as_it_is(site: Site, vault: Vault, value: str) -> None:
    vault.set("smtp", "password", value)
    assert shown(site, "--only", "SMTP_PASSWORD")["environment"]["SMTP_PASSWORD"] == value


def test_a_value_passes_as_utf8_whatever_the_locale_and_is_in_no_error(
    site: Site, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `vault get` prints it. The C library's own locale can encode ASCII alone."""
    vault.set("smtp", "password", "x\U0001f511")
    for name, setting in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, setting)
    done = process(site, "run", "--only", "SMTP_PASSWORD", "--", "printenv", "SMTP_PASSWORD")
    assert "U0001f511" not in done.err
    assert (done.status, done.out) == (0, "x\U0001f511\n")


# what it is beside that: this very process


@pytest.mark.parametrize(
    "arguments",
    [["printf", r"%s\n", "--json", "-x", "--", "a 'b' \"c\" $d", "", "é", "--help", "--project"]],
)
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
    (ignored,) = [
        int(line.split()[1], 16) for line in done.out.splitlines() if line.startswith("SigIgn")
    ]
    assert not [name for name in (signal.SIGPIPE, signal.SIGXFSZ) if ignored >> (name - 1) & 1]
    assert process(site, "run", "--", "sh", "-c", "yes | head -1") == Done(0, "y\n", "")


def test_standard_input_passes_and_no_other_file_does(site: Site) -> None:
    data = secrets.token_bytes(100_000).hex().encode()
    assert process(site, "run", "--", "cat", input=data) == Done(0, data.decode(), "")
    found = shown(site)
    assert sorted(int(number) for number in found["open"])[:3] == [0, 1, 2]
    assert not [target for target in found["open"].values() if target.startswith(str(site.folder))]
    assert len(found["open"]) == 3, found["open"]  # the one that lists them is closed again
    assert found["core"] == [0, 0]


def test_no_argument_of_any_process_and_no_environment_but_the_commands_holds_a_value(
    site: Site, figures: Figures
) -> None:
    with starting(
        site,
        "--provider",
        "twilio",
        "--",
        "sh",
        "-c",
        "echo $$; read line; echo $TWILIO_AUTH_TOKEN",
    ) as running:
        assert running.stdin and running.stdout
        assert int(running.stdout.readline()) == running.pid
        lines = [
            file.read_bytes()
            for file in Path("/proc").glob("[0-9]*/cmdline")
            if os.access(file, os.R_OK)
        ]
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
    launch.launch(["sh", "-x"], launch.environment(vault, None), pristine=True)
    assert (dict(os.environ), Path("/proc/self/environ").read_bytes()) == before
    ((program, arguments, environment),) = given
    assert (program, arguments) == (shutil.which("sh"), ["sh", "-x"])
    assert {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()} == GLOBAL


def test_pristine_finds_the_program_by_path(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ours: the command's own environment has none."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "only-here").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert shown(site, "--pristine", "--only", "SMTP_HOST", command=["only-here", *SHOWS[1:]])[
        "environment"
    ] == {"SMTP_HOST": "mail.example.com"}


@pytest.mark.parametrize("status", [0, 7, 255])
def test_on_windows_a_second_process_is_waited_for_and_its_status_is_ours(
    site: Site, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    calls: list[Any] = []

    def instead(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append((command, options))
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(launch, "os", SimpleNamespace(name="nt", environ=dict(os.environ)))
    monkeypatch.setattr(subprocess, "run", instead)
    assert run(site, "run", "--pristine", "--only", "SMTP_HOST", "--", "sh", "-c", "exit") == Done(
        status, "", ""
    )
    assert calls == [
        (
            [shutil.which("sh"), "-c", "exit"],
            {"env": {"SMTP_HOST": "mail.example.com"}, "check": False},
        )
    ]


# what keeps it from starting


def damage(site: Site) -> None:
    site.change(
        "UPDATE provider_credentials SET encrypted_value = replace(encrypted_value, "
        "substr(encrypted_value, 60, 4), 'AAAA')"
    )


def foreign(site: Site) -> None:
    site.change(
        "UPDATE provider_credentials SET encrypted_value = 'djExAAAA' WHERE credential_type = "
        "'auth_token'"
    )


def lose_the_key(site: Site) -> None:
    for file in site.keys.iterdir():
        file.unlink()


def mix(site: Site) -> None:
    site.change(
        "DELETE FROM provider_credentials WHERE project_id = ? AND credential_type = 'password'", P
    )


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
    assert shown(site, "--pristine", "--project", P, "--provider", "anthropic")["environment"] == {
        "ANTHROPIC_API_KEY": "invented"
    }


def test_a_foreign_value_that_only_leaves_out_does_not_stop_what_was_asked_for(site: Site) -> None:
    foreign(site)
    assert shown(site, "--pristine", "--only", "TWILIO_ACCOUNT_SID")["environment"] == {
        "TWILIO_ACCOUNT_SID": SID
    }


def test_an_optional_field_that_the_app_left_empty_is_left_out_as_in_a_bundle(
    site: Site, vault: Vault
) -> None:
    site.change(
        "UPDATE provider_credentials SET encrypted_value = '', key_id = NULL WHERE "
        "credential_type = 'port'"
    )
    expected = {
        f"SMTP_{name.upper()}": credential.reveal()
        for name, credential in vault.bundle("smtp").items()
    }
    assert shown(site, "--pristine", "--provider", "smtp")["environment"] == expected


def test_another_projects_row_with_an_unusable_name_stops_nothing(site: Site) -> None:
    site.change(
        "INSERT INTO projects (id, name, created_at, updated_at) SELECT 'other', 'other', "
        "created_at, updated_at FROM projects LIMIT 1"
    )
    site.change(
        "INSERT INTO provider_credentials (id, project_id, provider, credential_type,"
        " encrypted_value, created_at, updated_at)"
        " VALUES ('odd', 'other', ?, 'x', 'x', '', '')",
        "bell\x07",
    )
    assert shown(site, "--pristine", "--project", P)["environment"] == OWN


USAGE: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "unknown variable": (["--only", "SMTP_HOST", "--only", "SMTP_HOTS"], 2, ("SMTP_HOTS",)),
    "variable of a provider that was not chosen": (
        ["--provider", "twilio", "--only", "SMTP_HOST"],
        2,
        ("SMTP_HOST",),
    ),
    "incomplete": (["--provider", "elevenlabs"], 10, ("screening_agent_id", "phone_number_id")),
    "one of two incomplete": (
        ["--provider", "smtp", "--provider", "elevenlabs"],
        10,
        ("screening_agent_id",),
    ),
    "nothing stored": (["--provider", "no-such"], 10, ("no such credential",)),
    "unknown project": (["--project", "no-such"], 10, ("no project of that name or id",)),
    "empty project": (["--project", ""], 2, ("project: the name is empty",)),
    "misspelt option": (["--provder", "smtp"], 2, ("no such option",)),
}


@pytest.mark.parametrize("what", USAGE)
def test_what_cannot_be_meant_stops_it(site: Site, what: str) -> None:
    options, status, words = USAGE[what]
    stopped(site, status, *words, options=options)


def test_a_value_that_no_environment_can_hold_stops_it_and_is_not_shown(
    site: Site, vault: Vault
) -> None:
    vault.set("smtp", "password", f"{TOKEN}\0x")
    assert TOKEN not in stopped(site, 2, "SMTP_PASSWORD", "NUL").err
    assert set(shown(site, "--pristine", "--only", "SMTP_HOST")["environment"]) == {"SMTP_HOST"}


@pytest.mark.parametrize(
    "places", [(("acme", "api-key"), ("acme", "api_key")), (("a_b", "c"), ("a", "b_c"))]
)
def test_two_fields_of_one_name_stop_it(
    site: Site, vault: Vault, places: tuple[tuple[str, str], ...]
) -> None:
    for provider, field in places:
        vault.set(provider, field, TOKEN)
    name, rows = launch.variable(*places[0]), site.rows().values()
    ids = [row["id"] for row in rows if (row["provider"], row["credential_type"]) in places]
    error = stopped(site, 16, name, "two fields", *ids).err
    assert TOKEN not in error
    (advice,) = re.findall(r"'vault (delete [^']*)'", error)
    assert run(site, *advice.split(), "--yes").status == 0
    assert shown(site, "--pristine", "--only", name)["environment"] == {name: TOKEN}


def test_a_provider_in_other_capitals_is_the_one_that_is_named_to_be_removed(
    site: Site, vault: Vault
) -> None:
    vault.set("Twilio", "auth_token", TOKEN)
    stopped(site, 16, "TWILIO_AUTH_TOKEN", "'vault delete Twilio auth_token'", "--provider")
    assert (
        shown(site, "--pristine", "--provider", "twilio")["environment"]["TWILIO_AUTH_TOKEN"]
        == TOKEN
    )
    assert shown(site, "--pristine", "--only", "SMTP_HOST")["environment"] == {
        "SMTP_HOST": "mail.example.com"
    }


STEERING = """
    LD_PRELOAD LD_LIBRARY_PATH DYLD_INSERT_LIBRARIES BASH_ENV NODE_OPTIONS GIT_SSH_COMMAND
    SSL_CERT_FILE SSL_CERT_DIR CURL_CA_BUNDLE REQUESTS_CA_BUNDLE AWS_CA_BUNDLE HTTPS_PROXY
    ALL_PROXY PROMPT_COMMAND JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS GCONV_PATH
    MALLOC_CHECK_ GLIBC_TUNABLES OPENSSL_CONF GIT_EDITOR SSH_ASKPASS PERL_HASH_SEED PYTHON_GIL
    RUBY_GC OUTREACH_VAULT_DB XDG_CONFIG_HOME DBUS_SESSION_BUS_ADDRESS LC_ALL
"""


def field_of(name: str) -> tuple[str, str]:
    """A provider and a field whose variable this is."""
    provider, _, field = name[1:].lower().partition("_")
    return name[0].lower() + provider, field


@pytest.mark.parametrize("name", STEERING.split())
def test_no_field_sets_a_variable_that_changes_how_programs_run(
    vault: Vault, site: Site, name: str
) -> None:
    vault.set(*field_of(name), TOKEN)
    ids = [
        row["id"]
        for row in site.rows().values()
        if (row["provider"], row["credential_type"]) == field_of(name)
    ]
    # No value is opened before.
    site.change("UPDATE provider_credentials SET encrypted_value = 'broken'")
    for options in ([], ["--pristine"], ["--provider", field_of(name)[0]], ["--only", name]):
        done = run(site, "run", *options, "--", "true")
        failed(
            done,
            16,
            name,
            *ids,
            f"'vault delete {' '.join(field_of(name))}'",
            "--provider",
            "--only",
        )


def test_such_a_field_of_a_project_is_named_with_its_project_and_hinders_nothing_else(
    site: Site, vault: Vault
) -> None:
    vault.set("ld", "preload", TOKEN, P)
    assert (
        TOKEN
        not in stopped(
            site, 16, f"'vault delete ld preload --project {P}'", options=["--project", P]
        ).err
    )
    assert shown(site, "--pristine", "--project", P, "--only", "SMTP_HOST")["environment"] == {
        "SMTP_HOST": "own.example.com"
    }
    assert shown(site, "--pristine")["environment"] == GLOBAL


def test_a_variable_that_changes_how_programs_run_is_inherited_though_a_field_has_its_name(
    site: Site, vault: Vault, inherited: dict[str, str]
) -> None:
    """A row of anybody's would else switch off what the operator has set."""
    vault.set("ssl", "cert_file", TOKEN, "other")
    given = inherited | {"SSL_CERT_FILE": "/the/operators"}
    assert shown(site, "--project", P, env=given)["environment"] == without(given, *STRANGERS) | OWN


def test_no_providers_own_field_is_taken_for_one_that_changes_how_programs_run() -> None:
    names = {
        launch.variable(provider.name, field.name)
        for provider in catalogue()
        for field in provider.fields
    }
    known = """
    AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN OPENAI_API_KEY GITHUB_TOKEN
    GITLAB_TOKEN NPM_TOKEN GOOGLE_API_KEY CARGO_REGISTRY_TOKEN DOCKER_PASSWORD
    AZURE_CLIENT_SECRET STRIPE_API_KEY SLACK_BOT_TOKEN MAILGUN_API_KEY RESEND_API_KEY HF_TOKEN
    POSTMARK_SERVER_TOKEN CLOUDFLARE_API_TOKEN DATADOG_API_KEY SENTRY_DSN SMTP_PASSWORD
    LDAP_PASSWORD ENVOY_TOKEN PATHWAY_TOKEN
"""
    assert len(names) > 50 and not [
        name for name in (*names, *known.split()) if launch._CHANGES_PROGRAMS.match(name)
    ]


@pytest.mark.parametrize(
    ("mode", "text", "status", "words"),
    [
        (None, "", 127, "no such program"),
        (0o600, "#!/bin/sh\n", 126, "Permission denied"),
        (0o700, "no program", 126, "format error"),
        (
            0o700,
            "#!/no/such/interpreter -x\n",
            127,
            "its interpreter, /no/such/interpreter -x, does not",
        ),
        (0o700, "#!/bin/sh\r\necho hi\r\n", 127, "has a Windows line end"),
    ],
    ids=["none", "not executable", "not a program", "no interpreter", "Windows line ends"],
)
def test_a_program_that_cannot_be_run_has_the_status_of_env_and_says_why(
    site: Site, tmp_path: Path, mode: int | None, text: str, status: int, words: str
) -> None:
    program = tmp_path / "program"
    if mode is not None:
        program.write_text(text, newline="")
        program.chmod(mode)
    stopped(site, status, words, *([] if mode is None else [str(program)]), program=[str(program)])
    if text != "no program":  # env(1) hands that to a shell
        assert (
            subprocess.run(
                ["env", str(program)], capture_output=True, stdin=subprocess.DEVNULL, check=False
            ).returncode
            == status
        )


@pytest.mark.parametrize("name", ["x" * 300, ""])
def test_what_no_program_can_be_called_is_not_found(site: Site, name: str) -> None:
    failed(process(site, "run", "--", name), 127, "no such program")


@pytest.mark.sweep(1)
@pytest.mark.parametrize(
    ("name", "status"),
    [
        *(("./pipe", 126), ("./folder", 126), ("./missing", 127), ("./dangling", 127)),
        *(("./circle", 126), ("./pipe/within", 126), (f"./{'x' * 300}", 126)),
        *(("pipe", 126), ("folder", 126), ("missing", 127), ("without-x", 126), ("", 127)),
        *(("./as-folder", 126), ("./as-file", 126), ("./as-missing", 127), ("runs", 0)),
    ],
)
def test_what_cannot_be_started_has_the_status_of_env(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, status: int
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second, first / "folder", first / "runs"):
        folder.mkdir()
    os.mkfifo(first / "pipe", 0o700)
    (first / "circle").symlink_to("circle")
    (first / "dangling").symlink_to("nothing")
    (first / "without-x").write_text("#!/bin/sh\n")
    (second / "runs").symlink_to("/bin/true")
    for kind, named in (("folder", first), ("file", __file__), ("missing", first / "none")):
        (program := first / f"as-{kind}").write_text(f"#!{named}\n")
        program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{first}:{second}:{os.environ['PATH']}")
    env = subprocess.run(["env", name], cwd=first, capture_output=True, check=False)
    assert env.returncode == status
    done = process(site, "run", "--", name, cwd=first)
    assert done.status == status
    if status:
        failed(done, status)


def test_an_environment_that_is_too_large_is_not_taken_for_a_missing_program(
    site: Site, vault: Vault
) -> None:
    for number in range(40):
        vault.set("large", f"field-{number}", "x" * 65000)
    stopped(site, 126, "larger than this system allows", "--only", options=["--provider", "large"])


def test_no_command_is_a_usage_error(site: Site) -> None:
    failed(run(site, "run", "--"), 2, "COMMAND")


def test_a_failed_start_shows_no_value(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*call: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "execve", fail)
    monkeypatch.setattr(signal, "signal", lambda *call: None)
    with pytest.raises(CannotStart) as raised:
        launch.launch(["sh"], launch.Environment({"SMTP_PASSWORD": Secret(TOKEN)}, frozenset()))
    frame: TracebackType | None = raised.tb
    while frame:
        assert frame.tb_frame.f_code.co_filename != launch.__file__ or TOKEN not in repr(
            frame.tb_frame.f_locals
        )
        frame = frame.tb_next


def test_a_misspelt_option_is_not_taken_for_the_command_and_opens_no_value(site: Site) -> None:
    site.change("UPDATE provider_credentials SET encrypted_value = 'broken'")
    failed(run(site, "run", "--provder", "smtp", "--", "true"), 2, "--provider")


def test_a_command_that_did_not_start_leaves_the_signals_as_they_were(
    vault: Vault, tmp_path: Path
) -> None:
    """Else the caller would die of the next pipe that closes."""
    (tmp_path / "program").write_text("#!/no/such/interpreter\n")
    (tmp_path / "program").chmod(0o700)
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        with pytest.raises(CannotStart):
            launch.launch([str(tmp_path / "program")], launch.environment(vault, None))
        assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGPIPE, before)
