"""
The shape of a database and the hash of its rows, as the samples' `*.schema.json` tell them; and
children to break things in.

Run as `python tests/helpers/shape.py DATABASE`, it prints the shape;
data/v5.schema.json is what it prints for a file of the app's schema 5.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from peewee import ForeignKeyField, IntegerField, Model

from helpers.site import another, tables_of
from outreach_vault.models import ProviderCredential
from outreach_vault.schema.models import OWN_MODELS

Shape = dict[str, Any]

ORIGINS = {"c": "create index", "u": "unique constraint", "pk": "primary key"}
NOBODY = 65534


@contextlib.contextmanager
def plain(path: Path) -> Iterator[sqlite3.Connection]:
    """
    Python's own connection, without the package's settings; each statement is committed at once.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def user_version(path: Path) -> int:
    with plain(path) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def shape(connection: sqlite3.Connection) -> Shape:
    """Tables, triggers and views; not the text of their CREATE statements, nor rows."""
    listed = connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER "
        "BY name"
    ).fetchall()
    triggers = []
    for name, table, sql in [
        (name, table, sql) for kind, name, table, sql in listed if kind == "trigger"
    ]:
        timing, event = re.search(
            r"\b(BEFORE|AFTER|INSTEAD OF)\s+(INSERT|UPDATE|DELETE)\b", sql, re.I
        ).groups()  # type: ignore[union-attr]
        triggers.append(
            {"name": name, "table": table, "timing": timing.upper(), "event": event.upper()}
        )
    return {
        "tables": {
            name: _table(connection, name, sql) for kind, name, _, sql in listed if kind == "table"
        },
        "triggers": triggers,
        "views": [name for kind, name, *_ in listed if kind == "view"],
    }


def _table(connection: sqlite3.Connection, table: str, sql: str) -> Shape:
    columns = connection.execute(f'PRAGMA table_xinfo("{table}")').fetchall()
    keys: dict[int, Shape] = {}
    for number, _, parent, column, target, on_update, on_delete, match in connection.execute(
        f'PRAGMA foreign_key_list("{table}")'
    ):
        key = keys.setdefault(
            number,
            {
                "columns": [],
                "references": parent,
                "ref_columns": [],
                "on_delete": on_delete,
                "on_update": on_update,
                "match": match,
            },
        )
        key["columns"].append(column)
        key["ref_columns"].append(target)
    indexes = [
        _index(connection, *row[1:])
        for row in connection.execute(f'PRAGMA index_list("{table}")').fetchall()
    ]
    return {
        "columns": [
            {
                "name": name,
                "type": kind,
                "notnull": bool(notnull),
                "default": default,
                "pk": pk,
                "hidden": hidden,
            }
            for _, name, kind, notnull, default, pk, hidden in columns
        ],
        "autoincrement": "AUTOINCREMENT" in sql.upper(),
        "without_rowid": "WITHOUT ROWID" in sql.upper(),
        "foreign_keys": sorted(keys.values(), key=lambda key: key["columns"]),
        "indexes": sorted(indexes, key=lambda index: index["name"]),
    }


def _index(
    connection: sqlite3.Connection, name: str, unique: int, origin: str, partial: int
) -> Shape:
    sql = (
        connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        or ("",)
    )[0] or ""
    listed, _, where = sql.partition(" WHERE ")
    columns = [
        {"name": column, "desc": bool(desc), "coll": collation}
        for _, cid, column, desc, collation, is_key in connection.execute(
            f'PRAGMA index_xinfo("{name}")'
        )
        if is_key
    ]
    if any(
        column["name"] is None for column in columns
    ):  # an expression has no name: its text is the only difference there is
        columns = [{"expressions": listed.partition("(")[2].rpartition(")")[0]}]
    return {
        "name": name,
        "unique": bool(unique),
        "origin": ORIGINS[origin],
        "partial": bool(partial),
        "where": where or None,
        "columns": columns,
    }


def shape_of(path: Path) -> Shape:
    with plain(path) as connection:
        return shape(connection)


def common(found: Shape) -> Shape:
    """Of SQLite's shape what a database on a server has too, in its words."""
    types = {"TEXT": 'text "C"', "INTEGER": "bigint", "REAL": "double precision"}

    def table(facts: Shape) -> Shape:
        numbered = facts["autoincrement"]
        return {
            "columns": [
                (
                    column["name"],
                    types[column["type"]] + (" identity" if numbered and column["pk"] else ""),
                    column["notnull"] or bool(column["pk"]),
                    column["default"],
                )
                for column in facts["columns"]
            ],
            "primary key": [
                column["name"]
                for column in sorted(facts["columns"], key=lambda column: column["pk"])
                if column["pk"]
            ],
            "foreign keys": sorted(
                (key["columns"], key["references"], key["ref_columns"], key["on_delete"])
                for key in facts["foreign_keys"]
            ),
            "unique": sorted(
                [column["name"] for column in index["columns"]]
                for index in facts["indexes"]
                if index["origin"] == "unique constraint"
            ),
            "indexes": {
                index["name"]: (
                    index["unique"],
                    index["where"],
                    [each["name"] + " DESC" * each["desc"] for each in index["columns"]],
                )
                for index in facts["indexes"]
                if index["origin"] == "create index"
            },
        }

    return {
        "tables": {name: table(facts) for name, facts in found["tables"].items()},
        "triggers": found["triggers"],
        "views": found["views"],
    }


