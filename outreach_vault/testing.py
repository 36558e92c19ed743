"""
For adapters' tests: a key store in memory and two pytest fixtures. They never touch the keyring.
For tests of key stores: what every key store must do (`KeyStoreContract`).

    pytest_plugins = ["outreach_vault.testing"]        # in conftest.py

    def test_my_adapter(vault):
        vault.set("smtp", "host", "mail.example.com")
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, NoReturn

import pytest

from .cipher import generate_key
from .errors import KeyExists, KeyMissing, KeyringTimedOut, KeyStoreUnavailable
from .keys.stores import KeyStore, known_as, missing_key, prove
from .limits import within
from .operations.init import init
from .schema.shapes import new_id
from .secret import Secret
from .vault import Vault


class MemoryKeyStore:
    """A `KeyStore` for tests only: the keys are lost when the process ends."""

    name = "memory"

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str], Secret] = {}
        self._successors: dict[tuple[str, str], str] = {}
        self._turn = threading.Lock()  # of two writers, the second must find the first one's entry

    def read(self, vault_id: str, key_id: str) -> Secret:
        if (vault_id, key_id) not in self._keys:
            raise missing_key(self.name, key_id)
        return self._keys[vault_id, key_id]

    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        with self._turn:
            if (vault_id, key_id) in self._keys:
                raise KeyExists(f"{self.name} has a key {key_id} already", key_id=key_id)
            self._keys[vault_id, key_id] = key

    def holds(self, vault_id: str, key_id: str) -> bool:
        return (vault_id, key_id) in self._keys

    def delete(self, vault_id: str, key_id: str) -> None:
        self._keys.pop((vault_id, key_id), None)

    def successor(self, vault_id: str, key_id: str) -> str | None:
        return self._successors.get((vault_id, key_id))

    def mark_superseded(self, vault_id: str, key_id: str, successor_id: str) -> None:
        self._successors.setdefault((vault_id, key_id), successor_id)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """An open vault with its keys in memory, in a new database with project `default-project`."""
    path, keys = tmp_path / "vault.db", MemoryKeyStore()
    init(path, key_store=keys)
    with Vault.open(path, key_store=keys) as opened:
        yield opened


@pytest.fixture
def strict_secrets() -> Iterator[None]:
    """
    A test fails where a `Secret` becomes text: `str()`, `%s`, an f-string. `repr` stays silent.

    The text would be `********`, which an adapter could send in the value's place. No handler of
    `Exception`, not logging's either, keeps the failure from the test. For all tests of a suite:
    `usefixtures = strict_secrets` in pytest's settings.
    """

    def refuse(secret: Secret, spec: str = "") -> NoReturn:
        __tracebackhide__ = True
        pytest.fail("a secret became text, ********; hand reveal() to the call that needs it")

    with pytest.MonkeyPatch.context() as patched:  # a test may undo the fixture's
        patched.setattr(Secret, "__str__", refuse)
        patched.setattr(Secret, "__format__", refuse)
        yield


class KeyStoreContract:
    """
    What every key store must do. Define the fixtures in a subclass, and pytest runs the tests:

        class TestMyStore(KeyStoreContract):
            @pytest.fixture
            def store(self, tmp_path): return MyStore(tmp_path)
            @pytest.fixture
            def again(self, tmp_path): return MyStore(tmp_path)

    Use a place for tests only: some entries stay there.

    Attributes:
        patience: a slow store must give up each call within this many seconds.
    """

    patience: ClassVar[float] = 30.0

    @pytest.fixture
    def store(self) -> KeyStore:
        """An empty store."""
        raise NotImplementedError("define a fixture `store` in your class")

    @pytest.fixture
    def again(self) -> KeyStore:
        """A second object for the same place as `store`, as another process would have."""
        raise NotImplementedError("define a fixture `again` in your class")

    @pytest.fixture
    def unreachable(self) -> KeyStore:
        """A store whose place cannot be reached."""
        pytest.skip("no fixture `unreachable`, so no test with a place that cannot be reached")

    @pytest.fixture
    def slow(self) -> KeyStore:
        """A store whose place never answers, with a time limit below `patience`."""
        pytest.skip("no fixture `slow`, so no test with a place that never answers")

    def test_what_was_written_is_read_back(self, store: KeyStore, again: KeyStore) -> None:
        vault_id, key_id = _names()
        store.write(vault_id, key_id, key := generate_key())
        for each in (store, again):
            assert each.read(vault_id, key_id) == key, "it does not read the key that was written"

    def test_init_can_try_it_and_leaves_nothing(self, store: KeyStore) -> None:
        prove(store)
        prove(store)

    def test_an_entry_is_written_once(self, store: KeyStore, again: KeyStore) -> None:
        vault_id, key_id = _names()
        store.write(vault_id, key_id, first := generate_key())
        for each, key in ((store, generate_key()), (again, generate_key()), (store, first)):
            error = _error_of(each.write, vault_id, key_id, key)
            assert isinstance(error, KeyExists), f"a second write raises KeyExists, not {error!r}"
            assert error.key_id == key_id, "KeyExists must have the key's id"
            assert again.read(vault_id, key_id) == first, "the first key is gone"

    def test_of_writers_at_once_exactly_one_wins(self, store: KeyStore, again: KeyStore) -> None:
        writers = [store, again, store, again]
        for _ in range(5):
            vault_id, key_id = _names()
            keys, start = [generate_key() for _ in writers], threading.Barrier(len(writers))

            def write(writer: KeyStore, key: Secret) -> Exception | None:
                start.wait()  # noqa: B023  # all are done before the next round
                return _error_of(writer.write, vault_id, key_id, key)  # noqa: B023

            with ThreadPoolExecutor(len(writers)) as pool:
                errors = list(pool.map(write, writers, keys))
            assert errors.count(None) == 1, f"exactly one write must succeed: {errors}"
            assert all(isinstance(error, KeyExists) for error in errors if error), errors
            for each in (store, again):
                assert each.read(vault_id, key_id) == keys[errors.index(None)], "not the winner's"

    def test_a_missing_key_is_named(self, store: KeyStore, again: KeyStore) -> None:
        vault_id, key_id = _names()
        store.write(vault_id, new_id(), generate_key())
        for each in (store, again):
            error = _error_of(each.read, vault_id, key_id)
            assert isinstance(error, KeyMissing), f"a missing key raises KeyMissing, not {error!r}"
            assert error.key_id == key_id and key_id in str(error), "the error must name the key"
            assert error.hint, "the error must say what to do next"

    def test_holds_says_whether_there_is_a_key(self, store: KeyStore, again: KeyStore) -> None:
        vault_id, key_id = _names()
        assert again.holds(vault_id, key_id) is False, "even before the store is made"
        store.write(vault_id, key_id, generate_key())
        for each in (store, again):
            assert each.holds(vault_id, key_id) is True
            assert each.holds(vault_id, new_id()) is each.holds(new_id(), key_id) is False
        store.delete(vault_id, key_id)
        assert again.holds(vault_id, key_id) is store.holds(vault_id, key_id) is False

    def test_a_deleted_key_can_be_written_anew(self, store: KeyStore, again: KeyStore) -> None:
        vault_id, key_id = _names()
        store.write(vault_id, key_id, generate_key())
        again.delete(vault_id, key_id)
        for each in (store, again):
            error = _error_of(each.read, vault_id, key_id)
            assert isinstance(error, KeyMissing), f"a deleted key raises KeyMissing: {error!r}"
        store.write(vault_id, key_id, key := generate_key())
        assert again.read(vault_id, key_id) == key

    def test_deleting_what_is_not_there_does_nothing(self, store: KeyStore) -> None:
        vault_id, key_id = _names()
        store.delete(vault_id, key_id)  # the store is empty
        store.write(vault_id, key_id, key := generate_key())
        store.delete(vault_id, new_id())
        store.delete(new_id(), key_id)
        assert store.read(vault_id, key_id) == key

    def test_two_vaults_and_two_keys_do_not_mix(self, store: KeyStore, again: KeyStore) -> None:
        (one, first), (other, second) = _names(), _names()
        names = [(vault_id, key_id) for vault_id in (one, other) for key_id in (first, second)]
        keys = {name: generate_key() for name in names}
        for name, key in keys.items():
            store.write(*name, key)
        assert [name for name in names if again.read(*name) != keys[name]] == []
        store.mark_superseded(one, first, second)
        assert [name for name in names if again.successor(*name)] == names[:1]
        store.delete(one, first)
        assert [name for name in names if again.holds(*name)] == names[1:]

    def test_the_first_successor_stands(self, store: KeyStore, again: KeyStore) -> None:
        (vault_id, key_id), (first, later) = _names(), _names()
        store.write(vault_id, key_id, generate_key())
        for each in (store, again):
            assert each.successor(vault_id, key_id) is None, "no successor until one is marked"
        store.mark_superseded(vault_id, key_id, first)
        for each in (store, again):
            each.mark_superseded(vault_id, key_id, later)
            assert each.successor(vault_id, key_id) == first, "a later mark replaced the first"
        store.delete(vault_id, key_id)
        for each in (store, again):
            assert each.successor(vault_id, key_id) == first, "the mark must outlive the key"
        store.write(vault_id, key_id, generate_key())
        assert again.successor(vault_id, key_id) == first, "a key that came back is still old"

    def test_its_place_is_known_by_one_name(self, store: KeyStore, again: KeyStore) -> None:
        before = known_as(store)
        store.write(*_names(), generate_key())
        assert known_as(store) == known_as(again) == before != ""

    def test_nothing_that_it_shows_holds_a_key(self, store: KeyStore) -> None:
        vault_id, key_id = _names()
        store.write(vault_id, key_id, first := generate_key())
        second = generate_key()
        shown = [store.name, known_as(store), str(store), repr(store)]
        for error in (
            _error_of(store.write, vault_id, key_id, second),
            _error_of(store.read, vault_id, new_id()),
        ):
            cause: BaseException | None = error
            while cause:
                shown += [str(cause), repr(cause), str(vars(cause))]
                cause = cause.__cause__ or cause.__context__
        for key in (first.reveal(), second.reveal()):
            assert [text.replace(key, "<a key>") for text in shown if key in text] == []

    def test_a_place_that_cannot_be_reached_is_said(self, unreachable: KeyStore) -> None:
        for use, call in _uses(unreachable):
            error = _error_of(call)
            assert isinstance(error, KeyStoreUnavailable), f"{use}: {error!r}"
            assert error.hint, f"{use}: the error must say what to do next"

    def test_a_place_that_never_answers_is_given_up(self, slow: KeyStore) -> None:
        for use, call in _uses(slow):
            error = _error_of(within, self.patience, call)
            assert isinstance(error, KeyringTimedOut), f"{use}: {error!r} in {self.patience} s"
            assert error.hint, f"{use}: the error must say what to do next"


def _names() -> tuple[str, str]:
    return new_id(), new_id()


def _uses(store: KeyStore) -> list[tuple[str, Callable[[], object]]]:
    vault_id, key_id = _names()
    return [
        ("read", lambda: store.read(vault_id, key_id)),
        ("write", lambda: store.write(vault_id, key_id, generate_key())),
        ("holds", lambda: store.holds(vault_id, key_id)),
        ("delete", lambda: store.delete(vault_id, key_id)),
        ("successor", lambda: store.successor(vault_id, key_id)),
        ("mark_superseded", lambda: store.mark_superseded(vault_id, key_id, new_id())),
    ]


def _error_of(call: Callable[..., object], *arguments: object) -> Exception | None:
    try:
        call(*arguments)
    except Exception as error:  # noqa: BLE001  # the test looks at its type
        return error
    return None
