"""The channel of mail: one mail to one person for each delivery."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

from kit.runtime import tracing
from kit.runtime.clock import Clock

from ..adapters.dkim_signing import DkimSigner
from ..adapters.smtp import Handover, Refused, Smtp
from ..model import Kind, Recipient
from ..model.deliveries import Delivery, DeliveryState, Outcome
from ..model.enhanced_codes import EnhancedCode
from ..model.letters import Letters
from ..model.rendering import Sender, Unrenderable, render
from ..model.return_paths import ReturnPaths
from ..model.suppressions import SuppressionReason
from ..model.unsubscribing import Subscription, UnsubscribeLinks
from .channels import Prepared, StoryPages, Undeliverable
from .facts import Reading
from .suppressions import SuppressionList

log = logging.getLogger(__name__)

_SLOW_DOMAIN_PAUSE = timedelta(seconds=15)

FindAccount = Callable[[UUID], Awaitable[Recipient | None]]
"""The address and name of an account; None if it was deleted. Raises MeshError."""


class EmailChannel:
    """Asks for the address, and for the page of a story, at the moment of sending, so that neither is stored."""

    def __init__(
        self,
        smtp: Smtp,
        find_account: FindAccount,
        stories: StoryPages,
        letters: Letters,
        clock: Clock,
        *,
        suppressed: SuppressionList,
        sender: str,
        public_url: str,
        links: UnsubscribeLinks,
        most_to_a_domain: int,
        feedback_sender: str,
        return_paths: ReturnPaths | None = None,
        signer: DkimSigner | None = None,
    ) -> None:
        """`most_to_a_domain`: mails to one domain that are handed over at a time. More than a worker has places, so that only a
        slow domain has as many, which are then not in the way of others.
        """
        self._smtp = smtp
        self._find_account = find_account
        self._stories = stories
        self._letters = letters
        self._suppressed = suppressed
        self._feedback_sender = feedback_sender
        self._return_paths = return_paths
        self._signer = signer
        self._clock = clock
        self._sender = Sender(sender)
        self._public_url = public_url
        self._links = links
        self._most_to_a_domain = most_to_a_domain
        self._handing_over: Counter[str] = Counter()

    async def prepare(self, delivery: Delivery, reading: Reading) -> Prepared:
        """Find the recipient and render the mail."""
        recipient = await self._recipient(reading)
        now = self._clock()
        facts = {**reading.facts, "first_name": recipient.first_name, "page_path": await self._page_path(reading)}
        unsubscribe_url = self._unsubscribe_url(reading)
        letter = self._letters.write(
            reading.notice.kind,
            facts,
            now=now,
            language=reading.language,
            time_zone=reading.time_zone,
            unsubscribe_url=unsubscribe_url,
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
                feedback_id=f"{reading.notice.kind}:::{self._feedback_sender}",
            )
        except Unrenderable as unrenderable:
            raise Undeliverable(Outcome(DeliveryState.FAILED, "NOT_RENDERABLE", str(unrenderable))) from None

        domain = recipient.email.rpartition("@")[2].lower()
        if self._handing_over[domain] >= self._most_to_a_domain:
            raise Undeliverable(
                Outcome(DeliveryState.QUEUED, "DOMAIN_SLOW", retry_after=_SLOW_DOMAIN_PAUSE, setback=False)
            )
        if self._signer:
            mail = await self._signer.signed(mail)
        return_path = self._return_paths.of(delivery.event_id) if self._return_paths else self._sender.address

        async def hand_over(handover: Handover) -> None:
            self._handing_over[domain] += 1
            try:
                await self._smtp.send(return_path, recipient.email, mail, handover)
            except Refused as refusal:
                await self._refused(delivery, recipient.email, str(refusal))
                raise
            finally:
                self._handing_over[domain] -= 1

        async def suppressed() -> None:
            suppression = await self._suppressed.check(
                delivery,
                recipient.email,
                security=reading.notice.security,
                last=reading.notice.kind is Kind.ACCOUNT_DELETED,
            )
            if suppression:
                reason = f"SUPPRESSED_{suppression.reason}"
                raise Undeliverable(Outcome(DeliveryState.SUPPRESSED, reason, suppression.code))

        return Prepared(hand_over, self._suppressed.digest_of(recipient.email), suppressed)

    async def _page_path(self, reading: Reading) -> str:
        """The path of the story's page; empty if the notice leads to none, or its owner took the link back."""
        if not (reading.notice.links_story and reading.about):
            return ""
        path = await self._stories.page_of(reading.about)
        if path is None:
            raise Undeliverable(Outcome(DeliveryState.SUPPRESSED, "STORY_GONE"))
        return path

    def _unsubscribe_url(self, reading: Reading) -> str:
        """Empty for a mail that nobody can unsubscribe from."""
        if reading.notice.security or reading.person is None:
            return ""
        path = self._links.path(Subscription(reading.person, reading.notice.kind))
        return f"{self._public_url.rstrip('/')}{path}"

    async def _refused(self, delivery: Delivery, address: str, answer: str) -> None:
        """Suppress the address if the server's answer names the recipient as the fault."""
        code = EnhancedCode.within(answer)
        if code is None or not (code.lasting and code.recipients):
            return
        reason = SuppressionReason.NO_ADDRESS if code.no_address else SuppressionReason.MAILBOX
        try:
            await self._suppressed.refused(delivery, address, reason, str(code))
        except Exception as error:
            # The next mail meets the same answer; that this one was refused must not be lost.
            log.warning("the address of event %s, which was refused, is not suppressed: %s", delivery.event_id, error)

    async def _recipient(self, reading: Reading) -> Recipient:
        if reading.address is not None:
            return Recipient(reading.address, reading.facts.get("first_name", ""), reading.person)
        recipient = await self._find_account(reading.told)
        if recipient is None:
            raise Undeliverable(Outcome(DeliveryState.SUPPRESSED, "ACCOUNT_GONE"))
        return recipient
