"""Webhooks as their owners see them: registered, read, changed, deleted, and tried out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from uuid import UUID

from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.data.paging import Page, Pages
from kit.errors import InvalidArgument, SessionRevoked, Violation
from kit.events import erasure
from kit.identity.caller import Caller
from kit.runtime.clock import Clock

from .. import store
from ..adapters.webhooks import ReceiverFailed, WebhookSender
from ..errors import TooManyWebhooks, WebhookNotFound
from ..model import Kind
from ..model.webhook_messages import WebhookMessage, signed_headers
from ..model.webhook_urls import NotAWebhookUrl, WebhookRules, WebhookUrl
from ..model.webhooks import SECRET_BYTES, DisableReason, Webhook, shown
from .webhook_seals import WebhookSeals

_LOOK_UP_SECONDS = 1.0
"""The time for the first look at a receiver's name. One that takes longer is looked up at each message anyway."""
_TEST = "TEST"


@dataclass(frozen=True, slots=True)
class ShownWebhook:
    """A webhook with the URL that its owner reads."""

    webhook: Webhook
    url: str

    @property
    def id(self) -> UUID:
        return self.webhook.id


@dataclass(frozen=True, slots=True)
class WebhookChange:
    """What an owner changes; None: nothing."""

    url: str | None = None
    description: str | None = None
    kinds: frozenset[Kind] | None = None
    enabled: bool | None = None


@dataclass(frozen=True, slots=True)
class TestResult:
    delivered: bool
    reason: str = ""
    """UPPER_SNAKE, permanent; empty if it was delivered."""
    status: int = 0
    """The HTTP status of the answer; 0: there was none."""


