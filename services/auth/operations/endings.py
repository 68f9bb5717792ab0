"""Ends sessions before they expire: in the database, on the revocation list and as events, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from storymesh.events.v1 import auth_events_pb2 as events

from kit.data.database import Transaction
from kit.errors import SessionRevoked
from kit.events import outbox
from kit.identity.caller import Caller
from kit.identity.revocations import Revocation, RevocationKind
from kit.runtime.clock import SKEW, Clock

from .. import store
from ..model import RevokeReason


class Endings:
    """Ends sessions. `token_life` is that of an access token, and so the time for which a revocation is remembered."""

    def __init__(self, clock: Clock, *, token_life: timedelta) -> None:
        self._clock = clock
        self._token_life = token_life

    async def require_live(self, tx: Transaction, caller: Caller) -> None:
        """Check the session in the database, for actions that cannot wait for the revocation list. Raises SessionRevoked."""
        if not await store.sessions.is_live(tx, caller.session_id, self._clock()):
            raise SessionRevoked

    async def live_among(self, tx: Transaction, session_ids: Sequence[UUID]) -> Mapping[UUID, bool]:
        """As `require_live`, for many sessions: True for those that have not ended. A single statement."""
        return await store.sessions.live_among(tx, session_ids, self._clock())

    async def end(self, tx: Transaction, user_id: UUID, session_id: UUID, reason: RevokeReason) -> bool:
        """End the session. False if it had ended before."""
        if not await store.sessions.revoke(tx, session_id, reason, self._clock()):
            return False
        await store.revocations.insert(tx, [Revocation(RevocationKind.SESSION, str(session_id), self._until())])
        event = events.SessionRevoked(user_id=str(user_id), session_id=str(session_id), reason=_reason(reason))
        await outbox.add(tx, event, key=user_id)
        return True

    async def end_all(self, tx: Transaction, user_id: UUID, reason: RevokeReason, *, but: UUID | None = None) -> int:
        """End all sessions of the account and return how many there were. The transaction holds the account's lock.

        Writes one revocation and one event for any number of sessions, so that one account does not delay others.
        """
        count, epoch = await store.sessions.revoke_all(tx, user_id, reason, self._clock(), but=but)
        if count:
            await store.revocations.insert(
                tx, [Revocation(RevocationKind.USER, str(user_id), self._until(), epoch, but)]
            )
            await self._tell(tx, user_id, reason, count)
        return count

    async def surplus_ended(self, tx: Transaction, user_id: UUID, ended: Sequence[UUID]) -> None:
        """Revoke the tokens of sessions that ended because there were too many, and tell of it."""
        if ended:
            until = self._until()
            await store.revocations.insert(tx, [Revocation(RevocationKind.SESSION, str(each), until) for each in ended])
            await self._tell(tx, user_id, RevokeReason.TOO_MANY, len(ended))

    async def end_account(self, tx: Transaction, user_id: UUID) -> None:
        """End the account's sessions before it is deleted. The transaction holds the account's lock."""
        count = await store.sessions.count_live(tx, user_id, self._clock())
        await self.refuse(tx, RevocationKind.USER, str(user_id))
        await self._tell(tx, user_id, RevokeReason.ACCOUNT_DELETED, count)

    async def refuse(self, tx: Transaction, kind: RevocationKind, value: str) -> None:
        """Revoke all access tokens of a person or a key."""
        await store.revocations.insert(tx, [Revocation(kind, value, self._until())])

    async def _tell(self, tx: Transaction, user_id: UUID, reason: RevokeReason, count: int) -> None:
        event = events.SessionsRevoked(user_id=str(user_id), reason=_reason(reason), count=count)
        await outbox.add(tx, event, key=user_id)

    def _until(self) -> datetime:
        """When all tokens issued before now have expired, whatever the permitted clock skew of issuer and verifier."""
        return self._clock() + self._token_life + 2 * SKEW


def _reason(reason: RevokeReason) -> events.SessionRevokeReason.ValueType:
    return events.SessionRevokeReason.Value(f"SESSION_REVOKE_REASON_{reason}")
