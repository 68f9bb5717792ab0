"""Base64url without padding (RFC 4648, section 5): the written form of every key and every token."""

from __future__ import annotations

import base64


def encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """The bytes of `text`, with or without padding; the two characters of plain base64 count as those of base64url.

    Strict, because Python's lenient decoder skips what it does not know, and reads another key than the other process does.
    Raises ValueError for any other character and for an impossible length.
    """
    return base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
