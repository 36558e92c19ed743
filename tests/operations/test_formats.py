"""
Values as text: what comes out of a file is what was written to it, for us and for the programs that
the formats belong to; and what does not fit is said without the value.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import dotenv
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outreach_vault import Secret
from outreach_vault.operations import formats
from outreach_vault.operations.formats import Entry, Problem, as_dotenv, read, recognised
from outreach_vault.operations.launch import variable
from outreach_vault.providers import catalogue
from outreach_vault.values.sealing import MAX_VALUE_BYTES

pytestmark = pytest.mark.sweep(5)

AIRFLOW = Path(__file__).parent.parent / "data" / "airflow"
SHELLS = [name for name in ("sh", "bash", "dash", "zsh", "ksh") if shutil.which(name)]
FIELDS = {
    variable(provider.name, field.name): [(provider.name, field.name)]
    for provider in catalogue()
    for field in provider.fields
}
ODD = "'\"\\$`#{}=!~*;&|()<>% \t\n\r\x01\x7f\x85\u2028\ufeffaN0é€\U0001f511"
texts = st.text(st.sampled_from(ODD), min_size=1, max_size=12) | st.text(
    st.characters(blacklist_categories=("Cs",)), min_size=1
)
CUT = [
    "a" * MAX_VALUE_BYTES,
    "'" * MAX_VALUE_BYTES,
    '$"\\ \n' * (MAX_VALUE_BYTES // 5),
    "é\n" * (MAX_VALUE_BYTES // 3),
]


def found(text: str, kind: str, project_id: str | None = None) -> list[Entry | Problem]:
    return list(read(kind, Secret(text), FIELDS, project_id))


def values(text: str, kind: str = "dotenv") -> dict[str, str]:
    entries = found(text, kind)
    assert all(isinstance(entry, Entry) for entry in entries), entries
    return {f"{e.provider}/{e.field}": e.value.reveal() for e in entries if isinstance(e, Entry)}


def problems(text: str, kind: str = "dotenv") -> list[tuple[str, str]]:
    return [(each.source, each.what) for each in found(text, kind) if isinstance(each, Problem)]


def by_shell(shell: str, file: Path, names: list[str]) -> list[str]:
    script = f'set -a; . "$1"; printf "%s\\0" {" ".join(f"${{{name}?}}" for name in names)}'
    quoted = script.replace("${", '"${').replace("?}", '?}"')
    done = subprocess.run([shell, "-c", quoted, shell, str(file)], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode().split("\0")[:-1]


# --- dotenv


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dotenv") / "vault.env"


@given(st.lists(texts, min_size=1, max_size=8))
@example(CUT)
def test_every_reader_of_dotenv_reads_the_very_values(file: Path, given: list[str]) -> None:
    named = dict(zip(sorted(FIELDS), given, strict=False))
    text, refused = as_dotenv({name: Secret(value) for name, value in named.items()})
    written = {name: value for name, value in named.items() if name not in refused}
    file.write_bytes(text.reveal().encode())
    assert dotenv.dotenv_values(file) == written  # with its defaults: ${NAME} means another
    assert values(text.reveal()) == {"/".join(FIELDS[name][0]): written[name] for name in written}
    for shell in SHELLS if written else ():
        assert by_shell(shell, file, list(written)) == list(written.values()), shell


def test_each_short_value_of_odd_characters_is_written_for_every_reader(file: Path) -> None:
    odd = "'\"\\$`{# a\n"
    all_of_them = ("".join(each) for n in (1, 2, 3) for each in itertools.product(odd, repeat=n))
    given = {f"V_{number}": value for number, value in enumerate(all_of_them)}
    text, refused = as_dotenv({name: Secret(value) for name, value in given.items()})
    written = {name: value for name, value in given.items() if name not in refused}
    assert (len(given), len(refused)) == (1110, 236)  # half of these end in a backslash
    file.write_bytes(text.reveal().encode())
    assert dotenv.dotenv_values(file) == written
    fields = {name: [("v", name)] for name in written}
    entries = read("dotenv", text, fields, None)
    assert {e.field: e.value.reveal() for e in entries if isinstance(e, Entry)} == written
    for shell in SHELLS:
        assert by_shell(shell, file, list(written)) == list(written.values()), shell


@pytest.mark.parametrize(
    "value",
    [
        "plain-0.9_@%+=:,/",
        " spaces around ",
        "#no comment #",
        "pa$$word`s",
        "it's",
        'say "it\'s"',
        "C:\\new\\table",
        "two\\\\and'one",
        "-----BEGIN X-----\nab/+=\n-----END X-----\n",
        "é € \U0001f511",
        "tab\tand\x7f",
        "{not}$a(name)",
    ],
)
def test_what_a_shell_and_python_dotenv_both_read_is_written(value: str) -> None:
    text, refused = as_dotenv({"SMTP_PASSWORD": Secret(value)})
    assert refused == []
    assert values(text.reveal()) == {"smtp/password": value}


@pytest.mark.parametrize(
    "value", ["$'", "`'", "$\\\\", "$a\\", "a\r", "a\0", "${HOME}", "'\\", "'\\\""]
)
def test_what_no_text_carries_to_both_is_refused_and_the_rest_is_written(value: str) -> None:
    text, refused = as_dotenv({"A": Secret("a b"), "B": Secret(value)})
    assert (text.reveal(), refused) == ("A='a b'\n", ["B"])


def test_a_value_without_quotes_is_written_for_docker_too() -> None:
    text, _ = as_dotenv({"A": Secret("AC0123-x:y/z=+@")})
    assert text.reveal() == "A=AC0123-x:y/z=+@\n"


def test_dotenv_is_read_as_python_dotenv_reads_it_but_for_other_variables() -> None:
    text = (
        "# a comment\r\n\r\nexport SMTP_HOST = mail.example.com # a comment\r\n"
        'SMTP_USER="a\\nb"\r\nSMTP_PASSWORD=${SMTP_HOST}$x\'"\nVONAGE_PRIVATE_KEY="a\r\nb"\r\n'
    )
    assert values(text) == {
        "smtp/host": "mail.example.com",
        "smtp/user": "a\nb",
        "smtp/password": "${SMTP_HOST}$x'\"",
        "vonage/private_key": "a\nb",
    }


def test_what_dotenv_does_not_fit_is_named_by_its_line() -> None:
    text = (
        "SMTP_HOST=a\n\n# b\nSMTP_PORT=\nNO_SUCH_FIELD=c\nSMTP_USER\n\nSMTP_PASSWORD='invented\n"
        "sk-0123456789abcdefghij=invented\n"
    )
    assert problems(text) == [
        ("line 4, SMTP_PORT", "it has no value"),
        ("line 5, NO_SUCH_FIELD", "no field has it"),
        ("line 6, SMTP_USER", "it has no value"),
        ("line 8", "not NAME=VALUE, or a quote is not closed"),
        (
            "line 9, a name that is not repeated, since it may be a secret",
            "no field has it",
        ),
    ]
    two = {"A_B": [("a", "b"), ("a_b", "")]}
    assert list(read("dotenv", Secret("A_B=1"), two, None)) == [
        Problem("line 1, A_B", "several fields have this variable")
    ]


def test_each_field_of_the_catalogue_has_a_variable_of_its_own() -> None:
    assert len(FIELDS) == sum(len(provider.fields) for provider in catalogue())


# --- JSON


@given(st.lists(texts, min_size=1))
@example(CUT)
def test_rows_in_json_are_read_as_they_were_written(given: list[str]) -> None:
    rows = [
        {"provider": f"p{n}", "credential_type": "f", "project_id": None, "value": value}
        for n, value in enumerate(given)
    ]
    for ascii_only in (True, False):
        text = json.dumps(rows, ensure_ascii=ascii_only)
        assert list(values(text, "json").values()) == given


ROW = {"provider": "smtp", "credential_type": "host", "project_id": None, "value": "invented"}


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (7, "not an object"),
        ("invented", "not an object"),
        (ROW | {"provider": 7}, "its provider or credential_type is not text"),
        (ROW | {"credential_type": None}, "its provider or credential_type is not text"),
        (ROW | {"value": None}, "it has no value, or one that is not text"),
        (ROW | {"value": 587}, "it has no value, or one that is not text"),
        (ROW | {"value": "********"}, "its value is the mask that lists show, not a value"),
        (ROW | {"label": ["a"]}, "its label is neither text nor null"),
        (
            {name: each for name, each in ROW.items() if name != "project_id"},
            "its project_id is neither text nor null (--project gives one)",
        ),
    ],
)
def test_a_row_that_is_none_is_said(row: object, what: str) -> None:
    assert problems(json.dumps([ROW, row]), "json") == [("row 2", what)]


def test_a_chosen_project_takes_the_place_of_each_rows_own() -> None:
    rows = [ROW, ROW | {"project_id": "b"}, {k: v for k, v in ROW.items() if k != "project_id"}]
    assert [e.project_id for e in found(json.dumps(rows), "json", "a") if isinstance(e, Entry)] == [
        "a"
    ] * 3


@pytest.mark.parametrize("kind", ["json", "airflow-json", "airflow-yaml"])
@pytest.mark.parametrize(
    "text",
    [
        "invented",
        '"invented"',
        "[" * 99999,
        "7",
        '[{"value": "invented", "value": "invented"}]',
        '{"a": {"password": "invented", "password": "invented"}}',
        '{"a": {}, "a": {}}',
        "[" + "9" * 9999 + "]",
        "a: *b",
        "a: 2001-99-99",
        "{[1, 2]: 3}",
        "\0",
    ],
)
def test_a_text_that_is_no_such_format_is_one_problem_without_the_text(
    kind: str, text: str
) -> None:
    said = problems(text, kind)
    assert said and "invented" not in str(said) and "999" not in str(said)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json", '[{"provider": "smtp", "credential_type": "host", "project_id": null,'
                 ' "value": "a", "value": "b"}]'),
        ("airflow-json", '{"smtp": {"host": "a", "host": "b"}}'),
        ("airflow-json", '{"smtp": {"host": "a"}, "smtp": {"user": "b"}}'),
        ("airflow-json", '{"smtp": {"extra": "{\\"host\\": \\"a\\", \\"host\\": \\"b\\"}"}}'),
        ("airflow-yaml", "smtp: {host: a, host: b}"),
        ("airflow-yaml", "smtp: {host: a}\nsmtp: {user: b}"),
        ("airflow-env", 'smtp={"host": "a", "host": "b"}'),
        ("airflow-env", "smtp=smtp:///?from_email=a&from_email=b"),
    ],
)  # fmt: skip
def test_of_a_name_that_comes_twice_neither_is_taken(kind: str, text: str) -> None:
    assert len(problems(text, kind)) == 1
    assert not any(isinstance(each, Entry) for each in found(text, kind))


# --- Airflow


SOURCE = json.loads((AIRFLOW / "given.json").read_text())
EXPECTED = {
    "smtp/host": "mail.example.com",
    "smtp/port": "587",
    "smtp/user": "office@example.com",
    "smtp/password": SOURCE["smtp_default"]["password"],
    "smtp/from_email": "sender@example.com",
    "twilio/account_sid": SOURCE["twilio"]["login"],
    "twilio/auth_token": "invented-token-made-of-words",
    "twilio/phone_number": "+15550100000",
    "elevenlabs/api_key": "invented-key-of-words",
    "elevenlabs/screening_agent_id": "invented-agent",
    "elevenlabs/phone_number_id": "invented-number",
    **{f"vonage/{name}": value for name, value in SOURCE["vonage"]["extra"].items()},
}
EXPORTS = {
    "export.json": "airflow-json",
    "export.yaml": "airflow-yaml",
    "export-uri.env": "airflow-env",
    "export-json.env": "airflow-env",
    "given.json": "airflow-json",  # by hand, with objects as extra
}


@pytest.mark.parametrize("name", EXPORTS)
def test_what_airflow_exports_is_read(name: str) -> None:
    text = (AIRFLOW / name).read_text()
    assert recognised(name, Secret(text)) == EXPORTS[name]
    entries = found(text, EXPORTS[name])
    assert {
        f"{e.provider}/{e.field}": e.value.reveal() for e in entries if isinstance(e, Entry)
    } == EXPECTED
    [unknown] = [each for each in entries if isinstance(each, Problem)]
    assert unknown.unknown and unknown.source.endswith("connection warehouse")


def one(**connection: object) -> list[Entry | Problem]:
    return found(json.dumps({"mine": connection}), "airflow-json")


def places(entries: list[Entry | Problem]) -> dict[str, str]:
    return {f"{e.provider}/{e.field}": e.value.reveal() for e in entries if isinstance(e, Entry)}


@pytest.mark.parametrize(
    ("provider", "login", "password"),
    [
        ("twilio", "account_sid", "auth_token"),
        ("smtp", "user", "password"),
        ("email", "user", "password"),
        ("sendgrid", None, "api_key"),
        ("plivo", "auth_id", "auth_token"),
        ("bullhorn", "username", "password"),
        ("greenhouse", "client_id", "client_secret"),
        ("ses", None, "aws_secret_access_key"),
        ("vonage", None, None),
        ("vincere", None, None),
    ],
)
def test_login_and_password_are_fields_only_where_no_other_could_be_meant(
    provider: str, login: str | None, password: str | None
) -> None:
    made = one(conn_type=provider, login="l", password="p")
    name = "smtp" if provider == "email" else provider
    wanted = {f"{name}/{login}": "l", f"{name}/{password}": "p"}
    assert places(made) == {at: each for at, each in wanted.items() if "None" not in at}
    lacking = [f"connection mine, {part}" for part, field in
               (("login", login), ("password", password)) if field is None]  # fmt: skip
    assert [each.source for each in made if isinstance(each, Problem)] == lacking


def test_a_connections_name_is_a_providers_too_but_not_another_than_its_type() -> None:
    given = {"sendgrid": {"conn_type": "http", "password": "p"}}
    assert places(found(json.dumps(given), "airflow-json")) == {"sendgrid/api_key": "p"}
    given = {"sendgrid": {"conn_type": "email", "password": "p"}}
    assert found(json.dumps(given), "airflow-json") == [
        Problem("connection sendgrid", "its id and its type are two providers")
    ]


@pytest.mark.parametrize(
    ("connection", "what", "unknown"),
    [
        ({"conn_type": "smtp", "schema": "x"}, "no field of smtp is sure to be meant", True),
        ({"conn_type": "smtp", "extra": {"timeout": 9}}, "no field of smtp is sure", True),
        ({"conn_type": "smtp", "extra": "[invented"}, "its extra is not a JSON object", False),
        ({"conn_type": "smtp", "extra": ["invented"]}, "its extra is not a JSON object", False),
        ({"conn_type": "smtp", "password": True}, "its value is not text", False),
        ({"conn_type": "smtp", "password": ["invented"]}, "its value is not text", False),
        ({"conn_type": "postgres"}, "no provider has the name of its type or id", True),
        ({"conn_type": None}, "no provider has the name of its type or id", True),
        ({"conn_type": ["smtp"]}, "no provider has the name of its type or id", True),
    ],
)
def test_what_no_field_is_there_for_is_said(
    connection: dict[str, object], what: str, unknown: bool
) -> None:
    [problem] = one(**connection)
    assert isinstance(problem, Problem) and problem.what.startswith(what)
    assert problem.unknown == unknown and "invented" not in str(problem)


def test_what_airflow_takes_for_not_there_is_not_there() -> None:
    assert one(conn_type="smtp", host="", login=None, extra="") == []


@pytest.mark.parametrize(
    "text", ["a=invented", "a=smtp://[invented", "a=smtp://a:b@c:invented", "a={invented}",
             "a=smtp://h/?x=invented&x=y", "a="],
)  # fmt: skip
def test_a_line_that_is_no_connection_is_said_without_the_line(text: str) -> None:
    assert problems(f"\n# b\n{text}", "airflow-env") == [
        ("line 3, connection a", "not a connection: neither an object nor a URI")
    ]


def test_yaml_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    [(source, what)] = problems("a: {}", "airflow-yaml")
    assert source == "the file" and "pip install 'outreach_vault[yaml]'" in what


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    text = f"smtp: {{host: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']}}"
    assert [source for source, _ in problems(text, "airflow-yaml")] == ["the file"]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ["- a", "a: &b [*b]\n", "a: 1", "a: {conn_type: smtp, host: 1.5}"])
def test_yaml_that_is_no_connection_is_said(text: str) -> None:
    assert len(problems(text, "airflow-yaml")) == 1


# --- which format


NAMES = [
    (".env", "# a\n\nSMTP_HOST=a\n", "dotenv"),
    ("-", "export SMTP_HOST = a", "dotenv"),
    ("-", "DATABASE_URL=postgres://a\n", "dotenv"),
    ("-", "mail=smtp://a\n# b\n\nother={}\r\n", "airflow-env"),
    ("-", "mail=smtp://a\nSMTP_HOST=a", "dotenv"),
    ("-", " \n[", "json"),
    ("-", "{", "airflow-json"),
    ("a.YML", "a: b", "airflow-yaml"),
    ("-", "a: b", None),
    ("notes.txt", "invented", None),
    (".env", "", None),
]


@pytest.mark.parametrize(("name", "text", "kind"), NAMES)
def test_a_format_is_known_by_content_and_name(name: str, text: str, kind: str | None) -> None:
    assert recognised(name, Secret(text)) == kind
    assert kind is None or kind in formats.FORMATS