def shape_on_server(url: str) -> Shape:
    """As `common`, of a database on a server."""
    actions = {"a": "NO ACTION", "c": "CASCADE", "n": "SET NULL", "r": "RESTRICT"}
    names = "ARRAY(SELECT attname::text FROM unnest({0}) WITH ORDINALITY AS k (number, at)"
    names += " JOIN pg_attribute ON attrelid = {1} AND attnum = k.number ORDER BY at)"

    def expression(text: str | None) -> str | None:
        return text and text.replace("::text", "").removeprefix("(").removesuffix(")")

    with another(url) as connection:

        def rows(statement: str, *params: object) -> list[Any]:
            return list(connection.execute(statement, params))

        def table(name: str) -> Shape:
            columns = rows(
                "SELECT attname, format_type(atttypid, atttypmod), collname, attidentity,"
                " attnotnull, pg_get_expr(adbin, adrelid) FROM pg_attribute a"
                " LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
                " LEFT JOIN pg_collation c ON c.oid = a.attcollation"
                " WHERE attrelid = ?::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
                name,
            )
            constraints = rows(
                f"SELECT contype::text, {names.format('conkey', 'conrelid')},"
                f" confrelid::regclass::text, {names.format('confkey', 'confrelid')},"
                " confdeltype::text FROM pg_constraint WHERE conrelid = ?::regclass",
                name,
            )
            indexes = rows(
                "SELECT c.relname, indisunique, pg_get_expr(indpred, indrelid),"
                " ARRAY(SELECT pg_get_indexdef(indexrelid, n, true)"
                " || CASE WHEN indoption[n - 1] & 1 = 1 THEN ' DESC' ELSE '' END"
                " FROM generate_series(1, indnkeyatts) n)"
                " FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE indrelid = ?::regclass"
                " AND indisvalid AND NOT EXISTS"
                " (SELECT 1 FROM pg_constraint WHERE conindid = indexrelid)",
                name,
            )
            return {
                "columns": [
                    (
                        column,
                        kind
                        + (f' "{collation}"' if collation else "")
                        + " identity" * bool(counts),
                        needed,
                        expression(default),
                    )
                    for column, kind, collation, counts, needed, default in columns
                ],
                "primary key": next(keys for kind, keys, *_ in constraints if kind == "p"),
                "foreign keys": sorted(
                    (keys, parent, theirs, actions[action])
                    for kind, keys, parent, theirs, action in constraints
                    if kind == "f"
                ),
                "unique": sorted(keys for kind, keys, *_ in constraints if kind == "u"),
                "indexes": {
                    index: (unique, expression(where), listed)
                    for index, unique, where, listed in indexes
                },
            }

        triggers = rows(
            "SELECT trigger_name, event_object_table, action_timing, event_manipulation"
            " FROM information_schema.triggers"
        )
        views = rows("SELECT viewname FROM pg_views WHERE schemaname = current_schema()")
        return {
            "tables": {name: table(name) for name in tables_of(url)},
            "triggers": [
                dict(zip(("name", "table", "timing", "event"), each, strict=True))
                for each in triggers
            ],
            "views": [name for (name,) in views],
        }


def expected(source: Path) -> Shape:
    """
    The shape in a `*.schema.json`, without what depends on the rows or on the text of the CREATE
    statements.
    """
    facts = json.loads(source.read_text("utf-8"))
    known: Shape = {
        "tables": facts["tables"],
        "triggers": facts["triggers"],
        "views": facts["views"],
    }
    for part in [*known["tables"].values(), *known["triggers"]]:
        for detail in ("row_count", "rows_sha256", "sql_sha256"):
            part.pop(detail, None)
    return known


