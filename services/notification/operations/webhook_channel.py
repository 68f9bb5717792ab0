"""The channels of webhooks: one signed message to one receiver for each delivery, whose target is the webhook's id."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import datetime, timedelta
from uuid import UUID

from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.events import erasure
from kit.identity.sealing import Unsealable
from kit.runtime.clock import Clock

from .. import store
from ..adapters.lookups import LookupsBusy
from ..adapters.smtp import Handover, Stage
from ..adapters.webhooks import ReceiverFailed, WebhookSender
from ..model.deliveries import Channel, Delivery, DeliveryState, Outcome
from ..model.letters import Letters, headed
from ..model.notices import WEBHOOK_DISABLED
from ..model.notifications import TargetType
from ..model.webhook_messages import WebhookMessage, signed_headers
from ..model.webhook_urls import NotAWebhookUrl, WebhookRules
from ..model.webhooks import Webhook
from .channels import Prepared, Undeliverable
from .facts import Reading
from .in_app import InApp
from .webhook_seals import WebhookSeals

log = logging.getLogger(__name__)

_PAUSE_FOR_OTHERS = timedelta(seconds=15)


class WebhookChannel:
    """Counts what fails, and disables a webhook whose receiver has failed for longer than `patience`."""

    def __init__(
        self,
        db: Database,
        sender: WebhookSender,
        rules: WebhookRules,
        seals: WebhookSeals,
        clock: Clock,
        *,
        letters: Letters,
        patience: timedelta,
        most_to_a_receiver: int,
    ) -> None:
        """`most_to_a_receiver`: messages to one webhook that are handed over at a time. More than a worker has places, so that only
        a slow receiver has as many, which are then not in the way of others.
        """
        self._db = db
        self._sender = sender
        self._rules = rules
        self._seals = seals
        self._clock = clock
        self._letters = letters
        self._patience = patience
        self._most_to_a_receiver = most_to_a_receiver
        self._handing_over: Counter[UUID] = Counter()
        self._in_app = InApp(letters, clock)

    async def prepare(self, delivery: Delivery, reading: Reading) -> Prepared:
        async with self._db.single() as tx:
            webhook = await store.webhooks.find(tx, UUID(delivery.target))
        if webhook is None or webhook.channel != delivery.channel:
            raise Undeliverable(Outcome(DeliveryState.SUPPRESSED, "WEBHOOK_DELETED"))
        if webhook.disabled:
            raise Undeliverable(Outcome(DeliveryState.SUPPRESSED, store.deliveries.WEBHOOK_DISABLED))
        if self._handing_over[webhook.id] >= self._most_to_a_receiver:
            raise Undeliverable(_later("RECEIVER_SLOW"))
        try:
            url = self._rules.read(self._seals.url(webhook))
            secrets = self._seals.secrets(webhook, self._clock())
        except Unsealable:
            # Another seal key: not the receiver's fault, and an operator can put the key back.
            raise Undeliverable(Outcome(DeliveryState.QUEUED, "WEBHOOK_UNREADABLE")) from None
        except NotAWebhookUrl as refused:
            # The rules of the deployment have changed since it was registered.
            failed = ReceiverFailed(refused.reason)
            raise Undeliverable(await self._failed(webhook.id, failed, self._clock())) from None
        body = self._message(delivery, reading).body

        async def hand_over(handover: Handover) -> None:
            def begins() -> None:
                handover.stage = Stage.HANDED_OVER

            headers = signed_headers(delivery.id, body, secrets, self._clock())
            self._handing_over[webhook.id] += 1
            try:
                status = await self._sender.send(url, headers, body, begins, owner=webhook.user_id)
            except LookupsBusy:
                # Names of others occupy all threads, which is no fault of this receiver.
                raise Undeliverable(_later("LOOKUPS_BUSY")) from None
            except ReceiverFailed as failed:
                raise Undeliverable(await self._failed(webhook.id, failed, self._clock())) from None
            finally:
                self._handing_over[webhook.id] -= 1
                if not self._handing_over[webhook.id]:
                    del self._handing_over[webhook.id]
            handover.stage = Stage.TAKEN
            await self._succeeded(webhook, status)

        return Prepared(hand_over)

    def _message(self, delivery: Delivery, reading: Reading) -> WebhookMessage:
        """The message, with the words that stand inside the application, made of nothing that was sealed."""
        notice = reading.notice
        text = self._letters.short(
            notice.kind, reading.open_facts, now=self._clock(), language=reading.language, time_zone=reading.time_zone
        ).cut()
        title = headed(text.title, reading.open_facts, text.language)
        target_type = notice.target if reading.about else TargetType.ACCOUNT
        target_id = str(reading.about or reading.told)
        user_id = str(reading.told) if delivery.channel == Channel.SYSTEM_WEBHOOK else ""
        return WebhookMessage(
            delivery.id, delivery.kind, delivery.created_at, title, text.body, target_type, target_id, user_id
        )

    async def _succeeded(self, seen: Webhook, status: int) -> None:
        async with self._db.transaction() as tx:
            webhook = await store.webhooks.lock(tx, seen.id)
            if webhook:
                await store.webhooks.save(tx, webhook.succeeded(status, self._clock()))

    async def _failed(self, webhook_id: UUID, failed: ReceiverFailed, now: datetime) -> Outcome:
        """Count the failure. A repetition does no harm, because the receiver tells it by its id: so every failure is repeated."""
        answer = str(failed.status or "")
        async with self._db.transaction() as tx:
            webhook = await store.webhooks.lock(tx, webhook_id)
            if webhook:
                after = webhook.failed(failed.reason, failed.status, now, gone=failed.gone, patience=self._patience)
                await store.webhooks.save(tx, after)
                if after.disabled and not webhook.disabled:
                    await self._tell(tx, after)
        if failed.gone:
            return Outcome(DeliveryState.FAILED, failed.reason, answer)
        wait = None if failed.seconds is None else timedelta(seconds=failed.seconds)
        return Outcome(DeliveryState.QUEUED, failed.reason, answer, retry_after=wait)

    async def _tell(self, tx: Transaction, webhook: Webhook) -> None:
        """Tell the owner that the webhook was disabled, once: its row is locked. Of the installation's, the log tells."""
        log.warning("webhook %s (%s) is disabled: %s", webhook.id, webhook.channel, webhook.disabled)
        # Nobody may tell an erased person anything; and holding off an erasure keeps it from waiting for our locks, and us for its.
        if webhook.user_id is None or await erasure.is_erased(tx, webhook.user_id):
            return
        facts = {"description": webhook.description, "reason": webhook.disabled}
        await self._in_app.tell(tx, uuid7(), Reading(WEBHOOK_DISABLED, facts, webhook.user_id, webhook.id, None))


def _later(reason: str) -> Outcome:
    """The outcome of an attempt that gave way to others."""
    return Outcome(DeliveryState.QUEUED, reason, retry_after=_PAUSE_FOR_OTHERS, setback=False)
