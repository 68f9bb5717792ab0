"""People as other services ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from kit.data.database import Database

from .. import store
from ..model import SeenProfile, may_contact


class Directory:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def get_many(self, viewer_id: UUID | None, user_ids: Sequence[UUID]) -> Sequence[SeenProfile]:
        """Those of the profiles that the viewer sees, in the order of the ids; without a viewer, all that are there, whole."""
        async with self._db.single() as tx:
            seen = await store.visibility.by_ids(tx, viewer_id, user_ids)
        return [seen[user_id] for user_id in dict.fromkeys(user_ids) if user_id in seen]

    async def may_contact(self, sender_id: UUID, recipient_id: UUID) -> bool:
        """Whether the sender may begin a conversation with the recipient. False for people who are not there."""
        async with self._db.single() as tx:
            seen = await store.visibility.by_ids(tx, sender_id, [sender_id, recipient_id])
        return may_contact(seen.get(sender_id), seen.get(recipient_id))
