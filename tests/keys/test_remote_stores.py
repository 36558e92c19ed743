"""Key stores on a server, each with a real one: OpenBao, and AWS Secrets Manager's double."""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import failed, process
from helpers.key_servers import ROOT_TOKEN, Bao, Between, Moto
from helpers.pages import blocks
from helpers.site import Site

from outreach_vault.cipher import generate_key
from outreach_vault.errors import (
    KeyExists,
    KeyMissing,
    KeyringLocked,
    KeyringTimedOut,
    KeyStoreUnavailable,
    VaultError,
)
from outreach_vault.keys.stores import KeyStore
from outreach_vault.keys.stores.aws_secrets import AWSSecrets
from outreach_vault.keys.stores.openbao import OpenBao
from outreach_vault.schema.shapes import new_id
from outreach_vault.testing import KeyStoreContract

NOBODY = "127.0.0.1:1"  # where nothing listens


@pytest.fixture
def path() -> str:
    """Of the keys of this test alone: the servers serve many."""
    return uuid.uuid4().hex


@pytest.mark.usefixtures("impatient")
class TestOpenBao(KeyStoreContract):
    @pytest.fixture
    def store(self, bao: Bao, path: str) -> KeyStore:
        return OpenBao(f"{bao.url}/{path}")

    @pytest.fixture
    def again(self, bao: Bao, path: str) -> KeyStore:
        return OpenBao(f"{bao.url}/{path}")

    @pytest.fixture
    def unreachable(self, bao: Bao) -> KeyStore:
        return OpenBao(f"openbao://{NOBODY}/secret/path")

    @pytest.fixture
    def slow(self, bao: Bao) -> Iterator[KeyStore]:
        with bao.frozen():
            yield OpenBao(bao.url, seconds=0.3)


@pytest.mark.usefixtures("impatient")
class TestAWSSecrets(KeyStoreContract):
    @pytest.fixture
    def store(self, aws: Moto, path: str) -> KeyStore:
        return AWSSecrets(f"aws-secrets://eu-west-1/{path}")

    @pytest.fixture
    def again(self, aws: Moto, path: str) -> KeyStore:
        return AWSSecrets(f"aws-secrets://eu-west-1/{path}")

    @pytest.fixture
    def unreachable(self, aws: Moto, monkeypatch: pytest.MonkeyPatch) -> KeyStore:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{NOBODY}")
        return AWSSecrets("aws-secrets://eu-west-1/path")

    @pytest.fixture
    def slow(self, aws: Moto) -> Iterator[KeyStore]:
        with aws.frozen():
            yield AWSSecrets("aws-secrets://eu-west-1/path", seconds=0.3)


VAULT, KEY = new_id(), new_id()
ENTRY = f"{VAULT}/{KEY}/key"
SECRET = generate_key()


def uses(store: KeyStore) -> list[Callable[[], object]]:
    return [
        lambda: store.read(VAULT, KEY),
        lambda: store.write(VAULT, KEY, SECRET),
        lambda: store.holds(VAULT, KEY),
        lambda: store.delete(VAULT, KEY),
        lambda: store.successor(VAULT, KEY),
        lambda: store.mark_superseded(VAULT, KEY, new_id()),
    ]


def refused(call: Callable[[], object], kind: type[VaultError], *words: str) -> str:
    """
    The call's error is of the kind, says these words and what to do next, and has nothing of the
    library's.
    """
    with pytest.raises(VaultError) as caught:
        call()
    error = caught.value
    assert type(error) is kind and error.hint, repr(error)
    said = f"{error} {error.hint}"
    assert [word for word in words if word not in said] == [], said
    chain: list[BaseException] = []
    after: BaseException | None = error
    while after:
        chain.append(after)
        after = after.__cause__ or after.__context__
    assert [type(each).__module__ for each in chain] == ["outreach_vault.errors"]
    shown = f"{said} {vars(error)}"
    secrets = [SECRET.reveal(), ROOT_TOKEN, os.environ.get("BAO_TOKEN", ROOT_TOKEN)]
    assert [secret for secret in secrets if secret in shown] == []
    return str(error)


