"""Claims of avatars at the file service: made before a profile shows one, then made to last or ended by events."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from storymesh.events.v1 import file_events_pb2 as events

from kit.data.database import Database, Transaction
from kit.events import outbox

from .. import store
from ..model.avatars import holder_of


class Claims(Protocol):
    """What the file service does before an avatar is shown."""

    async def claim(self, user_id: UUID, file_id: UUID) -> None:
        """Claim the person's file for an hour.

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


async def publish_claims(tx: Transaction, user_id: UUID, former: UUID | None, avatar: UUID | None) -> None:
    """Tell the file service that the profile shows `avatar` from now on, and `former` no more."""
    holder = holder_of(user_id)
    if avatar:
        await outbox.add(tx, events.FileClaimsConfirmed(holder=holder, file_ids=[str(avatar)]), key=user_id)
    if former:
        await outbox.add(tx, events.FileClaimsReleased(holder=holder, file_ids=[str(former)]), key=user_id)
