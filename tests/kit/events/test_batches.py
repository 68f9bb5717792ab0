"""Events that are handled together: as safe as one by one, whoever dies or fails in the middle."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis
from sqlalchemy import insert
from sqlalchemy.exc import OperationalError
from storymesh.events.v1.story_events_pb2 import StoryCompleted

from kit.data.database import Database
from kit.events.dead_letter_store import record
from kit.events.envelope import Event
from kit.events.handlers import BatchHandler, Later, Permanent
from kit.events.inbox import Inbox
from kit.events.inbox_store import mark_all_processed, mark_processed
from kit.events.inbox_stream import GROUP
from local.harness import Servers
from tests.kit.conftest import effects
from tests.kit.events.test_inbox import FOREVER, SERVICE, STREAM, TYPE, World, event, running, send
from tests.waiting import until


class Together:
    """A handler of batches that notes which events came together."""

    def __init__(self, db: Database, poison: Sequence[Event] = (), error: Exception | None = None) -> None:
        self._db = db
        self._poison = {each.id for each in poison}
        self._error = error or RuntimeError()
        self.batches: list[list[UUID]] = []
        self.begun = asyncio.Event()
        self.opened = asyncio.Event()
        self.opened.set()

    def handler(self) -> BatchHandler:
        return BatchHandler(self.handle)

    async def handle(self, events: Sequence[Event]) -> None:
        self.batches.append([each.id for each in events])
        async with self._db.transaction() as tx:
            unseen = await mark_all_processed(tx, events)
            for each in events:
                if each.id in unseen:
                    await tx.execute(insert(effects).values(event_id=each.id, worker="w"))
                if each.id in self._poison:
                    raise self._error
            self.begun.set()
            await self.opened.wait()


@pytest.fixture
def world(db: Database, redis: Redis) -> World:
    return World(db, redis)


def ids(events: Sequence[Event]) -> list[UUID]:
    return [each.id for each in events]


async def test_what_waits_is_handled_together_in_its_order_and_acknowledged(world: World) -> None:
    events, together = [event() for _ in range(40)], Together(world.db)
    await send(world.redis, *events)
    async with running(world.inbox(together.handler(), concurrency=2)):
        await until(world.idle)
    assert together.batches == [ids(events)]
    assert await world.effects() == ids(events)


async def test_what_comes_during_a_batch_is_the_next_one(world: World) -> None:
    first, later, together = event(), [event() for _ in range(9)], Together(world.db)
    together.opened.clear()
    async with running(world.inbox(together.handler())):
        await send(world.redis, first)
        await together.begun.wait()
        await send(world.redis, *later)
        await until(lambda: _pending(world, 10))
        together.opened.set()
        await until(world.idle)
    assert together.batches[0] == [first.id]
    assert [each for batch in together.batches[1:] for each in batch] == ids(later)
    assert len(together.batches) < 4


async def test_no_batch_has_more_than_a_hundred(world: World) -> None:
    events, together = [event() for _ in range(230)], Together(world.db)
    await send(world.redis, *events)
    async with running(world.inbox(together.handler())):
        await until(world.idle)
    assert max(map(len, together.batches)) == 100
    assert await world.effects() == ids(events)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Permanent("the seal does not open"), "the seal does not open"),
        (RuntimeError(), "RuntimeError after 2 failures"),
    ],
)
async def test_a_poison_event_of_a_batch_is_dead_lettered_alone(world: World, error: Exception, reason: str) -> None:
    events = [event(key="k") for _ in range(12)]
    together = Together(world.db, poison=[events[5]], error=error)
    await send(world.redis, *events)
    async with running(world.inbox(together.handler(), max_failures=2)):
        await until(world.idle)
    (letter,) = await world.dead()
    assert (letter["event_id"], letter["reason"]) == (events[5].id, reason)
    # Each once, and in their order, though the first try had some of them already.
    assert await world.effects() == ids([*events[:5], *events[6:]])


async def test_what_is_no_event_spoils_no_batch(world: World) -> None:
    events, together = [event() for _ in range(6)], Together(world.db)
    await send(world.redis, *events[:3])
    await world.redis.xadd(STREAM, {"event": b"\xff\xff"})
    await send(world.redis, *events[3:])
    async with running(world.inbox(together.handler())):
        await until(world.idle)
    assert together.batches == [ids(events)]
    assert len(await world.dead()) == 1


async def test_an_event_that_failed_before_comes_by_itself(world: World) -> None:
    events = [event() for _ in range(5)]
    together = Together(world.db, poison=[events[2]])
    await send(world.redis, *events)
    async with running(world.inbox(together.handler(), max_failures=4)):
        await until(world.idle)
    assert together.batches == [ids(events), *([each.id] for each in events), *[[events[2].id]] * 3]


async def test_an_event_that_wants_to_come_later_keeps_no_other_waiting(world: World) -> None:
    events = [event() for _ in range(4)]
    together = Together(world.db, poison=[events[0]], error=Later(timedelta(hours=1)))
    await send(world.redis, *events)
    async with running(world.inbox(together.handler())):
        await until(lambda: _happened(world, 3))
        assert await until(lambda: world.redis.zcard(f"{{{STREAM}}}:delayed")) == 1
    assert await world.effects() == ids(events[1:])
    assert await world.dead() == []


async def test_two_copies_of_an_event_never_come_together(world: World) -> None:
    twice, other, last, together = event(), event(), event(), Together(world.db)
    await send(world.redis, twice, other, twice, twice, last)
    async with running(world.inbox(together.handler())):
        await until(world.idle)
    assert together.batches == [[twice.id, other.id], [twice.id], [twice.id, last.id]]
    assert await world.effects() == ids([twice, other, last])


async def test_a_repeat_that_was_put_aside_is_left_out_of_its_batch(world: World) -> None:
    aside, other, together = event(), event(), Together(world.db)
    async with world.db.transaction() as tx:
        await record(
            tx,
            event_id=aside.id,
            inbox=SERVICE,
            type_=TYPE,
            key="k",
            event=aside.to_bytes(),
            reason="unknown",
            failures=1,
        )
    for each in (aside, other):
        await world.redis.xadd(STREAM, {"event": each.to_bytes(), "again": "1"})
    async with running(world.inbox(together.handler())):
        await until(world.idle)
    assert together.batches == [[other.id]]


async def test_a_database_that_is_away_is_a_failure_of_each_at_once(world: World) -> None:
    events, tries = [event() for _ in range(8)], []

    async def away(taken: Sequence[Event]) -> None:
        tries.append(len(taken))
        if len(tries) == 1:
            raise OperationalError("SELECT 1", None, Exception("away"))
        async with world.db.transaction() as tx:
            for each in taken:
                assert await mark_processed(tx, each)
                await tx.execute(insert(effects).values(event_id=each.id, worker="w"))

    await send(world.redis, *events)
    async with running(world.inbox(BatchHandler(away))):
        await until(world.idle)
    assert tries == [8, *[1] * 8]
    assert sorted(await world.effects()) == sorted(ids(events))
    assert await world.dead() == []


async def test_a_lease_that_is_lost_in_the_middle_of_a_batch_costs_the_others_nothing(world: World) -> None:
    events, together = [event() for _ in range(6)], Together(world.db)
    together.opened.clear()
    await send(world.redis, *events)
    async with running(world.inbox(together.handler(), lease=0.3)):
        await together.begun.wait()
        stolen = (await world.pending())[2]
        await world.redis.xclaim(STREAM, GROUP, "thief", 0, [stolen["message_id"]])
        # The batch is broken off and the others are begun anew, one by one.
        await until(lambda: _tries(together, 2))
        together.opened.set()
        await until(lambda: _happened(world, 5))
        await until(lambda: _pending(world, 1))
        (left,) = await world.pending()
        assert left["consumer"] == b"thief"
        await world.redis.xack(STREAM, GROUP, stolen["message_id"])
        await world.redis.xdel(STREAM, stolen["message_id"])
    assert together.batches == [ids(events), *([each.id] for number, each in enumerate(events) if number != 2)]
    assert await world.effects() == ids([*events[:2], *events[3:]])


async def test_an_entry_that_was_taken_over_after_the_commit_stays_with_its_new_owner(world: World) -> None:
    events = [event() for _ in range(3)]

    handled = asyncio.Event()

    async def handle(_events: Sequence[Event]) -> None:
        handled.set()
        (_, middle, _) = await world.pending()
        await world.redis.xclaim(STREAM, GROUP, "thief", 0, [middle["message_id"]])

    await send(world.redis, *events)
    async with running(world.inbox(BatchHandler(handle))):
        await handled.wait()
        await until(lambda: _pending(world, 1))
        (left,) = await world.pending()
    assert left["consumer"] == b"thief"


@pytest.mark.parametrize("stopped", ["asked", "cancelled"])
async def test_a_worker_that_leaves_hands_back_what_waits_for_a_batch(world: World, stopped: str) -> None:
    first, later, together = event(), [event() for _ in range(3)], Together(world.db)
    together.opened.clear()
    stopping = asyncio.Event()
    inbox = asyncio.create_task(world.inbox(together.handler()).run(stopping))
    await send(world.redis, first)
    await together.begun.wait()
    await send(world.redis, *later)
    await until(lambda: _pending(world, 4))
    if stopped == "asked":
        stopping.set()
        await until(lambda: _released(world, 3))
        together.opened.set()
        await inbox
        assert await world.effects() == [first.id]
    else:
        inbox.cancel()
        await asyncio.gather(inbox, return_exceptions=True)
    peer = Together(world.db)
    async with running(world.inbox(peer.handler(), lease=FOREVER)):
        await until(world.idle)
    assert sorted(await world.effects()) == sorted(ids([first, *later]))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_batch_whose_worker_is_killed_has_each_effect_once(
    world: World, database_url: str, servers: Servers, moment: str
) -> None:
    events, together = [event() for _ in range(8)], Together(world.db)
    await send(world.redis, *events)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.kit.events.worker_process"),
        *(database_url, servers.redis_url, SERVICE, TYPE, "0.5", moment),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    assert await process.stdout.readline() == b"begun\n"
    process.kill()
    await process.communicate()
    async with running(world.inbox(together.handler(), lease=0.5)):
        await until(world.idle)
    # What may have killed a worker is handled by itself.
    assert sorted(together.batches) == sorted([each.id] for each in events)
    assert sorted(await world.effects()) == sorted(ids(events))


async def test_handlers_of_both_kinds_share_an_inbox(world: World) -> None:
    """One that takes batches does not keep the others waiting, nor does it take their places."""
    other = StoryCompleted.DESCRIPTOR.full_name
    together = Together(world.db)
    together.opened.clear()
    alone: list[UUID] = []

    async def handle(taken: Event) -> None:
        alone.append(taken.id)

    inbox = mixed(world, {TYPE: together.handler(), other: handle})
    async with running(inbox):
        await send(world.redis, *(event() for _ in range(3)))
        await together.begun.wait()
        singles = [event(type=other) for _ in range(5)]
        await send(world.redis, *singles)
        await until(lambda: _seen(alone, 5))
        together.opened.set()
        await until(world.idle)
    assert sorted(alone) == sorted(ids(singles))


def mixed(world: World, handlers: Any) -> Inbox:
    return Inbox(
        world.db,
        world.redis,
        SERVICE,
        handlers,
        lease_seconds=FOREVER,
        concurrency=2,
        max_failures=3,
        tuning=world.tuning,
    )


async def _seen(alone: Sequence[UUID], count: int) -> bool:
    return len(alone) == count


async def _pending(world: World, count: int) -> bool:
    return len(await world.pending()) == count


async def _released(world: World, count: int) -> bool:
    return len([each for each in await world.pending() if each["time_since_delivered"] > 10**6]) == count


async def _happened(world: World, count: int) -> bool:
    return len(await world.effects()) == count


async def _tries(together: Together, count: int) -> bool:
    return len(together.batches) >= count
