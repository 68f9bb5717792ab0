"""Time, injected so that tests can move it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], datetime]
"""Returns the present time in UTC."""

SKEW = timedelta(seconds=30)
"""How far apart the clocks of two processes may be."""


def system_clock() -> datetime:
    return datetime.now(UTC)
