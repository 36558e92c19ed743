"""
The catalogue of providers: what it promises as data, who may add to it, and how the command asks by
it.
"""

from __future__ import annotations

import importlib.metadata
import re
import secrets
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from helpers.commands import Terminal, failed, process, run
from helpers.oidc import AuthorizationServer
from helpers.providers_api import Answer, Api, as_json
from helpers.rows import ABORT, triggered
from helpers.site import Site

from outreach_vault import IncompleteAccount, NeedsLogin, Secret, VaultError, providers
from outreach_vault.providers import CHANNELS, Provider, catalogue, find, provider_of, require_rule
from outreach_vault.providers.grants import ENDPOINT, is_endpoint
from outreach_vault.schema.shapes import to_iso

P = "default-project"
# The desktop app's pairs. S: secret, A: of one account, R: required; where the app falls back
# (port, from_email) it is not.
APP = {
    "twilio": {"account_sid": "AR", "auth_token": "SAR", "phone_number": "R"},
    "smtp": {"host": "AR", "port": "A", "user": "AR", "password": "SAR", "from_email": ""},
    "elevenlabs": {"api_key": "SAR", "screening_agent_id": "R", "phone_number_id": "R"},
    "anthropic": {"api_key": "SAR"},
}
HEX = "0" * 32
# an invented one
PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAAAAA\n-----END PRIVATE KEY-----"
UNSEEN = ["\ufeff", "\u200b", "\u200d", "\xa0", "\x07", "\u202e", "\u2028", "\ue000"]
VALUES: dict[tuple[str, str], tuple[list[str], list[str]]] = {  # taken, and refused
    ("twilio", "account_sid"): (
        ["AC" + HEX, "AC" + "f" * 32],
        ["AC" + HEX[1:], "AC0" + HEX, "SK" + HEX, "AC" + "g" * 32, f"AC{HEX}\n", ""],
    ),
    ("twilio", "auth_token"): (["t" * 20, "t" * 64], ["t" * 19, "t" * 20 + " ", "t" * 20 + "\n"]),
    ("twilio", "phone_number"): (
        ["+15005550006", "+" + "1" * 15],
        ["15005550006", "+1 500 555 0006", "+1", "+" + "1" * 16, "+１５００５５５０００６"],
    ),
    ("smtp", "host"): (
        ["mail.example.com", "127.0.0.1", "::1", "mx_1"],
        ["https://mail.example.com", "a/b", "a b", "user@host", "host\n", ""],
    ),
    ("smtp", "port"): (
        ["1", "25", "465", "587", "9999", "10000", "59999", "65535"],
        [
            "0",
            "0465",
            " 465",
            "465\n",
            "65536",
            "70000",
            "100000",
            "-1",
            "smtp",
            "４６５",
            "4６５",
            "46５",
            "",
        ],
    ),
    ("smtp", "user"): (
        ["u", "sender@example.com", "two words"],
        [" u", "u ", "u\n", "\nu", "one\ntwo", ""],
    ),
    ("smtp", "oauth_token_url"): (
        [
            "https://login.example.com/a/oauth2/v2.0/token?p=1",
            "https://id.example:8443/",
            "http://127.0.0.1:8080/token",
            "http://localhost/token",
            "http://[::1]:1/token",
        ],
        [
            "http://login.example.com/token",
            "https://login.example.com",
            "https://user@login.example.com/token",
            "https://localhost\\@evil.example/token",
            "http://127.0.0.1.evil.example/token",
            "http://localhost.evil.example/token",
            "https://login.example.com/token#part",
            "https://login.example.com/to ken",
            "ftp://login.example.com/token",
            "login.example.com/token",
            "",
        ],
    ),
    ("smtp", "from_email"): (
        ["sender@example.com"],
        ["sender", "Sender <sender@example.com>", "a@b@c", "@example.com", "a@b\n"],
    ),
    ("elevenlabs", "api_key"): (["sk_0"], ["", "two words", "sk_0\n"]),
    ("anthropic", "api_key"): (["sk-ant-0"], ["sk ant", "sk-ant-0\n"]),
    ("sendgrid", "api_key"): (
        ["SG." + "0" * 22 + "." + "0" * 43],
        ["SG." + "0" * 65, "SG." + "0" * 67, "sg." + "0" * 66],
    ),
    ("ses", "aws_access_key_id"): (
        ["AKIA" + "0" * 16, "ASIA" + "0" * 16],
        ["AKIA", "AIDA" + "0" * 16, "AKIA" + "0" * 16 + "\n"],
    ),
    ("ses", "region_name"): (["eu-west-1"], ["eu west", "eu_west", ""]),
    ("mailgun", "region"): (["us", "eu"], ["US", "use", ""]),
    ("telnyx", "api_key"): (["KEY0"], ["KEY", "key0"]),
    ("plivo", "auth_id"): (["MA" + "0" * 18, "SA" + "0" * 18], ["MA" + "0" * 17, "XA" + "0" * 18]),
    ("openai", "api_key"): (["sk-0"], ["sk-", "sk_0", "sk-0\n"]),
    ("greenhouse", "sub"): (["0", "123"], ["", "12a", "１２"]),
    ("vonage", "private_key"): (
        [
            PEM,
            PEM + "\n",
            "\n" + PEM,
            PEM.replace("\n", "\r\n"),
            PEM.replace("PRIVATE", "EC PRIVATE"),
        ],
        [
            "-----BEGIN PRIVATE KEY-----",
            PEM[:-5],
            PEM[5:],
            PEM.replace("END PRIVATE", "END PUBLIC"),
            PEM + "\n" + PEM,
            PEM.replace("\n", ""),
            PEM.replace("\n", "\\n"),
            PEM.replace("M", "\u200b"),
            "",
            "one line",
        ],
    ),
    ("retell", "from_number"): (["+15005550006"], ["15005550006"]),
}


