-- One round over one stream: who reads it, what may go, what went that shouldn't have.
--
-- KEYS[1] stream
-- KEYS[2] hash     what rounds know, in the stream's slot; times in ms by the server's clock:
--                    swept            when the last round was
--                    resumed          since when rounds follow each other without a long gap
--                    removed          entries that were ever removed, by the end of the last round
--                    full             there while the hard limit cuts
--                    lease:GROUP      when the group was last known to live
--                    read:GROUP       "n id": its last delivered entry, id, is the n-th ever added;
--                                     "~n id": at least that
--                    gone:GROUP       pending entries below this id were told to be gone
-- ARGV[1] ms in which one round is enough for everybody
-- ARGV[2] ms that a group lives without a sign
-- ARGV[3] ms without a round after which absent groups get the same time to come back
-- ARGV[4] ms that entries are kept, '' for ever
-- ARGV[5] entries that are kept
-- ARGV[6] entries at which even unread ones are cut
-- ARGV[7] entries removed in one call, about: the server does nothing else meanwhile
-- ARGV[8...] groups of the caller
--
-- Returns {'NONE'}: no such stream; {'TYPE', key, type}: the key is something else; {'FRESH'}:
-- somebody's round is recent; else {'SWEPT', entries removed, '1' if there is more to remove,
-- entries that the hard limit cut if that is news, removed groups: name, pending, unread or '', ms
-- without a sign, ..., groups that lost entries: name, unread, how many more may have
-- been, pending, ...}. Needs the counts of entries that servers keep from Redis 7 on.

local END = '18446744073709551615-18446744073709551615'

-- Numbers of an id have 64 bits, Lua's exact ones 53: they are compared as text.
local function less(a, b)
  if #a ~= #b then
    return #a < #b
  end
  return a < b
end

local function before(a, b)
  local a_ms, a_seq = a:match('^(%d+)-(%d+)$')
  local b_ms, b_seq = b:match('^(%d+)-(%d+)$')
  if a_ms ~= b_ms then
    return less(a_ms, b_ms)
  end
  return less(a_seq, b_seq)
end

-- The next id; for a number too large to count on, the id itself, which keeps one entry more.
local function after(id)
  local ms, seq = id:match('^(%d+)-(%d+)$')
  if #seq > 15 then
    return id
  end
  return string.format('%s-%.0f', ms, seq + 1)
end

local function named(flat)
  local found = {}
  for i = 1, #flat, 2 do
    found[flat[i]] = flat[i + 1]
  end
  return found
end

local function look()
  local info = named(redis.call('XINFO', 'STREAM', KEYS[1]))
  return {
    length = info['length'],
    added = info['entries-added'],
    removed = info['entries-added'] - info['length'],
    first = info['first-entry'] and info['first-entry'][1] or after(info['last-generated-id']),
    last = info['last-generated-id'],
    deleted = info['max-deleted-entry-id'],
  }
end

local kind = redis.call('TYPE', KEYS[1]).ok
local memory_kind = redis.call('TYPE', KEYS[2]).ok
if memory_kind ~= 'none' and memory_kind ~= 'hash' then
  return {'TYPE', KEYS[2], memory_kind}
end
if kind == 'none' then
  redis.call('DEL', KEYS[2])
  return {'NONE'}
end
if kind ~= 'stream' then
  return {'TYPE', KEYS[1], kind}
end

local enough, limit, gap = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local keep, hard, most = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = string.format('%.0f', now)
local memory = named(redis.call('HGETALL', KEYS[2]))
local swept = tonumber(memory['swept'])
local own = {}
for i = 8, #ARGV do
  own[ARGV[i]] = true
end

if swept and swept <= now and now - swept < enough then
  for name in pairs(own) do
    redis.call('HSET', KEYS[2], 'lease:' .. name, now_text)
  end
  return {'FRESH'}
end

-- Who lives. Nobody is judged after a time in which nobody could show that he lives: everything
-- was stopped, or the clock was set.
local resumed = tonumber(memory['resumed'])
if not resumed or not swept or swept > now or now - swept > gap then
  resumed = now
end
local settled = now - resumed >= gap

local function seen(name, lease)
  if now - lease > limit then
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], name)) do
      lease = math.max(lease, now - named(consumer)['idle'])
    end
  end
  return lease
end

local groups, expired = {}, {}
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = named(flat)
  local lease = tonumber(memory['lease:' .. group.name])
  if own[group.name] or not lease or lease > now then
    lease = now
  end
  group.lease = seen(group.name, lease)
  local dead = settled and now - group.lease > limit
  table.insert(dead and expired or groups, group)
end

-- What may go: below this id nobody who lives needs anything.
local stream = look()
local needed = END
for _, group in ipairs(groups) do
  local first = after(group['last-delivered-id'])
  if group.pending > 0 then
    -- From the first entry on: what was cut while it was pending can't be kept for anybody.
    local pending = redis.call('XPENDING', KEYS[1], group.name, stream.first, '+', 1)
    if pending[1] and before(pending[1][1], first) then
      first = pending[1][1]
    end
  end
  if before(first, needed) then
    needed = first
  end
