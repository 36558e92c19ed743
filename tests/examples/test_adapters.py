"""
The three example adapters against servers on this machine: from the right account and recorded as
the app records, or not at all.

Each test runs on a new database of each engine and on a copy of a real one of the desktop app,
where one project has accounts of its own and another has none.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import contextlib
import email
import email.policy
import html
import itertools
import logging
import re
import shutil
import smtplib
import socket
import sqlite3
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.providers_api import (
    TOO_MANY,
    Answer,
    Asked,
    ElevenLabs,
    LocalTwilio,
    Twilio,
    as_json,
    twilio_error,
)
from helpers.rows import ABORT, IGNORE, trigger
from helpers.site import Engine, Figures, Row, Site, another, dump, new_site, records
from peewee import DataError

import outreach_vault
from outreach_vault import (
    DamagedValue,
    ForeignValue,
    IncompleteAccount,
    KeyDirectory,
    KeyMissing,
    KeyringLocked,
    MixedAccount,
    Secret,
    VaultError,
    models,
)
from outreach_vault.models import OutreachTemplate
from outreach_vault.operations.init import init
from outreach_vault.operations.rotation import rotate

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SAMPLE = ROOT.parent / "shared" / "samples" / "samsara-v5"
sys.path.insert(0, str(EXAMPLES))

import email_adapter  # noqa: E402
import sms_adapter  # noqa: E402
import voice_adapter  # noqa: E402
from outreach import NotRecorded  # noqa: E402
from smtp_server import Accepted, SmtpServer  # noqa: E402

pytestmark = pytest.mark.sweep(8)

KINDS = ("email", "sms", "voice")
EVERYONE, OWN = "everyone", "own"
SECRET = {
    (kind, account): f"canary-of-{account}-for-{kind}-0123456789"
    for kind in KINDS
    for account in (EVERYONE, OWN)
}
SID = {EVERYONE: "AC" + "1" * 32, OWN: "AC" + "2" * 32}
NUMBER = {EVERYONE: "+15550100001", OWN: "+15550100002"}
VARIABLES = {"name": "Ada", "role": "engineer"}
BODY = {"email": "<p>Good day {{name}},</p><p>{{role}}?</p>", "sms": "Good day {{name}}, {{role}}?"}
PROVIDER = {"email": "smtp", "sms": "twilio", "voice": "elevenlabs"}
TABLE = {"email": "messages", "sms": "messages", "voice": "call_records"}
SECRET_FIELD = {"email": "password", "sms": "auth_token", "voice": "api_key"}
# What comes from one account. The port is not varied by itself: it is stored wherever the host is.
ACCOUNT = {
    "email": ("host", "user", "password"),
    "sms": ("account_sid", "auth_token"),
    "voice": ("api_key",),
}
FIELDS = ACCOUNT | {
    "sms": (*ACCOUNT["sms"], "phone_number"),
    "voice": ("api_key", "screening_agent_id", "phone_number_id"),
}
# What each adapter says that it raises; a caller catches no other.
PROMISED: dict[str, tuple[type[Exception], ...]] = {
    "email": (VaultError, smtplib.SMTPException, OSError),
    "sms": (VaultError, sms_adapter.SmsRefused, OSError),
    "voice": (VaultError, voice_adapter.CallRefused, OSError),
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
PROVIDER_ID = {
    "email": re.compile(r"<[^<>@\s]+@[^<>@\s]+>"),
    "sms": re.compile(r"SM[0-9a-f]{32}"),
    "voice": re.compile(r"conv_\w+"),
}


class Servers(NamedTuple):
    smtp: SmtpServer
    twilio: Twilio
    eleven: ElevenLabs
    connections: list[object]


class LockedStore(KeyDirectory):
    def read(self, vault_id: str, key_id: str) -> Secret:
        raise KeyringLocked(f"{self.name}: it is locked", key_id=key_id)


class World:
    """
    A vault with an account for everyone and one project's own, for each adapter, and the servers of
    both.
    """

    def __init__(self, site: Site, servers: Servers, own: str, plain: str, cv: str) -> None:
        self.site, self.servers, self.own, self.plain, self.cv = site, servers, own, plain, cv
        self.to = {own: "+15550199001", plain: "+15550199002"}
        self.cafile: str | None = servers.smtp.cafile
        self.vault = site.open()
        self.vault.bind_models()
        self.before = {
            table: {row["id"] for row in self.sql(f"SELECT id FROM {table}")}
            for table in set(TABLE.values())
        }

    def reopen(self, key_store: KeyDirectory) -> None:
        self.vault.close()
        self.vault = self.site.open(key_store)
        self.vault.bind_models()

    def fields(self, kind: str, account: str) -> dict[str, str]:
        secret = SECRET[kind, account]
        if kind == "email":
            smtp = self.servers.smtp
            return {
                "host": smtp.host,
                "port": str(smtp.port),
                "user": f"{account}@example.com",
                "password": secret,
            }
        if kind == "sms":
            return {
                "account_sid": SID[account],
                "auth_token": secret,
                "phone_number": NUMBER[account],
            }
        return {
            "api_key": secret,
            "screening_agent_id": f"agent-of-{account}",
            "phone_number_id": f"number-of-{account}",
        }

    def store_accounts(self) -> None:
        for kind, (account, project) in itertools.product(
            KINDS, ((EVERYONE, None), (OWN, self.own))
        ):
            for field, value in self.fields(kind, account).items():
                self.vault.set(PROVIDER[kind], field, value, project)

    def send(
        self, kind: str, project: str, variables: dict[str, str] = VARIABLES, **given: Any
    ) -> Any:
        to, cv, template = (
            given.get("to"),
            given.get("cv"),
            given.get("template", f"{kind}-{project}"),
        )
        phone = to or self.to.get(project, "+15550199009")
        if kind == "voice":
            eleven = ("localhost", self.servers.eleven.port)
            context = ssl.create_default_context(cafile=self.cafile)
            return voice_adapter.call(
                self.vault, project, phone, variables, cv_id=cv, address=eleven, context=context
            )
        if kind == "sms":
            client = LocalTwilio(
                self.servers.twilio, timeout=sms_adapter.SECONDS, request_hooks=sms_adapter.HOOKS
            )
            return sms_adapter.send(
                self.vault, project, phone, template, variables, cv_id=cv, http_client=client
            )
        to = to or f"{project}@candidates.example"
        return email_adapter.send(
            self.vault, project, to, template, variables, cv_id=cv, cafile=self.cafile
        )

    def account_of(self, project: str) -> str:
        return OWN if project == self.own else EVERYONE

    def seen(self, kind: str) -> list[str | None]:
        """The account that the server saw, for each message or call that it took."""
        if kind == "email":
            return [took.account.partition("@")[0] for took in self.servers.smtp.accepted]
        names = {sid: account for account, sid in SID.items()} | {EVERYONE: EVERYONE, OWN: OWN}
        return [names.get(asked.account or "") for asked in self.asked(kind) if asked.status < 300]

    def asked(self, kind: str) -> list[Asked]:
        return (self.servers.twilio if kind == "sms" else self.servers.eleven).asked

    def emails(self) -> list[tuple[Accepted, EmailMessage]]:
        return [
            (took, email.message_from_bytes(took.content, policy=email.policy.default))
            for took in self.servers.smtp.accepted
        ]  # type: ignore[misc]

    def nothing_reached_a_server(self) -> bool:
        return self.servers.connections == [] and not any(self.seen(kind) for kind in KINDS)

    def sql(self, statement: str, *parameters: object) -> list[Row]:
        """As another program; past the models, whose fields convert."""
        return records(self.site.database, statement, *parameters)

    def rows(self, kind: str) -> list[Row]:
        """What was recorded since the world was made, in the order of the calls."""
        order = "created_at" if self.site.engine else "rowid"
        new = [
            row
            for row in self.sql(f"SELECT * FROM {TABLE[kind]} ORDER BY {order}")
            if row["id"] not in self.before[TABLE[kind]]
        ]
        return [row for row in new if row["type"] == kind or kind == "voice"]

    def forget(self) -> None:
        """As at the beginning, but for the values."""
        for known in (
            self.servers.smtp.accepted,
            self.servers.smtp.attempts,
            self.servers.twilio.asked,
            self.servers.eleven.asked,
        ):
            known.clear()
        for answers in (self.servers.twilio.answers, self.servers.eleven.answers):
            answers.clear()
        self.servers.connections.clear()
        for table, ids in self.before.items():
            self.sql(f"DELETE FROM {table} WHERE id NOT IN ({'?, ' * len(ids)}'')", *ids)


@pytest.fixture(scope="session")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    keys = {SECRET["voice", account]: account for account in (EVERYONE, OWN)}
    accounts = {
        SID[account]: (SECRET["sms", account], NUMBER[account]) for account in (EVERYONE, OWN)
    }
    passwords = {f"{account}@example.com": SECRET["email", account] for account in (EVERYONE, OWN)}
    with (
        SmtpServer(folder, passwords) as smtp,
        Twilio(accounts) as twilio,
        ElevenLabs(keys, folder / "server.pem") as eleven,
    ):
        yield Servers(smtp, twilio, eleven, [])


@pytest.fixture
def servers(listening: Servers, monkeypatch: pytest.MonkeyPatch) -> Servers:
    """
    Every connection of this process is noted: a server sees no attempt that ends before the first
    byte.
    """
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        if (
            self.family == socket.AF_INET
        ):  # the servers' own; some machines try ::1 for localhost first, which is no second try
            listening.connections.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    monkeypatch.setattr(sms_adapter, "_PAUSE", 0.0)
    return listening


class Prepared(NamedTuple):
    site: Site
    own: str
    plain: str
    cv: str


def _new(folder: Path, engine: Engine) -> Prepared:
    site = new_site(folder, engine)
    for project in (OWN, "plain"):
        site.change(
            "INSERT INTO projects (id, name, created_at, updated_at) SELECT ?, ?, created_at, "
            "updated_at FROM projects LIMIT 1",
            project,
            project,
        )
    site.change(
        "INSERT INTO cvs (id, file_path, file_name, created_at, updated_at, contact_json, "
        "contact_confidence, parse_confidence,"
        " project_id) SELECT 'a-cv', '', '', created_at, created_at, '{}', 1, 1, ? FROM "
        "projects LIMIT 1",
        OWN,
    )
    return Prepared(site, OWN, "plain", "a-cv")


def _sample(folder: Path, engine: Engine) -> Prepared:
    if not SAMPLE.with_suffix(".db").exists():
        pytest.skip("the sample databases are not here")
    folder.mkdir()
    for suffix in (".db", ".db-wal"):
        shutil.copyfile(f"{SAMPLE}{suffix}", folder / f"app{suffix}")
    init(folder / "app.db", key_store=KeyDirectory(folder / "keys"))
    with contextlib.closing(sqlite3.connect(folder / "app.db")) as connection:
        own, cv = connection.execute(
            "SELECT project_id, cv_id FROM messages WHERE cv_id IS NOT NULL LIMIT 1"
        ).fetchone()
        plain = connection.execute(
            "SELECT id FROM projects WHERE id <> ? AND is_archived = 0 AND is_pinned", (own,)
        ).fetchone()[0]
    return Prepared(Site(folder / "app.db", folder / "keys"), own, plain, cv)


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(_new, id="new"),
        pytest.param(_sample, id="sample", marks=pytest.mark.sqlite("the desktop app's own file")),
    ],
)
def prepared(
    request: pytest.FixtureRequest, engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Prepared:
    made: Prepared = request.param(tmp_path_factory.mktemp("prepared") / "site", engine)
    with made.site.open() as vault:
        vault.bind_models()
        for kind, project in itertools.product(BODY, (made.own, made.plain)):
            subject = "For {{name}}" if kind == "email" else None
            OutreachTemplate.create(
                id=f"{kind}-{project}",
                project=project,
                name="n",
                type=kind,
                subject=subject,
                body=BODY[kind],
            )
    return made


@pytest.fixture
def bare(prepared: Prepared, servers: Servers, tmp_path: Path) -> Iterator[World]:
    """A world in which the vault holds nothing, or what the app left."""
    made, *rest = prepared
    world = World(made.copy(tmp_path / "site"), servers, *rest)
    world.forget()
    yield world
    world.vault.close()
    while _peers:
        _peers.pop().close()


@pytest.fixture
def world(bare: World) -> World:
    # Some of the app's hide the global ones.
    bare.sql("DELETE FROM provider_credentials WHERE provider <> 'anthropic'")
    bare.store_accounts()
    return bare


def spell(secret: str) -> set[str]:
    """The secret, and as it is in a header of HTTP or of SMTP."""
    users = [f"{sid}:{secret}" for sid in SID.values()] + [
        f"\0{account}@example.com\0{secret}" for account in (EVERYONE, OWN)
    ]
    return {secret, *(base64.b64encode(text.encode()).decode() for text in (secret, *users))}


def shown_by(error: BaseException | None) -> Iterator[str]:
    """
    Its text and facts and those of all that led to it, and what the variables of our frames and the
    examples' say of themselves.
    """
    ours = (str(Path(outreach_vault.__file__).parent), str(EXAMPLES))
    while error:
        yield from ("".join(traceback.format_exception(error)), repr(error), repr(vars(error)))
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename.startswith(ours):
                yield f"in {frame.f_code.co_name}: {frame.f_locals!r}"
        error = error.__cause__ or error.__context__


Check = Callable[[World, BaseException | None], None]


@pytest.fixture
def no_secret_shown(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Check:
    caplog.set_level(logging.DEBUG)
    for name in ("twilio", "twilio.http_client", "urllib3", "peewee", "mail.log"):
        caplog.set_level(logging.DEBUG, name)

    def check(world: World, error: BaseException | None) -> None:
        said = [
            repr(dump(world.site.database)),
            caplog.text,
            *capfd.readouterr(),
            *shown_by(error),
        ]
        for spelled in itertools.chain(
            *map(spell, [*SECRET.values(), "canary-and-wrong-0123456789"])
        ):
            assert [text for text in said if spelled in text] == []

    return check


def failed_once(world: World, kind: str, project: str, error: Exception) -> None:
    """One row, which says why as far as its table has a column for it."""
    (row,) = world.rows(kind)
    assert (row["status"], row["project_id"]) == ("failed", project)
    if kind == "voice":
        assert (row["provider_call_id"], row["phone_number"], row["ended_at"]) == (
            None,
            world.to[project],
            row["started_at"],
        )
    else:
        why = str(error) if isinstance(error, VaultError) else type(error).__name__
        assert (row["provider_message_id"], row["error_message"]) == (None, why)


# Which account


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_is_sent_from_its_own_account_else_from_everyones(
    world: World, kind: str, no_secret_shown: Check
) -> None:
    projects = [world.own, world.plain, "default-project", world.own]
    for project in projects:
        world.send(kind, project, template=_template(world, kind, project))
    assert world.seen(kind) == [OWN, EVERYONE, EVERYONE, OWN]
    assert [row["project_id"] for row in world.rows(kind)] == projects
    for field in FIELDS[kind]:
        world.vault.delete(PROVIDER[kind], field, world.own)
    world.vault.delete("smtp", "port", world.own)
    world.send(kind, world.own)
    assert world.seen(kind)[-1] == EVERYONE
    no_secret_shown(world, None)


def _template(world: World, kind: str, project: str) -> str:
    made, _ = OutreachTemplate.get_or_create(
        id=f"{kind}-{project}",
        defaults={"project": project, "name": "n", "type": kind, "body": BODY.get(kind, "")},
    )
    return str(made.id)


def _expected(kind: str, scopes: dict[str, str]) -> dict[str, str] | type[VaultError]:
    """
    For each field the account that it is of, or why nothing may be sent; written down from the
    rules, not from the package.
    """
    found = {
        field: OWN if scope in ("project", "both") else EVERYONE
        for field, scope in scopes.items()
        if scope != "absent"
    }
    if len({found[field] for field in ACCOUNT[kind] if field in found}) > 1:
        return MixedAccount
    return found if len(found) == len(FIELDS[kind]) else IncompleteAccount


@pytest.mark.parametrize("kind", KINDS)
def test_every_arrangement_of_scopes_sends_from_one_account_or_not_at_all(
    world: World, kind: str, figures: Figures
) -> None:
    stored = world.sql("SELECT * FROM provider_credentials WHERE provider = ?", PROVIDER[kind])
    choices = list(
        itertools.product(("global", "project", "both", "absent"), repeat=len(FIELDS[kind]))
    )
    for choice in choices:
        scopes = dict(zip(FIELDS[kind], choice, strict=True))
        world.forget()
        _arrange(world, kind, [row for row in stored if _is_there(row, scopes)])
        expected = _expected(kind, scopes)
        if isinstance(expected, type):
            with pytest.raises(expected) as refused:
                world.send(kind, world.own)
            assert world.nothing_reached_a_server(), scopes
            failed_once(world, kind, world.own, refused.value)
        elif (
            kind == "sms" and expected["phone_number"] != expected["auth_token"]
        ):  # the account is asked, and does not have the number
            with pytest.raises(
                sms_adapter.SmsRefused, match="HTTP 400, code 21660"
            ) as not_its_number:
                world.send(kind, world.own)
            assert [asked.account for asked in world.asked(kind)] == [
                SID[expected["auth_token"]]
            ], scopes
            failed_once(world, kind, world.own, not_its_number.value)
        else:
            world.send(kind, world.own)
            assert world.seen(kind) == [expected[SECRET_FIELD[kind]]], scopes
            assert [row["status"] for row in world.rows(kind)] == [
                "in_progress" if kind == "voice" else "sent"
            ]
            if kind == "voice":
                (asked,) = world.asked(kind)
                ids = (asked.fields["agent_id"], asked.fields["agent_phone_number_id"])
                assert ids == (
                    f"agent-of-{expected['screening_agent_id']}",
                    f"number-of-{expected['phone_number_id']}",
                )
    figures("arrangements of scopes, each sent from one account or not at all", len(choices))


def _is_there(row: Row, scopes: dict[str, str]) -> bool:
    field = "host" if row["credential_type"] == "port" else row["credential_type"]
    return scopes[field] in ("both", "project" if row["project_id"] else "global")


def _arrange(world: World, kind: str, rows: list[Row]) -> None:
    with another(world.site.database) as connection:
        if world.site.engine is None:
            connection.execute("PRAGMA synchronous = OFF")
        connection.begin()
        connection.execute("DELETE FROM provider_credentials WHERE provider = ?", (PROVIDER[kind],))
        for row in rows:
            names = ", ".join(row)
            connection.execute(
                f"INSERT INTO provider_credentials ({names}) VALUES ({', '.join('?' * len(row))})",
                tuple(row.values()),
            )
        connection.execute("COMMIT")


def test_a_from_email_of_either_scope_is_the_sender_and_changes_no_account(world: World) -> None:
    world.vault.set("smtp", "from_email", "jobs@example.com")
    for project in (world.own, world.plain):
        world.send("email", project)
    assert [(took.account, took.sender) for took in world.servers.smtp.accepted] == [
        ("own@example.com", "jobs@example.com"),
        ("everyone@example.com", "jobs@example.com"),
    ]
    assert {row["from_address"] for row in world.rows("email")} == {"jobs@example.com"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_app_left_is_not_sent_with(bare: World, kind: str, no_secret_shown: Check) -> None:
    for project in (bare.own, bare.plain):
        bare.forget()
        with pytest.raises((ForeignValue, MixedAccount, IncompleteAccount)) as refused:
            bare.send(kind, project)
        assert bare.nothing_reached_a_server()
        failed_once(bare, kind, project, refused.value)
        no_secret_shown(bare, refused.value)


# The record


def _types(kind: str, *, sent: bool) -> Row:
    """The type of each column's value, with a CV."""
    if kind == "voice":
        unknown = "duration_seconds screening_outcome screening_confidence recording_path"
        nulls = {*unknown.split(), "ended_at" if sent else "provider_call_id"}
        names = (
            f"id project_id cv_id type status provider_call_id phone_number {unknown} started_at "
            "ended_at created_at"
        )
    else:
        nulls = {
            "delivered_at",
            "error_message" if sent else "provider_message_id",
            *(() if kind == "email" else ("subject",)),
        }
        names = (
            "id project_id cv_id type direction status from_address to_address subject body "
            "template_id provider_message_id error_message"
        )
        names += " sent_at delivered_at created_at"
    return {name: type(None) if name in nulls else str for name in names.split()}


