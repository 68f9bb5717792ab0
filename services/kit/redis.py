"""Connections to Redis, or whatever speaks its protocol."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff


def connect(url: str) -> Redis:
    """A pool that gives up after seconds, not minutes, and reconnects by itself. Answers are bytes."""
    return Redis.from_url(
        url,
        protocol=2,
        # Every watcher of a story holds one while it waits; past the limit a call fails at once instead of queueing for ever.
        max_connections=2000,
        socket_connect_timeout=2,
        # Above the longest blocking read, below what a caller would wait.
        socket_timeout=5,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
    )
