"""A worker that takes an event, or a batch of them, says so and never comes to an end: to be killed.

python -m tests.kit.events.worker_process DATABASE_URL REDIS_URL SERVICE EVENT_TYPE LEASE_SECONDS [before|after]

The last argument makes it take batches, and says where it stands still: before the commit of their effects, or after it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from sqlalchemy import insert

from kit.data import redis as kit_redis
from kit.data.database import Database
from kit.events.envelope import Event
from kit.events.handlers import BatchHandler
from kit.events.inbox import Inbox
from kit.events.inbox_store import mark_all_processed, mark_processed
from tests.kit.conftest import effects


async def work(
    database_url: str, redis_url: str, service: str, event_type: str, lease_seconds: str, *together: str
) -> None:
    db = Database(database_url, pool=2)

    async def stand_still() -> None:
        print("begun", flush=True)
        await asyncio.Event().wait()

    async def hang(event: Event) -> None:
        async with db.transaction() as tx:
            await mark_processed(tx, event)
            await tx.execute(insert(effects).values(event_id=event.id, worker="killed"))
            await stand_still()

    async def hang_together(events: Sequence[Event]) -> None:
        async with db.transaction() as tx:
            await mark_all_processed(tx, events)
            await tx.execute(insert(effects), [{"event_id": event.id, "worker": "killed"} for event in events])
            if together == ("before",):
                await stand_still()
        await stand_still()

    async with kit_redis.connect(redis_url) as client:
        inbox = Inbox(
            db,
            client,
            service,
            {event_type: BatchHandler(hang_together) if together else hang},
            lease_seconds=float(lease_seconds),
            concurrency=1,
            max_failures=3,
        )
        await inbox.run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
