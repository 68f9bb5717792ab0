"""When a relay sleeps, and what wakes it.

A relay that sleeps is woken by a NOTIFY of the transaction that adds a row. While rows come fast it stays awake and looks by
itself, and none is sent: Postgres commits the transactions that notify one after the other.

Nothing is missed in between. A relay holds an advisory lock while it sleeps. A transaction that adds a row tries to share the lock
until its end: it gets it only while the relay is awake, and otherwise it notifies. The relay falls asleep by getting the lock,
which it can only when each transaction that did not notify has ended; and then it looks once more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from time import monotonic
from typing import NoReturn

import psycopg

from kit.data.notify import with_listener

from . import outbox

_MANY, _SOON_SECONDS = 8, 0.05
"""So many notifications in this time keep a relay awake."""
_RETRY_SECONDS = 0.05
"""Between two tries to fall asleep, while the relay goes on looking."""
_EMPTY_LOOKS = 5
"""A relay that is awake wants to sleep after so many looks that found nothing."""


class RelaySleep:
    """Of one relay. Of all relays on an outbox one is woken: to wake all would be so many looks for each event."""

    def __init__(self, database_url: str, wake: Callable[[], None]) -> None:
        """`wake` has the relay look."""
        self._database_url = database_url
        self._wake = wake
        self._empty_looks = 0
        self._tired = asyncio.Event()
        self.awake = False
        """Whether the relay is to look by itself: nobody notifies it."""

    async def run(self) -> NoReturn:
        """Wakes the relay for ever, and after each reconnect, so that one look covers what was missed."""
        await with_listener(self._database_url, outbox.CHANNEL, self._take_turns, alone=True)

    def looked(self, found: int) -> None:
        """Says how many rows the last look found."""
        self._empty_looks = 0 if found else self._empty_looks + 1
        if self._empty_looks >= _EMPTY_LOOKS:
            self._tired.set()

    async def _take_turns(self, connection: psycopg.AsyncConnection) -> None:
        try:
            while True:
                await self._be_awake(connection)
                await self._sleep(connection)
        finally:
            # The connection is lost, and another relay may be woken from now on.
            self.awake = False

    async def _be_awake(self, connection: psycopg.AsyncConnection) -> None:
        """Returns when the lock is taken, which whoever adds a row notices."""
        self._empty_looks = 0
        self._tired.clear()
        self.awake = True
        self._wake()
        await self._tired.wait()
        while not await _locked(connection):  # noqa: ASYNC110  # Postgres does not tell when the lock is free
            await asyncio.sleep(_RETRY_SECONDS)
        self.awake = False
        self._wake()

    async def _sleep(self, connection: psycopg.AsyncConnection) -> None:
        """Returns when rows come fast, and gives the lock back."""
        latest: deque[float] = deque(maxlen=_MANY)
        async with aclosing(connection.notifies()) as notifications:
            async for _ in notifications:
                self._wake()
                latest.append(monotonic())
                if len(latest) == _MANY and latest[-1] - latest[0] < _SOON_SECONDS:
                    break
        await connection.execute("SELECT pg_advisory_unlock(%s, %s)", outbox.ASLEEP)


async def _locked(connection: psycopg.AsyncConnection) -> bool:
    cursor = await connection.execute("SELECT pg_try_advisory_lock(%s, %s)", outbox.ASLEEP)
    return await cursor.fetchone() == (True,)
