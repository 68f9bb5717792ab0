"""Links that show a story without signing in: made, listed and revoked by its owner, made for a mail, and opened by anybody."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.data.paging import Page, Pages
from kit.data.shared_reads import SharedRead
from kit.identity.caller import Caller
from kit.runtime.clock import Clock

from .. import store
from ..errors import StoryLinkNotFound, StoryNotCompleted, StoryNotFound
from ..model.links import LIFE, Link, LinkPaths, SharedStory


class Links:
    """Links to stories. A story has one at most, which the mail about it shares with its owner's own uses."""

    def __init__(self, db: Database, pages: Pages, paths: LinkPaths, clock: Clock) -> None:
        self._db = db
        self._pages = pages
        self._paths = paths
        self._clock = clock
        self._shown = SharedRead(db, self._shared_stories)

    async def create(self, caller: Caller, story_id: UUID) -> Link:
        """Make the link of the caller's story, or renew it. Raises StoryNotFound and StoryNotCompleted."""
        now = self._clock()
        async with self._db.transaction() as tx:
            story = await store.stories.find(tx, story_id)
            if story is None or story.owner_id != caller.user_id:
                raise StoryNotFound  # strangers must not learn that it exists
            links = await store.links.create(tx, {story_id: uuid7()}, now=now, expires_at=now + LIFE, renewed=True)
        if not links:
            raise StoryNotCompleted
        return links[0]

    async def list(self, caller: Caller, page_size: int, page_token: str) -> Page[Link]:
        """Return a page of the links that work, newest first. Raises InvalidArgument for a page token of another list."""
        query = f"story-links:{caller.user_id}"
        request = self._pages.request(query, page_size, page_token)
        async with self._db.single() as tx:
            rows = await store.links.page(tx, caller.user_id, self._clock(), request)
        return self._pages.page(query, request.size, rows)

    async def revoke(self, caller: Caller, story_id: UUID) -> None:
        """Revoke the link of the caller's story, also one that a mail is yet to have. Idempotent. Raises StoryNotFound."""
        async with self._db.transaction() as tx:
            if await store.stories.lock(tx, story_id) != caller.user_id:
                raise StoryNotFound  # as above
            await store.links.revoke(tx, story_id, caller.user_id, uuid7(), now=self._clock())

    async def of_mail(self, story_id: UUID) -> Link | None:
        """The link for a mail about a finished story, made if the story never had one; None if it was revoked.

        Raises StoryNotFound.
        """
        found = await self.of_mails([story_id])
        if story_id not in found:
            raise StoryNotFound
        return found[story_id]

    async def of_mails(self, story_ids: Collection[UUID]) -> Mapping[UUID, Link | None]:
        """As `of_mail`, by the ids of those of the stories that are finished."""
        now, link_ids = self._clock(), {story_id: uuid7() for story_id in story_ids}
        async with self._db.transaction() as tx:
            links = await store.links.create(tx, link_ids, now=now, expires_at=now + LIFE, renewed=False)
        return {link.story_id: link if link.revoked_at is None else None for link in links}

    async def open(self, token: str) -> SharedStory:
        """The story that a link's token opens. Raises StoryLinkNotFound, whatever the reason is.

        A token that is not signed costs no query; its signature is compared in constant time.
        """
        link_id = self._paths.link_id(token)
        if link_id is not None:
            story = await self._shown.find(link_id)
            if story is not None:
                return story
        raise StoryLinkNotFound

    def path_of(self, link: Link) -> str:
        """The path of the link's page under the public URL."""
        return self._paths.path(link)

    async def _shared_stories(self, tx: Transaction, link_ids: Sequence[UUID]) -> Mapping[UUID, SharedStory]:
        return await store.links.shared_stories(tx, link_ids, self._clock())
