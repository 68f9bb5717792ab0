"""Translation between protobuf messages and operations."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from storymesh.notification.v1 import notification_pb2, notification_service_pb2_grpc
from storymesh.notification.v1 import notification_service_pb2 as pb

from kit.identity.caller import caller_of
from kit.rpc.timestamps import set_time

from .model import Kind, Notification
from .operations.notifications import Notifications

Context = ServicerContext[Any, Any]

_TYPES = {
    Kind.WELCOME: notification_pb2.NOTIFICATION_TYPE_WELCOME,
    Kind.STORY_READY: notification_pb2.NOTIFICATION_TYPE_STORY_READY,
    Kind.STORY_FAILED: notification_pb2.NOTIFICATION_TYPE_STORY_FAILED,
    Kind.PASSWORD_CHANGED: notification_pb2.NOTIFICATION_TYPE_PASSWORD_CHANGED,
    Kind.PASSWORD_DISABLED: notification_pb2.NOTIFICATION_TYPE_PASSWORD_DISABLED,
    Kind.SESSION_REVOKED: notification_pb2.NOTIFICATION_TYPE_SESSION_REVOKED,
    Kind.EMAIL_CHANGED: notification_pb2.NOTIFICATION_TYPE_EMAIL_CHANGED,
}


class NotificationServicer(notification_service_pb2_grpc.NotificationServiceServicer):
    """Implements storymesh.notification.v1.NotificationService."""

    def __init__(self, notifications: Notifications) -> None:
        self._notifications = notifications

    async def ListNotifications(
        self, request: pb.ListNotificationsRequest, context: Context
    ) -> pb.ListNotificationsResponse:
        page = await self._notifications.list(caller_of(context), request.page_size, request.page_token)
        return pb.ListNotificationsResponse(notifications=map(_to_proto, page.items), next_page_token=page.next_token)


def _to_proto(notification: Notification) -> notification_pb2.Notification:
    message = notification_pb2.Notification(
        id=str(notification.id),
        type=_TYPES[notification.type],
        title=notification.title,
        body=notification.body,
        story_id=str(notification.story_id or ""),
    )
    set_time(message.create_time, notification.created_at)
    set_time(message.read_time, notification.read_at)
    return message
