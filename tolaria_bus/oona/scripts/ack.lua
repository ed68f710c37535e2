-- Finish entries: acknowledge, and where the stream has one group only, delete.
--
-- KEYS[1] stream
-- ARGV[1] group
-- ARGV[2] '1': delete them too
-- ARGV[3...] entry ids
--
-- Returns how many were acknowledged: fewer than given, if some were finished before.

local acknowledged = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 3))
if ARGV[2] == '1' then
  redis.call('XDEL', KEYS[1], unpack(ARGV, 3))
end
return acknowledged
