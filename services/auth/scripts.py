"""Redis scripts: what must be counted, compared and changed in one step. Each one's keys share a hash slot.

Times are milliseconds of the caller's clock. Expiry by Redis only cleans up; whether something has ended is decided by those times.
"""

from __future__ import annotations

ISSUE_CODE = """
-- KEYS: challenge, codes sent to the address (sorted by time), live challenges of the address (sorted by end)
-- ARGV: now, challenge id, digest, end of the code, end of the challenge, attempts at most, live challenges at most, a unique name
--       of this code, then pairs: window, codes in it at most
-- Answers {'issued', 0}, {'wait', milliseconds} or {'spent', 0}.
local now, id, digest = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local code_ends, challenge_ends = tonumber(ARGV[4]), tonumber(ARGV[5])
if tonumber(redis.call('HGET', KEYS[1], 'attempts') or 0) >= tonumber(ARGV[6]) then return {'spent', 0} end
local wait, longest = 0, 0
for i = 9, #ARGV, 2 do
  local window, most = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  longest = math.max(longest, window)
  -- The code that has to leave the window before another one fits into it.
  local blocking = redis.call('ZREVRANGE', KEYS[2], most - 1, most - 1, 'WITHSCORES')
  if blocking[2] then wait = math.max(wait, blocking[2] + window - now) end
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
if not redis.call('ZSCORE', KEYS[3], id) and redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[7]) then
  wait = math.max(wait, redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2] - now)
end
if wait > 0 then return {'wait', math.ceil(wait)} end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - longest)
redis.call('ZADD', KEYS[2], now, ARGV[8])
redis.call('PEXPIRE', KEYS[2], longest)
redis.call('ZADD', KEYS[3], challenge_ends, id)
redis.call('PEXPIRE', KEYS[3], math.max(challenge_ends - now, redis.call('PTTL', KEYS[3])))
redis.call('HSET', KEYS[1], 'digest', digest, 'ends', code_ends)
redis.call('PEXPIRE', KEYS[1], challenge_ends - now)
return {'issued', 0}
"""

CLAIM_CODE = """
-- KEYS: challenge, attempts on the address (sorted by time)
-- ARGV: now, claim, end of the claim, attempts at most, attempts on the address at most, window of these, then the digests that the
--       code may have: one for each pepper
-- Answers 'claimed', 'wrong', 'spent' or 'absent'.
local now = tonumber(ARGV[1])
local window = tonumber(ARGV[6])
local ends = tonumber(redis.call('HGET', KEYS[1], 'ends') or 0)
local claimed_until = tonumber(redis.call('HGET', KEYS[1], 'claimed_until') or 0)
if ends <= now or claimed_until > now then return 'absent' end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - window)
if tonumber(redis.call('HGET', KEYS[1], 'attempts') or 0) >= tonumber(ARGV[4])
  or redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[5]) then return 'spent' end
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('ZADD', KEYS[2], now, ARGV[2])
redis.call('PEXPIRE', KEYS[2], window)
local digest = redis.call('HGET', KEYS[1], 'digest')
for i = 7, #ARGV do
  if digest == ARGV[i] then
    redis.call('HSET', KEYS[1], 'claim', ARGV[2], 'claimed_until', ARGV[3])
    return 'claimed'
  end
end
return 'wrong'
"""

RELEASE_CODE = """
-- KEYS: challenge, attempts on the address. ARGV: claim. Undoes the claim and its attempt.
if redis.call('HGET', KEYS[1], 'claim') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], 'claim', 'claimed_until')
redis.call('HINCRBY', KEYS[1], 'attempts', -1)
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
"""

USE_CODE = """
-- KEYS: challenge, attempts on the address, live challenges of the address. ARGV: claim, challenge id.
-- Removes the challenge for good. Its right code was no attempt that counts against the address.
if redis.call('HGET', KEYS[1], 'claim') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[2])
return 1
"""

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
