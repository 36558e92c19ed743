"""How PostgreSQL serves a look-up and a batch of a rotation among 100,000 values."""

from __future__ import annotations

import re
from typing import Any

import pytest
from helpers.postgres import Postgres
from helpers.site import Site, another, new_site

pytestmark = pytest.mark.peer
PROJECTS, EACH = 1_000, 100
OWN, GLOBAL = "vault_credentials_project", "vault_credentials_global"


@pytest.fixture(scope="module")
def large(postgres_18: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Every hundredth value is global. The server has counted them."""
    site = new_site(tmp_path_factory.mktemp("templates") / "large", postgres_18)
    with another(site.database) as other:
        other.execute(
            "INSERT INTO projects (id, name, created_at, updated_at) SELECT 'p' || n, 'p', '', ''"
            f" FROM generate_series(0, {PROJECTS - 1}) AS n"
        )
        other.execute(
            "INSERT INTO provider_credentials (id, project_id, provider, credential_type,"
            " encrypted_value, key_id, created_at, updated_at)"
            f" SELECT md5(n::text), CASE WHEN n % 100 > 0 THEN 'p' || n / {EACH} END,"
            f" 'provider-' || (n + n / {EACH}) % 20, 'field-' || n, repeat('x', 200), 'k', '', ''"
            f" FROM generate_series(0, {PROJECTS * EACH - 1}) AS n"
        )
        other.execute("VACUUM ANALYZE projects, provider_credentials")
    return site


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_a_look_up_searches_two_indexes_and_reads_no_table(large: Site, mode: str) -> None:
    """psycopg prepares what is asked often, and the server may then plan it for any values."""
    asked = {"project_id": "p7", "provider": "provider-14", "credential_type": "field-707"}
    with large.open() as vault:
        for statement, indexes in (
            (vault.rows._one, {OWN, GLOBAL, "projects_pkey"}),
            (vault.rows._one_general, {GLOBAL}),
            (vault.rows._fields, {OWN, GLOBAL, "projects_pkey"}),
            (vault.rows._fields_general, {GLOBAL}),
        ):
            plan = planned(large, mode, statement, asked)
            assert "Seq Scan" not in plan, plan
            assert (
                set(re.findall(r"(?:using|Scan on) (\w+_(?:project|global|pkey))", plan)) == indexes
            )


def planned(site: Site, mode: str, statement: str, values: dict[str, Any]) -> str:
    names = list[str]()

    def numbered(found: re.Match[str]) -> str:
        if found[1] not in names:
            names.append(found[1])
        return f"${names.index(found[1]) + 1}"

    sql = re.sub(r":(\w+)", numbered, statement)
    with another(site.database) as other:
        other.execute(f"SET plan_cache_mode = {mode}")
        other.execute(f"PREPARE asked AS {sql}")
        given = ", ".join(f"'{values[name]}'" for name in names)
        return "\n".join(line for (line,) in other.execute(f"EXPLAIN EXECUTE asked ({given})"))
