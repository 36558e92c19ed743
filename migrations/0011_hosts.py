from outreach_vault.schema.migrator import Schema

TITLE = "The vault's own: staged keys, and which host has acknowledged which key."


def upgrade(schema: Schema) -> None:
    # Not a state of its own: SQLite cannot alter the CHECK on vault_keys.state.
    schema.add_column("vault_keys", "staged_by", "TEXT")
    schema.add_column("vault_keys", "staged_at", "TEXT")
    schema.execute("""
        CREATE TABLE IF NOT EXISTS vault_hosts (
            host TEXT PRIMARY KEY NOT NULL,
            key_id TEXT NOT NULL,
            acknowledged_at TEXT NOT NULL
        )""")
