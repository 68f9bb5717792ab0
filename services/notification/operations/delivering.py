"""Delivers what was decided: claims due deliveries under a lease, has their channel hand them over, and records what came of it.

A failure that will pass is followed by another attempt, with growing pauses, until the delivery expires. The intent is committed
before the handover begins: a delivery whose worker dies before is claimed again, one whose worker dies after is of unknown outcome.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from kit.data.database import DATABASE_AWAY, Database
from kit.data.notify import listen
from kit.errors import MeshError, Unavailable
from kit.events.envelope import Event, Undecodable, from_bytes
from kit.events.handlers import Permanent
from kit.rpc.statuses import as_mesh_error
from kit.runtime import tracing
from kit.runtime.batches import Batcher
from kit.runtime.clock import Clock
from kit.runtime.loops import every

from .. import store
from ..adapters.smtp import Handover, MailError, OutcomeUnknown, Postponed, Refused, Stage
from ..model import Kind
from ..model.deliveries import (
    RECOGNISES_REPETITIONS,
    SUPERSEDED,
    Channel,
    Decision,
    Delivery,
    DeliveryState,
    Outcome,
    Pause,
    growing_pause,
    wait_before_next,
)
from ..model.notices import NOTICES
from ..store.attempts import Attempt, Beginning, Settlement
from .channels import DeliveryChannel, Prepared, Undeliverable, Waits
from .digests import Digests
from .facts import FactReader
from .preference_gate import PreferenceGate

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_OUTAGE_SECONDS = 1.0
_SLOW_SECONDS = 3.0
"""A delivery that takes longer gives its place to the next one, and goes on beside it."""
_IN_FLIGHT = 16
"""How many times as many deliveries as there are places may be in flight, the slow ones included."""
_ABANDONED_AT_A_TIME = 100

_QUEUED = DeliveryState.QUEUED
_Attempt = tuple[UUID, int]
"""A delivery's id and the number of the attempt."""
_Ended = tuple[Delivery, Outcome]
"""An attempt that has ended, and what came of it."""


@dataclass(frozen=True, slots=True)
class DeliveryTuning:
    """What a deployment need not set, and a test may."""

    lease_seconds: float = 15.0
    concurrency: int = 4
    max_failures: int = 8
    """Attempts that may end in an error that nobody foresaw."""
    poll_seconds: float = _POLL_SECONDS
    slow_seconds: float = _SLOW_SECONDS
    pause: Pause = field(default_factory=lambda: growing_pause(random.random))


