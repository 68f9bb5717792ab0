"""How long a delivery is tried and by whom: retries for days, many workers, and mails that hold no others back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise

import pytest
from sqlalchemy import text
from sqlalchemy.engine.row import RowMapping

from kit.events.envelope import Event
from services.notification.model import Kind
from services.notification.model.deliveries import Delivery, DeliveryState, growing_pause
from services.notification.model.notices import LIFE
from tests.notification.conftest import MailWorld, code_issued, story_completed
from tests.notification.scripted_channel import ScriptedChannel
from tests.notification.smtp_servers import MailServer, listening
from tests.waiting import until


class FastClock:
    """A clock that the test moves on, to whenever the next attempt is due."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


async def through_attempts(
    world: MailWorld, clock: FastClock, event: Event, end: datetime, stride: timedelta = timedelta()
) -> list[timedelta]:
    """Move the clock on from attempt to attempt of the event's mail, by `stride` at least, and at last to `end`.

    Returns the pauses that were planned between the attempts.
    """
    pauses: list[timedelta] = []
    while record := await until(lambda: _between_attempts(world, event)):
        at = max(record["due_at"], clock.now + stride)
        if record["event"] is None or at > end:
            break
        pauses.append(record["due_at"] - clock.now)
        clock.now = at
        await until(partial(_tried_again, world, event, record["attempts"]))
    clock.now = max(clock.now, end)
    return pauses


async def _between_attempts(world: MailWorld, event: Event) -> RowMapping | None:
    record = (await world.records())[event.id]
    waits = record["state"] == DeliveryState.QUEUED and record["leased_until"] is None and record["attempts"]
    return record if waits or record["event"] is None else None


async def _tried_again(world: MailWorld, event: Event, attempts: int) -> bool:
    record = (await world.records())[event.id]
    return bool(record["attempts"] > attempts or record["event"] is None)


@asynccontextmanager
async def sending(world: MailWorld, server: MailServer, clock: FastClock, event: Event) -> AsyncIterator[None]:
    """Run a worker by this clock that sends through the server, and publish the event."""
    world.clock, world.pause, world.poll_seconds, world.max_failures = clock, growing_pause(lambda: 0.5), 0.01, 1
    async with listening(server):
        world.smtp_port = server.port
        async with world.working():
            await world.send(event)
            await until(lambda: _is_known(world, event))
            yield


async def _is_known(world: MailWorld, event: Event) -> bool:
    return event.id in await world.records()


OUTAGES = {
    "no mail server": (MailServer(greeting="421 closing"), timedelta(seconds=160), timedelta()),
    "greylisting": (MailServer(recipient="450 4.7.1 greylisted"), timedelta(seconds=300), timedelta()),
    "a full disk for half a day": (MailServer(taken="452 4.3.1 no space"), timedelta(hours=12), timedelta(hours=2)),
    "no mail server for days": (MailServer(greeting="421 closing"), timedelta(days=4), timedelta(hours=15)),
}


@pytest.mark.parametrize("kind", OUTAGES)
async def test_a_storys_mail_is_tried_until_the_server_takes_it(world: MailWorld, kind: str) -> None:
    clock, (server, outage, stride) = FastClock(), OUTAGES[kind]
    server = replace(server)
    story = story_completed(world.accounts.add())
    async with sending(world, server, clock, story):
        pauses = await through_attempts(world, clock, story, clock.now + outage, stride)
        assert (await world.dead(), len(await world.notifications())) == ([], 1)
        refused = len(server.mails)
        server.greeting, server.sender, server.recipient, server.data, server.taken = MailServer().replies()
        clock.now += timedelta(minutes=30)
        await until(world.idle)
    assert len(server.mails) - refused == 1
    assert (await world.records())[story.id]["state"] == DeliveryState.SENT
    assert len(pauses) > 4
    assert all(earlier < later for earlier, later in pairwise(pauses))


