"""What the limiter keeps for administrators: a store in Redis, and one in memory with the same semantics.

All of it may hold addresses and ids of users, so all of it ends by itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Any, Protocol, cast
from uuid import UUID

from redis.asyncio import Redis

from kit.runtime.clock import Clock, from_unix_milliseconds, milliseconds, unix_milliseconds

from ..model import Limit
from ..model.administration import Act, Change, Offender, RecordedChange, Recording
from ..model.matching import DescriptorEntry
from ..model.overrides import Override, OverrideKind

MOST_CHANGES = 1000
KEEP_CHANGES = timedelta(days=30)

_HEAD = "ratelimit:{%admin}"
"""The hash tag of every key here. No domain's name begins with a percent sign, so no bucket has such a key."""

_CHANGES = f"{_HEAD}:changes"
_RECORDING = f"{_HEAD}:recording"
_CALLS = f"{_HEAD}:calls"
KEEP_CALLS = timedelta(hours=1)

_REFUSALS = f"{_HEAD}:refusals"
MOST_OFFENDERS = 1000
WINDOW = timedelta(minutes=10)
KEEP_REFUSALS = timedelta(minutes=90)

_OVERRIDES = f"{_HEAD}:overrides"
_VERSION = f"{_HEAD}:version"

MOST_OVERRIDES = 1000

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
            commands.xadd(_CHANGES, {"change": _packed(change)}, maxlen=MOST_CHANGES, approximate=False)
            commands.pexpire(_CHANGES, milliseconds(KEEP_CHANGES))
            await commands.execute()

    async def changes(self, size: int, before: str) -> Sequence[RecordedChange]:
        oldest = unix_milliseconds(self._clock() - KEEP_CHANGES)
        newest = f"({before}" if before else "+"
        async with self._redis.pipeline(transaction=True) as commands:
            commands.xtrim(_CHANGES, minid=str(oldest), approximate=False)
            commands.xrevrange(_CHANGES, max=newest, min=str(oldest), count=size)
            _, entries = await commands.execute()
        return [_recorded(identifier.decode(), fields[b"change"]) for identifier, fields in entries]

    async def put(self, override: Override, change: Change) -> bool:
        now, keep = unix_milliseconds(self._clock()), milliseconds(KEEP_CHANGES)
        put = await self._put(
            _keys(override.id),
            [
                str(override.id),
                _packed_override(override),
                override.ends_at // 1000,
                now,
                MOST_OVERRIDES,
                _packed(change),
                MOST_CHANGES,
                keep,
            ],
        )
        return bool(put)

    async def lift(self, override_id: UUID, change: Change) -> Override | None:
        lifted = await self._lift(
            _keys(override_id), [str(override_id), _packed(change), MOST_CHANGES, milliseconds(KEEP_CHANGES)]
        )
        return _override(lifted) if lifted else None

    async def overrides(self) -> Sequence[Override]:
        now = unix_milliseconds(self._clock())
        ids = cast("list[bytes]", await self._redis.zrangebyscore(_OVERRIDES, f"({now}", "+inf"))
        if not ids:
            return []
        found: list[Any] = await self._redis.mget([f"{_OVERRIDES}:{each.decode()}" for each in ids])
        return [_override(each) for each in found if each]

    async def version(self) -> str:
        version = cast("bytes | None", await self._redis.get(_VERSION))
        return version.decode() if version else ""

    async def add_refusals(self, counts: Mapping[Offender, int]) -> None:
        (key,) = self._windows(0)
        async with self._redis.pipeline(transaction=True) as commands:
            for offender, count in counts.items():
                commands.zincrby(key, count, json.dumps(offender))
            commands.zremrangebyrank(key, 0, -MOST_OFFENDERS - 1)
            commands.pexpire(key, milliseconds(KEEP_REFUSALS))
            await commands.execute()

    async def refusals(self, minutes: int) -> Sequence[tuple[Offender, int]]:
        found = cast("list[tuple[bytes, float]]", await self._redis.zunion(self._windows(minutes), withscores=True))
        return _largest({_offender(json.loads(member)): int(count) for member, count in found})

    def _windows(self, minutes: int) -> list[str]:
        return [f"{_REFUSALS}:{number}" for number in _windows(self._clock(), minutes)]

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
        last = _position(self._changes[-1].id) if self._changes else (0, 0)
        at, number = (last[0], last[1] + 1) if last[0] >= at else (at, 0)
        self._changes.append(_recorded(f"{at}-{number}", _packed(change)))
        del self._changes[:-MOST_CHANGES]

    async def changes(self, size: int, before: str) -> Sequence[RecordedChange]:
        oldest = self._clock() - KEEP_CHANGES
        self._changes = [each for each in self._changes if each.made_at >= oldest]
        earlier = [each for each in self._changes if not before or _position(each.id) < _position(before)]
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
        (number,) = _windows(self._clock(), 0)
        total = self._refusals.get(number, Counter()) + Counter(counts)
        self._refusals[number] = Counter(dict(total.most_common(MOST_OFFENDERS)))
        self._refusals = {
            each: kept for each, kept in self._refusals.items() if each > number - KEEP_REFUSALS // WINDOW
        }

    async def refusals(self, minutes: int) -> Sequence[tuple[Offender, int]]:
        total = Counter[Offender]()
        for number in _windows(self._clock(), minutes):
            total.update(self._refusals.get(number, {}))
        return _largest(total)

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


