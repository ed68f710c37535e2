-- Extend a consumer's claims on entries that it works on.
--
-- KEYS[1] stream
-- ARGV[1] group
-- ARGV[2] consumer
-- ARGV[3...] entry ids
--
-- An entry that another consumer has claimed meanwhile isn't taken back. JUSTID, because a plain
-- XCLAIM raises the delivery count. Returns the ids that are ours no longer.

local lost = {}
for i = 3, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if pending[1] and pending[1][2] == ARGV[2] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
