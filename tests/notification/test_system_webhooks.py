"""Webhooks that administrators register for everybody's notices: who sees them, what they are told, and what of it is recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import select
from sqlalchemy.engine.row import RowMapping
from storymesh.events.v1 import auth_events_pb2
from storymesh.notification.v1 import delivery_service_pb2
from storymesh.notification.v1 import system_webhook_service_pb2 as pb
from storymesh.notification.v1 import webhook_service_pb2 as own_pb
from storymesh.notification.v1.delivery_pb2 import DELIVERY_CHANNEL_SYSTEM_WEBHOOK, DELIVERY_STATE_SENT
from storymesh.notification.v1.notification_pb2 import (
    NOTIFICATION_TYPE_STORY_FAILED,
    NOTIFICATION_TYPE_STORY_READY,
    NOTIFICATION_TYPE_WEBHOOK_DISABLED,
)
from storymesh.notification.v1.webhook_pb2 import WEBHOOK_STATE_DISABLED

from services.notification import store
from services.notification.model.deliveries import Channel
from services.notification.model.notices import NOTICES
from services.notification.model.preferences import Preferences, Timing
from services.notification.tables import deliveries, delivery_steps, webhook_acts
from services.notification.tables import webhooks as webhook_table
from tests.notification.conftest import MailWorld, code_issued, email_changed, event, story_completed, user_deleted
from tests.notification.webhook_receivers import Receiver, WebhookApi
from tests.statuses import raises_status, reason_of, violated_fields
from tests.waiting import until

pytestmark = pytest.mark.slow

URL = "https://hooks.example.com/all?token=t0ken"


async def acts(world: MailWorld) -> list[tuple[UUID | None, str, str]]:
    async with world.db.transaction() as tx:
        rows = (await tx.execute(select(webhook_acts).order_by(webhook_acts.c.id))).mappings()
        return [(row["actor_id"], row["act"], row["detail"]) for row in rows]


async def for_all(world: MailWorld) -> list[RowMapping]:
    async with world.db.transaction() as tx:
        query = select(deliveries).where(deliveries.c.channel == "SYSTEM_WEBHOOK").order_by(deliveries.c.id)
        return list((await tx.execute(query)).mappings())


async def test_an_administrator_registers_changes_and_deletes_one_and_each_act_is_recorded(
    world: MailWorld, webhooks: WebhookApi
) -> None:
    made, secret = await webhooks.register_for_all(URL, NOTIFICATION_TYPE_STORY_READY, description="operations")
    assert secret.startswith("whsec_")
    assert (made.url, made.description, list(made.types)) == (URL, "operations", [NOTIFICATION_TYPE_STORY_READY])
    request = pb.UpdateSystemWebhookRequest(webhook_id=made.id, description="ops", enabled=False)
    changed = (await webhooks.system.UpdateSystemWebhook(request, metadata=webhooks.admin)).webhook
    assert (changed.description, changed.state, changed.disable_reason) == ("ops", WEBHOOK_STATE_DISABLED, "BY_OWNER")
    rotate = pb.RotateSystemWebhookSecretRequest(webhook_id=made.id)
    assert (await webhooks.system.RotateSystemWebhookSecret(rotate, metadata=webhooks.admin)).secret != secret
    listed = await webhooks.system.ListSystemWebhooks(pb.ListSystemWebhooksRequest(), metadata=webhooks.admin)
    assert [each.id for each in listed.webhooks] == [made.id]
    await webhooks.system.DeleteSystemWebhook(
        pb.DeleteSystemWebhookRequest(webhook_id=made.id), metadata=webhooks.admin
    )
    with raises_status(StatusCode.NOT_FOUND, "WEBHOOK_NOT_FOUND"):
        await webhooks.system.GetSystemWebhook(pb.GetSystemWebhookRequest(webhook_id=made.id), metadata=webhooks.admin)
    recorded = [("CREATE", ""), ("UPDATE", "description enabled"), ("ROTATE_SECRET", ""), ("DELETE", "")]
    assert await acts(world) == [(webhooks.admin_id, *each) for each in recorded]
    assert "t0ken" not in str(await acts(world))


async def test_no_person_reaches_one_and_no_administrator_reaches_a_persons(webhooks: WebhookApi) -> None:
    ada = uuid4()
    shared, _ = await webhooks.register_for_all(URL)
    own, _ = await webhooks.register(ada, URL)
    for service, webhook, auth in ((webhooks.stub, shared, webhooks.auth(ada)), (webhooks.system, own, webhooks.admin)):
        package, infix = (own_pb, "") if service is webhooks.stub else (pb, "System")

        def call(
            verb: str,
            end: str = "",
            *,
            service: Any = service,
            infix: str = infix,
            package: Any = package,
            webhook: Any = webhook,
            auth: Any = auth,
        ) -> Awaitable[Any]:
            name = f"{verb}{infix}Webhook{end}"
            request = getattr(package, f"{name}Request")(webhook_id=webhook.id)
            answer: Awaitable[Any] = getattr(service, name)(request, metadata=auth)
            return answer

        for verb, end in (("Get", ""), ("Update", ""), ("Delete", ""), ("Rotate", "Secret"), ("Test", "")):
            with raises_status(StatusCode.NOT_FOUND, "WEBHOOK_NOT_FOUND"):
                await call(verb, end)
    listed = await webhooks.stub.ListWebhooks(own_pb.ListWebhooksRequest(), metadata=webhooks.auth(ada))
    assert [each.id for each in listed.webhooks] == [own.id]
    for name in ("Create", "List", "Get", "Update", "Delete", "Rotate", "Test"):
        method, request = {
            "Create": ("CreateSystemWebhook", pb.CreateSystemWebhookRequest(url=URL)),
            "List": ("ListSystemWebhooks", pb.ListSystemWebhooksRequest()),
            "Rotate": ("RotateSystemWebhookSecret", pb.RotateSystemWebhookSecretRequest(webhook_id=shared.id)),
        }.get(name) or (f"{name}SystemWebhook", getattr(pb, f"{name}SystemWebhookRequest")(webhook_id=shared.id))
        with pytest.raises(AioRpcError) as raised:
            await getattr(webhooks.system, method)(request, metadata=webhooks.auth(ada))
        assert raised.value.code() is StatusCode.PERMISSION_DENIED


async def test_the_installation_has_a_few_at_most_also_by_calls_at_the_same_time(webhooks: WebhookApi) -> None:
    answers = await asyncio.gather(*(webhooks.register_for_all(URL) for _ in range(9)), return_exceptions=True)
    refused = [each for each in answers if isinstance(each, AioRpcError)]
    assert (len(answers) - len(refused), {reason_of(each) for each in refused}) == (5, {"TOO_MANY_WEBHOOKS"})
    await webhooks.register(uuid4(), URL)


@pytest.mark.parametrize("of_all", [True, False])
async def test_a_kind_that_goes_by_no_webhook_is_refused(webhooks: WebhookApi, of_all: bool) -> None:
    types = NOTIFICATION_TYPE_STORY_READY, NOTIFICATION_TYPE_WEBHOOK_DISABLED
    register = webhooks.register_for_all if of_all else lambda url, *types: webhooks.register(uuid4(), url, *types)
    with pytest.raises(AioRpcError) as raised:
        await register(URL, *types)
    assert (raised.value.code(), violated_fields(raised.value)) == (StatusCode.INVALID_ARGUMENT, ["types"])


async def test_everybodys_notices_arrive_signed_with_the_persons_id_and_no_address(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    ada, bob = world.accounts.add("ada@example.com", "Ada"), world.accounts.add("bob@example.com", "Bob")
    _, secret = await webhooks.register_for_all(receiver.url)
    story_id = uuid4()
    await world.handle(
        story_completed(ada, "Write to ada@example.com", story_id, excerpt="ada@example.com"),
        email_changed(bob, "bob@example.com", "Bob"),
        code_issued("123456", "ada@example.com"),
        event(auth_events_pb2.PasswordChanged(user_id=str(bob))),
    )
    messages = {request.message["type"]: request for request in receiver.requests}
    assert messages.keys() == {"STORY_READY", "EMAIL_CHANGED", "PASSWORD_CHANGED"}
    assert all(request.is_signed_with(secret) for request in receiver.requests)
    ready = messages["STORY_READY"].message["data"]
    assert (ready["user_id"], ready["target"]) == (str(ada), {"type": "STORY", "id": str(story_id)})
    assert messages["EMAIL_CHANGED"].message["data"]["user_id"] == str(bob)
    for secret_text in (b"@example.com", b"Ada", b"Bob", b"123456"):
        assert all(secret_text not in request.body for request in receiver.requests)


async def test_a_persons_own_webhook_is_not_told_ids_that_its_owner_did_not_ask_for(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    await webhooks.register(ada, receiver.url)
    await world.handle(story_completed(ada))
    assert receiver.requests[0].message["data"].keys() == {"title", "text", "target"}


async def test_it_gets_the_kinds_alone_that_it_was_registered_for(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    await webhooks.register_for_all(receiver.url, NOTIFICATION_TYPE_STORY_FAILED)
    await world.handle(story_completed(ada))
    assert receiver.requests == []
    assert [(row["state"], row["reason"]) for row in await for_all(world)] == [("SUPPRESSED", "KIND_NOT_WANTED")]


async def test_what_a_person_prefers_stops_their_own_webhook_and_none_of_the_installation(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    paused, off = world.accounts.add(), world.accounts.add("bob@example.com")
    for user in (paused, off):
        await webhooks.register(user, receiver.url)
    await webhooks.register_for_all(receiver.url)
    async with world.db.transaction() as tx:
        await store.preferences.save(tx, Preferences(paused, paused=True), world.clock())
        choices = {("STORY_READY", Channel.WEBHOOK): Timing.OFF}
        await store.preferences.save(tx, Preferences(off, choices=choices), world.clock())
    await world.handle(story_completed(paused), story_completed(off))
    assert {request.message["data"]["user_id"] for request in receiver.requests} == {str(paused), str(off)}
    assert len(receiver.requests) == 2
    for user, reason in ((paused, "PAUSED"), (off, "TURNED_OFF")):
        own = [each for each in await webhooks.deliveries(user_id=str(user)) if each.channel == 2]
        assert [each.reason for each in own] == [reason]


async def test_administrators_list_its_messages_and_have_them_explained(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    shared, _ = await webhooks.register_for_all(receiver.url)
    await webhooks.register_for_all(receiver.url)
    story = story_completed(ada)
    await world.handle(story)
    (listed,) = await webhooks.deliveries(target=shared.id)
    assert (listed.channel, listed.target, listed.user_id) == (DELIVERY_CHANNEL_SYSTEM_WEBHOOK, shared.id, str(ada))
    assert (listed.kind, listed.state, listed.attempts) == ("STORY_READY", DELIVERY_STATE_SENT, 1)
    explained = await webhooks.records.ExplainNotification(
        delivery_service_pb2.ExplainNotificationRequest(event_id=str(story.id)), metadata=webhooks.admin
    )
    (notice,) = explained.notices
    final = [(each.target, each.decision) for each in notice.final_decisions if each.channel == listed.channel]
    assert len(final) == 2
    assert (shared.id, "SENT") in final
    assert [step.decision for step in notice.steps if step.target == shared.id] == ["QUEUED", "SENT"]


async def test_erasure_of_a_person_removes_what_waits_about_them_and_nothing_is_sent(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    ada, bob = world.accounts.add(), world.accounts.add("bob@example.com")
    receiver.answers = ["500 no"]
    world.pause = lambda _attempts, _life: timedelta(hours=1)
    await webhooks.register_for_all(receiver.url)
    async with world.working():
        await world.send(story_completed(ada), story_completed(bob))
        await until(lambda: len(receiver.requests) == 2)
        world.accounts.delete(ada)
        await world.send(user_deleted(ada))
        await until(lambda: left(world, bob))
    async with world.db.transaction() as tx:
        assert set(await tx.scalars(select(delivery_steps.c.user_id))) == {bob}
        assert await tx.scalar(select(webhook_table.c.id)) is not None
    assert str(ada) not in json.dumps([dict(row) for row in await for_all(world)], default=repr)


async def left(world: MailWorld, user: UUID) -> bool:
    return [row["user_id"] for row in await for_all(world)] == [user] and await world.decided()


async def test_erasure_of_an_administrator_leaves_the_webhook_and_what_was_done_without_their_id(
    world: MailWorld, webhooks: WebhookApi
) -> None:
    shared, _ = await webhooks.register_for_all(URL)
    await world.handle(user_deleted(webhooks.admin_id))
    assert await acts(world) == [(None, "CREATE", "")]
    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await webhooks.register_for_all(URL)
    request = pb.UpdateSystemWebhookRequest(webhook_id=shared.id, enabled=False)
    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await webhooks.system.UpdateSystemWebhook(request, metadata=webhooks.admin)


async def test_a_receiver_that_is_gone_disables_it_and_tells_no_person(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    ada = world.accounts.add()
    shared, _ = await webhooks.register_for_all(receiver.url)
    receiver.answers = ["410 gone", "200 OK"]
    await world.handle(story_completed(ada))
    found = await webhooks.system.GetSystemWebhook(
        pb.GetSystemWebhookRequest(webhook_id=shared.id), metadata=webhooks.admin
    )
    assert (found.webhook.state, found.webhook.disable_reason) == (WEBHOOK_STATE_DISABLED, "GONE")
    assert f"webhook {shared.id} (SYSTEM_WEBHOOK) is disabled: GONE" in caplog.text
    assert [each.type for each in await webhooks.told(ada)] == [NOTIFICATION_TYPE_STORY_READY]


async def test_an_administrator_has_a_message_that_failed_sent_again(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    shared, _ = await webhooks.register_for_all(receiver.url)
    receiver.answers = ["410 gone", "200 OK"]
    await world.handle(story_completed(ada))
    enable = pb.UpdateSystemWebhookRequest(webhook_id=shared.id, enabled=True)
    await webhooks.system.UpdateSystemWebhook(enable, metadata=webhooks.admin)
    (failed,) = await webhooks.deliveries(target=shared.id)
    request = delivery_service_pb2.ResendDeliveryRequest(delivery_id=failed.id, reason="it is back")
    await webhooks.records.ResendDelivery(request, metadata=webhooks.admin)
    await world.handle()
    assert [each.state for each in await webhooks.deliveries(target=shared.id)] == [DELIVERY_STATE_SENT]
    assert len({each.headers["webhook-id"] for each in receiver.requests}) == 1


async def test_one_slow_receiver_holds_neither_others_nor_people_back(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver
) -> None:
    """A worker of one place has four messages to one receiver in flight; the next ones wait without a place."""
    ada = world.accounts.add()
    world.concurrency, world.slow_seconds = 1, 0.05
    await webhooks.register_for_all(receiver.url)
    receiver.answers = ["hang"]
    async with world.working(cut_off=True):
        await world.send(*(story_completed(ada) for _ in range(7)))
        await until(lambda: slow(world, 3))
    assert len(receiver.requests) == 4


async def slow(world: MailWorld, many: int) -> bool:
    return [row["reason"] for row in await for_all(world)].count("RECEIVER_SLOW") == many


def test_no_notice_that_goes_by_webhook_is_a_code() -> None:
    by_webhook = [notice for notice in NOTICES.values() if Channel.WEBHOOK in notice.channels]
    assert by_webhook
    assert not [notice.kind for notice in by_webhook if notice.event == "CodeIssued" or not notice.person]
    assert not [notice.kind for notice in NOTICES.values() if Channel.SYSTEM_WEBHOOK in notice.channels]
