"""The floor of `vault list`: the same SELECT by bare sqlite3, fetched and printed in columns."""

import os
import sqlite3

rows = (
    sqlite3.connect(os.environ["OUTREACH_VAULT_DB"])
    .execute(
        "SELECT id, project_id, provider, credential_type, encrypted_value, key_id, label, "
        "created_at, updated_at"
        " FROM provider_credentials ORDER BY project_id, provider, credential_type"
    )
    .fetchall()
)
for row_id, project_id, provider, credential_type, _, _, label, _, updated_at in rows:
    scope = "global" if project_id is None else f"project {project_id}"
    print(
        f"{provider:<14}  {credential_type:<10}  {scope:<23}  {updated_at}  {row_id}  {label or ''}"
    )
