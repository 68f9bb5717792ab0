"""What the limiter keeps for administrators, in memory: with the semantics of the store in Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from kit.runtime.clock import Clock, unix_milliseconds

from ..model.administration import Change, Offender, RecordedChange, Recording
from ..model.overrides import Override
from .admin_entries import (
    KEEP_CALLS,
    KEEP_CHANGES,
    KEEP_REFUSALS,
    MOST_CHANGES,
    MOST_OFFENDERS,
    MOST_OVERRIDES,
    WINDOW,
    largest,
    packed_change,
    position_of,
    recorded_change,
    windows,
)


class MemoryAdminStore:
    """In the memory of one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changes: list[RecordedChange] = []
        self._overrides: dict[UUID, Override] = {}
        self._version = 0
        self._recording: Recording | None = None
        self._calls: list[str] = []
        self._refusals: dict[int, Counter[Offender]] = {}

    async def record(self, change: Change) -> None:
        at = unix_milliseconds(self._clock())
        last = position_of(self._changes[-1].id) if self._changes else (0, 0)
        at, number = (last[0], last[1] + 1) if last[0] >= at else (at, 0)
        self._changes.append(recorded_change(f"{at}-{number}", packed_change(change)))
        del self._changes[:-MOST_CHANGES]

    async def changes(self, size: int, before: str) -> Sequence[RecordedChange]:
        oldest = self._clock() - KEEP_CHANGES
        self._changes = [each for each in self._changes if each.made_at >= oldest]
        earlier = [each for each in self._changes if not before or position_of(each.id) < position_of(before)]
        return earlier[::-1][:size]

    async def put(self, override: Override, change: Change) -> bool:
        others = [each for each in await self.overrides() if each.id != override.id]
        if len(others) >= MOST_OVERRIDES:
            return False
        self._overrides = {each.id: each for each in (*others, override)}
        self._version += 1
        await self.record(change)
        return True

    async def lift(self, override_id: UUID, change: Change) -> Override | None:
        if override_id not in {each.id for each in await self.overrides()}:
            return None
        self._version += 1
        await self.record(change)
        return self._overrides.pop(override_id)

    async def overrides(self) -> Sequence[Override]:
        now = unix_milliseconds(self._clock()) * 1000
        return [each for each in self._overrides.values() if each.ends_at > now]

    async def version(self) -> str:
        return str(self._version)

    async def add_refusals(self, counts: Mapping[Offender, int]) -> None:
        (number,) = windows(self._clock(), 0)
        total = self._refusals.get(number, Counter()) + Counter(counts)
        self._refusals[number] = Counter(dict(total.most_common(MOST_OFFENDERS)))
        self._refusals = {
            each: kept for each, kept in self._refusals.items() if each > number - KEEP_REFUSALS // WINDOW
        }

    async def refusals(self, minutes: int) -> Sequence[tuple[Offender, int]]:
        total = Counter[Offender]()
        for number in windows(self._clock(), minutes):
            total.update(self._refusals.get(number, {}))
        return largest(total)

    async def record_calls(self, recording: Recording, change: Change) -> None:
        self._recording, self._calls = recording, []
        await self.record(change)

    async def stop_recording(self, change: Change) -> Recording | None:
        found = await self.recording()
        if found is None:
            return None
        self._recording = replace(found, ends_at=min(found.ends_at, self._clock()))
        await self.record(change)
        return self._recording

    async def recording(self) -> Recording | None:
        if self._recording is None or self._recording.ends_at + KEEP_CALLS <= self._clock():
            return None
        return replace(self._recording, count=len(self._calls))

    async def add_calls(self, calls: Sequence[str]) -> None:
        if found := await self.recording():
            self._calls = [*self._calls, *calls][: found.most]

    async def calls(self) -> Sequence[str]:
        return self._calls if await self.recording() else []
