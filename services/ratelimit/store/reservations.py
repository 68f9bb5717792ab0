"""Reservations in Redis and in memory: their records, and the buckets that they are taken from.

In Redis a record is a hash. It lasts as long as the reservation may be settled, and for some minutes after it was, so that a
repeated call is answered as the first one was. The buckets are those of services/ratelimit/store/buckets.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from redis.asyncio import Redis

from ..model import MICROSECONDS, Charge, State, Taken, Window, take
from ..model.reservations import Debit, Part, Reserved, Settled, Stage

KEPT_SECONDS = 600
"""How long a settled reservation is remembered at least."""

_RESERVE = """
-- KEYS: the record, then the buckets, all in one hash slot. ARGV: the request's fingerprint, the milliseconds for which the record
-- is kept, the buckets as the record keeps them, and for each bucket its capacity, need and debit, whether it may refuse, and three
-- instants. A negative capacity is that of a quota, and the instants are the beginnings of the present period, the next and the
-- next but one. The same arithmetic is in services/ratelimit/model.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local known = redis.call('HMGET', KEYS[1], 'stage', 'fingerprint')
if known[1] then
  return {now, known[1], known[2]}
end
local answer, admitted, states, taken, stops = {now, '', ''}, true, {}, {}, {}
for i = 2, #KEYS do
  local a = 4 + (i - 2) * 7
  local capacity, need, debit = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  local state, debt, stop = redis.call('GET', KEYS[i]), 0, 0
  if capacity < 0 then
    capacity = -capacity
    local first, second, third = tonumber(ARGV[a + 4]), tonumber(ARGV[a + 5]), tonumber(ARGV[a + 6])
    stop = now < first and first or now < second and second or third
    local ends, used = string.match(state or '', '^(%d+):(%d+)$')
    if ends and tonumber(ends) == stop then
      debt = tonumber(used)
    end
  elseif state then
    debt = math.max((tonumber(state) or now) - now, 0)
  end
  debt = math.min(debt, capacity)
  answer[#answer + 1] = debt
  local fits = debt + need <= capacity
  admitted = admitted and (fits or ARGV[a + 3] == '0')
  states[i], taken[i - 1], stops[i - 1] = debt + debit, fits and 1 or 0, string.format('%.0f', stop)
end
if admitted then
  for i = 2, #KEYS do
    if taken[i - 1] == 1 then
      local stop = tonumber(stops[i - 1])
      local full_at = stop > 0 and stop or now + states[i]
      local state = stop > 0 and string.format('%.0f:%.0f', stop, states[i]) or full_at
      redis.call('SET', KEYS[i], state, 'PXAT', math.ceil(full_at / 1000))
    end
  end
  redis.call('HSET', KEYS[1], 'stage', 'reserved', 'fingerprint', ARGV[1], 'at', string.format('%.0f', now), 'used', 0,
    'buckets', ARGV[3], 'taken', table.concat(taken, ','), 'stops', table.concat(stops, ','))
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return answer
"""

_SETTLE = """
-- KEYS: the record, then the buckets that it was taken from. ARGV: the stage, the tokens used, the milliseconds for which the
-- record is kept at least, and for each bucket the change, the capacity, and the end of a quota's period or 0. The same arithmetic,
-- with its reasons, is in services/ratelimit/model/reservations.py.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local known = redis.call('HMGET', KEYS[1], 'stage', 'used', 'at')
if not known[1] then
  return {}
elseif known[1] ~= 'reserved' then
  return {known[1], known[2]}
end
redis.call('HSET', KEYS[1], 'stage', ARGV[1], 'used', ARGV[2])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
local elapsed = math.max(now - tonumber(known[3]), 0)
for i = 2, #KEYS do
  local a = 4 + (i - 2) * 3
  local change, capacity, stop = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  local state = redis.call('GET', KEYS[i])
  if stop > 0 then
    local ends, used = string.match(state or '', '^(%d+):(%d+)$')
    if ends and tonumber(ends) == stop then
      redis.call('SET', KEYS[i], string.format('%.0f:%.0f', stop, math.max(used + change, 0)), 'KEEPTTL')
    end
  else
    local full_at = math.min(math.max(tonumber(state or now) or now, now), now + capacity)
    if change < 0 then
      full_at = full_at - math.max(-change - elapsed, 0)
    else
      full_at = math.min(full_at + change, now + capacity)
    end
    if full_at > now then
      redis.call('SET', KEYS[i], full_at, 'PXAT', math.ceil(full_at / 1000))
    else
      redis.call('DEL', KEYS[i])
    end
  end
end
return {ARGV[1], ARGV[2]}
"""


class ReservationStore(Protocol):
    """What every store of reservations promises; tests/ratelimit/test_reservation_stores.py holds each of them to it.

    Both methods raise OSError or RedisError if Redis cannot be reached; the call may have been dealt with even so.
    """

    async def reserve(
        self, record: str, fingerprint: str, amount: int, parts: Sequence[Part], *, ttl_seconds: float
    ) -> Reserved:
        """Take from all binding buckets or none, and keep a record. A record that is known already is answered as it is."""

    async def settle(self, record: str, stage: Stage, used: int) -> Settled | None:
        """End a reservation; one that has ended is answered as it is. None if there is no record."""


class RedisReservationStore:
    """Reservations in Redis, which all replicas share."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._reserve = redis.register_script(_RESERVE)
        self._settle = redis.register_script(_SETTLE)

    async def reserve(
        self, record: str, fingerprint: str, amount: int, parts: Sequence[Part], *, ttl_seconds: float
    ) -> Reserved:
        charges = [part.charge for part in parts]
        buckets = [[each.key, each.debit // amount, each.limit.capacity, each.debit] for each in charges]
        words: list[str | int] = [fingerprint, max(1, int(ttl_seconds * 1000)), json.dumps(buckets)]
        for charge, binding in parts:
            window = charge.limit if isinstance(charge.limit, Window) else None
            capacity = charge.limit.capacity
            words += (-capacity if window else capacity, charge.need, charge.debit, int(binding))
            words += (window.starts, window.ends, window.after) if window else (0, 0, 0)
        keys = [record, *(charge.key for charge in charges)]
        at, stage, known, *debts = await self._reserve(keys, words)
        if stage:
            return Reserved(None, stage=Stage(stage.decode()), fingerprint=known.decode())
        return _reserved(parts, Taken(at, charges, debts))

    async def settle(self, record: str, stage: Stage, used: int) -> Settled | None:
        # What a record says of its buckets never changes, so it may be read before the script that needs their names.
        fields: Any = await self._redis.hmget(record, "buckets", "taken", "stops")
        buckets, taken, stops = fields
        if buckets is None:
            return None
        debits = [
            Debit(key, unit, capacity, debit, int(ends))
            for (key, unit, capacity, debit), took, ends in zip(
                json.loads(buckets), taken.split(b","), stops.split(b","), strict=True
            )
            if took == b"1"
        ]
        words: list[str | int] = [stage, used, KEPT_SECONDS * 1000]
        for debit in debits:
            words += (debit.change(used), debit.capacity, debit.ends)
        said: Any = await self._settle([record, *(debit.key for debit in debits)], words)
        return Settled(Stage(said[0].decode()), int(said[1])) if said else None


class _Record(NamedTuple):
    fingerprint: str
    at: int
    expires: int
    debits: tuple[Debit, ...]
    settled: Settled | None = None


class MemoryReservationStore:
    """Reservations that end with the process, and that no other process sees."""

    def __init__(self, now: Callable[[], int], states: dict[str, State]) -> None:
        """`now` returns microseconds since 1970; `states` are the buckets'."""
        self._now = now
        self._states = states
        self._records: dict[str, _Record] = {}

    async def reserve(
        self, record: str, fingerprint: str, amount: int, parts: Sequence[Part], *, ttl_seconds: float
    ) -> Reserved:
        """Reserve as `ReservationStore` says."""
        at = self._now()
        if known := self._known(record, at):
            stage = known.settled.stage if known.settled else Stage.RESERVED
            return Reserved(None, stage=stage, fingerprint=known.fingerprint)
        charges = [part.charge for part in parts]
        reserved = _reserved(parts, take(charges, [self._states.get(each.key) for each in charges], at=at))
        if reserved.admitted and reserved.taken:
            debits = []
            for charge, verdict in zip(charges, reserved.taken.verdicts, strict=True):
                if verdict.admits:
                    debits.append(_debit(charge, amount, at))
                    owed = self._owed(charge, at) + charge.debit
                    self._states[charge.key] = (debits[-1].ends, owed) if debits[-1].ends else at + owed
            expires = at + int(ttl_seconds * MICROSECONDS)
            self._records[record] = _Record(fingerprint, at, expires, tuple(debits))
        return reserved

    async def settle(self, record: str, stage: Stage, used: int) -> Settled | None:
        """Settle as `ReservationStore` says."""
        at = self._now()
        known = self._known(record, at)
        if known is None or known.settled:
            return known.settled if known else None
        for debit in known.debits:
            state = debit.settled(self._states.pop(debit.key, None), used, reserved_at=known.at, at=at)
            if state is not None:
                self._states[debit.key] = state
        expires = max(known.expires, at + KEPT_SECONDS * MICROSECONDS)
        settled = Settled(stage, used)
        self._records[record] = known._replace(settled=settled, expires=expires)
        return settled

    def _known(self, record: str, at: int) -> _Record | None:
        self._records = {name: each for name, each in self._records.items() if each.expires > at}
        return self._records.get(record)

    def _owed(self, charge: Charge, at: int) -> int:
        (before,) = take([Charge(charge.key, charge.limit, 0)], [self._states.get(charge.key)], at=at).verdicts
        return before.debt


def _debit(charge: Charge, amount: int, at: int) -> Debit:
    ends = charge.limit.stop(at) if isinstance(charge.limit, Window) else 0
    return Debit(charge.key, charge.debit // amount, charge.limit.capacity, charge.debit, ends)


def _reserved(parts: Sequence[Part], taken: Taken) -> Reserved:
    admitted = all(verdict.admits or not part.binding for part, verdict in zip(parts, taken.verdicts, strict=True))
    return Reserved(taken, admitted)
