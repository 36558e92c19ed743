"""
Values as text that other programs write and read: dotenv, JSON, and Airflow's exported connections.

A file goes in as one `Secret` and comes out as entries and problems, and nothing here raises: the
error of a parser quotes the text. Values become `Secret`s while a text is parsed.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from ..errors import WrongArgument, typed_name
from ..providers import Provider, find, provider_of
from ..secret import Secret, new_secret

FORMATS: Final = ("dotenv", "json", "airflow-json", "airflow-yaml", "airflow-env")
Fields = Mapping[str, Iterable[tuple[str, str]]]  # the provider and field of each variable
# `NAME=type://...` or `name={...}`. A name in capitals alone is a variable's, as in DATABASE_URL.
_CONNECTION: Final = r"(?![A-Z0-9_]+=)[\w.-]+=(?:[a-z][a-z0-9+.-]*://|\{)[^\n]*"
_IDLE: Final = r"[^\S\n]*(?:#[^\n]*)?"
_CONNECTIONS: Final = re.compile(rf"(?:{_IDLE}\n)*{_CONNECTION}(?:\n(?:{_CONNECTION}|{_IDLE}))*")
_VARIABLE: Final = re.compile(rf"(?:{_IDLE}\n)*[^\S\n]*(?:export\s+)?[\w.-]+[^\S\n]*=")
_NOT_A_PART: Final = ("conn_type", "description", "extra")


class Entry(NamedTuple):
    """One value of a file. `source` says where it is there, without the value."""

    source: str
    project_id: str | None
    provider: str
    field: str
    value: Secret
    label: str | None = None


class Problem(NamedTuple):
    """What does not fit, and where. `unknown`: there is no field for it, so it can be left out."""

    source: str
    what: str
    unknown: bool = False


Found = Iterator[Entry | Problem]


def recognised(name: str, text: Secret) -> str | None:
    """The format of a file, by its content and its name; None if they do not tell."""
    start = text.reveal().lstrip()[:1]
    if start in ("[", "{"):
        return "json" if start == "[" else "airflow-json"
    if name.lower().endswith((".yaml", ".yml")):
        return "airflow-yaml"
    if _CONNECTIONS.fullmatch(text.reveal()):
        return "airflow-env"
    return "dotenv" if _VARIABLE.match(text.reveal()) else None


def read(kind: str, text: Secret, fields: Fields, project_id: str | None) -> Found:
    """
    The entries of a text in the format *kind*, each for *project_id*.

    Of JSON rows None means the project that each row names; of everything else, the global scope.
    """
    if kind == "dotenv":
        return _dotenv(text, fields, project_id)
    if kind == "json":
        return _rows(_json(text), project_id)
    if kind == "airflow-env":
        return _connections(_lines(text), project_id)
    if kind == "airflow-json":
        found = _json(text)
    else:
        try:
            found = _yaml(text)
        except ImportError:
            what = "YAML needs PyYAML: pip install 'outreach_vault[yaml]'; or export JSON"
            return iter([Problem("the file", what)])
    if not isinstance(found, dict):
        form = kind.removeprefix("airflow-").upper()
        what = f"not {form} with an object for each connection, each named once"
        return iter([Problem("the file", what)])
    return _connections([(f"connection {typed_name(k)}", k, v) for k, v in found.items()],
                        project_id)  # fmt: skip


# dotenv


def _dotenv(text: Secret, fields: Fields, project_id: str | None) -> Found:
    """As python-dotenv reads it, but for its `${NAME}`: a value that has one is kept as it is."""
    from dotenv.parser import parse_stream  # here: little else needs it

    # Line ends become \n, as for everybody who opens a text file.
    stream = io.StringIO(text.reveal(), newline=None)
    lines = [
        (_line(each.original), each.key, each.value and Secret(each.value), each.error)
        for each in parse_stream(stream)
    ]
    for number, variable, value, fault in lines:
        source = f"line {number}"
        if fault:
            yield Problem(source, "not NAME=VALUE, or a quote is not closed")
        elif variable is not None:
            source += f", {typed_name(variable)}"
            found = sorted(fields.get(variable, ()))
            if not value:
                yield Problem(source, "it has no value")
            elif len(found) == 1:
                yield Entry(source, project_id, *found[0], value)
            else:
                what = "several fields have this variable" if found else "no field has it"
                yield Problem(source, what, unknown=not found)


def _line(original: Any) -> int:
    """Where an entry is, after the empty lines that the library counts as a part of it."""
    leading = len(original.string) - len(original.string.lstrip())
    return int(original.line + original.string.count("\n", 0, leading))


def as_dotenv(variables: Mapping[str, Secret]) -> tuple[Secret, list[str]]:
    """
    The text, and the variables whose values no text carries to each of its readers.

    Its readers are python-dotenv, with or without its `${NAME}`, and a POSIX shell. Docker's
    --env-file, which knows no quotes, reads a value that needs none. There is no one way to write
    a value for both if it has `$` or a backtick, which only single quotes keep from a shell, and
    also a quote or two backslashes, which python-dotenv changes there; nor a carriage return.
    """
    quoted = {name: _quoted(value) for name, value in variables.items()}
    text = new_secret()
    text._text = "".join(f"{name}={each.reveal()}\n" for name, each in quoted.items() if each)
    return text, [name for name, each in quoted.items() if each is None]


def _quoted(value: Secret) -> Secret | None:
    if re.fullmatch(r"[\w@%+=:,./-]+", value.reveal(), re.ASCII):
        return value
    if re.search(r"\r|\0|\$\{", value.reveal()):
        return None
    if not re.search(r"'|\\\\|\\\Z", value.reveal()):
        return Secret(f"'{value.reveal()}'")
    # Before a quote, older releases of python-dotenv took the second of two backslashes for the
    # beginning of an escape.
    if not re.search(r'[$`]|\\"|\\\Z', value.reveal()):
        return Secret('"' + re.sub(r'(["\\])', r"\\\1", value.reveal()) + '"')
    return None


# JSON


def _rows(found: Any, project_id: str | None) -> Found:
    """The rows of `vault list --json`, each with its `value`."""
    if not isinstance(found, list):
        yield Problem("the file", "not JSON with a list of rows, in which no name comes twice")
        return
    for number, row in enumerate(found, 1):
        source = f"row {number}"
        if not isinstance(row, dict):
            yield Problem(source, "not an object")
            continue
        own = _text(row.get("project_id", 0))
        provider, field = _text(row.get("provider")), _text(row.get("credential_type"))
        value, label = row.get("value"), _text(row.get("label"))
        if not (isinstance(provider, str) and isinstance(field, str)):
            yield Problem(source, "its provider or credential_type is not text")
        elif project_id is None and not (own is None or isinstance(own, str)):
            yield Problem(source, "its project_id is neither text nor null (--project gives one)")
        elif not (label is None or isinstance(label, str)):
            yield Problem(source, "its label is neither text nor null")
        elif not isinstance(value, Secret):
            yield Problem(source, "it has no value, or one that is not text")
        elif value == Secret(str(value)):
            yield Problem(source, "its value is the mask that lists show, not a value")
        else:
            scope = own if project_id is None else project_id
            yield Entry(source, scope, provider, field, value, label)


def _text(found: Any) -> Any:
    return found.reveal() if isinstance(found, Secret) else found


# Airflow


def _connections(found: Iterable[tuple[str, str, Any]], project_id: str | None) -> Found:
    for source, conn_id, stored in found:
        connection = _of_text(stored) if isinstance(stored, Secret) else stored
        if not isinstance(connection, dict):
            yield Problem(source, "not a connection: neither an object nor a URI")
            continue
        its_type = str(_text(connection.get("conn_type"))).lower()
        names = {n for n in ("smtp" if its_type == "email" else its_type, conn_id) if find(n)}
        extra = connection.get("extra") or {}
        if isinstance(extra, Secret):
            extra = {} if extra == Secret("") else _json(extra)
        if len(names) > 1:
            yield Problem(source, "its id and its type are two providers")
        elif not names:
            yield Problem(source, "no provider has the name of its type or id", unknown=True)
        elif not isinstance(extra, dict):
            yield Problem(source, "its extra is not a JSON object, in which no name comes twice")
        else:
            provider = provider_of(names.pop())
            parts = [("", *each) for each in connection.items() if each[0] not in _NOT_A_PART]
            parts += [("extra ", *each) for each in extra.items()]
            for within, part, value in parts:
                if value is not None and value != Secret(""):  # Airflow takes these for not there
                    at = f"{source}, {within}{typed_name(part)}"
                    yield _part(at, provider, part, value, project_id)


def _part(
    source: str, provider: Provider, part: str, value: Any, project_id: str | None
) -> Entry | Problem:
    if type(value) is int:  # a port
        value = Secret(str(value))
    if (field := _field(provider, part)) is None:
        return Problem(source, f"no field of {provider.name} is sure to be meant", unknown=True)
    if not isinstance(value, Secret):
        return Problem(source, "its value is not text")
    return Entry(source, project_id, provider.name, field, value)


def _field(provider: Provider, part: str) -> str | None:
    """
    The field for a part of a connection: the one of its name.

    For `login` also `user` or `username`. Else `login` and `password` are the only one of the
    account's required fields that is not secret, or is.
    """
    for name in [part] + ["user", "username"] * (part == "login"):
        if provider.field(name):
            return name
    fits = [
        field.name
        for field in provider.fields
        if field.required and field.account and field.secret == (part == "password")
    ]
    return fits[0] if len(fits) == 1 and part in ("login", "password") else None


def _lines(text: Secret) -> list[tuple[str, str, Any]]:
    """As Airflow reads such a file: no quotes, no comment after a value."""
    lines = [
        (number, line.partition("=")[0], Secret(line.partition("=")[2]))
        for number, line in enumerate(text.reveal().splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    return [(f"line {n}, connection {typed_name(name)}", name, each) for n, name, each in lines]


def _of_text(text: Secret) -> Any:
    """A connection as JSON, or as a URI: type://login:password@host:port/schema?extra."""
    from urllib.parse import parse_qsl, unquote, urlsplit  # here: little else needs it

    if text.reveal().startswith("{"):
        return _json(text)
    uri = None
    try:
        uri = urlsplit(text.reveal())
        extra = [(name, Secret(each)) for name, each in parse_qsl(uri.query)]
        parts = {
            "conn_type": Secret(uri.scheme),
            "login": Secret(unquote(uri.username or "")),
            "password": Secret(unquote(uri.password or "")),
            "host": Secret(unquote(uri.hostname or "")),
            "port": uri.port,
            "schema": Secret(unquote(uri.path[1:])),
            "extra": dict(extra).get("__extra__", dict(extra)),
        }
        return parts if uri.scheme and len(dict(extra)) == len(extra) else None
    except ValueError:
        return None
    finally:
        uri = None


# Parsers


def _json(text: Secret) -> Any:
    """
    The content, each text that an object holds as a `Secret`; None if it is not JSON, or if an
    object has a name twice.
    """
    try:
        return json.loads(text.reveal(), object_pairs_hook=_hidden)
    except (ValueError, RecursionError):
        return None


def _yaml(text: Secret) -> Any:
    """As `_json`. A number or a date that is not in quotes is none of a text."""
    import yaml  # here: only who imports YAML needs it, and must have it

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # the library has no types
        """`yaml.safe_load`, but for names that come twice: it takes the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            return _hidden([(key.value, self.construct_object(each, deep=True))
                            for key, each in node.value])  # fmt: skip

    try:
        return yaml.load(text.reveal(), Loader)  # noqa: S506  # it is a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None


def _hidden(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    try:
        made = {str(name): Secret(each) if isinstance(each, str) else each for name, each in pairs}
        twice = len(made) < len(pairs)
    finally:
        pairs = []  # from here on, no variable in our frames holds a text
    if twice:
        raise WrongArgument("a name comes twice")
    return made
