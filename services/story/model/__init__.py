"""Stories, quotas and the steps of a story's progress, as data and arithmetic. Pure: no clock, no store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeAlias
from uuid import UUID

DEFAULT_LANGUAGE = "en"
EXCERPT_LENGTH = 300


class State(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        return self in (State.COMPLETED, State.FAILED, State.CANCELLED)


class Length(StrEnum):
    SHORT = "SHORT"
    MEDIUM = "MEDIUM"
    LONG = "LONG"


@dataclass(frozen=True, slots=True)
class Wish:
    """The parameters of a requested story."""

    preferences: tuple[str, ...]
    theme: str
    prompt: str
    length: Length
    language: str

    def digest(self) -> bytes:
        """A SHA-256 over the parameters. Equal digests mark a repeated request; different ones, a reused request id."""
        parts = [self.preferences, self.theme, self.prompt, self.length, self.language]
        return hashlib.sha256(json.dumps(parts).encode()).digest()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The title and text that an attempt has written so far, as saved in Postgres."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Story:
    id: UUID
    owner_id: UUID
    wish: Wish
    state: State
    title: str
    text: str
    attempt: int
    """The number of attempts begun. It fences each write of an attempt: a worker that was overtaken changes nothing."""
    failures: int
    """The number of attempts that failed. A story that its worker hands back at a shutdown has not failed."""
    queue_position: int
    writer: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    failure_reason: str
    created_at: datetime
    queued_at: datetime
    """The time of the request, or of the latest retry."""
    started_at: datetime | None
    completed_at: datetime | None


class FailureReason(StrEnum):
    """Reasons for which a story failed, besides a writer's refusals. Permanent: clients may act on them."""

    WRITER_UNAVAILABLE = "WRITER_UNAVAILABLE"
    WORKER_LOST = "WORKER_LOST"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    TOKEN_QUOTA_EXCEEDED = "TOKEN_QUOTA_EXCEEDED"


def excerpt(text: str) -> str:
    """The first lines of a story on one line of at most EXCERPT_LENGTH characters; an ellipsis ends what was cut.

    Cut between words, except in scripts that do not separate them and in words longer than a quarter of the excerpt.
    """
    line = " ".join(text.split())
    if len(line) <= EXCERPT_LENGTH:
        return line
    end = line.rfind(" ", EXCERPT_LENGTH * 3 // 4, EXCERPT_LENGTH)
    return line[: end if end > 0 else EXCERPT_LENGTH - 1].rstrip(" ,;:.") + "…"


DAY = timedelta(days=1)

_SHORTEST_WAIT = timedelta(seconds=1)
_LONGEST_WAIT = timedelta(minutes=5)
_UNKNOWN_PACE = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class Limits:
    """Quotas of requests for stories."""

    unfinished: int
    """Stories that a person may have queued or running."""
    a_day: int
    """Stories that a person may request within 24 hours; deleted stories and retries count."""
    backlog: int
    """Stories of all people that may be queued."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The requests that count towards the quotas. No count goes beyond its limit."""

    unfinished: int
    """The person's queued and running stories."""
    earliest_of_day: datetime | None
    """When the person's `a_day`-th latest request was admitted; None when there were fewer."""
    queued: int
    """The queued stories of all people."""
    erased: bool
    """The person's account was deleted."""


def wait_for_places(places: int, completed: Sequence[datetime], now: datetime) -> timedelta:
    """Estimate how long the queue takes to move by `places`, at the pace of the latest completions.

    Between one second and five minutes, because the pace may change. Without completions, 15 s per story are assumed.
    """
    each = (now - min(completed)) / len(completed) if completed else _UNKNOWN_PACE
    return min(max(places * each, _SHORTEST_WAIT), _LONGEST_WAIT)


def wait_for_day(admitted_at: datetime, now: datetime) -> timedelta:
    """The time left until an admission leaves the quota of the day; zero or less when it has left."""
    return admitted_at + DAY - now


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A position in a story's progress: the attempt, and an offset without gaps within the attempt."""

    attempt: int
    offset: int

    def __str__(self) -> str:
        return f"{self.attempt}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position:
        attempt, _, offset = text.partition("-")
        return cls(int(attempt), int(offset))


START = Position(0, 0)
"""The position before the first attempt."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    text: str


@dataclass(frozen=True, slots=True)
class Chunk:
    text: str


@dataclass(frozen=True, slots=True)
class Reset:
    attempt: int


@dataclass(frozen=True, slots=True)
class StateChange:
    state: State


@dataclass(frozen=True, slots=True)
class Heartbeat:
    pass


@dataclass(frozen=True, slots=True)
class Done:
    story: Story


@dataclass(frozen=True, slots=True)
class Reconnect:
    after: timedelta


Step: TypeAlias = Snapshot | Chunk | Reset | StateChange | Heartbeat | Done | Reconnect
"""A message to a watcher."""
