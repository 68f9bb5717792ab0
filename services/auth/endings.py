"""Ending sessions before their time: in the database, on the revocation list and as events, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from storymesh.events.v1 import auth_events_pb2 as events

from services.kit import outbox
from services.kit.caller import Caller
from services.kit.clock import SKEW, Clock
from services.kit.database import Transaction
from services.kit.errors import SessionRevoked
from services.kit.revocations import Kind, Revocation

from . import store
from .model import RevokeReason


class Endings:
    """`token_life` is that of an access token: so long a revocation has to be remembered."""

    def __init__(self, clock: Clock, *, token_life: timedelta) -> None:
        self._clock = clock
        self._token_life = token_life

    async def require_live(self, tx: Transaction, caller: Caller) -> None:
        """Raises SessionRevoked. For what must not happen in the moment before the revocation list has gone round."""
        if not await store.sessions.is_live(tx, caller.session_id, self._clock()):
            raise SessionRevoked

    async def end(self, tx: Transaction, user_id: UUID, session_id: UUID, reason: RevokeReason) -> bool:
        """False when it had ended before."""
        if not await store.sessions.revoke(tx, session_id, reason, self._clock()):
            return False
        await self._tell(tx, user_id, [session_id], reason)
        return True

    async def end_all(self, tx: Transaction, user_id: UUID, reason: RevokeReason, *, but: UUID | None = None) -> int:
        """How many there were. The transaction holds the account's lock."""
        ended = await store.sessions.revoke_all(tx, user_id, reason, self._clock(), but=but)
        await self._tell(tx, user_id, ended, reason)
        return len(ended)

    async def refuse(self, tx: Transaction, kind: Kind, value: str) -> None:
        """All access tokens of a person or a key."""
        await store.revocations.insert(tx, [Revocation(kind, value, self._until())])

    async def _tell(self, tx: Transaction, user_id: UUID, ended: Sequence[UUID], reason: RevokeReason) -> None:
        until = self._until()
        await store.revocations.insert(tx, [Revocation(Kind.SESSION, str(each), until) for each in ended])
        for session_id in ended:
            event = events.SessionRevoked(
                user_id=str(user_id),
                session_id=str(session_id),
                reason=events.SessionRevokeReason.Value(f"SESSION_REVOKE_REASON_{reason}"),
            )
            await outbox.add(tx, event, key=user_id)

    def _until(self) -> datetime:
        """When no token issued before now is taken any more, by clocks that are as wrong as they may be, on both sides."""
        return self._clock() + self._token_life + 2 * SKEW
