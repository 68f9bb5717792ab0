"""Watches: server streams that tell how a file comes along.

Each message holds the whole file, so that a watcher is a number: the revision that its client has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import UUID

from kit.data.database import DATABASE_AWAY
from kit.errors import InvalidArgument, Violation
from kit.identity.caller import Caller
from kit.identity.signing import Signer
from kit.rpc.watches import OpenWatches, reconnect_after

from ..model import Changed, Done, File, Heartbeat, Reconnect, Step
from .file_feeds import FileFeed, FileFeeds
from .files import Files

_ENDED = "!"
"""Ends the content of a Done's token: the client has read the end."""


class Watches:
    """Streams a file's steps, each with a token that resumes the watch right after it."""

    def __init__(
        self, files: Files, signer: Signer, limits: OpenWatches, *, database_url: str, heartbeat_seconds: float
    ) -> None:
        self._files = files
        self._signer = signer
        self._limits = limits
        self._heartbeat_seconds = heartbeat_seconds
        self._feeds = FileFeeds(database_url=database_url)

    async def run(self, stopping: asyncio.Event) -> None:
        """Listen for changes; when `stopping` is set, send watchers to other replicas. Must run beside watches."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._feeds.run(stopping))
            group.create_task(self._limits.run(stopping))

    async def watch(self, caller: Caller, file_id: UUID, resume_token: str) -> AsyncGenerator[tuple[str, Step], None]:
        """Yield resume tokens and steps: the file as it is, then each change. The stream ends after Done or Reconnect.

        Raises InvalidArgument for a token of another watch and TooManyWatches, both before the first step, and FileNotFound at any
        time.
        """
        scope = _scope(caller, file_id)
        known = self._opened(scope, resume_token)
        async with self._limits.admitted(caller.user_id):
            # First, so that it raises before the first step while the database is away.
            file = await self._files.get(caller, file_id)
            with self._feeds.follow(file_id) as feed:
                async with aclosing(self._steps(feed, caller, file, known)) as steps:
                    async for revision, step in steps:
                        end = _ENDED if isinstance(step, Done) else ""
                        yield self._signer.sign(scope, f"{revision}{end}"), step

    async def nothing_is_new(self, caller: Caller, file_id: UUID, resume_token: str) -> bool:
        """True if the token came with the Done of the present state, so that a watch could only repeat it. Raises FileNotFound."""
        place = self._signer.open(_scope(caller, file_id), resume_token) or ""
        return place.endswith(_ENDED) and place == f"{(await self._files.get(caller, file_id)).revision}{_ENDED}"

    async def _steps(
        self, feed: FileFeed, caller: Caller, file: File, known: int | None
    ) -> AsyncGenerator[tuple[int, Step], None]:
        """Yield each step with the revision that the client has after it."""
        clock = asyncio.get_running_loop().time
        # A resumed watch without anything new begins with a heartbeat, so that its client knows that it is open.
        told_at = 0.0
        revision = known or 0
        try:
            while not feed.leaving:
                news = feed.news
                file = await self._files.get(caller, file.id)
                if file.state.final:
                    yield file.revision, Done(file)
                    return
                if file.revision != revision:
                    revision, told_at = file.revision, clock()
                    yield revision, Changed(file)
                    continue
                try:
                    async with asyncio.timeout_at(told_at + self._heartbeat_seconds):
                        await news.wait()
                except TimeoutError:
                    # The file is read again then: a message of Postgres may have been lost.
                    told_at = clock()
                    yield revision, Heartbeat()
        except DATABASE_AWAY:
            # No error after the first step: the client resumes here or at another replica, without loss.
            pass
        yield revision, Reconnect(reconnect_after())

    def _opened(self, scope: str, token: str) -> int | None:
        """The revision in a token, None without a token. Raises InvalidArgument."""
        if not token:
            return None
        place = self._signer.open(scope, token)
        if place is None:
            description = "is not a token that a watch of this file handed out"
            raise InvalidArgument([Violation("resume_token", description, "RESUME_TOKEN_INVALID")])
        return int(place.removesuffix(_ENDED))


def _scope(caller: Caller, file_id: UUID) -> str:
    return f"watch:file:{caller.user_id}:{file_id}"
