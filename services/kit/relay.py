"""Copies committed outbox rows to the inbox streams of the subscribing services. Any number of relays may run on one outbox."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta

from redis.asyncio import Redis
from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.engine.row import RowMapping

from . import outbox
from .database import Database, listen
from .events import Event
from .inbox_stream import stream_of
from .pausing import pause

log = logging.getLogger(__name__)

_BATCH = 100
_POLL_SECONDS = 1.0
_KEEP_PUBLISHED = timedelta(days=7)
_PURGE_EVERY_SECONDS = 3600.0


class Relay:
    """At least once: a crash between the copy and the commit repeats the copy, and consumers drop the repeat by its id."""

    def __init__(self, db: Database, redis: Redis, routes: Mapping[str, Sequence[str]], *, database_url: str) -> None:
        self._db = db
        self._redis = redis
        self._routes = routes
        self._database_url = database_url
        self._wake = asyncio.Event()

    async def run(self, stopping: asyncio.Event) -> None:
        """Publishes until `stopping` is set. Survives restarts of Postgres and Redis."""
        async with asyncio.TaskGroup() as group:
            # NOTIFY saves the wait for the next poll.
            listening = group.create_task(listen(self._database_url, outbox.CHANNEL, self._wake))
            beside = [listening, group.create_task(self._purge())]
            while not stopping.is_set():
                # Cleared before the look, so that a wake-up during it is not lost.
                self._wake.clear()
                try:
                    busy = await self.publish() > 0
                except Exception as error:
                    log.warning("the outbox cannot be relayed now: %s", error)
                    busy = False
                if not busy:
                    await pause(_POLL_SECONDS, self._wake, stopping)
            for task in beside:
                task.cancel()

    async def publish(self) -> int:
        """Publishes one batch and returns its size; 0 when nothing is due. A batch holds one row of each key at most.

        The row locks are held through the bounded pipeline. A row waits while an earlier one of its key is unpublished, also when
        another relay holds that one: SKIP LOCKED alone would let this relay overtake it.
        """
        row, earlier = outbox.table, outbox.table.alias("earlier")
        blocked = exists().where(
            earlier.c.key == row.c.key, earlier.c.published_at.is_(None), earlier.c.position < row.c.position
        )
        due = (
            select(row)
            .where(row.c.published_at.is_(None), ~blocked)
            .order_by(row.c.position)
            .limit(_BATCH)
            .with_for_update(skip_locked=True)
        )
        async with self._db.transaction() as tx:
            rows = (await tx.execute(due)).mappings().all()
            if not rows:
                return 0
            async with self._redis.pipeline(transaction=False) as pipeline:
                for each in rows:
                    data = _event(each).to_bytes()
                    for inbox in self._inboxes(each["type"]):
                        pipeline.xadd(stream_of(inbox), {"event": data})
                await pipeline.execute()
            positions = [each["position"] for each in rows]
            await tx.execute(update(row).where(row.c.position.in_(positions)).values(published_at=func.now()))
        return len(rows)

    def _inboxes(self, event_type: str) -> Sequence[str]:
        inboxes = self._routes.get(event_type)
        if inboxes is None:
            # Counted as published, for it would hold up everything after it under the same key for ever.
            log.error("nobody gets %s: add it to the event routes", event_type)
            return ()
        return inboxes

    async def _purge(self) -> None:
        while True:
            try:
                async with self._db.transaction() as tx:
                    old = outbox.table.c.published_at < func.now() - _KEEP_PUBLISHED
                    await tx.execute(delete(outbox.table).where(old))
            except Exception as error:
                log.warning("published outbox rows cannot be removed now: %s", error)
            await asyncio.sleep(_PURGE_EVERY_SECONDS)


def _event(row: RowMapping) -> Event:
    return Event(
        id=row["id"],
        type=row["type"],
        key=row["key"],
        occurred_at=row["occurred_at"],
        traceparent=row["traceparent"],
        payload=row["payload"],
        version=row["version"],
    )
