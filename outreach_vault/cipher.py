"""
A value into a token and back, bound to its place. The only module that imports cryptography.

A stored value is one bare Fernet token (github.com/fernet/spec). Fernet has no associated data, so a
row's token would open in any other row under the same key. The plaintext therefore names its place::

    {"v":1,"project_id":null,"provider":"smtp","credential_type":"password","value":"..."}

and a place that is not the row's own is refused. The key that opens a token is named beside it, and
only that key is tried: `MultiFernet` tries all, which hides a wrong key id.

What leaves the machine is sealed under a passphrase: Argon2id (RFC 9106) makes a Fernet key of it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from json.decoder import scanstring  # type: ignore[attr-defined]  # its stubs leave it out
from json.encoder import encode_basestring as quoted
from operator import itemgetter
from typing import Any, Final, NamedTuple, NoReturn

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.fernet import Fernet, InvalidToken

from .errors import BadKeyFile, DamagedValue, KeyUnavailable, brief
from .secret import Secret, new_secret

MAX_VALUE_BYTES: Final = 64 * 1024
_FORMAT: Final = 1
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]=")  # of the last letter two bits mean nothing, and are zero
# 30 bits: the version byte 0x80, then the high 22 of a 64-bit time in seconds, zero for 139,000 years to come.
_PREFIX: Final = "gAAAA"
_URLSAFE: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
# Of the last character before one `=` two bits mean nothing, before two four: they are zero, so that a token has one spelling.
_ENDINGS: Final = frozenset([*(b"%c=" % last for last in _URLSAFE[::4]), *(b"%c==" % last for last in _URLSAFE[::16])])
_OVERHEAD: Final = 1 + 8 + 16 + 32  # version, time, IV, HMAC; the ciphertext between is whole AES blocks
# RFC 9106, section 4, the second recommended choice (the first takes 2 GiB of memory, which a container may not have).
_ARGON2ID: Final = {"iterations": 3, "lanes": 4, "memory_kib": 64 * 1024}
_ARGON2ID_AT_MOST: Final = {"iterations": 16, "lanes": 16, "memory_kib": 1024 * 1024}  # a file must not take a machine down
_SALT_BYTES: Final = 16
_BLANKS: Final = b" \t\r\n"  # JSON's white space
_UNREADABLE: Final = "what is stored is not a whole token, or holds no value in a format of this version"

NOT_PROVED: Final = "a token just made does not give back what was sealed; nothing was stored"


Names = tuple[str | None, str, str]  # a `Place`, or the part of a row that is one: where each call counts, no object is made of it


class Place(NamedTuple):
    """Where a value belongs: one row's scope (None is global), provider and credential_type."""

    project_id: str | None
    provider: str
    credential_type: str

    def __str__(self) -> str:
        scope = "global" if self.project_id is None else f"project {brief(self.project_id)}"
        return f"{brief(self.provider)}/{brief(self.credential_type)} ({scope})"


def looks_sealed(stored: object) -> bool:
    """
    Whether *stored* has the look of a Fernet token, without opening it.

    The desktop app's values decode to a leading `v10`, `v11` or a DPAPI blob, or are empty: none begins
    like a token. Another tool may even have stored something that is not text.
    """
    return isinstance(stored, str) and stored.startswith(_PREFIX)


def generate_key() -> Secret:
    """A new Fernet key: 32 random bytes, as 44 characters of url-safe base64."""
    key = new_secret()
    key._text = Fernet.generate_key().decode("ascii")
    return key


