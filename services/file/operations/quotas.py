"""Admission of a new file to its owner's quotas, in the transaction that inserts it."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from kit.data.database import Transaction
from kit.errors import SessionRevoked

from .. import store
from ..errors import FileQuotaExceeded
from ..model.quotas import DAY, Limits, exceeded, wait_for_day


class Quotas:
    """A lock per person serializes their new files, so that concurrent ones cannot exceed a quota together."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    async def hold(self, tx: Transaction, owner_id: UUID) -> None:
        """Take the person's lock until the transaction ends; later reads in `tx` see their other files and their erasure."""
        await store.quotas.lock(tx, owner_id)

    async def admit(self, tx: Transaction, owner_id: UUID, size: int, now: datetime) -> None:
        """Reserve a file's place and bytes. The caller must have called `hold` in `tx`.

        Raises FileQuotaExceeded, with `retry_after` where a wait helps, and SessionRevoked for a deleted account.
        """
        day_began = now - DAY
        usage = await store.quotas.usage(tx, owner_id, day_began=day_began)
        if usage is None:
            raise SessionRevoked
        found = exceeded(usage, size, self._limits)
        if found is None:
            await store.quotas.admit(tx, owner_id, size, now=now)
            return
        wait = None
        if found.daily:
            wait = wait_for_day(await store.quotas.admissions_since(tx, owner_id, day_began), size, self._limits, now)
        raise FileQuotaExceeded(retry_after=wait, quota=found.quota, limit=found.limit)
