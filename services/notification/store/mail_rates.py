"""How many mails are sent a second, counted in Redis for all workers together."""

from __future__ import annotations

import logging

from redis.asyncio import Redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

_TAKE_TURN = """
-- KEYS: the rates that a mail counts for, in one hash slot. ARGV: the interval between two mails of each, in microseconds.
-- Returns 0 and counts the mail, or the microseconds after which to ask again. GCRA: a key holds the instant at which the rate is
-- used up no more; mails of one second may go at once. Those that are sent back queue up in a second key per rate, so that each is
-- told a turn of its own and they do not all return for the same one.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local longest = 0
for i, key in ipairs(KEYS) do
  local interval = tonumber(ARGV[i])
  local free_at = tonumber(redis.call('GET', key) or now)
  local wait = math.max(free_at, now) - now - math.max(1000000 - interval, 0)
  if wait > 0 then
    local behind = redis.call('INCR', key .. ':behind') - 1
    redis.call('PEXPIRE', key .. ':behind', math.ceil((wait + interval * (behind + 1)) / 1000))
    longest = math.max(longest, wait + interval * behind)
  end
end
if longest > 0 then return math.ceil(longest) end
for i, key in ipairs(KEYS) do
  local interval = tonumber(ARGV[i])
  local free_at = math.max(tonumber(redis.call('GET', key) or now), now) + interval
  redis.call('SET', key, string.format('%.0f', free_at), 'PX', string.format('%.0f', math.ceil((free_at - now) / 1000) + 1))
  if tonumber(redis.call('GET', key .. ':behind') or 0) > 0 then redis.call('DECR', key .. ':behind') end
end
return 0
"""


class MailRates:
    """The rates of the mail server and of each domain of recipients. 0: no limit."""

    def __init__(self, redis: Redis, *, mails_per_second: float, domain_mails_per_second: float) -> None:
        self._take_turn = redis.register_script(_TAKE_TURN)
        self._intervals = [
            (name, 1_000_000 / rate)
            for name, rate in (("every", mails_per_second), ("domain:{domain}", domain_mails_per_second))
            if rate > 0
        ]

    async def seconds_until_turn(self, domain: str) -> float:
        """0 if a mail to the domain may be sent now, which counts it; else the seconds after which to ask again."""
        if not self._intervals:
            return 0.0
        keys = [f"mail-rate:{{all}}:{name.format(domain=domain)}" for name, _ in self._intervals]
        try:
            microseconds = int(await self._take_turn(keys=keys, args=[interval for _, interval in self._intervals]))
        except (RedisError, OSError) as error:  # OSError: DependencyAway.
            # Open: mails that come late harm people more than mails that come fast.
            log.warning("the rates of mails cannot be kept now: %s", error)
            return 0.0
        return microseconds / 1_000_000
