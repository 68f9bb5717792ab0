"""Translation between protobuf messages and operations, one module per service of the contract."""

from __future__ import annotations

from .bounces import BounceServicer
from .deliveries import DeliveryServicer
from .notifications import NotificationServicer
from .preferences import PreferenceServicer
from .system_webhooks import SystemWebhookServicer
from .webhooks import WebhookServicer

__all__ = [
    "BounceServicer",
    "DeliveryServicer",
    "NotificationServicer",
    "PreferenceServicer",
    "SystemWebhookServicer",
    "WebhookServicer",
]
