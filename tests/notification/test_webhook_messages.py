"""The messages to a person's webhook as its owner sees them, and what the owner is told when it is disabled."""

from __future__ import annotations

import runpy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import select
from storymesh.events.v1 import auth_events_pb2, story_events_pb2
from storymesh.notification.v1 import webhook_service_pb2 as pb
from storymesh.notification.v1.delivery_pb2 import (
    DELIVERY_STATE_FAILED,
    DELIVERY_STATE_QUEUED,
    DELIVERY_STATE_SENT,
    DELIVERY_STATE_SUPPRESSED,
)
from storymesh.notification.v1.notification_pb2 import (
    NOTIFICATION_TYPE_STORY_READY,
    NOTIFICATION_TYPE_WEBHOOK_DISABLED,
    TARGET_TYPE_WEBHOOK,
)
from storymesh.notification.v1.webhook_pb2 import Webhook, WebhookDelivery

from services.notification import store
from services.notification.model.deliveries import Channel
from services.notification.model.letters import languages
from services.notification.model.local_time import DailyRange
from services.notification.model.notices import BY_WEBHOOK, NOTICES
from services.notification.model.preferences import Preferences, Timing
from services.notification.operations import letters_of
from services.notification.operations.record_keeping import RecordKeeping
from services.notification.tables import deliveries
from tests.notification.conftest import MailWorld, story_completed, user_deleted
from tests.notification.webhook_receivers import Receiver, WebhookApi
from tests.statuses import raises_status, violated_fields
from tests.waiting import until

pytestmark = pytest.mark.slow


async def resend(webhooks: WebhookApi, user: object, webhook: Webhook, delivery_id: str) -> WebhookDelivery:
    request = pb.ResendWebhookDeliveryRequest(webhook_id=webhook.id, delivery_id=delivery_id)
    auth = webhooks.auth(user)  # type: ignore[arg-type]
    return (await webhooks.stub.ResendWebhookDelivery(request, metadata=auth)).delivery


async def kept(world: MailWorld) -> list[bool]:
    """Of each delivery by webhook whether its content is there, in order."""
    async with world.db.transaction() as tx:
        query = select(deliveries.c.event).where(deliveries.c.channel == "WEBHOOK").order_by(deliveries.c.id)
        return [event is not None for event in await tx.scalars(query)]


