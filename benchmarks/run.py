"""
How fast the vault is, compared with its floor and with other ways to keep secrets in a database.

`make bench` runs it. Each figure and what it is compared with are taken in turn, in several rounds.
So a round's ratio holds even if the machine changes speed between rounds. The table has medians,
and the least and the largest of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import platform
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from processes import CONTENDERS, HERE, Absent, Contender, busy, environment, seconds_of

RESULTS = HERE / "results"
PROJECT = HERE.parent
WITH_US = [f"{PROJECT}[postgres]", "psycopg[binary]"]
KEYRING = "keyring.backends.SecretService.Keyring"


@dataclass
class Figure:
    """
    One line of the table.

    Attributes:
        ours, theirs: a number for each round, in *unit*; *theirs* is empty without a comparison.
        faster: the result is theirs / ours, "times faster"; else it is ours / theirs, or ours
            alone.
        goal: the least result if *faster*, else the most; None without a goal.
        taken: when, in UTC; a run may measure only some of the figures again.
    """

    name: str
    unit: str
    ours: list[float]
    against: str = ""
    theirs: list[float] = field(default_factory=list)
    goal: float | None = None
    faster: bool = False
    taken: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M"))

    @property
    def measured(self) -> list[float]:
        """What the goal is about, a number for each round."""
        if not self.theirs:
            return self.ours
        pairs = zip(self.ours, self.theirs, strict=True)
        return [theirs / ours if self.faster else ours / theirs for ours, theirs in pairs]

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        found = statistics.median(self.measured)
        return found >= self.goal if self.faster else found <= self.goal

    @property
    def middle(self) -> str:
        return f"{number(statistics.median(self.measured))} {'x' if self.theirs else self.unit}"

    def sides(self) -> tuple[str, str, str]:
        """The name, what the vault takes, and what the other takes."""
        ours, theirs = f"{number(statistics.median(self.ours))} {self.unit}", ""
        if self.theirs:
            theirs = f"{self.against}: {number(statistics.median(self.theirs))} {self.unit}"
        return self.name, ours, theirs

    def row(self) -> tuple[str, ...]:
        spread = f"{self.middle} ({number(min(self.measured))} to {number(max(self.measured))})"
        unit, goal = "x" if self.theirs else self.unit, ""
        if self.goal is not None:
            goal = f"at {'least' if self.faster else 'most'} {self.goal:g} {unit}"
        met = {True: "met", False: "**not met**", None: ""}[self.met]
        return *self.sides(), spread, goal, met, self.taken


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


@dataclass
class Bench:
    """
    One run: its Python, folder and rounds, and its results.

    Attributes:
        scale: 1, or less for a trial of the benchmark itself, whose numbers mean nothing.
        at_most: rows; figures with more are left out.
    """

    python: Path
    folder: Path
    scale: float
    rounds: int
    at_most: int
    figures: list[Figure] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def count(self, full: int) -> int:
        return max(100, int(full * self.scale))

    def start(self, script: str, *arguments: object, python: Path | None = None) -> Contender:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        return Contender(python or self.python, script, folder, *arguments)

    def add(self, *fields: Any, **options: Any) -> None:
        """Take the fields of a `Figure`."""
        figure = Figure(*fields, **options)
        self.figures.append(figure)
        print("  ".join(cell for cell in figure.row() if cell), file=sys.stderr, flush=True)

    def in_turn(
        self, *contestants: Callable[[], float], rounds: int | None = None
    ) -> list[list[float]]:
        """The numbers of each, one for every round. Every other round runs in reverse order."""
        found: list[list[float]] = [[] for _ in contestants]
        for turn in range(rounds or self.rounds):
            order = list(enumerate(contestants))
            for place, contestant in order if turn % 2 else reversed(order):
                found[place].append(contestant())
        return found


def microseconds(contender: Contender, name: str, count: int) -> Callable[[], float]:
    contender.run(name, max(10, count // 10))  # warms up
    return lambda: contender.run(name, count)["wall"] / count * 1e6


READS = (("project", "get, the project's own"), ("fallback", "get, global fallback"))


def lookups(bench: Bench) -> None:
    def beside_by_hand(vault: Contender, name: str, calls: int) -> list[list[float]]:
        ours, theirs = (microseconds(vault, each, calls) for each in (name, f"{name} by hand"))
        return bench.in_turn(ours, theirs, rounds=15 * bench.rounds)

    calls = bench.count(200)
    for share, rows in itertools.product((1, 50), (100, 10_000, 1_000_000)):
        if rows > bench.at_most:
            continue
        with bench.start("vault_calls", bench.count(rows), share) as vault:
            of = f"{bench.count(rows):,} rows{', half of them global' if share == 50 else ''}"
            for name, title in READS:
                ours, theirs = beside_by_hand(vault, name, calls)
                bench.add(f"{title}, {of}", "us", ours, "sqlite3 + Fernet", theirs, goal=1.3)
            if (share, rows) != (1, 10_000):
                continue
            for name, title, against in (
                ("bundle", "bundle of 5 fields", "one SELECT + 5 decrypts"),
                ("set", "set", "sqlite3 + Fernet, one transaction"),
            ):
                ours, theirs = beside_by_hand(vault, name, calls // 5)
                bench.add(f"{title}, {of}", "us", ours, against, theirs, goal=1.3)


def sizes(bench: Bench) -> None:
    """The largest database beside the smallest, both open: the machine's speed may change."""
    most, calls = 1_000_000, bench.count(200)
    if most > bench.at_most:
        return
    with (
        bench.start("vault_calls", bench.count(most), 1) as large,
        bench.start("vault_calls", bench.count(100), 1) as small,
    ):
        for name, title in READS:
            both = (microseconds(vault, name, calls) for vault in (large, small))
            ours, theirs = bench.in_turn(*both, rounds=15 * bench.rounds)
            title = f"{title}: the largest against the smallest"
            bench.add(title, "us", ours, "100 rows", theirs, goal=2)


