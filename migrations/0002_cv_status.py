from outreach_vault.schema.migrator import Schema

TITLE = "How far each CV has been read."


def upgrade(schema: Schema) -> None:
    schema.add_column("cvs", "status", "TEXT NOT NULL DEFAULT 'completed'")
    schema.add_column("cvs", "error_message", "TEXT")
    schema.add_column("cvs", "processing_started_at", "TEXT")
    schema.execute("CREATE INDEX IF NOT EXISTS idx_cvs_status ON cvs (status)")
