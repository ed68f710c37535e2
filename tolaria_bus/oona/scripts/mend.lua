-- Give a stream back its clock, after entries with ids far ahead of it.
--
-- KEYS[1] stream
-- KEYS[2] zset     entries that have a dead letter ("stream key, space, entry id")
-- KEYS[3] stream   made here and put in place of the first
-- ARGV[1] how many ms an id may be ahead of the server's time
-- ARGV[2] entries that are copied, at most
--
-- A stream gives no id that is lower than its last, also not when that entry is gone: one entry
-- with an id of tomorrow would put all others of today into tomorrow, and the highest id of all
-- would end the stream. So the entries that are in time go into a new stream, under their ids, and
-- every group goes on where it was: what was pending in it is delivered again. Entries ahead of
-- time are left behind, but only once each has its dead letter; so are entries in time with more
-- fields than a script can hand to XADD, which nobody but a stranger sends.
--
-- Returns how many were left behind, or -1 if there was nothing to mend or it can't be done yet,
-- or -2 if the stream is longer than ARGV[2], or -3 if an entry with so many fields has no dead
-- letter yet.

local MOST_VALUES = 4000 -- names of fields count, too; unpack can do no more than some 8000

local function milliseconds(id)
  return tonumber(string.match(id, '^%d+'))
end

local function is_dead(id)
  return redis.call('ZSCORE', KEYS[2], KEYS[1] .. ' ' .. id)
end

if redis.call('EXISTS', KEYS[1]) == 0 then
  return -1
end
local time = redis.call('TIME')
local limit = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' and milliseconds(info[i + 1]) <= limit then
    return -1
  end
end
if redis.call('XLEN', KEYS[1]) > tonumber(ARGV[2]) then
  return -2
end

local last = string.format('%.0f', limit) .. '-18446744073709551615'
-- Newest first: consumers write letters in order, so the first that has none is found at once.
local behind = 0
local newest = redis.call('XREVRANGE', KEYS[1], '+', '(' .. last, 'COUNT', 100)
while #newest > 0 do
  for _, entry in ipairs(newest) do
    if not is_dead(entry[1]) then
      return -1
    end
    behind = behind + 1
  end
  newest = redis.call('XREVRANGE', KEYS[1], '(' .. newest[#newest][1], '(' .. last, 'COUNT', 100)
end

redis.call('DEL', KEYS[3])
local copied = '0-0'
local page = redis.call('XRANGE', KEYS[1], '-', last, 'COUNT', 100)
while #page > 0 do
  for _, entry in ipairs(page) do
    copied = entry[1]
    if #entry[2] <= MOST_VALUES then
      redis.call('XADD', KEYS[3], copied, unpack(entry[2]))
    elseif is_dead(copied) then
      behind = behind + 1
    else
      redis.call('DEL', KEYS[3])
      return -3
    end
  end
  page = redis.call('XRANGE', KEYS[1], '(' .. copied, last, 'COUNT', 100)
end

for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local facts = {}
  for i = 1, #group, 2 do
    facts[group[i]] = group[i + 1]
  end
  local start = facts['last-delivered-id']
  if milliseconds(start) > limit then
    start = copied
  end
  local first = redis.call('XPENDING', KEYS[1], facts['name'])[2]
  if first and milliseconds(first) <= limit then
    local before = redis.call('XREVRANGE', KEYS[1], '(' .. first, '-', 'COUNT', 1)[1]
    start = before and before[1] or '0-0'
  end
  redis.call('XGROUP', 'CREATE', KEYS[3], facts['name'], start, 'MKSTREAM')
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('RENAME', KEYS[3], KEYS[1])
else
  redis.call('DEL', KEYS[1])
end
return behind
