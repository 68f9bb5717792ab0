"""A person's tokens, with the rate limiter over a real Redis: reserved by the worker before it writes, settled after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from kit.data import redis as kit_redis
from kit.events.handlers import Later
from local.harness import Servers
from services.ratelimit.model.matching import DescriptorEntry
from services.ratelimit.model.quotas import Period, Quota
from services.ratelimit.model.rules import DomainRules, OnNoMatch, OnRedisDown, Rule, RuleSet
from services.story import store
from services.story.adapters.writers import Refusal, Title, Usage, Words, WriterRefused, WriterUnavailable
from services.story.model import State, Story
from services.story.operations.spending import tokens_expected
from services.story.peers import StoryTokens
from tests.ratelimit.limiter import calling, limiter
from tests.story.conftest import StoryWorld
from tests.story.pen import queued
from tests.story.scripted import ScriptedWriter

SHORT = 1600
"""What is reserved for a short story."""

A_DAY = 4000
RULE = Rule(
    "tokens",
    (DescriptorEntry("spend", "story-tokens"), DescriptorEntry("user")),
    Quota(A_DAY, Period.DAY),
    OnRedisDown.OPEN,
)
RULES = RuleSet((DomainRules("storymesh", OnNoMatch.DENY, (RULE,)),))


class Wallet:
    """A person's quota at a limiter."""

    def __init__(self, world: StoryWorld, redis: Redis, tokens: StoryTokens) -> None:
        self.owner_id = uuid4()
        self.tokens = tokens
        self._world = world
        self._redis = redis

    async def used(self) -> int:
        state: Any = await self._redis.get(RULE.bucket((("spend", "story-tokens"), ("user", str(self.owner_id)))))
        return int(bytes(state).partition(b":")[2]) if state else 0

    async def story(self) -> UUID:
        return await queued(self._world.db, self.owner_id)

    async def write(self, story_id: UUID, writer: ScriptedWriter) -> Story:
        await self._world.writing(writer, tokens=self.tokens).write(story_id)
        return await self.found(story_id)

    async def found(self, story_id: UUID) -> Story:
        async with self._world.db.transaction() as tx:
            story = await store.stories.find(tx, story_id)
        assert story
        return story


@pytest.fixture
async def wallet(world: StoryWorld, redis: Redis, servers: Servers) -> AsyncIterator[Wallet]:
    async with (
        kit_redis.connect(servers.service_redis_url("ratelimit")) as client,
        limiter(client, lambda: RULES) as address,
        calling(address) as channel,
    ):
        yield Wallet(world, redis, StoryTokens(channel))


def telling(*usage: Usage) -> ScriptedWriter:
    return ScriptedWriter(Title("Rain"), Words("It rained."), *usage, ScriptedWriter.End())


@pytest.mark.parametrize(("usage", "used"), [((Usage(100, 200),), 300), ((Usage(3000, 900),), 3900), ((), SHORT)])
async def test_a_finished_story_costs_what_its_writer_has_counted_or_else_what_was_reserved(
    wallet: Wallet, usage: tuple[Usage, ...], used: int
) -> None:
    story = await wallet.write(await wallet.story(), telling(*usage))
    assert story.state is State.COMPLETED
    assert tokens_expected(story) == SHORT
    assert await wallet.used() == used


async def test_stories_that_are_written_at_a_time_cannot_spend_the_same_tokens(
    wallet: Wallet, world: StoryWorld
) -> None:
    """Two of 1600 are reserved; there is no room for a third, which fails before its writer is asked."""
    writers = [ScriptedWriter() for _ in range(3)]
    stories = [await wallet.story() for _ in range(3)]
    running = [asyncio.create_task(wallet.write(*each)) for each in zip(stories, writers, strict=True)]
    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    (refused,) = [task.result() for task in done]
    assert (refused.state, refused.failure_reason) == (State.FAILED, "TOKEN_QUOTA_EXCEEDED")
    assert refused.text == ""
    for writer in writers:
        writer.put(Title("Rain"), Words("It rained."), Usage(10, 10), ScriptedWriter.End())
    await asyncio.wait(running)
    assert sorted(task.result().state for task in running) == [State.COMPLETED, State.COMPLETED, State.FAILED]
    assert await wallet.used() == 40


async def test_a_story_that_is_refused_gives_its_tokens_back(wallet: Wallet) -> None:
    refusal = WriterRefused(Refusal.CONTENT_REFUSED, "no")
    story = await wallet.write(await wallet.story(), ScriptedWriter(Title("Rain"), Words("It"), refusal))
    assert story.state is State.FAILED
    assert await wallet.used() == 0


async def test_an_attempt_that_fails_gives_its_tokens_back_and_the_next_one_reserves_anew(wallet: Wallet) -> None:
    story_id = await wallet.story()
    with pytest.raises(Later):
        await wallet.write(story_id, ScriptedWriter(WriterUnavailable("busy")))
    assert await wallet.used() == 0
    assert (await wallet.write(story_id, telling(Usage(1, 2)))).attempt == 2
    assert await wallet.used() == 3


async def test_a_cancelled_story_gives_its_tokens_back(wallet: Wallet, world: StoryWorld) -> None:
    story_id, writer = await wallet.story(), ScriptedWriter()
    running = asyncio.create_task(wallet.write(story_id, writer))
    await writer.begun.wait()
    assert await wallet.used() == SHORT
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert await wallet.used() == 0
    assert (await wallet.found(story_id)).state is State.QUEUED


async def test_the_tokens_of_a_worker_that_died_come_back_with_the_next_attempt(
    wallet: Wallet, world: StoryWorld
) -> None:
    story_id = await wallet.story()
    async with world.db.transaction() as tx:
        lost = await store.attempts.begin(
            tx, story_id, writer="w", model="", lease=-world.lease, now=world.resources.clock()
        )
    assert lost
    await wallet.tokens.reserve(wallet.owner_id, f"story:{story_id}:1", SHORT, world.lease * 1000)
    assert await wallet.used() == SHORT
    assert (await wallet.write(story_id, telling(Usage(1, 2)))).attempt == 2
    assert await wallet.used() == 3


async def test_without_the_limiter_stories_are_written(world: StoryWorld, redis: Redis) -> None:
    async with calling("127.0.0.1:9") as channel:
        wallet = Wallet(world, redis, StoryTokens(channel))
        assert (await wallet.write(await wallet.story(), telling(Usage(1, 2)))).state is State.COMPLETED
