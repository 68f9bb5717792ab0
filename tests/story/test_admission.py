"""Admission of stories: quotas, the backlog, and the answers to refused requests."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import func, select, update
from storymesh.story.v1 import story_pb2

from kit.events import outbox
from kit.runtime.clock import system_clock
from services.story.model import State, wait_for_places
from services.story.operations.pruning import Pruning
from services.story.tables import admissions, stories
from tests.statuses import raises_status, reason_of
from tests.story.calls import cancel, create, delete, found, retry, retry_seconds
from tests.story.conftest import ROOMY, Person, StoryWorld

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def refusal(person: Person, **fields: object) -> tuple[str, float]:
    """Return the reason and the retry delay in seconds of the refused call."""
    with pytest.raises(AioRpcError) as raised:
        await create(person, **fields)
    assert raised.value.code() is StatusCode.RESOURCE_EXHAUSTED
    return reason_of(raised.value), retry_seconds(raised.value)


async def finish(world: StoryWorld, *, at: datetime | None = None) -> None:
    async with world.db.transaction() as tx:
        await tx.execute(update(stories).values(state=State.COMPLETED, completed_at=at or func.now()))


async def count(world: StoryWorld, table: object) -> int:
    async with world.db.transaction() as tx:
        return await tx.scalar(select(func.count()).select_from(table)) or 0  # type: ignore[arg-type]


async def test_of_32_simultaneous_requests_as_many_are_admitted_as_the_quota_has_room_for(world: StoryWorld) -> None:
    world.ops.admission.limits = replace(ROOMY, unfinished=5)
    person = world.person()
    answers = await asyncio.gather(*(create(person) for _ in range(32)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, AioRpcError)]
    assert len(answers) - len(refused) == 5
    assert {reason_of(error) for error in refused} == {"STORY_QUOTA_EXCEEDED"}
    assert all(retry_seconds(error) >= 1 for error in refused)
    assert [await count(world, table) for table in (stories, outbox.table, admissions)] == [5, 5, 5]


async def test_of_32_simultaneous_requests_no_more_are_admitted_than_a_day_has(world: StoryWorld) -> None:
    world.ops.admission.limits = replace(ROOMY, a_day=7)
    person = world.person()
    answers = await asyncio.gather(*(create(person) for _ in range(32)), return_exceptions=True)
    assert [isinstance(answer, story_pb2.Story) for answer in answers].count(True) == 7


async def test_a_finished_story_makes_room_for_another(world: StoryWorld) -> None:
    world.ops.admission.limits = replace(ROOMY, unfinished=2)
    person = world.person()
    first, _ = [await create(person) for _ in range(2)]
    assert (await refusal(person))[0] == "STORY_QUOTA_EXCEEDED"
    await cancel(person, first.id)
    await create(person)
    assert (await refusal(person))[0] == "STORY_QUOTA_EXCEEDED"


async def test_one_persons_quota_is_nobody_elses(world: StoryWorld) -> None:
    world.ops.admission.limits = replace(ROOMY, unfinished=1)
    await create(world.person())
    await create(world.person())


async def test_the_day_counts_deleted_and_repeated_stories_and_says_when_it_ends(world: StoryWorld) -> None:
    world.ops.admission.limits = replace(ROOMY, a_day=3)
    person = world.person()
    await delete(person, (await create(person)).id)
    again = await create(person)
    await cancel(person, again.id)
    await retry(person, again.id)
    reason, seconds = await refusal(person)
    assert reason == "STORY_QUOTA_EXCEEDED"
    assert 86_000 < seconds <= 86_400
    async with world.db.transaction() as tx:
        first = select(func.min(admissions.c.position)).scalar_subquery()
        earlier = update(admissions).where(admissions.c.position == first)
        await tx.execute(earlier.values(admitted_at=admissions.c.admitted_at - timedelta(hours=23)))
    _, seconds = await refusal(person)
    assert 3_200 < seconds <= 3_600
    async with world.db.transaction() as tx:
        await tx.execute(update(admissions).values(admitted_at=admissions.c.admitted_at - timedelta(hours=2)))
    await create(person)
    assert (await refusal(person))[0] == "STORY_QUOTA_EXCEEDED"


async def test_a_repeated_request_is_answered_also_when_nothing_more_is_admitted(world: StoryWorld) -> None:
    world.ops.admission.limits = replace(ROOMY, unfinished=1)
    person = world.person()
    answers = await asyncio.gather(*(create(person, request_id="once") for _ in range(32)))
    assert len({story.id for story in answers}) == 1
    assert (await create(person, request_id="once")).id == answers[0].id
    assert (await refusal(person, request_id="other"))[0] == "STORY_QUOTA_EXCEEDED"
    assert await count(world, admissions) == 1


async def test_a_full_backlog_refuses_everybody_until_stories_are_begun(world: StoryWorld) -> None:
    world.ops.admission.limits = replace(ROOMY, backlog=2)
    first, _ = [await create(world.person()) for _ in range(2)]
    reason, seconds = await refusal(world.person())
    assert reason == "BACKLOG_FULL"
    assert seconds >= 1
    async with world.db.transaction() as tx:
        await tx.execute(update(stories).where(stories.c.id == first.id).values(state=State.RUNNING))
    await create(world.person())


async def test_the_wait_follows_the_pace_at_which_stories_are_completed(world: StoryWorld) -> None:
    world.ops.admission.limits = replace(ROOMY, unfinished=1)
    for _ in range(4):
        await create(world.person())
    await finish(world, at=system_clock() - timedelta(seconds=80))
    for _ in range(2):
        await create(world.person())
    person = world.person()
    await create(person)
    _, seconds = await refusal(person)
    assert 60 <= seconds <= 75, "three places, of which each took 20 s lately"


@pytest.mark.parametrize(
    ("places", "ages", "seconds"),
    [
        (1, [], 15),
        (1000, [], 300),
        (3, [10, 20, 30, 40], 30),
        (1, [0.1], 1),
        (100, [3600], 300),
    ],
)
def test_the_wait_is_bounded(places: int, ages: list[float], seconds: float) -> None:
    completed = [NOW - timedelta(seconds=age) for age in ages]
    assert wait_for_places(places, completed, NOW) == timedelta(seconds=seconds)


async def test_a_retry_is_admitted_like_a_request(world: StoryWorld) -> None:
    world.ops.admission.limits = replace(ROOMY, unfinished=1)
    person = world.person()
    story = await create(person)
    await cancel(person, story.id)
    await create(person)
    with raises_status(StatusCode.RESOURCE_EXHAUSTED, "STORY_QUOTA_EXCEEDED"):
        await retry(person, story.id)
    assert (await found(world, story.id)).state is State.CANCELLED


async def test_admissions_go_with_their_person_and_when_they_count_no_more(world: StoryWorld) -> None:
    gone, old, fresh = (world.person() for _ in range(3))
    for person in (gone, old, fresh):
        await create(person)
    async with world.db.transaction() as tx:
        aged = update(admissions).where(admissions.c.owner_id == old.id)
        await tx.execute(aged.values(admitted_at=admissions.c.admitted_at - timedelta(days=3)))
    await world.erasing().erase(gone.id)
    await Pruning(world.db, world.erasing(), system_clock).prune()
    async with world.db.transaction() as tx:
        assert list(await tx.scalars(select(admissions.c.owner_id))) == [fresh.id]
