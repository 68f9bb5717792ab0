"""Connections to Redis, or another server of its protocol, and whether it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.driver_info import DriverInfo

from .liveness import Liveness, hang_up

_DRIVER = DriverInfo()
"""Made once: for each connection, redis-py would look its own version up in the metadata of its package."""


class _Connection(Connection):
    """A connection that can be cancelled, and is not opened to a Redis that stands still.

    redis-py sends by `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes as the sending ends (gh-86296): a
    worker that was told to leave would go on for ever.
    """

    require: Callable[[], None] | None = None
    """Raises DependencyAway."""

    async def connect_check_health(self, *arguments: Any, **options: Any) -> None:
        """Called before each use of a connection, also when a command is retried."""
        if self.require:
            self.require()
        await super().connect_check_health(*arguments, **options)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        await super().send_packed_command(command, check_health)
        if task and task.cancelling() > before:
            # The answer would be taken for that of the next command.
            await self.disconnect(nowait=True)
            raise asyncio.CancelledError


class _Pool(ConnectionPool):
    """A pool that knows its connections, and whether Redis answers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._connections: WeakSet[Any] = WeakSet()
        self._probe = super().make_connection()  # type: ignore[no-untyped-call]  # typed for callers only
        self.liveness = Liveness("redis", self._ask, self._hang_up)

    def make_connection(self) -> Any:
        connection = super().make_connection()  # type: ignore[no-untyped-call]  # likewise
        connection.require = self.liveness.require
        self._connections.add(connection)
        return connection

    async def get_connection(self, *arguments: Any, **options: Any) -> Any:
        self.liveness.require()
        return await super().get_connection(*arguments, **options)  # type: ignore[no-untyped-call]  # likewise

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await self._probe.disconnect(nowait=True)
        await super().disconnect(inuse_connections)

    async def _ask(self) -> None:
        try:
            await self._probe.connect()
            await self._probe.send_command("PING")
            await self._probe.read_response()
        except BaseException:
            await self._probe.disconnect(nowait=True)
            raise

    def _hang_up(self) -> None:
        for connection in (self._probe, *self._connections):
            writer = connection._writer
            # None of one that is being closed.
            if writer and (socket := writer.get_extra_info("socket")):
                hang_up(socket.fileno())


def liveness(client: Redis) -> Liveness:
    """The liveness of the Redis behind a client of `connect`.

    While it is watched and Redis is silent, commands raise DependencyAway, an OSError.
    """
    pool = client.connection_pool
    if not isinstance(pool, _Pool):
        raise TypeError("the client was not made by connect()")
    return pool.liveness


def connect(url: str) -> Redis:
    """A pool that gives up after seconds, not minutes, and reconnects by itself. Answers are bytes."""
    pool = _Pool.from_url(
        url,
        connection_class=_Connection,
        protocol=2,
        # Every story that is watched holds one; past the limit a call fails at once instead of queueing for ever.
        max_connections=2000,
        socket_connect_timeout=2,
        # Above the longest blocking read, below what a caller would wait.
        socket_timeout=5,
        health_check_interval=15,
        driver_info=_DRIVER,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
    )
    return Redis.from_pool(pool)


def apart(client: Redis) -> Redis:
    """A client of the same Redis for another event loop: connections belong to the loop that opened them."""
    pool = client.connection_pool
    return Redis.from_pool(_Pool(connection_class=pool.connection_class, **pool.connection_kwargs))
