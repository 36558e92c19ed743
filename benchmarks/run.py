"""
How fast the vault is, beside the floor under it and beside other ways to keep secrets in a database. `make bench` runs it.

Each figure is taken in the same run as what it is compared with, in turn, in several rounds: the ratio of a round holds
when the machine slows down or speeds up between rounds. Quoted are medians, and the least and the largest of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
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
KEYRING = "keyring.backends.SecretService.Keyring"


@dataclass
class Figure:
    """
    One line of the table.

    Attributes:
        ours, theirs: a number for each round, in *unit*; *theirs* is empty where there is nothing to compare with.
        faster: what counts is how many times faster ours is, theirs / ours; else ours / theirs, or ours alone.
        goal: at least so much where *faster*, else at most; None where none was set.
        taken: when, in UTC: a part of the figures may have been taken anew.
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
        theirs = (
            f"{self.against}: {number(statistics.median(self.theirs))} {self.unit}"
            if self.theirs
            else ""
        )
        return self.name, f"{number(statistics.median(self.ours))} {self.unit}", theirs

    def row(self) -> tuple[str, ...]:
        spread = f"{self.middle} ({number(min(self.measured))} to {number(max(self.measured))})"
        unit = "x" if self.theirs else self.unit
        goal = (
            ""
            if self.goal is None
            else f"at {'least' if self.faster else 'most'} {self.goal:g} {unit}"
        )
        met = {True: "met", False: "**not met**", None: ""}[self.met]
        return *self.sides(), spread, goal, met, self.taken


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