def rotation(bench: Bench) -> None:
    for rows, rounds in ((100_000, bench.rounds), (1_000_000, min(2, bench.rounds))):
        if rows > bench.at_most:
            continue
        rows = bench.count(rows)
        with bench.start("vault_rotation", rows) as vault:
            done = [vault.run("rotate beside crypto", 1) for _ in range(rounds)]
        ours, theirs = ([each["result"][of] * 1e6 for each in done] for of in ("rotate", "crypto"))
        floor = "decrypt, encrypt, decrypt"
        bench.add(f"rotate {rows:,} values, CPU for each", "us", ours, floor, theirs, goal=1.25)
        grown = max(each["grown_kib"] for each in done) / 1024
        bench.add(f"rotate {rows:,} values, memory grown", "MiB", [grown], goal=40)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def while_rotating(bench: Bench) -> None:
    rows, milliseconds = bench.count(100_000), bench.count(4000)
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    with (
        Contender(bench.python, "vault_rotation", folder, rows) as vault,
        Contender(bench.python, "traffic", folder, rows, "get") as getting,
        Contender(bench.python, "traffic", folder, rows, "set") as setting,
    ):

        def traffic(length: int) -> list[dict[str, Any]]:
            for contender in (getting, setting):
                contender.begin("work", length)
            return [contender.end()["result"] for contender in (getting, setting)]

        traffic(milliseconds // 10)
        idle: list[list[dict[str, Any]]] = []
        rotating: list[list[dict[str, Any]]] = []
        for _ in range(bench.rounds):
            idle.append(traffic(milliseconds))
            vault.begin("rotate", 1)
            rotating.append(traffic(milliseconds))
            vault.end()
    failed = [float(sum(each["failed"] for each in turn)) for turn in (*idle, *rotating)]
    gets, alone = (
        [percentile(turn[0]["milliseconds"], 0.99) * 1000 for turn in turns]
        for turns in (rotating, idle)
    )
    sets = [percentile(turn[1]["milliseconds"], 0.99) for turn in rotating]
    longest = [max(turn[1]["milliseconds"]) for turn in rotating]
    name = "while it rotates"
    bench.add(f"{name}: failed calls", "calls", [sum(failed)], goal=0)
    bench.add(f"{name}: get, 99th percentile", "us", gets, "no rotation", alone, goal=2)
    bench.add(f"{name}: set, 99th percentile", "ms", sets, goal=25)
    bench.add(f"{name}: set, the longest", "ms", longest, goal=100)


PEERS: dict[str, tuple[str, float | None, float | None]] = {
    "peewee_models": ("Peewee Model.get, save()", None, 8),
    "peer_sqlalchemy": ("SQLAlchemy-Utils StringEncryptedType", 8, 2.5),
    "peer_django": ("django-fernet-encrypted-fields", 10, 6),
    "peer_airflow": ("Apache Airflow, its log masker off", 50, None),
}


def peers(bench: Bench) -> None:
    rows, calls = bench.count(5000), bench.count(100)
    with contextlib.ExitStack() as stack:
        calling = stack.enter_context(bench.start("vault_calls", rows, 1))
        rotating = stack.enter_context(bench.start("vault_rotation", rows))
        for script, (title, faster_read, faster_rotation) in PEERS.items():
            try:
                python, needs = bench.python, CONTENDERS / f"{script}.txt"
                if needs.exists():
                    python = environment(script, needs.read_text().split())
                peer = stack.enter_context(bench.start(script, rows, python=python))
            except Absent as reason:
                bench.absent.append(f"{title}: {reason}")
                continue
            for form in ("", " fastest"):
                if f"read{form}" not in peer.names:
                    continue
                named = f"{title}{', its fastest form' if form else ''}"
                found = bench.in_turn(
                    microseconds(calling, "project", calls),
                    microseconds(peer, f"read{form}", calls),
                    rounds=10 * bench.rounds,
                )
                times_faster(bench, f"read, against {named}", found, None if form else faster_read)
                found = bench.in_turn(a_row(rotating, "rotate"), a_row(peer, f"reencrypt{form}"))
                goal = None if form else faster_rotation
                times_faster(bench, f"re-encrypt a row, against {named}", found, goal)
            peer.close()
            if script == "peer_airflow":
                airflow_command(bench, python)


def a_row(contender: Contender, name: str) -> Callable[[], float]:
    def run() -> float:
        done = contender.run(name, 1)
        return float(done["wall"] / done["result"] * 1e6)

    return run


def airflow_command(bench: Bench, python: Path) -> None:
    """Both as an operator runs them. Few rows: Airflow's time for each grows with their number."""
    rows = bench.count(200)
    files = vault_files(bench, rows)
    vault = bench.python.with_name("vault")
    with bench.start("peer_airflow", rows, python=python) as peer:
        ours, theirs = bench.in_turn(
            lambda: seconds_of([vault, "rotate"], where(files)),
            lambda: float(peer.run("command", 1)["wall"]),
            rounds=min(2, bench.rounds),
        )
    name, against = f"vault rotate of {rows} values, whole process", "airflow rotate-fernet-key"
    bench.add(name, "s", ours, against, theirs, goal=10, faster=True)


def vault_files(bench: Bench, rows: int) -> Path:
    files = Path(tempfile.mkdtemp(dir=bench.folder))
    subprocess.run([bench.python, CONTENDERS / "vault_files.py", files, str(rows)], check=True)
    return files


def where(files: Path) -> dict[str, str]:
    return {
        "OUTREACH_VAULT_DB": str(files / "samsara.db"),
        "OUTREACH_VAULT_KEY_DIR": str(files / "keys"),
    }


def times_faster(bench: Bench, name: str, found: list[list[float]], goal: float | None) -> None:
    bench.add(name, "us", found[0], "it", found[1], goal=goal, faster=True)


def commands(bench: Bench) -> None:
    runs = 5 * bench.rounds
    rows = bench.count(10_000)
    files = vault_files(bench, rows)
    vault = bench.python.with_name("vault")
    place = ("provider-0", "field-0-0")
    here = where(files)

    def timed(*command: str | Path, variables: dict[str, str] = here) -> Callable[[], float]:
        seconds_of(list(command), variables)
        return lambda: seconds_of(list(command), variables) * 1000

    bare = timed(bench.python, CONTENDERS / "bare_get.py", *place)
    ours, theirs = bench.in_turn(timed(vault, "get", *place), bare, rounds=runs)
    name, against = "vault get, whole process", "bare Python + sqlite3 + Fernet"
    bench.add(f"{name}, key directory", "ms", ours, against, theirs, goal=2.2)
    bare, against = timed(bench.python, CONTENDERS / "bare_list.py"), "the same SELECT, printed"
    ours, theirs = bench.in_turn(timed(vault, "list"), bare, rounds=runs)
    bench.add(f"vault list of {rows:,} rows, whole process", "ms", ours, against, theirs, goal=2)
    with contextlib.ExitStack() as stack:
        try:
            service = stack.enter_context(secret_service())
        except Absent as reason:
            bench.absent.append(f"keyring get: {reason}")
            return
        variables = service | {
            "OUTREACH_VAULT_DB": str(files / "of-the-keyring.db"),
            "PYTHON_KEYRING_BACKEND": KEYRING,
        }
        seconds_of([vault, "init"], variables)
        (files / "value").write_text("an invented value")
        seconds_of([vault, "set", *place, "--no-check", "--from-file", files / "value"], variables)
        keyring, entry = bench.python.with_name("keyring"), ("outreach-vault-benchmark", "an entry")
        whole = {**os.environ, **variables}
        value = b"an invented value"
        subprocess.run([keyring, "set", *entry], env=whole, input=value, check=True)
        ours, theirs = bench.in_turn(
            timed(vault, "get", *place, variables=variables),
            timed(keyring, "get", *entry, variables=variables),
            rounds=runs,
        )
    bench.add(f"{name}, OS keyring", "ms", ours, "keyring get", theirs, goal=1.5)


@contextlib.contextmanager
def secret_service() -> Iterator[dict[str, str]]:
    """The environment of a real Secret Service, for this run alone."""
    sys.path.insert(0, str(PROJECT / "tests"))
    from helpers.secret_service import SecretService, missing_programs

    if missing := missing_programs():
        debian = "Debian: dbus, gnome-keyring, libsecret-tools"
        raise Absent(f"there is no {', '.join(missing)} here ({debian})")
    with SecretService() as service:
        yield service.env


def on_a_server(bench: Bench) -> None:
    sys.path.insert(0, str(PROJECT / "tests"))
    from helpers.postgres import Postgres, install

    if install(18) is None:
        bench.absent.append("on a server: there is no PostgreSQL 18 here (make peers)")
        return
    rows, calls = bench.count(100_000), bench.count(200)
    with Postgres(18, fsync=True) as server:
        server.create("vault")
        url = server.url("vault")
        with bench.start("server_calls", rows, url) as vault:
            server.sql("vault", "VACUUM ANALYZE")
            for name, title, against in (
                ("project", "get", "psycopg, prepared, + Fernet"),
                ("fallback", "get, global fallback", "psycopg, prepared, + Fernet"),
                ("bundle", "bundle of 5 fields", "one SELECT + 5 decrypts"),
                ("set", "set", "psycopg + Fernet, one transaction"),
            ):
                both = (microseconds(vault, each, calls) for each in (name, f"{name} by hand"))
                ours, theirs = bench.in_turn(*both, rounds=15 * bench.rounds)
                title, goal = f"PostgreSQL, {rows:,} rows: {title}", None if name == "set" else 1.5
                bench.add(title, "us", ours, against, theirs, goal=goal)
            readers(bench, rows, url, vault.folder / "keys")
            # What the sets above replaced would be rotated too, and only here.
            server.sql("vault", "DELETE FROM vault_history")
            server.sql("vault", "VACUUM ANALYZE")
            whole = (functools.partial(vault.run, n, 1) for n in ("rotate", "rotate by hand"))
            ours, theirs = bench.in_turn(*(lambda run=run: run()["wall"] for run in whole))
            title = f"PostgreSQL: rotate {rows:,} values"
            against = "500 at a time by hand, unproved"
            bench.add(title, "s", ours, against, theirs, goal=1.5)


def readers(bench: Bench, rows: int, url: str, keys: Path) -> None:
    """How many values one process reads in a second, and many beside each other."""
    milliseconds = bench.count(1000)
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(bench.start("server_reads", rows, url, keys)) for _ in range(8)
        ]

        def read(count: int) -> float:
            for reader in started[:count]:
                reader.begin("read", milliseconds)
            done = sum(reader.end()["result"] for reader in started[:count])
            return float(done / milliseconds * 1000)

        read(8)
        counts = (1, 2, 4, 8)
        found = bench.in_turn(*(functools.partial(read, count) for count in counts))
    for count, each in zip(counts[1:], found[1:], strict=True):
        title = f"PostgreSQL: get, {count} processes at once"
        bench.add(title, "a second", each, "one process", found[0])


