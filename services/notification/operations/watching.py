"""Watches: server streams that replay the changes of a person's notifications and then follow them live.

One cursor serves both parts, so that nothing is lost or repeated between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from kit.data.database import DATABASE_AWAY, Database
from kit.identity.caller import Caller
from kit.rpc.watches import OpenWatches, reconnect_after

from ..model.notifications import Change, ChangeKind, ChangePosition, Head, Heartbeat, Reconnect, Snapshot, Step, Told
from .notification_feeds import NotificationFeed, NotificationFeeds
from .watch_positions import WatchPositions


class Watches:
    """Streams the changes of notifications, each with a token that resumes the watch right after it."""

    def __init__(
        self,
        db: Database,
        positions: WatchPositions,
        limits: OpenWatches,
        *,
        database_url: str,
        heartbeat_seconds: float,
    ) -> None:
        self._positions = positions
        self._limits = limits
        self._heartbeat_seconds = heartbeat_seconds
        self._feeds = NotificationFeeds(db, database_url=database_url)

    async def run(self, stopping: asyncio.Event) -> None:
        """Listen for changes; when `stopping` is set, send watchers to other replicas. Must run beside watches."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._feeds.run(stopping))
            group.create_task(self._limits.run(stopping))

    async def look(self) -> None:
        """Compare with the database now, as is done every few seconds in case that a message of Postgres was lost."""
        await self._feeds.look()

    async def watch(self, caller: Caller, resume_token: str) -> AsyncGenerator[Told, None]:
        """Yield the steps after the token, or a Snapshot and those after it. The stream ends after Reconnect.

        Raises InvalidArgument for a token of somebody else and TooManyWatches, before the first step.
        """
        after = self._positions.position(caller.user_id, resume_token)
        async with self._limits.admitted(caller.user_id), self._feeds.follow(caller.user_id) as feed:
            watch = _Watch(feed, self._feeds, heartbeat_seconds=self._heartbeat_seconds)
            async with aclosing(watch.steps(after)) as steps:
                async for step, state in steps:
                    yield Told(step, self._positions.token(caller.user_id, state.position), state.unread)


class _Watch:
    """One watcher: the position of the latest change that its client has. Pulled by its client, so it holds no queue."""

    def __init__(self, feed: NotificationFeed, feeds: NotificationFeeds, *, heartbeat_seconds: float) -> None:
        self._feed = feed
        self._feeds = feeds
        self._heartbeat_seconds = heartbeat_seconds
        self._position = ChangePosition(0, None)

    async def steps(self, after: ChangePosition | None) -> AsyncGenerator[tuple[Step, Head], None]:
        """Yield each step with the state after it."""
        try:
            if after is not None and after.number > self._feed.head.number:
                await self._feeds.catch_up(self._feed)
            if after is None or after.number > self._feed.head.number:
                # A number that nobody has given yet was given before the database lost it.
                yield self._snapshot()
            else:
                self._position = after
            async with aclosing(self._live(told=after is None)) as live:
                async for step in live:
                    yield step
        except DATABASE_AWAY:
            # No error: the client resumes here or at another replica, without loss.
            pass
        yield Reconnect(reconnect_after()), Head(self._position, self._feed.head.unread)

    async def _live(self, *, told: bool) -> AsyncGenerator[tuple[Step, Head], None]:
        """`told`: the client has got something already, so that it knows that the watch is open."""
        clock = asyncio.get_running_loop().time
        told_at = clock() if told else None
        while not self._feed.leaving:
            news = self._feed.news
            changes = await self._later()
            if changes is None:
                yield self._snapshot()
                told_at = clock()
                continue
            for change in changes:
                self._position = change.head.position
                if change.notification or change.kind not in (ChangeKind.ADDED, ChangeKind.UPDATED):
                    yield change, change.head
                    told_at = clock()
            if changes:
                continue
            try:
                async with asyncio.timeout_at((told_at or 0) + self._heartbeat_seconds):
                    await news.wait()
            except TimeoutError:
                yield Heartbeat(), self._feed.head
                told_at = clock()

    async def _later(self) -> Sequence[Change] | None:
        changes = self._feed.after(self._position)
        return await self._feeds.earlier(self._feed, self._position) if changes is None else changes

    def _snapshot(self) -> tuple[Snapshot, Head]:
        self._position = self._feed.head.position
        return Snapshot(), self._feed.head
