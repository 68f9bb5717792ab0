"""Connections to Redis, or whatever speaks its protocol."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff


class _Cancellable(Connection):
    """Sends by `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes as the sending ends (gh-86296).

    A worker that was told to leave would go on for ever.
    """

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        await super().send_packed_command(command, check_health)
        if task and task.cancelling() > before:
            # The answer would be taken for that of the next command.
            await self.disconnect(nowait=True)
            raise asyncio.CancelledError


def connect(url: str) -> Redis:
    """A pool that gives up after seconds, not minutes, and reconnects by itself. Answers are bytes."""
    return Redis.from_url(
        url,
        connection_class=_Cancellable,
        protocol=2,
        # Every story that is watched holds one; past the limit a call fails at once instead of queueing for ever.
        max_connections=2000,
        socket_connect_timeout=2,
        # Above the longest blocking read, below what a caller would wait.
        socket_timeout=5,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
    )