async def test_a_mail_that_nobody_takes_for_five_days_expires(world: MailWorld) -> None:
    clock, server = FastClock(), MailServer(recipient="450 4.2.1 mailbox busy")
    story = story_completed(world.accounts.add())
    async with sending(world, server, clock, story):
        await through_attempts(world, clock, story, clock.now + LIFE - timedelta(seconds=1), timedelta(hours=9))
        assert (await world.records())[story.id]["state"] == DeliveryState.QUEUED
        clock.now += timedelta(seconds=1)
        await until(world.idle)
    record = (await world.records())[story.id]
    assert (record["state"], record["answer"], record["event"]) == (DeliveryState.EXPIRED, "450 4.2.1", None)
    assert [step.split()[0] for step in await world.steps(story)] == ["QUEUED", "DEFERRED", "EXPIRED"]
    assert await world.dead() == []


def test_pauses_grow_to_half_an_hour_or_a_twentieth_of_a_shorter_life_and_differ_by_up_to_a_half() -> None:
    fewest, most = growing_pause(lambda: 1.0), growing_pause(lambda: 0.0)
    for life, longest in ((LIFE, timedelta(minutes=30)), (timedelta(minutes=10), timedelta(seconds=30))):
        pauses = [most(attempts, life) for attempts in range(1, 2000)]
        assert pauses[:5] == [timedelta(seconds=2**each) for each in range(5)]
        assert sorted(pauses) == pauses
        assert pauses[-1] == longest
        assert [fewest(attempts, life) for attempts in range(1, 2000)] == [each / 2 for each in pauses]


async def test_a_code_is_tried_at_least_every_half_minute_until_it_expires(world: MailWorld) -> None:
    clock, server = FastClock(), MailServer(recipient="450 4.7.1 greylisted")
    code = code_issued(life=timedelta(minutes=10))
    async with sending(world, server, clock, code):
        pauses = await through_attempts(world, clock, code, clock.now + timedelta(minutes=20))
        await until(world.idle)
    record = (await world.records())[code.id]
    assert (record["state"], server.mails) == (DeliveryState.EXPIRED, [])
    assert max(pauses) <= timedelta(seconds=30)
    assert record["attempts"] > 20


async def test_a_code_that_comes_late_says_how_long_it_still_works(world: MailWorld) -> None:
    clock, server = FastClock(), MailServer(recipient="450 4.7.1 greylisted")
    code = code_issued("271828", life=timedelta(minutes=10))
    async with sending(world, server, clock, code):
        await through_attempts(world, clock, code, clock.now + timedelta(minutes=7))
        server.recipient = "250 ok"
        clock.now += timedelta(seconds=30)
        await until(world.idle)
    (mail,) = server.mails
    assert b"for the next 3 minutes" in mail


async def test_twenty_workers_and_one_event_make_one_mail(world: MailWorld) -> None:
    story, code = story_completed(world.accounts.add()), code_issued()
    async with listening(MailServer()) as server, AsyncExitStack() as workers:
        world.smtp_port = server.port
        for _ in range(20):
            await workers.enter_async_context(world.working())
        # Published over and over, as by a relay that repeats what Redis may have lost.
        await world.send(*[story, code] * 20)
        await until(world.idle)
    assert len(server.mails) == 2
    assert len(await world.notifications()) == 1
    for each in (story, code):
        assert [step for step in await world.steps(each) if step != "DEDUPLICATED"] == ["QUEUED", "SENT"]


async def test_mails_that_a_slow_server_holds_leave_their_places_to_others(world: MailWorld) -> None:
    """More than a worker sends at a time. Their final dot is answered only at the end of the test."""
    answered = asyncio.Event()
    slow = [code_issued() for _ in range(6)]
    quick = [story_completed(world.accounts.add()) for _ in range(3)]

    async def answers(delivery: Delivery) -> None:
        if delivery.kind == Kind.CODE:
            await answered.wait()

    channel = world.channel = ScriptedChannel(answers=answers)
    world.slow_seconds = 0.05
    async with world.working():
        await world.send(*slow)
        await until(lambda: len(channel.taken) == len(slow))
        await world.send(*quick)
        await until(lambda: _sent(world, quick))
        assert not await _sent(world, slow)
        answered.set()
        await until(world.idle)
    assert await _sent(world, slow)
    assert set(channel.taken.values()) == {1}


