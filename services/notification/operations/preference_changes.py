"""Reads and changes what people want to be told, how and when."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kit.data.database import Database
from kit.errors import SessionRevoked
from kit.events import erasure
from kit.identity.caller import Caller
from kit.runtime.clock import Clock

from .. import store
from ..model.preference_changes import PreferenceChange
from ..model.preferences import KindDefaults, Preferences


class PreferenceChanges:
    """Reads and changes preferences, each person only their own."""

    def __init__(
        self, db: Database, clock: Clock, kinds: Mapping[str, KindDefaults], languages: Collection[str]
    ) -> None:
        self._db = db
        self._clock = clock
        self.kinds = kinds
        self.languages = languages

    async def read(self, caller: Caller) -> Preferences:
        async with self._db.single() as tx:
            return await store.preferences.find(tx, caller.user_id)

    async def change(self, caller: Caller, change: PreferenceChange) -> Preferences:
        """Change the caller's preferences. Raises InvalidArgument, and SessionRevoked if the account was deleted."""
        now = self._clock()
        async with self._db.transaction() as tx:
            if await erasure.is_erased(tx, caller.user_id):
                raise SessionRevoked
            await store.preferences.lock(tx, caller.user_id)
            former = await store.preferences.find(tx, caller.user_id)
            changed = change.of(former, self.kinds, self.languages)
            await store.preferences.save(tx, changed, now)
            await store.held.judge_anew(tx, caller.user_id, now)
        return changed
