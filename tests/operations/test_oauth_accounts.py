"""
What operators see and do with accounts of OAuth2: `accounts`, `doctor`, `status`, and the commands
that move values, beside a token in the vault.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from helpers.commands import failed, run
from helpers.mail_account import MailAccount
from helpers.oidc import AuthorizationServer
from helpers.rows import IGNORE, trigger
from helpers.site import Site, kept, restored, sql

from outreach_vault import NeedsLogin, TokenUnavailable, Vault
from outreach_vault.cipher import Cipher
from outreach_vault.operations.accounts import accounts
from outreach_vault.operations.doctor import Finding, examine

P, OTHER = "default-project", "another-project"


@pytest.fixture
def oauth(authorization_server: AuthorizationServer) -> AuthorizationServer:
    return authorization_server


def tokens(site: Site) -> list[Any]:
    return [scope for (scope,) in sql(site.database, "SELECT project_id FROM vault_tokens")]


def found(site: Site, *, deep: bool = False) -> list[Finding]:
    with site.open() as vault:
        store = vault.keys.store
    examined = examine(site.database, key_store=store, deep=deep)
    of_keys = {"never exported", "shadowed value"}
    return [each for each in examined.findings if each.kind not in of_keys]


def refresh_token(vault: Vault, project: str | None = None) -> str:
    return vault.get("smtp", "oauth_refresh_token", project).reveal()


# How a grant stands.


def arrange(oauth: AuthorizationServer, vault: Vault, how: str) -> MailAccount:
    account = MailAccount.new(oauth, client="basic").store(vault, P)
    if how == "never used":
        return account
    if how in ("ok", "token ended"):
        oauth.lifetime(access=1 if how == "token ended" else 3600)
        vault.access_token("smtp", P)
        if how == "token ended":
            ended = "2026-01-02T03:04:05.678Z"
            vault.database.change("UPDATE vault_grants SET expires_at = ?", (ended,))
        return account
    if how == "needs login":
        oauth.revoke(refresh_token(vault, P))
    else:
        kinds: dict[str, dict[str, Any]] = {
            "client refused": {"kind": "error", "error": "unauthorized_client"},
            "unreachable": {"kind": "status", "status": 503},
            "no token": {"kind": "no_token"},
        }
        oauth.fault(times=None, **kinds[how])
    with pytest.raises(TokenUnavailable):
        vault.access_token("smtp", P)
    return account


STANDS: dict[str, tuple[str | None, str]] = {
    "ok": (None, ""),
    "token ended": (None, ""),  # as for any account that sends now and then
    "never used": ("notice", "'vault check smtp --project \"Default Project\"' asks for one"),
    "needs login": ("problem", "'vault login smtp --project \"Default Project\"'"),
    "client refused": ("problem", "its secret, which may have ended"),
    "unreachable": ("notice", "try again"),
    "no token": ("notice", "the token URL"),
}


@pytest.mark.parametrize("how", STANDS)
def test_accounts_and_doctor_say_how_a_grant_stands(
    oauth: AuthorizationServer, site: Site, vault: Vault, how: str
) -> None:
    account = arrange(oauth, vault, how)
    with mock.patch.object(Cipher, "opened", side_effect=AssertionError):  # its key was proved
        ((stands, state),) = [(each.grant, each.state) for each in accounts(vault)]
    assert (stands, state) == (how, "own")
    done = run(site, "accounts")
    assert (how in done.out) == (how != "ok")
    ((shown),) = run(site, "accounts", "--json").data
    assert (shown["state"], shown["grant"]) == ("own", how)
    level, hint = STANDS[how]
    findings = [each for each in found(site) if each.provider == "smtp"]
    assert [(each.level, each.kind, each.project_id) for each in findings] == (
        [(level, how, P)] if level else []
    )
    examined = run(site, "doctor")
    assert examined.status == (16 if level == "problem" else 0)
    if level:
        assert hint in str(findings[0].hint) and hint in examined.out
        assert 'smtp (project "Default Project"): ' in findings[0].message
    said = done.out + examined.out + examined.err + repr(findings)
    assert not [secret for secret in account.secrets if secret in said]


@pytest.mark.parametrize("how", ["needs login", "never used"])
def test_a_global_grant_is_named_once_and_shown_for_each_project_that_it_serves(
    oauth: AuthorizationServer, site: Site, vault: Vault, how: str
) -> None:
    MailAccount.new(oauth).store(vault)
    vault.set("smtp", "from_email", "jobs@example.com", P)
    if how == "needs login":
        oauth.revoke(refresh_token(vault))
        with pytest.raises(NeedsLogin):
            vault.access_token("smtp", P)
    assert [(each.project_id, each.grant) for each in accounts(vault)] == [(None, how), (P, how)]
    ((scope, message),) = [
        (each.project_id, each.message) for each in found(site) if each.kind == how
    ]
    assert scope is None and message.startswith("smtp (global): ")


def test_a_project_with_a_password_has_nothing_of_a_global_grant(
    oauth: AuthorizationServer, site: Site, vault: Vault
) -> None:
    MailAccount.new(oauth).store(vault)
    vault.set_fields("smtp", {"host": "h", "user": "u", "password": "p"}, P)
    assert [(each.project_id, each.grant) for each in accounts(vault)] == [
        (None, "never used"), (P, None)
    ]  # fmt: skip


def test_a_new_login_a_new_value_and_a_success_each_end_what_was_said(
    oauth: AuthorizationServer, site: Site, vault: Vault
) -> None:
    arrange(oauth, vault, "needs login")
    vault.set("smtp", "oauth_refresh_token", oauth.grant("basic").refresh_token, P)
    assert accounts(vault)[0].grant == "never used"
    vault.access_token("smtp", P)
    assert accounts(vault)[0].grant == "ok"
    oauth.fault("status", status=503)
    with pytest.raises(TokenUnavailable):
        vault.access_token("smtp", P, refused=vault.access_token("smtp", P))
    assert accounts(vault)[0].grant == "unreachable"
    vault.access_token("smtp", P, refused=vault.access_token("smtp", P))
    assert accounts(vault)[0].grant == "ok"


def test_what_another_tool_wrote_there_breaks_no_list(
    oauth: AuthorizationServer, site: Site, vault: Vault
) -> None:
    arrange(oauth, vault, "ok")
    for value in ("", "never") if site.engine else (b"\xff", 5, "", "never"):
        sql(site.database, "UPDATE vault_grants SET expires_at = ?, tried_at = ?", value, value)
        assert run(site, "accounts").status == 0
        assert run(site, "doctor").status in (0, 16)


def test_a_trigger_that_could_undo_a_lease_is_named(site: Site) -> None:
    """As one on each other table that the vault relies on."""
    trigger(site.database, "AFTER UPDATE ON vault_grants", IGNORE)
    assert "trigger theirs on vault_grants" in " ".join(run(site, "doctor").out.split())


# A token is none of the values.


def test_doctor_takes_a_live_token_for_none_that_was_replaced(
    oauth: AuthorizationServer, site: Site, vault: Vault
) -> None:
    """The vault stays open: what was written is in the log."""
    MailAccount.new(oauth).store(vault)
    oauth.fault("no_refresh", None)  # else the refresh token is replaced too
    vault.access_token("smtp")
    for deep in (False, True):
        assert [each.kind for each in found(site, deep=deep)] == []
    vault.access_token("smtp", refused=vault.access_token("smtp"))
    in_the_log = [] if site.engine else ["old tokens in the log"]
    assert [each.kind for each in found(site)] == in_the_log


@pytest.mark.parametrize("how", ["damaged", "foreign", "of a key that is gone"])
def test_a_token_that_cannot_be_read_is_a_notice_since_the_next_replaces_it(
    oauth: AuthorizationServer, site: Site, vault: Vault, how: str
) -> None:
    MailAccount.new(oauth).store(vault)
    vault.access_token("smtp")
    if how == "damaged":
        change = "encrypted_value = substr(encrypted_value, 1, 60) || 'AAAA' ||"
        change += " substr(encrypted_value, 65)"
    else:
        change = "encrypted_value = 'djEx'" if how == "foreign" else "key_id = 'gone'"
    site.change(f"UPDATE vault_tokens SET {change}")
    examined = examine(site.database, key_store=vault.keys.store, deep=True)
    named = [each for each in examined.findings if each.provider == "smtp"]
    assert [(each.level, each.kind) for each in named] == [("notice", "unreadable token")]
    assert "access token of smtp/oauth_access_token (global)" in named[0].message
    assert examined.problems == 0 and examined.values["unreadable"] == 0
    vault.access_token("smtp")
    assert [each for each in found(site, deep=True) if each.provider] == []


def test_counts_of_values_have_no_token_and_keys_have_it(
    oauth: AuthorizationServer, site: Site, vault: Vault
) -> None:
    account = MailAccount.new(oauth).store(vault)
    before = run(site, "status", "--json").data
    token = vault.access_token("smtp")
    count = len(account.fields)
    status = run(site, "status", "--json").data
    assert status["values"] == before["values"] and status["previous"] == before["previous"]
    assert [key["values"] for key in status["keys"]] == [count + 1]
    assert len(run(site, "list", "--json").data) == count
    rehearsed = run(site, "rotate", "--dry-run", "--json")
    assert rehearsed.status == 0, rehearsed
    rotated = run(site, "rotate", "--json")
    assert (rotated.status, rotated.data["rotated"], rotated.data["unreadable"]) == (0, count, 0)
    retired = next(key for key, state in site.states().items() if state == "retired")
    assert run(site, "keys", "destroy", retired, "--yes").status == 0
    assert vault.access_token("smtp") == token
    assert oauth.counters()["requests"] == {"refresh_token": 1}


# Commands that move values.


@pytest.mark.parametrize("field", [(), ("oauth_refresh_token",)])
def test_a_refresh_token_is_not_copied(
    oauth: AuthorizationServer, site: Site, vault: Vault, field: tuple[str, ...]
) -> None:
    MailAccount.new(oauth).store(vault)
    token = vault.access_token("smtp")
    rows = site.rows()
    done = run(site, "copy", "smtp", *field, "--from-global", "--to", P)
    failed(done, 2, "oauth_refresh_token", "'vault move'", f"'vault login smtp --project {P}'")
    assert site.rows() == rows and vault.access_token("smtp", P) == token


def test_what_may_have_many_users_is_copied(
    oauth: AuthorizationServer, site: Site, vault: Vault
) -> None:
    """The application's own account has no refresh token; nor is a single other field one."""
    client = oauth.client("service")
    own = {
        "host": "h", "user": "u", "oauth_client_id": client.id, "oauth_token_url": oauth.token_url,
        "oauth_client_secret": str(client.secret),
    }  # fmt: skip
    vault.set_fields("smtp", own)
    assert run(site, "copy", "smtp", "--from-global", "--to", P).status == 0
    MailAccount.new(oauth).store(vault)
    assert run(site, "copy", "smtp", "host", "--from-global", "--to", P, "--replace").status == 0


