"""Suppressed addresses, which get no mail because an earlier one came back, or its reader complained.

An address is stored as a keyed digest only: who reads the table learns no address, and cannot try addresses without the key.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from kit.identity.email_addresses import canonical

_PURPOSE = b"suppressed address\0"


class SuppressionReason(StrEnum):
    """Why an address is suppressed. The database stores these names."""

    NO_ADDRESS = "NO_ADDRESS"
    """It does not exist. No mail goes there, security mail included: nobody could read it."""
    MAILBOX = "MAILBOX"
    """It exists, and its mailbox takes no mail. Security mail is still tried, because the mailbox may work again."""
    COMPLAINT = "COMPLAINT"
    """Its reader marked a mail as spam. Security mail still goes: a code is asked for, and by a complaint a thief would silence the
    warnings."""

    def stops(self, *, security: bool) -> bool:
        """Whether a mail of this kind is not sent."""
        return self is SuppressionReason.NO_ADDRESS or not security


class SuppressionSource(StrEnum):
    """Where we learned that the address fails. The database stores these names."""

    ANSWER = "ANSWER"
    """The mail server's answer while we sent."""
    REPORT = "REPORT"
    """A report in the folder of bounces."""
    PROVIDER = "PROVIDER"
    """The mail provider's webhook."""


class Mail(Protocol):
    """What a suppression needs to know of the mail that came back."""

    @property
    def event_id(self) -> UUID: ...
    @property
    def user_id(self) -> UUID | None: ...
    @property
    def kind(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Suppression:
    """A suppressed address, with all that is known of it but the address."""

    id: UUID
    address_digest: bytes
    user_id: UUID | None
    """The person to whom the mail went; None for a code to an address without a person, until a mail to a person meets it."""
    event_id: UUID
    """The event whose mail came back, or was complained about."""
    reason: SuppressionReason
    code: str
    """The enhanced status code that said so, such as 5.1.1; of a complaint the type of the feedback, such as abuse."""
    source: SuppressionSource
    created_at: datetime


class AddressDigests:
    """Makes the keyed digest under which an address is found again."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, address: str) -> bytes:
        """HMAC-SHA-256 of the canonical address, so that all spellings of an address have one digest."""
        return hmac.digest(self._key, _PURPOSE + canonical(address).encode(), hashlib.sha256)
