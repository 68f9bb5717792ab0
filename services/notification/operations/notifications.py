"""Notifications inside the application."""

from __future__ import annotations

from uuid import UUID

from uuid_utils.compat import uuid7

from kit.data.database import Database
from kit.data.paging import Page, Pages
from kit.events import erasure
from kit.events.envelope import Event
from kit.events.inbox_store import mark_processed
from kit.identity.caller import Caller
from kit.runtime.clock import Clock

from .. import store
from ..model import Letter, Notification, NotificationType


class Notifications:
    """Lists notifications, to each person only their own."""

    def __init__(self, db: Database, pages: Pages) -> None:
        self._db = db
        self._pages = pages

    async def list(self, caller: Caller, page_size: int, page_token: str) -> Page[Notification]:
        """The caller's notifications, newest first. Raises InvalidArgument for a foreign page token."""
        query = f"notifications:{caller.user_id}"
        request = self._pages.request(query, page_size, page_token)
        async with self._db.transaction() as tx:
            rows = await store.notifications.page(tx, caller.user_id, request)
        return self._pages.page(query, request.size, rows)


class Notifier:
    """Adds notifications: at most one per event, and none for an erased person."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def notify(
        self, event: Event, user_id: UUID, kind: NotificationType, letter: Letter, story_id: UUID | None = None
    ) -> None:
        notification = Notification(
            id=uuid7(),
            user_id=user_id,
            type=kind,
            title=letter.subject,
            body=letter.body,
            story_id=story_id,
            created_at=self._clock(),
            read_at=None,
        )
        async with self._db.transaction() as tx:
            if not await erasure.is_erased(tx, user_id) and await mark_processed(tx, event):
                await store.notifications.insert(tx, notification)
