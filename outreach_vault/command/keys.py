"""
The commands about keys: `rotate`, and `keys list`, `export`, `import`, `destroy`, `acknowledge` and
`hosts`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import click

from ..errors import KeyNotAcknowledged, StorageError, WrongArgument
from ..keys.passphrase import AT_LEAST, new_passphrase, require_long
from ..schema.shapes import now
from ..secret import Secret
from .group import INCOMPLETE, Where, cli, copied_option, json_option, long_option
from .notes import next_export
from .output import all_written
from .terminal import (
    confirm,
    counted,
    day,
    fail,
    minute,
    note,
    print_json,
    print_table,
    print_text,
    read_passphrase,
    warn,
    warn_of_unseen,
    with_progress,
)

if TYPE_CHECKING:
    from ..vault import Vault

# What `rotate` shows of its report; `--json` adds the second.
_COUNTS: Final = (
    *("old_key", "new_key", "rotated", "previous", "already_current", "changed_meanwhile"),
    *("foreign", "unreadable", "destroyed_key"),
)
_host_option = click.option(
    "--host",
    metavar="NAME",
    help="This host's name among those that acknowledge keys. Default: the machine's.",
)
_FACTS: Final = ("complete", "resumed", "log_truncated", "scrubbed", "scrub_problem")


@cli.command()
@click.option("--dry-run", is_flag=True, help="Open every value, but only say what would be done.")
@click.option(
    "--after-restore",
    is_flag=True,
    help="Proceed even if the key store says that the active key was replaced.",
)
@click.option(
    "--destroy-old",
    is_flag=True,
    help="Destroy the old key at the end. Older backups open nothing without it.",
)
@click.option(
    "--scrub/--no-scrub",
    default=None,
    help="Rewrite the database at the end, or never. Default: a file, if it is up to 100 MB.",
)
@click.option("--yes", is_flag=True, help="Do not ask before --destroy-old.")
@click.option(
    "--stage",
    is_flag=True,
    help="Only make the new key, for hosts that each have their own copy of the keys.",
)
@click.option("--unstage", is_flag=True, help="Take the staged key back.")
@click.option(
    "--without",
    metavar="HOST",
    multiple=True,
    help="Proceed although this host has not acknowledged the new key. May be repeated.",
)
@click.option("--without-all", is_flag=True, help="Proceed whichever hosts lack the new key.")
@_host_option
@copied_option
@json_option
@click.pass_obj
def rotate(
    where: Where,
    dry_run: bool,
    after_restore: bool,
    destroy_old: bool,
    scrub: bool | None,
    yes: bool,
    stage: bool,
    unstage: bool,
    without: tuple[str, ...],
    without_all: bool,
    host: str | None,
    although_copied: bool,
    as_json: bool,
) -> int:
    """
    Put every value under a new key while adapters keep working. Finishes an interrupted run.

    Where each host has its own copy of the keys: first --stage, then bring the key to every host
    and 'vault keys acknowledge' there, then this without --stage.

    At the end it rewrites a file, because other programs' writes leave copies of old tokens in its
    free space; on a server, with --scrub, the tables. Others wait until that is done.
    """
    from ..operations import rotation

    if dry_run + stage + unstage > 1:
        raise click.UsageError("give only one of --dry-run, --stage and --unstage")
    if stage or unstage:
        return _stage(where, host, although_copied, as_json) if stage else _unstage(where, as_json)
    with where.open() as vault:
        if dry_run:
            report = rotation.rehearse(vault)
            if not report.resumed:
                _foretell(vault, host, without, without_all)
        else:
            if destroy_old:
                note("backups made before this rotation ends will open nothing without the old key")
                note("files of exported keys still hold the old key, until you delete them")
                confirm("rotate, and destroy the old key?", yes)
            report = with_progress(
                lambda progress: rotation.rotate(
                    vault,
                    progress=progress,
                    after_restore=after_restore,
                    although_copied=although_copied,
                    destroy_old=destroy_old,
                    scrub=scrub,
                    host=host,
                    without=without,
                    without_all=without_all,
                )
            )
        export = next_export(vault)
    counts = {name: getattr(report, name) for name in _COUNTS}
    if as_json:
        facts = {name: getattr(report, name) for name in _FACTS}
        unreadable = [row._asdict() for row in report.unreadable_rows]
        print_json(counts | facts | {"unreadable_rows": unreadable})
    else:
        scrubbed = "-" if dry_run else "yes" if report.scrubbed else "no"
        shown = counts | {"scrubbed": scrubbed}
        texts = {name: "-" if value is None else str(value) for name, value in shown.items()}
        print_table(None, ((name.replace("_", " "), text) for name, text in texts.items()))
        if not any(value for value in counts.values() if isinstance(value, int)):
            print_text("there are no values in this vault")
    if report.resumed:
        note(
            "this finishes a rotation that was interrupted"
            if dry_run
            else "finished a rotation that was interrupted; run it again for a new key"
        )
    for row in report.unreadable_rows:
        warn(f"not readable, left under its old key: {row.reason}")
    if report.undone:
        warn(
            f"{counted(report.undone, 'value')} put under the new key did not stay there:"
            " 'vault doctor' names the triggers that may undo it"
        )
    if report.removed:
        gone = counted(report.removed, "previous value")
        does = "would remove" if dry_run else "removed"
        note(f"{does} {gone} that nothing can open any more")
    if report.scrub_problem:
        warn(
            "the database was not rewritten, so old tokens may be left in its free space:"
            f" {report.scrub_problem};"
            " 'vault rotate --scrub' does that and finishes this rotation"
        )
    elif not report.scrubbed and report.log_truncated and not dry_run:
        note("the file was not rewritten (--no-scrub): old tokens may be left in its free space")
    if report.log_truncated is None and not dry_run:
        rest = "" if report.scrubbed else "; the table does too, until 'vault rotate --scrub'"
        note(f"the server's log, its archives and replicas still have old tokens{rest}")
    if report.log_truncated is False:
        warn(
            "another program's open transaction keeps old tokens in the log (-wal);"
            " run this again when it has ended"
        )
    if destroy_old and not report.complete and not dry_run:
        warn("the old key was not destroyed, because this rotation is not complete")
    if export and not dry_run:
        note(export)
    return 0 if report.complete else INCOMPLETE


def _foretell(vault: Vault, host: str | None, without: tuple[str, ...], without_all: bool) -> None:
    """Say if the rotation would be refused for hosts that lack the new key."""
    from ..operations import staging

    staged = vault.keys.states.staged()
    try:
        staging.require_acknowledged(vault, staged, host, without, without_all)
    except KeyNotAcknowledged as error:
        warn(f"the rotation would be refused: {error}; {error.hint}")


def _stage(where: Where, host: str | None, although_copied: bool, as_json: bool) -> int:
    from ..operations import staging

    with where.open() as vault:
        key, before = staging.stage(vault, host=host, although_copied=although_copied)
        lack = [each.host for each in staging.lacking(vault, key.id)]
        store = vault.keys.store.name
    if as_json:
        named = {"staged_by": key.staged_by, "staged_at": key.staged_at}
        print_json({"staged_key": key.id, "staged_before": before, **named, "lacking": lack})
    elif before:
        print_text(f"key {key.id} is staged already: by {key.staged_by} at {key.staged_at}")
    else:
        print_text(f"staged key {key.id} in the {store}")
    if lack:
        note(f"not acknowledged by: {', '.join(lack)}")
    note(
        "next: bring it to every host ('vault keys export FILE' here, 'vault keys import FILE'"
        " there, or your own way to hand out keys), 'vault keys acknowledge' on each, then"
        " 'vault rotate'"
    )
    return 0


def _unstage(where: Where, as_json: bool) -> int:
    from ..operations.staging import unstage

    with where.open() as vault:
        key_id = unstage(vault)
    if as_json:
        print_json({"unstaged_key": key_id})
    else:
        print_text(f"key {key_id} is not staged any more; nothing was ever stored under it")
    note(f"next: 'vault keys destroy {key_id}' on each host that has it removes it there")
    return 0


@cli.group()
def keys() -> None:
    """Manage the vault's keys. No command shows the key itself."""


