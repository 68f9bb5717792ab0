"""What the watches of every service share: how many may be open, and when to come back after a Reconnect."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import UUID

from kit.errors import ResourceExhausted

_COME_BACK_AFTER = timedelta(seconds=5)


class TooManyWatches(ResourceExhausted):
    reason = "TOO_MANY_WATCHES"
    message = "too many watches are open; close one or try again later"

    def __init__(self) -> None:
        super().__init__(retry_after=_COME_BACK_AFTER)


class OpenWatches:
    """Counts the open watches of one process."""

    def __init__(self, *, per_person: int, altogether: int) -> None:
        self._per_person = per_person
        self._altogether = altogether
        self._open: Counter[UUID] = Counter()

    @contextmanager
    def admitted(self, user_id: UUID) -> Iterator[None]:
        """Count a watch of the person during the block. Raises TooManyWatches."""
        if self._open.total() >= self._altogether or self._open[user_id] >= self._per_person:
            raise TooManyWatches
        self._open[user_id] += 1
        try:
            yield
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]


def reconnect_after() -> timedelta:
    """Between 0.5 and 1.5 s, so that the watchers of a draining replica do not reconnect all at once."""
    return timedelta(seconds=random.uniform(0.5, 1.5))  # noqa: S311  # spreads load
