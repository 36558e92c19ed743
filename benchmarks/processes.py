"""What the benchmark starts: environments, contenders in turn, whole commands, and other load."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CONTENDERS = HERE / "contenders"
ENVIRONMENTS = HERE / ".environments"


class Absent(Exception):
    """A peer or a tool is not available here; the text says why."""


def environment(name: str, requirements: list[str], *, anew: bool = False) -> Path:
    """
    The Python of a virtual environment with *requirements*. Makes it if it is missing.

    Raises:
        Absent: they cannot be installed.
    """
    folder = ENVIRONMENTS / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    made, wanted = folder / "installed.json", json.dumps(requirements)
    if not anew and made.exists() and made.read_text() == wanted:
        return python
    print(f"installing {name}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    quiet = ("--quiet", "--quiet", "--disable-pip-version-check")
    install = [python, "-m", "pip", "install", *quiet, *requirements]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        *_, why = ["no reason given", *done.stderr.strip().splitlines()]
        raise Absent(f"pip could not install it: {why}")
    made.write_text(wanted)
    return python


class Contender:
    """A process of `contenders/`, its files ready in its own folder, waiting for orders."""

    def __init__(self, python: Path, script: str, folder: Path, *arguments: object) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.folder = folder
        self._process = subprocess.Popen(
            [python, CONTENDERS / f"{script}.py", folder, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.names: list[str] = self._answer()["ready"]

    def begin(self, name: str, count: int) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{name} {count}\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        return self._answer()

    def run(self, name: str, count: int) -> dict[str, Any]:
        self.begin(name, count)
        return self.end()

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        if self._process.stdin.closed:
            return
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise Absent(f"it ended with exit status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def seconds_of(command: list[str | Path], variables: Mapping[str, str]) -> float:
    """How long a whole process takes. Its output is thrown away."""
    begun = time.perf_counter()
    subprocess.run(command, env={**os.environ, **variables}, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


@contextlib.contextmanager
def busy(how_many: int) -> Iterator[None]:
    """Run so many processes that never rest beside what is measured."""
    code = "while True: sum(range(10000))"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(how_many)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
