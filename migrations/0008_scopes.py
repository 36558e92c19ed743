from outreach_vault.schema.migrator import Schema

TITLE = "The vault's own: one value for each place, NULL alone as global, each key's successor."


def upgrade(schema: Schema) -> None:
    schema.add_column("vault_keys", "replaced_by", "TEXT")
    # Two indexes: a plain UNIQUE takes each NULL as another value, and would let in duplicate
    # global rows.
    schema.one_row_for_each("provider_credentials", "project_id, provider, credential_type")
    schema.execute(
        "CREATE UNIQUE INDEX IF NOT EXISTS vault_credentials_project ON provider_credentials"
        " (project_id, provider, credential_type) WHERE project_id IS NOT NULL"
    )
    schema.execute(
        "CREATE UNIQUE INDEX IF NOT EXISTS vault_credentials_global"
        " ON provider_credentials (provider, credential_type) WHERE project_id IS NULL"
    )
    schema.execute("DROP INDEX IF EXISTS vault_credentials_place")
    # Until now only the time told which key came next. If two keys share it, the answer stays open.
    after = (
        "FROM vault_keys new"
        " WHERE new.activated_at = vault_keys.retired_at AND new.id <> vault_keys.id"
    )
    same_time = "FROM vault_keys old WHERE old.retired_at = vault_keys.retired_at"
    schema.execute(
        f"UPDATE vault_keys SET replaced_by = (SELECT new.id {after}) WHERE replaced_by IS NULL"
        f" AND 1 = (SELECT count(*) {after}) AND 1 = (SELECT count(*) {same_time})"
    )
