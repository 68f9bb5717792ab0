"""The contender Celery, with late acknowledgement. Its slots are threads; its default pool has a process for each slot."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from redis.asyncio import Redis

from .process import feed_each


def app_on(url: str) -> Any:
    from celery import Celery

    app = Celery("jobs", broker=url)
    app.conf.update(task_acks_late=True, task_ignore_result=True, broker_connection_retry_on_startup=True)
    return app


def noop() -> None:
    """The job."""


async def drained(redis: Redis) -> bool:
    async with redis.pipeline() as pipeline:
        pipeline.llen("celery")
        pipeline.hlen("unacked")
        waiting, unacknowledged = await pipeline.execute()
    return not waiting and not unacknowledged


def run_worker(app: Any, slots: int) -> None:
    """Work until the process is killed."""
    logging.disable(logging.INFO)
    app.Worker(
        pool="threads",
        concurrency=slots,
        hostname=f"worker-{os.getpid()}",
        loglevel="ERROR",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    ).start()


def main() -> None:
    verb, url, slots, _ = sys.argv[1:]
    app = app_on(url)
    job = app.task(noop, name="noop")
    if verb == "feed":
        feed_each(job.delay)
        return
    run_worker(app, int(slots))


if __name__ == "__main__":
    main()
