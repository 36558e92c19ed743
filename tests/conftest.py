"""
What every test gets: an environment in which it cannot reach the developer's own keyring or
database.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from faults import Figures, Site, new_site
from hypothesis import settings
from secret_service import SecretService, missing_programs

from outreach_vault import KeyDirectory

REQUIRE_PEERS = "OUTREACH_VAULT_REQUIRE_PEERS"
_required = pytest.StashKey[bool]()
_figures = pytest.StashKey[Counter[str]]()

# No folder of examples in the checkout; and no time per example, which measures the machine.
settings.register_profile("vault", database=None, deadline=None)
settings.load_profile("vault")


def pytest_configure(config: pytest.Config) -> None:
    # A job in the background of a script ignores Ctrl-C, and one under nohup a hang-up; so would
    # every command of a test.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    ):
        signal.signal(number, signal.SIG_DFL)
    # Now: a test's own environment has none of ours.
    config.stash[_required] = os.environ.get(REQUIRE_PEERS) == "1"
    config.stash[_figures] = Counter()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    figures = config.stash[_figures]
    if figures:
        terminalreporter.section("shown by this run")
        for name in sorted(figures):
            terminalreporter.line(f"  {figures[name]}  {name}")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "secret_service" in getattr(item, "fixturenames", ()):
            item.add_marker("peer")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and item.config.stash[_required]
        and item.get_closest_marker("peer")
    ):
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} was skipped, and {REQUIRE_PEERS}=1 allows none: {report.longrepr}"
        )
    return report


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, homes: Path) -> None:
    strangers = ("PYTHON_KEYRING_", "DBUS_SESSION_", "XDG_", "OUTREACH_VAULT_")
    for name in [name for name in os.environ if name.startswith(strangers)]:
        monkeypatch.delenv(name)
    # `mktemp` would look through those of all tests before.
    monkeypatch.setenv("HOME", tempfile.mkdtemp(dir=homes))


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    """
    Adds up how often a thing was tried and held, for the end of the run; called when the assertions
    have passed.
    """
    found = pytestconfig.stash[_figures]

    def add(name: str, count: int) -> None:
        found[name] += count

    return add


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A new vault without values, its keys in a key directory beside it."""
    return new_site(tmp_path / "site")


@pytest.fixture
def key_dir(tmp_path: Path) -> KeyDirectory:
    """A key directory that does not exist yet: the first key makes it."""
    return KeyDirectory(tmp_path / "keys")


@pytest.fixture
def secret_service(
    clean_environment: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SecretService]:
    """A real Secret Service, unlocked, in this process's environment."""
    if missing := missing_programs():
        pytest.skip(
            f"no {', '.join(missing)} on this machine (Debian: dbus, gnome-keyring, "
            "libsecret-tools)"
        )
    with SecretService() as service:
        for name, value in service.env.items():
            monkeypatch.setenv(name, value)
        yield service
