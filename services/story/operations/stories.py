"""Requests, reads, cancellations, retries and deletions of stories by their owner."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from uuid import UUID

import redis.exceptions
from storymesh.events.v1 import story_events_pb2 as events
from uuid_utils.compat import uuid7

from kit.data.database import DATABASE_AWAY, Database, Transaction
from kit.data.paging import Page, Pages
from kit.data.shared_reads import SharedRead
from kit.errors import InvalidArgument, Unavailable, Violation
from kit.events import outbox
from kit.identity.caller import Caller
from kit.runtime.batches import Batcher
from kit.runtime.clock import Clock

from .. import store
from ..adapters.writers import primary_subtag
from ..errors import RequestIdReused, StoryLanguageUnsupported, StoryNotCancellable, StoryNotFound, StoryNotRetryable
from ..model import Demand, State, Story, Wish
from ..store.progress import Progress
from .admission import Admission

log = logging.getLogger(__name__)

_REDIS_DOWN = (redis.exceptions.RedisError, OSError)

_PATIENCE_SECONDS = 0.01
"""Requests that come while others are being inserted wait so long at most, in order to be inserted together."""

PreferencesOf = Callable[[UUID], Awaitable[tuple[str, ...]]]
"""Looks up an account's preferences. Raises Unavailable, and SessionRevoked for a deleted account."""


