"""A Postgres or a Redis that stands still: what waits for it learns so in time, and what comes later at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

import psycopg
import pytest
from redis.asyncio import Redis
from sqlalchemy import insert, select, text

from kit.data import redis as kit_redis
from kit.data.database import Database
from kit.data.liveness import DependencyAway, Liveness
from kit.errors import Unavailable
from kit.rpc.statuses import as_mesh_error
from local.harness import Servers
from tests.kit.conftest import effects
from tests.standing_still import standing_still
from tests.waiting import until

Use = Callable[[], Coroutine[Any, Any, Any]]

IN_TIME_SECONDS = 10
"""For those who wait when it is noticed, on a busy machine: Postgres' own limit is longer still, and Redis' tries are."""
POOL = 3


@dataclass
class Dependency:
    """One that is watched, and what is done with it."""

    name: str
    server: str
    liveness: Liveness
    use: Use
    wait: Use
    """Lasts for as long as nothing happens."""


@asynccontextmanager
async def watched(liveness: Liveness) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    watching = asyncio.create_task(liveness.watch(stopping))
    yield
    stopping.set()
    await watching


@pytest.fixture(params=["postgres", "redis"])
async def dependency(
    request: pytest.FixtureRequest, db: Database, database_url: str, redis: Redis, servers: Servers
) -> AsyncIterator[Dependency]:
    if request.param == "postgres":
        own = Database(database_url, pool=POOL)

        async def use() -> None:
            async with own.single() as tx:
                await tx.execute(text("SELECT 1"))

        async def wait() -> None:
            async with own.transaction() as tx:
                await tx.execute(text("SELECT pg_sleep(9)"))

        async with watched(own._liveness):
            yield Dependency("postgres", "postgres", own._liveness, use, wait)
        await own.close()
    else:
        async with kit_redis.connect(servers.redis_url) as client:
            liveness = kit_redis.liveness(client)

            async def wait_at_redis() -> None:
                await client.blpop(["nothing"], 4)

            async def ping() -> None:
                await client.ping()

            async with watched(liveness):
                yield Dependency("redis", "redis", liveness, ping, wait_at_redis)


async def refusal(use: Use) -> Unavailable:
    with pytest.raises(Exception) as raised:  # noqa: PT011  # which one differs, what becomes of it does not
        await use()
    error = as_mesh_error(raised.value)
    assert isinstance(error, Unavailable), repr(raised.value)
    return error


async def succeeds(use: Use) -> bool:
    try:
        await use()
    except Exception as error:
        if not isinstance(as_mesh_error(error), Unavailable):
            raise
        return False
    return True


async def test_what_stands_still_is_refused_in_time_then_at_once_and_used_again_when_it_goes_on(
    dependency: Dependency, servers: Servers
) -> None:
    await dependency.use()
    waiting = [asyncio.create_task(refusal(dependency.wait)) for _ in range(POOL - 1)]
    with standing_still(servers, dependency.server):
        # As many as wait for an answer, and more than that for a connection.
        using = [asyncio.create_task(refusal(dependency.use)) for _ in range(2 * POOL)]
        async with asyncio.timeout(IN_TIME_SECONDS):
            refusals = await asyncio.gather(*using, *waiting)
        assert {each.metadata["dependency"] for each in refusals} == {dependency.name}
        begun = monotonic()
        for _ in range(50):
            assert (await refusal(dependency.use)).metadata == {"dependency": dependency.name}
        assert monotonic() - begun < 1
    await until(lambda: succeeds(dependency.use))
    await asyncio.gather(*(dependency.use() for _ in range(2 * POOL)))


async def test_nobody_who_waits_lawfully_is_disturbed(dependency: Dependency) -> None:
    """Longer than silence may last: what is asked in between is answered."""
    waiting = asyncio.create_task(dependency.wait())
    done, _ = await asyncio.wait([waiting], timeout=3)
    assert not done
    await dependency.use()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_an_event_loop_that_is_held_up_is_no_silence(dependency: Dependency) -> None:
    for _ in range(2):
        await asyncio.sleep(0.6)  # so that the next question is asked
        time.sleep(2.5)  # noqa: ASYNC251  # holds everything up, as this test wants
    await dependency.use()


async def test_a_server_that_is_gone_is_an_error_like_any_other(dependency: Dependency, servers: Servers) -> None:
    await dependency.use()
    await servers.stop(dependency.server)
    try:
        assert (await refusal(dependency.use)).metadata == {"dependency": dependency.name}
    finally:
        await servers.start(dependency.server)
    await dependency.use()


async def test_of_a_transaction_that_was_cut_off_nothing_is_left(
    database_url: str, db: Database, servers: Servers
) -> None:
    own = Database(database_url, pool=POOL)
    async with watched(own._liveness):
        begun, stopped = asyncio.Event(), asyncio.Event()

        async def write() -> None:
            async with own.transaction() as tx:
                await tx.execute(insert(effects).values(event_id="0" * 32, worker="w"))
                begun.set()
                await stopped.wait()
                await tx.execute(select(effects))

        writing = [asyncio.create_task(refusal(write)) for _ in range(POOL)]
        await begun.wait()
        with standing_still(servers, "postgres"):
            stopped.set()
            async with asyncio.timeout(IN_TIME_SECONDS):
                await asyncio.gather(*writing)

        async def connections() -> list[tuple[str]]:
            async with await psycopg.AsyncConnection.connect(servers.postgres_admin_url) as connection:
                query = "SELECT state FROM pg_stat_activity WHERE datname = 'kit' AND state LIKE 'idle in transaction%'"
                return await (await connection.execute(query)).fetchall()

        async def none_left() -> bool:
            return await connections() == []

        await until(none_left)
    await own.close()
    async with db.transaction() as tx:
        assert (await tx.execute(select(effects))).all() == []


async def test_without_a_watch_nothing_is_refused_unasked(database_url: str, db: Database) -> None:
    own = Database(database_url, pool=1)
    await own.check()
    await own.close()


async def test_what_is_away_is_told_by_name() -> None:
    silent = Liveness("smtp", asyncio.Event().wait, lambda: None)
    stopping = asyncio.Event()
    watching = asyncio.create_task(silent.watch(stopping))

    def refuses() -> bool:
        try:
            silent.require()
        except DependencyAway as error:
            return error.dependency == "smtp"
        return False

    await until(refuses)
    stopping.set()
    await watching
