"""Refresh tokens: opaque to clients, derived instead of stored."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from uuid import UUID

from kit.runtime import base64url

from . import RefreshToken, Session, digest

# The number is the version of the form; the prefix lets secret scanners recognise a leaked token.
_PREFIX = "smr1_"
_ID_BYTES, _GENERATION_BYTES, _SECRET_BYTES = 16, 4, 32


class RefreshTokens:
    """Derives the secret of a generation: HMAC(key, session | generation | nonce).

    The key is not in the database, and the nonce only there, so neither alone makes a token; a retry after a lost answer gets the
    identical token although none is stored. The first of several keys makes new tokens; tokens of the others are still recognised.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = keys

    def new(self, session_id: UUID, generation: int, nonce: bytes) -> str:
        return _token(self._keys[0], session_id, generation, nonce)

    def newest_of(self, session: Session) -> str:
        """The token that matches the session's stored digest, made by any of the keys."""
        made = (_token(key, session.id, session.generation, session.nonce) for key in self._keys)
        return next((token for token in made if hmac.compare_digest(digest(token), session.token_digest)), "")

    def made(self, token: RefreshToken, nonce: bytes) -> bool:
        """Whether one of the keys made the token, of any generation."""
        secrets = (_secret(key, token.session_id, token.generation, nonce) for key in self._keys)
        return any(hmac.compare_digest(token.secret, secret) for secret in secrets)


def parse(token: str) -> RefreshToken | None:
    """The parsed token; None if the text does not have the form of one."""
    if not token.startswith(_PREFIX):
        return None
    try:
        raw = base64url.decode(token.removeprefix(_PREFIX))
    except ValueError:
        return None
    if len(raw) != _ID_BYTES + _GENERATION_BYTES + _SECRET_BYTES:
        return None
    session_id, generation = raw[:_ID_BYTES], raw[_ID_BYTES:-_SECRET_BYTES]
    return RefreshToken(UUID(bytes=session_id), int.from_bytes(generation), raw[-_SECRET_BYTES:], digest(token))


def _token(key: bytes, session_id: UUID, generation: int, nonce: bytes) -> str:
    raw = _numbered(session_id, generation) + _secret(key, session_id, generation, nonce)
    return _PREFIX + base64url.encode(raw)


def _secret(key: bytes, session_id: UUID, generation: int, nonce: bytes) -> bytes:
    return hmac.digest(key, _numbered(session_id, generation) + nonce, hashlib.sha256)


def _numbered(session_id: UUID, generation: int) -> bytes:
    return session_id.bytes + generation.to_bytes(_GENERATION_BYTES)
