"""Deliveries as administrators see them: listed, explained, and settled where nobody but a person can know what became of them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from kit.data.database import Database, Transaction
from kit.data.paging import DEFAULT_SIZE, Page, Pages
from kit.errors import InvalidArgument, Violation
from kit.identity.caller import Caller
from kit.identity.signing import Signer
from kit.runtime.clock import Clock

from .. import store
from ..errors import DeliveryNotFound, DeliveryNotResendable, DeliveryNotUnknown
from ..model.deliveries import WEBHOOKS, DeliveryState
from ..model.records import DeliveryQuery, DeliveryRecord, Explanation, StepRecord, final_decisions

log = logging.getLogger(__name__)


class Deliveries:
    """Lists and explains deliveries, and settles those of unknown outcome."""

    def __init__(self, db: Database, signer: Signer, clock: Clock) -> None:
        self._db = db
        self._signer = signer
        self._pages = Pages(signer)
        self._clock = clock

    async def list(self, query: DeliveryQuery, page_size: int, page_token: str) -> Page[DeliveryRecord]:
        """Deliveries, newest first. Raises InvalidArgument for a foreign page token."""
        request = self._pages.request(str(query), page_size, page_token)
        async with self._db.transaction() as tx:
            rows = await store.records.page(tx, query, request)
        return self._pages.page(str(query), request.size, rows)

    async def explain(self, query: DeliveryQuery, page_size: int, page_token: str) -> tuple[Sequence[Explanation], str]:
        """What was decided about the events of the query, newest first, and the next page's token.

        Raises InvalidArgument for a foreign page token.
        """
        size, purpose = page_size or DEFAULT_SIZE, f"explain:{query}"
        after = self._position(purpose, page_token) if page_token else None
        async with self._db.transaction() as tx:
            found = await store.records.explained_events(tx, query, size, after)
            events = dict(found[:size])
            steps = [*await store.mails.steps(tx, events), *await store.records.steps(tx, events)]
            deliveries = await store.records.of_events(tx, events)
        explanations = _explanations(events, steps, deliveries)
        if len(found) <= size:
            return explanations, ""
        last = explanations[-1]
        return explanations, self._signer.sign(purpose, f"{last.begun_at.isoformat()} {last.event_id}")

    async def resend(self, administrator: Caller, delivery_id: UUID, reason: str) -> DeliveryRecord:
        """Queue a mail of unknown outcome again, or a message to a webhook that has ended without arriving.

        Raises DeliveryNotFound, DeliveryNotUnknown, and DeliveryNotResendable when its time is over.
        """
        now = self._clock()
        async with self._db.transaction() as tx:
            delivery = await self._locked(tx, delivery_id)
            if delivery.unfinished or delivery.state is DeliveryState.SENT:
                return delivery
            if delivery.state is not DeliveryState.UNKNOWN and delivery.channel not in WEBHOOKS:
                raise DeliveryNotUnknown(state=delivery.state)
            why = f"by {administrator.user_id}: {reason}"
            if delivery.expires_at <= now or not await store.records.resend(tx, delivery, now, why=why):
                raise DeliveryNotResendable
            resent = await self._locked(tx, delivery_id)
        _log("sent again", resent, administrator, reason)
        return resent

    async def settle(
        self, administrator: Caller, delivery_id: UUID, state: DeliveryState, reason: str
    ) -> DeliveryRecord:
        """Record that a delivery of unknown outcome was SENT or FAILED. Raises DeliveryNotFound and DeliveryNotUnknown."""
        async with self._db.transaction() as tx:
            delivery = await self._locked(tx, delivery_id)
            if delivery.state is state:
                return delivery
            if delivery.state is not DeliveryState.UNKNOWN:
                raise DeliveryNotUnknown(state=delivery.state)
            await store.records.settle(tx, delivery, state, self._clock(), actor=administrator.user_id, reason=reason)
            settled = await self._locked(tx, delivery_id)
        _log(f"settled as {state}", settled, administrator, reason)
        return settled

    @staticmethod
    async def _locked(tx: Transaction, delivery_id: UUID) -> DeliveryRecord:
        delivery = await store.records.lock(tx, delivery_id)
        if delivery is None:
            raise DeliveryNotFound
        return delivery

    def _position(self, purpose: str, page_token: str) -> store.records.Position:
        position = self._signer.open(purpose, page_token)
        if position is None:
            raise InvalidArgument(
                [Violation("page_token", "is not a token that this list handed out", "PAGE_TOKEN_INVALID")]
            )
        begun_at, _, event_id = position.partition(" ")
        return datetime.fromisoformat(begun_at), UUID(event_id)


def _explanations(
    events: dict[UUID, datetime],
    steps: Sequence[tuple[UUID, StepRecord]],
    deliveries: Sequence[DeliveryRecord],
) -> Sequence[Explanation]:
    steps_of: defaultdict[UUID, list[StepRecord]] = defaultdict(list)
    for event_id, step in steps:
        steps_of[event_id].append(step)
    deliveries_of: defaultdict[UUID, list[DeliveryRecord]] = defaultdict(list)
    for delivery in deliveries:
        deliveries_of[delivery.event_id].append(delivery)
    return [
        Explanation(
            event_id=event_id,
            user_id=next((step.user_id for step in steps_of[event_id] if step.user_id), None),
            begun_at=begun_at,
            steps=tuple(steps_of[event_id]),
            final=final_decisions(steps_of[event_id], deliveries_of[event_id]),
            deliveries=tuple(deliveries_of[event_id]),
        )
        for event_id, begun_at in events.items()
    ]


def _log(done: str, delivery: DeliveryRecord, administrator: Caller, reason: str) -> None:
    log.warning(
        'a delivery that had ended, %s by %s of event %s, is %s because "%s"',
        delivery.kind,
        delivery.channel,
        delivery.event_id,
        done,
        reason,
        extra={"user.id": str(administrator.user_id)},
    )