def every_field() -> list[Any]:
    return [
        pytest.param(provider.name, field, id=f"{provider.name}/{field.name}")
        for provider in catalogue()
        for field in provider.fields
    ]


# The data


@pytest.mark.parametrize("provider", catalogue(), ids=lambda provider: provider.name)
def test_a_provider_of_the_catalogue_is_well_formed(provider: Provider) -> None:
    names = [field.name for field in provider.fields]
    assert (
        names
        and len(set(names)) == len(names)
        and all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in (provider.name, *names))
    )
    assert provider.channel in CHANNELS and provider.title.isprintable() and provider.title
    assert re.fullmatch(r"https://[a-z0-9.-]+/\S*", provider.source)
    assert any(field.required and field.account for field in provider.fields)
    assert find(provider.name) is provider and [provider.field(name) for name in names] == list(
        provider.fields
    )
    for field in provider.fields:
        assert field.help and field.help.isprintable() and field.help == field.help.strip()
        assert not field.rule or (
            re.compile(field.rule.pattern) and field.rule.words and field.rule.words.isprintable()
        )


GRANTS = [provider for provider in catalogue() if provider.grant]


@pytest.mark.parametrize("provider", GRANTS, ids=lambda provider: provider.name)
def test_a_grant_of_the_catalogue_is_well_formed(provider: Provider) -> None:
    grant, fields = provider.grant, {field.name: field for field in provider.grant_fields}
    assert grant and fields[grant.client_id].account and not fields[grant.client_id].secret
    if is_endpoint(grant.token_url):
        assert grant.token_url.startswith("https://")
    else:
        rule = fields[grant.token_url].rule
        assert rule and rule.pattern == ENDPOINT
    for url in filter(None, (grant.authorization_url, grant.device_url)):
        assert is_endpoint(url) and url.startswith("https://")
    assert re.fullmatch(r"https://[a-z0-9.-]+/\S*", grant.source)
    secret = {name for name, field in fields.items() if field.secret}
    assert secret and secret == {grant.client_secret, grant.refresh_token} & set(fields)
    # Only what client credentials send beside them may be another scope's.
    assert {name for name, field in fields.items() if not field.account} <= set(grant.more)
    assert set(grant.more) <= set(fields)
    if grant.instead_of:
        stood_in_for = provider.field(grant.instead_of)
        assert stood_in_for and stood_in_for.required and stood_in_for.name not in fields
        assert not fields[grant.refresh_token].required


# What an account with these fields lacks, and whether it has a grant.
LACKING: list[tuple[str, str, tuple[str, ...], bool]] = [
    ("bullhorn", "client_id client_secret username password", (), False),
    ("bullhorn", "client_id client_secret username", ("password",), False),
    ("bullhorn", "client_id client_secret username refresh_token token_url", (), True),
    ("bullhorn", "client_id client_secret username refresh_token", ("token_url",), False),
    ("bullhorn", "client_id client_secret username token_url", ("refresh_token",), False),
    ("bullhorn", "client_id username refresh_token token_url", ("client_secret",), False),
    ("lever", "api_key", (), False),
    ("lever", "", ("api_key",), False),
    ("lever", "client_id client_secret", ("refresh_token",), False),
    ("lever", "client_id client_secret refresh_token", (), True),
    ("greenhouse", "client_id client_secret", (), True),
    ("greenhouse", "client_id", ("client_secret",), False),
    ("jobadder", "client_id client_secret refresh_token", (), True),
    ("jobadder", "client_id client_secret", ("refresh_token",), False),
    ("jobadder", "client_id refresh_token", ("client_secret",), False),
    ("vincere", "domain api_key client_id refresh_token", (), True),
]