class Cipher:
    """
    One key, ready for use.

    Args:
        key: a Fernet key, exactly 44 characters in their one spelling. A key that was altered on its way is not
            taken here, whatever the library makes of it.
    Raises:
        ValueError: *key* is not of that shape. The message does not hold it.
    """

    __slots__ = ("_fernet",)

    def __init__(self, key: Secret) -> None:
        if not _KEY.fullmatch(key.reveal()):
            raise ValueError("not a Fernet key: 44 characters of url-safe base64 are needed")
        self._fernet = Fernet(key.reveal())

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a cipher cannot be pickled or copied: it holds a key")

    def seal(self, place: Place, value: Secret, *, at: int | None = None) -> str:
        """
        Encrypt *value* so that it opens only under this key and only at *place*.

        The token was opened again with this key, and its content compared, before it is returned.

        Args:
            value: 1 character to 64 KiB of UTF-8. The token's length shows its length to 16 bytes.
            at: the token's time, in whole seconds since 1970; now by default. Anyone can read it.
        Returns:
            A Fernet token: url-safe base64, about 4/3 x (value + place + 110) characters.
        Raises:
            ValueError: *value* is empty, too long, or not text that UTF-8 can hold.
        """
        check_value(value)
        token = self._sealed(_plaintext(place, value), int(time.time()) if at is None else at)
        if token is None:
            raise DamagedValue(f"{place}: {NOT_PROVED}")
        return token

    def _sealed(self, plaintext: Secret, at: int) -> str | None:
        """A token that was opened again; None where it did not give back what was sealed."""
        token = self._fernet.encrypt_at_time(plaintext.reveal().encode(), at)
        try:
            return token.decode("ascii") if self._fernet.decrypt(token) == plaintext.reveal().encode() else None
        except InvalidToken:
            return None

    def open(self, place: Place, token: str) -> Secret:
        """
        The value that was sealed for *place*.

        Raises:
            DamagedValue: not a strict token, not under this key, or sealed for another place. A token
                that differs from a good one in any bit, or in length, comes to this.
        """
        fault, value = self.opened(place, token)
        if value is None:
            raise DamagedValue(f"{place}: {fault}")
        return value

    def opened(self, place: Names, token: str, *, whole: bool = False) -> tuple[str, Secret | None]:
        """
        Empty text and the value, or with *whole* all of the plaintext; or what is wrong with the token, and None.

        It raises nothing: the library's errors hold texts, and would hang on to ours.
        """
        text = value = ""
        try:
            found = new_secret()
            text = self._fernet.decrypt(_one_spelling(token)).decode()
            if text.startswith(head := _head(place)):
                value, end = scanstring(text, len(head))
                if text[end:] == "}":
                    found._text = text if whole else value
                    return "", found
            found._text = text
            return _misfit(found, place), None
        except InvalidToken:
            return "its key refuses the stored token: the value or its key id was changed" if _is_token(token) else _UNREADABLE, None
        except (ValueError, RecursionError, TypeError, AttributeError):  # the last two: what another tool stored is no text at all
            return _UNREADABLE, None
        finally:
            text = value = ""  # a signal's handler may have raised, and then this frame is kept

    def resealed(self, place: Names, token: str, old: Cipher) -> str | None:
        """
        A token under this key with what *token* holds under the *old* one; plaintext and time stay as they are.

        The new token was opened with this key, and its content compared. None where *token* does not open under
        *old* at *place* (`old.open` says why), or the new one did not give back what was sealed.
        """
        _, plaintext = old.opened(place, token, whole=True)
        return None if plaintext is None else self._sealed(plaintext, _time_of(token))

    def make_check(self, text: str) -> str:
        """A check value: a token of the known *text* under this key."""
        return self._fernet.encrypt(text.encode()).decode("ascii")

    def passes_check(self, check_value: str, text: str) -> bool:
        """Whether *check_value* is *text* sealed under this key, so whether this is the key it was made with."""
        try:
            return self._fernet.decrypt(_strict(check_value)) == text.encode()
        except (InvalidToken, ValueError):
            return False


def sealed_at(token: str) -> int:
    """
    When *token* was made, in whole seconds since 1970; read without the key, so not proved.

    Raises:
        ValueError: not a strict token.
    """
    return _time_of(_strict(token))


