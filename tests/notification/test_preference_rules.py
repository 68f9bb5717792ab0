"""The verdict about one notice and channel: sent, held, put into a digest or suppressed, each with its reason."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notification.model.deliveries import Channel
from services.notification.model.local_time import DailyRange
from services.notification.model.preferences import (
    Action,
    KindDefaults,
    Preferences,
    Reason,
    Throttle,
    Timing,
    Verdict,
    judge,
)

PERSON = UUID(int=7)
NOW = datetime(2026, 7, 1, 10, 30, tzinfo=UTC)
STORY = KindDefaults("STORY_READY", {Channel.EMAIL: Timing.AT_ONCE, Channel.IN_APP: Timing.AT_ONCE})
TIP = KindDefaults("TIP", {Channel.EMAIL: Timing.OFF, Channel.IN_APP: Timing.AT_ONCE})
MAIL_ONLY = KindDefaults("LETTER", {Channel.EMAIL: Timing.AT_ONCE})
WARNING = KindDefaults("PASSWORD_CHANGED", dict.fromkeys(Channel, Timing.AT_ONCE), security=True)
DEFAULTS = Preferences(PERSON)
BERLIN = replace(DEFAULTS, time_zone="Europe/Berlin", quiet_hours=DailyRange(time(12), time(14)))
HOURLY = Throttle(2, timedelta(hours=1))


def chosen(timing: Timing, kind: str = "STORY_READY", channel: Channel = Channel.EMAIL) -> Preferences:
    return replace(DEFAULTS, choices={(kind, channel): timing})


def minutes_ago(*ages: int) -> list[datetime]:
    return [NOW - timedelta(minutes=age) for age in ages]


QUIET_AT_TEN, QUIET_TILL_THREE = (DailyRange(time(start), time(end)) for start, end in ((10, 12), (11, 15)))
BY_DEFAULT, BY_CHOICE = Verdict(Action.SEND, Reason.DEFAULT), Verdict(Action.SEND, Reason.PREFERENCE)
PAUSED = Verdict(Action.SUPPRESS, Reason.PAUSED)


def quiet(until: datetime) -> Verdict:
    return Verdict(Action.HOLD, Reason.QUIET_HOURS, until)


def throttled(until: datetime) -> Verdict:
    return Verdict(Action.HOLD, Reason.THROTTLED, until)


def daily(until: datetime) -> Verdict:
    return Verdict(Action.DIGEST, Reason.DAILY_DIGEST, until)


def weekly(until: datetime) -> Verdict:
    return Verdict(Action.DIGEST, Reason.WEEKLY_DIGEST, until)


def july(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 7, day, hour, minute, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "channel", "preferences", "sent", "expected"),
    [
        (STORY, Channel.EMAIL, DEFAULTS, [], BY_DEFAULT),
        (STORY, Channel.EMAIL, chosen(Timing.AT_ONCE), [], BY_CHOICE),
        (STORY, Channel.EMAIL, chosen(Timing.OFF), [], Verdict(Action.SUPPRESS, Reason.TURNED_OFF)),
        (STORY, Channel.IN_APP, chosen(Timing.OFF), [], BY_DEFAULT),
        (MAIL_ONLY, Channel.IN_APP, DEFAULTS, [], Verdict(Action.SUPPRESS, Reason.NOT_OFFERED)),
        (TIP, Channel.EMAIL, DEFAULTS, [], Verdict(Action.SUPPRESS, Reason.OFF_BY_DEFAULT)),
        (TIP, Channel.EMAIL, chosen(Timing.AT_ONCE, "TIP"), [], BY_CHOICE),
        # The pause stops mails; the list stays whole.
        (STORY, Channel.EMAIL, replace(DEFAULTS, paused=True), [], PAUSED),
        (STORY, Channel.IN_APP, replace(DEFAULTS, paused=True), [], BY_DEFAULT),
        (STORY, Channel.EMAIL, replace(DEFAULTS, paused=True, paused_until=july(1, 10, 31)), [], PAUSED),
        (STORY, Channel.EMAIL, replace(DEFAULTS, paused=True, paused_until=NOW), [], BY_DEFAULT),
        # Quiet hours, in the person's zone: 12:30 in Berlin.
        (STORY, Channel.EMAIL, BERLIN, [], quiet(july(1, 12))),
        (STORY, Channel.EMAIL, replace(BERLIN, time_zone="UTC"), [], BY_DEFAULT),
        (STORY, Channel.IN_APP, BERLIN, [], BY_DEFAULT),
        # The throttle, and the end of a throttle within quiet hours.
        (STORY, Channel.EMAIL, DEFAULTS, minutes_ago(59), BY_DEFAULT),
        (STORY, Channel.EMAIL, DEFAULTS, minutes_ago(60, 59), BY_DEFAULT),
        (STORY, Channel.EMAIL, DEFAULTS, minutes_ago(10, 59, 20), throttled(july(1, 11, 10))),
        (STORY, Channel.IN_APP, DEFAULTS, minutes_ago(1, 2, 3), BY_DEFAULT),
        (STORY, Channel.EMAIL, replace(DEFAULTS, mails_per_day=1), minutes_ago(90), throttled(july(2, 9))),
        (STORY, Channel.EMAIL, replace(DEFAULTS, quiet_hours=QUIET_TILL_THREE), minutes_ago(1, 2), throttled(july(1, 15))),
        (STORY, Channel.EMAIL, replace(BERLIN, mails_per_day=1), minutes_ago(5), quiet(july(2, 12))),
        # Digests, due in the person's zone. 2026-07-01 is a Wednesday.
        (STORY, Channel.EMAIL, chosen(Timing.DAILY), [], daily(july(2, 8))),
        (STORY, Channel.EMAIL, replace(chosen(Timing.DAILY), digest_time=time(11)), [], daily(july(1, 11))),
        (STORY, Channel.EMAIL, replace(chosen(Timing.DAILY), quiet_hours=QUIET_AT_TEN), minutes_ago(1, 2), daily(july(2, 8))),
        (STORY, Channel.EMAIL, replace(chosen(Timing.WEEKLY), time_zone="America/New_York"), [], weekly(july(6, 12))),
        (STORY, Channel.EMAIL, replace(chosen(Timing.WEEKLY), digest_weekday=3), [], weekly(july(2, 8))),
        (STORY, Channel.EMAIL, replace(chosen(Timing.WEEKLY), paused=True), [], PAUSED),
    ],
)  # fmt: skip
def test_preferences_give_the_verdict(
    kind: KindDefaults, channel: Channel, preferences: Preferences, sent: list[datetime], expected: Verdict
) -> None:
    assert judge(kind, channel, preferences, NOW, sent=sent, throttles=[HOURLY]) == expected


@pytest.mark.parametrize("channel", Channel)
def test_security_is_sent_at_once_whatever_a_person_prefers(channel: Channel) -> None:
    against = Preferences(
        PERSON,
        paused=True,
        quiet_hours=DailyRange(time(10), time(12)),
        mails_per_day=1,
        choices={(WARNING.kind, each): Timing.OFF for each in Channel},
    )
    verdict = judge(WARNING, channel, against, NOW, sent=minutes_ago(1, 1, 1), throttles=[HOURLY])
    assert verdict == Verdict(Action.SEND, Reason.SECURITY)


timings = st.sampled_from(Timing)
minutes = st.times().map(lambda at: at.replace(second=0, microsecond=0))
ranges = st.tuples(minutes, minutes).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: DailyRange(*pair))
moments = st.integers(0, 6 * 365 * 24 * 60).map(
    lambda minute: datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
)
kinds = st.builds(
    KindDefaults, st.just("K"), st.dictionaries(st.sampled_from(Channel), timings, min_size=1), st.booleans()
)
people = st.builds(
    Preferences,
    user_id=st.just(PERSON),
    time_zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Nowhere"]),
    paused=st.booleans(),
    paused_until=st.none() | moments,
    quiet_hours=st.none() | ranges,
    digest_time=minutes,
    digest_weekday=st.integers(0, 6),
    mails_per_day=st.integers(0, 3),
    choices=st.dictionaries(st.tuples(st.sampled_from(["K", "L"]), st.sampled_from(Channel)), timings),
)


@given(kinds, st.sampled_from(Channel), people, moments, st.lists(st.integers(-60, 3000), max_size=6))
def test_every_notice_and_preference_gets_one_verdict_with_a_reason_and_waiting_ends(
    kind: KindDefaults, channel: Channel, person: Preferences, now: datetime, ages: list[int]
) -> None:
    sent = [now - timedelta(minutes=age) for age in ages]
    verdict = judge(kind, channel, person, now, sent=sent, throttles=[HOURLY])
    assert verdict == judge(kind, channel, person, now, sent=sent[::-1], throttles=[HOURLY])
    assert verdict.reason
    if verdict.action in (Action.HOLD, Action.DIGEST):
        assert channel is Channel.EMAIL
        assert verdict.until is not None
        assert now < verdict.until < now + timedelta(days=10)
    else:
        assert verdict.until is None
    if kind.security and channel in kind.timings:
        assert verdict == Verdict(Action.SEND, Reason.SECURITY)
    if verdict.action is Action.HOLD and verdict.until:
        # Nothing has been sent meanwhile, so the mail goes out then, unless the pause has begun.
        again = judge(kind, channel, person, verdict.until, sent=sent, throttles=[HOURLY])
        assert again.action is Action.SEND
