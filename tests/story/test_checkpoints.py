"""Checkpoints: an interrupted attempt saves its text, and the next one continues from it if the writer can."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import update
from storymesh.story.v1 import story_pb2

from services.story.adapters.writers import Title, Words, WriterUnavailable
from services.story.adapters.writers.composer import CREDIT, ComposerWriter
from services.story.model import State
from services.story.store.progress import Progress
from services.story.tables import stories
from tests.story.calls import create, events_of, found, get, retry
from tests.story.conftest import Person, StoryWorld
from tests.story.scripted import ScriptedWriter
from tests.story.watcher import Watcher, watching
from tests.waiting import until

End = ScriptedWriter.End
LONG = timedelta(minutes=5)


async def a_few_words(watcher: Watcher) -> None:
    while len(watcher.text) < 40:
        await watcher.step()


async def break_off(writing: asyncio.Task[None]) -> None:
    """Cancel the worker's task, as the inbox does at shutdown."""
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing


async def uninterrupted(world: StoryWorld, person: Person, story_id: str) -> str:
    """Return the text that the composer writes without an interruption."""
    await world.writing(ComposerWriter(pace_seconds=0)).write(UUID(story_id))
    return (await get(person, story_id)).text


async def begun_again(world: StoryWorld, story_id: str) -> None:
    """Reset the story to its state when requested, because the composer's text depends on the story's id."""
    await world.redis.delete(f"progress:{story_id}")
    async with world.db.transaction() as tx:
        again = update(stories).where(stories.c.id == UUID(story_id))
        await tx.execute(again.values(state=State.QUEUED, title="", text="", attempt=0, completed_at=None))


async def test_the_text_so_far_is_saved_with_the_heartbeat(world: StoryWorld) -> None:
    world.lease = timedelta(seconds=0.3)
    person = world.person()
    story = await create(person)
    writer = ScriptedWriter(Title("T"), Words("half "))
    writing = asyncio.create_task(world.writing(writer).write(UUID(story.id)))

    async def saved() -> bool:
        return (await found(world, story.id)).text == "half "

    await until(saved)
    writer.put(Words("whole"), End())
    await writing
    assert (await get(person, story.id)).text == "half whole"


async def test_after_a_handback_the_composer_goes_on_and_no_watcher_starts_over(world: StoryWorld) -> None:
    world.lease = LONG
    person = world.person()
    story = await create(person)
    whole = await uninterrupted(world, person, story.id)
    await begun_again(world, story.id)
    async with watching(person, story.id) as watcher:
        writing = asyncio.create_task(world.writing(ComposerWriter(pace_seconds=0.005)).write(UUID(story.id)))
        await a_few_words(watcher)
        await break_off(writing)
        handed_back = await found(world, story.id)
        assert (handed_back.state, handed_back.failures) == (State.QUEUED, 0)
        assert whole.startswith(handed_back.text)
        assert len(handed_back.text) >= 40
        token = watcher.last.resume_token
        await world.writing(ComposerWriter(pace_seconds=0)).write(UUID(story.id))
        done = await watcher.until("done")
    assert watcher.text == done.done.story.text == whole
    assert "reset" not in watcher.seen
    assert watcher.seen.count("snapshot") == 2
    assert (done.done.story.attempt, done.done.story.state) == (2, story_pb2.STORY_STATE_COMPLETED)
    async with watching(person, story.id, token) as resumed:
        await resumed.until("done")
    assert resumed.text == whole


async def test_a_leaving_workers_story_goes_on_at_a_peer_at_once(world: StoryWorld) -> None:
    """Runs the relay and two inboxes; the first one is cancelled, as at the end of a process's drain."""
    world.lease = LONG
    person = world.person()
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(world.relay().run(stopping))
        leaving = group.create_task(world.inbox(ComposerWriter(pace_seconds=0.01)).run(stopping))
        story = await create(person)
        async with watching(person, story.id) as watcher:
            await a_few_words(watcher)
            leaving.cancel()
            await asyncio.wait([leaving])
            group.create_task(world.inbox(ComposerWriter(pace_seconds=0)).run(stopping))
            done = await watcher.until("done")
        stopping.set()
    assert watcher.text == done.done.story.text
    assert "reset" not in watcher.seen
    assert done.done.story.attempt == 2
    assert (await found(world, story.id)).failures == 0


async def test_after_a_lost_lease_the_composer_goes_on_from_the_last_heartbeat(world: StoryWorld) -> None:
    world.lease = timedelta(seconds=0.6)
    person = world.person()
    story = await create(person)
    whole = await uninterrupted(world, person, story.id)
    await begun_again(world, story.id)
    lost = asyncio.create_task(world.writing(ComposerWriter(pace_seconds=0.01)).write(UUID(story.id)))

    async def saved() -> bool:
        return len((await found(world, story.id)).text) > 0

    async with watching(person, story.id) as watcher:
        await until(saved)
        async with world.db.transaction() as tx:
            await tx.execute(update(stories).values(leased_until=stories.c.created_at - timedelta(days=1)))
        await world.writing(ComposerWriter(pace_seconds=0)).write(UUID(story.id))
        done = await watcher.until("done")
        await lost
    assert watcher.text == done.done.story.text == whole
    assert whole.endswith(CREDIT)
    assert "reset" not in watcher.seen
    assert await events_of(world, story.id) == ["StoryRequested", "StoryCompleted", "StoryCompleted"]


