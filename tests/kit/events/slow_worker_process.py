"""A worker that takes its time, in one of several ways, until Redis holds the key `finish`.

python -m tests.kit.events.slow_worker_process DATABASE_URL REDIS_URL SERVICE EVENT_TYPE LEASE_SECONDS waits|blocks|dies
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import redis as blocking_redis
from sqlalchemy import insert

from kit.data import redis as kit_redis
from kit.data.database import Database
from kit.events.envelope import Event
from kit.events.inbox import Inbox
from kit.events.inbox_store import mark_processed
from tests.kit.conftest import effects
from tests.waiting import until

FINISH = "finish"


async def work(database_url: str, redis_url: str, service: str, event_type: str, lease: str, way: str) -> None:
    db = Database(database_url, pool=2)

    async with kit_redis.connect(redis_url) as client:

        async def handle(event: Event) -> None:
            print("begun", flush=True)
            if way == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if way == "blocks":
                _wait_with_everything(redis_url)
            await until(lambda: client.exists(FINISH), 60)
            async with db.transaction() as tx:
                if await mark_processed(tx, event):
                    await tx.execute(insert(effects).values(event_id=event.id, worker=str(os.getpid())))

        inbox = Inbox(
            db, client, service, {event_type: handle}, lease_seconds=float(lease), concurrency=1, max_failures=3
        )
        await inbox.run(asyncio.Event())


def _wait_with_everything(redis_url: str) -> None:
    """Holds the whole event loop up, as a library may that computes."""
    with blocking_redis.Redis.from_url(redis_url) as other:
        while not other.exists(FINISH):
            time.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
