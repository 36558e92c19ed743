"""
The `vault` command: parse, one call, print, exit status. It holds no rule that a library user would miss.

Data goes to standard output, everything else to standard error. Secrets come by hidden prompt, standard
input, a file or the environment, never as an argument, which every user of the machine can read.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import click

from .. import errors
from ..database import locate, open_database
from ..files import os_error
from ..keys.keystore import KeyStore, choose
from ..providers import Field, Provider, catalogue, check_value, find, named
from ..schema.shapes import age_days, as_text, now, unseen
from ..secret import Secret
from ..vault import Entry, Scope, Vault
from ..vault import init as make_ready
from .prompt import ask
from .terminal import (
    LINES,
    Group,
    confirm,
    near,
    note,
    plain,
    print_json,
    print_table,
    read_passphrase,
    read_value,
    say,
    take_over_output,
    warn,
    with_progress,
    words_of,
)

if TYPE_CHECKING:
    from ..schema import migrator

MASK: Final = "********"
INCOMPLETE: Final = 16
UNREACHABLE: Final = 17
UNSAID: Final = 18
NO_PROGRAM: Final = 127  # as env(1) has it
# The published table; frozen. A subclass has its parent's status.
STATUSES: Final[dict[type[BaseException], int]] = {
    click.Abort: 3,
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


def main() -> NoReturn:
    _no_core_dumps()
    warnings.showwarning = lambda message, *_: warn(str(message))
    gc.freeze()  # what is loaded stays, so no collection has to look through it: a tenth of `vault list` (measured)
    outputs = take_over_output()
    status = run(sys.argv[1:])
    problems = [output.problem for output in outputs if output.problem]
    if problems and status == 0:
        status = UNSAID
        if any(problem.errno != errno.EPIPE for problem in problems):  # as `vault list | head -1`, whose reader has what it wants
            _fail(f"it is done, and its words could not be written: {problems[0].strerror}", None, status)
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run the command; its exit status. Never a traceback: its lines could hold a value."""
    try:
        return cli.main(list(arguments), prog_name="vault", standalone_mode=False) or 0
    except click.ClickException as error:
        return _fail(words_of(error), f"'{_command(error)} --help' shows how it is called", error.exit_code)
    except click.Abort:
        return _fail("aborted", None, STATUSES[click.Abort])
    except errors.VaultError as error:
        status = next(STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES)
        return _fail(str(error), error.hint, status)
    except (TypeError, ValueError) as error:
        if _raised_here(error):
            return _fail(str(error), None, 2)
        return _bug(error)
    except OSError as error:
        if not isinstance(error.errno, int):  # not the system's own, so nobody knows what its texts hold
            return _bug(error)
        fault = os_error(Path(os.fsdecode(error.filename or "the system")), OSError(error.errno, os.strerror(error.errno)))
        return _fail(str(fault), fault.hint, STATUSES[errors.StorageError])
    except MemoryError:
        return _fail("there is too little memory", "end some program, or raise the limit of this one", STATUSES[errors.StorageError])
    except ImportError:  # of what is loaded when it is needed
        raise  # what began the command has the words
    except SystemExit as end:  # shell completion ends so
        return 2 if end.code else 0
    except Exception as error:  # noqa: BLE001  # the last line of defence, and it says so
        return _bug(error)


