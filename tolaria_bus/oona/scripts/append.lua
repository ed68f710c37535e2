-- Add many entries to one stream.
--
-- KEYS[1] stream
-- ARGV[1] entries to keep in it
-- ARGV[2] how many fields an entry has, n
-- ARGV[3...2+n] the fields' names
-- ARGV[3+n...] the values: n of the first entry, n of the second, ...
--
-- One command with one reply instead of one for each entry: most of what an entry costs a client
-- is reading its reply. Returns how many were added; after an error some may have been.

local n = tonumber(ARGV[2])
local entry = {}
for i = 1, n do
  entry[2 * i - 1] = ARGV[2 + i]
end
local added = 0
for first = 3 + n, #ARGV, n do
  for i = 1, n do
    entry[2 * i] = ARGV[first + i - 1]
  end
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(entry))
  added = added + 1
end
return added
