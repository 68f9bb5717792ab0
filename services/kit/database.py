"""The service's own Postgres database: one scope for transactions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

Transaction = AsyncConnection
"""What store functions take; only `Database.transaction` makes one."""

_CONNECT_SECONDS = 3
_STATEMENT_MILLISECONDS = 10_000


class Database:
    """Connections to one database, made on demand and checked before each use, so that a restarted server is noticed there."""

    def __init__(self, url: str, *, pool: int) -> None:
        self._engine = create_async_engine(
            url,
            pool_size=pool,
            max_overflow=0,
            pool_timeout=_CONNECT_SECONDS,
            pool_pre_ping=True,
            # Errors are logged, and the values of statements hold addresses, hashes and other secrets.
            hide_parameters=True,
            connect_args={
                "connect_timeout": _CONNECT_SECONDS,
                "options": f"-c statement_timeout={_STATEMENT_MILLISECONDS} -c timezone=UTC",
            },
        )

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
