"""
Keys, and what cryptography makes with them. The only module that imports it.

Everything sealed is one bare Fernet token (github.com/fernet/spec). The key that opens a token is named
beside it, and only that key is tried: `MultiFernet` tries all, which hides a wrong key id. A passphrase
becomes a key by Argon2id (RFC 9106).
"""

from __future__ import annotations

import base64
import re
import time
from typing import Final, NoReturn

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.fernet import Fernet, InvalidToken

from .errors import KeyUnavailable
from .secret import Secret, new_secret

# Of the last letter two bits mean nothing, and are zero.
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]=")
# 30 bits: the version byte 0x80, then the high 22 of a 64-bit time in seconds, zero for 139,000 years.
_PREFIX: Final = "gAAAA"
_URLSAFE: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
# Before one `=` two bits of the last character mean nothing, before two `=` four. They are zero, so
# that a token has one spelling.
_ENDINGS: Final = frozenset(
    [*(b"%c=" % last for last in _URLSAFE[::4]), *(b"%c==" % last for last in _URLSAFE[::16])]
)
_OVERHEAD: Final = 1 + 8 + 16 + 32  # version, time, IV, HMAC; whole AES blocks lie between

REFUSED: Final = "its key refuses the stored token: the value or its key id was changed"
UNREADABLE: Final = (
    "what is stored is not a whole token, or holds no value in a format of this version"
)


def generate_key() -> Secret:
    """A new Fernet key: 32 random bytes, as 44 characters of url-safe base64."""
    key = new_secret()
    key._text = Fernet.generate_key().decode("ascii")
    return key


class Cipher:
    """
    One key, ready for use.

    Args:
        key: a Fernet key, exactly 44 characters in their one spelling. A key that was altered on its
            way is refused here, whatever the library makes of it.
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

    def sealed(self, plaintext: Secret, at: int | None = None) -> str | None:
        """
        A token of *plaintext*, opened again and compared; None where that gave something else.

        Args:
            at: the token's time, in whole seconds since 1970; now by default. Anyone can read it.
        """
        moment = int(time.time()) if at is None else at
        token = self._fernet.encrypt_at_time(plaintext.reveal().encode(), moment)
        try:
            same = self._fernet.decrypt(token) == plaintext.reveal().encode()
        except InvalidToken:
            same = False
        return token.decode("ascii") if same else None

    def opened(self, token: str) -> tuple[str, Secret | None]:
        """
        Empty text and the plaintext; or what is wrong with *token*, and None.

        It raises nothing: the library's errors hold texts, and would hang on to ours. A token that
        differs from a good one in any bit, or in length, is wrong.
        """
        plaintext = new_secret()
        try:
            plaintext._text = self._fernet.decrypt(_one_spelling(token)).decode()
            return "", plaintext
        except InvalidToken:
            return REFUSED if _is_token(token) else UNREADABLE, None
        except (ValueError, TypeError, AttributeError):  # another tool may store what is no text
            return UNREADABLE, None


def looks_sealed(stored: object) -> bool:
    """
    Whether *stored* looks like a Fernet token, without opening it.

    The desktop app's values decode to a leading `v10`, `v11` or a DPAPI blob, or are empty: none begins
    like a token. Another tool may even have stored something that is not text.
    """
    return isinstance(stored, str) and stored.startswith(_PREFIX)


def sealed_at(token: str) -> int:
    """
    When *token* was made, in whole seconds since 1970; read without the key, so not proved.

    Raises:
        ValueError: not a strict token.
    """
    return time_of(strict(token))


def time_of(token: str) -> int:
    """`sealed_at` of a token that is known to be one."""
    return int.from_bytes(base64.urlsafe_b64decode(token[:12])[1:], "big")  # version and time


def strict(token: str) -> str:
    """*token* itself; ValueError unless it is what the specification says, but for its HMAC."""
    if not isinstance(token, str) or not _is_token(token):  # a damaged column may hold anything
        raise ValueError("not a Fernet token")
    return token


def stretched(
    passphrase: Secret, salt: bytes, *, iterations: int, lanes: int, memory_kib: int
) -> Cipher:
    """
    The key that Argon2id makes of a passphrase.

    Args:
        passphrase: two ways to write the same characters in Unicode are one passphrase.
    Raises:
        KeyUnavailable: this machine has too little memory for that, or its OpenSSL no Argon2id.
    """
    try:
        import unicodedata  # these here: no other call needs them

        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

        stretch = Argon2id(
            salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory_kib
        )
        key = new_secret()
        key._text = base64.urlsafe_b64encode(  # no name for any of it: a signal may keep this frame
            stretch.derive(
                unicodedata.normalize("NFC", passphrase.reveal()).encode("utf-8", "surrogatepass")
            )
        ).decode("ascii")
        return Cipher(key)
    except (MemoryError, InternalError):  # the second is what cryptography 44 makes of it
        raise KeyUnavailable(
            f"there is too little memory to stretch the passphrase: Argon2id needs {memory_kib / 1024:g} MiB for this file",
            hint="free memory, raise the limit of this process or container, or use another machine",
        ) from None
    except (ImportError, UnsupportedAlgorithm):
        raise KeyUnavailable(
            "the passphrase cannot be stretched: this cryptography has no Argon2id, for which it needs OpenSSL 3.2 or later",
            hint="install cryptography 44.0.1 or later from PyPI, whose wheels bring such an OpenSSL; a"
            " build from source takes the system's. FIPS mode has no Argon2id: use another machine",
        ) from None


def _one_spelling(token: str) -> bytes:
    """
    The token's bytes, if base64 spells them so and in no other way.

    Libraries take other spellings, each its own: no padding (Fernet in Rust), white space (Python).
    """
    data = token.encode("ascii")  # UnicodeEncodeError is a ValueError
    padding = data.translate(None, _URLSAFE)  # all that is not of the alphabet
    if len(data) % 4 or (padding and data[-1 - len(padding) :] not in _ENDINGS):
        raise ValueError("not url-safe base64 in its one spelling")
    return data


def _is_token(token: str) -> bool:
    try:
        raw = base64.urlsafe_b64decode(_one_spelling(token))
    except ValueError:
        return False
    return raw[:1] == b"\x80" and len(raw) > _OVERHEAD and (len(raw) - _OVERHEAD) % 16 == 0
