"""Connections that wait for the next mail: connecting, TLS and login cost more than a mail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from .connection import Connection

IDLE_SECONDS = 15.0
"""How long a connection waits. Shorter than servers wait for a command, which under load is less than their five minutes."""
MAILS_PER_CONNECTION = 100
"""After so many mails a connection is left: some servers refuse more, and those behind one address get their share."""


class Pool:
    """As many connections as mails are sent at a time, of which the ones without a mail wait for the next."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        idle_seconds: float = IDLE_SECONDS,
        mails_per_connection: int = MAILS_PER_CONNECTION,
    ) -> None:
        self._connect = connect
        self._idle_seconds = idle_seconds
        self._mails_per_connection = mails_per_connection
        self._idle: dict[Connection, asyncio.TimerHandle] = {}
        self._closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for one mail: one that waits and still answers, or a new one. Raises TryAgain."""
        connection = await self._waiting() or await self._connect()
        try:
            yield connection
        finally:
            self._keep(connection)

    def close(self) -> None:
        """Leave the server. Connections in use are left after their mail."""
        self._closed = True
        while self._idle:
            self._retire(next(iter(self._idle)))

    async def _waiting(self) -> Connection | None:
        while self._idle:
            # The one used last: the others end if there is work for fewer.
            connection, timer = self._idle.popitem()
            timer.cancel()
            try:
                if connection.usable and await connection.reset():
                    return connection
            except asyncio.CancelledError:
                connection.close()
                raise
        return None

    def _keep(self, connection: Connection) -> None:
        if not connection.usable or self._closed or connection.mails >= self._mails_per_connection:
            connection.leave()
            return
        loop = asyncio.get_running_loop()
        self._idle[connection] = loop.call_later(self._idle_seconds, self._retire, connection)

    def _retire(self, connection: Connection) -> None:
        self._idle.pop(connection).cancel()
        connection.leave()
