"""The revocation feed: keeps this replica's list complete from the database, and streams it to every service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from kit.data.database import Database
from kit.data.notify import listen
from kit.errors import Unavailable
from kit.identity.revocations import Revocation, RevocationKind, Revocations
from kit.runtime.clock import Clock
from kit.runtime.loops import every

from .. import store
from .keys import SigningKeys

log = logging.getLogger(__name__)

T = TypeVar("T")


class RevocationFeed:
    """Streams revocations. Sends no heartbeat while the database cannot be read: followers then know that their list is stale."""

    def __init__(
        self,
        db: Database,
        revocations: Revocations,
        keys: SigningKeys,
        clock: Clock,
        *,
        database_url: str,
        poll_seconds: float = 1.0,
        heartbeat_seconds: float = 5.0,
    ) -> None:
        self._db = db
        self._revocations = revocations
        self._keys = keys
        self._clock = clock
        self._database_url = database_url
        self._poll_seconds = poll_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._horizon = 0
        self._stopping = asyncio.Event()

    async def run(self, stopping: asyncio.Event) -> None:
        """Read new revocations at each NOTIFY and every `poll_seconds`, until `stopping` is set."""
        self._stopping = stopping
        wake = asyncio.Event()
        listening = asyncio.create_task(listen(self._database_url, store.revocations.CHANNEL, wake))
        try:
            await every(self._poll_seconds, stopping, self.refresh, failure="revocations cannot be read now", wake=wake)
        finally:
            listening.cancel()

    async def refresh(self) -> None:
        """Load, but keep the present list while the database does not answer."""
        try:
            await self.load()
        except Exception as error:
            log.warning("revocations cannot be read now: %s", error)

    async def load(self) -> None:
        """Read the revocations that were committed since the last read, and add them to the list."""
        async with self._db.transaction() as tx:
            horizon, revoked = await store.revocations.since(tx, self._horizon, self._clock())
        before = set(self._revocations.current())
        if not self._revocations.known:
            self._revocations.replace(revoked)
        for each in revoked:
            self._revocations.add(each)
        self._revocations.heard()
        self._horizon = horizon
        if any(each.kind is RevocationKind.KEY for each in set(revoked) - before):
            # A dropped key must not sign another token.
            await self._keys.refresh()

    async def watch(self) -> AsyncIterator[tuple[Revocation, ...] | Revocation | None]:
        """Yield the list, then each addition; None is a heartbeat. Raises Unavailable when the server drains."""
        with self._revocations.subscribed() as added:
            while not self._fresh():
                await self._within(self._poll_seconds, self._stopping.wait())
            yield self._revocations.current()
            while True:
                addition = await self._within(self._heartbeat_seconds, added.get())
                if addition or self._fresh():
                    yield addition

    async def _within(self, seconds: float, awaited: Coroutine[Any, Any, T]) -> T | None:
        """The result, or None after the timeout. Raises Unavailable when the server drains."""
        waiting, stop = asyncio.create_task(awaited), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({waiting, stop}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                raise Unavailable
            return waiting.result() if waiting.done() else None
        finally:
            waiting.cancel()
            stop.cancel()

    def _fresh(self) -> bool:
        return self._revocations.age_seconds < self._heartbeat_seconds
