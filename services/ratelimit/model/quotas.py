"""Quotas: so many calls in a day or month of the calendar, all of which come back when the next one begins."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

MICROSECONDS = 1_000_000


class Period(StrEnum):
    """A period of the calendar."""

    DAY = "day"
    MONTH = "month"

    @property
    def seconds(self) -> int:
        """The period's length as headers tell it; a month's is that of Envoy's."""
        return 86_400 if self is Period.DAY else 30 * 86_400


@dataclass(frozen=True, slots=True)
class Window:
    """A quota in the present period, and where the neighbouring periods begin: the store's clock says in which of them it is.

    Its tokens are what a token bucket's microseconds are. `starts`, `ends` and `after` are microseconds since 1970: the beginnings
    of the present, the next and the next but one.
    """

    requests: int
    starts: int
    ends: int
    after: int

    @property
    def burst(self) -> int:
        return self.requests

    @property
    def interval(self) -> int:
        return 1

    @property
    def capacity(self) -> int:
        return self.requests

    def stop(self, at: int) -> int:
        """The end of the period in which the store is, whose clock may be a little behind or ahead of ours."""
        return self.starts if at < self.starts else self.ends if at < self.ends else self.after

    def share(self, part: float) -> Window:
        """A part of the quota, at least one call."""
        return Window(max(1, int(self.requests * part)), self.starts, self.ends, self.after)


@dataclass(frozen=True)
class Quota:
    """`requests` per calendar period in a time zone."""

    requests: int
    period: Period
    time_zone: str = "UTC"

    @property
    def burst(self) -> int:
        return self.requests

    @property
    def window_seconds(self) -> int:
        return self.period.seconds

    def window(self, at: int) -> Window:
        """The quota at an instant, in microseconds since 1970."""
        zone = ZoneInfo(self.time_zone)
        local = datetime.fromtimestamp(at // MICROSECONDS, zone)
        starts = datetime(local.year, local.month, 1 if self.period is Period.MONTH else local.day, tzinfo=zone)
        ends = self._next(starts)
        return Window(self.requests, *map(_microseconds, (starts, ends, self._next(ends))))

    def _next(self, start: datetime) -> datetime:
        """Midnight of the zone at which the next period begins; a day may have 23 or 25 hours."""
        if self.period is Period.DAY:
            following = start.replace(tzinfo=None) + timedelta(days=1)
        else:
            following = (start.replace(tzinfo=None) + timedelta(days=32)).replace(day=1)
        return following.replace(tzinfo=start.tzinfo)


def _microseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * MICROSECONDS
