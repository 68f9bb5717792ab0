"""Erasure of an account: in any state of its stories, nothing is left and nothing comes back."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis.exceptions
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import func, insert, select, text, update
from storymesh.events.v1 import auth_events_pb2
from storymesh.story.v1 import story_service_pb2 as pb

from kit.data import redis as kit_redis
from kit.errors import SessionRevoked
from kit.events import erasure, outbox
from kit.events.dead_letter_store import dead_letters
from kit.events.envelope import Event
from kit.rpc import channels
from kit.runtime.clock import system_clock
from services.story import store
from services.story.adapters.writers import Title, Words
from services.story.model import Position, State
from services.story.operations.erasing import Erasing
from services.story.peers import AccountDirectory
from services.story.store.progress import Overtaken, Progress, ProgressKind
from services.story.tables import stories
from tests.identity import service_tokens
from tests.notification.directory import Directory, serving
from tests.statuses import raises_status, reason_of
from tests.story.conftest import Person, StoryWorld
from tests.story.scripted import ScriptedWriter
from tests.story.watcher import watching
from tests.waiting import until

End = ScriptedWriter.End
SECRET = "the name of the person"


async def requested(person: Person, **fields: object) -> UUID:
    response = await person.stub.CreateStory(pb.CreateStoryRequest(**fields), metadata=person.auth)  # type: ignore[arg-type]
    return UUID(response.story.id)


async def delete_account(world: StoryWorld, person: Person) -> None:
    """Deliver UserDeleted, as auth's relay does."""
    message = auth_events_pb2.UserDeleted(user_id=str(person.id))
    deleted = Event(
        id=uuid4(),
        type=message.DESCRIPTOR.full_name,
        key=str(person.id),
        occurred_at=datetime.now(UTC),
        traceparent="",
        payload=message.SerializeToString(),
    )
    await world.redis.xadd("inbox:story-accounts", {"event": deleted.to_bytes()})


async def left(world: StoryWorld) -> dict[str, int]:
    """Return the number of rows left in each table."""
    counts = {}
    async with world.db.transaction() as tx:
        for table in (stories, outbox.table, dead_letters):
            counts[table.name] = await tx.scalar(select(func.count()).select_from(table)) or 0
    return counts


NOTHING = {"stories": 0, "outbox": 0, "dead_letters": 0}


async def words_in_redis(world: StoryWorld) -> str:
    found: list[Any] = [await world.redis.xrange(key) for key in await world.redis.keys("progress:*")]
    return str(found)


async def bury(world: StoryWorld, story_id: UUID) -> None:
    async with world.db.transaction() as tx:
        letter = {"event_id": uuid4(), "type": "t", "key": str(story_id), "event": b"", "reason": "", "failures": 8}
        await tx.execute(insert(dead_letters).values(**letter))


async def test_every_story_goes_whatever_its_state_and_so_does_all_that_was_told_of_it(world: StoryWorld) -> None:
    gone, other = world.person(), world.person()
    of_gone = [await requested(gone, theme=SECRET) for _ in State]
    of_other = await requested(other)
    writer = ScriptedWriter()
    writer.tell(SECRET, SECRET)
    writer.tell("T", "kept")
    await world.writing(writer).write(of_gone[0])
    await world.writing(writer).write(of_other)
    async with world.db.transaction() as tx:
        for story_id, state in zip(of_gone, State, strict=True):
            await tx.execute(update(stories).where(stories.c.id == story_id).values(state=state))
        published = update(outbox.table).where(outbox.table.c.key == str(of_gone[0])).values(published_at=func.now())
        await tx.execute(published)
    for story_id in (*of_gone, of_other):
        await bury(world, story_id)

    await world.erasing().erase(gone.id)

    assert await left(world) == {"stories": 1, "outbox": 2, "dead_letters": 1}
    assert SECRET not in await words_in_redis(world)
    async with watching(other, str(of_other)) as watcher:
        await watcher.until("done")
    assert watcher.text == "kept"


