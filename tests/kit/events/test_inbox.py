"""Events in, effects out: once each, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis
from sqlalchemy import insert, select
from sqlalchemy.engine.row import RowMapping
from storymesh.events.v1.story_events_pb2 import StoryRequested

from kit.data import redis as kit_redis
from kit.data.database import Database, Transaction
from kit.events.dead_letter_store import dead_letters
from kit.events.envelope import Event
from kit.events.handlers import Forgotten, Handler, Later, Permanent, backoff_seconds
from kit.events.inbox import Inbox
from kit.events.inbox_store import mark_processed
from kit.events.inbox_stream import GROUP, InboxStream, InboxTuning, delayed_of, stream_of
from kit.runtime import tracing
from local.harness import Servers
from tests.kit.conftest import QUICK, effects
from tests.waiting import until

TYPE = StoryRequested.DESCRIPTOR.full_name
SERVICE = "kit"
STREAM = stream_of(SERVICE)
TRACE = "0af7651916cd43dd8448eb211c80319c"
FOREVER = 60.0
"""A lease that does not end during a test."""


def event(**changes: Any) -> Event:
    values = {
        "id": uuid4(),
        "type": TYPE,
        "key": "k",
        "occurred_at": datetime.now(UTC),
        "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
        "payload": b"",
        **changes,
    }
    return Event(**values)


async def send(client: Redis, *events: Event) -> None:
    for each in events:
        await client.xadd(STREAM, {"event": each.to_bytes()})


class World:
    """Builds consumers of one inbox, and sees what they did."""

    def __init__(self, db: Database, client: Redis, *, tuning: InboxTuning = QUICK) -> None:
        self.db = db
        self.tuning = tuning
        self.redis = client

    def inbox(
        self,
        handler: Handler,
        *,
        lease: float = FOREVER,
        concurrency: int = 4,
        max_failures: int = 3,
        backoff: Callable[[int], float] = lambda _: 0.0,
        client: Redis | None = None,
        forgotten: Forgotten | None = None,
    ) -> Inbox:
        return Inbox(
            self.db,
            client or self.redis,
            SERVICE,
            {TYPE: handler},
            lease_seconds=lease,
            concurrency=concurrency,
            max_failures=max_failures,
            backoff=backoff,
            forgotten=forgotten,
            tuning=self.tuning,
        )

    def recorder(self, worker: str = "w") -> Handler:
        """Records each event once, as handlers should."""

        async def record(taken: Event) -> None:
            async with self.db.transaction() as tx:
                if await mark_processed(tx, taken):
                    await tx.execute(insert(effects).values(event_id=taken.id, worker=worker))

        return record

    async def effects(self) -> list[UUID]:
        async with self.db.transaction() as tx:
            return list((await tx.execute(select(effects.c.event_id).order_by(effects.c.number))).scalars())

    async def dead(self) -> list[RowMapping]:
        async with self.db.transaction() as tx:
            return list((await tx.execute(select(dead_letters))).mappings())

    async def consumers(self) -> set[str]:
        return {each["name"].decode() for each in await self.redis.xinfo_consumers(STREAM, GROUP)}

    async def pending(self) -> list[dict[str, Any]]:
        return list(await self.redis.xpending_range(STREAM, GROUP, "-", "+", 100))

    async def idle(self) -> bool:
        """Nothing is left to do."""
        # In one step: a postponed event is always in one of the two.
        async with self.redis.pipeline(transaction=True) as pipeline:
            pipeline.xlen(STREAM)
            pipeline.zcard(delayed_of(SERVICE))
            return await pipeline.execute() == [0, 0]


@pytest.fixture
def world(db: Database, redis: Redis) -> World:
    return World(db, redis)


@asynccontextmanager
async def running(*inboxes: Inbox) -> AsyncIterator[asyncio.Event]:
    """Yields what stops them; waits for their end."""
    stopping = asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for each in inboxes:
            group.create_task(each.run(stopping))
        try:
            yield stopping
        finally:
            stopping.set()


class Gate:
    """A handler that stands still until it is let through."""

    def __init__(self, then: Handler) -> None:
        self.begun = 0
        self.cancelled = 0
        self.open = asyncio.Event()
        self._then = then

    async def __call__(self, taken: Event) -> None:
        self.begun += 1
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await self._then(taken)


@pytest.mark.slow
async def test_each_event_is_handled_once_by_many_consumers_at_once(world: World) -> None:
    events = [event() for _ in range(120)]
    async with running(*(world.inbox(world.recorder()) for _ in range(4))):
        await send(world.redis, *events)
        await until(world.idle)
    assert sorted(await world.effects()) == sorted(each.id for each in events)


async def test_what_came_before_the_first_worker_is_handled_too(world: World) -> None:
    early = event()
    await send(world.redis, early)
    async with running(world.inbox(world.recorder())):
        await until(world.idle)
    assert await world.effects() == [early.id]


async def test_an_event_that_comes_twice_has_its_effect_once(world: World) -> None:
    twice = event()
    async with running(world.inbox(world.recorder()), world.inbox(world.recorder())):
        await send(world.redis, *[twice] * 6)
        await until(world.idle)
    assert await world.effects() == [twice.id]


async def test_an_effect_that_is_undone_leaves_no_trace_of_the_event(world: World) -> None:
    async def undo(taken: Event) -> None:
        async with world.db.transaction() as tx:
            assert await mark_processed(tx, taken)
            raise RuntimeError

    again = event()
    async with running(world.inbox(undo, max_failures=1)):
        await send(world.redis, again)
        await until(world.dead)
    async with world.db.transaction() as tx:
        assert await mark_processed(tx, again)


async def test_an_event_is_acknowledged_only_after_its_effect_is_committed(world: World) -> None:
    gate = Gate(world.recorder())
    async with running(world.inbox(gate)):
        await send(world.redis, event())
        await until(lambda: gate.begun)
        assert len(await world.pending()) == 1
        gate.open.set()
        await until(world.idle)
        assert await world.pending() == []
        assert len(await world.effects()) == 1


async def test_no_more_events_are_fetched_than_can_start(world: World) -> None:
    gate = Gate(world.recorder())
    async with running(world.inbox(gate, concurrency=2)):
        await send(world.redis, *(event() for _ in range(5)))
        await until(lambda: gate.begun == 2)
        assert len(await world.pending()) == 2
        gate.open.set()
        await until(world.idle)
    assert len(await world.effects()) == 5


async def test_a_handler_works_in_the_trace_of_its_event(world: World) -> None:
    seen = []

    async def look(_event: Event) -> None:
        seen.append(tracing.trace_id())

    async with running(world.inbox(look)):
        await send(world.redis, event())
        await until(world.idle)
    assert seen == [TRACE]


async def test_a_failure_is_tried_again(world: World) -> None:
    failures = 2

    async def fail_twice(taken: Event) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise RuntimeError
        await world.recorder()(taken)

    flaky = event()
    async with running(world.inbox(fail_twice)):
        await send(world.redis, flaky)
        await until(world.idle)
    assert await world.effects() == [flaky.id]
    assert await world.dead() == []


async def test_after_the_last_failure_the_event_becomes_a_dead_letter(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    calls, waits = 0, []

    async def fail(_event: Event) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("s3cret")

    def backoff(failures: int) -> float:
        waits.append(failures)
        return 0.0

    lost = event(key="story-7")
    async with running(world.inbox(fail, max_failures=3, backoff=backoff)):
        await send(world.redis, lost)
        (letter,) = await until(world.dead)
        await until(world.idle)
    assert (calls, waits) == (3, [1, 2])
    assert (letter["event_id"], letter["type"], letter["key"]) == (lost.id, TYPE, "story-7")
    assert (letter["reason"], letter["failures"]) == ("RuntimeError after 3 failures", 3)
    assert letter["event"] == lost.to_bytes()
    assert [record for record in caplog.records if record.levelno == logging.ERROR]


async def test_a_failed_event_waits_before_it_is_tried_again(world: World) -> None:
    times = []

    async def fail(_event: Event) -> None:
        times.append(monotonic())
        raise RuntimeError

    async with running(world.inbox(fail, max_failures=2, backoff=lambda _: 0.6)):
        await send(world.redis, event())
        await until(world.dead)
    first, second = times
    assert second - first >= 0.6


@pytest.mark.parametrize("failures", [1, 2, 9, 50, 10**9])
def test_the_wait_doubles_up_to_five_minutes_and_is_never_the_same(failures: int) -> None:
    waits = [backoff_seconds(failures) for _ in range(200)]
    bound = min(2.0 ** min(failures - 1, 60), 300.0)
    assert 0 <= min(waits) < bound / 3
    assert bound * 2 / 3 < max(waits) <= bound


async def test_what_can_never_succeed_is_dead_lettered_at_once(world: World) -> None:
    async def refuse(_event: Event) -> None:
        raise Permanent("the seal does not open")

    async with running(world.inbox(refuse)):
        await send(world.redis, event())
        (letter,) = await until(world.dead)
        await until(world.idle)
    assert (letter["reason"], letter["failures"]) == ("the seal does not open", 0)


async def test_of_an_event_about_an_erased_person_not_even_a_dead_letter_is_kept(world: World) -> None:
    async def refuse(_event: Event) -> None:
        raise Permanent("no")

    async def forgotten(_tx: Transaction, taken: Event) -> bool:
        return taken.key == "erased"

    kept = event(key="here")
    async with running(world.inbox(refuse, forgotten=forgotten)):
        await send(world.redis, event(key="erased"), kept)
        await until(world.idle)
    assert [letter["event_id"] for letter in await world.dead()] == [kept.id]


async def test_a_payload_that_cannot_be_decoded_is_dead_lettered_at_once(world: World) -> None:
    async def decode(taken: Event) -> None:
        taken.decode(StoryRequested)

    async with running(world.inbox(decode)):
        await send(world.redis, event(payload=b"\xff"))
        (letter,) = await until(world.dead)
        await until(world.idle)
    assert letter["type"] == TYPE


@pytest.mark.parametrize(
    "fields",
    [
        {"event": b"\xff\xff"},
        {"event": b""},
        {"other": b"field"},
        {"event": event(version=99).to_bytes()},
    ],
    ids=["garbage", "nothing", "another field", "another version"],
)
async def test_an_entry_that_cannot_be_read_is_dead_lettered_and_the_next_one_handled(
    world: World, fields: dict[Any, Any]
) -> None:
    good = event()
    async with running(world.inbox(world.recorder())):
        await world.redis.xadd(STREAM, fields)
        (letter,) = await until(world.dead)
        await send(world.redis, good)
        await until(world.idle)
    assert letter["event"] == fields.get("event", b"")
    assert await world.effects() == [good.id]


@pytest.mark.parametrize("failures", [b"9" * 5000, b"9" * 20, b"0" * 5000, b"2147483647"])
async def test_failures_of_any_size_become_a_dead_letter_and_the_next_one_is_handled(
    world: World, failures: bytes
) -> None:
    """Numbers that Python does not read, or that Postgres does not keep."""

    async def fail(taken: Event) -> None:
        if taken.key == "poison":
            raise RuntimeError
        await world.recorder()(taken)

    good = event()
    async with running(world.inbox(fail)):
        await world.redis.xadd(STREAM, {"event": event(key="poison").to_bytes(), "failures": failures})
        await world.redis.xadd(STREAM, {"event": b"garbage", "failures": failures})
        await until(lambda: _count_of_dead(world, 2))
        await send(world.redis, good)
        await until(world.idle)
    assert await world.effects() == [good.id]


async def _count_of_dead(world: World, count: int) -> bool:
    return len(await world.dead()) == count


@pytest.mark.parametrize("member", [b"garbage", b"one:colon", b"", b"::", b"\xff:\xff:\xff"])
async def test_what_nobody_of_us_has_postponed_is_put_aside_and_holds_nothing_up(world: World, member: bytes) -> None:
    failures = 1

    async def fail_once(taken: Event) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise RuntimeError
        await world.recorder()(taken)

    postponed = event()
    async with running(world.inbox(fail_once)):
        await world.redis.zadd(delayed_of(SERVICE), {member: 0})
        await send(world.redis, postponed)
        await until(world.idle)
    assert await world.effects() == [postponed.id]
    (letter,) = await world.dead()
    assert (letter["type"], letter["failures"]) == ("", 0)
    assert letter["event"] == (member if member.count(b":") < 2 else member.split(b":", 2)[2])


@pytest.mark.parametrize("traceparent", ["garbage", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 10_000, "\0"])
async def test_an_event_with_an_odd_trace_is_handled(world: World, traceparent: str) -> None:
    odd = event(traceparent=traceparent)
    async with running(world.inbox(world.recorder())):
        await send(world.redis, odd)
        await until(world.idle)
    assert await world.effects() == [odd.id]


async def test_failures_that_cannot_be_counted_are_none(world: World) -> None:
    odd = event()
    async with running(world.inbox(world.recorder())):
        await world.redis.xadd(STREAM, {"event": odd.to_bytes(), "failures": b"many"})
        await until(lambda: _has(world, odd.id))


async def test_an_event_that_this_version_does_not_know_is_kept_for_one_that_does(world: World) -> None:
    async with running(world.inbox(world.recorder())):
        await send(world.redis, event(type="storymesh.events.v9.Unheard"))
        (letter,) = await until(world.dead)
        await until(world.idle)
    assert letter["type"] == "storymesh.events.v9.Unheard"
    assert "no handler" in letter["reason"]


async def test_a_dead_letter_is_written_even_if_postgres_would_refuse_its_text(world: World) -> None:
    async with running(world.inbox(world.recorder())):
        await send(world.redis, event(key="a\0b", type="c\0d"))
        (letter,) = await until(world.dead)
        await until(world.idle)
    assert "a" in letter["key"]


async def test_a_dead_letter_that_cannot_be_written_now_is_not_lost(world: World, servers: Servers) -> None:
    async def refuse(_event: Event) -> None:
        raise Permanent("no")

    async with running(world.inbox(refuse, lease=0.4)):
        await servers.stop("postgres")
        try:
            await send(world.redis, event())
            await until(lambda: _count_is(world.consumers, 1))
        finally:
            await servers.start("postgres")
        await until(world.dead)
        await until(world.idle)


async def test_later_is_no_failure(world: World) -> None:
    delays = 4

    async def postpone(taken: Event) -> None:
        nonlocal delays
        if delays:
            delays -= 1
            raise Later(timedelta(milliseconds=1))
        await world.recorder()(taken)

    patient = event()
    async with running(world.inbox(postpone, max_failures=2)):
        await send(world.redis, patient)
        await until(world.idle)
    assert await world.effects() == [patient.id]


async def test_a_postponed_event_outlives_the_worker_that_postponed_it(world: World) -> None:
    async def postpone(_event: Event) -> None:
        raise Later(timedelta(seconds=0.5))

    async def postponed() -> int:
        return int(await world.redis.zcard(delayed_of(SERVICE)))

    waiting = event()
    async with running(world.inbox(postpone)):
        await send(world.redis, waiting)
        await until(postponed)
    async with running(world.inbox(world.recorder())):
        await until(world.idle)
    assert await world.effects() == [waiting.id]


@pytest.mark.slow
async def test_a_killed_workers_event_is_taken_over_after_the_lease_and_handled_once(
    world: World, database_url: str, servers: Servers
) -> None:
    lease = 0.6
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "tests.kit.events.worker_process",
            database_url,
            servers.redis_url,
            SERVICE,
            TYPE,
            str(lease),
        ),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    orphan = event()
    try:
        await send(world.redis, orphan)
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"begun\n"
        (before,) = await world.pending()
        async with running(world.inbox(world.recorder("peer"), lease=lease)):
            # The worker lives and beats: for longer than a lease nobody else may touch its event.
            await asyncio.sleep(2 * lease)
            assert [each["consumer"] for each in await world.pending()] == [before["consumer"]]
            process.kill()
            await until(world.idle)
            await until(lambda: _gone(world, before["consumer"].decode()))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
    assert await world.effects() == [orphan.id]


async def _gone(world: World, consumer: str) -> bool:
    return consumer not in await world.consumers()


@pytest.mark.slow
async def test_a_long_handler_keeps_its_lease(world: World) -> None:
    begun = 0

    async def take_long(taken: Event) -> None:
        nonlocal begun
        begun += 1
        await asyncio.sleep(2)
        await world.recorder()(taken)

    async with running(*(world.inbox(take_long, lease=0.6) for _ in range(3))):
        await send(world.redis, event())
        await until(world.idle)
    assert begun == 1


async def steal(world: World) -> None:
    """Gives what is pending to another worker, as happens to one that was frozen for a lease."""
    (entry,) = await world.pending()
    await world.redis.xclaim(STREAM, GROUP, "thief", 0, [entry["message_id"]])


async def test_a_handler_whose_lease_was_lost_is_ended(world: World) -> None:
    gate = Gate(world.recorder())
    async with running(world.inbox(gate, lease=0.6)):
        await send(world.redis, event())
        await until(lambda: gate.begun)
        await steal(world)
        await until(lambda: gate.cancelled)
        (entry,) = await world.pending()
        assert entry["consumer"] == b"thief"
    assert await world.effects() == []


@pytest.mark.parametrize("outcome", [None, RuntimeError(), Later(timedelta(0))], ids=["success", "failure", "later"])
async def test_whatever_a_worker_says_after_it_lost_the_lease_changes_nothing(
    world: World, outcome: Exception | None
) -> None:
    async def end(_event: Event) -> None:
        if outcome:
            raise outcome

    gate = Gate(end)
    async with running(world.inbox(gate)) as stopping:
        await send(world.redis, event())
        await until(lambda: gate.begun)
        await steal(world)
        stopping.set()
        gate.open.set()
    (entry,) = await world.pending()
    assert entry["consumer"] == b"thief"
    assert await world.redis.xlen(STREAM) == 1
    assert await world.redis.zcard(delayed_of(SERVICE)) == 0


async def test_a_worker_does_not_begin_again_what_it_is_still_at(world: World) -> None:
    """Its heartbeat was held up for longer than a lease, and now it is the first to look."""
    gate = Gate(world.recorder())
    async with running(world.inbox(gate)):
        await send(world.redis, event())
        await until(lambda: gate.begun)
        (entry,) = await world.pending()
        await world.redis.xclaim(
            STREAM, GROUP, entry["consumer"].decode(), 0, [entry["message_id"]], idle=10**7, justid=True
        )
        await until(lambda: _claimed_again(world))
        second = event()
        await send(world.redis, second)
        await until(lambda: gate.begun == 2)
        gate.open.set()
        await until(world.idle)
    assert gate.begun == 2


async def _claimed_again(world: World) -> bool:
    (entry,) = await world.pending()
    return int(entry["time_since_delivered"]) < 10**6


async def test_an_event_that_kills_its_workers_is_given_up(world: World) -> None:
    await send(world.redis, event())
    await world.redis.xgroup_create(STREAM, GROUP, id="0")
    await world.redis.xreadgroup(GROUP, "dead", {STREAM: ">"})
    (entry,) = await world.pending()
    await world.redis.xclaim(STREAM, GROUP, "dead", 0, [entry["message_id"]], idle=10**7, retrycount=10)
    async with running(world.inbox(world.recorder())):
        (letter,) = await until(world.dead)
        await until(world.idle)
    assert letter["reason"] == "its workers keep dying"
    assert await world.effects() == []


async def test_a_dead_workers_event_is_found_behind_many_that_are_in_work(world: World) -> None:
    """One look covers only the first of the pending entries."""
    events = [event() for _ in range(40)]
    await send(world.redis, *events)
    await world.redis.xgroup_create(STREAM, GROUP, id="0")
    await world.redis.xreadgroup(GROUP, "busy", {STREAM: ">"}, count=39)
    await world.redis.xreadgroup(GROUP, "dead", {STREAM: ">"})
    last = (await world.pending())[-1]
    await world.redis.xclaim(STREAM, GROUP, "dead", 0, [last["message_id"]], idle=10**7)
    async with running(world.inbox(world.recorder(), concurrency=1)):
        await until(world.effects)
    assert await world.effects() == [events[-1].id]


async def test_a_worker_that_is_stopped_ends_what_it_began_and_begins_nothing_new(world: World) -> None:
    gate = Gate(world.recorder())
    begun, later = event(), event()
    async with running(world.inbox(gate, concurrency=1)) as stopping:
        await send(world.redis, begun)
        await until(lambda: gate.begun)
        await send(world.redis, later)
        stopping.set()
        gate.open.set()
    assert await world.effects() == [begun.id]
    async with running(world.inbox(world.recorder())):
        await until(world.idle)
    assert await world.effects() == [begun.id, later.id]


async def test_what_a_stopped_worker_cannot_end_in_time_goes_to_a_peer_at_once(world: World) -> None:
    gate = Gate(world.recorder())
    stopped = asyncio.create_task(world.inbox(gate).run(asyncio.Event()))
    unfinished = event()
    await send(world.redis, unfinished)
    await until(lambda: gate.begun)
    stopped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopped
    assert gate.cancelled == 1
    peer = Gate(world.recorder())
    async with running(world.inbox(peer)):
        await until(lambda: peer.begun)
        (entry,) = await world.pending()
        assert entry["times_delivered"] == 1, "an orderly end is no crash"
        peer.open.set()
        await until(world.idle)
    assert await world.effects() == [unfinished.id]


async def test_a_worker_that_ends_takes_its_name_with_it(world: World) -> None:
    async with running(world.inbox(world.recorder()), world.inbox(world.recorder())):
        await send(world.redis, event())
        await until(world.idle)
        await until(lambda: _count_is(world.consumers, 2))
    assert await world.consumers() == set()


async def _count_is(look: Callable[[], Awaitable[set[str]]], count: int) -> bool:
    return len(await look()) == count


async def test_names_of_dead_workers_are_forgotten(world: World) -> None:
    await world.redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    await world.redis.xgroup_createconsumer(STREAM, GROUP, "long gone")
    async with running(world.inbox(world.recorder(), lease=0.1)):
        await until(lambda: _gone(world, "long gone"))


async def test_a_name_with_events_pending_under_it_is_never_forgotten(world: World) -> None:
    """Redis drops them together with the name."""
    await send(world.redis, event())
    await world.redis.xgroup_create(STREAM, GROUP, id="0")
    await world.redis.xgroup_createconsumer(STREAM, GROUP, "idle")
    await world.redis.xreadgroup(GROUP, "holder", {STREAM: ">"})
    peer, leaving = (InboxStream(world.redis, SERVICE, lease_seconds=lease) for lease in (FOREVER, 0.001))

    async def silent() -> bool:
        return all(each["idle"] > 10 for each in await world.redis.xinfo_consumers(STREAM, GROUP))

    await until(silent)
    await peer.forget_ended(0.005)
    assert await world.consumers() == {"holder"}
    assert len(await world.pending()) == 1
    await until(lambda: leaving.take(1))
    await leaving.leave()
    assert len(await world.pending()) == 1


async def test_an_emptied_redis_is_survived(world: World) -> None:
    async with running(world.inbox(world.recorder()), world.inbox(world.recorder())):
        before = event()
        await send(world.redis, before)
        await until(world.idle)
        await world.redis.flushall()
        after = event()
        await send(world.redis, after)
        await until(lambda: _has(world, after.id))
    assert await world.effects() == [before.id, after.id]


async def _has(world: World, event_id: UUID) -> bool:
    return event_id in await world.effects()


async def test_what_is_in_work_when_redis_loses_its_data_is_still_finished(world: World) -> None:
    gate = Gate(world.recorder())
    async with running(world.inbox(gate, lease=0.3)):
        held = event()
        await send(world.redis, held)
        await until(lambda: gate.begun)
        await world.redis.flushall()
        await asyncio.sleep(0.6)
        gate.open.set()
        await until(lambda: _has(world, held.id))
    assert gate.cancelled == 0


@pytest.mark.slow
async def test_a_killed_redis_is_survived_without_losing_or_doubling_an_event(db: Database, mortal: Servers) -> None:
    async with kit_redis.connect(mortal.redis_url) as client:
        await client.flushall()
        world = World(db, client)
        events = [event() for _ in range(60)]

        async def slowly(taken: Event) -> None:
            await asyncio.sleep(0.02)
            await world.recorder()(taken)

        async with running(*(world.inbox(slowly, lease=1.0, client=client) for _ in range(2))):
            await send(client, *events)
            await until(world.effects)
            old = mortal.pid("redis")
            mortal.kill("redis")
            await mortal.healthy("redis", not_pid=old)
            await until(lambda: _all_done(world, len(events)), 30)
            await until(world.idle)
    assert sorted(await world.effects()) == sorted(each.id for each in events)
    assert await world.dead() == []


async def _all_done(world: World, count: int) -> bool:
    return len(await world.effects()) >= count
