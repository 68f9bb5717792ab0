"""Token buckets in Redis: the state of one is a string with the instant at which it is full, in microseconds."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import cast

from kit.data.blocking_redis import BlockingRedis

from ..model import Call, Taken, Window

READ = """
-- Reads the buckets into `debts`: of a token bucket the microseconds until it is full, of a quota the tokens used of the period
-- that ends at `ends`. The time is Redis's own, because the callers' clocks may differ.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local debts, ends = redis.call('MGET', unpack(KEYS)), {}
for i = 1, #KEYS do
  local full_at = tonumber(debts[i] or now)
  if full_at then
    debts[i] = math.max(full_at - now, 0)
  else
    local stop, used = string.match(debts[i], '^(%d+):(%d+)$')
    ends[i], debts[i] = tonumber(stop), tonumber(used or 0)
  end
end
"""

BEGIN_PERIOD = """
    -- A negative capacity is that of a quota, in tokens, and three beginnings of periods follow: of the present, the next and the
    -- next but one.
    if capacity < 0 then
      capacity = -capacity
      local starts, stops, after
      starts, stops, after, position = struct.unpack('<ddd', packed, position)
      local stop = now < starts and starts or now < stops and stops or after
      if ends[place] ~= stop then
        ends[place], debts[place] = stop, 0
      end
    end
"""

WRITE = """
  -- The key expires when the bucket is full, because no key means a full bucket. Redis writes numbers with 17 digits.
  local full_at = ends[place] or now + debts[place]
  local state = ends[place] and string.format('%.0f:%.0f', full_at, debts[place]) or full_at
  redis.call('SET', KEYS[place], state, 'PXAT', math.ceil(full_at / 1000))
"""

_TAKE = (
    """
-- KEYS: the buckets of all calls, each once, in one hash slot. ARGV[1]: the calls, packed; each is the number of its charges, and
-- for each charge the place of its bucket in KEYS and its capacity, need and debit in microseconds. Decides the calls in their
-- order, and debits all buckets of a call or none. Returns the time, then for each charge the microseconds until its bucket would
-- be full without it, or the tokens of its quota that are used. The same arithmetic, with its reasons, is in
-- services/ratelimit/model.
"""
    + READ
    + """
local answer, answered, changed = {now}, 1, {}
local packed, position = ARGV[1], 1
local places, debits, after = {}, {}, {}
while position <= #packed do
  local count
  count, position = struct.unpack('<B', packed, position)
  local admitted = true
  for i = 1, count do
    local place, capacity, need, debit
    place, capacity, need, debit, position = struct.unpack('<I2ddd', packed, position)
"""
    + BEGIN_PERIOD
    + """
    local debt = math.min(debts[place], capacity)
    admitted = admitted and debt + need <= capacity
    places[i], debits[i], after[i] = place, debit, debt + debit
    answered = answered + 1
    answer[answered] = debt
  end
  if admitted then
    for i = 1, count do
      if debits[i] > 0 then
        debts[places[i]] = after[i]
        changed[places[i]] = true
      end
    end
  end
end
for place in pairs(changed) do
"""
    + WRITE
    + """
end
return answer
"""
)

MOST_CALLS = 256
"""Calls of one script. Redis does nothing else while a script runs, which must not take much longer than a millisecond."""

MOST_CHARGES = 1024
"""Charges of one script, for the same reason. Lua itself takes at most 8,000 values from a list."""

_COUNT = struct.Struct("<B")
_CHARGE = struct.Struct("<Hddd")
_PERIODS = struct.Struct("<ddd")


class RedisBucketStore:
    """Buckets in Redis, for one thread at a time."""

    def __init__(self, redis: BlockingRedis) -> None:
        self._redis = redis
        self._script = redis.script(_TAKE)

    def take(self, calls: Sequence[Call], *, seconds: float) -> list[Taken]:
        """Decide the calls as `BucketStore` says, in one script unless they are many or of different hash slots."""
        if _fit_one_script(calls):
            return self._take(calls, seconds)
        results: list[Taken | None] = [None] * len(calls)
        for numbers in _parts(calls):
            for number, taken in zip(numbers, self._take([calls[number] for number in numbers], seconds), strict=True):
                results[number] = taken
        return cast("list[Taken]", results)

    def forget(self, keys: Sequence[str], *, seconds: float) -> int:
        """Fill the buckets with these keys: one without state is full. One command a bucket, as they may be of several slots."""
        return sum(cast("int", self._redis.command("DEL", key, seconds=seconds)) for key in keys)

    def _take(self, calls: Sequence[Call], seconds: float) -> list[Taken]:
        keys: dict[str, int] = {}
        packed: dict[int, bytes] = {}
        # Equal calls mostly share their charges, which need to be packed but once.
        arguments = [packed.get(id(charges)) or _packed(charges, keys, packed) for charges in calls]
        at, *owed = cast("list[int]", self._script(list(keys), [b"".join(arguments)], seconds=seconds))
        taken = []
        first = 0
        for charges in calls:
            after = first + len(charges)
            taken.append(Taken(at, charges, owed[first:after]))
            first = after
        return taken


def _packed(charges: Call, keys: dict[str, int], packed: dict[int, bytes]) -> bytes:
    """The call as the script reads it. Adds its buckets to `keys`, and the result to `packed` by the identity of the charges."""
    parts = [_COUNT.pack(len(charges))]
    for charge in charges:
        # Lua counts from 1.
        place = keys.setdefault(charge.key, len(keys) + 1)
        limit = charge.limit
        if isinstance(limit, Window):
            parts.append(_CHARGE.pack(place, -limit.capacity, charge.need, charge.debit))
            parts.append(_PERIODS.pack(limit.starts, limit.ends, limit.after))
        else:
            parts.append(_CHARGE.pack(place, limit.capacity, charge.need, charge.debit))
    whole = packed[id(charges)] = b"".join(parts)
    return whole


def _fit_one_script(calls: Sequence[Call]) -> bool:
    """As almost all batches do."""
    return (
        len(calls) <= MOST_CALLS
        and sum(map(len, calls)) <= MOST_CHARGES
        and len({charges[0].slot for charges in calls}) == 1
    )


def _parts(calls: Sequence[Call]) -> Iterator[Sequence[int]]:
    """The numbers of the calls of each script."""
    by_slot: dict[str, list[int]] = {}
    for number, charges in enumerate(calls):
        by_slot.setdefault(charges[0].slot, []).append(number)
    for numbers in by_slot.values():
        begin = charges_so_far = 0
        for place, number in enumerate(numbers):
            charges_so_far += len(calls[number])
            if place > begin and (place - begin == MOST_CALLS or charges_so_far > MOST_CHARGES):
                yield numbers[begin:place]
                begin, charges_so_far = place, len(calls[number])
        yield numbers[begin:]
