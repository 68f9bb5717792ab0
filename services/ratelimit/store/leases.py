"""Leases in Redis and in memory. In Redis the holders under one rule are a sorted set by the ends of their leases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from redis.asyncio import Redis

from ..model.leases import Act, LeaseCall, LeaseState, apply_in_order

MOST_CALLS = 100
"""Calls of one script, because Redis does nothing else meanwhile."""

_APPLY = """
-- KEYS: the holders of each place, each once, in one hash slot. ARGV: for each call what to do, the holder, the number of places,
-- and for each place its number in KEYS, how many may hold one, and for how many microseconds. Returns for each call whether the
-- lease is held, the wait, and the place that refuses. The same arithmetic, with its reasons, is in
-- services/ratelimit/model/leases.py.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local answer, position = {}, 1
while position <= #ARGV do
  local act, holder, count = ARGV[position], ARGV[position + 1], tonumber(ARGV[position + 2])
  position = position + 3
  local places, missing, wait, refusing = {}, false, -1, 0
  for i = 1, count do
    local key, most, ttl = KEYS[tonumber(ARGV[position])], tonumber(ARGV[position + 1]), tonumber(ARGV[position + 2])
    position = position + 3
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    for _, late in ipairs(redis.call('ZRANGEBYSCORE', key, string.format('(%.0f', now + ttl), '+inf')) do
      redis.call('ZADD', key, now + ttl, late)
    end
    places[i] = {key, ttl}
    if not redis.call('ZSCORE', key, holder) then
      missing = true
      local held = redis.call('ZCARD', key)
      if held >= most then
        local ending = redis.call('ZRANGE', key, held - most, held - most, 'WITHSCORES')
        if tonumber(ending[2]) - now > wait then
          wait, refusing = tonumber(ending[2]) - now, i - 1
        end
      end
    end
  end
  local held = 0
  if act == 'release' then
    for _, place in ipairs(places) do
      redis.call('ZREM', place[1], holder)
    end
    wait, refusing = 0, 0
  elseif act == 'renew' and missing then
    wait, refusing = 0, 0
  elseif wait < 0 then
    held, wait = 1, 0
    for _, place in ipairs(places) do
      redis.call('ZADD', place[1], now + place[2], holder)
      -- No lease there ends later than this one.
      redis.call('PEXPIREAT', place[1], math.ceil((now + place[2]) / 1000))
    end
  end
  answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = held, wait, refusing
end
return answer
"""


class LeaseStore(Protocol):
    """What every store of leases promises; tests/ratelimit/test_lease_stores.py holds each of them to it."""

    async def apply(self, calls: Sequence[LeaseCall]) -> list[LeaseState]:
        """Decide the calls in their order by the store's own clock. All places of a call must be in one hash slot.

        Raises OSError or RedisError if the leases cannot be reached; some calls may have been dealt with even so.
        """


class RedisLeaseStore:
    """Leases in Redis, which all replicas share."""

    def __init__(self, redis: Redis) -> None:
        self._script = redis.register_script(_APPLY)

    async def apply(self, calls: Sequence[LeaseCall]) -> list[LeaseState]:
        states: dict[int, LeaseState] = {}
        by_slot: dict[str, list[int]] = {}
        for number, call in enumerate(calls):
            if call.places:
                by_slot.setdefault(call.places[0].key.partition("}")[0], []).append(number)
            else:
                states[number] = LeaseState(held=call.act is not Act.RELEASE)
        for numbers in by_slot.values():
            for begin in range(0, len(numbers), MOST_CALLS):
                part = numbers[begin : begin + MOST_CALLS]
                states.update(zip(part, await self._applied([calls[number] for number in part]), strict=True))
        return [states[number] for number in range(len(calls))]

    async def _applied(self, calls: Sequence[LeaseCall]) -> list[LeaseState]:
        keys: dict[str, int] = {}
        words: list[str | int] = []
        for call in calls:
            words += (call.act, call.holder, len(call.places))
            for place in call.places:
                # Lua counts from 1.
                words += (keys.setdefault(place.key, len(keys) + 1), place.most, place.ttl)
        said: Any = await self._script(list(keys), words)
        return [
            LeaseState(bool(held), wait, refusing)
            for held, wait, refusing in zip(said[::3], said[1::3], said[2::3], strict=True)
        ]


class MemoryLeaseStore:
    """Leases that end with the process, and that no other process sees."""

    def __init__(self, now: Callable[[], int]) -> None:
        """`now` returns microseconds since 1970."""
        self._now = now
        self._holders: dict[str, dict[str, int]] = {}

    async def apply(self, calls: Sequence[LeaseCall]) -> list[LeaseState]:
        """Decide the calls as `LeaseStore` says."""
        states = apply_in_order(calls, self._holders, at=self._now())
        for key in {place.key for call in calls for place in call.places if not self._holders[place.key]}:
            del self._holders[key]
        return states
