"""Takes as many tokens from buckets as there are, for an Envoy that spends them by itself. The buckets are those of checks."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, cast

from kit.data.blocking_redis import BlockingRedis

from ..model import Charge, Window
from .buckets import BEGIN_PERIOD, MOST_CALLS, MOST_CHARGES, READ, WRITE

_WITHDRAW = (
    """
-- KEYS: the buckets, each once, in one hash slot. ARGV[1]: the withdrawals, packed; each is the number of its charges, the tokens
-- that are wanted and that are owed, and for each charge the place of its bucket in KEYS and its capacity and debit a token in
-- microseconds; of a quota as in the script for checks. Debits what is owed, up to an empty bucket, or gives it back if negative.
-- Then takes from all buckets of a withdrawal as many tokens as the emptiest has, at most those wanted. Returns these numbers.
"""
    + READ
    + """
local answer, packed, position = {}, ARGV[1], 1
local places, debits = {}, {}
while position <= #packed do
  local count, wanted, owed
  count, wanted, owed, position = struct.unpack('<Bdd', packed, position)
  local taken = wanted
  for i = 1, count do
    local place, capacity, debit
    place, capacity, debit, position = struct.unpack('<I2dd', packed, position)
"""
    + BEGIN_PERIOD
    + """
    debts[place] = math.min(math.max(debts[place] + owed * debit, 0), capacity)
    taken = math.min(taken, math.floor((capacity - debts[place]) / debit))
    places[i], debits[i] = place, debit
  end
  for i = 1, count do
    debts[places[i]] = debts[places[i]] + taken * debits[i]
  end
  answer[#answer + 1] = taken
end
for place = 1, #KEYS do
  if debts[place] > 0 then
"""
    + WRITE
    + """
  else
    redis.call('DEL', KEYS[place])
  end
end
return answer
"""
)

_HEAD = struct.Struct("<Bdd")
_CHARGE = struct.Struct("<Hdd")
_PERIODS = struct.Struct("<ddd")


class Withdrawal(NamedTuple):
    """Tokens to take: at most `wanted`, each at the debit of every charge, after what is `owed`."""

    charges: tuple[Charge, ...]
    wanted: int
    owed: int = 0


class RedisWithdrawals:
    """Withdraws from buckets in Redis, for one thread at a time."""

    def __init__(self, redis: BlockingRedis) -> None:
        self._script = redis.script(_WITHDRAW)

    def take(self, withdrawals: Sequence[Withdrawal], *, seconds: float) -> list[int]:
        """The tokens taken for each. All buckets must be in one hash slot of Redis Cluster, as those of one domain are.

        Raises OSError or RedisError if the buckets cannot be reached in time; some may have been debited even so.
        """
        taken: list[int] = []
        begin = charges = 0
        for place, each in enumerate(withdrawals):
            charges += len(each.charges)
            if place > begin and (place - begin == MOST_CALLS or charges > MOST_CHARGES):
                taken += self._taken(withdrawals[begin:place], seconds)
                begin, charges = place, len(each.charges)
        if withdrawals:
            taken += self._taken(withdrawals[begin:], seconds)
        return taken

    def _taken(self, withdrawals: Sequence[Withdrawal], seconds: float) -> list[int]:
        keys: dict[str, int] = {}
        packed = []
        for charges, wanted, owed in withdrawals:
            packed.append(_HEAD.pack(len(charges), wanted, owed))
            for charge in charges:
                place = keys.setdefault(charge.key, len(keys) + 1)
                limit = charge.limit
                if isinstance(limit, Window):
                    packed.append(_CHARGE.pack(place, -limit.capacity, charge.debit))
                    packed.append(_PERIODS.pack(limit.starts, limit.ends, limit.after))
                else:
                    packed.append(_CHARGE.pack(place, limit.capacity, charge.debit))
        return cast("list[int]", self._script(list(keys), [b"".join(packed)], seconds=seconds))
