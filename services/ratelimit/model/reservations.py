"""Reservations as arithmetic: what the end of one does to the buckets that it was taken from."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from . import Charge, State, Taken


class Stage(StrEnum):
    """How far a reservation has come."""

    RESERVED = "reserved"
    COMMITTED = "committed"
    REFUNDED = "refunded"


class Part(NamedTuple):
    """What a reservation asks of one bucket."""

    charge: Charge
    binding: bool
    """Whether the reservation is refused when the bucket holds too little. Rules in shadow mode refuse nothing."""


class Debit(NamedTuple):
    """What a reservation has taken from one bucket: microseconds, or tokens of a quota."""

    key: str
    unit: int
    """The debit of one token that was asked for."""

    capacity: int
    debit: int
    ends: int
    """Of a quota, the end of the period to which the debit belongs; otherwise 0."""

    def change(self, used: int) -> int:
        """What has to be taken besides, or given back if it is negative. More than the bucket ever holds changes nothing more."""
        return min(self.unit * used - self.debit, self.capacity)

    def settled(self, state: State | None, used: int, *, reserved_at: int, at: int) -> State | None:
        """The bucket's state once `used` tokens are known. The Redis script must give the same results.

        A bucket that fills by itself gets back only what has not come back since: more would let through more than it holds.
        """
        change = self.change(used)
        if self.ends:
            if not isinstance(state, tuple) or state[0] != self.ends:
                return state
            return self.ends, max(state[1] + change, 0)
        full_at = min(max(state if isinstance(state, int) else at, at), at + self.capacity)
        if change < 0:
            full_at -= max(-change - max(at - reserved_at, 0), 0)
        else:
            full_at = min(full_at + change, at + self.capacity)
        return full_at if full_at > at else None


class Reserved(NamedTuple):
    """The answer to a request for a reservation."""

    taken: Taken | None
    """What the buckets say; None for a key that was known already."""

    admitted: bool = True
    stage: Stage = Stage.RESERVED
    fingerprint: str = ""
    """Of the request that the key came with first."""


class Settled(NamedTuple):
    """How a reservation ended, be it now or earlier."""

    stage: Stage
    used: int
