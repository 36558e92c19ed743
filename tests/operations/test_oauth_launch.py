"""`vault run` and `vault export` of accounts with OAuth2."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest
from helpers.commands import Done, failed, process, run
from helpers.mail_account import MailAccount, example
from helpers.oidc import AuthorizationServer
from helpers.site import Site

from outreach_vault import LibraryMissing, MixedAccount, Vault, providers
from outreach_vault.operations import launch
from outreach_vault.operations.portable import as_dotenv

P = "default-project"
TOKEN = "SMTP_OAUTH_ACCESS_TOKEN"
OF_GRANT = {"SMTP_OAUTH_REFRESH_TOKEN", "SMTP_OAUTH_CLIENT_SECRET"}
SHOWS = [
    sys.executable, "-I", "-S", "-c", "import json, os; print(json.dumps(dict(os.environ)))"
]  # fmt: skip


@pytest.fixture
def oauth(authorization_server: AuthorizationServer) -> AuthorizationServer:
    return authorization_server


@pytest.fixture
def account(oauth: AuthorizationServer, vault: Vault) -> MailAccount:
    return MailAccount.new(oauth, client="basic").store(vault)


def shown(site: Site, *options: str, **given: Any) -> dict[str, str]:
    done = process(site, "run", *options, "--", *SHOWS, **given)
    assert (done.status, done.err) == (0, ""), done
    return {name: value for name, value in done.data.items() if name.startswith("SMTP_")}


def stopped(site: Site, status: int, *words: str, options: list[str]) -> Done:
    marker = site.folder / "started"
    done = process(site, "run", *options, "--", "touch", str(marker))
    failed(done, status, *words)
    assert not marker.exists()
    return done


def test_the_command_gets_a_live_token_and_not_what_could_get_others(
    site: Site, vault: Vault, oauth: AuthorizationServer, account: MailAccount
) -> None:
    for options in ([], ["--project", P], ["--provider", "smtp"]):
        found = shown(site, *options)
        assert found.keys() == {f"SMTP_{name}".upper() for name in account.fields} - OF_GRANT | {
            TOKEN
        }
        assert oauth.accepts("ada@example.com", found[TOKEN])
    assert oauth.counters()["successes"] == {"refresh_token": 1}


@pytest.mark.parametrize("only", [*sorted(OF_GRANT), "SMTP_HOST"])
def test_what_only_names_is_given_and_no_token_is_asked_for(
    site: Site, oauth: AuthorizationServer, account: MailAccount, only: str
) -> None:
    assert shown(site, "--only", only) == {only: account.fields[only.lower().partition("_")[2]]}
    assert oauth.counters()["requests"] == {}


def test_only_may_name_the_token_alone(
    site: Site, oauth: AuthorizationServer, account: MailAccount
) -> None:
    found = shown(site, "--only", TOKEN)
    assert list(found) == [TOKEN] and oauth.is_live(found[TOKEN])


def test_the_rule_and_the_name_are_the_same_for_each_provider(
    vault: Vault, oauth: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(providers._BY_NAME, "example", example(oauth))
    made = oauth.grant()
    vault.set_fields("example", {"client_id": made.client.id, "refresh_token": made.refresh_token})
    found = launch.environment(vault, None)
    token = "EXAMPLE_OAUTH_ACCESS_TOKEN"
    assert found.given.keys() == {"EXAMPLE_CLIENT_ID", token} and token in found.taken
    assert oauth.is_live(found.given[token].reveal())


def test_a_token_is_never_inherited(
    site: Site, vault: Vault, account: MailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither with an account that has a password, nor where another variable is chosen."""
    own = {"host": "own.example.com", "user": "own", "password": "of-the-project"}
    vault.set_fields("smtp", own, P)
    given = os.environ | {TOKEN: "another account's", "SMTP_OAUTH_REFRESH_TOKEN": "another's"}
    assert shown(site, "--project", P, "--provider", "smtp", env=given) == {
        f"SMTP_{name}".upper(): value for name, value in own.items()
    }
    assert shown(site, "--project", P, env=given).keys() == {"SMTP_HOST", "SMTP_USER"} | {
        "SMTP_PASSWORD"
    }
    assert shown(site, "--only", "SMTP_USER", env=given).keys() == {"SMTP_USER"}


