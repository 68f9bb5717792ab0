"""Scenarios: the stories that are requested, their watchers, and the faults that happen meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .failpoints import Action, Stop


class WhileFrozen(StrEnum):
    """What happens while a process is frozen."""

    ANOTHER_TAKES_OVER = "another takes over"
    ANOTHER_ENDS_IT = "another ends the work"
    CANCEL = "the owner cancels"
    LOSE_REDIS = "Redis loses everything"
    LOSE_PROGRESS = "Redis loses the progress streams"


@dataclass(frozen=True)
class Fault:
    """A process is killed or frozen at a place; and what happens while it is frozen."""

    stop: Stop
    while_frozen: WhileFrozen = WhileFrozen.ANOTHER_TAKES_OVER

    def __str__(self) -> str:
        return f"{self.stop}" + (f" while {self.while_frozen}" if self.stop.action is Action.FREEZE else "")


@dataclass(frozen=True)
class Watcher:
    """How one client watches."""

    messages_a_call: int = 0
    late: bool = False
    """Calls only after the first client has seen words."""


@dataclass(frozen=True)
class StoryRequest:
    """A story to request."""

    watchers: tuple[Watcher, ...] = (Watcher(),)
    cancelled: bool = False
    """The owner cancels the story when the first client has seen words."""
    retries: int = 0
    """How often the owner retries it when it was cancelled or has failed."""


@dataclass(frozen=True)
class Scenario:
    requests: tuple[StoryRequest, ...] = (StoryRequest(),)
    story_workers: int = 1
    notification_workers: int = 1
    attempts: int = 5
    pace_seconds: float = 0.0025
    """Between two words of a story, which has about 150 words."""
    faults: tuple[Fault, ...] = ()

    @property
    def lossy(self) -> bool:
        """Whether a fault makes Redis lose the progress of a story."""
        return any(fault.while_frozen in _LOSSES for fault in self.faults)


_LOSSES = (WhileFrozen.LOSE_REDIS, WhileFrozen.LOSE_PROGRESS)
