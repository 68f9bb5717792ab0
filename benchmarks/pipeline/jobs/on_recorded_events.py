"""Events as `on_events` has them, each recorded in `processed_events`, as for a handler whose effect must not happen twice."""

from __future__ import annotations

from functools import partial

from kit.data.database import Database
from kit.events.envelope import Event
from kit.events.inbox import Handler
from kit.events.inbox_store import mark_processed

from .on_events import feed_events, work
from .process import run


def recording(db: Database) -> Handler:
    """The job, in the transaction of its effect, which is none."""

    async def record(event: Event) -> None:
        async with db.single() as tx:
            await mark_processed(tx, event)

    return record


if __name__ == "__main__":
    run(partial(work, handler_on=recording), feed_events)
