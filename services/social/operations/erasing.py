"""Erasure of profiles, and of everything that is stored about people whose accounts were deleted."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from kit.data.database import Database, Transaction
from kit.events import erasure
from kit.events.envelope import Event
from kit.runtime.clock import Clock

from .. import store
from ..model import MessagePolicy, Profile, Stance, State
from ..model.handles import RESERVED_FOR, HandleDigests
from .stances import publish_unblocked

log = logging.getLogger(__name__)


async def hide(
    tx: Transaction, profile: Profile, digests: HandleDigests, handle_for: UUID | None, now: datetime
) -> None:
    """Take handle and texts out of a locked, active profile, which nobody sees from then on.

    The handle is reserved for `handle_for`, or for nobody. The claim of an avatar is the caller's to end, unless the file service
    erases the person too.
    """
    empty = replace(
        profile,
        state=State.ERASING,
        handle="",
        display_name="",
        bio="",
        private=True,
        avatar_file_id=None,
        avatar_showing_id=None,
        message_policy=MessagePolicy.NOBODY,
    )
    await store.profiles.save(tx, empty)
    await store.handles.reserve(tx, digests.digest(profile.handle), handle_for, now + RESERVED_FOR)


class Erasing:
    """Erases: interruptible at any step, and idempotent.

    A transaction deletes at most `batch` rows of one kind, to hold no lock for long.
    """

    def __init__(self, db: Database, digests: HandleDigests, clock: Clock, *, batch: int = 500) -> None:
        self._db = db
        self._digests = digests
        self._clock = clock
        self._batch = batch

    async def erase_profile(self, user_id: UUID) -> None:
        """Erase whom the owner of a deleted profile blocks and mutes. Without effect on a profile that was made since."""
        while await self._erase_stances(user_id):
            pass

    async def _erase_stances(self, user_id: UUID) -> bool:
        """One step. True when there may be more."""
        async with self._db.transaction() as tx:
            profile = await store.profiles.lock(tx, user_id)
            if profile is None or profile.state is not State.ERASING:
                return False
            unblocked = await store.stances.remove_some(tx, Stance.BLOCK, user_id, self._batch)
            for subject_id in unblocked:
                await publish_unblocked(tx, user_id, subject_id)
            if unblocked or await store.stances.remove_some(tx, Stance.MUTE, user_id, self._batch):
                return True
            await store.profiles.save(tx, replace(profile, state=State.DELETED))
        log.info("erased a deleted profile")
        return False

    async def erase(self, user_id: UUID) -> None:
        """Erase everything about the person, their handles' reservations excepted, which name nobody any more.

        Leaves a tombstone that prevents new rows.
        """
        async with self._db.transaction() as tx:
            await erasure.erase(tx, user_id)
            profile = await store.profiles.lock(tx, user_id)
            if profile and profile.state is State.ACTIVE:
                await hide(tx, profile, self._digests, None, self._clock())
        erased = True
        while erased:
            async with self._db.transaction() as tx:
                erased = await store.erasure.erase_some(tx, user_id, self._batch) > 0
        async with self._db.transaction() as tx:
            await store.handles.disown(tx, user_id)
            await store.erasure.erase_events(tx, user_id)
            await store.profiles.remove(tx, user_id)
        log.info("erased a person whose account was deleted")

    async def forgotten(self, tx: Transaction, event: Event) -> bool:
        """Whether an event of the inboxes is about an erased person."""
        return await erasure.is_erased(tx, UUID(event.key))
