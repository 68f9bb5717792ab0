"""Notifications inside the application."""

from __future__ import annotations

from kit.data.database import Database
from kit.data.paging import Page, Pages
from kit.identity.caller import Caller

from .. import store
from ..model import Notification


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
