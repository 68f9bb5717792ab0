"""The list inside the application as a channel: a notice stands in it with the transaction that decided it."""

from __future__ import annotations

from uuid import UUID

from kit.data.database import Transaction
from kit.runtime.clock import Clock

from .. import store
from ..model.deliveries import Channel, Decision, DeliveryState, Step
from ..model.letters import Letters
from ..model.notifications import Target, TargetType
from ..model.preferences import Action, defaults_of, judge
from .facts import Reading
from .notifications import Notifier


class InApp:
    """Tells people inside the application, in the transactions of others."""

    def __init__(self, letters: Letters, clock: Clock) -> None:
        self._letters = letters
        self._clock = clock
        self._notifier = Notifier(clock)

    async def tell(self, tx: Transaction, event_id: UUID, reading: Reading) -> None:
        """Add the notification, unless the person has turned its kind off, and record which.

        The caller has asked `erasure.is_erased` for the person in this transaction.
        """
        notice, person, now = reading.notice, reading.told, self._clock()
        preferences = await store.preferences.find(tx, person)
        verdict = judge(defaults_of(notice), Channel.IN_APP, preferences, now)
        if verdict.action is Action.SUPPRESS:
            step = Step(event_id, Channel.IN_APP, person, now, DeliveryState.SUPPRESSED, verdict.reason)
            await store.deliveries.add_step(tx, step)
            return
        text = self._letters.short(
            notice.kind, reading.facts, now=now, language=preferences.language, time_zone=preferences.time_zone
        )
        target = Target(notice.target, reading.about) if reading.about else Target(TargetType.ACCOUNT, person)
        await self._notifier.notify(tx, person, notice.kind, text, target, actor=reading.actor, grouped=notice.grouped)
        await store.deliveries.add_step(tx, Step(event_id, Channel.IN_APP, person, now, Decision.ADDED))
