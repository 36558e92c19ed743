"""
A bundle of one's own: what its class declares is what an adapter gets, or an error says why the
catalogue does not have it so.
"""

from __future__ import annotations

import rlcompleter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Optional

import pytest

from outreach_vault import (
    AnyBundle,
    Bundle,
    IncompleteAccount,
    ProjectNotFound,
    Secret,
    SmtpBundle,
    UnusableValue,
    Vault,
    testing,
)
from outreach_vault.values.declared import ready

pytestmark = pytest.mark.sweep(3)

if TYPE_CHECKING:
    from decimal import Decimal

    Price = Decimal

vault = testing.vault  # a fixture
P = "default-project"
VONAGE = {"api_key": "key", "api_secret": "hidden", "phone_number": "Acme"}


class Vonage(Bundle, provider="vonage"):
    api_key: Secret
    api_secret: Secret
    phone_number: str | None
    application_id: Optional[str]  # noqa: UP045  # the spelling is under test


class Numbered(Bundle, provider="greenhouse"):
    client_secret: Secret
    sub: int | None
    on_behalf_of: int = 7


def fill(
    vault: Vault, provider: str, fields: Mapping[str, str], project: str | None = None
) -> None:
    vault.set_fields(provider, fields, project)


@pytest.fixture
def vonage(vault: Vault) -> Vault:
    fill(vault, "vonage", VONAGE)
    return vault


def test_a_class_of_ones_own_has_its_fields_in_their_types(vonage: Vault) -> None:
    found = vonage.bundle(Vonage, P)
    assert type(found) is Vonage and (found.provider, found.project_id) == ("vonage", P)
    assert (found.api_key, found.api_secret) == (Secret("key"), Secret("hidden"))
    assert (found.phone_number, found.application_id) == ("Acme", None)
    assert {name: each.scope for name, each in found.items()} == dict.fromkeys(VONAGE, "global")
    assert "hidden" not in f"{found!r} {vars(found)}"
    assert type(vonage.bundle("vonage")) is AnyBundle  # a name gives what it gave


def test_one_that_is_made_by_hand_has_them_too(vonage: Vault) -> None:
    class Unused(Bundle, provider="vonage"):
        api_key: Secret

    made = Unused("vonage", None, dict(vonage.bundle("vonage")))
    assert made.api_key == Secret("key")


def test_it_fails_closed_as_any_bundle(vonage: Vault) -> None:
    with pytest.raises(ProjectNotFound):
        vonage.bundle(Vonage, "no-such")
    vonage.delete("vonage", "api_secret")
    with pytest.raises(IncompleteAccount, match="missing api_secret"):
        vonage.bundle(Vonage, P)


def test_a_class_of_ours_is_taken_like_its_name(vault: Vault) -> None:
    fill(vault, "smtp", {"host": "h", "user": "u", "password": "p", "port": "465"})
    named, by_class = vault.bundle("smtp"), vault.bundle(SmtpBundle)
    assert type(named) is type(by_class) is SmtpBundle and dict(named) == dict(by_class)


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("007", 7), ("9223372036854775807", 2**63 - 1)]
)
def test_a_number_is_read_as_one_and_a_default_stands_for_one_that_is_missing(
    vault: Vault,
    text: str,
    number: int,
) -> None:
    fill(vault, "greenhouse", {"client_id": "c", "client_secret": "s"})
    found = vault.bundle(Numbered)
    assert (found.sub, found.on_behalf_of) == (None, 7)
    fill(vault, "greenhouse", {"sub": text, "on_behalf_of": text})
    found = vault.bundle(Numbered)
    assert (found.sub, found.on_behalf_of) == (number, number)


@pytest.mark.parametrize("text", ["", "-1", "canary", "٣", "9223372036854775808", "9" * 5000])
def test_what_is_no_number_is_refused_by_row_and_not_repeated(vault: Vault, text: str) -> None:
    fill(vault, "greenhouse", {"client_id": "c", "client_secret": "s", "sub": text or "x"}, P)
    found = vault.bundle(Numbered, P)
    with pytest.raises(UnusableValue, match=r"greenhouse/sub .* not a number from 0") as caught:
        _ = found.sub
    assert caught.value.row_id == found["sub"].id
    assert caught.value.hint == f"correct it with 'vault set greenhouse sub --project {P}'"
    assert len(text) < 3 or text not in str(caught.value).replace(str(2**63 - 1), "")


