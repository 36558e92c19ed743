from outreach_vault.schema.migrator import Schema

TITLE = "The vault's own: values that were replaced, and when each value is due to be replaced."


def upgrade(schema: Schema) -> None:
    # A project's previous values go with it, as its values do.
    schema.execute("""
        CREATE TABLE IF NOT EXISTS vault_history (
            id TEXT PRIMARY KEY NOT NULL,
            project_id TEXT REFERENCES projects (id) ON DELETE CASCADE,
            provider TEXT NOT NULL,
            credential_type TEXT NOT NULL,
            encrypted_value TEXT NOT NULL,
            key_id TEXT NOT NULL,
            label TEXT,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            number INTEGER NOT NULL,
            ended_at TEXT NOT NULL,
            ended_by TEXT NOT NULL CHECK (ended_by IN ('set', 'delete', 'undo'))
        )""")
    schema.execute(
        "CREATE INDEX IF NOT EXISTS vault_history_place"
        " ON vault_history (provider, credential_type, project_id)"
    )
    schema.execute("CREATE INDEX IF NOT EXISTS vault_history_ended ON vault_history (ended_at)")
    schema.execute("CREATE INDEX IF NOT EXISTS vault_history_project ON vault_history (project_id)")
    # No reference to provider_credentials: if another program rebuilt that table without its
    # primary key, SQLite would refuse every change of it.
    schema.execute(
        "CREATE TABLE IF NOT EXISTS vault_due"
        " (credential_id TEXT PRIMARY KEY NOT NULL, due TEXT NOT NULL)"
    )
