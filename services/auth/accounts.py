"""Reading accounts."""

from __future__ import annotations

from uuid import UUID

from services.kit.caller import Caller
from services.kit.clock import Clock
from services.kit.database import Database

from . import store
from .errors import AccountNotFound, SessionRevoked
from .model import User


class Accounts:
    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def own(self, caller: Caller) -> User:
        """The caller's account. Raises AccountNotFound, or SessionRevoked: here an access token does not outlive its session."""
        async with self._db.transaction() as tx:
            user = await store.find_user(tx, caller.user_id)
            if user is None:
                raise AccountNotFound
            if not await store.is_live(tx, caller.session_id, self._clock()):
                raise SessionRevoked
        return user

    async def get(self, user_id: UUID) -> User:
        """Any account, for other services. Raises AccountNotFound."""
        async with self._db.transaction() as tx:
            user = await store.find_user(tx, user_id)
        if user is None:
            raise AccountNotFound(user_id=user_id)
        return user
