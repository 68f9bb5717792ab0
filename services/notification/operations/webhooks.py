"""Webhooks as those see them who register them: registered, read, changed, deleted, and tried out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from uuid import UUID

from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.data.paging import Page, Pages
from kit.errors import InvalidArgument, SessionRevoked, Violation
from kit.events import erasure
from kit.identity.caller import Caller
from kit.runtime.clock import Clock

from .. import store
from ..adapters.lookups import LookupsBusy
from ..adapters.webhooks import ReceiverFailed, WebhookSender
from ..errors import TooManyWebhooks, WebhookNotFound
from ..model import Kind
from ..model.notices import BY_WEBHOOK
from ..model.webhook_messages import WebhookMessage, signed_headers
from ..model.webhook_urls import NotAWebhookUrl, WebhookRules, WebhookUrl
from ..model.webhooks import SECRET_BYTES, Act, DisableReason, Webhook, shown
from .webhook_seals import WebhookSeals

log = logging.getLogger(__name__)

_LOOK_UP_SECONDS = 1.0
"""The time for the first look at a receiver's name. One that takes longer is looked up at each message anyway."""
_TEST = "TEST"


@dataclass(frozen=True, slots=True)
class Registrar:
    """Who registers webhooks, and for whom."""

    actor_id: UUID
    owner_id: UUID | None
    """Whose notices they get; None: everybody's, in the name of the installation."""

    @classmethod
    def person(cls, caller: Caller) -> Registrar:
        """A person, for their own notices."""
        return cls(caller.user_id, caller.user_id)

    @classmethod
    def administrator(cls, caller: Caller) -> Registrar:
        return cls(caller.user_id, None)


@dataclass(frozen=True, slots=True)
class ShownWebhook:
    """A webhook with its URL in clear."""

    webhook: Webhook
    url: str

    @property
    def id(self) -> UUID:
        return self.webhook.id


@dataclass(frozen=True, slots=True)
class WebhookChange:
    """What is to be changed; None: nothing."""

    url: str | None = None
    description: str | None = None
    kinds: frozenset[Kind] | None = None
    enabled: bool | None = None

    @property
    def names(self) -> str:
        """The names of what it changes, which tell neither the URL nor the rest."""
        return " ".join(each.name for each in fields(self) if getattr(self, each.name) is not None)


@dataclass(frozen=True, slots=True)
class TestResult:
    delivered: bool
    reason: str = ""
    """UPPER_SNAKE, permanent; empty if it was delivered."""
    status: int = 0
    """The HTTP status of the answer; 0: there was none."""


