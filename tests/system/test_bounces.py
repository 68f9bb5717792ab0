"""The mail provider's webhook as the internet reaches it: open, of any media type, and refused without a signature."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from kit.runtime import base64url
from services.notification.model.webhook_signatures import signature
from tests.system.conftest import BOUNCE_WEBHOOK_KEY
from tests.system.doors import Door

KEY = base64url.decode(BOUNCE_WEBHOOK_KEY.rstrip("="))
BODIES = {
    "message/rfc822": b"Subject: no report\r\n\r\n",
    "application/json": b'{"bounces": [{"message_id": "<1@elsewhere.example>", "status": "5.1.1"}], "bounces": 1',
    "text/plain": b"\xff\x00",
}


def report(media_type: str, body: bytes) -> dict[str, Any]:
    return {"content_type": media_type, "data": base64.b64encode(body).decode()}


def signed(body: bytes) -> dict[str, str]:
    now = str(int(time.time()))
    return {"webhook-id": "msg_1", "webhook-timestamp": now, "webhook-signature": signature(KEY, "msg_1", now, body)}


@pytest.mark.parametrize("media_type", BODIES)
async def test_a_call_reaches_the_service_as_it_came_and_is_refused_without_its_signature(
    door: Door, media_type: str
) -> None:
    body = BODIES[media_type]
    for headers in ({}, signed(body + b" ")):
        answer = await door.call("ReportBounces", headers=headers, report=report(media_type, body))
        assert answer.refusal == ("UNAUTHENTICATED", "WEBHOOK_SIGNATURE_INVALID")
    # Signed, it is read: no byte was changed on the way.
    answer = await door.call("ReportBounces", headers=signed(body), report=report(media_type, body))
    assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", {"report"})


async def test_a_signed_call_is_taken(door: Door) -> None:
    body = b'{"bounces": [{"message_id": "<1@elsewhere.example>", "status": "5.1.1"}]}'
    answer = await door.call("ReportBounces", headers=signed(body), report=report("application/json", body))
    assert answer.ok
    assert (answer.body["recorded"], answer.body["ignored"]) == (0, 1)
