"""The contender `on_events` with each event recorded in `processed_events`, as for an effect that must not happen twice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kit.data.database import Database
from kit.events.envelope import Event
from kit.events.handlers import BatchHandler, Handler
from kit.events.inbox_store import mark_all_processed

from .on_events import feed_events, work
from .process import run


def recording(db: Database) -> Handler:
    """The job, in a transaction that would hold the effects of a batch."""

    async def record(events: Sequence[Event]) -> None:
        async with db.single() as tx:
            await mark_all_processed(tx, events)

    return BatchHandler(record)


if __name__ == "__main__":
    run(partial(work, handler_on=recording), feed_events)
