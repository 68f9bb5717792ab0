"""Slows down guessing at one login; never locks it for good, or anybody could lock anybody out.

A login is throttled as it was typed, whether or not it names an account. Counting by account instead would tell which username
belongs to which address: failing at the one would slow down the other.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from redis.asyncio import Redis

from services.kit.clock import Clock

from .errors import TooManySignIns
from .scripts import ADMIT_SIGN_IN, FORGIVE_SIGN_IN

_FORGOTTEN_AFTER = timedelta(days=1)


class SignInThrottle:
    """Without Redis nobody signs in: unlimited guessing would be worse."""

    def __init__(
        self, redis: Redis, clock: Clock, *, pepper: bytes, free_failures: int, longest_wait: timedelta
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._pepper = pepper
        self._free_failures = free_failures
        self._longest_wait = longest_wait
        self._admit = redis.register_script(ADMIT_SIGN_IN)
        self._forgive = redis.register_script(FORGIVE_SIGN_IN)

    @asynccontextmanager
    async def guess(self, login: str) -> AsyncIterator[None]:
        """Runs the block that looks at the password, with a failure counted in advance: parallel guesses must not slip through.

        Raises TooManySignIns instead of running it. The failure is taken back when the block raises, for then the password was not
        judged; not when the call is cancelled, or hanging up would make guesses free.
        """
        wait = await self._admit(
            keys=[self._key(login)],
            args=[
                int(self._clock().timestamp() * 1000),
                self._free_failures,
                int(self._longest_wait.total_seconds() * 1000),
                int(_FORGOTTEN_AFTER.total_seconds() * 1000),
            ],
        )
        if wait:
            raise TooManySignIns(retry_after=timedelta(milliseconds=wait))
        try:
            yield
        except Exception:
            await self._forgive(keys=[self._key(login)])
            raise

    async def reset(self, login: str) -> None:
        """The password was right."""
        await self._redis.delete(self._key(login))

    def _key(self, login: str) -> str:
        owner = hmac.new(self._pepper, f"login\0{login}".encode(), hashlib.sha256).hexdigest()[:32]
        return f"signin:{{{owner}}}"
