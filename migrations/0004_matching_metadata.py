from outreach_vault.schema.migrator import Schema

TITLE = "What the matching knows about a job description."


def upgrade(schema: Schema) -> None:
    schema.add_column("job_descriptions", "matching_metadata_json", "TEXT")