@keys.command("list")
@long_option
@json_option
@click.pass_obj
def keys_list(where: Where, whole: bool, as_json: bool) -> None:
    """List the keys: id, state, number of values, when made and exported; --long: all times."""
    with where.open() as vault:
        used = vault.rows.count_by_key()
        found = [(record, used[record.id]) for record in vault.keys.states.records()]
    if as_json:
        print_json(keys_json(found))
    else:
        keys_table(found, whole)


_passphrase_option = click.option(
    "--passphrase-file", metavar="F", help="Take the passphrase from the first line of a file."
)


@keys.command("export")
@click.argument("file", type=click.Path())
@_passphrase_option
@click.option(
    "--generate",
    is_flag=True,
    help="Make a passphrase of six words, and print it: once, alone on standard output.",
)
@click.option(
    "--weak", is_flag=True, help=f"Take a passphrase of fewer than {AT_LEAST} characters."
)
@click.pass_obj
def keys_export(
    where: Where, file: str, passphrase_file: str | None, generate: bool, weak: bool
) -> int:
    """
    Write all keys to a new file, sealed under a passphrase.

    Asks for the passphrase at a hidden prompt, or takes the first line of standard input.
    """
    from ..operations.recovery import export_keys

    if generate and passphrase_file is not None:
        raise click.UsageError("give --generate or --passphrase-file, not both")
    with where.open() as vault:
        passphrase = _generated() if generate else _new_passphrase(passphrase_file, weak)
        made = export_keys(vault, file, passphrase)
    # What a generated passphrase is piped to gets nothing else.
    (note if generate else print_text)(f"{made.path}: {counted(len(made.keys), 'key')}")
    for problem in made.left_out:
        warn(f"left out: {problem}")
    return INCOMPLETE if made.left_out else 0


