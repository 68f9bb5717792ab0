"""Addresses to which no mail is sent, because an earlier mail came back: found, listed and lifted."""

from __future__ import annotations

import logging
from uuid import UUID

from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.data.paging import Page, Pages
from kit.events import erasure
from kit.identity.caller import Caller
from kit.runtime.clock import Clock

from .. import store
from ..errors import SuppressionNotFound
from ..model import Kind
from ..model.deliveries import Channel, Decision, Delivery, Step
from ..model.suppressions import AddressDigests, Mail, Suppression, SuppressionReason, SuppressionSource

log = logging.getLogger(__name__)


class Suppressions:
    """What administrators see and lift."""

    def __init__(self, db: Database, digests: AddressDigests, pages: Pages, clock: Clock) -> None:
        self._db = db
        self._digests = digests
        self._pages = pages
        self._clock = clock

    async def list(self, user_id: UUID | None, page_size: int, page_token: str) -> Page[Suppression]:
        """Suppressions, newest first; of one person if `user_id` is given. Raises InvalidArgument for a foreign page token."""
        query = f"suppressions:{user_id or ''}"
        request = self._pages.request(query, page_size, page_token)
        async with self._db.transaction() as tx:
            rows = await store.suppressions.page(tx, user_id, request)
        return self._pages.page(query, request.size, rows)

    async def find(self, address: str) -> Suppression:
        """The suppression of an address. Raises SuppressionNotFound."""
        async with self._db.transaction() as tx:
            found = await store.suppressions.find(tx, self._digests.of(address))
        if found is None:
            raise SuppressionNotFound
        return found

    async def lift(self, administrator: Caller, suppression_id: UUID) -> None:
        """Lift a suppression; who did it is recorded among the steps of the mail that came back. Raises SuppressionNotFound."""
        async with self._db.transaction() as tx:
            lifted = await store.suppressions.remove(tx, suppression_id)
            if lifted is None:
                raise SuppressionNotFound
            if await store.records.find_mail(tx, lifted.event_id):
                decision, detail = Decision.SUPPRESSION_LIFTED, f"by {administrator.user_id}"
                step = Step(lifted.event_id, Channel.EMAIL, lifted.user_id, self._clock(), decision, detail)
                await store.deliveries.add_step(tx, step)
        log.warning(
            "suppression %s of event %s was lifted",
            suppression_id,
            lifted.event_id,
            extra={"user.id": str(administrator.user_id)},
        )


class SuppressionList:
    """What sending asks and adds to."""

    def __init__(self, db: Database, digests: AddressDigests, clock: Clock) -> None:
        self._db = db
        self._digests = digests
        self._clock = clock

    def digest_of(self, address: str) -> bytes:
        """The keyed digest under which the address would be suppressed."""
        return self._digests.of(address)

    async def check(
        self, delivery: Delivery, address: str, *, security: bool, last: bool = False
    ) -> Suppression | None:
        """What forbids the mail, or None. Notes the address's digest with the delivery, by which a bounce finds it.

        `last`: the address belongs to nobody any more after this mail, so what is known of it goes.
        """
        digest = self._digests.of(address)
        async with self._db.single() as tx:
            found = await store.suppressions.find_for(tx, delivery.id, delivery.attempts, digest)
        if found is None:
            return None
        if last:
            async with self._db.single() as tx:
                await store.suppressions.remove_address(tx, digest)
        elif found.user_id is None and delivery.user_id:
            async with self._db.transaction() as tx:
                if not await erasure.is_erased(tx, delivery.user_id):
                    await store.suppressions.adopt(tx, found.id, delivery.user_id)
        return found if found.reason.stops(security=security) else None

    async def refused(self, delivery: Delivery, address: str, reason: SuppressionReason, code: str) -> None:
        """Suppress an address that the mail server refused."""
        async with self._db.transaction() as tx:
            await self.add(
                tx, delivery, self._digests.of(address), reason=reason, code=code, source=SuppressionSource.ANSWER
            )

    async def add(
        self,
        tx: Transaction,
        mail: Mail,
        address_digest: bytes,
        *,
        reason: SuppressionReason,
        code: str,
        source: SuppressionSource,
    ) -> None:
        """Suppress the address of a mail, unless its person is erased or the account is gone by this very mail."""
        if mail.kind == Kind.ACCOUNT_DELETED or (mail.user_id and await erasure.is_erased(tx, mail.user_id)):
            return
        now = self._clock()
        suppression = Suppression(uuid7(), address_digest, mail.user_id, mail.event_id, reason, code, source, now)
        if await store.suppressions.add(tx, suppression):
            decision = Decision.ADDRESS_SUPPRESSED
            step = Step(mail.event_id, Channel.EMAIL, mail.user_id, now, decision, f"{reason} {code}".strip())
            await store.deliveries.add_step(tx, step)
