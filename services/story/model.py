"""What a story is, and the steps of its progress. Pure: no clock, no store."""

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
    """What a story is to be."""

    preferences: tuple[str, ...]
    theme: str
    prompt: str
    length: Length
    language: str

    def digest(self) -> bytes:
        """Equal for equal wishes: tells a repeated request from another one under the same request id."""
        parts = [self.preferences, self.theme, self.prompt, self.length, self.language]
        return hashlib.sha256(json.dumps(parts).encode()).digest()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What an attempt has written so far."""

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
    """Counts how often writing has begun; every write of an attempt names it, so that an overtaken worker changes nothing."""
    failures: int
    """Counts the attempts that failed; handing work back at a shutdown is none."""
    queue_position: int
    writer: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    failure_reason: str
    created_at: datetime
    queued_at: datetime
    """When it was requested last: at first, or by a retry."""
    started_at: datetime | None
    completed_at: datetime | None


class FailureReason(StrEnum):
    """Why a story was given up, beside a writer's own refusals. Permanent: clients may act on them."""

    WRITER_UNAVAILABLE = "WRITER_UNAVAILABLE"
    WORKER_LOST = "WORKER_LOST"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"


DAY = timedelta(days=1)

_SHORTEST_WAIT = timedelta(seconds=1)
_LONGEST_WAIT = timedelta(minutes=5)
_UNKNOWN_PACE = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be asked for."""

    unfinished: int
    """Stories that a person may have queued or running."""
    a_day: int
    """Stories that a person may request within 24 hours, deleted and repeated ones included."""
    backlog: int
    """Stories that may be queued in all."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What was asked for so far, counted no further than the limits."""

    unfinished: int
    """The person's queued and running stories."""
    earliest_of_day: datetime | None
    """When the person's latest request but `a_day - 1` was admitted; None when there were fewer."""
    queued: int
    """Everybody's queued stories."""
    erased: bool
    """The person's account was deleted."""


def wait_for_places(places: int, completed: Sequence[datetime], now: datetime) -> timedelta:
    """How long until the queue has moved by so many places, at the pace at which the latest stories were completed.

    Between a second and five minutes: the pace says nothing about later. Where no story is completed, a slow pace is taken.
    """
    each = (now - min(completed)) / len(completed) if completed else _UNKNOWN_PACE
    return min(max(places * each, _SHORTEST_WAIT), _LONGEST_WAIT)


def wait_for_day(admitted_at: datetime, now: datetime) -> timedelta:
    """How long until an admission does not count any more; zero or less when it does not now."""
    return admitted_at + DAY - now


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a story's progress: the attempt, and a dense offset within it."""

    attempt: int
    offset: int

    def __str__(self) -> str:
        return f"{self.attempt}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position:
        attempt, _, offset = text.partition("-")
        return cls(int(attempt), int(offset))


START = Position(0, 0)
"""Before the first attempt."""


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
"""What a watcher is told."""
