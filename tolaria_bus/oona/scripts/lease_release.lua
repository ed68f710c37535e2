-- Give a run's lease back. The fence stays; nobody else's lease is touched.
--
-- KEYS[1] hash     the lease, as in lease_acquire.lua
-- ARGV[1] holder, ARGV[2] token
--
-- Returns 1 if it was ours.

local lease = redis.call('HMGET', KEYS[1], 'holder', 'token')
if lease[1] ~= ARGV[1] or lease[2] ~= ARGV[2] then
  return 0
end
return redis.call('DEL', KEYS[1])