@click.group(cls=Group, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--db", metavar="PATH", help="The database. Default: OUTREACH_VAULT_DB, else the desktop app's own samsara.db.")
@click.option("--key-dir", metavar="DIR", help="Keep keys in this folder. Default: OUTREACH_VAULT_KEY_DIR, else the OS keyring.")
@click.version_option(package_name="outreach_vault", prog_name="vault")
@click.pass_context
def cli(context: click.Context, db: str | None, key_dir: str | None) -> None:
    context.obj = Where(db, key_dir)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_copied_option = click.option(
    "--although-copied", is_flag=True, help="Go on where this file is a copy of a database that would lose its key with it."
)
_project_option = click.option("--project", metavar="ID", help="The project. Without it: the global scope.")


@cli.command()
@click.option("--abandon", metavar="KEY", help="Give up a key that is lost for good, and all that was sealed under it.")
@click.option("--yes", is_flag=True, help="Do not ask before --abandon.")
@click.pass_obj
def init(where: Where, abandon: str | None, yes: bool) -> None:
    """Make the database ready, with its first key. It is created, or backed up and migrated."""
    store = where.key_store()
    if abandon is not None:
        _abandon(where, abandon, yes)
        return
    applied: list[migrator.Step] = []

    def on_schema(done: migrator.Migration) -> None:
        applied.extend(done.steps)
        _say_steps(done.steps, done.backup)

    key_id = make_ready(where.db, key_store=store, on_schema=on_schema)
    if key_id:
        say(f"made key {key_id} in the {store.name}")
    say(f"{locate(where.db)}: {'ready' if applied or key_id else 'was ready already'}")


def _abandon(where: Where, key_id: str, yes: bool) -> None:
    from ..operations.recovery import abandon

    with where.open() as vault:
        record = vault.keys.require_lost(key_id)
        count = vault.rows.count_by_key()[key_id]
        note(f"{count} value(s) of this database, and its backups, open with key {key_id} alone: they are lost without it")
        note("an exported file of keys, or a backup of the key directory, would bring the key back ('vault keys import')")
        confirm(f"give up key {key_id} ({record.state}) for good?", yes)
        new = abandon(vault, key_id)
        say(f"gave up key {key_id}; the active key is {new} in the {vault.keys.store.name}")
    if count:
        note("'vault list' shows which values are to be stored anew: their state is 'key missing'")


@cli.command()
@click.option("--plan", "only_plan", is_flag=True, help="Only say what would be done.")
@click.option("--keep-first", is_flag=True, help="Of rows for one place keep the first, which the app reads.")
@click.pass_obj
def migrate(where: Where, only_plan: bool, keep_first: bool) -> None:
    """Bring an existing file to this schema. A verified backup comes first."""
    from ..schema import migrator

    path = locate(where.db)
    if only_plan:
        database = open_database(path)
        for step in (pending := migrator.plan(database, keep_first=keep_first)):
            say(f"would apply {step.name}: {step.title}")
        database.close_all()
        say(f"{path}: {'a backup would be made first' if pending else 'nothing to do'}")
        return
    done = migrator.migrate(path, keep_first=keep_first)
    _say_steps(done.steps, done.backup)
    say(f"{path}: {'migrated' if done.steps else 'nothing to do'}")


@cli.command("set")
@click.argument("provider")
@click.argument("field", required=False)
@_project_option
@click.option("--label", metavar="TEXT", help="A name for people; kept as it is unless given.")
@click.option("--from-file", metavar="F", help="Read the value from a file.")
@click.option("--from-env", metavar="NAME", help="Take the value from an environment variable.")
@click.option("--no-check", is_flag=True, help="Store it though the provider has no such field, or it does not look like a value of it.")
@click.pass_obj
def set_(
    where: Where,
    provider: str,
    field: str | None,
    project: str | None,
    label: str | None,
    from_file: str | None,
    from_env: str | None,
    no_check: bool,
) -> None:
    """
    Store a value. It is asked for at a hidden prompt, or read from standard input.

    From standard input and from a file one line end at the end is left away. Without FIELD each field of
    the provider is asked for at the terminal.
    """
    if from_file is not None and from_env is not None:
        raise click.UsageError("--from-file and --from-env exclude each other")
    _require_names(provider, field, no_check)
    with where.open() as vault:
        if field is None:
            if any(option is not None for option in (from_file, from_env, label)):
                raise click.UsageError("--label, --from-file and --from-env are for one FIELD")
            _ask_for_each(vault, provider, project, no_check)
            return
        value = read_value(f"{provider}/{field}", from_file, from_env, _whole(named(provider).field(field)))
        if not no_check:
            check_value(provider, field, value)
        vault.set(provider, field, value, project, label=label)
    note(f"stored {_at(provider, field, project)}")
    _warn_of_unseen(f"{provider}/{field}", value)


@cli.command()
@click.argument("provider")
@click.argument("field")
@_project_option
@click.option("--no-fallback", is_flag=True, help="Only the exact scope.")
@_json_option
@click.pass_obj
def get(where: Where, provider: str, field: str, project: str | None, no_fallback: bool, as_json: bool) -> None:
    """Print a value, and nothing else."""
    with where.open() as vault, _unrepeated(provider, field=field):
        found = vault.get(provider, field, project, fallback=not no_fallback)
    if not as_json:
        click.echo(found.reveal().encode())
        return
    names = ("provider", "credential_type", "project_id", "scope", "id", "label", "updated_at")
    print_json({name: as_text(getattr(found, name)) for name in names} | {"value": found.reveal()})


@cli.command()
@click.argument("provider")
@click.argument("field", required=False)
@_project_option
@_json_option
@click.pass_obj
def which(where: Where, provider: str, field: str | None, project: str | None, as_json: bool) -> None:
    """Show where each field would come from."""
    with where.open() as vault, _unrepeated(provider, field=field):
        entries = vault.which(provider, field, project)
        _warn_of_keys(vault, entries)
    if as_json:
        print_json([entry._asdict() | {"scope": entry.scope, "value": MASK, "age_days": age_days(entry.updated_at)} for entry in entries])
        return
    print_table(
        ("FIELD", "SCOPE", "VALUE", "STATE", "AGE", "ID", "LABEL"),
        (
            (entry.credential_type, _scope(entry), MASK, entry.state, _age(entry), entry.id, entry.label or "")
            for entry in entries
        ),
    )  # fmt: skip


@cli.command("list")
@click.option("--project", metavar="ID", help="Only this project's own rows.")
@click.option("--global", "only_global", is_flag=True, help="Only the global rows.")
@_json_option
@click.pass_obj
def list_(where: Where, project: str | None, only_global: bool, as_json: bool) -> None:
    """List all rows without their values."""
    if project is not None and only_global:
        raise click.UsageError("--project and --global exclude each other")
    with where.open() as vault:
        entries = vault.list(None if only_global else Scope.EVERY if project is None else project)
        _warn_of_keys(vault, entries)
    if as_json:
        print_json([entry._asdict() for entry in entries])
        return
    print_table(
        ("PROVIDER", "FIELD", "SCOPE", "STATE", "UPDATED", "ID", "LABEL"),
        (
            (entry.provider, entry.credential_type, _scope(entry), entry.state, entry.updated_at, entry.id, entry.label or "")
            for entry in entries
        ),
    )


@cli.command()
@click.argument("provider")
@click.argument("field")
@_project_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(where: Where, provider: str, field: str, project: str | None, yes: bool) -> None:
    """Remove the value of exactly one scope."""
    with where.open() as vault, _unrepeated(provider, field=field):
        if vault.has(provider, field, project, fallback=False):
            confirm(f"delete {_at(provider, field, project)}?", yes)
        if not vault.delete(provider, field, project):
            raise errors.CredentialNotFound(
                f"{_at(provider, field, project)}: no such credential", hint="'vault list' shows what is stored"
            )
    note(f"deleted {_at(provider, field, project)}")


@cli.command()
@click.argument("name", required=False)
@_json_option
def providers(name: str | None, as_json: bool) -> None:
    """Show the providers that are known, or the fields of one."""
    if name is None:
        known = catalogue()
        if as_json:
            print_json([_provider_json(provider) for provider in known])
        else:
            print_table(("PROVIDER", "CHANNEL", "TITLE"), ((provider.name, provider.channel, provider.title) for provider in known))
        return
    provider = _known(name)
    if as_json:
        print_json(_provider_json(provider))
        return
    say(f"{provider.title} ({provider.channel}), after {provider.source}")
    print_table(
        ("FIELD", "SECRET", "REQUIRED", "ACCOUNT", "WHAT IT IS"),
        (
            (
                field.name,
                *("yes" if flag else "-" for flag in (field.secret, field.required, field.account)),
                field.help + (f" ({field.rule.words})" if field.rule else ""),
            )
            for field in provider.fields
        ),
    )


@cli.command()
@click.argument("provider")
@_project_option
@_json_option
@click.pass_obj
def check(where: Where, provider: str, project: str | None, as_json: bool) -> int:
    """Try the stored credentials at the provider. Exits 16 where it refuses them, 17 where it cannot be asked."""
    from ..operations.checks import check as try_out

    with where.open() as vault, _unrepeated(provider):
        bundle = vault.bundle(provider, project)
        verdict = try_out(bundle)
    scopes = {name: credential.scope for name, credential in bundle.items()}
    if as_json:
        print_json({"provider": provider, "project_id": project, "outcome": verdict.outcome, "reason": verdict.reason, "scopes": scopes})
    else:
        of = ", ".join(f"{name} {scope}" for name, scope in scopes.items())
        say(plain(f"{provider}: {verdict.outcome}{f': {verdict.reason}' if verdict.reason else ''} ({of})"))
    return {"valid": 0, "refused": INCOMPLETE, "unreachable": UNREACHABLE}[verdict.outcome]


@cli.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_project_option
@click.option(
    "--provider", "chosen", metavar="NAME", multiple=True, help="Only this provider's fields; all that are required must be there."
)
@click.option("--only", metavar="VARIABLE", multiple=True, help="Only this variable, as SMTP_HOST.")
@click.option("--pristine", is_flag=True, help="Nothing else in the command's environment, not even PATH.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def run_(
    where: Where, project: str | None, chosen: tuple[str, ...], only: tuple[str, ...], pristine: bool, command: tuple[str, ...]
) -> int:
    """
    Run a command with credentials in its environment.

    They are TWILIO_ACCOUNT_SID, SMTP_HOST, and so on. Each value is the project's own, else the global one.
    No variable that a chosen provider's field could have is inherited. A value that cannot be read, an
    account whose fields come from two scopes, a field whose variable changes how programs run (LD_PRELOAD,
    GIT_SSH_COMMAND, SSL_CERT_FILE, ...), or an unknown project stops this before the command starts.
    """
    from ..operations.launch import environment, launch

    # All before any value is opened, and without what was typed, which may be one.
    if command[0].startswith("-"):
        options = (name for option in run_.params for name in option.opts)
        raise click.UsageError(f"there is no such option{near(command[0], options)}; what is to be run comes after '--'")
    if re.match(r"[A-Za-z_]\w*=", command[0]):
        raise click.UsageError("NAME=VALUE is no command; 'vault run -- env NAME=VALUE ...' sets a variable, which every user can read")
    if any(re.fullmatch(r"\w+", name) is None for name in only):
        raise click.UsageError("--only: the name of a variable is needed, as SMTP_HOST")
    with where.open() as vault, _unrepeated(*chosen):
        variables = environment(vault, project, chosen, only=only)
    try:
        return launch(command, variables, pristine=pristine)
    except errors.CannotStart as error:
        return _fail(str(error), error.hint, STATUSES[errors.CannotStart] if error.found else NO_PROGRAM)


@cli.command()
@click.option("--dry-run", is_flag=True, help="Open every value, and only say what would be done.")
@click.option("--after-restore", is_flag=True, help="Go on where the key store says that the active key was replaced.")
@click.option("--destroy-old", is_flag=True, help="At the end destroy the old key: older backups open nothing any more.")
@click.option(
    "--scrub/--no-scrub", default=None, help="At the end write the file anew, whatever its size, or not at all. By default up to 100 MB."
)
@click.option("--yes", is_flag=True, help="Do not ask before --destroy-old.")
@_copied_option
@_json_option
@click.pass_obj
def rotate(
    where: Where, dry_run: bool, after_restore: bool, destroy_old: bool, scrub: bool | None, yes: bool, although_copied: bool, as_json: bool
) -> int:
    """
    Put every value under a new key, while adapters go on. Finishes a run that was interrupted.

    At the end the file is written anew, since other programs' writes leave copies of old tokens in its free space.
    Other writers wait for that.
    """
    from ..operations import rotation

    with where.open() as vault:
        if dry_run:
            report = rotation.rehearse(vault)
        else:
            if destroy_old:
                note("backups made before the end of this rotation will open nothing without the old key")
                confirm("rotate, and destroy the old key?", yes)
            report = with_progress(
                lambda progress: rotation.rotate(
                    vault,
                    progress=progress,
                    after_restore=after_restore,
                    although_copied=although_copied,
                    destroy_old=destroy_old,
                    scrub=scrub,
                )
            )
    counts = {
        name: getattr(report, name)
        for name in ("old_key", "new_key", "rotated", "already_current", "changed_meanwhile", "foreign", "unreadable", "destroyed_key")
    }
    if as_json:
        facts = {name: getattr(report, name) for name in ("complete", "resumed", "log_truncated", "scrubbed", "scrub_problem")}
        print_json(counts | facts | {"unreadable_rows": [row._asdict() for row in report.named]})
    else:
        scrubbed = "-" if dry_run else "yes" if report.scrubbed else "no"
        shown = counts | {"scrubbed": scrubbed}
        print_table(None, ((name.replace("_", " "), str(value if value is not None else "-")) for name, value in shown.items()))
        if not any(value for value in counts.values() if isinstance(value, int)):
            say("there are no values in this vault")
    if report.resumed:
        note(
            "this finishes a rotation that was interrupted"
            if dry_run
            else "finished a rotation that was interrupted; run it again for a new key"
        )
    for row in report.named:
        warn(f"not readable, left under its old key: {row.reason}")
    if report.undone:
        warn(f"{report.undone} value(s) were put under the new key, and are not under it: 'vault doctor' names triggers that may do that")
    if report.scrub_problem:
        warn(
            f"the file was not written anew, and old tokens may be left in its free space: {report.scrub_problem};"
            " 'vault rotate --scrub' does it and finishes this rotation"
        )
    elif not report.scrubbed and report.log_truncated and not dry_run:
        note("the file was not written anew (--no-scrub): old tokens may be left in its free space")
    if not report.log_truncated:
        warn("another program's open transaction keeps old tokens in the log (-wal); run this again when it has ended")
    if destroy_old and not report.complete and not dry_run:
        warn("the old key was not destroyed, since this rotation is not complete")
    return 0 if report.complete else INCOMPLETE


@cli.command()
@_json_option
@click.pass_obj
def status(where: Where, as_json: bool) -> None:
    """Show the key store, the keys and the values. And the database with its schema."""
    from ..operations.status import status as look

    with where.open() as vault:
        found = look(vault)
    if as_json:
        facts = {name: getattr(found, name) for name in found.__slots__} | {"keys": _keys_json(found.keys)}
        print_json(facts | {"values": {name.replace(" ", "_"): count for name, count in found.values.items()}})
        return
    days = "" if found.active_key_age_days is None else f", active for {found.active_key_age_days} days"
    print_table(
        None,
        (
            ("database", found.database),
            ("schema", f"{found.schema}, vault's own {found.vault_schema}"),
            ("vault", found.vault_id),
            ("key store", found.key_store + (f": {found.key_store_error}" if found.key_store_error else "")),
            ("active key", f"{found.active_key or 'none'}{days}"),
            ("values", ", ".join(f"{count} {name}" for name, count in found.values.items())),
        ),
    )
    if found.unfinished_rotation:
        warn("a rotation was interrupted; 'vault rotate' finishes it")
    say("")
    _keys_table(found.keys)


@cli.command()
@click.option("--deep", is_flag=True, help="Open every value, and check the whole file.")
@_json_option
@click.pass_obj
def doctor(where: Where, deep: bool, as_json: bool) -> int:
    """Prove that every value opens and every key is accounted for. Changes nothing; exits 16 where there is a problem."""
    from ..operations.doctor import examine

    found = examine(where.db, key_store=where.key_store(), deep=deep)
    if as_json:
        facts = {name: getattr(found, name) for name in found.__slots__} | {"database": str(found.database)}
        print_json(facts | {"keys": _keys_json(found.keys), "findings": [finding._asdict() for finding in found.findings]})
    else:
        counts = ", ".join(f"{count} {state}" for state, count in found.values.items())
        opened = "each was opened" if deep else "not opened; --deep opens each"
        in_use = sum(record.state != "destroyed" for record, _ in found.keys)
        print_table(
            None,
            (
                ("database", str(found.database)),
                ("vault", found.vault_id),
                ("key store", found.key_store),
                ("keys", f"{in_use}, and {len(found.keys) - in_use} destroyed"),
                ("values", f"{counts} ({opened})"),
            ),
        )
        for finding in found.findings:
            say(plain(f"{finding.level}: {finding.message}"))
            if finding.hint:
                say(plain(f"  next: {finding.hint}"))
        for kind, count in found.more.items():
            say(f"and {count} more of: {kind}")
        say(f"{found.problems or 'no'} problem{'' if found.problems == 1 else 's'}")
    return INCOMPLETE if found.problems else 0


@cli.command()
@click.argument("file", type=click.Path())
@_json_option
@click.pass_obj
def backup(where: Where, file: str, as_json: bool) -> None:
    """Make a consistent copy of the live database. Says which keys the copy needs."""
    from ..operations.recovery import backup as make_backup

    with where.open() as vault:
        made = make_backup(vault, file)
    if as_json:
        print_json({"path": str(made.path), "keys": _keys_json(made.keys)})
    else:
        say(f"backup: {made.path}")
        for record, count in made.keys:
            say(f"needs key {record.id} ({record.state}) for {count} values")
    if never := [record.id for record, _ in made.keys if record.exported_at is None]:
        warn(f"no file of exported keys holds {', '.join(never)}; 'vault keys export FILE' makes one")


@cli.group()
def keys() -> None:
    """The vault's keys; never their material."""


@keys.command("list")
@_json_option
@click.pass_obj
def keys_list(where: Where, as_json: bool) -> None:
    """List ids, states, counts and times."""
    with where.open() as vault:
        used = vault.rows.count_by_key()
        found = [(record, used[record.id]) for record in vault.keys.states.records()]
    if as_json:
        print_json(_keys_json(found))
    else:
        _keys_table(found)


_passphrase_option = click.option("--passphrase-file", metavar="F", help="Take the first line of a file as passphrase.")


@keys.command("export")
@click.argument("file", type=click.Path())
@_passphrase_option
@click.pass_obj
def keys_export(where: Where, file: str, passphrase_file: str | None) -> int:
    """
    Write all keys to a new file, sealed under a passphrase.

    The passphrase is asked for at a hidden prompt, or is the first line of standard input.
    """
    from ..operations.recovery import export_keys

    with where.open() as vault:
        made = export_keys(vault, file, _passphrase(passphrase_file, twice=True))
    say(f"{made.path}: {len(made.keys)} keys")
    for problem in made.left_out:
        warn(f"left out: {problem}")
    return INCOMPLETE if made.left_out else 0


@keys.command("import")
@click.argument("file", type=click.Path())
@_passphrase_option
@click.pass_obj
def keys_import(where: Where, file: str, passphrase_file: str | None) -> None:
    """Put the keys of an exported file back into the key store. What is there stays as it is."""
    from ..operations.recovery import import_keys

    with where.open() as vault:
        done = import_keys(vault, file, _passphrase(passphrase_file))
        say(f"{len(done.added)} keys put into the {vault.keys.store.name}, {len(done.there)} were there already")
    for key_id in done.destroyed:
        note(f"key {key_id} was destroyed in this vault, and stays so")


@keys.command("destroy")
@click.argument("key_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_copied_option
@click.pass_obj
def keys_destroy(where: Where, key_id: str, yes: bool, although_copied: bool) -> None:
    """Destroy a retired key that no value needs. Backups of its time open nothing any more."""
    from ..operations.rotation import destroy, require_unused

    with where.open() as vault:
        record = require_unused(vault, key_id)
        if record.activated_at is None:
            note(f"key {key_id} was never in use: no backup needs it")
        else:
            until = record.emptied_at or now()
            note(f"backups of this database made from {record.activated_at} to {until} open nothing without key {key_id}")
        confirm(f"destroy key {key_id}?", yes)
        destroy(vault, key_id, although_copied=although_copied)
    note(f"destroyed key {key_id}")


def _known(name: str) -> Provider:
    provider = find(name)
    if provider is None:
        raise click.UsageError("not a known provider; 'vault providers' lists those, and 'vault set PROVIDER FIELD' stores all the same")
    return provider


def _require_names(provider: str, field: str | None, no_check: bool) -> None:
    """What may be stored as a name. A value that was typed in its place would be shown by every list, so it is not repeated either."""
    for what, name in (("PROVIDER", provider), ("FIELD", field)):
        if name is not None and not re.fullmatch(r"[\w.-]+", name):
            raise click.UsageError(f"{what}: a name has letters, digits, '_', '.' and '-'; a value is never an argument")
    known = find(provider)
    if known and field is not None and known.field(field) is None and not no_check:
        fields = ", ".join(listed.name for listed in known.fields)
        raise click.UsageError(f"{provider} has no such field; it has {fields}; --no-check stores another all the same")


@contextlib.contextmanager
def _unrepeated(*providers: str, field: str | None = None) -> Iterator[None]:
    """What is not there is named where the catalogue has its name; else it may be a secret in the wrong place."""
    try:
        yield
    except errors.CredentialNotFound:
        if all(known := [find(provider) for provider in providers]) and (field is None or (known[0] and known[0].field(field))):
            raise
        raise errors.CredentialNotFound(
            "no such credential; its name, which the catalogue does not have, is not repeated", hint="'vault list' shows what is stored"
        ) from None


def _whole(field: Field | None) -> Callable[[str], bool] | None:
    """Whether a text of several lines is all there, for a field of such texts."""
    if field is None or not field.lines:
        return None
    return field.rule.allows if field.rule else lambda text: False


def _passphrase(from_file: str | None, *, twice: bool = False) -> Secret:
    passphrase = read_passphrase(from_file, twice=twice)
    _warn_of_unseen("the passphrase", passphrase)
    return passphrase


def _warn_of_unseen(what: str, value: Secret) -> None:
    if found := unseen(value.reveal()):
        warn(f"{what} has {' and '.join(found)}; it is kept as it was given")


def _provider_json(provider: Provider) -> dict[str, Any]:
    fields = [
        {
            "name": field.name,
            "help": field.help,
            "secret": field.secret,
            "required": field.required,
            "account": field.account,
            "rule": field.rule.words if field.rule else None,
        }
        for field in provider.fields
    ]
    return {"name": provider.name, "title": provider.title, "channel": provider.channel, "source": provider.source, "fields": fields}


def _ask_for_each(vault: Vault, provider: str, project: str | None, no_check: bool) -> None:
    """Each field at the terminal, hidden where it is secret; Enter keeps the scope's own value, or leaves an optional field out."""
    known = _known(provider)
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError("without FIELD each field is asked for at a terminal, and there is none; name the FIELD")
    entered: dict[str, Secret] = {}  # stored together at the end: half an account is worse than the old one
    for field in known.fields:
        kept = vault.has(provider, field.name, project, fallback=False)
        note(f"{field.help}{f' ({field.rule.words})' if field.rule else ''}{f'; {LINES}' if field.lines else ''}")
        while True:
            try:
                if (value := _ask(field, kept)) != Secret(""):
                    if not no_check:
                        check_value(provider, field.name, value)
                    entered[field.name] = value
                break
            except ValueError as error:
                if not _raised_here(error):
                    raise
                _fail(str(error), "give it again, or press Ctrl-C to store nothing", 2)
    if not entered:
        note("nothing was changed")
        return
    vault.set_fields(provider, entered, project)
    for name in entered:
        note(f"stored {_at(provider, name, project)}")
        _warn_of_unseen(f"{provider}/{name}", entered[name])


def _ask(field: Field, kept: bool) -> Secret:
    """What is typed for the field; empty text only where that means to keep it or to leave it out."""
    beside = " [Enter keeps it]" if kept else "" if field.required else " [Enter leaves it out]"
    while True:
        value = ask(
            f"{field.name}{beside}: ",
            hidden=field.secret,
            whole=_whole(field),
            instead="'vault set PROVIDER FIELD --from-file F' takes such a text",
        )
        if value != Secret("") or kept or not field.required:
            return value
        note(f"{field.name} is needed")


def _warn_of_keys(vault: Vault, entries: Iterable[Entry]) -> None:
    missing = sorted({entry.key_id for entry in entries if entry.state == "key missing" and entry.key_id})
    for problem in dict.fromkeys(str(vault.keys.last_problem(key_id)) for key_id in missing):
        warn(problem)


def _keys_json(found: Iterable[tuple[Any, int]]) -> list[dict[str, Any]]:
    return [record._asdict() | {"values": count} for record, count in found]


def _keys_table(found: Iterable[tuple[Any, int]]) -> None:
    print_table(
        ("KEY", "STATE", "VALUES", "CREATED", "ACTIVATED", "RETIRED", "DESTROYED", "EXPORTED"),
        (
            (r.id, r.state, str(n), r.created_at, *(time or "-" for time in (r.activated_at, r.retired_at, r.destroyed_at, r.exported_at)))
            for r, n in found
        ),
    )


def _at(provider: str, field: str, project: str | None) -> str:
    return f"{provider}/{field} ({'global' if project is None else f'project {project}'})"


def _scope(entry: Entry) -> str:
    return "global" if entry.project_id is None else f"project {entry.project_id}"


def _age(entry: Entry) -> str:
    days = age_days(entry.updated_at)
    return "?" if days is None else "today" if days < 1 else f"{days} day{'s' if days > 1 else ''}"


def _say_steps(steps: Iterable[migrator.Step], backup: Path | None) -> None:
    if backup:
        say(f"backup: {backup}")
    for step in steps:
        say(f"applied {step.name}: {step.title}")


def _fail(message: str, hint: str | None, status: int) -> int:
    note(f"error: {message}")
    if hint:
        note(f"hint: {hint}")
    return status


def _no_core_dumps() -> None:
    """A dump of this process would hold keys and values; children inherit the limit."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bug(error: Exception) -> int:
    """Where it happened, and nothing of what it was about: an unforeseen text could hold a value."""
    file, line = _raised_at(error)
    return _fail(f"a bug: {type(error).__name__} at {file.name}:{line}", "please report this line; SECURITY.md says where", 1)


def _raised_here(error: Exception) -> bool:
    """Whether our own code raised it, about an argument; a library's ValueError is a bug of ours."""
    return Path(__file__).parents[1] in _raised_at(error)[0].parents


def _raised_at(error: Exception) -> tuple[Path, int | None]:
    import traceback

    frame = traceback.extract_tb(error.__traceback__)[-1]
    return Path(frame.filename), frame.lineno


def _command(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "vault"
