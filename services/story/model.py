"""What a story is, and the steps of its progress. Pure: no clock, no store."""

from __future__ import annotations

import hashlib
import json
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
    failure_reason: str
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None


class FailureReason(StrEnum):
    """Why a story was given up, beside a writer's own refusals. Permanent: clients may act on them."""

    WRITER_UNAVAILABLE = "WRITER_UNAVAILABLE"
    WORKER_LOST = "WORKER_LOST"


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
