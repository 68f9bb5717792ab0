"""Digests: one mail a day or a week instead of many. A digest is a delivery of its own, for which others wait."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid5

from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.events.envelope import Event, Undecodable, from_bytes
from kit.events.inbox import Permanent
from kit.runtime.clock import Clock

from .. import store
from ..model import Kind
from ..model.deliveries import Channel, Delivery, DeliveryState, NewDelivery, Outcome
from ..model.notices import DIGEST, LIFE, NOTICES
from ..model.preferences import Action, Preferences, Reason, defaults_of, judge, next_digest
from ..store.deliveries import Insertion
from ..store.digests import DigestProgress, WaitingNotice
from .channels import Undeliverable
from .facts import FactReader, Reading

_MOST = 50
"""Notices of which a digest tells one by one; of more it tells the number."""
_EVENT = "Digest"
"""What stands for the type of an event in the rows of digests, which no event asks for."""
_LATE = timedelta(minutes=5)


class Digests:
    """Puts deliveries into digests, and reads what a digest has to say."""

    def __init__(self, db: Database, facts: FactReader, clock: Clock) -> None:
        self._db = db
        self._facts = facts
        self._clock = clock

    async def put(
        self, tx: Transaction, delivery: Delivery, preferences: Preferences, reason: Reason, due_at: datetime
    ) -> datetime:
        """Have the delivery wait for the person's digest that is due then, or for the first later one that nobody has begun.

        Returns when that one is due.
        """
        while not (digest := await self._lock(tx, preferences.user_id, reason, due_at)).is_open:
            due_at = next_digest(reason, preferences, due_at)
        expires_at = due_at + LIFE + _LATE
        await store.digests.put(tx, digest.digest_id, delivery.event_id, preferences.user_id, expires_at=expires_at)
        return due_at

    async def read(self, digest: Delivery) -> Reading:
        """What the digest has to say: `notices`, oldest first, and the number of those that are left out, `more`.

        Notices that the person does not want any more go their own way. Raises Undeliverable if nothing is left.
        """
        person, now = digest.user_id, self._clock()
        if person is None:
            raise Undeliverable(Outcome(DeliveryState.FAILED, "EVENT_UNREADABLE"))
        async with self._db.transaction() as tx:
            await store.preferences.lock(tx, person)
            preferences = await store.preferences.find(tx, person)
            counts = await store.digests.kinds(tx, digest.event_id)
            unwanted = {kind for kind in counts if not _is_wanted(kind, preferences, now)}
            if unwanted:
                await store.digests.release(tx, digest.event_id, unwanted, now)
            waiting = await store.digests.first(tx, digest.event_id, _MOST)
        readings = [reading for each in waiting if (reading := self._reading(each))]
        if not readings:
            raise Undeliverable(Outcome(DeliveryState.SUPPRESSED, "DIGEST_EMPTY"))
        total = sum(count for kind, count in counts.items() if kind not in unwanted)
        facts = {
            "notices": [(each.notice.kind, each.facts) for each in readings],
            "more": total - len(readings),
        }
        return Reading(DIGEST, facts, person, None, None)

    def _reading(self, waiting: WaitingNotice) -> Reading | None:
        try:
            return self._facts.read(from_bytes(waiting.event))
        except (Undecodable, Permanent):
            return None

    async def _lock(self, tx: Transaction, user_id: UUID, reason: Reason, due_at: datetime) -> DigestProgress:
        """Lock the person's digest that is due then, which is inserted if there is none."""
        digest_id, now = uuid5(user_id, due_at.isoformat()), self._clock()
        new = NewDelivery(
            id=uuid7(),
            event_id=digest_id,
            channel=Channel.EMAIL,
            target="",
            user_id=user_id,
            kind=Kind.DIGEST,
            state=DeliveryState.QUEUED,
            reason=reason,
            attempts=0,
            unknowns=0,
            urgent=False,
            event=Event(digest_id, _EVENT, str(user_id), now, traceparent="", payload=b"").to_bytes(),
            due_at=due_at,
            expires_at=due_at + LIFE,
            created_at=now,
        )
        await store.deliveries.insert_new(tx, [Insertion(new, DeliveryState.QUEUED, reason)], now)
        return await store.digests.lock(tx, digest_id)


def _is_wanted(kind: str, preferences: Preferences, now: datetime) -> bool:
    notice = NOTICES.get(kind)
    return (
        notice is not None and judge(defaults_of(notice), Channel.EMAIL, preferences, now).action is not Action.SUPPRESS
    )
