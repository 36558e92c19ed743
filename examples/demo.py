"""
The main job, to watch: a v4 database becomes a vault, two projects send from their own accounts,
the key is rotated while they send, and nothing is lost. Run it with `make demo`.

Everything happens in a temporary folder, with real parts: the `vault` command, a second process
that sends, an SMTP server with TLS. The exit status is 0 only if every promise held.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet
from email_adapter import send
from smtp_server import SmtpServer

from outreach_vault import KeyDirectory, Vault, VaultError
from outreach_vault.models import OutreachTemplate

V4 = Path(__file__).resolve().parent.parent / "tests" / "data" / "v4.db"
MORE = 300  # values besides the accounts, so that the rotation has work to do
ENOUGH = 5  # messages before, while and after the key is rotated
PATIENCE = 60.0
INVITATION = "<p>Good day, we would like to talk to you: {{role}}.</p>"
SENDER = "--be-the-sender"
EVERYONE, OWN = "everyone@example.com", "project@example.com"
PASSWORDS = {EVERYONE: "invented-password-for-everyone", OWN: "invented-password-of-one-project"}

INTRO = """\
All of this is in a temporary folder, which is removed at the end; all accounts are invented.
The keys are in a key directory there, so your own keyring is untouched. On a desktop, without
OUTREACH_VAULT_KEY_DIR, the vault keeps them in the operating system's keyring."""

Place = tuple[str | None, str, str]


class DemoFailed(Exception):
    """A promise did not hold."""


def must(held: bool, promise: str) -> None:
    if not held:
        raise DemoFailed(promise)
    print(f"  ok: {promise}")


class Demo:
    """
    What the steps share.

    Attributes:
        own: the project with its own account. plain: one without.
        stored: every stored value, by its place, to compare with at the end.
        old_tokens: what a rotation had to replace.
    """

    def __init__(self, folder: Path, server: SmtpServer) -> None:
        self.folder, self.server = folder, server
        self.db, self.key_dir = folder / "samsara.db", folder / "keys"
        self.stored: dict[Place, str] = {}
        self.old_tokens: set[str] = set()
        self.own = self.plain = ""
        self._started = time.monotonic()
        self._step = 0

    def step(self, title: str, *explanation: str) -> None:
        self._step += 1
        print(f"\n{self._step}. {title}  [{time.monotonic() - self._started:.1f} s]")
        for line in explanation:
            print(f"   {line}")

    def vault(self, *arguments: str, value: str | None = None) -> str:
        """Run and show the command. A value goes to its standard input, and is not shown."""
        note = "" if value is None else "    (the value is on standard input)"
        print(f"  $ vault {' '.join(arguments)}{note}")
        return self._run(arguments, value, show=True)

    def ask(self, *arguments: str) -> Any:
        """The facts that a command has just shown, as JSON, for this program to check."""
        return json.loads(self._run((*arguments, "--json"), None, show=False))

    def _run(self, arguments: Sequence[str], value: str | None, *, show: bool) -> str:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("OUTREACH_VAULT_")}
        ours = {"OUTREACH_VAULT_DB": str(self.db), "OUTREACH_VAULT_KEY_DIR": str(self.key_dir)}
        done = subprocess.run(
            [sys.executable, "-m", "outreach_vault", *arguments],
            env=inherited | ours,
            cwd=self.folder,
            input=value or "",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=PATIENCE,
        )
        if show or done.returncode:
            print(textwrap.indent(done.stdout, "    "), end="")
        if done.returncode:
            command = f"'vault {' '.join(arguments)}'"
            raise DemoFailed(f"{command} ended with exit status {done.returncode}, not 0")
        return done.stdout

    def store(self, field: str, value: str, project_id: str | None = None) -> None:
        project = ("--project", project_id) if project_id else ()
        self.vault("set", "smtp", field, *project, value=value)
        self.stored[project_id, "smtp", field] = value

    def open(self) -> Vault:
        return Vault.open(self.db, key_store=KeyDirectory(self.key_dir))

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask Python's own sqlite3, not the vault."""
        with closing(sqlite3.connect(self.db)) as connection:
            return connection.execute(statement).fetchall()

    def account_of(self, project_id: str) -> str:
        return OWN if project_id == self.own else EVERYONE


