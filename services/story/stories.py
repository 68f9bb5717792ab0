"""Asking for stories and reading them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import UUID

from storymesh.events.v1 import story_events_pb2 as events
from uuid_utils.compat import uuid7

from services.kit import erasure, outbox
from services.kit.caller import Caller
from services.kit.clock import Clock
from services.kit.database import Database
from services.kit.errors import AlreadyExists, NotFound, SessionRevoked
from services.kit.paging import Page, Pages

from . import store
from .model import Story, Wish

PreferencesOf = Callable[[UUID], Awaitable[tuple[str, ...]]]
"""Looks up what a person likes to read about. Raises Unavailable, and SessionRevoked for a person who is gone."""


class StoryNotFound(NotFound):
    reason = "STORY_NOT_FOUND"
    message = "there is no such story"


class RequestIdReused(AlreadyExists):
    reason = "REQUEST_ID_REUSED"
    message = "this request_id came with other parameters before; choose a new one"


class Stories:
    """Everyone has only their own stories: a stranger's looks like one that does not exist."""

    def __init__(self, db: Database, pages: Pages, preferences_of: PreferencesOf, clock: Clock) -> None:
        self._db = db
        self._pages = pages
        self._preferences_of = preferences_of
        self._clock = clock

    async def request(self, caller: Caller, wish: Wish, request_id: str | None) -> Story:
        """Queues a story, or returns the one that the same request made before.

        Raises RequestIdReused, and SessionRevoked for an account that was deleted while its token was still taken.
        """
        if request_id:
            # Before the account is asked: a repeat is answered alike also after the preferences have changed.
            repeated = await self._repeated(caller, wish, request_id)
            if repeated:
                return repeated
        asked = wish
        if not wish.preferences:
            wish = replace(wish, preferences=await self._preferences_of(caller.user_id))
        story_id = uuid7()
        story = None
        async with self._db.transaction() as tx:
            if await erasure.is_erased(tx, caller.user_id):
                raise SessionRevoked
            fresh = await store.insert_request(
                tx, story_id, caller.user_id, wish, digest=asked.digest(), request_id=request_id, now=self._clock()
            )
            if fresh:
                await outbox.add(tx, events.StoryRequested(story_id=str(story_id)), key=story_id)
                story = await store.find(tx, story_id)
        if not fresh and request_id:
            story = await self._repeated(caller, asked, request_id)
        if story is None:
            raise StoryNotFound
        return story

    async def get(self, caller: Caller, story_id: UUID) -> Story:
        """Raises StoryNotFound."""
        async with self._db.transaction() as tx:
            story = await store.find(tx, story_id)
        if story is None or story.owner_id != caller.user_id:
            raise StoryNotFound  # strangers must not learn that it exists
        return story

    async def list(self, caller: Caller, page_size: int, page_token: str) -> Page[Story]:
        """Newest first. Raises InvalidArgument for a foreign page token."""
        query = f"stories:{caller.user_id}"
        request = self._pages.request(query, page_size, page_token)
        async with self._db.transaction() as tx:
            rows = await store.page(tx, caller.user_id, request)
        return self._pages.page(query, request.size, rows)

    async def _repeated(self, caller: Caller, wish: Wish, request_id: str) -> Story | None:
        async with self._db.transaction() as tx:
            found = await store.find_by_request(tx, caller.user_id, request_id)
        if found is None:
            return None
        story, digest = found
        if digest != wish.digest():
            raise RequestIdReused(request_id=request_id)
        return story
