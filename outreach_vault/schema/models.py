"""
Peewee classes of all tables at schema 5, and of the vault's own; no logic.

Fields hold what is stored. Three kinds convert to and from exactly the desktop app's formats: JSON
text, times and 0/1 flags. `ProviderCredential.encrypted_value` stays the opaque token: decrypting
is a call on the vault, never a field access.

Importing binds the classes to no database. `Vault.bind_models()` binds them for an adapter's own
queries; the vault itself uses none of them. The database does the cascades, not Python.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import peewee
from peewee import (
    SQL,
    AutoField,
    BooleanField,
    CompositeKey,
    FloatField,
    ForeignKeyField,
    IntegerField,
    Model,
    TextField,
)

from ..database import Database
from .shapes import new_id, to_iso, to_json

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)


def _now() -> datetime:
    return datetime.now(UTC)


class TimeField(TextField):
    """An aware datetime, stored as `2026-02-06T09:30:00.250Z`; also takes text of that format."""

    def db_value(self, value: datetime | str | None) -> str | None:
        if value is None:
            return None
        if isinstance(value, str) and _TIME.fullmatch(value):
            return to_iso(datetime.fromisoformat(value))
        if isinstance(value, datetime):
            return to_iso(value)
        raise ValueError(f"{self.name}: not a datetime, nor text like 2026-02-06T09:30:00.250Z")

    def python_value(self, value: str | None) -> datetime | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise ValueError(f"{self.name}: stored as {type(value).__name__}, not as text")
        moment = datetime.fromisoformat(value)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class JsonField(TextField):
    """
    Any JSON value, stored as compact text; None is NULL.

    In a condition compare with `to_json(value)`: peewee takes lists apart.
    """

    def db_value(self, value: object) -> str | None:
        return None if value is None else to_json(value)

    def python_value(self, value: str | None) -> Any:
        return None if value is None else json.loads(value)


class FlagField(BooleanField):
    """True or False, stored as 1 or 0."""

    field_type = "INTEGER"

    def db_value(self, value: object) -> int | None:
        return None if value is None else int(bool(value))


def _key() -> Any:
    """A text key. The app's columns allow NULL there, but nothing writes it."""
    return TextField(primary_key=True, null=True, default=new_id)


def _number(default: int, **options: Any) -> Any:
    return IntegerField(default=default, constraints=[SQL(f"DEFAULT {default}")], **options)


def _flag(**options: Any) -> Any:
    return FlagField(default=False, constraints=[SQL("DEFAULT 0")], **options)


def _serial() -> Any:
    options: dict[str, Any] = {"null": True, "constraints": [SQL("AUTOINCREMENT")]}
    return AutoField(**options)


def _belongs_to(
    model: type[Model], *, column: str, on_delete: str = "CASCADE", **options: Any
) -> Any:
    return ForeignKeyField(model, column_name=column, on_delete=on_delete, index=False, **options)


class AppMeta(Model):
    key = TextField(primary_key=True, null=True)
    value = TextField(null=True)

    class Meta:
        table_name = "app_meta"


class Project(Model):
    id = _key()
    name = TextField()
    client_name = TextField(null=True)
    description = TextField(null=True)
    is_archived = _flag(null=True)
    created_at = TimeField(default=_now)
    updated_at = TimeField(default=_now)
    is_pinned = _flag()
    pin_order = _number(0)

    class Meta:
        table_name = "projects"


class Cv(Model):
    id = _key()
    file_path = TextField()
    file_name = TextField()
    created_at = TimeField(default=_now)
    updated_at = TimeField(default=_now)
    contact_json = JsonField()
    contact_confidence = FloatField()
    work_history_json = JsonField(null=True)
    education_json = JsonField(null=True)
    skills_json = JsonField(null=True)
    certifications_json = JsonField(null=True)
    languages_json = JsonField(null=True)
    other_sections_json = JsonField(null=True)
    raw_text = TextField(null=True)
    section_order_json = JsonField(null=True)
    parse_confidence = FloatField()
    warnings_json = JsonField(null=True)
    parse_time_ms = IntegerField(null=True)
    project_id = TextField(null=True)  # the app declares no foreign key here
    status = TextField(default="completed", constraints=[SQL("DEFAULT 'completed'")])
    error_message = TextField(null=True)
    processing_started_at = TimeField(null=True)

    class Meta:
        table_name = "cvs"


