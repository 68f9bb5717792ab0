"""Recognises secrets that are fit for development only: by the mark that their generator wrote, or by their form.

Every answer says what is wrong and the way out, and never shows the secret.
"""

from __future__ import annotations

import string
from collections.abc import Collection

from kit.runtime import base64url

KEY_MARK = "development."
"""What the local runner's keys begin with. The dot is in neither alphabet of base64, so no other key begins so."""

PASSWORD_MARK = "development-"
"""What the local runner's passwords begin with; it needs no escaping in a URL."""

_NEW_KEY = "make one with: openssl rand -base64 32"
_NEW_PASSWORD = "make one with: openssl rand -hex 32"

# A key of 32 random bytes falls short of either less often than once in a million.
_DISTINCT_BYTES = 20
_DISTINCT_CHARACTERS = 20
_PRINTABLE = frozenset(string.printable.encode())
_HEX_DIGITS = frozenset("0123456789abcdef")

_DISTINCT_IN_PASSWORD = 6
_TRIED_FIRST = {
    "",
    "admin",
    "changeme",
    "default",
    "example",
    "postgres",
    "password",
    "redis",
    "root",
    "secret",
    "test",
}


def fault_of_keys(keys: Collection[bytes], *, marked: bool, others: Collection[str]) -> str | None:
    """What makes the keys of a setting unfit for production. `others` names the settings that hold one of them too."""
    if marked:
        return f"is a key that the local runner made for development; {_NEW_KEY}"
    if not all(map(_looks_random, keys)):
        return f"is evidently not random; {_NEW_KEY}"
    if others:
        # What is signed or shown for one use would hold for the other.
        return f"is the same key as {' and '.join(others)}; {_NEW_KEY}"
    return None


def fault_of_password(password: str, names: Collection[str]) -> str | None:
    """What makes a server's password unfit for production. `names` are the words that its address holds besides."""
    if not password:
        return f"has no password; {_NEW_PASSWORD}"
    if is_marked(password):
        return f"has a password that the local runner made for development; {_NEW_PASSWORD}"
    core = password.casefold().strip(string.digits + string.punctuation)
    if len(set(password)) < _DISTINCT_IN_PASSWORD or core in _TRIED_FIRST.union(name.casefold() for name in names):
        return f"has a password that is tried first; {_NEW_PASSWORD}"
    return None


def fault_of_text(secret: str) -> str | None:
    """What makes any other secret unfit: others make it, so that only the marks can tell."""
    return "was made for development; set the real one" if is_marked(secret) else None


def is_marked(secret: str) -> bool:
    return secret.startswith((KEY_MARK, PASSWORD_MARK))


def _looks_random(key: bytes) -> bool:
    """Not so for one byte repeated, for words, nor for words that happen to be base64."""
    text = base64url.encode(key)
    random_text = len(set(text)) >= _DISTINCT_CHARACTERS or _HEX_DIGITS.issuperset(text)
    return random_text and len(set(key)) >= _DISTINCT_BYTES and not _PRINTABLE.issuperset(key)
