"""Tokens that a service hands out and later takes back unchanged: page tokens and resume tokens."""

from __future__ import annotations

import hashlib
import hmac

from kit.runtime import base64url

_TAG_BYTES = 16


class Signer:
    """Signs short texts, each bound to a scope (who asked for what), so that no token works anywhere else."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, scope: str, text: str) -> str:
        """A URL-safe token of `text`. The text is signed, not encrypted: the holder can read it."""
        body = text.encode()
        return base64url.encode(self._tag(scope, body) + body)

    def open(self, scope: str, token: str) -> str | None:
        """The text, or None when the token was not signed for this scope with this key."""
        try:
            raw = base64url.decode(token)
            tag, body = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
            return body.decode() if hmac.compare_digest(tag, self._tag(scope, body)) else None
        except ValueError:
            return None

    def _tag(self, scope: str, body: bytes) -> bytes:
        scoped = len(scope.encode()).to_bytes(4) + scope.encode() + body
        return hmac.digest(self._key, scoped, hashlib.sha256)[:_TAG_BYTES]
