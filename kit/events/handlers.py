"""What an inbox calls for its events, and how a handler says what is to become of one."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from kit.data.database import Transaction

from .envelope import Event

_BACKOFF_BASE = 1.0
_BACKOFF_CAP = 300.0

Handler = Callable[[Event], Awaitable[None]]

Forgotten = Callable[[Transaction, Event], Awaitable[bool]]
"""Whether the event is about an erased person. Asked in the transaction that would keep a dead letter of it."""


@dataclass(frozen=True, slots=True)
class BatchHandler:
    """A handler that takes many events: those that wait at the moment, each once, in the order in which they came.

    It has all their effects in one transaction, which `mark_all_processed` guards, and none when it raises. Then each event comes
    again by itself, in the same order, so that a poison event is dead-lettered alone. An event that failed before, or comes from a
    worker that died, always comes by itself.
    """

    handle: Callable[[Sequence[Event]], Awaitable[None]]

    async def __call__(self, event: Event) -> None:
        """Handle one event."""
        await self.handle([event])


class Permanent(Exception):
    """Raised by a handler when trying again cannot help. Its text is kept with the dead letter: no secrets in it."""


class Later(Exception):
    """Raised by a handler to get the event again after a time of its choosing; counts as no failure."""

    def __init__(self, delay: timedelta) -> None:
        super().__init__(f"later, in {delay}")
        self.delay = delay


def backoff_seconds(failures: int, *, base: float = _BACKOFF_BASE) -> float:
    """Full jitter: anywhere up to the doubling bound. The exponent is clamped before it is raised."""
    bound = min(base * 2.0 ** min(failures - 1, 20), _BACKOFF_CAP)
    return random.uniform(0, bound)  # noqa: S311  # spreads load; nothing secret depends on it
