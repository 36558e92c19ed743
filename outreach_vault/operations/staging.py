"""
Rotation by stages, for hosts that each have their own copy of the keys.

A new key is made and *staged*. It is brought to every host, and each host acknowledges it: it has
read the key from its own key store and proved it. Then a rotation makes the key active. A host that
lacked it could neither read what is stored from then on nor store anything.

Hosts are known by what they acknowledged. So a vault whose hosts share a key store knows none, and
is rotated in one step.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import NamedTuple

from ..errors import HostNotFound, KeyNotAcknowledged, WrongArgument, brief, near, typed_name
from ..keys import home
from ..keys.hosts import Host
from ..keys.states import KeyRecord
from ..vault import Vault

_AT_MOST = 255  # characters of a host's name; DNS takes fewer
_ACKNOWLEDGE = "'vault keys acknowledge' on each of them"


class Acknowledged(NamedTuple):
    """
    What a host acknowledged.

    Attributes:
        state: of the key: `staged`, or `active` where none is staged.
    """

    host: str
    key_id: str
    state: str


def this_host(name: str | None = None) -> str:
    """
    *name*, or this machine's (in a container, that of the pod).

    Raises:
        WrongArgument: it is empty, longer than 255 characters, or cannot be printed.
    """
    name = socket.gethostname() if name is None else name
    if not name.strip() or not name.isprintable() or len(name) > _AT_MOST:
        raise WrongArgument(
            f"the host's name is empty, cannot be printed, or has more than {_AT_MOST} characters",
            hint="name it with --host",
        )
    return name


def stage(
    vault: Vault, *, host: str | None = None, although_copied: bool = False
) -> tuple[KeyRecord, bool]:
    """
    Make a key for the next rotation, and acknowledge it for this host. No value is put under it.

    Safe to kill and to run again: there is one staged key at most.

    Returns:
        The staged key, and whether it was staged already.
    Raises:
        OperationRunning, SharedKeys, KeySuperseded, KeyUnavailable: as `rotation.rotate`.
    """
    name = this_host(host)

    def turn() -> tuple[KeyRecord, bool]:
        home.require_own_keys(vault.database, vault.keys, although_copied=although_copied)
        before = vault.keys.states.staged()
        staged = vault.keys.stage(name)
        return staged, staged == before

    return vault.database.operators_turn(turn)


def unstage(vault: Vault) -> str:
    """
    Take the staged key back; its id. Whatever key store has it keeps it.

    Raises:
        KeyMissing: none is staged.
    """
    return vault.database.operators_turn(vault.keys.unstage)


def acknowledge(vault: Vault, *, host: str | None = None) -> Acknowledged:
    """
    Prove that this host has the staged key, if there is one, and the active one; and note that.

    It needs no turn among the operators: if a key changes its state meanwhile, the note names an
    older one, and the host only counts as one that lacks the newer.

    Raises:
        KeyUnavailable: this host's key store lacks one of the keys, or has another in its place.
    """
    name = this_host(host)
    key = vault.keys.states.record(vault.keys.states.active_id())
    vault.keys.cipher(key.id)
    if staged := vault.keys.states.staged():
        vault.keys.prove_staged(staged)
        key = staged
    vault.database.write(lambda: vault.keys.hosts.acknowledge(name, key.id))
    return Acknowledged(name, key.id, key.state)


def renew(vault: Vault, host: str | None, key_id: str) -> None:
    """Note for this host, if it is known, that it has a key: it has just proved that."""
    known = {each.host for each in vault.keys.hosts.known()}
    if known and (name := this_host(host)) in known:
        vault.database.write(lambda: vault.keys.hosts.acknowledge(name, key_id))


def lacking(vault: Vault, key_id: str) -> list[Host]:
    """The known hosts that have not acknowledged this key."""
    return [host for host in vault.keys.hosts.known() if host.key_id != key_id]


def remove(vault: Vault, host: str) -> None:
    """
    Forget a host that is gone. It is known again once it acknowledges a key.

    Raises:
        HostNotFound: no such host is known.
    """
    require_known(vault, [host])
    vault.database.write(lambda: vault.keys.hosts.remove(host))


def require_acknowledged(
    vault: Vault,
    staged: KeyRecord | None,
    host: str | None,
    without: Iterable[str],
    without_all: bool,
) -> None:
    """
    Raise if the next rotation would leave a host without its key, unless the operator decided so.

    This host itself need not have acknowledged: a rotation proves the key here.

    Raises:
        KeyNotAcknowledged: known hosts lack the staged key; nobody but the host that made it has
            acknowledged it; or none is staged, and other hosts are known.
        HostNotFound: no host of a name in *without* is known.
    """
    known, going = vault.keys.hosts.known(), set(without)
    require_known(vault, going)
    if without_all or not (known or staged):
        return
    here = this_host(host)
    lack = [
        each
        for each in known
        if each.host != here and each.host not in going and not _has(each, staged)
    ]
    named = "; ".join(f"{brief(each.host)} (last seen {each.acknowledged_at})" for each in lack)
    hosts = tuple(each.host for each in lack)
    decide = (
        "'vault keys hosts --remove HOST' removes one that is gone;"
        " --without HOST or --without-all goes on without"
    )
    if lack and staged is None:
        raise KeyNotAcknowledged(
            f"other hosts have their own copy of the keys and would lack a new one: {named};"
            " nothing was changed",
            hint=f"'vault rotate --stage' makes the key first; {decide}",
            hosts=hosts,
        )
    if staged and lack:
        raise KeyNotAcknowledged(
            f"staged key {staged.id} is not acknowledged by: {named}; nothing was changed",
            hint=f"{_ACKNOWLEDGE}; {decide}",
            hosts=hosts,
        )
    others = [each for each in known if each.host != staged.staged_by] if staged else []
    if staged and not going and not any(_has(each, staged) for each in others):
        raise KeyNotAcknowledged(
            f"staged key {staged.id} is not acknowledged by any host but {staged.staged_by}, which"
            " made it; nothing was changed",
            hint="'vault keys acknowledge' on each host that uses this vault; --without-all goes"
            " on, if there is no other",
        )


def _has(host: Host, staged: KeyRecord | None) -> bool:
    return staged is not None and host.key_id == staged.id


def require_known(vault: Vault, names: Iterable[str]) -> None:
    """Raise HostNotFound if one of the names is no known host's."""
    there = [host.host for host in vault.keys.hosts.known()]
    for name in names:
        if name not in there:
            raise HostNotFound(
                f"no host {typed_name(name)} has acknowledged a key{near(name, there)}",
                hint="'vault keys hosts' lists them",
            )
