-- Move an entry to the dead letters: write the letter and finish the entry, in one step.
--
-- KEYS[1] stream   the dead-letter stream
-- KEYS[2] stream   the entry's own stream
-- KEYS[3] zset     entries that have a letter ("stream key, space, entry id") -> server time in ms
-- KEYS[4] hash     entry id -> how often its handling was begun
-- ARGV[1] group
-- ARGV[2] entry id
-- ARGV[3] '1': delete the entry too
-- ARGV[4] letters to keep
-- ARGV[5...] field, value, field, value, ... of the letter
--
-- An entry gets one letter, however many groups give it up; the zset tells when the last one did.
-- Returns the letter's id, or '' if it had one.

local id = ''
local entry = KEYS[2] .. ' ' .. ARGV[2]
if not redis.call('ZSCORE', KEYS[3], entry) then
  id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, 5))
end
local now = redis.call('TIME')
redis.call('ZADD', KEYS[3], now[1] * 1000 + math.floor(now[2] / 1000), entry)
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - tonumber(ARGV[4]))
redis.call('HDEL', KEYS[4], ARGV[2])
redis.call('XACK', KEYS[2], ARGV[1], ARGV[2])
if ARGV[3] == '1' then
  redis.call('XDEL', KEYS[2], ARGV[2])
end
return id
