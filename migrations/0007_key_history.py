from outreach_vault.schema.migrator import Schema

TITLE = "The vault's own: when each key was last exported, and when a rotation emptied it."


def upgrade(schema: Schema) -> None:
    schema.add_column("vault_keys", "exported_at", "TEXT")
    schema.add_column("vault_keys", "emptied_at", "TEXT")