@keys.command("import")
@click.argument("file", type=click.Path())
@_passphrase_option
@click.pass_obj
def keys_import(where: Where, file: str, passphrase_file: str | None) -> None:
    """Put exported keys back into the key store. Keys that are there already stay as they are."""
    from ..operations.recovery import import_keys

    with where.open() as vault:
        done = import_keys(vault, file, _passphrase(passphrase_file))
        print_text(
            f"{counted(len(done.added), 'key')} put into the {vault.keys.store.name},"
            f" {len(done.there)} were there already"
        )
    for key_id in done.destroyed:
        note(f"key {key_id} was destroyed in this vault and stays destroyed")


@keys.command("destroy")
@click.argument("key_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@copied_option
@click.pass_obj
def keys_destroy(where: Where, key_id: str, yes: bool, although_copied: bool) -> None:
    """
    Destroy a retired key that no value needs. Backups of its time open nothing without it.

    ID may be cut to its first characters, at least four, that no other key has.
    """
    from ..operations.rotation import destroy, require_unused

    with where.open() as vault:
        key_id = vault.keys.states.find(key_id)
        record = require_unused(vault, key_id)
        if record.activated_at is None:
            note(f"key {key_id} was never in use: no backup needs it")
        else:
            until = record.emptied_at or now()
            note(
                f"backups of this database made from {record.activated_at} to {until}"
                f" open nothing without key {key_id}"
            )
            made = record.exported_at and f"the last noted here was made at {record.exported_at}"
            note(
                "files of exported keys still hold it, until you delete them"
                f" ({made or 'none is noted here'})"
            )
        confirm(f"destroy key {key_id}?", yes)
        destroy(vault, key_id, although_copied=although_copied)
    note(f"destroyed key {key_id}")


@keys.command("acknowledge")
@_host_option
@json_option
@click.pass_obj
def keys_acknowledge(where: Where, host: str | None, as_json: bool) -> None:
    """
    Prove that this host has the staged key, and note that. Without one, the active key.

    For hosts that each have their own copy of the keys; see 'vault rotate --stage'.
    """
    from ..operations.staging import acknowledge

    with where.open() as vault:
        done = acknowledge(vault, host=host)
    if as_json:
        print_json(done._asdict())
    else:
        print_text(f"host {done.host} has the {done.state} key {done.key_id}")


@keys.command("hosts")
@click.option("--remove", metavar="HOST", help="Forget a host that is gone.")
@click.option("--yes", is_flag=True, help="Do not ask before --remove.")
@json_option
@click.pass_obj
def keys_hosts(where: Where, remove: str | None, yes: bool, as_json: bool) -> None:
    """List the hosts that have acknowledged a key: which key, and when."""
    from ..operations import staging

    with where.open() as vault:
        if remove is not None:
            staging.require_known(vault, [remove])
            confirm("forget this host? A rotation no longer waits for it", yes)
            staging.remove(vault, remove)
            note(f"forgot host {remove}")
            return
        known = vault.keys.hosts.known()
        states = {record.id: record.state for record in vault.keys.states.records()}
    if as_json:
        print_json([host._asdict() for host in known])
    else:
        print_table(
            ("HOST", "KEY", "STATE", "ACKNOWLEDGED"),
            (
                (host, key_id, states.get(key_id, "-"), minute(moment))
                for host, key_id, moment in known
            ),
        )


def _generated() -> Secret:
    """Printed before the file is made: one under a passphrase that nobody saw would be no use."""
    passphrase = new_passphrase()
    note("the passphrase is shown this once; keep it apart from the file:")
    click.echo(passphrase.reveal())
    if not all_written():
        raise StorageError(
            "the passphrase could not be written, so no file was made",
            hint="give standard output a terminal, a file or a program that takes it",
        )
    return passphrase


def _new_passphrase(from_file: str | None, weak: bool) -> Secret:
    """A long one unless *weak*; a terminal is asked again."""
    while True:
        passphrase = _passphrase(from_file, twice=True)
        try:
            if not weak:
                require_long(passphrase)
            return passphrase
        except WrongArgument as error:
            if from_file is not None or not sys.stdin.isatty():
                raise
            fail(str(error), "enter a longer one, or press Ctrl-C and give --generate or --weak", 2)


def _passphrase(from_file: str | None, *, twice: bool = False) -> Secret:
    passphrase = read_passphrase(from_file, twice=twice)
    warn_of_unseen("the passphrase", passphrase)
    return passphrase


def keys_json(found: Iterable[tuple[Any, int]]) -> list[dict[str, Any]]:
    return [record._asdict() | {"values": count} for record, count in found]


def keys_table(found: Iterable[tuple[Any, int]], whole: bool) -> None:
    times = ("created", "activated", "retired", "destroyed", "exported")
    shown = times if whole else ("created", "exported")
    moments = attrgetter(*(f"{name}_at" for name in shown))
    print_table(
        ("KEY", "STATE", "VALUES", *map(str.upper, shown)),
        (
            (r.id, r.state, str(count), *(m or "-" if whole else day(m) for m in moments(r)))
            for r, count in found
        ),
        whole=whole,
    )
