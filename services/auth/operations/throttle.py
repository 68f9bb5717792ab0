"""Slows down guessing; never locks an account for good, or anybody could lock anybody out.

Failures are counted, whether or not the login names an account, in
- a bucket of the login as it was typed, or of the device when it is known to the account: waits double with each failure. Counting
  by account instead would tell which username belongs to which address: failing at the one would slow down the other;
- windows of the client's network and of everybody, for unknown devices only: they bound guessing at many logins.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from redis.asyncio import Redis

from kit.runtime.clock import Clock, milliseconds, unix_milliseconds

from ..errors import TooManySignIns
from ..store.scripts import ADMIT_SIGN_IN, COUNT_FAILURE, FORGIVE_SIGN_IN, UNCOUNT_FAILURE

_FORGOTTEN_AFTER = timedelta(days=1)

_COUNTED_FOR = timedelta(days=30)
"""How far apart failures at one account may be to count as a row."""


@dataclass(frozen=True, slots=True)
class ThrottleLimits:
    free_failures: int
    longest_wait: timedelta
    window: timedelta
    per_network: int
    altogether: int


@dataclass
class Guess:
    """One look at a password."""

    right: bool = False
    failures: int = 0
    """After the look: how many in a row it makes at the account, however it was named and from whatever device."""


@dataclass(frozen=True, slots=True)
class _Counter:
    """Something that counts failures: how one is counted in advance, and how it is taken back."""

    key: str
    count: str
    arguments: tuple[int, ...]
    take_back: str


class SignInThrottle:
    """Without Redis nobody signs in: unlimited guessing would be worse.

    What is counted lies in several hash slots, so that no script can hold it all; one pipeline at a time goes there and back.
    """

    def __init__(self, redis: Redis, clock: Clock, limits: ThrottleLimits, *, peppers: Sequence[bytes]) -> None:
        self._redis = redis
        self._clock = clock
        self._limits = limits
        # The one that stays the longest: a new pepper must not set all counters to zero.
        self._pepper = peppers[-1]

    @asynccontextmanager
    async def guess(self, bucket: str, *, account: str, ip: str | None) -> AsyncIterator[Guess]:
        """Runs the block that looks at the password, with a failure counted in advance: parallel guesses must not slip through.

        `ip` is None for a known device, which the windows do not concern. Raises TooManySignIns instead of running the block. The
        failure is taken back when the block says that the password was right or raises, for then it was not judged; not when the
        call is cancelled, or hanging up would make guesses free.
        """
        login, *windows = counters = self._counters(bucket, ip)
        waits = await self._run([(each.count, each.key, each.arguments) for each in counters])
        if any(waits):
            await self._take_back([each for each, wait in zip(counters, waits, strict=True) if not wait])
            raise TooManySignIns(retry_after=timedelta(milliseconds=max(waits)))
        guess = Guess()
        try:
            yield guess
        except Exception:
            await self._take_back(counters)
            raise
        if guess.right:
            await self._take_back(windows, forgotten=[login.key, self._key("account", account)])
        else:
            guess.failures = await self._failed(account)

    async def forget(self, account: str, *buckets: str) -> None:
        """The owner proved who they are."""
        await self._take_back(
            [], forgotten=[self._key("account", account), *(self._key("login", each) for each in buckets)]
        )

    def _counters(self, bucket: str, ip: str | None) -> list[_Counter]:
        limits, now = self._limits, unix_milliseconds(self._clock())
        waits = (now, limits.free_failures, milliseconds(limits.longest_wait), milliseconds(_FORGOTTEN_AFTER))
        counters = [_Counter(self._key("login", bucket), ADMIT_SIGN_IN, waits, FORGIVE_SIGN_IN)]
        if ip is not None:
            for name, most in ((network_of(ip), limits.per_network), ("everybody", limits.altogether)):
                window = (now, milliseconds(limits.window), most)
                counters.append(_Counter(self._key("network", name), COUNT_FAILURE, window, UNCOUNT_FAILURE))
        return counters

    async def _run(self, scripts: Sequence[tuple[str, str, tuple[int, ...]]]) -> list[int]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for script, key, arguments in scripts:
                pipeline.eval(script, 1, key, *map(str, arguments))
            return [int(answer) for answer in await pipeline.execute()]

    async def _take_back(self, counters: Sequence[_Counter], *, forgotten: Sequence[str] = ()) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for each in counters:
                pipeline.eval(each.take_back, 1, each.key)
            for key in forgotten:
                pipeline.delete(key)
            await pipeline.execute()

    async def _failed(self, account: str) -> int:
        key = self._key("account", account)
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.incr(key)
            pipeline.expire(key, _COUNTED_FOR)
            failures, _ = await pipeline.execute()
        return int(failures)

    def _key(self, kind: str, name: str) -> str:
        owner = hmac.new(self._pepper, f"{kind}\0{name}".encode(), hashlib.sha256).hexdigest()[:32]
        return f"signin:{{{owner}}}:{kind}"


def network_of(ip: str) -> str:
    """One customer's addresses: the address itself, of IPv6 the /64."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return ip
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.ip_network((address, 64), strict=False))
