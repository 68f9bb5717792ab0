"""Fan-out: many watchers share one reader per story; each that joins, lags or resumes sees every word once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from kit.data import redis as kit_redis
from kit.errors import Unavailable
from kit.runtime.clock import system_clock
from local.harness import servers as running_servers
from services.story import store
from services.story.errors import StoryNotFound
from services.story.model import (
    Checkpoint,
    Chunk,
    Done,
    Heartbeat,
    Position,
    Reconnect,
    Reset,
    Snapshot,
    State,
    StateChange,
)
from services.story.operations.story_feeds import StoryFeed
from services.story.store.progress import Progress
from tests.story.conftest import StoryWorld
from tests.story.pen import LEASE, Pen, queued
from tests.story.replica import Replica, View, caller, replica
from tests.waiting import until

pytestmark = pytest.mark.slow


async def commands(redis: Redis, *names: str) -> int:
    stats = await redis.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in names)


async def test_hundreds_of_watchers_share_one_reader_that_ends_with_the_last(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    pen = Pen(world.db, world.redis, story_id)
    await pen.begin()
    async with replica(world) as one:
        await one.redis.config_resetstat()
        begun: list[View] = []

        async def watch() -> View:
            async with one.watching(owner, story_id) as view:
                await view.step()
                begun.append(view)
                await view.to_the_end()
            return view

        watchers = [asyncio.create_task(watch()) for _ in range(300)]
        await until(lambda: len(begun) == len(watchers))
        assert await until(one.readers) == 1
        for number in range(40):
            await pen.add(f"{number} ")
        assert await until(one.readers) == 1
        await pen.complete()
        for view in await asyncio.gather(*watchers):
            assert view.text == pen.text
        await until(one.idle)
        # One reader reads each entry once, and the end of the stream. The append script uses XREVRANGE, which does not count here.
        assert await commands(one.redis, "xread", "xrange") < 60


async def test_each_story_has_a_reader_of_its_own(world: StoryWorld) -> None:
    owner = uuid4()
    stories = [await queued(world.db, owner) for _ in range(10)]
    async with replica(world) as one:
        begun: list[View] = []

        async def watch(number: int) -> None:
            async with one.watching(owner, stories[number % len(stories)]) as view:
                await view.step()
                begun.append(view)
                await view.to_the_end()

        watchers = [asyncio.create_task(watch(number)) for number in range(50)]

        async def each_has_one() -> bool:
            return len(begun) == len(watchers) and await one.readers() == len(stories)

        await until(each_has_one)
        # Cancel all watchers of the first story; the readers of the other stories stay.
        for watcher in watchers[:: len(stories)]:
            watcher.cancel()

        async def one_less() -> bool:
            return await one.readers() == len(stories) - 1

        await until(one_less)
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        await until(one.idle)


async def test_whoever_joins_while_a_story_is_written_sees_every_word_once(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    pen = Pen(world.db, world.redis, story_id)
    await pen.begin()
    chance = random.Random(7)
    words = [f"w{number} " for number in range(700)]
    written = 0

    async def write() -> None:
        nonlocal written
        for word in words:
            await pen.add(word)
            written += 1
        await pen.complete()

    async def watch(one: Replica, from_word: int) -> View:
        await until(lambda: written >= from_word, 60)
        token = ""
        shown = ""
        while True:
            async with one.watching(owner, story_id, token) as view:
                await view.step()
                if token:
                    assert view.text == shown
                for _ in range(chance.randrange(1, 40)):
                    if isinstance(await view.step(), Done):
                        return view
                token, shown = view.token, view.text

    async with replica(world) as one, asyncio.TaskGroup() as group:
        watchers = [group.create_task(watch(one, chance.randrange(len(words)))) for _ in range(40)]
        group.create_task(write())
    for watcher in watchers:
        assert watcher.result().text == "".join(words)


async def test_a_client_that_comes_back_after_every_message_gets_every_chunk_exactly_once(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    pen = Pen(world.db, world.redis, story_id)
    words = [f"w{number} " for number in range(120)]

    async def write() -> None:
        await pen.begin()
        for word in words:
            await pen.add(word)
        await pen.complete()

    # Watch at two replicas by turns: one may have read less of the stream than the other has shown.
    async with replica(world) as one, replica(world) as other, asyncio.TaskGroup() as group:
        token, shown, chunks, turns = "", "", "", 0
        async with one.watching(owner, story_id) as first, other.watching(owner, story_id) as second:
            await first.step()
            await second.step()
            token = first.token
            group.create_task(write())
            while True:
                turns += 1
                async with (one, other)[turns % 2].watching(owner, story_id, token) as view:
                    assert isinstance(await view.step(), Snapshot)
                    assert view.text == shown
                    step = await view.step()
                    token, shown = view.token, view.text
                    if isinstance(step, Chunk):
                        chunks += step.text
                    if isinstance(step, Done):
                        break
    assert chunks == shown == "".join(words)


@pytest.mark.parametrize("place", [0, 3, 200, 599, 600])
async def test_a_token_from_long_ago_resumes_exactly_where_it_was_given(world: StoryWorld, place: int) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    pen = Pen(world.db, world.redis, story_id)
    await pen.begin()
    words = [f"w{number} " for number in range(600)]
    token = ""
    async with replica(world, entries_behind=5000) as one, one.watching(owner, story_id) as current:
        await current.step()
        for number, word in enumerate(words):
            if number == place:
                await current.until_text("".join(words[:number]))
                token = current.token
            await pen.add(word)
        await current.until_text(pen.text)
        async with one.watching(owner, story_id, token or current.token) as view:
            assert await view.step() == Snapshot("".join(words[:place]))
            await view.until_text(pen.text)
            assert "".join(view.chunks) == "".join(words[place:])
            await pen.add("the end")
            await view.until_text(pen.text)


async def test_a_watcher_that_falls_behind_gets_what_it_missed_as_one_chunk(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    pen = Pen(world.db, world.redis, story_id)
    await pen.begin()
    async with replica(world) as one, one.watching(owner, story_id) as slow, one.watching(owner, story_id) as quick:
        await quick.step()
        await slow.until(StateChange)
        await pen.add("first ")
        await slow.until_text("first ")
        for number in range(30):
            await pen.add(f"{number} ")
        await quick.until_text(pen.text)
        await slow.step()
        assert slow.chunks == ["first ", pen.text.removeprefix("first ")]


async def test_a_watcher_behind_what_memory_holds_reads_its_part_from_redis(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    pen = Pen(world.db, world.redis, story_id)
    await pen.begin()
    async with (
        replica(world, entries_behind=5000) as one,
        one.watching(owner, story_id) as slow,
        one.watching(owner, story_id) as quick,
    ):
        await quick.step()
        await slow.until(StateChange)
        await pen.add("first ")
        await slow.until_text("first ")
        for number in range(600):
            await pen.add(f"{number} ")
        await quick.until_text(pen.text)
        await pen.complete()
        assert isinstance(await slow.to_the_end(), Done)
        assert slow.text == pen.text == "".join(slow.chunks)


async def test_a_watcher_that_is_too_far_behind_is_told_to_come_back_and_loses_nothing(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    pen = Pen(world.db, world.redis, story_id)
    await pen.begin()
    async with replica(world, entries_behind=20) as one, one.watching(owner, story_id) as quick:
        await quick.step()
        async with one.watching(owner, story_id) as slow:
            await slow.until(StateChange)
            await pen.add("first ")
            await slow.until_text("first ")
            for number in range(21):
                await pen.add(f"{number} ")
                await quick.until_text(pen.text)
            assert isinstance(await slow.step(), Reconnect)
            assert slow.text == "first "
        async with one.watching(owner, story_id, slow.token) as back:
            assert await back.step() == Snapshot("first ")
            assert await back.step() == Chunk(pen.text.removeprefix("first "))
            await pen.complete()
            assert isinstance(await back.to_the_end(), Done)
        assert isinstance(await quick.to_the_end(), Done)


async def test_hundreds_of_words_at_once_send_nobody_away_who_reads(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    pen = Pen(world.db, world.redis, story_id)
    await pen.begin()
    async with replica(world, entries_behind=20) as one:
        async with one.watching(owner, story_id) as first:
            await first.step()
            token = first.token
        for number in range(400):
            await pen.add(f"{number} ")
        async with one.watching(owner, story_id, token) as view:
            await view.until_text(pen.text)
            await pen.complete()
            assert isinstance(await view.to_the_end(), Done)


async def test_a_token_that_is_ahead_of_the_reader_is_read_up_to_and_nothing_twice(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    pen = Pen(world.db, world.redis, story_id)
    story = await world.ops.stories.get(caller(owner), story_id)
    await pen.begin()
    for number in range(5):
        await pen.add(f"{number} ")
    # A feed that has read nothing yet, as at a replica that is behind another one.
    following = StoryFeed(world.db, Progress(world.redis), story)
    texts = await asyncio.gather(*[following.text_at(Position(1, offset)) for offset in (5, 3, 5)])
    assert texts == [pen.text, "0 1 2 ", pen.text]
    assert (following.text, following.count) == (pen.text, 6)


async def test_a_story_is_not_final_before_all_of_it_is_known(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    pen = Pen(world.db, world.redis, story_id)
    following = StoryFeed(world.db, Progress(world.redis), await world.ops.stories.get(caller(owner), story_id))
    await pen.begin()
    await pen.add("words that no reader has heard of")
    await pen.commit()
    await following.refresh()
    assert (following.story.state, following.text) == (State.COMPLETED, pen.text)


async def test_an_end_is_told_by_its_entry_without_a_look_of_its_own(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    pen = Pen(world.db, world.redis, story_id)
    async with replica(world, looks=False) as one, one.watching(owner, story_id) as view:
        await view.step()
        await pen.begin()
        await view.until(StateChange)
        await pen.add("words")
        await pen.complete()
        assert isinstance(await view.to_the_end(), Done)


async def cancelled(world: StoryWorld, pen: Pen) -> None:
    async with world.db.transaction() as tx:
        assert await store.stories.cancel(tx, pen.story_id, now=system_clock())


async def completed(_world: StoryWorld, pen: Pen) -> None:
    await pen.take()
    await pen.commit()


@pytest.mark.parametrize(("change", "state"), [(cancelled, State.CANCELLED), (completed, State.COMPLETED)])
async def test_an_end_that_no_entry_tells_is_seen(
    world: StoryWorld, change: Callable[[StoryWorld, Pen], Awaitable[None]], state: State
) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    async with replica(world) as one, one.watching(owner, story_id) as view:
        assert [await view.step(), await view.step()] == [Snapshot(""), StateChange(State.QUEUED)]
        await change(world, Pen(world.db, world.redis, story_id))
        done = await view.step()
        assert isinstance(done, Done)
        assert done.story.state is state


async def test_a_beginning_that_no_entry_tells_is_seen_once(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    pen = Pen(world.db, world.redis, story_id)
    async with replica(world) as one, one.watching(owner, story_id) as view:
        await view.step()
        await pen.take()
        await view.step()
        assert await view.step() == StateChange(State.RUNNING)
        await pen.open()
        await pen.add("words")
        await view.until_text("words")
        assert view.seen.count(StateChange(State.RUNNING)) == 1


async def test_the_watches_of_a_deleted_story_end(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    async with replica(world) as one, one.watching(owner, story_id) as view:
        await view.step()
        async with world.db.transaction() as tx:
            await store.stories.hide(tx, story_id)
        with pytest.raises(StoryNotFound):
            await view.to_the_end()


async def test_an_attempt_that_goes_on_from_a_checkpoint_shows_the_whole_text(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    first, second = Pen(world.db, world.redis, story_id), Pen(world.db, world.redis, story_id)
    await first.begin()
    async with replica(world) as one, one.watching(owner, story_id) as view:
        await first.add("one ")
        await view.until_text("one ")
        await first.requeue()
        await second.begin()
        await second.snapshot("one ")
        async with one.watching(owner, story_id) as late:
            await second.add("two")
            await second.complete()
            for each in (view, late):
                done = await each.to_the_end()
                assert isinstance(done, Done)
                assert each.text == done.story.text == "one two"
        assert Reset(2) in view.seen


async def test_silence_is_filled_with_heartbeats_that_resume_where_they_were_sent(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    pen = Pen(world.db, world.redis, story_id)
    await pen.begin()
    await pen.add("one ")
    async with replica(world, heartbeat_seconds=0.05) as one:
        async with one.watching(owner, story_id) as view:
            await view.until(Heartbeat)
        await pen.add("two ")
        async with one.watching(owner, story_id, view.token) as back:
            assert [await back.step(), await back.step()] == [Snapshot("one "), Chunk("two ")]


async def test_whoever_watches_a_leaving_replica_or_comes_to_it_is_sent_elsewhere(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    async with replica(world) as one:
        begun: list[View] = []

        async def watch() -> bool:
            async with one.watching(owner, story_id) as view:
                await view.step()
                begun.append(view)
                return isinstance(await view.to_the_end(), Reconnect)

        watchers = [asyncio.create_task(watch()) for _ in range(100)]
        await until(lambda: len(begun) == len(watchers))
        one.leave()
        assert all(await asyncio.gather(*watchers))
        assert await watch()
        await until(one.idle)


async def test_without_its_history_a_running_story_is_shown_as_it_was_stored_last(world: StoryWorld) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    pen = Pen(world.db, world.redis, story_id)
    await pen.begin()
    await pen.add("one ")
    await pen.add("two ")
    async with replica(world) as one:
        async with one.watching(owner, story_id) as view:
            await view.until_text("one two ")
        async with world.db.transaction() as tx:
            await store.attempts.renew_lease(tx, story_id, 1, LEASE, checkpoint=Checkpoint("T", "one "))
        await world.redis.flushall()
        async with one.watching(owner, story_id, view.token) as back, one.watching(owner, story_id) as new:
            assert [await back.step(), await new.step()] == [Snapshot("one ")] * 2
            await pen.add("three")
            await pen.complete()
            for each in (back, new):
                assert isinstance(await each.to_the_end(), Done)
                assert each.text == "one two three"


@pytest.mark.parametrize("data", ["kept", "lost"])
async def test_without_redis_watchers_are_sent_back_and_then_miss_nothing(
    world: StoryWorld, tmp_path: Path, data: str
) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    async with (
        running_servers(tmp_path, postgres=False, mail=False, durable=True) as own,
        kit_redis.connect(own.redis_url) as redis,
        replica(world, redis) as one,
    ):
        pen = Pen(world.db, redis, story_id)
        await pen.begin()
        await pen.add("one ")
        begun: list[View] = []

        async def watch() -> View:
            async with one.watching(owner, story_id) as view:
                await view.until_text("one ")
                begun.append(view)
                await view.to_the_end()
            return view

        watchers = [asyncio.create_task(watch()) for _ in range(50)]
        await until(lambda: len(begun) == len(watchers))
        await own.stop("redis")
        views = await asyncio.gather(*watchers)
        assert {type(view.seen[-1]) for view in views} == {Reconnect}
        await own.start("redis")
        if data == "lost":
            await redis.flushall()
        async with one.watching(owner, story_id, views[0].token) as back:
            assert await back.step() == Snapshot("one " if data == "kept" else "")
            await pen.add("two")
            await pen.complete()
            assert isinstance(await back.to_the_end(), Done)
        assert back.text == "one two"


@pytest.mark.parametrize("data", ["kept", "lost"])
async def test_a_restart_of_redis_in_mid_story_costs_watchers_no_word(
    world: StoryWorld, tmp_path: Path, data: str
) -> None:
    owner = uuid4()
    story_id = await queued(world.db, owner)
    async with (
        running_servers(tmp_path, postgres=False, mail=False, durable=True) as own,
        kit_redis.connect(own.redis_url) as redis,
        replica(world, redis) as one,
    ):
        pen = Pen(world.db, redis, story_id)
        await pen.begin()
        begun = 0

        async def watch() -> View:
            nonlocal begun
            token = ""
            while True:
                try:
                    async with one.watching(owner, story_id, token) as view:
                        await view.step()
                        begun += 1
                        if isinstance(await view.to_the_end(), Done):
                            return view
                        token = view.token
                except (RedisError, Unavailable):
                    await own.healthy("redis")

        watchers = [asyncio.create_task(watch()) for _ in range(20)]
        await until(lambda: begun >= len(watchers))
        for number in range(20):
            await pen.add(f"{number} ")
        pid = own.pid("redis")
        own.kill("redis")
        await own.healthy("redis", not_pid=pid)
        if data == "lost":
            await redis.flushall()
        for number in range(20, 40):
            await pen.add(f"{number} ")
        await pen.complete()
        for view in await asyncio.gather(*watchers):
            assert view.text == pen.text
