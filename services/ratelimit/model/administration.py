"""What administrators see of the limiter and change in it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from . import Taken
from .matching import Entries
from .rules import Rule


class Act(StrEnum):
    """A kind of change."""

    RESET = "reset"
    GRANTED = "granted"
    BANNED = "banned"
    LIFTED = "lifted"
    RECORDING_STARTED = "recording started"
    RECORDING_STOPPED = "recording stopped"


@dataclass(frozen=True, slots=True)
class Change:
    """A change that an administrator made, to be recorded."""

    act: Act
    actor_id: UUID
    reason: str
    subject: str
    """What it concerned, in words. May hold an address or a user's id, so changes are kept for a bounded time."""


@dataclass(frozen=True, slots=True)
class RecordedChange:
    """A change as it was recorded."""

    id: str
    """Ids grow with time."""

    change: Change
    made_at: datetime


class Offender(NamedTuple):
    """Whose calls a rule refuses."""

    domain: str
    rule: str
    """As metrics name it: all grants of a domain are one, and all bans."""

    entries: Entries
    """The descriptor that was refused."""

    @property
    def length(self) -> int:
        """The characters of the entries."""
        return sum(len(key) + len(value) for key, value in self.entries)


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording of calls, which is over at its end or when it is full."""

    most: int
    ends_at: datetime
    count: int = 0
    """The calls that it has."""


@dataclass(frozen=True, slots=True)
class Level:
    """What a rule's bucket holds now."""

    rule: Rule
    key: str
    look: Taken
    """The answer to a charge of no hits."""


@dataclass(frozen=True, slots=True)
class ExplainedRule:
    """A rule that matches a descriptor."""

    rule: Rule
    why_not: str
    """Why it does not apply; empty if it does."""

    refuses: bool
    level: Level | None
    """None for a rule that does not count."""


@dataclass(frozen=True, slots=True)
class ExplainedDescriptor:
    """What the rules say of a descriptor."""

    entries: Entries
    rules: tuple[ExplainedRule, ...]
    denied_unmatched: bool


@dataclass(frozen=True, slots=True)
class ExplainedCall:
    """What the limiter says of a call now, without debiting it."""

    rate_limit_class: str
    """Empty for a call that is told by its descriptors."""

    admitted: bool
    permanent: bool
    """Whether no wait helps."""

    retry_at: int | None
    """When the call would pass, in microseconds since 1970; None if it passes now, or never."""

    deciding: Rule | None
    shadow: bool
    """Whether the whole domain is in shadow mode."""

    descriptors: tuple[ExplainedDescriptor, ...]