async def test_a_domain_that_takes_its_time_does_not_fill_all_places(world: MailWorld) -> None:
    """The server answers no final dot, as for mails that it passes on to slow servers."""
    answered = asyncio.Event()
    slow = [code_issued(to=f"ada{number}@slow.example") for number in range(20)]
    other = code_issued(to="ada@quick.example")
    world.concurrency, world.slow_seconds, world.smtp_seconds = 1, 0.01, 60
    async with listening(MailServer(held=answered)) as server:
        world.smtp_port = server.port
        async with world.working():
            await world.send(*slow)
            await until(lambda: len(server.mails) >= 4)
            await world.send(other)
            await until(lambda: any(f"<{other.id}@".encode() in mail for mail in server.mails))

            async def the_rest_waits() -> bool:
                queued = [row["reason"] for row in await world.unfinished() if row["state"] == "QUEUED"]
                return bool(queued) and set(queued) == {"DOMAIN_SLOW"}

            await until(the_rest_waits)
            answered.set()


async def test_what_a_worker_has_no_room_for_is_taken_at_once_by_another(world: MailWorld) -> None:
    """Neither of them polls during the test."""
    answered = asyncio.Event()
    stuck, quick = [code_issued() for _ in range(4)], story_completed(world.accounts.add())

    async def answers(delivery: Delivery) -> None:
        if delivery.kind == Kind.CODE:
            await answered.wait()

    channel = world.channel = ScriptedChannel(answers=answers)
    world.slow_seconds = world.poll_seconds = 60
    async with world.working():
        await world.send(*stuck)
        await until(lambda: len(channel.taken) == len(stuck))
        async with world.working(takes_events=False):
            await until(lambda: _listeners(world, 2))
            await world.send(quick)
            await until(lambda: _sent(world, [quick]))
            answered.set()
            await until(world.idle)


async def _listeners(world: MailWorld, count: int) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN notification_deliveries' AND datname = current_database()"
    async with world.db.single() as tx:
        return bool(await tx.scalar(text(query)) == count)


async def _sent(world: MailWorld, events: list[Event]) -> bool:
    records = await world.records()
    return all(each.id in records and records[each.id]["state"] == DeliveryState.SENT for each in events)


async def test_codes_go_before_the_backlog_of_an_outage(world: MailWorld) -> None:
    stories = [story_completed(world.accounts.add()) for _ in range(30)]
    code = code_issued()
    async with listening(MailServer()) as server:
        server.greeting = "421 closing"
        world.smtp_port = server.port
        async with world.working():
            await world.send(*stories)
            await until(world.decided)
        await world.send(code)
        world.poll_seconds = 60  # what is due is claimed in one look
        server.greeting = "220 ready"
        async with world.working():
            await until(world.idle)
    assert any(f"<{code.id}@".encode() in mail for mail in server.mails[:10])


@pytest.mark.parametrize("step", ["prepares", "connects"])
async def test_a_mail_that_fails_in_a_way_that_nobody_foresaw_ends_and_holds_no_other_back(
    world: MailWorld, step: str
) -> None:
    poison, good = story_completed(world.accounts.add()), [story_completed(world.accounts.add()) for _ in range(8)]

    async def act(delivery: Delivery) -> None:
        if delivery.event_id == poison.id:
            raise ZeroDivisionError

    world.channel = ScriptedChannel()
    setattr(world.channel, step, act)
    await world.handle(poison, *good)
    assert await _sent(world, good)
    failed = (await world.records())[poison.id]
    assert (failed["state"], failed["reason"], failed["attempts"]) == (DeliveryState.FAILED, "UNFORESEEN_ERROR", 3)
    assert await world.steps(poison) == ["QUEUED", "DEFERRED UNFORESEEN_ERROR", "FAILED UNFORESEEN_ERROR"]
    assert await world.dead() == []
