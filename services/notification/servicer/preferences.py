"""storymesh.notification.v1.PreferenceService."""

from __future__ import annotations

from datetime import UTC, time
from typing import Any

from google.api.httpbody_pb2 import HttpBody
from grpc.aio import ServicerContext
from storymesh.notification.v1 import preference_service_pb2, preference_service_pb2_grpc, preferences_pb2

from kit.identity.caller import caller_of
from kit.rpc.timestamps import set_time
from mesh import pages

from ..model.deliveries import Channel
from ..model.local_time import DailyRange
from ..model.preference_changes import ChosenTiming, PreferenceChange
from ..model.preferences import Preferences, Timing
from ..model.unsubscribing import done_page, question_page
from ..operations.preference_changes import PreferenceChanges
from ..operations.unsubscribing import Unsubscribing

Context = ServicerContext[Any, Any]

_CHANNELS = {
    Channel.EMAIL: preferences_pb2.NOTIFICATION_CHANNEL_EMAIL,
    Channel.IN_APP: preferences_pb2.NOTIFICATION_CHANNEL_IN_APP,
    Channel.WEBHOOK: preferences_pb2.NOTIFICATION_CHANNEL_WEBHOOK,
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
