"""The refusals of the notification service. Their reasons are permanent."""

from __future__ import annotations

from kit.errors import NotFound


class NotificationNotFound(NotFound):
    reason = "NOTIFICATION_NOT_FOUND"
    message = "there is no such notification"
