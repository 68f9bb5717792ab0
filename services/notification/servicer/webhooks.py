"""Webhooks, for their owners."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext
from storymesh.notification.v1 import notification_pb2, webhook_pb2, webhook_service_pb2_grpc
from storymesh.notification.v1 import webhook_service_pb2 as pb

from kit.identity.caller import caller_of
from kit.rpc.timestamps import set_time

from ..model import Kind
from ..operations.webhooks import ShownWebhook, WebhookChange, Webhooks
from .notifications import KINDS, TYPES

Context = ServicerContext[Any, Any]


class WebhookServicer(webhook_service_pb2_grpc.WebhookServiceServicer):
    """Implements storymesh.notification.v1.WebhookService."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks

    async def CreateWebhook(self, request: pb.CreateWebhookRequest, context: Context) -> pb.CreateWebhookResponse:
        kinds = _kinds(request.types)
        made, secret = await self._webhooks.create(caller_of(context), request.url, request.description, kinds)
        return pb.CreateWebhookResponse(webhook=_to_proto(made), secret=secret)

    async def ListWebhooks(self, request: pb.ListWebhooksRequest, context: Context) -> pb.ListWebhooksResponse:
        page = await self._webhooks.list(caller_of(context), request.page_size, request.page_token)
        return pb.ListWebhooksResponse(webhooks=map(_to_proto, page.items), next_page_token=page.next_token)

    async def GetWebhook(self, request: pb.GetWebhookRequest, context: Context) -> pb.GetWebhookResponse:
        found = await self._webhooks.get(caller_of(context), UUID(request.webhook_id))
        return pb.GetWebhookResponse(webhook=_to_proto(found))

    async def UpdateWebhook(self, request: pb.UpdateWebhookRequest, context: Context) -> pb.UpdateWebhookResponse:
        change = WebhookChange(
            url=request.url if request.HasField("url") else None,
            description=request.description if request.HasField("description") else None,
            kinds=_kinds(request.types.types) if request.HasField("types") else None,
            enabled=request.enabled if request.HasField("enabled") else None,
        )
        changed = await self._webhooks.update(caller_of(context), UUID(request.webhook_id), change)
        return pb.UpdateWebhookResponse(webhook=_to_proto(changed))

    async def DeleteWebhook(self, request: pb.DeleteWebhookRequest, context: Context) -> pb.DeleteWebhookResponse:
        await self._webhooks.delete(caller_of(context), UUID(request.webhook_id))
        return pb.DeleteWebhookResponse()

    async def RotateWebhookSecret(
        self, request: pb.RotateWebhookSecretRequest, context: Context
    ) -> pb.RotateWebhookSecretResponse:
        webhook_id = UUID(request.webhook_id)
        rotated, secret = await self._webhooks.rotate_secret(
            caller_of(context), webhook_id, end_former=request.end_former_secret
        )
        return pb.RotateWebhookSecretResponse(webhook=_to_proto(rotated), secret=secret)

    async def TestWebhook(self, request: pb.TestWebhookRequest, context: Context) -> pb.TestWebhookResponse:
        result = await self._webhooks.test(caller_of(context), UUID(request.webhook_id))
        return pb.TestWebhookResponse(
            delivered=result.delivered, failure_reason=result.reason, status_code=result.status
        )


def _kinds(types: Iterable[notification_pb2.NotificationType.ValueType]) -> frozenset[Kind]:
    return frozenset(KINDS[number] for number in types)


def _to_proto(shown: ShownWebhook) -> webhook_pb2.Webhook:
    webhook = shown.webhook
    message = webhook_pb2.Webhook(
        id=str(webhook.id),
        url=shown.url,
        description=webhook.description,
        types=sorted(TYPES[kind] for kind in webhook.kinds),
        state=webhook_pb2.WEBHOOK_STATE_DISABLED if webhook.disabled else webhook_pb2.WEBHOOK_STATE_ENABLED,
        disable_reason=webhook.disabled or "",
        last_failure_reason=webhook.last_failure,
        last_status_code=webhook.last_status,
    )
    set_time(message.create_time, webhook.created_at)
    set_time(message.update_time, webhook.changed_at)
    set_time(message.former_secret_expire_time, webhook.former_secret_until)
    set_time(message.last_success_time, webhook.last_succeeded_at)
    set_time(message.last_failure_time, webhook.last_failed_at)
    set_time(message.failing_since_time, webhook.failing_since)
    return message
