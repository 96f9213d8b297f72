-- Before every script of a log. KEYS[1] is the log's hash, KEYS[2] the sorted set of its earlier runs.
--
-- A Redis server aborts a script that it has no memory left for (or that may not write) at the script's first write only: so every
-- script reads all it needs, of whatever type that turns out to be, before it writes anything.
local log, held = KEYS[1], KEYS[2]
-- The highest whole number below which a Lua number (a double) leaves none out.
local LAST = 9007199254740991
-- What the log's `layout` must be: what another version keeps otherwise is not touched.
local LAYOUT = '1'
-- Bytes before the head part of a stored shard: src/layout.rs.
local PREFIX = 72

-- What the type of KEYS[i] must be.
local KINDS = { 'hash', 'zset' }

local function damaged(key, what)
  error({ reply = { 'damaged', key .. ' ' .. what } })
end

-- tostring() would write 1e+15.
local function text(n)
  return string.format('%.0f', n)
end

local function number(given, what, key)
  if type(given) == 'string' and #given <= 16 and string.find(given, '^%d+$') then
    local n = tonumber(given)
    if n <= LAST then
      return n
    end
  end
  damaged(key or log, what)
end

local function shard_key(n)
  return string.sub(log, 1, -4) .. 's:' .. text(n)
end

-- identity, epoch, committed, first, first and last number of the last run (zeros where nothing is held)
local function load()
  local f = redis.call('HMGET', log, 'identity', 'epoch', 'committed', 'first', 'run_first', 'run_last', 'layout')
  if not f[1] then
    if redis.call('EXISTS', log) == 0 then
      error({ reply = { 'none' } })
    end
    damaged(log, 'identity')
  elseif f[7] ~= LAYOUT then
    damaged(log, 'layout')
  end
  local run_first, run_last = number(f[5], 'run_first'), number(f[6], 'run_last')
  if run_first > run_last or (run_first == 0 and run_last > 0) then
    damaged(log, 'run_first')
  end
  return f[1], number(f[2], 'epoch'), number(f[3], 'committed'), number(f[4], 'first'), run_first, run_last
end

-- Refuses what is meant for the log of another identity; '' means any. What a caller has sent can come long after it has given up: by
-- then the log may be deleted, and the one of that name another, whose epochs began anew. A fenced caller is told that first.
local function refuse_other(identity, meant)
  if meant ~= '' and meant ~= identity then
    error({ reply = { 'other', identity } })
  end
end

-- A member of the sorted set: "first-last".
local function run(member)
  local first, last = string.match(member, '^(%d+)%-(%d+)$')
  local what = string.sub(member, 1, 40)
  first, last = number(first, what, held), number(last, what, held)
  if first < 1 or first > last then
    damaged(held, what)
  end
  return first, last
end

-- Rank of the run that the number n is in, if it is in one: the last that begins at or below it. 0 where none does.
local function rank_at(n)
  return math.max(redis.call('ZCOUNT', held, '-inf', text(n)) - 1, 0)
end

local function is_held(n, run_first, run_last)
  if n >= run_first then
    return n <= run_last and n > 0
  end
  local rank = text(rank_at(n))
  local member = redis.call('ZRANGE', held, rank, rank)[1]
  if not member then
    return false
  end
  local first, last = run(member)
  return first <= n and n <= last
end

-- What a log is for `status`, unchecked: the client looks at every field.
local function state()
  local f = redis.call('HMGET', log, 'identity', 'epoch', 'committed', 'first', 'run_first', 'run_last', 'starts', 'members', 'layout')
  return { 'state', f, redis.call('ZRANGE', held, 0, -1) }
end

-- Makes what follows pass on a server that has no memory left: whoever fences, prunes or deletes must be able to, and takes next to
-- none. Only a script's first write is refused for it, and only if it can take memory; this one cannot.
local function write_even_if_full()
  redis.call('HDEL', log, 'no such field')
end
