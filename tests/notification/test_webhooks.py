"""Webhooks as their owners see them: registered, listed, changed and deleted, by nobody else."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable
from typing import Any
from uuid import uuid4

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import select
from storymesh.notification.v1 import webhook_service_pb2 as pb
from storymesh.notification.v1.notification_pb2 import (
    NOTIFICATION_TYPE_STORY_FAILED,
    NOTIFICATION_TYPE_STORY_READY,
    NOTIFICATION_TYPE_UNSPECIFIED,
)
from storymesh.notification.v1.webhook_pb2 import WEBHOOK_STATE_DISABLED, WEBHOOK_STATE_ENABLED

from kit.events import erasure
from services.notification.tables import webhooks
from tests.notification.conftest import MailWorld
from tests.notification.webhook_receivers import WebhookApi, webhook_api
from tests.statuses import raises_status, reason_of, violated_fields

URL = "https://hooks.example.com/hook?token=t0ken"


@pytest.fixture
async def api(world: MailWorld) -> AsyncIterator[WebhookApi]:
    world.webhook_local = False
    async with webhook_api(world) as running:
        yield running


async def test_a_webhook_is_registered_and_its_secret_is_shown_once(world: MailWorld, api: WebhookApi) -> None:
    ada = uuid4()
    webhook, secret = await api.register(ada, URL, NOTIFICATION_TYPE_STORY_READY, description="my home")
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert (webhook.url, webhook.description, webhook.state) == (URL, "my home", WEBHOOK_STATE_ENABLED)
    assert list(webhook.types) == [NOTIFICATION_TYPE_STORY_READY]
    assert await api.read(ada, webhook) == webhook
    assert secret not in str(webhook)


async def test_the_database_holds_neither_the_secret_nor_the_url_in_clear(world: MailWorld, api: WebhookApi) -> None:
    _, secret = await api.register(uuid4(), URL)
    async with world.db.transaction() as tx:
        (row,) = (await tx.execute(select(webhooks))).all()
    key = base64.b64decode(secret.removeprefix("whsec_"))
    for part in (b"t0ken", b"hooks.example.com", key, base64.b64encode(key)):
        assert all(part not in (value if isinstance(value, bytes) else str(value).encode()) for value in row)


async def test_the_list_shows_the_callers_own_newest_first_page_by_page(api: WebhookApi) -> None:
    ada, bob = uuid4(), uuid4()
    for number in range(3):
        await api.register(ada, f"https://hooks.example.com/{number}")
    await api.register(bob, URL)
    first = await api.stub.ListWebhooks(pb.ListWebhooksRequest(page_size=2), metadata=api.auth(ada))
    request = pb.ListWebhooksRequest(page_size=2, page_token=first.next_page_token)
    second = await api.stub.ListWebhooks(request, metadata=api.auth(ada))
    assert [each.url[-1] for each in (*first.webhooks, *second.webhooks)] == ["2", "1", "0"]
    assert second.next_page_token == ""
    with pytest.raises(AioRpcError) as raised:
        await api.stub.ListWebhooks(request, metadata=api.auth(bob))
    assert violated_fields(raised.value) == ["page_token"]


async def test_anothers_webhook_looks_like_one_that_does_not_exist(api: WebhookApi) -> None:
    webhook, _ = await api.register(uuid4(), URL)
    stranger = api.auth(uuid4())
    calls: list[Awaitable[Any]] = [
        api.stub.GetWebhook(pb.GetWebhookRequest(webhook_id=webhook.id), metadata=stranger),
        api.stub.UpdateWebhook(pb.UpdateWebhookRequest(webhook_id=webhook.id, url=URL), metadata=stranger),
        api.stub.DeleteWebhook(pb.DeleteWebhookRequest(webhook_id=webhook.id), metadata=stranger),
        api.stub.RotateWebhookSecret(pb.RotateWebhookSecretRequest(webhook_id=webhook.id), metadata=stranger),
        api.stub.TestWebhook(pb.TestWebhookRequest(webhook_id=webhook.id), metadata=stranger),
    ]
    for call in calls:
        with raises_status(StatusCode.NOT_FOUND, "WEBHOOK_NOT_FOUND"):
            await call


async def test_an_update_changes_what_it_names_alone(api: WebhookApi) -> None:
    ada = uuid4()
    webhook, _ = await api.register(ada, URL, NOTIFICATION_TYPE_STORY_READY, description="my home")
    changed = await api.update(ada, webhook, url="https://hooks.example.com:8443/other")
    assert (changed.url, changed.description) == ("https://hooks.example.com:8443/other", "my home")
    changed = await api.update(ada, webhook, types=pb.WebhookTypes(types=[NOTIFICATION_TYPE_STORY_FAILED]))
    assert list(changed.types) == [NOTIFICATION_TYPE_STORY_FAILED]
    changed = await api.update(ada, webhook, types=pb.WebhookTypes(), description="")
    assert (list(changed.types), changed.description) == ([], "")
    changed = await api.update(ada, webhook, enabled=False)
    assert (changed.state, changed.disable_reason) == (WEBHOOK_STATE_DISABLED, "BY_OWNER")
    changed = await api.update(ada, webhook, enabled=True)
    assert (changed.state, changed.disable_reason) == (WEBHOOK_STATE_ENABLED, "")


async def test_a_deleted_webhook_is_gone(api: WebhookApi) -> None:
    ada = uuid4()
    webhook, _ = await api.register(ada, URL)
    request = pb.DeleteWebhookRequest(webhook_id=webhook.id)
    await api.stub.DeleteWebhook(request, metadata=api.auth(ada))
    with raises_status(StatusCode.NOT_FOUND, "WEBHOOK_NOT_FOUND"):
        await api.stub.DeleteWebhook(request, metadata=api.auth(ada))


async def test_a_person_has_five_webhooks_at_most_also_by_calls_at_the_same_time(api: WebhookApi) -> None:
    ada = uuid4()
    answers = await asyncio.gather(*(api.register(ada, URL) for _ in range(9)), return_exceptions=True)
    refused = [each for each in answers if isinstance(each, AioRpcError)]
    assert len(answers) - len(refused) == 5
    assert {reason_of(each) for each in refused} == {"TOO_MANY_WEBHOOKS"}
    listed = await api.stub.ListWebhooks(pb.ListWebhooksRequest(), metadata=api.auth(ada))
    await api.stub.DeleteWebhook(pb.DeleteWebhookRequest(webhook_id=listed.webhooks[2].id), metadata=api.auth(ada))
    await api.register(ada, URL)


@pytest.mark.parametrize(
    "url",
    ["http://hooks.example.com/", "https://127.0.0.1/", "https://localhost/", "https://a@example.com/", "", "x" * 2001],
)
async def test_a_url_that_is_refused_is_named_as_a_field(api: WebhookApi, url: str) -> None:
    ada = uuid4()
    with pytest.raises(AioRpcError) as raised:
        await api.register(ada, url)
    assert (raised.value.code(), violated_fields(raised.value)) == (StatusCode.INVALID_ARGUMENT, ["url"])
    webhook, _ = await api.register(ada, URL)
    with pytest.raises(AioRpcError) as raised:
        await api.update(ada, webhook, url=url)
    assert violated_fields(raised.value) == ["url"]


async def test_kinds_that_are_none_are_refused(api: WebhookApi) -> None:
    for types in ([NOTIFICATION_TYPE_UNSPECIFIED], [999], [NOTIFICATION_TYPE_STORY_READY] * 2):
        with pytest.raises(AioRpcError) as raised:
            await api.register(uuid4(), URL, *types)
        assert violated_fields(raised.value)[0].startswith("types")


async def test_nobody_registers_for_an_account_that_was_deleted(world: MailWorld, api: WebhookApi) -> None:
    ada = uuid4()
    async with world.db.transaction() as tx:
        await erasure.erase(tx, ada)
    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await api.register(ada, URL)


async def test_nobody_registers_without_a_token(api: WebhookApi) -> None:
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await api.stub.CreateWebhook(pb.CreateWebhookRequest(url=URL))
