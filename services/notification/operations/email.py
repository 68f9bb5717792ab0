"""The channel of mail: one mail to one person for each delivery."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

from kit.runtime import tracing
from kit.runtime.clock import Clock

from ..adapters.smtp import Handover, Smtp
from ..model import Recipient
from ..model.deliveries import Delivery, DeliveryState, Outcome
from ..model.rendering import Sender, Unrenderable, render
from ..model.writing import write
from .channels import HandOver, Undeliverable
from .facts import Reading

FindAccount = Callable[[UUID], Awaitable[Recipient | None]]
"""The address and name of an account; None if it was deleted. Raises MeshError."""


class EmailChannel:
    """Asks for the address at the moment of sending, so that no address is stored."""

    def __init__(self, smtp: Smtp, find_account: FindAccount, clock: Clock, *, sender: str, public_url: str) -> None:
        self._smtp = smtp
        self._find_account = find_account
        self._clock = clock
        self._sender = Sender(sender)
        self._public_url = public_url

    async def prepare(self, delivery: Delivery, reading: Reading) -> HandOver:
        """Find the recipient and render the mail. Here an address on the list of suppressions is to be held back."""
        recipient = await self._recipient(reading)
        now = self._clock()
        facts = {**reading.facts, "first_name": recipient.first_name}
        letter = write(reading.notice.kind, facts, public_url=self._public_url, now=now)
        try:
            mail = render(
                letter,
                self._sender,
                recipient.email,
                event_id=delivery.event_id,
                sent_at=now,
                trace_id=tracing.trace_id(),
            )
        except Unrenderable as unrenderable:
            raise Undeliverable(Outcome(DeliveryState.FAILED, "NOT_RENDERABLE", str(unrenderable))) from None

        async def hand_over(handover: Handover) -> None:
            await self._smtp.send(self._sender.address, recipient.email, mail, handover)

        return hand_over

    async def _recipient(self, reading: Reading) -> Recipient:
        if reading.address is not None:
            return Recipient(reading.address, reading.facts.get("first_name", ""), reading.person)
        recipient = await self._find_account(reading.told)
        if recipient is None:
            raise Undeliverable(Outcome(DeliveryState.SUPPRESSED, "ACCOUNT_GONE"))
        return recipient
