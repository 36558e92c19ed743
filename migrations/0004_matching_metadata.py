"""What the matching knows about a job description."""

from outreach_vault.migrator import Schema


def upgrade(schema: Schema) -> None:
    schema.add_column("job_descriptions", "matching_metadata_json", "TEXT")
