"""
The main job, to watch: a v4 database becomes a vault, two projects send from their own accounts, the key is
rotated while they send, and nothing is lost. Run it with `make demo`.

Everything happens in a temporary folder, with real parts: the `vault` command, a second process that sends,
an SMTP server with TLS. Exit status 0 only if all of it held.
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
MORE = 300  # values beside the accounts, so that the rotation has something to do
ENOUGH = 5  # messages before, while and after the key is rotated
PATIENCE = 60.0
INVITATION = "<p>Good day, we would like to talk to you: {{role}}.</p>"
SENDER = "--be-the-sender"
EVERYONE, OWN = "everyone@example.com", "project@example.com"
PASSWORDS = {EVERYONE: "invented-password-for-everyone", OWN: "invented-password-of-one-project"}

Place = tuple[str | None, str, str]


class DemoFailed(Exception):
    """Something that was promised did not hold."""


def must(held: bool, promise: str) -> None:
    if not held:
        raise DemoFailed(promise)
    print(f"  ok: {promise}")


class Demo:
    """
    What the steps share.

    Attributes:
        own: the project that has an account of its own. plain: one that has none.
        stored: every value that was stored, by its place, to compare with at the end.
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
        """Run the command as an operator would, and show it. A value goes to its standard input, and is not shown."""
        print(
            f"  $ vault {' '.join(arguments)}{'' if value is None else '    (the value is on standard input)'}"
        )
        return self._run(arguments, value, show=True)

    def ask(self, *arguments: str) -> Any:
        """The facts that a command has just shown to the person, once more for this program to check."""
        return json.loads(self._run((*arguments, "--json"), None, show=False))

    def _run(self, arguments: Sequence[str], value: str | None, *, show: bool) -> str:
        environment = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith("OUTREACH_VAULT_")
        }
        done = subprocess.run(
            [sys.executable, "-m", "outreach_vault", *arguments],
            env=environment
            | {"OUTREACH_VAULT_DB": str(self.db), "OUTREACH_VAULT_KEY_DIR": str(self.key_dir)},
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
            raise DemoFailed(
                f"'vault {' '.join(arguments)}' ended with exit status {done.returncode}, not 0"
            )
        return done.stdout

    def store(self, field: str, value: str, project_id: str | None = None) -> None:
        self.vault(
            "set", "smtp", field, *(("--project", project_id) if project_id else ()), value=value
        )
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
    print(
        "Everything here is in a temporary folder, which is removed at the end; all accounts are invented."
    )
    print(
        "Keys are put in a key directory there, so that your own keyring is left alone; on a desktop,"
    )
    print(
        "without OUTREACH_VAULT_KEY_DIR, the vault keeps them in the keyring of the operating system."
    )
    folder = Path(tempfile.mkdtemp(prefix="vault-demo-"))
    started = time.monotonic()
    try:
        with SmtpServer(folder, PASSWORDS) as server:
            demo = Demo(folder, server)
            for step in (
                copy_database,
                init,
                store_accounts,
                which,
                send_one_each,
                rotate_while_sending,
                nothing_was_lost,
                status,
            ):
                step(demo)
    except (
        DemoFailed,
        VaultError,
        OSError,
        subprocess.SubprocessError,
    ) as failure:  # SMTPException is an OSError
        what = "this did not hold" if isinstance(failure, DemoFailed) else type(failure).__name__
        print(f"\ndemo: FAILED: {what}: {failure}")
        return 1
    finally:
        shutil.rmtree(folder)
    print(f"\ndemo: all of it held, in {time.monotonic() - started:.1f} s")
    return 0


def copy_database(demo: Demo) -> None:
    demo.step(
        "A database of the desktop app, at schema 4", "There is no place for credentials in it yet."
    )
    shutil.copyfile(V4, demo.db)
    print(f"  $ export OUTREACH_VAULT_DB={demo.db} OUTREACH_VAULT_KEY_DIR={demo.key_dir}")
    must(demo.sql("PRAGMA user_version") == [(4,)], "PRAGMA user_version is 4")
    projects = demo.sql("SELECT id, name FROM projects ORDER BY id = 'default-project', id")
    must(
        len(projects) >= 2,
        f"it has {len(projects)} projects: "
        + ", ".join(f"{name} ({id_})" for id_, name in projects),
    )
    demo.own, demo.plain = projects[0][0], projects[1][0]


def init(demo: Demo) -> None:
    demo.step(
        "Make it a vault",
        "A verified backup first, then the missing steps of the schema, then the first key.",
    )
    before = demo.sql("SELECT id, name FROM projects ORDER BY id")
    demo.vault("init")
    must(
        demo.sql("PRAGMA user_version") == [(5,)],
        "PRAGMA user_version is 5, which the app continues from",
    )
    must(
        demo.sql("SELECT id, name FROM projects ORDER BY id") == before,
        "the projects are as they were",
    )
    must(
        len(list(demo.folder.glob("samsara.db.*.backup"))) == 1, "the backup is beside the database"
    )


def store_accounts(demo: Demo) -> None:
    demo.step(
        "Store the account for everyone, and one project's own",
        "A value is never an argument: other users can read those.",
    )
    for project_id, account in ((None, EVERYONE), (demo.own, OWN)):
        fields = {
            "host": demo.server.host,
            "port": str(demo.server.port),
            "user": account,
            "password": PASSWORDS[account],
        }
        for field, value in fields.items():
            demo.store(field, value, project_id)


def which(demo: Demo) -> None:
    demo.step(
        "Where does each value come from?",
        "The project's own row where it has one, else the global one.",
    )
    for project_id, scope in ((demo.own, demo.own), (demo.plain, None)):
        demo.vault("which", "smtp", "--project", project_id)
        found = {
            entry["credential_type"]: entry["project_id"]
            for entry in demo.ask("which", "smtp", "--project", project_id)
        }
        must(
            found == dict.fromkeys(("host", "password", "port", "user"), scope),
            f"{project_id} has the account {'of its own' if scope else 'for everyone'}",
        )


def send_one_each(demo: Demo) -> None:
    demo.step(
        "An email adapter sends for both projects",
        "It logs in over verified TLS; the server says which account it saw.",
    )
    with demo.open() as vault:
        vault.bind_models()
        for project_id in (demo.own, demo.plain):
            OutreachTemplate.create(
                project=project_id,
                name="Invitation",
                type="email",
                subject="An invitation",
                body=INVITATION,
            )
            message_id = send_one(vault, project_id, demo.server.cafile)
            took = demo.server.accepted[-1]
            print(
                f"  sent {message_id} for {project_id}; the server saw the login of {took.account}"
            )
            must(
                took.account == demo.account_of(project_id) and message_id.encode() in took.content,
                f"{project_id} was sent from {demo.account_of(project_id)}",
            )


def send_one(vault: Vault, project_id: str, cafile: str) -> str:
    template = OutreachTemplate.get(project=project_id, name="Invitation")
    variables = {"role": "engineer"}
    message = send(
        vault, project_id, f"{project_id}@candidates.example", template.id, variables, cafile=cafile
    )
    return str(message.provider_message_id)


def rotate_while_sending(demo: Demo) -> None:
    demo.step(
        "Rotate the key while another process sends",
        "The sender is not told, and not restarted; it has the vault open all the time.",
    )
    accepted = demo.server.accepted
    first = len(accepted)
    with sender(demo) as log:
        store_more(demo)
        wait_for(lambda: len(accepted) - first >= ENOUGH, "the sender sends", log)
        before = len(accepted) - first
        during = 0
        while (
            during < ENOUGH
        ):  # a fast machine may need more than one rotation for that many messages
            demo.old_tokens.update(
                token for (token,) in demo.sql("SELECT encrypted_value FROM provider_credentials")
            )
            started = len(accepted)
            demo.vault("rotate")
            during += len(accepted) - started
        nothing_old_is_left(
            demo
        )  # now: the log (-wal) is there as long as the sender has the database open
        rotated = len(accepted)
        wait_for(lambda: len(accepted) - rotated >= ENOUGH, "the sender still sends", log)
    outcomes = Counter(line.split()[0] for line in log.read_text().splitlines())
    failed = outcomes.total() - outcomes["sent"]
    after = len(accepted) - rotated
    print(
        f"  messages sent: {before} before, {during} while 'vault rotate' ran, {after} after; failed: {failed}"
    )
    if failed:
        print(textwrap.indent(log.read_text(), "    "))
    must(
        failed == 0 and outcomes["sent"] == len(accepted) - first,
        "no message failed, and the server has each that was sent",
    )
    right = all(
        took.account == demo.account_of(took.recipients[0].partition("@")[0]) for took in accepted
    )
    must(right, f"each of {len(accepted)} messages went out from its own project's account")
    recorded = demo.sql(
        "SELECT status, count(*), count(DISTINCT provider_message_id) FROM messages WHERE template_id IS NOT NULL GROUP BY 1"
    )
    must(
        recorded == [("sent", len(accepted), len(accepted))],
        "each is recorded as sent, with its Message-ID, where the app shows it",
    )


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
    """A second process that sends for both projects in turn until its standard input ends; gives its log."""
    log = demo.folder / "sender.log"
    command = [
        sys.executable,
        __file__,
        SENDER,
        str(demo.db),
        str(demo.key_dir),
        demo.server.cafile,
        demo.own,
        demo.plain,
    ]
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
    must(status == 0, "the sender ended when it was asked to")


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
            except Exception as error:  # noqa: BLE001  # counted and shown; the sender goes on, as an adapter would
                print("failed", f"{project_id}: {type(error).__name__}: {error}", flush=True)
    return 1


def wait_for(happened: Callable[[], bool], promise: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if trouble := [
            line for line in log.read_text().splitlines() if not line.startswith("sent ")
        ]:
            raise DemoFailed(f"{promise}; it said: {trouble[-1]}")
        if time.monotonic() > deadline:
            raise DemoFailed(f"{promise} (waited for {PATIENCE:g} s)")
        time.sleep(0.01)


def nothing_was_lost(demo: Demo) -> None:
    demo.step(
        "Was anything lost?",
        "Each value is opened again in a newly opened vault, and compared with what was stored.",
    )
    active = demo.sql("SELECT id FROM vault_keys WHERE state = 'active'")[0][0]
    with demo.open() as vault:
        entries = vault.list()
        opened = {
            (e.project_id, e.provider, e.credential_type): vault.get(
                e.provider, e.credential_type, e.project_id
            )
            for e in entries
        }
    must(
        {place: found.reveal() for place, found in opened.items()} == demo.stored,
        f"all {len(demo.stored)} values are what was stored",
    )
    must({entry.key_id for entry in entries} == {active}, f"all are under the new key, {active}")

    tokens: dict[str, str] = dict(demo.sql("SELECT id, encrypted_value FROM provider_credentials"))
    files = database_files(demo)
    must(
        all(piece(token) in files["samsara.db"] for token in tokens.values()),
        "each new token is in the database file",
    )
    nothing_old_is_left(demo)
    shown = sum(
        password.encode() in content
        for password in PASSWORDS.values()
        for content in files.values()
    )
    must(shown == 0, "no password can be read in any of these files")

    print(
        "\n   The emergency exit: with the key, any Fernet tool opens a value, without the vault."
    )
    row = next(
        entry
        for entry in entries
        if entry.project_id == demo.own and entry.credential_type == "password"
    )
    (key_file,) = demo.key_dir.glob(f"*.{active}.key")
    print(f"  Fernet({key_file.name}).decrypt(encrypted_value of row {row.id})")
    plain = json.loads(Fernet(key_file.read_bytes()).decrypt(tokens[row.id]))
    print(f"    {plain | {'value': '********'}}")
    must(plain["value"] == PASSWORDS[OWN], "plain Fernet gives back the password that was stored")


def nothing_old_is_left(demo: Demo) -> None:
    files = database_files(demo)
    left = sum(piece(token) in content for token in demo.old_tokens for content in files.values())
    must(
        left == 0,
        f"of {len(demo.old_tokens)} old tokens nothing is left in {', '.join(sorted(files))}",
    )


def database_files(demo: Demo) -> dict[str, bytes]:
    """Only while this process has no connection of its own: closing a file drops the locks that SQLite has on it."""
    return {
        path.name: path.read_bytes()
        for path in demo.folder.iterdir()
        if path.name.startswith("samsara.db")
    }


def piece(token: str) -> bytes:
    """The part of a token that no other shares: after its time, with the IV and the beginning of the ciphertext."""
    return token[20:84].encode()


def status(demo: Demo) -> None:
    demo.step("What the vault says of itself", "Old keys stay, retired: backups still need them.")
    demo.vault("status")
    found = demo.ask("status")
    must(
        found["values"] == {"ok": len(demo.stored), "foreign": 0, "key_missing": 0},
        f"{len(demo.stored)} values, all ok",
    )
    must(
        found["schema"] == 5 and not found["unfinished_rotation"],
        "schema 5, and no rotation is left unfinished",
    )


if __name__ == "__main__":
    sys.exit(be_sender(*sys.argv[2:]) if sys.argv[1:2] == [SENDER] else main())
