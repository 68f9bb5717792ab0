"""Handles: which words are the operator's, which handle a profile begins with, and how often it may change."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from uuid import UUID

CHANGES = 2
CHANGES_WITHIN = timedelta(days=14)
RESERVED_FOR = timedelta(days=90)
"""How long a former handle can be taken by nobody but its former owner."""

_DERIVED = re.compile(r"user_[0-9]{12}")
_ATTEMPTS = 20
_BRAND = "storymesh"
_WORDS = (
    "abuse", "account", "admin", "administration", "administrator", "all", "anonymous", "api", "billing", "contact",
    "deleted", "everybody", "everyone", "help", "helpdesk", "here", "hostmaster", "info", "legal", "login", "mailerdaemon",
    "mod", "moderation", "moderator", "moderators", "nobody", "noreply", "null", "official", "operator", "owner",
    "password", "payment", "payments", "postmaster", "privacy", "register", "root", "security", "self", "service",
    "settings", "signin", "signup", "staff", "support", "sysadmin", "system", "team", "terms", "undefined", "unknown",
    "verified", "verify", "webmaster", "www",
)  # fmt: skip

# What is taken for a letter at a glance, all in one spelling.
_LOOK_ALIKES = str.maketrans({"0": "o", "1": "l", "i": "l", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "_": ""})


def _skeleton(handle: str) -> str:
    return handle.translate(_LOOK_ALIKES).replace("vv", "w").replace("rn", "m")


_RESERVED = frozenset(map(_skeleton, _WORDS))


def is_reserved(handle: str, user_id: UUID) -> bool:
    """True for a word of the operator's, what looks like one, and a handle that another person's profile might begin with."""
    if _DERIVED.fullmatch(handle):
        return handle not in derived(user_id)
    skeleton = _skeleton(handle)
    return skeleton in _RESERVED or _skeleton(_BRAND) in skeleton


def derived(user_id: UUID) -> Iterator[str]:
    """Handles for a new profile, in the order in which to try them. Nobody else can choose one, and they tell nothing."""
    for attempt in range(_ATTEMPTS):
        digest = hashlib.sha256(user_id.bytes + bytes([attempt])).digest()
        yield f"user_{int.from_bytes(digest[:8]) % 10**12:012}"


def next_change_at(changed_at: Sequence[datetime]) -> datetime | None:
    """When the handle may be changed next, by the times of its changes, the latest first; None if nothing stands against it."""
    return changed_at[CHANGES - 1] + CHANGES_WITHIN if len(changed_at) >= CHANGES else None


class HandleDigests:
    """Keyed digests of handles, as what former ones are reserved under."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def digest(self, handle: str) -> bytes:
        return hmac.digest(self._key, handle.encode(), hashlib.sha256)
