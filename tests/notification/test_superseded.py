"""Codes that were asked for again: only the latest of a challenge is mailed, whatever arrives first and whoever delivers it."""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from storymesh.events.v1 import auth_events_pb2 as auth

from kit.events.envelope import Event
from services.notification.adapters.smtp import TryAgain
from services.notification.model.deliveries import Delivery, DeliveryState
from tests.notification.conftest import MailWorld, code_issued
from tests.notification.desk import Desk, shown
from tests.notification.scripted_channel import ScriptedChannel
from tests.notification.smtp_servers import MailServer, listening
from tests.waiting import until

KINDS = [name for name, number in auth.CodePurpose.items() if number]

SUPERSEDED = (DeliveryState.SUPPRESSED, "SUPERSEDED", None)
SENT = (DeliveryState.SENT, "", None)


def codes(count: int, purpose: str = "CODE_PURPOSE_REGISTRATION") -> list[Event]:
    """Codes of one challenge, each issued 15 seconds after the one before."""
    challenge, begun = uuid4(), datetime.now(UTC) - timedelta(minutes=1)
    return [
        code_issued(
            f"{number:06}",
            challenge=challenge,
            purpose=auth.CodePurpose.Value(purpose),
            occurred_at=begun + timedelta(seconds=15 * number),
        )
        for number in range(count)
    ]


async def ends(world: MailWorld, *events: Event) -> list[tuple[str, str, bytes | None]]:
    """State, reason and content of the events' deliveries."""
    records = await world.records()
    return [(records[each.id]["state"], records[each.id]["reason"], records[each.id]["event"]) for each in events]


async def is_known(world: MailWorld, event: Event) -> bool:
    return event.id in await world.records()


def about(server: MailServer) -> list[str]:
    """The codes that the server has taken, in order."""
    return [found[1].decode() for mail in server.mails if (found := re.search(rb"\b(0000\d\d)\b", mail))]


@pytest.mark.parametrize("order", ["in order", "the later one first"])
@pytest.mark.parametrize("purpose", KINDS)
async def test_of_two_codes_that_waited_for_the_mail_server_only_the_later_one_is_mailed(
    world: MailWorld,
    desk: Desk,
    purpose: str,
    order: str,
) -> None:
    first, second = codes(2, purpose)
    async with listening(MailServer(greeting="421 closing")) as server:
        world.smtp_port = server.port
        async with world.working():
            for each in [first, second] if order == "in order" else [second, first]:
                await world.send(each)
                await until(lambda event=each: is_known(world, event))  # type: ignore[misc]
            server.greeting = "220 ready"
            await until(world.idle)
    assert about(server) == ["000001"]
    assert await ends(world, first, second) == [SUPERSEDED, SENT]
    assert (await world.steps(first))[-1] == "SUPPRESSED SUPERSEDED"
    assert shown(await desk.explain_event(first)) == [("EMAIL", "SUPPRESSED", "SUPERSEDED")]
    assert shown(await desk.explain_event(second)) == [("EMAIL", "SENT", "")]


async def test_a_code_that_waits_is_suppressed_while_the_mail_server_is_still_away(world: MailWorld) -> None:
    first, second = codes(2)
    world.pause = lambda _attempts, _life: timedelta(minutes=5)
    async with listening(MailServer(greeting="421 closing")) as server:
        world.smtp_port = server.port
        async with world.working():
            await world.send(first)
            await until(lambda: deferred(world, first))
            await world.send(second)
            await until(lambda: deferred(world, second))
            assert await ends(world, first) == [SUPERSEDED]


async def deferred(world: MailWorld, event: Event) -> bool:
    return any(step.startswith("DEFERRED") for step in await world.steps(event))


async def test_a_code_that_arrives_after_a_later_one_was_mailed_is_not_mailed(world: MailWorld) -> None:
    first, second = codes(2)
    async with listening(MailServer()) as server:
        world.smtp_port = server.port
        await world.handle(second)
        await world.handle(first)
    assert about(server) == ["000001"]
    assert await ends(world, first, second) == [SUPERSEDED, SENT]


async def test_codes_of_the_same_moment_have_one_order_everywhere(world: MailWorld) -> None:
    moment, challenge = datetime.now(UTC), uuid4()
    pair = sorted((code_issued(challenge=challenge, occurred_at=moment) for _ in range(2)), key=lambda each: each.id)
    async with listening(MailServer(greeting="421 closing")) as server:
        world.smtp_port = server.port
        async with world.working():
            await world.send(*reversed(pair))
            await until(lambda: is_known(world, pair[0]))
            server.greeting = "220 ready"
            await until(world.idle)
    assert await ends(world, *pair) == [SUPERSEDED, SENT]