def test_a_time_limit_that_the_library_meets_first_is_one_too() -> None:
    import requests
    from botocore import exceptions

    bao, aws = OpenBao("openbao://host/a/b"), AWSSecrets("aws-secrets://eu-west-1/a")
    for store, error in (
        (bao, requests.ReadTimeout()),
        (bao, requests.ConnectTimeout()),
        (aws, exceptions.ReadTimeoutError(endpoint_url="")),
        (aws, exceptions.ConnectTimeoutError(endpoint_url="")),
    ):
        found, passes = store._explained(error)
        assert isinstance(found, KeyringTimedOut) and not passes


# --- OpenBao


@pytest.fixture(scope="module")
def kept_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    with Bao(tmp_path_factory.mktemp("kept"), kept=True) as server:
        server.initialize()
        yield server


@pytest.fixture
def kept_bao(
    clean_environment: None, kept_server: Bao, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> Bao:
    """A real OpenBao with files and without TLS, and its root's token in the environment."""
    monkeypatch.setenv("BAO_TOKEN", kept_server.token)
    return kept_server


@pytest.fixture
def between(kept_bao: Bao) -> Iterator[Between]:
    with Between(kept_bao) as proxy:
        yield proxy


@pytest.fixture
def behind(between: Between, path: str) -> OpenBao:
    """A store whose requests go through `between`; its first look at the mount is over."""
    store = OpenBao(f"openbao+http://{between.address}/secret/outreach/{path}")
    store.holds(VAULT, KEY)
    between.heard.clear()
    return store


APPROLE = {"token_ttl": "1h", "token_policies": ["keys"]}


@pytest.fixture
def approle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Bao], None]:
    """Put an AppRole of the documented policy, and nothing else, into the environment."""

    def login(server: Bao) -> None:
        if "approle/" not in server.request("GET", "sys/auth")["data"]:
            server.request("POST", "sys/auth/approle", {"type": "approle"})
        server.request("PUT", "sys/policies/acl/keys", {"policy": documented_policy()})
        server.request("POST", "auth/approle/role/host", APPROLE)
        role = server.request("GET", "auth/approle/role/host/role-id")["data"]["role_id"]
        made = server.request("POST", "auth/approle/role/host/secret-id", {})["data"]["secret_id"]
        (tmp_path / "secret-id").write_text(f"{made}\n")
        monkeypatch.delenv("BAO_TOKEN", raising=False)
        monkeypatch.setenv("VAULT_ROLE_ID", role)
        monkeypatch.setenv("BAO_SECRET_ID_FILE", str(tmp_path / "secret-id"))

    return login


def documented_policy() -> str:
    [policy] = [block.text for block in blocks("docs/keys.md") if block.language == "json"]
    return policy


def test_a_sealed_server_is_locked_until_it_is_unsealed(
    bao: Bao, path: str, tmp_path: Path
) -> None:
    store = OpenBao(f"{bao.url}/{path}")
    store.write(VAULT, KEY, SECRET)
    site = Site(tmp_path / "app.db", tmp_path / "none")
    where = ("--keys", f"{bao.url}/{path}")
    bao.seal()
    try:
        for opened in (store, OpenBao(f"{bao.url}/{path}")):
            for use in uses(opened):
                refused(use, KeyringLocked, "sealed", "unseal it")
        failed(process(site, *where, "init", keyring=True), 13, "the server is sealed")
    finally:
        bao.unseal()
    assert store.read(VAULT, KEY) == SECRET


def test_a_server_that_is_gone_serves_again_when_it_is_back(
    kept_bao: Bao, path: str, approle: Callable[[Bao], None]
) -> None:
    approle(kept_bao)
    store = OpenBao(f"{kept_bao.url}/{path}")
    store.write(VAULT, KEY, SECRET)
    kept_bao.kill()
    for use in uses(store):
        refused(use, KeyStoreUnavailable, "cannot be reached", "check that the server runs")
    kept_bao.start()
    refused(lambda: store.read(VAULT, KEY), KeyringLocked, "sealed")
    kept_bao.unseal()
    assert store.read(VAULT, KEY) == SECRET


def test_a_token_that_expired_is_got_anew(
    kept_bao: Bao, path: str, approle: Callable[[Bao], None]
) -> None:
    approle(kept_bao)
    store = OpenBao(f"{kept_bao.url}/{path}")
    store.write(VAULT, KEY, SECRET)
    assert store._token
    kept_bao.request("POST", "auth/token/revoke", {"token": store._token.reveal()})
    assert store.read(VAULT, KEY) == SECRET
    assert store.holds(VAULT, KEY)