def migration(bench: Bench) -> None:
    rows = bench.count(100_000)
    with bench.start("migration", rows) as vault:
        ours, theirs = bench.in_turn(
            lambda: vault.run("migrate", 1)["result"], lambda: vault.run("copy", 1)["result"]
        )
    name = f"migrate to schema 5, {rows:,} CVs, backup included"
    bench.add(name, "s", ours, "the backup alone", theirs, goal=1.5)


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "lookups": lookups,
    "sizes": sizes,
    "commands": commands,
    "on-a-server": on_a_server,
    "migration": migration,
    "peers": peers,
    "while-rotating": while_rotating,
    "rotation": rotation,
}


def machine() -> dict[str, str]:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        named = re.search(r"^model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(), re.M)
        model = named[1].strip() if named else model
    return {
        "processor": f"{model}, {os.cpu_count()} cores",
        "system": platform.platform(terse=True),
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
    }


def versions(python: Path) -> dict[str, str]:
    names = ("cryptography", "keyring", "peewee")
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.split(), strict=True))


def table(figures: list[Figure]) -> str:
    middle = "ratio, or number (least to most)"
    head = ("figure", "vault", "compared with", middle, "goal", "", "taken (UTC)")
    return as_markdown(head, *(figure.row() for figure in figures))


def as_markdown(head: tuple[str, ...], *rows: tuple[str, ...]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *rows))


