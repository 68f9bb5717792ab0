"""The progress of a story while it is written: a Redis stream whose entry ids are positions.

The id of an entry is `<attempt>-<offset>`. Redis accepts only growing ids, which fences off workers of older attempts. Offsets
have no gaps within an attempt, so a lost entry is noticed. Postgres holds the finished text; a lost stream loses no story.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import cast
from uuid import UUID

from redis.asyncio import Redis

from kit.runtime.clock import milliseconds

from ..model import START, Position

KEPT = timedelta(hours=24)
"""The time after its latest entry at which a stream expires."""

INTERRUPTIONS = "stories:interrupted"
"""The pub/sub channel on which the ids of cancelled and deleted stories are sent to their workers."""

PAGE = 1000
"""The most entries of one answer; fewer are all that there are."""

_APPEND = """
-- KEYS: stream. ARGV: attempt, offset, kind, text, time to live in ms, title or '' if it is unchanged.
-- Returns 1: appended, or there already; 0: overtaken by a newer attempt or stopped; -1: the entries before this one are lost.
local attempt, offset = tonumber(ARGV[1]), tonumber(ARGV[2])
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local last_attempt, last_offset, last_kind = 0, 0, ''
if #last > 0 then
  local dash = string.find(last[1][1], '-', 1, true)
  last_attempt = tonumber(string.sub(last[1][1], 1, dash - 1))
  last_offset = tonumber(string.sub(last[1][1], dash + 1))
  last_kind = last[1][2][2]
end
if last_attempt > attempt then return 0 end
-- An END that this attempt did not append is a cancellation or deletion: nothing may follow it.
if last_attempt == attempt and last_kind == 'end' and ARGV[3] ~= 'end' then return 0 end
if last_attempt == attempt and last_offset >= offset then return 1 end
local follows = (offset == 0) or (last_attempt == attempt and last_offset == offset - 1)
if not follows and ARGV[3] ~= 'snapshot' then return -1 end
local id, entry = attempt .. '-' .. offset, {'kind', ARGV[3], 'text', ARGV[4]}
if ARGV[6] ~= '' then
  entry[5], entry[6] = 'title', ARGV[6]
end
redis.call('XADD', KEYS[1], id, unpack(entry))
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
"""


_STOP = """
-- KEYS: stream. ARGV: attempt, time to live in ms, '1' to drop all entries, channel, story.
-- Appends END after the attempt's latest entry, even after another END, so that watchers read the story again.
local attempt, offset = tonumber(ARGV[1]), 0
if attempt == 0 then offset = 1 end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if #last > 0 then
  local dash = string.find(last[1][1], '-', 1, true)
  local last_attempt = tonumber(string.sub(last[1][1], 1, dash - 1))
  if last_attempt > attempt then return end
  if last_attempt == attempt then offset = tonumber(string.sub(last[1][1], dash + 1)) + 1 end
