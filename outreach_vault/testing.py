"""
For adapters' tests: a key store in memory and a pytest fixture. The machine's keyring is untouched.
For a key store's tests: what every key store must do (`KeyStoreContract`).

    pytest_plugins = ["outreach_vault.testing"]        # in conftest.py

    def test_my_adapter(vault):
        vault.set("smtp", "host", "mail.example.com")
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest

from .cipher import generate_key
from .errors import KeyExists, KeyMissing, KeyringTimedOut, KeyStoreUnavailable
from .keys.stores import KeyStore, known_as, missing_key, prove
from .limits import within
from .schema.shapes import new_id
from .secret import Secret
from .vault import Vault, init


class MemoryKeyStore:
    """A `KeyStore` for tests alone: its keys end with the process, and no value opens again."""

    name = "memory"

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str], Secret] = {}
        self._successors: dict[tuple[str, str], str] = {}
        self._turn = threading.Lock()  # of two writers one must find the other's entry

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


class KeyStoreContract:
    """
    What every key store does. A subclass gives the fixtures, and pytest runs the tests on them:

        class TestMyStore(KeyStoreContract):
            @pytest.fixture
            def store(self, tmp_path): return MyStore(tmp_path)
            @pytest.fixture
            def again(self, tmp_path): return MyStore(tmp_path)

    Let them have a place for tests alone: entries of vaults that nobody has stay in it.

    Attributes:
        patience: a slow store must give up each call within so many seconds.
    """

    patience: ClassVar[float] = 30.0

    @pytest.fixture
    def store(self) -> KeyStore:
        """A store in which nothing is yet."""
        raise NotImplementedError("the class gives a fixture `store`")

    @pytest.fixture
    def again(self) -> KeyStore:
        """A second object for the place of `store`, as another process would have it."""
        raise NotImplementedError("the class gives a fixture `again`")

    @pytest.fixture
    def unreachable(self) -> KeyStore:
        """A store whose place cannot be reached."""
        pytest.skip("no fixture `unreachable`: not tried on a place that cannot be reached")

    @pytest.fixture
    def slow(self) -> KeyStore:
        """A store whose place never answers, with a time limit below `patience`."""
        pytest.skip("no fixture `slow`: not tried on a place that never answers")

    def test_what_was_written_is_read_back(self, store: KeyStore, again: KeyStore) -> None:
        vault_id, key_id = _names()
        store.write(vault_id, key_id, key := generate_key())
        for each in (store, again):
            assert each.read(vault_id, key_id) == key, "another key is read than was written"

    def test_init_can_try_it_and_leaves_nothing(self, store: KeyStore) -> None:
        prove(store)
        prove(store)

    def test_an_entry_is_written_once(self, store: KeyStore, again: KeyStore) -> None:
        vault_id, key_id = _names()
        store.write(vault_id, key_id, first := generate_key())
        for each, key in ((store, generate_key()), (again, generate_key()), (store, first)):
            error = _error_of(each.write, vault_id, key_id, key)
            assert isinstance(error, KeyExists), f"a second write is KeyExists, not {error!r}"
            assert error.key_id == key_id, "KeyExists has the key's id"
            assert again.read(vault_id, key_id) == first, "the first key is not there any more"

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
            assert errors.count(None) == 1, f"exactly one write succeeds: {errors}"
            assert all(isinstance(error, KeyExists) for error in errors if error), errors
            for each in (store, again):
                assert each.read(vault_id, key_id) == keys[errors.index(None)], "not the winner's"

    def test_a_missing_key_is_named(self, store: KeyStore, again: KeyStore) -> None:
        vault_id, key_id = _names()
        store.write(vault_id, new_id(), generate_key())
        for each in (store, again):
            error = _error_of(each.read, vault_id, key_id)
            assert isinstance(error, KeyMissing), f"a missing key is KeyMissing, not {error!r}"
            assert error.key_id == key_id and key_id in str(error), "it names the key"
            assert error.hint, "it says what to do next"

    def test_holds_says_whether_there_is_a_key(self, store: KeyStore, again: KeyStore) -> None:
        vault_id, key_id = _names()
        assert again.holds(vault_id, key_id) is False, "also where the store is not made yet"
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
            assert isinstance(error, KeyMissing), f"a deleted key is KeyMissing, not {error!r}"
        store.write(vault_id, key_id, key := generate_key())
        assert again.read(vault_id, key_id) == key

    def test_deleting_what_is_not_there_does_nothing(self, store: KeyStore) -> None:
        vault_id, key_id = _names()
        store.delete(vault_id, key_id)  # nothing at all yet
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
            assert each.successor(vault_id, key_id) is None, "none before one is marked"
        store.mark_superseded(vault_id, key_id, first)
        for each in (store, again):
            each.mark_superseded(vault_id, key_id, later)
            assert each.successor(vault_id, key_id) == first, "the first mark does not stand"
        store.delete(vault_id, key_id)
        for each in (store, again):
            assert each.successor(vault_id, key_id) == first, "the mark is gone with the key"
        store.write(vault_id, key_id, generate_key())
        assert again.successor(vault_id, key_id) == first, "a key that came back is an older one"

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
            assert error.hint, f"{use}: it says what to do next"

    def test_a_place_that_never_answers_is_given_up(self, slow: KeyStore) -> None:
        for use, call in _uses(slow):
            error = _error_of(within, self.patience, call)
            assert isinstance(error, KeyringTimedOut), f"{use}: {error!r} in {self.patience} s"
            assert error.hint, f"{use}: it says what to do next"


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
    except Exception as error:  # noqa: BLE001  # which it is, is what the test looks at
        return error
    return None