class JobDescription(Model):
    id = _key()
    title = TextField()
    company = TextField(null=True)
    raw_text = TextField()
    required_skills_json = JsonField(null=True)
    preferred_skills_json = JsonField(null=True)
    experience_min = IntegerField(null=True)
    experience_max = IntegerField(null=True)
    education_level = TextField(null=True)
    certifications_json = JsonField(null=True)
    created_at = TimeField(default=_now)
    updated_at = TimeField(default=_now)
    project_id = TextField(null=True)  # the app declares no foreign key here
    matching_metadata_json = JsonField(null=True)

    class Meta:
        table_name = "job_descriptions"


class CvJdMatch(Model):
    cv = _belongs_to(Cv, column="cv_id")
    jd = _belongs_to(JobDescription, column="jd_id")
    match_score = IntegerField()
    matched_skills_json = JsonField(null=True)
    missing_required_json = JsonField(null=True)
    missing_preferred_json = JsonField(null=True)
    calculated_at = TimeField(default=_now)

    class Meta:
        table_name = "cv_jd_matches"
        primary_key = CompositeKey("cv", "jd")


class UsageEvent(Model):
    id = _serial()
    project = _belongs_to(Project, column="project_id")
    event_type = TextField()
    prompt_tokens = _number(0)
    completion_tokens = _number(0)
    total_tokens = _number(0)
    llm_mode = TextField()
    model = TextField(null=True)
    created_at = TimeField(default=_now)

    class Meta:
        table_name = "usage_events"


class UsageDaily(Model):
    """Written by the trigger on usage_events."""

    id = _serial()
    project = _belongs_to(Project, column="project_id")
    date = TextField()  # YYYY-MM-DD
    total_tokens = _number(0, null=True)
    request_count = _number(0, null=True)

    class Meta:
        table_name = "usage_daily"
        constraints = [SQL("UNIQUE (project_id, date)")]


class Message(Model):
    id = _key()
    project = _belongs_to(Project, column="project_id")
    cv = _belongs_to(Cv, column="cv_id", null=True, on_delete="SET NULL")
    type = TextField()
    direction = TextField()
    status = TextField()
    from_address = TextField(null=True)
    to_address = TextField()
    subject = TextField(null=True)
    body = TextField()
    template_id = TextField(null=True)  # no foreign key: the template may be gone
    provider_message_id = TextField(null=True)
    error_message = TextField(null=True)
    sent_at = TimeField(null=True)
    delivered_at = TimeField(null=True)
    created_at = TimeField(default=_now)

    class Meta:
        table_name = "messages"


class CallRecord(Model):
    id = _key()
    project = _belongs_to(Project, column="project_id")
    cv = _belongs_to(Cv, column="cv_id", null=True, on_delete="SET NULL")
    type = TextField()
    status = TextField()
    provider_call_id = TextField(null=True)
    phone_number = TextField()
    duration_seconds = IntegerField(null=True)
    screening_outcome = TextField(null=True)
    screening_confidence = FloatField(null=True)  # a percentage, 0 to 100
    recording_path = TextField(null=True)
    started_at = TimeField(null=True)
    ended_at = TimeField(null=True)
    created_at = TimeField(default=_now)

    class Meta:
        table_name = "call_records"


class Transcript(Model):
    id = _key()
    call = _belongs_to(CallRecord, column="call_id")
    project = _belongs_to(Project, column="project_id")
    raw_text = TextField()
    segments_json = JsonField(null=True)
    summary = TextField(null=True)
    created_at = TimeField(default=_now)

    class Meta:
        table_name = "transcripts"


class OutreachTemplate(Model):
    id = _key()
    project = _belongs_to(Project, column="project_id")
    name = TextField()
    type = TextField()
    subject = TextField(null=True)
    body = TextField()
    variables_json = JsonField(null=True)
    is_default = _flag(null=True)
    created_at = TimeField(default=_now)
    updated_at = TimeField(default=_now)

    class Meta:
        table_name = "outreach_templates"