def _windows(now: datetime, minutes: int) -> list[int]:
    """The numbers of the windows that so many minutes before now touch."""
    at, window = unix_milliseconds(now), milliseconds(WINDOW)
    return list(range((at - minutes * 60_000) // window, at // window + 1))


def _offender(told: Any) -> Offender:
    domain, rule, entries = told
    return Offender(domain, rule, tuple((key, value) for key, value in entries))


def _largest(counts: Mapping[Offender, int]) -> list[tuple[Offender, int]]:
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))


def _keys(override_id: UUID) -> list[str]:
    return [_OVERRIDES, f"{_OVERRIDES}:{override_id}", _VERSION, _CHANGES]


def _packed_override(override: Override) -> bytes:
    limit = override.limit
    return json.dumps(
        {
            "id": str(override.id),
            "kind": override.kind,
            "domain": override.domain,
            "match": [
                [entry.key, entry.value, str(entry.network) if entry.network else None] for entry in override.match
            ],
            "limit": [limit.requests, limit.period_seconds, limit.burst] if limit else None,
            "made_at": override.made_at,
            "ends_at": override.ends_at,
            "actor_id": str(override.actor_id),
            "reason": override.reason,
        }
    ).encode()


def _override(packed: bytes) -> Override:
    told = json.loads(packed)
    return Override(
        UUID(told["id"]),
        OverrideKind(told["kind"]),
        told["domain"],
        tuple(
            DescriptorEntry(key, value, network=ip_network(network) if network else None)
            for key, value, network in told["match"]
        ),
        Limit(*told["limit"]) if told["limit"] else None,
        told["made_at"],
        told["ends_at"],
        UUID(told["actor_id"]),
        told["reason"],
    )


def _packed(change: Change) -> bytes:
    return json.dumps([change.act, str(change.actor_id), change.reason, change.subject]).encode()


def _recorded(identifier: str, packed: bytes) -> RecordedChange:
    act, actor_id, reason, subject = json.loads(packed)
    made_at = from_unix_milliseconds(_position(identifier)[0])
    return RecordedChange(identifier, Change(Act(act), UUID(actor_id), reason, subject), made_at)


def _position(identifier: str) -> tuple[int, int]:
    """The two numbers of an id of a Redis stream: milliseconds, and the place within one."""
    at, _, number = identifier.partition("-")
    return int(at), int(number)
