"""What happens in the background besides the relay: keys are replaced, ended registrations and sessions removed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from kit.data.database import Database, Transaction
from kit.rpc.resources import Resources
from kit.runtime.clock import Clock
from kit.runtime.loops import every

from . import store
from .config import AuthWorkerSettings
from .operations import rotation
from .operations.keys import KeyRotation

_KEEP_ENDED_SESSIONS = timedelta(days=7)
"""Long enough that a client that comes back learns that its session was revoked, not only that its token is unknown."""


def upkeep(settings: AuthWorkerSettings, resources: Resources) -> Upkeep:
    return Upkeep(
        resources.db,
        rotation(settings, resources),
        resources.clock,
        every_seconds=settings.upkeep_seconds,
        audit_kept=timedelta(days=settings.audit_days),
    )


class Upkeep:
    """Any number may run at the same time."""

    def __init__(
        self, db: Database, rotation: KeyRotation, clock: Clock, *, every_seconds: float, audit_kept: timedelta
    ) -> None:
        self._db = db
        self._rotation = rotation
        self._clock = clock
        self._every_seconds = every_seconds
        self._audit_kept = audit_kept

    async def run(self, stopping: asyncio.Event) -> None:
        """Works until `stopping` is set; outlives failures of the database."""
        await every(self._every_seconds, stopping, self._work, failure="upkeep has to wait")

    async def _work(self) -> None:
        await self._rotation.advance()
        await self.clean_up()

    async def clean_up(self) -> None:
        """Removes what has ended: personal data is not kept without need."""
        now = self._clock()
        # Each in transactions of its own: what is much of one kind keeps no locks for long, nor the others waiting.
        await self._repeated(lambda tx: store.registrations.delete_expired(tx, now))
        await self._repeated(lambda tx: store.challenges.delete_expired(tx, now))
        await self._repeated(lambda tx: store.email_stops.delete_expired(tx, now))
        await self._repeated(lambda tx: store.sessions.mark_some(tx, now))
        await self._repeated(lambda tx: store.sessions.delete_ended(tx, now - _KEEP_ENDED_SESSIONS))
        await self._repeated(lambda tx: store.revocations.delete_expired(tx, now))
        await self._repeated(store.audit.erase_some)
        await self._repeated(lambda tx: store.audit.delete_older(tx, now - self._audit_kept))

    async def _repeated(self, some: Callable[[Transaction], Awaitable[int]]) -> None:
        """Until fewer than a batch were left to be written."""
        written = store.batches.MOST
        while written >= store.batches.MOST:
            async with self._db.transaction() as tx:
                written = await some(tx)
