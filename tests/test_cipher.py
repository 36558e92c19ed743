from __future__ import annotations

import base64
import copy
import itertools
import json
import pickle
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from helpers.site import Figures
from hypothesis import example, given
from hypothesis import strategies as st

import outreach_vault
from outreach_vault import DamagedValue, Secret
from outreach_vault.cipher import Cipher, generate_key, looks_sealed, sealed_at
from outreach_vault.errors import WrongArgument
from outreach_vault.schema.shapes import Place
from outreach_vault.values.sealing import MAX_VALUE_BYTES, opened, require_storable, resealed, seal

# Fernet's published vectors: generate.json, verify.json and invalid.json of github.com/fernet/spec,
# by the same author as the format.
VECTOR_KEY = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="
VECTOR_TOKEN = (
    "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCG"
    "M4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA=="
)
VECTOR_TIME = 499162800  # 1985-10-26T01:20:00-07:00
INVALID_VECTORS = {
    "incorrect mac": (
        "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-"
        "fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykQUFBQUFBQUFBQQ=="
    ),
    "too short": "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPA==",
    "invalid base64": (
        "%%%%%%%%%%%%%AECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-"
        "fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykRtfsH-p1YsUD2Q=="
    ),
    "payload size not multiple of block size": (
        "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPOm73QeoCk9uGib28Xe5vz6oxq5nmxbx_v7mrfyudzUm"
    ),
    "payload padding error": (
        "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0ODz4LEpdELGQAad7aNE"
        "Hbf-JkLPIpuiYRLQ3RtXatOYREu2FWke6CnJNYIbkuKNqOhw=="
    ),
    "incorrect IV (causes padding error)": (
        "gAAAAAAdwJ6xBQECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAkLhFLHpGtDBRLRTZeUfWgHSv49TF2AUEZ1TIvcZjK1zQ=="
    ),
}
# Refused by a tool that limits a token's age. The vault does not; their content is empty, and so
# none of ours.
DATED_VECTORS = {
    "far-future TS": (
        "gAAAAAAdwStRAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-"
        "fWPAnja1xKYyhd-Y6mSkTOyTGJmw2Xc2a6kBd-iX9b_qXQcw=="
    ),
    "expired TTL": (
        "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-"
        "fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykRtfsH-p1YsUD2Q=="
    ),
}

PLACE = Place("3f0c7f0e-6c0d-4a53-9a37-0d5d6bb2a1c4", "smtp", "password")
PLACES = [
    PLACE,
    PLACE._replace(project_id=None),
    PLACE._replace(provider="twilio"),
    PLACE._replace(credential_type="user"),
]
VALUE = Secret("  canary-value\r\n")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)
NAMES = st.text(
    st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=40
)  # printable, without a filter


@pytest.fixture(scope="module")
def cipher() -> Cipher:
    return Cipher(generate_key())


def assert_silent(error: BaseException, *hidden: str) -> None:
    """
    Neither what is printed of the error and its chain, nor its facts, nor the names in our own
    frames may hold material.
    """
    shown = "".join(traceback.format_exception(error)) + repr(vars(error)) + repr(error.args)
    assert [text for text in hidden if text in shown] == []
    link: BaseException | None = error
    while (
        link := link.__cause__ or link.__context__
    ):  # a suppressed cause is still there for a crash reporter
        assert [text for text in hidden if text in repr(vars(link)) + repr(link.args)] == []
    held = list(own_locals(error))
    assert held, "the error is not ours"
    assert "canary-value" not in repr(held)


def opens(cipher: Cipher, place: Place, token: str) -> Secret:
    """The value; DamagedValue with what is wrong where there is none."""
    fault, value = opened(cipher, place, token)
    if value is None:
        raise DamagedValue(f"{place}: {fault}")
    return value


def reseal(place: Place, token: str, old: Cipher, new: Cipher) -> str:
    """As a rotation does it: where there is no new token, the old key says why."""
    renewed = resealed(new, place, token, old)
    if renewed is None:
        opens(old, place, token)
    assert renewed is not None, "it opens under the old key, and there is no new token"
    return renewed


