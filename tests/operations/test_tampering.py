"""
Who can write the database gains nothing by it: no older key, no key of theirs, and no file
elsewhere. K9.

What they can do is harm: make the vault refuse. Then it says which key it is about, and goes on
when that is put back.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from helpers.commands import failed, problems, run
from helpers.effort import effort
from helpers.rotation_peers import Values, fill
from helpers.secret_service import SecretService
from helpers.site import Figures, Rotated, Site, entries, everything, marks, new_site, records, sql

from outreach_vault import KeyDirectory, KeyMissing, Secret, Vault, VaultError
from outreach_vault.cipher import generate_key
from outreach_vault.errors import KeySuperseded
from outreach_vault.keys.stores.os_keyring import OSKeyring
from outreach_vault.operations import rotation
from outreach_vault.operations.init import init
from outreach_vault.operations.recovery import export_keys, import_keys

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="the peers' modules fork"),
    pytest.mark.sweep(3),
]

PASSPHRASE = Secret("correct horse battery staple")
TARGET = (None, "smtp", "field-1")


def rotate(site: Site) -> str:
    with site.open() as vault:
        return str(rotation.rotate(vault).new_key)


def make_active(path: Path, key_id: str) -> None:
    """Set the active key to another one, and the other to retired: what a downgrade is."""
    sql(path, "UPDATE vault_keys SET state = 'retired' WHERE state = 'active'")
    sql(path, "UPDATE vault_keys SET state = 'active' WHERE id = ?", key_id)


def refuses_to_seal(site: Site, values: Values, *words: str, rotating: bool = True) -> None:
    """
    `set` and `rotate` refuse, by the command and in the library; nothing is made and nothing
    changed.
    """
    before = everything(site)
    for arguments in [
        ("set", "smtp", "field-1", "--no-check"),
        *([("rotate",), ("rotate", "--destroy-old", "--yes")] if rotating else []),
    ]:
        failed(run(site, *arguments, stdin=b"w"), 12, *words)
    assert everything(site) == before
    with site.open() as vault:
        for (project, provider, kind), value in values.items():
            assert vault.get(provider, kind, project, fallback=False).reveal() == value


def findings(site: Site) -> set[tuple[str, str | None]]:
    """What `doctor` calls a problem."""
    return {(each["kind"], each["key_id"]) for each in problems(run(site, "doctor", "--json"))}


# An older key


def test_an_older_key_set_active_seals_nothing_until_it_is_put_right(rotated: Rotated) -> None:
    site, values, old, new = rotated
    make_active(site.database, old)
    refuses_to_seal(site, values, old, new, "--after-restore")
    assert findings(site) == {("superseded key", old)}
    failed(run(site, "set", "smtp", "another", "--new", stdin=b"w"), 12, old, new)
    make_active(site.database, new)
    assert findings(site) == set()
    assert (
        run(site, "set", "smtp", "field-1", "--no-check", stdin=b"w").status == 0
        and run(site, "rotate").status == 0
    )
    site.require_intact(values | {TARGET: "w"})
    site.require_one_key()


@pytest.mark.parametrize("back", [1, 2, 3])
def test_any_of_the_earlier_keys_set_active_is_noticed(site: Site, back: int) -> None:
    with site.open() as vault:
        values = fill(vault, 2)
    made = [site.active(), *(rotate(site) for _ in range(3))]
    assert marks(site) == dict(itertools.pairwise(made))
    make_active(site.database, made[-1 - back])
    refuses_to_seal(site, values, made[-1 - back], made[-back])


def test_an_older_key_set_active_in_a_keyring_seals_nothing(
    secret_service: SecretService, tmp_path: Path
) -> None:
    path = tmp_path / "app.db"
    init(path, key_store=OSKeyring())
    with Vault.open(path, key_store=OSKeyring()) as vault:
        vault.set("smtp", "user", "v")
        old, new = vault.keys.states.active_id(), rotation.rotate(vault).new_key
        service = f"outreach-vault/{vault.keys.vault_id}/{old}"
    assert new and secret_service.lookup(service, "successor") == new
    make_active(path, old)
    for use in (lambda vault: vault.set("smtp", "user", "w"), rotation.rotate):
        with (
            Vault.open(path, key_store=OSKeyring()) as vault,
            pytest.raises(KeySuperseded, match=new),
        ):
            use(vault)
    with Vault.open(path, key_store=OSKeyring()) as vault:
        assert vault.get("smtp", "user").reveal() == "v"
        report = rotation.rotate(vault, after_restore=True)
        vault.set("smtp", "user", "w")
        assert report.complete and report.new_key not in (old, new)
    assert secret_service.lookup(service, "successor") == new  # the first mark stands


def test_a_retired_key_set_pending_is_retired_again(rotated: Rotated) -> None:
    site, values, old, new = rotated
    sql(site.database, "UPDATE vault_keys SET state = 'pending' WHERE id = ?", old)
    assert ("interrupted rotation", old) in findings(site)
    assert run(site, "init").status == 0  # settles as a rotation does
    assert site.states() == {old: "retired", new: "active"}
    sql(site.database, "UPDATE vault_keys SET state = 'pending' WHERE id = ?", old)
    newest = rotate(site)
    assert site.states() == {old: "retired", new: "retired", newest: "active"}
    assert len([name for name in entries(site) if name.endswith(".key")]) == 3
    site.require_intact(values)
    site.require_one_key()


def test_a_retired_key_set_pending_without_an_active_one_is_not_made_active(
    rotated: Rotated,
) -> None:
    site, values, old, new = rotated
    sql(site.database, "UPDATE vault_keys SET state = 'pending' WHERE id = ?", old)
    sql(site.database, "UPDATE vault_keys SET state = 'retired' WHERE id = ?", new)
    for arguments in (("init",), ("rotate",), ("set", "smtp", "field-1", "--no-check")):
        failed(run(site, *arguments, stdin=b"w"), 12)
        assert "active" not in site.states().values() and len(site.states()) == 2
    site.require_intact(values)


def test_a_destroyed_key_set_active_seals_nothing(rotated: Rotated) -> None:
    site, values, old, new = rotated
    with site.open() as vault:
        rotation.destroy(vault, old)
    make_active(site.database, old)
    refuses_to_seal(site, values, old)
    assert {("key", old), ("superseded key", old)} <= findings(site)
    make_active(site.database, new)
    assert run(site, "set", "smtp", "field-1", "--no-check", stdin=b"w").status == 0


@pytest.mark.usefixtures("quick")
def test_a_destroyed_key_that_comes_back_from_an_export_is_still_an_older_one(site: Site) -> None:
    with site.open() as vault:
        values = fill(vault, 3)
        path = export_keys(vault, site.folder / "keys.export", PASSPHRASE).path
        old = vault.keys.states.active_id()
        new = str(rotation.rotate(vault, destroy_old=True).new_key)
    make_active(site.database, old)
    with site.open() as vault:
        assert import_keys(vault, path, PASSPHRASE).added == (old,)
    refuses_to_seal(site, values, old, new, "--after-restore")
    assert findings(site) == {("superseded key", old)}


# What an open vault has in memory


def test_an_open_vault_notices_the_key_that_it_sealed_with_set_active_after_it_saw_the_next(
    rotated: Rotated,
) -> None:
    site, values, old, new = rotated
    make_active(site.database, new)
    with site.open() as vault:
        vault.set("smtp", "field-1", "under the second key")
        third = rotate(site)
        vault.set("smtp", "field-1", "under the third")
        for older in (new, old):
            make_active(site.database, older)
            with pytest.raises(KeySuperseded, match=older):
                vault.set("smtp", "field-1", "w")
        make_active(site.database, third)
        vault.set("smtp", "field-1", "w")
    site.require_intact(values | {TARGET: "w"})


def test_an_open_vault_that_has_not_stored_since_the_rotation_does_not_ask_again(
    site: Site,
) -> None:
    """
    The key store is asked once for a key, as a keyring takes its time; SECURITY.md says what that
    leaves. Opened anew, it is noticed.
    """
    with site.open() as vault:
        vault.set("smtp", "field-1", "v")
        old, new = site.active(), rotate(site)
        make_active(site.database, old)
        vault.set("smtp", "field-1", "w")
    with site.open() as vault, pytest.raises(KeySuperseded, match=new):
        vault.set("smtp", "field-1", "w")


def test_set_that_meets_a_rotation_is_not_taken_for_a_downgrade(site: Site) -> None:
    """
    The key store has the mark, and the look at the database was just before that: the new key is
    simply taken.
    """
    done = list[str]()

    class Overtaken(KeyDirectory):
        def successor(self, vault_id: str, key_id: str) -> str | None:
            if not done:
                done.append(rotate(site))
            return super().successor(vault_id, key_id)

    with site.open(Overtaken(site.keys)) as vault:
        vault.set("smtp", "field-1", "w")
    assert done == [site.active()]
    site.require_intact({TARGET: "w"})
    site.require_one_key()


def test_set_in_a_loop_beside_rotations_in_a_loop_never_fails(site: Site, figures: Figures) -> None:
    ended, faults, written, few = threading.Event(), list[str](), [0, 0], effort(8, 3)

    def write(number: int) -> None:
        try:
            while not ended.is_set():
                with (
                    site.open() as fresh
                ):  # nothing fetched yet: it asks for the key and for its mark
                    fresh.set("smtp", f"field-{number}", f"{written[number]}")
                shared.set("smtp", f"field-{number}", f"{written[number]}")
                written[number] += 1
        except Exception as error:
            faults.append(repr(error))

    with site.open() as shared:
        writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
        for writer in writers:
            writer.start()
        try:
            for turn in range(
                300
            ):  # SQLite gives its lock in no order: until each writer has had it often
                rotate(site)
                if turn >= few and min(written) > few:
                    break
        finally:
            ended.set()
            for writer in writers:
                writer.join()
    assert not faults
    rotate(site)
    site.require_intact(
        {(None, "smtp", f"field-{number}"): f"{written[number] - 1}" for number in range(2)}
    )
    assert min(written) > few
    figures("writes beside rotations in a loop, none taken for a downgrade", 2 * sum(written))


# No active key, and one of theirs


def test_without_the_active_key_s_row_nothing_is_sealed_and_no_key_made(rotated: Rotated) -> None:
    site, values, _, new = rotated
    (row,) = sql(site.database, "SELECT * FROM vault_keys WHERE id = ?", new)
    sql(site.database, "DELETE FROM vault_keys WHERE id = ?", new)
    before = everything(site)
    for arguments in (
        ("set", "smtp", "field-1", "--no-check"),
        ("rotate",),
        ("rotate", "--after-restore"),
        ("init",),
    ):
        failed(run(site, *arguments, stdin=b"w"), 12)
    assert everything(site) == before
    with site.open() as vault, pytest.raises(KeyMissing, match=new):
        vault.get("smtp", "field-1")
    assert {kind for kind, _ in findings(site)} == {"key", "unreadable value"}
    sql(site.database, f"INSERT INTO vault_keys VALUES ({', '.join('?' * len(row))})", *row)
    site.require_intact(values)


NO_IDS = [
    "../evil",
    "/../../evil",
    "a/b",
    "..",
    ".",
    "",
    "a\\b",
    "a\0b",
    "%2e%2e",
    "evil.key",
    "a b",
    "~",
]


def plant(site: Site, key_id: str, key: str, vault_id: str) -> None:
    """
    The attacker's own key in place of the active one, with the check value that belongs to it.
    """
    check = Fernet(key).encrypt(f"outreach-vault {vault_id} {key_id}".encode()).decode()
    sql(site.database, "UPDATE vault_keys SET state = 'retired' WHERE state = 'active'")
    sql(
        site.database,
        "INSERT INTO vault_keys (id, state, check_value, created_at) VALUES (?, 'active', ?, "
        "'2026')",
        key_id,
        check,
    )


def test_a_planted_key_seals_nothing_and_is_read_from_no_other_place(rotated: Rotated) -> None:
    site, values, _, new = rotated
    vault_id = sql(site.database, "SELECT value FROM vault_meta WHERE key = 'vault_id'")[0][0]
    for key_id in ("00000000-0000-4000-8000-000000000000", *NO_IDS):
        if site.engine and "\0" in key_id:
            continue  # which no text on a server has
        key = generate_key().reveal()
        if "/" in key_id:  # and the path that it makes leads to their file
            (site.keys / f"{vault_id}.{key_id.partition('/')[0]}").mkdir(mode=0o700)
            planted = Path(f"{site.keys}/{vault_id}.{key_id}.key")
            planted.touch(0o600)
            planted.write_text(key)
        plant(site, key_id, key, vault_id)
        refuses_to_seal(site, values)
        assert findings(site) >= {("key", key_id)}
        sql(site.database, "DELETE FROM vault_keys WHERE id = ?", key_id)
        sql(site.database, "UPDATE vault_keys SET state = 'active' WHERE id = ?", new)
        assert (
            run(site, "set", "smtp", "field-1", "--no-check", stdin=values[TARGET].encode()).status
            == 0
        )


def test_a_planted_pending_key_is_written_off(rotated: Rotated) -> None:
    site, values, _, new = rotated
    plant(site, "planted", generate_key().reveal(), "x")
    sql(site.database, "UPDATE vault_keys SET state = 'pending' WHERE id = 'planted'")
    sql(site.database, "UPDATE vault_keys SET state = 'active' WHERE id = ?", new)
    newest = rotate(site)
    assert (
        site.states()["planted"] == "destroyed" and newest != "planted" and site.active() == newest
    )
    site.require_intact(values)


@pytest.mark.parametrize(
    "vault_id", ["another", "00000000-0000-4000-8000-000000000000", "../evil", "a/b", ".."]
)
def test_a_changed_vault_id_finds_no_key_and_makes_none(rotated: Rotated, vault_id: str) -> None:
    site, values, _, new = rotated
    (own,) = sql(site.database, "SELECT value FROM vault_meta WHERE key = 'vault_id'")[0]
    other = new_site(site.folder.with_name("other"), site.engine)
    if vault_id == "another":  # whose keys are in the same key directory
        vault_id = sql(other.database, "SELECT value FROM vault_meta WHERE key = 'vault_id'")[0][0]
        for file in other.keys.iterdir():
            file.rename(site.keys / file.name)
    sql(site.database, "UPDATE vault_meta SET value = ? WHERE key = 'vault_id'", vault_id)
    before = everything(site)
    for arguments in (
        ("get", "smtp", "field-1"),
        ("set", "smtp", "field-1", "--no-check"),
        ("rotate",),
        ("init",),
        ("rotate", "--after-restore"),
    ):
        failed(run(site, *arguments, stdin=b"w"), 12, new)
    assert everything(site) == before and ("key", new) in findings(site)
    sql(site.database, "UPDATE vault_meta SET value = ? WHERE key = 'vault_id'", own)
    site.require_intact(values)


def test_a_check_value_of_another_key_is_noticed(rotated: Rotated) -> None:
    site, _, old, new = rotated
    sql(
        site.database,
        "UPDATE vault_keys SET check_value = (SELECT check_value FROM vault_keys WHERE id = ?) "
        "WHERE id = ?",
        old,
        new,
    )
    before = everything(site)
    for arguments in (
        ("get", "smtp", "field-1"),
        ("set", "smtp", "field-1", "--no-check"),
        ("rotate",),
    ):
        failed(run(site, *arguments, stdin=b"w"), 12, new)
    assert everything(site) == before


Use = Callable[[Vault], object]


@pytest.mark.parametrize("use", [lambda vault: vault.set("smtp", "field-1", "w"), rotation.rotate])
def test_a_mark_that_cannot_be_looked_up_stops_what_would_seal(rotated: Rotated, use: Use) -> None:
    """
    Otherwise whoever can also disturb the key store would have an older key taken for the present
    one.
    """
    site, _, _, new = rotated
    (
        site.keys
        / next(name for name in entries(site) if name.endswith(f"{new}.key")).replace(
            ".key", ".successor"
        )
    ).mkdir()
    before = sql(site.database, "SELECT * FROM vault_keys")
    with site.open() as vault, pytest.raises(VaultError):
        use(vault)
    assert sql(site.database, "SELECT * FROM vault_keys") == before


# Facts that are none: another tool's columns have no types and no limits.


def columns_of(site: Site, table: str) -> list[str]:
    return list(records(site.database, f"SELECT * FROM {table}")[0])


def untyped(site: Site, table: str) -> None:
    """A server's columns have types, but none of ours has to be filled."""
    columns = columns_of(site, table)
    if site.engine:
        key = {"vault_meta": "key"}.get(table, "id")
        for column in columns:
            if column != key:
                sql(site.database, f"ALTER TABLE {table} ALTER COLUMN {column} DROP NOT NULL")
        return
    sql_of = ", ".join(columns)
    rows = sql(site.database, f"SELECT * FROM {table}")
    sql(site.database, f"DROP TABLE {table}")
    sql(site.database, f"CREATE TABLE {table} ({sql_of})")
    for row in rows:
        sql(site.database, f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", *row)


def each_of(values: Iterable[object]) -> list[Any]:
    other = pytest.mark.sqlite("bytes and numbers in a column of text")
    text = (str, type(None))
    return [pytest.param(each, marks=() if isinstance(each, text) else other) for each in values]


NO_TIMES = (
    "yesterday",
    "",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
    "9" * 5000,
    5,
    -1.5,
    float("inf"),
    b"\xff\0",
    None,
)
READERS = (
    ("status",),
    ("doctor",),
    ("list",),
    ("which", "smtp"),
    ("keys", "list"),
    ("rotate", "--dry-run"),
)


@pytest.mark.parametrize("no_time", each_of(NO_TIMES))
@pytest.mark.parametrize("table", ["vault_keys", "provider_credentials"])
def test_a_time_that_is_none_ends_no_command(rotated: Rotated, table: str, no_time: object) -> None:
    site, _, old, _ = rotated
    times = [name for name in columns_of(site, table) if name.endswith("_at")]
    untyped(site, table)
    sql(
        site.database,
        f"UPDATE {table} SET {', '.join(f'{name} = ?' for name in times)}",
        *[no_time] * len(times),
    )
    for command in READERS:
        for flags in ((), ("--json",)):
            done = run(site, *command, *flags)
            assert done.status in (0, 16), (command, done)
    assert run(site, "keys", "destroy", old, "--yes").status == 0


@pytest.mark.parametrize("version", each_of(["x", "9" * 5000, "1e9", "", None, float("inf"), b"x"]))
def test_a_version_that_is_no_number_is_an_error_about_the_schema(
    site: Site, version: object
) -> None:
    untyped(site, "vault_meta")
    sql(site.database, "UPDATE vault_meta SET value = ? WHERE key = 'version'", version)
    for command in (*READERS, ("migrate",), ("init",), ("rotate",)):
        failed(run(site, *command), 14)
