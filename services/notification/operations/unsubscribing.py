"""Stops mails for whoever holds a link out of one of them, without signing in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kit.data.database import Database
from kit.events import erasure
from kit.runtime.clock import Clock

from .. import store
from ..errors import UnsubscribeLinkInvalid
from ..model import Kind
from ..model.deliveries import Channel
from ..model.preferences import KindDefaults, Preferences, Timing
from ..model.unsubscribing import Subscription, UnsubscribeLinks


class Unsubscribing:
    """Reads and uses links. That a person is unsubscribed already, or was erased, is no error: nothing is left to stop."""

    def __init__(self, db: Database, clock: Clock, kinds: Mapping[str, KindDefaults], links: UnsubscribeLinks) -> None:
        self._db = db
        self._clock = clock
        self._kinds = kinds
        self._links = links

    async def language(self, token: str) -> str:
        """The person's language, for the page that asks. Raises UnsubscribeLinkInvalid."""
        subscription = self._opened(token)
        async with self._db.single() as tx:
            return (await store.preferences.find(tx, subscription.user_id)).language

    async def unsubscribe(self, token: str) -> str:
        """Turn off what the link names, and return the person's language. Raises UnsubscribeLinkInvalid."""
        subscription = self._opened(token)
        now = self._clock()
        async with self._db.transaction() as tx:
            if await erasure.is_erased(tx, subscription.user_id):
                return ""
            await store.preferences.lock(tx, subscription.user_id)
            former = await store.preferences.find(tx, subscription.user_id)
            changed = self._without(former, subscription.kind)
            if changed != former:
                await store.preferences.save(tx, changed, now)
                await store.held.judge_anew(tx, subscription.user_id, now)
        return former.language

    def _opened(self, token: str) -> Subscription:
        subscription = self._links.open(token)
        if subscription is None:
            raise UnsubscribeLinkInvalid
        return subscription

    def _without(self, preferences: Preferences, kind: str) -> Preferences:
        """The preferences without mails of this kind. A digest is of the kinds that were chosen to be in one."""
        if kind == Kind.DIGEST:
            stopped = {key for key, timing in preferences.choices.items() if timing.is_digest}
        else:
            known = self._kinds.get(kind)
            stopped = {(kind, Channel.EMAIL)} if known and not known.security else set()
        return replace(preferences, choices={**preferences.choices, **dict.fromkeys(stopped, Timing.OFF)})
