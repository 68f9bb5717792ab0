"""Times of day of a time zone as instants, correct on days on which clocks change. Pure.

A time of day that a clock change skips stands for the instant of the change. One that happens twice stands for its first
occurrence where a range begins, and for its last where one ends, so that a range never ends early and never falls apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from importlib.resources import files
from zoneinfo import ZoneInfo

_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)
_RANGES_IN_A_ROW = 8
"""More ranges than can follow one another without a gap: only a clock change closes the minute or more that is between two."""


@cache
def zone_names() -> frozenset[str]:
    """The names of the IANA time zone database, as the package tzdata has them.

    Not those that this machine happens to have: they differ between machines, and include one for the machine's own zone.
    """
    return frozenset(files("tzdata").joinpath("zones").read_text().split())


@cache
def zone_of(name: str) -> ZoneInfo:
    """The zone of that name; UTC for a name that this machine's database does not have, though another replica's had it."""
    return ZoneInfo(name if name in zone_names() else "UTC")


@dataclass(frozen=True, slots=True)
class DailyRange:
    """The hours from `start` to before `end`, every day; over midnight if `end` is earlier. The two differ."""

    start: time
    end: time

    def end_after(self, now: datetime, zone: ZoneInfo) -> datetime | None:
        """The instant at which the range that holds `now` ends and no other holds it; None if none holds `now`."""
        end = self._end(now, zone)
        for _ in range(_RANGES_IN_A_ROW):
            # On a day of 25 hours the next range may begin before the end of this one.
            following = self._end(end, zone) if end else None
            if following is None:
                break
            end = following
        return end

    def _end(self, now: datetime, zone: ZoneInfo) -> datetime | None:
        today = now.astimezone(zone).date()
        for day in (today - _DAY, today, today + _DAY):
            last_day = day + _DAY if self.end <= self.start else day
            end = instant(last_day, self.end, zone, last=True)
            if instant(day, self.start, zone) <= now < end:
                return end
        return None


def instant(day: date, at: time, zone: ZoneInfo, *, last: bool = False) -> datetime:
    """The instant, in UTC, at which clocks of the zone show this day and time; its last occurrence if `last`."""
    wall = datetime.combine(day, at, tzinfo=zone)
    # PEP 495: fold=0 reads a time by the offset before a clock change, fold=1 by the offset after it.
    before, after = (wall.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
    if before > after:
        return _change_between(after, before, zone)
    return after if last else before


def next_time(now: datetime, at: time, zone: ZoneInfo, *, weekday: int | None = None) -> datetime:
    """The first instant after `now` at which clocks show `at`, on that day of the week (0: Monday) if given."""
    day = now.astimezone(zone).date()
    while True:
        if weekday is None or day.weekday() == weekday:
            found = instant(day, at, zone)
            if found > now:
                return found
        day += _DAY


def _change_between(low: datetime, high: datetime, zone: ZoneInfo) -> datetime:
    """The instant of the clock change in (low, high]: the first second with another offset than `low` has."""
    offset = low.astimezone(zone).utcoffset()
    while high - low > _SECOND:
        middle = (low + (high - low) / 2).replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return high
