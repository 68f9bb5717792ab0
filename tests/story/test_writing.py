"""Attempts of workers: however a worker ends, no story is lost and none is completed twice."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import select, update
from storymesh.events.v1 import story_events_pb2 as events
from storymesh.story.v1 import story_pb2
from storymesh.story.v1 import story_service_pb2 as pb

from kit.events import outbox
from kit.events.handlers import Later
from kit.events.inbox_stream import GROUP, stream_of
from kit.runtime.clock import system_clock
from services.story import store
from services.story.adapters.writers import Refusal, Title, Words, WriterRefused, WriterUnavailable
from services.story.adapters.writers.openai import OpenAIWriter
from services.story.model import Checkpoint, State, Story, excerpt
from services.story.tables import stories
from tests.story.conftest import StoryWorld
from tests.story.scripted import ScriptedWriter
from tests.story.writers.chat_server import Reply, chat_server, streaming
from tests.waiting import until

End = ScriptedWriter.End
OF_AN_ENDPOINT = "The Key\n\n" + "One two three four five six seven eight nine ten. " * 12


async def requested(world: StoryWorld, **fields: object) -> UUID:
    person = world.person()
    response = await person.stub.CreateStory(pb.CreateStoryRequest(**fields), metadata=person.auth)  # type: ignore[arg-type]
    return UUID(response.story.id)


async def found(world: StoryWorld, story_id: UUID) -> Story:
    async with world.db.transaction() as tx:
        story = await store.stories.find(tx, story_id)
    assert story is not None
    return story


async def events_of(world: StoryWorld, story_id: UUID) -> list[str]:
    async with world.db.transaction() as tx:
        query = select(outbox.table.c.type).where(outbox.table.c.key == str(story_id)).order_by(outbox.table.c.position)
        return [name.rpartition(".")[2] for name in await tx.scalars(query)]


async def completions(world: StoryWorld, story_id: UUID) -> list[events.StoryCompleted]:
    kind = events.StoryCompleted.DESCRIPTOR.full_name
    async with world.db.transaction() as tx:
        query = select(outbox.table.c.payload).where(outbox.table.c.key == str(story_id), outbox.table.c.type == kind)
        return [events.StoryCompleted.FromString(each) for each in await tx.scalars(query)]


async def test_a_written_story_is_stored_and_announced_in_one_step(world: StoryWorld) -> None:
    story_id = await requested(world, theme="rain", preferences=["foxes"])
    writer = ScriptedWriter()
    writer.tell("Rain", "It ", "rained.")
    await world.writing(writer).write(story_id)
    story = await found(world, story_id)
    assert (story.state, story.title, story.text, story.attempt) == (State.COMPLETED, "Rain", "It rained.", 1)
    assert (story.prompt_tokens, story.completion_tokens) == (7, 2)
    assert story.started_at is not None
    assert story.completed_at is not None
    assert story.started_at <= story.completed_at
    assert await events_of(world, story_id) == ["StoryRequested", "StoryCompleted"]
    assert (writer.briefs[0].theme, writer.briefs[0].preferences) == ("rain", ("foxes",))


async def test_a_finished_story_is_announced_with_its_first_lines(world: StoryWorld) -> None:
    story_id = await requested(world)
    writer = ScriptedWriter()
    writer.tell("Rain", "It  rained.\n\nAll day, ", "and " + "all night, " * 60 + "and then it stopped.")
    await world.writing(writer).write(story_id)
    (event,) = await completions(world, story_id)
    assert event.title == "Rain"
    assert event.excerpt.startswith("It rained. All day, and all night, all night")
    assert event.excerpt.endswith("night…")
    assert len(event.excerpt) <= 300


@pytest.mark.parametrize(
    ("text", "first_lines"),
    [
        ("", ""),
        ("It rained.", "It rained."),
        (" It\n\n rained.\n", "It rained."),
        ("x" * 300, "x" * 300),
        ("x" * 301, "x" * 299 + "…"),
        ("word " * 60 + "end", "word " * 59 + "word…"),
        ("word, " * 60, "word, " * 49 + "word…"),
        ("a " + "x" * 400, "a " + "x" * 297 + "…"),
        ("語" * 400, "語" * 299 + "…"),
    ],
)
def test_the_first_lines_are_cut_between_words_where_there_are_some(text: str, first_lines: str) -> None:
    assert excerpt(text) == first_lines
    assert len(excerpt(text)) <= 300


async def test_a_repeated_event_writes_nothing_twice(world: StoryWorld) -> None:
    story_id = await requested(world)
    writer = ScriptedWriter()
    writer.tell("T", "once")
    writer.tell("T", "twice")
    writing = world.writing(writer)
    await writing.write(story_id)
    await writing.write(story_id)
    assert (await found(world, story_id)).text == "once"
    assert len(writer.briefs) == 1
    assert await events_of(world, story_id) == ["StoryRequested", "StoryCompleted"]


async def test_while_one_worker_writes_another_waits(world: StoryWorld) -> None:
    story_id = await requested(world)
    writer = ScriptedWriter(Title("T"))
    task = asyncio.create_task(world.writing(writer).write(story_id))
    await writer.begun.wait()
    with pytest.raises(Later):
        await world.writing(ScriptedWriter()).write(story_id)
    writer.put(Words("alone"), End())
    await task
    assert (await found(world, story_id)).text == "alone"


async def test_a_worker_whose_lease_was_lost_leaves_no_trace(world: StoryWorld) -> None:
    world.lease = timedelta(seconds=0.6)
    story_id = await requested(world)
    slow, quick = ScriptedWriter(Title("Slow")), ScriptedWriter()
    overtaken = asyncio.create_task(world.writing(slow).write(story_id))
    await slow.begun.wait()
    async with world.db.transaction() as tx:
        await tx.execute(update(stories).values(leased_until=stories.c.created_at))
    quick.tell("Quick", "the one")
    await world.writing(quick).write(story_id)
    slow.put(Words("too late"), End())
    await overtaken
    story = await found(world, story_id)
    assert (story.title, story.text, story.attempt) == ("Quick", "the one", 2)
    assert await events_of(world, story_id) == ["StoryRequested", "StoryCompleted"]


@pytest.mark.parametrize(
    "last",
    [(Words("too late"), End()), (WriterRefused(Refusal.CONTENT_REFUSED, "no"),), (WriterUnavailable("no"),), ()],
    ids=["words", "a refusal", "a failure", "nothing, for it leaves"],
)
async def test_a_worker_that_was_overtaken_has_not_died_whatever_it_comes_back_with(
    world: StoryWorld, last: tuple[Words | End | Exception, ...]
) -> None:
    """Overtaken more often than attempts may fail, the story does not fail, because no attempt has killed its worker."""
    story_id, attempts = await requested(world), 3
    for number in range(1, attempts + 2):
        writer = ScriptedWriter(Title("Slow"))
        slow = asyncio.create_task(world.writing(writer, story_attempts=attempts).write(story_id))
        await writer.begun.wait()
        async with world.db.transaction() as tx:
            await tx.execute(update(stories).values(leased_until=stories.c.created_at))
            await store.attempts.begin(
                tx, story_id, writer="quick", model="", lease=timedelta(minutes=5), now=system_clock()
            )
        assert (await found(world, story_id)).failures == 1
        writer.put(*last)
        if not last:
            slow.cancel()
        with suppress(asyncio.CancelledError):
            await slow
        story = await found(world, story_id)
        assert (story.state, story.failures, story.attempt) == (State.RUNNING, 0, 2 * number)
        async with world.db.transaction() as tx:
            await store.attempts.requeue(tx, story_id, story.attempt, Checkpoint("", ""), pause=None)


async def test_a_long_story_keeps_its_lease(world: StoryWorld) -> None:
    world.lease = timedelta(seconds=0.6)
    story_id = await requested(world)
    writer = ScriptedWriter(Title("T"))
    task = asyncio.create_task(world.writing(writer).write(story_id))
    await writer.begun.wait()
    begun = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < begun + 1.5:
        with pytest.raises(Later):
            await world.writing(ScriptedWriter()).write(story_id)
        await asyncio.sleep(0.1)
    writer.put(Words("long"), End())
    await task
    assert (await found(world, story_id)).attempt == 1


async def test_a_passing_failure_is_tried_again_and_a_lasting_one_given_up(world: StoryWorld) -> None:
    story_id = await requested(world)
    writer = ScriptedWriter(*[WriterUnavailable("busy")] * 3)
    writing = world.writing(writer, story_attempts=3)
    for failures in (1, 2):
        with pytest.raises(Later):
            await writing.write(story_id)
        story = await found(world, story_id)
        assert (story.state, story.failures) == (State.QUEUED, failures)
    await writing.write(story_id)
    story = await found(world, story_id)
    assert (story.state, story.failure_reason) == (State.FAILED, "WRITER_UNAVAILABLE")
    assert await events_of(world, story_id) == ["StoryRequested", "StoryFailed"]


async def test_a_refusal_ends_the_story_at_once_with_its_reason(
    world: StoryWorld, caplog: pytest.LogCaptureFixture
) -> None:
    story_id = await requested(world, language="fr")
    writer = ScriptedWriter(WriterRefused(Refusal.LANGUAGE_UNSUPPORTED, "English only"))
    await world.writing(writer).write(story_id)
    assert f"story {story_id} attempt 1 was refused, LANGUAGE_UNSUPPORTED: English only" in caplog.text
    story = await found(world, story_id)
    assert (story.state, story.failure_reason) == (State.FAILED, "LANGUAGE_UNSUPPORTED")
    async with world.db.transaction() as tx:
        failed = select(outbox.table.c.payload).where(outbox.table.c.type.endswith("StoryFailed"))
        payload = (await tx.execute(failed)).scalar_one()
    assert events.StoryFailed.FromString(payload).reason == "LANGUAGE_UNSUPPORTED"


@pytest.mark.parametrize(
    ("reply", "ends", "announced"),
    [
        (streaming(OF_AN_ENDPOINT), (State.COMPLETED, ""), ["StoryCompleted"]),
        (streaming(OF_AN_ENDPOINT, finish_reason="abort"), (State.QUEUED, ""), []),
        (streaming(f"{OF_AN_ENDPOINT} And then the"), (State.QUEUED, ""), []),
        (streaming(OF_AN_ENDPOINT, finish_reason="SAFETY"), (State.FAILED, "CONTENT_REFUSED"), ["StoryFailed"]),
        (
            streaming(OF_AN_ENDPOINT, finish_reason="MAX_TOKENS"),
            (State.FAILED, "WRITER_MISCONFIGURED"),
            ["StoryFailed"],
        ),
    ],
)
async def test_only_a_story_that_a_model_ended_itself_is_announced(
    world: StoryWorld, reply: Reply, ends: tuple[State, str], announced: list[str]
) -> None:
    story_id = await requested(world, length=story_pb2.STORY_LENGTH_SHORT)
    async with chat_server() as server:
        server.script = [reply]
        writer = OpenAIWriter(base_url=server.url, api_key="k", model="m")
        with suppress(Later):
            await world.writing(writer).write(story_id)
        await writer.aclose()
    story = await found(world, story_id)
    assert (story.state, story.failure_reason) == ends
    assert await events_of(world, story_id) == ["StoryRequested", *announced]


async def test_a_bug_in_a_writer_is_the_storys_failure_not_the_workers(world: StoryWorld) -> None:
    story_id = await requested(world)
    with pytest.raises(Later):
        await world.writing(ScriptedWriter(ZeroDivisionError())).write(story_id)
    assert (await found(world, story_id)).state is State.QUEUED


async def test_a_story_that_takes_too_long_is_tried_again(world: StoryWorld) -> None:
    story_id = await requested(world)
    with pytest.raises(Later):
        await world.writing(ScriptedWriter(Title("T")), story_seconds=0.2).write(story_id)
    assert (await found(world, story_id)).failures == 1


async def test_a_leaving_worker_hands_its_story_back_without_counting_a_failure(world: StoryWorld) -> None:
    story_id = await requested(world)
    writer = ScriptedWriter(Title("T"), Words("half a"))
    task = asyncio.create_task(world.writing(writer).write(story_id))
    await writer.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    story = await found(world, story_id)
    assert (story.state, story.failures) == (State.QUEUED, 0)


async def test_a_story_that_keeps_killing_its_workers_is_given_up(world: StoryWorld) -> None:
    story_id = await requested(world)
    async with world.db.transaction() as tx:
        await tx.execute(
            update(stories).values(state=State.RUNNING, attempt=3, failures=2, leased_until=stories.c.created_at)
        )
    await world.writing(ScriptedWriter(), story_attempts=3).write(story_id)
    story = await found(world, story_id)
    assert (story.state, story.failure_reason) == (State.FAILED, "WORKER_LOST")


async def test_a_story_whose_event_was_lost_is_requested_again_once(world: StoryWorld) -> None:
    story_id = await requested(world)
    sweeper = world.sweeper()
    assert await sweeper.sweep() == 0
    async with world.db.transaction() as tx:
        await tx.execute(update(stories).values(dispatched_at=stories.c.dispatched_at - timedelta(minutes=3)))
    assert await sweeper.sweep() == 1
    assert await sweeper.sweep() == 0
    assert await events_of(world, story_id) == ["StoryRequested", "StoryRequested"]


async def dispatched(world: StoryWorld, ago: timedelta) -> None:
    async with world.db.transaction() as tx:
        await tx.execute(update(stories).values(dispatched_at=stories.c.created_at - ago))


async def test_all_workers_together_write_no_more_stories_than_the_writer_may_have(world: StoryWorld) -> None:
    ids = [await requested(world) for _ in range(6)]
    writer = ScriptedWriter()
    workers = [world.writing(writer, writer_limit=2) for _ in range(3)]
    writing = [asyncio.create_task(workers[number % 3].write(story_id)) for number, story_id in enumerate(ids)]
    await until(lambda: len(writer.briefs) + sum(task.done() for task in writing) == len(ids))
    assert len(writer.briefs) == 2
    for _ in range(2):
        writer.tell("T", "written")
    refused = [each for each in await asyncio.gather(*writing, return_exceptions=True) if each]
    assert [type(each) for each in refused] == [Later] * 4
    queued = [story_id for story_id in ids if (await found(world, story_id)).state is State.QUEUED]
    assert len(queued) == 4
    writer.tell("T", "the next")
    await workers[0].write(queued[0])


async def test_no_event_begins_a_story_in_the_pause_after_a_failed_attempt(world: StoryWorld) -> None:
    """The writer asked for the pause; without it a repeated event would waste the next attempt."""
    story_id = await requested(world)
    busy = ScriptedWriter(WriterUnavailable("busy", retry_after=600))
    writing = world.writing(busy)
    for _ in range(2):
        with pytest.raises(Later) as later:
            await writing.write(story_id)
        assert timedelta(seconds=590) < later.value.delay < timedelta(seconds=601)
    await dispatched(world, timedelta(hours=1))
    assert await world.sweeper().sweep() == 0
    story = await found(world, story_id)
    assert (story.state, story.attempt, story.failures, len(busy.briefs)) == (State.QUEUED, 1, 1, 1)


async def test_a_failed_story_that_is_asked_for_anew_does_not_wait(world: StoryWorld) -> None:
    story_id = await requested(world)
    with pytest.raises(Later):
        await world.writing(ScriptedWriter(WriterUnavailable("busy", retry_after=600))).write(story_id)
    async with world.db.transaction() as tx:
        await tx.execute(update(stories).values(state=State.FAILED))
        assert await store.stories.queue_again(tx, story_id, now=system_clock())
    writer = ScriptedWriter()
    writer.tell("T", "at once")
    await world.writing(writer).write(story_id)
    assert (await found(world, story_id)).text == "at once"


async def test_a_story_that_waits_for_its_turn_is_not_taken_for_lost(world: StoryWorld) -> None:
    await requested(world)
    await dispatched(world, timedelta(minutes=10))
    before = int((system_clock() - timedelta(minutes=11)).timestamp() * 1000)
    stream = stream_of("story")
    await world.redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
    for number in range(2):
        await world.redis.xadd(stream, {"event": "of an earlier story"}, id=f"{before}-{number}")
        assert await world.sweeper().sweep() == 0
        await world.redis.xreadgroup(GROUP, "worker", {stream: ">"})
    assert await world.sweeper().sweep() == 1


async def test_a_running_story_is_not_swept(world: StoryWorld) -> None:
    await requested(world)
    async with world.db.transaction() as tx:
        await tx.execute(
            update(stories).values(
                state=State.RUNNING,
                leased_until=stories.c.created_at + timedelta(hours=1),
                dispatched_at=stories.c.dispatched_at - timedelta(hours=1),
            )
        )
    assert await world.sweeper().sweep() == 0