def own_locals(error: BaseException | None) -> Iterator[object]:
    """
    The names in the package's frames, of suppressed causes too: a crash reporter that shows names
    follows those.
    """
    while error is not None:
        for frame in traceback.TracebackException.from_exception(error, capture_locals=True).stack:
            if (
                Path(outreach_vault.__file__).parent in Path(frame.filename).parents
                or frame.name == "opens"
            ):
                yield frame.locals
        error = error.__context__


# --- the published vectors


def test_generation_vector_is_what_the_library_makes_and_has_our_strict_shape() -> None:
    assert (
        Fernet(VECTOR_KEY)._encrypt_from_parts(b"hello", VECTOR_TIME, bytes(range(16))).decode()
        == VECTOR_TOKEN
    )
    assert looks_sealed(VECTOR_TOKEN)
    assert sealed_at(VECTOR_TOKEN) == VECTOR_TIME
    assert Cipher(Secret(VECTOR_KEY)).opened(VECTOR_TOKEN)[1] == Secret("hello")


def test_verification_vector_opens_with_its_key_alone() -> None:
    assert (
        Fernet(VECTOR_KEY).decrypt_at_time(VECTOR_TOKEN, ttl=60, current_time=VECTOR_TIME + 1)
        == b"hello"
    )
    assert Cipher(generate_key()).opened(VECTOR_TOKEN)[1] != Secret("hello")
    assert Cipher(Secret(VECTOR_KEY)).opened(VECTOR_TOKEN)[1] != Secret("hell")


@pytest.mark.parametrize("token", INVALID_VECTORS.values(), ids=INVALID_VECTORS)
def test_invalid_vectors_are_refused(token: str) -> None:
    with pytest.raises(DamagedValue) as caught:
        opens(Cipher(Secret(VECTOR_KEY)), PLACE, token)
    assert "refuses" in str(caught.value) or "not a whole token" in str(caught.value)
    assert_silent(caught.value, token, VECTOR_KEY)
    assert Cipher(Secret(VECTOR_KEY)).opened(token)[1] != Secret("hello")


@pytest.mark.parametrize(
    "token", [*DATED_VECTORS.values(), VECTOR_TOKEN], ids=[*DATED_VECTORS, "verify"]
)
def test_a_good_token_of_another_tool_is_not_taken_for_a_value(token: str) -> None:
    assert Fernet(VECTOR_KEY).decrypt(token) in (b"", b"hello")
    with pytest.raises(DamagedValue, match="its format is unknown to this version"):
        opens(Cipher(Secret(VECTOR_KEY)), PLACE, token)


# --- what goes in comes out


@given(value=TEXTS, project_id=st.none() | NAMES, provider=NAMES, credential_type=NAMES)
@example(" both ends ", None, "smtp", "password")
@example("a\r\nb\nc\r", "", "", "")
@example("\0", None, "\U0001f4e7", '"')
@example("x", "null", "smtp", "password")
@example("\U0001f469‍\U0001f4bb e\u0301 é", "p", "smtp", "password")
@example('{"v":1}","value":"other', "p", '","provider":"x', "\\")
def test_any_text_at_any_place_comes_back_exactly(
    cipher: Cipher, value: str, project_id: str | None, provider: str, credential_type: str
) -> None:
    place = Place(project_id, provider, credential_type)
    token = seal(cipher, place, Secret(value))
    assert opens(cipher, place, token).reveal() == value
    assert looks_sealed(token)


