"""Signatures of webhook calls, in the form of the Standard Webhooks specification: HMAC-SHA-256 of id, time and body."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from datetime import datetime, timedelta

TOLERANCE = timedelta(minutes=5)
"""How far the sender's clock may be from ours. A call that is sent again later, by whoever recorded it, is refused."""

_VERSION = "v1"
_MOST_SIGNATURES = 10
_MOST_CHARACTERS = 256


def signature(key: bytes, call_id: str, timestamp: str, body: bytes) -> str:
    """The signature of a call, as its header carries it. `timestamp` is in seconds since 1970."""
    digest = hmac.digest(key, f"{call_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"{_VERSION},{base64.b64encode(digest).decode()}"


def is_signed(key: bytes, call_id: str, timestamp: str, signatures: str, *, body: bytes, now: datetime) -> bool:
    """Whether one of the signatures, separated by blanks as while a key is replaced, is the key's, and the call is of now."""
    if not call_id or not _is_of_now(timestamp, now) or max(len(call_id), len(timestamp)) > _MOST_CHARACTERS:
        return False
    expected = base64.b64decode(signature(key, call_id, timestamp, body).partition(",")[2])
    given = signatures.split(" ", _MOST_SIGNATURES)[:_MOST_SIGNATURES]
    return any(hmac.compare_digest(expected, _digest(each)) for each in given)


def _is_of_now(timestamp: str, now: datetime) -> bool:
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
        return False
    return abs(now.timestamp() - int(timestamp)) <= TOLERANCE.total_seconds()


def _digest(given: str) -> bytes:
    version, _, encoded = given.partition(",")
    if version != _VERSION:
        return b""
    try:
        return base64.b64decode(encoded[:_MOST_CHARACTERS], validate=True)
    except (binascii.Error, ValueError):
        return b""