class OutreachSequence(Model):
    id = _key()
    project = _belongs_to(Project, column="project_id")
    cv = _belongs_to(Cv, column="cv_id")
    status = TextField()
    current_step = _number(0, null=True)
    steps_json = JsonField()
    started_at = TimeField(null=True)
    completed_at = TimeField(null=True)
    created_at = TimeField(default=_now)

    class Meta:
        table_name = "outreach_sequences"


class ProviderCredential(Model):
    id = _key()
    project = _belongs_to(Project, column="project_id", null=True)  # NULL is global
    provider = TextField()
    credential_type = TextField()
    encrypted_value = TextField()
    label = TextField(null=True)
    created_at = TimeField(default=_now)
    updated_at = TimeField(default=_now)
    key_id = TextField(null=True)  # the vault's addition: which of its keys opens the value

    class Meta:
        table_name = "provider_credentials"


class AtsMapping(Model):
    id = _key()
    project = _belongs_to(Project, column="project_id")
    ats_vendor = TextField()
    mapping_json = JsonField()
    created_at = TimeField(default=_now)
    updated_at = TimeField(default=_now)

    class Meta:
        table_name = "ats_mappings"


class VaultMeta(Model):
    """The vault's own facts; `facts` lists them."""

    key = TextField(primary_key=True)
    value = TextField()

    class Meta:
        table_name = "vault_meta"


class VaultKey(Model):
    """Every key that may exist; never the key itself."""

    id = TextField(primary_key=True, default=new_id)
    state = TextField()
    check_value = TextField()
    created_at = TimeField(default=_now)
    activated_at = TimeField(null=True)
    retired_at = TimeField(null=True)
    destroyed_at = TimeField(null=True)
    exported_at = TimeField(null=True)
    emptied_at = TimeField(null=True)
    replaced_by = TextField(null=True)  # the id of the key that became active after it
    staged_by = TextField(null=True)  # the host that made it for a rotation by stages
    staged_at = TimeField(null=True)  # when it was proved there

    class Meta:
        table_name = "vault_keys"


class VaultHistory(Model):
    """Values that were replaced, deleted or undone: tokens, sealed for the place they were at."""

    id = TextField(primary_key=True, default=new_id)
    project = _belongs_to(Project, column="project_id", null=True)
    provider = TextField()
    credential_type = TextField()
    encrypted_value = TextField()
    key_id = TextField()
    label = TextField(null=True)
    created_at = TimeField(default=_now)
    updated_at = TimeField(default=_now)
    number = IntegerField()  # in its place: the newest has the highest
    ended_at = TimeField(default=_now)
    ended_by = TextField()  # set, delete or undo

    class Meta:
        table_name = "vault_history"


class VaultDue(Model):
    """When a value is due to be replaced, if an operator said so."""

    credential_id = TextField(primary_key=True)
    due = TextField()  # a day: 2027-01-31

    class Meta:
        table_name = "vault_due"


class VaultToken(Model):
    """The access token of each scope's account with OAuth2, sealed."""

    id = TextField(primary_key=True)
    project = _belongs_to(Project, column="project_id", null=True)
    provider = TextField()
    credential_type = TextField()
    encrypted_value = TextField()
    key_id = TextField()
    label = TextField(null=True)
    created_at = TimeField()
    updated_at = TimeField()

    class Meta:
        table_name = "vault_tokens"


class VaultGrant(Model):
    """How each such account gets its next access token, and how that went."""

    id = TextField(primary_key=True)
    project = _belongs_to(Project, column="project_id", null=True)
    provider = TextField()
    generation = IntegerField()
    attempt = IntegerField()
    owner = TextField(null=True)
    until = TimeField(null=True)
    expires_at = TimeField(null=True)
    fault = TextField(null=True)
    said = TextField(null=True)
    tried_at = TimeField(null=True)

    class Meta:
        table_name = "vault_grants"


