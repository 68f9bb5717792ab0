"""Time, injected so that tests can move it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the present time in UTC."""


def system_clock() -> datetime:
    return datetime.now(UTC)
