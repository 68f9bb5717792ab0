"""The inboxes of the file service."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping
from datetime import timedelta
from uuid import UUID

from storymesh.events.v1 import auth_events_pb2
from storymesh.events.v1 import file_events_pb2 as events

from kit.data.object_errors import ObjectStoreUnavailable
from kit.errors import Unavailable
from kit.events.envelope import Event, uuid_in
from kit.events.handlers import Handler, Later, Permanent
from kit.events.inbox import Inbox
from kit.events.inbox_stream import InboxTuning
from kit.rpc.resources import Resources
from kit.runtime.clock import Clock

from .config import FileWorkerSettings
from .operations import WorkerOperations
from .operations.checking import INBOX as CHECKS_INBOX

log = logging.getLogger(__name__)

_TUNING = InboxTuning()
_OTHERS_AT_A_TIME = 4
_ERASED_AT_A_TIME = 2
_SHORTEST_WAIT = timedelta(seconds=0.5)
_LONGEST_WAIT = timedelta(minutes=1)


def inboxes(
    settings: FileWorkerSettings, resources: Resources, ops: WorkerOperations, *, tuning: InboxTuning = _TUNING
) -> tuple[Inbox, ...]:
    """The inboxes, apart from each other so that claims and erasures do not wait for files that are checked."""

    def inbox(name: str, handlers: Mapping[str, Handler], concurrency: int, *, records_events: bool = False) -> Inbox:
        return Inbox(
            resources.db,
            resources.redis,
            name,
            {type_: _patient(handler, resources.clock) for type_, handler in handlers.items()},
            lease_seconds=settings.lease_seconds,
            concurrency=concurrency,
            max_failures=settings.max_failures,
            records_events=records_events,
            tuning=tuning,
        )

    return (
        inbox(CHECKS_INBOX, _checks(ops), settings.files_checks),
        inbox("file", _others(ops), _OTHERS_AT_A_TIME, records_events=True),
        inbox("file-accounts", _accounts(ops), _ERASED_AT_A_TIME),
    )


def _patient(handler: Handler, clock: Clock) -> Handler:
    """Let the event wait while the store, the scanner or the image processes are away: it is not the event that fails.

    Counted as failures, a few minutes without one of them would make a dead letter of each file that came meanwhile. The wait is
    in proportion to the event's age, so that what waits for long costs little and goes on within a minute.
    """

    async def handle(event: Event) -> None:
        try:
            await handler(event)
        except (ObjectStoreUnavailable, Unavailable) as error:
            wait = min(max((clock() - event.occurred_at) / 2, _SHORTEST_WAIT), _LONGEST_WAIT)
            log.warning("%s %s waits: %s", event.type, event.id, error)
            raise Later(wait * random.uniform(0.5, 1)) from error  # noqa: S311  # spreads load

    return handle


def _checks(ops: WorkerOperations) -> Mapping[str, Handler]:
    async def check(event: Event) -> None:
        # No row in processed_events: the verdict's guarded update already makes a repeated event harmless.
        await ops.checking.check(uuid_in(event.decode(events.FileUploaded), "file_id"))

    return {events.FileUploaded.DESCRIPTOR.full_name: check}


def _others(ops: WorkerOperations) -> Mapping[str, Handler]:
    async def remove(event: Event) -> None:
        await ops.removing.remove_hidden(uuid_in(event.decode(events.FileErased), "file_id"))

    async def confirm(event: Event) -> None:
        told = event.decode(events.FileClaimsConfirmed)
        await ops.claims.take_confirmation(event, told.holder, _ids(told.file_ids))

    async def release(event: Event) -> None:
        told = event.decode(events.FileClaimsReleased)
        await ops.claims.take_release(event, told.holder, _ids(told.file_ids))

    return {
        events.FileErased.DESCRIPTOR.full_name: remove,
        events.FileClaimsConfirmed.DESCRIPTOR.full_name: confirm,
        events.FileClaimsReleased.DESCRIPTOR.full_name: release,
    }


def _accounts(ops: WorkerOperations) -> Mapping[str, Handler]:
    async def erase(event: Event) -> None:
        await ops.erasing.erase(uuid_in(event.decode(auth_events_pb2.UserDeleted), "user_id"))

    return {auth_events_pb2.UserDeleted.DESCRIPTOR.full_name: erase}


def _ids(texts: Iterable[str]) -> list[UUID]:
    try:
        return [UUID(text) for text in texts]
    except ValueError:
        raise Permanent("a file id is no UUID") from None
