"""Tells whether work is pending in a pipeline, and which invariants are violated when none is.

1. Every committed request ends once: in one final state, with one event and one notification inside the application.
2. No mail of a story is sent twice; one whose outcome nobody can know is left to a person.
3. What each client saw equals the stored story.
4. Offsets of the progress stream are dense within an attempt.
5. Nothing stays pending.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

from redis.asyncio import Redis
from sqlalchemy import select
from storymesh.events.v1 import story_events_pb2 as events

from kit.data.database import Database
from kit.events import dead_letter_store, inbox_stream, outbox
from kit.events.redis_memory import redis_memories
from services.notification.model.deliveries import UNFINISHED, DeliveryState
from services.notification.tables import deliveries, notifications
from services.story.adapters import writers
from services.story.adapters.writers.composer import ComposerWriter
from services.story.model import START, State, Story
from services.story.store.progress import Progress, ProgressEntry, ProgressKind, fold
from services.story.tables import admissions, stories

from .processes import WISH
from .reader import Reader

_UNFINISHED = (State.QUEUED, State.RUNNING)
_INBOXES = ("story", "story-accounts", "notification")
_COMPLETED, _FAILED = (kind.DESCRIPTOR.full_name for kind in (events.StoryCompleted, events.StoryFailed))
_MESSAGE_ID = re.compile(rb"^Message-ID:\s*<([^@]+)@", re.MULTILINE)


@dataclass(frozen=True)
class Stores:
    """The stores, which outlive the processes."""

    story: Database
    notification: Database
    redis: Redis
    mails: Path


@dataclass
class WatchedStory:
    """A story that was requested, and what its clients saw of it."""

    owner_id: UUID
    story_id: UUID
    ends: list[State] = field(default_factory=list)
    """The final state of each round: the first is the request, each further one a retry."""
    violations: list[str] = field(default_factory=list)

    def compare(self, reader: Reader, story: Story) -> None:
        if reader.text != story.text:
            self.violations.append(
                f"a view of story {self.story_id} is not what is stored ({story.state}):\n"
                f"  view   {_short(reader.text)}\n  stored {_short(story.text)}\n  messages {reader.log}"
            )


async def pending_work(stores: Stores) -> list[str]:
    """Describes the unfinished work. The stages are read in the order of the pipeline, so that no work moves past the reader."""
    reasons: list[str] = []
    async with stores.story.transaction() as tx:
        unfinished = select(stories.c.id, stories.c.state, stories.c.attempt).where(stories.c.state.in_(_UNFINISHED))
        reasons += [f"story {row.id} is {row.state}, attempt {row.attempt}" for row in await tx.execute(unfinished)]
        unpublished = await tx.execute(select(outbox.table.c.type).where(outbox.table.c.published_at.is_(None)))
        reasons += [f"{name} is unpublished" for name in unpublished.scalars()]
        memories = list((await tx.execute(select(redis_memories))).mappings())
    async with stores.notification.transaction() as tx:
        memories += (await tx.execute(select(redis_memories))).mappings()
    for memory in memories:
        epoch: Any = await stores.redis.hget(f"memory:{memory['name']}", "epoch")
        if epoch != memory["epoch"].encode() or memory["repeat_before"]:
            reasons.append(f"what Redis lost of {memory['name']} is not repeated")
    async with stores.redis.pipeline(transaction=True) as pipeline:
        for name in _INBOXES:
            pipeline.xlen(inbox_stream.stream_of(name))
            pipeline.zcard(inbox_stream.delayed_of(name))
        counts = await pipeline.execute()
    for name, waiting, postponed in zip(_INBOXES, counts[::2], counts[1::2], strict=True):
        if waiting or postponed:
            reasons.append(f"{waiting} events wait in the inbox of {name}, {postponed} are postponed")
    async with stores.notification.transaction() as tx:
        unsettled = select(deliveries.c.kind, deliveries.c.state).where(deliveries.c.state.in_(UNFINISHED))
        reasons += [f"a mail {row.kind} is {row.state}" for row in await tx.execute(unsettled)]
    return reasons


@dataclass(frozen=True)
class _Stored:
    """All that is stored when no work is pending."""

    stories: dict[UUID, Any]
    ends: list[Any]
    """The events of completed and failed stories."""
    admitted: Counter[UUID]
    """How many requests of each owner were admitted."""
    dead: list[Any]
    told_of: Counter[UUID]
    """The number of notifications of each story."""
    mails: dict[UUID, Any]
    arrived: Counter[str]
    """The number of mails that the mail server accepted for each event."""

    @classmethod
    async def read(cls, stores: Stores) -> _Stored:
        async with stores.story.transaction() as tx:
            rows = {row["id"]: row for row in (await tx.execute(select(stories))).mappings()}
            ending = select(outbox.table).where(outbox.table.c.type.in_((_COMPLETED, _FAILED)))
            ends = list((await tx.execute(ending)).mappings())
            admitted = Counter((await tx.execute(select(admissions.c.owner_id))).scalars())
            dead = list((await tx.execute(select(dead_letter_store.dead_letters))).mappings())
        async with stores.notification.transaction() as tx:
            dead += (await tx.execute(select(dead_letter_store.dead_letters))).mappings()
            told_of = Counter((await tx.execute(select(notifications.c.story_id))).scalars())
            sent = {row["event_id"]: row for row in (await tx.execute(select(deliveries))).mappings()}
        found = (_MESSAGE_ID.search(path.read_bytes()) for path in stores.mails.glob("*.eml"))
        arrived = Counter(match[1].decode() for match in found if match)
        return cls(rows, ends, admitted, dead, told_of, sent, arrived)


async def violations(
    stores: Stores, watched: Sequence[WatchedStory], *, lossy: bool, mails_broken_off: bool
) -> list[str]:
    """Describes the violated invariants, when no work is pending.

    `lossy`: Redis may have lost progress. `mails_broken_off`: the outcome of a mail may be unknown.
    """
    stored = await _Stored.read(stores)
    found = [f"dead letter {letter['type']}: {letter['reason']}" for letter in stored.dead]
    if set(stored.stories) != {story.story_id for story in watched}:
        found.append(f"{len(stored.stories)} stories for {len(watched)} requests")
    for story in watched:
        found += story.violations
        found += _violations_of_ends(story, stored)
        found += _violations_of_mails(story, stored, broken_off=mails_broken_off)
        found += await _violations_of_text(story, stored.stories[story.story_id], stores.redis, lossy=lossy)
    return found


def _violations_of_ends(story: WatchedStory, stored: _Stored) -> Iterator[str]:
    row, ends = stored.stories[story.story_id], _ends_of(story, stored)
    if row["state"] != story.ends[-1] or row["leased_until"] is not None:
        yield f"watchers were told {story.ends[-1]}; the story is {row['state']}, leased until {row['leased_until']}"
    if stored.admitted[story.owner_id] != len(story.ends):
        yield f"admitted {stored.admitted[story.owner_id]} times, but ended {len(story.ends)} times"
    for kind, state in ((_COMPLETED, State.COMPLETED), (_FAILED, State.FAILED)):
        count = sum(end["type"] == kind for end in ends)
        if count != story.ends.count(state):
            yield f"{count} events {kind} for {story.ends.count(state)} ends in {state}"
    if stored.told_of[story.story_id] != len(ends):
        yield f"{stored.told_of[story.story_id]} notifications of {len(ends)} ends"


def _violations_of_mails(story: WatchedStory, stored: _Stored, *, broken_off: bool) -> Iterator[str]:
    for end in _ends_of(story, stored):
        mail, count = stored.mails.get(end["id"]), stored.arrived[str(end["id"])]
        state, reason = (mail["state"], mail["reason"]) if mail else ("never begun", "")
        allowed: dict[str, Sequence[int]] = {
            DeliveryState.SENT: (1,),
            DeliveryState.UNKNOWN: (0, 1) if broken_off else (),
        }
        if count not in allowed.get(state, ()):
            yield f"the mail of {end['type']} is {state} {reason}, and {count} arrived"


def _ends_of(story: WatchedStory, stored: _Stored) -> list[Any]:
    return [end for end in stored.ends if end["key"] == str(story.story_id)]


async def _violations_of_text(story: WatchedStory, row: Any, redis: Redis, *, lossy: bool) -> list[str]:
    entries = await _entries(story.story_id, redis)
    found = list(_gaps(entries))
    if row["state"] == State.COMPLETED:
        text = ""
        for entry in entries:
            text = fold(text, entry)
        written = await _written(story.story_id)
        if row["text"] != written:
            found.append(f"stored is {_short(row['text'])}, but the writer wrote {_short(written)}")
        if text != row["text"] and (entries or not lossy):
            found.append(f"the stream wakeup_write {_short(text)}, but stored is {_short(row['text'])}")
    return found and [*found, f"stream {[f'{entry.position} {entry.kind}' for entry in entries]}"]


async def _entries(story_id: UUID, redis: Redis) -> list[ProgressEntry]:
    entries: list[ProgressEntry] = []
    progress = Progress(redis)
    while page := await progress.read(story_id, entries[-1].position if entries else START):
        entries += page
    return entries


def _gaps(entries: Sequence[ProgressEntry]) -> Iterator[str]:
    attempt = 0
    for entry in entries:
        # After a loss, the attempt goes on with a snapshot.
        whole = entry.position.offset == 0 or entry.kind in (ProgressKind.SNAPSHOT, ProgressKind.END)
        if entry.position.attempt != attempt and not whole:
            yield f"attempt {entry.position.attempt} begins with {entry.position} {entry.kind}"
        attempt = entry.position.attempt
    for before, after in pairwise(entries):
        if before.position.attempt != after.position.attempt:
            continue
        if after.position.offset != before.position.offset + 1:
            yield f"{after.position} follows {before.position}"
        if before.kind is ProgressKind.END and after.kind is not ProgressKind.END:
            yield f"{after.position} {after.kind} follows the end"


async def _written(story_id: UUID) -> str:
    """The text that the composer writes for the story: it is deterministic."""
    brief = writers.Brief(
        preferences=WISH.preferences, length=writers.WordCount[WISH.length], seed=story_id.int & 0xFFFF_FFFF
    )
    pieces = [piece async for piece in ComposerWriter(pace_seconds=0).write(brief)]
    return "".join(piece.text for piece in pieces if isinstance(piece, writers.Words))


def _short(text: str) -> str:
    return f"{len(text)} characters {text[:30]!r}...{text[-30:]!r}"