class VaultHost(Model):
    """The last key that each host acknowledged, where each has its own copy of the keys."""

    host = TextField(primary_key=True)
    key_id = TextField()
    acknowledged_at = TimeField()

    class Meta:
        table_name = "vault_hosts"


SHARED_MODELS: Final[tuple[type[Model], ...]] = (
    AppMeta, Project, Cv, JobDescription, CvJdMatch, UsageEvent, UsageDaily, Message, CallRecord,
    Transcript, OutreachTemplate, OutreachSequence, ProviderCredential, AtsMapping,
)  # fmt: skip
OWN_MODELS: Final[tuple[type[Model], ...]] = (
    VaultMeta, VaultKey, VaultHistory, VaultDue, VaultToken, VaultGrant, VaultHost,
)  # fmt: skip


class Column(NamedTuple):
    """
    What a column takes.

    Attributes:
        kind: int, float or str.
        required: not NULL.
        in_key: it is the table's key, or a part of it.
        parent: the table whose key it names.
    """

    name: str
    kind: type
    required: bool
    in_key: bool
    parent: str | None


def columns() -> dict[str, list[Column]]:
    """Of each table, after those that its rows name."""
    found = {}
    for meta in (model._meta for model in SHARED_MODELS + OWN_MODELS):
        keys = {each.name for each in meta.get_primary_keys()}  # type: ignore[no-untyped-call]
        fields = meta.sorted_fields
        found[meta.table_name] = [_column(field, in_key=field.name in keys) for field in fields]
    return found


def _column(field: Any, *, in_key: bool) -> Column:
    whole = isinstance(field, (IntegerField, BooleanField))
    kind = int if whole else float if isinstance(field, FloatField) else str
    parent = field.rel_model._meta.table_name if isinstance(field, ForeignKeyField) else None
    return Column(field.column_name, kind, in_key or not field.null, in_key, parent)


class BoundDatabase(peewee.Database):  # its stubs lack what is ignored below
    """
    Peewee on a vault's own connections: its queries join the vault's transaction.

    Vault calls join its `atomic()`. Closing it closes nothing; the vault does that.
    """

    def __init__(self, database: Database, **options: Any) -> None:
        self._vaults = database
        super().__init__(database.name, **options)

    def _connect(self) -> Any:
        return self._vaults.connection(self.in_transaction)

    def _close(self, conn: object) -> None:
        pass

    def is_closed(self) -> bool:
        """
        Right also after a fork, in a new thread, and after a loss, where the vault has another
        connection.
        """
        state = self._state  # type: ignore[attr-defined]
        if not state.closed:
            # Peewee 4.0 has it not everywhere.
            with peewee.__exception_wrapper__:  # type: ignore[attr-defined]
                connection = self._vaults.connection(self.in_transaction)
            if state.conn is not connection:
                state.reset()
        return bool(state.closed)


class _OnSQLite(BoundDatabase, peewee.SqliteDatabase):
    def _connect(self) -> Any:
        connection = super()._connect()
        self._add_conn_hooks(connection)  # type: ignore[attr-defined]
        return connection


class _OnPostgreSQL(BoundDatabase, peewee.PostgresqlDatabase):
    def __init__(self, database: Database) -> None:
        super().__init__(database, prefer_psycopg3=True)

    def begin(self, isolation_level: str | None = None) -> None:
        """`atomic('IMMEDIATE')` asks SQLite for a lock that no transaction needs here."""
        super().begin(None if isolation_level == "IMMEDIATE" else isolation_level)

    def rollback(self) -> None:
        """Who lost the connection is told so, and not that nothing is left to roll back."""
        if not self.is_closed() and not self._state.conn.closed:  # type: ignore[attr-defined]
            super().rollback()


_KINDS: Final[Mapping[str, Callable[[Database], BoundDatabase]]] = MappingProxyType(
    {"SQLite": _OnSQLite, "PostgreSQL": _OnPostgreSQL}
)


def bind(database: Database) -> BoundDatabase:
    """Bind all classes to *database*, for the whole process; the last binding counts."""
    bound = _KINDS[database.kind](database)
    bound.bind(SHARED_MODELS + OWN_MODELS)
    return bound
