"""The work of a call on the servers, which must be the same whether or not an account exists."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from grpc.aio import AioRpcError
from sqlalchemy import event
from sqlalchemy.engine import Engine

from tests.auth.conftest import AuthWorld

_AT_ANY_TIME = ("revocations", "pg_snapshot")
"""In statements of the revocation feed, which run at any time."""


async def work(world: AuthWorld, call: Callable[[], Awaitable[Any]]) -> tuple[list[str], dict[str, int]]:
    """The SQL statements and the Redis commands that a call runs, whether it succeeds or not."""
    statements: list[str] = []

    def record(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not any(word in statement for word in _AT_ANY_TIME):
            statements.append(statement)

    await world.redis.config_resetstat()
    event.listen(Engine, "before_cursor_execute", record)
    try:
        with suppress(AioRpcError):
            await call()
    finally:
        event.remove(Engine, "before_cursor_execute", record)
    commands = await world.redis.info("commandstats")
    return statements, {name: stats["calls"] for name, stats in commands.items()}
