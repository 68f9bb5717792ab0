"""Signs mails by DKIM (RFC 6376), so that the receiving servers know that they are from our domain and unchanged."""

from __future__ import annotations

import asyncio
from pathlib import Path

import dkim
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

_LEAST_BITS = 1024
"""RFC 8301, 3.2: shorter keys are not verified. It recommends 2048."""

_SIGNED = (
    b"From",
    b"To",
    b"Subject",
    b"Date",
    b"Message-ID",
    b"MIME-Version",
    b"Content-Type",
    b"Content-Transfer-Encoding",
    b"Auto-Submitted",
    b"Feedback-ID",
    b"List-Unsubscribe",
    b"List-Unsubscribe-Post",
)
"""What readers see and receivers act on; the last two by RFC 8058, 4. One that the mail lacks cannot be added later either."""


class UnusableKey(ValueError):
    """Says in words what is wrong with a file, without its content."""


def read_key(path: str) -> bytes:
    """The private key in a PEM file. Raises UnusableKey."""
    try:
        pem = Path(path).read_bytes()
    except OSError:
        raise UnusableKey("is no file that can be read") from None
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):  # a TypeError if it wants a password
        raise UnusableKey("holds no private key in PEM form without a password") from None
    if not isinstance(key, RSAPrivateKey):
        raise UnusableKey("holds no RSA key, the one kind that all receivers verify")
    if key.key_size < _LEAST_BITS:
        raise UnusableKey(f"holds a key of {key.key_size} bits; receivers verify from {_LEAST_BITS} on")
    return pem


class DkimSigner:
    """Signs for one domain with one key."""

    def __init__(self, domain: str, selector: str, key: bytes) -> None:
        """`key` is that of `read_key`. Receivers find its public half in the DNS, at SELECTOR._domainkey.DOMAIN."""
        self._domain = domain.encode()
        self._selector = selector.encode()
        self._key = key

    async def signed(self, mail: bytes) -> bytes:
        """The mail with its signature in front. In a thread: it costs milliseconds of pure Python."""
        return await asyncio.to_thread(self._signature, mail) + mail

    def _signature(self, mail: bytes) -> bytes:
        header: bytes = dkim.sign(
            mail,
            self._selector,
            self._domain,
            self._key,
            canonicalize=(b"relaxed", b"relaxed"),
            include_headers=list(_SIGNED),
        )
        return header
