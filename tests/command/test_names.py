"""Names of providers and fields: a slip is not stored, and is answered with what was meant."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.commands import Terminal, failed, run
from helpers.site import Site

from outreach_vault import Secret, Vault
from outreach_vault.errors import NotADatabase, near
from outreach_vault.values.rows import Rows, place_of

pytestmark = pytest.mark.sweep(3)

P = "default-project"


@pytest.fixture
def stored(site: Site, vault: Vault) -> Site:
    """Values of a provider that the catalogue has, and of one that it has not."""
    vault.set("twilio", "auth_token", "v")
    vault.set("acme", "token", "v", P)
    return site


SLIPS = {
    "set twillio auth_token": (2, "twilio"),
    "set twilio auth_tokn": (2, "auth_token"),
    "set acmee token": (2, "acme"),
    "set acme tokn": (2, "token"),
    "set twillio": (2, "twilio"),
    "get twillio auth_token": (10, "twilio"),
    "get twilio auth_tokn": (10, "auth_token"),
    "get acme tokn": (10, "token"),
    "get TWILIO auth_token": (10, "twilio"),
    "which acmee": (10, "acme"),
    "which twilio auth_tok": (10, "auth_token"),
    "delete acmee token --yes": (10, "acme"),
    "delete acme tken --yes": (10, "token"),
    "check twillio": (10, "twilio"),
    "run --provider twillio -- true": (10, "twilio"),
    "providers twillio": (2, "twilio"),
}


@pytest.mark.parametrize("words", SLIPS)
def test_a_slip_is_answered_with_the_nearest_name(stored: Site, words: str) -> None:
    before = stored.rows()
    status, meant = SLIPS[words]
    failed(run(stored, *words.split(), stdin=b"v"), status, f"; did you mean {meant}?\n", "hint: ")
    assert stored.rows() == before


def test_a_name_that_is_stored_elsewhere_is_named_and_not_guessed_at(stored: Site) -> None:
    done = run(stored, "get", "acme", "token")
    failed(done, 10, "acme/token (global): no such credential")
    assert "did you mean" not in done.err


def test_a_name_that_is_not_known_is_not_repeated_where_the_file_cannot_tell(
    stored: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> None:
        raise NotADatabase("a damaged page")

    monkeypatch.setattr(Rows, "places", damaged)
    for words in (("hunter", "token"), ("twilio", "hunter")):
        done = run(stored, "get", *words)
        failed(done, 10, "no such credential\n")
        assert "hunter" not in done.err


@pytest.mark.parametrize("names", [("mailer", "token"), ("twilio", "region"), ("acme", "host")])
def test_what_nobody_knows_is_stored_where_it_is_called_new_and_is_known_then(
    stored: Site, names: tuple[str, str]
) -> None:
    before = stored.rows()
    failed(run(stored, "set", *names, "--no-check", stdin=b"v"), 2, "--new")
    assert stored.rows() == before
    assert "stored" in run(stored, "set", *names, "--new", stdin=b"v").err
    assert "replaced" in run(stored, "set", *names, stdin=b"w").err
    assert run(stored, "get", *names).out == "w\n"


@pytest.mark.parametrize(
    ("names", "right"),
    [
        (("Twilio", "auth_token"), "twilio"),
        (("twilio", "AUTH_TOKEN"), "auth_token"),
        (("twilio", "Account_SID"), "account_sid"),
        (("ACME", "token"), "acme"),
        (("acme", "Token"), "token"),
    ],
)
@pytest.mark.parametrize("new", [(), ("--new",)])
def test_a_name_in_other_capitals_is_never_a_new_one(
    stored: Site, names: tuple[str, str], right: str, new: tuple[str, ...]
) -> None:
    before = stored.rows()
    failed(run(stored, "set", *names, *new, stdin=b"v"), 2, "capitals", f"did you mean {right}?")
    assert stored.rows() == before


def test_a_name_in_other_capitals_that_is_stored_already_can_be_replaced_and_deleted(
    site: Site, vault: Vault
) -> None:
    """Another program may have stored it: it is no slip of this command's."""
    vault.set("Twilio", "auth_token", "v")
    assert run(site, "set", "Twilio", "auth_token", stdin=b"w").status == 0
    assert run(site, "delete", "Twilio", "auth_token", "--yes").status == 0


def test_set_says_whether_it_replaced_a_value_of_the_same_scope(site: Site) -> None:
    said = [
        run(site, "set", "smtp", "user", *project, stdin=b"v").err.split()[1]
        for project in ((), (), ("--project", P), ("--project", P))
    ]
    assert said == ["stored", "replaced", "stored", "replaced"]


def test_set_of_each_field_says_so_of_each(site: Site, vault: Vault) -> None:
    vault.set("anthropic", "api_key", "sk-ant-api03-old")
    with Terminal(site, "set", "anthropic", "--no-check", piped=False) as terminal:
        terminal.read_until(b"api_key [Enter keeps it]: ")
        terminal.type(b"sk-ant-api03-new\n")
        assert terminal.end() == 0
        assert b"replaced anthropic/api_key (global)" in terminal.seen


def test_of_many_that_store_one_value_at_once_one_alone_is_the_first(vault: Vault) -> None:
    place = place_of("smtp", "user", None)
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda text: vault.store([(place, Secret(text))]), "abcdefgh"))
    assert sorted(each.replaced for (each,) in done) == [False, *[True] * 7]


def test_a_guess_knows_no_capitals_and_does_not_repeat_what_is_right() -> None:
    assert near("TWILLIO", ["twilio", "smtp"]) == "; did you mean twilio?"
    assert near("twilio", ["twilio", "twilio2"]) == near("zzz", ["twilio"]) == ""
