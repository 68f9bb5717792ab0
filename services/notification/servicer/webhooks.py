"""Webhooks, for their owners."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol
from uuid import UUID

from grpc.aio import ServicerContext
from storymesh.notification.v1 import notification_pb2, webhook_pb2, webhook_service_pb2_grpc
from storymesh.notification.v1 import webhook_service_pb2 as pb

from kit.identity.caller import caller_of
from kit.rpc.timestamps import set_time

from ..model import Kind
from ..model.records import DeliveryRecord
from ..operations.webhook_deliveries import WebhookDeliveries
from ..operations.webhooks import Registrar, ShownWebhook, WebhookChange, Webhooks
from .deliveries import STATE_OF, STATES
from .notifications import KINDS, TYPES

Context = ServicerContext[Any, Any]


class WebhookServicer(webhook_service_pb2_grpc.WebhookServiceServicer):
    """Implements storymesh.notification.v1.WebhookService."""

    def __init__(self, webhooks: Webhooks, deliveries: WebhookDeliveries) -> None:
        self._webhooks = webhooks
        self._deliveries = deliveries

    async def CreateWebhook(self, request: pb.CreateWebhookRequest, context: Context) -> pb.CreateWebhookResponse:
        owner, kinds = Registrar.person(caller_of(context)), kinds_of(request.types)
        made, secret = await self._webhooks.create(owner, request.url, request.description, kinds)
        return pb.CreateWebhookResponse(webhook=to_proto(made), secret=secret)

    async def ListWebhooks(self, request: pb.ListWebhooksRequest, context: Context) -> pb.ListWebhooksResponse:
        page = await self._webhooks.list(Registrar.person(caller_of(context)), request.page_size, request.page_token)
        return pb.ListWebhooksResponse(webhooks=map(to_proto, page.items), next_page_token=page.next_token)

    async def GetWebhook(self, request: pb.GetWebhookRequest, context: Context) -> pb.GetWebhookResponse:
        found = await self._webhooks.get(Registrar.person(caller_of(context)), UUID(request.webhook_id))
        return pb.GetWebhookResponse(webhook=to_proto(found))

    async def UpdateWebhook(self, request: pb.UpdateWebhookRequest, context: Context) -> pb.UpdateWebhookResponse:
        owner = Registrar.person(caller_of(context))
        changed = await self._webhooks.update(owner, UUID(request.webhook_id), change_in(request))
        return pb.UpdateWebhookResponse(webhook=to_proto(changed))

    async def DeleteWebhook(self, request: pb.DeleteWebhookRequest, context: Context) -> pb.DeleteWebhookResponse:
        await self._webhooks.delete(Registrar.person(caller_of(context)), UUID(request.webhook_id))
        return pb.DeleteWebhookResponse()

    async def RotateWebhookSecret(
        self, request: pb.RotateWebhookSecretRequest, context: Context
    ) -> pb.RotateWebhookSecretResponse:
        owner, webhook_id = Registrar.person(caller_of(context)), UUID(request.webhook_id)
        rotated, secret = await self._webhooks.rotate_secret(owner, webhook_id, end_former=request.end_former_secret)
        return pb.RotateWebhookSecretResponse(webhook=to_proto(rotated), secret=secret)

    async def TestWebhook(self, request: pb.TestWebhookRequest, context: Context) -> pb.TestWebhookResponse:
        result = await self._webhooks.test(Registrar.person(caller_of(context)), UUID(request.webhook_id))
        return pb.TestWebhookResponse(
            delivered=result.delivered, failure_reason=result.reason, status_code=result.status
        )

    async def ListWebhookDeliveries(
        self, request: pb.ListWebhookDeliveriesRequest, context: Context
    ) -> pb.ListWebhookDeliveriesResponse:
        page = await self._deliveries.list(
            caller_of(context),
            UUID(request.webhook_id),
            STATE_OF.get(request.state),
            request.page_size,
            request.page_token,
        )
        return pb.ListWebhookDeliveriesResponse(deliveries=map(_delivery, page.items), next_page_token=page.next_token)

    async def ResendWebhookDelivery(
        self, request: pb.ResendWebhookDeliveryRequest, context: Context
    ) -> pb.ResendWebhookDeliveryResponse:
        resent = await self._deliveries.resend(caller_of(context), UUID(request.webhook_id), UUID(request.delivery_id))
        return pb.ResendWebhookDeliveryResponse(delivery=_delivery(resent))


class UpdateRequest(Protocol):
    """What the requests to change a person's webhook and one of the installation have in common."""

    url: str
    description: str
    enabled: bool

    @property
    def types(self) -> pb.WebhookTypes: ...

    def HasField(self, field_name: Any) -> bool: ...


def change_in(request: UpdateRequest) -> WebhookChange:
    return WebhookChange(
        url=request.url if request.HasField("url") else None,
        description=request.description if request.HasField("description") else None,
        kinds=kinds_of(request.types.types) if request.HasField("types") else None,
        enabled=request.enabled if request.HasField("enabled") else None,
    )


def kinds_of(types: Iterable[notification_pb2.NotificationType.ValueType]) -> frozenset[Kind]:
    return frozenset(KINDS[number] for number in types)


def to_proto(shown: ShownWebhook) -> webhook_pb2.Webhook:
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


def _delivery(record: DeliveryRecord) -> webhook_pb2.WebhookDelivery:
    message = webhook_pb2.WebhookDelivery(
        id=str(record.id),
        type=_TYPE_NAMES.get(record.kind, notification_pb2.NOTIFICATION_TYPE_UNSPECIFIED),
        state=STATES[record.state],
        reason=record.reason,
        status_code=int(record.answer or 0),
        attempts=record.attempts,
    )
    set_time(message.create_time, record.created_at)
    set_time(message.change_time, record.changed_at)
    set_time(message.due_time, record.due_at if record.unfinished else None)
    set_time(message.expire_time, record.expires_at)
    return message


_TYPE_NAMES = {str(kind): number for kind, number in TYPES.items()}
"""Unspecified for a kind that only a later version knows."""