def test_a_moved_account_takes_no_token_along_and_gets_its_own(
    oauth: AuthorizationServer, site: Site, vault: Vault
) -> None:
    MailAccount.new(oauth).store(vault)
    vault.access_token("smtp")
    assert run(site, "move", "smtp", "--from-global", "--to", P).status == 0
    assert tokens(site) == []
    token = vault.access_token("smtp", P)
    assert (token.project_id, tokens(site)) == (P, [P])
    assert oauth.is_live(token.reveal())


def test_move_over_another_account_leaves_no_token_of_it(
    oauth: AuthorizationServer, site: Site, vault: Vault
) -> None:
    MailAccount.new(oauth, user="old@example.com").store(vault, P)
    old = vault.access_token("smtp", P)
    vault.set_fields("smtp", {"host": "h", "user": "u", "password": "p"})
    assert run(site, "move", "smtp", "--from-global", "--to", P, "--replace").status == 0
    assert tokens(site) == [] and sql(site.database, "SELECT expires_at FROM vault_grants") == [
        (None,)
    ]
    assert not [field for field in vault.bundle("smtp", P) if field.startswith("oauth")]
    assert old


@pytest.mark.parametrize("field", [(), ("oauth_refresh_token",), ("host",)])
def test_delete_removes_the_token_with_the_account(
    oauth: AuthorizationServer, site: Site, vault: Vault, field: tuple[str, ...]
) -> None:
    MailAccount.new(oauth).store(vault)
    MailAccount.new(oauth).store(vault, P)
    for scope in (None, P):
        vault.access_token("smtp", scope)
    assert run(site, "delete", "smtp", *field, "--project", P, "--yes").status == 0
    assert tokens(site) == [None]