def _time_of(token: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(token[:12])[1:], "big")  # 12 characters are 9 bytes: version and time


def seal_under_passphrase(passphrase: Secret, content: Secret, kind: str) -> str:
    """
    Encrypt *content* so that it opens only with *passphrase*; the text for a file of that *kind*.

    A JSON object: the kind, the parameters of Argon2id with a new salt, and a Fernet token under the
    key that they make of the passphrase.

    Args:
        passphrase: not empty; two ways to write the same characters in Unicode are one passphrase.
    Raises:
        KeyUnavailable: this machine cannot stretch a passphrase; the text says what it lacks.
    """
    made: dict[str, Any] = {
        "kind": kind,
        "argon2id": {**_ARGON2ID, "salt": base64.b64encode(os.urandom(_SALT_BYTES)).decode("ascii")},
    }
    made["token"] = _stretched(passphrase, made["argon2id"]).encrypt(content.reveal().encode()).decode("ascii")
    return _as_file(made)


def open_under_passphrase(passphrase: Secret, text: str, kind: str) -> Secret:
    """
    What was sealed in a file of that *kind*.

    Raises:
        BadKeyFile: not such a file, cut or changed, or not under this passphrase. White space between the parts of the
            JSON may differ: editors and git change line ends, and nothing that is proved depends on them.
        KeyUnavailable: this machine cannot stretch a passphrase as the file asks; the text says what it lacks.
    """
    try:
        found = json.loads(text)
        costs, token = {name: found["argon2id"][name] for name in (*_ARGON2ID, "salt")}, _strict(found["token"])
        # From what is used, so that nothing may be added, repeated, left out or spelled otherwise. Within the strings no white
        # space is lost on both sides: a token and a salt have none, and the kind is compared as it is.
        written = _as_file({"kind": kind, "argon2id": costs, "token": token})
        if found["kind"] != kind or text.encode().translate(None, _BLANKS) != written.encode().translate(None, _BLANKS):
            raise ValueError("not as it was written")
        fernet = _stretched(passphrase, costs)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BadKeyFile(f"not a file of {kind}, or it was cut or changed", hint="take another copy of the file") from None
    try:
        content = new_secret()
        content._text = fernet.decrypt(token).decode()
        return content
    except InvalidToken:
        raise BadKeyFile(
            "the passphrase is not the one that it was made with, or the file was changed",
            hint="try the passphrase again; then take another copy of the file",
        ) from None


def check_value(value: Secret) -> None:
    """Raise ValueError unless *value* can be stored: text that UTF-8 can hold, 1 character to 64 KiB."""
    try:
        size = len(value.reveal().encode())
    except UnicodeEncodeError:
        size = -1
    if size < 0:  # raised out here, since the other error holds the whole text, and would hang on to this one
        raise ValueError("the value is not valid text: it has half a surrogate pair")
    if not 1 <= size <= MAX_VALUE_BYTES:
        raise ValueError(f"the value is {'empty' if not size else f'{size} bytes long'}; 1 to {MAX_VALUE_BYTES} bytes of UTF-8 are stored")


