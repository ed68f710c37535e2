-- Put the entry of a dead letter back: add it to its stream and remove the letter, in one step.
--
-- KEYS[1] stream   the dead-letter stream
-- KEYS[2] stream   the entry's own stream, in the same slot
-- ARGV[1] the letter's entry id
-- ARGV[2...] field, value, field, value, ... of the new entry
--
-- Returns the new entry's id, or '' and does nothing if the letter is gone: whoever removed it has
-- replayed it. The letter goes last: where the entry can't be added, the letter stays.

if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1], 'COUNT', 1) == 0 then
  return ''
end
local id = redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
redis.call('XDEL', KEYS[1], ARGV[1])
return id
