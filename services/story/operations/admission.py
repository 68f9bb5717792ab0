"""Admission of a requested story: quotas of the person, and a bound on the backlog (back-pressure)."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from uuid import UUID

from kit.data.database import Transaction
from kit.errors import SessionRevoked

from .. import store
from ..errors import BacklogFull, StoryQuotaExceeded
from ..model import Demand, Limits, wait_for_day, wait_for_places

log = logging.getLogger(__name__)

_LATEST = 20
"""The number of latest completions from which the pace is estimated: a few minutes on one machine, a second on many."""

_RELIEF = 10
"""Retry after a tenth of the backlog has drained; waiting for one free slot would make all retry at once."""


class Admission:
    """Admits a story in the transaction that queues it.

    A lock per person serializes their requests, so that concurrent requests cannot exceed a quota. No lock guards the backlog,
    because it would serialize everybody: the backlog may be exceeded by the requests that are admitted at the same time.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    async def hold(self, tx: Transaction, owner_id: UUID) -> None:
        """Take the person's lock until the transaction ends; later reads in `tx` see their other requests and their erasure."""
        await store.admissions.lock(tx, owner_id)

    async def admit(self, tx: Transaction, owner_id: UUID, now: datetime) -> None:
        """Record an admission. The caller must have called `hold` in `tx`.

        Raises StoryQuotaExceeded and BacklogFull, each with `retry_after`, and SessionRevoked for a deleted account.
        """
        await self.require(tx, owner_id, await store.admissions.admit(tx, owner_id, self.limits, now), now)

    async def require(self, tx: Transaction, owner_id: UUID, demand: Demand, now: datetime) -> None:
        """Raises like `admit` unless the demand leaves a place for one request more."""
        limits = self.limits
        if demand.erased:
            raise SessionRevoked
        if demand.unfinished >= limits.unfinished:
            wait = await self._wait(tx, await store.stories.place_of_first(tx, owner_id), now)
            raise StoryQuotaExceeded(retry_after=wait, quota="unfinished", limit=limits.unfinished)
        earliest = demand.earliest_of_day
        if earliest and (left := wait_for_day(earliest, now)) > timedelta(0):
            raise StoryQuotaExceeded(retry_after=left, quota="day", limit=limits.a_day)
        if demand.queued >= limits.backlog:
            log.warning("refused a story: %d are queued already", limits.backlog)
            raise BacklogFull(retry_after=await self._wait(tx, max(limits.backlog // _RELIEF, 1), now))

    async def _wait(self, tx: Transaction, places: int, now: datetime) -> timedelta:
        return wait_for_places(places, await store.stories.latest_completions(tx, _LATEST), now)
