"""A service's inbox: a Redis stream that its workers share as one consumer group.

Delivery is at least once. A handler calls `mark_processed` in the transaction of its effect, and the entry is acknowledged after
that commit. A working process keeps its leases by a heartbeat; a dead worker's entries go to a peer when the lease ends, and an
entry that kills one worker after the other is given up. A worker that was only slow takes its part in that count back when it
comes to itself. Failures are retried with full-jitter backoff, then dead-lettered; what can never succeed is dead-lettered at
once. An event that waits for an administrator's decision, or was discarded by one, is not handled when another copy of it comes
by.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from uuid import NAMESPACE_OID, UUID, uuid5

import redis.exceptions
from redis.asyncio import Redis

from kit.data.database import Database, Transaction
from kit.errors import Unavailable
from kit.rpc.statuses import as_mesh_error
from kit.runtime import tracing
from kit.runtime.loops import every, pause
from mesh.event_routes import check_handlers

from .dead_letter_store import is_put_aside, record
from .envelope import Event, Undecodable, from_bytes
from .inbox_heartbeat import LeaseHeartbeat
from .inbox_stream import InboxEntry, InboxStream, InboxTuning
from .inbox_upkeep import InboxUpkeep

log = logging.getLogger(__name__)

_BACKOFF_BASE = 1.0
_BACKOFF_CAP = 300.0
_MOVE_EVERY_SECONDS = 0.25
_SILENT_LEASES = 4
"""A consumer that said nothing for so many leases has ended: one that lives speaks at least three times a lease."""

_TUNING = InboxTuning()
_REDIS_DOWN = (redis.exceptions.RedisError, OSError)

Handler = Callable[[Event], Awaitable[None]]

Forgotten = Callable[[Transaction, Event], Awaitable[bool]]
"""Whether the event is about an erased person. Asked in the transaction that would keep a dead letter of it."""


class Permanent(Exception):
    """Raised by a handler when trying again cannot help. Its text is kept with the dead letter: no secrets in it."""


class Later(Exception):
    """Raised by a handler to get the event again after a time of its choosing; counts as no failure."""

    def __init__(self, delay: timedelta) -> None:
        super().__init__(f"later, in {delay}")
        self.delay = delay


def backoff_seconds(failures: int, *, base: float = _BACKOFF_BASE) -> float:
    """Full jitter: anywhere up to the doubling bound. The exponent is clamped before it is raised."""
    bound = min(base * 2.0 ** min(failures - 1, 20), _BACKOFF_CAP)
    return random.uniform(0, bound)  # noqa: S311  # spreads load; nothing secret depends on it


class Inbox:
    """One consumer. Handlers are named by the full name of the event's message type."""

    def __init__(
        self,
        db: Database,
        redis: Redis,
        service: str,
        handlers: Mapping[str, Handler],
        *,
        lease_seconds: float,
        concurrency: int,
        max_failures: int,
        backoff: Callable[[int], float] = backoff_seconds,
        forgotten: Forgotten | None = None,
        records_events: bool = False,
        tuning: InboxTuning = _TUNING,
    ) -> None:
        """`records_events` says that handlers use `mark_processed`, whose records then have to be removed in time.

        Raises ManifestError when the handlers are not for the events that the manifest takes for this inbox.
        """
        self._db = db
        self._stream = InboxStream(redis, service, lease_seconds=lease_seconds, block_seconds=tuning.block_seconds)
        self._upkeep = InboxUpkeep(
            db, redis, service, self._stream, records_events=records_events, look_seconds=tuning.look_seconds
        )
        self._tuning = tuning
        self._service = service
        self._handlers = handlers
        self._lease_seconds = lease_seconds
        check_handlers(service, handlers)
        self._concurrency = concurrency
        self._max_failures = max_failures
        self._backoff = backoff
        self._forgotten = forgotten
        self._running: dict[bytes, asyncio.Task[None]] = {}
        self._handling: dict[bytes, asyncio.Task[bool]] = {}
        self._heartbeat = LeaseHeartbeat(self._stream, lease_seconds=lease_seconds, lost=self._lost)
        self._stopping = asyncio.Event()
        self._uncounted: list[InboxEntry] = []
        """Deliveries that ended otherwise than in our death."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Takes events until `stopping` is set, then waits for the running handlers; cancelled, it hands their events back."""
        self._stopping = stopping
        async with self._heartbeat.beating(), asyncio.TaskGroup() as group:
            # Ends by itself, so that nothing breaks off in the middle of a transaction.
            group.create_task(self._upkeep.run(stopping))
            # These go on until the last handler has ended.
            empty = asyncio.Event()
            moved, tidied = "postponed events cannot be moved now", "ended consumers cannot be removed now"
            group.create_task(every(_MOVE_EVERY_SECONDS, empty, self._move, failure=moved))
            group.create_task(every(self._lease_seconds, empty, self._tidy, failure=tidied, at_once=False))
            try:
                while not stopping.is_set():
                    for entry in await self._take(stopping):
                        task = group.create_task(self._work(entry))
                        self._running[entry.id] = task
                        task.add_done_callback(partial(self._ended, entry.id))
                if self._running:
                    await asyncio.wait(self._running.values())
            finally:
                empty.set()
        try:
            await self._uncount()
            await self._stream.leave()
        except _REDIS_DOWN as error:
            log.warning("the inbox cannot be left in order: %s", error)

    def _ended(self, entry_id: bytes, _task: asyncio.Task[None]) -> None:
        del self._running[entry_id]

    async def _take(self, stopping: asyncio.Event) -> Sequence[InboxEntry]:
        """No more than can start at once: what is fetched early only ages."""
        free = self._concurrency - len(self._running)
        if free == 0:
            await self._one_done(stopping)
            return ()
        try:
            entries = await self._stream.take(free)
        except _REDIS_DOWN as error:
            log.warning("the inbox cannot be read now: %s", error)
            await pause(self._tuning.outage_seconds, stopping)
            return ()
        # When the heartbeat was held up for a whole lease, our own look claims what we are still at.
        fresh = [entry for entry in entries if entry.id not in self._running]
        self._uncounted += [entry for entry in entries if entry.id in self._running]
        if stopping.is_set():
            await self._hand_back(fresh)
            return ()
        return fresh

    async def _one_done(self, stopping: asyncio.Event) -> None:
        stop = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({stop, *self._running.values()}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()

    async def _work(self, entry: InboxEntry) -> None:
        """Deals with one entry, whatever happens; only cancellation leaves here."""
        handling = self._handling[entry.id] = asyncio.create_task(self._handle_through_outages(entry))
        try:
            with self._heartbeat.keeping(entry):
                ours = await handling
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # always inside a task
                await self._hand_back([entry])
                raise
            ours = False
        except Exception as error:
            log.warning("entry %s stays pending until its lease ends", entry.id.decode(), exc_info=error)
            ours = False
        finally:
            del self._handling[entry.id]
        if not ours:
            # Whether it was taken over or will be, we have not died of it.
            self._uncounted.append(entry)

    def _lost(self, entry: InboxEntry) -> None:
        """Ends the handler, for another worker has begun the same work."""
        if handling := self._handling.get(entry.id):
            log.warning("lost the lease of %s; its new owner goes on", entry.id.decode())
            handling.cancel()

    async def _handle_through_outages(self, entry: InboxEntry) -> bool:
        """Tries again, under the lease, while Redis or Postgres is away and no outcome can be recorded. False as in `_handle`."""
        while True:
            try:
                return await self._handle(entry)
            except Exception as error:
                if not isinstance(as_mesh_error(error), Unavailable):
                    raise
                log.warning("entry %s cannot be dealt with now: %s", entry.id.decode(), error)
            await pause(self._tuning.outage_seconds, self._stopping)
            if self._stopping.is_set():
                await self._hand_back([entry])
                return True

    async def _handle(self, entry: InboxEntry) -> bool:
        """False when the entry has another owner by now, and the outcome changed nothing."""
        try:
            event = from_bytes(entry.data)
        except Undecodable as error:
            return await self._dead_letter(entry, None, str(error), entry.failures)
        if entry.claimed and await self._stream.deliveries(entry) > self._tuning.crash_limit:
            return await self._dead_letter(entry, event, "its workers keep dying", entry.failures)
        if (entry.again or entry.claimed or entry.failures) and await self._is_put_aside(event):
            return await self._stream.acknowledge(entry)
        return await self._dispatch(entry, event)

    async def _dispatch(self, entry: InboxEntry, event: Event) -> bool:
        """Runs the handler and records what came of it. False as in `_handle`."""
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

    async def _is_put_aside(self, event: Event) -> bool:
        """Asked of everything that is not new, and so may be a copy."""
        async with self._db.single() as tx:
            return await is_put_aside(tx, event.id)

    async def _failed(self, entry: InboxEntry, event: Event, error: Exception) -> bool:
        failures = entry.failures + 1
        log.warning("handling %s %s failed, failure %d", event.type, event.id, failures, exc_info=error)
        if failures >= self._max_failures:
            # Only the error's type is kept: its text may quote what the handler worked on.
            return await self._dead_letter(entry, event, f"{type(error).__name__} after {failures} failures", failures)
        return await self._stream.postpone(entry, self._backoff(failures), failures)

    async def _dead_letter(self, entry: InboxEntry, event: Event | None, reason: str, failures: int) -> bool:
        """Dead-letters the entry: it is in Postgres before it leaves the stream. False as in `_handle`."""
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

    async def _hand_back(self, entries: Sequence[InboxEntry]) -> None:
        try:
            if entries:
                await self._stream.release(entries)
        except _REDIS_DOWN as error:
            log.warning("%d entries go to a peer only after their lease: %s", len(entries), error)

    async def _move(self) -> None:
        """Brings postponed entries back when they are due, and says of which ones we have not died."""
        await self._stream.move_due()
        await self._uncount()

    async def _uncount(self) -> None:
        entries, self._uncounted = self._uncounted, []
        try:
            if entries:
                await self._stream.uncount(entries)
        except BaseException:
            self._uncounted += entries
            raise

    async def _tidy(self) -> None:
        """Forgets the consumers of ended processes."""
        await self._stream.forget_ended(_SILENT_LEASES * self._lease_seconds)


def _id_of(data: bytes) -> UUID:
    """For bytes that are no event: always the same, so that they keep their name when they are replayed and die again."""
    return uuid5(NAMESPACE_OID, hashlib.sha256(data).hexdigest())


def _text(text: str) -> str:
    """Postgres keeps no NUL in a text, and a dead letter that cannot be written would come back for ever."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
