"""Notifications inside the application."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.data.paging import Page, Pages
from kit.events import erasure
from kit.identity.caller import Caller
from kit.runtime.clock import Clock

from .. import store
from ..errors import NotificationNotFound
from ..model import Kind
from ..model.notifications import Actor, ChangeKind, Head, Notification, ShortText, Target
from .watch_positions import WatchPositions


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of notifications, and the state that it shows."""

    page: Page[Notification]
    unread: int
    resume_token: str
    """A watch with it continues the list."""


class Notifications:
    """Lists and changes notifications, for each person only their own."""

    def __init__(self, db: Database, pages: Pages, positions: WatchPositions, clock: Clock) -> None:
        self._db = db
        self._pages = pages
        self._positions = positions
        self._clock = clock

    async def list(self, caller: Caller, page_size: int, page_token: str, *, unread: bool, kind: Kind | None) -> Listed:
        """The caller's notifications, the latest first. Raises InvalidArgument for a foreign page token."""
        query = f"notifications:{caller.user_id}:{'unread' if unread else ''}:{kind or ''}"
        request = self._pages.request(query, page_size, page_token)
        async with self._db.transaction() as tx:
            # Before the list: what happens in between is in the list already when the watch tells it, which does no harm.
            head = await store.notification_changes.head(tx, caller.user_id)
            rows = await store.notifications.page(tx, caller.user_id, request, unread=unread, kind=kind)
        page = self._pages.page(query, request.size, rows, place=lambda each: each.place)
        return Listed(page, head.unread, self._positions.token(caller.user_id, head.position))

    async def count_unread(self, caller: Caller) -> int:
        async with self._db.single() as tx:
            return (await store.notification_changes.head(tx, caller.user_id)).unread

    async def mark_read(self, caller: Caller, notification_id: UUID) -> tuple[Notification, int]:
        """Return the notification and the number of unread ones. Raises NotificationNotFound."""
        async with self._db.transaction() as tx:
            found = await self._locked(tx, caller, notification_id)
            if found.read_at:
                head = await store.notification_changes.head(tx, caller.user_id)
            else:
                now = self._clock()
                await store.notifications.mark_read(tx, found.id, now)
                head = await self._record(tx, caller, ChangeKind.READ, now, found.id)
            read = await store.notifications.find(tx, caller.user_id, found.id)
        return read or found, head.unread

    async def mark_all_read(self, caller: Caller) -> int:
        """Return how many were unread."""
        async with self._db.transaction() as tx:
            if await erasure.is_erased(tx, caller.user_id):
                return 0
            await store.notification_changes.lock(tx, caller.user_id)
            now = self._clock()
            marked = await store.notifications.mark_all_read(tx, caller.user_id, now)
            if marked:
                await self._record(tx, caller, ChangeKind.ALL_READ, now)
        return marked

    async def delete(self, caller: Caller, notification_id: UUID) -> int:
        """Return the number of unread notifications. Raises NotificationNotFound."""
        async with self._db.transaction() as tx:
            found = await self._locked(tx, caller, notification_id)
            await store.notifications.remove(tx, found.id)
            return (await self._record(tx, caller, ChangeKind.DELETED, self._clock(), found.id)).unread

    async def _locked(self, tx: Transaction, caller: Caller, notification_id: UUID) -> Notification:
        # A stranger's call finds nothing and writes nothing, and neither does one for an account that is being erased.
        if await erasure.is_erased(tx, caller.user_id):
            raise NotificationNotFound
        if not await store.notifications.find(tx, caller.user_id, notification_id):
            raise NotificationNotFound
        await store.notification_changes.lock(tx, caller.user_id)
        found = await store.notifications.find(tx, caller.user_id, notification_id)
        if not found:
            raise NotificationNotFound
        return found

    async def _record(
        self, tx: Transaction, caller: Caller, kind: ChangeKind, now: datetime, notification_id: UUID | None = None
    ) -> Head:
        return await store.notification_changes.record(tx, caller.user_id, kind, now, notification_id=notification_id)


class Notifier:
    """Adds notifications in the transactions of others."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def notify(
        self,
        tx: Transaction,
        user_id: UUID,
        kind: Kind,
        text: ShortText,
        target: Target,
        *,
        actor: Actor | None = None,
        grouped: bool = False,
    ) -> None:
        """Add a notification, which watchers get when the transaction commits.

        The caller has asked `erasure.is_erased` for the person in this transaction. Nothing is added for an erased `actor`, who
        did what is told. With `grouped` it joins the unread notification of the same type and target, if there is one.
        """
        if actor and await erasure.is_erased(tx, actor.id):
            return
        await store.notification_changes.lock(tx, user_id)
        now, occurrence = self._clock(), uuid7()
        group = await store.notifications.find_open_group(tx, user_id, kind, target) if grouped else None
        if group:
            is_new = actor is not None and await store.notifications.add_actor(tx, group.id, actor, occurrence)
            joined = group.joined(text.cut(), actor, is_new=is_new, occurrence=occurrence, now=now)
            await store.notifications.save_joined(tx, joined)
            change, notification_id = ChangeKind.UPDATED, group.id
        else:
            change, notification_id = ChangeKind.ADDED, occurrence
            added = Notification(
                id=occurrence,
                user_id=user_id,
                type=kind,
                text=text.cut(),
                target=target,
                created_at=now,
                grouped=grouped,
                actors=(actor,) if actor else (),
                actor_count=1 if actor else 0,
            )
            await store.notifications.insert(tx, added)
            if actor:
                await store.notifications.add_actor(tx, added.id, actor, occurrence)
        await store.notification_changes.record(tx, user_id, change, now, notification_id=notification_id)


class Acts:
    """The acts of people that others were notified of."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def erase(self, actor_id: UUID, batch: int) -> None:
        """Remove an erased person from the notifications of others. Those that name nobody else are deleted."""
        while acts := await self._some(actor_id, batch):
            for notification_id, owner_id in acts:
                await self._erase_one(actor_id, notification_id, owner_id)

    async def _some(self, actor_id: UUID, batch: int) -> Sequence[tuple[UUID, UUID]]:
        async with self._db.single() as tx:
            return await store.notifications.acts(tx, actor_id, batch)

    async def _erase_one(self, actor_id: UUID, notification_id: UUID, owner_id: UUID) -> None:
        async with self._db.transaction() as tx:
            owner_is_erased = await erasure.is_erased(tx, owner_id)
            if not owner_is_erased:
                await store.notification_changes.lock(tx, owner_id)
            left = await store.notifications.remove_actor(tx, notification_id, actor_id)
            if left == 0:
                await store.notifications.remove(tx, notification_id)
            # An erased owner watches nothing, and nothing may be written about them.
            if left is not None and not owner_is_erased:
                kind = ChangeKind.UPDATED if left else ChangeKind.DELETED
                await store.notification_changes.record(
                    tx, owner_id, kind, self._clock(), notification_id=notification_id
                )
