"""Decides what becomes of an event: the notification inside the application, and a delivery on each other channel.

A transaction decides about all events that the inbox hands over together. It calls nobody and sends nothing. What it decided and
why stands in `delivery_steps`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.events import erasure
from kit.events.envelope import Event
from kit.events.inbox_store import mark_all_processed
from kit.runtime.clock import Clock

from .. import store
from ..model.deliveries import WEBHOOKS, Channel, Decision, DeliveryState, NewDelivery, Plan, Step
from ..model.letters import Letters
from ..model.notices import LIFE
from ..store.deliveries import Insertion
from ..store.mails import FORMER_VERSION, FormerMail
from .delivering import Delivering
from .facts import FactReader, Reading, person_in
from .in_app import InApp


@dataclass(frozen=True, slots=True)
class _Question:
    """An event about which is to be decided."""

    event: Event
    reading: Reading

    @property
    def people(self) -> Iterator[UUID]:
        """Those who may be erased."""
        if self.reading.person:
            yield self.reading.person
        if self.reading.actor:
            yield self.reading.actor.id


class Notices:
    """Decides events, each once: a decision that is repeated changes nothing."""

    def __init__(self, db: Database, facts: FactReader, letters: Letters, delivering: Delivering, clock: Clock) -> None:
        self._db = db
        self._facts = facts
        self._delivering = delivering
        self._clock = clock
        self._in_app = InApp(letters, clock)

    async def decide(self, events: Sequence[Event]) -> None:
        """Decide about the events in one transaction, and take up what this worker has claimed of their deliveries.

        Raises Undecodable or Permanent if nothing can be made of one of them, and has decided nothing then.
        """
        readings = [(event, self._facts.read(event)) for event in events]
        questions = [_Question(event, reading) for event, reading in readings if reading is not None]
        if not questions:
            return
        claimed: list[NewDelivery] = []
        try:
            async with self._db.transaction() as tx:
                await self._decide(tx, questions, claimed)
        except BaseException:
            for _ in claimed:
                self._delivering.release()
            raise
        await self._delivering.take_up([delivery.attempt() for delivery in claimed])

    async def forgotten(self, tx: Transaction, event: Event) -> bool:
        """Whether the event is a notice to an erased person, of which no dead letter is kept.

        UserDeleted is no notice: to skip it for erased people would skip the erasure itself.
        """
        person = person_in(event)
        return person is not None and await erasure.is_erased(tx, person)

    async def _decide(self, tx: Transaction, questions: Sequence[_Question], claimed: list[NewDelivery]) -> None:
        """Decide in the transaction. Adds to `claimed` what this worker has a place for.

        Locks are taken in one order: of erasures, of events, of deliveries, and of people's lists. So transactions about the same
        events or people wait for each other, and never in a circle.
        """
        now = self._clock()
        erased = await erasure.erased_among(tx, {person for each in questions for person in each.people})
        asked = [each for each in questions if each.reading.person not in erased]
        if not asked:
            return
        unseen = await mark_all_processed(tx, (each.event for each in asked))
        mails: list[_Question] = []
        told: list[tuple[_Question, bool]] = []
        for each in sorted(asked, key=lambda each: str(each.reading.person)):
            if each.reading.address == "":
                continue
            if Channel.EMAIL in each.reading.notice.channels:
                mails.append(each)
            told.append((each, each.event.id in unseen))
        if mails:
            await self._queue(tx, mails, now, claimed)
        for each, first in told:
            if Channel.IN_APP in each.reading.notice.channels:
                await self._add(tx, each.event, each.reading, now, first=first)
            if first and Channel.WEBHOOK in each.reading.notice.channels:
                await self._queue_webhooks(tx, each.event, each.reading, now)
        if repeated := [each.event.id for each, first in told if not first]:
            await store.deliveries.add_repeated(tx, repeated, WEBHOOKS, now)

    async def _add(self, tx: Transaction, event: Event, reading: Reading, now: datetime, *, first: bool) -> None:
        """Add the notification inside the application, if this is the first decision about the event."""
        if first:
            await self._in_app.tell(tx, event.id, reading)
        else:
            repeated = Step(event.id, Channel.IN_APP, reading.told, now, Decision.DEDUPLICATED)
            await store.deliveries.add_step(tx, repeated)

    async def _queue_webhooks(self, tx: Transaction, event: Event, reading: Reading, now: datetime) -> None:
        """Write the event's delivery to each of the person's webhooks, and to each of the installation's.

        Only the first decision does: a webhook that is registered before a replay is not told what happened before it.
        """
        insertions: list[Insertion] = []
        for webhook in await store.webhooks.for_person(tx, reading.told):
            plan = Plan(DeliveryState.QUEUED)
            if webhook.disabled:
                plan = Plan(DeliveryState.SUPPRESSED, store.deliveries.WEBHOOK_DISABLED)
            elif not webhook.wants(reading.notice.kind):
                plan = Plan(DeliveryState.SUPPRESSED, "KIND_NOT_WANTED")
            delivery = _new_delivery(event, reading, webhook.channel, plan, now, target=str(webhook.id))
            insertions.append(Insertion(delivery, plan.state, plan.reason))
        if insertions:
            await store.deliveries.insert_new(tx, insertions, now)
        if any(each.due_for_others for each in insertions):
            await store.deliveries.notify_workers(tx, Channel.WEBHOOK)

    async def _queue(
        self, tx: Transaction, questions: Sequence[_Question], now: datetime, claimed: list[NewDelivery]
    ) -> None:
        """Write the mail of each event, unless there is one. Adds to `claimed` those that this worker has claimed."""
        formers = await store.mails.lock(tx, {each.event.id for each in questions})
        insertions: list[Insertion] = []
        steps: list[Step] = []
        for each in questions:
            former = formers.get(each.event.id)
            if former and former.final:
                repeated = Step(each.event.id, Channel.EMAIL, each.reading.person, now, Decision.DEDUPLICATED)
                steps.append(replace(repeated, detail=FORMER_VERSION))
                continue
            if former:
                await store.mails.remove(tx, each.event.id)
            insertions.append(self._insertion(each, former, now, claimed))
        written: Collection[UUID] = ()
        try:
            written = await store.deliveries.insert_new(tx, insertions, now) if insertions else ()
        finally:
            for delivery in [each for each in claimed if each.id not in written]:
                claimed.remove(delivery)
                self._delivering.release()
        there = [new.delivery for new in insertions if new.delivery.id not in written]
        steps += [Step(of.event_id, of.channel, of.user_id, now, Decision.DEDUPLICATED) for of in there]
        await store.deliveries.add_step(tx, *steps)
        if any(new.delivery.id in written and new.due_for_others for new in insertions):
            await store.deliveries.notify_workers(tx)

    def _insertion(
        self, question: _Question, former: FormerMail | None, now: datetime, claimed: list[NewDelivery]
    ) -> Insertion:
        """The mail of an event, claimed if it is due and this worker has a place for it."""
        reading, detail = question.reading, FORMER_VERSION if former else ""
        plan = Plan(DeliveryState.QUEUED)
        if former and former.unknown and not reading.notice.may_come_twice:
            plan = Plan(DeliveryState.UNKNOWN, FORMER_VERSION)
        delivery = _new_delivery(question.event, reading, Channel.EMAIL, plan, now)
        if former:
            delivery = replace(delivery, attempts=former.attempts, unknowns=int(former.unknown))
        detail = plan.reason or detail
        due = plan.state is DeliveryState.QUEUED
        if not (due and self._delivering.reserve()):
            return Insertion(delivery, plan.state, detail)
        delivery = delivery.claimed()
        claimed.append(delivery)
        return Insertion(delivery, plan.state, detail, lease=self._delivering.lease)


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
        due_at=now,
        expires_at=reading.expires_at or now + LIFE,
        created_at=now,
        series=reading.series,
        occurred_at=event.occurred_at if reading.series else None,
    )
