"""The processes of a contender: workers, and a feeder that enqueues jobs on orders from its standard input."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import uvloop

FEEDERS = 10
"""Number of jobs enqueued concurrently, where the client allows it."""

DONE = "done"


def feed_each(enqueue: Callable[[], object]) -> None:
    """The feeder for a blocking client: enqueues jobs one after the other."""
    for line in sys.stdin:
        for _ in range(int(line)):
            enqueue()
        print(DONE, flush=True)


async def feed(enqueue: Callable[[], Awaitable[object]]) -> None:
    """Reads a number, enqueues as many jobs and reports it, until its input ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        count = int(line)

        async def some(share: int) -> None:
            for _ in range(share):
                await enqueue()

        shares = [count // FEEDERS + (number < count % FEEDERS) for number in range(FEEDERS)]
        await asyncio.gather(*map(some, shares))
        print(DONE, flush=True)


def run(work: Callable[[str, int, str], Awaitable[None]], feeding: Callable[[str, str], Awaitable[None]]) -> None:
    """Runs a process by its arguments: `work` or `feed`, the Redis URL, the slots, and optionally the database's URL."""
    verb, redis_url, slots, database_url = sys.argv[1:]
    uvloop.run(
        _as_coroutine(work(redis_url, int(slots), database_url) if verb == "work" else feeding(redis_url, database_url))
    )


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable
