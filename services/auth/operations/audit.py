"""The audit log: who did what to whose account, and who was refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID

from kit.data.database import Database, Transaction
from kit.errors import FailedPrecondition, MeshError, PermissionDenied, Unauthenticated
from kit.identity.caller import Caller, Origin
from kit.runtime.clock import Clock

from .. import store
from ..errors import RefreshReused
from ..model import Action, AuditEntry, Session

_REFUSALS = (Unauthenticated, PermissionDenied, FailedPrecondition)
"""The refusals that are recorded. Throttled tries are only logged, because a flood must not fill the database."""


_NOBODY = UUID(int=0)


class Attempt:
    """An action that has begun, with the data of its audit entry."""

    def __init__(self, entry: AuditEntry, clock: Clock) -> None:
        self._entry = entry
        self._clock = clock

    @property
    def entry(self) -> AuditEntry:
        return self._entry

    def concerns(self, user_id: UUID) -> None:
        """Set the account concerned, when it is found during the action."""
        self._entry = replace(self._entry, subject_id=user_id)

    async def done(self, tx: Transaction, *, actor_id: UUID | None = None, session_id: UUID | None = None) -> None:
        """Record the success in the action's own transaction. Sets the actor if the action authenticated it."""
        entry = replace(
            self._entry,
            actor_id=actor_id or self._entry.actor_id,
            session_id=session_id or self._entry.session_id,
        )
        await store.audit.append(tx, entry, self._clock())


class Audit:
    """Writes audit entries: successes in the transaction of the action, refusals in one of their own."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    @asynccontextmanager
    async def attempt(
        self, action: Action, origin: Origin, caller: Caller | None = None, *, subject_id: UUID | None = None
    ) -> AsyncIterator[Attempt]:
        """Record a refusal that the block raises. The block records its success itself, with `done` in its own transaction.

        A caller's attempt concerns their own account, unless the action concerns none.
        """
        own = caller.user_id if caller and action.concerns_account else None
        attempt = Attempt(
            AuditEntry(
                action=action,
                origin=origin,
                actor_id=caller.user_id if caller else None,
                subject_id=subject_id or own,
                session_id=caller.session_id if caller else None,
            ),
            self._clock,
        )
        try:
            yield attempt
        except MeshError as error:
            if isinstance(error, _REFUSALS):
                await self._refused(replace(attempt.entry, reason=error.reason))
            raise

    async def _refused(self, entry: AuditEntry) -> None:
        async with self._db.transaction() as tx:
            # Run the query for unknown accounts too, so that a refusal costs the same work for every account.
            kept = await store.users.keep(tx, entry.subject_id or _NOBODY)
            if entry.subject_id and not kept:
                # The account was deleted, and its addresses and agents erased: this entry must not add one again.
                entry = replace(entry, origin=Origin("", ""))
            await store.audit.append(tx, entry, self._clock())

    async def reuse(self, tx: Transaction, session: Session, origin: Origin) -> None:
        """Record a refused refresh in the transaction that ends the session because of it."""
        entry = AuditEntry(
            Action.REFRESH, origin, None, session.user_id, session_id=session.id, reason=RefreshReused.reason
        )
        await store.audit.append(tx, entry, self._clock())