async def test_codes_of_other_challenges_and_events_without_one_are_mailed_all(world: MailWorld) -> None:
    others = [code_issued(f"{number:06}") for number in range(3)]
    nameless = [code_issued(f"{number:06}", challenge="none") for number in range(3, 5)]
    async with listening(MailServer()) as server:
        world.smtp_port = server.port
        await world.handle(*others, *nameless)
    assert sorted(about(server)) == [f"{number:06}" for number in range(5)]


class TestInTheMiddleOfAnAttempt:
    async def test_a_code_that_is_being_prepared_is_not_handed_over(self, world: MailWorld) -> None:
        first, second = codes(2)
        goes_on = asyncio.Event()
        preparing: list[UUID] = []

        async def prepares(delivery: Delivery) -> None:
            preparing.append(delivery.event_id)
            if delivery.event_id == first.id:
                await goes_on.wait()

        channel = world.channel = ScriptedChannel(prepares=prepares)
        async with world.working():
            await world.send(first)
            await until(lambda: preparing)
            await world.send(second)
            await until(lambda: channel.taken[second.id])
            goes_on.set()
            await until(world.idle)
        assert channel.taken == {second.id: 1}
        assert await ends(world, first, second) == [SUPERSEDED, SENT]
        assert await world.steps(first) == ["QUEUED", "SUPPRESSED SUPERSEDED"]

    async def test_a_code_that_is_being_handed_over_is_left_alone(self, world: MailWorld) -> None:
        first, second = codes(2)
        goes_on = asyncio.Event()

        async def answers(delivery: Delivery) -> None:
            if delivery.event_id == first.id:
                await goes_on.wait()

        channel = world.channel = ScriptedChannel(answers=answers)
        async with world.working():
            await world.send(first)
            await until(lambda: channel.taken[first.id])
            await world.send(second)
            await until(lambda: channel.taken[second.id])
            assert [state for state, _, _ in await ends(world, first)] == [DeliveryState.SENDING]
            goes_on.set()
            await until(world.idle)
        assert await ends(world, first, second) == [SENT, SENT]

    @pytest.mark.parametrize("fate", ["it is refused for now", "the worker dies"])
    async def test_a_code_whose_handover_failed_is_not_handed_over_again(self, world: MailWorld, fate: str) -> None:
        first, second = codes(2)
        goes_on, connects_to = asyncio.Event(), []

        async def connects(delivery: Delivery) -> None:
            connects_to.append(delivery.event_id)
            if delivery.event_id == first.id:
                await goes_on.wait()
                raise TryAgain("421")

        channel = world.channel = ScriptedChannel(connects=connects)
        world.lease_seconds = 0.3
        async with world.working(takes_events=False), world.working(cut_off=fate == "the worker dies"):
            await world.send(first)
            await until(lambda: connects_to)
            await world.send(second)
            await until(lambda: channel.taken[second.id])
            if fate == "it is refused for now":
                goes_on.set()
                await until(world.idle)
        async with world.working():
            await until(world.idle)
        assert channel.taken == {second.id: 1}
        assert await ends(world, first, second) == [SUPERSEDED, SENT]


async def test_of_many_codes_that_many_workers_decide_and_deliver_at_once_the_last_one_is_mailed(
    world: MailWorld,
) -> None:
    everything = [codes(5) for _ in range(6)]
    last = [challenge[-1] for challenge in everything]
    events = [each for challenge in everything for each in challenge]
    random.Random(7).shuffle(events)
    world.poll_seconds = 0.01
    async with listening(MailServer(greeting="421 closing")) as server, AsyncExitStack() as workers:
        world.smtp_port = server.port
        for _ in range(6):
            await workers.enter_async_context(world.working())
        await world.send(*events)
        await until(world.decided)
        server.greeting = "220 ready"
        await until(world.idle)
    assert about(server) == ["000004"] * len(last)
    records = await world.records()
    assert {each.id for each in events if records[each.id]["state"] == DeliveryState.SENT} == {each.id for each in last}
    assert {records[each.id]["reason"] for each in events if each not in last} == {"SUPERSEDED"}