class Webhooks:
    """Each person has their own, and the installation has some; another owner's looks like one that does not exist.

    What administrators do to those of the installation is recorded with it.
    """

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
        most_of_the_installation: int,
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
        self._most_of_the_installation = most_of_the_installation

    async def create(
        self, registrar: Registrar, url: str, description: str, kinds: frozenset[Kind]
    ) -> tuple[ShownWebhook, str]:
        """Register a webhook. Returns it with its secret, which is shown this once.

        Raises InvalidArgument for a URL or a kind that is refused, TooManyWebhooks, and SessionRevoked for a deleted account.
        """
        _require_by_webhook(kinds)
        checked = self._read(url)
        async with self._db.transaction() as tx:
            await self._require_room(tx, registrar)
        await self._look_up(checked, registrar)
        now, webhook_id, secret = self._clock(), uuid7(), self._random(SECRET_BYTES)
        webhook = Webhook(
            id=webhook_id,
            user_id=registrar.owner_id,
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
        for _ in range(self._most_of(registrar)):
            # A place that another call takes meanwhile is a reason to look for the next one, until none is left.
            async with self._db.transaction() as tx:
                await self._require_room(tx, registrar)
                if await store.webhooks.insert_one(tx, webhook, self._most_of(registrar)):
                    await self._record(tx, registrar, Act.CREATE, webhook_id)
                    return ShownWebhook(webhook, str(checked)), shown(secret)
        raise TooManyWebhooks

    async def list(self, registrar: Registrar, page_size: int, page_token: str) -> Page[ShownWebhook]:
        """The owner's webhooks, newest first. Raises InvalidArgument for a foreign page token."""
        query = f"webhooks:{registrar.owner_id}"
        request = self._pages.request(query, page_size, page_token)
        async with self._db.transaction() as tx:
            rows = await store.webhooks.page(tx, registrar.owner_id, request)
        return self._pages.page(query, request.size, [self._shown(row) for row in rows])

    async def get(self, registrar: Registrar, webhook_id: UUID) -> ShownWebhook:
        """Raises WebhookNotFound."""
        async with self._db.transaction() as tx:
            return self._shown(_own(await store.webhooks.find(tx, webhook_id), registrar))

    async def update(self, registrar: Registrar, webhook_id: UUID, change: WebhookChange) -> ShownWebhook:
        """Raises InvalidArgument for a URL or a kind that is refused, and WebhookNotFound."""
        _require_by_webhook(change.kinds or frozenset())
        checked = None
        if change.url is not None:
            checked = self._read(change.url)
            await self.get(registrar, webhook_id)
            await self._look_up(checked, registrar)
        async with self._db.transaction() as tx:
            found = _own(await store.webhooks.lock(tx, webhook_id), registrar)
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
            await self._record(tx, registrar, Act.UPDATE, webhook_id, change.names)
        return self._shown(changed)

    async def delete(self, registrar: Registrar, webhook_id: UUID) -> None:
        """Raises WebhookNotFound."""
        async with self._db.transaction() as tx:
            if not await store.webhooks.remove(tx, registrar.owner_id, webhook_id):
                raise WebhookNotFound
            await store.webhook_deliveries.forget_content(tx, webhook_id)
            await self._record(tx, registrar, Act.DELETE, webhook_id)

    async def rotate_secret(
        self, registrar: Registrar, webhook_id: UUID, *, end_former: bool
    ) -> tuple[ShownWebhook, str]:
        """Make a new secret, and return it this once. Raises WebhookNotFound."""
        secret = self._random(SECRET_BYTES)
        async with self._db.transaction() as tx:
            found = _own(await store.webhooks.lock(tx, webhook_id), registrar)
            sealed = self._seals.seal_secret(found.id, secret)
            rotated = found.rotated(sealed, self._clock(), end_former=end_former)
            await store.webhooks.save(tx, rotated)
            await self._record(
                tx, registrar, Act.ROTATE_SECRET, webhook_id, "the former one ended" if end_former else ""
            )
        return self._shown(rotated), shown(secret)

    async def test(self, registrar: Registrar, webhook_id: UUID) -> TestResult:
        """Send a message that says that it is a test, at once and once, also if the webhook is disabled.

        Changes nothing of the webhook. Raises WebhookNotFound.
        """
        async with self._db.transaction() as tx:
            webhook = _own(await store.webhooks.find(tx, webhook_id), registrar)
            await self._record(tx, registrar, Act.TEST, webhook_id)
        now = self._clock()
        message = WebhookMessage(uuid7(), _TEST, now, "This is a test", "You asked for it.", "", "")
        headers = signed_headers(message.id, message.body, self._seals.secrets(webhook, now), now)
        try:
            url = self._rules.read(self._seals.url(webhook))
            status = await self._sender.send(url, headers, message.body, owner=registrar.owner_id)
        except LookupsBusy:
            return TestResult(False, "LOOKUPS_BUSY")
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

    async def _look_up(self, url: WebhookUrl, registrar: Registrar) -> None:
        """Refuse at once what would be refused at each message. A name that nobody knows now may be known by then."""
        with suppress(TimeoutError, LookupsBusy):
            try:
                async with asyncio.timeout(_LOOK_UP_SECONDS):
                    await self._sender.look_up(url, registrar.owner_id)
            except ReceiverFailed as failed:
                if failed.reason == "ADDRESS_REFUSED":
                    words = "must name a host that has public addresses alone"
                    raise InvalidArgument([Violation("url", words, failed.reason)]) from None

    async def _require_room(self, tx: Transaction, registrar: Registrar) -> None:
        if await erasure.is_erased(tx, registrar.actor_id):
            raise SessionRevoked
        if await store.webhooks.count(tx, registrar.owner_id) >= self._most_of(registrar):
            raise TooManyWebhooks

    def _most_of(self, registrar: Registrar) -> int:
        return self._most_of_the_installation if registrar.owner_id is None else self._most

    async def _record(
        self, tx: Transaction, registrar: Registrar, act: Act, webhook_id: UUID, detail: str = ""
    ) -> None:
        """Record what an administrator does to a webhook of the installation. Raises SessionRevoked for a deleted account."""
        if registrar.owner_id is not None:
            return
        if await erasure.is_erased(tx, registrar.actor_id):
            raise SessionRevoked
        now = self._clock()
        await store.webhook_acts.add(tx, webhook_id, actor_id=registrar.actor_id, act=act, detail=detail, now=now)
        log.warning(
            "an administrator did %s %s to the system webhook %s",
            act,
            detail,
            webhook_id,
            extra={"user.id": str(registrar.actor_id)},
        )

    def _shown(self, webhook: Webhook) -> ShownWebhook:
        return ShownWebhook(webhook, self._seals.url(webhook))


def _own(webhook: Webhook | None, registrar: Registrar) -> Webhook:
    if webhook is None or webhook.user_id != registrar.owner_id:
        raise WebhookNotFound
    return webhook


def _require_by_webhook(kinds: frozenset[Kind]) -> None:
    if kinds - BY_WEBHOOK:
        words = f"has kinds that go by no webhook: {', '.join(sorted(kinds - BY_WEBHOOK))}"
        raise InvalidArgument([Violation("types", words, "TYPE_NOT_BY_WEBHOOK")])
