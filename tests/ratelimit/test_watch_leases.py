"""Leases of open watches, with a real limiter over a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from kit.data import redis as kit_redis
from kit.rpc.watch_leases import WatchLeases
from kit.rpc.watches import OpenWatches, TooManyWatches
from local.harness import Servers
from services.ratelimit.model.rules import RuleSet
from services.ratelimit.store.rules_file import load
from tests.ratelimit.limiter import calling, limiter
from tests.waiting import until

RULES = """\
domain: storymesh
on_no_match: deny
rules:
  - name: open-watches
    match: [{key: watch}, {key: user}]
    concurrency: 3
    ttl: TTL
    on_redis_down: open
"""
HOLDERS = "ratelimit:{storymesh}:open-watches:leases:watch=stories:user="


@pytest.fixture
def rules_of(tmp_path: Path) -> Callable[[str], RuleSet]:
    def rules(ttl: str) -> RuleSet:
        path = tmp_path / "rules.yaml"
        path.write_text(RULES.replace("TTL", ttl))
        return load(path)

    return rules


@asynccontextmanager
async def replica(address: str, *, per_person: int = 20) -> AsyncIterator[OpenWatches]:
    """The watches of one process."""
    stopping = asyncio.Event()
    async with calling(address) as channel:
        watches = OpenWatches(per_person=per_person, altogether=100, leases=WatchLeases(channel, "stories"))
        running = asyncio.create_task(watches.run(stopping))
        yield watches
        stopping.set()
        await running


async def test_a_person_has_so_many_watches_over_all_replicas_and_a_closed_one_makes_room(
    redis: Redis, limiter_redis: Redis, rules_of: Callable[[str], RuleSet]
) -> None:
    rules, ada = rules_of("1h"), uuid4()
    async with (
        limiter(limiter_redis, lambda: rules) as address,
        replica(address) as one,
        replica(address) as other,
    ):
        opened = [AsyncExitStack() for _ in range(20)]

        async def open_one(number: int) -> bool:
            try:
                await opened[number].enter_async_context((one, other)[number % 2].admitted(ada))
            except TooManyWatches:
                return False
            return True

        admitted = await asyncio.gather(*map(open_one, range(20)))
        assert sum(admitted) == 3
        async with one.admitted(uuid4()):
            pass
        await opened[admitted.index(True)].aclose()
        await until(lambda: open_one(0))
        for each in opened:
            await each.aclose()
        await until(lambda: _none_held(redis, ada))


async def _none_held(redis: Redis, user_id: UUID) -> bool:
    return not await redis.exists(f"{HOLDERS}{user_id}")


async def test_an_open_watch_keeps_its_place_beyond_the_time_to_live(
    redis: Redis, limiter_redis: Redis, rules_of: Callable[[str], RuleSet]
) -> None:
    rules, ada = rules_of("3s"), uuid4()
    async with limiter(limiter_redis, lambda: rules) as address, replica(address) as watches, watches.admitted(ada):
        first = await redis.zrange(f"{HOLDERS}{ada}", 0, -1, withscores=True)

        async def renewed() -> bool:
            now = await redis.zrange(f"{HOLDERS}{ada}", 0, -1, withscores=True)
            # Twice renewed, it ends later than it could without.
            return bool(now) and now[0][0] == first[0][0] and float(now[0][1]) - float(first[0][1]) > 1_500_000

        await until(renewed)


async def test_a_watch_whose_lease_was_lost_is_counted_again(
    redis: Redis, limiter_redis: Redis, rules_of: Callable[[str], RuleSet]
) -> None:
    rules, ada = rules_of("3s"), uuid4()
    async with limiter(limiter_redis, lambda: rules) as address, replica(address) as watches:
        async with watches.admitted(ada):
            await redis.flushall()
            await until(lambda: redis.exists(f"{HOLDERS}{ada}"))
        await until(lambda: _none_held(redis, ada))


async def test_without_the_limiter_the_processs_own_bound_is_kept_and_nobody_waits_for_long() -> None:
    async with replica("127.0.0.1:9", per_person=2) as watches:
        ada = uuid4()
        async with asyncio.timeout(5), watches.admitted(ada), watches.admitted(ada):
            with pytest.raises(TooManyWatches):
                async with watches.admitted(ada):
                    pass


async def test_without_redis_the_processs_own_bound_is_kept(
    stoppable_redis: Servers, rules_of: Callable[[str], RuleSet]
) -> None:
    rules, ada = rules_of("3s"), uuid4()
    async with (
        kit_redis.connect(stoppable_redis.service_redis_url("ratelimit")) as client,
        limiter(client, lambda: rules, redis_seconds=0.3) as address,
        replica(address, per_person=5) as watches,
        AsyncExitStack() as opened,
    ):
        await stoppable_redis.stop("redis")
        try:
            for _ in range(5):
                await opened.enter_async_context(watches.admitted(ada))
            with pytest.raises(TooManyWatches):
                await opened.enter_async_context(watches.admitted(ada))
        finally:
            await stoppable_redis.start("redis")


async def test_who_leaves_while_the_limiter_is_asked_holds_no_place(
    redis: Redis, limiter_redis: Redis, rules_of: Callable[[str], RuleSet]
) -> None:
    rules, ada = rules_of("1h"), uuid4()
    async with limiter(limiter_redis, lambda: rules) as address, replica(address) as watches:

        async def watch() -> None:
            async with watches.admitted(ada):
                await asyncio.Event().wait()

        for turns in range(12):
            task = asyncio.create_task(watch())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await until(lambda: _none_held(redis, ada))
        # The process's own count is given back too.
        assert not watches._open
