"""The errors of this service. Their reasons are permanent."""

from __future__ import annotations

from kit.errors import Unavailable


class BucketsUnreachable(Unavailable):
    reason = "RATE_LIMIT_BUCKETS_UNREACHABLE"
    message = "the rate limit cannot be checked now, and its rule lets nothing pass unchecked; try again"
