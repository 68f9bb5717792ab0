"""What the watches of every service share: how many may be open, and when to come back after a Reconnect."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

from kit.errors import ResourceExhausted

from .watch_leases import PlacesTaken, WatchLeases

_COME_BACK_AFTER = timedelta(seconds=5)


class TooManyWatches(ResourceExhausted):
    reason = "TOO_MANY_WATCHES"
    message = "too many watches are open; close one or try again later"

    def __init__(self) -> None:
        super().__init__(retry_after=_COME_BACK_AFTER)


class OpenWatches:
    """Counts the open watches of one process, and with leases those of a person at all replicas."""

    def __init__(self, *, per_person: int, altogether: int, leases: WatchLeases | None = None) -> None:
        self._leases = leases
        self._per_person = per_person
        self._altogether = altogether
        self._open: Counter[UUID] = Counter()

    async def run(self, stopping: asyncio.Event) -> None:
        """Keep the leases. Must run beside watches."""
        if self._leases:
            await self._leases.run(stopping)
        else:
            await stopping.wait()

    @asynccontextmanager
    async def admitted(self, user_id: UUID) -> AsyncIterator[None]:
        """Count a watch of the person during the block, here and at all replicas. Raises TooManyWatches."""
        async with self.counted_here(user_id), self.leased(user_id):
            yield

    @asynccontextmanager
    async def counted_here(self, user_id: UUID) -> AsyncIterator[None]:
        """Count a watch of the person in this process during the block. Raises TooManyWatches."""
        if self._open.total() >= self._altogether or self._open[user_id] >= self._per_person:
            raise TooManyWatches
        self._open[user_id] += 1
        try:
            yield
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]

    @asynccontextmanager
    async def leased(self, user_id: UUID) -> AsyncIterator[None]:
        """Hold a lease during the block, for a watch that is counted here. Raises TooManyWatches."""
        try:
            key = await self._leases.acquire(user_id) if self._leases else None
        except PlacesTaken:
            raise TooManyWatches from None
        try:
            yield
        finally:
            if self._leases and key:
                self._leases.release(key)


def reconnect_after() -> timedelta:
    """Between 0.5 and 1.5 s, so that the watchers of a draining replica do not reconnect all at once."""
    return timedelta(seconds=random.uniform(0.5, 1.5))  # noqa: S311  # spreads load
