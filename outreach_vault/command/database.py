"""Commands about the database: `init`, `migrate`, `backup`, `status`, `doctor` and `copy-to`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..database import first_line, locate
from .group import INCOMPLETE, Where, cli, json_option, long_option, refuse_password
from .keys import keys_json, keys_table
from .notes import next_export, warn_of_keys
from .terminal import (
    confirm,
    counted,
    note,
    print_folded,
    print_json,
    print_table,
    print_text,
    unlogged,
    warn,
    with_progress,
)

if TYPE_CHECKING:
    from ..schema import migrator

_ROWS: Final = ("unreadable_rows", "left_out")


@cli.command("init")
@click.option(
    "--abandon",
    metavar="KEY",
    help="Give up a key that is lost for good, and every value sealed under it.",
)
@click.option("--yes", is_flag=True, help="Do not ask before --abandon.")
@click.pass_obj
def init_(where: Where, abandon: str | None, yes: bool) -> None:
    """Make the database ready, with its first key. Creates it, or backs it up and migrates it."""
    from ..operations.init import init

    store = where.key_store()
    if abandon is not None:
        _abandon(where, abandon, yes)
        return
    applied: list[migrator.Step] = []

    def on_schema(done: migrator.Migration) -> None:
        applied.extend(done.steps)
        _say_steps(done.steps, done.backup)

    def on_folder(made: Path) -> None:
        print_text(f"made the folder {made}, for this user alone")

    key_id = init(where.db, key_store=store, on_folder=on_folder, on_schema=on_schema)
    if key_id:
        print_text(f"made key {key_id} in the {store.name}")
    print_text(f"{locate(where.db)}: {'ready' if applied or key_id else 'was ready already'}")
    with where.open() as vault:
        export = next_export(vault)
    if export:
        note(export)


def _abandon(where: Where, key_id: str, yes: bool) -> None:
    from ..operations.recovery import abandon

    with where.open() as vault:
        key_id = vault.keys.states.find(key_id)
        record = vault.keys.require_lost(key_id)
        count = vault.rows.count_by_key()[key_id]
        note(
            f"{counted(count, 'value')} of this database, and its backups, open only with"
            f" key {key_id}: without it they are lost"
        )
        note(
            "a file of exported keys ('vault keys import') or a backup of the key directory would"
            " bring the key back"
        )
        confirm(f"give up key {key_id} ({record.state}) for good?", yes)
        new = abandon(vault, key_id)
        print_text(f"gave up key {key_id}; the active key is {new} in the {vault.keys.store.name}")
        export = next_export(vault)
    if export:
        note(export)
    if count:
        note("'vault list' shows which values you must store again: their state is 'key missing'")


@cli.command()
@click.option("--plan", "only_plan", is_flag=True, help="Only say what would be done.")
@click.option(
    "--keep-first",
    is_flag=True,
    help="Of several rows for one place, keep the first, which the app reads.",
)
@click.pass_obj
def migrate(where: Where, only_plan: bool, keep_first: bool) -> None:
    """Bring an existing database to this schema. Of a file it makes a verified backup first."""
    from ..schema import migrator

    location = locate(where.db)
    if only_plan:
        database = location.open()
        for step in (pending := migrator.plan(database, keep_first=keep_first)):
            print_text(f"would apply {step.name}: {step.title}")
        theirs = database.backup_command(Path("FILE"))
        database.close_all()
        first = f"back it up first: {theirs}" if theirs else "a backup would be made first"
        print_text(f"{location}: {first if pending else 'nothing to do'}")
        return
    done = migrator.migrate(location, keep_first=keep_first)
    _say_steps(done.steps, done.backup)
    print_text(f"{location}: {'migrated' if done.steps else 'nothing to do'}")


@cli.command()
@long_option
@json_option
@click.pass_obj
def status(where: Where, whole: bool, as_json: bool) -> None:
    """
    Show the database, its keys and the number of its values.

    Also its schema and the key store.
    """
    from ..operations.status import status as look

    with where.open() as vault:
        found = look(vault)
        warn_of_keys(vault, [record.id for record, _ in found.keys], "key")
    if as_json:
        facts = {name: getattr(found, name) for name in found.__slots__}
        values = {name.replace(" ", "_"): count for name, count in found.values.items()}
        print_json(facts | {"keys": keys_json(found.keys), "values": values})
        return
    age = found.active_key_age_days
    days = "" if age is None else f", active for {counted(age, 'day')}"
    print_table(
        None,
        (
            ("database", found.database),
            ("schema", f"{found.schema}, vault's own {found.vault_schema}"),
            ("vault", found.vault_id),
            (
                "key store",
                found.key_store + (f": {found.key_store_error}" if found.key_store_error else ""),
            ),
            ("active key", f"{found.active_key or 'none'}{days}"),
            ("values", ", ".join(f"{count} {name}" for name, count in found.values.items())),
            ("history", counted(found.previous, "previous value")),
        ),
    )
    if found.unfinished_rotation:
        warn("a rotation was interrupted; 'vault rotate' finishes it")
    print_text("")
    keys_table(found.keys, whole)


@cli.command()
@click.option("--deep", is_flag=True, help="Open every value, and check the whole file.")
@json_option
@click.pass_obj
def doctor(where: Where, deep: bool, as_json: bool) -> int:
    """
    Prove that every value opens and every key is accounted for. Changes nothing.

    Exits 16 if there is a problem.
    """
    from ..operations.doctor import examine

    unlogged()
    found = examine(where.db, key_store=where.key_store(), deep=deep)
    if as_json:
        facts = {name: getattr(found, name) for name in found.__slots__}
        findings = [finding._asdict() for finding in found.findings]
        shown = {"database": found.database, "keys": keys_json(found.keys)}
        print_json(facts | shown | {"findings": findings})
    else:
        counts = ", ".join(f"{count} {state}" for state, count in found.values.items())
        opened = "each was opened" if deep else "not opened; --deep opens each"
        in_use = sum(record.state != "destroyed" for record, _ in found.keys)
        print_table(
            None,
            (
                ("database", found.database),
                ("vault", found.vault_id),
                ("key store", found.key_store),
                ("keys", f"{in_use}, and {len(found.keys) - in_use} destroyed"),
                ("values", f"{counts} ({opened})"),
            ),
        )
        problems = found.problems
        for finding, others in found.lines():
            print_folded(f": {finding.message}", word=finding.level)
            if finding.hint:
                print_folded(f"next: {finding.hint}", indent="  ")
            problems -= others if finding.level == "problem" else 0  # one cause is one problem
        for kind, count in found.more.items():
            if any(each.kind == kind and each.cause is None for each in found.findings):
                print_text(f"and {count} more of: {kind}")
        print_text(counted(problems, "problem") if problems else "no problems")
    return INCOMPLETE if found.problems else 0


@cli.command()
@click.argument("file", type=click.Path())
@json_option
@click.pass_obj
def backup(where: Where, file: str, as_json: bool) -> int:
    """
    Copy the live database, at one moment, to a new file.

    Says which keys the copy needs: it holds none. Of a database on a server it writes nothing,
    prints the command that does, and exits 16.
    """
    from ..operations.recovery import backup as make_backup

    with where.open() as vault:
        made = make_backup(vault, file)
    if as_json:
        path = made.path and str(made.path)
        print_json({"path": path, "command": made.command, "keys": keys_json(made.keys)})
    else:
        if made.path:
            print_text(f"backup: {made.path}")
        for record, count in made.keys:
            print_text(f"needs key {record.id} ({record.state}) for {counted(count, 'value')}")
    if never := [record.id for record, _ in made.keys if record.exported_at is None]:
        warn(
            f"no file of exported keys holds {', '.join(never)}; 'vault keys export FILE' makes one"
        )
    if made.command:
        warn(f"nothing was written: the server's own program makes the copy; run: {made.command}")
    return INCOMPLETE if made.command else 0


@cli.command()
@click.option("--sql", "as_sql", is_flag=True, required=True, help="Print SQL.")
@click.option("--adapters", metavar="ROLE", default="outreach_adapters", show_default=True)
@click.option("--operators", metavar="ROLE", default="outreach_operators", show_default=True)
@click.pass_obj
def roles(where: Where, as_sql: bool, adapters: str, operators: str) -> None:
    """
    Print what adapters and operators may do on a PostgreSQL server.

    Run the SQL with psql, as a superuser of the server. It makes no role: CREATE ROLE does.
    """
    database = locate(where.db).open(read_only=True)
    try:
        for line in database.grants(adapters, operators):
            print_text(line)
    finally:
        database.close_all()


@cli.command("copy-to")
@click.argument("url", required=False)
@click.option(
    "--url-file",
    metavar="F",
    help="Take the URL from the first line of a file: there it may hold a password.",
)
@click.option(
    "--skip-broken",
    is_flag=True,
    help="Leave out the rows that PostgreSQL would refuse, and name them.",
)
@json_option
@click.pass_obj
def copy_to(
    where: Where, url: str | None, url_file: str | None, skip_broken: bool, as_json: bool
) -> int:
    """
    Copy a vault from its file to an empty PostgreSQL database, with the same keys.

    All of it or nothing: after an interruption, run it again. The file is not changed. Exits 16 if
    a value does not open in the copy.
    """
    from ..operations import copying

    if (url is None) == (url_file is None):
        raise click.UsageError("give the server's URL, or --url-file")
    refuse_password("URL", [url], "the file that --url-file names")
    to = url if url is not None else first_line(str(url_file), "the URL's file (--url-file)")
    store = where.key_store()
    done = with_progress(
        lambda progress: copying.copy(
            where.db, to, key_store=store, skip_broken=skip_broken, progress=progress
        ),
        "copying",
    )
    if as_json:
        facts = {name: getattr(done, name) for name in done.__slots__}
        listed = {name: [row._asdict() for row in facts[name]] for name in _ROWS}
        print_json(facts | listed)
    else:
        counts = ", ".join(f"{count} {state}" for state, count in done.values.items())
        print_table(None, ((table, str(count)) for table, count in done.rows.items() if count))
        print_text(f"values: {counts} (each was opened in the copy)")
        copied = "was copied already" if done.already else "copied"
        print_text(f"{done.source}: {copied} to {done.target}")
    for row in done.unreadable_rows:
        warn(f"copied, but not readable: {row.reason}")
    for row in done.left_out:
        warn(f"left out: {row.table} {row.id}: {row.reason}")
    if (more := done.left_out_count - len(done.left_out)) > 0:
        warn(f"left out: {counted(more, 'more row')}")
    if done.left_behind:
        note(f"left in the file, as no part of this schema: {', '.join(done.left_behind)}")
    note(
        f"{done.source} shares its keys with the copy, and its values still open:"
        " let nobody store or rotate anything there any more"
    )
    note(
        "next: 'vault rotate' with the server's URL (--db): from then on nothing can be stored or"
        " rotated in the file"
    )
    return INCOMPLETE if done.values["unreadable"] else 0


def _say_steps(steps: Iterable[migrator.Step], backup: Path | None) -> None:
    if backup:
        print_text(f"backup: {backup}")
    for step in steps:
        print_text(f"applied {step.name}: {step.title}")
