"""Wakes a process at each NOTIFY on a channel of its Postgres database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

import psycopg
from sqlalchemy.engine import make_url

_CONNECT_SECONDS = 3
_RECONNECT_SECONDS = 1.0
_KEEPALIVES = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
"""Postgres would hold the connection of a listener whose network is gone, and with it the listener's lock, for hours."""

_LISTENER_LOCKS = 0x4C53
"""First number of the listeners' advisory locks: any constant that sets them apart from other locks named by two numbers."""

log = logging.getLogger(__name__)


async def listen(url: str, channel: str, wake: asyncio.Event, *, alone: bool = False) -> NoReturn:
    """Set `wake` at each NOTIFY on the channel, for ever, and after each reconnect, so that one look covers what was missed.

    Of the callers with `alone` one listens at a time; another takes its place within a second of its end.
    """
    await hear(url, channel, lambda _: wake.set(), alone=alone)


async def hear(url: str, channel: str, heard: Callable[[str | None], None], *, alone: bool = False) -> NoReturn:
    """Call `heard` with the payload of each NOTIFY on the channel, for ever, and with None after each (re)connect.

    With None one look covers what was missed. `alone` is as of `listen`.
    """

    async def hearing(connection: psycopg.AsyncConnection) -> None:
        heard(None)
        async for notification in connection.notifies():
            heard(notification.payload)

    await with_listener(url, channel, hearing, alone=alone)


async def with_listener(
    url: str, channel: str, use: Callable[[psycopg.AsyncConnection], Awaitable[None]], *, alone: bool = False
) -> NoReturn:
    """Call `use` with a connection that listens to the channel, for ever: with another one when it was lost.

    `alone` is as of `listen`.
    """
    conninfo = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    while True:
        try:
            connection = await psycopg.AsyncConnection.connect(
                conninfo, autocommit=True, connect_timeout=_CONNECT_SECONDS, options=_KEEPALIVES, keepalives_idle=30
            )
            try:
                while alone and not await _is_first(connection, channel):  # noqa: ASYNC110  # Postgres does not tell when the lock is free
                    await asyncio.sleep(_RECONNECT_SECONDS)
                await connection.execute(f"LISTEN {channel}")
                await use(connection)
            finally:
                # At once: what `async with` does first can itself be cancelled, and would leave the connection open.
                await connection.close()
        except psycopg.Error as error:
            log.warning("listening to %s was interrupted: %s", channel, error)
        await asyncio.sleep(_RECONNECT_SECONDS)


async def _is_first(connection: psycopg.AsyncConnection, channel: str) -> bool:
    """Whether this connection holds the channel's listener lock, which it keeps until it is closed."""
    cursor = await connection.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", (_LISTENER_LOCKS, channel))
    return await cursor.fetchone() == (True,)
