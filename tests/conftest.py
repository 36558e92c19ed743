"""
What every test gets: an environment in which it cannot reach the developer's own keyring or
database.
"""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import SAMPLES
from helpers.commands import QUICK
from helpers.effort import THOROUGH, effort
from helpers.key_servers import ROOT_TOKEN, Bao, Moto
from helpers.oidc import AuthorizationServer
from helpers.postgres import Postgres
from helpers.rotation_peers import fill
from helpers.secret_service import SecretService, missing_programs
from helpers.site import Engine, Figures, Rotated, Site, new_site, prepared
from hypothesis import settings

from outreach_vault import KeyDirectory, Vault
from outreach_vault.database.sqlite import database as sqlite_database
from outreach_vault.keys.stores import os_keyring, remote
from outreach_vault.operations import rotation

REQUIRE_PEERS = "OUTREACH_VAULT_REQUIRE_PEERS"
# Fixtures.
PEERS = {
    "authorization_server", "aws_server", "bao_server", "kept_server", "postgres_16", "postgres_18",
    "secret_service",
}  # fmt: skip
# What each test of a vault is tried with, if it is not marked `sqlite`.
ENGINES = os.environ.get("OUTREACH_VAULT_ENGINES", "sqlite").split()
_required = pytest.StashKey[bool]()
_figures = pytest.StashKey[Counter[str]]()

# No folder of examples in the checkout; and no time per example, which measures the machine.
settings.register_profile("vault", database=None, deadline=None, max_examples=effort(100, 25))
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
    if ENGINES == ["sqlite"] and not THOROUGH:
        Postgres.left_out = "make test ENGINES='sqlite postgres-18' tries a server"


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (told := getattr(session.config, "workeroutput", None)) is not None:
        told["figures"] = dict(session.config.stash[_figures])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up what the processes of a run have shown (pytest-xdist)."""
    node.config.stash[_figures].update(getattr(node, "workeroutput", {}).get("figures", {}))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not SAMPLES.is_dir():
        terminalreporter.line(
            "The tests with real databases of the desktop app were left out, since only its authors"
            " have them: nothing is missing here."
        )
    figures = config.stash[_figures]
    if figures:
        terminalreporter.section("shown by this run")
        for name in sorted(figures):
            terminalreporter.line(f"  {figures[name]}  {name}")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is loaded stays: no collection of garbage, and no fork, need go through it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", ENGINES, indirect=True, scope="session")


def engine_of(item: pytest.Item) -> str | None:
    """None for a test that is not tried with each engine."""
    found: str | None = item.callspec.params.get("engine") if hasattr(item, "callspec") else None
    return found


def on_a_server(item: pytest.Item) -> bool:
    return engine_of(item) not in (None, "sqlite")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for only in ("sqlite", "server"):
            marker = item.get_closest_marker(only)
            assert marker is None or marker.args, f"{item.nodeid} is for one engine only: why?"
        if on_a_server(item) or PEERS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("peer")
    left_out, met = set[pytest.Item](), Counter[tuple[str, bool]]()
    for item in items:
        if engine_of(item) and item.get_closest_marker("sqlite" if on_a_server(item) else "server"):
            left_out.add(item)
        if item.get_closest_marker("thorough") and not THOROUGH:
            left_out.add(item)
        sweep = item.get_closest_marker("sweep")
        if sweep and not THOROUGH:
            test, *_ = item.nodeid.partition("[")
            case = test, on_a_server(item)  # each engine has the first of one kind
            if met[case] % sweep.args[0]:
                left_out.add(item)
            met[case] += 1
        if item.get_closest_marker("samples") and not SAMPLES.is_dir():
            left_out.add(item)
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not report.skipped or hasattr(report, "wasxfail") or not item.get_closest_marker("peer"):
        return report
    if item.config.stash[_required]:
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} was skipped, and {REQUIRE_PEERS}=1 allows none: {report.longrepr}"
        )
    elif isinstance(report.longrepr, tuple):
        # The same place for all: the summary then has one line for a peer that is missing.
        report.longrepr = (__file__, 0, report.longrepr[2])
    return report


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, homes: Path) -> None:
    strangers = (
        "PYTHON_KEYRING_", "DBUS_SESSION_", "XDG_", "OUTREACH_VAULT_", "BAO_", "VAULT_", "AWS_",
        "PG",
    )  # fmt: skip
    for name in [name for name in os.environ if name.startswith(strangers)]:
        monkeypatch.delenv(name)
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):  # the developer's own browser stays shut
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSH_CONNECTION", "")  # on macOS
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


@pytest.fixture(scope="session")
def postgres_16() -> Iterator[Postgres]:
    with Postgres(16) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_18() -> Iterator[Postgres]:
    with Postgres(18) as server:
        yield server


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Engine:
    """
    What keeps the vault: None is SQLite, else it is a server. A test gets one after the other.
    """
    if request.param == "sqlite":
        return None
    server: Postgres = request.getfixturevalue(request.param.replace("-", "_"))
    return server


@pytest.fixture(autouse=True)
def dropped() -> Iterator[None]:
    """A test's databases on a server end with it, as its folder does."""
    before = [(server, set(server.databases)) for server in Postgres.running]
    yield
    for server, databases in before:
        for name in server.databases - databases:
            server.drop(name)


