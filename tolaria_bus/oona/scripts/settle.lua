-- Write an outcome and finish the entry that it answers, in one step.
--
-- KEYS[1] stream   the outcomes stream
-- KEYS[2] zset     message ids already written -> server time in ms
-- KEYS[3] hash     the run's fence: holder, token (see lease_acquire.lua)
-- KEYS[4] stream   the entry's stream; absent: nothing to finish, or it is in another slot
-- ARGV[1] our fencing token, '' for none
-- ARGV[2] message id
-- ARGV[3] entries to keep in the outcomes stream
-- ARGV[4] message ids to keep in the zset
-- ARGV[5] group, ARGV[6] entry id, ARGV[7] '1': delete the entry too (all '' without KEYS[4])
-- ARGV[8...] field, value, field, value, ...
--
-- Returns {'FENCED', token, holder} and changes nothing when a newer worker has the run;
-- else {'WRITTEN' or 'KNOWN', id of the new entry or '', entries acknowledged}.

local token = ARGV[1]
if token ~= '' then
  local fence = redis.call('HMGET', KEYS[3], 'token', 'holder')
  if fence[1] and tonumber(fence[1]) > tonumber(token) then
    return {'FENCED', fence[1], fence[2] or ''}
  end
end

local verdict, id = 'KNOWN', ''
local now = redis.call('TIME')
if not redis.call('ZSCORE', KEYS[2], ARGV[2]) then
  id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 8))
  verdict = 'WRITTEN'
end
-- Also for one that is known: a WAIT behind this waits for a write of its connection, or for nothing.
redis.call('ZADD', KEYS[2], now[1] * 1000 + math.floor(now[2] / 1000), ARGV[2])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - tonumber(ARGV[4]))

local acknowledged = 0
if KEYS[4] then
  acknowledged = redis.call('XACK', KEYS[4], ARGV[5], ARGV[6])
  if ARGV[7] == '1' then
    redis.call('XDEL', KEYS[4], ARGV[6])
  end
end
return {verdict, id, acknowledged}
