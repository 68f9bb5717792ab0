"""Cancellation, deletion and retry of a story, concurrently with other changes to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from pydantic import SecretStr
from sqlalchemy import func, insert, select, text, update
from storymesh.story.v1 import story_pb2

from kit.events import outbox
from kit.events.dead_letter_store import dead_letters
from kit.identity.caller import Caller, Role
from kit.rpc.resources import Resources
from kit.runtime.clock import system_clock
from services.story.adapters.writers import Refusal, Title, Words, WriterRefused, WriterUnavailable
from services.story.model import State
from services.story.operations import operations
from services.story.operations.pruning import Pruning
from services.story.operations.stories import Stories
from services.story.store.progress import INTERRUPTIONS, Progress
from services.story.tables import stories
from tests.statuses import raises_status, reason_of
from tests.story.calls import cancel, create, delete, events_of, found, get, retry
from tests.story.conftest import Person, StoryWorld
from tests.story.scripted import ScriptedWriter
from tests.story.watcher import watching
from tests.waiting import until

End = ScriptedWriter.End
LONG = timedelta(minutes=5)
"""A lease longer than any test, so that it never expires."""


@asynccontextmanager
async def listening(world: StoryWorld) -> AsyncIterator[None]:
    """Receive interruptions during the block."""
    stopping = asyncio.Event()
    hearing = asyncio.create_task(world.interruptions.run(stopping))

    async def subscribed() -> bool:
        return bool((await world.redis.pubsub_numsub(INTERRUPTIONS))[0][1])

    await until(subscribed)
    yield
    stopping.set()
    await hearing


@asynccontextmanager
async def being_written(world: StoryWorld, story_id: str, writer: ScriptedWriter) -> AsyncIterator[asyncio.Task[None]]:
    """Run an attempt that has begun and shown the writer's words so far."""
    writing = asyncio.create_task(world.writing(writer).write(UUID(story_id)))
    await writer.begun.wait()
    try:
        yield writing
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def shown(world: StoryWorld, story_id: str) -> str:
    return (await Progress(world.redis).written(UUID(story_id)))[1]


async def ended(writing: asyncio.Task[None]) -> None:
    async with asyncio.timeout(10):
        await writing


def caller(person: Person) -> Caller:
    return Caller(person.id, uuid4(), Role.USER, "kid")


@asynccontextmanager
async def without_redis(world: StoryWorld) -> AsyncIterator[Stories]:
    settings = world.settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    async with Resources("story", settings, db=world.db) as resources:
        yield operations(settings, resources, world.preferences_of).stories


async def test_a_cancelled_queued_story_is_never_written(world: StoryWorld) -> None:
    person = world.person()
    story = await create(person)
    cancelled = await cancel(person, story.id)
    assert cancelled.state == story_pb2.STORY_STATE_CANCELLED
    assert cancelled.HasField("complete_time")
    assert await cancel(person, story.id) == cancelled
    writer = ScriptedWriter()
    await world.writing(writer).write(UUID(story.id))
    assert not writer.briefs
    assert await events_of(world, story.id) == ["StoryRequested"]


async def test_watchers_of_a_queued_story_hear_of_its_cancellation(world: StoryWorld) -> None:
    person = world.person()
    story = await create(person)
    async with watching(person, story.id) as watcher:
        await watcher.until("state")
        await cancel(person, story.id)
        done = await watcher.until("done")
    assert done.done.story == await get(person, story.id)
    assert done.done.story.state == story_pb2.STORY_STATE_CANCELLED


async def test_what_was_written_of_a_cancelled_story_stays_readable(world: StoryWorld) -> None:
    world.lease = LONG
    person = world.person()
    story = await create(person)
    writer = ScriptedWriter(Title("Rain"), Words("It rained and "))
    async with listening(world), watching(person, story.id) as watcher, being_written(world, story.id, writer) as task:
        await watcher.until_text("It rained and ")
        await cancel(person, story.id)
        done = await watcher.until("done")
        await ended(task)
    read = await get(person, story.id)
    assert done.done.story == read
    assert watcher.text == read.text == "It rained and "
    assert (read.title, read.state) == ("Rain", story_pb2.STORY_STATE_CANCELLED)
    async with watching(person, story.id) as late:
        await late.until("done")
    assert late.text == read.text


@pytest.mark.parametrize("operation", [cancel, delete])
async def test_a_silent_writer_is_stopped_long_before_its_lease_ends(world: StoryWorld, operation: object) -> None:
    world.lease = LONG
    person = world.person()
    story = await create(person)
    async with listening(world), being_written(world, story.id, ScriptedWriter()) as writing:
        await operation(person, story.id)  # type: ignore[operator]
        await ended(writing)


