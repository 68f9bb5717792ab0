"""Time, injected so that tests can move it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from mesh.edge_protocol import CLOCK_SKEW_SECONDS

Clock = Callable[[], datetime]
"""Returns the present time in UTC."""

SKEW = timedelta(seconds=CLOCK_SKEW_SECONDS)
"""How far apart the clocks of two processes may be."""


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def system_clock() -> datetime:
    return datetime.now(UTC)


def milliseconds(duration: timedelta) -> int:
    """Whole milliseconds, rounded down: the unit of our scripts in Redis, which know no durations."""
    return duration // _MILLISECOND


def unix_milliseconds(moment: datetime) -> int:
    """Whole milliseconds since 1970, rounded down. Exact, where the float of `timestamp()` may be one off."""
    return milliseconds(moment - _EPOCH)


def from_unix_milliseconds(number: int) -> datetime:
    """The moment in UTC that `unix_milliseconds` tells. Raises OverflowError beyond the year 9999."""
    return _EPOCH + timedelta(milliseconds=number)
