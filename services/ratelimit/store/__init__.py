"""The limiter's stores: buckets in Redis or in memory, rules in a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..model import Call, Taken

MOST_BUCKETS_OF_A_CALL = 255
"""The most charges that a call may have."""


class BucketStore(Protocol):
    """What every store of buckets promises; tests/ratelimit/test_bucket_stores.py holds each of them to it."""

    def take(self, calls: Sequence[Call], *, seconds: float) -> list[Taken]:
        """Decide the calls in their order; debit all charges of a call or none. No two charges of a call may name one bucket.

        All buckets of a call must be in one hash slot of Redis Cluster. Raises OSError or RedisError if the buckets cannot be
        reached within `seconds`; some calls may have been debited even so.
        """


class ResettableStore(BucketStore, Protocol):
    """A store whose buckets can be filled by hand."""

    def forget(self, keys: Sequence[str], *, seconds: float) -> int:
        """Fill the buckets with these keys; returns how many had a state. Raises as `take` does."""