@pytest.fixture(scope="session")
def empty(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """
    A new vault without values, made once: a copy of it does not wait for the disk as making one
    does. For copies only.
    """
    return new_site(tmp_path_factory.mktemp("templates") / "empty", engine)


@pytest.fixture(scope="session")
def after_a_rotation(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Rotated:
    made = new_site(tmp_path_factory.mktemp("templates") / "rotated", engine)
    with made.open() as vault:
        values, old = fill(vault, 4), vault.keys.states.active_id()
        return made, values, old, str(rotation.rotate(vault).new_key)


@pytest.fixture
def template(empty: Site) -> Site:
    """What `site` is a copy of. A test file whose tests begin with more has its own."""
    return empty


@pytest.fixture
def place(engine: Engine, request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """Where `site` is or would be: an empty folder, and on a server an empty database."""
    (folder := tmp_path / "site").mkdir()
    copied = {"site", "rotated"}.intersection(request.fixturenames)
    return Site.of(folder, engine) if copied else prepared(folder, engine)


@pytest.fixture
def site(engine: Engine, template: Site, place: Site) -> Site:
    """A vault, its keys in a key directory beside it."""
    assert template.engine is engine
    return template.copy(place.folder)


@pytest.fixture
def vault(site: Site) -> Iterator[Vault]:
    """The vault of `site`, open."""
    with site.open() as opened:
        yield opened


@pytest.fixture
def rotated(after_a_rotation: Rotated, place: Site) -> Rotated:
    """A vault after a rotation: its values, and the ids of the old key and of the present one."""
    made, values, old, new = after_a_rotation
    return made.copy(place.folder), dict(values), old, new


@pytest.fixture(autouse=True)
def short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a run that is not thorough a passphrase is stretched where that is what is shown."""
    if not THOROUGH and not request.node.get_closest_marker("stretched"):
        monkeypatch.setattr("outreach_vault.keys.passphrase._ARGON2ID", QUICK)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Argon2id at its least: what is shown about a file does not depend on how long its passphrase is
    stretched.
    """
    monkeypatch.setattr("outreach_vault.keys.passphrase._ARGON2ID", QUICK)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tries as ever, with short pauses before them and short waits in each."""
    monkeypatch.setattr(sqlite_database, "_CHECKPOINT_SECONDS", 0.02)
    monkeypatch.setattr(sqlite_database, "_CHECKPOINT_PAUSES", (0.0, 0.01, 0.02, 0.03))
    monkeypatch.setattr(os_keyring, "_PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(remote, "_PAUSES", (0.01, 0.01, 0.01))


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


@pytest.fixture(scope="session")
def one_authorization_server() -> Iterator[AuthorizationServer]:
    """It takes half a second to start."""
    with AuthorizationServer() as server:
        yield server


@pytest.fixture
def authorization_server(
    clean_environment: None, one_authorization_server: AuthorizationServer
) -> AuthorizationServer:
    """A real authorisation server, as if it had just begun."""
    one_authorization_server.reset()
    return one_authorization_server


@pytest.fixture(scope="session")
def bao_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    with Bao(tmp_path_factory.mktemp("bao")) as server:
        yield server


@pytest.fixture
def bao(clean_environment: None, bao_server: Bao, monkeypatch: pytest.MonkeyPatch) -> Bao:
    """A real OpenBao with TLS, and its root's token in this process's environment."""
    monkeypatch.setenv("BAO_TOKEN", ROOT_TOKEN)
    monkeypatch.setenv("BAO_CACERT", str(bao_server.ca))
    return bao_server


@pytest.fixture(scope="session")
def aws_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with Moto(tmp_path_factory.mktemp("aws")) as server:
        yield server


@pytest.fixture
def aws(clean_environment: None, aws_server: Moto, monkeypatch: pytest.MonkeyPatch) -> Moto:
    """AWS's double, and an account there in this process's environment."""
    for name, text in aws_server.env.items():
        monkeypatch.setenv(name, text)
    return aws_server