@pytest.mark.parametrize(("name", "stored", "lacking", "has_grant"), LACKING)
def test_an_account_is_complete_with_its_grant_or_with_what_that_stands_in_for(
    name: str, stored: str, lacking: tuple[str, ...], has_grant: bool
) -> None:
    provider, names = provider_of(name), stored.split()
    assert provider.missing(names) == lacking
    assert provider.grant_of(names) is (provider.grant if has_grant else None)


def test_a_grant_without_refresh_tokens_lacks_the_secret() -> None:
    assert provider_of("greenhouse").grant_missing(["client_id"]) == ("client_secret",)
    assert provider_of("twilio").grant_missing([]) == ()


def test_what_only_the_grant_needs_is_not_asked_for_where_there_is_another_way() -> None:
    def asked(name: str, stored: str = "") -> list[str]:
        return [field.name for field in provider_of(name).asked_for(stored.split())]

    both = ["client_id", "client_secret", "username"]
    assert asked("bullhorn") == [*both, "password"]
    assert asked("bullhorn", "client_id client_secret refresh_token token_url") == both
    assert asked("lever") == ["api_key", "perform_as"]
    assert asked("jobadder") == ["client_id", "client_secret", "refresh_token", "scope"]


def test_names_are_unique_and_sorted() -> None:
    names = [provider.name for provider in catalogue()]
    assert names == sorted(set(names)) and set(APP) < set(names)
    assert find("no-such") is None and find("SMTP") is None and find("") is None


@pytest.mark.parametrize("name", APP)
def test_the_desktop_apps_providers_have_its_fields_and_its_requirements(name: str) -> None:
    provider = find(name)
    assert provider
    flags = {f.name: "S" * f.secret + "A" * f.account + "R" * f.required for f in provider.fields}
    of_grant = provider.grant.fields if provider.grant else ()
    assert {field: flags.pop(field) for field in APP[name]} == APP[name]
    assert set(flags) == set(of_grant)


@pytest.mark.parametrize(("provider", "field"), VALUES, ids=map("/".join, VALUES))
def test_a_rule_takes_what_the_provider_gives_out_and_says_what_it_wants_of_the_rest(
    provider: str, field: str
) -> None:
    good, bad = VALUES[provider, field]
    for value in good:
        require_rule(provider, field, Secret(value))
    listed = next(found for found in provider_of(provider).fields if found.name == field)
    assert listed.rule
    for value in bad:
        with pytest.raises(ValueError, match=re.escape(listed.rule.words)) as caught:
            require_rule(provider, field, Secret(value))
        assert len(value) < 6 or value not in str(caught.value)


@pytest.mark.parametrize(("provider", "field"), every_field())
def test_no_value_of_one_line_that_a_rule_takes_has_a_line_end_around_it(
    provider: str, field: Any
) -> None:
    """
    It comes with copying, and no provider's credential has one: a header with it is refused by
    every HTTP library.
    """
    if field.rule:
        for value in ("x\n", "\nx", "x\r\n", "1\n", "x\u2028", "us\n"):
            assert not field.rule.allows(value), (provider, field.name)


@pytest.mark.parametrize(("provider", "field"), VALUES, ids=map("/".join, VALUES))
def test_no_rule_takes_a_character_that_nobody_sees_and_the_error_says_that_there_is_one(
    provider: str, field: str
) -> None:
    good = VALUES[provider, field][0][0]
    for character in UNSEEN:
        for value in (character + good, good[:1] + character + good[1:], good + character):
            with pytest.raises(
                ValueError,
                match=r"it has (a|white) .* (at the beginning|inside|at the end); it must be",
            ) as caught:
                require_rule(provider, field, Secret(value))
            assert character not in str(caught.value)


def test_a_text_of_several_lines_is_known_by_its_field() -> None:
    fields = {
        (provider.name, field.name): field
        for provider in catalogue()
        for field in provider.fields
        if field.lines
    }
    assert set(fields) == {("vonage", "private_key")}
    assert all("\n" in VALUES[place][0][0] and field.secret for place, field in fields.items())


def test_the_examples_are_of_every_rule_of_its_own() -> None:
    """Those that only say "one word" or "text" are shown once; any other needs its own."""
    ruled = {
        (provider.name, field.name): field.rule.pattern
        for provider in catalogue()
        for field in provider.fields
        if field.rule and find(provider.name) is provider
    }
    assert {ruled[place] for place in VALUES} == set(ruled.values())


# What another package adds

