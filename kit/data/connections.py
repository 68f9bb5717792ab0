"""The pool: the connections of a process to its database, of which there is a highest number.

SQLAlchemy's own pool takes as long to hand out a connection in autocommit mode as psycopg and Postgres for a statement: it makes
its objects anew each time, has psycopg change the mode and back, and closes in a task. Here a connection waits with SQLAlchemy's
object around it, in autocommit mode, and a transaction changes the mode.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import cast

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from .watched_connection import WatchedConnection

_IDLE_SECONDS = 1.0


class Transaction(AsyncConnection):
    """A connection as store functions take it. Only `Connections` opens one."""

    __slots__ = ("_used_at", "driver")

    driver: WatchedConnection
    """psycopg's own connection."""
    _used_at: float

    @classmethod
    async def opened(cls, engine: AsyncEngine) -> Transaction:
        """Connects. The engine's connections are watched ones in autocommit mode. Raises DatabaseError."""
        connection = cls(engine)
        await connection.start()
        connection.driver = cast("WatchedConnection", (await connection.get_raw_connection()).driver_connection)
        connection._used_at = monotonic()
        return connection

    async def lives(self) -> bool:
        """Whether it can be used. One that was used within the last second is not asked, unless the server hung up or wrote."""
        if monotonic() - self._used_at < _IDLE_SECONDS and not self.driver.has_news:
            return True
        try:
            await self.driver.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True

    def ended(self) -> bool:
        """Ends the use of it. False if it cannot be used again: it is broken, or in the middle of something."""
        driver = self.driver
        if driver.closed or not driver.autocommit or driver.pgconn.transaction_status != TransactionStatus.IDLE:
            return False
        if root := self._proxied.get_transaction():
            # What SQLAlchemy takes for one; nothing is sent in autocommit mode.
            root.close()
        self._used_at = monotonic()
        return True

    async def discard(self) -> None:
        """Closes it without asking the server to roll anything back."""
        await self.invalidate()
        await self.close()

    @asynccontextmanager
    async def begun(self) -> AsyncIterator[None]:
        """Commits at the end of the block, and rolls back when it raises. Raises DatabaseError.

        BEGIN is sent before the first statement.
        """
        driver = self.driver
        await driver.set_autocommit(False)
        # For SQLAlchemy too, so that it does not connect anew, outside of the transaction, when the connection breaks.
        self._proxied.begin()
        try:
            yield
            try:
                await driver.commit()
            except psycopg.Error as error:
                raise self.error(error, "COMMIT") from error
        except BaseException:
            if not driver.closed:
                await self._roll_back()
            raise
        await driver.set_autocommit(True)

    async def _roll_back(self) -> None:
        try:
            await self.driver.rollback()
            await self.driver.set_autocommit(True)
        except psycopg.Error:
            # It is not used again, and the server rolls back what was cut off.
            await self.driver.close()

    def error(self, error: psycopg.Error, sql: str) -> DBAPIError:
        """SQLAlchemy's error for psycopg's, without the values of the statement."""
        gone = self.driver.closed
        return cast(
            "DBAPIError",
            DBAPIError.instance(sql, None, error, psycopg.Error, hide_parameters=True, connection_invalidated=gone),
        )


class Connections:
    """Opened on demand and kept; the one used last is handed out first, so the statements that it has prepared are there."""

    def __init__(self, engine: AsyncEngine, *, most: int, wait_seconds: float) -> None:
        """`engine` keeps none itself."""
        self._engine = engine
        self._wait_seconds = wait_seconds
        self._most = most
        self._free = asyncio.Semaphore(most)
        self._idle: list[Transaction] = []
        self._closed = False

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[Transaction]:
        """A connection for the block. Raises DatabaseError when none comes free in time, or none can be opened."""
        await self._wait()
        try:
            connection = await self._living() or await Transaction.opened(self._engine)
            try:
                yield connection
            finally:
                if connection.ended() and not self._closed:
                    self._idle.append(connection)
                else:
                    await connection.discard()
        finally:
            self._free.release()

    async def close(self) -> None:
        """Those in use are closed when their blocks end."""
        self._closed = True
        while self._idle:
            await self._idle.pop().discard()

    async def _wait(self) -> None:
        """Without a timer, which costs more than all else, if one is free."""
        if not self._free.locked():
            await self._free.acquire()
            return
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._free.acquire()
        except TimeoutError:
            raise PoolTimeoutError(
                f"none of {self._most} connections came free within {self._wait_seconds} s"
            ) from None

    async def _living(self) -> Transaction | None:
        while self._idle:
            connection, lives = self._idle.pop(), False
            try:
                if lives := await connection.lives():
                    return connection
            finally:
                if not lives:
                    await connection.discard()
        return None
