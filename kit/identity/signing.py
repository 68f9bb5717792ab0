"""Tokens that a service hands out and later takes back unchanged: page tokens, resume tokens, and those in links."""

from __future__ import annotations

import hashlib
import hmac
from uuid import UUID

from kit.runtime import base64url

_TAG_BYTES = 16
_ID_BYTES = 16


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

    def sign_id(self, scope: str, identifier: UUID) -> str:
        """A URL-safe token of an id, always 43 characters."""
        return base64url.encode(identifier.bytes + self._tag(scope, identifier.bytes))

    def open_id(self, scope: str, token: str) -> UUID | None:
        """The id, or None when the token was not signed for this scope with this key. Only one spelling of a token is right."""
        try:
            raw = base64url.decode(token)
        except ValueError:
            return None
        identifier, tag = raw[:_ID_BYTES], raw[_ID_BYTES:]
        signed = hmac.compare_digest(tag, self._tag(scope, identifier)) and base64url.encode(raw) == token
        return UUID(bytes=identifier) if signed and len(identifier) == _ID_BYTES else None

    def _tag(self, scope: str, body: bytes) -> bytes:
        scoped = len(scope.encode()).to_bytes(4) + scope.encode() + body
        return hmac.digest(self._key, scoped, hashlib.sha256)[:_TAG_BYTES]
