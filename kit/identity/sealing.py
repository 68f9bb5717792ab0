"""Secrets on their way through stores that must not show them."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12
_VERSION = b"\x01"


class Unsealable(Exception):
    """The sealed bytes were altered, or sealed for another purpose or under another key."""


class Seal:
    """AES-256-GCM with a random 96-bit nonce (NIST SP 800-38D, 8.2.2) and the purpose as associated data."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key[:32])

    def seal(self, purpose: str, secret: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, secret, purpose.encode())

    def unseal(self, purpose: str, sealed: bytes) -> bytes:
        """Raises Unsealable."""
        version, nonce, body = sealed[:1], sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        if version != _VERSION:
            raise Unsealable
        try:
            return self._cipher.decrypt(nonce, body, purpose.encode())
        except (InvalidTag, ValueError):
            raise Unsealable from None
