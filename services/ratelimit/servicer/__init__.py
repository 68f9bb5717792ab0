"""Translation between protobuf messages and operations, one module per service of the contract."""

from __future__ import annotations

from .administration import RateLimitServicer
from .checks import METHOD, MOST_DESCRIPTORS, MOST_ENTRIES, MOST_REQUEST_BYTES, SERVICE, RateLimits
from .leases import LeaseServicer, ReservationServicer

__all__ = [
    "METHOD",
    "MOST_DESCRIPTORS",
    "MOST_ENTRIES",
    "MOST_REQUEST_BYTES",
    "SERVICE",
    "LeaseServicer",
    "RateLimitServicer",
    "RateLimits",
    "ReservationServicer",
]
