"""Claims of avatars at the file service: made before a profile shows one, then made to last or ended by events."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from storymesh.events.v1 import file_events_pb2 as events

from kit.data.database import Database, Transaction
from kit.events import outbox

from .. import store
from ..model import Profile
from ..model.avatars import holder_of


class Claims(Protocol):
    """What the file service does before an avatar is shown."""

    async def claim(self, user_id: UUID, showing_id: UUID, file_id: UUID) -> None:
        """Claim the person's file for an hour, under the name that both ids give.

        Raises FileNotFound, FileNotReady, FilePurposeMismatch, and Unavailable when the file service does not answer.
        """
        ...


class LostAvatars:
    """Takes files out of profiles that are no more."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def take(self, file_id: UUID) -> None:
        """Let the profile that shows the file show none. Idempotent."""
        async with self._db.transaction() as tx:
            await store.profiles.forget_avatar(tx, file_id)


async def publish_claims(tx: Transaction, former: Profile, changed: Profile | None) -> None:
    """Tell the file service that the profile shows the avatar of `changed` from now on, or none, and that of `former` no more."""
    if changed and (shown := _claimed(changed)):
        holder, file_id = shown
        await outbox.add(tx, events.FileClaimsConfirmed(holder=holder, file_ids=[file_id]), key=changed.user_id)
    if shown := _claimed(former):
        holder, file_id = shown
        await outbox.add(tx, events.FileClaimsReleased(holder=holder, file_ids=[file_id]), key=former.user_id)


def _claimed(profile: Profile) -> tuple[str, str] | None:
    """Holder and file of the avatar's claim."""
    if profile.avatar_file_id is None or profile.avatar_showing_id is None:
        return None
    return holder_of(profile.user_id, profile.avatar_showing_id), str(profile.avatar_file_id)
