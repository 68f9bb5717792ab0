"""A dump of the mesh's stores: every row of every database, and every key of Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import psycopg
from psycopg import sql
from redis.asyncio import Redis

from local.harness import RunningMesh
from tests.system.conftest import databases_of

_TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY table_name"

Piece = tuple[str, bytes]
"""The place of a value, and the value."""


async def kept(mesh: RunningMesh, redis: Redis) -> list[Piece]:
    """Return texts as UTF-8, and bytes unchanged."""
    return [
        *[piece for service in databases_of(mesh) async for piece in rows(mesh, service)],
        *[piece async for piece in keys(redis)],
    ]


async def rows(mesh: RunningMesh, service: str) -> AsyncIterator[Piece]:
    """Yield each value of each table; the place of an event includes its type."""
    async with await psycopg.AsyncConnection.connect(databases_of(mesh)[service]) as connection:
        for (table,) in await (await connection.execute(_TABLES)).fetchall():
            cursor = await connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table)))
            columns = [column.name for column in cursor.description or ()]
            for row in await cursor.fetchall():
                named = dict(zip(columns, row, strict=True))
                kind = f"[{named['type']}]" if "type" in named else ""
                for column, value in named.items():
                    yield f"{service}.{table}{kind}.{column}", _bytes(value)


async def keys(redis: Redis) -> AsyncIterator[Piece]:
    """Yield each key of Redis and its value."""
    async for key in redis.scan_iter(count=1000):
        name = f"redis {key.decode(errors='replace')}"
        yield name, key
        yield name, b"\n".join(map(_bytes, _flat(await _under(redis, key))))


async def _under(redis: Redis, key: bytes) -> Any:
    match await redis.type(key):
        case b"string":
            return await redis.get(key)
        case b"hash":
            return await redis.hgetall(key)
        case b"list":
            return await redis.lrange(key, 0, -1)
        case b"set":
            return await redis.smembers(key)
        case b"zset":
            return await redis.zrange(key, 0, -1, withscores=True)
        case b"stream":
            return await redis.xrange(key)
        case b"none":
            return b""
        case other:
            raise ValueError(f"a key of an unknown type: {other!r}")


def _flat(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, bytes | str) or not isinstance(value, Iterable):
        return [value]
    return [part for each in value for part in _flat(each)]


def _bytes(value: object) -> bytes:
    return bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
