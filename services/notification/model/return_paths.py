"""Envelope addresses that name the mail: a variable return path (VERP), so that a report without the returned mail is known too."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from uuid import UUID

from kit.identity.email_addresses import NotAnAddress, canonical, normalized

_TAG_BYTES = 8
_TOKEN_CHARACTERS = 39
_LOCAL_LENGTH = 64
_PURPOSE = b"return path"


class ReturnPaths:
    """Turns a mail's event into the address to which its bounces go, and back. The tag refuses addresses that we never gave.

    An address holds nothing but letters in lower case and digits, because servers on the way may fold the case.
    """

    def __init__(self, mailbox: str, key: bytes) -> None:
        """`mailbox` takes mail to `name+anything@domain` as well (sub-addressing, RFC 5233). Raises ValueError."""
        try:
            self._local, _, self._domain = normalized(mailbox).partition("@")
        except NotAnAddress as error:
            raise ValueError(str(error)) from None
        if len(self._local) + 1 + _TOKEN_CHARACTERS > _LOCAL_LENGTH:
            raise ValueError(f"must have at most {_LOCAL_LENGTH - 1 - _TOKEN_CHARACTERS} characters before the @")
        self._key = key

    def of(self, event_id: UUID) -> str:
        """The envelope address of the event's mail."""
        token = _base32(event_id.bytes) + _base32(self._tag(event_id))
        return f"{self._local}+{token}@{self._domain}"

    def event_of(self, address: str) -> UUID | None:
        """The event whose mail has this envelope address; None if we never gave it."""
        local, _, domain = canonical(address).partition("@")
        begun = f"{self._local.lower()}+"
        token = local.removeprefix(begun)
        if domain != self._domain.lower() or token == local or len(token) != _TOKEN_CHARACTERS:
            return None
        try:
            event_id = UUID(bytes=_from_base32(token[:26]))
            tag = _from_base32(token[26:])
        except (binascii.Error, ValueError):
            return None
        return event_id if hmac.compare_digest(tag, self._tag(event_id)) else None

    def _tag(self, event_id: UUID) -> bytes:
        return hmac.digest(self._key, _PURPOSE + event_id.bytes, hashlib.sha256)[:_TAG_BYTES]


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()


def _from_base32(text: str) -> bytes:
    return base64.b32decode(text.upper() + "=" * (-len(text) % 8))
