"""Translation between protobuf messages and operations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, time
from typing import Any
from uuid import UUID

from google.api.httpbody_pb2 import HttpBody
from grpc.aio import ServicerContext
from storymesh.notification.v1 import (
    notification_pb2,
    notification_service_pb2_grpc,
    preference_service_pb2,
    preference_service_pb2_grpc,
    preferences_pb2,
)
from storymesh.notification.v1 import notification_service_pb2 as pb

from kit.identity.caller import caller_of
from kit.rpc.timestamps import set_time
from mesh import pages

from .model import Kind
from .model.deliveries import Channel
from .model.local_time import DailyRange
from .model.notifications import Change, ChangeKind, Heartbeat, Notification, Reconnect, Snapshot, TargetType, Told
from .model.preference_changes import ChosenTiming, PreferenceChange
from .model.preferences import Preferences, Timing
from .model.unsubscribing import done_page, question_page
from .operations.notifications import Notifications
from .operations.preference_changes import PreferenceChanges
from .operations.unsubscribing import Unsubscribing
from .operations.watching import Watches

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
_PROTO_TYPES = {number: kind for kind, number in _TYPES.items()}
_TARGETS = {
    TargetType.ACCOUNT: notification_pb2.TARGET_TYPE_ACCOUNT,
    TargetType.STORY: notification_pb2.TARGET_TYPE_STORY,
    TargetType.SESSION: notification_pb2.TARGET_TYPE_SESSION,
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
            kind=_PROTO_TYPES.get(request.type),
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
        type=_TYPES[notification.type],
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


_CHANNELS = {
    Channel.EMAIL: preferences_pb2.NOTIFICATION_CHANNEL_EMAIL,
    Channel.IN_APP: preferences_pb2.NOTIFICATION_CHANNEL_IN_APP,
}
_TIMINGS = {
    Timing.OFF: preferences_pb2.NOTIFICATION_TIMING_OFF,
    Timing.AT_ONCE: preferences_pb2.NOTIFICATION_TIMING_AT_ONCE,
    Timing.DAILY: preferences_pb2.NOTIFICATION_TIMING_DAILY,
    Timing.WEEKLY: preferences_pb2.NOTIFICATION_TIMING_WEEKLY,
}
_CHANNELS_OF_PROTO = {value: channel for channel, value in _CHANNELS.items()}
_TIMINGS_OF_PROTO = {value: timing for timing, value in _TIMINGS.items()}


class PreferenceServicer(preference_service_pb2_grpc.PreferenceServiceServicer):
    """Implements storymesh.notification.v1.PreferenceService."""

    def __init__(self, preferences: PreferenceChanges, unsubscribing: Unsubscribing) -> None:
        self._preferences = preferences
        self._unsubscribing = unsubscribing

    async def GetNotificationPreferences(
        self, request: preference_service_pb2.GetNotificationPreferencesRequest, context: Context
    ) -> preference_service_pb2.GetNotificationPreferencesResponse:
        found = await self._preferences.read(caller_of(context))
        return preference_service_pb2.GetNotificationPreferencesResponse(preferences=self._to_proto(found))

    async def UpdateNotificationPreferences(
        self, request: preference_service_pb2.UpdateNotificationPreferencesRequest, context: Context
    ) -> preference_service_pb2.UpdateNotificationPreferencesResponse:
        changed = await self._preferences.change(caller_of(context), _change_of(request))
        return preference_service_pb2.UpdateNotificationPreferencesResponse(preferences=self._to_proto(changed))

    async def GetUnsubscribePage(
        self, request: preference_service_pb2.GetUnsubscribePageRequest, context: Context
    ) -> preference_service_pb2.GetUnsubscribePageResponse:
        page = question_page(await self._unsubscribing.language(request.token))
        return preference_service_pb2.GetUnsubscribePageResponse(page=_page_to_proto(page))

    async def Unsubscribe(
        self, request: preference_service_pb2.UnsubscribeRequest, context: Context
    ) -> preference_service_pb2.UnsubscribeResponse:
        page = done_page(await self._unsubscribing.unsubscribe(request.token))
        return preference_service_pb2.UnsubscribeResponse(page=_page_to_proto(page))

    def _to_proto(self, found: Preferences) -> preferences_pb2.NotificationPreferences:
        message = preferences_pb2.NotificationPreferences(
            language=found.language,
            time_zone=found.time_zone,
            paused=found.paused,
            digest_time=f"{found.digest_time:%H:%M}",
            digest_day=preferences_pb2.DayOfWeek.ValueType(found.digest_weekday + 1),
            mails_per_day=found.mails_per_day,
            languages=sorted(self._preferences.languages),
            choices=[
                preferences_pb2.NotificationChoice(
                    kind=kind.kind,
                    channel=_CHANNELS[channel],
                    timing=_TIMINGS[found.timing(kind, channel)],
                    chosen=not kind.security and (kind.kind, channel) in found.choices,
                    changeable=not kind.security,
                )
                for kind in self._preferences.kinds.values()
                for channel in sorted(kind.timings)
            ],
        )
        set_time(message.pause_end_time, found.paused_until)
        if found.quiet_hours:
            message.quiet_hours.start = f"{found.quiet_hours.start:%H:%M}"
            message.quiet_hours.end = f"{found.quiet_hours.end:%H:%M}"
        return message


def _page_to_proto(html: str) -> HttpBody:
    return HttpBody(content_type=pages.MEDIA_TYPE, data=html.encode())


def _change_of(request: preference_service_pb2.UpdateNotificationPreferencesRequest) -> PreferenceChange:
    """The change of the fields in the mask, or without one of those that are given. Fields not given have their defaults."""
    given = {field.name: value for field, value in request.ListFields() if field.name != "update_mask"}
    values: dict[str, Any] = {
        name: given[name] for name in ("language", "time_zone", "paused", "mails_per_day") if name in given
    }
    if "pause_end_time" in given:
        values["pause_end_time"] = request.pause_end_time.ToDatetime(UTC)
    if "quiet_hours" in given:
        hours = request.quiet_hours
        values["quiet_hours"] = DailyRange(time.fromisoformat(hours.start), time.fromisoformat(hours.end))
    if "digest_time" in given:
        values["digest_time"] = time.fromisoformat(request.digest_time)
    if request.digest_day:
        values["digest_day"] = request.digest_day - 1
    values["choices"] = tuple(
        ChosenTiming(each.kind, _CHANNELS_OF_PROTO[each.channel], _TIMINGS_OF_PROTO.get(each.timing))
        for each in request.choices
    )
    return PreferenceChange(changed=frozenset(request.update_mask.paths or given), **values)


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
