"""Quiet hours and digest times in zones whose clocks change: by an hour, by half an hour, at midnight, and by a whole day."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notification.model.local_time import DailyRange, instant, next_time, zone_names, zone_of

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
ZONES = [BERLIN, NEW_YORK, LORD_HOWE, "Asia/Kolkata", "Africa/Cairo", "Pacific/Apia", "UTC"]
MINUTES = st.times().map(lambda at: at.replace(second=0, microsecond=0))
FIRST = datetime(2010, 1, 1, tzinfo=UTC)
MOMENTS = st.integers(0, 25 * 365 * 24 * 3600).map(lambda seconds: FIRST + timedelta(seconds=seconds))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def hours(text: str) -> DailyRange:
    start, end = text.split("-")
    return DailyRange(time.fromisoformat(start), time.fromisoformat(end))


@pytest.mark.parametrize(
    ("zone", "quiet", "now", "until"),
    [
        # Berlin: 2026-03-29 has no 02:00 to 03:00, 2026-10-25 has it twice.
        (BERLIN, "22:00-07:00", "2026-03-28 20:59", None),
        (BERLIN, "22:00-07:00", "2026-03-28 21:00", "2026-03-29 05:00"),
        (BERLIN, "22:00-07:00", "2026-03-29 04:59", "2026-03-29 05:00"),
        (BERLIN, "22:00-07:00", "2026-03-29 05:00", None),
        (BERLIN, "22:00-07:00", "2026-10-24 20:00", "2026-10-25 06:00"),
        (BERLIN, "22:00-07:00", "2026-10-25 05:30", "2026-10-25 06:00"),
        (BERLIN, "22:00-02:30", "2026-03-28 22:00", "2026-03-29 01:00"),
        (BERLIN, "22:00-02:30", "2026-10-24 22:00", "2026-10-25 01:30"),
        (BERLIN, "22:00-02:30", "2026-10-25 00:45", "2026-10-25 01:30"),
        (BERLIN, "02:30-06:00", "2026-03-29 00:59", None),
        (BERLIN, "02:30-06:00", "2026-03-29 01:00", "2026-03-29 04:00"),
        (BERLIN, "02:30-06:00", "2026-10-25 00:29", None),
        (BERLIN, "02:30-06:00", "2026-10-25 00:30", "2026-10-25 05:00"),
        (BERLIN, "02:10-02:50", "2026-03-29 01:00", None),
        (BERLIN, "02:10-02:50", "2026-10-25 01:05", "2026-10-25 01:50"),
        (BERLIN, "13:00-14:00", "2026-07-01 11:30", "2026-07-01 12:00"),
        (BERLIN, "13:00-14:00", "2026-01-01 11:30", None),
        # New York: 2026-03-08 and 2026-11-01.
        (NEW_YORK, "23:00-08:00", "2026-03-08 04:00", "2026-03-08 12:00"),
        (NEW_YORK, "23:00-08:00", "2026-11-01 03:00", "2026-11-01 13:00"),
        (NEW_YORK, "23:00-01:30", "2026-11-01 05:45", "2026-11-01 06:30"),
        (NEW_YORK, "23:00-01:30", "2026-11-01 06:30", None),
        (NEW_YORK, "02:15-02:45", "2026-03-08 07:00", None),
        # Lord Howe changes by half an hour: 2026-10-04 has no 02:00 to 02:30, 2026-04-05 has 01:30 to 02:00 twice.
        (LORD_HOWE, "22:00-07:00", "2026-10-03 15:00", "2026-10-03 20:00"),
        (LORD_HOWE, "22:00-02:15", "2026-10-03 15:00", "2026-10-03 15:30"),
        (LORD_HOWE, "22:00-07:00", "2026-04-04 15:00", "2026-04-04 20:30"),
        (LORD_HOWE, "22:00-01:45", "2026-04-04 14:50", "2026-04-04 15:15"),
        # Over midnight seen from the other date, and ranges of almost a day.
        ("Asia/Kolkata", "22:00-07:00", "2026-06-01 01:29", "2026-06-01 01:30"),
        ("UTC", "00:01-00:00", "2026-06-01 00:00", None),
        ("UTC", "00:01-00:00", "2026-06-01 00:01", "2026-06-02 00:00"),
        # The next range begins before the last occurrence of this one's end.
        (BERLIN, "02:45-02:30", "2026-10-24 12:00", "2026-10-26 01:30"),
    ],
)
def test_a_daily_range_ends_when_clocks_say_so(zone: str, quiet: str, now: str, until: str | None) -> None:
    assert hours(quiet).end_after(utc(now), zone_of(zone)) == (utc(until) if until else None)


@pytest.mark.parametrize(
    ("zone", "now", "at", "weekday", "due"),
    [
        (BERLIN, "2026-03-28 07:00", "08:00", None, "2026-03-29 06:00"),
        (BERLIN, "2026-03-28 06:59", "08:00", None, "2026-03-28 07:00"),
        (BERLIN, "2026-10-24 06:00", "08:00", None, "2026-10-25 07:00"),
        (BERLIN, "2026-03-28 12:00", "02:30", None, "2026-03-29 01:00"),
        (BERLIN, "2026-10-24 12:00", "02:30", None, "2026-10-25 00:30"),
        (BERLIN, "2026-10-25 00:45", "02:30", None, "2026-10-26 01:30"),
        (NEW_YORK, "2026-10-30 12:00", "08:00", 0, "2026-11-02 13:00"),
        (NEW_YORK, "2026-11-02 13:00", "08:00", 0, "2026-11-09 13:00"),
        (LORD_HOWE, "2026-04-03 00:00", "08:00", 6, "2026-04-04 21:30"),
        # Samoa had no 30 December 2011, which would have been a Friday.
        ("Pacific/Apia", "2011-12-27 00:00", "08:00", 4, "2011-12-30 10:00"),
    ],
)
def test_the_next_time_of_day_is_found_over_changes_of_clocks(
    zone: str, now: str, at: str, weekday: int | None, due: str
) -> None:
    assert next_time(utc(now), time.fromisoformat(at), zone_of(zone), weekday=weekday) == utc(due)


@given(zone=st.sampled_from(ZONES), now=MOMENTS, start=MINUTES, end=MINUTES)
def test_a_range_ends_after_now_outside_of_every_range_and_nothing_before_is_outside(
    zone: str, now: datetime, start: time, end: time
) -> None:
    if start == end:
        return
    quiet, place = DailyRange(start, end), ZoneInfo(zone)
    until = quiet.end_after(now, place)
    if until is None:
        # Without a range around it, the clock shows a time outside.
        shown = now.astimezone(place).time()
        assert not (start <= shown < end if start < end else shown >= start or shown < end)
        return
    assert until > now
    assert quiet.end_after(until, place) is None
    assert quiet.end_after(until - timedelta(microseconds=1), place) == until


@given(zone=st.sampled_from(ZONES), now=MOMENTS, at=MINUTES, weekday=st.none() | st.integers(0, 6))
def test_the_next_time_of_day_comes_within_a_day_or_a_week(
    zone: str, now: datetime, at: time, weekday: int | None
) -> None:
    due = next_time(now, at, ZoneInfo(zone), weekday=weekday)
    assert timedelta() < due - now <= (timedelta(hours=50) if weekday is None else timedelta(days=8))
    assert next_time(due, at, ZoneInfo(zone), weekday=weekday) > due


def test_a_time_that_exists_once_is_that_instant_by_both_readings() -> None:
    zone = zone_of(BERLIN)
    for last in (False, True):
        assert instant(date(2026, 7, 1), time(12), zone, last=last) == utc("2026-07-01 10:00")


def test_a_zone_that_this_machine_does_not_know_is_utc() -> None:
    assert zone_of("Europe/Atlantis").key == "UTC"
    assert zone_of("../../etc/passwd").key == "UTC"
    assert {BERLIN, NEW_YORK, LORD_HOWE} <= zone_names()
