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
import binascii
import json
import os
import re
import time
import unicodedata
from typing import Any, Final, NamedTuple, NoReturn

from cryptography.fernet import Fernet, InvalidToken

from .errors import BadKeyFile, DamagedValue
from .secret import Secret

MAX_VALUE_BYTES: Final = 64 * 1024
_FORMAT: Final = 1
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{43}=")
# 30 bits: the version byte 0x80, then the high 22 of a 64-bit time in seconds, zero for 139,000 years to come.
_PREFIX: Final = "gAAAA"
_OVERHEAD: Final = 1 + 8 + 16 + 32  # version, time, IV, HMAC; the ciphertext between is whole AES blocks
# RFC 9106, section 4, the second recommended choice (the first takes 2 GiB of memory, which a container may not have).
_ARGON2ID: Final = {"iterations": 3, "lanes": 4, "memory_kib": 64 * 1024}
_ARGON2ID_AT_MOST: Final = {"iterations": 16, "lanes": 16, "memory_kib": 1024 * 1024}  # a file must not take a machine down
_SALT_BYTES: Final = 16


class Place(NamedTuple):
    """Where a value belongs: one row's scope (None is global), provider and credential_type."""

    project_id: str | None
    provider: str
    credential_type: str

    def __str__(self) -> str:
        scope = "global" if self.project_id is None else f"project {self.project_id}"
        return f"{self.provider}/{self.credential_type} ({scope})"


def looks_sealed(stored: object) -> bool:
    """
    Whether *stored* has the look of a Fernet token, without opening it.

    The desktop app's values decode to a leading `v10`, `v11` or a DPAPI blob, or are empty: none begins
    like a token. Another tool may even have stored something that is not text.
    """
    return isinstance(stored, str) and stored.startswith(_PREFIX)


def generate_key() -> Secret:
    """A new Fernet key: 32 random bytes, as 44 characters of url-safe base64."""
    return Secret(Fernet.generate_key().decode("ascii"))


class Cipher:
    """
    One key, ready for use.

    Args:
        key: a Fernet key, exactly 44 characters. The library also takes keys with white space around
            them; a key that was altered on its way is not taken here.
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
        token = self._fernet.encrypt_at_time(_plaintext(place, value), int(time.time()) if at is None else at).decode("ascii")
        if self.open(place, token) != value:
            raise DamagedValue(f"{place}: a token just made does not give back what was sealed; nothing was stored")
        return token

    def open(self, place: Place, token: str) -> Secret:
        """
        The value that was sealed for *place*.

        Raises:
            DamagedValue: not a strict token, not under this key, or sealed for another place. A token
                that differs from a good one in any bit, or in length, comes to this.
        """
        opened = None
        try:
            opened = _content(self._fernet.decrypt(_strict(token)))
        except InvalidToken:
            reason = "its key refuses the stored token: the value or its key id was changed"
        except (ValueError, RecursionError):
            reason = "what is stored is not a whole token, or holds no value in a format of this version"
        if opened is None:  # raised out here: the other errors hold texts, and would hang on to this one
            raise DamagedValue(f"{place}: {reason}")
        found, value = opened
        if found != place:
            raise DamagedValue(f"{place}: the value was sealed for another place and moved here")
        return value

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
    return int.from_bytes(base64.urlsafe_b64decode(_strict(token))[1:9], "big")


def seal_under_passphrase(passphrase: Secret, content: Secret, kind: str) -> str:
    """
    Encrypt *content* so that it opens only with *passphrase*; the text for a file of that *kind*.

    A JSON object: the kind, the parameters of Argon2id with a new salt, and a Fernet token under the
    key that they make of the passphrase.

    Args:
        passphrase: not empty; two ways to write the same characters in Unicode are one passphrase.
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
        BadKeyFile: not such a file, cut or changed anywhere, or not under this passphrase.
    """
    try:
        found = json.loads(text)
        if found["kind"] != kind or _as_file(found) != text:
            raise ValueError("not as it was written")
        fernet, token = _stretched(passphrase, found["argon2id"]), _strict(found["token"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BadKeyFile(f"not a file of {kind}, or it was cut or changed", hint="take another copy of the file") from None
    try:
        return Secret(fernet.decrypt(token).decode())
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
    """The key that Argon2id makes of the passphrase; ValueError or TypeError where the parameters are none that we would use."""
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id  # here: no other call needs it

    salt, numbers = base64.b64decode(parameters["salt"], validate=True), {name: parameters[name] for name in _ARGON2ID}
    if base64.b64encode(salt).decode("ascii") != parameters["salt"] or len(salt) != _SALT_BYTES:
        raise ValueError("another spelling of a salt, or another length")
    if not all(type(n) is int and 0 < n <= _ARGON2ID_AT_MOST[name] for name, n in numbers.items()):
        raise ValueError("parameters out of bounds")
    stretch = Argon2id(
        salt=salt, length=32, iterations=numbers["iterations"], lanes=numbers["lanes"], memory_cost=numbers["memory_kib"]
    )  # its own check: memory is at least 8 KiB for a lane
    text = unicodedata.normalize("NFC", passphrase.reveal())
    return Fernet(base64.urlsafe_b64encode(stretch.derive(text.encode("utf-8", "surrogatepass"))))


def _as_file(made: dict[str, Any]) -> str:
    """One spelling only, so that any changed character is noticed, also where it would mean nothing."""
    return json.dumps(made, indent=1) + "\n"


def _plaintext(place: Place, value: Secret) -> bytes:
    content = {"v": _FORMAT, **place._asdict(), "value": value.reveal()}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _content(plaintext: bytes) -> tuple[Place, Secret]:
    """The place and the value that a plaintext names; ValueError, to be let go at once, where it is none of ours."""
    content = json.loads(plaintext)
    if not isinstance(content, dict) or content.get("v") != _FORMAT or not isinstance(content.get("value"), str):
        raise ValueError("a format that this version does not know")
    if lacking := set(Place._fields) - set(content):  # a missing project is not the global scope
        raise ValueError(f"a content without {lacking}")
    return Place(content["project_id"], content["provider"], content["credential_type"]), Secret(content["value"])


def _strict(token: str) -> bytes:
    """The token's bytes if it is written exactly as the specification says; the library also takes other spellings."""
    data = token.encode("ascii")  # UnicodeEncodeError is a ValueError
    raw = base64.b64decode(data, altchars=b"-_", validate=True)
    if base64.urlsafe_b64encode(raw) != data:
        raise binascii.Error("not canonical base64")
    if raw[:1] != b"\x80" or len(raw) <= _OVERHEAD or (len(raw) - _OVERHEAD) % 16:
        raise ValueError("not a Fernet token")
    return data
