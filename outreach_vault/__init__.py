"""
Provider credentials, encrypted inside the application's own database, for one project or for all.

    from outreach_vault import Vault

    with Vault.open("samsara.db") as vault:
        token = vault.get("twilio", "auth_token", project_id=project_id)
        client.login(token.reveal())
"""

TYPE_CHECKING = False  # to import typing's own would load typing

if TYPE_CHECKING:
    from .errors import *
    from .keys.stores.directory import KeyDirectory
    from .keys.stores.os_keyring import OSKeyring
    from .secret import Secret
    from .values.bundle import *
    from .values.credential import AccessToken, Credential, Scope
    from .values.declared import Bundle
    from .values.opening import State
    from .vault import Entry, Vault
else:
    _HOMES = ("errors", "secret", "values.bundle", "vault")
    _ALONE = {
        "AccessToken": "values.credential",
        "KeyDirectory": "keys.stores.directory",
        "OSKeyring": "keys.stores.os_keyring",
    }

    def __getattr__(name):
        """
        Load a name when it is first used. If a module cannot be loaded, our own code is running by
        then and can say why.
        """
        from importlib import import_module

        for home in (_ALONE[name],) if name in _ALONE else _HOMES if name in __all__ else ():
            if hasattr(module := import_module(f".{home}", __name__), name):
                return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AccessToken",
    "AnthropicBundle",
    "AnyBundle",
    "BadKeyFile",
    "Bundle",
    "CannotStart",
    "ClientRefused",
    "Credential",
    "CredentialNotFound",
    "DamagedValue",
    "DatabaseBusy",
    "DatabaseFull",
    "DatabaseNotFound",
    "DatabaseReadOnly",
    "DatabaseRefused",
    "DatabaseUnreachable",
    "DuplicateCredentials",
    "ElevenLabsBundle",
    "Entry",
    "ForeignValue",
    "HostNotFound",
    "IncompleteAccount",
    "KeyDirectory",
    "KeyExists",
    "KeyInUse",
    "KeyMissing",
    "KeyNotAcknowledged",
    "KeyStoreUnavailable",
    "KeySuperseded",
    "KeyUnavailable",
    "KeyringLocked",
    "KeyringRefused",
    "KeyringTimedOut",
    "LibraryMissing",
    "LoginFailed",
    "MixedAccount",
    "NeedsLogin",
    "NoTokenGiven",
    "NotADatabase",
    "NotFound",
    "OSKeyring",
    "OperationRunning",
    "OutcomeUnknown",
    "ProjectNotFound",
    "ProviderUnreachable",
    "SchemaError",
    "SchemaMismatch",
    "SchemaOutdated",
    "Scope",
    "Secret",
    "SharedKeys",
    "SmtpBundle",
    "State",
    "StorageError",
    "TokenUnavailable",
    "TwilioBundle",
    "UnreadableValue",
    "UnusablePath",
    "UnusableValue",
    "Vault",
    "VaultError",
    "WeakStorage",
    "WrongKey",
]
