"""The service's own Postgres database: one scope for transactions, and whether it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast
from weakref import WeakSet

import psycopg
from sqlalchemy import Engine, NullPool, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from .connections import Connections, Transaction
from .liveness import Liveness, hang_up
from .watched_connection import WatchedConnection

__all__ = ["DATABASE_AWAY", "Database", "DatabaseError", "Transaction"]

DatabaseError = SQLAlchemyError
"""Whatever a statement raises, besides OSError."""

DATABASE_AWAY = (OperationalError, InterfaceError, PoolTimeoutError, OSError)
"""What statements raise while the database cannot be used, and will not raise once it can."""

_CONNECT_SECONDS = 3
_STATEMENT_MILLISECONDS = 10_000
_SILENT_MILLISECONDS = 10_000


class Database:
    """Connections to one database, made on demand and checked when they were idle, so that a restarted server is noticed there."""

    def __init__(
        self,
        url: str,
        *,
        pool: int,
        connect_seconds: int = _CONNECT_SECONDS,
        silent_milliseconds: int = _SILENT_MILLISECONDS,
    ) -> None:
        """`pool`: connections at most. A call waits `connect_seconds` for one, and as long for a new one to be made.

        `silent_milliseconds` is how long a transaction may wait for its owner: one that stands still, or is cut off, would keep
        its locks for ever.
        """
        self._engine = create_async_engine(
            url,
            # Connections are kept here, and nothing is to be rolled back of one that is in autocommit mode.
            poolclass=NullPool,
            skip_autocommit_rollback=True,
            # Errors are logged, and the values of statements hold addresses, hashes and other secrets.
            hide_parameters=True,
            connect_args={
                "async_creator_fn": WatchedConnection.connect,
                "autocommit": True,
                "connect_timeout": connect_seconds,
                "options": f"-c statement_timeout={_STATEMENT_MILLISECONDS} "
                f"-c idle_in_transaction_session_timeout={silent_milliseconds} -c timezone=UTC",
            },
        )
        self._connections = Connections(self._engine, most=pool, wait_seconds=connect_seconds)
        self._opened: WeakSet[psycopg.AsyncConnection] = WeakSet()
        self._probe = _Probe(url)
        self._liveness = Liveness("postgres", self._probe.ask, self._hang_up)
        self.watch = self._liveness.watch
        """Run it in the background of a process that serves. Without it each call waits for a silent server by itself."""
        self._guard(self._engine.sync_engine)

    @asynccontextmanager
    async def single(self) -> AsyncIterator[Transaction]:
        """A connection in autocommit mode, for a single statement: saves the round trips of BEGIN and COMMIT.

        Raises DependencyAway while the server is known to stand still.
        """
        self._liveness.require()
        async with self._connections.taken() as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Commits at the end of the block, rolls back when it raises. Raises DependencyAway like `single`."""
        self._liveness.require()
        async with self._connections.taken() as connection, connection.begun():
            yield connection

    async def check(self) -> None:
        """Raises when the database does not answer."""
        async with self.single() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        await self._probe.close()
        await self._connections.close()

    def _guard(self, engine: Engine) -> None:
        """Registers each new connection, and refuses to open one to a server that stands still."""

        def refuse(*_: object) -> None:
            self._liveness.require()

        def remember(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
            self._opened.add(cast("psycopg.AsyncConnection", connection.driver_connection))

        event.listen(engine, "do_connect", refuse)
        event.listen(engine, "connect", remember)

    def _hang_up(self) -> None:
        self._probe.hang_up()
        for connection in list(self._opened):
            _hang_up(connection)


class _Probe:
    """A connection outside the pool, so that a wait for one of the pool's does not look like silence."""

    def __init__(self, url: str) -> None:
        self._conninfo = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection: psycopg.AsyncConnection | None = None

    async def ask(self) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
        await self._connection.execute("SELECT 1")

    def hang_up(self) -> None:
        if self._connection:
            _hang_up(self._connection)

    async def close(self) -> None:
        if self._connection:
            await self._connection.close()


def _hang_up(connection: psycopg.AsyncConnection) -> None:
    """Shut the socket down. Cancelling the waiting task would have psycopg wait ten seconds for the silent server."""
    with suppress(psycopg.Error):
        hang_up(connection.fileno())