class Webhooks:
    """Each person has their own; another person's looks like one that does not exist."""

    def __init__(
        self,
        db: Database,
        pages: Pages,
        seals: WebhookSeals,
        clock: Clock,
        *,
        sender: WebhookSender,
        rules: WebhookRules,
        random: Callable[[int], bytes],
        most: int,
    ) -> None:
        """`most`: webhooks that a person may have."""
        self._db = db
        self._pages = pages
        self._seals = seals
        self._sender = sender
        self._rules = rules
        self._clock = clock
        self._random = random
        self._most = most

    async def create(
        self, caller: Caller, url: str, description: str, kinds: frozenset[Kind]
    ) -> tuple[ShownWebhook, str]:
        """Register a webhook. Returns it with its secret, which is shown this once.

        Raises InvalidArgument for a URL that is refused, TooManyWebhooks, and SessionRevoked for a deleted account.
        """
        checked = self._read(url)
        async with self._db.transaction() as tx:
            await self._require_room(tx, caller)
        await self._look_up(checked)
        now, webhook_id, secret = self._clock(), uuid7(), self._random(SECRET_BYTES)
        webhook = Webhook(
            id=webhook_id,
            user_id=caller.user_id,
            url=self._seals.seal_url(webhook_id, str(checked)),
            description=description,
            kinds=kinds,
            secret=self._seals.seal_secret(webhook_id, secret),
            former_secret=None,
            former_secret_until=None,
            disabled=None,
            failures=0,
            failing_since=None,
            last_failed_at=None,
            last_failure="",
            last_status=0,
            last_succeeded_at=None,
            created_at=now,
            changed_at=now,
        )
        for _ in range(self._most):
            # A place that another call takes meanwhile is a reason to look for the next one, until none is left.
            async with self._db.transaction() as tx:
                await self._require_room(tx, caller)
                if await store.webhooks.insert_one(tx, webhook, self._most):
                    return ShownWebhook(webhook, str(checked)), shown(secret)
        raise TooManyWebhooks

    async def list(self, caller: Caller, page_size: int, page_token: str) -> Page[ShownWebhook]:
        """The caller's webhooks, newest first. Raises InvalidArgument for a foreign page token."""
        query = f"webhooks:{caller.user_id}"
        request = self._pages.request(query, page_size, page_token)
        async with self._db.transaction() as tx:
            rows = await store.webhooks.page(tx, caller.user_id, request)
        return self._pages.page(query, request.size, [self._shown(row) for row in rows])

    async def get(self, caller: Caller, webhook_id: UUID) -> ShownWebhook:
        """Raises WebhookNotFound."""
        async with self._db.transaction() as tx:
            return self._shown(_own(await store.webhooks.find(tx, webhook_id), caller))

    async def update(self, caller: Caller, webhook_id: UUID, change: WebhookChange) -> ShownWebhook:
        """Raises InvalidArgument for a URL that is refused, and WebhookNotFound."""
        checked = None
        if change.url is not None:
            checked = self._read(change.url)
            await self.get(caller, webhook_id)
            await self._look_up(checked)
        async with self._db.transaction() as tx:
            found = _own(await store.webhooks.lock(tx, webhook_id), caller)
            changed = replace(found, changed_at=self._clock())
            if checked is not None:
                changed = replace(changed, url=self._seals.seal_url(found.id, str(checked)))
            if change.description is not None:
                changed = replace(changed, description=change.description)
            if change.kinds is not None:
                changed = replace(changed, kinds=change.kinds)
            if change.enabled:
                changed = changed.enabled()
            elif change.enabled is False:
                changed = replace(changed, disabled=changed.disabled or DisableReason.BY_OWNER)
            await store.webhooks.save(tx, changed)
        return self._shown(changed)

    async def delete(self, caller: Caller, webhook_id: UUID) -> None:
        """Raises WebhookNotFound."""
        async with self._db.transaction() as tx:
            if not await store.webhooks.remove(tx, caller.user_id, webhook_id):
                raise WebhookNotFound

    async def rotate_secret(self, caller: Caller, webhook_id: UUID, *, end_former: bool) -> tuple[ShownWebhook, str]:
        """Make a new secret, and return it this once. Raises WebhookNotFound."""
        secret = self._random(SECRET_BYTES)
        async with self._db.transaction() as tx:
            found = _own(await store.webhooks.lock(tx, webhook_id), caller)
            sealed = self._seals.seal_secret(found.id, secret)
            rotated = found.rotated(sealed, self._clock(), end_former=end_former)
            await store.webhooks.save(tx, rotated)
        return self._shown(rotated), shown(secret)

    async def test(self, caller: Caller, webhook_id: UUID) -> TestResult:
        """Send a message that says that it is a test, at once and once, also if the webhook is disabled.

        Changes nothing of the webhook. Raises WebhookNotFound.
        """
        async with self._db.transaction() as tx:
            webhook = _own(await store.webhooks.find(tx, webhook_id), caller)
        now = self._clock()
        message = WebhookMessage(uuid7(), _TEST, now, "This is a test", "You asked for it.", "", "")
        headers = signed_headers(message.id, message.body, self._seals.secrets(webhook, now), now)
        try:
            url = self._rules.read(self._seals.url(webhook))
            status = await self._sender.send(url, headers, message.body, lambda: None)
        except NotAWebhookUrl as refused:
            return TestResult(False, refused.reason)
        except ReceiverFailed as failed:
            return TestResult(False, failed.reason, failed.status)
        return TestResult(True, status=status)

    def _read(self, url: str) -> WebhookUrl:
        try:
            return self._rules.read(url)
        except NotAWebhookUrl as refused:
            raise InvalidArgument([Violation("url", str(refused), refused.reason)]) from None

    async def _look_up(self, url: WebhookUrl) -> None:
        """Refuse at once what would be refused at each message. A name that nobody knows now may be known by then."""
        with suppress(TimeoutError):
            try:
                async with asyncio.timeout(_LOOK_UP_SECONDS):
                    await self._sender.look_up(url)
            except ReceiverFailed as failed:
                if failed.reason == "ADDRESS_REFUSED":
                    words = "must name a host that has public addresses alone"
                    raise InvalidArgument([Violation("url", words, failed.reason)]) from None

    async def _require_room(self, tx: Transaction, caller: Caller) -> None:
        if await erasure.is_erased(tx, caller.user_id):
            raise SessionRevoked
        if await store.webhooks.count(tx, caller.user_id) >= self._most:
            raise TooManyWebhooks

    def _shown(self, webhook: Webhook) -> ShownWebhook:
        return ShownWebhook(webhook, self._seals.url(webhook))


def _own(webhook: Webhook | None, caller: Caller) -> Webhook:
    if webhook is None or webhook.user_id != caller.user_id:
        raise WebhookNotFound
    return webhook
