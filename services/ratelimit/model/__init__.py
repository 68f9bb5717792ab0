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

from .quotas import MICROSECONDS, Window

__all__ = [
    "MICROSECONDS",
    "Call",
    "Charge",
    "Limit",
    "State",
    "Taken",
    "Verdict",
    "Window",
    "take",
    "take_in_order",
]


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

    @property
    def window_seconds(self) -> int:
        """Seconds in which an empty bucket fills, rounded up."""
        return -(-self.capacity // MICROSECONDS)

    def share(self, part: float) -> Limit:
        """A part of the limit, for a bucket that counts the calls of one process alone. It holds at least one token."""
        thousandths = max(1, round(part * 1000))
        return Limit(self.requests * thousandths, self.period_seconds * 1000, max(1, self.burst * thousandths // 1000))


@dataclass(frozen=True, slots=True)
class Charge:
    """One call's charge to one bucket: `hits` tokens. 0 hits only ask whether a token is available."""

    key: str
    limit: Limit | Window
    hits: int
    debit: int = field(init=False, repr=False, compare=False)
    """Microseconds by which the charge delays the instant of being full.

    More hits than the burst are never admitted; capping them keeps the sum small enough to be exact.
    """

    need: int = field(init=False, repr=False, compare=False)
    """Microseconds' worth of tokens that must be available for the charge to be admitted."""

    most_owed: int = field(init=False, repr=False, compare=False)
    """The charge is admitted if no more than this is owed to the bucket."""

    slot: str = field(init=False, repr=False, compare=False)
    """The key's hash tag: keys with the same tag are in one slot of Redis Cluster."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "slot", self.key.partition("{")[2].partition("}")[0])
        debit = min(self.hits, self.limit.burst + 1) * self.limit.interval
        object.__setattr__(self, "debit", debit)
        object.__setattr__(self, "need", max(debit, self.limit.interval))
        object.__setattr__(self, "most_owed", self.limit.capacity - self.need)


class Verdict(NamedTuple):
    """One bucket's answer, and its state after the call."""

    limit: Limit | Window
    wait: int
    """Microseconds after which this bucket would admit the charge; zero or less if it does so now."""

    debt: int
    """Microseconds until the bucket is full again; of a quota, the tokens that are used."""

    ends: int = 0
    """Of a quota, the microseconds until its period ends."""

    @property
    def admits(self) -> bool:
        return self.wait <= 0

    @property
    def never(self) -> bool:
        """Whether even a full bucket would refuse the charge."""
        return self.wait > (self.ends or self.debt)

    @property
    def remaining(self) -> int:
        """Whole tokens in the bucket."""
        return (self.limit.capacity - self.debt) // self.limit.interval

    @property
    def more_after(self) -> int:
        """Microseconds until a refused charge is admitted, or else until there is one token more; 0 when the bucket is full.

        Of a charge that is never admitted, the latter.
        """
        limit, wait, debt, ends = self
        if ends:
            return ends if debt else 0
        if 0 < wait <= debt:
            return wait
        if debt == 0:
            return 0
        # Tokens come back one interval apart, the last one when nothing is owed.
        return (debt - 1) % limit.interval + 1


Call = Sequence[Charge]
"""The charges of one call, each to another bucket."""


class Taken(NamedTuple):
    """The result of one call's charges, which are debited all or none."""

    at: int
    """The store's clock, in microseconds since 1970."""

    charges: Call = ()
    owed: Sequence[int] = ()
    """What was owed to each bucket before, at most its capacity: microseconds until it is full, or the tokens used of a quota."""

    @property
    def admitted(self) -> bool:
        for charge, owed in zip(self.charges, self.owed, strict=True):  # noqa: SIM110  # a generator would cost twice as much
            if owed > charge.most_owed:
                return False
        return True

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What each bucket says. Made when they are asked for, because most calls pass and need no more than the numbers."""
        admitted = self.admitted
        verdicts = []
        for charge, owed in zip(self.charges, self.owed, strict=True):
            limit = charge.limit
            wait = owed - charge.most_owed
            ends = 0
            if isinstance(limit, Window):
                ends = limit.stop(self.at) - self.at
                if wait > 0:
                    wait = ends + (charge.need > limit.capacity)
            verdicts.append(Verdict(limit, wait, owed + charge.debit if admitted else owed, ends))
        return tuple(verdicts)


State = int | tuple[int, int]
"""A bucket's state: the instant of being full, or the end of a quota's period and the tokens that are used in it."""


def take(charges: Call, states: Sequence[State | None], *, at: int) -> Taken:
    """Decide the charges, given each bucket's state; None is a full bucket. The Redis script must give the same results.

    A state further off than one whole bucket, left by a wider limit or by a clock that has since been set back, counts as empty.
    """
    owed = [_debt(charge, state, at) for charge, state in zip(charges, states, strict=True)]
    return Taken(at, charges, [min(debt, charge.limit.capacity) for charge, debt in zip(charges, owed, strict=True)])


def _debt(charge: Charge, state: State | None, at: int) -> int:
    if state is None:
        return 0
    if isinstance(state, tuple):
        stop, used = state
        return used if isinstance(charge.limit, Window) and charge.limit.stop(at) == stop else 0
    return 0 if isinstance(charge.limit, Window) else max(state - at, 0)


def take_in_order(calls: Sequence[Call], states: MutableMapping[str, State], *, at: int) -> list[Taken]:
    """Decide calls one after the other at one instant, and keep in `states` what they leave of each bucket.

    A store that decides many calls at a time must give the same results.
    """
    results = []
    for charges in calls:
        taken = take(charges, [states.get(charge.key) for charge in charges], at=at)
        if taken.admitted:
            for charge, verdict in zip(charges, taken.verdicts, strict=True):
                if charge.debit:
                    states[charge.key] = (at + verdict.ends, verdict.debt) if verdict.ends else at + verdict.debt
        results.append(taken)
    return results
