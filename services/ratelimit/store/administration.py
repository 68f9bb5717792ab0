"""What the limiter keeps for administrators, in Redis.

All of it may hold addresses and ids of users, so all of it ends by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast
from uuid import UUID

from redis.asyncio import Redis

from kit.runtime.clock import Clock, from_unix_milliseconds, milliseconds, unix_milliseconds

from ..model.administration import Change, Offender, RecordedChange, Recording
from ..model.overrides import Override
from .admin_entries import (
    KEEP_CALLS,
    KEEP_CHANGES,
    KEEP_REFUSALS,
    MOST_CHANGES,
    MOST_OFFENDERS,
    MOST_OVERRIDES,
    largest,
    offender_of,
    packed_change,
    packed_override,
    recorded_change,
    unpacked_override,
    windows,
)

_HEAD = "ratelimit:{%admin}"
"""The hash tag of every key here. No domain's name begins with a percent sign, so no bucket has such a key."""

_CHANGES = f"{_HEAD}:changes"
_RECORDING = f"{_HEAD}:recording"
_CALLS = f"{_HEAD}:calls"

_REFUSALS = f"{_HEAD}:refusals"

_OVERRIDES = f"{_HEAD}:overrides"
_VERSION = f"{_HEAD}:version"

_PUT = """
-- KEYS: the sorted set of ids by end, the override's own key, the version, the changes. ARGV: the id, the override, its end and the
-- present in milliseconds, the most that there may be, the change, the most changes and the milliseconds for which they are kept.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[4])
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[5]) then
  return 0
end
redis.call('SET', KEYS[2], ARGV[2], 'PXAT', ARGV[3])
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', tonumber(last)))
redis.call('INCR', KEYS[3])
redis.call('PEXPIRE', KEYS[3], ARGV[8])
redis.call('XADD', KEYS[4], 'MAXLEN', ARGV[7], '*', 'change', ARGV[6])
redis.call('PEXPIRE', KEYS[4], ARGV[8])
return 1
"""

_LIFT = """
-- KEYS as above. ARGV: the id, the change, the most changes and the milliseconds for which they are kept. Returns the override, or
-- nothing if it has ended.
local override = redis.call('GET', KEYS[2])
if override then
  redis.call('DEL', KEYS[2])
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('INCR', KEYS[3])
  redis.call('PEXPIRE', KEYS[3], ARGV[4])
  redis.call('XADD', KEYS[4], 'MAXLEN', ARGV[3], '*', 'change', ARGV[2])
  redis.call('PEXPIRE', KEYS[4], ARGV[4])
end
return override
"""


class AdminStore(Protocol):
    """What both stores promise; tests/ratelimit/test_administration_stores.py holds each of them to it."""

    async def record(self, change: Change) -> None:
        """Add a change. Beyond MOST_CHANGES the oldest are dropped."""

    async def changes(self, size: int, before: str) -> Sequence[RecordedChange]:
        """At most `size` changes with smaller ids than `before`, which may be empty; newest first, none older than KEEP_CHANGES."""

    async def put(self, override: Override, change: Change) -> bool:
        """Put an override in force until its end, in place of the one with its id, and record the change.

        False, and nothing is done, if MOST_OVERRIDES others are in force.
        """

    async def lift(self, override_id: UUID, change: Change) -> Override | None:
        """End an override, and record the change; None, and nothing is recorded, if it has ended already."""

    async def overrides(self) -> Sequence[Override]:
        """Those that have not ended, in no order."""

    async def version(self) -> str:
        """Another text whenever an override was put or lifted."""

    async def add_refusals(self, counts: Mapping[Offender, int]) -> None:
        """Add to the counts of the present WINDOW, of which the largest MOST_OFFENDERS are kept, for KEEP_REFUSALS."""

    async def refusals(self, minutes: int) -> Sequence[tuple[Offender, int]]:
        """The counts of the windows that so many minutes before now touch; the largest first."""

    async def record_calls(self, recording: Recording, change: Change) -> None:
        """Begin a recording, in place of the one before, and record the change. KEEP_CALLS after its end it is gone."""

    async def stop_recording(self, change: Change) -> Recording | None:
        """End the recording, and record the change; None, and nothing is recorded, if there is none."""

    async def recording(self) -> Recording | None:
        """The recording, also one that is over."""

    async def add_calls(self, calls: Sequence[str]) -> None:
        """Add calls to the recording, at most as many as it may have."""

    async def calls(self) -> Sequence[str]:
        """The calls of the recording."""


