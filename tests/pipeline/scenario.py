"""What is to happen in a world: who asks for what, who watches, and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .failpoints import Deed, Stop


class Meanwhile(StrEnum):
    """What happens while somebody is frozen."""

    ANOTHER_TAKES_OVER = "another takes over"
    ANOTHER_ENDS_IT = "another ends the work"
    CANCEL = "the owner cancels"
    LOSE_REDIS = "Redis loses everything"
    LOSE_PROGRESS = "Redis loses the progress streams"


@dataclass(frozen=True)
class Incident:
    """Somebody is stopped; of who is only frozen, also what happens then."""

    stop: Stop
    meanwhile: Meanwhile = Meanwhile.ANOTHER_TAKES_OVER

    def __str__(self) -> str:
        return f"{self.stop}" + (f" while {self.meanwhile}" if self.stop.deed is Deed.FREEZE else "")


@dataclass(frozen=True)
class Watching:
    """How one client watches."""

    messages_a_call: int = 0
    late: bool = False
    """Comes when the first words are there already."""


@dataclass(frozen=True)
class Asked:
    """One story that somebody asks for."""

    watchers: tuple[Watching, ...] = (Watching(),)
    cancelled: bool = False
    """Its owner cancels it when the first words are there."""
    retries: int = 0
    """How often its owner has it written anew, should it be cancelled or fail."""


@dataclass(frozen=True)
class Scenario:
    asked: tuple[Asked, ...] = (Asked(),)
    story_workers: int = 1
    notification_workers: int = 1
    attempts: int = 5
    pace_seconds: float = 0.0025
    """Between two words of a story, which has about 150."""
    incidents: tuple[Incident, ...] = ()

    @property
    def lossy(self) -> bool:
        """Whether Redis may forget what was written of a story."""
        return any(incident.meanwhile in _LOSSES for incident in self.incidents)


_LOSSES = (Meanwhile.LOSE_REDIS, Meanwhile.LOSE_PROGRESS)