MODULE = """
from outreach_vault.providers import Field, Provider, Rule
from outreach_vault.providers.grants import Grant

def made(name, title):
    field = Field("token", "a token", secret=True, rule=Rule("digits", "[0-9]+"))
    return Provider(name, title, "sms", (field,), "https://example.com/")

new, impostor = made("acme", "Acme"), made("smtp", "Not SMTP")
first, second = made("twice", "First"), made("twice", "Second")
nothing = {"name": "acme2"}

client = (Field("client_id", "its id"), Field("client_secret", "its secret", secret=True))
url = Field("token_url", "where tokens are from")
ats = Provider("acme_ats", "Acme ATS", "ats", (
    *client, url, Field("refresh_token", "of a login", secret=True, days=14),
), "https://example.com/", Grant(
    "token_url", "https://example.com/", gives="id_token", needs_login=True,
))
hire = Provider("acme_hire", "Acme Hire", "ats", (
    *client, url, Field("sub", "who acts", account=False, required=False),
), "https://example.com/", Grant("token_url", "https://example.com/", basic=True, more=("sub",)))
"""
BROKEN = """
def password(text):
    raise %s(text)

password("canary")
"""


@pytest.fixture(autouse=True)
def nothing_added() -> Iterator[None]:
    """
    What the packages of this process add is kept for its life, and a test's package goes with the
    test.
    """
    providers._added.cache_clear()
    yield
    providers._added.cache_clear()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **entries: str) -> None:
    """As pip leaves a package: its module, and its entry points."""
    module = f"added_{secrets.token_hex(4)}"
    (folder / f"{module}.py").write_text(MODULE)
    for error in ("RuntimeError", "SystemExit"):
        (folder / f"{module}_{error}.py").write_text(BROKEN % error)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = "".join(
        f"{name} = {module}{target}\n"
        if target.startswith(("_", ":"))
        else f"{name} = {module if target in MODULE else 'no_such'}:{target}\n"
        for name, target in entries.items()
    )
    (info / "entry_points.txt").write_text(f"[outreach_vault.providers]\n{lines}")
    monkeypatch.syspath_prepend(str(folder))
    providers._added.cache_clear()


def test_a_provider_of_another_package_is_found_and_its_rule_kept(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, acme="new", other="nothing")
    added = find("acme")
    assert added and added.title == "Acme" and added in catalogue() and find("acme2") is None
    with pytest.raises(ValueError, match="digits"):
        require_rule("acme", "token", Secret("abc"))
    assert run(site, "providers", "acme", "--json").data["title"] == "Acme"
    assert run(site, "set", "acme", "token", stdin=b"123\n").status == 0
    with site.open() as vault:
        assert vault.bundle("acme").token == Secret("123")
        assert vault.delete("acme", "token")
        with pytest.raises(VaultError, match="missing token"):
            vault.bundle("acme")


