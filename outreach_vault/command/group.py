"""
The frame of the `vault` command: the group that every command joins, the options that several
commands share, and the exit statuses.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import click

from .. import errors
from ..database import is_url
from ..errors import near
from ..keys.stores import FORMS, KeyStore, choose
from ..vault import Vault

INCOMPLETE: Final = 16
UNREACHABLE: Final = 17
UNSAID: Final = 18
NO_PROGRAM: Final = 127  # as for env(1)
# The published table, which never changes. A subclass has the status of its parent.
STATUSES: Final[dict[type[BaseException], int]] = {
    click.Abort: 3,
    errors.WrongArgument: 2,
    errors.UnusablePath: 2,
    errors.NotFound: 10,
    errors.UnreadableValue: 11,
    errors.KeyringLocked: 13,
    errors.KeyringTimedOut: 13,
    errors.KeyUnavailable: 12,
    errors.ProviderUnreachable: UNREACHABLE,
    errors.TokenUnavailable: INCOMPLETE,
    errors.LoginFailed: INCOMPLETE,
    errors.LibraryMissing: 2,
    errors.KeyInUse: INCOMPLETE,
    errors.KeyNotAcknowledged: INCOMPLETE,
    errors.MixedAccount: INCOMPLETE,
    errors.SharedKeys: INCOMPLETE,
    errors.CannotStart: 126,
    errors.SchemaError: 14,
    errors.StorageError: 15,
    errors.VaultError: 14,
}
HELP: Final = """
    Keeps provider credentials encrypted inside an application's own database, for one project
    or for all.

    --db, --key-dir and --keys may also stand after the command.

    Exit status: 0 ok, 1 a bug, 2 usage, 3 aborted, 10 not found, 11 damaged or foreign value,
    12 key or keyring unavailable, 13 keyring locked or timed out, 14 schema, 15 busy, full,
    read-only or unreachable, 16 check failed or rotation incomplete, or no backup made,
    17 provider unreachable, 18 done, but the output could not be written, 126 'run' cannot start
    the command, 127 'run' cannot find the command or its interpreter.
"""


class Where(NamedTuple):
    """The values of --db, --key-dir and --keys."""

    db: str | None = None
    key_dir: str | None = None
    keys: str | None = None

    def key_store(self) -> KeyStore:
        return choose(self.key_dir, keys=self.keys)

    def open(self) -> Vault:
        return Vault.open(self.db, key_store=self.key_store())


def _named(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> None:
    """Note what an option of `Where` says, wherever it stands; twice only if it says the same."""
    where, name = context.obj or Where(), option.name or ""
    said = {*given, getattr(where, name)} - {None}
    if len(said) > 1:
        raise click.UsageError(f"{option.opts[0]} is given twice, and not the same", context)
    if name == "db":
        refuse_password(
            "--db", said, "OUTREACH_VAULT_DB, or into the file that OUTREACH_VAULT_DB_FILE names"
        )
    context.obj = where._replace(**{name: said.pop()}) if said else where


def refuse_password(what: str, databases: Iterable[object], instead: str) -> None:
    """
    Raise if a URL of *databases* has a password.

    Args:
        instead: where such a URL may stand.
    """
    if urls := [str(each) for each in databases if is_url(each)]:
        from ..database.postgres.location import has_password

        if any(map(has_password, urls)):
            raise errors.UnusablePath(
                f"{what}: the URL has a password, and every user can read the command line",
                hint="put the password into the file that PGPASSFILE names;"
                f" or the whole URL into {instead}",
            )


@functools.cache  # one for all commands: to make them for each took a tenth of `vault get`
def where_options(*, hidden: bool = True) -> Sequence[click.Parameter]:
    """The options for the values of `Where`. Every command has them, and the group shows them."""
    helps = {
        ("--db", "PATH"): "The database: a file, or postgresql://USER@HOST/DATABASE. Default:"
        " OUTREACH_VAULT_DB, or what is in the file that OUTREACH_VAULT_DB_FILE names, else the"
        " desktop app's own samsara.db.",
        ("--key-dir", "DIR"): "The same as --keys dir:DIR. Default: OUTREACH_VAULT_KEY_DIR.",
        ("--keys", "URL"): f"Where keys live: {FORMS}, or another package's URL."
        " Default: OUTREACH_VAULT_KEYS, else the OS keyring.",
    }
    return tuple(
        click.Option(
            [name],
            metavar=metavar,
            help=text,
            multiple=True,
            callback=_named,
            expose_value=False,
            hidden=hidden,
        )
        for (name, metavar), text in helps.items()
    )


class _Anywhere(click.Command):
    """Takes the options of `Where` too, so that they may stand before a command or after it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        has = {parameter.name for parameter in self.params}
        self.params += [option for option in where_options() if option.name not in has]


class Command(_Anywhere):
    """
    Does not repeat a surplus argument, as click would: it may be a secret. Tells who gave a wrong
    one where to look.
    """

    allow_extra_args = True

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.args:
            raise click.UsageError(
                "too many arguments; a value or passphrase must not be one: every user can read it",
                ctx,
            )
        try:
            return super().invoke(ctx)
        except errors.WrongArgument as error:
            error.hint = error.hint or see_help(ctx)
            raise


class Group(_Anywhere, click.Group):
    """
    Shows its help if there are no arguments. Does not repeat a word that is not a command.

    Attributes:
        homes: for a command that is loaded when it is first called, the module that adds it.
    """

    command_class = Command
    group_class = type  # tells click that groups in it are of this class too
    homes: Mapping[str, str] = MappingProxyType({})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands and cmd_name in self.homes:
            import_module(self.homes[cmd_name])
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        for home in set(self.homes.values()):
            import_module(home)
        return super().list_commands(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            # Versions of click differ here, and 8.5 garbles the text.
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            raise click.UsageError(
                f"there is no such command{near(args[0], self.list_commands(ctx))}", ctx
            )
        return super().resolve_command(ctx, args)

    def _main_shell_completion(self, *args: Any, **options: Any) -> None:
        try:
            super()._main_shell_completion(*args, **options)
        except (KeyError, ValueError) as error:  # click trusts the shell to set these
            raise click.UsageError(
                "shell completion: COMP_WORDS or COMP_CWORD is not what a shell would set"
            ) from error


def see_help(context: click.Context | None) -> str:
    return f"'{context.command_path if context else 'vault'} --help' shows how to call it"


def words_of(error: click.ClickException) -> str:
    """What is wrong, without what was typed: that may be a secret in the wrong place."""
    if isinstance(error, click.NoSuchOption):
        return f"there is no such option{near(error.option_name, error.possibilities or ())}"
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
        hint = error.param_hint or (error.param and error.param.get_error_hint(error.ctx))
        return f"{hint or 'an argument'}: not a valid value"
    return error.format_message()


@click.group(
    cls=Group,
    params=list(where_options(hidden=False)),
    help=HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="outreach_vault", prog_name="vault")
def cli() -> None:
    pass


long_option = click.option(
    "--long", "whole", is_flag=True, help="Show ids and whole times, however wide."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
copied_option = click.option(
    "--although-copied",
    is_flag=True,
    help="Proceed even if this database is a copy: the original database loses the key too.",
)
project_option = click.option(
    "--project", metavar="PROJECT", help="Its id, or a name that no other has. Default: global."
)


def chosen_project(vault: Vault, given: str | None) -> str | None:
    """The id of the project that --project names, or None without the option."""
    return None if given is None else vault.projects.find(given)