@dataclass
class Bench:
    """
    One run: what is measured with, where, how often, and what came of it.

    Attributes:
        scale: 1; less for a trial of the benchmark itself, whose numbers mean nothing.
        at_most: rows; what has more is left out.
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
        return Contender(
            python or self.python, script, Path(tempfile.mkdtemp(dir=self.folder)), *arguments
        )

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        print("  ".join(cell for cell in figure.row() if cell), file=sys.stderr, flush=True)

    def in_turn(
        self, *contestants: Callable[[], float], rounds: int | None = None
    ) -> list[list[float]]:
        """What each gives in every round; in every other round the other way round."""
        found: list[list[float]] = [[] for _ in contestants]
        for turn in range(rounds or self.rounds):
            order = list(enumerate(contestants))
            for place, contestant in order if turn % 2 else reversed(order):
                found[place].append(contestant())
        return found


def microseconds(contender: Contender, name: str, count: int) -> Callable[[], float]:
    contender.run(name, max(10, count // 10))  # to warm up
    return lambda: contender.run(name, count)["wall"] / count * 1e6


READS = (("project", "get, the project's own"), ("fallback", "get, global fallback"))


def lookups(bench: Bench) -> None:
    calls, rounds = bench.count(200), 15 * bench.rounds
    for share, rows in (
        (1, 100),
        (1, 10_000),
        (1, 1_000_000),
        (50, 100),
        (50, 10_000),
        (50, 1_000_000),
    ):
        if rows > bench.at_most:
            continue
        with bench.start("vault_calls", bench.count(rows), share) as vault:
            of = f"{bench.count(rows):,} rows{', half of them global' if share == 50 else ''}"
            for name, title in READS:
                ours, theirs = bench.in_turn(
                    microseconds(vault, name, calls),
                    microseconds(vault, f"{name} by hand", calls),
                    rounds=rounds,
                )
                bench.add(
                    Figure(f"{title}, {of}", "us", ours, "sqlite3 + Fernet", theirs, goal=1.3)
                )
            if (share, rows) != (1, 10_000):
                continue
            for name, title, against in (
                ("bundle", "bundle of 5 fields", "one SELECT + 5 decrypts"),
                ("set", "set", "sqlite3 + Fernet, one transaction"),
            ):
                ours, theirs = bench.in_turn(
                    microseconds(vault, name, calls // 5),
                    microseconds(vault, f"{name} by hand", calls // 5),
                    rounds=rounds,
                )
                bench.add(Figure(f"{title}, {of}", "us", ours, against, theirs, goal=1.3))


def sizes(bench: Bench) -> None:
    """The largest database beside the smallest; both are open at once, since minutes later the machine may be another."""
    most, calls = 1_000_000, bench.count(200)
    if most > bench.at_most:
        return
    with (
        bench.start("vault_calls", bench.count(most), 1) as large,
        bench.start("vault_calls", bench.count(100), 1) as small,
    ):
        for name, title in READS:
            found = bench.in_turn(
                microseconds(large, name, calls),
                microseconds(small, name, calls),
                rounds=15 * bench.rounds,
            )
            bench.add(
                Figure(
                    f"{title}: the largest against the smallest",
                    "us",
                    found[0],
                    "100 rows",
                    found[1],
                    goal=2,
                )
            )


def rotation(bench: Bench) -> None:
    for rows, rounds in ((100_000, bench.rounds), (1_000_000, min(2, bench.rounds))):
        if rows > bench.at_most:
            continue
        rows = bench.count(rows)
        with bench.start("vault_rotation", rows) as vault:
            done = [vault.run("rotate beside crypto", 1) for _ in range(rounds)]
        ours, theirs = (
            [each["result"][side] * 1e6 for each in done] for side in ("rotate", "crypto")
        )
        bench.add(
            Figure(
                f"rotate {rows:,} values, CPU for each",
                "us",
                ours,
                "decrypt, encrypt, decrypt",
                theirs,
                goal=1.25,
            )
        )
        bench.add(
            Figure(
                f"rotate {rows:,} values, memory grown",
                "MiB",
                [max(each["grown_kib"] for each in done) / 1024],
                goal=40,
            )
        )


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
    gets = [
        [percentile(turn[0]["milliseconds"], 0.99) * 1000 for turn in turns]
        for turns in (rotating, idle)
    ]
    sets = [percentile(turn[1]["milliseconds"], 0.99) for turn in rotating]
    longest = [max(turn[1]["milliseconds"]) for turn in rotating]
    bench.add(Figure("while it rotates: failed calls", "calls", [sum(failed)], goal=0))
    bench.add(
        Figure(
            "while it rotates: get, 99th percentile", "us", gets[0], "no rotation", gets[1], goal=2
        )
    )
    bench.add(Figure("while it rotates: set, 99th percentile", "ms", sets, goal=25))
    bench.add(Figure("while it rotates: set, the longest", "ms", longest, goal=100))


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
                requirements = CONTENDERS / f"{script}.txt"
                python = (
                    environment(script, requirements.read_text().split())
                    if requirements.exists()
                    else bench.python
                )
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
                bench.add(
                    times_faster(f"read, against {named}", *found, None if form else faster_read)
                )
                found = bench.in_turn(a_row(rotating, "rotate"), a_row(peer, f"reencrypt{form}"))
                bench.add(
                    times_faster(
                        f"re-encrypt a row, against {named}",
                        *found,
                        None if form else faster_rotation,
                    )
                )
            peer.close()
            if script == "peer_airflow":
                bench.add(airflow_command(bench, python))


def a_row(contender: Contender, name: str) -> Callable[[], float]:
    def run() -> float:
        done = contender.run(name, 1)
        return float(done["wall"] / done["result"] * 1e6)

    return run


def airflow_command(bench: Bench, python: Path) -> Figure:
    """Both as whole processes, as an operator runs them. Few rows, since Airflow's time for each grows with their number."""
    rows = bench.count(200)
    files = vault_files(bench, rows)
    vault = bench.python.with_name("vault")
    with bench.start("peer_airflow", rows, python=python) as peer:
        found = bench.in_turn(
            lambda: seconds_of([vault, "rotate"], where(files)),
            lambda: float(peer.run("command", 1)["wall"]),
            rounds=min(2, bench.rounds),
        )
    return Figure(
        f"vault rotate of {rows} values, whole process",
        "s",
        found[0],
        "airflow rotate-fernet-key",
        found[1],
        goal=10,
        faster=True,
    )