end
if ARGV[3] == '1' then redis.call('DEL', KEYS[1]) end
redis.call('XADD', KEYS[1], attempt .. '-' .. offset, 'kind', 'end', 'text', '')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[4], ARGV[5])
"""

_PAST_ALL = Position(1 << 31, 0)
"""A position after every attempt: Postgres stores attempts as signed 32-bit integers, so none has this number."""


class ProgressKind(StrEnum):
    BEGIN = "begin"
    """The beginning of an attempt with an empty text."""
    CHUNK = "chunk"
    SNAPSHOT = "snapshot"
    """The whole text of the attempt so far: of a checkpoint at its beginning, or after entries were lost."""
    END = "end"
    """The end of the attempt. Postgres holds the state: final, queued again, or deleted. Only another END may follow."""


@dataclass(frozen=True, slots=True)
class ProgressEntry:
    position: Position
    kind: ProgressKind
    text: str
    title: str = ""
    """The new title if it has changed since the entry before; "" otherwise."""

    @property
    def begins(self) -> bool:
        """True for the first entry of an attempt, whether that starts over or continues a checkpoint."""
        return self.position.offset == 0


class Overtaken(Exception):
    """Raised at a write of an attempt that a newer one has overtaken, or whose story was cancelled, deleted or erased."""


class Progress:
    """Appends to and reads the progress of any story."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._append = redis.register_script(_APPEND)
        self._stop = redis.register_script(_STOP)

    async def append(
        self, story_id: UUID, position: Position, kind: ProgressKind, text: str = "", *, title: str = ""
    ) -> bool:
        """Append an entry. Idempotent. False when the entries before it are lost: the caller must append a snapshot instead.

        Raises Overtaken.
        """
        answer = await self._append(
            keys=[_key(story_id)],
            args=[position.attempt, position.offset, kind, text, milliseconds(KEPT), title],
        )
        if answer == 0:
            raise Overtaken
        return bool(answer == 1)

    async def read(self, story_id: UUID, after: Position) -> list[ProgressEntry]:
        """Return the entries after the position, oldest first, at most PAGE."""
        raw = await self._redis.xrange(_key(story_id), min=f"({after}", max="+", count=PAGE)
        return _entries(cast("_Raw", raw))

    async def wait(self, story_id: UUID, after: Position, seconds: float) -> list[ProgressEntry]:
        """Return entries as `read` does, but wait up to `seconds` for the first one; empty after that time."""
        answer = await self._redis.xread(
            {_key(story_id): str(after)}, count=PAGE, block=max(milliseconds(timedelta(seconds=seconds)), 1)
        )
        return [entry for _, raw in cast("_Streams", answer or []) for entry in _entries(raw)]

    async def erase(self, story_ids: Sequence[UUID]) -> None:
        """Replace each stream by an END after every attempt: its worker is overtaken, and watchers read the story again.

        DEL alone would not do: the worker would take the stream for lost and append a snapshot of the whole text. Idempotent.
        """
        async with self._redis.pipeline(transaction=False) as pipeline:
            for story_id in story_ids:
                await self._end(story_id, _PAST_ALL.attempt, forget=True, client=pipeline)
            await pipeline.execute()

    async def stop(self, story_id: UUID, attempt: int, *, forget: bool = False) -> None:
        """End an attempt that this process does not run: interrupt its worker, and make watchers read the story again.

        A worker that misses the interruption raises Overtaken at its next append. `forget` also drops all entries.
        """
        await self._end(story_id, attempt, forget=forget)

    async def written(self, story_id: UUID) -> tuple[int, str, str]:
        """Return the latest attempt in the stream, its text, and its title or "". Zero and empty for an empty or erased one."""
        position, text, title = START, "", ""
        while entries := await self.read(story_id, position):
            for entry in entries:
                title = entry.title or ("" if entry.begins else title)
                position, text = entry.position, fold(text, entry)
        # The END of an erased stream is of no attempt, and its number is beyond what the database stores.
        return (position.attempt, text, title) if position < _PAST_ALL else (0, "", "")

    async def _end(self, story_id: UUID, attempt: int, *, forget: bool, client: Redis | None = None) -> None:
        await self._stop(
            keys=[_key(story_id)],
            args=[attempt, milliseconds(KEPT), int(forget), INTERRUPTIONS, str(story_id)],
            client=client,
        )


def fold(text: str, entry: ProgressEntry) -> str:
    """Return the text after the entry, given the text before it."""
    match entry.kind:
        case ProgressKind.BEGIN:
            return ""
        case ProgressKind.SNAPSHOT:
            return entry.text
        case ProgressKind.CHUNK:
            return text + entry.text
        case ProgressKind.END:
            return text


def merged(entries: Sequence[ProgressEntry]) -> Iterator[ProgressEntry]:
    """Merge chunks that follow each other into one, at the position of the last. Other entries are unchanged."""
    chunks: list[ProgressEntry] = []
    for entry in entries:
        if chunks and entry.kind is not ProgressKind.CHUNK:
            yield ProgressEntry(chunks[-1].position, ProgressKind.CHUNK, "".join(chunk.text for chunk in chunks))
            chunks.clear()
        if entry.kind is ProgressKind.CHUNK:
            chunks.append(entry)
        else:
            yield entry
    if chunks:
        yield ProgressEntry(chunks[-1].position, ProgressKind.CHUNK, "".join(chunk.text for chunk in chunks))


_Raw = Sequence[tuple[bytes, dict[bytes, bytes]]]
_Streams = Sequence[tuple[bytes, _Raw]]


def _key(story_id: UUID) -> str:
    return f"progress:{story_id}"


def _entries(raw: _Raw) -> list[ProgressEntry]:
    return [
        ProgressEntry(
            Position.parse(entry_id.decode()),
            ProgressKind(fields[b"kind"].decode()),
            fields[b"text"].decode(),
            fields.get(b"title", b"").decode(),
        )
        for entry_id, fields in raw
    ]
