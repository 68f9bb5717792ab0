"""Limits how many usernames a person may try, because each answer tells whether a username, with which people sign in, is taken."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from redis.asyncio import Redis

from kit.runtime.clock import Clock, milliseconds, unix_milliseconds

from ..errors import TooManyUsernameChanges
from ..store.scripts import COUNT_FAILURE, UNCOUNT_FAILURE
from .throttle import network_of

_WINDOW = timedelta(hours=1)


class UsernameTries:
    """Counts tries in Redis. Fails closed: without Redis no username is changed, because listing must not become free.

    Counts per account, and per network, which bounds people with many accounts. The network's window holds the tries of several
    accounts, so that one account cannot use up its neighbours' share.
    """

    def __init__(
        self, redis: Redis, clock: Clock, *, per_account: int, per_network: int, peppers: Sequence[bytes]
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._per_account = per_account
        self._per_network = per_network
        # The pepper that stays longest: a new one must not reset all counters.
        self._pepper = peppers[-1]

    async def count(self, user_id: UUID, ip: str) -> None:
        """Count a try before the name is looked up. Raises TooManyUsernameChanges, whether the name is taken or free."""
        account = self._key("account", str(user_id))
        await self._count(account, self._per_account)
        try:
            await self._count(self._key("network", network_of(ip)), self._per_network)
        except TooManyUsernameChanges:
            await self._redis.eval(UNCOUNT_FAILURE, 1, account)
            raise

    async def _count(self, key: str, most: int) -> None:
        now = unix_milliseconds(self._clock())
        window = milliseconds(_WINDOW)
        wait = int(await self._redis.eval(COUNT_FAILURE, 1, key, str(now), str(window), str(most)))
        if wait:
            raise TooManyUsernameChanges(retry_after=timedelta(milliseconds=wait))

    def _key(self, kind: str, name: str) -> str:
        owner = hmac.new(self._pepper, f"{kind}\0{name}".encode(), hashlib.sha256).hexdigest()[:32]
        return f"usernames:{{{owner}}}:{kind}"
