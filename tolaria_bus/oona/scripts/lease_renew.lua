-- Extend a run's lease.
--
-- KEYS[1] hash, KEYS[2] hash     the lease and the fence, as in lease_acquire.lua
-- ARGV[1] holder, ARGV[2] token, ARGV[3] time to live in ms, ARGV[4] how long the fence is kept
--
-- Found gone (it lapsed, or the server was wiped), or with a lower token (after a wipe an older
-- worker came first), it is taken again. Returns {'RENEWED'}, {'REACQUIRED'}, or {'LOST', holder,
-- since, token} of the worker that has it now, or had it last.

local token = tonumber(ARGV[2])
for _, key in ipairs(KEYS) do
  local other = redis.call('HMGET', key, 'holder', 'since', 'token')
  if other[3] then
    local theirs = tonumber(other[3])
    if theirs > token or (theirs == token and other[1] ~= ARGV[1]) then
      return {'LOST', other[1], other[2], other[3]}
    end
  end
end
local verdict = 'REACQUIRED'
local since = redis.call('HGET', KEYS[1], 'since')
if since and redis.call('HGET', KEYS[1], 'token') == ARGV[2] then
  verdict = 'RENEWED'
else
  local time = redis.call('TIME')
  since = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
end
for i, key in ipairs(KEYS) do
  redis.call('HSET', key, 'holder', ARGV[1], 'since', since, 'token', ARGV[2])
  redis.call('PEXPIRE', key, ARGV[2 + i])
end
return {verdict}
