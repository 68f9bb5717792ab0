"""What comes back about mails after a server had taken them: bounces, and complaints of their readers.

A report is believed about one thing: a mail of ours that it names by our Message-ID or by the envelope address that we gave it.
What it then says concerns the address to which that mail went, of which the digest stands with the delivery. An address that it
quotes is compared with that digest and never used: anybody can write a report about anybody.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from kit.data.database import Database, Transaction
from kit.errors import InvalidArgument, Unavailable, Violation
from kit.events import erasure
from kit.rpc.statuses import as_mesh_error
from kit.runtime.clock import Clock

from .. import store
from ..adapters.bounce_folder import BounceFolder
from ..adapters.refusals import Refusals
from ..errors import WebhookSignatureInvalid
from ..model import provider_reports, report_parts, returned
from ..model.bounces import BounceKind, Report
from ..model.complaints import Complaint
from ..model.records import DeliveryRecord
from ..model.report_parts import NotABounce
from ..model.return_paths import ReturnPaths
from ..model.suppressions import AddressDigests, SuppressionReason, SuppressionSource
from ..model.webhook_signatures import is_signed
from .suppressions import SuppressionList

_MESSAGE_ID = re.compile(r"\s*<([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})@([^<>@\s]+)>\s*", re.I)
_FILES_OF_A_ROUND = 100
_JSON = "application/json"

_REASONS = {
    BounceKind.NO_ADDRESS: SuppressionReason.NO_ADDRESS,
    BounceKind.MAILBOX: SuppressionReason.MAILBOX,
}
_GRAVEST_FIRST = (BounceKind.NO_ADDRESS, BounceKind.MAILBOX, BounceKind.OURS, BounceKind.SOFT)

log = logging.getLogger(__name__)


class Taken(StrEnum):
    """What became of a report."""

    RECORDED = "RECORDED"
    """A mail of ours came back, or its reader complained."""
    NO_FAILURE = "NO_FAILURE"
    """It says nothing final, such as that the mail is delayed, or nothing about whether the mail is wanted."""
    NOT_OURS = "NOT_OURS"
    """It names no mail that we sent, or one of which nothing is known any more."""


@dataclass(frozen=True, slots=True)
class SignedCall:
    """A call of a webhook, as it came."""

    id: str
    timestamp: str
    signatures: str
    media_type: str
    body: bytes


class Bounces:
    """Takes reports. Idempotent: a report that comes again changes nothing."""

    def __init__(
        self,
        db: Database,
        suppressed: SuppressionList,
        digests: AddressDigests,
        refusals: Refusals,
        clock: Clock,
        *,
        domain: str,
        return_paths: ReturnPaths | None,
    ) -> None:
        """`domain` is that of our Message-IDs."""
        self._db = db
        self._suppressed = suppressed
        self._digests = digests
        self._refusals = refusals
        self._clock = clock
        self._domain = domain
        self._return_paths = return_paths

    async def take(self, raw: bytes, source: SuppressionSource) -> Taken:
        """Record what a delivery status notification or a complaint says. Raises NotABounce."""
        # In a thread: a hostile report costs up to a second.
        return await self.take_report(await asyncio.to_thread(returned.read, raw), source)

    async def take_report(self, report: Report | Complaint, source: SuppressionSource) -> Taken:
        """Record what a report says that was read already."""
        if not report.counts:
            return Taken.NO_FAILURE
        event_id = self._event_of(report)
        if event_id is None:
            return Taken.NOT_OURS
        if isinstance(report, Complaint):
            return await self._complained(event_id, report, source)
        return await self._record(event_id, report, source)

    async def _complained(self, event_id: UUID, complaint: Complaint, source: SuppressionSource) -> Taken:
        """Suppress the address to which the mail went. The mail itself arrived, so its state stays as it is."""
        async with self._db.transaction() as tx:
            mail = await self._mail(tx, event_id)
            if mail is None or mail.address_digest is None:
                return Taken.NOT_OURS
            reason = SuppressionReason.COMPLAINT
            await self._suppressed.add(tx, mail, mail.address_digest, reason=reason, code=complaint.type, source=source)
        return Taken.RECORDED

    @staticmethod
    async def _mail(tx: Transaction, event_id: UUID) -> DeliveryRecord | None:
        """The mail of an event; None if nothing may be kept about its person any more."""
        mail = await store.records.find_mail(tx, event_id)
        erased = mail and mail.user_id and await erasure.is_erased(tx, mail.user_id)
        return None if erased else mail

    async def _record(self, event_id: UUID, report: Report, source: SuppressionSource) -> Taken:
        async with self._db.transaction() as tx:
            mail = await self._mail(tx, event_id)
            if mail is None or mail.address_digest is None:
                return Taken.NOT_OURS
            kind, code = self._gravest(report, mail.address_digest)
            await store.records.bounce(tx, mail, code, self._clock())
            if reason := _REASONS.get(kind):
                await self._suppressed.add(tx, mail, mail.address_digest, reason=reason, code=code, source=source)
        if kind is BounceKind.OURS:
            self._refusals.note(code)
        return Taken.RECORDED

    def _event_of(self, report: Report | Complaint) -> UUID | None:
        found = _MESSAGE_ID.fullmatch(report.message_id)
        if found and found[2].lower() == self._domain.lower():
            return UUID(found[1])
        for address in report.sent_to if self._return_paths else ():
            if self._return_paths and (event_id := self._return_paths.event_of(address)):
                return event_id
        return None

    def _gravest(self, report: Report, address_digest: bytes) -> tuple[BounceKind, str]:
        """The gravest kind among the report's failures, and its code.

        A failure that names another address, to which the mail was forwarded, says nothing about ours.
        """
        found: dict[BounceKind, str] = {}
        for recipient in report.recipients:
            if recipient.kind:
                named = recipient.addresses
                is_ours = not named or any(self._digests.of(address) == address_digest for address in named)
                kind = recipient.kind if is_ours or not recipient.kind.hard else BounceKind.SOFT
                found.setdefault(kind, str(recipient.code or ""))
        gravest = next(kind for kind in _GRAVEST_FIRST if kind in found)
        return gravest, found[gravest]


class ProviderBounces:
    """The webhook of the mail provider. Without a key every call is refused."""

    def __init__(self, bounces_: Bounces, key: bytes | None, clock: Clock) -> None:
        self._bounces = bounces_
        self._key = key
        self._clock = clock

    async def take(self, call: SignedCall) -> Sequence[Taken]:
        """Record what the call says. Raises WebhookSignatureInvalid and InvalidArgument."""
        signed = self._key is not None and is_signed(
            self._key, call.id, call.timestamp, call.signatures, body=call.body, now=self._clock()
        )
        if not signed:
            raise WebhookSignatureInvalid
        try:
            if call.media_type.partition(";")[0].strip().lower() == _JSON:
                reports = provider_reports.read(call.body)
                return [await self._bounces.take_report(each, SuppressionSource.PROVIDER) for each in reports]
            return [await self._bounces.take(call.body, SuppressionSource.PROVIDER)]
        except NotABounce as error:
            raise InvalidArgument([Violation("report", str(error), "REPORT_UNREADABLE")]) from None


class BounceReader:
    """Reads the folder of bounces: deletes what is dealt with, and puts aside what is no bounce."""

    def __init__(self, bounces_: Bounces, folder: BounceFolder) -> None:
        self._bounces = bounces_
        self._folder = folder

    async def read(self) -> bool:
        """One round. True if more is waiting. Raises OSError, and what the database raises."""
        waiting = await asyncio.to_thread(self._folder.waiting, _FILES_OF_A_ROUND)
        for path in waiting:
            raw = await asyncio.to_thread(self._folder.read, path, report_parts.MOST_BYTES)
            if raw is None:
                continue
            try:
                taken = await self._bounces.take(raw, SuppressionSource.REPORT)
            except Exception as error:
                # A report that nothing can be made of must not be read again and again, before all others.
                if isinstance(as_mesh_error(error), Unavailable):
                    raise
                if isinstance(error, NotABounce):
                    log.warning("a mail in the folder of bounces is put aside: %s", error)
                else:
                    log.exception("a mail in the folder of bounces is put aside: it broke the reader")
                await asyncio.to_thread(self._folder.put_aside, path)
                continue
            log.info("a report in the folder of bounces was read: %s", taken)
            await asyncio.to_thread(self._folder.remove, path)
        return len(waiting) == _FILES_OF_A_ROUND
