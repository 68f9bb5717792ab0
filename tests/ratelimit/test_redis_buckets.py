"""Buckets in Redis: any state that it may hold, what it keeps, and what becomes of a batch while Redis fails."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

from kit.data import redis as kit_redis
from kit.data.blocking_redis import BlockingRedis
from kit.data.liveness import DependencyAway
from local.harness import Servers
from local.mesh.components.redis import program
from services.ratelimit.model import MICROSECONDS, Charge, Limit, take
from services.ratelimit.store import BucketStore
from services.ratelimit.store.buckets import MOST_CALLS, MOST_CHARGES, RedisBucketStore
from tests.ratelimit.test_bucket_stores import SECONDS, SLOW, WIDE, bucket, hits, limits
from tests.waiting import until

asked = st.tuples(limits, hits)
# The instant of being full, in intervals from now: long past, near, within the bucket, beyond it; or no state.
offsets = st.one_of(st.none(), st.floats(-10, 10), st.floats(0, 2000))


async def redis_time(redis: Redis) -> int:
    seconds, microseconds = await redis.time()
    return seconds * MICROSECONDS + microseconds


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(asked, offsets), min_size=1, max_size=4))
async def test_the_script_does_what_the_arithmetic_says_from_any_state(
    store: BucketStore, redis: Redis, buckets: list[tuple[tuple[Limit, int], float | None]]
) -> None:
    """Sets the buckets to any state around the present instead of moving the clock; the script returns the time that it read.

    A state far ahead is what a clock leaves that was set back, and one long past what a clock leaves that jumped ahead.
    """
    await redis.flushdb()
    begun = await redis_time(redis)
    charges = [Charge(f"ratelimit:{{t}}:{number}", limit, hits) for number, ((limit, hits), _) in enumerate(buckets)]
    states = [
        None if offset is None else begun + int(offset * charge.limit.interval)
        for charge, (_, offset) in zip(charges, buckets, strict=True)
    ]
    kept_before = {charge.key: state for charge, state in zip(charges, states, strict=True) if state is not None}
    if kept_before:
        await redis.mset(kept_before)

    (taken,) = store.take([charges], seconds=SECONDS)

    assert begun <= taken.at <= await redis_time(redis)
    assert taken == take(charges, states, at=taken.at)
    kept_after = await redis.mget([charge.key for charge in charges])
    for charge, state, verdict, kept in zip(charges, states, taken.verdicts, kept_after, strict=True):
        if taken.admitted and charge.debit:
            # A bucket that is full by now may have expired already.
            assert kept is None or int(kept) == taken.at + verdict.debt
        else:
            assert (kept and int(kept)) == state


async def test_a_bucket_is_forgotten_when_it_is_full_and_not_before(store: BucketStore, redis: Redis) -> None:
    limit = Limit(requests=10, period_seconds=1, burst=50)
    (taken,) = store.take([[bucket("a", limit, 3)]], seconds=SECONDS)
    full_at = taken.at + taken.verdicts[0].debt
    expires_at = await redis.pexpiretime("ratelimit:{t}:a")
    assert taken.verdicts[0].debt == 300_000
    assert 0 <= expires_at * 1000 - full_at < 1000


async def test_a_look_or_a_refusal_leaves_nothing_behind(store: BucketStore, redis: Redis) -> None:
    store.take([[bucket("looked-at", hits=0)], [bucket("too-much", hits=31)]], seconds=SECONDS)
    assert await redis.keys() == []


async def test_the_script_is_loaded_again_after_redis_forgot_it(store: BucketStore, redis: Redis) -> None:
    remaining = []
    for _ in range(3):
        remaining += [each.verdicts[0].remaining for each in store.take([[bucket("a")]] * 2, seconds=SECONDS)]
        await redis.script_flush()
    assert remaining == [29, 28, 27, 26, 25, 24]


async def test_a_value_that_is_no_instant_counts_as_a_full_bucket(store: BucketStore, redis: Redis) -> None:
    await redis.set("ratelimit:{t}:a", "not a number")
    await redis.rpush("ratelimit:{t}:b", "a list")
    (taken,) = store.take([[bucket("a"), bucket("b")]], seconds=SECONDS)
    assert [verdict.remaining for verdict in taken.verdicts] == [29, 29]


@pytest.mark.parametrize(
    ("batch", "scripts"),
    [
        ([[bucket("a", WIDE)]] * MOST_CALLS, 1),
        ([[bucket("a", WIDE)]] * (MOST_CALLS + 1), 2),
        ([[bucket(f"{call}:{place}") for place in range(64)] for call in range(MOST_CHARGES // 64)], 1),
        ([[bucket(f"{call}:{place}") for place in range(64)] for call in range(MOST_CHARGES // 64 + 1)], 2),
    ],
    ids=["most calls", "one call more", "most charges", "one call's charges more"],
)
async def test_no_script_holds_redis_up_for_more_calls_and_charges_than_are_set(
    store: BucketStore, redis: Redis, batch: list[list[Charge]], scripts: int
) -> None:
    store.take([[bucket("a")]], seconds=SECONDS)
    await redis.config_resetstat()
    store.take(batch, seconds=SECONDS)
    assert (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] == scripts


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[int]:
    """The port of a Redis Cluster of one node, which has all slots. It refuses a script whose keys are in different ones."""
    with ExitStack() as free:
        port, bus = (free.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2))
    options = {"port": port, "cluster-port": bus, "cluster-enabled": "yes", "dir": tmp_path, "save": ""}
    command = [str(program()), *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    try:
        async with Redis(port=port, retry=Retry(ConstantBackoff(0.05), 400)) as node:
            ask: Any = node.execute_command
            await ask("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)

            async def is_ready() -> bool:
                return b"cluster_state:ok" in await ask("CLUSTER", "INFO")

            await until(is_ready)
        yield port
    finally:
        process.kill()
        await process.wait()


async def test_a_batch_of_several_domains_keeps_to_one_hash_slot_a_script(cluster: int) -> None:
    batch = [
        [bucket(f"a{number}", domain=f"domain-{number % 3}"), bucket("b", domain=f"domain-{number % 3}")]
        for number in range(30)
    ]
    assert len({key_slot(charge.key.encode()) for charges in batch for charge in charges}) == 3
    async with kit_redis.connect(f"redis://127.0.0.1:{cluster}/0") as client:
        with closing(BlockingRedis(client)) as connection:
            taken = RedisBucketStore(connection).take(batch, seconds=SECONDS)
    assert [each.verdicts[1].remaining for each in taken] == [29 - number // 3 for number in range(30)]


@pytest.fixture
async def fragile(stoppable_redis: Servers) -> AsyncIterator[BucketStore]:
    async with kit_redis.connect(stoppable_redis.service_redis_url("ratelimit")) as client:
        await stoppable_redis.healthy("redis")
        with closing(BlockingRedis(client)) as connection:
            yield RedisBucketStore(connection)


class Caller(threading.Thread):
    """Sends batches until it is told to end, and keeps the results of each, or None for one that failed."""

    def __init__(self, store: BucketStore, batch: list[list[Charge]], *, seconds: float) -> None:
        super().__init__()
        self._store, self._batch, self._seconds = store, batch, seconds
        self._ending = threading.Event()
        self.results: list[list[bool] | None] = []
        self.longest = 0.0

    def run(self) -> None:
        while not self._ending.is_set():
            begun = time.monotonic()
            try:
                self.results.append([each.admitted for each in self._store.take(self._batch, seconds=self._seconds)])
            except (RedisError, OSError):
                self.results.append(None)
            self.longest = max(self.longest, time.monotonic() - begun)

    def end(self) -> None:
        self._ending.set()
        self.join()


async def test_a_redis_that_is_killed_in_the_middle_of_batches_fails_them_until_it_is_back(
    fragile: BucketStore, stoppable_redis: Servers
) -> None:
    both = [bucket("narrow"), bucket("wide", WIDE)]
    caller = Caller(fragile, [both] * MOST_CALLS, seconds=0.5)
    caller.start()
    try:
        await until(lambda: len(caller.results) > 3)
        dead = stoppable_redis.pid("redis")
        stoppable_redis.kill("redis")
        await until(lambda: None in caller.results)
        await stoppable_redis.healthy("redis", not_pid=dead)
        await until(lambda: caller.results[-1] is not None)
    finally:
        caller.end()
    # A Redis that lost its memory begins with full buckets, and gives them out once.
    passed = [sum(results) for results in caller.results if results]
    assert sum(passed) <= 2 * SLOW.burst
    assert passed[0] == SLOW.burst
    (look,) = fragile.take([[bucket("narrow", hits=0), bucket("wide", WIDE, 0)]], seconds=SECONDS)
    narrow, wide = look.verdicts
    assert narrow.remaining == 0
    assert wide.remaining == WIDE.burst - SLOW.burst


async def test_a_script_that_is_forgotten_in_the_middle_of_batches_costs_none(store: BucketStore, redis: Redis) -> None:
    """Each batch is several scripts, between and during which Redis forgets them all."""
    calls = 3 * MOST_CALLS
    caller = Caller(store, [[bucket("wide", WIDE)]] * calls, seconds=SECONDS)
    caller.start()
    try:
        flushed = 0
        while len(caller.results) < 10 or flushed < 20:
            await redis.script_flush()
            flushed += 1
    finally:
        caller.end()
    assert None not in caller.results
    (look,) = store.take([[bucket("wide", WIDE, 0)]], seconds=SECONDS)
    assert look.verdicts[0].remaining == WIDE.burst - calls * len(caller.results)


async def test_a_redis_that_hangs_fails_a_batch_in_time_and_the_next_ones_at_once(
    fragile: BucketStore, stoppable_redis: Servers
) -> None:
    fragile.take([[bucket("a")]], seconds=SECONDS)
    stoppable_redis.kill("redis", signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with pytest.raises(RedisError):
            fragile.take([[bucket("a")]] * MOST_CALLS, seconds=0.2)
        first = time.monotonic() - begun
        with pytest.raises(DependencyAway):
            fragile.take([[bucket("a")]], seconds=SECONDS)
        both = time.monotonic() - begun
    finally:
        stoppable_redis.kill("redis", signal.SIGCONT)
    assert first >= 0.2
    assert both < 2
    assert await until(lambda: _answers(fragile))


def _answers(store: BucketStore) -> bool:
    try:
        return bool(store.take([[bucket("a")]], seconds=SECONDS))
    except (RedisError, OSError):
        return False


async def test_a_restarted_redis_costs_no_batch(fragile: BucketStore, stoppable_redis: Servers) -> None:
    fragile.take([[bucket("a")]], seconds=SECONDS)
    await stoppable_redis.restart("redis")
    assert fragile.take([[bucket("a")]], seconds=SECONDS)


async def test_one_connection_serves_a_store_however_many_batches_come(store: BucketStore, redis: Redis) -> None:
    for _ in range(5):
        store.take([[bucket("a")]] * 5, seconds=SECONDS)
    clients = await redis.client_list()
    assert sum(client["user"] == "ratelimit" and client["cmd"] in ("evalsha", "eval") for client in clients) == 1