def test_a_class_that_was_derived_has_its_own_and_its_bases_fields(vault: Vault) -> None:
    class More(Vonage):
        private_key: Secret | None

    class Last(Vonage):
        pass

    class Other(Bundle, provider="vonage"):
        api_key: Secret

    fill(vault, "vonage", VONAGE | {"private_key": "pem"})
    for _ in range(2):
        assert vault.bundle(More).api_key == vault.bundle(Other).api_key == Secret("key")
        assert vault.bundle(More).private_key == Secret("pem")
        assert vault.bundle(Vonage).phone_number == "Acme"  # its fields are ready from now on
        assert vault.bundle(More).application_id is None
    assert vault.bundle(Last).application_id is None
    assert not hasattr(vault.bundle(Other), "phone_number")


WRONG: dict[str, tuple[Callable[[], type], str]] = {
    "a field that is none": (
        lambda: declared("apikey", Secret),
        r"vonage has no such field in the catalogue; it has api_key, api_secret, ",
    ),
    "a secret as text": (lambda: declared("api_key", str), "it is a secret: declare it Secret"),
    "a secret as text or none": (lambda: declared("api_key", str | None), "it is a secret"),
    "a secret as a number, in a string": (lambda: declared("api_key", "int"), "it is a secret"),
    "what may be missing": (lambda: declared("phone_number", str), r"may be missing: add \| None"),
    "another type": (lambda: declared("phone_number", bytes), "declare it Secret, str or int"),
    "several": (lambda: declared("phone_number", list[str]), "declare it Secret, str or int"),
    "one of two types": (lambda: declared("phone_number", int | str), "declare it Secret, str"),
    "what is no field at all": (lambda: declared("phone_number", ClassVar[str]), "declare it"),
    "a type that is not there": (
        lambda: declared("phone_number", "Price"),
        "'Price' is not defined: import it outside of TYPE_CHECKING",
    ),
    "a provider that is none": (
        lambda: type("Wrong", (Bundle,), {}, provider="vonnage"),
        "the catalogue has no provider 'vonnage'",
    ),
    "no provider": (lambda: type("Wrong", (Bundle,), {}), "has no provider: class "),
    "a class of another kind": (lambda: type("Wrong", (), {}), "has no provider: class "),
}


def declared(name: str, hint: object) -> type:
    body = {"__annotations__": {name: hint}, "__module__": __name__}
    return type("Wrong", (Bundle,), body, provider="vonage")


@pytest.mark.parametrize("case", WRONG)
def test_what_the_catalogue_does_not_have_so_is_an_error_each_time(
    vonage: Vault, case: str
) -> None:
    make, fault = WRONG[case]
    wrong = make()
    for _ in range(2):
        with pytest.raises(TypeError, match=f"^Wrong.*{fault}"):
            vonage.bundle(wrong)


def test_a_field_that_every_mapping_has_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from outreach_vault import providers

    for name in ("keys", "provider", "project_id"):
        field = providers.Field(name, "a field")
        other = providers.Provider("other", "Other", "sms", (field,), "https://example.com/")
        monkeypatch.setattr("outreach_vault.values.declared.find", lambda _, it=other: it)
        body = {"__annotations__": {name: "str"}, "__module__": __name__}
        with pytest.raises(
            TypeError, match=f"Wrong.{name}: every bundle has .*bundle\\['{name}'\\]"
        ):
            ready(type("Wrong", (Bundle,), body, provider="other"))


# For whoever types at a prompt


def test_the_fields_are_listed_and_completed(vonage: Vault) -> None:
    fill(vonage, "other", {"token": "t", "base url": "b", "_private": "p"})
    fill(vonage, "smtp", {"host": "h", "user": "u", "password": "p"})
    found = vonage.bundle("other")
    assert {"token", "keys", "provider", "project_id"} < {*dir(found)}
    assert not {"base url", "_private"} & {*dir(found)}
    assert all(hasattr(found, name) for name in dir(found))
    typed = {"host", "port", "tls_first", "user", "password", "from_email"}
    assert typed < {*dir(vonage.bundle("smtp"))}
    assert {"api_key", "phone_number", "application_id"} < {*dir(vonage.bundle(Vonage))}
    names = {"other": found, "smtp": vonage.bundle("smtp"), "own": vonage.bundle(Vonage)}
    for start, whole in {"other.tok": "other.token", "smtp.pass": "smtp.password"}.items():
        assert rlcompleter.Completer(names).attr_matches(start) == [whole]
    assert "own.api_secret" in rlcompleter.Completer(names).attr_matches("own.api_")