async def test_a_silent_writer_whose_interruption_was_lost_is_stopped_by_its_heartbeat(world: StoryWorld) -> None:
    world.lease = timedelta(seconds=0.6)
    person = world.person()
    story = await create(person)
    async with being_written(world, story.id, ScriptedWriter()) as writing:
        await cancel(person, story.id)
        await ended(writing)


async def test_an_interruption_without_a_reason_stops_nobody(world: StoryWorld) -> None:
    world.lease = LONG
    person = world.person()
    story = await create(person)
    writer = ScriptedWriter(Title("T"))
    async with listening(world), being_written(world, story.id, writer) as writing:
        for named in (story.id, "nonsense", b"\xff"):
            await world.redis.publish(INTERRUPTIONS, named)
        writer.put(Words("whole"), End())
        await ended(writing)
    assert (await get(person, story.id)).text == "whole"


async def test_a_writer_that_goes_on_after_a_cancellation_shows_nothing_more(world: StoryWorld) -> None:
    world.lease = LONG
    person = world.person()
    story = await create(person)
    writer = ScriptedWriter(Title("T"), Words("one "))
    async with being_written(world, story.id, writer) as writing:
        await until(lambda: shown(world, story.id))
        await cancel(person, story.id)
        writer.put(Words("two"))
        await ended(writing)
    assert (await shown(world, story.id), (await get(person, story.id)).text) == ("one ", "one ")


async def _waiting(world: StoryWorld) -> int:
    async with world.db.transaction() as tx:
        return await tx.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype <> 'advisory'")) or 0


@pytest.mark.parametrize("first", ["cancel", "complete"])
async def test_of_cancelling_and_completing_the_first_decides(world: StoryWorld, first: str) -> None:
    world.lease = LONG
    person = world.person()
    story = await create(person)
    writer = ScriptedWriter(Title("T"), Words("all of it"))
    async with being_written(world, story.id, writer) as writing:
        await until(lambda: shown(world, story.id))
        async with world.db.transaction() as tx:
            await tx.execute(select(stories.c.id).with_for_update())
            if first == "complete":
                writer.put(End())
                await until(lambda: _waits(world, 1))
            cancelling = asyncio.create_task(cancel(person, story.id))
            await until(lambda: _waits(world, 2 if first == "complete" else 1))
            if first == "cancel":
                writer.put(End())
                await until(lambda: _waits(world, 2))
        (answer,) = await asyncio.gather(cancelling, return_exceptions=True)
        await ended(writing)
    read = await get(person, story.id)
    assert read.text == "all of it"
    if first == "cancel":
        assert answer == read
        assert read.state == story_pb2.STORY_STATE_CANCELLED
        assert await events_of(world, story.id) == ["StoryRequested"]
    else:
        assert isinstance(answer, AioRpcError)
        assert (answer.code(), reason_of(answer)) == (StatusCode.FAILED_PRECONDITION, "STORY_NOT_CANCELLABLE")
        assert read.state == story_pb2.STORY_STATE_COMPLETED
        assert await events_of(world, story.id) == ["StoryRequested", "StoryCompleted"]


async def _waits(world: StoryWorld, number: int) -> bool:
    return await _waiting(world) == number


async def test_however_often_cancelling_races_completing_the_story_its_event_and_the_answers_agree(
    world: StoryWorld,
) -> None:
    world.lease = LONG
    person = world.person()

    async def race(number: int) -> None:
        story = await create(person)
        writer = ScriptedWriter(Title("T"), Words("words"))
        async with watching(person, story.id) as watcher, being_written(world, story.id, writer) as writing:
            await watcher.until_text("words")
            writer.put(End())
            await asyncio.sleep(number / 1000)
            (answer,) = await asyncio.gather(cancel(person, story.id), return_exceptions=True)
            await ended(writing)
            done = await watcher.until("done")
        read = await get(person, story.id)
        assert done.done.story == read
        assert watcher.text == read.text == "words"
        cancelled = read.state == story_pb2.STORY_STATE_CANCELLED
        assert isinstance(answer, AioRpcError) is not cancelled
        assert await events_of(world, story.id) == ["StoryRequested"] + ["StoryCompleted"] * (not cancelled)

    async with asyncio.TaskGroup() as group:
        for number in range(12):
            group.create_task(race(number))