end

-- The removals come before anything is written down: out of memory a script may go on writing
-- once it has freed something, and not begin.
local trimmed, more = 0, false
local old = '0-0'
if ARGV[4] ~= '' then
  old = string.format('%.0f-0', math.max(0, now - tonumber(ARGV[4])))
end
if before(needed, old) then
  old = needed
end
trimmed = redis.call('XTRIM', KEYS[1], 'MINID', '~', old, 'LIMIT', most)
if trimmed > most / 2 then
  more = true
else
  -- It stopped at a node that is not all old.
  trimmed = trimmed + redis.call('XTRIM', KEYS[1], 'MINID', '=', old)
end
local excess = redis.call('XLEN', KEYS[1]) - keep
if excess > 0 then
  local some = math.min(excess, most)
  local gone = redis.call('XTRIM', KEYS[1], 'MINID', '~', needed, 'LIMIT', some)
  trimmed = trimmed + gone
  more = more or (some == most and gone > most / 2)
end
local kept_within = trimmed
if redis.call('XLEN', KEYS[1]) > hard then
  local gone = redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', hard, 'LIMIT', most)
  trimmed = trimmed + gone
  more = more or gone > most / 2
end

local removed_groups = {}
for _, group in ipairs(expired) do
  redis.call('XGROUP', 'DESTROY', KEYS[1], group.name)
  for _, value in ipairs({group.name, group.pending, group.lag or ''}) do
    table.insert(removed_groups, value)
  end
  table.insert(removed_groups, string.format('%.0f', now - group.lease))
end

-- What went that shouldn't have.
local earlier = stream
stream = look()
local news = 0
local cut = stream.removed - kept_within - (tonumber(memory['removed']) or earlier.removed)
if cut > 0 and earlier.length >= hard then
  news = memory['full'] and 0 or cut
  redis.call('HSET', KEYS[2], 'full', '1')
else
  redis.call('HDEL', KEYS[2], 'full')
end

local known = {swept = true, resumed = true, removed = true, full = true}
local function remember(field, value)
  known[field] = true
  if memory[field] ~= value then
    redis.call('HSET', KEYS[2], field, value)
  end
end

local losses = {}
for _, group in ipairs(groups) do
  local name, id = group.name, group['last-delivered-id']
  local least, at, at_id = (memory['read:' .. name] or ''):match('^(~?)(%d+) (%d+%-%d+)$')
  at = tonumber(at)
  if at and before(id, at_id) then
    at, at_id = nil, nil  -- somebody has set it back
  end
  -- The server counts entries that were cut as read as soon as a group reads on: its own count
  -- tells only of those that lie before the group, and of others the place of the last round.
  local place = group['entries-read'] or nil
  if at_id == id and least == '' then
    place = at
  elseif not place and not at and before(id, earlier.first) then
    place = earlier.removed  -- new here: what is in the stream is what it may expect
  end
  local overtaken = before(id, stream.first) and before(id, stream.last)
  local unread, doubtful = 0, 0
  if overtaken and place then
    unread = math.max(0, stream.removed - place)
  end
  if at and (at_id ~= id or (overtaken and not place)) and not before(at_id, stream.deleted) then
    local cut_by = overtaken and stream.removed - kept_within or earlier.removed
    doubtful = math.max(0, math.min(cut_by, place and place - 1 or cut_by) - at)
  end
  local pending = 0
  if group.pending > 0 then
    local from = memory['gone:' .. name] or '-'
    pending = #redis.call('XPENDING', KEYS[1], name, from, '(' .. stream.first, 1000)
    if pending > 0 then
      remember('gone:' .. name, stream.first)
    elseif memory['gone:' .. name] then
      known['gone:' .. name] = true
    end
  end
  if unread + doubtful + pending > 0 then
    for _, value in ipairs({name, unread, doubtful, pending}) do
      table.insert(losses, value)
    end
  end
  if id == stream.last then
    place = stream.added
  elseif overtaken then
    place = stream.removed
  end
  if place then
    remember('read:' .. name, string.format('%.0f %s', place, id))
  else
    -- What is gone by now it was given, or was told that it won't be.
    remember('read:' .. name, string.format('~%.0f %s', math.max(at or 0, stream.removed), id))
  end
  remember('lease:' .. name, string.format('%.0f', group.lease))
end

for field in pairs(memory) do
  if not known[field] then
    redis.call('HDEL', KEYS[2], field)
  end
end
redis.call('HSET', KEYS[2], 'swept', now_text, 'resumed', string.format('%.0f', resumed),
  'removed', string.format('%.0f', stream.removed))
return {'SWEPT', trimmed, more and 1 or 0, news, removed_groups, losses}
