"""The connection to Redis."""

from __future__ import annotations

import asyncio

import pytest

from kit.data import redis as kit_redis
from local.harness import Servers


@pytest.mark.parametrize("steps", range(12))
async def test_a_cancellation_is_never_lost_whenever_it_comes(servers: Servers, steps: int) -> None:
    """Python before 3.12 loses one in `asyncio.wait_for` when what it waits for is done in the same step (gh-86296)."""
    async with kit_redis.connect(servers.redis_url) as redis:
        await redis.ping()

        async def use() -> None:
            await redis.ping()
            await asyncio.Event().wait()

        task = asyncio.create_task(use())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=2)
        task.cancel()
        assert done, f"cancelled after {steps} steps, it goes on"