class Stories:
    """Acts on the caller's own stories; another person's story looks like one that does not exist.

    Postgres holds each decision about a story. Redis is notified after the commit, so that the worker stops and watchers are told
    at once. If that fails (fail-open), the worker learns of it when it renews its lease, and watchers by polling.
    """

    def __init__(
        self,
        db: Database,
        pages: Pages,
        preferences_of: PreferencesOf,
        clock: Clock,
        *,
        progress: Progress,
        admission: Admission,
        languages: frozenset[str] | None = None,
    ) -> None:
        """`languages` holds the primary subtags of the languages that the workers' writer writes; None: any language."""
        self._db = db
        self._found = SharedRead(db, store.stories.find_all)
        self._requests = Batcher(
            self._request_together, shared=DATABASE_AWAY, patience_seconds=_PATIENCE_SECONDS, leaves_at_once=True
        )
        self._pages = pages
        self._preferences_of = preferences_of
        self._clock = clock
        self._progress = progress
        self._admission = admission
        self._languages = languages

    async def request(self, caller: Caller, wish: Wish, request_id: str | None) -> Story:
        """Queue a story. Idempotent by `request_id`: a repeated request returns the story that the first one made.

        Raises InvalidArgument for a language that the writer does not write, RequestIdReused, StoryQuotaExceeded, BacklogFull,
        Unavailable, and SessionRevoked for an account that was deleted while its access token was still valid.
        """
        if request_id:
            # Before the preferences are read: a repetition is answered alike even after they have changed.
            async with self._db.single() as tx:
                repeated = await self._repeated(tx, caller, wish, request_id)
            if repeated:
                return repeated
        if not self._writes(wish.language):
            written = ", ".join(sorted(self._languages or ()))
            description = f"is not a language that stories are written in here: {written}"
            raise InvalidArgument([Violation("language", description, StoryLanguageUnsupported.reason)])
        preferences = wish.preferences or await self._preferences_of(caller.user_id)
        story_id, now = uuid7(), self._clock()
        event = outbox.values_of(events.StoryRequested(story_id=str(story_id)), key=story_id)
        whole = replace(wish, preferences=preferences)
        requested = store.requests.Requested(
            story_id, caller.user_id, whole, wish.digest(), request_id, event=event, at=now
        )
        story, demand = await self._requests.add(requested)
        if story:
            return story
        async with self._db.single() as tx:
            if demand is None:
                story, demand = await store.requests.insert_admitted(tx, requested, self._admission.limits)
            if story:
                return story
            # A concurrent repetition was faster. Looked at before the demand, because a repetition counts for no quota.
            repeated = await self._repeated(tx, caller, wish, request_id) if request_id else None
            if repeated:
                return repeated
            await self._admission.require(tx, caller.user_id, demand, now)
        # The repetition's story was deleted in this moment.
        raise Unavailable

    async def _request_together(
        self, requests: Sequence[store.requests.Requested]
    ) -> Sequence[tuple[Story | None, Demand | None]]:
        """The stories, with the demands that they were admitted or refused by; neither where a request has to be tried alone."""
        async with self._db.single() as tx:
            if len(requests) == 1:
                return [await store.requests.insert_admitted(tx, requests[0], self._admission.limits)]
            made = await store.request_batches.insert_all_admitted(tx, requests, self._admission.limits)
            return [(story, None) for story in made]

    async def get(self, caller: Caller, story_id: UUID) -> Story:
        """Raises StoryNotFound."""
        return _require_own(await self._found.find(story_id), caller)

    async def list(self, caller: Caller, state: State | None, page_size: int, page_token: str) -> Page[Story]:
        """Return a page of the caller's stories, newest first; with a `state`, only those in it.

        Raises InvalidArgument for a page token of another list.
        """
        query = f"stories:{caller.user_id}" + (f":{state}" if state else "")
        request = self._pages.request(query, page_size, page_token)
        async with self._db.single() as tx:
            rows = await store.stories.page(tx, caller.user_id, state, request)
        return self._pages.page(query, request.size, rows)

    async def cancel(self, caller: Caller, story_id: UUID) -> Story:
        """Cancel an unfinished story and keep the text that watchers have seen. Idempotent.

        Raises StoryNotFound and StoryNotCancellable.
        """
        async with self._db.transaction() as tx:
            await self._own(tx, caller, story_id)
        try:
            seen = await self._progress.written(story_id)
        except _REDIS_DOWN as error:
            seen = None
            log.warning("story %s is cancelled with its last checkpoint: %s", story_id, error)
        async with self._db.transaction() as tx:
            await store.stories.cancel(tx, story_id, seen=seen, now=self._clock())
            story = await self._own(tx, caller, story_id)
        if story.state is not State.CANCELLED:
            raise StoryNotCancellable
        try:
            await self._progress.stop(story_id, story.attempt)
        except _REDIS_DOWN as error:
            log.warning("the worker of cancelled story %s learns of it as it renews its lease: %s", story_id, error)
        return story

    async def retry(self, caller: Caller, story_id: UUID) -> Story:
        """Queue a failed or cancelled story again, to be written from the beginning.

        Raises StoryNotFound, StoryNotRetryable, StoryLanguageUnsupported, StoryQuotaExceeded, BacklogFull and SessionRevoked.
        """
        async with self._db.transaction() as tx:
            await self._admission.hold(tx, caller.user_id)
            before = await self._own(tx, caller, story_id)
            if before.state not in (State.FAILED, State.CANCELLED):
                raise StoryNotRetryable
            if not self._writes(before.wish.language):
                raise StoryLanguageUnsupported(languages=",".join(sorted(self._languages or ())))
            now = self._clock()
            await self._admission.admit(tx, caller.user_id, now)
            if not await store.stories.queue_again(tx, story_id, now=now):
                # Only `retry` leaves a final state, and the person's lock serializes retries: the story was deleted meanwhile.
                raise StoryNotFound
            await outbox.add(tx, events.StoryRequested(story_id=str(story_id)), key=story_id)
            story = await self._own(tx, caller, story_id)
        try:
            # Drop the former text. The END that `stop` appends is the stream's only entry until the next attempt.
            await self._progress.stop(story_id, story.attempt, forget=True)
        except _REDIS_DOWN as error:
            log.warning("watchers of story %s see its former text until it is written anew: %s", story_id, error)
        return story

    async def delete(self, caller: Caller, story_id: UUID) -> None:
        """Delete the story with its progress, outbox rows and dead letters; stop its worker and watches. Raises StoryNotFound.

        The commit that hides the story hides it from everybody. Pruning removes the rest if Redis does not answer or this process
        is killed.
        """
        async with self._db.transaction() as tx:
            await self._own(tx, caller, story_id)
            await store.stories.cancel(tx, story_id, now=self._clock())
            await store.stories.hide(tx, story_id)
        try:
            await self._progress.erase([story_id])
        except _REDIS_DOWN as error:
            log.warning("the words of deleted story %s are removed later: %s", story_id, error)
            return
        async with self._db.transaction() as tx:
            await store.stories.erase(tx, [story_id])

    def _writes(self, language: str) -> bool:
        return self._languages is None or primary_subtag(language) in self._languages

    async def _own(self, tx: Transaction, caller: Caller, story_id: UUID) -> Story:
        return _require_own(await store.stories.find(tx, story_id), caller)

    async def _repeated(self, tx: Transaction, caller: Caller, wish: Wish, request_id: str) -> Story | None:
        found = await store.stories.find_by_request(tx, caller.user_id, request_id)
        if found is None:
            return None
        story, digest = found
        if digest != wish.digest():
            raise RequestIdReused(request_id=request_id)
        return story


def _require_own(story: Story | None, caller: Caller) -> Story:
    if story is None or story.owner_id != caller.user_id:
        raise StoryNotFound  # strangers must not learn that it exists
    return story
