-- Format 1. KEYS: id, list of last ids. ARGV: shard, how many ids to keep -> {'ok'}
local KINDS = { 'string', 'list' }

local function act()
  local newest = redis.call('LINDEX', KEYS[2], 0)
  redis.call('SET', KEYS[1], ARGV[1])
  if newest ~= KEYS[1] then
    redis.call('LPUSH', KEYS[2], KEYS[1])
  end
  redis.call('LTRIM', KEYS[2], 0, tonumber(ARGV[2]) - 1)
  return { 'ok' }
end
