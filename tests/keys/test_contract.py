"""The contract of key stores has teeth: each store here has one fault, and fails for it."""

from __future__ import annotations

import inspect
import threading
import time
from typing import Any

import pytest

from outreach_vault.errors import KeyExists, KeyMissing, KeyringTimedOut, KeyStoreUnavailable
from outreach_vault.keys.stores import KeyStore, missing_key
from outreach_vault.secret import Secret
from outreach_vault.testing import KeyStoreContract, MemoryKeyStore


class Shared(MemoryKeyStore):
    """As it should be: two objects have one place, as two processes have."""

    def again(self) -> MemoryKeyStore:
        other = type(self)()
        vars(other).update(vars(self))
        return other


class Refusing(Shared):
    """Each call ends in *error*; without one it never ends."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error

    def refuse(self, *_: object) -> Any:
        if self.error is None:
            threading.Event().wait(20)
        raise self.error or AssertionError("it was waited for")

    read = write = holds = delete = successor = mark_superseded = refuse


def unreachable() -> Refusing:
    return Refusing(KeyStoreUnavailable("its server is away", hint="start it"))


class Overwrites(Shared):
    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        self._keys[vault_id, key_id] = key


class TakesTheSameKeyTwice(Shared):
    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        if self._keys.get((vault_id, key_id)) != key:
            super().write(vault_id, key_id, key)


class IgnoresASecondWrite(Shared):
    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        self._keys.setdefault((vault_id, key_id), key)


class LosesAWrite(Shared):
    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        pass


class KeepsItToItself(Shared):
    def again(self) -> MemoryKeyStore:
        return type(self)()


class LooksAndThenWrites(Shared):
    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        if self.holds(vault_id, key_id):
            raise KeyExists("there", key_id=key_id)
        time.sleep(0.05)
        self._keys[vault_id, key_id] = key


class ReadsAnotherText(Shared):
    def read(self, vault_id: str, key_id: str) -> Secret:
        return Secret(super().read(vault_id, key_id).reveal()[:-1])


class ReadsTheLastKeyForAMissingOne(Shared):
    def read(self, vault_id: str, key_id: str) -> Secret:
        if not self.holds(vault_id, key_id) and self._keys:
            return list(self._keys.values())[-1]
        return super().read(vault_id, key_id)


class MissesInAnotherWay(Shared):
    error: Exception = KeyError("none")

    def read(self, vault_id: str, key_id: str) -> Secret:
        if not self.holds(vault_id, key_id):
            raise self.error
        return super().read(vault_id, key_id)


class MissesWithoutTheKeysName(MissesInAnotherWay):
    error = KeyMissing("no such key", hint="look elsewhere")


class HoldsEverything(Shared):
    def holds(self, vault_id: str, key_id: str) -> bool:
        return True


class HoldsWhatWasDeleted(Shared):
    def delete(self, vault_id: str, key_id: str) -> None:
        if self.holds(vault_id, key_id):
            self._keys[vault_id, key_id] = Secret("deleted")


class DeletesTheVault(Shared):
    def delete(self, vault_id: str, key_id: str) -> None:
        for name in [name for name in self._keys if name[0] == vault_id]:
            del self._keys[name]


class CannotDeleteNothing(Shared):
    def delete(self, vault_id: str, key_id: str) -> None:
        del self._keys[vault_id, key_id]


class NeverWritesAnew(Shared):
    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        super().write(vault_id, f"ever {key_id}", key)
        super().write(vault_id, key_id, key)


class MixesVaults(Shared):
    def read(self, vault_id: str, key_id: str) -> Secret:
        found = [key for name, key in self._keys.items() if name[1] == key_id]
        return found[0] if found else super().read(vault_id, key_id)


class ForgetsTheSuccessor(Shared):
    def mark_superseded(self, vault_id: str, key_id: str, successor_id: str) -> None:
        pass


class TakesTheLastSuccessor(Shared):
    def mark_superseded(self, vault_id: str, key_id: str, successor_id: str) -> None:
        self._successors[vault_id, key_id] = successor_id


class HasASuccessorFromTheStart(Shared):
    def successor(self, vault_id: str, key_id: str) -> str | None:
        return self._successors.get((vault_id, key_id), "")


class DeletesTheSuccessorToo(Shared):
    def delete(self, vault_id: str, key_id: str) -> None:
        super().delete(vault_id, key_id)
        self._successors.pop((vault_id, key_id), None)


class SupersedesTheWholeVault(Shared):
    def successor(self, vault_id: str, key_id: str) -> str | None:
        return next((key for name, key in self._successors.items() if name[0] == vault_id), None)


class ShowsItsKeys(Shared):
    def __repr__(self) -> str:
        return repr([key.reveal() for key in self._keys.values()])


class ShowsTheKeyThatItRefuses(Shared):
    def write(self, vault_id: str, key_id: str, key: Secret) -> None:
        if self.holds(vault_id, key_id):
            try:
                raise ValueError(key.reveal())
            except ValueError as error:
                raise KeyExists("there", key_id=key_id) from error
        super().write(vault_id, key_id, key)


class IsKnownByItsProcess(Shared):
    def known_as(self) -> str:
        return str(id(self))


class AwayIsMissing(Refusing):
    def read(self, vault_id: str, key_id: str) -> Secret:
        raise missing_key(self.name, key_id)


class AwayHoldsNothing(Refusing):
    def holds(self, vault_id: str, key_id: str) -> bool:
        return False


class AwayHasNoSuccessor(Refusing):
    def successor(self, vault_id: str, key_id: str) -> str | None:
        return None


class AwayDeletes(Refusing):
    def delete(self, vault_id: str, key_id: str) -> None:
        pass


class Brief(KeyStoreContract):
    patience = 0.5


TESTS = [name for name in dir(Brief) if name.startswith("test_")]


def failing(store: type[Shared] = Shared, **others: KeyStore) -> list[str]:
    """The tests of the contract that such a store does not pass."""
    failed = []
    for name in TESTS:
        test, first = getattr(Brief(), name), store()
        timed_out = KeyringTimedOut("no answer", hint="wake it")
        given: dict[str, KeyStore] = {"store": first, "again": first.again()}
        given |= {"unreachable": unreachable(), "slow": Refusing(timed_out), **others}
        try:
            test(**{name: given[name] for name in inspect.signature(test).parameters})
        except Exception:
            failed.append(name)
    return failed


def test_a_store_as_it_should_be_passes_the_whole_contract() -> None:
    assert failing() == [] and len(TESTS) >= 13


@pytest.mark.parametrize(
    ("store", "test"),
    [
        (Overwrites, "test_an_entry_is_written_once"),
        (TakesTheSameKeyTwice, "test_an_entry_is_written_once"),
        (IgnoresASecondWrite, "test_an_entry_is_written_once"),
        (LosesAWrite, "test_what_was_written_is_read_back"),
        (LosesAWrite, "test_init_can_try_it_and_leaves_nothing"),
        (KeepsItToItself, "test_what_was_written_is_read_back"),
        (LooksAndThenWrites, "test_of_writers_at_once_exactly_one_wins"),
        (ReadsAnotherText, "test_what_was_written_is_read_back"),
        (ReadsTheLastKeyForAMissingOne, "test_a_missing_key_is_named"),
        (MissesInAnotherWay, "test_a_missing_key_is_named"),
        (MissesWithoutTheKeysName, "test_a_missing_key_is_named"),
        (HoldsEverything, "test_holds_says_whether_there_is_a_key"),
        (HoldsWhatWasDeleted, "test_a_deleted_key_can_be_written_anew"),
        (NeverWritesAnew, "test_a_deleted_key_can_be_written_anew"),
        (DeletesTheVault, "test_two_vaults_and_two_keys_do_not_mix"),
        (CannotDeleteNothing, "test_deleting_what_is_not_there_does_nothing"),
        (MixesVaults, "test_two_vaults_and_two_keys_do_not_mix"),
        (ForgetsTheSuccessor, "test_the_first_successor_stands"),
        (TakesTheLastSuccessor, "test_the_first_successor_stands"),
        (HasASuccessorFromTheStart, "test_the_first_successor_stands"),
        (DeletesTheSuccessorToo, "test_the_first_successor_stands"),
        (SupersedesTheWholeVault, "test_two_vaults_and_two_keys_do_not_mix"),
        (ShowsItsKeys, "test_nothing_that_it_shows_holds_a_key"),
        (ShowsTheKeyThatItRefuses, "test_nothing_that_it_shows_holds_a_key"),
        (IsKnownByItsProcess, "test_its_place_is_known_by_one_name"),
    ],
)
def test_a_store_with_a_fault_fails_the_contract(store: type[Shared], test: str) -> None:
    assert test in failing(store)


@pytest.mark.parametrize(
    "store",
    [AwayIsMissing, AwayHoldsNothing, AwayHasNoSuccessor, AwayDeletes],
)
def test_one_that_does_not_say_that_its_place_is_away_fails(store: type[Refusing]) -> None:
    away = store(unreachable().error)
    assert failing(unreachable=away) == ["test_a_place_that_cannot_be_reached_is_said"]


@pytest.mark.parametrize("error", [None, KeyStoreUnavailable("away", hint="wait")])
def test_one_that_does_not_end_in_time_fails(error: Exception | None) -> None:
    assert failing(slow=Refusing(error)) == ["test_a_place_that_never_answers_is_given_up"]
