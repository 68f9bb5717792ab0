"""Device tokens: proof that a device is known to an account (OWASP, "Slow Down Online Guessing Attacks with Device Cookies").

They authenticate nobody. Failed sign-ins of a device that presents one are counted apart, so that strangers who guess at the
account cannot lock its owner out.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from uuid import UUID

from kit.runtime import base64url

from . import Randomness

_PREFIX = "smd1_"
_ID_BYTES, _NAME_BYTES = 16, 16


class DeviceTokens:
    """Derives tokens instead of storing them: HMAC(key, user | name). The newest key makes tokens, all keys verify."""

    def __init__(self, keys: Sequence[bytes], random: Randomness) -> None:
        self._keys = keys
        self._random = random

    def make(self, user_id: UUID) -> str:
        name = self._random(_NAME_BYTES)
        raw = user_id.bytes + name + _tag(self._keys[0], user_id, name)
        return _PREFIX + base64url.encode(raw)

    def name_of(self, token: str, user_id: UUID) -> str | None:
        """The device name in the token; None if this service did not make it, or made it for another account."""
        try:
            raw = base64url.decode(token.removeprefix(_PREFIX))
        except ValueError:
            return None
        owner, name, tag = raw[:_ID_BYTES], raw[_ID_BYTES : _ID_BYTES + _NAME_BYTES], raw[_ID_BYTES + _NAME_BYTES :]
        ours = any(hmac.compare_digest(tag, _tag(key, user_id, name)) for key in self._keys)
        return name.hex() if ours and owner == user_id.bytes else None


def _tag(key: bytes, user_id: UUID, name: bytes) -> bytes:
    return hmac.digest(key, b"device\0" + user_id.bytes + name, hashlib.sha256)