def test_a_login_that_is_refused_is_told_from_a_token_that_is(
    kept_bao: Bao, path: str, approle: Callable[[Bao], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAO_TOKEN", "a-token-that-nobody-gave")
    store = OpenBao(f"{kept_bao.url}/{path}")
    for use in uses(store):
        refused(use, KeyStoreUnavailable, "does not take the token", "BAO_TOKEN")
    approle(kept_bao)
    monkeypatch.setenv("BAO_SECRET_ID_FILE", "")
    monkeypatch.setenv("BAO_SECRET_ID", "a-secret-id-that-nobody-gave")
    said = refused(lambda: store.read(VAULT, KEY), KeyStoreUnavailable, "auth/approle")
    assert "nobody-gave" not in said
    monkeypatch.setenv("BAO_AUTH_MOUNT", "elsewhere")
    refused(lambda: store.read(VAULT, KEY), KeyStoreUnavailable, "auth/elsewhere")
    monkeypatch.delenv("VAULT_ROLE_ID")
    refused(lambda: store.read(VAULT, KEY), KeyStoreUnavailable, "there is no token", "bao login")
    monkeypatch.setenv("BAO_TOKEN_PATH", "/none/token")
    refused(lambda: store.read(VAULT, KEY), KeyStoreUnavailable, "there is no token")
    monkeypatch.setenv("BAO_TOKEN_FILE", "/none/token")
    refused(lambda: store.read(VAULT, KEY), KeyStoreUnavailable, "/none/token: cannot be read")


@pytest.mark.parametrize("variable", ["", "BAO_TOKEN_PATH", "VAULT_TOKEN_FILE"])
def test_the_token_of_a_login_is_read_from_its_file_each_time_it_expires(
    kept_bao: Bao, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("BAO_TOKEN")
    file = tmp_path / "token" if variable else Path.home() / ".vault-token"
    if variable:
        monkeypatch.setenv(variable, str(file))
    file.write_text(first := kept_bao.token_for(documented_policy()))
    store = OpenBao(f"{kept_bao.url}/{path}")
    store.write(VAULT, KEY, SECRET)
    kept_bao.request("POST", "auth/token/revoke", {"token": first})
    refused(lambda: store.read(VAULT, KEY), KeyStoreUnavailable, "does not take the token")
    file.write_text(kept_bao.token_for(documented_policy()) + "\n")
    assert store.read(VAULT, KEY) == SECRET


def test_a_kubernetes_login_sends_role_and_token(
    behind: OpenBao, between: Between, kept_bao: Bao, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    token = kept_bao.token_for(documented_policy())
    (tmp_path / "jwt").write_text("a.jwt.of-the-pod\n")
    monkeypatch.delenv("BAO_TOKEN")
    monkeypatch.setenv("VAULT_K8S_ROLE", "outreach")
    monkeypatch.setenv("BAO_K8S_TOKEN_PATH", str(tmp_path / "jwt"))
    for mount in ("kubernetes", "cluster-2"):
        if mount != "kubernetes":
            monkeypatch.setenv("BAO_AUTH_MOUNT", mount)
        answer = json.dumps({"auth": {"client_token": token}})
        between.faults = [(200, answer, {"Content-Type": "application/json"})]
        behind._token = None
        between.heard.clear()
        assert behind.holds(VAULT, KEY) is False
        method, at, headers, body = between.heard[0]
        assert (method, at) == ("POST", f"/v1/auth/{mount}/login")
        assert json.loads(body) == {"role": "outreach", "jwt": "a.jwt.of-the-pod"}
        assert "X-Vault-Token" not in headers
        assert between.heard[1][2]["X-Vault-Token"] == token
    monkeypatch.delenv("BAO_K8S_TOKEN_PATH")
    behind._token = None
    refused(lambda: behind.holds(VAULT, KEY), KeyStoreUnavailable, "serviceaccount/token: cannot")


def test_the_documented_policy_is_enough_and_less_is_refused(
    bao: Bao, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(**rules: list[str]) -> OpenBao:
        policy = {"path": {f"secret/{k}/outreach/*": {"capabilities": v} for k, v in rules.items()}}
        monkeypatch.setenv("BAO_TOKEN", bao.token_for(json.dumps(policy)))
        return OpenBao(f"{bao.url}/{path}")

    monkeypatch.setenv("BAO_TOKEN", bao.token_for(documented_policy()))
    for use in uses(OpenBao(f"{bao.url}/{path}"))[1:] + uses(OpenBao(f"{bao.url}/{path}"))[1:2]:
        use()
    reader, no_right = limited(data=["read"]), "the token has no right"
    assert reader.read(VAULT, KEY) == SECRET and reader.successor(VAULT, KEY)
    refused(lambda: reader.write(VAULT, new_id(), SECRET), KeyStoreUnavailable, no_right, "create")
    refused(lambda: reader.delete(VAULT, KEY), KeyStoreUnavailable, no_right)
    for store in (limited(metadata=["delete"]), limited(other=["read"])):
        refused(lambda: store.read(VAULT, KEY), KeyStoreUnavailable, no_right)  # noqa: B023
        refused(lambda: store.holds(VAULT, KEY), KeyStoreUnavailable, no_right)  # noqa: B023


def test_a_mount_that_cannot_write_once_is_refused_and_nothing_is_written(
    bao: Bao, path: str
) -> None:
    at = bao.url.replace("/secret/outreach", "")
    bao.request("POST", f"sys/mounts/{path}/one", {"type": "kv", "options": {"version": "1"}})
    bao.request("POST", f"sys/mounts/{path}/transit", {"type": "transit"})
    for mount in ("one", "transit"):
        for use in uses(OpenBao(f"{at}/{path}/{mount}/outreach")):
            refused(use, KeyStoreUnavailable, "not a KV mount of version 2", "enable-versioning")
    assert bao.request("LIST", f"{path}/one/", status=True) == 404
    for use in uses(OpenBao(f"{at}/{path}/none")):
        refused(use, KeyStoreUnavailable, "nothing is mounted there", "BAO_NAMESPACE")


def test_a_mount_may_have_a_longer_name_and_go_and_come_back(bao: Bao, path: str) -> None:
    mount = f"sys/mounts/{path}/team/keys"
    bao.request("POST", mount, {"type": "kv", "options": {"version": "2"}})
    store = OpenBao(bao.url.replace("/secret/outreach", f"/{path}/team/keys/outreach"))
    store.write(VAULT, KEY, SECRET)
    found = bao.request("GET", f"{path}/team/keys/data/outreach/{ENTRY}")["data"]["data"]
    assert found == {"key": SECRET.reveal()}
    bao.request("DELETE", mount)
    refused(lambda: store.read(VAULT, KEY), KeyStoreUnavailable, "nothing is mounted there")
    refused(lambda: store.holds(VAULT, KEY), KeyStoreUnavailable, "nothing is mounted there")
    bao.request("POST", mount, {"type": "kv", "options": {"version": "1"}})
    refused(lambda: store.write(VAULT, KEY, SECRET), KeyStoreUnavailable, "version 2")


def test_a_namespace_is_part_of_the_place(
    bao: Bao, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = OpenBao(f"{bao.url}/{path}")
    outside.write(VAULT, KEY, SECRET)
    bao.request("POST", "sys/namespaces/team", {})
    bao.request("POST", "team/sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
    monkeypatch.setenv("VAULT_NAMESPACE", "team/")
    inside = OpenBao(f"{bao.url}/{path}")
    assert inside.holds(VAULT, KEY) is False
    assert inside.known_as() == f"{outside.known_as()} (namespace team)"


def test_a_certificate_of_an_unknown_authority_is_refused(
    bao: Bao, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_SKIP_VERIFY", "true")
    monkeypatch.setenv("BAO_CACERT", "/none/ca.pem")
    store = OpenBao(f"{bao.url}/{path}")
    refused(lambda: store.read(VAULT, KEY), KeyStoreUnavailable, "/none/ca.pem: no such file")
    monkeypatch.delenv("BAO_CACERT")
    for use in uses(store):
        refused(use, KeyStoreUnavailable, "certificate is not trusted", "BAO_CACERT")
    monkeypatch.setenv("VAULT_CACERT", str(bao.ca))
    assert store.holds(VAULT, KEY) is False


def test_a_frozen_server_ends_a_command_at_the_time_limit(
    bao: Bao, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTREACH_VAULT_KEYRING_TIMEOUT", "0.5")
    site = Site(tmp_path / "app.db", tmp_path / "none")
    began = time.monotonic()
    with bao.frozen():
        done = process(site, "--keys", f"{bao.url}/{path}", "init", keyring=True)
    failed(done, 13, "no answer within the time limit", "OUTREACH_VAULT_KEYRING_TIMEOUT")
    assert time.monotonic() - began < 30


def test_no_redirect_takes_the_token_elsewhere(
    behind: OpenBao, between: Between, kept_bao: Bao
) -> None:
    with Between(kept_bao) as elsewhere:
        for use in uses(behind):
            to = {"Location": f"http://{elsewhere.address}/v1/secret"}
            between.faults = [(307, "", to)] * 5
            refused(use, KeyStoreUnavailable, "307", "redirect is not followed")
        assert elsewhere.heard == []


def test_what_answers_but_is_no_openbao_is_said(behind: OpenBao, between: Between) -> None:
    for status in (200, 404):
        for use in uses(behind):
            between.faults = [(status, "<html>welcome", {"Content-Type": "text/html"})] * 5
            refused(use, KeyStoreUnavailable)


PASSING = [
    ("lose",),
    ((429, '{"errors":["rate limit"]}', {"Content-Type": "application/json"}),),
    ((500, '{"errors":["internal error"]}', {"Content-Type": "application/json"}),),
    ((502, "bad gateway", {}), (503, '{"errors":["no leader"]}', {})),
    ((504, "gateway time-out", {}),),
    ((400, '{"errors":["Upgrading from non-versioned to versioned data. This backend"]}',
      {"Content-Type": "application/json"}),),
]  # fmt: skip


@pytest.mark.parametrize("faults", PASSING)
def test_what_may_pass_is_tried_again_and_a_write_stays_one(
    behind: OpenBao, between: Between, faults: tuple[Any, ...]
) -> None:
    for use in uses(behind)[1:]:
        between.faults = list(faults)
        use()
    behind.write(VAULT, KEY, SECRET)
    between.faults = list(faults)
    assert behind.read(VAULT, KEY) == SECRET
    between.faults = list(faults)
    with pytest.raises(KeyExists):  # another key, after whatever happened to the first try
        behind.write(VAULT, KEY, generate_key())
    assert behind.read(VAULT, KEY) == SECRET


def test_a_fault_that_stays_is_given_up(behind: OpenBao, between: Between) -> None:
    for use in uses(behind):
        between.heard.clear()
        between.faults = [(500, '{"errors":["of the key"]}', {})] * 20
        refused(use, KeyStoreUnavailable, "cannot be used: InternalServerError")
        assert len(between.heard) == 4


def test_a_version_that_was_deleted_is_not_a_missing_key(bao: Bao, path: str) -> None:
    store = OpenBao(f"{bao.url}/{path}")
    for kind in ("key", "successor"):
        store.write(VAULT, KEY, SECRET)
        store.mark_superseded(VAULT, KEY, new_id())
        at = f"outreach/{path}/{VAULT}/{KEY}/{kind}"
        bao.request("DELETE", f"secret/data/{at}")
        read = store.read if kind == "key" else store.successor
        refused(lambda: read(VAULT, KEY), KeyStoreUnavailable, "was deleted", "bao kv undelete")  # noqa: B023
        with pytest.raises(KeyExists):
            store.write(VAULT, KEY, SECRET)
        bao.request("PUT", f"secret/undelete/{at}", {"versions": [1]})
        assert store.read(VAULT, KEY) == SECRET
        store.delete(VAULT, KEY)
        with pytest.raises(KeyMissing):
            store.read(VAULT, KEY)


def test_an_entry_without_its_field_is_no_key(bao: Bao, path: str) -> None:
    store = OpenBao(f"{bao.url}/{path}")
    at = f"secret/data/outreach/{path}/{VAULT}/{KEY}"
    for kind in ("key", "successor"):
        bao.request("POST", f"{at}/{kind}", {"data": {"other": "text"}})
    assert store.read(VAULT, KEY).reveal() == ""
    refused(lambda: store.successor(VAULT, KEY), KeyStoreUnavailable, "damaged")


# --- AWS Secrets Manager


@pytest.fixture
def watched(aws: Moto, monkeypatch: pytest.MonkeyPatch, impatient: None) -> Iterator[Between]:
    with Between(aws) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.address}")
        yield proxy


@pytest.fixture
def secrets(watched: Between, path: str) -> AWSSecrets:
    return AWSSecrets(f"aws-secrets://eu-west-1/{path}")


def aws_error(code: str, message: str = "text of the other side", status: int = 400) -> Any:
    return status, json.dumps({"__type": code, "message": message}), {"x-amzn-RequestId": "1"}


@pytest.mark.parametrize(
    "faults",
    [
        ("lose",),
        (aws_error("ThrottlingException"),),
        (aws_error("InternalServiceError", status=500), aws_error("Unknown", status=503)),
    ],
)
def test_what_may_pass_at_aws_is_tried_again_and_a_write_stays_one(
    secrets: AWSSecrets, watched: Between, faults: tuple[Any, ...]
) -> None:
    for use in uses(secrets)[1:]:
        watched.faults = list(faults)
        use()
    secrets.write(VAULT, KEY, SECRET)
    watched.faults = list(faults)
    with pytest.raises(KeyExists):
        secrets.write(VAULT, KEY, generate_key())
    assert secrets.read(VAULT, KEY) == SECRET


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (aws_error("AccessDeniedException"), ["refuses the request: AccessDenied", "Credential"]),
        (aws_error("ExpiredTokenException"), ["refuses the request: ExpiredToken"]),
        (aws_error("UnrecognizedClientException"), ["refuses the request"]),
        (aws_error("DecryptionFailure"), ["refuses the request: DecryptionFailure"]),
        (aws_error("LimitExceededException"), ["cannot be used: LimitExceededException"]),
        (aws_error("of the other side"), ["cannot be used: ClientError"]),
        ((200, "<html>", {}), ["cannot be used"]),
        (aws_error("ThrottlingException"), ["cannot be used: ThrottlingException"]),
    ],
)
def test_what_aws_refuses_is_said_in_our_words(
    secrets: AWSSecrets, watched: Between, fault: Any, words: list[str]
) -> None:
    read, write, _, delete, *_ = uses(secrets)
    for use in (read, write, delete):
        watched.faults = [fault] * 20
        watched.heard.clear()
        said = refused(use, KeyStoreUnavailable, *[word.replace("Cred", "cred") for word in words])
        assert "other side" not in said
        assert len(watched.heard) == (4 if "Throttling" in said else 1)
    watched.faults = []


def test_without_credentials_it_says_so(
    secrets: AWSSecrets, watched: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for use in uses(secrets)[:2]:
        refused(use, KeyStoreUnavailable, "NoCredentialsError", "credentials that boto3 finds")
    assert watched.heard == []
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    refused(uses(secrets)[0], KeyStoreUnavailable, "ProfileNotFound")
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAINVENTEDINVENTED")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "an-invented-secret-access-key")
    assert secrets.holds(VAULT, KEY) is False


def test_aws_gone_and_back(aws: Moto, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Between(aws) as first:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{first.address}")
        store = AWSSecrets(f"aws-secrets://eu-west-1/{path}")
        store.write(VAULT, KEY, SECRET)
    refused(lambda: store.read(VAULT, KEY), KeyStoreUnavailable, "cannot be reached", "region")
    with Between(aws, int(first.address.partition(":")[2])):
        assert store.read(VAULT, KEY) == SECRET


def test_a_secret_that_is_scheduled_for_deletion_is_not_a_missing_key(
    secrets: AWSSecrets, watched: Between
) -> None:
    secrets.write(VAULT, KEY, SECRET)
    client = secrets._client()
    client.delete_secret(SecretId=secrets._id(ENTRY), RecoveryWindowInDays=7)
    for use in (uses(secrets)[0], uses(secrets)[2]):
        refused(use, KeyStoreUnavailable, "scheduled for deletion", "restore-secret")
    # AWS's own answer; its double says that there is one.
    said = "You can't create this secret because a secret with this name is already scheduled"
    watched.faults = [aws_error("InvalidRequestException", f"{said} for deletion.")]
    refused(uses(secrets)[1], KeyStoreUnavailable, "scheduled for deletion", "restore-secret")
    client.restore_secret(SecretId=secrets._id(ENTRY))
    assert secrets.read(VAULT, KEY) == SECRET


def test_a_deletion_is_for_good_and_waited_for(secrets: AWSSecrets, watched: Between) -> None:
    secrets.write(VAULT, KEY, SECRET)
    watched.heard.clear()
    deleting = (200, json.dumps({"Name": "x", "DeletedDate": 1}), {})
    watched.faults = ["pass", deleting, deleting]
    secrets.delete(VAULT, KEY)
    actions = [headers["X-Amz-Target"].partition(".")[2] for _, _, headers, _ in watched.heard]
    assert actions == ["DeleteSecret", *["DescribeSecret"] * 3]
    assert json.loads(watched.heard[0][3])["ForceDeleteWithoutRecovery"] is True


def test_a_deletion_that_aws_takes_its_time_for_is_done(watched: Between, path: str) -> None:
    store = AWSSecrets(f"aws-secrets://eu-west-1/{path}", seconds=2)
    store.write(VAULT, KEY, SECRET)
    watched.faults = ["pass", *[(200, json.dumps({"Name": "x", "DeletedDate": 1}), {})] * 50]
    store.delete(VAULT, KEY)
    watched.faults = []
    assert store.holds(VAULT, KEY) is False


def test_each_process_has_connections_of_its_own(
    secrets: AWSSecrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = secrets._client()
    assert secrets._client() is ours
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert secrets._client() is not ours


# --- both


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["bao", "aws"])
def test_an_answer_that_never_ends_is_given_up_at_the_time_limit(
    kind: str, path: str, request: pytest.FixtureRequest
) -> None:
    if kind == "bao":
        proxy = request.getfixturevalue("between")
        store: KeyStore = OpenBao(f"openbao+http://{proxy.address}/secret/{path}", seconds=0.5)
    else:
        proxy = request.getfixturevalue("watched")
        store = AWSSecrets(f"aws-secrets://eu-west-1/{path}", seconds=0.5)
    proxy.faults = ["trickle"] * 9
    began = time.monotonic()
    refused(lambda: store.read(VAULT, KEY), KeyringTimedOut, "no answer within the time limit")
    assert time.monotonic() - began < 3


@pytest.fixture(params=["bao", "aws"])
def url(request: pytest.FixtureRequest, path: str) -> str:
    if request.param == "aws":
        request.getfixturevalue("aws")
        return f"aws-secrets://eu-west-1/{path}"
    return f"{request.getfixturevalue('bao').url}/{path}"


@pytest.mark.peer
def test_an_id_that_the_database_made_up_names_no_entry(url: str) -> None:
    store = OpenBao(url) if url.startswith("openbao") else AWSSecrets(url)
    for bad in ("", "../x", "a/b", "*"):
        with pytest.raises(KeyMissing, match="cannot be one"):
            store.read(bad, KEY)


@pytest.mark.peer
def test_a_whole_vault_with_its_keys_on_a_server(url: str, tmp_path: Path) -> None:
    site = Site(tmp_path / "app.db", tmp_path / "none")

    def vault(*arguments: str, stdin: str = "", keys: str = url) -> str:
        done = process(site, "--keys", keys, *arguments, keyring=True, input=stdin.encode())
        assert done.status == 0, done.err
        return done.out

    assert f"in the key store {url}" in vault("init")
    vault("set", "lever", "api_key", stdin="an-invented-value")
    old = site.active()
    vault("rotate")
    assert site.active() != old
    assert vault("get", "lever", "api_key") == "an-invented-value\n"
    assert re.search(f"^key store +key store {url}$", vault("status"), re.M)
    passphrase = "an invented passphrase of some words\n"
    vault("keys", "export", str(tmp_path / "exported"), stdin=passphrase)
    vault("keys", "destroy", old, "--yes")
    other = f"{url}-2"
    vault("keys", "import", str(tmp_path / "exported"), stdin=passphrase, keys=other)
    assert vault("get", "lever", "api_key", keys=other) == "an-invented-value\n"
    vault("doctor", "--deep")
