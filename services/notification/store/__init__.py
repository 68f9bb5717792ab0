"""Every SQL statement of the notification service, one module per subject."""

from __future__ import annotations

from . import (
    attempts,
    counted_mails,
    deliveries,
    digests,
    erasure,
    held,
    mails,
    notification_changes,
    notifications,
    preferences,
    records,
    suppressions,
    webhook_acts,
    webhook_deliveries,
    webhooks,
)

__all__ = [
    "attempts",
    "counted_mails",
    "deliveries",
    "digests",
    "erasure",
    "held",
    "mails",
    "notification_changes",
    "notifications",
    "preferences",
    "records",
    "suppressions",
    "webhook_acts",
    "webhook_deliveries",
    "webhooks",
]
