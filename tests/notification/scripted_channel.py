"""A channel that does what the test says, at every step of a delivery."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID

from services.notification.adapters.smtp import Handover, Stage
from services.notification.model.deliveries import Delivery
from services.notification.operations.channels import Prepared
from services.notification.operations.facts import Reading

Act = Callable[[Delivery], Awaitable[None]]


async def nothing(_delivery: Delivery) -> None:
    """The step succeeds."""


@dataclass
class ScriptedChannel:
    """Counts what it takes, by event. Each step is an act of the test, which may raise or wait."""

    prepares: Act = nothing
    connects: Act = nothing
    """Before the end of the content is sent."""
    answers: Act = nothing
    """After it. What raises here has been taken all the same, as nobody knows."""
    taken: Counter[UUID] = field(default_factory=Counter)

    async def prepare(self, delivery: Delivery, _reading: Reading) -> Prepared:
        await self.prepares(delivery)

        async def hand_over(handover: Handover) -> None:
            await self.connects(delivery)
            handover.stage = Stage.HANDED_OVER
            self.taken[delivery.event_id] += 1
            await self.answers(delivery)
            handover.stage = Stage.TAKEN

        return Prepared(hand_over)
