"""Blocks and mutes: taken, taken back and listed."""

from __future__ import annotations

from uuid import UUID

from storymesh.events.v1 import social_events_pb2 as events
from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.data.paging import Page, Pages
from kit.errors import SessionRevoked
from kit.events import erasure, outbox
from kit.identity.caller import Caller
from kit.runtime.clock import Clock

from .. import store
from ..errors import OwnId, ProfileErasing, UserNotFound
from ..model import ListedProfile, Relationship, Stance, State


class Stances:
    def __init__(self, db: Database, pages: Pages, clock: Clock) -> None:
        self._db = db
        self._pages = pages
        self._clock = clock

    async def take(self, caller: Caller, stance: Stance, subject_id: UUID) -> Relationship:
        """Block or mute a person. Idempotent. Raises OwnId, UserNotFound, ProfileErasing or SessionRevoked."""
        async with self._db.transaction() as tx:
            if stance is Stance.BLOCK:
                # Of two who block each other at once, the second does not find the first: neither could take such a block back.
                await store.stances.hold_pair(tx, caller.user_id, subject_id)
            await self._require(tx, caller, subject_id)
            taken = await store.stances.add(
                tx, stance, caller.user_id, subject_id, stance_id=uuid7(), created_at=self._clock()
            )
            if taken and stance is Stance.BLOCK:
                blocked = events.UserBlocked(blocker_id=str(caller.user_id), blocked_id=str(subject_id))
                await outbox.add(tx, blocked, key=_pair(caller.user_id, subject_id))
            return await self._relationship(tx, caller, subject_id)

    async def take_back(self, caller: Caller, stance: Stance, subject_id: UUID) -> Relationship:
        """Unblock or unmute a person. Idempotent. Raises as `take` does."""
        async with self._db.transaction() as tx:
            await self._require(tx, caller, subject_id)
            if await store.stances.remove(tx, stance, caller.user_id, subject_id) and stance is Stance.BLOCK:
                await publish_unblocked(tx, caller.user_id, subject_id)
            return await self._relationship(tx, caller, subject_id)

    async def list(self, caller: Caller, stance: Stance, page_size: int, page_token: str) -> Page[ListedProfile]:
        """A page of whom the caller blocks or mutes. Raises InvalidArgument for a page token of another list."""
        query = f"{stance}:{caller.user_id}"
        request = self._pages.request(query, page_size, page_token)
        async with self._db.single() as tx:
            rows = await store.stances.page(tx, stance, caller.user_id, request)
        return self._pages.page(query, request.size, rows)

    async def _require(self, tx: Transaction, caller: Caller, subject_id: UUID) -> None:
        """Both people are there, and stay so until the transaction ends."""
        if caller.user_id == subject_id:
            raise OwnId
        erased = await erasure.erased_among(tx, (caller.user_id, subject_id))
        if caller.user_id in erased:
            raise SessionRevoked
        profile = await store.profiles.keep(tx, caller.user_id)
        if profile and profile.state is State.ERASING:
            raise ProfileErasing
        if subject_id in erased:
            raise UserNotFound
        # The subject's visibility is asked last: who is not found is not found for any reason.
        await self._relationship(tx, caller, subject_id)

    async def _relationship(self, tx: Transaction, caller: Caller, subject_id: UUID) -> Relationship:
        seen = await store.visibility.by_ids(tx, caller.user_id, [subject_id])
        if subject_id not in seen:
            raise UserNotFound
        return seen[subject_id].relationship


async def publish_unblocked(tx: Transaction, blocker_id: UUID, blocked_id: UUID) -> None:
    unblocked = events.UserUnblocked(blocker_id=str(blocker_id), blocked_id=str(blocked_id))
    await outbox.add(tx, unblocked, key=_pair(blocker_id, blocked_id))


def _pair(one: UUID, other: UUID) -> str:
    """The key of events about two people, so that these arrive in order whoever of the two acts."""
    return ":".join(sorted((str(one), str(other))))
