"""What a process stands on: opened when it is asked for, closed together."""

from __future__ import annotations

import pytest
from grpc import ChannelConnectivity
from redis.asyncio import Redis
from sqlalchemy import text

from kit.data.database import Database
from kit.rpc.resources import Resources
from kit.runtime.settings import DatabaseSettings
from local.harness import Servers
from tests.identity import MESH_KEY
from tests.kit.conftest import SETTINGS
from tests.waiting import until

CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'kit' AND application_name = 'resources'"


def settings_of(database_url: str, servers: Servers) -> DatabaseSettings:
    return DatabaseSettings(
        listen="127.0.0.1:0",
        database_url=f"{database_url}?application_name=resources",
        redis_url=servers.redis_url,
        mesh_key=MESH_KEY,
        auth_target="127.0.0.1:1",
    )


async def test_all_that_was_opened_is_closed_at_the_end(
    db: Database, database_url: str, redis: Redis, servers: Servers
) -> None:
    async def connections() -> tuple[int, int]:
        async with db.single() as tx:
            at_postgres = await tx.scalar(text(CONNECTIONS))
        at_redis = [each for each in await redis.client_list() if each["name"] == "resources"]
        return at_postgres or 0, len(at_redis)

    async with Resources("desk", settings_of(database_url, servers)) as resources:
        assert await connections() == (0, 0)
        await resources.db.check()
        await resources.database(pool=1).check()
        await resources.redis.client_setname("resources")
        channel = resources.channel("auth")
        assert resources.channel("auth") is channel
        assert await connections() == (2, 1)

    async def closed() -> bool:
        return await connections() == (0, 0)

    await until(closed)
    assert channel.get_state() is ChannelConnectivity.SHUTDOWN


async def test_what_is_given_is_used_and_left_open(
    db: Database, database_url: str, redis: Redis, servers: Servers
) -> None:
    async with Resources("desk", settings_of(database_url, servers), db=db, redis=redis) as resources:
        assert resources.db is db
        assert resources.database(pool=1) is db
        assert resources.redis is redis
    await db.check()
    await redis.ping()


async def test_a_service_without_a_database_says_so_when_it_is_asked_for() -> None:
    async with Resources("desk", SETTINGS) as resources:
        with pytest.raises(TypeError, match="desk name no database"):
            _ = resources.db


async def test_a_service_that_is_not_called_has_no_channel_to_it() -> None:
    async with Resources("desk", SETTINGS) as resources:
        with pytest.raises(AttributeError, match="story_target"):
            resources.channel("story")
