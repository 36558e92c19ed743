"""
A text in a file under a passphrase: how keys leave the machine.

The file is a JSON object: its kind, the parameters of Argon2id with a new salt, and a Fernet token
under the key that they make from the passphrase.
"""

from __future__ import annotations

import base64
import json
import os
from typing import Any, Final

from ..cipher import stretched, strict
from ..errors import BadKeyFile, KeyStoreUnavailable, WrongArgument
from ..secret import Secret, new_secret

# RFC 9106, section 4, the second recommended choice: the first needs 2 GiB of memory, which a
# container may not have.
_ARGON2ID: Final = {"iterations": 3, "lanes": 4, "memory_kib": 64 * 1024}
# A file must not take a machine down.
_ARGON2ID_AT_MOST: Final = {"iterations": 16, "lanes": 16, "memory_kib": 1024 * 1024}
_SALT_BYTES: Final = 16
AT_LEAST: Final = 12  # characters of a passphrase
_WORDS: Final = 6
_BLANKS: Final = b" \t\r\n"  # JSON's white space


def new_passphrase() -> Secret:
    """
    Six words of the EFF's large list, each by five throws of dice that `secrets` makes: 77 bits.

    The list is another package's, which is kept: 7,776 words are no code of ours.
    """
    from dicewarepy import diceware  # here: only one command needs it

    made = new_secret()
    made._text = " ".join(diceware(_WORDS))
    return made


def require_long(passphrase: Secret) -> None:
    """
    Raise WrongArgument if a passphrase is too short to withstand guessing. Only the command that
    makes a file does this: the files that exist must open.
    """
    if len(passphrase.reveal()) < AT_LEAST:
        raise WrongArgument(
            f"passphrase: it has fewer than {AT_LEAST} characters, which is soon guessed",
            hint="--generate makes one of six words; --weak takes this one all the same",
        )


def seal_under_passphrase(passphrase: Secret, content: Secret, kind: str) -> str:
    """
    Encrypt *content* so that it opens only with *passphrase*, as a file of that *kind*.

    Args:
        passphrase: not empty; different Unicode spellings of the same characters are the same.
    Raises:
        KeyUnavailable: this machine cannot stretch a passphrase; the text says what it lacks.
    """
    salt = os.urandom(_SALT_BYTES)
    token = stretched(passphrase, salt, **_ARGON2ID).sealed(content)
    if token is None:
        raise KeyStoreUnavailable("the exported keys do not open again; nothing was written")
    return _as_file(kind, _ARGON2ID | {"salt": base64.b64encode(salt).decode("ascii")}, token)


def open_under_passphrase(passphrase: Secret, text: str, kind: str) -> Secret:
    """
    Decrypt what a file of that *kind* holds.

    Raises:
        BadKeyFile: not such a file, cut or changed, or not under this passphrase. White space
            between the parts of the JSON may differ: editors and git change line ends, which prove
            nothing.
        KeyUnavailable: this machine cannot stretch a passphrase as the file asks; the text says
            why.
    """
    try:
        found = json.loads(text)
        costs = {name: found["argon2id"][name] for name in (*_ARGON2ID, "salt")}
        token = strict(found["token"])
        # Rebuilt from the parts in use, so that nothing can be added, repeated, missing or spelled
        # differently. No string loses white space: a token and a salt have none, and the kind is
        # compared as it is.
        written = _as_file(kind, costs, token)
        if found["kind"] != kind or _unblanked(text) != _unblanked(written):
            raise ValueError("not as it was written")
        cipher = stretched(passphrase, _salt(costs.pop("salt")), **_bounded(costs))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        message = f"not a file of {kind}, or it was cut or changed"
        raise BadKeyFile(message, hint="use another copy of the file") from None
    _, content = cipher.opened(token)
    if content is None:
        raise BadKeyFile(
            "the passphrase is not the one that it was made with, or the file was changed",
            hint="try the passphrase again; then try another copy of the file",
        )
    return content


def _as_file(kind: str, costs: dict[str, Any], token: str) -> str:
    return json.dumps({"kind": kind, "argon2id": costs, "token": token}, indent=1) + "\n"


def _unblanked(text: str) -> bytes:
    return text.encode().translate(None, _BLANKS)


def _salt(text: str) -> bytes:
    salt = base64.b64decode(text, validate=True)
    if base64.b64encode(salt).decode("ascii") != text or len(salt) != _SALT_BYTES:
        raise ValueError("another spelling of a salt, or another length")
    return salt


def _bounded(costs: dict[str, Any]) -> dict[str, int]:
    if not all(type(n) is int and 0 < n <= _ARGON2ID_AT_MOST[name] for name, n in costs.items()):
        raise ValueError("parameters out of bounds")
    return costs
