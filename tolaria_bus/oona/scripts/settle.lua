-- Write an outcome and finish the entry that it answers, in one step.
--
-- KEYS[1] stream   the outcomes stream
-- KEYS[2] zset     what was written already ("stream key, space, message id") -> server time in ms
-- KEYS[3] hash     the run's fence: holder, token (see lease_acquire.lua)
-- KEYS[4] stream   the entry's stream; absent: nothing to finish, or it is in another slot
-- ARGV[1] our fencing token, '' for none
-- ARGV[2] message id
-- ARGV[3] entries to keep in the outcomes stream
-- ARGV[4] members to keep in the zset
-- ARGV[5] server time in ms after which no reader takes the outcome
-- ARGV[6] group, ARGV[7] entry id, ARGV[8] '1': delete the entry too (all '' without KEYS[4])
-- ARGV[9...] field, value, field, value, ...
--
-- Returns {'FENCED', token, holder} and changes nothing when a newer worker has the run;
-- else {'WRITTEN' or 'KNOWN', id of the new entry or '', entries acknowledged}. Too late it changes
-- nothing either, and is an error: see append_once.lua.

local token = ARGV[1]
if token ~= '' then
  local fence = redis.call('HMGET', KEYS[3], 'token', 'holder')
  if fence[1] and tonumber(fence[1]) > tonumber(token) then
    return {'FENCED', fence[1], fence[2] or ''}
  end
end

local verdict, id = 'KNOWN', ''
local now = redis.call('TIME')
local milliseconds = now[1] * 1000 + math.floor(now[2] / 1000)
if milliseconds > tonumber(ARGV[5]) then
  return redis.error_reply('STALE sealed too long ago, by the clock of its sender; nothing written')
end
local member = KEYS[1] .. ' ' .. ARGV[2]
if not redis.call('ZSCORE', KEYS[2], member) then
  id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 9))
  verdict = 'WRITTEN'
end
-- Also for one that is known: a WAIT behind this waits for a write of its connection, or for nothing.
redis.call('ZADD', KEYS[2], milliseconds, member)
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - tonumber(ARGV[4]))

local acknowledged = 0
if KEYS[4] then
  acknowledged = redis.call('XACK', KEYS[4], ARGV[6], ARGV[7])
  if ARGV[8] == '1' then
    redis.call('XDEL', KEYS[4], ARGV[7])
  end
end
return {verdict, id, acknowledged}
