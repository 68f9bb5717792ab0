"""Takes the events about which people get notices, and those on which they are erased."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from storymesh.events.v1 import auth_events_pb2

from kit.events.envelope import Event, uuid_in
from kit.events.handlers import BatchHandler, Handler, backoff_seconds
from kit.events.inbox import Inbox
from kit.events.inbox_stream import InboxTuning
from kit.rpc.resources import Resources

from .config import NotificationWorkerSettings
from .operations import WorkerOperations
from .operations.facts import event_types

_TUNING = InboxTuning()


def handlers(ops: WorkerOperations) -> Mapping[str, Handler]:
    """The handlers by the full name of the event's message."""

    async def erase(event: Event) -> None:
        await ops.erasing.erase(uuid_in(event.decode(auth_events_pb2.UserDeleted), "user_id"))

    # All decisions of a moment are one transaction. An erasure has several, and calls others.
    notices: dict[str, Handler] = dict.fromkeys(event_types(), BatchHandler(ops.notices.decide))
    return notices | {auth_events_pb2.UserDeleted.DESCRIPTOR.full_name: erase}


def inbox(
    settings: NotificationWorkerSettings,
    resources: Resources,
    ops: WorkerOperations,
    *,
    backoff: Callable[[int], float] = backoff_seconds,
    tuning: InboxTuning = _TUNING,
) -> Inbox:
    """Build the inbox. `backoff` gives the pause in seconds after that many failures of an event."""
    return Inbox(
        resources.db,
        resources.redis,
        "notification",
        handlers(ops),
        lease_seconds=settings.lease_seconds,
        concurrency=settings.mail_concurrency,
        max_failures=settings.max_failures,
        backoff=backoff,
        forgotten=ops.notices.forgotten,
        records_events=True,
        tuning=tuning,
    )
