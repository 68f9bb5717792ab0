"""The service's own Redis user: it may do all that kit's inbox and relay and the progress of stories ask of Redis, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import UUID, uuid4

import pytest
import redis.exceptions
from redis.asyncio import Redis
from storymesh.events.v1.story_events_pb2 import StoryCompleted, StoryRequested

from kit.data import redis as kit_redis
from kit.events import outbox
from kit.events.envelope import Event
from kit.events.inbox import Inbox
from kit.events.inbox_stream import InboxStream, InboxTuning, stream_of, waiting_since
from kit.events.relay import Relay
from local.harness import Servers
from mesh.event_routes import routes
from services.story.model import Position
from services.story.operations.interruptions import Interruptions
from services.story.store.progress import Overtaken, Progress, ProgressKind
from tests.story.conftest import StoryWorld
from tests.waiting import until

LEASE_SECONDS = 0.6


@pytest.fixture
async def own(servers: Servers, world: StoryWorld) -> AsyncIterator[Redis]:
    """A client with the rights of the story service; `world` has emptied Redis."""
    async with kit_redis.connect(servers.service_redis_url("story")) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_is_refused(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Inbox and relay log what Redis refuses them, and try again."""
    yield
    assert "permission" not in caplog.text


async def test_events_are_published_taken_tried_again_and_moved_by_the_services_own_user(
    world: StoryWorld, own: Redis
) -> None:
    relay = Relay(world.db, own, routes(), service="story", database_url=world.settings.database_url.get_secret_value())
    story_id = str(uuid4())
    async with world.db.transaction() as tx:
        await outbox.add(tx, StoryRequested(story_id=story_id), key=story_id)
        # Into the inbox of another service, which this one may write but not read.
        await outbox.add(tx, StoryCompleted(story_id=story_id), key=uuid4())
    await relay.publish()
    # What Redis may have lost is published once more, also at first, as nothing is known of it then.
    await relay.repeat()
    assert await world.redis.xlen(stream_of("notification"))
    assert await waiting_since(own, "story")
    times = 0

    async def fail_at_first(_event: Event) -> None:
        nonlocal times
        times += 1
        # Longer than a lease, which the heartbeat renews.
        await asyncio.sleep(2 * LEASE_SECONDS)
        if times == 1:
            raise RuntimeError("the first time")

    inbox = Inbox(
        world.db,
        own,
        "story",
        {StoryRequested.DESCRIPTOR.full_name: fail_at_first},
        lease_seconds=LEASE_SECONDS,
        concurrency=1,
        max_failures=3,
        backoff=lambda _failures: 0.1,
        tuning=InboxTuning(block_seconds=0.1, look_seconds=0.1),
    )
    stopping = asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(inbox.run(stopping))
        await until(lambda: times >= 2)
        await until(lambda: _is_empty(world.redis))
        stopping.set()


async def _is_empty(client: Redis) -> bool:
    return bool(await client.xlen(stream_of("story")) == 0)


async def test_entries_are_handed_back_uncounted_and_left_by_the_services_own_user(
    world: StoryWorld, own: Redis
) -> None:
    await world.redis.xadd(stream_of("story"), {"event": b"an event"})
    one, other = (InboxStream(own, "story", lease_seconds=30, consumer=name, block_seconds=0.1) for name in "ab")
    # The first look makes the group.
    assert not await one.take(1)
    (entry,) = await one.take(1)
    await one.uncount([entry])
    await one.release([entry])
    (taken,) = await until(lambda: other.take(1))
    assert not await other.keep([taken])
    assert await other.deliveries(taken) == 1
    assert await other.postpone(taken, 0, failures=1)
    await other.move_due()
    assert await other.oldest_at()
    (again,) = await other.take(1)
    assert await other.acknowledge(again)
    await other.forget_ended(0)
    await other.leave()


async def test_progress_is_told_read_stopped_and_erased_by_the_services_own_user(own: Redis) -> None:
    progress, interruptions, stopping = Progress(own), Interruptions(own), asyncio.Event()
    story_id, erased = uuid4(), uuid4()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(interruptions.run(stopping))
        with interruptions.hearing(story_id) as interrupted:
            # Set once when the subscription begins.
            await interrupted.wait()
            interrupted.clear()
            assert await progress.append(story_id, Position(1, 0), ProgressKind.BEGIN)
            assert await progress.append(story_id, Position(1, 1), ProgressKind.CHUNK, "Once", title="A story")
            assert [each.text for each in await progress.read(story_id, Position(1, 0))] == ["Once"]
            assert await progress.wait(story_id, Position(1, 0), 1)
            assert await progress.written(story_id) == (1, "Once", "A story")
            await progress.stop(story_id, 1)
            await interrupted.wait()
        stopping.set()
    await progress.erase([erased])
    await _is_overtaken(progress, erased)


async def _is_overtaken(progress: Progress, story_id: UUID) -> None:
    with pytest.raises(Overtaken):
        await progress.append(story_id, Position(1, 0), ProgressKind.BEGIN)


@pytest.mark.parametrize(
    "command",
    [
        ("XRANGE", stream_of("notification"), "-", "+"),
        ("XADD", "progress-of-others", "*", "a", "b"),
        ("GET", "ratelimit:bucket"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("PUBLISH", "auth:channel", "x"),
    ],
)
async def test_the_services_own_user_may_do_nothing_else(own: Redis, command: tuple[str, ...]) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        await own.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py has no types here