@pytest.fixture
def acme_ats(
    authorization_server: AuthorizationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """An account of another package's provider; the server's clients are its too."""
    install(tmp_path, monkeypatch, acme_ats="ats")
    login = authorization_server.grant("post", scope="openid offline_access")
    return {
        "client_id": login.client.id,
        "client_secret": str(login.client.secret),
        "token_url": authorization_server.token_url,
        "refresh_token": login.refresh_token,
    }


def test_a_provider_of_another_package_may_have_a_grant(
    site: Site, authorization_server: AuthorizationServer, acme_ats: dict[str, str]
) -> None:
    assert run(site, "providers", "acme_ats", "--json").data["grant"] == {
        "fields": list(acme_ats),
        "token_url": "token_url",
        "gives": "id_token",
        "source": "https://example.com/",
    }
    refresh_token = acme_ats.pop("refresh_token")
    with site.open() as vault:
        vault.set_fields("acme_ats", acme_ats)
        with pytest.raises(IncompleteAccount, match=r"missing refresh_token$"):
            vault.access_token("acme_ats", P)  # never as the client alone
        vault.set("acme_ats", "refresh_token", refresh_token)
        token = vault.access_token("acme_ats", P)
        assert token.reveal().count(".") == 2  # the id_token: the access tokens have no parts
        assert vault.bundle("acme_ats").refresh_token != Secret(refresh_token)
    assert authorization_server.counters()["requests"] == {"refresh_token": 1}


@pytest.mark.parametrize("kind", [None, "same_refresh", "no_refresh"])
def test_a_refresh_token_is_due_from_its_last_use_whether_or_not_it_is_replaced(
    site: Site,
    authorization_server: AuthorizationServer,
    acme_ats: dict[str, str],
    kind: str | None,
) -> None:
    now = datetime.now(UTC)
    if kind:
        authorization_server.fault(kind, times=None)
    with site.open() as vault:

        def due_in() -> int:
            [value] = run(site, "due", "--json").data
            return (date.fromisoformat(value["due"]) - now.date()).days

        def make_older(days: int) -> None:
            for table in ("provider_credentials", "vault_tokens"):
                then = to_iso(now - timedelta(days=days))
                vault.database.change(f"UPDATE {table} SET updated_at = ?", (then,))

        vault.set_fields("acme_ats", acme_ats)
        make_older(10)
        assert due_in() == 4
        vault.access_token("acme_ats")
        assert due_in() == 14
        make_older(3)
        vault.access_token("acme_ats")  # the one at hand: no use
        assert due_in() == 11


class TokenEndpoint(Api):
    """Gives a token for each request, and keeps what each sent."""

    def own_answer(
        self, path: str, headers: Message, body: bytes
    ) -> tuple[str | None, dict[str, Any], Answer]:
        fields = dict(parse_qsl(body.decode(), strict_parsing=True))
        given = {"access_token": f"token-{len(self.asked)}", "token_type": "Bearer"}
        # As Greenhouse answers: no expires_in.
        given["expires_at"] = "2100-01-01T00:00:00Z"
        return headers.get("Authorization"), fields, as_json(200, given)


def test_what_client_credentials_send_too_may_be_of_the_project(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, acme_hire="hire")
    with TokenEndpoint() as api, site.open() as vault:
        url = f"http://127.0.0.1:{api.port}/token"
        vault.set_fields("acme_hire", {"client_id": "c", "client_secret": "s", "token_url": url})
        general = vault.access_token("acme_hire", P)
        vault.set("acme_hire", "sub", "12", P)
        own = vault.access_token("acme_hire", P)
        assert [(each.reveal(), each.project_id) for each in (general, own)] == [
            ("token-0", None),
            ("token-1", P),
        ]
        assert (vault.access_token("acme_hire"), vault.access_token("acme_hire", P)) == (
            general,
            own,
        )
        vault.set("acme_hire", "sub", "13", P)
        vault.access_token("acme_hire", P)
        vault.set("acme_hire", "client_secret", "new")  # of the other scope
        vault.access_token("acme_hire", P)
        vault.set("acme_hire", "sub", "14")
        vault.access_token("acme_hire")
        site.change("DELETE FROM provider_credentials WHERE credential_type = 'sub'")
        vault.access_token("acme_hire")  # not the one of the user who acted before
    sent = {"grant_type": "client_credentials", "client_id": "c"}
    subs = (each.fields.pop("sub", None) for each in api.asked)
    assert list(subs) == [None, "12", "13", "13", "14", None]
    assert [each.fields for each in api.asked] == [sent] * len(api.asked)
    assert {str(each.account).split()[0] for each in api.asked} == {"Basic"}


def test_zohos_word_for_a_refresh_token_that_has_ended_asks_for_a_login(site: Site) -> None:
    with TokenEndpoint() as api, site.open() as vault:
        api.answers.append(as_json(200, {"error": "invalid_code"}))
        account = {"client_id": "c", "client_secret": "invented", "refresh_token": "old"}
        url = f"http://127.0.0.1:{api.port}/oauth/v2/token"
        vault.set_fields("zoho_recruit", {**account, "token_url": url})
        with pytest.raises(NeedsLogin, match="invalid_code"):
            vault.access_token("zoho_recruit")
    assert api.asked[0].fields == {**account, "grant_type": "refresh_token"}


def test_another_package_cannot_replace_a_provider_of_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = find("smtp")
    install(tmp_path, monkeypatch, smtp="impostor", acme="new")
    assert find("acme") and find("smtp") is before
    assert [provider.title for provider in catalogue() if provider.name == "smtp"] == [
        "SMTP server"
    ]


def test_of_two_packages_with_one_name_the_same_one_is_listed_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, one="first", two="second")
    assert [provider for provider in catalogue() if provider.name == "twice"] == [find("twice")]


