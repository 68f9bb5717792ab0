"""Token buckets in the process: what rules with `on_redis_down: local` count by while Redis is away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import nsmallest
from time import time

from ..model import MICROSECONDS, Charge, State, Verdict, take_in_order
from .memory import over_at

_MOST = 10_000
"""Buckets at a time, about 3 MB."""


def _now() -> int:
    return int(time() * MICROSECONDS)


class LocalBuckets:
    """A bounded number of buckets. When there are too many, those that are nearest to full are forgotten first."""

    def __init__(self, clock: Callable[[], int] = _now, *, most: int = _MOST) -> None:
        self._clock = clock
        self._most = most
        self._states: dict[str, State] = {}

    def __len__(self) -> int:
        return len(self._states)

    def take(self, charges: Sequence[Charge]) -> tuple[Verdict, ...]:
        """Debit all charges or none."""
        at = self._clock()
        (taken,) = take_in_order([charges], self._states, at=at)
        if len(self._states) > self._most:
            self._forget(at)
        return taken.verdicts

    def _forget(self, at: int) -> None:
        """Forget full buckets, which says the same as keeping them; then a tenth of the rest, so that this happens seldom."""
        self._states = {key: state for key, state in self._states.items() if over_at(state) > at}
        if len(self._states) > self._most:
            for key in nsmallest(max(1, self._most // 10), self._states, key=lambda key: over_at(self._states[key])):
                del self._states[key]
