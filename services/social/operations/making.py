"""The making of a person's profile, in the transaction of what needs it."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from kit.data.database import Transaction

from .. import store
from ..model.handles import derived


async def make(tx: Transaction, user_id: UUID, now: datetime) -> None:
    """Make an empty profile under a free handle, unless the person has a row in `profiles`. Any number at once make one.

    To be called once the transaction knows that the person is not erased.
    """
    for handle in derived(user_id):
        if await store.profiles.insert(tx, user_id, handle, now) or await store.profiles.find(tx, user_id):
            return
    raise RuntimeError("no handle that a profile could begin with is free")