async def test_a_running_story_stops_at_its_next_word_and_tells_nobody(
    world: StoryWorld, working: ScriptedWriter, caplog: pytest.LogCaptureFixture
) -> None:
    person = world.person()
    story_id = await requested(person)
    working.put(Title("T"), Words("one "))
    async with watching(person, str(story_id)) as watcher:
        await watcher.until_text("one ")
        await delete_account(world, person)
        with raises_status(StatusCode.NOT_FOUND, "STORY_NOT_FOUND"):
            await watcher.until("done")
    working.put(Words("two"))
    await until(lambda: "was overtaken, or erased" in caplog.text)
    assert await left(world) == NOTHING
    assert "one" not in await words_in_redis(world)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_an_erasure_does_not_wait_for_the_stories_that_keep_the_workers_busy(
    world: StoryWorld, working: ScriptedWriter
) -> None:
    person = world.person()
    for _ in range(5):
        await requested(person)
    await until(lambda: len(working.briefs) == 2)
    await delete_account(world, person)
    await until(lambda: _nothing_left(world))


async def _nothing_left(world: StoryWorld) -> bool:
    return await left(world) == NOTHING


async def test_a_writer_that_says_nothing_is_stopped_as_well(world: StoryWorld) -> None:
    world.lease = timedelta(seconds=0.3)
    person = world.person()
    story_id = await requested(person)
    silent = ScriptedWriter()
    writing = asyncio.create_task(world.writing(silent).write(story_id))
    await silent.begun.wait()
    await world.erasing().erase(person.id)
    async with asyncio.timeout(10):
        await writing
    assert await left(world) == NOTHING


@pytest.mark.parametrize("ending", ["completed", "failed"])
async def test_a_story_that_ends_while_its_owner_is_being_erased_is_not_announced(
    world: StoryWorld, ending: str
) -> None:
    """Between the commit of the tombstone and the deletion, the story's row still exists."""
    person = world.person()
    story_id = await requested(person)
    writer = ScriptedWriter(Title("T"), Words("all of it"))
    writing = asyncio.create_task(world.writing(writer, story_attempts=1).write(story_id))
    await writer.begun.wait()
    async with world.db.transaction() as tx:
        await erasure.erase(tx, person.id)
    writer.put(End() if ending == "completed" else ZeroDivisionError())
    await writing
    async with world.db.transaction() as tx:
        types = list(await tx.scalars(select(outbox.table.c.type)))
    assert types == ["storymesh.events.v1.StoryRequested"]
    await world.erasing().erase(person.id)
    assert await left(world) == NOTHING


async def test_an_announcement_that_is_just_being_made_goes_with_its_story(world: StoryWorld) -> None:
    """The deletion waits for the sweeper's transaction and deletes the event that it has added."""
    person = world.person()
    await requested(person)
    async with world.db.transaction() as tx:
        await tx.execute(update(stories).values(dispatched_at=stories.c.dispatched_at - timedelta(hours=1)))
    async with world.db.transaction() as sweep:
        (story_id,) = await store.attempts.lock_undispatched(sweep, timedelta(minutes=2), 10)
        erasing = asyncio.create_task(world.erasing().erase(person.id))
        await until(lambda: _waits_for_a_row(world))
        await outbox.add(sweep, auth_events_pb2.UserDeleted(), key=story_id)
    await erasing
    assert await left(world) == NOTHING
    assert await world.sweeper().sweep() == 0


