"""How bytes may stand in other bytes."""

from __future__ import annotations

import base64


def forms(data: bytes) -> set[bytes]:
    """
    The bytes as they would be found in a longer text: plain, in hexadecimal, as base64 from any
    offset, or as UTF-16.
    """
    found = {
        data,
        data.hex().encode(),
        data.hex().upper().encode(),
        data.decode("latin-1").encode("utf-16-le"),
    }
    for offset, head in ((0, 0), (1, 2), (2, 3)):
        coded = base64.b64encode(bytes(offset) + data)
        inner = coded[head : len(coded) - {0: 0, 1: 3, 2: 2}[(offset + len(data)) % 3]]
        found |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return found