@pytest.mark.parametrize("character", ["x", "é", "\U0001f511", "\0"])
def test_64_kib_of_utf8_come_back_and_one_byte_more_is_refused(
    cipher: Cipher, character: str
) -> None:
    text = character * (MAX_VALUE_BYTES // len(character.encode()))
    assert opens(cipher, PLACE, seal(cipher, PLACE, Secret(text))).reveal() == text
    for refuse in (
        lambda: seal(cipher, PLACE, Secret(text + "x")),
        lambda: require_storable(Secret(text + "x")),
    ):
        with pytest.raises(ValueError, match="65537 bytes long") as caught:
            refuse()
        assert len(str(caught.value)) < 200


def test_empty_value_is_refused(cipher: Cipher) -> None:
    with pytest.raises(ValueError, match="empty"):
        seal(cipher, PLACE, Secret(""))


@pytest.mark.parametrize("value", ["\ud83d", "canary\udc80", "\udfff canary"])
def test_half_a_surrogate_pair_is_refused_and_not_shown(cipher: Cipher, value: str) -> None:
    with pytest.raises(ValueError, match="half a surrogate pair") as caught:
        seal(cipher, PLACE, Secret(value))
    assert type(caught.value) is WrongArgument  # a UnicodeEncodeError carries the text in .object
    assert_silent(caught.value, "canary")


def test_sealing_the_same_value_twice_gives_two_tokens(cipher: Cipher) -> None:
    tokens = [seal(cipher, PLACE, VALUE, at=VECTOR_TIME) for _ in range(20)]
    assert len(set(tokens)) == 20
    # Not only the HMAC: each has an IV of its own.
    assert len({token[:20] for token in tokens}) == 20


def test_any_fernet_tool_with_the_key_gives_the_documented_json() -> None:
    key = generate_key()
    cipher = Cipher(key)
    token = seal(cipher, PLACE, Secret("é\U0001f511 x"))
    assert Fernet(key.reveal()).decrypt(token).decode() == (
        f'{{"v":1,"project_id":"{PLACE.project_id}","provider":"smtp","credential_type":"password",'
        '"value":"é\U0001f511 x"}'
    )
    assert (
        json.loads(Fernet(key.reveal()).decrypt(seal(cipher, PLACES[1], VALUE)))["project_id"]
        is None
    )


# --- what was changed does not open


@pytest.fixture
def lenient_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A library and a base64 that take whatever any release of theirs may: either alphabet, white
    space, padding or none, bits that mean nothing. The strictness must be ours, and these tests the
    same with a library that is strict itself.
    """
    decode, decrypt = base64.urlsafe_b64decode, Fernet.decrypt

    def lenient(text: bytes | str) -> bytes:
        data = text.encode("ascii") if isinstance(text, str) else text
        body = data.translate(data.maketrans(b"+/", b"-_"), b"= \r\n")
        return decode(body + b"=" * (-len(body) % 4))

    monkeypatch.setattr(base64, "urlsafe_b64decode", lenient)
    monkeypatch.setattr(
        Fernet,
        "decrypt",
        lambda self, token: decrypt(self, base64.urlsafe_b64encode(lenient(token))),
    )


def test_every_flipped_bit_of_the_decoded_token_is_refused(
    cipher: Cipher, figures: Figures
) -> None:
    raw = base64.urlsafe_b64decode(seal(cipher, PLACE, VALUE))
    opened = []
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        token = base64.urlsafe_b64encode(changed).decode()
        try:
            opened.append((bit, opens(cipher, PLACE, token)))
        except DamagedValue as error:
            assert_silent(error, token, "canary-value")
    assert opened == []
    figures("tokens with a flipped bit, each refused", len(raw) * 8)


def test_every_other_spelling_of_one_character_is_refused(cipher: Cipher, figures: Figures) -> None:
    token = seal(cipher, PLACE, Secret("x" * 20))
    opened = []
    refused = 0
    for place in range(len(token)):
        for character in ("A", "B", "=", " ", "\n", "+", "/", "é", "\0"):
            changed = token[:place] + character + token[place + 1 :]
            if changed != token:
                try:
                    opened.append((changed, opens(cipher, PLACE, changed)))
                except DamagedValue:
                    refused += 1
    assert opened == []
    figures("tokens with another character at one place, each refused", refused)


def test_every_truncation_is_refused(cipher: Cipher, figures: Figures) -> None:
    token = seal(cipher, PLACE, VALUE)
    parts = [token[:end] for end in range(len(token))] + [
        token[start:] for start in range(1, len(token))
    ]
    for part in parts:
        with pytest.raises(DamagedValue):
            opens(cipher, PLACE, part)
    figures("truncated tokens, each refused", len(parts))


@pytest.mark.parametrize(
    "junk", [" ", "\n", "\r\n", "\0", "=", "==", "A", "AAAA", "====", "é", "\ufeff", "\ud800"]
)
def test_junk_at_either_end_is_refused_whatever_the_library_takes(
    cipher: Cipher, junk: str, figures: Figures
) -> None:
    token = seal(cipher, PLACE, VALUE)
    with_junk = (token + junk, junk + token, token[:40] + junk + token[40:], token * 2)
    for changed in with_junk:
        with pytest.raises(DamagedValue) as caught:
            opens(cipher, PLACE, changed)
        assert_silent(caught.value, token, "canary-value")
        with pytest.raises(ValueError):
            sealed_at(changed)
    figures("tokens with junk added, each refused", len(with_junk))


@pytest.mark.parametrize("padding", ["=", "=="])
def test_padding_where_none_belongs_is_refused(lenient_library: None, padding: str) -> None:
    key = generate_key()
    cipher = Cipher(key)
    # Unpadded, and with a last character that could stand before padding, so that only the number
    # of characters tells.
    token = next(
        token
        for size in itertools.cycle(range(1, 49))
        if (token := seal(cipher, PLACE, Secret("v" * size)))[-1] in "AQgw"
    )
    assert len(token) % 4 == 0 and Fernet(key.reveal()).decrypt(token + padding)
    with pytest.raises(DamagedValue, match="not a whole token"):
        opens(cipher, PLACE, token + padding)


def test_padding_that_was_cut_off_is_refused(lenient_library: None) -> None:
    key = generate_key()
    cipher = Cipher(key)
    for size in range(1, 20):  # with one, two and no padding characters
        token = seal(cipher, PLACE, Secret("v" * size))
        for cut in {token.rstrip("="), token.removesuffix("=")} - {token}:
            assert Fernet(key.reveal()).decrypt(cut) == Fernet(key.reveal()).decrypt(token)
            with pytest.raises(DamagedValue, match="not a whole token"):
                opens(cipher, PLACE, cut)
            with pytest.raises(DamagedValue, match="not a whole token"):
                reseal(PLACE, cut, cipher, cipher)
            with pytest.raises(ValueError, match="not a Fernet token"):
                sealed_at(cut)
        check = cipher.sealed(Secret("v" * size))
        assert (cipher.opened(check)[1] == Secret("v" * size)) and (
            check[-1] != "=" or cipher.opened(check.rstrip("="))[1] != Secret("v" * size)
        )


def test_other_spellings_of_the_same_bytes_are_refused(
    lenient_library: None, figures: Figures
) -> None:
    key = generate_key()
    cipher = Cipher(key)
    # Lengths that leave one and two padding characters; base64 without any has no spare bits to
    # spell differently.
    tokens = [seal(cipher, PLACE, Secret("x" * size)) for size in range(1, 60, 8)]
    padded = [token for token in tokens if token.endswith("=")]
    assert {token.count("=") for token in tokens} == {0, 1, 2}
    for token in padded:
        body = token.rstrip("=")
        twin = body[:-1] + ALPHABET[ALPHABET.index(body[-1]) ^ 1] + token[len(body) :]
        # Such a library takes both.
        assert Fernet(key.reveal()).decrypt(twin) == Fernet(key.reveal()).decrypt(token)
        for spelling in (
            twin,
            body,
            body + "=" * 4,
            token.replace("-", "+").replace("_", "/") + "\n",
        ):
            with pytest.raises(DamagedValue, match="not a whole token"):
                opens(cipher, PLACE, spelling)
    figures("other spellings of a token's own bytes, each refused", 4 * len(padded))


def test_the_standard_alphabet_is_refused(lenient_library: None, cipher: Cipher) -> None:
    token = next(
        token
        for token in iter(lambda: seal(cipher, PLACE, VALUE), None)
        if "-" in token and "_" in token
    )
    with pytest.raises(DamagedValue):
        opens(cipher, PLACE, token.replace("-", "+").replace("_", "/"))


@pytest.mark.parametrize(("sealed_for", "opened_at"), list(itertools.permutations(PLACES, 2)))
def test_a_token_never_opens_at_another_place(
    cipher: Cipher, sealed_for: Place, opened_at: Place
) -> None:
    token = seal(cipher, sealed_for, VALUE)
    with pytest.raises(DamagedValue, match="another place") as caught:
        opens(cipher, opened_at, token)
    assert str(opened_at) in str(caught.value)
    assert_silent(caught.value, token, "canary-value")


@pytest.mark.parametrize("scope", ["", "null", "None", "global"])
def test_text_that_looks_like_no_project_is_not_the_global_scope(
    cipher: Cipher, scope: str
) -> None:
    for one, other in itertools.permutations(
        [Place(None, "smtp", "user"), Place(scope, "smtp", "user")]
    ):
        with pytest.raises(DamagedValue, match="another place"):
            opens(cipher, other, seal(cipher, one, VALUE))


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "null",
        '"canary-value"',
        "1",
        "canary-value",
        '{"v":1,"value":"canary-value"}',
        '{"v":2,"project_id":null,"provider":"smtp","credential_type":"user","value":"canary-value"}',
        '{"v":"1","project_id":null,"provider":"smtp","credential_type":"user","value":"canary-value"}',
        '{"project_id":null,"provider":"smtp","credential_type":"user","value":"canary-value"}',
        '{"v":1,"project_id":null,"provider":"smtp","credential_type":"user","value":null}',
        '{"v":1,"project_id":null,"provider":"smtp","credential_type":"user","value":["canary-value"]}',
        '{"v":1,"project_id":null,"provider":"smtp","credential_type":"user"}',
    ],
)
def test_a_token_whose_content_is_not_ours_is_refused(content: str) -> None:
    key = generate_key()
    with pytest.raises(DamagedValue) as caught:
        opens(
            Cipher(key),
            Place(None, "smtp", "user"),
            Fernet(key.reveal()).encrypt(content.encode()).decode(),
        )
    assert_silent(caught.value, "canary-value", key.reveal())


def test_content_that_is_not_utf8_is_refused() -> None:
    key = generate_key()
    with pytest.raises(DamagedValue):
        opens(Cipher(key), PLACE, Fernet(key.reveal()).encrypt(b'\xff{"canary-value"').decode())


SMTP_USER = Place(None, "smtp", "user")
SPELLED = (
    '{"v":1,"project_id":null,"provider":"smtp","credential_type":"user","value":"canary-value"}'
)
MEMBERS = json.loads(SPELLED)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(MEMBERS),
        json.dumps(MEMBERS, indent=1),
        json.dumps(dict(reversed(MEMBERS.items())), separators=(",", ":")),
        json.dumps({"value": MEMBERS["value"], **MEMBERS}, separators=(",", ":")),
        SPELLED + " ",
        SPELLED + "\n",
        " " + SPELLED,
        "\ufeff" + SPELLED,
        SPELLED[:-1] + " }",
        SPELLED.replace('"value":', '"value": '),
        SPELLED.replace("smtp", "\\u0073mtp"),
        SPELLED[:-1] + ',"value":"canary-value other"}',
        SPELLED[:-1] + ',"more":1}',
        SPELLED.replace('"v":1', '"v":1.0'),
        SPELLED.replace('"canary-value"', '["canary-value"'),
        SPELLED.replace('"canary-value"', "[" * 100_000),
        SPELLED.replace('"canary-value"', '{"":' * 100_000),
    ],
)
def test_a_plaintext_for_the_right_place_that_is_spelled_otherwise_is_refused(content: str) -> None:
    key = generate_key()
    cipher, fernet = Cipher(key), Fernet(key.reveal())
    assert opens(cipher, SMTP_USER, fernet.encrypt(SPELLED.encode()).decode()) == Secret(
        "canary-value"
    )
    token = fernet.encrypt(content.encode()).decode()
    for refuse in (
        lambda: opens(cipher, SMTP_USER, token),
        lambda: reseal(SMTP_USER, token, cipher, Cipher(generate_key())),
    ):
        with pytest.raises(DamagedValue, match="its format is unknown to this version") as caught:
            refuse()
        assert_silent(caught.value, "canary-value", token, key.reveal())


# Each is another name: escaped, it could be taken for its neighbour.
AWKWARD = (
    "a", 'a"b', 'a\\"b', 'a\\\\"b', "a\\", "a\\\\", '"', "\\", '\\"', "a\0", "a\\u0000", "\n",
    "\\n",
    "\x7f",
    "é", "e\u0301", "\\u00e9",
    "\u2028", "\U0001f511", "\\ud83d\\udd11", "null", '","provider":"b', '","credential_type":"b',
    '","value":"b', "",
)  # fmt: skip


@pytest.mark.parametrize("part", Place._fields)
def test_an_awkward_name_seals_and_opens_and_is_not_taken_for_another(part: str) -> None:
    key = generate_key()
    cipher, fernet = Cipher(key), Fernet(key.reveal())
    for one in AWKWARD:
        place = PLACE._replace(**{part: one})
        token = seal(cipher, place, VALUE)
        assert opens(cipher, place, token) == VALUE
        assert json.loads(fernet.decrypt(token)) == {
            "v": 1,
            **place._asdict(),
            "value": VALUE.reveal(),
        }
        for other in AWKWARD:
            if other != one:
                with pytest.raises(DamagedValue, match="another place"):
                    opens(cipher, PLACE._replace(**{part: other}), token)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Place(None, 'a","credential_type":"b', "c"), Place(None, "a", 'b","credential_type":"c')),
        (Place('a","provider":"b', "c", "d"), Place("a", 'b","provider":"c', "d")),
        (Place(None, "a", "b"), Place('null,"provider":"a', "a", "b")),
        (Place(None, "a", 'b","value":"c'), Place(None, "a", "b")),
    ],
)
def test_no_name_reaches_into_the_next(cipher: Cipher, one: Place, other: Place) -> None:
    for sealed_for, opened_at in itertools.permutations([one, other]):
        for value in (VALUE, Secret('","value":"c'), Secret('c","value":"x')):
            token = seal(cipher, sealed_for, value)
            assert opens(cipher, sealed_for, token) == value
            with pytest.raises(DamagedValue, match="another place"):
                opens(cipher, opened_at, token)


# --- under another key, and what the library must prove


@given(
    value=TEXTS,
    project_id=st.none() | NAMES,
    provider=NAMES,
    credential_type=NAMES,
    at=st.integers(0, 2**41),
)
@example(" canary-value\r\n", None, "smtp", '"', 0)
def test_resealing_keeps_the_plaintext_and_the_time_and_the_new_key_alone_opens_it(
    value: str, project_id: str | None, provider: str, credential_type: str, at: int
) -> None:
    place, old_key, new_key = (
        Place(project_id, provider, credential_type),
        generate_key(),
        generate_key(),
    )
    old, new = Cipher(old_key), Cipher(new_key)
    token = seal(old, place, Secret(value), at=at)
    renewed = reseal(place, token, old, new)
    assert Fernet(new_key.reveal()).decrypt(renewed) == Fernet(old_key.reveal()).decrypt(token)
    assert sealed_at(renewed) == sealed_at(token) == at
    assert looks_sealed(renewed) and opens(new, place, renewed).reveal() == value
    with pytest.raises(DamagedValue, match="key refuses"):
        opens(old, place, renewed)
    # An IV of its own.
    assert base64.urlsafe_b64decode(renewed)[9:25] != base64.urlsafe_b64decode(token)[9:25]


def _damaged(token: str) -> str:
    raw = bytearray(base64.urlsafe_b64decode(token))
    raw[40] ^= 1
    return base64.urlsafe_b64encode(raw).decode()


@pytest.mark.parametrize(
    ("opened_at", "damage", "reason"),
    [
        *[(place, lambda token: token, "another place") for place in PLACES[1:]],
        (PLACE, _damaged, "key refuses"),
        (PLACE, lambda token: token[:-4], "not a whole token"),
        (PLACE, lambda token: token + "=", "not a whole token"),
        (PLACE, lambda token: token + "\n", "not a whole token"),
        (PLACE, lambda token: seal(Cipher(generate_key()), PLACE, VALUE), "key refuses"),
    ],
)
def test_what_does_not_open_is_not_resealed(
    opened_at: Place, damage: Callable[[str], str], reason: str
) -> None:
    old_key, new_key = generate_key(), generate_key()
    token = damage(seal(Cipher(old_key), PLACE, VALUE))
    with pytest.raises(DamagedValue, match=reason) as caught:
        reseal(opened_at, token, Cipher(old_key), Cipher(new_key))
    assert str(opened_at) in str(caught.value)
    assert_silent(caught.value, token, "canary-value", old_key.reveal(), new_key.reveal())


ENCRYPT, DECRYPT = Fernet.encrypt_at_time, Fernet.decrypt
STRANGER = Fernet(generate_key().reveal())
FAULTY: dict[
    str, dict[str, Callable[..., bytes]]
] = {  # what the library does, told the data or the token
    "encrypts a byte more": {
        "encrypt_at_time": lambda fernet, data, at: ENCRYPT(fernet, data + b" ", at)
    },
    "encrypts another value": {
        "encrypt_at_time": lambda fernet, data, at: ENCRYPT(
            fernet, data.replace(b"canary", b"others"), at
        )
    },
    "encrypts for another place": {
        "encrypt_at_time": lambda fernet, data, at: ENCRYPT(
            fernet, data.replace(b"smtp", b"smtq"), at
        )
    },
    "encrypts under another key": {
        "encrypt_at_time": lambda fernet, data, at: ENCRYPT(STRANGER, data, at)
    },
    "gives a token that is cut": {
        "encrypt_at_time": lambda fernet, data, at: ENCRYPT(fernet, data, at)[:-4]
    },
    "gives nothing": {"encrypt_at_time": lambda fernet, data, at: b""},
    "decrypts to nothing": {"decrypt": lambda fernet, token: b""},
    "decrypts to less": {"decrypt": lambda fernet, token: DECRYPT(fernet, token)[:-1]},
    "decrypts to another value": {
        "decrypt": lambda fernet, token: DECRYPT(fernet, token).replace(b"canary", b"others")
    },
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_library_that_does_not_give_back_what_was_sealed_is_noticed_and_nothing_is_given_out(
    monkeypatch: pytest.MonkeyPatch, cipher: Cipher, fault: str
) -> None:
    key = generate_key()
    token = seal(Cipher(key), PLACE, VALUE)
    for name, faulty in FAULTY[fault].items():
        right = getattr(Fernet, name)

        def unless_it_is_the_old_token(
            fernet: Fernet, data: Any, *more: Any, faulty: Any = faulty, right: Any = right
        ) -> bytes:
            return (
                right(fernet, data, *more)
                if data in (token, token.encode())
                else faulty(fernet, data, *more)
            )

        monkeypatch.setattr(Fernet, name, unless_it_is_the_old_token)
    with pytest.raises(
        DamagedValue, match="does not give back what was sealed; nothing was stored"
    ) as caught:
        seal(cipher, PLACE, VALUE)
    assert str(PLACE) in str(caught.value)
    assert_silent(caught.value, token, "canary-value", key.reveal())
    assert resealed(cipher, PLACE, token, Cipher(key)) is None


# --- keys


def test_another_key_is_refused(cipher: Cipher) -> None:
    key = generate_key()
    token = seal(cipher, PLACE, VALUE)
    with pytest.raises(DamagedValue, match="key refuses") as caught:
        opens(Cipher(key), PLACE, token)
    assert_silent(caught.value, token, "canary-value", key.reveal())


def test_generated_keys_differ_and_fit() -> None:
    keys = {generate_key().reveal() for _ in range(20)}
    assert len(keys) == 20
    assert {len(base64.urlsafe_b64decode(key)) for key in keys} == {32}


@pytest.mark.parametrize(
    "alter",
    [
        lambda key: key + "\n",
        lambda key: key + "\r\n",
        lambda key: " " + key,
        lambda key: key + " ",
        lambda key: key[:20] + "\n" + key[20:],
        lambda key: key[:-1],
        lambda key: key[:-2],
        lambda key: key[1:],
        lambda key: key[:22],
        lambda key: key + "=",
        lambda key: key + key,
        lambda key: key[:-2] + ALPHABET[ALPHABET.index(key[-2]) ^ 1] + "=",  # the same 32 bytes
        lambda key: "\ufeff" + key,
        lambda key: key[:5] + "é" + key[6:],
        lambda key: "+/" + key[2:],
        lambda key: "",
    ],
)
def test_an_altered_key_is_refused_and_not_shown(alter: object) -> None:
    assert callable(alter)
    key = generate_key().reveal()
    with pytest.raises(ValueError, match="not a Fernet key") as caught:
        Cipher(Secret(alter(key)))
    assert_silent(caught.value, key, key[1:-2], key[6:])


def test_a_cipher_shows_and_gives_away_no_key() -> None:
    key = generate_key()
    cipher = Cipher(key)
    assert key.reveal() not in repr(cipher) + str(cipher)
    for spread in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            spread(cipher)


def test_check_value_passes_under_its_own_key_and_text_only(cipher: Cipher) -> None:
    check = cipher.sealed(Secret("vault/key"))
    assert cipher.opened(check)[1] == Secret("vault/key")
    assert cipher.opened(check)[1] != Secret("vault/other")
    assert Cipher(generate_key()).opened(check)[1] != Secret("vault/key")
    for changed in (check + "\n", check[:-4], "", "é", check[:50] + "!" + check[51:]):
        assert cipher.opened(changed)[1] != Secret("vault/key")


# --- time and look


@pytest.mark.parametrize("moment", [0, 1, VECTOR_TIME, 2**31, 2**33 + 5])
def test_the_time_given_is_the_time_read(cipher: Cipher, moment: int) -> None:
    token = seal(cipher, PLACE, VALUE, at=moment)
    assert sealed_at(token) == moment
    assert looks_sealed(token)
    assert opens(cipher, PLACE, token) == VALUE


def test_without_a_time_the_token_has_the_present(cipher: Cipher) -> None:
    before = int(time.time())
    assert before <= sealed_at(seal(cipher, PLACE, VALUE)) <= int(time.time())


@pytest.mark.parametrize("stored", ["", "djEwAAAA", "gAAAA", "some text", "gAAAA" + "A" * 100])
def test_time_of_what_is_no_token_is_refused(stored: str) -> None:
    with pytest.raises(ValueError) as caught:
        sealed_at(stored)
    assert_silent(caught.value, stored or "nothing")


@pytest.mark.parametrize(
    "raw", [b"\x81" + bytes(72), b"\x80" + bytes(56), b"\x80" + bytes(73), b"\x80" + bytes(71)]
)
def test_time_of_another_version_or_size_is_refused(raw: bytes) -> None:
    # The least that is a token.
    assert sealed_at(base64.urlsafe_b64encode(b"\x80" + bytes(72)).decode()) == 0
    with pytest.raises(ValueError, match="not a Fernet token"):
        sealed_at(base64.urlsafe_b64encode(raw).decode())


@given(value=TEXTS, at=st.none() | st.integers(0, 2**41))
def test_a_token_never_looks_like_the_apps_own_value(
    cipher: Cipher, value: str, at: int | None
) -> None:
    token = seal(cipher, PLACE, Secret(value), at=at)
    lenient = base64.b64decode(token, altchars=b"-_", validate=False)  # as the app's decoder does
    assert lenient[:3] not in (b"v10", b"v11")
    assert not token.startswith(("djE", "AQAA"))
    assert looks_sealed(token)


@given(
    st.binary(max_size=80), st.sampled_from([b"v10", b"v11", b"\x01\x00\x00\x00\xd0\x8c\x9d\xdf"])
)
def test_the_apps_own_values_never_look_sealed(sealed: bytes, kind: bytes) -> None:
    assert not looks_sealed(base64.b64encode(kind + sealed).decode())


@pytest.mark.parametrize(
    "stored", ["", None, 5, 0.5, b"gAAAAAAdwJ6w", " gAAAAAAdwJ6w", "plain text", "GAAAA"]
)
def test_nothing_else_that_may_be_stored_looks_sealed(stored: object) -> None:
    assert looks_sealed(stored) is False
