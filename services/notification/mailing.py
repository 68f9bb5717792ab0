"""Sending a mail at most once where that matters, and saying so where nobody can know.

The intent is committed before the connection is made. What fails before the mail is handed over is tried again; what breaks after
that is UNKNOWN unless its template is one that may come twice.
"""

from __future__ import annotations

import logging
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from uuid import UUID

from services.kit import erasure, tracing
from services.kit.clock import Clock
from services.kit.database import Database
from services.kit.events import Event
from services.kit.inbox import first_time

from . import store
from .model import Letter, MailState, Recipient, Template
from .smtp import OutcomeUnknown, Refused, Smtp, TryAgain

log = logging.getLogger(__name__)

_SEVEN_BITS = SMTP.clone(cte_type="7bit")
"""Every server takes it; eight bits need one that offers 8BITMIME (RFC 6152)."""


class Mailing:
    """Sends mails, each named by the event that it tells of."""

    def __init__(self, db: Database, smtp: Smtp, clock: Clock, *, sender: str) -> None:
        self._db = db
        self._smtp = smtp
        self._clock = clock
        self._sender = sender

    async def send(self, event_id: UUID, template: Template, recipient: Recipient, letter: Letter) -> None:
        """Does nothing for a mail whose outcome is settled, or to an erased person. Raises TryAgain."""
        attempt = await self._begin(event_id, template, recipient.user_id)
        if attempt is None:
            return
        _, sender_address = parseaddr(self._sender)
        state, error = MailState.SENT, ""
        try:
            await self._smtp.send(sender_address, recipient.email, self._message(event_id, recipient, letter))
        except TryAgain as failure:
            await self._settle(event_id, attempt, MailState.WAITING, str(failure))
            raise
        except Refused as refusal:
            state, error = MailState.REFUSED, str(refusal)
        except OutcomeUnknown as unknown:
            if template.sent_again:
                await self._settle(event_id, attempt, MailState.WAITING, str(unknown))
                raise TryAgain(str(unknown)) from unknown
            state, error = MailState.UNKNOWN, str(unknown)
        if state is not MailState.SENT:
            log.warning("mail %s of event %s is %s", template, event_id, state)
        await self._settle(event_id, attempt, state, error)

    async def expire(self, event_id: UUID, template: Template) -> None:
        """Records a mail that came too late to be sent."""
        async with self._db.transaction() as tx:
            state = (await store.lock_mail(tx, event_id, template, self._clock(), user_id=None)).after_crash(template)
            if state is MailState.WAITING:
                await store.set_mail(tx, event_id, MailState.EXPIRED, self._clock())

    async def drop(self, event: Event) -> None:
        """Records a mail to nobody as dealt with, and no mail."""
        async with self._db.transaction() as tx:
            await first_time(tx, event)

    async def _begin(self, event_id: UUID, template: Template, user_id: UUID | None) -> int | None:
        """The attempt's number; None when there is nothing to send."""
        async with self._db.transaction() as tx:
            if user_id and await erasure.is_erased(tx, user_id):
                return None
            found = await store.lock_mail(tx, event_id, template, self._clock(), user_id=user_id)
            state = found.after_crash(template)
            if state is not MailState.WAITING:
                await store.set_mail(tx, event_id, state, self._clock())
                return None
            return await store.begin_sending(tx, event_id, self._clock())

    async def _settle(self, event_id: UUID, attempt: int, state: MailState, error: str) -> None:
        async with self._db.single() as tx:
            await store.settle_mail(tx, event_id, attempt, state, self._clock(), error=error)

    def _message(self, event_id: UUID, recipient: Recipient, letter: Letter) -> EmailMessage:
        name, sender_address = parseaddr(self._sender)
        message = EmailMessage(policy=_SEVEN_BITS)
        message["From"] = Address(display_name=name, addr_spec=sender_address)
        # In two parts, because the parser refuses addresses that exist, such as those with two dots in a row.
        mailbox, _, domain = recipient.email.rpartition("@")
        message["To"] = Address(username=mailbox, domain=domain)
        message["Subject"] = letter.subject
        message["Date"] = format_datetime(self._clock())
        # The same for every attempt, so that a mailbox that gets two shows one.
        message["Message-ID"] = f"<{event_id}@{sender_address.partition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: keeps out-of-office replies away
        trace_id = tracing.trace_id()
        if trace_id:
            message["X-Trace-Id"] = trace_id
        message.set_content(letter.body)
        return message
