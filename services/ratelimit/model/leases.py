"""Leases as arithmetic: who holds a place under a rule, and until when. Times are whole microseconds."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from enum import StrEnum
from typing import NamedTuple


class Place(NamedTuple):
    """A place under one rule."""

    key: str
    """Names the holders that share the bound."""

    most: int
    """How many may hold a place at a time."""

    ttl: int
    """How long a place is held that is not taken anew."""


class Act(StrEnum):
    """What is to become of a lease."""

    ACQUIRE = "acquire"
    RENEW = "renew"
    RELEASE = "release"


class LeaseCall(NamedTuple):
    """One holder's call about one lease. Its places, each under another key, are taken all or none."""

    act: Act
    holder: str
    places: tuple[Place, ...]


class LeaseState(NamedTuple):
    """A lease after a call."""

    held: bool
    wait: int = 0
    """Of a refused lease, the time until enough of the others end to make room, if none of them is renewed or released."""

    refusing: int = 0
    """Of a refused lease, the number of the place for which it would wait the longest."""


Holders = MutableMapping[str, dict[str, int]]
"""By key, then by holder: until when it holds its place."""


def apply_in_order(calls: Sequence[LeaseCall], holders: Holders, *, at: int) -> list[LeaseState]:
    """Decide calls one after the other at one instant. Every store must give the same results."""
    return [_apply(call, holders, at) for call in calls]


def _apply(call: LeaseCall, holders: Holders, at: int) -> LeaseState:
    for place in call.places:
        # An end further off than a whole time to live was set under a longer one, or before the clock was set back.
        holders[place.key] = {
            holder: min(until, at + place.ttl) for holder, until in holders.get(place.key, {}).items() if until > at
        }
    if call.act is Act.RELEASE:
        for place in call.places:
            holders[place.key].pop(call.holder, None)
        return LeaseState(held=False)
    missing = [number for number, place in enumerate(call.places) if call.holder not in holders[place.key]]
    if call.act is Act.RENEW and missing:
        return LeaseState(held=False)
    waits = [
        (_wait(holders[call.places[number].key], call.places[number].most, at), -number)
        for number in missing
        if len(holders[call.places[number].key]) >= call.places[number].most
    ]
    if waits:
        wait, number = max(waits)
        return LeaseState(held=False, wait=wait, refusing=-number)
    for place in call.places:
        holders[place.key][call.holder] = at + place.ttl
    return LeaseState(held=True)


def _wait(held: dict[str, int], most: int, at: int) -> int:
    return sorted(held.values())[len(held) - most] - at