def main() -> int:
    print(INTRO)
    folder = Path(tempfile.mkdtemp(prefix="vault-demo-"))
    started = time.monotonic()
    steps = (copy_database, init, store_accounts, which, send_one_each, rotate_while_sending)
    try:
        with SmtpServer(folder, PASSWORDS) as server:
            demo = Demo(folder, server)
            for step in (*steps, nothing_was_lost, status):
                step(demo)
    # An SMTPException is an OSError.
    except (DemoFailed, VaultError, OSError, subprocess.SubprocessError) as failure:
        what = "this did not hold" if isinstance(failure, DemoFailed) else type(failure).__name__
        print(f"\ndemo: FAILED: {what}: {failure}")
        return 1
    finally:
        shutil.rmtree(folder)
    print(f"\ndemo: all of it held, in {time.monotonic() - started:.1f} s")
    return 0


def copy_database(demo: Demo) -> None:
    demo.step("The desktop app's database, at schema 4", "It has no place for credentials yet.")
    shutil.copyfile(V4, demo.db)
    print(f"  $ export OUTREACH_VAULT_DB={demo.db} OUTREACH_VAULT_KEY_DIR={demo.key_dir}")
    must(demo.sql("PRAGMA user_version") == [(4,)], "PRAGMA user_version is 4")
    projects = demo.sql("SELECT id, name FROM projects ORDER BY id = 'default-project', id")
    listed = ", ".join(f"{name} ({id_})" for id_, name in projects)
    must(len(projects) >= 2, f"it has {len(projects)} projects: {listed}")
    demo.own, demo.plain = projects[0][0], projects[1][0]


def init(demo: Demo) -> None:
    demo.step("Make it a vault", "A verified backup, the missing schema steps, the first key.")
    projects = "SELECT id, name FROM projects ORDER BY id"
    before = demo.sql(projects)
    demo.vault("init")
    version = demo.sql("PRAGMA user_version")
    must(version == [(5,)], "PRAGMA user_version is 5, which the app continues from")
    must(demo.sql(projects) == before, "the projects are as they were")
    backups = list(demo.folder.glob("samsara.db.*.backup"))
    must(len(backups) == 1, "the backup is beside the database")


def store_accounts(demo: Demo) -> None:
    demo.step(
        "Store the account for everyone, and one project's own",
        "A value is never an argument: other users can read those.",
    )
    server = {"host": demo.server.host, "port": str(demo.server.port)}
    for project_id, account in ((None, EVERYONE), (demo.own, OWN)):
        fields = server | {"user": account, "password": PASSWORDS[account]}
        for field, value in fields.items():
            demo.store(field, value, project_id)


def which(demo: Demo) -> None:
    demo.step("Where does each value come from?", "The project's own row, else the global one.")
    for project_id, scope in ((demo.own, demo.own), (demo.plain, None)):
        demo.vault("which", "smtp", "--project", project_id)
        entries = demo.ask("which", "smtp", "--project", project_id)
        found = {entry["credential_type"]: entry["project_id"] for entry in entries}
        whose = "its own account" if scope else "the account for everyone"
        expected = dict.fromkeys(("host", "password", "port", "user"), scope)
        must(found == expected, f"{project_id} has {whose}")


def send_one_each(demo: Demo) -> None:
    demo.step(
        "An email adapter sends for both projects",
        "It logs in over verified TLS; the server says which account it saw.",
    )
    template = {"name": "Invitation", "type": "email", "subject": "An invitation"}
    with demo.open() as vault:
        vault.bind_models()
        for project_id in (demo.own, demo.plain):
            OutreachTemplate.create(project=project_id, body=INVITATION, **template)
            message_id = send_one(vault, project_id, demo.server.cafile)
            took = demo.server.accepted[-1]
            print(f"  sent {message_id} for {project_id}; the server saw {took.account} log in")
            account = demo.account_of(project_id)
            right = took.account == account and message_id.encode() in took.content
            must(right, f"{project_id}'s message was sent from {account}")


