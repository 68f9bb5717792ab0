"""Whether one more story may be requested: by what a person has asked for already, and by what waits in all."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from uuid import UUID

from kit.data.database import Transaction
from kit.errors import SessionRevoked

from .. import store
from ..errors import BacklogFull, StoryQuotaExceeded
from ..model import Limits, wait_for_day, wait_for_places

log = logging.getLogger(__name__)

_LATEST = 20
"""Completed stories that the pace is taken from: a few minutes' on one machine, a second's on many."""

_RELIEF = 10
"""Retry after a tenth of the backlog has drained; waiting for one free slot would make all retry at once."""


class Admission:
    """Admits in the transaction that queues the story.

    A person's requests are admitted one after the other, so no number of simultaneous ones gets past a quota. The backlog may be
    passed by as many as are admitted in the same instant: no lock holds up everybody for it.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    async def hold(self, tx: Transaction, owner_id: UUID) -> None:
        """Waits for the person's other requests, and for their erasure; what the transaction reads after it includes theirs."""
        await store.admissions.lock(tx, owner_id)

    async def admit(self, tx: Transaction, owner_id: UUID, now: datetime) -> None:
        """After `hold`. Raises StoryQuotaExceeded and BacklogFull, each with the time after which another try makes sense.

        Raises SessionRevoked for an account that is deleted.
        """
        limits = self.limits
        demand = await store.admissions.admit(tx, owner_id, limits, now)
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
