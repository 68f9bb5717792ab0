"""Signs mails by DKIM (RFC 6376), so that the receiving servers know that they are from our domain and unchanged."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, NamedTuple

import dkim
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

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


def read_key(path: str) -> RSAPrivateKey:
    """The private key in a PEM file. Raises UnusableKey."""
    try:
        key = load_pem_private_key(Path(path).read_bytes(), None)
    except OSError:
        raise UnusableKey("is no file that can be read") from None
    except (ValueError, TypeError):  # a TypeError if it wants a password
        raise UnusableKey("holds no private key in PEM form without a password") from None
    if not isinstance(key, RSAPrivateKey):
        raise UnusableKey("holds no RSA key, the one kind that all receivers verify")
    if key.key_size < _LEAST_BITS:
        raise UnusableKey(f"holds a key of {key.key_size} bits; receivers verify from {_LEAST_BITS} on")
    return key


class DkimSigner:
    """Signs for one domain with one key."""

    def __init__(self, domain: str, selector: str, key: RSAPrivateKey) -> None:
        """`key` is that of `read_key`. Receivers find its public half in the DNS, at SELECTOR._domainkey.DOMAIN."""
        self._domain = domain.encode()
        self._selector = selector.encode()
        self._key = _Key(key)
        # dkimpy parses the key at each mail, with a parser in Python.
        self._pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    async def signed(self, mail: bytes) -> bytes:
        """The mail with its signature in front. In a thread, so that the RSA operation does not hold up the event loop."""
        return await asyncio.to_thread(self._signature, mail) + mail

    def _signature(self, mail: bytes) -> bytes:
        header: bytes = _Dkim(self._key, mail).sign(
            self._selector,
            self._domain,
            self._pem,
            canonicalize=(b"relaxed", b"relaxed"),
            include_headers=list(_SIGNED),
        )
        return header


class _Signature(NamedTuple):
    signature: bytes


class _Key:
    """A key as dkimpy asks one of Ed25519 to sign: by itself, the digest that it made of the mail."""

    def __init__(self, key: RSAPrivateKey) -> None:
        self._key = key

    def sign(self, digest: bytes) -> _Signature:
        return _Signature(self._key.sign(digest, PKCS1v15(), Prehashed(SHA256())))


class _Dkim(dkim.DKIM):  # type: ignore[misc]  # dkimpy has no types
    """dkimpy with the RSA operation of `cryptography`, which is in C and blinded, in place of its own, which is in Python."""

    def __init__(self, key: _Key, mail: bytes) -> None:
        super().__init__(mail)
        self._key = key

    def gen_header(self, fields: Any, include_headers: Any, canon_policy: Any, header_name: bytes, _pk: Any) -> Any:
        """Make the header, in which `fields` name the algorithm already: from here on it says only who signs the digest."""
        self.signature_algorithm = b"ed25519-sha256"
        return super().gen_header(fields, include_headers, canon_policy, header_name, self._key)
