"""Real servers for every test, started once for each worker of the test run."""

from __future__ import annotations

import asyncio
import signal
from asyncio import AbstractEventLoop
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis
from sqlalchemy import text

from deploy import buckets
from kit.data import migrations
from kit.data import redis as kit_redis
from kit.data.database import Database
from local.harness import Servers
from local.harness import servers as running_servers
from tests.client.installed import Installed, install

if TYPE_CHECKING:
    from kit.data.objects import Objects, ObjectStore

CLEANING_UP_SECONDS = 60
EVENT_LOOP = {"asyncio.base_events", "asyncio.events"}
SLOW_FOLDERS = {"system", "pipeline", "benchmarks", "local", "deploy", "docs", "envoy", "writers"}
"""Their tests start a whole mesh, an Envoy, many processes, a command line or a chat server each."""


# No example is bound to a time, which a busy machine would not keep.
settings.register_profile("untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)  # before pytest reads the expression of -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first: the workers take whole files in this order, and what begins last decides when they end."""
    for item in items:
        if SLOW_FOLDERS.intersection(item.path.relative_to(Path(__file__).parent).parts[:-1]):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, "system" not in item.path.parts))


_loops: list[AbstractEventLoop] = []


@pytest.fixture(scope="session", autouse=True)
async def _session_loop() -> None:
    """Tell pytest_runtest_call the event loop that all tests of a worker share."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_end_what_is_broken_off)
    _loops.append(loop)


def _end_what_is_broken_off(loop: AbstractEventLoop, context: dict[str, Any]) -> None:
    """Stop the loop for a timeout that struck in a callback: asyncio only logs what a callback raises, and goes on."""
    loop.default_exception_handler(context)
    if isinstance(context.get("exception"), pytest.fail.Exception):
        loop.stop()


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer() -> Generator[None, object, object]:
    """Put a timeout off by a millisecond while the event loop's own code runs.

    Raised there, it would lose the callback that the loop is about to run or to schedule: the task behind it never ends,
    not even when it is cancelled. In the selector, where an idle loop waits, nothing can be lost.
    """
    armed = yield
    break_off = signal.getsignal(signal.SIGALRM)

    def unless_in_the_loop(number: int, frame: FrameType | None) -> None:
        if frame and frame.f_globals.get("__name__") in EVENT_LOOP:
            signal.setitimer(signal.ITIMER_REAL, 0.001)
        elif callable(break_off):
            break_off(number, frame)

    signal.signal(signal.SIGALRM, unless_in_the_loop)
    return armed


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the timeout
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Cancel a test that was broken off, as by its timeout.

    It would go on with the event loop, which it shares with the next test, and disturb that one.
    """
    try:
        return (yield)
    finally:
        code = getattr(getattr(item, "function", None), "__code__", None)
        for loop in _loops:
            if left := [task for task in asyncio.all_tasks(loop) if getattr(task.get_coro(), "cr_code", None) is code]:
                for task in left:
                    task.cancel()
                loop.run_until_complete(asyncio.wait(left, timeout=CLEANING_UP_SECONDS))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Postgres, Redis and the mail sink."""
    with running_servers(tmp_path_factory.mktemp("servers")) as running:
        yield running


@pytest.fixture(scope="session")
def object_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """SeaweedFS alone, which most tests do not need."""
    path = tmp_path_factory.mktemp("objects")
    with running_servers(path, postgres=False, redis=False, mail=False, s3=True) as running:
        yield running


@pytest.fixture(scope="session")
async def object_store(object_servers: Servers) -> ObjectStore:
    """A bucket for tests, with the operator's key."""
    # Loading the S3 client takes longer than most tests.
    from kit.data.objects import ObjectStore

    store = object_servers.object_store
    await buckets.provision(store.endpoint, store.secret(buckets.OPERATOR), ["tests"], origins=[])
    return ObjectStore(
        endpoint=store.endpoint,
        public_endpoint=store.endpoint,
        region=buckets.REGION,
        bucket=buckets.bucket_of("tests"),
        access_key=buckets.access_key_of(buckets.OPERATOR),
        secret_key=store.secret(buckets.OPERATOR),
    )


@pytest.fixture(scope="session")
async def connected_objects(object_store: ObjectStore) -> AsyncIterator[Objects]:
    from kit.data.objects import Objects

    objects = Objects(object_store)
    yield objects
    await objects.close()


@pytest.fixture
async def objects(connected_objects: Objects) -> Objects:
    """An empty bucket."""
    async for upload in connected_objects.list_uploads(""):
        await connected_objects.abort_parts(upload.key, upload.upload_id)
    while (page := await connected_objects.list("")).objects:
        await connected_objects.delete(each.key for each in page.objects)
    return connected_objects


@pytest.fixture(scope="session")
def installed_client(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The client's distribution in an environment of its own."""
    return install(tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="session")
def migrated(servers: Servers) -> Callable[[str], str]:
    """The URL of a service's database, built by the service's own migrations."""

    @cache
    def url_of(service: str) -> str:
        url = servers.database_url(service)
        migrations.upgrade(f"services.{service}", url)
        return url

    return url_of


@pytest.fixture(scope="session")
async def database_of(migrated: Callable[[str], str]) -> AsyncIterator[Callable[[str], Database]]:
    """A service's database, connected as its own role."""
    opened: list[Database] = []

    @cache
    def connected(service: str) -> Database:
        opened.append(Database(migrated(service), pool=10))
        return opened[-1]

    yield connected
    for db in opened:
        await db.close()


@pytest.fixture
async def redis(servers: Servers) -> AsyncIterator[Redis]:
    """An empty Redis."""
    async with kit_redis.connect(servers.redis_url) as client:
        await client.flushall()
        yield client


async def empty(db: Database) -> None:
    """Deletes every row but Alembic's, so that real commits need no undoing.

    A table that was not written to is left alone: truncating one gives it and each of its indexes a new file.
    """
    async with db.transaction() as tx:
        tables = list(
            await tx.scalars(
                text(
                    "SELECT quote_ident(tablename) FROM pg_tables "
                    "WHERE schemaname = 'public' AND tablename NOT LIKE '%alembic_version'"
                )
            )
        )
        written = " UNION ALL ".join(f"SELECT '{table}' WHERE pg_relation_size('{table}') > 0" for table in tables)
        if dirty := list(await tx.scalars(text(written))):
            await tx.execute(text(f"TRUNCATE {', '.join(dirty)} RESTART IDENTITY CASCADE"))
