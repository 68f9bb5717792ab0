"""The Redis scripts of one-time codes: counting, comparing and changing in one atomic step.

Times are milliseconds of the caller's clock, and decide whether something has ended. Redis's own expiry only cleans up.

All keys of an address and a purpose share a hash slot. The scripts build the names of some keys from the prefix that they are
given, because only Redis knows which code a challenge has, and who requested it:
- <challenge id>: hash of its digest, its attempts, the claim on it, its code and all codes it had, its requester;
- newest:<requester>: hash of the code that was mailed last at the request of this requester;
- code:<code>: hash of how often it was mailed, its requester, and the attempts of the challenges that share it;
- sent:<budget> and attempts:<requester>: sorted sets by time.
"""

from __future__ import annotations

_BUDGET = """
-- Milliseconds until each window of a sorted set has room for one more.
local function wait_for(key, now, windows)
  local wait = 0
  for i = 1, #windows do
    local blocking = redis.call('ZREVRANGE', key, windows[i][2] - 1, windows[i][2] - 1, 'WITHSCORES')
    if blocking[2] then wait = math.max(wait, blocking[2] + windows[i][1] - now) end
  end
  return wait
end

-- Windows as pairs of length and limit; every third argument is the limit for all requesters of a kind together.
local function windows_of(first, offset)
  local windows = {}
  for i = first, #ARGV, 3 do windows[#windows + 1] = {tonumber(ARGV[i]), tonumber(ARGV[i + offset])} end
  return windows
end

local function count(keys, code, prefix, now, windows)
  local longest = 0
  for i = 1, #windows do longest = math.max(longest, windows[i][1]) end
  local name = code .. ':' .. redis.call('HINCRBY', prefix .. 'code:' .. code, 'mails', 1)
  for i = 1, #keys do
    redis.call('ZREMRANGEBYSCORE', keys[i], '-inf', now - longest)
    redis.call('ZADD', keys[i], now, name)
    redis.call('PEXPIRE', keys[i], longest)
  end
end
"""

START_CHALLENGE = (
    _BUDGET
    + """
-- KEYS: challenge, codes sent for the requester, codes sent for all requesters of its kind
-- ARGV: now, attempts at most, prefix, requester, binding, a new code, its digest, a code that the requester may have, its digest,
--       end of a new code, end of the challenge, cool-down, time between two mails of one code, then the windows
-- Returns {'new', end of the code}; {'again', end} to mail the requester's live code again; {'instead', end} for a new code that
-- replaces it; {'quiet', end} if one was mailed just now or none may be; {'wait', milliseconds}; or {'other', code} if the
-- requester's live code is another one.
local now, prefix, requester, binding = tonumber(ARGV[1]), ARGV[3], ARGV[4], ARGV[5]
local newest = prefix .. 'newest:' .. requester
local wait = math.max(wait_for(KEYS[2], now, windows_of(14, 1)), wait_for(KEYS[3], now, windows_of(14, 2)))
local code, begun_at, mailed_at, ends, bound = unpack(
  redis.call('HMGET', newest, 'code', 'begun_at', 'mailed_at', 'ends', 'binding'))
local shared = code and tonumber(ends) > now and redis.call('HGET', prefix .. 'code:' .. code, 'shared_attempts')
local outcome, digest, cooldown = 'new', ARGV[7], tonumber(ARGV[12])
local again = cooldown > 0 and shared and tonumber(shared) < tonumber(ARGV[2])
if again and (wait > 0 or now - begun_at < cooldown) then
  if bound == binding then
    if code ~= ARGV[8] then return {'other', code} end
    outcome, digest = 'again', ARGV[9]
    redis.call('HSET', KEYS[1], 'shares', 1)
  else
    -- What the code protects has changed. The answer must not show it, so the new code has the same end as the one it replaces.
    outcome, code = 'instead', ARGV[6]
  end
  -- The pause applies to mails of one code. A new code is mailed at once, because the former one is useless to its person.
  if wait > 0 or (outcome == 'again' and now - mailed_at < tonumber(ARGV[13])) then outcome = 'quiet' end
elseif wait > 0 then
  return {'wait', math.ceil(wait)}
else
  code, begun_at, ends = ARGV[6], now, tonumber(ARGV[10])
end
if outcome ~= 'quiet' then mailed_at = now end
redis.call('HSET', newest, 'code', code, 'begun_at', begun_at, 'mailed_at', mailed_at, 'ends', ends, 'binding', binding)
redis.call('PEXPIRE', newest, ends - now)
redis.call('HSETNX', prefix .. 'code:' .. code, 'shared_attempts', 0)
redis.call('HSETNX', prefix .. 'code:' .. code, 'requester', requester)
redis.call('PEXPIRE', prefix .. 'code:' .. code, ARGV[11] - now)
redis.call('HSET', KEYS[1], 'digest', digest, 'ends', ends, 'mailed_at', mailed_at, 'code', code, 'codes', code,
  'requester', requester)
redis.call('PEXPIRE', KEYS[1], ARGV[11] - now)
if outcome ~= 'quiet' then count({KEYS[2], KEYS[3]}, code, prefix, now, windows_of(14, 1)) end
return {outcome, tonumber(ends)}
"""
)

