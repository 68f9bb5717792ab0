"""Token buckets in Redis: the state of one is a string with the instant at which it is full, in microseconds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ..model import Charge, Taken, Verdict

TAKE = """
-- KEYS: the buckets of one call, each once, in one hash slot. ARGV: capacity, need and debit of each bucket, in microseconds.
-- Returns the time, then each bucket's wait and its debt after the call. Debits all buckets or none. The same arithmetic, with its
-- reasons, is in services/ratelimit/model. The time is Redis's own, because the callers' clocks may differ.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local answer = {now}
local admitted = true
for i, key in ipairs(KEYS) do
  local capacity, need = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1])
  local full_at = tonumber(redis.call('GET', key) or now)
  local debt = math.min(math.max(full_at - now, 0), capacity)
  local wait = debt + need - capacity
  admitted = admitted and wait <= 0
  answer[2 * i], answer[2 * i + 1] = wait, debt
end
if admitted then
  for i, key in ipairs(KEYS) do
    local debit = tonumber(ARGV[3 * i])
    if debit > 0 then
      local debt = answer[2 * i + 1] + debit
      answer[2 * i + 1] = debt
      -- The key expires when the bucket is full, because no key means a full bucket. %.0f, because Lua would round to 14 digits.
      redis.call('SET', key, string.format('%.0f', now + debt), 'PXAT', string.format('%.0f', math.ceil((now + debt) / 1000)))
    end
  end
end
return answer
"""

_CONNECTIONS = 64
"""Concurrent checks at Redis. Further ones wait here, because the pool refuses past its limit, which would look like an outage."""


def retrying_once(client: Redis) -> Redis:
    """Make the client retry a command once, without a pause, which heals connections that a restart of Redis cut.

    Because requests wait for their check, a check must fail at once while Redis is down.
    """
    client.set_retry(Retry(NoBackoff(), 1))
    return client


class BucketStore:
    """Access to the buckets."""

    def __init__(self, redis: Redis) -> None:
        self._take = redis.register_script(TAKE)
        self._connections = asyncio.Semaphore(_CONNECTIONS)

    async def take(self, charges: Sequence[Charge]) -> Taken:
        """Debit all charges or none, atomically. No two may name the same bucket.

        Raises the Redis client's errors.
        """
        arguments = [number for charge in charges for number in (charge.limit.capacity, charge.need, charge.debit)]
        async with self._connections:
            answer = await self._take(keys=[charge.key for charge in charges], args=arguments)
        at, *numbers = cast("list[int]", answer)
        return Taken(at, tuple(map(Verdict, (charge.limit for charge in charges), numbers[::2], numbers[1::2])))
