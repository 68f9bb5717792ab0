"""Mails of unknown outcome, which administrators have sent again or settle, and how long records are kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import update
from storymesh.notification.v1 import delivery_pb2

from kit.events.envelope import Event
from services.notification.operations.record_keeping import RecordKeeping
from services.notification.tables import deliveries
from tests.notification.conftest import (
    MailWorld,
    story_completed,
)
from tests.notification.desk import ADMIN, Desk
from tests.notification.smtp_servers import MailServer, listening
from tests.statuses import raises_status, violated_fields
from tests.waiting import until

if TYPE_CHECKING:
    pass


async def unknown(world: MailWorld, *events: Event) -> None:
    """Have the mail server vanish after each mail's end."""
    server = MailServer(taken=None)
    async with listening(server):
        world.smtp_port = server.port
        await world.handle(*events)


async def test_a_mail_of_unknown_outcome_is_seen_and_sent_again_by_an_administrator(
    world: MailWorld, desk: Desk
) -> None:
    user = world.accounts.add("ada@example.com")
    story = story_completed(user)
    await unknown(world, story)
    (seen,) = await desk.deliveries(state=delivery_pb2.DELIVERY_STATE_UNKNOWN)
    assert seen.event_id == str(story.id)
    resent = await desk.resend(seen.id)
    assert resent.state == delivery_pb2.DELIVERY_STATE_QUEUED
    assert (await desk.resend(seen.id)).state == delivery_pb2.DELIVERY_STATE_QUEUED
    server = MailServer()
    async with listening(server):
        world.smtp_port = server.port
        async with world.working():
            await until(world.idle)
    (mail,) = server.mails
    assert f"Message-ID: <{story.id}@mail.example>".encode() in mail
    steps = await world.steps(story)
    assert steps[-2:] == [f"RESENT by {ADMIN}: the server has no trace of it", "SENT"]
    assert (await desk.resend(seen.id)).state == delivery_pb2.DELIVERY_STATE_SENT


@pytest.mark.parametrize("state", [delivery_pb2.DELIVERY_STATE_SENT, delivery_pb2.DELIVERY_STATE_FAILED])
async def test_a_mail_of_unknown_outcome_is_settled_by_an_administrator(
    world: MailWorld, desk: Desk, state: delivery_pb2.DeliveryState.ValueType
) -> None:
    story = story_completed(world.accounts.add("ada@example.com"))
    await unknown(world, story)
    (seen,) = await desk.deliveries(state=delivery_pb2.DELIVERY_STATE_UNKNOWN)
    for _ in range(2):
        settled = await desk.settle(seen.id, state)
        assert (settled.state, settled.reason) == (state, "SETTLED_BY_ADMINISTRATOR")
    assert (await world.records())[story.id]["event"] is None
    name = delivery_pb2.DeliveryState.Name(state).removeprefix("DELIVERY_STATE_")
    assert (await world.steps(story))[-1] == f"{name} SETTLED_BY_ADMINISTRATOR {ADMIN}: seen in the server's log"
    other = {delivery_pb2.DELIVERY_STATE_SENT: 5, delivery_pb2.DELIVERY_STATE_FAILED: 3}[state]
    with raises_status(StatusCode.FAILED_PRECONDITION, "DELIVERY_NOT_UNKNOWN"):
        await desk.settle(seen.id, other)  # type: ignore[arg-type]  # a number of the enum


async def test_a_mail_whose_time_is_over_is_not_sent_again_and_its_content_is_deleted(
    world: MailWorld, desk: Desk
) -> None:
    story = story_completed(world.accounts.add("ada@example.com"))
    await unknown(world, story)
    (seen,) = await desk.deliveries(state=delivery_pb2.DELIVERY_STATE_UNKNOWN)
    assert (await world.records())[story.id]["event"]
    past = datetime.now(UTC) - timedelta(seconds=1)
    await RecordKeeping(world.db, None, world.clock).forget()
    assert (await world.records())[story.id]["event"]
    async with world.db.transaction() as tx:
        await tx.execute(update(deliveries).values(expires_at=past))
    with raises_status(StatusCode.FAILED_PRECONDITION, "DELIVERY_NOT_RESENDABLE"):
        await desk.resend(seen.id)
    await RecordKeeping(world.db, None, world.clock).forget()
    assert (await world.records())[story.id]["event"] is None
    assert (await desk.settle(seen.id, delivery_pb2.DELIVERY_STATE_FAILED)).state == delivery_pb2.DELIVERY_STATE_FAILED


async def test_deliveries_that_ended_long_ago_go_with_their_steps_and_others_stay(world: MailWorld, desk: Desk) -> None:
    ended = [story_completed(world.accounts.add(f"ada{number}@example.com")) for number in range(3)]
    for story in ended:
        await unknown(world, story)
    waiting = story_completed(world.accounts.add("grace@example.com"))
    await unknown(world, waiting)
    async with world.db.transaction() as tx:
        await tx.execute(update(deliveries).where(deliveries.c.event_id == waiting.id).values(state="QUEUED"))
    now = world.clock()
    await RecordKeeping(world.db, None, lambda: now + timedelta(days=89), batch=2).forget()
    assert len(await world.records()) == 4
    assert all([await world.steps(story) for story in ended])
    await RecordKeeping(world.db, None, lambda: now + timedelta(days=91), batch=2).forget()
    assert set(await world.records()) == {waiting.id}
    assert not any([await world.steps(story) for story in ended])


async def test_what_is_not_there_or_not_open_is_refused(world: MailWorld, desk: Desk) -> None:
    for call in (desk.resend(str(uuid4())), desk.settle(str(uuid4()), delivery_pb2.DELIVERY_STATE_SENT)):
        with raises_status(StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
            await call
    server = MailServer(recipient="550 5.1.1 no")
    async with listening(server):
        world.smtp_port = server.port
        await world.handle(story_completed(world.accounts.add()))
    (failed,) = await desk.deliveries()
    with raises_status(StatusCode.FAILED_PRECONDITION, "DELIVERY_NOT_UNKNOWN"):
        await desk.resend(failed.id)
    for state in (0, 1, 2, 4, 6, 7, 99):
        with pytest.raises(AioRpcError) as raised:
            await desk.settle(failed.id, state)  # type: ignore[arg-type]  # numbers that the enum has and has not
        assert violated_fields(raised.value) == ["state"]