def test_undo_makes_the_token_void(oauth: AuthorizationServer, site: Site, vault: Vault) -> None:
    MailAccount.new(oauth).store(vault)
    vault.set("smtp", "user", "another@example.com")
    vault.access_token("smtp")
    assert run(site, "undo", "smtp", "user", "--yes").status == 0
    assert tokens(site) == []


def test_an_export_imported_elsewhere_is_the_account_without_its_token(
    oauth: AuthorizationServer, site: Site, vault: Vault, empty: Site, tmp_path: Path
) -> None:
    MailAccount.new(oauth).store(vault)
    vault.access_token("smtp")
    other = empty.copy(tmp_path / "other")
    text = run(site, "export", "--format", "json").out
    (tmp_path / "rows.json").write_text(text)
    assert run(other, "import", str(tmp_path / "rows.json"), "--yes").status == 0
    assert len(json.loads(text)) == len(other.rows()) and tokens(other) == []
    with other.open() as opened:
        assert oauth.is_live(opened.access_token("smtp").reveal())


def test_a_backup_has_the_token_and_opens_it(
    oauth: AuthorizationServer, site: Site, vault: Vault, tmp_path: Path
) -> None:
    MailAccount.new(oauth).store(vault)
    token = vault.access_token("smtp")
    there = restored(site, tmp_path / "restored", kept(site, tmp_path / "backup.db"))
    shutil.copytree(site.keys, there.keys)
    with there.open() as opened:
        assert opened.access_token("smtp") == token
    assert oauth.counters()["requests"] == {"refresh_token": 1}
