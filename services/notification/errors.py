"""The refusals of the notification service. Their reasons are permanent."""

from __future__ import annotations

from kit.errors import NotFound


class NotificationNotFound(NotFound):
    reason = "NOTIFICATION_NOT_FOUND"
    message = "there is no such notification"


class UnsubscribeLinkInvalid(NotFound):
    reason = "UNSUBSCRIBE_LINK_INVALID"
    message = "the link is not whole; open it in the mail again"
