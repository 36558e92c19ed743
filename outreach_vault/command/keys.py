"""The commands about keys: `rotate`, and `keys list`, `export`, `import` and `destroy`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from ..schema.shapes import now
from ..secret import Secret
from .group import INCOMPLETE, Where, cli, copied_option, json_option
from .terminal import confirm, note, print_json, print_table, print_text, read_passphrase, warn, warn_of_unseen, with_progress


@cli.command()
@click.option("--dry-run", is_flag=True, help="Open every value, and only say what would be done.")
@click.option("--after-restore", is_flag=True, help="Go on where the key store says that the active key was replaced.")
@click.option("--destroy-old", is_flag=True, help="At the end destroy the old key: older backups open nothing any more.")
@click.option(
    "--scrub/--no-scrub", default=None, help="At the end write the file anew, whatever its size, or not at all. By default up to 100 MB."
)
@click.option("--yes", is_flag=True, help="Do not ask before --destroy-old.")
@copied_option
@json_option
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
        print_json(counts | facts | {"unreadable_rows": [row._asdict() for row in report.unreadable_rows]})
    else:
        scrubbed = "-" if dry_run else "yes" if report.scrubbed else "no"
        shown = counts | {"scrubbed": scrubbed}
        print_table(None, ((name.replace("_", " "), str(value if value is not None else "-")) for name, value in shown.items()))
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


@cli.group()
def keys() -> None:
    """The vault's keys; never their material."""


@keys.command("list")
@json_option
@click.pass_obj
def keys_list(where: Where, as_json: bool) -> None:
    """List ids, states, counts and times."""
    with where.open() as vault:
        used = vault.rows.count_by_key()
        found = [(record, used[record.id]) for record in vault.keys.states.records()]
    if as_json:
        print_json(keys_json(found))
    else:
        keys_table(found)


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
    print_text(f"{made.path}: {len(made.keys)} keys")
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
        print_text(f"{len(done.added)} keys put into the {vault.keys.store.name}, {len(done.there)} were there already")
    for key_id in done.destroyed:
        note(f"key {key_id} was destroyed in this vault, and stays so")


@keys.command("destroy")
@click.argument("key_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@copied_option
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


def _passphrase(from_file: str | None, *, twice: bool = False) -> Secret:
    passphrase = read_passphrase(from_file, twice=twice)
    warn_of_unseen("the passphrase", passphrase)
    return passphrase


def keys_json(found: Iterable[tuple[Any, int]]) -> list[dict[str, Any]]:
    return [record._asdict() | {"values": count} for record, count in found]


def keys_table(found: Iterable[tuple[Any, int]]) -> None:
    print_table(
        ("KEY", "STATE", "VALUES", "CREATED", "ACTIVATED", "RETIRED", "DESTROYED", "EXPORTED"),
        (
            (r.id, r.state, str(n), r.created_at, *(time or "-" for time in (r.activated_at, r.retired_at, r.destroyed_at, r.exported_at)))
            for r, n in found
        ),
    )
