"""Buckets in a Redis that is more than one server: a primary whose replica takes over, and a cluster."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from itertools import count
from pathlib import Path

import pytest
from redis.crc import key_slot
from redis.exceptions import RedisError

from kit.data import redis as kit_redis
from kit.data.blocking_redis import BlockingRedis
from services.ratelimit.model import Taken
from services.ratelimit.store import BucketStore
from services.ratelimit.store.buckets import RedisBucketStore
from tests.ratelimit import redis_nodes
from tests.ratelimit.redis_nodes import SLOTS, Node
from tests.ratelimit.test_bucket_stores import SECONDS, bucket
from tests.waiting import until

PRIMARIES = 3


@asynccontextmanager
async def store_at(port: int) -> AsyncIterator[BucketStore]:
    async with kit_redis.connect(f"redis://127.0.0.1:{port}/0") as client:
        with closing(BlockingRedis(client)) as connection:
            yield RedisBucketStore(connection)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[list[Node]]:
    """Primaries, then a replica of the first."""
    async with redis_nodes.cluster(tmp_path, PRIMARIES) as nodes:
        yield nodes


def domain_of(number: int) -> str:
    """A domain whose buckets are on the primary with this number."""
    names = (f"domain-{each}" for each in count())
    return next(name for name in names if key_slot(f"{{{name}}}".encode()) * PRIMARIES // SLOTS == number)


def remaining(taken: Sequence[Taken]) -> list[int]:
    return [verdict.remaining for each in taken for verdict in each.verdicts]


async def debited(store: BucketStore, domain: str) -> int | None:
    """What remains after one more call; None while Redis gives no answer."""
    with suppress(RedisError, OSError):
        return remaining(await asyncio.to_thread(store.take, [[bucket("a", domain=domain)]], seconds=1.0))[0]
    return None


async def test_a_batch_reaches_the_buckets_on_every_node_of_a_cluster(cluster: list[Node]) -> None:
    domains = [domain_of(number) for number in range(PRIMARIES)]
    batch = [[bucket("a", domain=domain), bucket("b", domain=domain)] for domain in domains * 2]
    async with store_at(cluster[0].port) as store:
        assert remaining(store.take(batch, seconds=SECONDS)) == [29] * 6 + [28] * 6
        await cluster[0].client.config_resetstat()
        assert remaining(store.take(batch, seconds=SECONDS)) == [27] * 6 + [26] * 6
    assert [len(await node.client.keys()) for node in cluster[:PRIMARIES]] == [2] * PRIMARIES
    # A node that had to name another one is not asked for those keys again.
    assert (await cluster[0].client.info("commandstats"))["cmdstat_evalsha"]["calls"] == 1


async def test_buckets_are_found_while_their_slot_moves_and_after_it_has(cluster: list[Node]) -> None:
    domain = domain_of(1)
    slot = key_slot(f"{{{domain}}}".encode())
    source, target = cluster[1], cluster[2]
    ids = [(await node.ask("CLUSTER", "MYID")).decode() for node in (source, target)]
    async with store_at(cluster[0].port) as store:
        assert remaining(store.take([[bucket("before", domain=domain)]], seconds=SECONDS)) == [29]
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        # What is still there is debited there; what is not is debited at its new place.
        assert remaining(store.take([[bucket("before", domain=domain)]], seconds=SECONDS)) == [28]
        assert remaining(store.take([[bucket("during", domain=domain)]], seconds=SECONDS)) == [29]
        for key in await source.client.keys():
            await source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        for node in (target, source, cluster[0]):
            await node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
        both = [[bucket("before", domain=domain), bucket("during", domain=domain)]]
        assert remaining(store.take(both, seconds=SECONDS)) == [27, 28]
    assert len(await target.client.keys()) == 2


@pytest.mark.parametrize("failure", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hanging"])
async def test_a_cluster_goes_on_with_the_replica_of_the_node_that_was_asked_first(
    cluster: list[Node], failure: signal.Signals
) -> None:
    primary, replica, domain = cluster[0], cluster[-1], domain_of(0)
    async with store_at(primary.port) as store:
        assert await debited(store, domain) == 29
        await until(lambda: _has_keys(replica))
        primary.process.send_signal(failure)
        assert await debited(store, domain) is None
        await replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
        assert await until(lambda: debited(store, domain)) == 28
        assert await debited(store, domain) == 27


async def _has_keys(node: Node) -> bool:
    return bool(await node.client.keys())


class MovingName:
    """An address that leads to a primary, and after a failover to another. Open connections stay where they are."""

    def __init__(self, target: Node) -> None:
        self.target = target
        self.port = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[MovingName]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self.target.port)
        with closing(writer), closing(there[1]):
            ways = [asyncio.ensure_future(_pass_on(*way)) for way in ((reader, there[1]), (there[0], writer))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)


async def test_a_primary_that_became_a_replica_is_left_for_the_one_that_its_name_leads_to(tmp_path: Path) -> None:
    """The connection to the old primary is still good, and it answers READONLY."""
    async with AsyncExitStack() as stack:
        old, new = await stack.enter_async_context(redis_nodes.nodes(tmp_path, 2))
        name = await stack.enter_async_context(MovingName(old).open())
        store = await stack.enter_async_context(store_at(name.port))
        await new.ask("REPLICAOF", "127.0.0.1", old.port)
        assert await debited(store, "t") == 29
        await until(lambda: _has_keys(new))
        name.target = new
        await new.ask("REPLICAOF", "NO", "ONE")
        await old.ask("REPLICAOF", "127.0.0.1", new.port)
        assert await debited(store, "t") == 28
        assert await debited(store, "t") == 27


async def test_calls_wait_for_a_primary_until_the_name_leads_to_one(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        old, new = await stack.enter_async_context(redis_nodes.nodes(tmp_path, 2))
        name = await stack.enter_async_context(MovingName(old).open())
        store = await stack.enter_async_context(store_at(name.port))
        assert await debited(store, "t") == 29
        await old.ask("REPLICAOF", "127.0.0.1", new.port)
        assert [await debited(store, "t") for _ in range(3)] == [None, None, None]
        name.target = new
        assert await until(lambda: debited(store, "t"))
