"""
Provider credentials, encrypted inside the application's own database, for one project or for all.

    from outreach_vault import Vault

    with Vault.open("samsara.db") as vault:
        token = vault.get("twilio", "auth_token", project_id=project_id)
        client.login(token.reveal())
"""

from .bundle import AnthropicBundle, AnyBundle, Bundle, Credential, ElevenLabsBundle, SmtpBundle, TwilioBundle
from .errors import (
    BadKeyFile,
    CannotStart,
    CredentialNotFound,
    DamagedValue,
    DatabaseBusy,
    DatabaseFull,
    DatabaseNotFound,
    DatabaseReadOnly,
    DuplicateCredentials,
    ForeignValue,
    IncompleteAccount,
    KeyExists,
    KeyInUse,
    KeyMissing,
    KeyringLocked,
    KeyringRefused,
    KeyringTimedOut,
    KeyStoreUnavailable,
    KeySuperseded,
    KeyUnavailable,
    MixedAccount,
    NotADatabase,
    NotFound,
    OperationRunning,
    ProjectNotFound,
    SchemaError,
    SchemaMismatch,
    SchemaOutdated,
    SharedKeys,
    StorageError,
    UnreadableValue,
    UnusableValue,
    VaultError,
    WrongKey,
)
from .keystore import KeyDirectory, OSKeyring
from .secret import Secret
from .vault import Entry, Vault

__all__ = [
    "AnthropicBundle",
    "AnyBundle",
    "BadKeyFile",
    "Bundle",
    "CannotStart",
    "Credential",
    "CredentialNotFound",
    "DamagedValue",
    "DatabaseBusy",
    "DatabaseFull",
    "DatabaseNotFound",
    "DatabaseReadOnly",
    "DuplicateCredentials",
    "ElevenLabsBundle",
    "Entry",
    "ForeignValue",
    "IncompleteAccount",
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
    "MixedAccount",
    "NotADatabase",
    "NotFound",
    "OSKeyring",
    "OperationRunning",
    "ProjectNotFound",
    "SchemaError",
    "SchemaMismatch",
    "SchemaOutdated",
    "Secret",
    "SharedKeys",
    "SmtpBundle",
    "StorageError",
    "TwilioBundle",
    "UnreadableValue",
    "UnusableValue",
    "Vault",
    "VaultError",
    "WrongKey",
]