async def test_a_cancellation_that_meets_the_erasure_of_the_words_is_no_fault(world: StoryWorld) -> None:
    person = world.person()
    story = await create(person)
    await Progress(world.redis).erase([UUID(story.id)])
    assert (await cancel(person, story.id)).state == story_pb2.STORY_STATE_CANCELLED


async def test_a_finished_story_cannot_be_cancelled(world: StoryWorld) -> None:
    person = world.person()
    story = await create(person)
    await world.writing(ScriptedWriter(WriterRefused(Refusal.CONTENT_REFUSED, "no"))).write(UUID(story.id))
    with raises_status(StatusCode.FAILED_PRECONDITION, "STORY_NOT_CANCELLABLE"):
        await cancel(person, story.id)


async def test_a_story_is_cancelled_and_deleted_also_while_redis_is_away(world: StoryWorld) -> None:
    world.lease = timedelta(seconds=0.6)
    person = world.person()
    first, second = await create(person), await create(person)
    writer = ScriptedWriter(Title("T"), Words("saved"))
    async with without_redis(world) as away, being_written(world, first.id, writer) as writing:
        await until(lambda: _saved(world, first.id, "saved"))
        cancelled = await away.cancel(caller(person), UUID(first.id))
        assert (cancelled.state, cancelled.text) == (State.CANCELLED, "saved")
        await ended(writing)
        await away.delete(caller(person), UUID(second.id))
    with raises_status(StatusCode.NOT_FOUND, "STORY_NOT_FOUND"):
        await get(person, second.id)
    pruning = Pruning(world.db, world.erasing(), system_clock)
    await pruning.prune()
    assert await _rows(world) == 2, "a deletion that has just begun is left to whoever is at it"
    await pruning.prune(timedelta(0))
    assert await _rows(world) == 1


async def _saved(world: StoryWorld, story_id: str, written: str) -> bool:
    return (await found(world, story_id)).text == written


async def _rows(world: StoryWorld) -> int:
    async with world.db.transaction() as tx:
        return await tx.scalar(select(func.count()).select_from(stories)) or 0


@pytest.mark.parametrize("operation", [cancel, retry, delete])
async def test_a_strangers_story_looks_like_absence_to_every_operation(world: StoryWorld, operation: object) -> None:
    story = await create(world.person())
    with raises_status(StatusCode.NOT_FOUND, "STORY_NOT_FOUND"):
        await operation(world.person(), story.id)  # type: ignore[operator]
    assert (await found(world, story.id)).state is State.QUEUED


async def test_deleting_a_running_story_stops_its_writer_and_its_watchers_and_leaves_nothing(world: StoryWorld) -> None:
    world.lease = LONG
    person = world.person()
    story, other = await create(person, request_id="r-1"), await create(person)
    async with world.db.transaction() as tx:
        letter = {"event_id": uuid4(), "type": "t", "key": story.id, "event": b"", "reason": "", "failures": 8}
        await tx.execute(insert(dead_letters).values(**letter))
    writer = ScriptedWriter(Title("T"), Words("secret "))
    async with listening(world), watching(person, story.id) as watcher, being_written(world, story.id, writer) as task:
        await watcher.until_text("secret ")
        await delete(person, story.id)
        with raises_status(StatusCode.NOT_FOUND, "STORY_NOT_FOUND"):
            await watcher.until("done")
        await ended(task)
    with raises_status(StatusCode.NOT_FOUND, "STORY_NOT_FOUND"):
        await delete(person, story.id)
    assert await shown(world, story.id) == ""
    async with world.db.transaction() as tx:
        assert list(await tx.scalars(select(stories.c.id))) == [UUID(other.id)]
        assert list(await tx.scalars(select(outbox.table.c.key))) == [other.id]
        assert not list(await tx.scalars(select(dead_letters.c.key)))
    assert (await create(person, request_id="r-1")).id != story.id


async def test_a_finished_story_can_be_deleted(world: StoryWorld) -> None:
    person = world.person()
    story = await create(person)
    writer = ScriptedWriter()
    writer.tell("T", "gone")
    await world.writing(writer).write(UUID(story.id))
    await delete(person, story.id)
    assert await shown(world, story.id) == ""
    assert await _rows(world) == 0


