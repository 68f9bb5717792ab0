"""A psycopg connection whose socket stays with the event loop.

psycopg gives the socket to the loop and takes it away again, and waits in a task of its own with a time-out, for each statement.
That is more than half of what a short statement costs.
"""

from __future__ import annotations

import asyncio
from select import POLLIN, poll
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.waiting import READY_R, READY_W, WAIT_W

_T = TypeVar("_T")

_CANCEL_SECONDS = 5.0
"""How long a caller that is cancelled waits for the server to end its statement, as in psycopg."""

_LOOK_SECONDS = 0.2
"""How often the socket of a statement that runs on is looked at besides. libuv stops watching a socket that has an error, and once
Postgres had been killed, statements waited until their callers' deadlines."""


class WatchedConnection(psycopg.AsyncConnection[Any]):
    """To be used and closed on one event loop."""

    _loop: asyncio.AbstractEventLoop | None = None
    """Set while the loop watches the socket, until the socket is closed: its number may be another's afterwards."""
    _socket = -1
    _looking: asyncio.TimerHandle
    _waiter: asyncio.Future[int] | None = None

    @property
    def has_news(self) -> bool:
        """Whether the server wrote something that nobody has read, or hung up, or the socket has an error."""
        socket = poll()
        socket.register(self.fileno(), POLLIN)
        return bool(socket.poll(0))

    async def wait(self, gen: PQGen[_T], interval: float = 0.1, timeout: float | None = None) -> _T:
        """As psycopg's, but `interval` has no effect: the loop wakes it, and a look at the socket every `_LOOK_SECONDS`."""
        if timeout is not None:
            self._unwatch()
            return await super().wait(gen, interval, timeout)
        try:
            wanted = next(gen)
            while True:
                wanted = gen.send(await self._ready(wanted))
        except StopIteration as ended:
            value: _T = ended.value
            return value
        except OSError as error:
            self._unwatch()
            raise psycopg.OperationalError("connection socket closed") from error
        except (asyncio.CancelledError, KeyboardInterrupt):
            self._unwatch()
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                await self._cancelled(gen)
            raise
        except BaseException:
            # libpq closes the socket by itself when the server has gone.
            self._unwatch()
            raise

    async def close(self) -> None:
        self._unwatch()
        await super().close()

    async def _ready(self, wanted: int) -> Any:
        """What the socket is ready for."""
        loop = self._watched()
        self._waiter = waiter = loop.create_future()
        self._looking = loop.call_later(_LOOK_SECONDS, self._look)
        try:
            if wanted & WAIT_W:
                loop.add_writer(self._socket, self._wake, READY_W)
            try:
                return await waiter
            finally:
                if wanted & WAIT_W:
                    loop.remove_writer(self._socket)
        finally:
            self._looking.cancel()
            self._waiter = None

    def _wake(self, ready: int) -> None:
        if self._waiter is None:
            # It would be readable for ever: nobody reads before the next statement.
            self._unwatch()
        elif not self._waiter.done():
            self._waiter.set_result(ready)

    def _look(self) -> None:
        if self.closed or self.has_news:
            # What the loop may have stopped watching is watched anew by the next statement, if there is one.
            self._unwatch()
            self._wake(READY_R)
        else:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _watched(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            loop = asyncio.get_running_loop()
            self._socket = self.fileno()
            loop.add_reader(self._socket, self._wake, READY_R)
            self._loop = loop
        return self._loop

    def _unwatch(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._loop = None

    async def _cancelled(self, gen: PQGen[Any]) -> None:
        """Has the server end the statement. If it cannot be told, the connection is closed."""
        try:
            await self.cancel_safe(timeout=_CANCEL_SECONDS)
            await super().wait(gen, timeout=_CANCEL_SECONDS)
        except psycopg.errors.QueryCanceled:
            pass
        except BaseException as error:
            self.pgconn.finish()
            if not isinstance(error, Exception):
                raise
