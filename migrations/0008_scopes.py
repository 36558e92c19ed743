from outreach_vault.schema.migrator import Schema

TITLE = "The vault's own: one value for each place, and NULL is the only global scope; which key replaced another."


def upgrade(schema: Schema) -> None:
    schema.add_column("vault_keys", "replaced_by", "TEXT")
    # Two indexes, since in a plain UNIQUE each NULL is another one, so that duplicate global rows would be let in.
    schema.one_row_for_each("provider_credentials", "project_id, provider, credential_type")
    schema.execute(
        "CREATE UNIQUE INDEX IF NOT EXISTS vault_credentials_project"
        " ON provider_credentials (project_id, provider, credential_type) WHERE project_id IS NOT NULL"
    )
    schema.execute(
        "CREATE UNIQUE INDEX IF NOT EXISTS vault_credentials_global"
        " ON provider_credentials (provider, credential_type) WHERE project_id IS NULL"
    )
    schema.execute("DROP INDEX IF EXISTS vault_credentials_place")
    # What was joined by time until now. Where a clock that stood still joins it to two keys, it stays unknown.
    after = "FROM vault_keys new WHERE new.activated_at = vault_keys.retired_at AND new.id <> vault_keys.id"
    schema.execute(
        f"UPDATE vault_keys SET replaced_by = (SELECT new.id {after}) WHERE replaced_by IS NULL AND 1 = (SELECT count(*) {after})"
        " AND 1 = (SELECT count(*) FROM vault_keys old WHERE old.retired_at = vault_keys.retired_at)"
    )
