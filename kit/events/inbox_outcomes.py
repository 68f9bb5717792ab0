"""Runs the handler of an entry, or of a batch of them, and records what came of it: in the stream, and as a dead letter."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from time import time_ns
from uuid import NAMESPACE_OID, UUID, uuid5

from kit.data.database import Database
from kit.errors import Unavailable
from kit.rpc.statuses import as_mesh_error
from kit.runtime import tracing

from .dead_letter_store import put_aside_among, record
from .envelope import Event, Undecodable, from_bytes
from .handlers import BatchHandler, Forgotten, Handler, Later, Permanent
from .inbox_stream import InboxEntry, InboxStream

log = logging.getLogger(__name__)

Item = tuple[InboxEntry, Event]
"""An entry and the event that it holds."""


class InboxOutcomes:
    """Of one consumer."""

    def __init__(
        self,
        db: Database,
        stream: InboxStream,
        service: str,
        handlers: Mapping[str, Handler],
        *,
        max_failures: int,
        crash_limit: int,
        backoff: Callable[[int], float],
        forgotten: Forgotten | None,
    ) -> None:
        self._db = db
        self._stream = stream
        self._service = service
        self._handlers = handlers
        self._max_failures = max_failures
        self._crash_limit = crash_limit
        self._backoff = backoff
        self._forgotten = forgotten

    async def handle(self, entry: InboxEntry) -> bool:
        """False when the entry has another owner by now, and the outcome changed nothing."""
        try:
            event = from_bytes(entry.data)
        except Undecodable as error:
            return await self._dead_letter(entry, None, str(error), entry.failures)
        if entry.claimed and await self._stream.deliveries(entry) > self._crash_limit:
            return await self._dead_letter(entry, event, "its workers keep dying", entry.failures)
        if (entry.again or entry.claimed or entry.failures) and await self._put_aside([event]):
            return await self._stream.acknowledge(entry)
        return await self._dispatch(entry, event)

    async def handle_together(self, handler: BatchHandler, batch: Sequence[Item]) -> Sequence[InboxEntry] | None:
        """Handle the batch and acknowledge it in one step. Returns the entries that have another owner by now.

        None when the handler failed, and each event is to be handled by itself. An error that is no event's fault, such as a
        database that is away, is recorded as a failure of each: by itself, each would only wait for the same.
        """
        # Asked of everything that may be a copy, as in `handle`.
        aside = await self._put_aside([event for entry, event in batch if entry.again])
        events = [event for _, event in batch if event.id not in aside]
        began = time_ns()
        try:
            if events:
                await handler.handle(events)
        except Exception as error:
            if isinstance(as_mesh_error(error), Unavailable):
                return [entry for entry, event in batch if not await self._failed(entry, event, error)]
            log.info("%d events failed together, and are handled one by one: %s", len(events), type(error).__name__)
            return None
        if tracing.exports():
            for event in events:
                tracing.consumed(event.traceparent, event.type, began=began)
        gone = await self._stream.acknowledge_all([entry for entry, _ in batch])
        return [entry for entry, _ in batch if entry.id in gone]

    async def _dispatch(self, entry: InboxEntry, event: Event) -> bool:
        """Runs the handler and records what came of it. False as in `handle`."""
        with tracing.continued(event.traceparent, event.type):
            try:
                await self._handler_of(event)(event)
            except Later as later:
                return await self._stream.postpone(entry, later.delay.total_seconds(), entry.failures)
            except (Permanent, Undecodable) as error:
                return await self._dead_letter(entry, event, str(error), entry.failures)
            except Exception as error:
                return await self._failed(entry, event, error)
            return await self._stream.acknowledge(entry)

    def _handler_of(self, event: Event) -> Handler:
        handler = self._handlers.get(event.type)
        if handler is None:
            # Kept for a version that knows it, which an acknowledgement would rob of it.
            raise Permanent(f"{event.type} has no handler in this version of the {self._service} service")
        return handler

    async def _put_aside(self, events: Sequence[Event]) -> set[UUID]:
        """Asked of everything that is not new, and so may be a copy."""
        if not events:
            return set()
        async with self._db.single() as tx:
            return await put_aside_among(tx, [event.id for event in events])

    async def _failed(self, entry: InboxEntry, event: Event, error: Exception) -> bool:
        failures = entry.failures + 1
        log.warning("handling %s %s failed, failure %d", event.type, event.id, failures, exc_info=error)
        if failures >= self._max_failures:
            # Only the error's type is kept: its text may quote what the handler worked on.
            return await self._dead_letter(entry, event, f"{type(error).__name__} after {failures} failures", failures)
        return await self._stream.postpone(entry, self._backoff(failures), failures)

    async def _dead_letter(self, entry: InboxEntry, event: Event | None, reason: str, failures: int) -> bool:
        """Dead-letters the entry: it is in Postgres before it leaves the stream. False as in `handle`."""
        log.error("dead-lettered %s: %s", event.type if event else "an undecodable entry", reason)
        async with self._db.transaction() as tx:
            if not (event and self._forgotten and await self._forgotten(tx, event)):
                await record(
                    tx,
                    event_id=event.id if event else _id_of(entry.data),
                    inbox=self._service,
                    type_=_text(event.type) if event else "",
                    key=_text(event.key) if event else "",
                    event=entry.data,
                    reason=_text(reason[:500]),
                    failures=failures,
                )
        return await self._stream.acknowledge(entry)


def _id_of(data: bytes) -> UUID:
    """For bytes that are no event: always the same, so that they keep their name when they are replayed and die again."""
    return uuid5(NAMESPACE_OID, hashlib.sha256(data).hexdigest())


def _text(text: str) -> str:
    """Postgres keeps no NUL in a text, and a dead letter that cannot be written would come back for ever."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
