"""The service's own Postgres database: one scope for transactions, and NOTIFY."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from select import POLLIN, poll
from time import monotonic
from typing import NoReturn, cast

import psycopg
from sqlalchemy import Engine, PoolProxiedConnection, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

Transaction = AsyncConnection
"""What store functions take; only `Database.transaction` makes one."""

_CONNECT_SECONDS = 3
_STATEMENT_MILLISECONDS = 10_000
_SILENT_MILLISECONDS = 10_000
"""How long a transaction may wait for its owner: one that stands still, or is cut off, would keep its locks for ever."""

_RECONNECT_SECONDS = 1.0
_IDLE_SECONDS = 1.0
_SOON_MISSED = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
"""Or a listener whose network is gone would be listened for by Postgres, and keep its place, for hours."""

_LISTENER_LOCKS = 0x4C53
"""Any constant: it keeps these locks apart from others that are named by two numbers."""

log = logging.getLogger(__name__)


class Database:
    """Connections to one database, made on demand and checked when they were idle, so that a restarted server is noticed there."""

    def __init__(self, url: str, *, pool: int) -> None:
        self._engine = create_async_engine(
            url,
            pool_size=pool,
            max_overflow=0,
            pool_timeout=_CONNECT_SECONDS,
            # Errors are logged, and the values of statements hold addresses, hashes and other secrets.
            hide_parameters=True,
            connect_args={
                "connect_timeout": _CONNECT_SECONDS,
                "options": f"-c statement_timeout={_STATEMENT_MILLISECONDS} "
                f"-c idle_in_transaction_session_timeout={_SILENT_MILLISECONDS} -c timezone=UTC",
            },
        )

        _ping_idle(self._engine.sync_engine)

    @asynccontextmanager
    async def single(self) -> AsyncIterator[Transaction]:
        """For a single statement, which is a transaction by itself: it saves the ways to the database for a BEGIN and a COMMIT."""
        async with self._engine.connect() as connection:
            # Here, not as an option of an engine: what breaks off on the way into the block would keep the connection for ever.
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Commits at the end of the block, rolls back when it raises."""
        async with self._engine.begin() as transaction:
            yield transaction

    async def check(self) -> None:
        """Raises when the database does not answer."""
        async with self._engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        await self._engine.dispose()


def _ping_idle(engine: Engine) -> None:
    """Has connections replaced that died while nobody used them.

    One that was just used is not asked again at each use: that the server closed it shows in its socket, without a word to anybody.
    """

    def remember(_connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
        record.info["used_at"] = monotonic()

    def check(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
        idle = monotonic() - record.info.get("used_at", monotonic())
        if idle < _IDLE_SECONDS and not _has_something_to_say(connection):
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            raise InvalidatePoolError from error

    event.listen(engine, "checkin", remember)
    event.listen(engine, "checkout", check)


def _has_something_to_say(connection: DBAPIConnection) -> bool:
    """Whether the server wrote, or hung up, without having been asked."""
    socket = poll()
    socket.register(cast("psycopg.AsyncConnection", connection.driver_connection).fileno(), POLLIN)
    return bool(socket.poll(0))


async def listen(url: str, channel: str, wake: asyncio.Event, *, alone: bool = False) -> NoReturn:
    """Sets the event at each NOTIFY on the channel, for ever, and after each reconnect, so that one look covers what was missed.

    Of those that listen `alone` only one does at a time. The others take its place within a second of its end.
    """
    conninfo = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    while True:
        try:
            connection = await psycopg.AsyncConnection.connect(
                conninfo, autocommit=True, connect_timeout=_CONNECT_SECONDS, options=_SOON_MISSED, keepalives_idle=30
            )
            try:
                while alone and not await _first(connection, channel):  # noqa: ASYNC110  # its end is not told
                    await asyncio.sleep(_RECONNECT_SECONDS)
                await connection.execute(f"LISTEN {channel}")
                wake.set()
                async for _ in connection.notifies():
                    wake.set()
            finally:
                # At once: what `async with` does first can itself be cancelled, and would leave the connection open.
                await connection.close()
        except psycopg.Error as error:
            log.warning("listening to %s was interrupted: %s", channel, error)
        await asyncio.sleep(_RECONNECT_SECONDS)


async def _first(connection: psycopg.AsyncConnection, channel: str) -> bool:
    """Whether this connection is the channel's first listener, which it then stays until it is closed."""
    cursor = await connection.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", (_LISTENER_LOCKS, channel))
    return await cursor.fetchone() == (True,)
