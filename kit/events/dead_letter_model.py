"""What a dead letter is, what an administrator may decide about it, and who keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from kit.errors import InvalidArgument, NotFound, Violation


class Settlement(StrEnum):
    """What becomes of a dead letter."""

    REPLAYED = "REPLAYED"
    DISCARDED = "DISCARDED"


@dataclass(frozen=True, slots=True)
class DeadLetterDecision:
    """What an administrator did about a dead letter, and why."""

    settlement: Settlement
    actor: UUID
    reason: str
    decided_at: datetime


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that waits for a decision. Never with the event's content, which may be personal."""

    event_id: UUID
    service: str
    type: str
    key: str
    reason: str
    failures: int
    died_at: datetime
    decisions: tuple[DeadLetterDecision, ...] = ()
    """Those made before it died again: the latest ten, oldest first."""


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    """A page of unsettled dead letters, newest first."""

    letters: tuple[DeadLetter, ...]
    next_token: str
    """Empty on the last page."""


@dataclass(frozen=True, slots=True)
class Administrator:
    """Who decides, and the access token that proves it to another service."""

    user_id: UUID
    access_token: str = field(repr=False)


class DeadLetterNotFound(NotFound):
    reason = "DEAD_LETTER_NOT_FOUND"
    message = "there is no such dead letter"


class DeadLetterStore(Protocol):
    """The dead letters of one service or of several, kept in this process's database or by the services that it asks."""

    async def list(self, administrator: Administrator, service: str, page_size: int, page_token: str) -> DeadLetterPage:
        """Unsettled dead letters of the service, newest first; of all that are kept here when `service` is empty.

        Raises InvalidArgument for a page token of another list.
        """
        ...

    async def settle(
        self,
        administrator: Administrator,
        service: str,
        settlement: Settlement,
        event_ids: Sequence[UUID],
        *,
        reason: str,
        dry_run: bool,
    ) -> Sequence[DeadLetter]:
        """Settle all or none, and return those that were not settled before. Raises DeadLetterNotFound."""
        ...


def page_token_purpose(service: str) -> str:
    """What the page tokens of a list are signed for: a token of one list is refused by every other."""
    return f"page:deadLetters:{service}"


def foreign_page_token() -> InvalidArgument:
    return InvalidArgument([Violation("page_token", "is not a token that this list handed out", "PAGE_TOKEN_INVALID")])