def send_one(vault: Vault, project_id: str, cafile: str) -> str:
    template = OutreachTemplate.get(project=project_id, name="Invitation")
    variables, to = {"role": "engineer"}, f"{project_id}@candidates.example"
    message = send(vault, project_id, to, template.id, variables, cafile=cafile)
    return str(message.provider_message_id)


def rotate_while_sending(demo: Demo) -> None:
    demo.step(
        "Rotate the key while another process sends",
        "The sender is not told or restarted, and has the vault open all the time.",
    )
    accepted = demo.server.accepted
    first = len(accepted)
    with sender(demo) as log:
        store_more(demo)
        wait_for(lambda: len(accepted) - first >= ENOUGH, "the sender sends", log)
        before = len(accepted) - first
        during = 0
        while during < ENOUGH:  # a fast machine may rotate more than once for so many messages
            rows = demo.sql("SELECT encrypted_value FROM provider_credentials")
            demo.old_tokens.update(token for (token,) in rows)
            started = len(accepted)
            demo.vault("rotate")
            during += len(accepted) - started
        nothing_old_is_left(demo)  # now: the log (-wal) exists while the sender is connected
        rotated = len(accepted)
        wait_for(lambda: len(accepted) - rotated >= ENOUGH, "the sender still sends", log)
    outcomes = Counter(line.split()[0] for line in log.read_text().splitlines())
    failed = outcomes.total() - outcomes["sent"]
    after = len(accepted) - rotated
    print(f"  messages sent: {before} before, {during} during 'vault rotate', {after} after")
    print(f"  messages failed: {failed}")
    if failed:
        print(textwrap.indent(log.read_text(), "    "))
    whole = failed == 0 and outcomes["sent"] == len(accepted) - first
    must(whole, "no message failed, and the server has each that was sent")
    senders = ((took.account, took.recipients[0].partition("@")[0]) for took in accepted)
    right = all(account == demo.account_of(project_id) for account, project_id in senders)
    must(right, f"each of {len(accepted)} messages went out from its own project's account")
    recorded = demo.sql(
        "SELECT status, count(*), count(DISTINCT provider_message_id) FROM messages"
        " WHERE template_id IS NOT NULL GROUP BY 1"
    )
    as_sent = recorded == [("sent", len(accepted), len(accepted))]
    must(as_sent, "each is recorded as sent, with its Message-ID, where the app shows it")


def store_more(demo: Demo) -> None:
    scopes = (None, demo.own, demo.plain)
    with demo.open() as vault:
        for number in range(MORE):
            place = (scopes[number % 3], "example", f"value_{number}")
            demo.stored[place] = f"invented value {number} \N{EURO SIGN}"
            vault.set(place[1], place[2], demo.stored[place], place[0])
    print(f"  stored {MORE} more values through the library (`vault.set`), as an import would")


@contextmanager
def sender(demo: Demo) -> Iterator[Path]:
    """The log of a second process that sends for both projects until its standard input ends."""
    log = demo.folder / "sender.log"
    files = (str(demo.db), str(demo.key_dir), demo.server.cafile)
    command = [sys.executable, __file__, SENDER, *files, demo.own, demo.plain]
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output) as process,
    ):
        print(f"  process {process.pid} sends for {demo.own} and {demo.plain} in turn")
        try:
            yield log
            assert process.stdin
            process.stdin.close()
            status = process.wait(PATIENCE)
        finally:
            process.kill()
    must(status == 0, "the sender ended when asked to")


