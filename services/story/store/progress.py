"""A story's progress while it is written: a Redis stream whose entry ids are positions.

The id of an entry is `<attempt>-<offset>`. Redis accepts only growing ids, so a worker of an older attempt cannot write any more,
and offsets are dense within an attempt, so a gap shows. Postgres holds the finished text; a lost stream costs no story.
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
"""How long a stream outlives its latest entry."""

INTERRUPTIONS = "stories:interrupted"
"""The channel that names each story whose writing was stopped from outside, for the worker that is at it."""

_PAGE = 1000

_APPEND = """
-- KEYS: stream. ARGV: attempt, offset, kind, text, time to live in ms, title if it is new.
-- Answers 1 appended, 0 overtaken by a newer attempt,
-- -1 the entries before this one are gone.
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
-- Nothing follows an attempt's end: it was stopped from outside.
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
-- KEYS: stream. ARGV: attempt, time to live in ms, '1' to drop what there is, channel, story.
-- Ends the attempt right after its latest entry; an end that is there already gets a second one, so that watchers look again.
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
"""Postgres counts attempts in 32 bits with a sign: no attempt has this number."""


class ProgressKind(StrEnum):
    BEGIN = "begin"
    """The attempt has begun; the text is empty."""
    CHUNK = "chunk"
    SNAPSHOT = "snapshot"
    """The whole text of the attempt so far, after entries were lost."""
    END = "end"
    """The story has left RUNNING, or was cancelled or deleted before; Postgres says which. Nothing else follows in this attempt."""


@dataclass(frozen=True, slots=True)
class ProgressEntry:
    position: Position
    kind: ProgressKind
    text: str
    title: str = ""
    """Where the attempt has found one since the entry before."""

    @property
    def begins(self) -> bool:
        """Whether an attempt begins with it: from nothing, or from what an earlier one had written."""
        return self.position.offset == 0


class Overtaken(Exception):
    """A newer attempt is writing this story, or it was erased."""


class Progress:
    """Appends to and reads the progress of any story."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._append = redis.register_script(_APPEND)
        self._stop = redis.register_script(_STOP)

    async def append(
        self, story_id: UUID, position: Position, kind: ProgressKind, text: str = "", *, title: str = ""
    ) -> bool:
        """Repeating an append changes nothing. False when the entries before it are gone: append a snapshot instead.

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
        """What there is after the position, oldest first, at most a page of it."""
        raw = await self._redis.xrange(_key(story_id), min=f"({after}", max="+", count=_PAGE)
        return _entries(cast("_Raw", raw))

    async def wait(self, story_id: UUID, after: Position, seconds: float) -> list[ProgressEntry]:
        """Like `read`, but waits for the first entry up to `seconds`; empty when none came."""
        answer = await self._redis.xread(
            {_key(story_id): str(after)}, count=_PAGE, block=max(milliseconds(timedelta(seconds=seconds)), 1)
        )
        return [entry for _, raw in cast("_Streams", answer or []) for entry in _entries(raw)]

    async def erase(self, story_ids: Sequence[UUID]) -> None:
        """Drops every word. A worker that is at such a story is overtaken at its next append, and watchers look up at once.

        A stream that was merely deleted would come back whole: to a worker it looks lost. Repeated, watchers look up once more.
        """
        async with self._redis.pipeline(transaction=False) as pipeline:
            for story_id in story_ids:
                await self._end(story_id, _PAST_ALL.attempt, forget=True, client=pipeline)
            await pipeline.execute()

    async def stop(self, story_id: UUID, attempt: int, *, forget: bool = False) -> None:
        """Ends an attempt from outside: its worker is interrupted, at its next append at the latest, and watchers look up.

        To `forget` is to drop the words as well.
        """
        await self._end(story_id, attempt, forget=forget)

    async def written(self, story_id: UUID) -> tuple[int, str, str]:
        """The latest attempt that there is a trace of, its words, and its title if it has found one."""
        position, text, title = START, "", ""
        while entries := await self.read(story_id, position):
            for entry in entries:
                title = entry.title or ("" if entry.begins else title)
                position, text = entry.position, fold(text, entry)
        return position.attempt, text, title

    async def _end(self, story_id: UUID, attempt: int, *, forget: bool, client: Redis | None = None) -> None:
        await self._stop(
            keys=[_key(story_id)],
            args=[attempt, milliseconds(KEPT), int(forget), INTERRUPTIONS, str(story_id)],
            client=client,
        )


def fold(text: str, entry: ProgressEntry) -> str:
    """The text after the entry, from the text before it."""
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
    """The same text in fewer entries: chunks that follow each other become one, at the position of the last."""
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
