"""Counts whose calls are refused, for administrators: by caller, so it is kept for a short time and in no log or metric."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kit.runtime.clock import Clock
from kit.runtime.loops import every

from ..model.administration import Offender
from ..model.decisions import Decision, Descriptor
from ..store.administration import AdminStore

_MOST_OF_A_ROUND = 1000
"""Callers that are counted between two copies to the store: what comes beyond is left out, so that a flood from everywhere costs
no more than one from somewhere. Who is refused most comes early in most rounds."""

_LONGEST = 512
"""Characters of a descriptor that is counted."""

_EVERY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 5.0


class RefusalCounts:
    """Plain numbers, written by the thread that checks, and taken by the one that copies them."""

    def __init__(self) -> None:
        self._counts: dict[Offender, int] = {}

    def add(self, descriptors: Sequence[Descriptor], decision: Decision) -> None:
        """Count each descriptor that a rule refuses. Calls that pass cost one look."""
        if decision.admitted:
            return
        counts = self._counts
        for descriptor, answer in zip(descriptors, decision.answers, strict=True):
            for outcome in answer.outcomes:
                if outcome.admits:
                    continue
                offender = Offender(*outcome.rule.counted_as, descriptor.entries)
                if offender in counts:
                    counts[offender] += 1
                elif len(counts) < _MOST_OF_A_ROUND and offender.length <= _LONGEST:
                    counts[offender] = 1

    def taken(self) -> dict[Offender, int]:
        """What was counted since the last time."""
        counts, self._counts = self._counts, {}
        return dict(counts)


class Offenders:
    """Copies the counts of this process to the store, and lists those of all."""

    def __init__(self, store: AdminStore, counts: RefusalCounts, clock: Clock) -> None:
        self._store = store
        self._counts = counts
        self._clock = clock

    async def follow(self, stopping: asyncio.Event) -> None:
        """Copy the counts each second until `stopping` is set. Those of a round that fails are lost."""
        await every(
            _EVERY_SECONDS,
            stopping,
            self.copy,
            failure="the counts of refused callers cannot be kept now",
            retry=lambda failures: min(float(failures), _LONGEST_RETRY_SECONDS),
        )

    async def copy(self) -> None:
        """Raises RedisError and OSError."""
        if counts := self._counts.taken():
            await self._store.add_refusals(counts)

    async def most(self, minutes: int) -> Sequence[tuple[Offender, int]]:
        """Who was refused in so many minutes before now, the most first. Raises RedisError and OSError."""
        await self.copy()
        return await self._store.refusals(minutes)
