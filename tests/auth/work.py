"""The work of a call on the servers, which must be the same whether or not an account exists."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from grpc.aio import AioRpcError

from tests.auth.conftest import AuthWorld

_AT_ANY_TIME = ("revocations", "pg_snapshot")
"""In statements of the revocation feed, which run at any time."""

_PROBE = "SELECT 1"


@contextmanager
def executed(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell of each statement that the driver has executed, whether SQLAlchemy sent it or it was prepared."""
    cursor: Any = psycopg.AsyncCursor
    execute = cursor.execute

    async def executing(self: Any, statement: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await execute(self, statement, *args, **kwargs)
        finally:
            tell(str(statement))

    cursor.execute = executing
    try:
        yield
    finally:
        cursor.execute = execute


async def work(world: AuthWorld, call: Callable[[], Awaitable[Any]]) -> tuple[list[str], dict[str, int]]:
    """The SQL statements and the Redis commands that a call runs, whether it succeeds or not."""
    statements: list[str] = []

    def record(statement: str) -> None:
        if statement != _PROBE and not any(word in statement for word in _AT_ANY_TIME):
            statements.append(statement)

    await world.redis.config_resetstat()
    with executed(record), suppress(AioRpcError):
        await call()
    commands = await world.redis.info("commandstats")
    return statements, {name: stats["calls"] for name, stats in commands.items()}
