"""
The `vault` command's frame: the group that each command adds itself to, its options, its exit statuses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import click

from .. import errors
from ..keys.keystore import KeyStore, choose
from ..vault import Vault

INCOMPLETE: Final = 16
UNREACHABLE: Final = 17
UNSAID: Final = 18
NO_PROGRAM: Final = 127  # as env(1) has it
# The published table; frozen. A subclass has its parent's status.
STATUSES: Final[dict[type[BaseException], int]] = {
    click.Abort: 3,
    errors.WrongArgument: 2,
    errors.UnusablePath: 2,
    errors.NotFound: 10,
    errors.UnreadableValue: 11,
    errors.KeyringLocked: 13,
    errors.KeyringTimedOut: 13,
    errors.KeyUnavailable: 12,
    errors.KeyInUse: INCOMPLETE,
    errors.MixedAccount: INCOMPLETE,
    errors.SharedKeys: INCOMPLETE,
    errors.CannotStart: 126,
    errors.SchemaError: 14,
    errors.StorageError: 15,
    errors.VaultError: 14,
}
HELP: Final = """
    Keeps provider credentials encrypted inside an application's own database, for one project or for all.

    Exit status: 0 ok, 1 a bug, 2 usage, 3 aborted, 10 not found, 11 damaged or foreign value, 12 key or
    keyring unavailable, 13 keyring locked or timed out, 14 schema, 15 busy, full or read-only, 16 check
    failed or rotation incomplete, 17 provider unreachable, 18 done, and its words could not be written, 126 the
    command of 'run' cannot be run, 127 no such command for 'run', or not its interpreter.
"""


class Where(NamedTuple):
    """What --db and --key-dir say."""

    db: str | None
    key_dir: str | None

    def key_store(self) -> KeyStore:
        return choose(self.key_dir)

    def open(self) -> Vault:
        return Vault.open(self.db, key_store=self.key_store())


class Command(click.Command):
    """A command that does not repeat an argument too many, as click's own words would: it may be a secret."""

    allow_extra_args = True

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.args:
            raise click.UsageError("too many arguments; a value or a passphrase is never one, since every user can read those", ctx)
        return super().invoke(ctx)


class Group(click.Group):
    """Without arguments it shows its help. It does not repeat a word that is none of its commands."""

    command_class = Command
    group_class = type  # of the groups in it: this one

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)  # here: each version of click does it in another way, and 8.5 garbles it
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            raise click.UsageError(f"there is no such command{near(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)

    def _main_shell_completion(self, *args: Any, **options: Any) -> None:
        try:
            super()._main_shell_completion(*args, **options)
        except (KeyError, ValueError) as error:  # click takes for granted what it asks of the shell
            raise click.UsageError("shell completion: COMP_WORDS or COMP_CWORD is not set as a shell sets it") from error


def words_of(error: click.ClickException) -> str:
    """What is wrong, without what was typed: it may be a secret in the wrong place."""
    if isinstance(error, click.NoSuchOption):
        return f"there is no such option{_suggestion(error.possibilities or ())}"
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
        return f"{error.param_hint or (error.param and error.param.get_error_hint(error.ctx)) or 'an argument'}: not what is needed there"
    return error.format_message()


def near(typed: str, names: Iterable[str]) -> str:
    """Those of *names* that may be meant, as the end of a sentence that does not repeat what was typed."""
    from difflib import get_close_matches  # here: nothing else needs it

    return _suggestion(get_close_matches(typed, names))


def _suggestion(names: Iterable[str]) -> str:
    found = ", ".join(sorted(names))
    return f"; is it one of {found}?" if "," in found else f"; is it {found}?" if found else ""


@click.group(cls=Group, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--db", metavar="PATH", help="The database. Default: OUTREACH_VAULT_DB, else the desktop app's own samsara.db.")
@click.option("--key-dir", metavar="DIR", help="Keep keys in this folder. Default: OUTREACH_VAULT_KEY_DIR, else the OS keyring.")
@click.version_option(package_name="outreach_vault", prog_name="vault")
@click.pass_context
def cli(context: click.Context, db: str | None, key_dir: str | None) -> None:
    context.obj = Where(db, key_dir)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
copied_option = click.option(
    "--although-copied", is_flag=True, help="Go on where this file is a copy of a database that would lose its key with it."
)
project_option = click.option("--project", metavar="ID", help="The project. Without it: the global scope.")
