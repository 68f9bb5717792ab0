"""What Envoys hold of buckets: tokens that were taken from the store for them, which they spend by themselves and report later.

Everything that an Envoy may admit was debited before, so that all Envoys together never admit more than the bucket does. Whatever
is not known is taken for spent: tokens that an Envoy may have lost are given back only when it can no longer spend them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import Charge

APPLIED_SECONDS = 0.5
"""A report that comes sooner after an assignment may have been sent before Envoy applied it."""

SHORTEST_IDLE_SECONDS = 4.0
LONGEST_IDLE_SECONDS = 60.0
"""How long a bucket without calls is kept: until what Envoy holds of it would have come back anyway, within these bounds."""

_SLOWEST_MEASURED_SECONDS = 1.0


@dataclass(slots=True)
class Holding:
    """What one Envoy holds of the buckets of one id."""

    at: float
    """When it was reported last."""

    active_at: float
    """When calls were reported last."""

    given: int = 0
    """Tokens debited for this Envoy, and not known to be spent or given back."""

    latest: int = 0
    """The size of the bucket that was assigned last. It replaced the one before, with what was left in it."""

    assigned_at: float = 0.0
    demand: float | None = None
    """Calls a second, admitted or refused; None until a whole period was reported."""

    refused: bool = False
    """Whether calls were refused in the last period."""

    owed: int = 0
    """Tokens to be debited from the store, or to be given back if negative, with the next withdrawal."""

    def report(self, allowed: int, refused: int, *, now: float) -> None:
        """Book what Envoy reports of the time since its last report."""
        self.given -= allowed
        if self.given < 0:
            # Spent before anything was assigned.
            self.owed -= self.given
            self.given = 0
        elif now - self.assigned_at >= APPLIED_SECONDS and self.given > self.latest:
            # What the latest assignment has replaced can no longer be spent.
            self.owed -= self.given - self.latest
            self.given = self.latest
        self._measure(allowed + refused, now)
        self.refused = refused > 0

    def _measure(self, calls: int, now: float) -> None:
        elapsed = now - self.at
        if elapsed >= _SLOWEST_MEASURED_SECONDS:
            # The mean of the last periods, of which each counts half as much as the next.
            rate = calls / elapsed
            self.demand = rate if self.demand is None else (self.demand + rate) / 2
            self.at = now
        if calls:
            self.active_at = now

    def assign(self, tokens: int, *, now: float) -> None:
        """Book tokens that were debited and are assigned as a bucket of their own."""
        self.given += tokens
        self.latest = tokens
        self.assigned_at = now

    @property
    def left(self) -> int:
        """The most that Envoy may still have in its bucket."""
        return min(self.given, self.latest)

    def idle(self, charges: Sequence[Charge], *, now: float) -> bool:
        """Whether to let go of the bucket. What is left in it is not given back: calls may pass until Envoy lets go too."""
        comes_back = max((self.left * each.debit / 1e6 for each in charges), default=0.0)
        return now - self.active_at >= min(max(SHORTEST_IDLE_SECONDS, comes_back), LONGEST_IDLE_SECONDS)


def weights(demands: Sequence[float | None]) -> list[float]:
    """Each one's part of the whole by its demand. One that is unknown counts as the mean of the others; nobody gets nothing."""
    known = [each for each in demands if each is not None]
    mean = sum(known) / len(known) if known else 1.0
    # A tenth of the mean for each, so that an Envoy whose calls begin again is not without tokens.
    raw = [(mean if each is None else each) + mean / 10 + 1e-9 for each in demands]
    return [each / sum(raw) for each in raw]


def divided(tokens: int, wanted: Sequence[int]) -> list[int]:
    """Divide tokens in equal parts, and what some do not want among the others (max-min fairness)."""
    parts = [0] * len(wanted)
    left = tokens
    open_ = [number for number, each in enumerate(wanted) if each > 0]
    while left > 0 and open_:
        each = max(1, left // len(open_))
        for number in open_:
            part = min(each, wanted[number] - parts[number], left)
            parts[number] += part
            left -= part
        open_ = [number for number in open_ if parts[number] < wanted[number]]
    return parts
