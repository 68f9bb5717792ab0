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
from typing import TYPE_CHECKING, Any
from uuid import UUID

import grpc
from storymesh.notification.v1 import webhook_service_pb2 as pb
from storymesh.notification.v1.webhook_pb2 import Webhook
from storymesh.notification.v1.webhook_service_pb2_grpc import WebhookServiceStub

from kit.rpc.resources import Resources
from services.notification.__main__ import api as build_api
from services.notification.config import NotificationSettings
from services.notification.operations import operations
from tests.identity import MESH_KEY, Issuer, bearer
from tests.notification.conftest import SEAL_KEY, MailWorld

if TYPE_CHECKING:
    from storymesh.notification.v1.webhook_service_pb2_grpc import WebhookServiceAsyncStub


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

    def __init__(self, stub: WebhookServiceAsyncStub, issuer: Issuer) -> None:
        self.stub = stub
        self._issuer = issuer

    def auth(self, user: UUID) -> tuple[tuple[str, str], ...]:
        return bearer(self._issuer.token(user))

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
    settings = NotificationSettings(
        listen="127.0.0.1:0",
        database_url=world.database_url,
        mesh_key=MESH_KEY,
        cursor_key=MESH_KEY,
        seal_key=SEAL_KEY,
        unsubscribe_key=MESH_KEY,
        address_key=MESH_KEY,
        webhook_ca_file=world.webhook_ca_file,
        webhook_local=world.webhook_local,
        webhook_seconds=world.webhook_seconds,
        drain_seconds=1,
    )
    issuer = Issuer()
    async with Resources("notification", settings, db=world.db, revocations=issuer.revocations) as resources:
        server = build_api(settings, resources, operations(settings, resources))
        running = asyncio.create_task(server.run(issuer.access_tokens(), resources.service_tokens))
        async with grpc.aio.insecure_channel(await server.address) as channel:
            yield WebhookApi(WebhookServiceStub(channel), issuer)
        server.stopping.set()
        await running