RENEW_CODE = (
    _BUDGET
    + """
-- KEYS: challenge, codes sent for the requester, codes sent for all requesters of its kind
-- ARGV: now, prefix, requester, a new code, its digest, its end, end of the challenge, attempts at most, time between two mails,
--       then the windows
-- Returns {'new', end of the code}, {'quiet', end of the one that was mailed just now}, {'wait', milliseconds} or {'spent', 0}.
local now, prefix = tonumber(ARGV[1]), ARGV[2]
local attempts, ends, mailed_at, codes = unpack(redis.call('HMGET', KEYS[1], 'attempts', 'ends', 'mailed_at', 'codes'))
if tonumber(attempts or 0) >= tonumber(ARGV[8]) then return {'spent', 0} end
if mailed_at and now - mailed_at < tonumber(ARGV[9]) then return {'quiet', tonumber(ends)} end
local wait = math.max(wait_for(KEYS[2], now, windows_of(10, 1)), wait_for(KEYS[3], now, windows_of(10, 2)))
if wait > 0 then return {'wait', math.ceil(wait)} end
local code = ARGV[4]
redis.call('HSET', prefix .. 'code:' .. code, 'shared_attempts', 0, 'requester', ARGV[3])
redis.call('PEXPIRE', prefix .. 'code:' .. code, ARGV[7] - now)
redis.call('HSET', KEYS[1], 'digest', ARGV[5], 'ends', ARGV[6], 'mailed_at', now, 'code', code,
  'codes', codes and codes .. ',' .. code or code)
-- The challenge shares its code with no other from now on.
redis.call('HDEL', KEYS[1], 'shares')
redis.call('HSETNX', KEYS[1], 'requester', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[7] - now)
count({KEYS[2], KEYS[3]}, code, prefix, now, windows_of(10, 1))
return {'new', tonumber(ARGV[6])}
"""
)

CLAIM_CODE = """
-- KEYS: challenge
-- ARGV: now, prefix, claim, end of the claim, attempts at most, attempts of the requester at most, window of these, then the
--       digests that the code may have: one for each pepper
-- Returns 'claimed', 'wrong', 'spent' or 'absent'.
local now, prefix, window, most = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[7]), tonumber(ARGV[5])
local digest, ends, claimed_until, attempts, code, requester, shares = unpack(
  redis.call('HMGET', KEYS[1], 'digest', 'ends', 'claimed_until', 'attempts', 'code', 'requester', 'shares'))
-- A challenge without a code dates from a version in which codes had no names.
if not ends or not code or tonumber(ends) <= now or tonumber(claimed_until or 0) > now then return 'absent' end
local shared = prefix .. 'code:' .. code
-- The code is redeemed, or being redeemed, by another challenge that shares it.
if redis.call('EXISTS', shared) == 0 or tonumber(redis.call('HGET', shared, 'claimed_until') or 0) > now then return 'absent' end
local spent = prefix .. 'attempts:' .. requester
redis.call('ZREMRANGEBYSCORE', spent, '-inf', now - window)
if tonumber(attempts or 0) >= most or redis.call('ZCARD', spent) >= tonumber(ARGV[6]) then return 'spent' end
-- The first challenge of a code has attempts of its own, which nobody else can spend. All later challenges share as many again.
if shares and tonumber(redis.call('HGET', shared, 'shared_attempts')) >= most then return 'spent' end
if shares then redis.call('HINCRBY', shared, 'shared_attempts', 1) end
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('ZADD', spent, now, ARGV[3])
redis.call('PEXPIRE', spent, window)
for i = 8, #ARGV do
  if digest == ARGV[i] then
    redis.call('HSET', KEYS[1], 'claim', ARGV[3], 'claimed_until', ARGV[4])
    redis.call('HSET', shared, 'claimed_until', ARGV[4])
    return 'claimed'
  end
end
return 'wrong'
"""

RELEASE_CODE = """
-- KEYS: challenge. ARGV: prefix, claim. Undoes the claim and its attempt.
local claim, code, requester, shares = unpack(redis.call('HMGET', KEYS[1], 'claim', 'code', 'requester', 'shares'))
if claim ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], 'claim', 'claimed_until')
redis.call('HINCRBY', KEYS[1], 'attempts', -1)
redis.call('ZREM', ARGV[1] .. 'attempts:' .. requester, ARGV[2])
local shared = ARGV[1] .. 'code:' .. code
if redis.call('EXISTS', shared) == 0 then return 1 end
redis.call('HDEL', shared, 'claimed_until')
if shares then redis.call('HINCRBY', shared, 'shared_attempts', -1) end
return 1
"""

USE_CODE = """
-- KEYS: challenge. ARGV: prefix, claim, then the budgets of all kinds of requesters.
-- Removes the challenge, and the code for all challenges that share it. Gives the budgets back: the attempt had the right code, and
-- the mails reached their person.
local claim, code, codes, requester = unpack(redis.call('HMGET', KEYS[1], 'claim', 'code', 'codes', 'requester'))
if claim ~= ARGV[2] then return 0 end
local prefix = ARGV[1]
redis.call('ZREM', prefix .. 'attempts:' .. requester, claim)
for each in string.gmatch(codes, '[^,]+') do
  local mails, by = unpack(redis.call('HMGET', prefix .. 'code:' .. each, 'mails', 'requester'))
  for mail = 1, tonumber(mails or 0) do
    redis.call('ZREM', prefix .. 'sent:' .. by, each .. ':' .. mail)
    for i = 3, #ARGV do redis.call('ZREM', prefix .. 'sent:' .. ARGV[i], each .. ':' .. mail) end
  end
end
redis.call('DEL', KEYS[1], prefix .. 'code:' .. code)
local newest = prefix .. 'newest:' .. requester
if redis.call('HGET', newest, 'code') == code then redis.call('DEL', newest) end
return 1
"""
