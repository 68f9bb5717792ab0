"""Deliveries as administrators see them: who may, listed page by page, and explained."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import delete, update
from storymesh.notification.v1 import delivery_pb2
from storymesh.notification.v1 import delivery_service_pb2 as pb

from services.notification import store
from services.notification.model.deliveries import Step
from services.notification.tables import delivery_steps
from tests.notification.conftest import (
    MailWorld,
    code_issued,
    story_completed,
    user_deleted,
)
from tests.notification.desk import Desk, shown, suppress
from tests.notification.smtp_servers import MailServer, listening
from tests.statuses import raises_status, violated_fields
from tests.waiting import until

if TYPE_CHECKING:
    pass


async def test_nobody_but_administrators_is_let_in(desk: Desk) -> None:
    an_id = str(uuid4())
    calls: tuple[tuple[Any, Any], ...] = (
        (desk.stub.ListDeliveries, pb.ListDeliveriesRequest()),
        (desk.stub.ExplainNotification, pb.ExplainNotificationRequest(event_id=an_id)),
        (desk.stub.ResendDelivery, pb.ResendDeliveryRequest(delivery_id=an_id, reason="mine")),
        (
            desk.stub.SettleDelivery,
            pb.SettleDeliveryRequest(delivery_id=an_id, state=delivery_pb2.DELIVERY_STATE_SENT, reason="mine"),
        ),
        (desk.stub.ListSuppressions, pb.ListSuppressionsRequest()),
        (desk.stub.FindSuppression, pb.FindSuppressionRequest(email="ada@example.com")),
        (desk.stub.DeleteSuppression, pb.DeleteSuppressionRequest(suppression_id=an_id)),
    )
    for call, request in calls:
        with raises_status(StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"):
            await call(request, metadata=desk.user_auth)
        with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
            await call(request)


async def test_deliveries_are_found_by_person_event_state_and_time_page_by_page(world: MailWorld, desk: Desk) -> None:
    ada, bob = world.accounts.add("ada@example.com"), world.accounts.add("bob@example.com")
    begun = datetime.now(UTC)
    stories = [story_completed(ada) for _ in range(5)]
    refused, code = story_completed(bob), code_issued()
    server = MailServer(recipients={"bob@example.com": "550 5.1.1 no"})
    async with listening(server):
        world.smtp_port = server.port
        await world.handle(*stories, refused, code)
    everything = await desk.deliveries(page_size=2)
    assert len({each.id for each in everything}) == 7
    assert [each.id for each in everything] == sorted((each.id for each in everything), reverse=True)
    assert {each.event_id for each in await desk.deliveries(user_id=str(ada), page_size=2)} == {
        str(s.id) for s in stories
    }
    (failed,) = await desk.deliveries(state=delivery_pb2.DELIVERY_STATE_FAILED)
    assert (failed.event_id, failed.answer, failed.kind, failed.user_id) == (
        str(refused.id),
        "550 5.1.1",
        "STORY_READY",
        str(bob),
    )
    assert not failed.HasField("due_time")
    (one,) = await desk.deliveries(event_id=str(code.id))
    assert (one.user_id, one.kind, one.channel) == ("", "CODE", delivery_pb2.DELIVERY_CHANNEL_EMAIL)
    early, late = Timestamp(), Timestamp()
    early.FromDatetime(begun - timedelta(seconds=5))
    late.FromDatetime(begun + timedelta(minutes=5))
    assert len(await desk.deliveries(start_time=early, end_time=late)) == 7
    assert await desk.deliveries(end_time=early) == []
    assert await desk.deliveries(start_time=late) == []


async def test_a_page_token_works_for_its_own_query_alone(world: MailWorld, desk: Desk) -> None:
    user = world.accounts.add()
    await world.handle(story_completed(user), story_completed(user))
    listed = await desk.stub.ListDeliveries(pb.ListDeliveriesRequest(page_size=1), metadata=desk.auth)
    explained = await desk.stub.ExplainNotification(
        pb.ExplainNotificationRequest(user_id=str(user), page_size=1), metadata=desk.auth
    )
    for token in (listed.next_page_token, explained.next_page_token, "made-up"):
        assert token
        calls: tuple[tuple[Any, Any], ...] = (
            (desk.stub.ListDeliveries, pb.ListDeliveriesRequest(user_id=str(user), page_token=token)),
            (desk.stub.ExplainNotification, pb.ExplainNotificationRequest(user_id=str(uuid4()), page_token=token)),
            (desk.stub.ListSuppressions, pb.ListSuppressionsRequest(page_token=token)),
        )
        for call, request in calls:
            with pytest.raises(AioRpcError) as raised:
                await call(request, metadata=desk.auth)
            assert violated_fields(raised.value) == ["page_token"]


async def test_a_question_without_event_or_person_and_a_time_outside_of_history_are_refused(desk: Desk) -> None:
    for request in (
        pb.ExplainNotificationRequest(),
        pb.ExplainNotificationRequest(user_id="ada"),
        pb.ExplainNotificationRequest(user_id=str(uuid4()), start_time=Timestamp(seconds=2**60)),
    ):
        with pytest.raises(AioRpcError) as raised:
            await desk.stub.ExplainNotification(request, metadata=desk.auth)
        assert raised.value.code() is StatusCode.INVALID_ARGUMENT


async def test_an_explanation_tells_each_step_with_its_time_and_the_final_decision_of_each_channel(
    world: MailWorld, desk: Desk
) -> None:
    user = world.accounts.add("ada@example.com")
    story = story_completed(user)
    server = MailServer(recipient="450 4.2.0 greylisted")
    async with listening(server):
        world.smtp_port = server.port
        async with world.working():
            await world.send(story, story)
            await until(lambda: server.verbs.count("RCPT") >= 3)
            waiting = await desk.explain_event(story)
            server.recipient = "250 ok"
            await until(world.idle)
    assert {"QUEUED", "DEFERRED", "DEDUPLICATED"} == {step.decision for step in waiting.steps if step.channel == 1}
    assert shown(waiting) == [("IN_APP", "ADDED", "")]
    assert waiting.deliveries[0].HasField("due_time")
    notice = await desk.explain_event(story)
    mail = [(step.decision, step.detail) for step in notice.steps if step.channel == 1]
    assert ("QUEUED", "") in mail
    assert mail[-1] == ("SENT", "")
    assert ("DEFERRED", "DEFERRED 450 4.2.0") in mail
    assert shown(notice) == [("IN_APP", "ADDED", ""), ("EMAIL", "SENT", "")]
    assert notice.user_id == str(user)
    times = [step.occur_time.ToDatetime() for step in notice.steps]
    assert times == sorted(times)


async def test_a_persons_notices_of_a_span_of_time_are_explained_page_by_page(world: MailWorld, desk: Desk) -> None:
    ada, bob = world.accounts.add("ada@example.com"), world.accounts.add("bob@example.com")
    stories = [story_completed(ada) for _ in range(5)]
    await world.handle(*stories, story_completed(bob))
    old = datetime.now(UTC) - timedelta(days=2)
    async with world.db.transaction() as tx:
        about = delivery_steps.c.event_id == stories[0].id
        await tx.execute(update(delivery_steps).where(about).values(occurred_at=old))
    notices = await desk.explain(user_id=str(ada), page_size=2)
    assert {each.event_id for each in notices} == {str(each.id) for each in stories}
    assert len(notices) == 5
    assert notices[-1].event_id == str(stories[0].id)
    start, end = Timestamp(), Timestamp()
    start.FromDatetime(old - timedelta(hours=1))
    end.FromDatetime(old + timedelta(hours=1))
    (only,) = await desk.explain(user_id=str(ada), start_time=start, end_time=end)
    assert only.event_id == str(stories[0].id)
    assert await desk.explain(user_id=str(bob), event_id=str(stories[1].id)) == []
    assert await desk.explain(user_id=str(uuid4())) == []


async def test_many_steps_of_one_event_are_told_by_the_first_and_the_last(world: MailWorld, desk: Desk) -> None:
    user, event_id, now = uuid4(), uuid4(), datetime.now(UTC)
    async with world.db.transaction() as tx:
        for number in range(600):
            step = Step(event_id, "EMAIL", user, now, "DEFERRED", str(number))  # type: ignore[arg-type]  # as stored
            await store.deliveries.add_step(tx, step)
    (notice,) = await desk.explain(event_id=str(event_id))
    details = [int(step.detail) for step in notice.steps]
    assert details == [*range(250), *range(350, 600)]


async def test_what_is_erased_is_neither_listed_nor_explained(world: MailWorld, desk: Desk) -> None:
    user = world.accounts.add("ada@example.com")
    story = story_completed(user)
    await world.handle(story)
    await suppress(world, "ada@example.com", user, story.id)
    await world.handle(user_deleted(user))
    assert await desk.deliveries(user_id=str(user)) == []
    assert await desk.explain(user_id=str(user)) == []
    assert await desk.explain(event_id=str(story.id)) == []
    assert await desk.suppressions() == []


async def test_an_event_without_steps_is_told_as_unknown(world: MailWorld, desk: Desk) -> None:
    async with world.db.transaction() as tx:
        await tx.execute(delete(delivery_steps))
    assert await desk.explain(event_id=str(uuid4())) == []
