"""Holds a delivery to what its person prefers at the moment of sending, however long ago it was decided.

A verdict by which a delivery waits is recorded in the transaction that read the preferences, and that excludes their change. So a
change finds whatever waits by the former ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from kit.data.database import Database, Transaction
from kit.events import erasure
from kit.runtime.clock import Clock

from .. import store
from ..model.deliveries import UNFINISHED, Channel, Decision, Delivery, DeliveryState, Outcome
from ..model.notices import Notice
from ..model.preferences import INTERRUPTING, Action, Preferences, Throttle, Verdict, defaults_of, judge
from ..store.attempts import Settlement
from ..store.digests import DigestProgress
from .digests import Digests

_AFTER_DIGEST = timedelta(minutes=1)
"""How long after a digest was due its notices look what became of it."""
_DIGEST_CHECK = timedelta(minutes=5)
"""Pause between two looks at a digest that is late."""
_COUNTED = timedelta(days=1)
"""As far back as the throttles look."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether an attempt goes on."""

    goes_on: bool
    preferences: Preferences | None = None
    """The person's, of an attempt that goes on; None if it is made to an address alone."""
    outcome: Outcome | None = None
    """What is to be recorded of an attempt that does not go on; None: that is done."""


class PreferenceGate:
    """Judges each attempt of a delivery to a person."""

    def __init__(self, db: Database, digests: Digests, clock: Clock, throttles: Sequence[Throttle]) -> None:
        self._db = db
        self._digests = digests
        self._clock = clock
        self._throttles = throttles

    async def judge(self, delivery: Delivery, notice: Notice) -> Judgement:
        user_id = delivery.user_id
        if user_id is None:
            return Judgement(goes_on=True)
        if delivery.channel == Channel.SYSTEM_WEBHOOK:
            return await self._judge_for_the_installation(user_id)
        if notice.security:
            async with self._db.single() as tx:
                return Judgement(goes_on=True, preferences=await store.preferences.find(tx, user_id))
        now = self._clock()
        async with self._db.transaction() as tx:
            if await erasure.is_erased(tx, user_id):
                return _ended(Outcome(DeliveryState.SUPPRESSED, "ACCOUNT_GONE"))
            await store.preferences.lock(tx, user_id)
            is_mail = delivery.channel == Channel.EMAIL
            digest = await store.digests.lock_digest_of(tx, delivery.event_id) if is_mail else None
            if digest and not digest.is_open:
                return await self._follow(tx, delivery, digest, now)
            if digest:
                await store.digests.remove(tx, delivery.event_id)
            preferences = await store.preferences.find(tx, user_id)
            return await self._judge(tx, delivery, notice, preferences, now)

    async def _judge_for_the_installation(self, user_id: UUID) -> Judgement:
        """What administrators' programs are told does not reach the person, whose preferences hold for what does."""
        async with self._db.transaction() as tx:
            gone = await erasure.is_erased(tx, user_id)
        return _ended(Outcome(DeliveryState.SUPPRESSED, "ACCOUNT_GONE")) if gone else Judgement(goes_on=True)

    async def preferences_of(self, reader: UUID) -> Preferences:
        """Those of somebody who reads what is told to an address alone."""
        async with self._db.single() as tx:
            return await store.preferences.find(tx, reader)

    async def _judge(
        self, tx: Transaction, delivery: Delivery, notice: Notice, preferences: Preferences, now: datetime
    ) -> Judgement:
        user_id, channel = preferences.user_id, Channel(delivery.channel)
        sent = await store.counted_mails.find(tx, user_id, delivery.event_id)
        verdict = judge(defaults_of(notice), channel, preferences, now, sent=sent, throttles=self._throttles)
        match verdict:
            case Verdict(Action.SUPPRESS, reason):
                return _ended(Outcome(DeliveryState.SUPPRESSED, reason))
            case Verdict(Action.HOLD, reason, datetime() as until):
                return await self._wait(tx, delivery, reason, until, now)
            case Verdict(Action.DIGEST, reason, datetime() as due_at):
                due_at = await self._digests.put(tx, delivery, preferences, reason, due_at)
                return await self._wait(tx, delivery, reason, due_at + _AFTER_DIGEST, now)
        if channel in INTERRUPTING:
            await store.counted_mails.count(tx, user_id, delivery.event_id, now, forget_before=now - _COUNTED)
        return Judgement(goes_on=True, preferences=preferences)

    async def _follow(self, tx: Transaction, delivery: Delivery, digest: DigestProgress, now: datetime) -> Judgement:
        """What became of a digest has become of the notices in it."""
        if digest.state in UNFINISHED:
            until = max(now + _DIGEST_CHECK, digest.due_at + _AFTER_DIGEST)
            return await self._wait(tx, delivery, delivery.reason, until, now)
        # Here and not by the caller: between the two, a crash would put the notice into the next digest too.
        await store.digests.remove(tx, delivery.event_id)
        reason = digest.reason or delivery.reason
        became = Settlement(delivery, digest.state, reason, digest.answer, due_at=now, decision=digest.state)
        await store.attempts.settle(tx, [became], now)
        return Judgement(goes_on=False)

    async def _wait(
        self, tx: Transaction, delivery: Delivery, reason: str, until: datetime, now: datetime
    ) -> Judgement:
        decision = "" if reason == delivery.reason else Decision.HELD
        waits = Settlement(delivery, DeliveryState.QUEUED, reason, answer="", due_at=until, decision=decision)
        await store.attempts.settle(tx, [waits], now)
        return Judgement(goes_on=False)


def _ended(outcome: Outcome) -> Judgement:
    return Judgement(goes_on=False, outcome=outcome)
