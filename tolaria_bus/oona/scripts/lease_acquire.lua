-- Take a run's lease.
--
-- KEYS[1] hash     the lease: holder, token (whole number), since (ms, the server's clock); it is
--                  there as long as it is held
-- KEYS[2] hash     the fence: the same of the last holder, kept long after its lease has ended,
--                  so that an older worker that wakes up late finds out
-- ARGV[1] holder, ARGV[2] token, ARGV[3] time to live in ms, ARGV[4] how long the fence is kept
-- ARGV[5] '1': a run that begins anew; the fence doesn't count
--
-- Returns {'ACQUIRED'}, or {'HELD' or 'SUPERSEDED', holder, since, token} of the other one.

local token = tonumber(ARGV[2])
local lease = redis.call('HMGET', KEYS[1], 'holder', 'since', 'token')
if lease[3] and not (lease[1] == ARGV[1] and tonumber(lease[3]) <= token) then
  return {'HELD', lease[1], lease[2], lease[3]}
end
local fence = redis.call('HMGET', KEYS[2], 'holder', 'since', 'token')
if fence[3] and tonumber(fence[3]) > token and ARGV[5] ~= '1' then
  return {'SUPERSEDED', fence[1], fence[2], fence[3]}
end
local time = redis.call('TIME')
local since = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
for i, key in ipairs(KEYS) do
  redis.call('HSET', key, 'holder', ARGV[1], 'since', since, 'token', ARGV[2])
  redis.call('PEXPIRE', key, ARGV[2 + i])
end
return {'ACQUIRED'}
