-- Before every script of a slave. KEYS[1] is the hash with what the store knows of itself: as a data store, or as the metadata store.
--
-- Like the scripts of a log, each reads all it needs before it writes anything: a server that has no memory left aborts a script at
-- its first write only.
local facts = KEYS[1]
-- What the type of KEYS[i] must be.
local KINDS = { 'hash', #KEYS > 1 and 'hash' or nil }
-- The highest whole number below which a Lua number (a double) leaves none out.
local LAST = 9007199254740991
-- What another version keeps otherwise is not touched.
local LAYOUT = '1'

local function damaged(what)
  error({ reply = { 'damaged', facts .. ' ' .. what } })
end

-- The epoch promised, 0 where there is none, and the other fields asked for.
local function load(...)
  local f = redis.call('HMGET', facts, 'epoch', 'layout', ...)
  if not f[1] then
    if redis.call('EXISTS', facts) == 1 then
      damaged('epoch')
    end
    return 0, f
  elseif f[2] ~= LAYOUT then
    damaged('layout')
  end
  local n = #f[1] <= 16 and string.find(f[1], '^%d+$') and tonumber(f[1])
  if not n or n > LAST then
    damaged('epoch')
  end
  return n, f
end

-- Refuses who has been overtaken; answers 'changed' where the store has lost what it had promised.
local function check(promised)
  local epoch = tonumber(ARGV[1])
  if promised > epoch then
    error({ reply = { 'fenced', string.format('%.0f', promised) } })
  elseif promised < epoch then
    error({ reply = { 'changed' } })
  end
end
