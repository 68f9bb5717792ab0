"""What a worker does for the records beside delivering: it reads returned mails and deletes what has served its time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from kit.data.database import Database
from kit.runtime.clock import Clock
from kit.runtime.loops import every

from .. import store
from .bounces import BounceReader

_READ_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 60.0
"""Pause after rounds that failed, as when the folder is not mounted: the log has one line a minute."""

_FORGET_SECONDS = 3600.0

_NAMELESS_KEPT = timedelta(days=90)
"""How long an address without a person stays suppressed. They come from codes to whatever address somebody typed, and no erasure
finds them."""


class RecordKeeping:
    """Runs in the background of each worker; what two of them do at once is done once."""

    def __init__(
        self,
        db: Database,
        reader: BounceReader | None,
        clock: Clock,
        *,
        kept: timedelta = timedelta(days=90),
        batch: int = 1000,
    ) -> None:
        """`reader` is None without a folder of bounces; deliveries and their steps are `kept` for so long."""
        self._db = db
        self._reader = reader
        self._clock = clock
        self._kept = kept
        self._batch = batch

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set."""
        async with asyncio.TaskGroup() as group:
            failure = "records that have served their time cannot be deleted now"
            group.create_task(every(_FORGET_SECONDS, stopping, self.forget, failure=failure))
            if self._reader:
                group.create_task(
                    every(
                        _READ_SECONDS,
                        stopping,
                        self._reader.read,
                        failure="the folder of bounces cannot be read now",
                        retry=lambda failures: _LONGEST_WAIT_SECONDS if failures > 1 else _READ_SECONDS,
                    )
                )

    async def forget(self) -> None:
        """Delete what has served its time.

        That is old suppressions without a person, the content of deliveries that have ended and cannot be sent again, old
        deliveries with their steps, and what administrators did to webhooks that are gone.
        """
        now = self._clock()
        async with self._db.transaction() as tx:
            await store.suppressions.remove_nameless(tx, now - _NAMELESS_KEPT)
            await store.records.forget_events(tx, now)
            await store.webhook_acts.prune(tx, now - self._kept)
        more = True
        while more:
            async with self._db.transaction() as tx:
                more = await store.records.prune(tx, now - self._kept, self._batch)
