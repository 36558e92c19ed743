"""
The floor of `vault get`: bare Python with sqlite3 and Fernet, which looks the value up, opens it
and prints it.
"""

import json
import os
import sqlite3
import sys

from cryptography.fernet import Fernet

database = sqlite3.connect(os.environ["OUTREACH_VAULT_DB"])
[vault_id] = database.execute("SELECT value FROM vault_meta WHERE key = 'vault_id'").fetchone()
[key_id, token] = database.execute(
    "SELECT key_id, encrypted_value FROM provider_credentials WHERE project_id IS NULL AND "
    "provider = ? AND credential_type = ?",
    sys.argv[1:3],
).fetchone()
with open(os.environ["OUTREACH_VAULT_KEY_DIR"] + f"/{vault_id}.{key_id}.key") as file:
    key = Fernet(file.read())
print(json.loads(key.decrypt(token))["value"])
