"""Writing one story: an attempt under a lease, its words into the progress stream, its outcome into the database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TypeAlias
from uuid import UUID

from storymesh.events.v1 import story_events_pb2 as events
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential

from kit.data.database import DATABASE_AWAY, Database, DatabaseError, Transaction
from kit.events import outbox
from kit.events.inbox import Later, backoff_seconds
from kit.runtime.clock import Clock
from services.story.adapters.writers import (
    Brief,
    Continuing,
    Piece,
    Title,
    Usage,
    WordCount,
    Words,
    Writer,
    WriterRefused,
    WriterUnavailable,
)

from .. import store
from ..model import FailureReason, Story
from ..store.progress import Overtaken, Progress
from .draft import Draft
from .interruptions import Interruptions

log = logging.getLogger(__name__)

_BATCH_SECONDS = 0.03
"""Words of one batch travel as one entry: short enough to look live, long enough to spare Redis an entry per token."""

_AFTERWARDS = timedelta(seconds=0.1)
"""For Redis, which reckons when an event comes back, and Postgres, which reckons when the story may be begun, differ a little."""

_PAUSE_BASE_SECONDS = 10.0
"""A provider that refuses or fails usually does for a minute: the attempts are to outlast that."""

_TITLE_SECONDS = 1.0
"""How long readers of a story that is written wait for its title at most; a story that takes no longer gets it with its text."""

_MOST_CHARACTERS = 50_000
"""No brief asks for nearly as much: a writer that goes on has lost its way."""


_Begun: TypeAlias = tuple[Story, AsyncGenerator[Piece, None]]


def pause_seconds(failures: int) -> float:
    return backoff_seconds(failures, base=_PAUSE_BASE_SECONDS)


class Writing:
    """Writes stories with one writer. Every write is fenced by the attempt, so an overtaken worker leaves no trace.

    What is written so far is saved as the lease is renewed and when the story is given up for now. The next attempt goes on from
    there if the writer can; else it starts over.
    """

    def __init__(
        self,
        db: Database,
        progress: Progress,
        writer: Writer,
        clock: Clock,
        *,
        interruptions: Interruptions,
        lease: timedelta,
        seconds: float,
        life: timedelta,
        attempts: int,
        limit: int = 0,
        backoff: Callable[[int], float] = pause_seconds,
    ) -> None:
        """`limit` is how many stories all workers together may write with this writer; 0 is no limit.

        `backoff` is the pause in seconds after so many failed attempts; a writer may ask for a longer one.
        """
        self._db = db
        self._progress = progress
        self._writer = writer
        self._clock = clock
        self._interruptions = interruptions
        self._lease = lease
        self._seconds = seconds
        self._life = life
        self._attempts = attempts
        self._limit = limit
        self._backoff = backoff

    async def write(self, story_id: UUID) -> None:
        """Brings the story to an end, or raises Later when it must be tried again.

        Cancelled, it puts the story back into the queue, which counts as no failure.
        """
        begun = await self._begun(story_id)
        if begun is None:
            return
        story, pieces = begun
        draft = Draft(self._progress, story)
        try:
            await draft.begin()
            if story.failures >= self._attempts:
                await self._fail(story, draft, FailureReason.WORKER_LOST)
                return
            left = self._left(story)
            if left <= 0:
                await self._fail(story, draft, FailureReason.DEADLINE_EXCEEDED)
                return
            async with self._leased(story, draft), asyncio.timeout(min(self._seconds, left)):
                await self._fill(story, draft, pieces)
            await self._complete(story, draft)
        except Overtaken:
            log.warning(
                "story %s attempt %d was overtaken, or erased or cancelled by its owner", story.id, story.attempt
            )
            await self._uncount_failure(story)
        except WriterRefused as refused:
            log.warning("story %s attempt %d was refused, %s: %s", story.id, story.attempt, refused.reason, refused)
            await self._fail(story, draft, refused.reason)
        except asyncio.CancelledError:
            await asyncio.shield(self._requeue(story, draft))
            raise
        except Exception as error:
            # Whatever a writer does wrong is its attempt's failure, never the worker's.
            log.warning("story %s attempt %d failed", story.id, story.attempt, exc_info=error)
            await self._try_again(story, draft, error)

    async def _begun(self, story_id: UUID) -> _Begun | None:
        """Like `_begin`, but cancelled it leaves no attempt behind: nobody would end it, and its lease would end as a failure."""
        beginning = asyncio.ensure_future(self._begin(story_id))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            await asyncio.wait([beginning])
            if not beginning.cancelled() and not beginning.exception() and (begun := beginning.result()):
                await self._requeue(begun[0], Draft(self._progress, begun[0]))
            raise

    async def _begin(self, story_id: UUID) -> _Begun | None:
        """The story with the text to go on from, and what the writer adds to it.

        None when there is nothing to do: the story is final, or gone.
        """
        async with self._beginning() as tx:
            story = await store.attempts.begin(
                tx,
                story_id,
                writer=self._writer.name,
                model=self._writer.model,
                lease=self._lease,
                now=self._clock(),
            )
        if story is None:
            async with self._db.single() as tx:
                held = await store.attempts.held_for(tx, story_id)
            if held is not None:
                # Another worker has it, or had no success a while ago. Should that one die, this event brings the story back.
                raise Later(max(held, timedelta(0)) + _AFTERWARDS)
            return None
        brief = _brief(story)
        rest = self._rest(brief, story)
        if rest is None and (story.title or story.text):
            async with self._db.single() as tx:
                await store.attempts.start_over(tx, story.id, story.attempt)
            story = replace(story, title="", text="")
        return story, rest or self._writer.write(brief)

    @asynccontextmanager
    async def _beginning(self) -> AsyncIterator[Transaction]:
        """Raises Later when as many stories as may be are written already."""
        if not self._limit:
            async with self._db.single() as tx:
                yield tx
            return
        async with self._db.transaction() as tx:
            if await store.attempts.lock_beginnings(tx, self._writer.name) >= self._limit:
                raise Later(timedelta(seconds=backoff_seconds(1)) + _AFTERWARDS)
            yield tx

    def _rest(self, brief: Brief, story: Story) -> AsyncGenerator[Piece, None] | None:
        if not story.text or not isinstance(self._writer, Continuing):
            return None
        return self._writer.go_on(brief, story.title, story.text)

    def _left(self, story: Story) -> float:
        """Seconds of the story's life, which waiting in the queue and failed attempts spend as well."""
        return (story.queued_at + self._life - self._clock()).total_seconds()

    async def _fill(self, story: Story, draft: Draft, pieces: AsyncGenerator[Piece, None]) -> None:
        async with aclosing(_batched(pieces)) as batches:
            async for batch in batches:
                words = "".join(piece.text for piece in batch if isinstance(piece, Words))
                for piece in batch:
                    if isinstance(piece, Title):
                        draft.title = piece.text
                    elif isinstance(piece, Usage):
                        draft.tokens = (piece.prompt_tokens, piece.completion_tokens)
                if words:
                    await draft.add(words)
                if len(draft.text) > _MOST_CHARACTERS:
                    raise WriterUnavailable("the writer does not come to an end")
        if not draft.text:
            raise WriterUnavailable("the writer wrote nothing")

    @asynccontextmanager
    async def _leased(self, story: Story, draft: Draft) -> AsyncIterator[None]:
        """Renews the lease and saves the draft during the block. Raises Overtaken in it when the lease is lost.

        It is lost to another attempt, or when the owner has cancelled or deleted the story: then at once if the interruption is
        heard, else as it is renewed.
        """
        owner = asyncio.current_task()
        lost = False

        async def beat(interrupted: asyncio.Event) -> None:
            nonlocal lost
            saved, third = draft.checkpoint, self._lease.total_seconds() / 3
            while True:
                await _either(interrupted, third if saved.title else min(third, _TITLE_SECONDS))
                interrupted.clear()
                checkpoint = draft.checkpoint
                try:
                    async with self._db.single() as tx:
                        changed = None if checkpoint == saved else checkpoint
                        lost = not await store.attempts.renew_lease(
                            tx, story.id, story.attempt, self._lease, checkpoint=changed
                        )
                    saved = checkpoint
                except (DatabaseError, OSError) as error:
                    log.warning("the lease of story %s cannot be renewed now: %s", story.id, error)
                if lost and owner:
                    owner.cancel()
                    return

        with self._interruptions.hearing(story.id) as interrupted:
            beating = asyncio.create_task(beat(interrupted))
            try:
                yield
            except asyncio.CancelledError:
                if not lost or not owner or owner.uncancel() > 0:
                    raise
                raise Overtaken from None
            finally:
                beating.cancel()

    async def _complete(self, story: Story, draft: Draft) -> None:
        """The text is there and cost something, so a database that is away for a while is waited for."""
        waiting = AsyncRetrying(
            retry=retry_if_exception_type(DATABASE_AWAY),
            wait=wait_exponential(multiplier=0.2, max=2),
            stop=stop_after_delay(60),
            reraise=True,
        )
        async for attempt in waiting:
            with attempt:
                await self._commit_completion(story, draft)
        await draft.end()

    async def _commit_completion(self, story: Story, draft: Draft) -> None:
        async with self._db.transaction() as tx:
            completed = await store.attempts.complete(
                tx, story.id, story.attempt, draft.checkpoint, tokens=draft.tokens, now=self._clock()
            )
            if not completed:
                raise Overtaken
            event = events.StoryCompleted(story_id=str(story.id), owner_id=str(story.owner_id), title=draft.title)
            await outbox.add(tx, event, key=story.id)

    async def _fail(self, story: Story, draft: Draft, reason: str) -> None:
        async with self._db.transaction() as tx:
            failed = await store.attempts.fail(tx, story.id, story.attempt, reason, draft.checkpoint, now=self._clock())
            if failed:
                event = events.StoryFailed(story_id=str(story.id), owner_id=str(story.owner_id), reason=reason)
                await outbox.add(tx, event, key=story.id)
        if failed:
            await draft.end()
        else:
            await self._uncount_failure(story)

    async def _try_again(self, story: Story, draft: Draft, error: Exception) -> None:
        if self._left(story) <= 0:
            await self._fail(story, draft, FailureReason.DEADLINE_EXCEEDED)
            return
        failures = story.failures + 1
        if failures >= self._attempts:
            await self._fail(story, draft, FailureReason.WRITER_UNAVAILABLE)
            return
        asked = error.retry_after if isinstance(error, WriterUnavailable) else None
        pause = timedelta(seconds=max(self._backoff(failures), asked or 0.0))
        if await self._requeue(story, draft, pause=pause):
            raise Later(pause + _AFTERWARDS)

    async def _requeue(self, story: Story, draft: Draft, *, pause: timedelta | None = None) -> bool:
        async with self._db.single() as tx:
            requeued = await store.attempts.requeue(tx, story.id, story.attempt, draft.checkpoint, pause=pause)
        if requeued:
            await draft.end()
        else:
            await self._uncount_failure(story)
        return requeued

    async def _uncount_failure(self, story: Story) -> None:
        """For an attempt that was overtaken: it failed only if its worker is never heard of again, and here we are."""
        try:
            async with self._db.single() as tx:
                await store.attempts.uncount_failure(tx, story.id, story.attempt)
        except (DatabaseError, OSError) as error:
            log.warning(
                "attempt %d at story %s counts as failed, though it was not: %s", story.attempt, story.id, error
            )


def _brief(story: Story) -> Brief:
    wish = story.wish
    return Brief(
        preferences=wish.preferences,
        theme=wish.theme,
        prompt=wish.prompt,
        length=WordCount[wish.length],
        language=wish.language,
        seed=story.id.int & 0xFFFF_FFFF,
    )


async def _either(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


async def _batched(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[list[Piece], None]:
    """Gathers what comes within the batch time, but for the first words, which somebody waits for. The writer goes on meanwhile."""
    gathered: list[Piece] = []
    batch_seconds = 0.0
    arrived = asyncio.Event()

    async def gather() -> None:
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    gathered.append(piece)
                    arrived.set()
        finally:
            arrived.set()

    gathering = asyncio.create_task(gather())
    try:
        while not gathering.done() or gathered:
            await arrived.wait()
            await asyncio.wait([gathering], timeout=batch_seconds)
            arrived.clear()
            batch, gathered[:] = gathered[:], []
            if any(isinstance(piece, Words) for piece in batch):
                batch_seconds = _BATCH_SECONDS
            if batch:
                yield batch
        await gathering
    finally:
        gathering.cancel()
        await asyncio.gather(gathering, return_exceptions=True)