@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "other", "token"),
        ("run", "--", sys.executable, "-c", ""),
        ("providers",),
        ("providers", "smtp"),
    ],
)
def test_a_broken_package_does_not_take_the_command_away(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """
    What another package breaks is its own provider; that no other one can be stored or read would
    be our fault.
    """
    install(tmp_path, monkeypatch, acme="missing_module")
    monkeypatch.setattr("outreach_vault.operations.launch.launch", lambda *_, **__: 0)
    with site.open() as vault:
        vault.set("other", "token", "v")
    done = run(site, *arguments, stdin=b"value\n")
    assert done.status == 0 and "a bug" not in done.err, done.err


LEFT_OUT = {
    "acme": ("missing_module", "cannot be loaded: ModuleNotFoundError"),
    "raises": ("_RuntimeError:x", r"cannot be loaded: RuntimeError at added_\w+_RuntimeError.py:3"),
    "leaves": ("_SystemExit:x", r"cannot be loaded: SystemExit at added_\w+_SystemExit.py:3"),
    "lacks": (":nowhere", "cannot be loaded: AttributeError"),
    "nothing": ("nothing", "is no Provider but a dict"),
    "smtp": ("impostor", "there is another provider smtp, which stays"),
    "two": ("second", "there is another provider twice, which stays"),
}


@pytest.fixture
def left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[re.Pattern[str]]:
    """One package with all that can be wrong; what is to be said of each."""
    targets = {name: target for name, (target, _) in LEFT_OUT.items()}
    install(tmp_path, monkeypatch, one="first", good="new", **targets)
    return [
        re.compile(rf"provider {name}, the entry point \S+ of the package added_\w+: {fault}")
        for name, (_, fault) in LEFT_OUT.items()
    ]


def require_matched(lines: list[str], patterns: list[re.Pattern[str]]) -> None:
    odd = [line for line in lines if not any(pattern.fullmatch(line) for pattern in patterns)]
    said = [pattern for pattern in patterns if any(map(pattern.fullmatch, lines))]
    assert (odd, said, len(lines)) == ([], patterns, len(patterns))


def test_what_is_left_out_of_other_packages_is_logged_once_with_the_package_and_the_reason(
    left_out: list[re.Pattern[str]], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert (
            find("raises") is None
            and find("acme")
            and catalogue()
            and len(providers.faults()) == len(left_out)
        )
    # Not what a server of another test may log in its thread meanwhile.
    ours = [record for record in caplog.records if record.name == "outreach_vault.providers"]
    messages = [record.getMessage() for record in ours]
    assert list(providers.faults()) == messages
    require_matched(messages, left_out)
    assert {record.levelname for record in ours} == {"WARNING"}
    assert "canary" not in caplog.text


def test_providers_and_doctor_say_what_is_left_out_in_a_line_each(
    site: Site, left_out: list[re.Pattern[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.open() as vault:
        vault.set("other", "token", "v")  # a provider that is looked for in other packages too
    path = sys.path[0]
    monkeypatch.setenv("PYTHONPATH", path)
    listed = process(site, "providers")
    lines = [line.removeprefix("vault: warning: ") for line in listed.err.splitlines()]
    require_matched(lines, left_out)
    assert "Acme" in listed.out
    examined = process(site, "doctor")
    notices = [line for line in examined.out.splitlines() if line.startswith("notice: provider")]
    require_matched([line.removeprefix("notice: ") for line in notices], left_out)
    assert (examined.status, examined.err) == (0, "")
    assert "canary" not in f"{listed} {examined}"
    found = run(site, "doctor", "--json").data["findings"]
    assert len([each for each in found if each["kind"] == "another package"]) == len(left_out)


def test_what_other_packages_add_is_read_once_and_not_for_a_provider_of_the_catalogue(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_points, read = importlib.metadata.entry_points, list[dict[str, str]]()

    def counted(**group: str) -> Any:
        read.append(group)
        return entry_points(**group)

    monkeypatch.setattr(importlib.metadata, "entry_points", counted)
    with site.open() as vault:
        vault.set("anthropic", "api_key", "v")
        vault.set("other", "token", "v")
        assert (
            vault.bundle("anthropic").api_key == vault.get("other", "token").secret == Secret("v")
            and read == []
        )
        for _ in range(5):
            assert vault.bundle("other").token == Secret("v")
            assert find("nobody") is None and catalogue()
    assert read == [{"group": providers.ENTRY_POINTS}]


def test_a_provider_that_nobody_lists_stores_and_reads(site: Site) -> None:
    assert run(site, "set", "other", "Any-Field", "--new", stdin=b" v\n\n").status == 0
    assert run(site, "get", "other", "Any-Field").out == " v\n\n"
    with site.open() as vault:
        assert vault.bundle("other")["Any-Field"].reveal() == " v\n"


# vault providers


def test_providers_as_json_has_exactly_the_published_names(site: Site) -> None:
    done = run(site, "providers", "--json")
    assert (done.status, done.err) == (0, "")
    for provider in done.data:
        assert list(provider) == ["name", "title", "channel", "source", "fields", "grant"]
        assert all(
            list(field) == ["name", "help", "secret", "required", "account", "rule"]
            for field in provider["fields"]
        )
    assert [provider["name"] for provider in done.data] == [
        provider.name for provider in catalogue()
    ]
    one = run(site, "providers", "smtp", "--json").data
    assert one in done.data
    assert one["fields"][1] == {
        "name": "port",
        "help": "465 for TLS from the start; 587, or nothing, for STARTTLS",
        "secret": False,
        "required": False,
        "account": True,
        "rule": "a port: 1 to 65535",
    }
    assert [field["rule"] for field in one["fields"] if field["name"] == "password"] == [None]
    grants = {provider["name"]: provider["grant"] for provider in done.data}
    assert {name for name, grant in grants.items() if grant} == {each.name for each in GRANTS}
    assert grants["vincere"] == {
        "fields": ["client_id", "refresh_token"],
        "token_url": "https://id.vincere.io/oauth2/token",
        "gives": "id_token",
        "source": "https://github.com/vincere-io/vincere-identity",
    }


def test_providers_for_people_names_each_provider_or_each_field(site: Site) -> None:
    lines = run(site, "providers").out.splitlines()
    assert lines[0].split() == ["PROVIDER", "CHANNEL", "TITLE"] and len(lines) == 1 + len(
        catalogue()
    )
    lines = run(site, "providers", "smtp").out.splitlines()
    assert lines[0] == "SMTP server (email), after https://www.rfc-editor.org/rfc/rfc8314"
    assert lines[1].split()[:4] == ["FIELD", "SECRET", "REQUIRED", "ACCOUNT"]
    assert lines.pop() == (
        "OAuth2: oauth_client_id, oauth_client_secret, oauth_refresh_token, oauth_token_url,"
        " oauth_scope; access_token from the URL in oauth_token_url; after"
        " https://www.rfc-editor.org/rfc/rfc6749"
    )
    assert run(site, "providers", "greenhouse").out.splitlines()[-1] == (
        "OAuth2: client_id, client_secret, sub; access_token from https://auth.greenhouse.io/token;"
        " after https://harvestdocs.greenhouse.io/docs/authentication"
    )
    assert "OAuth2" not in run(site, "providers", "twilio").out
    shown = [line.split()[:4] for line in lines[2:]]
    assert shown[: len(APP["smtp"])] == [
        [name, *("yes" if flag in flags else "-" for flag in "SRA")]
        for name, flags in APP["smtp"].items()
    ]
    assert {name for name, *_ in shown[len(APP["smtp"]) :]} >= {"oauth_client_id", "oauth_scope"}


@pytest.mark.parametrize(
    "arguments",
    [("providers", "no-such"), ("providers", "no-such", "--json"), ("providers", "SMTP")],
)
def test_an_unknown_provider_is_a_usage_error_that_says_what_works(
    site: Site, arguments: tuple[str, ...]
) -> None:
    failed(run(site, *arguments), 2, "not a known provider", "'vault providers'")


# vault set


def test_set_refuses_a_value_by_the_rule_and_stores_nothing_unless_told_to(site: Site) -> None:
    value = "canary-value"
    for project in ((), ("--project", P)):
        done = run(site, "set", "twilio", "account_sid", *project, stdin=value.encode())
        failed(done, 2, "twilio/account_sid", "AC and 32 digits", "--no-check")
        assert value not in done.err and site.rows() == {}
    assert run(site, "set", "twilio", "account_sid", "--no-check", stdin=value.encode()).status == 0
    assert run(site, "set", "twilio", "account_sid", stdin=b"wrong").status == 2
    assert run(site, "get", "twilio", "account_sid").out == value + "\n"
    assert run(site, "set", "twilio", "account_sid", stdin=f"AC{HEX}\n".encode()).status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("smtp",), "terminal"),
        (("no-such",), ""),
        (("smtp", "--label", "main"), "--label"),
        (("smtp", "--from-env", "PATH"), "--from-env"),
    ],
)
def test_set_without_a_field_and_without_a_terminal_is_a_usage_error(
    site: Site, arguments: tuple[str, ...], words: str
) -> None:
    failed(run(site, "set", *arguments, stdin=b"a\nb\nc\nd\n"), 2, words)
    assert site.rows() == {}


def ask(site: Site, *arguments: str) -> Terminal:
    return Terminal(site, "set", *arguments, piped=False)


def answer(terminal: Terminal, question: str, text: str) -> bytes:
    """What was shown since the last answer, the question being the end of it."""
    terminal.read_until(question.encode())
    seen, terminal.seen = terminal.seen, b""
    terminal.type(text.encode() + b"\n")
    return seen


def values(site: Site, provider: str = "smtp", project: str | None = None) -> dict[str, str]:
    with site.open() as vault:
        return {
            e.credential_type: vault.get(provider, e.credential_type, project).reveal()
            for e in vault.list(project)
            if e.provider == provider
        }


def test_set_asks_for_each_field_and_shows_what_is_no_secret(site: Site) -> None:
    token, password = secrets.token_hex(8), secrets.token_hex(8)
    with ask(site, "smtp", "--project", P) as terminal:
        # A needed one, so it is asked again.
        assert b"the server's name (" in answer(terminal, "\nhost: ", "")
        assert b"host is required" in answer(terminal, "\nhost: ", "https://mail.example.com")
        again = answer(terminal, "\nhost: ", "mail.example.com")
        # The echo of what was typed.
        assert (
            b"without https:// or a path" in again and again.count(b"https://mail.example.com") == 1
        )
        assert b"mail.example.com\r\n" in answer(terminal, "\nport [Enter leaves it out]: ", "")
        answer(terminal, "\nuser: ", token)
        assert token.encode() in answer(terminal, "\npassword: ", password)
        assert password.encode() not in answer(terminal, "\nfrom_email [Enter leaves it out]: ", "")
        assert terminal.end() == 0
    assert (
        password.encode() not in terminal.seen and terminal.seen.count(b"vault: stored smtp/") == 3
    )
    assert (
        values(site, project=P) == {"host": "mail.example.com", "user": token, "password": password}
        and values(site) == {}
    )


def test_enter_keeps_what_is_stored_in_that_scope(site: Site) -> None:
    with site.open() as vault:
        for name, value in {
            "host": "mail.example.com",
            "port": "465",
            "user": "u",
            "password": "old",
        }.items():
            vault.set("smtp", name, value)
    before = site.rows()
    with ask(site, "smtp") as terminal:
        for name in ("host", "port", "user"):
            answer(terminal, f"\n{name} [Enter keeps it]: ", "")
        answer(terminal, "\npassword [Enter keeps it]: ", "new")
        answer(terminal, "\nfrom_email [Enter leaves it out]: ", "")
        assert terminal.end() == 0
    after = site.rows()
    assert values(site) == {
        "host": "mail.example.com",
        "port": "465",
        "user": "u",
        "password": "new",
    }
    assert [row["credential_type"] for row_id, row in after.items() if row != before[row_id]] == [
        "password"
    ]
    with ask(site, "smtp", "--project", P) as terminal:
        answer(terminal, "\nhost: ", "")  # the global one is of another account: it is none to keep
        answer(terminal, "host is required", "")


def test_no_check_takes_what_the_rule_refuses_also_when_asked(site: Site) -> None:
    with ask(site, "anthropic", "--no-check") as terminal:
        answer(terminal, "\napi_key: ", "two words")
        assert terminal.end() == 0
    assert values(site, "anthropic") == {"api_key": "two words"}


def test_a_refused_secret_is_asked_for_again_and_never_shown(site: Site) -> None:
    with ask(site, "anthropic") as terminal:
        answer(terminal, "\napi_key: ", "canary words")
        assert (
            b"one word, without spaces" in (seen := answer(terminal, "\napi_key: ", "canary"))
            and b"canary" not in seen
        )
        assert terminal.end() == 0
    assert b"canary" not in terminal.seen and values(site, "anthropic") == {"api_key": "canary"}


@pytest.mark.parametrize("way", ["Ctrl-C", "Ctrl-D"])
def test_leaving_in_the_middle_stores_nothing_at_all(site: Site, way: str) -> None:
    with ask(site, "smtp") as terminal:
        answer(terminal, "\nhost: ", "mail.example.com")
        answer(terminal, "\nport [Enter leaves it out]: ", "25")
        answer(terminal, "\nuser: ", "u")
        terminal.read_until(b"\npassword: ")
        if way == "Ctrl-D":
            terminal.type(b"\x04")
        assert (terminal.end() if way == "Ctrl-D" else terminal.interrupt()) == 3
        assert b"aborted" in terminal.seen and b"Traceback" not in terminal.seen
    assert site.rows() == {}


def test_an_account_that_cannot_be_stored_whole_is_not_stored_in_part(site: Site) -> None:
    """
    Half of a new account beside half of the old one sends the new password to the old server: here
    the disk fails in the middle.
    """
    with site.open() as vault:
        for name in ("host", "user", "password"):
            vault.set("smtp", name, "old")
    of_the_password = "new.credential_type = 'password'"
    fault = triggered(
        site.database, "BEFORE UPDATE ON provider_credentials", ABORT, of_the_password
    )
    with fault, ask(site, "smtp") as terminal:
        for name in ("host", "port", "user", "password", "from_email"):
            answer(
                terminal,
                f"\n{name} [",
                "25" if name == "port" else "new" if name != "from_email" else "",
            )
        assert terminal.end() != 0
    assert values(site) == {"host": "old", "user": "old", "password": "old"}


def test_an_unknown_provider_is_a_usage_error_at_a_terminal_too(site: Site) -> None:
    with ask(site, "no-such") as terminal:
        assert terminal.end() == 2
    assert (
        b"not a known provider" in terminal.seen
        and b"'vault set PROVIDER FIELD --new'" in terminal.seen
        and b"no-such" not in terminal.seen
    )
