"""The mail provider's webhook: refused without its key's signature, and believed about our own mail alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from google.api.httpbody_pb2 import HttpBody
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.notification.v1.bounce_service_pb2 import ReportBouncesRequest
from storymesh.notification.v1.bounce_service_pb2_grpc import BounceServiceStub

from services.notification.model.webhook_signatures import signature
from tests.notification.conftest import MailWorld, story_completed
from tests.notification.returned_mail import returned, suppressed
from tests.notification.serving import serving_api
from tests.statuses import raises_status, violated_fields

if TYPE_CHECKING:
    from storymesh.notification.v1.bounce_service_pb2_grpc import BounceServiceAsyncStub

WEBHOOK_KEY = b"w" * 32


@asynccontextmanager
async def webhook(world: MailWorld, key: bytes | None = WEBHOOK_KEY) -> AsyncIterator[BounceServiceAsyncStub]:
    async with serving_api(world.db, world.database_url, bounce_webhook_key=key) as served:
        yield BounceServiceStub(served.channel)


def signed(body: bytes, *, key: bytes = WEBHOOK_KEY, at: datetime | None = None) -> tuple[tuple[str, str], ...]:
    """The headers of a call."""
    timestamp = str(int((at or datetime.now(UTC)).timestamp()))
    return (
        ("webhook-id", "msg_1"),
        ("webhook-timestamp", timestamp),
        ("webhook-signature", signature(key, "msg_1", timestamp, body)),
    )


def call(body: bytes, media_type: str = "application/json") -> ReportBouncesRequest:
    return ReportBouncesRequest(report=HttpBody(content_type=media_type, data=body))


def told(*bounces: object) -> bytes:
    return json.dumps({"bounces": bounces}).encode()


async def test_a_signed_report_in_either_form_suppresses_the_address_of_the_mail_that_it_names(
    world: MailWorld,
) -> None:
    ada, bob = world.accounts.add("ada@example.com"), world.accounts.add("bob@example.com")
    first, second, third = story_completed(ada), story_completed(bob), story_completed(bob)
    await world.handle(first, second, third)
    dsn = returned(first)
    body = told(
        {"message_id": f"<{second.id}@mail.example>", "status": "5.2.2", "recipient": "Bob@example.com"},
        {"message_id": f"<{third.id}@mail.example>", "status": "5.1.1", "recipient": "ada@example.com"},
        {"message_id": f"<{third.id}@mail.example>", "status": "4.2.1", "action": "delayed"},
        {"message_id": "<1@elsewhere.example>", "status": "5.1.1", "recipient": "bob@example.com"},
    )
    async with webhook(world) as stub:
        for _ in range(2):
            answer = await stub.ReportBounces(call(dsn, "message/rfc822"), metadata=signed(dsn))
            assert (answer.recorded, answer.ignored) == (1, 0)
            answer = await stub.ReportBounces(call(body, "Application/JSON; charset=utf-8"), metadata=signed(body))
            assert (answer.recorded, answer.ignored) == (2, 2)
    rows = {row["event_id"]: (row["user_id"], row["reason"], row["source"]) for row in await suppressed(world)}
    assert rows == {first.id: (ada, "NO_ADDRESS", "PROVIDER"), second.id: (bob, "MAILBOX", "PROVIDER")}


async def test_a_call_without_the_keys_own_signature_is_refused_and_changes_nothing(world: MailWorld) -> None:
    story = story_completed(world.accounts.add("ada@example.com"))
    await world.handle(story)
    body = told({"message_id": f"<{story.id}@mail.example>", "status": "5.1.1"})
    late = datetime.now(UTC) - timedelta(minutes=6)
    refused: tuple[Any, ...] = (
        (),
        signed(body, key=b"o" * 32),
        signed(body + b" "),
        signed(body, at=late),
        signed(body)[:2],
    )
    async with webhook(world) as stub:
        for metadata in refused:
            with raises_status(StatusCode.UNAUTHENTICATED, "WEBHOOK_SIGNATURE_INVALID"):
                await stub.ReportBounces(call(body), metadata=metadata)
    assert await suppressed(world) == []


async def test_without_a_key_every_call_is_refused(world: MailWorld) -> None:
    body = told({"message_id": "<1@mail.example>", "status": "5.1.1"})
    async with webhook(world, key=None) as stub:
        for key in (b"", b"\0" * 32, WEBHOOK_KEY):
            with raises_status(StatusCode.UNAUTHENTICATED, "WEBHOOK_SIGNATURE_INVALID"):
                await stub.ReportBounces(call(body), metadata=signed(body, key=key))


UNREADABLE = [
    b"",
    b"{",
    b"[" * 100_000,
    b"null",
    b"[]",
    b'{"bounces": []}',
    b'{"bounces": [null]}',
    b'{"bounces": [{"status": "5.1.1"}]}',
    b'{"bounces": [{"message_id": 1, "status": "5.1.1"}]}',
    told(*({"message_id": "<1@mail.example>"} for _ in range(101))),
    told({"message_id": "x" * 1001}),
]


async def test_a_signed_body_of_another_form_is_refused_by_its_field(world: MailWorld) -> None:
    async with webhook(world) as stub:
        for body in UNREADABLE:
            for media_type in ("application/json", "message/rfc822"):
                with pytest.raises(AioRpcError) as raised:
                    await stub.ReportBounces(call(body, media_type), metadata=signed(body))
                assert violated_fields(raised.value) == ["report"]
