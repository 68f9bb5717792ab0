"""Webhooks of the installation, for administrators."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext
from storymesh.notification.v1 import system_webhook_service_pb2 as pb
from storymesh.notification.v1 import system_webhook_service_pb2_grpc

from kit.identity.caller import caller_of

from ..operations.webhooks import Registrar, Webhooks
from .webhooks import change_in, kinds_of, to_proto

Context = ServicerContext[Any, Any]


class SystemWebhookServicer(system_webhook_service_pb2_grpc.SystemWebhookServiceServicer):
    """Implements storymesh.notification.v1.SystemWebhookService."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks

    async def CreateSystemWebhook(
        self, request: pb.CreateSystemWebhookRequest, context: Context
    ) -> pb.CreateSystemWebhookResponse:
        registrar, kinds = Registrar.administrator(caller_of(context)), kinds_of(request.types)
        made, secret = await self._webhooks.create(registrar, request.url, request.description, kinds)
        return pb.CreateSystemWebhookResponse(webhook=to_proto(made), secret=secret)

    async def ListSystemWebhooks(
        self, request: pb.ListSystemWebhooksRequest, context: Context
    ) -> pb.ListSystemWebhooksResponse:
        registrar = Registrar.administrator(caller_of(context))
        page = await self._webhooks.list(registrar, request.page_size, request.page_token)
        return pb.ListSystemWebhooksResponse(webhooks=map(to_proto, page.items), next_page_token=page.next_token)

    async def GetSystemWebhook(
        self, request: pb.GetSystemWebhookRequest, context: Context
    ) -> pb.GetSystemWebhookResponse:
        found = await self._webhooks.get(Registrar.administrator(caller_of(context)), UUID(request.webhook_id))
        return pb.GetSystemWebhookResponse(webhook=to_proto(found))

    async def UpdateSystemWebhook(
        self, request: pb.UpdateSystemWebhookRequest, context: Context
    ) -> pb.UpdateSystemWebhookResponse:
        registrar = Registrar.administrator(caller_of(context))
        changed = await self._webhooks.update(registrar, UUID(request.webhook_id), change_in(request))
        return pb.UpdateSystemWebhookResponse(webhook=to_proto(changed))

    async def DeleteSystemWebhook(
        self, request: pb.DeleteSystemWebhookRequest, context: Context
    ) -> pb.DeleteSystemWebhookResponse:
        await self._webhooks.delete(Registrar.administrator(caller_of(context)), UUID(request.webhook_id))
        return pb.DeleteSystemWebhookResponse()

    async def RotateSystemWebhookSecret(
        self, request: pb.RotateSystemWebhookSecretRequest, context: Context
    ) -> pb.RotateSystemWebhookSecretResponse:
        registrar, webhook_id = Registrar.administrator(caller_of(context)), UUID(request.webhook_id)
        rotated, secret = await self._webhooks.rotate_secret(
            registrar, webhook_id, end_former=request.end_former_secret
        )
        return pb.RotateSystemWebhookSecretResponse(webhook=to_proto(rotated), secret=secret)

    async def TestSystemWebhook(
        self, request: pb.TestSystemWebhookRequest, context: Context
    ) -> pb.TestSystemWebhookResponse:
        result = await self._webhooks.test(Registrar.administrator(caller_of(context)), UUID(request.webhook_id))
        return pb.TestSystemWebhookResponse(
            delivered=result.delivered, failure_reason=result.reason, status_code=result.status
        )
