"""Token buckets as arithmetic: the charges of a call, and their verdicts.

The buckets follow the generic cell rate algorithm: the state of one is the instant at which it will be full again. That number is a
token bucket with an exact answer to "when may I try again", and a bucket without state is full. Times are whole microseconds: sums
and differences of instants stay exact in Lua's doubles until the year 2255.

What every check of a limit or a charge needs is computed once, when it is made: rules and repeated calls use the same ones again.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Limit:
    """A token bucket's limit: `requests` per `period_seconds` in the long run, `burst` at once."""

    requests: int
    period_seconds: int
    burst: int
    interval: int = field(init=False, repr=False, compare=False)
    """Microseconds per token, rounded up, so that a limit is never exceeded."""

    capacity: int = field(init=False, repr=False, compare=False)
    """Microseconds in which an empty bucket fills."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", -(-self.period_seconds * MICROSECONDS // self.requests))
        object.__setattr__(self, "capacity", self.interval * self.burst)


@dataclass(frozen=True, slots=True)
class Charge:
    """One call's charge to one bucket: `hits` tokens. 0 hits only ask whether a token is available."""

    key: str
    limit: Limit
    hits: int
    debit: int = field(init=False, repr=False, compare=False)
    """Microseconds by which the charge delays the instant of being full.

    More hits than the burst are never admitted; capping them keeps the sum small enough to be exact.
    """

    need: int = field(init=False, repr=False, compare=False)
    """Microseconds' worth of tokens that must be available for the charge to be admitted."""

    slot: str = field(init=False, repr=False, compare=False)
    """The key's hash tag: keys with the same tag are in one slot of Redis Cluster."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "slot", self.key.partition("{")[2].partition("}")[0])
        debit = min(self.hits, self.limit.burst + 1) * self.limit.interval
        object.__setattr__(self, "debit", debit)
        object.__setattr__(self, "need", max(debit, self.limit.interval))


class Verdict(NamedTuple):
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
        limit, wait, debt = self
        if wait > 0:
            return wait
        if debt == 0:
            return 0
        # Tokens come back one interval apart, the last one when nothing is owed.
        return (debt - 1) % limit.interval + 1


class Taken(NamedTuple):
    """The result of one call's charges, which are debited all or none."""

    at: int
    """The store's clock, in microseconds since 1970."""

    verdicts: tuple[Verdict, ...]

    @property
    def admitted(self) -> bool:
        return all(verdict.wait <= 0 for verdict in self.verdicts)


Call = Sequence[Charge]
"""The charges of one call, each to another bucket."""


def take(charges: Call, full_at: Sequence[int | None], *, at: int) -> Taken:
    """Decide the charges, given each bucket's state; None is a full bucket. The Redis script must give the same results.

    A state further off than one whole bucket, left by a wider limit or by a clock that has since been set back, counts as empty.
    """
    return judge(charges, [0 if full is None else max(full - at, 0) for full in full_at], at=at)


def take_in_order(calls: Sequence[Call], full_at: MutableMapping[str, int], *, at: int) -> list[Taken]:
    """Decide calls one after the other at one instant, and keep in `full_at` what they leave of each bucket.

    A store that decides many calls at a time must give the same results.
    """
    results = []
    for charges in calls:
        taken = take(charges, [full_at.get(charge.key) for charge in charges], at=at)
        if taken.admitted:
            for charge, verdict in zip(charges, taken.verdicts, strict=True):
                if charge.debit:
                    full_at[charge.key] = at + verdict.debt
        results.append(taken)
    return results


def judge(charges: Call, debts: Sequence[int], *, at: int) -> Taken:
    """Decide the charges, given the microseconds after which each bucket is full if nothing is debited."""
    admitted = True
    pairs = []
    for charge, owed in zip(charges, debts, strict=True):
        capacity = charge.limit.capacity
        debt = min(owed, capacity)
        wait = debt + charge.need - capacity
        admitted = admitted and wait <= 0
        pairs.append((charge, wait, debt))
    return Taken(
        at,
        tuple([Verdict(charge.limit, wait, debt + charge.debit if admitted else debt) for charge, wait, debt in pairs]),
    )
