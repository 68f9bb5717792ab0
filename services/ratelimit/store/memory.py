"""Token buckets in the memory of one process, with the semantics of those in Redis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..model import Call, Taken, take_in_order

_SWEEP_AT_LEAST = 1024


class MemoryBucketStore:
    """Buckets that end with the process, and that no other process sees."""

    def __init__(self, now: Callable[[], int]) -> None:
        """`now` returns microseconds since 1970."""
        self._now = now
        self._full_at: dict[str, int] = {}
        self._sweep_at = _SWEEP_AT_LEAST

    def __len__(self) -> int:
        """The number of buckets that it keeps."""
        return len(self._full_at)

    def take(self, calls: Sequence[Call], *, seconds: float) -> list[Taken]:
        """Decide the calls as `BucketStore` says; `seconds` are not needed."""
        at = self._now()
        results = take_in_order(calls, self._full_at, at=at)
        if len(self._full_at) > self._sweep_at:
            # A bucket that is full needs no state. Sweep again only when the state has doubled, so that a call pays for a few keys.
            self._full_at = {key: full for key, full in self._full_at.items() if full > at}
            self._sweep_at = max(2 * len(self._full_at), _SWEEP_AT_LEAST)
        return results
