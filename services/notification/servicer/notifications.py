"""storymesh.notification.v1.NotificationService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext
from storymesh.notification.v1 import notification_pb2, notification_service_pb2_grpc
from storymesh.notification.v1 import notification_service_pb2 as pb

from kit.identity.caller import caller_of
from kit.rpc.timestamps import set_time

from ..model import Kind
from ..model.notifications import Change, ChangeKind, Heartbeat, Notification, Reconnect, Snapshot, TargetType, Told
from ..operations.notifications import Notifications
from ..operations.watching import Watches

Context = ServicerContext[Any, Any]

TYPES = {
    Kind(name.removeprefix("NOTIFICATION_TYPE_")): number
    for name, number in notification_pb2.NotificationType.items()
    if number
}
KINDS = {number: kind for kind, number in TYPES.items()}
_TARGETS = {
    TargetType(name.removeprefix("TARGET_TYPE_")): number
    for name, number in notification_pb2.TargetType.items()
    if number
}


class NotificationServicer(notification_service_pb2_grpc.NotificationServiceServicer):
    """Implements storymesh.notification.v1.NotificationService."""

    def __init__(self, notifications: Notifications, watches: Watches) -> None:
        self._notifications = notifications
        self._watches = watches

    async def ListNotifications(
        self, request: pb.ListNotificationsRequest, context: Context
    ) -> pb.ListNotificationsResponse:
        listed = await self._notifications.list(
            caller_of(context),
            request.page_size,
            request.page_token,
            unread=request.unread,
            kind=KINDS.get(request.type),
        )
        return pb.ListNotificationsResponse(
            notifications=map(_to_proto, listed.page.items),
            next_page_token=listed.page.next_token,
            unread_count=listed.unread,
            resume_token=listed.resume_token,
        )

    async def CountUnreadNotifications(
        self, request: pb.CountUnreadNotificationsRequest, context: Context
    ) -> pb.CountUnreadNotificationsResponse:
        unread = await self._notifications.count_unread(caller_of(context))
        return pb.CountUnreadNotificationsResponse(unread_count=unread)

    async def MarkNotificationRead(
        self, request: pb.MarkNotificationReadRequest, context: Context
    ) -> pb.MarkNotificationReadResponse:
        read, unread = await self._notifications.mark_read(caller_of(context), UUID(request.notification_id))
        return pb.MarkNotificationReadResponse(notification=_to_proto(read), unread_count=unread)

    async def MarkAllNotificationsRead(
        self, request: pb.MarkAllNotificationsReadRequest, context: Context
    ) -> pb.MarkAllNotificationsReadResponse:
        marked = await self._notifications.mark_all_read(caller_of(context))
        return pb.MarkAllNotificationsReadResponse(marked_count=marked)

    async def DeleteNotification(
        self, request: pb.DeleteNotificationRequest, context: Context
    ) -> pb.DeleteNotificationResponse:
        unread = await self._notifications.delete(caller_of(context), UUID(request.notification_id))
        return pb.DeleteNotificationResponse(unread_count=unread)

    async def WatchNotifications(
        self, request: pb.WatchNotificationsRequest, context: Context
    ) -> AsyncIterator[pb.WatchNotificationsResponse]:
        async with aclosing(self._watches.watch(caller_of(context), request.resume_token)) as watch:
            async for told in watch:
                yield _told_to_proto(told)


def _to_proto(notification: Notification) -> notification_pb2.Notification:
    target = notification.target
    message = notification_pb2.Notification(
        id=str(notification.id),
        type=TYPES[notification.type],
        title=notification.title,
        body=notification.text.body,
        story_id=str(target.id) if target.type is TargetType.STORY else "",
        target=notification_pb2.Target(type=_TARGETS[target.type], id=str(target.id)),
        actors=[notification_pb2.Actor(id=str(each.id), name=each.name) for each in notification.actors],
        actor_count=notification.actor_count,
    )
    set_time(message.create_time, notification.created_at)
    set_time(message.update_time, notification.updated_at or notification.created_at)
    set_time(message.read_time, notification.read_at)
    return message


def _told_to_proto(told: Told) -> pb.WatchNotificationsResponse:
    message = pb.WatchNotificationsResponse(resume_token=told.resume_token, unread_count=told.unread)
    match told.step:
        case Snapshot():
            message.snapshot.SetInParent()
        case Heartbeat():
            message.heartbeat.SetInParent()
        case Reconnect(after):
            message.reconnect.after.FromTimedelta(after)
        case Change() as change:
            _set_change(message, change)
    return message


def _set_change(message: pb.WatchNotificationsResponse, change: Change) -> None:
    match change.kind:
        case ChangeKind.ADDED if change.notification:
            message.added.notification.CopyFrom(_to_proto(change.notification))
        case ChangeKind.UPDATED if change.notification:
            message.updated.notification.CopyFrom(_to_proto(change.notification))
        case ChangeKind.READ:
            message.read.notification_id = str(change.notification_id)
            set_time(message.read.read_time, change.occurred_at)
        case ChangeKind.DELETED:
            message.deleted.notification_id = str(change.notification_id)
        case ChangeKind.ALL_READ:
            set_time(message.all_read.read_time, change.occurred_at)
        case ChangeKind.EXPIRED:
            set_time(message.expired.before_time, change.before_at)