def with_additions(known: Shape) -> Shape:
    """
    *known* and the vault's own: its tables and a column, as the models have them, and its indexes.
    """
    known = copy.deepcopy(known)
    credentials = known["tables"]["provider_credentials"]
    there = [column["name"] for column in credentials["columns"]]
    credentials["columns"] += [
        column for column in _columns(ProviderCredential) if column["name"] not in there
    ]
    names = [
        {"name": name, "desc": False, "coll": "BINARY"}
        for name in ("project_id", "provider", "credential_type")
    ]
    for scope, where, columns in (
        ("global", "project_id IS NULL", names[1:]),
        ("project", "project_id IS NOT NULL", names),
    ):
        facts = {
            "unique": True,
            "origin": "create index",
            "partial": True,
            "where": where,
            "columns": columns,
        }
        credentials["indexes"].append({"name": f"vault_credentials_{scope}", **facts})
    for model in OWN_MODELS:
        known["tables"][model._meta.table_name] = _own_table(model)
    known["tables"]["vault_keys"]["indexes"].append(
        _own_index("one_active", "state", table="vault_keys", where="state = 'active'")
    )
    known["tables"]["vault_history"]["indexes"] += [
        _own_index("ended", "ended_at"),
        _own_index("place", "provider", "credential_type", "project_id"),
        _own_index("project", "project_id"),
    ]
    for table in ("vault_tokens", "vault_grants"):
        for scope, where, columns in (
            ("global", "project_id IS NULL", ("provider",)),
            ("project", "project_id IS NOT NULL", ("project_id", "provider")),
        ):
            index = _own_index(scope, *columns, table=table, where=where)
            known["tables"][table]["indexes"].append(index)
    return known


def _own_index(
    name: str, *columns: str, table: str = "vault_history", where: str | None = None
) -> Shape:
    return {
        "name": f"{table}_{name}",
        "unique": where is not None,
        "origin": "create index",
        "partial": where is not None,
        "where": where,
        "columns": [{"name": column, "desc": False, "coll": "BINARY"} for column in columns],
    }


def _columns(model: type[Model]) -> list[Shape]:
    """Of a table of ours, or the vault's own columns of one of the app's."""
    return [
        {
            "name": field.column_name,
            "type": "INTEGER" if isinstance(field, IntegerField) else "TEXT",
            "notnull": not field.null,
            "default": None,
            "pk": int(field.primary_key),
            "hidden": 0,
        }
        for field in model._meta.sorted_fields
    ]


def _own_table(model: type[Model]) -> Shape:
    columns = _columns(model)
    key = {
        "name": f"sqlite_autoindex_{model._meta.table_name}_1",
        "unique": True,
        "origin": "primary key",
        "partial": False,
        "where": None,
        "columns": [{"name": columns[0]["name"], "desc": False, "coll": "BINARY"}],
    }
    return {
        "columns": columns,
        "autoincrement": False,
        "without_rowid": False,
        "foreign_keys": [
            {
                "columns": [field.column_name],
                "references": field.rel_model._meta.table_name,
                "ref_columns": [field.rel_field.column_name],
                "on_delete": field.on_delete,
                "on_update": "NO ACTION",
                "match": "NONE",
            }
            for field in model._meta.sorted_fields
            if isinstance(field, ForeignKeyField)
        ],
        "indexes": [key],
    }


def columns_of(known: Shape) -> dict[str, list[str]]:
    return {
        table: [column["name"] for column in facts["columns"]]
        for table, facts in known["tables"].items()
    }


def rows_sha256(connection: sqlite3.Connection, table: str, columns: Iterable[str]) -> str:
    """The samples' hash: each row as compact JSON with sorted keys, the rows sorted."""
    names = list(columns)
    listed = ", ".join(f'"{name}"' for name in names)
    rows = [map(_as_written, row) for row in connection.execute(f'SELECT {listed} FROM "{table}"')]
    text = [
        json.dumps(
            dict(zip(names, row, strict=True)),
            ensure_ascii=False,
            sort_keys=True,
            separators=(",", ":"),
        )
        for row in rows
    ]
    return hashlib.sha256("\n".join(sorted(text)).encode()).hexdigest()


def _as_written(value: object) -> object:
    # JavaScript has no 1.0.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def rows_of(path: Path, columns: dict[str, list[str]] | None = None) -> dict[str, str]:
    """The hash of the rows of each table, in all its columns or in those given."""
    with plain(path) as connection:
        wanted = columns_of(shape(connection)) if columns is None else columns
        return {table: rows_sha256(connection, table, names) for table, names in wanted.items()}


def files_in(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder: what is unchanged is equal."""
    return {
        path.name: path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else str(path.lstat().st_mode)
        for path in folder.iterdir()
    }


def in_child(work: Callable[[], object], *, ordinary: bool = False) -> tuple[int, str]:
    """
    Do *work* in a forked child: its exit status, and what the work gave or raised, as text.

    Root ignores permission bits, so *ordinary* work of root is done by nobody. A fork, not a new
    interpreter, which nobody might not be allowed to read.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # 3.12 and later warn of threads that other tests left behind.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            if ordinary and os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            said = str(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as answer:
        said = answer.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


if __name__ == "__main__":
    sys.stdout.write(json.dumps(shape_of(Path(sys.argv[1])), indent=1, ensure_ascii=False) + "\n")
