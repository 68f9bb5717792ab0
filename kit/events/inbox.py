"""A service's inbox: a Redis stream that its workers share as one consumer group.

Delivery is at least once. A handler calls `mark_processed` in the transaction of its effect, and the entry is acknowledged after
that commit. A working process keeps its leases by a heartbeat; a dead worker's entries go to a peer when the lease ends, and an
entry that kills one worker after the other is given up. A worker that was only slow takes its part in that count back when it
comes to itself. Failures are retried with full-jitter backoff, then dead-lettered; what can never succeed is dead-lettered at
once. An event that waits for an administrator's decision, or was discarded by one, is not handled when another copy of it comes
by. What waits for a `BatchHandler` is handled and acknowledged together; a batch that fails is handled event by event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import redis.exceptions
from redis.asyncio import Redis

from kit.data.database import Database
from kit.errors import Unavailable
from kit.rpc.statuses import as_mesh_error
from kit.runtime.loops import every, pause
from mesh.event_routes import check_handlers

from .handlers import BatchHandler, Forgotten, Handler, backoff_seconds
from .inbox_batches import InboxBatches, Lane
from .inbox_heartbeat import LeaseHeartbeat
from .inbox_outcomes import InboxOutcomes, Item
from .inbox_stream import InboxEntry, InboxStream, InboxTuning
from .inbox_upkeep import InboxUpkeep

log = logging.getLogger(__name__)

_MOVE_EVERY_SECONDS = 0.25
_SILENT_LEASES = 4
"""A consumer that said nothing for so many leases has ended: one that lives speaks at least three times a lease."""

_GATHERING_SECONDS = 0.1
"""How long a read waits for a batch to end, so that the next one is larger. Entries of other handlers wait no longer."""

_TUNING = InboxTuning()
_REDIS_DOWN = (redis.exceptions.RedisError, OSError)


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
        """`records_events` says that handlers record events in `processed_events`, which then has to be purged.

        Raises ManifestError when the handlers are not for the events that the manifest takes for this inbox.
        """
        self._db = db
        self._stream = InboxStream(redis, service, lease_seconds=lease_seconds, block_seconds=tuning.block_seconds)
        self._upkeep = InboxUpkeep(
            db, redis, service, self._stream, records_events=records_events, look_seconds=tuning.look_seconds
        )
        self._tuning = tuning
        self._lease_seconds = lease_seconds
        check_handlers(service, handlers)
        self._concurrency = concurrency
        self._outcomes = InboxOutcomes(
            db,
            self._stream,
            service,
            handlers,
            max_failures=max_failures,
            crash_limit=tuning.crash_limit,
            backoff=backoff,
            forgotten=forgotten,
        )
        self._batches = InboxBatches(handlers)
        self._slots = asyncio.Semaphore(concurrency)
        self._running: dict[bytes, asyncio.Task[None]] = {}
        """Entries that are handled by themselves."""
        self._together: dict[Lane, asyncio.Task[None]] = {}
        self._handling: dict[bytes, asyncio.Task[object]] = {}
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
                        self._begin(entry, group)
                    self._begin_batches(group)
                await self._hand_back(self._withdrawn())
                while tasks := self._tasks():
                    await asyncio.wait(tasks)
            except asyncio.CancelledError:
                await self._hand_back(self._withdrawn())
                raise
            finally:
                empty.set()
        try:
            await self._uncount()
            await self._stream.leave()
        except _REDIS_DOWN as error:
            log.warning("the inbox cannot be left in order: %s", error)

    def _begin(self, entry: InboxEntry, group: asyncio.TaskGroup) -> None:
        """Begins with the entry, unless it waits for the next batch."""
        if self._batches.add(entry):
            self._heartbeat.keep(entry)
            return
        task = self._running[entry.id] = group.create_task(self._work(entry))
        task.add_done_callback(partial(self._ended, entry.id))

    def _ended(self, entry_id: bytes, _task: asyncio.Task[None]) -> None:
        del self._running[entry_id]

    def _begin_batches(self, group: asyncio.TaskGroup) -> None:
        for lane in self._batches.due():
            task = self._together[lane] = group.create_task(self._work_together(lane.handler, lane.begin()))
            task.add_done_callback(partial(self._batch_ended, lane, group))

    def _batch_ended(self, lane: Lane, group: asyncio.TaskGroup, task: asyncio.Task[None]) -> None:
        del self._together[lane]
        lane.handling = []
        if not task.cancelled():
            self._begin_batches(group)

    def _tasks(self) -> set[asyncio.Task[None]]:
        return {*self._running.values(), *self._together.values()}

    async def _take(self, stopping: asyncio.Event) -> Sequence[InboxEntry]:
        """No more than can start at once, or in the next batch: what is fetched early only ages."""
        if self._together:
            await self._one_done(stopping, self._together.values(), _GATHERING_SECONDS)
        alone, new = self._places()
        if not new or stopping.is_set():
            await self._one_done(stopping, self._tasks())
            return ()
        try:
            entries = await self._stream.take(new, claimed=alone)
        except _REDIS_DOWN as error:
            log.warning("the inbox cannot be read now: %s", error)
            await pause(self._tuning.outage_seconds, stopping)
            return ()
        # When the heartbeat was held up for a whole lease, our own look claims what we are still at.
        fresh = [entry for entry in entries if not self._has(entry)]
        self._uncounted += [entry for entry in entries if self._has(entry)]
        if stopping.is_set():
            await self._hand_back(fresh)
            return ()
        return fresh

    def _has(self, entry: InboxEntry) -> bool:
        return entry.id in self._running or entry in self._batches

    def _places(self) -> tuple[int, int]:
        """How many entries may be taken from dead workers, which are handled by themselves, and how many new ones."""
        alone = max(self._concurrency - len(self._running), 0)
        if not self._batches.lanes or not alone:
            return alone, alone
        return alone, self._batches.free if self._batches.everything else min(alone, self._batches.free)

    async def _one_done(
        self, stopping: asyncio.Event, tasks: Iterable[asyncio.Task[None]], seconds: float | None = None
    ) -> None:
        stop = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({stop, *tasks}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()

    async def _work(self, entry: InboxEntry) -> None:
        """Deals with one entry, whatever happens; only cancellation leaves here."""
        handling = asyncio.create_task(self._handle(entry))
        self._handling[entry.id] = handling
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

    async def _work_together(self, handler: BatchHandler, batch: Sequence[Item]) -> None:
        """Deals with a batch like `_work`, and if that fails or another worker has a part of it, with each entry by itself."""
        entries = [entry for entry, _ in batch]
        handling = asyncio.create_task(self._handle_together(handler, batch))
        self._handling.update((entry.id, handling) for entry in entries)
        left = entries
        try:
            try:
                gone = await handling
            except asyncio.CancelledError:
                if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # always inside a task
                    raise
                gone = None
            finally:
                for entry in entries:
                    del self._handling[entry.id]
            if gone is not None:
                self._uncounted += gone
                return
            while left:
                # Here the lease counts, not the stream: another worker may have taken the entry over in the meantime.
                if self._heartbeat.keeps(left[0]):
                    await self._work(left[0])
                else:
                    self._uncounted.append(left[0])
                left = left[1:]
        except asyncio.CancelledError:
            await self._hand_back(left)
            raise
        except Exception as error:
            log.warning("%d entries stay pending until their leases end", len(left), exc_info=error)
            self._uncounted += left
        finally:
            for entry in entries:
                self._heartbeat.let_go(entry)

    async def _handle_together(self, handler: BatchHandler, batch: Sequence[Item]) -> Sequence[InboxEntry] | None:
        """As `InboxOutcomes.handle_together`, through outages like `_handle`."""
        while True:
            try:
                return await self._outcomes.handle_together(handler, batch)
            except Exception as error:
                if not isinstance(as_mesh_error(error), Unavailable):
                    raise
                log.warning("%d entries cannot be dealt with now: %s", len(batch), error)
            await pause(self._tuning.outage_seconds, self._stopping)
            if self._stopping.is_set():
                await self._hand_back([entry for entry, _ in batch])
                return ()

    def _lost(self, entry: InboxEntry) -> None:
        """Ends the handler, for another worker has begun the same work. The rest of a batch is handled without the entry."""
        if handling := self._handling.get(entry.id):
            handling.cancel()
        elif self._batches.remove(entry):
            self._uncounted.append(entry)
        else:
            return
        log.warning("lost the lease of %s; its new owner goes on", entry.id.decode())

    async def _handle(self, entry: InboxEntry) -> bool:
        """Tries again, under the lease, while Redis or Postgres is away and no outcome can be recorded.

        False when the entry has another owner by now, and the outcome changed nothing.
        """
        while True:
            try:
                # More than can be handled by themselves come from a read for a batch.
                async with self._slots:
                    return await self._outcomes.handle(entry)
            except Exception as error:
                if not isinstance(as_mesh_error(error), Unavailable):
                    raise
                log.warning("entry %s cannot be dealt with now: %s", entry.id.decode(), error)
            await pause(self._tuning.outage_seconds, self._stopping)
            if self._stopping.is_set():
                await self._hand_back([entry])
                return True

    def _withdrawn(self) -> Sequence[InboxEntry]:
        """Takes out what waits for a batch that will not begin."""
        entries = self._batches.withdraw()
        for entry in entries:
            self._heartbeat.let_go(entry)
        return entries

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
