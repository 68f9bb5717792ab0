"""The one statement that requests a story waits for what others write about the person, and then counts it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import psycopg
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import func, insert, select, text
from storymesh.story.v1 import story_pb2

from kit.data.database import Database
from kit.events import erasure, outbox
from kit.runtime.clock import system_clock
from services.story import store
from services.story.tables import admissions, stories
from tests.statuses import raises_status, reason_of
from tests.story.calls import create
from tests.story.conftest import ROOMY, StoryWorld
from tests.waiting import until

WAITS_FOR_A_LOCK = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")


async def waiting(db: Database) -> bool:
    async with db.single() as tx:
        return bool(await tx.scalar(WAITS_FOR_A_LOCK))


async def rows(world: StoryWorld) -> list[int]:
    """The numbers of stories, events and admissions."""
    async with world.db.single() as tx:
        tables = (stories, outbox.table, admissions)
        return [await tx.scalar(select(func.count()).select_from(table)) or 0 for table in tables]


async def test_a_request_that_had_to_wait_counts_what_was_admitted_meanwhile(world: StoryWorld) -> None:
    """A replica of the version before holds the same lock, and admits in a statement of its own."""
    world.ops.admission.limits = replace(ROOMY, a_day=1)
    person = world.person()
    async with world.db.transaction() as tx:
        await store.admissions.lock(tx, person.id)
        asked = asyncio.ensure_future(create(person))
        await until(lambda: waiting(world.db))
        await tx.execute(insert(admissions).values(owner_id=person.id, admitted_at=system_clock()))
    with raises_status(StatusCode.RESOURCE_EXHAUSTED, "STORY_QUOTA_EXCEEDED"):
        await asked
    assert await rows(world) == [0, 0, 1]


async def test_a_request_that_had_to_wait_for_the_persons_erasure_is_refused(world: StoryWorld) -> None:
    person = world.person()
    async with world.db.transaction() as tx:
        await erasure.erase(tx, person.id)
        asked = asyncio.ensure_future(create(person))
        await until(lambda: waiting(world.db))
    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await asked
    assert await rows(world) == [0, 0, 0]


async def test_simultaneous_repetitions_of_one_request_need_one_place_of_each_quota(world: StoryWorld) -> None:
    world.ops.admission.limits = replace(ROOMY, unfinished=1, a_day=1)
    person = world.person()
    answers = await asyncio.gather(*(create(person, request_id="once") for _ in range(16)))
    assert len({story.id for story in answers}) == 1
    assert await rows(world) == [1, 1, 1]


async def test_a_repetition_with_other_fields_is_refused_as_such_also_when_it_was_simultaneous(
    world: StoryWorld,
) -> None:
    world.ops.admission.limits = replace(ROOMY, unfinished=1)
    person = world.person()
    asked = [create(person, theme=str(number), request_id="once") for number in range(8)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, AioRpcError)]
    assert {reason_of(each) for each in refused} == {"REQUEST_ID_REUSED"}
    assert len(refused) == 7
    assert await rows(world) == [1, 1, 1]


async def test_the_place_in_the_queue_counts_all_that_were_queued_before(world: StoryWorld) -> None:
    made: list[story_pb2.Story] = [await create(world.person()) for _ in range(3)]
    assert [story.queue_position for story in made] == [1, 2, 3]


async def test_a_request_wakes_a_relay_that_sleeps(world: StoryWorld) -> None:
    url = world.resources.database_url.replace("+psycopg", "")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as listener:
        await listener.execute("SELECT pg_advisory_lock(%s, %s)", outbox.ASLEEP)
        await listener.execute("LISTEN outbox")
        await create(world.person())
        notified = [each.channel async for each in listener.notifies(timeout=10, stop_after=1)]
    assert notified == ["outbox"]
