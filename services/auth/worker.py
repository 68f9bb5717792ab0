"""Upkeep beside the relay: rotates keys, and deletes ended registrations and sessions."""

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
"""Long enough that a client that returns later learns that its session was revoked, and not only that its token is unknown."""


def upkeep(settings: AuthWorkerSettings, resources: Resources) -> Upkeep:
    return Upkeep(
        resources.db,
        rotation(settings, resources),
        resources.clock,
        every_seconds=settings.upkeep_seconds,
        audit_kept=timedelta(days=settings.audit_days),
    )


class Upkeep:
    """Periodic clean-up and key rotation, safe to run in any number of processes at the same time."""

    def __init__(
        self, db: Database, rotation: KeyRotation, clock: Clock, *, every_seconds: float, audit_kept: timedelta
    ) -> None:
        self._db = db
        self._rotation = rotation
        self._clock = clock
        self._every_seconds = every_seconds
        self._audit_kept = audit_kept

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set. Failures of the database are logged and retried."""
        await every(self._every_seconds, stopping, self._work, failure="upkeep has to wait")

    async def _work(self) -> None:
        await self._rotation.advance()
        await self.clean_up()

    async def clean_up(self) -> None:
        """Delete what has ended, because personal data is not kept without need."""
        now = self._clock()
        # Each kind in transactions of its own, so that many rows of one kind hold no lock for long and do not delay the others.
        await self._repeated(lambda tx: store.registrations.delete_expired(tx, now))
        await self._repeated(lambda tx: store.challenges.delete_expired(tx, now))
        await self._repeated(lambda tx: store.email_stops.delete_expired(tx, now))
        await self._repeated(lambda tx: store.sessions.mark_some(tx, now))
        await self._repeated(lambda tx: store.sessions.delete_ended(tx, now - _KEEP_ENDED_SESSIONS))
        await self._repeated(lambda tx: store.revocations.delete_expired(tx, now))
        await self._repeated(store.audit.erase_some)
        await self._repeated(lambda tx: store.audit.delete_older(tx, now - self._audit_kept))

    async def _repeated(self, some: Callable[[Transaction], Awaitable[int]]) -> None:
        """Repeat until a batch was not full."""
        written = store.batches.MOST
        while written >= store.batches.MOST:
            async with self._db.transaction() as tx:
                written = await some(tx)
