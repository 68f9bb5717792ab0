"""The contender arq, polling every 10 ms: with its default of 500 ms a worker does only about a hundred jobs per second."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from .process import feed, run

_LOOK_SECONDS = 0.01


async def noop(_context: dict[Any, Any]) -> None:
    """The job."""


async def drained(redis: Redis) -> bool:
    return not await redis.zcard("arq:queue")


async def _work(url: str, slots: int, _: str) -> None:
    from arq.connections import RedisSettings
    from arq.worker import Worker, func

    await Worker(
        [func(noop, name="noop", keep_result=0)],
        redis_settings=RedisSettings.from_dsn(url),
        max_jobs=slots,
        poll_delay=_LOOK_SECONDS,
        handle_signals=False,
        log_results=False,
    ).async_run()


async def _feed(url: str, _: str) -> None:
    from arq import create_pool
    from arq.connections import RedisSettings

    pool = await create_pool(RedisSettings.from_dsn(url))
    await feed(lambda: pool.enqueue_job("noop"))


if __name__ == "__main__":
    run(_work, _feed)
