from outreach_vault.schema.migrator import Schema

TITLE = "The seven outreach tables, from messages and calls to credentials and ATS mappings."

TABLES = (
    """
    CREATE TABLE IF NOT EXISTS messages (
        id TEXT PRIMARY KEY,
        project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
        cv_id TEXT REFERENCES cvs (id) ON DELETE SET NULL,
        type TEXT NOT NULL,
        direction TEXT NOT NULL,
        status TEXT NOT NULL,
        from_address TEXT,
        to_address TEXT NOT NULL,
        subject TEXT,
        body TEXT NOT NULL,
        template_id TEXT,
        provider_message_id TEXT,
        error_message TEXT,
        sent_at TEXT,
        delivered_at TEXT,
        created_at TEXT NOT NULL
    )""",
    """
    CREATE TABLE IF NOT EXISTS call_records (
        id TEXT PRIMARY KEY,
        project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
        cv_id TEXT REFERENCES cvs (id) ON DELETE SET NULL,
        type TEXT NOT NULL,
        status TEXT NOT NULL,
        provider_call_id TEXT,
        phone_number TEXT NOT NULL,
        duration_seconds INTEGER,
        screening_outcome TEXT,
        screening_confidence REAL,
        recording_path TEXT,
        started_at TEXT,
        ended_at TEXT,
        created_at TEXT NOT NULL
    )""",
    """
    CREATE TABLE IF NOT EXISTS transcripts (
        id TEXT PRIMARY KEY,
        call_id TEXT NOT NULL REFERENCES call_records (id) ON DELETE CASCADE,
        project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
        raw_text TEXT NOT NULL,
        segments_json TEXT,
        summary TEXT,
        created_at TEXT NOT NULL
    )""",
    """
    CREATE TABLE IF NOT EXISTS outreach_templates (
        id TEXT PRIMARY KEY,
        project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        type TEXT NOT NULL,
        subject TEXT,
        body TEXT NOT NULL,
        variables_json TEXT,
        is_default INTEGER DEFAULT 0,
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL
    )""",
    """
    CREATE TABLE IF NOT EXISTS outreach_sequences (
        id TEXT PRIMARY KEY,
        project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
        cv_id TEXT NOT NULL REFERENCES cvs (id) ON DELETE CASCADE,
        status TEXT NOT NULL,
        current_step INTEGER DEFAULT 0,
        steps_json TEXT NOT NULL,
        started_at TEXT,
        completed_at TEXT,
        created_at TEXT NOT NULL
    )""",
    """
    CREATE TABLE IF NOT EXISTS provider_credentials (
        id TEXT PRIMARY KEY,
        project_id TEXT REFERENCES projects (id) ON DELETE CASCADE,
        provider TEXT NOT NULL,
        credential_type TEXT NOT NULL,
        encrypted_value TEXT NOT NULL,
        label TEXT,
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL
    )""",
    """
    CREATE TABLE IF NOT EXISTS ats_mappings (
        id TEXT PRIMARY KEY,
        project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
        ats_vendor TEXT NOT NULL,
        mapping_json TEXT NOT NULL,
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL
    )""",
)
INDEXES = (
    ("idx_messages_project", "messages", "project_id"),
    ("idx_messages_cv", "messages", "cv_id"),
    ("idx_call_records_project", "call_records", "project_id"),
    ("idx_call_records_cv", "call_records", "cv_id"),
    ("idx_transcripts_call", "transcripts", "call_id"),
    ("idx_transcripts_project", "transcripts", "project_id"),
    ("idx_outreach_templates_project", "outreach_templates", "project_id"),
    ("idx_outreach_sequences_project", "outreach_sequences", "project_id"),
    ("idx_outreach_sequences_cv", "outreach_sequences", "cv_id"),
    ("idx_provider_credentials_project", "provider_credentials", "project_id"),
    ("idx_ats_mappings_project", "ats_mappings", "project_id"),
)


def upgrade(schema: Schema) -> None:
    for table in TABLES:
        schema.execute(table)
    for name, table, column in INDEXES:
        schema.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {table} ({column})")
