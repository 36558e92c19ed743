from outreach_vault.schema.migrator import Schema

TITLE = "The vault's own: access tokens of OAuth2 accounts, and who is getting a new one."


def upgrade(schema: Schema) -> None:
    # A project's tokens go with it, as its values do.
    schema.execute("""
        CREATE TABLE IF NOT EXISTS vault_tokens (
            id TEXT PRIMARY KEY NOT NULL,
            project_id TEXT REFERENCES projects (id) ON DELETE CASCADE,
            provider TEXT NOT NULL,
            credential_type TEXT NOT NULL,
            encrypted_value TEXT NOT NULL,
            key_id TEXT NOT NULL,
            label TEXT,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        )""")
    schema.execute("""
        CREATE TABLE IF NOT EXISTS vault_grants (
            id TEXT PRIMARY KEY NOT NULL,
            project_id TEXT REFERENCES projects (id) ON DELETE CASCADE,
            provider TEXT NOT NULL,
            generation INTEGER NOT NULL,
            attempt INTEGER NOT NULL,
            owner TEXT,
            until TEXT,
            expires_at TEXT,
            fault TEXT CHECK (fault IN ('login', 'client', 'unreachable', 'answer')),
            said TEXT,
            tried_at TEXT
        )""")
    # Two indexes each: a plain UNIQUE takes each NULL as another value.
    for table in ("vault_tokens", "vault_grants"):
        schema.execute(
            f"CREATE UNIQUE INDEX IF NOT EXISTS {table}_project"
            f" ON {table} (project_id, provider) WHERE project_id IS NOT NULL"
        )
        schema.execute(
            f"CREATE UNIQUE INDEX IF NOT EXISTS {table}_global"
            f" ON {table} (provider) WHERE project_id IS NULL"
        )
