"""The channel of mail: one mail to one person for each delivery."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

from kit.runtime import tracing
from kit.runtime.clock import Clock

from ..adapters.smtp import Handover, Smtp
from ..model import Recipient
from ..model.deliveries import Delivery, DeliveryState, Outcome
from ..model.letters import Letters
from ..model.rendering import Sender, Unrenderable, render
from ..model.unsubscribing import Subscription, UnsubscribeLinks
from .channels import HandOver, Undeliverable
from .facts import Reading

_SLOW_DOMAIN_PAUSE = timedelta(seconds=15)

FindAccount = Callable[[UUID], Awaitable[Recipient | None]]
"""The address and name of an account; None if it was deleted. Raises MeshError."""


FindPage = Callable[[UUID], Awaitable[str | None]]
"""The path of a story's page; empty if its owner took the link back, None if the story is gone. Raises MeshError."""


class EmailChannel:
    """Asks for the address, and for the page of a story, at the moment of sending, so that neither is stored."""

    def __init__(
        self,
        smtp: Smtp,
        find_account: FindAccount,
        find_page: FindPage,
        letters: Letters,
        clock: Clock,
        *,
        sender: str,
        public_url: str,
        links: UnsubscribeLinks,
        most_to_a_domain: int,
    ) -> None:
        """`most_to_a_domain`: mails to one domain that are handed over at a time. More than a worker has places, so that only a
        slow domain has as many, which are then not in the way of others.
        """
        self._smtp = smtp
        self._find_account = find_account
        self._find_page = find_page
        self._letters = letters
        self._clock = clock
        self._sender = Sender(sender)
        self._public_url = public_url
        self._links = links
        self._most_to_a_domain = most_to_a_domain
        self._handing_over: Counter[str] = Counter()

    async def prepare(self, delivery: Delivery, reading: Reading) -> HandOver:
        """Find the recipient and render the mail. Here an address on the list of suppressions is to be held back."""
        recipient = await self._recipient(reading)
        now = self._clock()
        facts = {**reading.facts, "first_name": recipient.first_name, "page_path": await self._page_path(reading)}
        unsubscribe_url = self._unsubscribe_url(reading)
        letter = self._letters.write(
            reading.notice.kind, facts, now=now, language=reading.language, unsubscribe_url=unsubscribe_url
        )
        try:
            mail = render(
                letter,
                self._sender,
                recipient.email,
                event_id=delivery.event_id,
                sent_at=now,
                trace_id=tracing.trace_id(),
                unsubscribe_url=unsubscribe_url,
            )
        except Unrenderable as unrenderable:
            raise Undeliverable(Outcome(DeliveryState.FAILED, "NOT_RENDERABLE", str(unrenderable))) from None

        domain = recipient.email.rpartition("@")[2].lower()
        if self._handing_over[domain] >= self._most_to_a_domain:
            raise Undeliverable(Outcome(DeliveryState.QUEUED, "DOMAIN_SLOW", retry_after=_SLOW_DOMAIN_PAUSE))

        async def hand_over(handover: Handover) -> None:
            self._handing_over[domain] += 1
            try:
                await self._smtp.send(self._sender.address, recipient.email, mail, handover)
            finally:
                self._handing_over[domain] -= 1

        return hand_over

    async def _page_path(self, reading: Reading) -> str:
        """The path of the story's page; empty if the notice leads to none, or its owner took the link back."""
        if not (reading.notice.links_story and reading.about):
            return ""
        path = await self._find_page(reading.about)
        if path is None:
            raise Undeliverable(Outcome(DeliveryState.SUPPRESSED, "STORY_GONE"))
        return path

    def _unsubscribe_url(self, reading: Reading) -> str:
        """Empty for a mail that nobody can unsubscribe from."""
        if reading.notice.security or reading.person is None:
            return ""
        path = self._links.path(Subscription(reading.person, reading.notice.kind))
        return f"{self._public_url.rstrip('/')}{path}"

    async def _recipient(self, reading: Reading) -> Recipient:
        if reading.address is not None:
            return Recipient(reading.address, reading.facts.get("first_name", ""), reading.person)
        recipient = await self._find_account(reading.told)
        if recipient is None:
            raise Undeliverable(Outcome(DeliveryState.SUPPRESSED, "ACCOUNT_GONE"))
        return recipient