class RedisAdminStore:
    """In Redis. Raises redis.exceptions.RedisError and OSError."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        self._redis = redis
        self._clock = clock
        self._put = redis.register_script(_PUT)
        self._lift = redis.register_script(_LIFT)

    async def record(self, change: Change) -> None:
        async with self._redis.pipeline(transaction=True) as commands:
            commands.xadd(_CHANGES, {"change": packed_change(change)}, maxlen=MOST_CHANGES, approximate=False)
            commands.pexpire(_CHANGES, milliseconds(KEEP_CHANGES))
            await commands.execute()

    async def changes(self, size: int, before: str) -> Sequence[RecordedChange]:
        oldest = unix_milliseconds(self._clock() - KEEP_CHANGES)
        newest = f"({before}" if before else "+"
        async with self._redis.pipeline(transaction=True) as commands:
            commands.xtrim(_CHANGES, minid=str(oldest), approximate=False)
            commands.xrevrange(_CHANGES, max=newest, min=str(oldest), count=size)
            _, entries = await commands.execute()
        return [recorded_change(identifier.decode(), fields[b"change"]) for identifier, fields in entries]

    async def put(self, override: Override, change: Change) -> bool:
        now, keep = unix_milliseconds(self._clock()), milliseconds(KEEP_CHANGES)
        put = await self._put(
            _keys(override.id),
            [
                str(override.id),
                packed_override(override),
                override.ends_at // 1000,
                now,
                MOST_OVERRIDES,
                packed_change(change),
                MOST_CHANGES,
                keep,
            ],
        )
        return bool(put)

    async def lift(self, override_id: UUID, change: Change) -> Override | None:
        lifted = await self._lift(
            _keys(override_id), [str(override_id), packed_change(change), MOST_CHANGES, milliseconds(KEEP_CHANGES)]
        )
        return unpacked_override(lifted) if lifted else None

    async def overrides(self) -> Sequence[Override]:
        now = unix_milliseconds(self._clock())
        ids = cast("list[bytes]", await self._redis.zrangebyscore(_OVERRIDES, f"({now}", "+inf"))
        if not ids:
            return []
        found: list[Any] = await self._redis.mget([f"{_OVERRIDES}:{each.decode()}" for each in ids])
        return [unpacked_override(each) for each in found if each]

    async def version(self) -> str:
        version = cast("bytes | None", await self._redis.get(_VERSION))
        return version.decode() if version else ""

    async def add_refusals(self, counts: Mapping[Offender, int]) -> None:
        (key,) = self._window_keys(0)
        async with self._redis.pipeline(transaction=True) as commands:
            for offender, count in counts.items():
                commands.zincrby(key, count, json.dumps(offender))
            commands.zremrangebyrank(key, 0, -MOST_OFFENDERS - 1)
            commands.pexpire(key, milliseconds(KEEP_REFUSALS))
            await commands.execute()

    async def refusals(self, minutes: int) -> Sequence[tuple[Offender, int]]:
        found = cast("list[tuple[bytes, float]]", await self._redis.zunion(self._window_keys(minutes), withscores=True))
        return largest({offender_of(json.loads(member)): int(count) for member, count in found})

    def _window_keys(self, minutes: int) -> list[str]:
        return [f"{_REFUSALS}:{number}" for number in windows(self._clock(), minutes)]

    async def record_calls(self, recording: Recording, change: Change) -> None:
        async with self._redis.pipeline(transaction=True) as commands:
            commands.delete(_CALLS)
            self._set_recording(commands, recording)
            await commands.execute()
        await self.record(change)

    async def stop_recording(self, change: Change) -> Recording | None:
        found = await self.recording()
        if found is None:
            return None
        stopped = replace(found, ends_at=min(found.ends_at, self._clock()))
        async with self._redis.pipeline(transaction=True) as commands:
            self._set_recording(commands, stopped)
            await commands.execute()
        await self.record(change)
        return stopped

    async def recording(self) -> Recording | None:
        packed = cast("bytes | None", await self._redis.get(_RECORDING))
        if packed is None:
            return None
        most, ends_at = json.loads(packed)
        count = int(await self._redis.llen(_CALLS))
        return Recording(most, from_unix_milliseconds(ends_at), count)

    async def add_calls(self, calls: Sequence[str]) -> None:
        found = await self.recording()
        if found is None or not calls:
            return
        async with self._redis.pipeline(transaction=True) as commands:
            commands.rpush(_CALLS, *calls)
            commands.ltrim(_CALLS, 0, found.most - 1)
            commands.pexpireat(_CALLS, unix_milliseconds(found.ends_at + KEEP_CALLS))
            await commands.execute()

    async def calls(self) -> Sequence[str]:
        return [each.decode() for each in cast("list[bytes]", await self._redis.lrange(_CALLS, 0, -1))]

    @staticmethod
    def _set_recording(commands: Any, recording: Recording) -> None:
        gone_at = unix_milliseconds(recording.ends_at + KEEP_CALLS)
        commands.set(_RECORDING, json.dumps([recording.most, unix_milliseconds(recording.ends_at)]), pxat=gone_at)
        commands.pexpireat(_CALLS, gone_at)


def _keys(override_id: UUID) -> list[str]:
    return [_OVERRIDES, f"{_OVERRIDES}:{override_id}", _VERSION, _CHANGES]
