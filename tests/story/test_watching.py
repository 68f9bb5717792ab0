"""Watches: in every case the client's view equals the stored text in the end."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from uuid import UUID

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.story.v1 import story_pb2
from storymesh.story.v1 import story_service_pb2 as pb
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub

from kit.runtime.clock import system_clock
from mesh.edge_protocol import STREAM_ENDED_HEADER
from services.story import store
from services.story.adapters.writers import Title, Words, WriterUnavailable
from services.story.model import Position
from services.story.store.progress import Overtaken, Progress, ProgressKind
from tests.statuses import detail, raises_status, reason_of, violated_fields
from tests.story.conftest import Person, StoryWorld
from tests.story.pen import Pen, queued
from tests.story.scripted import ScriptedWriter
from tests.story.watcher import Watcher, watching
from tests.waiting import until


async def requested(person: Person) -> str:
    response = await person.stub.CreateStory(pb.CreateStoryRequest(), metadata=person.auth)
    return response.story.id


async def stored(person: Person, story_id: str) -> story_pb2.Story:
    response = await person.stub.GetStory(pb.GetStoryRequest(story_id=story_id), metadata=person.auth)
    return response.story


async def test_the_words_arrive_as_they_are_written(world: StoryWorld, working: ScriptedWriter) -> None:
    person = world.person()
    story_id = await requested(person)
    async with watching(person, story_id) as watcher:
        assert await watcher.step() == "snapshot"
        assert watcher.text == ""
        working.put(Title("Rain"), Words("It "))
        await watcher.until_text("It ")
        working.put(Words("rained."), ScriptedWriter.End())
        done = await watcher.until("done")
    assert watcher.text == "It rained."
    assert done.done.story == await stored(person, story_id)
    assert (done.done.story.title, done.done.story.text) == ("Rain", "It rained.")
    assert done.done.story.state == story_pb2.STORY_STATE_COMPLETED
    assert (done.done.story.writer, done.done.story.model, done.done.story.attempt) == ("scripted", "scripted-1", 1)


async def test_a_late_watcher_gets_a_snapshot_and_then_the_rest(world: StoryWorld, working: ScriptedWriter) -> None:
    person = world.person()
    story_id = await requested(person)
    working.put(Title("T"), Words("one "))
    async with watching(person, story_id) as early:
        await early.until_text("one ")
        async with watching(person, story_id) as late:
            await late.step()
            assert (late.seen, late.text) == (["snapshot"], "one ")
            working.put(Words("two"), ScriptedWriter.End())
            await late.until("done")
        await early.until("done")
    assert early.text == late.text == "one two"


async def test_a_watcher_of_a_finished_story_gets_the_whole_at_once(world: StoryWorld, working: ScriptedWriter) -> None:
    person = world.person()
    story_id = await requested(person)
    working.tell("T", "all ", "of it")
    async with watching(person, story_id) as watcher:
        await watcher.until("done")
    async with watching(person, story_id) as watcher:
        await watcher.until("done")
    assert (watcher.seen, watcher.text) == (["snapshot", "done"], "all of it")


async def test_a_client_that_reconnects_at_every_message_misses_and_doubles_nothing(
    world: StoryWorld, working: ScriptedWriter
) -> None:
    person = world.person()
    story_id = await requested(person)
    words = [f"word{number} " for number in range(12)]
    working.tell("T", *words)
    async with watching(person, story_id) as watcher:
        await watcher.until("done")
    token, text, chunks = "", "", 0
    async with watching(person, story_id) as first:
        await first.step()
        token = first.last.resume_token
    while True:
        async with watching(person, story_id, token) as watcher:
            await watcher.step()
            assert watcher.seen == ["snapshot"]
            text = watcher.text
            kind = await watcher.step()
            token = watcher.last.resume_token
            chunks += kind == "chunk"
            if kind == "done":
                break
    assert text == "".join(words)


async def test_a_client_that_reads_one_message_of_each_stream_gets_on_as_well(
    world: StoryWorld, working: ScriptedWriter
) -> None:
    person = world.person()
    story_id = await requested(person)
    token = ""
    for number in range(6):
        seen = "".join(f"word{each} " for each in range(number))
        # Two streams, because the first may repeat the position that its token names.
        for _ in range(2):
            async with watching(person, story_id, token) as watcher:
                assert await watcher.step() == "snapshot"
                token = watcher.last.resume_token
        assert watcher.text == seen
        async with watching(person, story_id) as other:
            working.put(Words(f"word{number} "))
            await other.until_text(seen + f"word{number} ")


async def test_a_client_that_reads_two_messages_of_each_stream_reaches_the_end_of_a_story_that_lost_words(
    world: StoryWorld,
) -> None:
    """A story cancelled while Redis does not answer keeps its last checkpoint, which is less than watchers have seen."""
    person = world.person()
    story_id = await queued(world.db, person.id)
    pen = Pen(world.db, world.redis, story_id)
    await pen.begin()
    await pen.add("seen by watchers only")
    async with watching(person, str(story_id)) as watcher:
        await watcher.until_text("seen by watchers only")
    async with world.db.transaction() as tx:
        assert await store.stories.cancel(tx, story_id, now=system_clock())
    for _ in range(5):
        async with watching(person, str(story_id), watcher.last.resume_token) as watcher:
            if [await watcher.step(), await watcher.step()] == ["snapshot", "done"]:
                break
    assert watcher.seen == ["snapshot", "done"]
    assert watcher.text == (await stored(person, str(story_id))).text == ""


async def test_a_resumed_watch_goes_on_right_after_its_token(world: StoryWorld, working: ScriptedWriter) -> None:
    person = world.person()
    story_id = await requested(person)
    working.put(Title("T"), Words("one "))
    async with watching(person, story_id) as watcher:
        await watcher.until_text("one ")
        token = watcher.last.resume_token
        working.put(Words("two "))
        await watcher.until_text("one two ")
        async with watching(person, story_id, token) as resumed:
            assert await resumed.step() == "snapshot"
            assert resumed.text == "one "
            assert (await resumed.until("chunk")).chunk.text == "two "
            working.put(Words("three"), ScriptedWriter.End())
            await resumed.until("done")
    assert resumed.text == "one two three"


async def told_that_it_ended(person: Person, story_id: str, resume_token: str) -> bool:
    request = pb.WatchStoryRequest(story_id=story_id, resume_token=resume_token)
    call = person.stub.WatchStory(request, metadata=person.auth, timeout=20)
    metadata = await call.initial_metadata()
    call.cancel()
    return STREAM_ENDED_HEADER in dict(metadata)


async def test_a_client_that_has_read_the_end_and_only_that_is_told_that_nothing_is_new(
    world: StoryWorld, working: ScriptedWriter
) -> None:
    person = world.person()
    story_id = await requested(person)
    tokens = {""}
    working.tell("T", "all ", "of it")
    # Once while the story is written, and once after its end.
    for _ in range(2):
        async with watching(person, story_id) as watcher:
            while await watcher.step() != "done":
                tokens.add(watcher.last.resume_token)
            last = watcher.last.resume_token
    for token in tokens:
        assert not await told_that_it_ended(person, story_id, token)
    assert await told_that_it_ended(person, story_id, last)
    async with watching(person, story_id, last) as watcher:
        await watcher.until("done")
        assert watcher.text == "all of it"
        assert await told_that_it_ended(person, story_id, watcher.last.resume_token)


async def test_a_story_that_is_asked_for_again_is_news_to_who_has_read_its_end(
    world: StoryWorld, working: ScriptedWriter
) -> None:
    person = world.person()
    story_id = await requested(person)
    working.put(Title("T"), Words("half "))
    async with watching(person, story_id) as watcher:
        await watcher.until_text("half ")
        await person.stub.CancelStory(pb.CancelStoryRequest(story_id=story_id), metadata=person.auth)
        last = (await watcher.until("done")).resume_token
    assert await told_that_it_ended(person, story_id, last)
    await person.stub.RetryStory(pb.RetryStoryRequest(story_id=story_id), metadata=person.auth)
    assert not await told_that_it_ended(person, story_id, last)
    working.tell("T", "whole")
    async with watching(person, story_id, last) as watcher:
        await watcher.until("done")
        assert watcher.text == "whole"
    assert not await told_that_it_ended(person, story_id, last)
    assert await told_that_it_ended(person, story_id, watcher.last.resume_token)


async def test_a_resume_token_of_another_story_or_person_is_refused(world: StoryWorld) -> None:
    person, other = world.person(), world.person()
    story_id, others_story = await requested(person), await requested(other)
    async with watching(person, story_id) as watcher:
        await watcher.step()
        token = watcher.last.resume_token
    for caller, story, presented in (
        (other, others_story, token),
        (person, await requested(person), token),
        (person, story_id, token[:-2] + "AA"),
    ):
        with pytest.raises(AioRpcError) as raised:
            async with watching(caller, story, presented) as watcher:
                await watcher.step()
        assert (raised.value.code(), violated_fields(raised.value)) == (StatusCode.INVALID_ARGUMENT, ["resume_token"])


async def test_a_new_attempt_starts_the_text_over(world: StoryWorld, working: ScriptedWriter) -> None:
    person = world.person()
    story_id = await requested(person)
    working.put(Title("First"), Words("a false start"))
    async with watching(person, story_id) as watcher:
        await watcher.until_text("a false start")
        working.put(WriterUnavailable("the model went away"))
        reset = await watcher.until("reset")
        assert (reset.reset.attempt, watcher.text) == (2, "")
        working.tell("Second", "a good one")
        done = await watcher.until("done")
    assert watcher.text == done.done.story.text == "a good one"
    assert (done.done.story.title, done.done.story.attempt) == ("Second", 2)


async def test_silence_is_filled_with_heartbeats(world: StoryWorld) -> None:
    person = world.person()
    async with watching(person, await requested(person)) as watcher:
        await watcher.until("heartbeat")


async def test_a_leaving_server_tells_its_watchers_to_come_back(world: StoryWorld) -> None:
    person = world.person()
    async with watching(person, await requested(person)) as watcher:
        await watcher.step()
        world.server.stopping.set()
        farewell = await watcher.until("reconnect")
        assert 0.5 <= farewell.reconnect.after.ToTimedelta().total_seconds() <= 1.5


async def test_a_watch_ends_also_when_the_last_progress_entry_is_lost(
    world: StoryWorld, working: ScriptedWriter
) -> None:
    person = world.person()
    story_id = await requested(person)
    working.put(Title("T"), Words("kept"))
    async with watching(person, story_id) as watcher:
        await watcher.until_text("kept")
        await world.redis.delete(f"progress:{story_id}")
        working.put(ScriptedWriter.End())
        done = await watcher.until("done")
    assert watcher.text == done.done.story.text == "kept"


async def test_words_written_while_redis_forgot_the_former_ones_still_arrive(
    world: StoryWorld, working: ScriptedWriter
) -> None:
    person = world.person()
    story_id = await requested(person)
    working.put(Title("T"), Words("one "))
    async with watching(person, story_id) as watcher:
        await watcher.until_text("one ")
        await world.redis.delete(f"progress:{story_id}")
        working.put(Words("two "))
        async with watching(person, story_id) as late:
            await late.until_text("one two ")
        working.put(Words("three"), ScriptedWriter.End())
        await watcher.until("done")
    assert watcher.text == "one two three"


async def test_an_overtaken_attempt_cannot_append_any_more(world: StoryWorld) -> None:
    progress = Progress(world.redis)
    story = UUID(int=7)
    await progress.append(story, Position(1, 0), ProgressKind.BEGIN)
    await progress.append(story, Position(2, 0), ProgressKind.BEGIN)
    with pytest.raises(Overtaken):
        await progress.append(story, Position(1, 1), ProgressKind.CHUNK, "late")
    assert [entry.position for entry in await progress.read(story, Position(0, 0))] == [Position(1, 0), Position(2, 0)]


async def test_a_repeated_append_changes_nothing(world: StoryWorld) -> None:
    progress = Progress(world.redis)
    story = UUID(int=8)
    for _ in range(2):
        assert await progress.append(story, Position(1, 0), ProgressKind.BEGIN)
        assert await progress.append(story, Position(1, 1), ProgressKind.CHUNK, "once")
    assert [entry.text for entry in await progress.read(story, Position(0, 0))] == ["", "once"]
    assert not await progress.append(story, Position(1, 3), ProgressKind.CHUNK, "after a gap")


async def blocked(world: StoryWorld) -> int:
    """Return the number of readers that block in Redis."""
    return int((await world.redis.info("clients"))["blocked_clients"])


async def test_whoever_has_too_many_watches_open_is_told_when_to_try_again(world: StoryWorld) -> None:
    person, other, third = world.person(), world.person(), world.person()
    stories = {each.id: await queued(world.db, each.id) for each in (person, other, third)}
    async with AsyncExitStack() as stack:

        async def watch(who: Person) -> Watcher:
            watcher = await stack.enter_async_context(watching(who, str(stories[who.id])))
            await watcher.step()
            return watcher

        async def refused(who: Person) -> bool:
            with pytest.raises(AioRpcError) as raised:
                await watch(who)
            assert (raised.value.code(), reason_of(raised.value)) == (StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHES")
            wait = detail(raised.value, RetryInfo)
            return wait is not None and wait.retry_delay.ToTimedelta() > timedelta(0)

        for _ in range(20):
            await watch(person)
        assert await refused(person)
        for _ in range(10):
            await watch(other)
        # The process has now reached its limit.
        assert await refused(third)

    async def free() -> bool:
        return await blocked(world) == 0

    await until(free)
    async with watching(third, str(stories[third.id])) as watcher:
        assert await watcher.step() == "snapshot"


async def test_a_process_follows_only_so_many_stories(world: StoryWorld) -> None:
    person, other = world.person(), world.person()
    async with AsyncExitStack() as stack:
        for number in range(26):
            who = person if number < 15 else other
            story_id = await queued(world.db, who.id)
            watcher = await stack.enter_async_context(watching(who, str(story_id)))
            if number < 25:
                await watcher.step()
            else:
                with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHES"):
                    await watcher.step()


async def test_a_client_that_vanishes_gives_its_watch_back(world: StoryWorld) -> None:
    person = world.person()
    story_id = str(await queued(world.db, person.id))
    for _ in range(3):
        # Close the channel and so the connection, without ending the call.
        async with grpc.aio.insecure_channel(await world.server.address) as channel:
            vanishing = Person(StoryServiceStub(channel), world.issuer, person.id)
            calls = [
                vanishing.stub.WatchStory(pb.WatchStoryRequest(story_id=story_id), metadata=vanishing.auth)
                for _ in range(20)
            ]
            for call in calls:
                await anext(aiter(call))

        async def gone() -> bool:
            return await blocked(world) == 0

        await until(gone)


async def test_a_client_that_never_reads_holds_up_nobody_and_is_ended(world: StoryWorld) -> None:
    person = world.person()
    story_id = await queued(world.db, person.id)
    pen = Pen(world.db, world.redis, story_id)
    await pen.begin()
    # A flow-control window that does not grow, so that it is full soon.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535)]
    async with grpc.aio.insecure_channel(await world.server.address, options=options) as channel:
        stuck = Person(StoryServiceStub(channel), world.issuer, person.id)
        call = stuck.stub.WatchStory(pb.WatchStoryRequest(story_id=str(story_id)), metadata=stuck.auth)
        await anext(aiter(call))
        async with watching(person, str(story_id)) as watcher:
            await watcher.step()
            for number in range(40):
                await pen.add(f"{number}" * 2000)
                await watcher.until_text(pen.text)

        async def given_back() -> bool:
            return await blocked(world) == 0

        # The story is still being written, but its reader has ended: one watcher left and the other never read.
        await until(given_back)
        # A client that reads again gets the messages sent before, and then Reconnect.
        with raises_status(StatusCode.RESOURCE_EXHAUSTED, "STREAM_STALLED"):
            async for _ in call:
                pass
