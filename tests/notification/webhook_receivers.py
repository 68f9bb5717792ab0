"""A webhook's receiver over HTTPS that answers as the test says, and the API at which webhooks are registered."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import grpc
import pytest
from storymesh.notification.v1 import delivery_service_pb2, system_webhook_service_pb2
from storymesh.notification.v1 import webhook_service_pb2 as pb
from storymesh.notification.v1.delivery_pb2 import Delivery
from storymesh.notification.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from storymesh.notification.v1.notification_pb2 import Notification
from storymesh.notification.v1.notification_service_pb2 import ListNotificationsRequest
from storymesh.notification.v1.notification_service_pb2_grpc import NotificationServiceStub
from storymesh.notification.v1.system_webhook_service_pb2_grpc import SystemWebhookServiceStub
from storymesh.notification.v1.webhook_pb2 import Webhook, WebhookDelivery
from storymesh.notification.v1.webhook_service_pb2_grpc import WebhookServiceStub

from tests.identity import Issuer, bearer
from tests.notification.certificates import Authority
from tests.notification.serving import serving_api

if TYPE_CHECKING:
    from storymesh.notification.v1.delivery_service_pb2_grpc import DeliveryServiceAsyncStub
    from storymesh.notification.v1.notification_service_pb2_grpc import NotificationServiceAsyncStub
    from storymesh.notification.v1.system_webhook_service_pb2_grpc import SystemWebhookServiceAsyncStub
    from storymesh.notification.v1.webhook_service_pb2_grpc import WebhookServiceAsyncStub

    from tests.notification.conftest import MailWorld


@dataclass(frozen=True)
class Request:
    """A request as it arrived."""

    line: str
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed

    def is_signed_with(self, secret: str) -> bool:
        """Whether one of the signatures is the secret's, as Standard Webhooks says."""
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        content = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        digest = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
        return f"v1,{digest}" in self.headers["webhook-signature"].split(" ")


@dataclass
class Receiver:
    """Keeps the requests. Each gets the next of `answers`, and the last of them over and over."""

    tls: ssl.SSLContext | None
    answers: list[str] = field(default_factory=lambda: ["200 OK"])
    """The status line after HTTP/1.1, with further headers on further lines. Empty: cut the connection. `hang`: say nothing."""
    endless: bool = False
    """Send a body without end after the headers."""
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://localhost:{self.port}/hook?token=t0ken"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *rest = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
            body = await reader.readexactly(int(headers["content-length"]))
            self.requests.append(Request(line, headers, body))
            answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
            if answer == "hang":
                await reader.read()
            elif answer:
                status, *more = answer.split("\n")
                length = [] if self.endless else ["content-length: 0"]
                writer.write("\r\n".join([f"HTTP/1.1 {status}", *more, *length, "", ""]).encode())
                while self.endless:
                    writer.write(b"x" * 65536)
                    await writer.drain()
        writer.close()


@asynccontextmanager
async def receiving(receiver: Receiver, host: str = "127.0.0.1") -> AsyncIterator[Receiver]:
    server = await asyncio.start_server(receiver.serve, host, 0, ssl=receiver.tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()


class WebhookApi:
    """The API as its callers see it."""

    stub: WebhookServiceAsyncStub
    system: SystemWebhookServiceAsyncStub
    records: DeliveryServiceAsyncStub
    notifications: NotificationServiceAsyncStub

    def __init__(self, channel: grpc.aio.Channel, issuer: Issuer) -> None:
        self.stub = WebhookServiceStub(channel)
        self.system = SystemWebhookServiceStub(channel)
        self.records = DeliveryServiceStub(channel)
        self.notifications = NotificationServiceStub(channel)
        self._issuer = issuer
        self.admin_id = uuid4()

    def auth(self, user: UUID) -> tuple[tuple[str, str], ...]:
        return bearer(self._issuer.token(user))

    @property
    def admin(self) -> tuple[tuple[str, str], ...]:
        """An administrator."""
        return bearer(self._issuer.token(self.admin_id, role="ADMIN"))

    async def register_for_all(self, url: str, *types: int, description: str = "") -> tuple[Webhook, str]:
        """Register a webhook of the installation."""
        request = system_webhook_service_pb2.CreateSystemWebhookRequest(url=url, types=types, description=description)  # type: ignore[arg-type]
        answer = await self.system.CreateSystemWebhook(request, metadata=self.admin)
        return answer.webhook, answer.secret

    async def messages(self, user: UUID, webhook: Webhook) -> list[WebhookDelivery]:
        """The messages to the person's webhook as its owner sees them."""
        request = pb.ListWebhookDeliveriesRequest(webhook_id=webhook.id)
        return list((await self.stub.ListWebhookDeliveries(request, metadata=self.auth(user))).deliveries)

    async def deliveries(self, **query: Any) -> list[Delivery]:
        """Deliveries as administrators see them."""
        request = delivery_service_pb2.ListDeliveriesRequest(**query)
        return list((await self.records.ListDeliveries(request, metadata=self.admin)).deliveries)

    async def told(self, user: UUID) -> list[Notification]:
        """What the person is told inside the application."""
        return list(
            (
                await self.notifications.ListNotifications(ListNotificationsRequest(), metadata=self.auth(user))
            ).notifications
        )

    async def register(self, user: UUID, url: str, *types: int, description: str = "") -> tuple[Webhook, str]:
        request = pb.CreateWebhookRequest(url=url, types=types, description=description)  # type: ignore[arg-type]
        answer = await self.stub.CreateWebhook(request, metadata=self.auth(user))
        return answer.webhook, answer.secret

    async def read(self, user: UUID, webhook: Webhook) -> Webhook:
        request = pb.GetWebhookRequest(webhook_id=webhook.id)
        return (await self.stub.GetWebhook(request, metadata=self.auth(user))).webhook

    async def update(self, user: UUID, webhook: Webhook, **changes: Any) -> Webhook:
        request = pb.UpdateWebhookRequest(webhook_id=webhook.id, **changes)
        return (await self.stub.UpdateWebhook(request, metadata=self.auth(user))).webhook


@asynccontextmanager
async def webhook_api(world: MailWorld) -> AsyncIterator[WebhookApi]:
    """The API on the world's database, with the rules of its worker."""
    rules = {name: getattr(world, name) for name in ("webhook_ca_file", "webhook_local", "webhook_seconds")}
    async with serving_api(world.db, world.database_url, **rules) as served:
        yield WebhookApi(served.channel, served.issuer)


@pytest.fixture
def authority(world: MailWorld, tmp_path: Path) -> Authority:
    """The authority that the worker trusts."""
    made = Authority.new(tmp_path)
    world.webhook_ca_file = made.file
    return made


@pytest.fixture
async def webhooks(world: MailWorld, authority: Authority) -> AsyncIterator[WebhookApi]:
    """The API, which trusts the authority."""
    async with webhook_api(world) as running:
        yield running


@pytest.fixture
async def receiver(authority: Authority) -> AsyncIterator[Receiver]:
    async with receiving(Receiver(authority.server("localhost"))) as running:
        yield running