async def test_a_writer_that_cannot_go_on_starts_over(world: StoryWorld) -> None:
    world.lease = LONG
    person = world.person()
    story = await create(person)
    async with watching(person, story.id) as watcher:
        first = ScriptedWriter(Title("A"), Words("a false start"))
        writing = asyncio.create_task(world.writing(first).write(UUID(story.id)))
        await watcher.until_text("a false start")
        await break_off(writing)
        assert (await found(world, story.id)).text == "a false start"
        second = ScriptedWriter()
        writing = asyncio.create_task(world.writing(second).write(UUID(story.id)))
        await watcher.until("reset")
        assert watcher.text == (await get(person, story.id)).text == ""
        second.tell("B", "a good one")
        done = await watcher.until("done")
        await writing
    assert watcher.text == done.done.story.text == "a good one"


async def test_another_writers_words_are_not_gone_on_with(world: StoryWorld) -> None:
    person = world.person()
    story = await create(person)
    writing = world.writing(ScriptedWriter(Title("A"), Words("Not by rule"), WriterUnavailable("away")))
    with pytest.raises(Exception, match="later"):
        await writing.write(UUID(story.id))
    assert (await found(world, story.id)).text == "Not by rule"
    async with watching(person, story.id) as watcher:
        await watcher.step()
        assert watcher.text == "Not by rule"
        await world.writing(ComposerWriter(pace_seconds=0)).write(UUID(story.id))
        await watcher.until("reset")
        done = await watcher.until("done")
    assert watcher.text == done.done.story.text
    assert "Not by rule" not in watcher.text


async def test_a_worker_that_leaves_at_any_moment_spends_no_attempt(world: StoryWorld) -> None:
    """Includes the time between the beginning of an attempt and its first word."""
    world.lease = LONG
    person = world.person()
    story = await create(person)
    whole = await uninterrupted(world, person, story.id)
    await begun_again(world, story.id)
    for milliseconds in range(30):
        writing = asyncio.create_task(world.writing(ComposerWriter(pace_seconds=0.001)).write(UUID(story.id)))
        await asyncio.sleep(milliseconds / 1000)
        await break_off(writing)
        handed_back = await found(world, story.id)
        assert (handed_back.state, handed_back.failures) == (State.QUEUED, 0)
        assert whole.startswith(handed_back.text)
    assert await uninterrupted(world, person, story.id) == whole
    assert (await Progress(world.redis).written(UUID(story.id)))[1] == whole


async def test_a_story_that_waited_too_long_is_given_up_before_it_costs_anything(world: StoryWorld) -> None:
    person = world.person()
    story = await create(person)
    writer = ScriptedWriter()
    await world.writing(writer, story_life_seconds=1e-6).write(UUID(story.id))
    read = await get(person, story.id)
    assert (read.state, read.failure_reason) == (story_pb2.STORY_STATE_FAILED, "DEADLINE_EXCEEDED")
    assert not writer.briefs
    assert await events_of(world, story.id) == ["StoryRequested", "StoryFailed"]


async def test_a_story_whose_life_ends_while_it_is_written_is_not_tried_again(world: StoryWorld) -> None:
    person = world.person()
    story = await create(person)
    await world.writing(ScriptedWriter(Title("T")), story_life_seconds=0.5).write(UUID(story.id))
    assert (await get(person, story.id)).failure_reason == "DEADLINE_EXCEEDED"


async def test_a_retry_begins_a_new_life(world: StoryWorld) -> None:
    person = world.person()
    story = await create(person)
    async with world.db.transaction() as tx:
        long_ago = stories.c.created_at - timedelta(days=1)
        await tx.execute(update(stories).values(created_at=long_ago, queued_at=long_ago))
    await world.writing(ScriptedWriter()).write(UUID(story.id))
    assert (await get(person, story.id)).failure_reason == "DEADLINE_EXCEEDED"
    await retry(person, story.id)
    writer = ScriptedWriter()
    writer.tell("T", "in time")
    await world.writing(writer).write(UUID(story.id))
    assert (await get(person, story.id)).text == "in time"


async def test_a_story_that_the_version_before_has_queued_lives_from_its_request(world: StoryWorld) -> None:
    story = await create(world.person())
    async with world.db.transaction() as tx:
        await tx.execute(update(stories).values(queued_at=None))
    queued = await found(world, story.id)
    assert queued.queued_at == queued.created_at
