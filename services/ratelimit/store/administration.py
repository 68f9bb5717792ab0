"""What the limiter keeps for administrators: a store in Redis, and one in memory with the same semantics.

All of it may hold addresses and ids of users, so all of it ends by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol
from uuid import UUID

from redis.asyncio import Redis

from kit.runtime.clock import Clock, from_unix_milliseconds, milliseconds, unix_milliseconds

from ..model.administration import Act, Change, RecordedChange

MOST_CHANGES = 1000
KEEP_CHANGES = timedelta(days=30)

_HEAD = "ratelimit:{%admin}"
"""The hash tag of every key here. No domain's name begins with a percent sign, so no bucket has such a key."""

_CHANGES = f"{_HEAD}:changes"


class AdminStore(Protocol):
    """What both stores promise; tests/ratelimit/test_administration_stores.py holds each of them to it."""

    async def record(self, change: Change) -> None:
        """Add a change. Beyond MOST_CHANGES the oldest are dropped."""

    async def changes(self, size: int, before: str) -> Sequence[RecordedChange]:
        """At most `size` changes with smaller ids than `before`, which may be empty; newest first, none older than KEEP_CHANGES."""


class RedisAdminStore:
    """In Redis. Raises redis.exceptions.RedisError and OSError."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        self._redis = redis
        self._clock = clock

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


class MemoryAdminStore:
    """In the memory of one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changes: list[RecordedChange] = []

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
