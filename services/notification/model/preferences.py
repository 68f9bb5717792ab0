"""What a person wants to be told, how and when, and the verdict that follows for one notice and channel. Pure.

Quiet hours, digests, the throttle and the pause concern what interrupts a person. The list inside the application does not: it
waits until somebody looks, so of the preferences only its own choices apply to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from enum import StrEnum
from uuid import UUID

from .deliveries import Channel
from .local_time import DailyRange, next_time, zone_of
from .notices import DIGEST, NOTICES, Notice


class Timing(StrEnum):
    """When a kind of notice goes out over a channel."""

    OFF = "OFF"
    AT_ONCE = "AT_ONCE"
    DAILY = "DAILY"
    WEEKLY = "WEEKLY"

    @property
    def is_digest(self) -> bool:
        return self in (Timing.DAILY, Timing.WEEKLY)


DIGESTED = frozenset({Channel.EMAIL})
"""Channels that have digests."""
INTERRUPTING = frozenset({Channel.EMAIL})
"""Channels for which quiet hours and the throttle hold."""


@dataclass(frozen=True, slots=True)
class KindDefaults:
    """What a row of the table of notices says to preferences."""

    kind: str
    timings: Mapping[Channel, Timing]
    """The channels that the kind uses, with what holds for people who have chosen nothing."""
    security: bool = False
    """Never suppressed, held or put into a digest: a missing warning hides a thief, a missing code locks a person out."""


def defaults_of(notice: Notice) -> KindDefaults:
    return KindDefaults(notice.kind, dict.fromkeys(notice.channels, Timing.AT_ONCE), notice.security)


KINDS: Mapping[str, KindDefaults] = {
    notice.kind: defaults_of(notice) for notice in NOTICES.values() if notice is not DIGEST
}
"""The kinds about which people choose. A digest is what they choose for one of these."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a person has chosen."""

    user_id: UUID
    language: str = ""
    """Empty: the language of the house."""
    time_zone: str = "UTC"
    paused: bool = False
    paused_until: datetime | None = None
    """When the pause ends by itself. None: never."""
    quiet_hours: DailyRange | None = None
    digest_time: time = time(8)
    digest_weekday: int = 0
    """Day of the weekly digest, 0 for Monday."""
    mails_per_day: int = 0
    """The person's own limit for mails in 24 hours. 0: none but that of the house."""
    choices: Mapping[tuple[str, Channel], Timing] = field(default_factory=dict)
    """By kind and channel. What is missing is the kind's default."""

    def timing(self, defaults: KindDefaults, channel: Channel) -> Timing:
        """What holds for the kind and channel: the choice, else the default. A kind of security has its default only."""
        default = defaults.timings.get(channel, Timing.OFF)
        if defaults.security or channel not in defaults.timings:
            return default
        return self.choices.get((defaults.kind, channel), default)

    def is_paused(self, now: datetime) -> bool:
        return self.paused and (self.paused_until is None or now < self.paused_until)


class Action(StrEnum):
    SEND = "SEND"
    HOLD = "HOLD"
    DIGEST = "DIGEST"
    SUPPRESS = "SUPPRESS"


class Reason(StrEnum):
    """Why a verdict was given. Permanent, because the database stores these names and callers read them."""

    SECURITY = "SECURITY"
    """Sent whatever the person prefers."""
    DEFAULT = "DEFAULT"
    """Sent as the kind's default says."""
    PREFERENCE = "PREFERENCE"
    """Sent as the person has chosen."""
    NOT_OFFERED = "NOT_OFFERED"
    """The kind does not use the channel."""
    TURNED_OFF = "TURNED_OFF"
    """The person has turned the kind off, or unsubscribed from it."""
    OFF_BY_DEFAULT = "OFF_BY_DEFAULT"
    PAUSED = "PAUSED"
    QUIET_HOURS = "QUIET_HOURS"
    THROTTLED = "THROTTLED"
    DAILY_DIGEST = "DAILY_DIGEST"
    WEEKLY_DIGEST = "WEEKLY_DIGEST"


@dataclass(frozen=True, slots=True)
class Verdict:
    action: Action
    reason: Reason
    until: datetime | None = None
    """For HOLD, when to judge again; for DIGEST, when the digest is due. None otherwise."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """At most `most` mails within `window`."""

    most: int
    window: timedelta

    def free_at(self, now: datetime, sent: Sequence[datetime]) -> datetime | None:
        """When one more may be sent; None: now. `sent` holds when others were, in any order."""
        counted = sorted(at for at in sent if at > now - self.window)
        return None if len(counted) < self.most else counted[-self.most] + self.window


_DAY = timedelta(days=1)


def judge(
    defaults: KindDefaults,
    channel: Channel,
    preferences: Preferences,
    now: datetime,
    *,
    sent: Sequence[datetime] = (),
    throttles: Sequence[Throttle] = (),
) -> Verdict:
    """The verdict about one notice and channel at `now`.

    `sent` holds when mails went out to the person lately, those of security left out, and `throttles` the limits of the house.
    """
    timing = preferences.timing(defaults, channel)
    if channel not in defaults.timings:
        return Verdict(Action.SUPPRESS, Reason.NOT_OFFERED)
    if defaults.security:
        return Verdict(Action.SEND, Reason.SECURITY)
    is_choice = (defaults.kind, channel) in preferences.choices
    if timing is Timing.OFF:
        return Verdict(Action.SUPPRESS, Reason.TURNED_OFF if is_choice else Reason.OFF_BY_DEFAULT)
    if channel is not Channel.IN_APP and preferences.is_paused(now):
        return Verdict(Action.SUPPRESS, Reason.PAUSED)
    if timing.is_digest and channel in DIGESTED:
        reason = Reason.WEEKLY_DIGEST if timing is Timing.WEEKLY else Reason.DAILY_DIGEST
        return Verdict(Action.DIGEST, reason, next_digest(reason, preferences, now))
    held = _held(preferences, now, sent, throttles) if channel in INTERRUPTING else None
    return held or Verdict(Action.SEND, Reason.PREFERENCE if is_choice else Reason.DEFAULT)


def next_digest(reason: Reason, preferences: Preferences, now: datetime) -> datetime:
    """When the person's first digest after `now` is due, daily or weekly as the reason says."""
    weekday = preferences.digest_weekday if reason is Reason.WEEKLY_DIGEST else None
    return next_time(now, preferences.digest_time, zone_of(preferences.time_zone), weekday=weekday)


def _held(
    preferences: Preferences, now: datetime, sent: Sequence[datetime], throttles: Sequence[Throttle]
) -> Verdict | None:
    """The verdict to hold a mail, if it is to be held: until an instant that is neither quiet nor throttled, as far as known."""
    own = [Throttle(preferences.mails_per_day, _DAY)] if preferences.mails_per_day else []
    waits = [free_at for each in (*throttles, *own) if (free_at := each.free_at(now, sent))]
    quiet_until = _quiet_until(preferences, now)
    if not quiet_until and not waits:
        return None
    until = max([quiet_until or now, *waits])
    reason = Reason.QUIET_HOURS if quiet_until else Reason.THROTTLED
    return Verdict(Action.HOLD, reason, _quiet_until(preferences, until) or until)


def _quiet_until(preferences: Preferences, now: datetime) -> datetime | None:
    hours = preferences.quiet_hours
    return hours.end_after(now, zone_of(preferences.time_zone)) if hours else None
