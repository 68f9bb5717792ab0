"""The limiter over a real Redis, with the access rights that it has in a mesh."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import pytest
from redis.asyncio import Redis

from kit.data import redis as kit_redis
from kit.data.blocking_redis import BlockingRedis
from local.harness import Servers
from local.harness import servers as running_servers
from services.ratelimit.operations.buckets import Buckets
from services.ratelimit.store import BucketStore
from services.ratelimit.store.buckets import RedisBucketStore
from tests.ratelimit.building import BucketsFor

PATIENT_SECONDS = 10.0
"""Long enough that a busy machine does not look like a dead Redis."""


@pytest.fixture
async def limiter_redis(servers: Servers, redis: Redis) -> AsyncIterator[Redis]:
    """The emptied Redis, through the limiter's own user."""
    async with kit_redis.connect(servers.service_redis_url("ratelimit")) as client:
        yield client


@pytest.fixture
def store(limiter_redis: Redis) -> Iterator[BucketStore]:
    with closing(BlockingRedis(limiter_redis)) as connection:
        yield RedisBucketStore(connection)


@pytest.fixture
def buckets_for(store: BucketStore) -> BucketsFor:
    return lambda rules: Buckets(store, lambda: rules, redis_seconds=PATIENT_SECONDS)


@pytest.fixture(scope="session")
def stoppable_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A Redis that no other tests use. A test that stops it starts it again."""
    with running_servers(tmp_path_factory.mktemp("redis"), postgres=False, mail=False) as running:
        yield running