def test_a_project_gets_its_own_token(
    site: Site, vault: Vault, oauth: AuthorizationServer, account: MailAccount
) -> None:
    MailAccount.new(oauth, user="own@example.com").store(vault, P)
    for options, user in (([], "ada@example.com"), (["--project", P], "own@example.com")):
        found = shown(site, *options)
        assert found["SMTP_USER"] == user and oauth.accepts(user, found[TOKEN])


@pytest.mark.parametrize(("fault", "status"), [("login", 16), ("down", 17)])
def test_without_a_token_the_command_does_not_start(
    site: Site,
    vault: Vault,
    oauth: AuthorizationServer,
    account: MailAccount,
    fault: str,
    status: int,
) -> None:
    if fault == "login":
        oauth.revoke(vault.get("smtp", "oauth_refresh_token").reveal())
    else:
        oauth.close()
    words = "smtp (global): the account needs a new login" if fault == "login" else "smtp (global)"
    for options in ([], ["--provider", "smtp"], ["--only", TOKEN]):
        done = stopped(site, status, words, "or leave it out", options=options)
        assert not [secret for secret in account.secrets if secret in done.out + done.err]
    assert shown(site, "--only", "SMTP_HOST") == {"SMTP_HOST": "localhost"}


def test_without_the_library_it_says_how_to_do_without_that_account(
    vault: Vault, account: MailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "oauthlib.oauth2", None)
    with pytest.raises(LibraryMissing) as lacking:
        launch.environment(vault, None)
    assert "or leave it out" in str(lacking.value.hint)
    assert launch.environment(vault, None, only=["SMTP_HOST"]).given.keys() == {"SMTP_HOST"}


def test_a_value_that_does_not_open_stops_it_before_a_provider_is_asked(
    site: Site, oauth: AuthorizationServer, account: MailAccount
) -> None:
    site.change(
        "UPDATE provider_credentials SET encrypted_value = 'djExAAAA' WHERE credential_type ="
        " 'user'"
    )
    stopped(site, 11, "smtp/user", options=[])
    assert oauth.counters()["requests"] == {}


@pytest.mark.parametrize("named", [("smtp", "oauth_access_token"), ("smtp_oauth", "access_token")])
def test_a_stored_field_of_the_token_s_name_stops_it(
    site: Site, vault: Vault, account: MailAccount, named: tuple[str, str]
) -> None:
    vault.set(*named, "somebody's")
    done = stopped(site, 16, TOKEN, "two fields", options=[])
    assert "'vault delete " + " ".join(named) in done.err and "somebody's" not in done.err


def test_an_account_that_changes_meanwhile_is_not_handed_over(
    site: Site, vault: Vault, oauth: AuthorizationServer, account: MailAccount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    access_token = Vault.access_token

    def changed_first(vault: Vault, *args: Any, **given: Any) -> Any:
        MailAccount.new(oauth, user="own@example.com").store(vault, P)
        return access_token(vault, *args, **given)

    monkeypatch.setattr(Vault, "access_token", changed_first)
    with pytest.raises(MixedAccount, match="changed meanwhile"):
        launch.environment(vault, P)


def test_an_export_has_the_grant_and_no_token(
    site: Site, vault: Vault, oauth: AuthorizationServer, account: MailAccount
) -> None:
    """It is for another vault, or a backup: a token would have ended."""
    text, count = as_dotenv(vault)
    assert count == len(account.fields) and TOKEN not in text.reveal()
    assert account.fields["oauth_refresh_token"] in text.reveal()
    vault.access_token("smtp")
    done = run(site, "export", "--format", "json")
    found = {row["credential_type"] for row in json.loads(done.out)}
    assert found == account.fields.keys()
    assert oauth.counters()["requests"] == {"refresh_token": 1}


def test_an_import_takes_no_token_for_a_field_and_a_new_grant_makes_the_old_token_void(
    site: Site, vault: Vault, oauth: AuthorizationServer, account: MailAccount
) -> None:
    old = vault.access_token("smtp")
    done = run(site, "import", "-", "--yes", stdin=f"{TOKEN}=x\n".encode())
    assert done.status == 2 and "no field has it" in done.err, done
    fresh = oauth.grant("basic").refresh_token
    line = f"SMTP_OAUTH_REFRESH_TOKEN={fresh}\n"
    assert run(site, "import", "-", "--yes", "--replace", stdin=line.encode()).status == 0
    assert vault.access_token("smtp") != old
