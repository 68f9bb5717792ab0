"""What a webhook's receiver gets: a JSON body and the headers that prove who sent it (Standard Webhooks 1.0). Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

AGENT = "Storymesh-Webhooks/1"


@dataclass(frozen=True, slots=True)
class WebhookMessage:
    """A message. It names no address and holds no code, because it leaves the mesh for wherever somebody has said."""

    id: UUID
    """The same at each attempt, so that a receiver recognises a repetition."""
    type: str
    occurred_at: datetime
    title: str
    text: str
    target_type: str
    """What it is about, such as STORY; empty: nothing that has an id."""
    target_id: str
    user_id: str = ""
    """The person who is told, for a receiver that is told everybody's notices; empty for a person's own."""

    @property
    def body(self) -> bytes:
        data: dict[str, Any] = {"title": self.title, "text": self.text}
        if self.user_id:
            data["user_id"] = self.user_id
        if self.target_type:
            data["target"] = {"type": self.target_type, "id": self.target_id}
        time = self.occurred_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        message = {"id": str(self.id), "type": self.type, "timestamp": time, "data": data}
        return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def signed_headers(message_id: UUID, body: bytes, secrets: Iterable[bytes], now: datetime) -> Mapping[str, str]:
    """The headers of an attempt. Its time is signed too, so that a receiver can refuse a recorded message."""
    stamp = str(int(now.timestamp()))
    content = f"{message_id}.{stamp}.".encode() + body
    signatures = (hmac.new(secret, content, hashlib.sha256).digest() for secret in secrets)
    return {
        "content-type": "application/json",
        "user-agent": AGENT,
        "webhook-id": str(message_id),
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(f"v1,{base64.b64encode(each).decode()}" for each in signatures),
    }
