"""A relay or a worker in a process of its own: to be killed at any moment.

python -m tests.kit.events.pipeline_process relay|worker|batches DATABASE_URL REDIS_URL
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence

from sqlalchemy import insert
from storymesh.events.v1.story_events_pb2 import StoryRequested

from kit.data import redis as kit_redis
from kit.data.database import Database
from kit.events.envelope import Event
from kit.events.handlers import BatchHandler
from kit.events.inbox import Inbox
from kit.events.inbox_store import mark_all_processed, mark_processed
from kit.events.relay import Relay
from tests.kit.conftest import effects

WORKED_ON, WITNESS = "pipeline", "witness"
"""Two inboxes get every event: nobody takes anything out of the second, so it shows the order of all that was published."""
TYPE = StoryRequested.DESCRIPTOR.full_name
LEASE_SECONDS = 0.6


async def run(role: str, database_url: str, redis_url: str) -> None:
    db = Database(database_url, pool=5)

    async def handle(event: Event) -> None:
        async with db.transaction() as tx:
            if await mark_processed(tx, event):
                await asyncio.sleep(random.uniform(0, 0.01))
                await tx.execute(insert(effects).values(event_id=event.id, worker=role))
        await asyncio.sleep(random.uniform(0, 0.01))

    async def handle_together(events: Sequence[Event]) -> None:
        async with db.transaction() as tx:
            unseen = await mark_all_processed(tx, events)
            await asyncio.sleep(random.uniform(0, 0.03))
            if unseen:
                await tx.execute(insert(effects), [{"event_id": each, "worker": role} for each in unseen])
        await asyncio.sleep(random.uniform(0, 0.03))

    async with kit_redis.connect(redis_url) as client:
        task: Relay | Inbox
        if role == "relay":
            task = Relay(db, client, {TYPE: (WORKED_ON, WITNESS)}, service="kit", database_url=database_url)
        else:
            task = Inbox(
                db,
                client,
                WORKED_ON,
                {TYPE: BatchHandler(handle_together) if role == "batches" else handle},
                lease_seconds=LEASE_SECONDS,
                concurrency=4,
                max_failures=8,
                records_events=True,
            )
        print("begun", flush=True)
        await task.run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
