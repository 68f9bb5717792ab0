"""Requests that meet are inserted by one statement, and each keeps its own quotas, locks and errors."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, literal_column, select

from kit.data.database import DatabaseError
from kit.errors import SessionRevoked
from kit.events import erasure, outbox
from kit.identity.caller import Caller, Role
from services.story import store
from services.story.errors import BacklogFull, RequestIdReused, StoryQuotaExceeded
from services.story.model import Length, Story, Wish
from services.story.tables import admissions, stories
from tests.story.conftest import ROOMY, StoryWorld
from tests.waiting import until

WISH = Wish(preferences=("rain",), theme="", prompt="", length=Length.SHORT, language="en")


def caller(user_id: UUID | None = None) -> Caller:
    return Caller(user_id or uuid4(), uuid4(), Role.USER, "key")


async def ask(world: StoryWorld, *callers: Caller, request_id: str | None = None) -> list[Story | BaseException]:
    """Asks for a story for each of them, in one turn of the event loop."""
    asked = [world.ops.stories.request(each, WISH, request_id) for each in callers]
    return await asyncio.gather(*asked, return_exceptions=True)


def kinds(answers: list[Story | BaseException]) -> Counter[type]:
    return Counter(map(type, answers))


async def transactions(world: StoryWorld) -> int:
    """The number of transactions that inserted the stories that there are."""
    async with world.db.single() as tx:
        return (
            await tx.scalar(select(func.count(literal_column("stories.xmin::text").distinct())).select_from(stories))
            or 0
        )


async def test_requests_that_meet_are_one_transaction_and_each_story_is_as_it_was_asked_for(world: StoryWorld) -> None:
    wishes = [
        Wish(("the sea", 'a "quote"', "back\\slash, {brace}"), "Thema ä", "two\nlines", Length.LONG, "de"),
        Wish((), "", "", Length.MEDIUM, "en"),
        *(replace(WISH, theme=str(number)) for number in range(8)),
    ]
    callers = [caller() for _ in wishes]
    world.account_preferences = ("from the account",)
    asked = await asyncio.gather(
        *(world.ops.stories.request(each, wish, None) for each, wish in zip(callers, wishes, strict=True))
    )
    assert await transactions(world) == 1
    assert [story.queue_position for story in asked] == list(range(1, len(wishes) + 1))
    for owner, wish, story in zip(callers, wishes, asked, strict=True):
        assert story.wish == replace(wish, preferences=wish.preferences or ("from the account",))
        assert await world.ops.stories.get(owner, story.id) == story
    async with world.db.single() as tx:
        told = (await tx.execute(select(outbox.table.c.key, outbox.table.c.type))).all()
        admitted = (await tx.execute(select(admissions.c.owner_id, admissions.c.admitted_at))).all()
    assert {(key, kind.rpartition(".")[2]) for key, kind in told} == {
        (str(each.id), "StoryRequested") for each in asked
    }
    assert set(map(tuple, admitted)) == {(each.owner_id, each.created_at) for each in asked}


@pytest.mark.parametrize("quota", ["unfinished", "a_day"])
async def test_each_of_a_persons_requests_counts_those_beside_it(world: StoryWorld, quota: str) -> None:
    world.ops.admission.limits = replace(ROOMY, **{quota: 3})
    greedy, others = caller(), [caller() for _ in range(4)]
    assert isinstance((await ask(world, greedy))[0], Story)
    answers = await ask(world, greedy, others[0], greedy, others[1], greedy, greedy, *others[2:])
    assert kinds(answers) == {Story: 6, StoryQuotaExceeded: 2}
    positions = sorted(each.queue_position for each in answers if isinstance(each, Story))
    assert len(set(positions)) == 6


async def test_a_persons_first_requests_count_each_other_too(world: StoryWorld) -> None:
    world.ops.admission.limits = replace(ROOMY, a_day=1)
    person = caller()
    assert kinds(await ask(world, person, caller(), person)) == {Story: 2, StoryQuotaExceeded: 1}


async def test_the_backlog_holds_for_requests_that_meet(world: StoryWorld) -> None:
    world.ops.admission.limits = replace(ROOMY, backlog=5)
    assert kinds(await ask(world, *(caller() for _ in range(8)))) == {Story: 5, BacklogFull: 3}


async def test_a_person_whose_lock_is_held_delays_nobody_else(world: StoryWorld) -> None:
    held, others = caller(), [caller() for _ in range(3)]
    crowd = [held, *(caller() for _ in range(3))]
    async with world.db.transaction() as tx:
        await store.admissions.lock(tx, held.user_id)
        alone = asyncio.create_task(ask(world, held))
        answers = await asyncio.wait_for(ask(world, *others), 10)
        beside = asyncio.create_task(ask(world, *crowd))
        await until(lambda: _stories(world, 6))
        assert not alone.done()
        assert not beside.done()
    assert kinds(answers) == {Story: 3}
    assert kinds(await alone) == {Story: 1}
    assert kinds(await beside) == {Story: 4}


async def _stories(world: StoryWorld, number: int) -> bool:
    async with world.db.single() as tx:
        return await tx.scalar(select(func.count()).select_from(stories)) == number


async def test_an_erased_person_is_refused_among_others(world: StoryWorld) -> None:
    gone = caller()
    async with world.db.transaction() as tx:
        await erasure.erase(tx, gone.user_id)
    answers = await ask(world, caller(), gone, caller())
    assert kinds(answers) == {Story: 2, SessionRevoked: 1}


async def test_repetitions_that_meet_are_one_story(world: StoryWorld) -> None:
    person = caller()
    answers = await ask(world, person, person, caller(), person, request_id="once")
    assert kinds(answers) == {Story: 4}
    assert len({each.id for each in answers if isinstance(each, Story)}) == 2
    other = await asyncio.gather(
        world.ops.stories.request(person, replace(WISH, theme="another"), "once"), return_exceptions=True
    )
    assert isinstance(other[0], RequestIdReused)


async def test_a_request_that_the_database_refuses_fails_alone(world: StoryWorld) -> None:
    asked = [world.ops.stories.request(caller(), replace(WISH, prompt=prompt), None) for prompt in ("a", "\0", "b")]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(each, Story) for each in answers] == [True, False, True]
    assert isinstance(answers[1], DatabaseError)


async def test_a_request_whose_caller_leaves_takes_no_other_along(world: StoryWorld) -> None:
    asked = [asyncio.create_task(world.ops.stories.request(caller(), WISH, None)) for _ in range(3)]
    await asyncio.sleep(0)
    asked[1].cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(each, Story) for each in answers] == [True, False, True]
