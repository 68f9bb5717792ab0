"""Slows down guessing. Never locks an account permanently, because then anybody could lock anybody out.

Counts failures, whether or not the login names an account, in
- a bucket of the login as typed, or of the device if the account knows it: the wait doubles with each failure. Counting by account
  would tell which username belongs to which address, because failures with one would delay the other;
- windows of the client's network and of all clients, for unknown devices only: they bound guessing at many logins.
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
"""The longest time between two failures at one account that count as a row."""


@dataclass(frozen=True, slots=True)
class ThrottleLimits:
    free_failures: int
    longest_wait: timedelta
    window: timedelta
    per_network: int
    altogether: int


@dataclass
class Guess:
    """One check of a password."""

    right: bool = False
    failures: int = 0
    """Failures in a row at the account after the check, by any login and from any device."""


@dataclass(frozen=True, slots=True)
class _Counter:
    """A failure counter: the script that counts in advance, and the one that takes the failure back."""

    key: str
    count: str
    arguments: tuple[int, ...]
    take_back: str


class SignInThrottle:
    """Counts failed sign-ins in Redis. Fails closed: without Redis nobody signs in, because unlimited guessing would be worse.

    The counters are in several hash slots, so no single script can change them all; each step is one pipeline.
    """

    def __init__(self, redis: Redis, clock: Clock, limits: ThrottleLimits, *, peppers: Sequence[bytes]) -> None:
        self._redis = redis
        self._clock = clock
        self._limits = limits
        # The pepper that stays longest: a new one must not reset all counters.
        self._pepper = peppers[-1]

    @asynccontextmanager
    async def guess(self, bucket: str, *, account: str, ip: str | None) -> AsyncIterator[Guess]:
        """Run the block that checks the password. The failure is counted in advance, so that parallel guesses are throttled too.

        `ip` is None for a known device, which has no windows. Raises TooManySignIns instead of running the block. The failure is
        taken back if the block sets `right`, or raises, because nothing was judged then; not on cancellation, which would make
        guesses free.
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
        """Reset the counters of an account whose owner gave another proof."""
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
    """The network of one customer: an IPv4 address, or an IPv6 /64."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return ip
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.ip_network((address, 64), strict=False))
