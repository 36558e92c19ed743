"""What each kind of role may do, as GRANTs: adapters read, and write their records."""

from __future__ import annotations

from collections.abc import Iterator, Set
from types import MappingProxyType
from typing import Final

_READ: Final = "SELECT"
_RECORDS: Final = "SELECT, INSERT, UPDATE"
_OWN: Final = "SELECT, INSERT, UPDATE, DELETE"
# Of a credential an adapter changes one thing: a refresh token that the provider has replaced.
_REPLACED: Final = "SELECT, UPDATE (encrypted_value, key_id, updated_at)"
# Any other table of the schema: none. The trigger on usage_events writes usage_daily.
_ADAPTERS: Final = MappingProxyType(
    {
        "projects": _READ,
        "cvs": _READ,
        "job_descriptions": _READ,
        "cv_jd_matches": _READ,
        "outreach_templates": _READ,
        "ats_mappings": _READ,
        "messages": _RECORDS,
        "call_records": _RECORDS,
        "transcripts": _RECORDS,
        "outreach_sequences": _RECORDS,
        "usage_events": "SELECT, INSERT",
        "usage_daily": _RECORDS,
        "provider_credentials": _REPLACED,
        "vault_meta": _READ,
        "vault_keys": _READ,
        "vault_hosts": _RECORDS,
        "vault_tokens": _OWN,
        "vault_grants": _OWN,
    }
)


def grants(
    database: str, schema: str, owner: str, tables: Set[str], *, adapters: str, operators: str
) -> Iterator[str]:
    """
    SQL for a superuser of the server, safe to run again.

    Args:
        database, schema: where the vault's tables are. owner: whose they are.
        tables: those that are there.
        adapters, operators: the names of the roles, which must be there.
    """
    schema, owner, adapters, operators, database = map(
        quoted, (schema, owner, adapters, operators, database)
    )
    yield "-- Adapters read values and keys, write their records, and refresh access tokens."
    yield f"REVOKE ALL ON SCHEMA {schema} FROM PUBLIC;"
    yield f"GRANT USAGE ON SCHEMA {schema} TO {adapters};"
    for table, rights in _ADAPTERS.items():
        if table in tables:
            yield f"GRANT {rights} ON {schema}.{table} TO {adapters};"
    yield "-- Operators are the owner: only an owner can migrate the schema or rewrite a table."
    yield f"GRANT {owner} TO {operators};"
    yield f"ALTER ROLE {operators} IN DATABASE {database} SET role TO {owner};"


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