async def test_a_retried_story_is_written_anew_under_the_next_attempt(world: StoryWorld) -> None:
    person = world.person()
    story = await create(person)
    await world.writing(ScriptedWriter(Title("A"), Words("half"), WriterUnavailable("x")), story_attempts=1).write(
        UUID(story.id)
    )
    failed = await get(person, story.id)
    assert (failed.state, failed.text) == (story_pb2.STORY_STATE_FAILED, "half")
    queued = await retry(person, story.id)
    assert queued == await get(person, story.id)
    assert (queued.state, queued.title, queued.text) == (story_pb2.STORY_STATE_QUEUED, "", "")
    assert (queued.failure_reason, queued.HasField("complete_time")) == ("", False)
    assert await shown(world, story.id) == ""
    writer = ScriptedWriter()
    writer.tell("B", "whole")
    await world.writing(writer, story_attempts=1).write(UUID(story.id))
    written = await get(person, story.id)
    assert (written.state, written.title, written.text) == (story_pb2.STORY_STATE_COMPLETED, "B", "whole")
    assert written.attempt == 2
    types = ["StoryRequested", "StoryFailed", "StoryRequested", "StoryCompleted"]
    assert await events_of(world, story.id) == types


@pytest.mark.parametrize("begun", [False, True])
async def test_a_watch_resumed_across_a_retry_starts_over(world: StoryWorld, begun: bool) -> None:
    person = world.person()
    story = await create(person)
    first = ScriptedWriter(Title("A"), Words("a false start"))
    async with being_written(world, story.id, first), watching(person, story.id) as watcher:
        await watcher.until_text("a false start")
        token = watcher.last.resume_token
        await cancel(person, story.id)
        await watcher.until("done")
    await retry(person, story.id)
    writer = ScriptedWriter()
    if begun:
        writing = asyncio.create_task(world.writing(writer).write(UUID(story.id)))
        await writer.begun.wait()
    async with watching(person, story.id, token) as resumed, watching(person, story.id) as fresh:
        for watcher in (resumed, fresh):
            await watcher.step()
            assert (watcher.seen, watcher.text) == (["snapshot"], "")
        if not begun:
            writing = asyncio.create_task(world.writing(writer).write(UUID(story.id)))
            for watcher in (resumed, fresh):
                assert (await watcher.until("reset")).reset.attempt == 2
        writer.tell("B", "a good one")
        for watcher in (resumed, fresh):
            done = await watcher.until("done")
            assert watcher.text == done.done.story.text == "a good one"
        await writing


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.COMPLETED])
async def test_only_failed_and_cancelled_stories_can_be_repeated(world: StoryWorld, state: State) -> None:
    person = world.person()
    story = await create(person)
    async with world.db.transaction() as tx:
        await tx.execute(update(stories).values(state=state))
    with raises_status(StatusCode.FAILED_PRECONDITION, "STORY_NOT_RETRYABLE"):
        await retry(person, story.id)


async def test_of_many_simultaneous_retries_one_queues_the_story(world: StoryWorld) -> None:
    person = world.person()
    story = await create(person)
    await cancel(person, story.id)
    answers = await asyncio.gather(*(retry(person, story.id) for _ in range(16)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, AioRpcError)]
    assert [reason_of(error) for error in refused] == ["STORY_NOT_RETRYABLE"] * 15
    assert await events_of(world, story.id) == ["StoryRequested"] * 2


async def test_a_worker_of_a_cancelled_attempt_cannot_write_into_the_repeated_story(world: StoryWorld) -> None:
    world.lease = LONG
    person = world.person()
    story = await create(person)
    writer = ScriptedWriter(Title("T"), Words("old "))
    async with being_written(world, story.id, writer) as writing:
        await until(lambda: shown(world, story.id))
        await cancel(person, story.id)
        await retry(person, story.id)
        writer.put(Words("words"), Words("more"), End())
        await ended(writing)
    read = await get(person, story.id)
    assert (read.state, read.text, await shown(world, story.id)) == (story_pb2.STORY_STATE_QUEUED, "", "")


async def test_operations_in_any_order_leave_nothing_half_done(world: StoryWorld, working: ScriptedWriter) -> None:
    """Cancels, retries and deletes run concurrently with workers; in the end nothing is left in Postgres or for watchers."""
    person = world.person()
    made = [await create(person) for _ in range(6)]
    for _ in range(3):
        working.tell("T", "some words")

    async def meddle(story_id: str) -> None:
        calls = (cancel, retry, cancel, retry, delete)
        await asyncio.gather(*(call(person, story_id) for call in calls), return_exceptions=True)

    await asyncio.gather(*(meddle(story.id) for story in made))
    assert await _rows(world) == 0
    async with world.db.transaction() as tx:
        keys = [story.id for story in made]
        assert not list(await tx.scalars(select(outbox.table.c.id).where(outbox.table.c.key.in_(keys))))