def _stretched(passphrase: Secret, parameters: dict[str, Any]) -> Fernet:
    """
    The key that Argon2id makes of the passphrase.

    Raises:
        ValueError, TypeError: the parameters are none that we would use.
        KeyUnavailable: this machine has too little memory for them, or its OpenSSL no Argon2id.
    """
    salt, numbers = base64.b64decode(parameters["salt"], validate=True), {name: parameters[name] for name in _ARGON2ID}
    if base64.b64encode(salt).decode("ascii") != parameters["salt"] or len(salt) != _SALT_BYTES:
        raise ValueError("another spelling of a salt, or another length")
    if not all(type(n) is int and 0 < n <= _ARGON2ID_AT_MOST[name] for name, n in numbers.items()):
        raise ValueError("parameters out of bounds")
    costs = {"iterations": numbers["iterations"], "lanes": numbers["lanes"], "memory_cost": numbers["memory_kib"]}
    try:
        import unicodedata  # these here: no other call needs them

        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

        stretch = Argon2id(salt=salt, length=32, **costs)  # its own check: memory is at least 8 KiB for a lane
        return Fernet(
            base64.urlsafe_b64encode(stretch.derive(unicodedata.normalize("NFC", passphrase.reveal()).encode("utf-8", "surrogatepass")))
        )  # no name for any of it: what a signal's handler raises keeps this frame
    except (MemoryError, InternalError):  # the second is what cryptography 44 makes of it
        raise KeyUnavailable(
            f"there is too little memory to stretch the passphrase: Argon2id needs {numbers['memory_kib'] / 1024:g} MiB for this file",
            hint="free memory, raise the limit of this process or container, or do it on another machine",
        ) from None
    except (ImportError, UnsupportedAlgorithm):
        raise KeyUnavailable(
            "the passphrase cannot be stretched: this cryptography has no Argon2id, for which it needs OpenSSL 3.2 or later",
            hint="install cryptography 44.0.1 or later from PyPI, whose wheels bring such an OpenSSL; one that is built from source takes"
            " the system's. In FIPS mode there is no Argon2id: do it on another machine",
        ) from None


def _as_file(made: dict[str, Any]) -> str:
    """One spelling only, so that any changed character is noticed, also where it would mean nothing; but for white space."""
    return json.dumps(made, indent=1) + "\n"


def _plaintext(place: Place, value: Secret) -> Secret:
    plaintext = new_secret()
    plaintext._text = f"{_head(place)}{quoted(value.reveal())[1:]}}}"  # the head has the quotation mark
    return plaintext


def _head(place: Names) -> str:
    """
    All that comes before the value's text in a plaintext sealed for *place*. Its spelling is fixed, so that one
    comparison proves the place, and the value alone is parsed: less than half the time of parsing the whole (measured).
    """
    project_id, provider, credential_type = place
    project = "null" if project_id is None else quoted(project_id)
    return f'{{"v":{_FORMAT},"project_id":{project},"provider":{quoted(provider)},"credential_type":{quoted(credential_type)},"value":"'


def _misfit(plaintext: Secret, place: Names) -> str:
    """Why a plaintext is not one for *place*."""
    content = None
    try:
        content = json.loads(plaintext.reveal())
        found = itemgetter(*Place._fields)(content)  # a missing project is not the global scope
        moved = content["v"] == _FORMAT and isinstance(content["value"], str) and found != tuple(place)
    except (ValueError, TypeError, KeyError, RecursionError):
        moved = False
    finally:
        content = None
    return "the value was sealed for another place and moved here" if moved else _UNREADABLE


def _one_spelling(token: str) -> bytes:
    """
    The token's bytes, if base64 spells them so and in no other way.

    Libraries take other spellings, each others of its own: without padding (Fernet in Rust), with white space (in Python).
    """
    data = token.encode("ascii")  # UnicodeEncodeError is a ValueError
    padding = data.translate(None, _URLSAFE)  # all that is not of the alphabet
    if len(data) % 4 or (padding and data[-1 - len(padding) :] not in _ENDINGS):
        raise ValueError("not url-safe base64 in its one spelling")
    return data


def _is_token(token: str) -> bool:
    """Whether *token* is in every character what the specification says of one, but for its HMAC."""
    try:
        raw = base64.urlsafe_b64decode(_one_spelling(token))
    except ValueError:
        return False
    return raw[:1] == b"\x80" and len(raw) > _OVERHEAD and (len(raw) - _OVERHEAD) % 16 == 0


def _strict(token: str) -> str:
    if not isinstance(token, str) or not _is_token(token):  # a damaged column may hold anything
        raise ValueError("not a Fernet token")
    return token