async def test_an_owner_sees_each_message_with_what_became_of_it_page_by_page(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    ada, bob = world.accounts.add(), world.accounts.add("bob@example.com")
    webhook, _ = await webhooks.register(ada, receiver.url)
    other, _ = await webhooks.register(bob, receiver.url)
    receiver.answers = ["500 no", "200 OK"]
    for _ in range(3):
        await world.handle(story_completed(ada))
    await world.handle(story_completed(bob))
    *_, first = await webhooks.messages(ada, webhook)
    assert (first.type, first.state, first.attempts) == (NOTIFICATION_TYPE_STORY_READY, DELIVERY_STATE_SENT, 2)
    assert first.create_time.seconds <= first.change_time.seconds < first.expire_time.seconds
    assert not first.HasField("due_time")
    assert first.id == receiver.requests[0].headers["webhook-id"]

    request = pb.ListWebhookDeliveriesRequest(webhook_id=webhook.id, page_size=2)
    page = await webhooks.stub.ListWebhookDeliveries(request, metadata=webhooks.auth(ada))
    request.page_token = page.next_page_token
    last = await webhooks.stub.ListWebhookDeliveries(request, metadata=webhooks.auth(ada))
    ids = [each.id for each in (*page.deliveries, *last.deliveries)]
    assert (len(set(ids)), ids, last.next_page_token) == (3, sorted(ids, reverse=True), "")
    failed = pb.ListWebhookDeliveriesRequest(webhook_id=webhook.id, state=DELIVERY_STATE_FAILED)
    assert not (await webhooks.stub.ListWebhookDeliveries(failed, metadata=webhooks.auth(ada))).deliveries

    for webhook_id in (other.id, str(uuid4())):
        with raises_status(StatusCode.NOT_FOUND, "WEBHOOK_NOT_FOUND"):
            foreign = pb.ListWebhookDeliveriesRequest(webhook_id=webhook_id)
            await webhooks.stub.ListWebhookDeliveries(foreign, metadata=webhooks.auth(ada))
    moved = pb.ListWebhookDeliveriesRequest(webhook_id=other.id, page_token=page.next_page_token)
    with pytest.raises(AioRpcError) as raised:
        await webhooks.stub.ListWebhookDeliveries(moved, metadata=webhooks.auth(bob))
    assert violated_fields(raised.value) == ["page_token"]


async def test_a_message_that_waits_shows_the_answer_and_is_tried_at_once_when_its_owner_wants(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    world.pause = lambda _attempts, _life: timedelta(minutes=30)
    webhook, _ = await webhooks.register(ada, receiver.url)
    receiver.answers = ["503 later", "200 OK"]
    async with world.working():
        await world.send(story_completed(ada))
        waiting = (await until(lambda: answered(webhooks, ada, webhook)))[0]
        assert (waiting.state, waiting.reason) == (DELIVERY_STATE_QUEUED, "STATUS_NOT_SUCCESS")
        assert (waiting.status_code, waiting.attempts) == (503, 1)
        assert waiting.due_time.seconds > datetime.now(UTC).timestamp() + 600
        await resend(webhooks, ada, webhook, waiting.id)
        await until(world.idle)
    (sent,) = await webhooks.messages(ada, webhook)
    assert (sent.state, sent.attempts) == (DELIVERY_STATE_SENT, 2)
    assert (await resend(webhooks, ada, webhook, sent.id)).state == DELIVERY_STATE_SENT
    await world.handle()
    assert len(receiver.requests) == 2


async def answered(webhooks: WebhookApi, user: object, webhook: Webhook) -> list[WebhookDelivery]:
    return [each for each in await webhooks.messages(user, webhook) if each.status_code]  # type: ignore[arg-type]


async def test_what_failed_or_waited_when_the_webhook_was_disabled_is_sent_again_under_its_id(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    webhook, secret = await webhooks.register(ada, receiver.url)
    receiver.answers = ["500 no", "410 gone", "200 OK"]
    world.pause = lambda _attempts, _life: timedelta(seconds=1)
    async with world.working():
        await world.send(story_completed(ada))
        await until(lambda: len(receiver.requests) == 1)
        await world.send(story_completed(ada))
        await until(world.idle)
    await world.handle(story_completed(ada))
    never, *ended = await webhooks.messages(ada, webhook)
    assert {each.state for each in ended} == {DELIVERY_STATE_FAILED, DELIVERY_STATE_SUPPRESSED}
    with raises_status(StatusCode.FAILED_PRECONDITION, "WEBHOOK_DISABLED"):
        await resend(webhooks, ada, webhook, ended[0].id)
    await webhooks.update(ada, webhook, enabled=True)
    for each in ended:
        assert (await resend(webhooks, ada, webhook, each.id)).state == DELIVERY_STATE_QUEUED
    with raises_status(StatusCode.FAILED_PRECONDITION, "DELIVERY_NOT_RESENDABLE"):
        # It happened while the webhook was disabled.
        await resend(webhooks, ada, webhook, never.id)
    await world.handle()
    assert [each.state for each in (await webhooks.messages(ada, webhook))[1:]] == [DELIVERY_STATE_SENT] * 2
    again = receiver.requests[2:]
    assert {each.headers["webhook-id"] for each in again} == {each.id for each in ended}
    assert all(each.is_signed_with(secret) for each in again)
    assert not any(await kept(world))


async def test_a_message_of_anothers_webhook_looks_like_one_that_does_not_exist(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    ada, bob = world.accounts.add(), world.accounts.add("bob@example.com")
    webhook, _ = await webhooks.register(ada, receiver.url)
    own, _ = await webhooks.register(bob, receiver.url)
    await world.handle(story_completed(ada))
    (message,) = await webhooks.messages(ada, webhook)
    mails = [each.id for each in await webhooks.deliveries(user_id=str(ada)) if not each.target]
    for delivery_id in (message.id, str(uuid4()), *mails):
        with raises_status(StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
            await resend(webhooks, bob, own, delivery_id)
    with raises_status(StatusCode.NOT_FOUND, "WEBHOOK_NOT_FOUND"):
        await resend(webhooks, bob, webhook, message.id)


async def test_content_that_can_be_sent_again_goes_with_its_time_its_webhook_and_its_person(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    first, _ = await webhooks.register(ada, receiver.url)
    second, _ = await webhooks.register(ada, receiver.url)
    receiver.answers = ["410 gone"]
    await world.handle(story_completed(ada))
    assert await kept(world) == [True, True]
    await webhooks.stub.DeleteWebhook(pb.DeleteWebhookRequest(webhook_id=first.id), metadata=webhooks.auth(ada))
    assert await kept(world) == [False, True]
    keeping = RecordKeeping(world.db, None, lambda: datetime.now(UTC) + timedelta(days=5, minutes=1))
    await keeping.forget()
    assert await kept(world) == [False, False]
    await webhooks.update(ada, second, enabled=True)
    with raises_status(StatusCode.FAILED_PRECONDITION, "DELIVERY_NOT_RESENDABLE"):
        await resend(webhooks, ada, second, (await webhooks.messages(ada, second))[0].id)
    world.accounts.delete(ada)
    await world.handle(user_deleted(ada))
    assert await kept(world) == []


@pytest.mark.parametrize(
    ("language", "title"), [("", "A webhook was disabled"), ("de", "Ein Webhook wurde abgeschaltet")]
)
async def test_the_owner_is_told_once_inside_the_application_when_a_webhook_is_disabled(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver, language: str, title: str
) -> None:
    ada = world.accounts.add()
    async with world.db.transaction() as tx:
        await store.preferences.save(tx, Preferences(ada, language=language), world.clock())
    webhook, _ = await webhooks.register(ada, receiver.url, description="The lamp")
    receiver.answers = ["410 gone"]
    await world.handle(*(story_completed(ada) for _ in range(4)))
    (told,) = [each for each in await webhooks.told(ada) if each.type == NOTIFICATION_TYPE_WEBHOOK_DISABLED]
    assert (told.title, told.target.type, told.target.id) == (title, TARGET_TYPE_WEBHOOK, webhook.id)
    assert told.body.startswith("The lamp: ")
    await webhooks.update(ada, webhook, enabled=True)
    await world.handle(story_completed(ada))
    assert len([each for each in await webhooks.told(ada) if each.type == NOTIFICATION_TYPE_WEBHOOK_DISABLED]) == 2


async def test_an_owner_who_disables_a_webhook_or_turned_the_kind_off_is_told_nothing(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    by_owner, _ = await webhooks.register(ada, receiver.url)
    await webhooks.update(ada, by_owner, enabled=False)
    assert await webhooks.told(ada) == []
    async with world.db.transaction() as tx:
        choices = {("WEBHOOK_DISABLED", Channel.IN_APP): Timing.OFF}
        await store.preferences.save(tx, Preferences(ada, choices=choices), world.clock())
    await webhooks.register(ada, receiver.url)
    receiver.answers = ["410 gone"]
    await world.handle(story_completed(ada))
    assert [each.type for each in await webhooks.told(ada)] == [NOTIFICATION_TYPE_STORY_READY]


HELD = {
    "a pause": ({"paused": True}, "SUPPRESSED PAUSED"),
    "a pause that is over": ({"paused": True, "paused_until": datetime(2020, 1, 1, tzinfo=UTC)}, "SENT"),
    "quiet hours": ({"quiet_hours": DailyRange(datetime.min.time(), datetime.max.time())}, "SENT"),
    "a limit of mails": ({"mails_per_day": 1}, "SENT"),
    "a digest of mails": ({"choices": {("STORY_READY", Channel.EMAIL): Timing.DAILY}}, "SENT"),
    "mails turned off": ({"choices": {("STORY_READY", Channel.EMAIL): Timing.OFF}}, "SENT"),
    "the webhook turned off": ({"choices": {("STORY_READY", Channel.WEBHOOK): Timing.OFF}}, "SUPPRESSED TURNED_OFF"),
}


@pytest.mark.parametrize("what", HELD)
async def test_a_persons_webhook_follows_the_pause_and_its_own_choice_and_nothing_that_is_for_mails(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver, what: str
) -> None:
    ada = world.accounts.add()
    preferred, final = HELD[what]
    async with world.db.transaction() as tx:
        await store.preferences.save(tx, Preferences(ada, **preferred), world.clock())  # type: ignore[arg-type]
        # A mail within the day, for the limit.
        await store.counted_mails.count(
            tx, ada, uuid4(), world.clock(), forget_before=world.clock() - timedelta(days=1)
        )
    await webhooks.register(ada, receiver.url)
    story = story_completed(ada)
    async with world.working():
        await world.send(story)
        steps = await until(lambda: ended(world, story))
    assert steps[-1] == final
    assert len(receiver.requests) == (final == "SENT")


async def ended(world: MailWorld, story: object) -> list[str]:
    steps = await world.steps(story, "WEBHOOK")  # type: ignore[arg-type]
    return steps if steps[-1:] and steps[-1].split()[0] in ("SENT", "SUPPRESSED") else []


def test_no_template_of_a_notice_that_goes_by_webhook_reads_what_is_sealed(world: MailWorld) -> None:
    letters = letters_of(world.settings())
    for kind in BY_WEBHOOK:
        name = NOTICES[kind].event
        message = getattr(auth_events_pb2, name, None) or getattr(story_events_pb2, name)
        facts = {field.name: getattr(message(), field.name) for field in message.DESCRIPTOR.fields}
        for language in languages():
            assert letters.short(kind, facts, now=datetime.now(UTC), language=language).title


async def test_the_example_for_receivers_takes_what_is_signed_and_nothing_else(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    _, secret = await webhooks.register(ada, receiver.url)
    await world.handle(story_completed(ada))
    (request,) = receiver.requests
    example = Path(__file__).parents[2] / "examples" / "python" / "webhook_receiver.py"
    is_ours = runpy.run_path(str(example))["is_ours"]
    assert is_ours(request.headers, request.body, secret)
    assert not is_ours(request.headers, request.body + b" ", secret)
    assert not is_ours(request.headers, request.body, "whsec_" + "A" * 43 + "=")
    old = {**request.headers, "webhook-timestamp": str(int(request.headers["webhook-timestamp"]) - 600)}
    assert not is_ours(old, request.body, secret)
