"""
The Peewee classes of the tables, for an adapter's own queries; `Vault.bind_models` binds them.
"""

from .schema.models import *  # noqa: F403  # the names are that module's, and are listed nowhere twice