def figures_of(results: Path) -> dict[str, Figure]:
    """Those of an earlier run, by name."""
    found = json.loads(results.read_text("utf-8"))["figures"]
    names = Figure.__dataclass_fields__
    return {raw["name"]: Figure(**{key: raw[key] for key in names}) for raw in found}


def write(bench: Bench, name: str, facts: dict[str, str], target: Path, *, picture: bool) -> None:
    target.mkdir(exist_ok=True)
    said = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    absent = "".join(f"\nNot measured: {reason}\n" for reason in bench.absent)
    page = f"# Benchmark, {name}\n\n{said}\n\n{table(bench.figures)}\n{absent}"
    (target / f"{name}.md").write_text(page, "utf-8")
    raw = [{**vars(each), "measured": each.measured, "met": each.met} for each in bench.figures]
    found = {"facts": facts, "absent": bench.absent, "figures": raw}
    (target / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if not picture:
        return
    try:
        python = environment("picture", ["matplotlib==3.10.*"])
        paths = target / f"{name}.json", target / f"{name}.svg"
        subprocess.run([python, HERE / "picture.py", *paths], check=True)
    except (Absent, subprocess.CalledProcessError) as reason:
        print(f"no picture: {reason}", file=sys.stderr)


SHORTENED = (
    "get, the project's own, 1,000,000 rows",
    "get, global fallback, 1,000,000 rows",
    "get, the project's own: the largest",
    "get, global fallback: the largest",
    "bundle of 5 fields",
    "set, 10,000",
    "rotate 100,000 values, CPU",
    "rotate 1,000,000 values, CPU",
    "while it rotates: get",
    "while it rotates: set, 99",
    "vault get, whole process",
    "vault list",
    "migrate",
    "read, against Peewee",
    "read, against SQLAlchemy-Utils StringEncryptedType|",
    "read, against django-fernet-encrypted-fields|",
    "read, against Apache",
    "re-encrypt a row, against Peewee",
    "re-encrypt a row, against SQLAlchemy-Utils StringEncryptedType|",
    "re-encrypt a row, against django-fernet-encrypted-fields|",
    "vault rotate of",
    "PostgreSQL",
)
BETWEEN = ("<!-- from here on written by `make bench` -->\n", "<!-- up to here -->")


def shorten_into(page: Path) -> None:
    """Put the main lines, idle and busy, into the page about speed."""
    runs = {path.stem: figures_of(path) for path in sorted(RESULTS.glob("*.json"), reverse=True)}
    rows = [
        (*figure.sides(), *(run[name].middle if name in run else "" for run in runs.values()))
        for name, figure in runs["idle"].items()
        if f"{name}|".startswith(SHORTENED)
    ]
    facts = json.loads((RESULTS / "idle.json").read_text("utf-8"))["facts"]
    used = ", ".join(f"{name} {facts[name]}" for name in ("Python", "SQLite", "cryptography"))
    table = as_markdown(("", "vault", "compared with", *runs), *rows)
    begin, end = BETWEEN
    before, _, rest = page.read_text("utf-8").partition(begin)
    _, _, after = rest.partition(end)
    ours = f"{begin}\n{facts['processor']}, {used}.\n\n{table}\n\n{end}"
    page.write_text(f"{before}{ours}{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0].strip())
    option = parser.add_argument
    only = "run this part alone, and keep the other figures; repeat for more parts"
    option("--busy", action="store_true", help="run a busy process for each core meanwhile")
    option("--only", choices=sorted(SECTIONS), action="append", help=only)
    fewer = "leave out figures with more rows, which take minutes"
    option("--at-most", type=int, metavar="ROWS", default=1_000_000, help=fewer)
    tiny = "check that it works: few rows, in the present environment"
    option("--trial", action="store_true", help=tiny)
    option("--results", type=Path, default=RESULTS, help="the folder for table and picture")
    options = parser.parse_args()
    name, trial = "busy" if options.busy else "idle", options.trial
    python = Path(sys.executable) if trial else environment("vault", WITH_US, anew=True)
    folder = Path(tempfile.mkdtemp(prefix="outreach-vault-bench-"))
    scale, rounds = (0.001, 1) if trial else (1, 4)
    bench = Bench(python, folder, scale, rounds, options.at_most)
    facts = {
        **machine(),
        **versions(python),
        "beside it": f"{os.cpu_count()} processes that never rest" if options.busy else "nothing",
    }
    try:
        with busy((os.cpu_count() or 1) if options.busy else 0):
            for section in options.only or SECTIONS:
                print(f"\n{section}", file=sys.stderr)
                SECTIONS[section](bench)
    finally:
        shutil.rmtree(folder)
    if options.only and (earlier := options.results / f"{name}.json").exists():
        merged = figures_of(earlier) | {figure.name: figure for figure in bench.figures}
        bench.figures = list(merged.values())
    write(bench, name, facts, options.results, picture=not trial)
    if options.results == RESULTS and not trial:
        shorten_into(PROJECT / "docs" / "speed.md")
    print(table(bench.figures))


if __name__ == "__main__":
    main()
