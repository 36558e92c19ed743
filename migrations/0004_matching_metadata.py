from outreach_vault.schema.migrator import Schema

TITLE = "A job description's matching data."


def upgrade(schema: Schema) -> None:
    schema.add_column("job_descriptions", "matching_metadata_json", "TEXT")
