"""Seals and opens what the database must not show of a webhook: the receiver's URL and the secrets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from kit.identity.sealing import Seal

from ..model.webhooks import Webhook


class WebhookSeals:
    """Each value is sealed for its webhook, so that one in another's row opens nothing. Opening raises Unsealable."""

    def __init__(self, seal: Seal) -> None:
        self._seal = seal

    def seal_url(self, webhook_id: UUID, url: str) -> bytes:
        return self._seal.seal(f"webhook-url:{webhook_id}", url.encode())

    def seal_secret(self, webhook_id: UUID, secret: bytes) -> bytes:
        return self._seal.seal(f"webhook-secret:{webhook_id}", secret)

    def url(self, webhook: Webhook) -> str:
        return self._seal.unseal(f"webhook-url:{webhook.id}", webhook.url).decode()

    def secrets(self, webhook: Webhook, now: datetime) -> Sequence[bytes]:
        """The secrets to sign with, the newest first."""
        return [self._seal.unseal(f"webhook-secret:{webhook.id}", sealed) for sealed in webhook.secrets(now)]