def vault_files(bench: Bench, rows: int) -> Path:
    files = Path(tempfile.mkdtemp(dir=bench.folder))
    subprocess.run([bench.python, CONTENDERS / "vault_files.py", files, str(rows)], check=True)
    return files


def where(files: Path) -> dict[str, str]:
    return {
        "OUTREACH_VAULT_DB": str(files / "samsara.db"),
        "OUTREACH_VAULT_KEY_DIR": str(files / "keys"),
    }


def times_faster(name: str, ours: list[float], theirs: list[float], goal: float | None) -> Figure:
    return Figure(name, "us", ours, "it", theirs, goal=goal, faster=True)


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

    found = bench.in_turn(
        timed(vault, "get", *place),
        timed(bench.python, CONTENDERS / "bare_get.py", *place),
        rounds=runs,
    )
    bench.add(
        Figure(
            "vault get, whole process, key directory",
            "ms",
            found[0],
            "bare Python + sqlite3 + Fernet",
            found[1],
            goal=2.2,
        )
    )
    found = bench.in_turn(
        timed(vault, "list"), timed(bench.python, CONTENDERS / "bare_list.py"), rounds=runs
    )
    bench.add(
        Figure(
            f"vault list of {rows:,} rows, whole process",
            "ms",
            found[0],
            "the same SELECT, printed",
            found[1],
            goal=2,
        )
    )
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
        subprocess.run(
            [keyring, "set", *entry],
            env={**os.environ, **variables},
            input="an invented value",
            text=True,
            check=True,
        )
        found = bench.in_turn(
            timed(vault, "get", *place, variables=variables),
            timed(keyring, "get", *entry, variables=variables),
            rounds=runs,
        )
    bench.add(
        Figure(
            "vault get, whole process, OS keyring",
            "ms",
            found[0],
            "keyring get",
            found[1],
            goal=1.5,
        )
    )


@contextlib.contextmanager
def secret_service() -> Iterator[dict[str, str]]:
    """The environment of a real Secret Service that is this run's own."""
    sys.path.insert(0, str(PROJECT / "tests"))
    from secret_service import SecretService, missing_programs

    if missing := missing_programs():
        raise Absent(
            f"there is no {', '.join(missing)} here (Debian: dbus, gnome-keyring, libsecret-tools)"
        )
    with SecretService() as service:
        yield service.env


def migration(bench: Bench) -> None:
    rows = bench.count(100_000)
    with bench.start("migration", rows) as vault:
        found = bench.in_turn(
            lambda: vault.run("migrate", 1)["result"], lambda: vault.run("copy", 1)["result"]
        )
    bench.add(
        Figure(
            f"migrate to schema 5, {rows:,} CVs, backup included",
            "s",
            found[0],
            "the backup alone",
            found[1],
            goal=1.5,
        )
    )


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "lookups": lookups,
    "sizes": sizes,
    "commands": commands,
    "migration": migration,
    "peers": peers,
    "while-rotating": while_rotating,
    "rotation": rotation,
}


def machine() -> dict[str, str]:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
            model,
        )
    return {
        "processor": f"{model}, {os.cpu_count()} cores",
        "system": platform.platform(terse=True),
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
    }


def versions(python: Path) -> dict[str, str]:
    wanted = "('cryptography', 'keyring', 'peewee')"
    code = f"import json; from importlib.metadata import version; print(json.dumps({{name: version(name) for name in {wanted}}}))"
    found: dict[str, str] = json.loads(
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    return found


def table(figures: list[Figure]) -> str:
    head = (
        "figure",
        "vault",
        "compared with",
        "ratio, or number (least to most)",
        "goal",
        "",
        "taken (UTC)",
    )
    return as_markdown(head, *(figure.row() for figure in figures))


def as_markdown(head: tuple[str, ...], *rows: tuple[str, ...]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *rows))


