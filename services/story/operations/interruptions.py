"""Interrupts the worker of a story that was cancelled or deleted, by Redis pub/sub.

Pub/sub delivers at most once, so a message carries no decision: a worker that receives it reads the decision from the database. A
worker that misses it learns of the decision when it next renews its lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import redis.exceptions
from redis.asyncio import Redis

from ..store.progress import INTERRUPTIONS

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_PAUSE_SECONDS = 1.0


class Interruptions:
    """One subscription per worker process for all stories that it writes."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._hearing: dict[UUID, set[asyncio.Event]] = {}

    @contextmanager
    def hearing(self, story_id: UUID) -> Iterator[asyncio.Event]:
        """Yield an event that is set when the story may have been cancelled or deleted. It may be set without need."""
        event = asyncio.Event()
        self._hearing.setdefault(story_id, set()).add(event)
        try:
            yield event
        finally:
            self._hearing[story_id].discard(event)
            if not self._hearing[story_id]:
                del self._hearing[story_id]

    async def run(self, stopping: asyncio.Event) -> None:
        """Listen until `stopping` is set and no story is being written."""
        while not self._finished(stopping):
            try:
                await self._listen(stopping)
            except (redis.exceptions.RedisError, OSError) as error:
                log.warning("cancellations are noticed only as leases are renewed: %s", error)
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _listen(self, stopping: asyncio.Event) -> None:
        async with self._redis.pubsub() as channel:
            await channel.subscribe(INTERRUPTIONS)
            while not self._finished(stopping):
                message = await channel.get_message(timeout=_LOOK_SECONDS)
                if message is None:
                    continue
                if message["type"] == "message":
                    self._interrupt(message["data"])
                else:
                    # A subscription has begun, perhaps after a lost connection: messages before it may have been missed.
                    self._interrupt_all()

    def _interrupt(self, data: bytes) -> None:
        try:
            story_id = UUID(data.decode())
        except ValueError:
            log.warning("an interruption names no story")
            return
        for event in self._hearing.get(story_id, ()):
            event.set()

    def _interrupt_all(self) -> None:
        for events in self._hearing.values():
            for event in events:
                event.set()

    def _finished(self, stopping: asyncio.Event) -> bool:
        return stopping.is_set() and not self._hearing
