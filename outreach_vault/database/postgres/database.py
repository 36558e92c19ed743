"""A database on a PostgreSQL server: its rows, its schema, its upkeep."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from re import Pattern
from typing import Any, Final, TypeVar

import psycopg

from ...errors import NotADatabase, SchemaOutdated, StorageError, brief
from ..engine import Cleaned, Concern, Database
from .connections import Connections
from .errors import FAULTS
from .roles import grants
from .sql import definition

T = TypeVar("T")

_META: Final = "vault_meta"  # step 0006 makes it; here it has the app's number from the start
_NUMBER: Final = "schema"
_KEY: Final = "id"
_HERE: Final = "(SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
_TABLES: Final = (
    f"SELECT oid, relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = {_HERE}"
)


class PostgresDatabase(Connections):
    """Made by `ServerLocation.open`."""

    # Rows. Text is compared byte by byte here, so no index depends on a locale.

    def whole(self, table: str) -> str:
        return table

    def row_key(self, table: str) -> str:
        """The primary key, which here is never NULL."""
        return _KEY

    def first_of(self, first: str, second: str) -> str:
        """Without the order, the server might begin with either."""
        return f"{first} UNION ALL {second} ORDER BY 2 NULLS LAST LIMIT 1"

    def read_again(
        self,
        table: str,
        columns: str,
        searches: Sequence[tuple[str, str]],
        *,
        to_change: bool = False,
    ) -> str:
        found = " UNION ALL ".join(
            f"SELECT {columns}, {mark} AS found_mark, {_KEY} AS found_key FROM {table}"
            f" WHERE {where}"
            for where, mark in searches
        )
        return f"{found} FOR UPDATE" if to_change else found

    def astray(self, table: str) -> NotADatabase:
        return NotADatabase(
            f"{self.name}: an index of {table} leads to the wrong row; nothing was changed",
            hint=f"have the server's owner run: REINDEX TABLE {table}; or restore a backup",
        )

    def exactly(self, table: str, column: str, value: str) -> str:
        return f"EXISTS (SELECT 1 FROM {table} WHERE {column} = {value})"

    def pages(self, table: str, columns: str, size: int) -> Iterator[list[tuple[Any, ...]]]:
        """By key: two who lock rows do so in one order."""
        sql = f"SELECT {columns}, {_KEY} FROM {table} {{}} ORDER BY {_KEY} LIMIT {size}"
        rows = self.fetch(sql.format(""))
        while rows:
            yield rows
            rows = self.fetch(sql.format(f"WHERE {_KEY} > ?"), (rows[-1][-1],))

    def swap(
        self, table: str, new: Sequence[str], old: Sequence[str], rows: Sequence[Sequence[object]]
    ) -> int:
        """
        Text alone, and each column of it as one array: for 500 rows that takes the client a fifth
        and the server half of the time of as many statements (measured).
        """
        if not rows:
            return 0
        become = ", ".join(f"{name} = r.n{at}" for at, name in enumerate(new))
        are = " AND ".join(f"t.{name} = r.n{at}" for at, name in enumerate(old, len(new)))
        names = [f"n{at}" for at in range(len(new) + len(old))]
        given = f"unnest({', '.join(['%b::text[]'] * len(names))}) AS r ({', '.join(names)})"
        sql = f"UPDATE {table} t SET {become} FROM {given} WHERE {are}"
        columns = [list(column) for column in zip(*rows, strict=True)]
        return self._change(lambda cursor: cursor.execute(sql, columns))

    def fill(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """By COPY. References are checked all the same: those are the server's own triggers."""
        connection = self._take()
        try:
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
            with (
                connection.cursor() as cursor,
                cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy,
            ):
                for row in rows:
                    copy.write_row(row)
            connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")
        except FAULTS as error:
            known = self._explain(error, connection)
            if isinstance(error, psycopg.IntegrityError):  # no other client's doing, so not AGAIN
                raise StorageError(
                    f"{self.name}: {table}: {error.diag.message_primary}", hint=known.hint
                ) from None
            raise known from error
        finally:
            self._give(connection)
        self._number_on(table, columns)

    def _number_on(self, table: str, columns: Sequence[str]) -> None:
        """Where the server numbers the rows, it goes on after the highest number."""
        if _KEY not in columns:
            return
        ((sequence,),) = self.fetch("SELECT pg_get_serial_sequence(?, ?)", (table, _KEY))
        if sequence:
            highest = f"greatest(max({_KEY}), 1), max({_KEY}) >= 1"
            self.fetch(f"SELECT setval(?, {highest}) FROM {table}", (sequence,))

    # Schema

    def define(
        self, sql: str, params: Sequence[object] = (), *, on_postgres: str | None = None
    ) -> None:
        if on_postgres is None:
            self.change(definition(sql), params)
            return
        connection = self._take()
        try:
            connection.execute(on_postgres.encode())  # several statements, and no parameters
        except FAULTS as error:
            raise self._explain(error, connection) from error
        finally:
            self._give(connection)

    def schema_version(self) -> int:
        if _META not in self.tables():
            return 0
        found = self.fetch(f"SELECT value FROM {_META} WHERE key = ?", (_NUMBER,))
        return int(found[0][0]) if found and found[0][0].isdecimal() else 0

    def set_schema_version(self, number: int) -> None:
        self.change(
            f"INSERT INTO {_META} (key, value) VALUES (?, ?)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (_NUMBER, str(number)),
        )

    def belongs_to_another_program(self) -> bool:
        return False

    def tables(self) -> set[str]:
        return {name for _, name in self.fetch(_TABLES)}

    def columns(self) -> dict[str, list[str]]:
        shape: dict[str, list[str]] = {}
        for table, column in self.fetch(
            f"SELECT t.relname, a.attname FROM ({_TABLES}) t JOIN pg_attribute a"
            " ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, a.attnum"
        ):
            shape.setdefault(table, []).append(column)
        return shape

    def definitions(self) -> dict[str, str]:
        """Without the indexes that constraints have made."""
        return dict(
            self.fetch(
                "SELECT c.relname, pg_get_indexdef(i.indexrelid) FROM pg_index i"
                f" JOIN pg_class c ON c.oid = i.indexrelid AND c.relnamespace = {_HERE}"
                " WHERE i.indisvalid"
                " AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = i.indexrelid)"
                f" UNION ALL SELECT g.tgname, pg_get_triggerdef(g.oid) FROM ({_TABLES}) t"
                " JOIN pg_trigger g ON g.tgrelid = t.oid AND NOT g.tgisinternal ORDER BY 1"
            )
        )

    def broken_references(self) -> list[tuple[Any, ...]]:
        """A restore with --disable-triggers leaves them unchecked."""
        found = self.fetch(
            "SELECT c.conrelid::regclass::text, a.attname, c.confrelid::regclass::text, c.conkey[1]"
            f" FROM ({_TABLES}) t JOIN pg_constraint c ON c.conrelid = t.oid AND c.contype = 'f'"
            " JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]"
        )
        broken = list[tuple[Any, ...]]()
        for table, column, parent, number in found:
            rows = self.fetch(
                "SELECT coalesce(to_jsonb(child) ->> 'id', child.ctid::text)"
                f" FROM {table} child WHERE {column} IS NOT NULL AND NOT EXISTS"
                f" (SELECT 1 FROM {parent} parent WHERE parent.id = child.{column}) ORDER BY 1"
            )
            broken += [(table, row_id, parent, number) for (row_id,) in rows]
        return broken

    # Upkeep

    def prepare(self) -> None:
        """Where the app's number stands: in SQLite every file has one."""
        self.change(
            definition(
                f"CREATE TABLE IF NOT EXISTS {_META}"
                " (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL)"
            )
        )

    def keep_copy(self) -> None:
        return None

    def home(self) -> str:
        """The numbers of the server and the database: a standby has them too, a dump has not."""
        where = "SELECT system_identifier, (SELECT oid FROM pg_database"
        where += " WHERE datname = current_database()), current_schema() FROM pg_control_system()"
        system, database, schema = self.fetch(where)[0]
        return f"postgresql:{system}/{database}/{schema}"

    def copied_from(self, home: str, is_same: Callable[[Database], bool]) -> str | None:
        """Whether another server's database is in use, nobody here can know."""
        ours = home.startswith("postgresql:")
        return f"the database {home}" if ours and home != self.home() else None

    def clean(self, scrub: bool | None) -> Cleaned:
        """
        With *scrub* rewrite the tables that have values: plain VACUUM leaves long values in place
        (99 of 100 tokens, measured). Every reader of these tables waits meanwhile.
        """
        if not scrub:
            return Cleaned(None, scrubbed=False)
        with_values = (name for name, has in self.columns().items() if "encrypted_value" in has)
        self._this_thread.warning = None
        try:
            self.change(f"VACUUM (FULL) {', '.join(with_values)}")
        except StorageError as error:
            return Cleaned(None, scrubbed=False, problem=str(error))
        # What the role does not own is left out without an error.
        problem = self._this_thread.warning
        return Cleaned(None, scrubbed=problem is None, problem=problem)

    def backup_command(self, target: Path) -> str:
        words = ("pg_dump", "--format=custom", f"--file={target}", self.name)
        return " ".join(map(shlex.quote, words))

    def backup(self, target: Path, look: Callable[[Database], T]) -> T:
        raise StorageError(
            f"{self.name}: a database on a server is not copied from here",
            hint=f"run: {self.backup_command(target)}",
        )

    def concerns(self, *tables: str, deep: bool) -> Iterator[Concern]:
        yield from self._reached()
        yield from self._planted(tables)
        yield from self._kept()

    def _reached(self) -> Iterator[Concern]:
        connection = self._take()
        try:
            info = connection.info
            local = info.host.startswith("/") or info.hostaddr in ("127.0.0.1", "::1", "")
            encrypted = bool(connection.pgconn.ssl_in_use)
        finally:
            self._give(connection)
        if not (local or encrypted):
            message = (
                "the connection to the server is not encrypted: the network reads what it sends"
            )
            advice = "set sslmode=verify-full and sslrootcert in the URL"
            yield Concern("problem", "open connection", message, advice)
        if self.fetch("SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [(True,)]:
            message = "the database is used by a superuser of the server"
            advice = "use a role of its own: 'vault roles --sql' prints what it needs"
            yield Concern("notice", "superuser", message, advice)

    def _planted(self, tables: Sequence[str]) -> Iterator[Concern]:
        """Triggers, rules and policies on these tables, and views that read them. We make none."""
        names = list(tables)
        rules = f"""
            SELECT 'trigger', g.tgname, t.relname FROM ({_TABLES}) t
            JOIN pg_trigger g ON g.tgrelid = t.oid AND NOT g.tgisinternal
            WHERE t.relname = ANY(?)
            UNION ALL SELECT 'rule', r.rulename, t.relname FROM ({_TABLES}) t
            JOIN pg_rewrite r ON r.ev_class = t.oid WHERE t.relname = ANY(?)
            ORDER BY 1, 2"""
        for what, name, table in self.fetch(rules, (names, names)):
            message = (
                f"the {what} {brief(name)} on {table} is not part of this schema: it can undo or"
                " copy what is stored"
            )
            drop = f'DROP {what.upper()} "{brief(name)}" ON {table}'
            advice = f"find the program that made it; with any tool for PostgreSQL: {drop}"
            yield Concern("problem", f"planted {what}", message, advice)
        hidden = (
            "SELECT relname FROM pg_class WHERE relrowsecurity AND relname = ANY(?)"
            f" AND relnamespace = {_HERE} ORDER BY 1"
        )
        for (table,) in self.fetch(hidden, (names,)):
            message = (
                f"{table} has row-level security: where it hides a project's row, a look-up"
                " takes the global one"
            )
            advice = (
                f"keep projects apart by databases; ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"
            )
            yield Concern("problem", "hidden rows", message, advice)
        views = """
            SELECT DISTINCT view_name, table_name FROM information_schema.view_table_usage
            WHERE table_schema = current_schema() AND table_name = ANY(?) ORDER BY 1, 2"""
        for view, table in self.fetch(views, ([name for name in names if name != "projects"],)):
            message = f"the view {brief(view)} on {table} is not part of this schema"
            advice = f'find the program that made it; drop it: DROP VIEW "{brief(view)}"'
            yield Concern(
                "notice", "view", f"{message}: it can show what is stored, still sealed", advice
            )

    def _kept(self) -> Iterator[Concern]:
        """Where old tokens may be, besides the table: the server's log and its copies."""
        settings = dict(
            self.fetch(
                "SELECT name, setting FROM pg_settings WHERE name IN"
                " ('archive_mode', 'fsync', 'full_page_writes', 'synchronous_commit')"
            )
        )
        if "off" in (settings.get("fsync"), settings.get("full_page_writes")):
            message = "fsync or full_page_writes is off: a power cut can damage the database"
            advice = "have the server's owner turn them on"
            yield Concern("problem", "unsafe server", message, advice)
        if settings.get("synchronous_commit") == "off":
            message = "synchronous_commit is off: a crash of the server can lose what was stored"
            yield Concern("problem", "unsafe server", message, "set it to on, or remote_apply")
        if settings.get("archive_mode", "off") != "off":
            message = (
                "the server archives its log (WAL): old tokens are in it for as long as it is kept"
            )
            advice = "after 'vault keys destroy' nothing opens them"
            yield Concern("notice", "kept log", message, advice)
        slots = self.fetch(
            "SELECT slot_name, active FROM pg_replication_slots"
            " WHERE database IS NULL OR database = current_database() ORDER BY 1"
        )
        for slot, active in slots:
            state = "in use" if active else "not in use, so the log grows"
            message = (
                f"the replication slot {brief(slot)} keeps the log (WAL), with old tokens: {state}"
            )
            advice = "after 'vault keys destroy' nothing opens them"
            if not active:
                advice += f"; if nobody needs it: SELECT pg_drop_replication_slot('{brief(slot)}')"
            yield Concern("notice", "kept log", message, advice)

    def grants(self, adapters: str, operators: str) -> list[str]:
        if _META not in (tables := self.tables()):
            raise SchemaOutdated(f"{self.name}: no vault is there", hint="run 'vault init' first")
        whose = (
            "SELECT current_database(), current_schema(), pg_get_userbyid(relowner) FROM pg_class"
        )
        ((database, schema, owner),) = self.fetch(f"{whose} WHERE oid = '{_META}'::regclass")
        return list(grants(database, schema, owner, tables, adapters=adapters, operators=operators))

    def replaced(self, pattern: Pattern[bytes]) -> tuple[str, set[bytes]]:
        """Only the server's owner can read its log."""
        return "the server's log", set()