def be_sender(db: str, key_dir: str, cafile: str, *project_ids: str) -> int:
    asked_to_end = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        asked_to_end.set()

    threading.Thread(target=listen, daemon=True).start()
    with Vault.open(db, key_store=KeyDirectory(key_dir)) as vault:
        vault.bind_models()
        for project_id in itertools.cycle(project_ids):
            if asked_to_end.is_set():
                return 0
            try:
                print("sent", send_one(vault, project_id, cafile), flush=True)
            except Exception as error:  # noqa: BLE001  # counted and shown, then on, as adapters do
                print("failed", f"{project_id}: {type(error).__name__}: {error}", flush=True)
    return 1


def wait_for(happened: Callable[[], bool], promise: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        lines = log.read_text().splitlines()
        if trouble := [line for line in lines if not line.startswith("sent ")]:
            raise DemoFailed(f"{promise}; it said: {trouble[-1]}")
        if time.monotonic() > deadline:
            raise DemoFailed(f"{promise} (waited for {PATIENCE:g} s)")
        time.sleep(0.01)


def nothing_was_lost(demo: Demo) -> None:
    demo.step(
        "Was anything lost?",
        "A newly opened vault opens each value, to compare it with what was stored.",
    )
    active = demo.sql("SELECT id FROM vault_keys WHERE state = 'active'")[0][0]
    with demo.open() as vault:
        entries = {(e.project_id, e.provider, e.credential_type): e for e in vault.list()}
        opened = {
            (p, name, field): vault.get(name, field, p).reveal() for p, name, field in entries
        }
    must(opened == demo.stored, f"all {len(demo.stored)} values are what was stored")
    keys = {entry.key_id for entry in entries.values()}
    must(keys == {active}, f"all are under the new key, {active}")

    tokens: dict[str, str] = dict(demo.sql("SELECT id, encrypted_value FROM provider_credentials"))
    files = database_files(demo)
    there = all(piece(token) in files["samsara.db"] for token in tokens.values())
    must(there, "each new token is in the database file")
    nothing_old_is_left(demo)
    everything = b"".join(files.values())
    hidden = not any(password.encode() in everything for password in PASSWORDS.values())
    must(hidden, "no password can be read in any of these files")

    print("\n   The emergency exit: with the key, any Fernet tool opens a value without the vault.")
    row = entries[demo.own, "smtp", "password"]
    (key_file,) = demo.key_dir.glob(f"*.{active}.key")
    print(f"  Fernet({key_file.name}).decrypt(encrypted_value of row {row.id})")
    plain = json.loads(Fernet(key_file.read_bytes()).decrypt(tokens[row.id]))
    print(f"    {plain | {'value': '********'}}")
    must(plain["value"] == PASSWORDS[OWN], "plain Fernet gives back the password that was stored")


def nothing_old_is_left(demo: Demo) -> None:
    files = database_files(demo)
    left = sum(piece(token) in content for token in demo.old_tokens for content in files.values())
    names, count = ", ".join(sorted(files)), len(demo.old_tokens)
    must(left == 0, f"of {count} old tokens none is left in {names}")


def database_files(demo: Demo) -> dict[str, bytes]:
    """Only while this process is not connected: closing a file drops SQLite's locks on it."""
    return {path.name: path.read_bytes() for path in demo.folder.glob("samsara.db*")}


def piece(token: str) -> bytes:
    """A part that no other token has: after the time, the IV and the start of the ciphertext."""
    return token[20:84].encode()


def status(demo: Demo) -> None:
    demo.step("What the vault says of itself", "Old keys stay, retired: backups still need them.")
    demo.vault("status")
    found = demo.ask("status")
    all_ok = found["values"] == {"ok": len(demo.stored), "foreign": 0, "key_missing": 0}
    must(all_ok, f"{len(demo.stored)} values, all ok")
    done = found["schema"] == 5 and not found["unfinished_rotation"]
    must(done, "schema 5, and no rotation is left unfinished")


if __name__ == "__main__":
    sys.exit(be_sender(*sys.argv[2:]) if sys.argv[1:2] == [SENDER] else main())
