"""What makes the pauses between attempts longer: failures, and nothing else that begins another attempt."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from kit.errors import Unavailable
from kit.events.envelope import Event
from services.notification import store
from services.notification.adapters.smtp import OutcomeUnknown, Postponed, TryAgain
from services.notification.model.deliveries import Channel, Delivery, DeliveryState, Outcome
from services.notification.operations.channels import Undeliverable
from services.notification.store.attempts import Attempt, Beginning, begin_sending
from tests.notification.conftest import MailWorld, code_issued
from tests.notification.scripted_channel import ScriptedChannel
from tests.waiting import until

LEASE = timedelta(seconds=15)
TURN = timedelta(milliseconds=10)


@dataclass
class Pauses:
    """Notes by which count of failures each pause is asked for. Pauses are short."""

    counts: list[int] = field(default_factory=list)

    def __call__(self, failures: int, _life: timedelta) -> timedelta:
        self.counts.append(failures)
        return TURN


class Script:
    """Lets the attempts of a delivery end as the test says, and the later ones succeed."""

    def __init__(self, *fates: Exception) -> None:
        self._fates = list(fates)
        self.connections = 0

    async def connects(self, _delivery: Delivery) -> None:
        self.connections += 1
        if self._fates:
            raise self._fates.pop(0)


WAITS = {
    "our own rate": Postponed(0.01),
    "a slow domain": Undeliverable(Outcome(DeliveryState.QUEUED, "DOMAIN_SLOW", retry_after=TURN, setback=False)),
}
FAILURES = {
    "no server": TryAgain("421"),
    "a peer is away": Unavailable(),
    "an error that nobody foresaw": ZeroDivisionError(),
    "an unknown outcome": OutcomeUnknown(""),
    "a receiver that names a time": Undeliverable(Outcome(DeliveryState.QUEUED, "RECEIVER_FAILED", retry_after=TURN)),
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_pauses_grow_with_each_failure(world: MailWorld, kind: str) -> None:
    world.pause = pauses = Pauses()
    world.max_failures = 9
    again = FAILURES[kind] if kind != "an unknown outcome" else TryAgain("421")
    world.channel = ScriptedChannel(connects=Script(FAILURES[kind], again, again).connects)
    await world.handle(code_issued())
    assert pauses.counts == [1, 2, 3]


@pytest.mark.parametrize("kind", WAITS)
async def test_waits_for_a_turn_make_no_later_pause_longer(world: MailWorld, kind: str) -> None:
    world.pause = pauses = Pauses()
    failure = TryAgain("421")
    world.channel = ScriptedChannel(connects=Script(*[WAITS[kind]] * 5, failure, *[WAITS[kind]] * 5, failure).connects)
    code = code_issued()
    await world.handle(code)
    assert (await world.records())[code.id]["attempts"] == 13
    assert (pauses.counts[5], pauses.counts[11]) == (1, 2)


async def test_a_worker_that_stops_makes_no_later_pause_longer(world: MailWorld) -> None:
    world.pause = pauses = Pauses()
    code, script, began = code_issued(), Script(TryAgain("421")), asyncio.Event()

    async def hangs(_delivery: Delivery) -> None:
        began.set()
        await asyncio.Event().wait()

    world.channel = ScriptedChannel(prepares=hangs)
    await world.send(code)
    for _ in range(5):
        async with world.working(cut_off=True):
            await until(began.is_set)
            began.clear()
    world.channel = ScriptedChannel(connects=script.connects)
    async with world.working():
        await until(world.idle)
    record = (await world.records())[code.id]
    assert (record["state"], record["attempts"], pauses.counts) == (DeliveryState.SENT, 7, [1])


async def test_workers_that_die_make_pauses_longer_by_their_own_number_and_no_later_pause(world: MailWorld) -> None:
    world.pause = pauses = Pauses()
    code, script = code_issued(), Script(TryAgain("421"))
    await decided(world, code)
    for hours in range(3):
        claimed = await claim(world, datetime.now(UTC) + timedelta(hours=hours))
    async with world.db.transaction() as tx:
        assert claimed
        begun = await begin_sending(tx, [Attempt(claimed)], datetime.now(UTC), timedelta(seconds=-1))
    assert begun == [Beginning.BEGUN]
    world.lease_seconds, world.channel = 0.3, ScriptedChannel(connects=script.connects)
    async with world.working():
        await until(world.idle)
    record = (await world.records())[code.id]
    assert (record["state"], script.connections, pauses.counts) == (DeliveryState.SENT, 2, [3, 1])


async def test_workers_that_die_one_after_another_over_a_delivery_claim_it_more_and_more_seldom(
    world: MailWorld,
) -> None:
    """The count begins anew with each outcome, and with each worker that gives it back."""
    code, waits = code_issued(life=timedelta(hours=9)), []
    await decided(world, code)
    now = datetime.now(UTC)
    for _ in range(4):
        assert await claim(world, now)
        due_at = (await world.records())[code.id]["due_at"]
        waits.append((due_at - now).total_seconds())
        now = due_at
    assert waits == [2, 4, 8, 16]
    claimed = await claim(world, now)
    assert claimed
    async with world.db.transaction() as tx:
        await store.deliveries.hand_back(tx, claimed, now)
    assert await claim(world, now)
    assert (await world.records())[code.id]["due_at"] - now == timedelta(seconds=2)


async def test_a_lease_is_renewed_while_an_attempt_lasts_and_not_after_its_end(world: MailWorld) -> None:
    """A worker still counts an attempt among its own for a moment after it has recorded the end."""
    code = code_issued()
    await decided(world, code)
    now = datetime.now(UTC)
    claimed = await claim(world, now)
    assert claimed
    async with world.db.transaction() as tx:
        assert await store.deliveries.renew(tx, {claimed.id}, LEASE) == {claimed.id: 1}
        await store.deliveries.hand_back(tx, claimed, now)
        assert await store.deliveries.renew(tx, {claimed.id}, LEASE) == {}
    assert (await world.records())[code.id]["leased_until"] is None


@pytest.mark.parametrize("order", ["the overtaken one first", "both at once"])
async def test_an_attempt_that_was_overtaken_while_it_was_prepared_hands_nothing_over(
    world: MailWorld, order: str
) -> None:
    """The later one is being prepared too, and has not begun to hand over."""
    code, other, prepared = code_issued(), code_issued(), [asyncio.Event(), asyncio.Event()]
    begun: list[int] = []
    handed_over: list[int] = []

    async def prepares(delivery: Delivery) -> None:
        if delivery.event_id == code.id:
            begun.append(delivery.attempts)
            await prepared[delivery.attempts - 1].wait()

    async def connects(delivery: Delivery) -> None:
        if delivery.event_id == code.id:
            handed_over.append(delivery.attempts)

    world.channel = ScriptedChannel(prepares=prepares, connects=connects)
    async with world.working():
        await world.send(code)
        await until(lambda: begun == [1])
        async with world.db.transaction() as tx:
            await tx.execute(text("UPDATE deliveries SET due_at = now(), leased_until = now() - interval '1 second'"))
        await until(lambda: begun == [1, 2])
        prepared[0].set()
        if order == "the overtaken one first":
            # What begins later has begun: so the overtaken one was answered.
            await world.send(other)
            await until(lambda: world.channel and world.channel.taken[other.id])
        prepared[1].set()
        await until(world.idle)
    assert handed_over == [2]
    assert (await world.records())[code.id]["state"] == DeliveryState.SENT


async def decided(world: MailWorld, event: Event) -> None:
    """Decide the event with no worker that has room for it."""
    world.concurrency = 0
    async with world.working():
        await world.send(event)
        await until(world.decided)
    world.concurrency = 4


async def claim(world: MailWorld, now: datetime) -> Delivery | None:
    """Claim as a worker does that dies at once: its lease is over."""
    async with world.db.transaction() as tx:
        found = await store.deliveries.claim(tx, [Channel.EMAIL], 1, now, timedelta(seconds=-1))
        await tx.execute(text("UPDATE deliveries SET leased_until = leased_until - interval '1 second'"))
    return found[0] if found else None
