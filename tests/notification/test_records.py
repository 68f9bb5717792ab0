"""Deliveries as administrators see them: listed, explained, settled, and suppressions found and lifted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import delete, update
from storymesh.events.v1 import auth_events_pb2, story_events_pb2
from storymesh.notification.v1 import delivery_pb2
from storymesh.notification.v1 import delivery_service_pb2 as pb
from storymesh.notification.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from uuid_utils.compat import uuid7

from kit.events.envelope import Event
from kit.rpc.resources import Resources
from services.notification import store
from services.notification.__main__ import api as build_api
from services.notification.config import NotificationSettings
from services.notification.model.deliveries import Step
from services.notification.model.suppressions import Suppression, SuppressionReason, SuppressionSource
from services.notification.operations import operations
from services.notification.operations.record_keeping import RecordKeeping
from services.notification.tables import deliveries, delivery_steps
from tests.identity import Issuer, bearer
from tests.notification.conftest import (
    ADDRESS_KEY,
    DIGESTS,
    SEAL_KEY,
    UNSUBSCRIBE_KEY,
    MailWorld,
    code_issued,
    email_changed,
    event,
    story_completed,
    user_deleted,
)
from tests.notification.smtp_servers import MailServer, listening
from tests.statuses import raises_status, violated_fields
from tests.waiting import until

if TYPE_CHECKING:
    from storymesh.notification.v1.delivery_service_pb2_grpc import DeliveryServiceAsyncStub

KEY = b"k" * 32
ADMIN = uuid4()


class Desk:
    """The service as administrators call it."""

    def __init__(self, stub: DeliveryServiceAsyncStub, issuer: Issuer) -> None:
        self.stub = stub
        self.auth = bearer(issuer.token(ADMIN, "ADMIN"))
        self.user_auth = bearer(issuer.token(uuid4()))

    async def deliveries(self, **fields: Any) -> list[delivery_pb2.Delivery]:
        """All pages of a list."""
        found: list[delivery_pb2.Delivery] = []
        token = ""
        while True:
            request = pb.ListDeliveriesRequest(**fields, page_token=token)
            answer = await self.stub.ListDeliveries(request, metadata=self.auth)
            found += answer.deliveries
            token = answer.next_page_token
            if not token:
                return found

    async def explain(self, **fields: Any) -> list[delivery_pb2.NoticeExplanation]:
        found: list[delivery_pb2.NoticeExplanation] = []
        token = ""
        while True:
            request = pb.ExplainNotificationRequest(**fields, page_token=token)
            answer = await self.stub.ExplainNotification(request, metadata=self.auth)
            found += answer.notices
            token = answer.next_page_token
            if not token:
                return found

    async def explain_event(self, about: Event) -> delivery_pb2.NoticeExplanation:
        (notice,) = await self.explain(event_id=str(about.id))
        return notice

    async def resend(self, delivery_id: str) -> delivery_pb2.Delivery:
        request = pb.ResendDeliveryRequest(delivery_id=delivery_id, reason="the server has no trace of it")
        return (await self.stub.ResendDelivery(request, metadata=self.auth)).delivery

    async def settle(self, delivery_id: str, state: delivery_pb2.DeliveryState.ValueType) -> delivery_pb2.Delivery:
        request = pb.SettleDeliveryRequest(delivery_id=delivery_id, state=state, reason="seen in the server's log")
        return (await self.stub.SettleDelivery(request, metadata=self.auth)).delivery

    async def suppressions(self, **fields: Any) -> list[delivery_pb2.Suppression]:
        request = pb.ListSuppressionsRequest(**fields)
        return list((await self.stub.ListSuppressions(request, metadata=self.auth)).suppressions)


@pytest.fixture
async def desk(world: MailWorld) -> AsyncIterator[Desk]:
    settings = NotificationSettings(
        listen="127.0.0.1:0",
        database_url=world.database_url,
        mesh_key=KEY,
        cursor_key=KEY,
        seal_key=SEAL_KEY,
        unsubscribe_key=UNSUBSCRIBE_KEY,
        address_key=ADDRESS_KEY,
        drain_seconds=1,
    )
    issuer = Issuer()
    async with Resources("notification", settings, db=world.db, revocations=issuer.revocations) as resources:
        server = build_api(settings, resources, operations(settings, resources))
        running = asyncio.create_task(server.run(issuer.access_tokens(), resources.service_tokens))
        async with grpc.aio.insecure_channel(await server.address) as channel:
            yield Desk(DeliveryServiceStub(channel), issuer)
        server.stopping.set()
        await running


def shown(notice: delivery_pb2.NoticeExplanation) -> list[tuple[str, str, str]]:
    """The final decisions of a notice."""
    name = delivery_pb2.DeliveryChannel.Name
    return [
        (name(each.channel).removeprefix("DELIVERY_CHANNEL_"), each.decision, each.detail)
        for each in notice.final_decisions
    ]


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


async def suppress(world: MailWorld, address: str, user: UUID | None, event_id: UUID | None = None) -> Suppression:
    """Suppress an address."""
    suppression = Suppression(
        id=uuid7(),
        address_digest=DIGESTS.of(address),
        user_id=user,
        event_id=event_id or uuid4(),
        reason=SuppressionReason.NO_ADDRESS,
        code="5.1.1",
        source=SuppressionSource.PROVIDER,
        created_at=datetime.now(UTC),
    )
    async with world.db.transaction() as tx:
        await store.suppressions.add(tx, suppression)
    return suppression


async def test_suppressions_are_listed_newest_first_and_found_by_the_address_in_any_spelling(
    world: MailWorld, desk: Desk
) -> None:
    ada = uuid4()
    first, second = await suppress(world, "ada@example.com", ada), await suppress(world, "bob@example.com", None)
    assert [each.id for each in await desk.suppressions()] == [str(second.id), str(first.id)]
    (mine,) = await desk.suppressions(user_id=str(ada))
    assert (mine.id, mine.code, mine.reason, mine.source, mine.event_id) == (
        str(first.id),
        "5.1.1",
        delivery_pb2.SUPPRESSION_REASON_NO_ADDRESS,
        delivery_pb2.SUPPRESSION_SOURCE_PROVIDER,
        str(first.event_id),
    )
    page = await desk.stub.ListSuppressions(pb.ListSuppressionsRequest(page_size=1), metadata=desk.auth)
    rest = await desk.stub.ListSuppressions(
        pb.ListSuppressionsRequest(page_size=1, page_token=page.next_page_token), metadata=desk.auth
    )
    assert [each.id for each in rest.suppressions] == [str(first.id)]
    for spelling in ("ada@example.com", " Ada@EXAMPLE.com\u200b"):
        found = await desk.stub.FindSuppression(pb.FindSuppressionRequest(email=spelling), metadata=desk.auth)
        assert found.suppression.id == str(first.id)
    with raises_status(StatusCode.NOT_FOUND, "SUPPRESSION_NOT_FOUND"):
        await desk.stub.FindSuppression(pb.FindSuppressionRequest(email="eve@example.com"), metadata=desk.auth)


async def test_a_lifted_suppression_lets_the_next_mail_through_and_says_who_lifted_it(
    world: MailWorld, desk: Desk
) -> None:
    user = world.accounts.add("ada@example.com")
    story, later = story_completed(user), story_completed(user)
    server = MailServer(recipient="550 5.1.1 no")
    async with listening(server):
        world.smtp_port = server.port
        await world.handle(story)
    (suppressed,) = await desk.suppressions()
    lift = pb.DeleteSuppressionRequest(suppression_id=suppressed.id)
    await desk.stub.DeleteSuppression(lift, metadata=desk.auth)
    with raises_status(StatusCode.NOT_FOUND, "SUPPRESSION_NOT_FOUND"):
        await desk.stub.DeleteSuppression(lift, metadata=desk.auth)
    async with listening(server := MailServer()):
        world.smtp_port = server.port
        await world.handle(later)
    assert len(server.mails) == 1
    notice = await desk.explain_event(story)
    assert notice.steps[-1].decision == "SUPPRESSION_LIFTED"
    assert notice.steps[-1].detail == f"by {ADMIN}"
    assert ("EMAIL", "FAILED", "RECIPIENT_REFUSED 550 5.1.1") in shown(notice) or (
        "EMAIL",
        "FAILED",
        "REFUSED 550 5.1.1",
    ) in shown(notice)


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


ANSWERS = ("250 ok", "450 4.2.0 later", "550 5.1.1 no such user", "550 5.2.2 full", "554 5.7.1 not from you")


def notices_to(user: UUID) -> list[Event]:
    """One event of each kind that tells a person something."""
    auth = auth_events_pb2
    reused = auth.SESSION_REVOKE_REASON_REFRESH_REUSED
    return [
        story_completed(user),
        event(story_events_pb2.StoryFailed(story_id=str(uuid4()), owner_id=str(user), reason="WRITER_UNAVAILABLE")),
        event(auth.UserRegistered(user_id=str(user))),
        event(auth.PasswordChanged(user_id=str(user))),
        event(auth.PasswordDisabled(user_id=str(user))),
        event(auth.SessionRevoked(user_id=str(user), session_id=str(uuid4()), reason=reused)),
        event(auth.RegistrationRepeated(user_id=str(user))),
        event(auth.AddressClaimed(user_id=str(user))),
        event(auth.UsernameChanged(user_id=str(user))),
        event(auth.EmailChangeStopped(user_id=str(user))),
        email_changed(user),
    ]


@pytest.mark.parametrize("seed", range(4))
async def test_every_notice_has_one_final_decision_for_each_channel_and_the_explanation_names_it(
    world: MailWorld, desk: Desk, seed: int
) -> None:
    """Over every kind of event, whatever the server answers, with suppressed, deleted and unknown recipients, and events twice."""
    chance = random.Random(seed)
    server = MailServer(recipients={})
    events: list[Event] = []
    replies: dict[str, str] = {}
    for number in range(8):
        address = f"user{number}@example.com"
        user = world.accounts.add(address)
        replies[address] = chance.choice(ANSWERS)
        if chance.random() < 0.25:
            await suppress(world, address, user)
        if chance.random() < 0.2:
            world.accounts.delete(user)
        events += chance.sample(notices_to(user), 5)
        events.append(code_issued(to=address, life=timedelta(minutes=chance.choice([-1, 10]))))
    server.recipients = replies
    server.taken = chance.choice(["250 ok", "250 ok", None, "552 5.2.2 full", "451 4.3.0 later"])
    async with listening(server):
        world.smtp_port = server.port
        async with world.working():
            await world.send(*events, *chance.sample(events, 10))
            await until(world.decided)
            await until(lambda: _expired(world), 30)
    for each in events:
        notice = await desk.explain_event(each)
        channels = [(decision.channel, decision.target) for decision in notice.final_decisions]
        ways = {(step.channel, step.target) for step in notice.steps}
        assert sorted(channels) == sorted(ways), (each.type, shown(notice))
        for decision in notice.final_decisions:
            named = [step.decision for step in notice.steps if step.channel == decision.channel]
            assert decision.decision in named
            assert named.count(decision.decision) == 1


async def _expired(world: MailWorld) -> bool:
    """Whether every delivery has its final state. The time of those that were put off is over at once."""
    late = datetime.now(UTC) - timedelta(seconds=1)
    async with world.db.transaction() as tx:
        waiting = (deliveries.c.state == "QUEUED") & (deliveries.c.attempts > 0)
        await tx.execute(update(deliveries).where(waiting).values(expires_at=late))
    return await world.idle()


async def test_an_event_without_steps_is_told_as_unknown(world: MailWorld, desk: Desk) -> None:
    async with world.db.transaction() as tx:
        await tx.execute(delete(delivery_steps))
    assert await desk.explain(event_id=str(uuid4())) == []
