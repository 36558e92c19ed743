"""
Provider credentials, encrypted inside the application's own database, for one project or for all.

    from outreach_vault import Vault

    with Vault.open("samsara.db") as vault:
        token = vault.get("twilio", "auth_token", project_id=project_id)
        client.login(token.reveal())
"""

from .errors import (
    BadKeyFile,
    CredentialNotFound,
    DamagedValue,
    DatabaseBusy,
    DatabaseFull,
    DatabaseNotFound,
    DatabaseReadOnly,
    DuplicateCredentials,
    ForeignValue,
    KeyExists,
    KeyInUse,
    KeyMissing,
    KeyringLocked,
    KeyringRefused,
    KeyringTimedOut,
    KeyStoreUnavailable,
    KeySuperseded,
    KeyUnavailable,
    NotADatabase,
    NotFound,
    OperationRunning,
    ProjectNotFound,
    SchemaError,
    SchemaMismatch,
    SchemaOutdated,
    StorageError,
    UnreadableValue,
    VaultError,
    WrongKey,
)
from .keystore import KeyDirectory, OSKeyring
from .secret import Secret
from .vault import Credential, Entry, Vault

__all__ = [
    "BadKeyFile",
    "Credential",
    "CredentialNotFound",
    "DamagedValue",
    "DatabaseBusy",
    "DatabaseFull",
    "DatabaseNotFound",
    "DatabaseReadOnly",
    "DuplicateCredentials",
    "Entry",
    "ForeignValue",
    "KeyDirectory",
    "KeyExists",
    "KeyInUse",
    "KeyMissing",
    "KeyStoreUnavailable",
    "KeySuperseded",
    "KeyUnavailable",
    "KeyringLocked",
    "KeyringRefused",
    "KeyringTimedOut",
    "NotADatabase",
    "NotFound",
    "OSKeyring",
    "OperationRunning",
    "ProjectNotFound",
    "SchemaError",
    "SchemaMismatch",
    "SchemaOutdated",
    "Secret",
    "StorageError",
    "UnreadableValue",
    "Vault",
    "VaultError",
    "WrongKey",
]
