"""The inbox's Lua scripts: each is one step that Redis does whole or not at all. All keys of a call share a hash slot."""

KEEP = """
-- KEYS: stream. ARGV: group, consumer, entries. Renews the leases that are still ours, and returns the entries that another worker
-- has. JUSTID leaves the delivery count alone. An entry that nobody has was lost by Redis or is done: whoever works on it may as
-- well go on.
local lost = {}
for i = 3, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if #pending > 0 then
    if pending[1][2] == ARGV[2] then
      redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
    else
      lost[#lost + 1] = ARGV[i]
    end
  end
end
return lost
"""

ACKNOWLEDGE = """
-- KEYS: stream. ARGV: group, consumer, entries. What is done leaves the stream, so its length is the backlog and nothing needs
-- trimming. Only the owner may say so: to a worker that lost its lease the entry belongs no more. Returns those.
local lost = {}
for i = 3, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if #pending == 0 or pending[1][2] ~= ARGV[2] then
    lost[#lost + 1] = ARGV[i]
  else
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
    redis.call('XDEL', KEYS[1], ARGV[i])
  end
end
return lost
"""

POSTPONE = """
-- KEYS: stream, delayed set. ARGV: group, consumer, entry, delay in ms, failures, unique tag, event.
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)
if #pending == 0 or pending[1][2] ~= ARGV[2] then return 0 end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
local now = redis.call('TIME')
local due = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[4]
redis.call('ZADD', KEYS[2], due, ARGV[6] .. ':' .. ARGV[5] .. ':' .. ARGV[7])
return 1
"""

MOVE_DUE = """
-- KEYS: stream, delayed set. ARGV: most items. The tag keeps equal events apart; it is dropped here.
-- What POSTPONE has not written goes on as it is, for the inbox to put it aside: an error here would hold up all that is behind it.
local now = redis.call('TIME')
local due = redis.call('ZRANGE', KEYS[2], '-inf', now[1] * 1000 + math.floor(now[2] / 1000), 'BYSCORE', 'LIMIT', 0, ARGV[1])
for _, item in ipairs(due) do
  local first = string.find(item, ':', 1, true)
  local second = first and string.find(item, ':', first + 1, true)
  local event, failures = item, '0'
  if second then event, failures = string.sub(item, second + 1), string.sub(item, first + 1, second - 1) end
  redis.call('XADD', KEYS[1], '*', 'event', event, 'failures', failures)
  redis.call('ZREM', KEYS[2], item)
end
return #due
"""

TAKE_BACK = """
-- KEYS: stream. ARGV: group, consumer, idle time in ms, entries. Takes a delivery of each back from its count. What is ours
-- counts as idle for so long then, so that the next look of a peer may claim it; what another worker has by now stays with it.
for i = 4, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if #pending > 0 then
    local owner, idle, count = pending[1][2], pending[1][3], math.max(pending[1][4] - 1, 0)
    if owner == ARGV[2] then idle = ARGV[3] end
    redis.call('XCLAIM', KEYS[1], ARGV[1], owner, 0, ARGV[i], 'IDLE', idle, 'RETRYCOUNT', count, 'JUSTID')
  end
end
return #ARGV - 3
"""

LEAVE = """
-- KEYS: stream. ARGV: group, consumer. DELCONSUMER drops what is pending, so look and removal must be one step.
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then return 0 end
return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
"""

FORGET = """
-- KEYS: stream. ARGV: group, silence in ms. A consumer that lives and is forgotten by mistake is made anew by its next read.
local forgotten = 0
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local field = {}
  for i = 1, #consumer, 2 do field[consumer[i]] = consumer[i + 1] end
  if field['pending'] == 0 and field['idle'] > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], field['name'])
    forgotten = forgotten + 1
  end
end
return forgotten
"""
