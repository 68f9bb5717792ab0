"""Fan-out: one listener per process wakes the people whose notifications have changed; one query reads for all that were woken.

A feed holds a person's latest changes in memory and is shared by their watchers. A watcher is a number, so it costs little. One
that is behind the changes in memory reads the missing ones from the database.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from kit.data.database import Database
from kit.data.notify import hear
from kit.runtime.loops import every

from .. import store
from ..model.notifications import Change, ChangePosition, Head
from ..store.notification_changes import CHANNEL, Later

_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 5.0
"""The interval at which one query compares the numbers of all watched people, in case a notification of Postgres was lost."""

_PEOPLE_AT_A_TIME = 200
_CHANGES_AT_A_TIME = 100
_TAIL_CHANGES = 50


class NotificationFeed:
    """The latest changes of one person."""

    def __init__(self, user_id: UUID) -> None:
        self.user_id = user_id
        self.head = Head(ChangePosition(0, None), 0)
        """The state after the latest change that was read."""
        self.opened = False
        """False until `head` was read from the database."""
        self.opening = asyncio.Lock()
        self.leaving = False
        """True while the server drains."""
        self.news = asyncio.Event()
        """Set once, at the next change of an attribute, and replaced by a new event."""
        self.watchers = 0
        # The changes after `_base` up to that of `head`, without a gap.
        self._base = self.head.position
        self._tail: deque[Change] = deque()

    def after(self, position: ChangePosition) -> Sequence[Change] | None:
        """The changes after the position. None when memory does not hold them, or holds others of these numbers."""
        if position == self.head.position:
            return ()
        if position != self._base and not any(change.head.position == position for change in self._tail):
            return None
        return [change for change in self._tail if change.number > position.number]

    def begin(self, head: Head) -> None:
        """Go on from a state, without the changes before it."""
        self.head, self._base, self.opened = head, head.position, True
        self._tail.clear()
        self._tell()

    def take(self, changes: Sequence[Change]) -> None:
        """Append the changes that follow the head; those up to it are known."""
        for change in changes:
            if change.number > self.head.number:
                self._tail.append(change)
                self.head = change.head
        while len(self._tail) > _TAIL_CHANGES:
            self._base = self._tail.popleft().head.position
        self._tell()

    def leave(self) -> None:
        self.leaving = True
        self._tell()

    def _tell(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()


class NotificationFeeds:
    """The feeds of all people who watch at this process."""

    def __init__(self, db: Database, *, database_url: str) -> None:
        self._db = db
        self._database_url = database_url
        self._feeds: dict[UUID, NotificationFeed] = {}
        self._woken: set[UUID] = set()
        self._wake = asyncio.Event()
        self._leaving = False

    @asynccontextmanager
    async def follow(self, user_id: UUID) -> AsyncIterator[NotificationFeed]:
        """Share the person's feed during the block. Raises DatabaseError and OSError when the present state cannot be read."""
        feed = self._feeds.setdefault(user_id, NotificationFeed(user_id))
        feed.watchers += 1
        if self._leaving:
            feed.leave()
        try:
            await self._open(feed)
            yield feed
        finally:
            feed.watchers -= 1
            if not feed.watchers:
                del self._feeds[user_id]
                self._woken.discard(user_id)

    async def catch_up(self, feed: NotificationFeed) -> None:
        """Read the feed's changes now: the token of another process may be ahead of this one."""
        await self._read([feed])

    async def earlier(self, feed: NotificationFeed, position: ChangePosition) -> Sequence[Change] | None:
        """Changes after the position, which memory does not hold, from the database. None when it does not hold them all either."""
        async with self._db.single() as tx:
            later = await store.notification_changes.later(tx, {feed.user_id: position}, _CHANGES_AT_A_TIME)
        found = later[feed.user_id]
        return found.changes if found.continues(position) else None

    async def run(self, stopping: asyncio.Event) -> None:
        """Keep the feeds up to date until `stopping` is set; then send every watcher to another replica."""
        failure = "changes of notifications cannot be read now"
        tasks = [
            asyncio.create_task(hear(self._database_url, CHANNEL, self._heard)),
            asyncio.create_task(every(_RETRY_SECONDS, stopping, self.read_woken, failure=failure, wake=self._wake)),
            asyncio.create_task(every(_LOOK_SECONDS, stopping, self.look, failure=failure, at_once=False)),
        ]
        try:
            await stopping.wait()
        finally:
            self._leaving = True
            for feed in self._feeds.values():
                feed.leave()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def read_woken(self) -> None:
        """Read the changes of the people who were woken. Raises when the database cannot be read; they stay woken then."""
        woken = [feed for feed in self._feeds.values() if feed.opened and feed.user_id in self._woken]
        for first in range(0, len(woken), _PEOPLE_AT_A_TIME):
            feeds = woken[first : first + _PEOPLE_AT_A_TIME]
            # Before the query: whoever is woken during it is to be read again.
            self._woken.difference_update(feed.user_id for feed in feeds)
            try:
                await self._read(feeds)
            except BaseException:
                self._woken.update(feed.user_id for feed in feeds)
                raise

    async def look(self) -> None:
        """Wake each watched person who has a later change than is known here."""
        known = {user_id: feed.head.number for user_id, feed in self._feeds.items() if feed.opened}
        if not known:
            return
        async with self._db.single() as tx:
            numbers = await store.notification_changes.numbers(tx, known)
        self._wake_all(user_id for user_id, number in known.items() if numbers.get(user_id, 0) != number)

    def _heard(self, payload: str | None) -> None:
        """Take a message of the channel; None after a (re)connect, before which messages may have been missed."""
        if payload is None:
            self._wake_all(tuple(self._feeds))
        else:
            self._wake_all([UUID(payload)])

    def _wake_all(self, people: Iterable[UUID]) -> None:
        watched = self._feeds.keys() & set(people)
        if watched:
            self._woken |= watched
            self._wake.set()

    async def _open(self, feed: NotificationFeed) -> None:
        async with feed.opening:
            if feed.opened:
                return
            async with self._db.single() as tx:
                feed.begin(await store.notification_changes.head(tx, feed.user_id))
        if feed.user_id in self._woken:
            # The message may tell of a change that the query did not see.
            self._wake.set()

    async def _read(self, feeds: Sequence[NotificationFeed]) -> None:
        positions = {feed.user_id: feed.head.position for feed in feeds}
        async with self._db.single() as tx:
            found = await store.notification_changes.later(tx, positions, _CHANGES_AT_A_TIME)
        for feed in feeds:
            await self._take(feed, positions[feed.user_id], found[feed.user_id])

    async def _take(self, feed: NotificationFeed, position: ChangePosition, later: Later) -> None:
        if later.continues(position):
            feed.take(later.changes)
            if feed.head.number < later.head:
                self._wake_all([feed.user_id])
        elif feed.head.position == position:
            # Pruned before this process has read them, or lost with the database that was restored.
            async with self._db.single() as tx:
                feed.begin(await store.notification_changes.head(tx, feed.user_id))
