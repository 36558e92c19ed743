"""Where a database on a server is: a URL, completed by libpq's own variables and files."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar
from urllib.parse import quote, unquote, urlsplit

from ...errors import DatabaseNotFound, LibraryMissing, StorageError, UnusablePath, VaultError
from ..engine import Database, Location

if TYPE_CHECKING:
    from .database import PostgresDatabase

T = TypeVar("T")

CREATING_SECONDS: Final = 30.0  # for another process that creates the same vault
_NAMED: Final = "the database (--db, OUTREACH_VAULT_DB)"
# What libpq takes, unless the URL or libpq's own variable says otherwise. A host that is gone is
# noticed within a minute.
_DEFAULTS: Final = (
    ("connect_timeout", "PGCONNECT_TIMEOUT", "10"),
    ("client_encoding", "", "UTF8"),
    ("keepalives_idle", "", "30"),
    ("keepalives_interval", "", "10"),
    ("keepalives_count", "", "3"),
    ("tcp_user_timeout", "", "60000"),
)


class _Options(dict[str, str]):
    """
    For `psycopg.connect`, with the password. Neither a repr, which a traceback may show, nor a
    pickle has that.
    """

    def __repr__(self) -> str:
        return f"<{len(self)} options>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a URL's options cannot be pickled or copied: they may have a password")


class ServerLocation(Location):
    """
    A URL such as `postgresql://user@host/database?sslmode=verify-full`.

    To make it raises nothing: the frames of an error would show the URL, which may have a password.
    Its methods raise:
        UnusablePath: libpq does not take the URL.
        LibraryMissing: the extra is not installed.

    Attributes:
        options: for `psycopg.connect`; the URL's password is among them.
    """

    def __init__(self, url: str) -> None:
        self.options, self._fault = _parsed(url)
        self._name = _name(self.options)
        for option, variable, value in _DEFAULTS:
            if not (variable and os.environ.get(variable)):
                self.options.setdefault(option, value)

    def __str__(self) -> str:
        return self._name

    def open(self, *, read_only: bool = False) -> PostgresDatabase:
        database = self._schema(read_only=read_only)
        try:
            if not database.tables():
                raise DatabaseNotFound(
                    f"{self}: there is no vault", hint="check the URL; 'vault init' makes a vault"
                )
            return database
        except BaseException:
            database.close_all()
            raise

    def _schema(self, *, read_only: bool = False) -> PostgresDatabase:
        """With the vault's tables or without any."""
        if self._fault:
            kind, problem, hint = self._fault
            raise kind(problem, hint=hint)
        from .database import PostgresDatabase

        return PostgresDatabase(str(self), self.options, read_only=read_only)

    def exists(self) -> bool:
        """Whether the schema has any table."""
        database = self._schema(read_only=True)
        try:
            return bool(database.tables())
        finally:
            database.close_all()

    def create(self, fill: Callable[[Database], T]) -> T:
        """All in one transaction: PostgreSQL undoes tables too."""
        database = self._schema()

        def make() -> T:
            if database.tables():
                raise StorageError(
                    f"{self}: another process has made tables there",
                    hint="run it again: it goes on with what is there",
                )
            database.prepare()
            return fill(database)

        try:
            return database.operators_turn(lambda: database.write(make), patience=CREATING_SECONDS)
        finally:
            database.close_all()

    def require_locks(self) -> None:
        database = self._schema(read_only=True)
        try:
            database.require_direct()
        finally:
            database.close_all()


def _parsed(url: str) -> tuple[_Options, tuple[type[VaultError], str, str] | None]:
    """The URL's options, and what is wrong with it."""
    if find_spec("psycopg") is None:
        lacking = "a database at postgresql: needs psycopg, which is not installed"
        return _Options(), (LibraryMissing, lacking, "pip install 'outreach_vault[postgres]'")
    from psycopg import ProgrammingError, conninfo

    try:
        problem = "has a control character"
        if url.isprintable():
            found = conninfo.conninfo_to_dict(url).items()
            options = _Options((name, str(value)) for name, value in found if value is not None)
            if not _cut_in_a_password(options):
                return options, None
            problem = "its user, password, host and database cannot be told apart"
    except ProgrammingError:  # its text may repeat a part of the password
        problem = "not a URL that PostgreSQL's library takes"
    problem = f"{_NAMED}: {problem}; it is not repeated, since it may have a password"
    hint = "write postgresql://USER@HOST/DATABASE; in a password %2F for /, %40 for @, %25 for %"
    return _Options(), (UnusablePath, problem, hint)


def _cut_in_a_password(options: _Options) -> bool:
    """A password's own / or @ ends it, and its rest would be shown as a host, port or database."""
    host = options.get("host", "")[1:]  # a socket's name may begin with one
    ports = options.get("port", "").replace(",", "")
    return "@" in host + options.get("dbname", "") or not (ports.isdecimal() or not ports)


def _name(options: dict[str, str]) -> str:
    """The URL for people: where it is, whose, and the schema; nothing else of it."""
    user, host = options.get("user", ""), options.get("host", options.get("hostaddr", ""))
    port, service = options.get("port", ""), options.get("service")
    at = f"{quote(user, safe='')}@" if user else ""
    shown = "" if host.startswith("/") else host
    extra = [("host", host)] if host.startswith("/") else []
    extra += [("service", service)] if service else []
    shown_too = ("sslmode", "sslrootcert", "target_session_attrs")  # for the server's own tools
    extra += [(name, options[name]) for name in shown_too if name in options]
    if "search_path" in options.get("options", ""):
        extra.append(("options", options["options"]))
    query = "&".join(f"{name}={quote(value, safe='/,')}" for name, value in extra)
    database = quote(options.get("dbname", ""), safe="")
    return (
        f"postgresql://{at}{shown}{f':{port}' if port else ''}/{database}"
        f"{f'?{query}' if query else ''}"
    )


def has_password(url: str) -> bool:
    """Whether a URL holds a password, wherever in it, or may hold one."""
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may repeat the URL; what it does not take, libpq may
        return True
    return bool(parts.password) or "password=" in unquote(parts.query)
