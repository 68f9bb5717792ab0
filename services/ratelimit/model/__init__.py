"""Token buckets as arithmetic: the charges of a check, and their verdicts.

The buckets follow the generic cell rate algorithm: the state of one is the instant at which it will be full again. That number is a
token bucket with an exact answer to "when may I try again", and a bucket without state is full. Times are whole microseconds: sums
and differences of instants stay exact in Lua's doubles until the year 2255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Limit:
    """A token bucket's limit: `requests` per `period_seconds` in the long run, `burst` at once."""

    requests: int
    period_seconds: int
    burst: int

    @property
    def interval(self) -> int:
        """Microseconds per token, rounded up, so that a limit is never exceeded."""
        return -(-self.period_seconds * MICROSECONDS // self.requests)

    @property
    def capacity(self) -> int:
        """Microseconds in which an empty bucket fills."""
        return self.interval * self.burst


@dataclass(frozen=True, slots=True)
class Charge:
    """One call's charge to one bucket: `hits` tokens. 0 hits only ask whether a token is available."""

    key: str
    limit: Limit
    hits: int

    @property
    def debit(self) -> int:
        """Microseconds by which the charge delays the instant of being full.

        More hits than the burst are never admitted; capping them keeps the sum small enough to be exact.
        """
        return min(self.hits, self.limit.burst + 1) * self.limit.interval

    @property
    def need(self) -> int:
        """Microseconds' worth of tokens that must be available for the charge to be admitted."""
        return max(self.debit, self.limit.interval)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One bucket's answer, and its state after the call."""

    limit: Limit
    wait: int
    """Microseconds after which this bucket would admit the charge; zero or less if it does so now."""

    debt: int
    """Microseconds until the bucket is full again."""

    @property
    def admits(self) -> bool:
        return self.wait <= 0

    @property
    def remaining(self) -> int:
        """Whole tokens in the bucket."""
        return (self.limit.capacity - self.debt) // self.limit.interval

    @property
    def more_after(self) -> int:
        """Microseconds until the refused charge is admitted, or else until there is one token more; 0 when the bucket is full."""
        if not self.admits:
            return self.wait
        if self.debt == 0:
            return 0
        return self.debt - (self.limit.capacity - (self.remaining + 1) * self.limit.interval)


@dataclass(frozen=True, slots=True)
class Taken:
    """The result of one call's charges, which are debited all or none."""

    at: int
    """The store's clock, in microseconds since 1970."""

    verdicts: tuple[Verdict, ...]

    @property
    def admitted(self) -> bool:
        return all(verdict.admits for verdict in self.verdicts)


def take(charges: Sequence[Charge], full_at: Sequence[int | None], *, at: int) -> Taken:
    """Decide the charges, given each bucket's state; None is a full bucket. The Redis script must give the same results.

    A state further off than one whole bucket, left by a wider limit or by a clock that has since been set back, counts as empty.
    """
    debts = [
        0 if full is None else min(max(full - at, 0), charge.limit.capacity)
        for charge, full in zip(charges, full_at, strict=True)
    ]
    waits = [debt + charge.need - charge.limit.capacity for charge, debt in zip(charges, debts, strict=True)]
    admitted = all(wait <= 0 for wait in waits)
    return Taken(
        at,
        tuple(
            Verdict(charge.limit, wait, debt + (charge.debit if admitted else 0))
            for charge, wait, debt in zip(charges, waits, debts, strict=True)
        ),
    )
