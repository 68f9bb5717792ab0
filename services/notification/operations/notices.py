"""Decides what becomes of an event: the notification inside the application, and a delivery on each other channel.

A decision is one transaction, calls nobody and sends nothing. What it decided and why stands in `delivery_steps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.events import erasure
from kit.events.envelope import Event
from kit.events.inbox_store import mark_processed
from kit.runtime.clock import Clock

from .. import store
from ..model.deliveries import Channel, Decision, DeliveryState, NewDelivery, Plan, Step
from ..model.letters import Letters
from ..model.notices import LIFE, Notice
from ..model.notifications import Target, TargetType
from ..model.preferences import Action, defaults_of, judge
from .delivering import Delivering
from .facts import FactReader, Reading, person_in
from .notifications import Notifier

_FORMER_VERSION = "FORMER_VERSION"
"""Detail of steps about a mail that the version before `deliveries` sent or began to send."""


class Notices:
    """Decides events, each once: a decision that is repeated changes nothing."""

    def __init__(self, db: Database, facts: FactReader, letters: Letters, delivering: Delivering, clock: Clock) -> None:
        self._db = db
        self._facts = facts
        self._letters = letters
        self._delivering = delivering
        self._clock = clock
        self._notifier = Notifier(clock)

    async def decide(self, event: Event) -> None:
        """Decide what becomes of the event. Raises Undecodable or Permanent if nothing can be made of it."""
        reading = self._facts.read(event)
        if reading is None:
            return
        claimed: list[NewDelivery] = []
        try:
            async with self._db.transaction() as tx:
                await self._decide(tx, event, reading, claimed)
        except BaseException:
            for _ in claimed:
                self._delivering.release()
            raise
        for delivery in claimed:
            await self._delivering.take_up(delivery.attempt())

    async def forgotten(self, tx: Transaction, event: Event) -> bool:
        """Whether the event is a notice to an erased person, of which no dead letter is kept.

        UserDeleted is no notice: to skip it for erased people would skip the erasure itself.
        """
        person = person_in(event)
        return person is not None and await erasure.is_erased(tx, person)

    async def _decide(self, tx: Transaction, event: Event, reading: Reading, claimed: list[NewDelivery]) -> None:
        """Decide in the transaction. Adds to `claimed` what this worker has a place for."""
        now = self._clock()
        if reading.person and await erasure.is_erased(tx, reading.person):
            return
        first = await mark_processed(tx, event)
        if reading.address == "":
            return
        for channel in sorted(reading.notice.channels):
            if channel is Channel.IN_APP:
                await self._add(tx, event, reading, now, first=first)
            elif channel is Channel.WEBHOOK:
                if first:
                    await self._queue_webhooks(tx, event, reading, now)
            else:
                claimed += await self._queue(tx, event, reading, channel, now)

    def _plan(self, _notice: Notice, _person: UUID | None, _channel: Channel, now: datetime) -> Plan:
        """What becomes of the notice on the channel and when: the place where a person's wishes are to be heard."""
        return Plan(DeliveryState.QUEUED, now)

    async def _add(self, tx: Transaction, event: Event, reading: Reading, now: datetime, *, first: bool) -> None:
        """Add the notification inside the application, if this is the first decision about the event."""
        notice, person = reading.notice, reading.told
        if first:
            preferences = await store.preferences.find(tx, person)
            verdict = judge(defaults_of(notice), Channel.IN_APP, preferences, now)
            if verdict.action is Action.SUPPRESS:
                step = Step(event.id, Channel.IN_APP, person, now, DeliveryState.SUPPRESSED, verdict.reason)
                await store.deliveries.add_step(tx, step)
                return
            text = self._letters.short(notice.kind, reading.facts, now=now, language=preferences.language)
            target = Target(notice.target, reading.about) if reading.about else Target(TargetType.ACCOUNT, person)
            await self._notifier.notify(
                tx, person, notice.kind, text, target, actor=reading.actor, grouped=notice.grouped
            )
        decision = Decision.ADDED if first else Decision.DEDUPLICATED
        await store.deliveries.add_step(tx, Step(event.id, Channel.IN_APP, person, now, decision))

    async def _queue_webhooks(self, tx: Transaction, event: Event, reading: Reading, now: datetime) -> None:
        """Write the event's delivery to each of the person's webhooks.

        Only the first decision does: a webhook that is registered before a replay is not told what happened before it.
        """
        due = False
        for webhook in await store.webhooks.of_person(tx, reading.told):
            plan = self._plan(reading.notice, reading.person, Channel.WEBHOOK, now)
            if webhook.disabled:
                plan = Plan(DeliveryState.SUPPRESSED, now, "WEBHOOK_DISABLED")
            elif not webhook.wants(reading.notice.kind):
                plan = Plan(DeliveryState.SUPPRESSED, now, "KIND_NOT_WANTED")
            delivery = _new_delivery(event, reading, Channel.WEBHOOK, plan, now, target=str(webhook.id))
            await store.deliveries.insert_new(tx, delivery, decision=plan.state, detail=plan.reason)
            due |= plan.state is DeliveryState.QUEUED
        if due:
            await store.deliveries.notify_workers(tx, store.deliveries.WAKE_FOR_WEBHOOKS)

    async def _queue(
        self, tx: Transaction, event: Event, reading: Reading, channel: Channel, now: datetime
    ) -> Sequence[NewDelivery]:
        """Write the event's delivery on the channel, unless there is one. Returns it if this worker has claimed it."""
        notice, plan, detail = reading.notice, self._plan(reading.notice, reading.person, channel, now), ""
        repeated = Step(event.id, channel, reading.person, now, Decision.DEDUPLICATED)
        former = await store.mails.lock(tx, event.id) if channel is Channel.EMAIL else None
        if former and former.final:
            await store.deliveries.add_step(tx, replace(repeated, detail=_FORMER_VERSION))
            return ()
        if former:
            await store.mails.remove(tx, event.id)
            detail = _FORMER_VERSION
            if former.unknown and not notice.may_come_twice:
                plan = Plan(DeliveryState.UNKNOWN, now, _FORMER_VERSION)
        delivery = _new_delivery(event, reading, channel, plan, now)
        if former:
            delivery = replace(delivery, attempts=former.attempts, unknowns=int(former.unknown))
        due = plan.state is DeliveryState.QUEUED and plan.due_at <= now
        if not (due and self._delivering.reserve()):
            if not await store.deliveries.insert_new(tx, delivery, decision=plan.state, detail=plan.reason or detail):
                await store.deliveries.add_step(tx, repeated)
            elif due:
                await store.deliveries.notify_workers(tx)
            return ()
        delivery = delivery.claimed()
        written = False
        try:
            lease = self._delivering.lease
            written = await store.deliveries.insert_new(tx, delivery, decision=plan.state, detail=detail, lease=lease)
            if not written:
                await store.deliveries.add_step(tx, repeated)
        finally:
            if not written:
                self._delivering.release()
        return (delivery,) if written else ()


def _new_delivery(
    event: Event, reading: Reading, channel: Channel, plan: Plan, now: datetime, *, target: str = ""
) -> NewDelivery:
    notice = reading.notice
    return NewDelivery(
        id=uuid7(),
        event_id=event.id,
        channel=channel,
        target=target,
        user_id=reading.person,
        kind=notice.kind,
        state=plan.state,
        reason=plan.reason,
        attempts=0,
        unknowns=0,
        urgent=notice.security,
        event=event.to_bytes() if plan.state is DeliveryState.QUEUED else None,
        due_at=plan.due_at,
        expires_at=reading.expires_at or now + LIFE,
        created_at=now,
        series=reading.series,
        occurred_at=event.occurred_at if reading.series else None,
    )
