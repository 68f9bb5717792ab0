"""Events as consumers and producers see them, and their envelope on the wire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar, cast
from uuid import UUID

from google.protobuf.message import DecodeError, Message
from storymesh.events.v1 import envelope_pb2

VERSION = 1
"""Of the payloads' meaning; raised when a consumer of the former version would misread them."""

M = TypeVar("M", bound=Message)


class Undecodable(Exception):
    """The bytes are no event that this consumer knows; trying again cannot help."""


@dataclass(frozen=True, slots=True)
class Event:
    """What happened, as its consumers get it."""

    id: UUID
    type: str
    key: str
    occurred_at: datetime
    traceparent: str
    payload: bytes
    version: int = VERSION

    def decode(self, message: Callable[[], M]) -> M:
        """Raises Undecodable."""
        decoded = message()
        try:
            decoded.ParseFromString(self.payload)
        except DecodeError as error:
            raise Undecodable(f"{self.type}: {error}") from None
        return decoded

    def to_bytes(self) -> bytes:
        envelope = envelope_pb2.Envelope(
            id=str(self.id),
            type=self.type,
            key=self.key,
            version=self.version,
            traceparent=self.traceparent,
            payload=self.payload,
        )
        envelope.occur_time.FromDatetime(self.occurred_at)
        return envelope.SerializeToString()


def uuid_in(message: Message, field: str) -> UUID:
    """The id that a text field of the payload holds. Raises Undecodable, without what it holds instead."""
    try:
        return UUID(getattr(message, field))
    except ValueError:
        raise Undecodable(f"{message.DESCRIPTOR.full_name}: {field} is no UUID") from None


def time_in(message: Message, field: str) -> datetime:
    """In UTC. Raises Undecodable for a time that no calendar has."""
    try:
        return cast("datetime", getattr(message, field).ToDatetime(UTC))
    except (ValueError, OverflowError):
        raise Undecodable(f"{message.DESCRIPTOR.full_name}: {field} is no time") from None


def from_bytes(data: bytes) -> Event:
    """Raises Undecodable."""
    try:
        envelope = envelope_pb2.Envelope.FromString(data)
        event = Event(
            id=UUID(envelope.id),
            type=envelope.type,
            key=envelope.key,
            occurred_at=envelope.occur_time.ToDatetime(UTC),
            traceparent=envelope.traceparent,
            payload=envelope.payload,
            version=envelope.version,
        )
    except (DecodeError, ValueError) as error:
        raise Undecodable(f"not an envelope: {error}") from None
    if event.version != VERSION:
        raise Undecodable(f"{event.type} version {event.version} is unknown here")
    return event
