"""Sends a mail at most once where that matters, and records an outcome that nobody can know as UNKNOWN.

Commits the intent before it connects. A failure before the handover is retried; one after it is UNKNOWN unless the template may be
sent twice. A worker that is stopped before the handover gives the mail back to the other workers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any
from uuid import UUID

from kit.data.database import Database
from kit.events import erasure
from kit.events.envelope import Event
from kit.events.inbox_store import mark_processed
from kit.runtime import tracing
from kit.runtime.clock import Clock

from .. import store
from ..adapters.smtp import Handover, OutcomeUnknown, Refused, Smtp, Stage, TryAgain
from ..model import Letter, MailState, Recipient, Template
from ..model.rendering import Sender, Unrenderable, render

log = logging.getLogger(__name__)


class Mailing:
    """Sends mails, each identified by the event that it is about."""

    def __init__(self, db: Database, smtp: Smtp, clock: Clock, *, sender: str) -> None:
        self._db = db
        self._smtp = smtp
        self._clock = clock
        self._sender = Sender(sender)

    async def send(self, event_id: UUID, template: Template, recipient: Recipient, letter: Letter) -> None:
        """Send a mail, unless its outcome is settled or the person is erased. Raises TryAgain."""
        beginning = asyncio.ensure_future(self._begin(event_id, template, recipient.user_id))
        handover = Handover()
        try:
            attempt = await asyncio.shield(beginning)
            if attempt is None:
                return
            state, error = await self._outcome(event_id, template, recipient, letter, handover)
        except asyncio.CancelledError:
            await _uninterrupted(self._cut_off(event_id, beginning, handover))
            raise
        await _uninterrupted(self._settle(event_id, attempt, state, error))
        if state is MailState.WAITING:
            raise TryAgain(error)
        if state is not MailState.SENT:
            log.warning("mail %s of event %s is %s: %s", template, event_id, state, error)

    async def expire(self, event_id: UUID, template: Template) -> None:
        """Record that the mail came too late to be sent."""
        async with self._db.transaction() as tx:
            state = (await store.mails.lock(tx, event_id, template, self._clock(), user_id=None)).after_crash(template)
            if state is MailState.WAITING:
                await store.mails.set_state(tx, event_id, MailState.EXPIRED, self._clock())

    async def drop(self, event: Event) -> None:
        """Mark an event without an address as processed, and send no mail."""
        async with self._db.transaction() as tx:
            await mark_processed(tx, event)

    async def _begin(self, event_id: UUID, template: Template, user_id: UUID | None) -> int | None:
        """Begin an attempt and return its number; None if there is nothing to send."""
        async with self._db.transaction() as tx:
            if user_id and await erasure.is_erased(tx, user_id):
                return None
            found = await store.mails.lock(tx, event_id, template, self._clock(), user_id=user_id)
            state = found.after_crash(template)
            if state is not MailState.WAITING:
                await store.mails.set_state(tx, event_id, state, self._clock())
                return None
            return await store.mails.begin_sending(tx, event_id, self._clock())

    async def _outcome(
        self, event_id: UUID, template: Template, recipient: Recipient, letter: Letter, handover: Handover
    ) -> tuple[MailState, str]:
        """Make the attempt; return the mail's state and the error, if any."""
        try:
            mail = render(
                letter,
                self._sender,
                recipient.email,
                event_id=event_id,
                sent_at=self._clock(),
                trace_id=tracing.trace_id(),
            )
            await self._smtp.send(self._sender.address, recipient.email, mail, handover)
        except TryAgain as failure:
            return MailState.WAITING, str(failure)
        except (Refused, Unrenderable) as refusal:
            return MailState.REFUSED, str(refusal)
        except OutcomeUnknown as unknown:
            return MailState.WAITING if template.sent_again else MailState.UNKNOWN, str(unknown)
        return MailState.SENT, ""

    async def _cut_off(self, event_id: UUID, beginning: asyncio.Future[int | None], handover: Handover) -> None:
        """Record the state of a mail whose worker is stopped. After the handover it stays in SENDING, as after a crash."""
        try:
            attempt = await beginning
            if attempt is None:
                return
            if handover.stage is Stage.UNSEEN:
                async with self._db.single() as tx:
                    await store.mails.hand_back(tx, event_id, attempt, self._clock())
            elif handover.stage is Stage.TAKEN:
                await self._settle(event_id, attempt, MailState.SENT, "")
        except Exception as error:
            # Do not hide the cancellation, which ends the worker, by this error.
            log.warning("what became of the mail of event %s cannot be recorded: %s", event_id, error)

    async def _settle(self, event_id: UUID, attempt: int, state: MailState, error: str) -> None:
        async with self._db.single() as tx:
            await store.mails.settle(tx, event_id, attempt, state, self._clock(), error=error)


async def _uninterrupted(recording: Coroutine[Any, Any, None]) -> None:
    """Wait for the recording even when cancelled, then re-raise: an interrupted one would look like a crash."""
    task = asyncio.ensure_future(recording)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
