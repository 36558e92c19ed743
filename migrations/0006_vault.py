from outreach_vault.schema.migrator import Schema

TITLE = "The vault's own: its facts, its keys, and which key opens each value."


def upgrade(schema: Schema) -> None:
    schema.execute(
        "CREATE TABLE IF NOT EXISTS vault_meta (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL)"
    )
    schema.execute("""
        CREATE TABLE IF NOT EXISTS vault_keys (
            id TEXT PRIMARY KEY NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('pending', 'active', 'retired', 'destroyed')),
            check_value TEXT NOT NULL,
            created_at TEXT NOT NULL,
            activated_at TEXT,
            retired_at TEXT,
            destroyed_at TEXT
        )""")
    schema.execute(
        "CREATE UNIQUE INDEX IF NOT EXISTS vault_keys_one_active ON vault_keys (state)"
        " WHERE state = 'active'"
    )
    schema.add_column("provider_credentials", "key_id", "TEXT")
    # Version 0.1.0 also made a unique index here, over coalesce(project_id, ''), which took '' for
    # the global scope. Another program's row at '' kept it from being made, or cost the global row.
    # 0008 drops it.
    noted = "INSERT INTO vault_meta (key, value) VALUES ('vault_id', ?) ON CONFLICT DO NOTHING"
    schema.execute(noted, (schema.new_id,))
