"""The Redis stream behind an inbox: taking entries, keeping them, giving them up. It knows neither events nor handlers."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import cast
from uuid import uuid4

import redis.exceptions
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from kit.data import redis as kit_redis
from kit.runtime.clock import from_unix_milliseconds, milliseconds

from .inbox_scripts import ACKNOWLEDGE, FORGET, KEEP, LEAVE, MOVE_DUE, POSTPONE, TAKE_BACK

GROUP = "workers"

_MOVE_AT_MOST = 100
_CLAIM_SECONDS = 0.25
"""Between two looks for what dead workers left, when the last one found nothing: new entries need not wait for each."""

_MOST_FAILURES = 1_000_000
"""More than any inbox allows. An entry may claim more, which Python refuses to read or Postgres to keep."""

_BEGINNING = b"0-0"

_LONG = 86_400_000
"""Milliseconds of silence: longer than any lease."""

_Raw = tuple[bytes, Mapping[bytes, bytes] | None]
_Answer = list[tuple[bytes, list[_Raw]]]


def stream_of(service: str) -> str:
    return f"inbox:{service}"


def delayed_of(service: str) -> str:
    """In the stream's hash slot: the tag is the stream's whole name."""
    return f"{{{stream_of(service)}}}:delayed"


async def waiting_since(client: Redis, service: str) -> datetime | None:
    """When the entry came that waits the longest to be taken by a worker; None when none waits."""
    stream = stream_of(service)
    try:
        groups = {each["name"]: each["last-delivered-id"] for each in await client.xinfo_groups(stream)}
    except redis.exceptions.ResponseError as error:
        if "no such key" not in str(error):
            raise
        return None
    taken = groups.get(GROUP.encode(), _BEGINNING).decode()
    waiting = cast("list[_Raw]", await client.xrange(stream, min=f"({taken}", count=1))
    return _came_at(waiting[0][0]) if waiting else None


@dataclass(frozen=True)
class InboxTuning:
    """Times and limits of an inbox. Production runs with these; tests shorten them."""

    block_seconds: float = 1.0
    """How long one read waits for new entries, and so how long an inbox without work takes to stop."""

    look_seconds: float = 1.0
    """Between two looks for replayed dead letters."""

    outage_seconds: float = 1.0
    """Between two tries while Redis or Postgres is away."""

    crash_limit: int = 10
    """Deliveries to workers that were not heard of again after which an entry counts as killing them."""


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """One delivery of an event."""

    id: bytes
    data: bytes
    failures: int
    claimed: bool
    """Taken over from a worker that died or handed it back."""
    again: bool = False
    """Published before, and once more because Redis may have lost it."""


class InboxStream:
    """One consumer of a service's stream. Every method raises redis.exceptions.RedisError or OSError while Redis is away."""

    def __init__(
        self,
        redis: Redis,
        service: str,
        *,
        lease_seconds: float,
        consumer: str = "",
        block_seconds: float = InboxTuning.block_seconds,
    ) -> None:
        self._redis = redis
        self._service = service
        self._stream, self._delayed = stream_of(service), delayed_of(service)
        self._lease = milliseconds(timedelta(seconds=lease_seconds))
        self._block = milliseconds(timedelta(seconds=block_seconds))
        # Unique for each process, also after a restart in the same container: a name stands for one life.
        self._consumer = consumer or f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self._cursor = _BEGINNING
        self._claim_seconds = min(_CLAIM_SECONDS, lease_seconds / 3)
        self._claim_at = monotonic()
        self._keep = redis.register_script(KEEP)
        self._acknowledge = redis.register_script(ACKNOWLEDGE)
        self._postpone = redis.register_script(POSTPONE)
        self._move_due = redis.register_script(MOVE_DUE)
        self._take_back = redis.register_script(TAKE_BACK)
        self._leave = redis.register_script(LEAVE)
        self._forget = redis.register_script(FORGET)

    @asynccontextmanager
    async def apart(self) -> AsyncIterator[InboxStream]:
        """The same consumer, for another event loop."""
        async with kit_redis.apart(self._redis) as redis:
            lease_seconds = self._lease / 1000
            yield InboxStream(redis, self._service, lease_seconds=lease_seconds, consumer=self._consumer)

    async def take(self, count: int, *, claimed: int | None = None) -> list[InboxEntry]:
        """The entries of dead workers, else new ones; waits for these up to a second, then returns none.

        `count` new ones at most, and `claimed` of dead workers if that is another number.
        """
        try:
            if monotonic() >= self._claim_at and (taken := await self._claim(count if claimed is None else claimed)):
                return taken
            return await self._read(count)
        except redis.exceptions.ResponseError as error:
            # The group is gone, also under the feet of a waiting read: a new or emptied Redis.
            if "NOGROUP" not in str(error) and "UNBLOCKED" not in str(error):
                raise
            await self._create_group()
            return []

    async def keep(self, entries: Sequence[InboxEntry]) -> Collection[bytes]:
        """Renews the leases. Returns the ids of entries that another worker has."""
        return await self._of_others(self._keep, entries)

    async def deliveries(self, entry: InboxEntry) -> int:
        """How often the entry was given to a worker that has not been heard of since."""
        pending = await self._redis.xpending_range(self._stream, GROUP, entry.id, entry.id, 1)
        return int(pending[0]["times_delivered"]) if pending else 0

    async def acknowledge(self, entry: InboxEntry) -> bool:
        """Removes the entry. False when it is not ours any more."""
        return not await self.acknowledge_all([entry])

    async def acknowledge_all(self, entries: Sequence[InboxEntry]) -> Collection[bytes]:
        """Removes the entries in one step. Returns the ids of those that are not ours any more, which stay."""
        return await self._of_others(self._acknowledge, entries)

    async def postpone(self, entry: InboxEntry, seconds: float, failures: int) -> bool:
        """Takes the entry out of the stream for a time. False when it is not ours any more."""
        postponed = await self._postpone(
            keys=[self._stream, self._delayed],
            args=[
                GROUP,
                self._consumer,
                entry.id,
                milliseconds(timedelta(seconds=seconds)),
                failures,
                uuid4().hex,
                entry.data,
            ],
        )
        return bool(postponed)

    async def move_due(self) -> None:
        """Brings postponed entries back when they are due."""
        await self._move_due(keys=[self._stream, self._delayed], args=[_MOVE_AT_MOST])

    async def release(self, entries: Sequence[InboxEntry]) -> None:
        """Lets a peer take our entries at once instead of after the lease. Leaving is no crash: see `uncount`."""
        await self._take_back(keys=[self._stream], args=[GROUP, self._consumer, _LONG, *(each.id for each in entries)])

    async def uncount(self, entries: Sequence[InboxEntry]) -> None:
        """Subtracts one from the delivery count of each entry, whichever consumer holds it: the worker that had it has not died."""
        await self._take_back(keys=[self._stream], args=[GROUP, self._consumer, 0, *(each.id for each in entries)])

    async def leave(self) -> None:
        """Removes this consumer's name, unless entries are pending under it."""
        await self._leave(keys=[self._stream], args=[GROUP, self._consumer])

    async def forget_ended(self, silent_seconds: float) -> None:
        """Removes the names of consumers without pending entries that were silent for longer."""
        await self._forget(keys=[self._stream], args=[GROUP, milliseconds(timedelta(seconds=silent_seconds))])

    async def oldest_at(self) -> datetime | None:
        """When the entry that waits the longest came; None when none does."""
        answer = cast("list[_Raw]", await self._redis.xrange(self._stream, count=1))
        return _came_at(answer[0][0]) if answer else None

    async def _of_others(self, script: AsyncScript, entries: Sequence[InboxEntry]) -> Collection[bytes]:
        return set(await script(keys=[self._stream], args=[GROUP, self._consumer, *(each.id for each in entries)]))

    async def _claim(self, count: int) -> list[InboxEntry]:
        # The cursor goes round: a look covers only part of a long list of pending entries.
        answer = await self._redis.xautoclaim(
            self._stream, GROUP, self._consumer, self._lease, self._cursor, count=count
        )
        self._cursor = cast("bytes", answer[0])
        claimed = _entries(cast("list[_Raw]", answer[1]), claimed=True)
        if not claimed and self._cursor == _BEGINNING:
            self._claim_at = monotonic() + self._claim_seconds
        return claimed

    async def _read(self, count: int) -> list[InboxEntry]:
        block = min(self._block, max(self._lease // 3, 1))
        answer = await self._redis.xreadgroup(GROUP, self._consumer, {self._stream: ">"}, count=count, block=block)
        return [entry for _, raw in cast("_Answer", answer or []) for entry in _entries(raw, claimed=False)]

    async def _create_group(self) -> None:
        """From the stream's beginning: what came before the first worker is work as well."""
        try:
            await self._redis.xgroup_create(self._stream, GROUP, id="0", mkstream=True)
        except redis.exceptions.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise


def _entries(raw: Sequence[_Raw], *, claimed: bool) -> list[InboxEntry]:
    """Without those that were deleted while they were pending, which have no fields."""
    return [
        InboxEntry(
            entry_id, fields.get(b"event", b""), _number(fields.get(b"failures", b"")), claimed, b"again" in fields
        )
        for entry_id, fields in raw
        if fields
    ]


def _came_at(entry_id: bytes) -> datetime:
    return from_unix_milliseconds(int(entry_id.split(b"-")[0]))


def _number(text: bytes) -> int:
    if not text.isdigit():
        return 0
    return min(int(text), _MOST_FAILURES) if len(text) <= len(str(_MOST_FAILURES)) else _MOST_FAILURES