def figures_of(results: Path) -> dict[str, Figure]:
    """Those of an earlier run, by name."""
    found = json.loads(results.read_text("utf-8"))["figures"]
    return {
        raw["name"]: Figure(**{key: raw[key] for key in Figure.__dataclass_fields__})
        for raw in found
    }


def write(bench: Bench, name: str, facts: dict[str, str], target: Path, *, picture: bool) -> None:
    target.mkdir(exist_ok=True)
    said = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    absent = "".join(f"\nNot measured: {reason}\n" for reason in bench.absent)
    (target / f"{name}.md").write_text(
        f"# Benchmark, {name}\n\n{said}\n\n{table(bench.figures)}\n{absent}", "utf-8"
    )
    raw = [
        {**vars(figure), "measured": figure.measured, "met": figure.met} for figure in bench.figures
    ]
    (target / f"{name}.json").write_text(
        json.dumps({"facts": facts, "absent": bench.absent, "figures": raw}, indent=1) + "\n",
        "utf-8",
    )
    if not picture:
        return
    try:
        python = environment("picture", ["matplotlib==3.10.*"])
        subprocess.run(
            [python, HERE / "picture.py", target / f"{name}.json", target / f"{name}.svg"],
            check=True,
        )
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
)
BETWEEN = ("<!-- from here on written by `make bench` -->\n", "<!-- up to here -->")


def shorten_into(readme: Path) -> None:
    """The main lines, idle and busy, into the README."""
    runs = {path.stem: figures_of(path) for path in sorted(RESULTS.glob("*.json"), reverse=True)}
    rows = [
        (*figure.sides(), *(run[name].middle if name in run else "" for run in runs.values()))
        for name, figure in runs["idle"].items()
        if f"{name}|".startswith(SHORTENED)
    ]
    facts = json.loads((RESULTS / "idle.json").read_text("utf-8"))["facts"]
    machine = f"{facts['processor']}, Python {facts['Python']}, SQLite {facts['SQLite']}, cryptography {facts['cryptography']}"
    table = as_markdown(("", "vault", "compared with", *runs), *rows)
    before, _, rest = readme.read_text("utf-8").partition(BETWEEN[0])
    _, _, after = rest.partition(BETWEEN[1])
    readme.write_text(
        f"{before}{BETWEEN[0]}\n{machine}.\n\n{table}\n\n{BETWEEN[1]}{after}", "utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0].strip() if __doc__ else None
    )
    parser.add_argument(
        "--busy",
        action="store_true",
        help="with one process for each core that never rests beside it",
    )
    parser.add_argument(
        "--only",
        choices=sorted(SECTIONS),
        action="append",
        help="only this part, and the other figures stay; may be given again",
    )
    parser.add_argument(
        "--at-most",
        type=int,
        metavar="ROWS",
        default=1_000_000,
        help="leave out what has more rows: it takes minutes",
    )
    parser.add_argument(
        "--trial",
        action="store_true",
        help="tiny, in the environment that runs this: does it still work?",
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="the folder for the table and the picture"
    )
    options = parser.parse_args()
    name = "busy" if options.busy else "idle"
    python = (
        Path(sys.executable) if options.trial else environment("vault", [str(PROJECT)], anew=True)
    )
    folder = Path(tempfile.mkdtemp(prefix="outreach-vault-bench-"))
    bench = Bench(
        python, folder, 0.001 if options.trial else 1, 1 if options.trial else 4, options.at_most
    )
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
        bench.figures = list(
            (figures_of(earlier) | {figure.name: figure for figure in bench.figures}).values()
        )
    write(bench, name, facts, options.results, picture=not options.trial)
    if options.results == RESULTS and not options.trial:
        shorten_into(PROJECT / "README.md")
    print(table(bench.figures))


if __name__ == "__main__":
    main()
