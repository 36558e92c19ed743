"""
Keys, and what is sealed with them. The only module that imports cryptography.

Everything sealed is one bare Fernet token (github.com/fernet/spec). The row names the key that
opens its token, and only that key is tried: `MultiFernet` tries all, which hides a wrong key id.
Argon2id (RFC 9106) turns a passphrase into a key.
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

# Two bits of the last letter mean nothing, and are zero.
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]=")
# 30 bits: the version byte 0x80, then the top 22 of a 64-bit time in seconds, 0 for 139,000 years.
_PREFIX: Final = "gAAAA"
_URLSAFE: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
# Before one `=`, two bits of the last character mean nothing; before two, four. They are zero, so
# a token has one spelling.
_ENDINGS: Final = frozenset(
    [*(b"%c=" % last for last in _URLSAFE[::4]), *(b"%c==" % last for last in _URLSAFE[::16])]
)
_OVERHEAD: Final = 1 + 8 + 16 + 32  # version, time, IV, HMAC; between them whole AES blocks

REFUSED: Final = "its key refuses the stored token: the value or its key id was changed"
UNREADABLE: Final = "not a whole token, or its format is unknown to this version"


def generate_key() -> Secret:
    """A new Fernet key: 32 random bytes, as 44 characters of url-safe base64."""
    key = new_secret()
    key._text = Fernet.generate_key().decode("ascii")
    return key


class Cipher:
    """
    One key, ready for use.

    Args:
        key: a Fernet key, exactly 44 characters in their one spelling. An altered key is refused
            here, whatever the library would accept.
    Raises:
        ValueError: *key* has another shape. The message does not show it.
    """

    __slots__ = ("_fernet",)

    def __init__(self, key: Secret) -> None:
        if not _KEY.fullmatch(key.reveal()):
            raise ValueError("not a Fernet key: it must be 44 characters of url-safe base64")
        self._fernet = Fernet(key.reveal())

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a cipher cannot be pickled or copied: it holds a key")

    def sealed(self, plaintext: Secret, at: int | None = None) -> str | None:
        """
        A token of *plaintext*, opened again and compared; None if it gave something else.

        Args:
            at: the token's time in whole seconds since 1970, by default now. Anyone can read it.
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

        It raises nothing: the library's errors may hold texts, and would stay chained to ours. A
        token that differs from a good one in any bit, or in length, is wrong.
        """
        plaintext = new_secret()
        try:
            plaintext._text = self._fernet.decrypt(_one_spelling(token)).decode()
            return "", plaintext
        except InvalidToken:
            return REFUSED if _is_token(token) else UNREADABLE, None
        except (ValueError, TypeError, AttributeError):  # another tool may store bytes or numbers
            return UNREADABLE, None


def looks_sealed(stored: object) -> bool:
    """
    Whether *stored* looks like a Fernet token, without opening it.

    The desktop app's values are empty, or decode to a leading `v10`, `v11` or a DPAPI blob: none
    begins like a token. Another tool may even have stored something that is not text.
    """
    return isinstance(stored, str) and stored.startswith(_PREFIX)


def sealed_at(token: str) -> int:
    """
    When *token* was made, in whole seconds since 1970. Read without the key, so not proved.

    Raises:
        ValueError: not a strict token.
    """
    return time_of(strict(token))


def time_of(token: str) -> int:
    """`sealed_at` for a token already known to be one."""
    return int.from_bytes(base64.urlsafe_b64decode(token[:12])[1:], "big")  # version and time


def strict(token: str) -> str:
    """*token* itself; ValueError unless it meets the specification. Its HMAC is not checked."""
    if not isinstance(token, str) or not _is_token(token):  # a damaged column may hold anything
        raise ValueError("not a Fernet token")
    return token


def stretched(
    passphrase: Secret, salt: bytes, *, iterations: int, lanes: int, memory_kib: int
) -> Cipher:
    """
    The key that Argon2id makes from a passphrase.

    Args:
        passphrase: the same characters in another Unicode form are the same passphrase.
    Raises:
        KeyUnavailable: this machine has too little memory, or its OpenSSL has no Argon2id.
    """
    try:
        import unicodedata  # these here: no other call needs them

        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

        stretch = Argon2id(
            salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory_kib
        )
        key = new_secret()
        key._text = base64.urlsafe_b64encode(  # no variables: a signal may keep this frame
            stretch.derive(
                unicodedata.normalize("NFC", passphrase.reveal()).encode("utf-8", "surrogatepass")
            )
        ).decode("ascii")
        return Cipher(key)
    except (MemoryError, InternalError):  # cryptography 44 raises the second for the first
        raise KeyUnavailable(
            f"there is too little memory: Argon2id needs {memory_kib / 1024:g} MiB for this file",
            hint="free memory, raise this process's or container's limit, or use another machine",
        ) from None
    except (ImportError, UnsupportedAlgorithm):
        raise KeyUnavailable(
            "this cryptography has no Argon2id for the passphrase: it needs OpenSSL 3.2 or later",
            hint="install cryptography 44.0.1 or later from PyPI: its wheels bring that OpenSSL, a"
            " build from source uses the system's. FIPS mode has no Argon2id: use another machine",
        ) from None


def _one_spelling(token: str) -> bytes:
    """
    The token's bytes, if they have base64's one canonical spelling.

    Libraries accept others: without padding (Fernet in Rust), with white space (Python).
    """
    data = token.encode("ascii")  # UnicodeEncodeError is a ValueError
    padding = data.translate(None, _URLSAFE)  # everything outside the alphabet
    if len(data) % 4 or (padding and data[-1 - len(padding) :] not in _ENDINGS):
        raise ValueError("not url-safe base64 in its one spelling")
    return data


def _is_token(token: str) -> bool:
    try:
        raw = base64.urlsafe_b64decode(_one_spelling(token))
    except ValueError:
        return False
    return raw[:1] == b"\x80" and len(raw) > _OVERHEAD and (len(raw) - _OVERHEAD) % 16 == 0
