"""Redis scripts: counting, comparing and changing in one atomic step. The keys of one script share a hash slot.

Times are milliseconds of the caller's clock, and decide whether something has ended. Redis's own expiry only cleans up.
"""

from __future__ import annotations

ADMIT_SIGN_IN = """
-- KEYS: the login's failures. ARGV: now, free failures, longest wait, time after which failures are forgotten.
-- Counts the sign-in as failed, before its password is looked at, so that parallel guesses cannot slip through.
-- Answers 0, or the milliseconds to wait.
local now, free = tonumber(ARGV[1]), tonumber(ARGV[2])
local wait = tonumber(redis.call('HGET', KEYS[1], 'blocked_until') or 0) - now
if wait > 0 then return math.ceil(wait) end
local failures = redis.call('HINCRBY', KEYS[1], 'failures', 1)
if failures >= free then
  local doubled = 1000 * 2 ^ math.min(failures - free, 30)
  redis.call('HSET', KEYS[1], 'blocked_until', now + math.min(doubled, tonumber(ARGV[3])))
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 0
"""

FORGIVE_SIGN_IN = """
-- KEYS: the login's failures. Takes back one that was counted for a password nobody looked at.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if redis.call('HINCRBY', KEYS[1], 'failures', -1) <= 0 then return redis.call('DEL', KEYS[1]) end
redis.call('HDEL', KEYS[1], 'blocked_until')
return 1
"""

COUNT_FAILURE = """
-- KEYS: a window of failures. ARGV: now, its length, failures in it at most.
-- Counts a failure in advance. Answers 0, or the milliseconds until the window ends, when it is full.
local now = tonumber(ARGV[1])
local ends = tonumber(redis.call('HGET', KEYS[1], 'ends') or 0)
if ends <= now then
  redis.call('DEL', KEYS[1])
  ends = now + tonumber(ARGV[2])
  redis.call('HSET', KEYS[1], 'ends', ends)
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
if tonumber(redis.call('HGET', KEYS[1], 'failures') or 0) >= tonumber(ARGV[3]) then return math.ceil(ends - now) end
redis.call('HINCRBY', KEYS[1], 'failures', 1)
return 0
"""

UNCOUNT_FAILURE = """
-- KEYS: a window of failures. Takes back one that was none.
if tonumber(redis.call('HGET', KEYS[1], 'failures') or 0) > 0 then redis.call('HINCRBY', KEYS[1], 'failures', -1) end
return 1
"""