class Delivering:
    """Any number of workers may deliver; each delivery has one of them at a time."""

    def __init__(
        self,
        db: Database,
        channels: Mapping[Channel, DeliveryChannel],
        facts: FactReader,
        clock: Clock,
        *,
        gate: PreferenceGate,
        digests: Digests,
        database_url: str,
        tuning: DeliveryTuning,
        wake_name: str = store.deliveries.WAKE,
    ) -> None:
        """`wake_name`: the channel of NOTIFY that wakes the loops with the same channels in other workers."""
        self._db = db
        self._channels = channels
        self._facts = facts
        self._gate = gate
        self._digests = digests
        self._clock = clock
        self._database_url = database_url
        self._tuning = tuning
        self._wake_name = wake_name
        self._lease = timedelta(seconds=tuning.lease_seconds)
        self._beginning = Batcher(self._begin_together, shared=DATABASE_AWAY)
        self._settling = Batcher(self._settle_together, shared=DATABASE_AWAY)
        self._due = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._open = False
        """True while deliveries may begin."""
        self._reserved = 0
        self._running: dict[_Attempt, tuple[Delivery, asyncio.Task[None]]] = {}
        self._slow: set[_Attempt] = set()
        self._more = False
        """True when more may be due than there was room for."""

    @property
    def lease(self) -> timedelta:
        return self._lease

    def reserve(self) -> bool:
        """Keep a place for a delivery that a decision is about to write as claimed: `take_up` or `release` must follow.

        False if there is none, or this worker is stopping: the delivery is to be written for whoever has room first.
        """
        if self._open and self._room() > 0:
            self._reserved += 1
            return True
        self._more = True
        return False

    def release(self) -> None:
        """Give a place back for which no delivery was written."""
        self._reserved -= 1
        if self._more:
            self._due.set()

    async def take_up(self, deliveries: Sequence[Delivery]) -> None:
        """Make the first attempts of deliveries that were written as claimed, without another look at the database."""
        self._reserved -= len(deliveries)
        if self._open:
            for delivery in deliveries:
                self._start(delivery)
        elif deliveries:
            async with self._db.transaction() as tx:
                for delivery in deliveries:
                    await store.deliveries.hand_back(tx, delivery, self._clock())

    async def run(self, stopping: asyncio.Event) -> None:
        """Deliver until `stopping` is set, then wait for what is in flight; cancelled, hand back what nobody has seen."""
        ended = asyncio.Event()
        seconds = self._tuning.lease_seconds / 3
        async with self._group as group:
            # NOTIFY saves the others the wait for their next poll, and comes only from workers that have no room.
            listening = group.create_task(listen(self._database_url, self._wake_name, self._due))
            group.create_task(every(seconds, ended, self._renew, failure="leases of deliveries cannot be renewed now"))
            group.create_task(
                every(seconds, stopping, self._sweep, failure="abandoned deliveries cannot be settled now")
            )
            self._open = True
            try:
                failure = "due deliveries cannot be claimed now"
                await every(self._tuning.poll_seconds, stopping, self._claim, failure=failure, wake=self._due)
                self._open = False
                while self._running:
                    await asyncio.wait([task for _, task in self._running.values()])
            finally:
                self._open = False
                ended.set()
                listening.cancel()

    def _room(self) -> int:
        flying, places = len(self._running) + self._reserved, self._tuning.concurrency
        return max(0, min(places - (flying - len(self._slow)), places * _IN_FLIGHT - flying))

    async def _claim(self) -> bool:
        """Claim as much as there is room for. True when more may be due, and there is room left."""
        room = self._room()
        if room == 0:
            self._more = True
            return False
        async with self._db.single() as tx:
            claimed = await store.deliveries.claim(tx, self._channels, room, self._clock(), self._lease)
        for delivery in claimed:
            self._start(delivery)
        self._more = len(claimed) == room
        return self._more and self._room() > 0

    def _start(self, delivery: Delivery) -> None:
        attempt = delivery.id, delivery.attempts
        task = self._group.create_task(self._deliver(delivery))
        slow = asyncio.get_running_loop().call_later(self._tuning.slow_seconds, self._make_room, attempt)
        self._running[attempt] = delivery, task
        task.add_done_callback(partial(self._ended, attempt, slow))

    def _make_room(self, attempt: _Attempt) -> None:
        self._slow.add(attempt)
        if self._more:
            self._due.set()

    def _ended(self, attempt: _Attempt, slow: asyncio.TimerHandle, _task: asyncio.Task[None]) -> None:
        slow.cancel()
        del self._running[attempt]
        self._slow.discard(attempt)
        if self._more:
            self._due.set()

    async def _deliver(self, delivery: Delivery) -> None:
        handover = Handover()
        try:
            outcome = await self._attempt(delivery, handover)
        except asyncio.CancelledError:
            await _uninterrupted(self._cut_off(delivery, handover))
            raise
        if outcome is not None:
            await _uninterrupted(self._record(delivery, outcome))

    async def _attempt(self, delivery: Delivery, handover: Handover) -> Outcome | None:
        """Make an attempt and return what came of it; None if it was overtaken, or is to wait, before it handed anything over."""
        if delivery.expires_at <= self._clock():
            return Outcome(DeliveryState.EXPIRED, delivery.reason, delivery.answer)
        if delivery.kind not in NOTICES:
            return Outcome(_QUEUED, "KIND_UNKNOWN")  # A later version wrote it, and knows.
        try:
            event = from_bytes(delivery.event)
            with tracing.continued(event.traceparent, event.type):
                prepared = await self._prepare(delivery, event)
                if not await self._begin(delivery, prepared):
                    return None
                await prepared.hand_over(handover)
        except Waits:
            return None
        except Exception as error:
            return self._outcome_of(error, delivery, handover)
        return Outcome(DeliveryState.SENT)

    async def _begin(self, delivery: Delivery, prepared: Prepared) -> bool:
        """Commit the intent to hand over. False if the attempt was overtaken.

        Raises Undeliverable if the address is suppressed, or a later delivery makes this one worthless.
        """
        beginning = await self._beginning.add(Attempt(delivery, prepared.address_digest))
        if beginning is Beginning.SUPPRESSED and prepared.suppressed:
            await prepared.suppressed()
            beginning = await self._beginning.add(Attempt(delivery))
        if beginning is Beginning.SUPERSEDED:
            raise Undeliverable(Outcome(DeliveryState.SUPPRESSED, SUPERSEDED))
        return beginning is Beginning.BEGUN

    async def _begin_together(self, attempts: Sequence[Attempt]) -> Sequence[Beginning]:
        async with self._db.single() as tx:
            return await store.attempts.begin_sending(tx, attempts, self._clock(), self._lease)

    async def _prepare(self, delivery: Delivery, event: Event) -> Prepared:
        """Prepare the delivery: here what is to be checked at the time of sending, whatever the channel, is checked."""
        judgement = await self._gate.judge(delivery, NOTICES[delivery.kind])
        if judgement.outcome:
            raise Undeliverable(judgement.outcome)
        if not judgement.goes_on:
            raise Waits
        reading = await self._digests.read(delivery) if delivery.kind == Kind.DIGEST else self._facts.read(event)
        if reading is None:
            raise Undeliverable(Outcome(DeliveryState.SUPPRESSED, "NO_NEWS"))
        preferences = judgement.preferences
        if preferences is None and reading.reader:
            preferences = await self._gate.preferences_of(reading.reader)
        if preferences:
            # Where nobody has proven the address, its reader may be a stranger, who must not learn where the person lives.
            zone = preferences.time_zone if reading.notice.proven else reading.time_zone
            reading = replace(reading, language=preferences.language, time_zone=zone)
        return await self._channels[Channel(delivery.channel)].prepare(delivery, reading)

    def _outcome_of(self, error: Exception, delivery: Delivery, handover: Handover) -> Outcome:
        match error:
            case Undeliverable():
                return error.outcome
            case Undecodable() | Permanent():
                return Outcome(DeliveryState.FAILED, "EVENT_UNREADABLE")
            case MailError():
                return self._outcome_of_mail(error, delivery)
        return self._outcome_of_unforeseen(error, delivery, handover)

    def _outcome_of_mail(self, error: MailError, delivery: Delivery) -> Outcome:
        match error:
            case Postponed():
                wait = timedelta(seconds=error.seconds)
                return Outcome(_QUEUED, error.reason, delivery.answer, retry_after=wait, setback=False)
            case Refused():
                return Outcome(DeliveryState.FAILED, error.reason, error.answer)
            case OutcomeUnknown():
                return self._unknown(delivery, error.reason, error.answer)
        return Outcome(_QUEUED, error.reason, error.answer)

    def _outcome_of_unforeseen(self, error: Exception, delivery: Delivery, handover: Handover) -> Outcome:
        if handover.stage is Stage.TAKEN:
            return Outcome(DeliveryState.SENT)
        if handover.stage is Stage.HANDED_OVER:
            log.error("the handover of %s broke off", _name(delivery), exc_info=error)
            return self._unknown(delivery, "UNFORESEEN_ERROR")
        if isinstance(error, MeshError) or isinstance(as_mesh_error(error), Unavailable):
            peer = error.peer if isinstance(error, MeshError) else ""
            return Outcome(_QUEUED, f"{peer.upper()}_UNAVAILABLE" if peer else "DEPENDENCY_UNAVAILABLE")
        log.error("%s failed, failure %d", _name(delivery), delivery.failures + 1, exc_info=error)
        last = delivery.failures + 1 >= self._tuning.max_failures
        return Outcome(DeliveryState.FAILED if last else _QUEUED, "UNFORESEEN_ERROR", unforeseen=True)

    def _unknown(self, delivery: Delivery, reason: str, answer: str = "") -> Outcome:
        """A delivery of unknown outcome is made once more at most, and only if it may come twice or is recognised."""
        notice = NOTICES.get(delivery.kind)
        again = notice is not None and notice.may_come_twice and delivery.unknowns == 0
        again = again or delivery.channel in RECOGNISES_REPETITIONS
        return Outcome(_QUEUED if again else DeliveryState.UNKNOWN, reason, answer, unknown=True)

    async def _record(self, delivery: Delivery, outcome: Outcome) -> None:
        """Record the outcome, through outages of the database: what was sent would otherwise be of unknown outcome."""
        while True:
            try:
                await self._settling.add((delivery, outcome))
            except Exception as error:
                if not isinstance(as_mesh_error(error), Unavailable):
                    log.error("what became of %s cannot be recorded", _name(delivery), exc_info=error)
                    return
                log.warning("what became of %s cannot be recorded now: %s", _name(delivery), error)
            else:
                break
            await asyncio.sleep(_OUTAGE_SECONDS)
        if outcome.state not in (_QUEUED, DeliveryState.SENT):
            log.warning("%s is %s: %s %s", _name(delivery), outcome.state, outcome.reason, outcome.answer)

    async def _settle_together(self, ended: Sequence[_Ended]) -> Sequence[None]:
        now = self._clock()
        async with self._db.single() as tx:
            await store.attempts.settle(tx, [self._settlement(*each, now) for each in ended], now)
        return [None] * len(ended)

    def _settlement(self, delivery: Delivery, outcome: Outcome, now: datetime, *, died: bool = False) -> Settlement:
        again = outcome.state is _QUEUED
        wait = wait_before_next(delivery, outcome, self._tuning.pause, died=died) if again else timedelta()
        # The same reason attempt after attempt is one step: a server may be away for days.
        told = again and (outcome.reason, outcome.answer) == (delivery.reason, delivery.answer)
        return Settlement(
            delivery,
            outcome.state,
            outcome.reason,
            outcome.answer,
            due_at=min(now + wait, delivery.expires_at) if again else now,
            decision="" if told else Decision.DEFERRED if again else outcome.state,
            unforeseen=outcome.unforeseen,
            unknown=outcome.unknown,
            setback=again and outcome.setback and not died,
            died=died,
        )

    async def _cut_off(self, delivery: Delivery, handover: Handover) -> None:
        """Record how far a delivery has come whose worker is stopped. After the handover it stays in SENDING, as after a crash."""
        try:
            if handover.stage is Stage.UNSEEN:
                async with self._db.single() as tx:
                    await store.deliveries.hand_back(tx, delivery, self._clock())
            elif handover.stage is Stage.TAKEN:
                await self._settling.add((delivery, Outcome(DeliveryState.SENT)))
        except Exception as error:
            # Do not hide the cancellation, which ends the worker, by this error.
            log.warning("what became of %s cannot be recorded: %s", _name(delivery), error)

    async def _renew(self) -> None:
        """Keep the leases of what is in flight, and end what was overtaken."""
        if not self._running:
            return
        held = dict(self._running)
        async with self._db.single() as tx:
            kept = await store.deliveries.renew(tx, {delivery_id for delivery_id, _ in held}, self._lease)
        for delivery, task in held.values():
            if kept.get(delivery.id, 0) > delivery.attempts and not task.done():
                log.warning("another attempt of %s has begun", _name(delivery))
                task.cancel()

    async def _sweep(self) -> None:
        """Settle deliveries whose worker died while it handed them over: nobody can know what became of them."""
        async with self._db.transaction() as tx:
            for delivery in await store.deliveries.lock_abandoned(tx, self._channels, _ABANDONED_AT_A_TIME):
                if (delivery.id, delivery.attempts) in self._running:
                    continue  # We were held up, and are still at it.
                outcome, now = self._unknown(delivery, "WORKER_DIED"), self._clock()
                await store.attempts.settle(tx, [self._settlement(delivery, outcome, now, died=True)], now)
                log.warning("the worker that was sending %s has died; it is %s", _name(delivery), outcome.state)


def _name(delivery: Delivery) -> str:
    return f"{delivery.kind} by {delivery.channel} of event {delivery.event_id}"


async def _uninterrupted(recording: Coroutine[Any, Any, None]) -> None:
    """Wait for the recording even when cancelled, then re-raise: an interrupted one would look like a crash."""
    task = asyncio.ensure_future(recording)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