def _typeof(world: World, kind: str, where: str) -> list[Row]:
    rows = world.sql(f"SELECT * FROM {TABLE[kind]} WHERE {where}")
    return [{name: type(value) for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("sent", [True, False], ids=["sent", "failed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_row_has_the_shape_of_the_apps_own(world: World, kind: str, sent: bool) -> None:
    if not sent:
        world.vault.set(
            PROVIDER[kind], SECRET_FIELD[kind], "wrong-0123456789-0123456789", world.own
        )
    with contextlib.nullcontext() if sent else pytest.raises(PROMISED[kind]):
        world.send(kind, world.own, cv=world.cv)
    (row,) = world.rows(kind)
    assert _typeof(world, kind, f"id = '{row['id']}'") == [_types(kind, sent=sent)]
    assert UUID.fullmatch(row["id"])
    assert (row["project_id"], row["cv_id"]) == (world.own, world.cv)
    for name in ("sent_at", "started_at", "ended_at", "created_at"):
        assert row.get(name) is None or (
            TIME.fullmatch(row[name]) and row[name] == row["created_at"]
        )
    if kind == "voice":
        assert (row["type"], row["status"], row["phone_number"]) == (
            "screening",
            "in_progress" if sent else "failed",
            world.to[world.own],
        )
    else:
        to = f"{world.own}@candidates.example" if kind == "email" else world.to[world.own]
        assert (row["type"], row["direction"], row["status"]) == (
            kind,
            "outbound",
            "sent" if sent else "failed",
        )
        assert (row["to_address"], row["from_address"]) == (
            to,
            "own@example.com" if kind == "email" else NUMBER[OWN],
        )
        assert (row["template_id"], row["subject"]) == (
            f"{kind}-{world.own}",
            "For Ada" if kind == "email" else None,
        )
        assert row["body"] == BODY[kind].replace("{{name}}", "Ada").replace("{{role}}", "engineer")
    if sent:
        provider_id = row["provider_call_id" if kind == "voice" else "provider_message_id"]
        assert PROVIDER_ID[kind].fullmatch(provider_id)
        if kind == "email":
            assert world.emails()[0][1]["Message-ID"] == provider_id


@pytest.mark.sqlite("rows of the desktop app's own")
@pytest.mark.parametrize("kind", ["email", "sms"])
def test_the_row_has_the_types_of_a_row_that_the_app_wrote(
    world: World, kind: str, prepared: Prepared
) -> None:
    ids = ", ".join(f"'{row_id}'" for row_id in world.before["messages"])
    theirs = _typeof(
        world,
        kind,
        f"id IN ({ids}) AND type = '{kind}' AND direction = 'outbound' AND status = 'sent'",
    )
    if not theirs:
        pytest.skip("the app wrote no row into this database")
    world.send(kind, world.own, cv=world.cv)
    assert _typeof(world, kind, f"id = '{world.rows(kind)[0]['id']}'") == theirs


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_an_id_of_the_provider_of_its_own_and_goes_with_its_project(
    world: World, kind: str
) -> None:
    for project in (world.own, world.plain) * 5:
        world.send(kind, project)
    ids = [
        row["provider_call_id" if kind == "voice" else "provider_message_id"]
        for row in world.rows(kind)
    ]
    assert len(set(ids)) == 10 and None not in ids
    world.vault.database.change("DELETE FROM projects WHERE id = ?", (world.own,))
    assert [row["project_id"] for row in world.rows(kind)] == [world.plain] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_recorded_is_not_sent(world: World, kind: str) -> None:
    """Sent and then not recorded would look like a failure to the caller, who sends again."""
    with pytest.raises(Exception):  # noqa: B017  # which one is not the point
        world.send(kind, world.own, cv="no-such-cv")
    assert world.nothing_reached_a_server()


# Templates


def test_variables_are_escaped_in_the_body_of_an_email_and_nowhere_else(world: World) -> None:
    variables = {"name": '<b>R&D</b> "it\'s"', "role": "{{name}} \\1 é"}
    for kind in BODY:
        world.send(kind, world.own, variables)
    body = (
        BODY["email"]
        .replace("{{name}}", html.escape(variables["name"]))
        .replace("{{role}}", html.escape(variables["role"]))
    )
    body = body.replace(html.escape("{{name}}") + " ", "{{name}} ")
    ((_, message),) = world.emails()
    assert _part(message, "html") == body == world.rows("email")[0]["body"]
    assert message["Subject"] == world.rows("email")[0]["subject"] == f"For {variables['name']}"
    assert variables["name"] in _part(message, "plain") and variables["role"] in _part(
        message, "plain"
    )
    assert (
        world.asked("sms")[0].fields["Body"]
        == f"Good day {variables['name']}, {variables['role']}?"
        == world.rows("sms")[0]["body"]
    )


def _part(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n").removesuffix("\n")


@pytest.mark.parametrize(
    "body",
    [
        BODY["email"],
        "<h1>Good day</h1><ul><li>one</li><li>{{name}} &amp; co</li></ul>",
        "first<br>second<br/>third &lt;tag&gt;",
        "plain words, no tag",
        "<table><tr><td>one</td><td>two</td></tr></table>",
        "<html><head><style>p { color: red }</style></head><body><p>Good day</p></body></html>",
    ],
)
def test_an_email_says_the_same_in_plain_text_and_in_html(world: World, body: str) -> None:
    world.sql("UPDATE outreach_templates SET body = ? WHERE id = ?", body, f"email-{world.own}")
    world.send("email", world.own)
    ((_, message),) = world.emails()
    assert [part.get_content_type() for part in message.walk()] == [
        "multipart/alternative",
        "text/plain",
        "text/html",
    ]
    shown = re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*</style>", "", _part(message, "html")))
    assert _part(message, "plain").split() == html.unescape(shown).split() != []


@pytest.mark.parametrize("kind", BODY)
@pytest.mark.parametrize(
    "fault", ["a missing variable", "of another project", "of another kind", "none"]
)
def test_a_template_that_cannot_be_filled_in_sends_and_records_nothing(
    world: World, kind: str, fault: str
) -> None:
    other = {"email": "sms", "sms": "email"}[kind]
    template = {
        "of another project": f"{kind}-{world.plain}",
        "of another kind": f"{other}-{world.own}",
        "none": "no-such-template",
    }.get(fault)
    with pytest.raises(ValueError):
        world.send(
            kind,
            world.own,
            {"name": "Ada"} if not template else VARIABLES,
            template=template or f"{kind}-{world.own}",
        )
    assert world.nothing_reached_a_server()
    assert world.rows(kind) == []


@pytest.mark.parametrize(
    "end", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\0"], ids=repr
)
@pytest.mark.parametrize("where", ["middle", "end", "folded", "address"])
def test_a_line_end_adds_and_ends_no_header(world: World, end: str, where: str) -> None:
    """
    A value of a person's own, from a CV: an address or a name with a line end after it is no
    attack, and does it too.
    """
    reader = f"{world.own}@candidates.example"
    name = {
        "middle": f"Ada{end}Bcc: other@example.com",
        "end": f"Ada{end}",
        "folded": f"{'Ada ' * 40}{end}Bcc: other@example.com",
    }.get(where, "Ada")
    with contextlib.suppress(ValueError, DataError):  # a server stores no NUL
        world.send(
            "email",
            world.own,
            VARIABLES | {"name": name},
            to=reader + end if where == "address" else reader,
        )
    for took, message in world.emails():
        assert took.recipients == (reader,)
        head = {
            line.split(b":")[0]
            for line in took.content.split(b"\r\n\r\n")[0].splitlines()
            if not line[:1].isspace()
        }
        assert head <= {b"From", b"To", b"Subject", b"Message-ID", b"MIME-Version", b"Content-Type"}
        assert len(message.get_payload()) == 2
    assert [row["status"] for row in world.rows("email")] in (
        [["sent"]] if world.emails() else [[], ["failed"]]
    )


def test_a_line_end_in_the_stored_sender_ends_no_header(world: World) -> None:
    """
    Stored by the library from a file, say; only the command looks at what a field must be like.
    """
    world.vault.set("smtp", "from_email", "jobs@example.com\n", world.own)
    with contextlib.suppress(ValueError, VaultError):
        world.send("email", world.own)
    assert [message["Subject"] for _, message in world.emails()] in ([], ["For Ada"])


@pytest.mark.parametrize(
    "to", ["reader@example.com\r\nBcc: other@example.com", "reader@example.com, other@example.com"]
)
def test_an_email_goes_to_no_second_recipient_hidden_in_the_address(world: World, to: str) -> None:
    with contextlib.suppress(ValueError, smtplib.SMTPException):
        world.send("email", world.own, to=to)
    assert not [
        took for took in world.servers.smtp.accepted if "other@example.com" in took.recipients
    ]


# Fail closed


def _token(world: World, kind: str, change: str) -> None:
    field = (world.own, PROVIDER[kind], SECRET_FIELD[kind])
    world.sql(
        f"UPDATE provider_credentials SET {change} WHERE project_id = ? AND provider = ? AND "
        "credential_type = ?",
        *field,
    )


def _damaged(world: World, kind: str) -> None:
    digit = "CASE substr(encrypted_value, 61, 1) WHEN 'A' THEN 'B' ELSE 'A' END"
    _token(
        world,
        kind,
        f"encrypted_value = substr(encrypted_value, 1, 60) || {digit} || substr(encrypted_value, "
        "62)",
    )


def _of_another_place(world: World, kind: str) -> None:
    place = (
        "o.project_id IS NULL AND o.provider = provider_credentials.provider AND "
        "o.credential_type = provider_credentials.credential_type"
    )
    _token(
        world,
        kind,
        f"encrypted_value = (SELECT o.encrypted_value FROM provider_credentials o WHERE {place})",
    )


def _foreign(world: World, kind: str) -> None:
    _token(
        world,
        kind,
        "encrypted_value = 'djExZEhjdFlYVjBhQzF3Y205cVpXTjBMVEF3TURFPQ==', key_id = NULL",
    )


def _emptied(world: World, kind: str) -> None:
    _token(world, kind, "encrypted_value = '', key_id = NULL")


def _key_missing(world: World, kind: str) -> None:
    for file in world.site.keys.glob("*.key"):
        file.unlink()
    world.reopen(KeyDirectory(world.site.keys))


def _locked(world: World, kind: str) -> None:
    world.reopen(LockedStore(world.site.keys))


def _mixed(world: World, kind: str) -> None:
    world.vault.delete(PROVIDER[kind], SECRET_FIELD[kind], world.own)


def _incomplete(world: World, kind: str) -> None:
    for project in (None, world.own):
        world.vault.delete(PROVIDER[kind], SECRET_FIELD[kind], project)


FAULTS: dict[Callable[[World, str], None], type[VaultError]] = {
    _damaged: DamagedValue,
    _of_another_place: DamagedValue,
    _foreign: ForeignValue,
    _emptied: ForeignValue,
    _key_missing: KeyMissing,
    _locked: KeyringLocked,
    _mixed: MixedAccount,
    _incomplete: IncompleteAccount,
}
# A voice account has one field that belongs to it, which cannot be mixed with another.
FAULTY = [(kind, fault) for kind in KINDS for fault in FAULTS if (kind, fault) != ("voice", _mixed)]


@pytest.mark.parametrize(
    ("kind", "fault"), FAULTY, ids=[f"{kind}-{fault.__name__}" for kind, fault in FAULTY]
)
def test_an_account_that_cannot_be_had_reaches_no_server(
    world: World, kind: str, fault: Callable[[World, str], None], no_secret_shown: Check
) -> None:
    fault(world, kind)
    with pytest.raises(FAULTS[fault]) as refused:
        world.send(kind, world.own)
    assert world.nothing_reached_a_server()
    failed_once(world, kind, world.own, refused.value)
    no_secret_shown(world, refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_project_sends_nothing(world: World, kind: str, no_secret_shown: Check) -> None:
    with pytest.raises(Exception) as refused:
        world.send(kind, "no-such-project")
    assert world.nothing_reached_a_server()
    assert world.rows(kind) == []
    no_secret_shown(world, refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_project_is_an_error_that_says_so(world: World, kind: str) -> None:
    with pytest.raises((ValueError, VaultError), match="project"):
        world.send(kind, "no-such-project")


# What the provider refuses


def _wrong(kind: str) -> Callable[[World], None]:
    return lambda world: (
        world.vault.set(
            PROVIDER[kind], SECRET_FIELD[kind], "canary-and-wrong-0123456789", world.own
        )
        and None
    )


def _answers(kind: str, *answers: Answer) -> Callable[[World], None]:
    return lambda world: (
        world.servers.twilio if kind == "sms" else world.servers.eleven
    ).answers.extend(answers)


def _port(port: Callable[[], int]) -> Callable[[World], None]:
    return lambda world: world.vault.set("smtp", "port", str(port()), world.own) and None


def _no_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


_peers: list[socket.socket] = []  # open until the test ends: a silent server is one that is there


def _peer(*said: bytes) -> Callable[[], int]:
    def start() -> int:
        peer = socket.create_server(("127.0.0.1", 0))
        _peers.append(peer)

        def speak() -> None:
            connection, _ = peer.accept()
            _peers.append(connection)
            for text in said:
                connection.sendall(text)

        threading.Thread(target=speak, daemon=True).start()
        return int(peer.getsockname()[1])

    return start


def _untrusted(world: World) -> None:
    world.cafile = None


PROBLEM = {
    "type": "https://www.twilio.com/docs/errors/21211",
    "title": "Invalid To",
    "status": 400,
    "code": 21211,
}
BUSY = PROBLEM | {
    "type": "https://www.twilio.com/docs/errors/20429",
    "title": "Too Many Requests",
    "status": 429,
    "code": 20429,
}
REFUSED: dict[
    str, dict[str, tuple[Callable[[World], None], int]]
] = {  # what happens, and how often the provider is asked
    "email": {
        "wrong password": (_wrong("email"), 1),
        "nobody listens": (_port(_no_port), 1),
        "silence": (_port(_peer()), 1),
        "garbage": (_port(_peer(b"HTTP/1.1 200 OK\r\n\r\n")), 1),
        "no TLS": (_port(_peer(b"220 hello\r\n", b"250 hello\r\n", b"250 hello\r\n")), 1),
        "untrusted certificate": (_untrusted, 1),
    },
    "sms": {
        "401": (_wrong("sms"), 1),
        "400": (
            _answers(
                "sms", twilio_error(400, 21211, "The 'To' number is not a valid phone number.")
            ),
            1,
        ),
        "400 as a problem": (
            _answers("sms", as_json(400, PROBLEM, {"Content-Type": "application/problem+json"})),
            1,
        ),
        "429 thrice": (_answers("sms", TOO_MANY, TOO_MANY, TOO_MANY), 3),
        "500": (_answers("sms", Answer(500, b"oops")), 1),
        "503": (
            _answers("sms", twilio_error(503, 20503, "Service unavailable", {"Retry-After": "1"})),
            1,
        ),
        "redirect": (
            _answers("sms", Answer(307, b"", {"Location": "https://api.twilio.com/elsewhere"})),
            1,
        ),
        "silence": (_answers("sms", Answer(500, seconds=2)), 1),
        "no JSON": (_answers("sms", Answer(201, b"<html>", {"Content-Type": "text/html"})), 1),
        "no SID": (_answers("sms", as_json(201, {"status": "queued"})), 1),
        "garbage": (_answers("sms", Answer(body=b"garbage\r\n\r\n", raw=True)), 1),
    },
    "voice": {
        "401": (_wrong("voice"), 1),
        "422": (
            _answers(
                "voice",
                as_json(
                    422,
                    {
                        "detail": [
                            {
                                "type": "missing",
                                "loc": ["body", "agent_id"],
                                "msg": "Field required",
                            }
                        ]
                    },
                ),
            ),
            1,
        ),
        "429": (
            _answers("voice", as_json(429, {"detail": {"status": "too_many_concurrent_requests"}})),
            1,
        ),
        "500": (_answers("voice", Answer(500, b"oops")), 1),
        "no success": (
            _answers(
                "voice",
                as_json(
                    200,
                    {"success": False, "message": "no", "conversation_id": None, "callSid": None},
                ),
            ),
            1,
        ),
        "no success, and an id": (
            _answers("voice", as_json(200, {"success": False, "conversation_id": "conv_1"})),
            1,
        ),
        "500, and an id": (
            _answers("voice", as_json(500, {"success": True, "conversation_id": "conv_1"})),
            1,
        ),
        "no conversation": (
            _answers(
                "voice",
                as_json(
                    200, {"success": True, "message": "", "conversation_id": None, "callSid": "CA1"}
                ),
            ),
            1,
        ),
        "no JSON": (_answers("voice", Answer(200, b"\xff<html>")), 1),
        "no object": (_answers("voice", as_json(200, ["success", "conversation_id"])), 1),
        "silence": (_answers("voice", Answer(500, seconds=2)), 1),
        "garbage": (_answers("voice", Answer(body=b"garbage\r\n\r\n", raw=True)), 1),
        "cut short": (
            _answers("voice", Answer(200, b'{"success": true', {"Content-Length": "99"})),
            1,
        ),
        "untrusted certificate": (_untrusted, 1),
    },
}


@pytest.mark.parametrize(
    ("kind", "what"), [(kind, what) for kind, faults in REFUSED.items() for what in faults]
)
def test_a_refusal_is_recorded_and_not_tried_again(
    world: World, kind: str, what: str, no_secret_shown: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrange, tries = REFUSED[kind][what]
    for adapter in (email_adapter, sms_adapter, voice_adapter):
        monkeypatch.setattr(adapter, "SECONDS", 0.3 if what == "silence" else 5.0)
    arrange(world)
    with pytest.raises(Exception) as refused:
        world.send(kind, world.own)
    assert len(world.servers.connections) == tries
    if kind != "email":
        assert len(world.asked(kind)) == (0 if what == "untrusted certificate" else tries)
    assert world.servers.smtp.accepted == []
    failed_once(world, kind, world.own, refused.value)
    assert isinstance(refused.value, PROMISED[kind]), (
        f"not what the adapter says that it raises: {refused.value!r}"
    )
    no_secret_shown(world, refused.value)


@pytest.mark.parametrize(
    "busy",
    [(TOO_MANY,), (TOO_MANY, TOO_MANY), (as_json(429, BUSY),)],
    ids=["once", "twice", "as a problem"],
)
def test_too_many_requests_are_asked_again_and_sent_once(
    world: World, busy: tuple[Answer, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(sms_adapter, "_PAUSE", 1.0)
    monkeypatch.setattr(sms_adapter.time, "sleep", pauses.append)
    world.servers.twilio.answers.extend(busy)
    world.send("sms", world.own)
    assert [asked.status for asked in world.asked("sms")] == [429] * len(busy) + [201]
    assert [row["status"] for row in world.rows("sms")] == ["sent"]
    assert pauses == [1.0, 2.0][: len(busy)]


# What was accepted, whatever comes after


async def _hangs_up(server: Any, *_: object) -> str:
    server.transport.abort()
    return ""


async def _never_ends(server: Any, *_: object) -> str:
    while not server.transport.is_closing():
        await server.push("221-" + "x" * 60_000)
        await asyncio.sleep(0.01)
    return ""


def _farewell(said: str) -> Callable[..., Any]:
    async def say(*_: object) -> str:
        return said

    return say


FAREWELLS = {
    "421": _farewell("421 4.7.0 too many connections"),
    "500": _farewell("500 what?"),
    "rubbish": _farewell("\x00\xff"),
    "a line that is too long": _farewell("221 " + "x" * 100_000),
    "lines without end": _never_ends,
    "hangs up": _hangs_up,
}


@pytest.mark.parametrize("farewell", FAREWELLS)
def test_a_mail_that_was_accepted_is_sent_whatever_the_server_says_at_the_end(
    world: World, farewell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.servers.smtp, "handle_QUIT", FAREWELLS[farewell], raising=False)
    message = world.send("email", world.own)
    assert world.seen("email") == [OWN]
    (row,) = world.rows("email")
    assert (row["status"], row["error_message"], row["provider_message_id"]) == (
        "sent",
        None,
        message.provider_message_id,
    )


@pytest.mark.parametrize("farewell", FAREWELLS)
def test_what_a_server_says_at_the_end_does_not_hide_why_a_mail_was_refused(
    world: World, farewell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.servers.smtp, "handle_QUIT", FAREWELLS[farewell], raising=False)
    _wrong("email")(world)
    with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
        world.send("email", world.own)
    failed_once(world, "email", world.own, refused.value)


ACCEPTED = {
    "sms": (201, b'{"sid": "SM' + b"1" * 32 + b'", "status": "queued"}'),
    "voice": (
        200,
        b'{"success": true, "message": "", "conversation_id": "conv_1", "callSid": "CA1"}',
    ),
}
CUT = {
    "its length is not reached": b"Content-Length: 999\r\n\r\n%b",
    "its last chunk is missing": b"Transfer-Encoding: chunked\r\n\r\n%b\r\n",
}


@pytest.mark.parametrize("kind", ACCEPTED)
@pytest.mark.parametrize("how", CUT)
def test_an_answer_with_an_id_is_a_yes_though_the_connection_fails_after_it(
    world: World, kind: str, how: str
) -> None:
    status, body = ACCEPTED[kind]
    sent = b"%x\r\n%b" % (len(body), body) if "chunk" in how else body
    _answers(
        kind,
        Answer(
            status,
            b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\n" % status + CUT[how] % sent,
            raw=True,
        ),
    )(world)
    world.send(kind, world.own)
    assert len(world.asked(kind)) == 1
    (row,) = world.rows(kind)
    assert (row["status"], row["ended_at" if kind == "voice" else "error_message"]) == (
        "in_progress" if kind == "voice" else "sent",
        None,
    )
    assert PROVIDER_ID[kind].fullmatch(
        row["provider_call_id" if kind == "voice" else "provider_message_id"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_sent_where_no_row_can_be_written(world: World, kind: str) -> None:
    trigger(world.site.database, f"BEFORE INSERT ON {TABLE[kind]}", ABORT)
    with pytest.raises(Exception, match=r"^no\b"):
        world.send(kind, world.own)
    assert world.nothing_reached_a_server()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [ABORT, IGNORE], ids=["an error", "the row is gone"])
def test_what_was_accepted_and_cannot_be_recorded_is_an_error_of_its_own_and_not_called_failed(
    world: World, kind: str, how: str
) -> None:
    """A caller that takes any other error for `not sent` must not take this one for it."""
    trigger(world.site.database, f"BEFORE UPDATE ON {TABLE[kind]}", how)
    with pytest.raises(NotRecorded) as told:
        world.send(kind, world.own)
    assert world.seen(kind) == [OWN] and not isinstance(told.value, PROMISED[kind])
    (row,) = world.rows(kind)
    assert (row["id"], row["status"]) == (
        told.value.row_id,
        "in_progress" if kind == "voice" else "queued",
    )
    assert PROVIDER_ID[kind].fullmatch(told.value.provider_id) and told.value.provider_id in str(
        told.value
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_project_does_not_hinder_another(world: World, kind: str) -> None:
    _damaged(world, kind)
    for project, expected in ((world.own, DamagedValue), (world.plain, None)) * 2:
        with pytest.raises(expected) if expected else contextlib.nullcontext():
            world.send(kind, project)
    assert world.seen(kind) == [EVERYONE, EVERYONE]
    assert [row["status"] == "failed" for row in world.rows(kind)] == [True, False, True, False]


# While the key is rotated


def test_no_send_fails_before_during_or_after_rotations(world: World, figures: Figures) -> None:
    """All three adapters share one vault, as in a desktop app; the operator has another."""
    for number in range(60):
        world.vault.set(
            "example",
            f"value-{number}",
            f"value {number}",
            (None, world.own, world.plain)[number % 3],
        )
    stop, sent, failures = threading.Event(), dict.fromkeys(KINDS, 0), []

    def keep_sending(kind: str) -> None:
        for project in itertools.cycle((world.own, world.plain)):
            if stop.is_set():
                return
            try:
                world.send(kind, project)
                sent[kind] += 1
            except Exception as error:
                failures.append((kind, error))
                return

    def until_each_has_sent(more: int) -> int:
        goal, deadline = {kind: sent[kind] + more for kind in KINDS}, time.monotonic() + 20
        while not failures and any(sent[kind] < goal[kind] for kind in KINDS):
            assert time.monotonic() < deadline, sent
            time.sleep(0.005)
        return sum(sent.values())

    threads = [threading.Thread(target=keep_sending, args=(kind,)) for kind in KINDS]
    with world.site.open() as operator:
        for thread in threads:
            thread.start()
        try:
            before = until_each_has_sent(3)
            during, rotations, began = 0, 0, dict(sent)
            while not failures and (
                rotations < 4 or any(sent[kind] < began[kind] + 3 for kind in KINDS)
            ):
                started = sum(sent.values())
                assert rotate(operator).complete
                during += sum(sent.values()) - started
                rotations += 1
            ended = sum(sent.values())
            after = until_each_has_sent(3) - ended
        finally:
            stop.set()
            for thread in threads:
                thread.join(20)
    assert failures == []
    to = {f"{project}@candidates.example": project for project in (world.own, world.plain)} | {
        v: k for k, v in world.to.items()
    }
    for kind in KINDS:
        rows = world.rows(kind)
        assert len(rows) == sent[kind] == len(world.seen(kind))
        assert {row["status"] for row in rows} == {"in_progress" if kind == "voice" else "sent"}
        assert len(
            {row["provider_call_id" if kind == "voice" else "provider_message_id"] for row in rows}
        ) == len(rows)
        if kind == "email":
            reached = [took.recipients[0] for took in world.servers.smtp.accepted]
        else:
            reached = [
                asked.fields["To" if kind == "sms" else "to_number"] for asked in world.asked(kind)
            ]
        assert world.seen(kind) == [world.account_of(to[address]) for address in reached]
        assert [row["project_id"] for row in rows] == [
            to[row["phone_number" if kind == "voice" else "to_address"]] for row in rows
        ]
    assert before and during and after
    for name, count in (("before", before), ("during", during), ("after", after)):
        figures(
            f"messages and calls sent by the three adapters {name} rotations, none failed", count
        )


# The examples themselves


def test_the_examples_use_nothing_private() -> None:
    public = {
        name
        for name, found in vars(models).items()
        if isinstance(found, type) and not name.startswith("_")
    }
    for file in EXAMPLES.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not [
                    alias.name for alias in node.names if alias.name.startswith("outreach_vault")
                ], file.name
            elif (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").partition(".")[0] == "outreach_vault"
            ):
                allowed = {
                    "outreach_vault": set(outreach_vault.__all__),
                    "outreach_vault.models": public,
                }.get(node.module or "", set())
                assert {alias.name for alias in node.names} <= allowed, f"{file.name}:{node.lineno}"
            elif (
                isinstance(node, ast.Attribute)
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
            ):
                assert ast.unparse(node.value) in ("self", "super()"), f"{file.name}:{node.lineno}"
