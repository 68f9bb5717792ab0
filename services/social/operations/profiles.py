"""Profiles: their owners read, change and delete them, and others look at them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from uuid import UUID

from storymesh.events.v1 import social_events_pb2 as events
from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.errors import SessionRevoked
from kit.events import erasure, outbox
from kit.identity.caller import Caller
from kit.runtime.clock import Clock

from .. import store
from ..errors import HandleChangedTooOften, HandleReserved, HandleTaken, ProfileDeleted, ProfileErasing, UserNotFound
from ..model import Profile, ProfileChange, SeenProfile, State
from ..model.handles import CHANGES_WITHIN, RESERVED_FOR, HandleDigests, is_reserved, next_change_at
from .claims import Claims, publish_claims
from .erasing import hide
from .making import make

log = logging.getLogger(__name__)


class Profiles:
    def __init__(self, db: Database, claims: Claims, digests: HandleDigests, clock: Clock) -> None:
        self._db = db
        self._claims = claims
        self._digests = digests
        self._clock = clock

    async def own(self, caller: Caller) -> Profile:
        """The caller's profile, made if there never was one. Raises ProfileDeleted, ProfileErasing or SessionRevoked."""
        async with self._db.single() as tx:
            profile = await store.profiles.find(tx, caller.user_id)
        if profile is None:
            async with self._db.transaction() as tx:
                profile = await self._locked(tx, caller)
        match profile.state:
            case State.ERASING:
                raise ProfileErasing
            case State.DELETED:
                raise ProfileDeleted
        return profile

    async def update(self, caller: Caller, change: ProfileChange) -> Profile:
        """Change the caller's profile and return it; after its deletion, make another one.

        Raises HandleReserved, HandleTaken, HandleChangedTooOften, ProfileErasing or SessionRevoked; for an avatar as Claims do.
        """
        if change.handle is not None and is_reserved(change.handle, caller.user_id):
            raise HandleReserved
        showing_id = uuid7()
        if change.avatar and change.avatar.file_id:
            await self._claim(caller, showing_id, change.avatar.file_id)
        async with self._db.transaction() as tx:
            profile = await self._locked(tx, caller)
            if profile.state is State.ERASING:
                raise ProfileErasing
            if profile.state is State.DELETED:
                await store.profiles.remove(tx, caller.user_id)
                profile = await self._locked(tx, caller)
            changed = change.of(profile, showing_id)
            if changed.handle != profile.handle:
                await self._require_change_due(tx, caller.user_id)
            if changed != profile and not await store.profiles.save(tx, changed):
                raise HandleTaken
            if changed.handle != profile.handle:
                await self._exchange(tx, caller.user_id, profile.handle, changed.handle)
            if changed.avatar_file_id != profile.avatar_file_id:
                await publish_claims(tx, profile, changed)
        return changed

    async def _claim(self, caller: Caller, showing_id: UUID, file_id: UUID) -> None:
        """Claim a new avatar before the transaction that shows it. If that fails, the claim ends by itself."""
        async with self._db.single() as tx:
            profile = await store.profiles.find(tx, caller.user_id)
        if profile is None or profile.avatar_file_id != file_id:
            await self._claims.claim(caller.user_id, showing_id, file_id)

    async def delete(self, caller: Caller) -> None:
        """Hide the caller's profile from everybody, and have the rest of it erased. Idempotent. Raises SessionRevoked."""
        async with self._db.transaction() as tx:
            profile = await self._locked(tx, caller)
            if profile.state is State.ACTIVE:
                await hide(tx, profile, self._digests, caller.user_id, self._clock())
                await publish_claims(tx, profile, None)
                await outbox.add(tx, events.ProfileDeleted(user_id=str(caller.user_id)), key=caller.user_id)
        log.info("a profile was deleted")

    async def get(self, caller: Caller, user_id: UUID) -> SeenProfile:
        """A person's profile as the caller sees it. Raises UserNotFound."""
        found = await self.get_many(caller, [user_id])
        if not found:
            raise UserNotFound
        return found[0]

    async def get_by_handle(self, caller: Caller, handle: str) -> SeenProfile:
        """The profile that has the handle now, as the caller sees it. Raises UserNotFound."""
        async with self._db.single() as tx:
            seen = await store.visibility.by_handle(tx, caller.user_id, handle)
        if seen is None:
            raise UserNotFound
        return seen

    async def get_many(self, caller: Caller, user_ids: Sequence[UUID]) -> Sequence[SeenProfile]:
        """Those of the profiles that the caller sees, in the order of the ids. The caller's own is made if there never was one."""
        async with self._db.single() as tx:
            seen = await store.visibility.by_ids(tx, caller.user_id, user_ids)
        if caller.user_id in user_ids and caller.user_id not in seen:
            async with self._db.transaction() as tx:
                await self._locked(tx, caller)
                seen = await store.visibility.by_ids(tx, caller.user_id, user_ids)
        return [seen[user_id] for user_id in dict.fromkeys(user_ids) if user_id in seen]

    async def _locked(self, tx: Transaction, caller: Caller) -> Profile:
        """The caller's row of `profiles`, locked, and made if there is none. Raises SessionRevoked."""
        if await erasure.is_erased(tx, caller.user_id):
            raise SessionRevoked
        profile = await store.profiles.lock(tx, caller.user_id)
        if profile is None:
            await make(tx, caller.user_id, self._clock())
            profile = await store.profiles.lock(tx, caller.user_id)
        if profile is None:
            raise RuntimeError("a profile was removed although its account is not erased")
        return profile

    async def _require_change_due(self, tx: Transaction, user_id: UUID) -> None:
        now = self._clock()
        due_at = next_change_at(await store.handles.changes(tx, user_id, now - CHANGES_WITHIN))
        if due_at:
            raise HandleChangedTooOften(retry_after=due_at - now)

    async def _exchange(self, tx: Transaction, user_id: UUID, former: str, handle: str) -> None:
        """Reserve the former handle, and end the reservation of the new one. Raises HandleTaken if that is another's."""
        now, digest = self._clock(), self._digests.digest
        if not await store.handles.take(tx, digest(handle), user_id, now):
            raise HandleTaken
        await store.handles.reserve(tx, digest(former), user_id, now + RESERVED_FOR)
        await store.handles.record_change(tx, user_id, now)