async def _waits_for_a_row(world: StoryWorld) -> bool:
    async with world.db.transaction() as tx:
        return bool(await tx.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype <> 'advisory'")))


async def test_nothing_that_a_late_worker_appends_brings_the_words_back(world: StoryWorld) -> None:
    progress, story_id = Progress(world.redis), uuid4()
    await progress.append(story_id, Position(3, 0), ProgressKind.BEGIN)
    await progress.append(story_id, Position(3, 1), ProgressKind.CHUNK, SECRET)
    for _ in range(2):
        await progress.erase([story_id, uuid4()])
        for kind in ProgressKind:
            with pytest.raises(Overtaken):
                await progress.append(story_id, Position(3, 2), kind, SECRET)
    assert SECRET not in await words_in_redis(world)
    assert await world.redis.ttl(f"progress:{story_id}") > 0


async def test_no_request_that_races_the_erasure_leaves_a_story(world: StoryWorld) -> None:
    person = world.person()
    accepted = 0
    answers = set()

    async def keep_asking() -> None:
        nonlocal accepted
        while True:
            try:
                await requested(person, preferences=["foxes"])
            except AioRpcError as error:
                answers.add((error.code(), reason_of(error)))
                return
            accepted += 1

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(keep_asking())
        await until(lambda: accepted >= 20)
        group.create_task(world.erasing().erase(person.id))
    assert answers == {(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED")}
    assert await left(world) == NOTHING


async def test_an_erasure_that_was_broken_off_is_finished_by_its_repetition(world: StoryWorld) -> None:
    erasing = Erasing(world.db, Progress(world.redis), system_clock, batch=2)
    person = world.person()
    made = [await requested(person, theme=SECRET) for _ in range(5)]
    for story_id in made:
        await Progress(world.redis).append(story_id, Position(1, 0), ProgressKind.CHUNK, SECRET)
    async with world.db.transaction() as tx:
        await tx.execute(select(stories.c.id).where(stories.c.id == made[3]).with_for_update())
        broken_off = asyncio.create_task(erasing.erase(person.id))
        await until(lambda: _waits_for_a_row(world))
        broken_off.cancel()
        await asyncio.wait([broken_off])
    assert (await left(world))["stories"] == 3
    await asyncio.gather(*(erasing.erase(person.id) for _ in range(3)))
    assert await left(world) == NOTHING
    assert SECRET not in await words_in_redis(world)


async def test_while_redis_is_away_the_stories_stay_where_their_words_can_be_found_by(world: StoryWorld) -> None:
    person = world.person()
    story_id = await requested(person)
    await Progress(world.redis).append(story_id, Position(1, 0), ProgressKind.CHUNK, SECRET)
    async with kit_redis.connect("redis://127.0.0.1:1/0") as away:
        with pytest.raises(redis.exceptions.ConnectionError):
            await Erasing(world.db, Progress(away), system_clock).erase(person.id)
    await world.erasing().erase(person.id)
    assert SECRET not in await words_in_redis(world)
    assert await left(world) == NOTHING


async def test_only_a_story_that_may_have_words_in_redis_leaves_a_mark_there(world: StoryWorld) -> None:
    """The END that replaces a stream takes 4 kB for a day, and a person may have had thousands of stories."""
    person = world.person()
    old, fresh, unfinished = [await requested(person) for _ in range(3)]
    async with world.db.transaction() as tx:
        for story_id, age in ((old, timedelta(days=3)), (fresh, timedelta(hours=20))):
            completed = update(stories).where(stories.c.id == story_id)
            await tx.execute(completed.values(state=State.COMPLETED, completed_at=func.now() - age))
    await world.erasing().erase(person.id)
    marked = [await world.redis.exists(f"progress:{story_id}") for story_id in (old, fresh, unfinished)]
    assert marked == [0, 1, 1]
    assert await left(world) == NOTHING


async def test_who_has_no_account_any_more_gets_no_story(world: StoryWorld) -> None:
    directory = Directory()
    here = directory.add()
    async with (
        serving(directory) as address,
        channels.connect(address, "auth", service_tokens("story")) as channel,
    ):
        accounts = AccountDirectory(channel)
        assert await accounts.preferences_of(here) == ()
        with pytest.raises(SessionRevoked):
            await accounts.preferences_of(uuid4())
