-- Add entries to one stream, each once, however often it is sent.
--
-- KEYS[1] stream
-- KEYS[2] zset     what was written already ("stream key, space, message id") -> server time in ms
-- ARGV[1] entries to keep in the stream
-- ARGV[2] members to keep in the zset
-- ARGV[3] server time in ms after which no reader takes the entries
-- ARGV[4] how many fields an entry has, n
-- ARGV[5...4+n] the fields' names
-- ARGV[5+n...] of each entry its message id and n values
--
-- A sender that got no reply sends again under the same ids. Returns how many were added; after an
-- error some may have been, and are known by their ids. After that time nothing is: a copy that was
-- long on its way would be stale to all readers, and its id would keep out the one sealed anew.

local n = tonumber(ARGV[4])
local entry = {}
for i = 1, n do
  entry[2 * i - 1] = ARGV[4 + i]
end
local now = redis.call('TIME')
local milliseconds = now[1] * 1000 + math.floor(now[2] / 1000)
if milliseconds > tonumber(ARGV[3]) then
  return redis.error_reply('STALE sealed too long ago, by the clock of its sender; nothing written')
end
local added = 0
for first = 5 + n, #ARGV, n + 1 do
  local member = KEYS[1] .. ' ' .. ARGV[first]
  if redis.call('ZADD', KEYS[2], 'NX', milliseconds, member) == 1 then
    for i = 1, n do
      entry[2 * i] = ARGV[first + i]
    end
    local done = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(entry))
    if type(done) == 'table' and done.err then
      redis.call('ZREM', KEYS[2], member)
      return done
    end
    added = added + 1
  else
    -- A WAIT behind this waits for a write of its connection, or for nothing.
    redis.call('ZADD', KEYS[2], 'XX', milliseconds, member)
  end
end
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - tonumber(ARGV[2]))
return added
