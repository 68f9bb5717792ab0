"""The messages to one webhook, as its owner sees them."""

from __future__ import annotations

from uuid import UUID

from kit.data.database import Database, Transaction
from kit.data.paging import Page, Pages
from kit.identity.caller import Caller
from kit.runtime.clock import Clock

from .. import store
from ..errors import DeliveryNotFound, DeliveryNotResendable, WebhookDisabled, WebhookNotFound
from ..model.deliveries import Channel, DeliveryState
from ..model.records import DeliveryQuery, DeliveryRecord
from ..model.webhooks import Webhook

_BY_OWNER = "by the owner"


class WebhookDeliveries:
    """Lists the messages to people's own webhooks, and sends them again."""

    def __init__(self, db: Database, pages: Pages, clock: Clock) -> None:
        self._db = db
        self._pages = pages
        self._clock = clock

    async def list(
        self, caller: Caller, webhook_id: UUID, state: DeliveryState | None, page_size: int, page_token: str
    ) -> Page[DeliveryRecord]:
        """The messages to the caller's webhook, newest first.

        Raises WebhookNotFound, and InvalidArgument for a foreign page token.
        """
        query = DeliveryQuery(user_id=caller.user_id, state=state, target=str(webhook_id))
        request = self._pages.request(f"own:{query}", page_size, page_token)
        async with self._db.transaction() as tx:
            await self._webhook(tx, caller, webhook_id)
            rows = await store.records.page(tx, query, request)
        return self._pages.page(f"own:{query}", request.size, rows)

    async def resend(self, caller: Caller, webhook_id: UUID, delivery_id: UUID) -> DeliveryRecord:
        """Have a message that waits tried at once, and one that has ended without arriving queued again.

        Raises WebhookNotFound, DeliveryNotFound, WebhookDisabled, and DeliveryNotResendable when its content is not there any more.
        """
        now = self._clock()
        async with self._db.transaction() as tx:
            webhook = await self._webhook(tx, caller, webhook_id)
            delivery = await store.records.lock(tx, delivery_id)
            if delivery is None or (delivery.channel, delivery.target) != (Channel.WEBHOOK, str(webhook_id)):
                raise DeliveryNotFound
            if delivery.state is DeliveryState.SENT:
                return delivery
            if webhook.disabled:
                raise WebhookDisabled
            if delivery.unfinished:
                await store.webhook_deliveries.hasten(tx, delivery, now)
            elif delivery.expires_at <= now or not await store.records.resend(tx, delivery, now, why=_BY_OWNER):
                raise DeliveryNotResendable
            return await store.records.lock(tx, delivery_id) or delivery

    @staticmethod
    async def _webhook(tx: Transaction, caller: Caller, webhook_id: UUID) -> Webhook:
        webhook = await store.webhooks.find(tx, webhook_id)
        if webhook is None or webhook.user_id != caller.user_id:
            raise WebhookNotFound
        return webhook
