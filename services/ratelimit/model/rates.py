"""Rates as people write them: requests per time."""

from __future__ import annotations

import re
from math import gcd

from . import MICROSECONDS, Limit

_RATE = re.compile(r"(?P<requests>[1-9]\d{0,9})/(?P<count>[1-9]\d{0,8})?(?P<unit>ms|s|min|h|d|w)")
UNIT_MILLISECONDS = {"ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_LONGEST_PERIOD_MILLISECONDS = 366 * 86_400_000
_LONGEST_FILL = 366 * 86_400 * MICROSECONDS
"""Microseconds. Keeps every sum in the range where doubles are exact."""


def parse_rate(text: str) -> tuple[int, int]:
    """Requests and seconds. Redis's clock has microseconds, so a token comes back after a whole number of them.

    Raises ValueError with a sentence that says what to write.
    """
    if text == "0" or text.startswith("0/"):
        raise ValueError("lets nothing pass; write block: true in place of rate and burst")
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a rate; write requests per time, such as 10/s, 5/15min, 10/90s or 100/d")
    requests = int(match["requests"])
    milliseconds = int(match["count"] or 1) * UNIT_MILLISECONDS[match["unit"]]
    if milliseconds > _LONGEST_PERIOD_MILLISECONDS:
        raise ValueError(f"{text!r} spans more than 366 days; choose a shorter time")
    microseconds = milliseconds * 1000
    interval = -(-microseconds // requests)
    if interval * requests * 100 > microseconds * 101:
        lower, higher = (-(-MICROSECONDS // each) for each in (interval, max(1, interval - 1)))
        raise ValueError(
            f"{text!r} cannot be counted to one percent, because a token comes back after whole microseconds; "
            f"write {lower}/s" + (f" or {higher}/s" if higher != lower else "")
        )
    # A limit has whole seconds: 10/500ms is 20/s.
    shared = gcd(1000, milliseconds)
    return requests * 1000 // shared, milliseconds // shared


def too_slow(limit: Limit) -> str:
    """Why a limit cannot be counted, if its bucket takes too long to fill."""
    if limit.capacity > _LONGEST_FILL:
        return "a burst this large takes more than a year to come back; lower burst or raise rate"
    return ""
