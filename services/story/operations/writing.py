"""Attempts at writing a story: under a lease, with the words in the progress stream and the outcome in the database."""

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
from kit.events.handlers import Later, backoff_seconds
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
from ..errors import TokenQuotaExceeded
from ..model import FailureReason, Story, excerpt
from ..store.progress import Overtaken, Progress
from .draft import Draft
from .interruptions import Interruptions
from .spending import Spending, Tokens

log = logging.getLogger(__name__)

_BATCH_SECONDS = 0.03
"""The time for which words are gathered into one entry: short enough to look live, long enough to save entries in Redis."""

_CLOCK_MARGIN = timedelta(seconds=0.1)
"""Added to delays of an event: Redis reckons when the event returns, Postgres when the story may begin, and clocks differ."""

_PAUSE_BASE_SECONDS = 10.0
"""The base of the backoff. A provider's failure usually lasts for a minute; all attempts together must last longer."""

_TITLE_SECONDS = 1.0
"""The longest interval of lease renewals until a title is saved, because renewals make the title visible to readers."""

_MOST_CHARACTERS = 50_000
"""A bound on a story's text, far beyond the longest that a brief asks for: it ends a writer that does not stop."""


_Begun: TypeAlias = tuple[Story, AsyncGenerator[Piece, None]]


def pause_seconds(failures: int) -> float:
    """Return the backoff in seconds after that many failed attempts."""
    return backoff_seconds(failures, base=_PAUSE_BASE_SECONDS)


class Writing:
    """Writes stories with one writer. The attempt's number fences every write, so an overtaken worker changes nothing.

    Each renewal of the lease saves a checkpoint, and so does the end of an attempt. The next attempt continues from the checkpoint
    if the writer can; otherwise it starts over.
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
        tokens: Tokens | None = None,
    ) -> None:
        """Set the bounds of attempts.

        `lease` is the time between two signs of life. `seconds` bounds one attempt, `life` the time from the request or latest
        retry, `attempts` the failed attempts. `limit` bounds the stories that all workers together write at a time with this
        writer; 0: no bound. `backoff` maps the number of failed attempts to a pause in seconds; a writer may ask for a longer one.
        `tokens` limits what a person spends; None: nothing does.
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
        self._spending = Spending(tokens, attempt_seconds=seconds)

    async def write(self, story_id: UUID) -> None:
        """Run an attempt that completes or fails the story. Raises Later when another attempt is due.

        On cancellation of the task the story returns to the queue, which does not count as a failure.
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
            async with (
                self._leased(story, draft),
                self._spending.reserved(story, draft),
                asyncio.timeout(min(self._seconds, left)),
            ):
                await self._fill(story, draft, pieces)
            await self._complete(story, draft)
        except Overtaken:
            log.warning(
                "story %s attempt %d was overtaken, or erased or cancelled by its owner", story.id, story.attempt
            )
            await self._uncount_failure(story)
        except TokenQuotaExceeded:
            await self._fail(story, draft, FailureReason.TOKEN_QUOTA_EXCEEDED)
        except WriterRefused as refused:
            log.warning("story %s attempt %d was refused, %s: %s", story.id, story.attempt, refused.reason, refused)
            await self._fail(story, draft, refused.reason)
        except asyncio.CancelledError:
            await asyncio.shield(self._requeue(story, draft))
            raise
        except Exception as error:
            # Any exception of a writer fails the attempt, never the worker.
            log.warning("story %s attempt %d failed", story.id, story.attempt, exc_info=error)
            await self._try_again(story, draft, error)

    async def _begun(self, story_id: UUID) -> _Begun | None:
        """Call `_begin`; on cancellation, requeue the attempt that it has begun. Its lease would otherwise expire as a failure."""
        beginning = asyncio.ensure_future(self._begin(story_id))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            await asyncio.wait([beginning])
            if not beginning.cancelled() and not beginning.exception() and (begun := beginning.result()):
                await self._requeue(begun[0], Draft(self._progress, begun[0]))
            raise

    async def _begin(self, story_id: UUID) -> _Begun | None:
        """Begin an attempt; return the story with the text to continue from, and the pieces that the writer adds.

        None when the story is final or deleted. Raises Later when it is held by another attempt or by a pause.
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
                # Another attempt runs, or the story pauses after one. The delayed event begins the next attempt if a worker dies.
                raise Later(max(held, timedelta(0)) + _CLOCK_MARGIN)
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
        """Open the transaction in which an attempt begins. Raises Later while `limit` stories are being written."""
        if not self._limit:
            async with self._db.single() as tx:
                yield tx
            return
        async with self._db.transaction() as tx:
            if await store.attempts.lock_beginnings(tx, self._writer.name) >= self._limit:
                raise Later(timedelta(seconds=backoff_seconds(1)) + _CLOCK_MARGIN)
            yield tx

    def _rest(self, brief: Brief, story: Story) -> AsyncGenerator[Piece, None] | None:
        if not story.text or not isinstance(self._writer, Continuing):
            return None
        return self._writer.go_on(brief, story.title, story.text)

    def _left(self, story: Story) -> float:
        """Seconds left of the story's life, which includes its time in the queue and failed attempts."""
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
        """Renew the lease and save checkpoints during the block; raise Overtaken in the block when the lease is lost.

        The lease is lost to another attempt, or when the owner cancels or deletes the story. An interruption makes it known at
        once, otherwise the next renewal does.
        """
        owner = asyncio.current_task()
        lost = False

        async def renew(interrupted: asyncio.Event) -> None:
            nonlocal lost
            saved, third = draft.checkpoint, self._lease.total_seconds() / 3
            while True:
                await _wait(interrupted, third if saved.title else min(third, _TITLE_SECONDS))
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
            renewing = asyncio.create_task(renew(interrupted))
            try:
                yield
            except asyncio.CancelledError:
                if not lost or not owner or owner.uncancel() > 0:
                    raise
                raise Overtaken from None
            finally:
                renewing.cancel()

    async def _complete(self, story: Story, draft: Draft) -> None:
        """Commit the text. Retries for 60 s while the database does not answer, because the text is whole and was paid for."""
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
            event = events.StoryCompleted(
                story_id=str(story.id), owner_id=str(story.owner_id), title=draft.title, excerpt=excerpt(draft.text)
            )
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
            raise Later(pause + _CLOCK_MARGIN)

    async def _requeue(self, story: Story, draft: Draft, *, pause: timedelta | None = None) -> bool:
        async with self._db.single() as tx:
            requeued = await store.attempts.requeue(tx, story.id, story.attempt, draft.checkpoint, pause=pause)
        if requeued:
            await draft.end()
        else:
            await self._uncount_failure(story)
        return requeued

    async def _uncount_failure(self, story: Story) -> None:
        """Take back the failure that an overtaken attempt was counted as: its worker is alive, so it did not kill its worker."""
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


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


async def _batched(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[list[Piece], None]:
    """Gather pieces into batches of 0.03 s while the writer goes on. The first words go out at once, because readers wait."""
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
