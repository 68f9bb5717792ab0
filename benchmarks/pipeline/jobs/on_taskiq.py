"""The contender taskiq, with its Redis stream broker, the only one of three that keeps a job when its worker dies."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from .process import feed, run

_QUEUE = "taskiq"


async def noop() -> None:
    """The job."""


def broker_on(url: str) -> tuple[Any, Any]:
    """The broker and the job."""
    from taskiq_redis import RedisStreamBroker

    # Read from the first entry, so that jobs enqueued before the worker created its consumer group are not skipped.
    broker = RedisStreamBroker(url, queue_name=_QUEUE, consumer_id="0")
    return broker, broker.register_task(noop, task_name="noop")


async def drained(redis: Redis) -> bool:
    stream = await redis.xinfo_stream(_QUEUE)
    groups = await redis.xinfo_groups(_QUEUE)
    return all(not group["pending"] and group["last-delivered-id"] == stream["last-generated-id"] for group in groups)


async def _work(url: str, slots: int, _: str) -> None:
    from taskiq.api import run_receiver_task

    broker, _job = broker_on(url)
    await run_receiver_task(broker, max_async_tasks=slots, run_startup=True)


async def _feed(url: str, _: str) -> None:
    broker, job = broker_on(url)
    await broker.startup()
    await feed(job.kiq)


if __name__ == "__main__":
    run(_work, _feed)
