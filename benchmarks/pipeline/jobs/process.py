"""The processes of a contender: workers, and one that hands in jobs as it is told on its standard input."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import uvloop

FEEDERS = 10
"""Jobs handed in at a time, where that can be done side by side."""

DONE = "done"


def feed_each(enqueue: Callable[[], object]) -> None:
    """For a queue whose client blocks: hands in one after the other."""
    for line in sys.stdin:
        for _ in range(int(line)):
            enqueue()
        print(DONE, flush=True)


async def feed(enqueue: Callable[[], Awaitable[object]]) -> None:
    """Reads how many, hands in so many, says so; until its input ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        count = int(line)

        async def some(share: int) -> None:
            for _ in range(share):
                await enqueue()

        shares = [count // FEEDERS + (number < count % FEEDERS) for number in range(FEEDERS)]
        await asyncio.gather(*map(some, shares))
        print(DONE, flush=True)


def run(work: Callable[[str, int, str], Awaitable[None]], feeding: Callable[[str, str], Awaitable[None]]) -> None:
    """`work` or `feed`, the Redis URL, the slots, and the database's URL for whom that concerns."""
    verb, redis_url, slots, database_url = sys.argv[1:]
    uvloop.run(
        _as_coroutine(work(redis_url, int(slots), database_url) if verb == "work" else feeding(redis_url, database_url))
    )


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable
